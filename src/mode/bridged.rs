//! Bridged: the VMs are machines of a network that exists already.
//!
//! The uplink is a tap that joins a Linux bridge and leaves it when we end, a tap that somebody else connects, or a raw
//! socket on a NIC that stays as it is. Nothing is served: the network has its own DHCP server.

use super::{InheritedTaps, Made, ModeError, bring_up, host, open_tap};
use crate::config::{Bridged, IfName, Network, TapSource, Via};
use crate::sys::netlink::{Netlink, is_wireless};
use crate::uplink::{RawNic, Tap, Uplink};

/// See [`super::summary`].
pub const SUMMARY: &str = "a network that exists already, and VMs on it";

/// See [`super::make`].
pub(super) fn make(network: &Network, bridged: &Bridged, inherited: &mut InheritedTaps) -> Result<Made, ModeError> {
    let mut netlink = Netlink::open().map_err(host("ask the kernel for", "interfaces"))?;
    let mut shared_mac = None;
    let uplink: Box<dyn Uplink> = match &bridged.via {
        Via::Bridge(bridge) => Box::new(join(network, bridge, inherited, &mut netlink)?),
        Via::Tap(source) => {
            let (tap, link) = open_tap(network, source, inherited, &mut netlink)?;
            if let Err(error) = bring_up(&mut netlink, &link) {
                // Whoever gave it to us may do it.
                tracing::warn!(network = network.name.as_str(), "{error}");
            }
            Box::new(tap)
        }
        Via::Nic(nic) => {
            let opened = open_nic(network, bridged, nic)?;
            shared_mac = opened.host_mac().filter(|_| bridged.mac_nat);
            Box::new(opened)
        }
    };
    Ok(Made { uplink: Some(uplink), shared_mac, ..Made::default() })
}

/// Joins a bridge with a tap that is as long as the bridge's other ports.
fn join(
    network: &Network,
    bridge: &IfName,
    inherited: &mut InheritedTaps,
    netlink: &mut Netlink,
) -> Result<Tap, ModeError> {
    let found = netlink.link(bridge.as_str()).map_err(host("look at", bridge))?;
    let found = found.ok_or_else(|| ModeError::NoBridge(bridge.clone()))?;
    if !found.bridge {
        return Err(ModeError::NotABridge(bridge.clone()));
    }
    let (tap, link) = open_tap(network, &TapSource::Auto, inherited, netlink)?;
    // A port with a smaller MTU would make the whole bridge's smaller.
    netlink.set_mtu(link.index, found.mtu).map_err(host("set the MTU of", &link.name))?;
    // The host's address on the network is the bridge's. A kernel without IPv6 has nothing to switch off.
    let _ = netlink.set_no_link_local(link.index);
    netlink.set_bridge(link.index, Some(found.index)).map_err(host("join the bridge with", &link.name))?;
    bring_up(netlink, &link)?;
    Ok(tap)
}

fn open_nic(network: &Network, bridged: &Bridged, nic: &IfName) -> Result<RawNic, ModeError> {
    if is_wireless(nic.as_str()) && !bridged.mac_nat {
        return Err(ModeError::Wireless(nic.clone()));
    }
    if bridged.mac_nat {
        tracing::info!(
            network = network.name.as_str(),
            "guests share the address of {nic}; they and this host itself do not reach each other"
        );
        return Ok(RawNic::open_shared(nic.as_str())?);
    }
    let opened = RawNic::open(nic.as_str())?;
    if let Some(why) = &opened.no_host_leg {
        tracing::warn!(network = network.name.as_str(), "{why}");
    }
    Ok(opened.nic)
}
