//! Host-only: the host and its VMs, and nobody beyond the host.
//!
//! The uplink is a tap device that has the subnet's first address. Its kernel answers for that address; we give guests
//! theirs. The tap, and with it the address and the route, ends when we end.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use super::{InheritedTaps, Made, ModeError, PREFIX6, bring_up, host, open_tap, own_mac, prefixes, settings};
use crate::config::{HostOnly, Network, Services, TapSource};
use crate::frame::ethernet::MacAddr;
use crate::switch::SubnetFilter;
use crate::sys::netlink::{Link, Netlink};
use crate::uplink::subnet::{conflicting_route, suggest_free_subnet};
use crate::uplink::{Tap, Uplink};

/// See [`super::summary`].
pub const SUMMARY: &str = "a network of the host and its VMs, which nothing leaves";

/// See [`super::make`].
pub(super) fn make(network: &Network, host_only: &HostOnly, inherited: &mut InheritedTaps) -> Result<Made, ModeError> {
    let Opened { tap, interface, mac, has_ipv6, reserved } = open(network, host_only, inherited, None)?;
    let (name, services) = (network.name.as_str(), &host_only.services);
    if !has_ipv6 {
        tracing::warn!(
            network = name,
            "the host has no IPv6 on {interface}: it is turned off (disable_ipv6); VMs have it among themselves"
        );
    }
    let (own, prefix) = (services.subnet.own(), services.subnet.prefix());
    let settings = settings(network, services, mac, false)?;
    tracing::info!(network = name, "the host is {own}/{prefix} on {interface}");
    let (subnet, prefixes) = (services.subnet, prefixes(services));
    let filter = Some(SubnetFilter::new(subnet, prefixes.clone(), mac));
    Ok(Made { uplink: Some(Box::new(tap)), services: Some(settings), filter, prefixes, reserved, ..Made::default() })
}

/// See [`super::reopen`].
pub(super) fn reopen(
    network: &Network,
    host_only: &HostOnly,
    inherited: &mut InheritedTaps,
    mac: Option<MacAddr>,
) -> Result<Box<dyn Uplink>, ModeError> {
    Ok(Box::new(open(network, host_only, inherited, mac)?.tap))
}

/// The host's interface, ready.
struct Opened {
    tap: Tap,
    interface: String,
    mac: MacAddr,
    has_ipv6: bool,
    /// Its IPv6 addresses: the link-local one is the kernel's choice.
    reserved: Vec<Ipv6Addr>,
}

/// Opens the tap and gives it what the host needs: the MAC address `before` if guests know one already, addresses.
fn open(
    network: &Network,
    host_only: &HostOnly,
    inherited: &mut InheritedTaps,
    before: Option<MacAddr>,
) -> Result<Opened, ModeError> {
    let mut netlink = Netlink::open().map_err(host("ask the kernel for", "interfaces"))?;
    // Before the tap is made, of whose routes none is a stranger's.
    let existing = host_only.tap.name(&network.name).map(|name| netlink.link(name.as_str()));
    let existing = existing.transpose().map_err(host("look at", "interfaces"))?.flatten();
    refuse_collision(&host_only.services, existing.as_ref(), &mut netlink)?;
    let is_new = existing.is_none() && !matches!(host_only.tap, TapSource::Inherit(_));
    let (tap, link) = open_tap(network, &host_only.tap, inherited, &mut netlink)?;
    let own = MacAddr(link.mac.unwrap_or_default());
    // The same each time: guests that go on while we are started again remember it.
    let mac = before.unwrap_or(if is_new { own_mac(network) } else { own });
    if mac != own {
        set_mac(&link, mac, &mut netlink)?;
    }
    if let Some(mtu) = network.mtu.map(|mtu| u32::from(mtu.bytes())).filter(|mtu| *mtu != link.mtu) {
        netlink.set_mtu(link.index, mtu).map_err(host("set the MTU of", &link.name))?;
    }
    let has_ipv6 = add_addresses(&host_only.services, &link, &mut netlink)?;
    bring_up(&mut netlink, &link)?;
    let addresses = netlink.addresses(link.index).map_err(host("list the addresses of", &link.name))?;
    let v6 = |(address, _)| if let IpAddr::V6(address) = address { Some(address) } else { None };
    let reserved = addresses.into_iter().filter_map(v6).collect();
    Ok(Opened { tap, interface: link.name, mac, has_ipv6, reserved })
}

fn set_mac(link: &Link, mac: MacAddr, netlink: &mut Netlink) -> Result<(), ModeError> {
    netlink.set_mac(link.index, mac.0).map_err(|error| match error.raw_os_error() {
        // Whoever made the tap for us may.
        Some(libc::EPERM) => ModeError::OtherMac { name: link.name.clone(), mac },
        _ => host("give a MAC address to", &link.name)(error),
    })
}

/// See [`super::restore`]: a kernel takes IPv6 addresses from an interface that goes down.
pub(super) fn restore(host_only: &HostOnly, interface: &str) -> Result<(), ModeError> {
    let mut netlink = Netlink::open().map_err(host("ask the kernel for", "interfaces"))?;
    let link = netlink.link(interface).map_err(host("look at", interface))?;
    link.map_or(Ok(()), |link| add_addresses(&host_only.services, &link, &mut netlink).map(|_| ()))
}

/// Gives the host its addresses, those that it does not have: one that was set beforehand needs no right of ours.
/// Returns whether the interface can have those of IPv6.
fn add_addresses(services: &Services, link: &Link, netlink: &mut Netlink) -> Result<bool, ModeError> {
    let addresses = [(services.subnet.own().into(), services.subnet.prefix())];
    let addresses6 = services.subnet6.map(|subnet| (subnet.own().into(), PREFIX6));
    let present = netlink.addresses(link.index).map_err(host("list the addresses of", &link.name))?;
    for (address, prefix) in addresses.into_iter().chain(addresses6) {
        if present.contains(&(address, prefix)) {
            continue;
        }
        match netlink.add_address(link.index, address, prefix) {
            Err(error) if address.is_ipv6() && is_turned_off(&error) => return Ok(false),
            result => result.map_err(host("give an address to", &link.name))?,
        }
    }
    Ok(true)
}

/// What the kernel says where IPv6 is turned off on an interface (EACCES; whoever lacks the right gets EPERM) or
/// altogether.
fn is_turned_off(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
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
