//! Modes: what a network is made of, apart from its VMs.

pub mod internal;

use crate::config::{Mode, Network};

/// What the network is made of, in one line for the log.
pub fn summary(network: &Network) -> &'static str {
    match &network.mode {
        Mode::Internal(_) => internal::SUMMARY,
        Mode::HostOnly(_) => "a network of the host and its VMs, which nothing leaves",
        Mode::Bridged(_) => "a network that exists already, and VMs on it",
    }
}
