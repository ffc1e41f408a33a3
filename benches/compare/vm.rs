//! Guests as the tests drive them: real kernels, obeying their consoles.
#![allow(dead_code, reason = "the tests use all of it")]

#[path = "../../tests/guests/console.rs"]
pub(crate) mod console;
#[path = "../../tests/guests/daemon.rs"]
pub(crate) mod daemon;
#[path = "../../tests/guests/guest.rs"]
pub(crate) mod guest;
#[path = "../../tests/guests/lab.rs"]
pub(crate) mod lab;
#[path = "../../tests/guests/router.rs"]
pub(crate) mod router;
#[path = "../../tests/uplink/space.rs"]
pub(crate) mod space;
