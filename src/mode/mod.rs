//! Modes: what a network is made of, apart from its VMs: which uplink, which services.
//!
//! A mode is a function from what the user asked for to [`Made`]. It looks at the host, and changes of the host only
//! what the mode needs; all of that ends with the descriptors of the uplink.

pub mod bridged;
pub mod host_only;
pub mod internal;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use crate::config::{Dhcp, Holder, IfName, Mode, Network, Services, TapSource};
use crate::frame::ethernet::MacAddr;
use crate::frame::prefix::Prefix6;
use crate::service::{
    ClientId, LEASE_SECONDS_MAX, LEASE_SECONDS_MIN, LeaseTime, Pool, Reservation, Settings, SettingsError, Subnet, V4,
    V6, link_local,
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
    pub prefixes: Vec<Prefix6>,
    /// The uplink's MAC address, where guests share it.
    pub shared_mac: Option<MacAddr>,
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
         use the mode nat"
    )]
    Wireless(IfName),
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
    }
}

/// Gives the interface that is a network's uplink again what its kernel took from it while it was down.
///
/// # Errors
/// [`ModeError::Host`].
pub fn restore(network: &Network, interface: &str) -> Result<(), ModeError> {
    match &network.mode {
        Mode::HostOnly(host_only) => host_only::restore(host_only, interface),
        Mode::Internal(_) | Mode::Bridged(_) => Ok(()),
    }
}

/// What the network is made of, in one line for the log.
pub fn summary(network: &Network) -> &'static str {
    match &network.mode {
        Mode::Internal(_) => internal::SUMMARY,
        Mode::HostOnly(_) => host_only::SUMMARY,
        Mode::Bridged(_) => bridged::SUMMARY,
    }
}

/// Opens a tap and finds out what it is.
fn open_tap(
    network: &Network,
    source: &TapSource,
    inherited: &mut InheritedTaps,
    netlink: &mut Netlink,
) -> Result<(Tap, Link), ModeError> {
    let tap = match (source, source.name(&network.name)) {
        (TapSource::Inherit(fd), _) => {
            let number = fd.number();
            Tap::from_fd(inherited.remove(&number).ok_or(ModeError::NoDescriptor(number))?)?
        }
        (_, Some(name)) => Tap::open(name.as_str())?,
        (_, None) => unreachable!("only a descriptor has no name"),
    };
    let name = tap.interface();
    let link = netlink.link(&name).map_err(host("look at", &name))?;
    let link = link.ok_or_else(|| host("look at", &name)(io::Error::from_raw_os_error(libc::ENODEV)))?;
    Ok((tap, link))
}

/// The prefixes in which guests make addresses of their own.
fn prefixes(services: &Services) -> Vec<Prefix6> {
    services.subnet6.and_then(|subnet| Prefix6::new(subnet.network(), PREFIX6)).into_iter().collect()
}

/// A MAC address of the network's own, the same each time: locally administered (IEEE 802), made of its name.
fn own_mac(network: &Network) -> MacAddr {
    let mut hasher = DefaultHasher::new();
    network.name.hash(&mut hasher);
    let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
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
    let v6 = services.subnet6.map(|subnet6| V6 {
        link_local: link_local(server_mac),
        address: Some(subnet6.own()),
        prefix: Some(subnet6.network()),
        router_lifetime: 0,
        dns: Vec::new(),
        search: Vec::new(),
        mtu: network.mtu.map(|mtu| mtu.bytes()),
    });
    Ok(Settings { server_mac, answers_for_gateway, v4, v6 })
}

fn dhcp_settings(network: &Network, dhcp: &Dhcp, subnet: Subnet) -> Result<V4, ModeError> {
    let reservation = |reservation: &crate::config::Reservation| -> Result<Reservation, SettingsError> {
        let client = match &reservation.holder {
            Holder::Mac(mac) => ClientId::Mac(MacAddr(mac.bytes())),
            Holder::Client(id) => ClientId::Identifier(id.bytes().to_vec()),
        };
        let name = reservation.name.as_ref().map(|name| name.as_str().parse()).transpose()?;
        Ok(Reservation { client, address: reservation.ip, name })
    };
    Ok(V4 {
        subnet,
        pools: vec![Pool::new(&subnet, dhcp.range.first(), dhcp.range.last())?],
        router: None,
        routes: Vec::new(),
        dns: dhcp.dns.clone(),
        domain: dhcp.domain.as_ref().map(|domain| domain.as_str().parse()).transpose()?,
        search: dhcp.search.iter().map(|domain| domain.as_str().parse()).collect::<Result<_, _>>()?,
        mtu: network.mtu.map(|mtu| mtu.bytes()),
        lease: LeaseTime::new(dhcp.lease.seconds().clamp(LEASE_SECONDS_MIN, LEASE_SECONDS_MAX))?,
        reservations: network.reservations().iter().map(reservation).collect::<Result<_, _>>()?,
    })
}
