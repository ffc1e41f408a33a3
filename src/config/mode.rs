//! What a network is connected to.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Dhcp, Forward, IfName, InheritedFd, Name, Problem, Subnet4, Subnet6, problem};

/// What a network is connected to.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    /// Nothing: the VMs on it see each other and nobody else.
    Internal(Internal),
    /// The host, and nothing beyond it.
    HostOnly(HostOnly),
    /// A network that exists already.
    Bridged(Bridged),
    /// What the host reaches, through the host's own sockets.
    Nat(Nat),
}

impl Mode {
    /// The names of all modes: the verbs of the command line.
    pub const NAMES: &'static [&'static str] = &["internal", "host-only", "bridged", "nat"];

    /// The verb of the command line that asks for this mode.
    pub const fn name(&self) -> &'static str {
        match self {
            Mode::Internal(_) => "internal",
            Mode::HostOnly(_) => "host-only",
            Mode::Bridged(_) => "bridged",
            Mode::Nat(_) => "nat",
        }
    }

    /// What we serve to guests ourselves, if anything.
    pub fn services(&self) -> Option<&Services> {
        match self {
            Mode::Internal(internal) => internal.services.as_ref(),
            Mode::HostOnly(host_only) => Some(&host_only.services),
            Mode::Bridged(_) => None,
            Mode::Nat(nat) => Some(&nat.services),
        }
    }

    /// The ports of the host that lead to guests.
    pub fn forwards(&self) -> &[Forward] {
        if let Mode::Nat(nat) = self { &nat.forwards } else { &[] }
    }

    /// The descriptor of a tap that our parent process left us, if the network is made of one.
    pub fn inherited_tap(&self) -> Option<InheritedFd> {
        let tap = match self {
            Mode::HostOnly(host_only) => &host_only.tap,
            Mode::Bridged(Bridged { via: Via::Tap(tap), .. }) => tap,
            Mode::Internal(_) | Mode::Bridged(_) | Mode::Nat(_) => return None,
        };
        if let TapSource::Inherit(fd) = tap { Some(*fd) } else { None }
    }

    /// What guests are held to unless the user says otherwise.
    pub fn default_security(&self) -> Security {
        match self {
            // A guest on a LAN may well be a router or a bridge itself, and its address is the LAN's business.
            Mode::Bridged(_) => Security::OFF,
            Mode::Internal(_) | Mode::HostOnly(_) | Mode::Nat(_) => Security::ON,
        }
    }
}

/// An internal network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Internal {
    /// Addresses for guests, when asked for.
    pub services: Option<Services>,
}

/// A host-only network.
#[derive(Clone, Debug, PartialEq)]
pub struct HostOnly {
    /// The host's interface.
    pub tap: TapSource,
    /// The subnet, in which the host has [`Subnet4::own`] and [`Subnet6::own`], and what guests are told.
    pub services: Services,
}

/// A bridged network.
#[derive(Clone, Debug, PartialEq)]
pub struct Bridged {
    /// How the network that exists is reached.
    pub via: Via,
    /// Whether guests share the NIC's MAC address. Only with [`Via::Nic`].
    pub mac_nat: bool,
}

/// A NAT network. Its guests are hidden behind the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Nat {
    /// The subnet, in which we are the gateway as [`Subnet4::own`] and [`Subnet6::own`], and what guests are told.
    /// There always is a DHCP server.
    pub services: Services,
    /// Ports of the host that lead to guests: no two the same.
    pub forwards: Vec<Forward>,
    /// Whether guests reach what listens for the host alone: its loopback and link-local addresses.
    pub host_loopback: bool,
    /// What guests reach; none: everything. Of all ranges here and in `deny` that a destination is in, the smallest
    /// says whether it is reached, and of two that are equal the one in `deny`.
    pub allow: Vec<IpNet>,
    /// What guests do not reach.
    pub deny: Vec<IpNet>,
}

/// How an existing network is reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Via {
    /// Through a NIC of the host, which stays as it is.
    Nic(IfName),
    /// Through a tap that we join to this Linux bridge.
    Bridge(IfName),
    /// Through a tap that somebody else connects. Never [`TapSource::Auto`].
    Tap(TapSource),
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Via::Nic(name) => write!(f, "the NIC {name}"),
            Via::Bridge(name) => write!(f, "the bridge {name}"),
            Via::Tap(tap) => tap.fmt(f),
        }
    }
}

/// Where a tap device comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TapSource {
    /// The one with this name, which is made if there is none.
    Name(IfName),
    /// A new one: see [`TapSource::name`].
    Auto,
    /// One that our parent process left us open as a descriptor.
    Inherit(InheritedFd),
}

impl TapSource {
    /// The device's name on the network `network`; none for a descriptor, which has one already.
    pub fn name(&self, network: &Name) -> Option<IfName> {
        match self {
            TapSource::Name(name) => Some(name.clone()),
            TapSource::Auto => Some(IfName::of_tap(network)),
            TapSource::Inherit(_) => None,
        }
    }
}

impl fmt::Display for TapSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TapSource::Name(name) => write!(f, "the tap {name}"),
            TapSource::Auto => f.write_str("a tap of its own"),
            TapSource::Inherit(fd) => write!(f, "the tap on descriptor {}", fd.number()),
        }
    }
}

/// What we serve to guests.
#[derive(Clone, Debug, PartialEq)]
pub struct Services {
    /// The subnet; its first address is ours.
    pub subnet: Subnet4,
    /// The subnet of IPv6 that is advertised to guests, if any.
    pub subnet6: Option<Subnet6>,
    /// The DHCP server; none: guests have addresses of their own.
    pub dhcp: Option<Dhcp>,
}

/// What guests are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Security {
    /// A guest sends only from its own MAC address: the declared one, else the first that it used.
    pub mac: bool,
    /// A guest to which we gave an address sends only from that one.
    pub ip: bool,
}

impl Security {
    /// Held to everything.
    pub const ON: Security = Security { mac: true, ip: true };
    /// Held to nothing.
    pub const OFF: Security = Security { mac: false, ip: false };
    /// All words for it.
    pub const WORDS: &'static [&'static str] = &["on", "off", "mac"];
}

impl FromStr for Security {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text {
            "on" => Ok(Self::ON),
            "off" => Ok(Self::OFF),
            "mac" => Ok(Self { mac: true, ip: false }),
            _ => problem("not a port security: on (MAC and IP address), mac, or off"),
        }
    }
}

impl fmt::Display for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.mac, self.ip) {
            (true, true) => "on",
            (true, false) => "mac",
            (false, _) => "off",
        })
    }
}
