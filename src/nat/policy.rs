//! Where guests may go, and where that is for the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Settings;

/// Where packets for a destination go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Out, to this address of the host's world.
    Out(IpAddr),
    /// They are for the gateway itself.
    Gateway,
    /// Nowhere: the user, or what the address is, forbids it.
    Forbidden,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Policy {
    gateway4: Ipv4Addr,
    gateway6: Option<Ipv6Addr>,
    networks: Vec<IpNet>,
    host_loopback: bool,
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

impl Policy {
    pub(super) fn new(settings: &Settings) -> Self {
        let network6 = settings.subnet6.and_then(|subnet| IpNet::new(subnet.network().into(), 64).ok());
        let network4 = IpNet::new(settings.subnet.network().into(), settings.subnet.prefix()).ok();
        Self {
            gateway4: settings.subnet.own(),
            gateway6: settings.subnet6.map(|subnet| subnet.own()),
            networks: network4.into_iter().chain(network6).collect(),
            host_loopback: settings.host_loopback,
            allow: settings.allow.clone(),
            deny: settings.deny.clone(),
        }
    }

    /// Where what a guest sends to an address goes.
    pub(super) fn way(&self, to: IpAddr) -> Way {
        if self.is_gateway(to) {
            return Way::Gateway;
        }
        if self.is_elsewhere(to) && self.is_allowed(to) { Way::Out(to) } else { Way::Forbidden }
    }

    /// Whether an address is one of a host's beyond the gateway.
    pub(super) fn is_elsewhere(&self, address: IpAddr) -> bool {
        !self.networks.iter().any(|net| net.contains(&address)) && !is_of_no_one(address, self.host_loopback)
    }

    /// Whether an address is none of a single host's: errors are sent neither to such nor about packets for such.
    pub(super) fn is_for_many(&self, address: IpAddr) -> bool {
        let is_everyone = address == IpAddr::V4(Ipv4Addr::BROADCAST);
        // Of an IPv6 network the last address is like all others.
        let is_networks = |net: &IpNet| address.is_ipv4() && (address == net.broadcast() || address == net.network());
        address.is_multicast() || address.is_unspecified() || is_everyone || self.networks.iter().any(is_networks)
    }

    /// Whether the user has guests go there: the smallest range that the address is in says so.
    fn is_allowed(&self, to: IpAddr) -> bool {
        let smallest = |list: &[IpNet]| list.iter().filter(|net| net.contains(&to)).map(|net| net.prefix_len()).max();
        match (smallest(&self.allow), smallest(&self.deny)) {
            (Some(allowed), Some(denied)) => allowed > denied,
            (None, Some(_)) => false,
            (Some(_), None) => true,
            (None, None) => self.allow.is_empty(),
        }
    }

    /// Whether an address is the gateway's.
    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway4,
            IpAddr::V6(address) => self.gateway6 == Some(address),
        }
    }

    /// The gateway's address of the same family, if it has one.
    pub(super) fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => Some(self.gateway4.into()),
            IpAddr::V6(_) => self.gateway6.map(IpAddr::V6),
        }
    }

    /// The host's loopback address that stands behind the gateway's, if guests may go there.
    pub(super) fn loopback(&self, like: IpAddr) -> Option<IpAddr> {
        self.host_loopback.then_some(match like {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        })
    }

    /// The address by which guests know somebody who comes to them from `client`: that itself, or the gateway's where
    /// what they send there would not come back to us, or not to that one. None: they do not know any such address.
    pub(super) fn known_to_guests(&self, client: IpAddr) -> Option<IpAddr> {
        let is_theirs = self.networks.iter().any(|net| net.contains(&client));
        if is_theirs || is_of_no_one(client, false) { self.gateway(client) } else { Some(client) }
    }

    /// Whether an address is one that a guest on the network may have.
    pub(super) fn is_guests(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(&address)) && !self.is_gateway(address)
    }
}

/// Whether packets for an address never leave a host or a link, or have no single receiver: those of the host's own
/// services and of a cloud's metadata among them. With `link_local` addresses of the host's links are none of them.
fn is_of_no_one(address: IpAddr, link_local: bool) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            let is_local = address.is_link_local() && !link_local;
            is_local || first == 0 || first >= 240 || address.is_loopback() || address.is_multicast()
        }
        IpAddr::V6(address) => {
            // One of the host's links would have to be named with the last.
            let is_local = address.is_loopback() || address.is_unicast_link_local();
            // The kernel would take those that hold an IPv4 address for that.
            is_local || address.is_unspecified() || address.is_multicast() || address.to_ipv4().is_some()
        }
    }
}
