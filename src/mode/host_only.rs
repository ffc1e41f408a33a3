//! Host-only: the host and its VMs, and nobody beyond the host.
//!
//! The uplink is a tap device that has the subnet's first address. Its kernel answers for that address; we give guests
//! theirs. The tap, and with it the address and the route, ends when we end.

use std::net::IpAddr;

use super::{InheritedTaps, Made, ModeError, PREFIX6, bring_up, host, open_tap, own_mac, prefixes, settings};
use crate::config::{HostOnly, Network, Services, TapSource};
use crate::frame::ethernet::MacAddr;
use crate::frame::prefix::Prefix4;
use crate::switch::SubnetFilter;
use crate::sys::netlink::{Link, Netlink};
use crate::uplink::subnet::{conflicting_route, suggest_free_subnet};

/// See [`super::summary`].
pub const SUMMARY: &str = "a network of the host and its VMs, which nothing leaves";

/// See [`super::make`].
pub(super) fn make(network: &Network, host_only: &HostOnly, inherited: &mut InheritedTaps) -> Result<Made, ModeError> {
    let mut netlink = Netlink::open().map_err(host("ask the kernel for", "interfaces"))?;
    // Before the tap is made, of whose routes none is a stranger's.
    let existing = host_only.tap.name(&network.name).map(|name| netlink.link(name.as_str()));
    let existing = existing.transpose().map_err(host("look at", "interfaces"))?.flatten();
    refuse_collision(&host_only.services, existing.as_ref(), &mut netlink)?;
    let is_new = existing.is_none();
    let (tap, mut link) = open_tap(network, &host_only.tap, inherited, &mut netlink)?;
    if is_new && !matches!(host_only.tap, TapSource::Inherit(_)) {
        // The same each time: guests that go on while we are started again remember it.
        let mac = own_mac(network);
        netlink.set_mac(link.index, mac.0).map_err(host("give a MAC address to", &link.name))?;
        link.mac = Some(mac.0);
    }
    let services = &host_only.services;
    if let Some(mtu) = network.mtu {
        netlink.set_mtu(link.index, mtu.bytes().into()).map_err(host("set the MTU of", &link.name))?;
    }
    add_addresses(services, &link, &mut netlink)?;
    bring_up(&mut netlink, &link)?;
    let settings = settings(network, services, MacAddr(link.mac.unwrap_or_default()), false)?;
    tracing::info!(
        network = network.name.as_str(),
        "the host is {}/{} on {}",
        services.subnet.own(),
        services.subnet.prefix(),
        link.name
    );
    let (subnet, prefixes) = (services.subnet, prefixes(services));
    let filter = Prefix4::new(subnet.network(), subnet.prefix()).map(|v4| SubnetFilter::new(v4, prefixes.clone()));
    Ok(Made { uplink: Some(Box::new(tap)), services: Some(settings), filter, prefixes, shared_mac: None })
}

/// See [`super::restore`]: a kernel takes IPv6 addresses from an interface that goes down.
pub(super) fn restore(host_only: &HostOnly, interface: &str) -> Result<(), ModeError> {
    let mut netlink = Netlink::open().map_err(host("ask the kernel for", "interfaces"))?;
    let link = netlink.link(interface).map_err(host("look at", interface))?;
    link.map_or(Ok(()), |link| add_addresses(&host_only.services, &link, &mut netlink))
}

/// Gives the host its addresses, those that it does not have.
fn add_addresses(services: &Services, link: &Link, netlink: &mut Netlink) -> Result<(), ModeError> {
    let addresses = [(services.subnet.own().into(), services.subnet.prefix())];
    let addresses6 = services.subnet6.map(|subnet| (subnet.own().into(), PREFIX6));
    for (address, prefix) in addresses.into_iter().chain(addresses6) {
        netlink.add_address(link.index, address, prefix).map_err(host("give an address to", &link.name))?;
    }
    Ok(())
}

/// A subnet that the host reaches elsewhere would no longer be reached there.
fn refuse_collision(services: &Services, tap: Option<&Link>, netlink: &mut Netlink) -> Result<(), ModeError> {
    let routes = netlink.routes().map_err(host("list", "routes"))?;
    let own = tap.map(|link| link.index);
    let subnets = [(services.subnet.network().into(), services.subnet.prefix())];
    let subnets6 = services.subnet6.map(|subnet| (subnet.network().into(), PREFIX6));
    for (address, prefix) in subnets.into_iter().chain(subnets6) {
        let Some(route) = conflicting_route(&routes, address, prefix, own) else { continue };
        let free = match (address, suggest_free_subnet(&routes, services.subnet.prefix())) {
            (IpAddr::V4(_), Some(free)) => {
                format!("another, for instance --subnet {free}/{}", services.subnet.prefix())
            }
            (IpAddr::V4(_), None) => "a smaller one with --subnet".to_owned(),
            (IpAddr::V6(_), _) => "another with --subnet6, or --subnet6 off".to_owned(),
        };
        return Err(ModeError::Collision { subnet: format!("{address}/{prefix}"), route: route.to_string(), free });
    }
    Ok(())
}
