//! Internal: the VMs see each other and nobody else.
//!
//! The network is its ports and their switch. It has no uplink: nothing of the host is on it, no frame leaves it, and
//! the process opens nothing for it but what the ports need. When asked to, we give its guests addresses ourselves; the
//! server is then at an address that nothing but this process has.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Made, ModeError, settings};
use crate::config::{Internal, Network};
use crate::frame::ethernet::MacAddr;

/// See [`super::summary`].
pub const SUMMARY: &str = "a network of VMs alone: no uplink";

/// See [`super::make`].
pub(super) fn make(network: &Network, internal: &Internal) -> Result<Made, ModeError> {
    let services = internal.services.as_ref();
    let services = services.map(|services| settings(network, services, server_mac(network), true)).transpose()?;
    Ok(Made { uplink: None, services })
}

/// An address for the server, the same each time: locally administered (IEEE 802), of the network's name.
fn server_mac(network: &Network) -> MacAddr {
    let mut hasher = DefaultHasher::new();
    network.name.hash(&mut hasher);
    let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
    MacAddr([0x06, a, b, c, d, e])
}
