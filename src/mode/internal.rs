//! Internal: the VMs see each other and nobody else.
//!
//! The network is its ports and their switch. It has no uplink and no service: nothing of the host is on it, no frame
//! leaves it, and the process opens nothing for it but what the ports need.

/// See [`super::summary`].
pub const SUMMARY: &str = "a network of VMs alone: no uplink, no services";
