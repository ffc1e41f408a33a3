//! Addresses and subnets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use super::{Name, Problem, fnv1a, problem};

/// The shortest prefix of a subnet: the largest subnet.
pub const PREFIX_MIN: u8 = 8;
/// The longest prefix of a subnet: one address for the host or the service, one for a guest.
pub const PREFIX_MAX: u8 = 30;

/// The address of one Ethernet interface: no group's, and not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The bytes in the order in which they are sent.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let Some(bytes) = colon_bytes(text).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) else {
            return problem("not a MAC address, such as 52:54:00:12:34:56");
        };
        if bytes[0] & 1 != 0 {
            return problem(
                "a group's address, which no interface has: make the first byte even, as in 52:54:00:12:34:56",
            );
        }
        if bytes == [0; 6] {
            return problem("no interface has the address zero: for instance 52:54:00:12:34:56");
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Bytes of two hexadecimal digits each, with colons between them.
pub(super) fn colon_bytes(text: &str) -> Option<Vec<u8>> {
    let byte = |word: &str| {
        let is_byte = word.len() == 2 && word.bytes().all(|b| b.is_ascii_hexdigit());
        if is_byte { u8::from_str_radix(word, 16).ok() } else { None }
    };
    text.split(':').map(byte).collect()
}

/// A subnet of IPv4, of [`PREFIX_MIN`] to [`PREFIX_MAX`] bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subnet4 {
    network: u32,
    prefix: u8,
}

impl Subnet4 {
    /// 192.168.56.0/24: the default of host-only networks.
    pub const HOST_ONLY: Subnet4 = Subnet4 { network: 0xc0a8_3800, prefix: 24 };
    /// 10.0.2.0/24: the default of NAT networks.
    pub const NAT: Subnet4 = Subnet4 { network: 0x0a00_0200, prefix: 24 };

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }

    /// The address of the subnet itself.
    pub fn network(self) -> Ipv4Addr {
        self.network.into()
    }

    /// Bits that all its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The same as a mask.
    pub fn netmask(self) -> Ipv4Addr {
        self.mask().into()
    }

    /// The address that reaches all.
    pub fn broadcast(self) -> Ipv4Addr {
        (self.network | !self.mask()).into()
    }

    /// The first address, which is ours: the host's, or the service's where the host has none.
    pub fn own(self) -> Ipv4Addr {
        (self.network + 1).into()
    }

    /// The first address for guests.
    pub fn first(self) -> Ipv4Addr {
        (self.network + 2).into()
    }

    /// The last address for guests.
    pub fn last(self) -> Ipv4Addr {
        (u32::from(self.broadcast()) - 1).into()
    }

    /// Whether the address is in the subnet.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == self.network
    }

    /// Whether the address can be a guest's.
    pub fn is_for_guests(self, address: Ipv4Addr) -> bool {
        (self.first()..=self.last()).contains(&address)
    }

    /// Whether both have an address in common.
    pub fn overlaps(self, other: Subnet4) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }
}

impl FromStr for Subnet4 {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let parts = text.split_once('/').and_then(|(address, prefix)| {
            let is_number = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
            Some((address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok().filter(|_| is_number)?))
        });
        let Some((address, prefix)) = parts else { return problem("not a subnet, such as 192.168.56.0/24") };
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&prefix) {
            return problem(format!("/{prefix} cannot be: a subnet's prefix has {PREFIX_MIN} to {PREFIX_MAX} bits"));
        }
        let subnet = Self { network: u32::from(address), prefix };
        let subnet = Self { network: subnet.network & subnet.mask(), prefix };
        if subnet.network() != address {
            return problem(format!("{text} is an address in a subnet: say {subnet}"));
        }
        // Interfaces cannot have these (RFC 6890).
        if address.octets()[0] == 0 || address.is_loopback() || address.octets()[0] >= 224 {
            return problem(format!("no interface can have an address in {subnet}: for instance 192.168.56.0/24"));
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

/// A subnet of IPv6: a unique local /64 (RFC 4193).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subnet6 {
    /// The upper half of its addresses.
    upper: u64,
}

impl Subnet6 {
    /// The length of its prefix in bits.
    pub const PREFIX: u8 = 64;

    /// The subnet of a network whose user chose none: always the same for the same name and IPv4 subnet. As RFC 4193
    /// (3.2.2) wants, 40 bits that hardly any other network has.
    pub fn derived(name: &Name, subnet: Subnet4) -> Self {
        let hash = fnv1a(name.as_str().bytes().chain(subnet.to_string().into_bytes()));
        Self { upper: 0xfd << 56 | hash >> 24 << 16 }
    }

    /// The address of the subnet itself.
    pub fn network(self) -> Ipv6Addr {
        (u128::from(self.upper) << 64).into()
    }

    /// The first address, which is ours.
    pub fn own(self) -> Ipv6Addr {
        (u128::from(self.upper) << 64 | 1).into()
    }

    /// Whether the address is in the subnet.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        u128::from(address) >> 64 == u128::from(self.upper)
    }

    /// Whether the address can be a guest's.
    pub fn is_for_guests(self, address: Ipv6Addr) -> bool {
        // The subnet's own address is all of its routers' (RFC 4291, 2.6.1).
        self.contains(address) && address != self.network() && address != self.own()
    }
}

impl FromStr for Subnet6 {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let address = text.strip_suffix("/64").and_then(|address| address.parse::<Ipv6Addr>().ok());
        let Some(address) = address.filter(|address| u128::from(*address) & u128::from(u64::MAX) == 0) else {
            return problem("not a subnet of IPv6 with 64 bits, such as fd12:3456:789a::/64");
        };
        if address.octets()[0] != 0xfd {
            return problem("not a unique local subnet (RFC 4193): it begins with fd, as fd12:3456:789a::/64 does");
        }
        Ok(Self { upper: (u128::from(address) >> 64) as u64 })
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/64", self.network())
    }
}

/// A range of addresses of either family, such as 10.1.0.0/16, or one address.
///
/// # Errors
/// When it is neither.
pub fn ip_net(text: &str) -> Result<IpNet, Problem> {
    let range = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match range {
        Ok(range) if range.trunc() != range => {
            problem(format!("{text} is an address in a range: say {}", range.trunc()))
        }
        Ok(range) => Ok(range),
        Err(_) => problem(format!("'{text}' is not a range of addresses, such as 10.1.0.0/16 or fd00::/8")),
    }
}

/// What a user says about the subnet of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subnet6Choice {
    /// None.
    Off,
    /// This one.
    Subnet(Subnet6),
}

impl FromStr for Subnet6Choice {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::Subnet) }
    }
}
