//! Modes: what a network is made of, apart from its VMs.

pub mod internal;

use crate::config::{Mode, Network};

/// What the network is made of, in one line for the log.
pub fn summary(network: &Network) -> &'static str {
    match network.mode {
        Mode::Internal => internal::SUMMARY,
    }
}
