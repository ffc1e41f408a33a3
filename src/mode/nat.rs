//! NAT: the VMs reach what the host reaches, through the host's own sockets, and are hidden behind it.
//!
//! The gateway is an address that nothing but this process has: it is what DHCP and router advertisements tell guests
//! of as their router and, unless the user names others, as their name server. Nothing of the host is changed.

use super::{Made, ModeError, PREFIX6, own_mac, prefixes, settings};
use crate::config::{Nat, Network, Services};
use crate::nat;
use crate::sys::netlink::{Netlink, Route};
use crate::uplink::subnet::{conflicting_route, suggest_free_subnet};

/// See [`super::summary`].
pub const SUMMARY: &str = "a network of VMs that reach what the host reaches, hidden behind it";

/// The MTU of guests who are told none: Ethernet's.
const MTU: u16 = 1500;
/// How long guests of IPv6 take us for their router, in seconds: as long as routers say that are not told otherwise
/// (RFC 4861, 6.2.1).
const ROUTER_LIFETIME: u16 = 1800;

/// Set in the environment: kernels that have `SO_PEEK_OFF` are taken for such that have not, for those who want to know
/// how much it is worth, and to test what is done without it.
const NO_PEEK_OFFSET: &str = "GUESTWIRE_NO_PEEK_OFFSET";

/// See [`super::make`].
pub(super) fn make(network: &Network, nat: &Nat) -> Result<Made, ModeError> {
    warn_of_hidden(network, &nat.services);
    let (services, engine) = made_of(network, nat)?;
    let doors = nat::Doors::open(&engine)?;
    let prefixes = prefixes(&nat.services);
    Ok(Made { services: Some(services), prefixes, nat: Some(engine), doors, ..Made::default() })
}

/// What the services and the engine are told.
fn made_of(network: &Network, nat: &Nat) -> Result<(crate::service::Settings, nat::Settings), ModeError> {
    let services = gateway_settings(network, &nat.services)?;
    let Services { subnet, subnet6, .. } = nat.services;
    let engine = nat::Settings {
        gateway_mac: services.server_mac,
        subnet,
        subnet6,
        domain: nat.services.dhcp.as_ref().and_then(|dhcp| dhcp.domain.clone()),
        mtu: network.mtu.map_or(MTU, |mtu| mtu.bytes()),
        advertisement: services.router_advertisement(),
        forwards: nat.forwards.clone(),
        host_loopback: nat.host_loopback,
        allow: nat.allow.clone(),
        deny: nat.deny.clone(),
        peek_offset: std::env::var_os(NO_PEEK_OFFSET).is_none(),
    };
    Ok((services, engine))
}

/// What is served where we are the gateway.
fn gateway_settings(network: &Network, services: &Services) -> Result<crate::service::Settings, ModeError> {
    let mut settings = settings(network, services, own_mac(network), true)?;
    let has_servers = services.dhcp.as_ref().is_some_and(|dhcp| !dhcp.dns.is_empty() || !dhcp.dns6.is_empty());
    if let Some(v4) = &mut settings.v4 {
        v4.router = Some(v4.subnet.server());
        if !has_servers {
            v4.dns = vec![v4.subnet.server()];
        }
    }
    if let Some(v6) = &mut settings.v6 {
        v6.router_lifetime = ROUTER_LIFETIME;
        if !has_servers {
            v6.dns = v6.address.into_iter().collect();
        }
    }
    Ok(settings)
}

/// Tells of machines that the host reaches and guests do not, because they take their addresses for each other's.
fn warn_of_hidden(network: &Network, services: &Services) {
    // It is only a warning: where the host's routes cannot be had, there is none.
    let Ok(routes) = Netlink::open().and_then(|mut netlink| netlink.routes()) else { return };
    for text in hidden(&routes, services) {
        tracing::warn!(network = network.name.as_str(), "{text}");
    }
}

/// What is to be said of routes that are within the network's subnets.
fn hidden(routes: &[Route], services: &Services) -> Vec<String> {
    let prefix = services.subnet.prefix();
    let subnet = (services.subnet.network().into(), prefix, "--subnet");
    let subnet6 = services.subnet6.map(|subnet| (subnet.network().into(), PREFIX6, "--subnet6"));
    let text = |(address, prefix_len, flag)| {
        // The most specific one: if any is within the subnet, it is.
        let route =
            conflicting_route(routes, address, prefix_len, None).filter(|route| route.prefix_len >= prefix_len)?;
        let free = suggest_free_subnet(routes, prefix).filter(|_| address.is_ipv4());
        let free = free.map(|free| format!(", for instance {free}/{prefix}")).unwrap_or_default();
        Some(format!(
            "guests do not reach what the host reaches by its route {route}, which is within their own subnet \
             {address}/{prefix_len}: choose another with {flag}{free}"
        ))
    };
    [Some(subnet), subnet6].into_iter().flatten().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Mode, file};

    fn network(more: &str) -> Network {
        let text = format!("[[network]]\nname = \"net\"\nmode = \"nat\"\nsocket-path = \"/net.sock\"\n{more}");
        file::parse("lab.toml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}")).networks.remove(0)
    }

    fn made(network: &Network) -> (crate::service::Settings, nat::Settings) {
        let Mode::Nat(nat) = &network.mode else { panic!("{network:?}") };
        made_of(network, nat).unwrap()
    }

    #[test]
    fn guests_are_told_of_the_gateway_as_router_and_name_server() {
        let network = network("");
        let (services, nat) = made(&network);
        assert!(services.answers_for_gateway);
        assert_eq!((services.server_mac, nat.gateway_mac), (own_mac(&network), own_mac(&network)));
        let (v4, v6) = (services.v4.unwrap(), services.v6.unwrap());
        let own = "10.0.2.1".parse().unwrap();
        assert_eq!((v4.subnet.server(), v4.router, v4.dns.as_slice()), (own, Some(own), [own].as_slice()));
        let subnet6 = nat.subnet6.unwrap();
        assert_eq!((v6.address, v6.prefix), (Some(subnet6.own()), Some(subnet6.network())));
        assert_eq!((v6.router_lifetime, v6.dns), (1800, vec![subnet6.own()]));
        assert_eq!((nat.subnet.to_string().as_str(), nat.mtu), ("10.0.2.0/24", 1500));
        assert!(nat.forwards.is_empty() && nat.allow.is_empty() && nat.deny.is_empty() && !nat.host_loopback);
    }

    #[test]
    fn what_the_user_says_goes_before() {
        let network = network(
            "mtu = 9000\nsubnet6 = \"off\"\nforward = \"tcp:80:80\"\nallow = \"10.1.0.0/16\"\ndeny = \"10.1.2.3\"\n\
             allow-host-loopback = true\n[network.dhcp]\ndns = \"9.9.9.9\"\n",
        );
        let (services, nat) = made(&network);
        assert_eq!((services.v4.unwrap().dns, services.v6), (vec!["9.9.9.9".parse().unwrap()], None));
        assert_eq!((nat.mtu, nat.subnet6, nat.host_loopback), (9000, None, true));
        assert_eq!(nat.forwards, ["tcp:80:80".parse().unwrap()]);
        assert_eq!((nat.allow, nat.deny), (vec!["10.1.0.0/16".parse().unwrap()], vec!["10.1.2.3/32".parse().unwrap()]));
    }

    #[test]
    fn name_servers_that_are_named_are_the_only_ones() {
        let (services, _) = made(&network("[network.dhcp]\ndns = \"9.9.9.9\"\n"));
        assert_eq!(services.v6.unwrap().dns, [] as [std::net::Ipv6Addr; 0]);
        let (services, _) = made(&network("[network.dhcp]\ndns = \"fd00::9\"\n"));
        assert_eq!(services.v4.unwrap().dns, [] as [std::net::Ipv4Addr; 0]);
    }

    #[test]
    fn routes_within_the_subnet_are_told_of() {
        let route = |destination: &str, prefix_len| Route {
            destination: destination.parse().unwrap(),
            prefix_len,
            gateway: None,
            index: 2,
            interface: "eth0".into(),
        };
        let network = network("subnet6 = \"fd00::/64\"\n");
        let hidden = |routes: &[Route]| hidden(routes, network.services().unwrap());
        assert_eq!(hidden(&[route("0.0.0.0", 0), route("10.0.0.0", 8), route("10.0.3.0", 24)]), [] as [String; 0]);
        let texts = hidden(&[route("10.0.0.0", 8), route("10.0.2.0", 24), route("fd00::5", 128)]);
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("10.0.2.0/24 dev eth0") && texts[0].contains("for instance 192.168.56.0/24"));
        assert!(texts[1].contains("fd00::5/128 dev eth0") && texts[1].ends_with("--subnet6"));
    }
}
