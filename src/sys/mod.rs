//! Thin wrappers of system calls, without policy: the other room with `unsafe`.
#![allow(unsafe_code)]

pub mod fd;
pub mod poller;
pub mod sigbus;
