//! System calls, wrapped thinly and without policy: the other room with `unsafe`.
#![allow(unsafe_code)]

pub mod rlimit;
pub mod signals;
pub mod socket;
