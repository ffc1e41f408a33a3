//! Internal: the VMs see each other and nobody else.
//!
//! The network is its ports and their switch. It has no uplink: nothing of the host is on it, no frame leaves it, and
//! the process opens nothing for it but what the ports need. When asked to, we give its guests addresses ourselves; the
//! server is then at an address that nothing but this process has.

use super::{Made, ModeError, own_mac, prefixes, settings};
use crate::config::{Internal, Network};

/// See [`super::summary`].
pub const SUMMARY: &str = "a network of VMs alone: no uplink";

/// See [`super::make`].
pub(super) fn make(network: &Network, internal: &Internal) -> Result<Made, ModeError> {
    let services = internal.services.as_ref();
    let services = services.map(|services| settings(network, services, own_mac(network), true)).transpose()?;
    let prefixes = internal.services.as_ref().map(prefixes).unwrap_or_default();
    Ok(Made { services, prefixes, ..Made::default() })
}
