//! Real guests on one guestwire: Linux's own virtio-net driver under two QEMUs and two User Mode Linuxes.
//!
//! `tests/lab/prepare.sh tests` must have run. A test without its guests fails; none is skipped. The tests run one at a
//! time, since three guests are a load for a small machine.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod console;
mod daemon;
mod demo;
mod guest;
mod lab;
mod options;
mod reach;
mod restarts;
mod traffic;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::daemon::Daemon;
use crate::lab::Lab;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What every test begins with. The guests it starts must be made after it, so that they end before the daemon does.
struct Bench {
    lab: Lab,
    daemon: Daemon,
    _turn: MutexGuard<'static, ()>,
}

fn bench() -> Bench {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    Bench { lab: Lab::prepared(), daemon: Daemon::start(), _turn: turn }
}
