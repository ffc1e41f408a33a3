//! Real guests on one guestwire: Linux's own virtio-net driver under two QEMUs and two User Mode Linuxes.
//!
//! `tests/lab/prepare.sh tests` must have run. A test without its guests fails; none is skipped. Three tests run at a
//! time: guests wait more than they work, but six of them are a load for a small machine.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod bridged;
mod clients;
mod console;
mod daemon;
mod data;
mod demo;
mod dns;
mod guest;
mod host_only;
mod internal;
mod isolation;
mod lab;
mod lan;
mod nat;
mod network;
mod options;
mod reach;
mod restarts;
mod router;
mod segment;
#[allow(dead_code, reason = "the tests of uplinks use more of it")]
#[path = "../uplink/space.rs"]
mod space;
mod traffic;
mod web;

use std::sync::{Condvar, Mutex, PoisonError};

use crate::daemon::Daemon;
use crate::lab::Lab;

/// More than there may be processors: guests boot, sleep and wait for each other most of the time.
const AT_A_TIME: usize = 3;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ONE_HAS_ENDED: Condvar = Condvar::new();

/// A test's turn, until it is dropped.
struct Turn;

impl Turn {
    fn wait() -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running == AT_A_TIME {
            running = ONE_HAS_ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ONE_HAS_ENDED.notify_one();
    }
}

/// What every test begins with. The guests it starts must be made after it, so that they end before the daemon does.
struct Bench {
    lab: Lab,
    daemon: Daemon,
    _turn: Turn,
}

fn bench() -> Bench {
    let turn = Turn::wait();
    Bench { lab: Lab::prepared(), daemon: Daemon::start(), _turn: turn }
}
