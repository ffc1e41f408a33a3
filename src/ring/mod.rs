//! A guest's rings, as raw memory that nobody trusts: one of the two rooms with `unsafe`.
#![allow(unsafe_code)]

pub mod mailbox;
