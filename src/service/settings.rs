//! What a network's services are told: typed, and valid by construction where a wrong value could do harm.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::names;
use crate::config::{DOMAIN_BYTES_MAX, LABEL_BYTES_MAX, LEASE_SECONDS_MAX, LEASE_SECONDS_MIN, PREFIX_MAX, PREFIX_MIN};
use crate::frame::ethernet::MacAddr;
use crate::frame::ndp;

/// Network prefixes that can be served, in bits.
pub const PREFIX_LEN_RANGE: std::ops::RangeInclusive<u8> = PREFIX_MIN..=PREFIX_MAX;

/// Why a value was refused, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

fn refuse<T>(text: impl Into<String>) -> Result<T, SettingsError> {
    Err(SettingsError(text.into()))
}

/// What the services of one network are.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The MAC address that answers come from: that of the host's interface on the network, or one of our own.
    pub server_mac: MacAddr,
    /// The server's addresses are held by nobody but us: ARP, neighbour discovery and echo are answered here. Without
    /// it an interface of the host has them, and its kernel answers.
    pub answers_for_gateway: bool,
    /// DHCP, if it is served.
    pub v4: Option<V4>,
    /// Router advertisements and stateless DHCPv6, if they are served.
    pub v6: Option<V6>,
}

/// What DHCP says (RFC 2131).
#[derive(Clone, Debug, PartialEq)]
pub struct V4 {
    /// The subnet, and the server's address in it.
    pub subnet: Subnet,
    /// Addresses that anyone may get. Those that are not hosts' of the subnet are never given.
    pub pools: Vec<Pool>,
    /// The default route; none: options 3 and 121 are never sent.
    pub router: Option<Ipv4Addr>,
    /// Further routes (option 121), which are sent only beside a default route.
    pub routes: Vec<Route>,
    /// DNS servers.
    pub dns: Vec<Ipv4Addr>,
    /// The domain that hosts are in.
    pub domain: Option<Domain>,
    /// Domains that are searched for short names.
    pub search: Vec<Domain>,
    /// The MTU of the network in bytes.
    pub mtu: Option<u16>,
    /// How long a lease lasts.
    pub lease: LeaseTime,
    /// Addresses that belong to certain clients, in or outside the pools. An address has one client.
    pub reservations: Vec<Reservation>,
}

/// What router advertisements (RFC 4861) and stateless DHCPv6 (RFC 8415) say.
#[derive(Clone, Debug, PartialEq)]
pub struct V6 {
    /// The server's link-local address, which answers come from. See [`link_local`].
    pub link_local: Ipv6Addr,
    /// The server's address with a wider scope.
    pub address: Option<Ipv6Addr>,
    /// The prefix, of 64 bits, from which hosts make their own addresses (RFC 4862).
    pub prefix: Option<Ipv6Addr>,
    /// How long we are a default router, in seconds; zero: we are none.
    pub router_lifetime: u16,
    /// DNS servers.
    pub dns: Vec<Ipv6Addr>,
    /// Domains that are searched for short names.
    pub search: Vec<Domain>,
    /// The MTU of the network in bytes.
    pub mtu: Option<u16>,
}

/// The link-local address that an interface with this MAC address gives itself (RFC 4291 appendix A).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let interface_id = u64::from_be_bytes(ndp::interface_id(mac));
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(interface_id))
}

/// An IPv4 subnet and the address that the server has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    server: Ipv4Addr,
    prefix_len: u8,
}

impl Subnet {
    /// A subnet, from the server's address and the length of the prefix in bits.
    ///
    /// # Errors
    /// When the prefix is not in [`PREFIX_LEN_RANGE`], or the address is the subnet's or its broadcast address.
    pub fn new(server: Ipv4Addr, prefix_len: u8) -> Result<Self, SettingsError> {
        let subnet = Self { server, prefix_len };
        if !PREFIX_LEN_RANGE.contains(&prefix_len) {
            let (min, max) = (PREFIX_LEN_RANGE.start(), PREFIX_LEN_RANGE.end());
            return refuse(format!("a subnet's prefix has {min} to {max} bits, not {prefix_len}"));
        }
        if !subnet.is_host(server) {
            return refuse(format!("{server} is no host's address in {}/{prefix_len}", subnet.network()));
        }
        Ok(subnet)
    }

    /// The server's address.
    pub fn server(&self) -> Ipv4Addr {
        self.server
    }

    /// The netmask.
    pub fn mask(&self) -> Ipv4Addr {
        // A prefix has at least 8 bits, so the shift is by less than 32.
        Ipv4Addr::from_bits(u32::MAX << (32 - self.prefix_len))
    }

    /// The subnet's own address.
    pub fn network(&self) -> Ipv4Addr {
        self.server & self.mask()
    }

    /// The broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.server | !self.mask()
    }

    /// Whether a host of the subnet may have the address.
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.network() && address != self.network() && address != self.broadcast()
    }

    /// All hosts' addresses.
    pub fn hosts(&self) -> Pool {
        let (first, last) = (self.network().to_bits() + 1, self.broadcast().to_bits() - 1);
        Pool { first: Ipv4Addr::from_bits(first), last: Ipv4Addr::from_bits(last) }
    }
}

/// A range of addresses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl Pool {
    /// A range of the hosts' addresses of a subnet.
    ///
    /// # Errors
    /// When it ends before it begins, or an end is no host's address.
    pub fn new(subnet: &Subnet, first: Ipv4Addr, last: Ipv4Addr) -> Result<Self, SettingsError> {
        if first > last {
            return refuse(format!("{last} comes before {first}"));
        }
        match [first, last].into_iter().find(|end| !subnet.is_host(*end)) {
            Some(end) => refuse(format!("{end} is no host's address in {}/{}", subnet.network(), subnet.prefix_len)),
            None => Ok(Self { first, last }),
        }
    }

    /// Whether the address is in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// How many addresses it has: at least one.
    pub fn size(&self) -> u32 {
        self.last.to_bits() - self.first.to_bits() + 1
    }

    /// The address `n` after the first, counted round.
    pub(super) fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + n % self.size())
    }
}

/// A route to a network behind a router (RFC 3442).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    destination: Ipv4Addr,
    prefix_len: u8,
    router: Ipv4Addr,
}

impl Route {
    /// A route.
    ///
    /// # Errors
    /// When the prefix has more than 32 bits, or the destination has bits behind its prefix.
    pub fn new(destination: Ipv4Addr, prefix_len: u8, router: Ipv4Addr) -> Result<Self, SettingsError> {
        let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0));
        if prefix_len > 32 || destination & mask != destination {
            return refuse(format!("{destination}/{prefix_len} is not a network"));
        }
        Ok(Self { destination, prefix_len, router })
    }

    pub(super) fn parts(&self) -> (Ipv4Addr, u8, Ipv4Addr) {
        (self.destination, self.prefix_len, self.router)
    }
}

/// How long a lease lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime(u32);

impl LeaseTime {
    /// One hour: the default.
    pub const HOUR: LeaseTime = LeaseTime(3600);

    /// From seconds.
    ///
    /// # Errors
    /// When it is not from [`LEASE_SECONDS_MIN`] to [`LEASE_SECONDS_MAX`].
    pub fn new(seconds: u32) -> Result<Self, SettingsError> {
        if (LEASE_SECONDS_MIN..=LEASE_SECONDS_MAX).contains(&seconds) {
            return Ok(Self(seconds));
        }
        refuse(format!("a lease lasts {LEASE_SECONDS_MIN} to {LEASE_SECONDS_MAX} seconds, not {seconds}"))
    }

    /// Seconds.
    pub fn seconds(self) -> u32 {
        self.0
    }
}

/// A domain name: labels as RFC 1123 (2.1) has them, lower case, without the last dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(String);

impl Domain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As DNS sends it (RFC 1035 3.1), whole: never with a pointer to another name. A label has at most 63 characters.
    pub(super) fn encoded(&self) -> Vec<u8> {
        let labels = self.0.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
        labels.chain([0]).collect()
    }
}

impl FromStr for Domain {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if text.len() <= DOMAIN_BYTES_MAX && text.split('.').all(names::is_label) {
            return Ok(Self(text));
        }
        refuse(format!(
            "not a domain: up to {DOMAIN_BYTES_MAX} letters, digits and inner hyphens, in parts with dots between them"
        ))
    }
}

/// The name of a host: one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let name = text.to_ascii_lowercase();
        if names::is_label(&name) {
            return Ok(Self(name));
        }
        refuse(format!("not a host's name: up to {} letters, digits and inner hyphens", LABEL_BYTES_MAX))
    }
}

/// What a DHCP server knows a client by (RFC 2131 4.2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientId {
    /// The hardware address: for clients that send no identifier, or one that is the hardware address.
    Mac(MacAddr),
    /// Option 61, from its type byte on: 1 to 255 bytes.
    Identifier(Vec<u8>),
}

impl ClientId {
    /// From the value of option 61 of a client with this hardware address. That address in it is the same client as
    /// one with the address and no identifier: programs that boot a machine and the system they boot differ in whether
    /// they send one. Another's address in it is an identifier like any other, and makes nobody that other.
    pub fn from_option(value: &[u8], mac: MacAddr) -> Option<Self> {
        let client = Self::from_bytes(value)?;
        Some(if client.canonical() == Self::Mac(mac) { Self::Mac(mac) } else { client })
    }

    fn from_bytes(value: &[u8]) -> Option<Self> {
        let is_long = value.is_empty() || value.len() > usize::from(u8::MAX);
        (!is_long).then(|| Self::Identifier(value.to_vec()))
    }

    /// The same, with an identifier that is a hardware address as one.
    pub(super) fn canonical(&self) -> Self {
        match self {
            Self::Identifier(bytes) => match **bytes {
                [1, a, b, c, d, e, f] => Self::Mac(MacAddr([a, b, c, d, e, f])),
                _ => self.clone(),
            },
            Self::Mac(_) => self.clone(),
        }
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientId::Mac(mac) => write!(f, "mac {mac}"),
            ClientId::Identifier(bytes) => {
                f.write_str("id ")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClientId {
    type Err = SettingsError;

    /// As [`fmt::Display`] writes it: `mac 52:54:00:00:00:01`, or `id` and the option's bytes in hexadecimal.
    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let client = match text.split_once(' ') {
            Some(("mac", mac)) => parse_mac(mac).map(ClientId::Mac),
            Some(("id", hex)) => parse_hex(hex).and_then(|bytes| ClientId::from_bytes(&bytes)),
            _ => None,
        };
        client.map_or_else(|| refuse(format!("not a client: {text:?}")), Ok)
    }
}

/// A MAC address in six pairs of hexadecimal digits with colons between them.
pub(super) fn parse_mac(text: &str) -> Option<MacAddr> {
    let byte = |pair: &str| parse_hex(pair).and_then(|bytes| <[u8; 1]>::try_from(bytes).ok());
    let bytes: Vec<[u8; 1]> = text.split(':').map(byte).collect::<Option<_>>()?;
    bytes.concat().try_into().ok().map(MacAddr)
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

/// An address that belongs to one client.
#[derive(Clone, Debug, PartialEq)]
pub struct Reservation {
    /// Whose it is. A MAC address fits whatever identifier its client sends; an identifier goes before a MAC address.
    pub client: ClientId,
    /// The address.
    pub address: Ipv4Addr,
    /// The name that the client has, whatever it calls itself.
    pub name: Option<HostName>,
}
