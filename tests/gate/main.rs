//! The session, gate and daemon together, in process, with a worker that only writes down what it is told.
//!
//! What real frontends say, in which order and with which descriptors, is recorded in `fixtures/`; [`replay`] says it
//! again. `fixtures/README.md` tells how to record another one.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod replay;
mod script;
mod session;
mod sessions;
mod worker;
