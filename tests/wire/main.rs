//! The whole of guestwire with a virtio-net driver in process: a test is two guests and a daemon in one second.
//!
//! The daemon is the real binary. The driver (`guest`, `ring`, `memory`) speaks vhost-user through the `vhost` crate's
//! front-end and drives split rings of its own over a memfd, so it is an implementation independent of the one it
//! tests; a hostile guest or frontend (`hostile_rings`, `hostile_frontends`) writes what it likes.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod announce;
mod attacks;
mod churn;
mod daemon;
mod dependent;
mod dhcp;
mod dns;
mod features;
mod forwards;
mod guest;
mod host_only;
mod hostile_frontends;
mod hostile_nat;
mod hostile_rings;
mod icmp;
mod isolation;
mod kinds;
mod lengths;
mod memory;
mod nat;
mod networks;
mod no_memory;
mod offloads;
mod order;
mod packet;
mod policy;
mod quiet;
mod resolver;
mod ring;
mod rows;
mod segments;
mod shortage;
#[allow(dead_code, reason = "the tests of uplinks use more of it")]
#[path = "../uplink/space.rs"]
mod space;
mod switching;
mod told;
mod uplinks;
mod upload;
mod waits;
mod wakes;
