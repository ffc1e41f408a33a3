//! Uplinks with real devices: taps, pairs of interfaces and bridges in network namespaces that each test makes, with
//! the kernel's own stack at the other end. They need root.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod frames;
mod netlink;
mod raw_nic;
#[allow(dead_code, reason = "tests of the whole use more of it")]
mod space;
mod tap;
mod wire;
