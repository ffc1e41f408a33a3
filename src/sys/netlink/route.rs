//! The host's routes.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Netlink;

/// Where the host sends packets for a range of addresses. Displayed for people: "10.0.0.0/8 dev eth0".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The first address of the range.
    pub destination: IpAddr,
    /// Bits that all addresses of the range share.
    pub prefix_len: u8,
    /// The router on the way, if any.
    pub gateway: Option<IpAddr>,
    /// The interface, by number; zero where there is none.
    pub index: u32,
    /// The interface's name.
    pub interface: String,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.destination, self.prefix_len)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if self.interface.is_empty() { Ok(()) } else { write!(f, " dev {}", self.interface) }
    }
}

impl Netlink {
    /// The routes of all tables, IPv4 and IPv6: to hosts, networks and our own addresses, but not to groups, and not
    /// those of the loopback interface.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let links = self.links()?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let dumped = self.dump(RouteNetlinkMessage::GetRoute(message), |message| {
                if let RouteNetlinkMessage::NewRoute(message) = message {
                    routes.extend(parse(&message));
                }
            });
            match dumped {
                // A kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                result => result?,
            }
        }
        routes.retain_mut(|route: &mut Route| {
            let link = links.iter().find(|link| link.index == route.index);
            route.interface = link.map(|link| link.name.clone()).unwrap_or_default();
            !link.is_some_and(|link| link.loopback)
        });
        Ok(routes)
    }
}

fn parse(message: &RouteMessage) -> Option<Route> {
    let kind = message.header.kind;
    if matches!(kind, RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast | RouteType::Throw) {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let prefix_len = message.header.destination_prefix_length;
    let mut route = Route { destination: any, prefix_len, gateway: None, index: 0, interface: String::new() };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => route.destination = address(destination)?,
            RouteAttribute::Gateway(gateway) => route.gateway = address(gateway),
            RouteAttribute::Oif(index) => route.index = *index,
            RouteAttribute::MultiPath(hops) => {
                route.index = hops.first().map_or(0, |hop| hop.interface_index);
            }
            _ => {}
        }
    }
    Some(route)
}
