//! What the DHCP server gives.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use super::address::colon_bytes;
use super::{DomainName, HostName, MacAddr, Name, Problem, Subnet4, problem};

/// The shortest lease, in seconds. Clients renew after half of it.
pub const LEASE_SECONDS_MIN: u32 = 120;
/// The longest lease, in seconds: a year.
pub const LEASE_SECONDS_MAX: u32 = 365 * 86_400;
/// Name servers that guests are told of, at most: with [`SEARCH_MAX`] domains they fit into one frame of any protocol.
pub const DNS_MAX: usize = 8;
/// Domains that guests are told to search, at most.
pub const SEARCH_MAX: usize = 6;
/// Routes that guests are told of, at most: they fit into one option (RFC 3442).
pub const ROUTES_MAX: usize = 24;
/// The longest client identifier, in bytes: an option's length is one byte (RFC 2132, 2).
pub const CLIENT_ID_BYTES_MAX: usize = 255;
/// Where leases are kept when we run as root.
const ROOT_STATE_FOLDER: &str = "/var/lib";

/// A DHCP server. Everything in it fits the network's subnet.
#[derive(Clone, Debug, PartialEq)]
pub struct Dhcp {
    /// The addresses that guests without a reservation get.
    pub range: Range4,
    /// How long a lease is.
    pub lease: LeaseTime,
    /// The name servers that guests are told of by DHCP.
    pub dns: Vec<Ipv4Addr>,
    /// Those that guests are told of beside the subnet of IPv6, and only where there is one.
    pub dns6: Vec<Ipv6Addr>,
    /// The domain that guests are told they are in.
    pub domain: Option<DomainName>,
    /// The domains in which guests look names up.
    pub search: Vec<DomainName>,
    /// The router that guests are told of, which is a guest itself. Only on internal networks: of the others, host-only
    /// ones lead nowhere, and on NAT networks it is us.
    pub router: Option<Ipv4Addr>,
    /// Networks that guests are told they reach by one of them. Not on host-only networks.
    pub routes: Vec<Route4>,
    /// Addresses kept for somebody. Those of declared ports are not here: see [`super::Network::reservations`].
    pub reservations: Vec<Reservation>,
    /// The file that keeps the leases; none: [`lease_file`] says where.
    pub leases: Option<PathBuf>,
}

impl Dhcp {
    /// A server of all of a subnet's addresses, with nothing special.
    pub fn of(subnet: Subnet4) -> Self {
        Self {
            range: Range4::of(subnet),
            lease: LeaseTime::HOUR,
            dns: Vec::new(),
            dns6: Vec::new(),
            domain: None,
            search: Vec::new(),
            router: None,
            routes: Vec::new(),
            reservations: Vec::new(),
            leases: None,
        }
    }

    /// Has guests told of these name servers.
    pub fn set_dns(&mut self, servers: &[IpAddr]) {
        let v4 = |server: &IpAddr| if let IpAddr::V4(server) = server { Some(*server) } else { None };
        let v6 = |server: &IpAddr| if let IpAddr::V6(server) = server { Some(*server) } else { None };
        self.dns = servers.iter().filter_map(v4).collect();
        self.dns6 = servers.iter().filter_map(v6).collect();
    }
}

/// A network behind a router: `10.1.0.0/16 via 10.0.0.254`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route4 {
    network: Ipv4Addr,
    prefix: u8,
    via: Ipv4Addr,
}

impl Route4 {
    /// The network's address; no bit is set behind the prefix.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Bits that all of its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The router.
    pub fn via(self) -> Ipv4Addr {
        self.via
    }
}

impl FromStr for Route4 {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let parts = text.split_once(" via ").and_then(|(network, via)| {
            let (network, prefix) = network.trim().split_once('/')?;
            let prefix = prefix.parse::<u8>().ok().filter(|prefix| *prefix <= 32)?;
            Some((network.parse::<Ipv4Addr>().ok()?, prefix, via.trim().parse::<Ipv4Addr>().ok()?))
        });
        let Some((network, prefix, via)) = parts else {
            return problem("not a route, such as 10.1.0.0/16 via 10.0.0.254");
        };
        let bits = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0) & network.to_bits();
        if bits != network.to_bits() {
            return problem(format!("{network}/{prefix} is not a network: say {}/{prefix}", Ipv4Addr::from_bits(bits)));
        }
        Ok(Self { network, prefix, via })
    }
}

impl fmt::Display for Route4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} via {}", self.network, self.prefix, self.via)
    }
}

/// The file in which a network's leases are kept when its user chose none: `guestwire/NAME.leases` in /var/lib for
/// root, else in `$XDG_STATE_HOME`, else in `~/.local/state`. `variable` reads the environment. `None` without a home:
/// then leases are not kept.
pub fn lease_file(network: &Name, is_root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // A relative path in these variables is to be ignored (XDG Base Directory Specification).
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = if is_root {
        PathBuf::from(ROOT_STATE_FOLDER)
    } else {
        folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?
    };
    Some(state.join("guestwire").join(format!("{network}.leases")))
}

/// Addresses from the first to the last. Not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range4 {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl Range4 {
    /// All addresses that a subnet has for guests.
    pub fn of(subnet: Subnet4) -> Self {
        Self { first: subnet.first(), last: subnet.last() }
    }

    /// The first address.
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The last address.
    pub fn last(self) -> Ipv4Addr {
        self.last
    }

    /// Whether the address is one of them.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

impl FromStr for Range4 {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let ends = text.split_once('-').and_then(|(first, last)| {
            Some((first.trim().parse::<Ipv4Addr>().ok()?, last.trim().parse::<Ipv4Addr>().ok()?))
        });
        match ends {
            Some((first, last)) if first <= last => Ok(Self { first, last }),
            Some((first, last)) => problem(format!("the range ends before it begins: say {last}-{first}")),
            None => problem("not a range of addresses, such as 192.168.56.100-192.168.56.199"),
        }
    }
}

impl fmt::Display for Range4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// How long a lease is, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime(u32);

impl LeaseTime {
    /// One hour: the default.
    pub const HOUR: LeaseTime = LeaseTime(3600);

    /// Seconds, as the protocol has them (RFC 2132, 9.2).
    pub fn seconds(self) -> u32 {
        self.0
    }
}

impl FromStr for LeaseTime {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" | "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(86_400),
            _ => None,
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let seconds = digits.parse::<u32>().ok().filter(|_| is_number).zip(unit);
        let seconds = seconds.and_then(|(number, unit)| number.checked_mul(unit));
        match seconds {
            Some(s) if (LEASE_SECONDS_MIN..=LEASE_SECONDS_MAX).contains(&s) => Ok(Self(s)),
            _ => problem("not a time from 2m to 365d: a number with s, m, h or d, such as 1h"),
        }
    }
}

impl fmt::Display for LeaseTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(86_400, "d"), (3600, "h"), (60, "m")];
        match units.iter().find(|(unit, _)| self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}s", self.0),
        }
    }
}

/// Bytes by which a client identifies itself (RFC 2132, 9.14), in hexadecimal with colons.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(Vec<u8>);

impl ClientId {
    /// The bytes of option 61.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for ClientId {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match colon_bytes(text) {
            // "The minimum length is 2."
            Some(bytes) if (2..=CLIENT_ID_BYTES_MAX).contains(&bytes.len()) => Ok(Self(bytes)),
            _ => problem("not a client identifier: 2 to 255 bytes in hexadecimal, such as 01:52:54:00:12:34:56"),
        }
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&words.join(":"))
    }
}

/// Whom an address is kept for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Whoever sends from this MAC address.
    Mac(MacAddr),
    /// Whoever identifies itself so.
    Client(ClientId),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Mac(mac) => mac.fmt(f),
            Holder::Client(id) => id.fmt(f),
        }
    }
}

/// An address kept for one guest, inside or outside of the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// For whom.
    pub holder: Holder,
    /// The address.
    pub ip: Ipv4Addr,
    /// The name that the guest is told is its own.
    pub name: Option<HostName>,
}
