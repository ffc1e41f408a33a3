//! What guests are told, and how many threads serve them.

use std::str::FromStr;

use super::{Problem, problem};

/// The smallest MTU of a virtio network device (virtio 1.3, 5.1.4.1).
pub const MTU_MIN: u16 = 68;
/// Queue pairs that a port may have.
pub const QUEUE_PAIRS_MAX: u16 = 16;
/// Threads that forward one network's frames, at most.
pub const WORKERS_MAX: u8 = 64;

/// An MTU: the longest payload of an Ethernet frame, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u16);

impl Mtu {
    /// Bytes.
    pub fn bytes(self) -> u16 {
        self.0
    }
}

impl FromStr for Mtu {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse::<u16>() {
            Ok(bytes) if bytes >= MTU_MIN => Ok(Self(bytes)),
            _ => problem(format!("not an MTU: a number of bytes from {MTU_MIN} to {}, for instance 9000", u16::MAX)),
        }
    }
}

/// How many queue pairs guests are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairs(u16);

impl QueuePairs {
    /// One: the default.
    pub const ONE: QueuePairs = QueuePairs(1);

    /// The number, from 1 to [`QUEUE_PAIRS_MAX`].
    pub fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for QueuePairs {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse() {
            Ok(n) if (1..=QUEUE_PAIRS_MAX).contains(&n) => Ok(Self(n)),
            _ => problem(format!("not a number of queue pairs from 1 to {QUEUE_PAIRS_MAX}")),
        }
    }
}

/// How many threads forward a network's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerCount(u8);

impl WorkerCount {
    /// One: the default.
    pub const ONE: WorkerCount = WorkerCount(1);

    /// The number, from 1 to [`WORKERS_MAX`].
    pub fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for WorkerCount {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse() {
            Ok(n) if (1..=WORKERS_MAX).contains(&n) => Ok(Self(n)),
            _ => problem(format!("not a number of workers from 1 to {WORKERS_MAX}")),
        }
    }
}
