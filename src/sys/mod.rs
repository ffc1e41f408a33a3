//! System calls, wrapped thinly and without policy: the other room with `unsafe`.
#![allow(unsafe_code)]

pub mod datagrams;
pub mod errqueue;
pub mod fd;
pub mod holder;
pub mod listen;
pub mod local_port;
pub mod lock;
pub mod malloc;
pub mod net;
pub mod netlink;
pub mod packet;
pub mod poller;
pub mod rlimit;
pub mod sigbus;
pub mod signals;
pub mod socket;
pub mod tap;
pub mod uio;
