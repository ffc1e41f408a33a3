//! Modes: what a network is made of, apart from its VMs: which uplink, which services.
//!
//! A mode is a function from what the user asked for to [`Made`]. It looks at the host, and changes of the host only
//! what the mode needs; all of that ends with the descriptors of the uplink.

pub mod bridged;
pub mod host_only;
pub mod internal;
pub mod nat;

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{OwnedFd, RawFd};

use crate::config::{Dhcp, Holder, IfName, Mode, Network, Route4, Services, Subnet6, TapSource, fnv1a};
use crate::frame::ethernet::MacAddr;
use crate::nat::{Doors, ForwardError};
use crate::service::{
    ClientId, Domain, LeaseTime, Pool, Reservation, Route, Settings, SettingsError, Subnet, V4, V6, link_local,
};
use crate::switch::SubnetFilter;
use crate::sys::netlink::{Link, Netlink};
use crate::uplink::{RawNicError, Tap, TapError, Uplink};

/// What a network is made of.
#[derive(Debug, Default)]
pub struct Made {
    /// The way out.
    pub uplink: Option<Box<dyn Uplink>>,
    /// What is answered here.
    pub services: Option<Settings>,
    /// What keeps guests' frames in the network's subnets, where they must not leave them.
    pub filter: Option<SubnetFilter>,
    /// The prefixes in which guests make addresses of their own.
    pub prefixes: Vec<Subnet6>,
    /// The host's own addresses there, beside those that services answer from.
    pub reserved: Vec<Ipv6Addr>,
    /// The uplink's MAC address, where guests share it.
    pub shared_mac: Option<MacAddr>,
    /// What carries guests' packets over sockets of the host's, if that is the way out.
    pub nat: Option<crate::nat::Settings>,
    /// The sockets of its forwards.
    pub doors: Doors,
}

/// Prefix of a subnet of IPv6, in bits.
const PREFIX6: u8 = 64;

/// Taps that our parent process left us, by the descriptor's number.
pub type InheritedTaps = HashMap<RawFd, OwnedFd>;

/// Why a network cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The NIC.
    #[error(transparent)]
    Nic(#[from] RawNicError),
    /// The services.
    #[error(transparent)]
    Services(#[from] SettingsError),
    /// A forward.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The subnet is in use.
    #[error("the subnet {subnet} collides with the host's route {route}: choose {free}")]
    Collision {
        /// What was asked for.
        subnet: String,
        /// The route.
        route: String,
        /// What to choose instead.
        free: String,
    },
    /// There is no such bridge.
    #[error("there is no bridge {0}: make it with `ip link add {0} type bridge`, or name another with --bridge")]
    NoBridge(IfName),
    /// That is something else.
    #[error("{0} is not a Linux bridge: if it is a NIC, use --nic {0}")]
    NotABridge(IfName),
    /// The NIC is a radio.
    #[error(
        "{0} is a wireless NIC, whose access point refuses the addresses of guests: share its own with --mac-nat, or \
         use mode nat"
    )]
    Wireless(IfName),
    /// The tap that is back is known to guests by another address.
    #[error(
        "{name} has another MAC address than before, to which guests send: set it with `ip link set {name} address \
         {mac}`"
    )]
    OtherMac {
        /// The interface.
        name: String,
        /// The address that guests know.
        mac: MacAddr,
    },
    /// The descriptor was used, or came too late.
    #[error("descriptor {0} was not left to us when we started: name a tap with --tap instead")]
    NoDescriptor(RawFd),
    /// The host refused something.
    #[error("cannot {doing} {name}: {source}{}", hint(source))]
    Host {
        /// What we tried, as a verb.
        doing: &'static str,
        /// The interface.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// What helps against an error of the system's.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ": that needs CAP_NET_ADMIN; run as root, or `setcap cap_net_admin+ep` the program"
        }
        _ => "",
    }
}

/// Names what failed.
fn host(doing: &'static str, name: impl ToString) -> impl FnOnce(io::Error) -> ModeError {
    let name = name.to_string();
    move |source| ModeError::Host { doing, name, source }
}

/// Makes what a network is made of.
///
/// # Errors
/// See [`ModeError`]: the text says what helps.
pub fn make(network: &Network, inherited: &mut InheritedTaps) -> Result<Made, ModeError> {
    match &network.mode {
        Mode::Internal(internal) => internal::make(network, internal),
        Mode::HostOnly(host_only) => host_only::make(network, host_only, inherited),
        Mode::Bridged(bridged) => bridged::make(network, bridged, inherited),
        Mode::Nat(nat) => nat::make(network, nat),
    }
}

/// Opens a network's uplink again, after its device has gone. `mac` is the address that the host's interface had, if
/// guests know it.
///
/// # Errors
/// See [`ModeError`]: the text says what helps.
pub fn reopen(network: &Network, mac: Option<MacAddr>) -> Result<Option<Box<dyn Uplink>>, ModeError> {
    let none = &mut InheritedTaps::new();
    match &network.mode {
        Mode::Internal(_) | Mode::Nat(_) => Ok(None),
        Mode::HostOnly(host_only) => Ok(Some(host_only::reopen(network, host_only, none, mac)?)),
        Mode::Bridged(bridged) => Ok(bridged::make(network, bridged, none)?.uplink),
    }
}

/// Gives the interface that is a network's uplink again what its kernel took from it while it was down.
///
/// # Errors
/// [`ModeError::Host`].
pub fn restore(network: &Network, interface: &str) -> Result<(), ModeError> {
    match &network.mode {
        Mode::HostOnly(host_only) => host_only::restore(host_only, interface),
        Mode::Internal(_) | Mode::Bridged(_) | Mode::Nat(_) => Ok(()),
    }
}

/// What the network is made of, in one line for the log.
pub fn summary(network: &Network) -> &'static str {
    match &network.mode {
        Mode::Internal(_) => internal::SUMMARY,
        Mode::HostOnly(_) => host_only::SUMMARY,
        Mode::Bridged(_) => bridged::SUMMARY,
        Mode::Nat(_) => nat::SUMMARY,
    }
}

/// Opens a tap and finds out what it is.
fn open_tap(
    network: &Network,
    source: &TapSource,
    inherited: &mut InheritedTaps,
    netlink: &mut Netlink,
) -> Result<(Tap, Link), ModeError> {
    if let Some(name) = source.name(&network.name)
        && let Some(link) = netlink.link(name.as_str()).map_err(host("look at", &name))?
        && link.queues > 0
    {
        // The kernel keeps a second program only from devices that have one queue.
        return Err(TapError::Busy(name.to_string()).into());
    }
    let tap = match (source, source.name(&network.name)) {
        (TapSource::Inherit(fd), _) => {
            let number = fd.number();
            Tap::from_fd(inherited.remove(&number).ok_or(ModeError::NoDescriptor(number))?)?
        }
        (_, Some(name)) if network.workers.get() > 1 => Tap::open_many(name.as_str())?,
        (_, Some(name)) => Tap::open(name.as_str())?,
        (_, None) => unreachable!("only a descriptor has no name"),
    };
    let name = tap.interface();
    let link = netlink.link(&name).map_err(host("look at", &name))?;
    let link = link.ok_or_else(|| host("look at", &name)(io::Error::from_raw_os_error(libc::ENODEV)))?;
    Ok((tap, link))
}

/// The prefixes in which guests make addresses of their own.
fn prefixes(services: &Services) -> Vec<Subnet6> {
    services.subnet6.into_iter().collect()
}

/// A MAC address of the network's own, the same each time: locally administered (IEEE 802), made of its name.
fn own_mac(network: &Network) -> MacAddr {
    let [a, b, c, d, e, ..] = fnv1a(network.name.as_str().bytes()).to_be_bytes();
    MacAddr([0x06, a, b, c, d, e])
}

/// Brings an interface up, if it is not.
fn bring_up(netlink: &mut Netlink, link: &Link) -> Result<(), ModeError> {
    if link.up { Ok(()) } else { netlink.set_up(link.index, true).map_err(host("bring up", &link.name)) }
}

/// What is served on a network, by a server with this MAC address.
fn settings(
    network: &Network,
    services: &Services,
    server_mac: MacAddr,
    answers_for_gateway: bool,
) -> Result<Settings, ModeError> {
    let subnet = Subnet::new(services.subnet.own(), services.subnet.prefix())?;
    let v4 = services.dhcp.as_ref().map(|dhcp| dhcp_settings(network, dhcp, subnet)).transpose()?;
    let v6_of = |subnet6: Subnet6| -> Result<V6, ModeError> {
        let dhcp = services.dhcp.as_ref();
        Ok(V6 {
            link_local: link_local(server_mac),
            address: Some(subnet6.own()),
            prefix: Some(subnet6.network()),
            router_lifetime: 0,
            dns: dhcp.map(|dhcp| dhcp.dns6.clone()).unwrap_or_default(),
            search: dhcp.map(search).transpose()?.unwrap_or_default(),
            mtu: network.mtu.map(|mtu| mtu.bytes()),
        })
    };
    let v6 = services.subnet6.map(v6_of).transpose()?;
    Ok(Settings { server_mac, answers_for_gateway, v4, v6 })
}

fn dhcp_settings(network: &Network, dhcp: &Dhcp, subnet: Subnet) -> Result<V4, ModeError> {
    Ok(V4 {
        subnet,
        pools: vec![Pool::new(&subnet, dhcp.range.first(), dhcp.range.last())?],
        router: dhcp.router,
        routes: dhcp.routes.iter().map(route).collect::<Result<_, _>>()?,
        dns: dhcp.dns.clone(),
        domain: dhcp.domain.as_ref().map(|domain| domain.as_str().parse()).transpose()?,
        search: search(dhcp)?,
        mtu: network.mtu.map(|mtu| mtu.bytes()),
        lease: LeaseTime::new(dhcp.lease.seconds())?,
        reservations: reservations(network)?,
    })
}

fn route(route: &Route4) -> Result<Route, SettingsError> {
    Route::new(route.network(), route.prefix(), route.via())
}

/// Domains in which guests look names up.
fn search(dhcp: &Dhcp) -> Result<Vec<Domain>, ModeError> {
    Ok(dhcp.search.iter().map(|domain| domain.as_str().parse()).collect::<Result<_, SettingsError>>()?)
}

/// The addresses that a network keeps for guests, as its services are told.
///
/// # Errors
/// [`ModeError::Services`].
pub fn reservations(network: &Network) -> Result<Vec<Reservation>, ModeError> {
    let reservation = |reservation: crate::config::Reservation| -> Result<Reservation, SettingsError> {
        let client = match &reservation.holder {
            Holder::Mac(mac) => ClientId::Mac(MacAddr(mac.bytes())),
            Holder::Client(id) => ClientId::Identifier(id.bytes().to_vec()),
        };
        let name = reservation.name.as_ref().map(|name| name.as_str().parse()).transpose()?;
        Ok(Reservation { client, address: reservation.ip, name })
    };
    Ok(network.reservations().into_iter().map(reservation).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DNS_MAX, DOMAIN_BYTES_MAX, LABEL_BYTES_MAX, LEASE_SECONDS_MAX, SEARCH_MAX, file};
    use crate::service::{Leases, Services};

    fn network(more: &str) -> Network {
        let text = format!("[[network]]\nname = \"lab\"\nmode = \"host-only\"\nsocket-path = \"/lab.sock\"\n{more}");
        file::parse("lab.toml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}")).networks.remove(0)
    }

    fn settings_of(network: &Network) -> Settings {
        settings(network, network.services().unwrap(), own_mac(network), false).unwrap()
    }

    #[test]
    fn a_network_has_the_same_mac_address_for_ever() {
        assert_eq!(own_mac(&network("")).to_string(), "06:12:65:96:19:1d");
    }

    /// A name of this many bytes.
    fn domain(first: char, len: usize) -> String {
        let mut name: Vec<u8> = format!("{first}").into_bytes();
        while name.len() < len {
            name.push(if name.len() % (LABEL_BYTES_MAX + 1) == LABEL_BYTES_MAX { b'.' } else { b'x' });
        }
        String::from_utf8(name).unwrap()
    }

    #[test]
    fn what_a_file_may_say_is_told_to_guests_whole() {
        let quoted = |words: Vec<String>| format!("[{}]", words.join(", "));
        let longest = |i: u8| format!("\"{}\"", domain(char::from(b'a' + i), DOMAIN_BYTES_MAX));
        let dns4 = (0..DNS_MAX).map(|i| format!("\"192.168.56.{}\"", i + 1));
        let dns6 = (0..DNS_MAX).map(|i| format!("\"fd00::{}\"", i + 1));
        let dhcp = format!(
            "[network.dhcp]\nlease = \"{LEASE_SECONDS_MAX}s\"\ndomain = {}\nsearch = {}\ndns = {}\n",
            longest(25),
            quoted((0..SEARCH_MAX as u8).map(longest).collect()),
            quoted(dns4.chain(dns6).collect()),
        );
        let settings = settings_of(&network(&dhcp));
        let (v4, v6) = (settings.v4.as_ref().unwrap(), settings.v6.as_ref().unwrap());
        assert_eq!((v4.dns.len(), v4.search.len(), v4.lease.seconds()), (DNS_MAX, SEARCH_MAX, LEASE_SECONDS_MAX));
        assert_eq!(v6.dns.first().map(ToString::to_string).as_deref(), Some("fd00::1"));
        assert_eq!((v6.dns.len(), &v6.search), (DNS_MAX, &v4.search));
        assert_eq!(*Services::new(settings.clone(), Leases::default()).settings(), settings, "nothing is cut off");
    }

    #[test]
    fn a_router_among_the_guests_and_what_is_behind_it_are_told_of() {
        let text = "[[network]]\nname = \"lab\"\nmode = \"internal\"\nsocket-path = \"/lab.sock\"\n\
                    subnet = \"10.0.0.0/24\"\n[network.dhcp]\nrouter = \"10.0.0.9\"\n\
                    routes = [\"10.1.0.0/16 via 10.0.0.8\"]\n\
                    [[network.dhcp.reservation]]\nmac = \"02:00:00:00:00:01\"\nip = \"10.0.0.9\"\n";
        let config = file::parse("lab.toml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}"));
        let v4 = settings_of(&config.networks[0]).v4.unwrap();
        assert_eq!(v4.router, Some("10.0.0.9".parse().unwrap()));
        let route = Route::new("10.1.0.0".parse().unwrap(), 16, "10.0.0.8".parse().unwrap()).unwrap();
        assert_eq!(v4.routes, [route]);
    }

    #[test]
    fn advice_names_only_what_there_is() {
        let text = ModeError::Wireless("wlan0".parse().unwrap()).to_string();
        assert!(text.contains("--mac-nat") && text.contains("mode nat"), "{text}");
    }
}
