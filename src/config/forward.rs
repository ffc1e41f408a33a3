//! Ports of the host that lead to guests.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{IfName, Name, Problem, problem};

/// Forwards that all networks together may have. A range of ports counts as one.
pub const FORWARDS_MAX: usize = 4096;

/// Sockets that all of them may have: one for each port, and for each of IPv4 and IPv6.
pub const FORWARD_SOCKETS_MAX: usize = 4096;

/// All addresses of the host, of either family.
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
/// What helps against most mistakes.
const EXAMPLE: &str = "for instance tcp:127.0.0.1:2222:22 or udp:5000-5010:web:5000";

/// What a forward carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// Which guest a forward leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// The only one that there is.
    Only,
    /// The one with this address.
    Ip(IpAddr),
    /// The one on this declared port.
    Port(Name),
}

/// Ports of the host that lead to ports of a guest, one to one: `PROTO:[ADDR:]PORT[-PORT]:[GUEST:]PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    protocol: Protocol,
    address: Option<IpAddr>,
    interface: Option<IfName>,
    first: u16,
    last: u16,
    guest: Guest,
    guest_port: u16,
}

impl Forward {
    /// What it carries.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The addresses to listen at, at most one of each family: 0.0.0.0 and `::` stand for all of the host's. A guest
    /// that is named by its address is reached by that one's family alone, for it sees its clients' own addresses.
    pub fn listens_at(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let of_guest = if let Guest::Ip(ip) = self.guest { Some(ip) } else { None };
        let family = self.address.or(of_guest).map(|address| address.is_ipv4());
        let any = ANY.into_iter().filter(move |any| family.is_none_or(|is_ipv4| any.is_ipv4() == is_ipv4));
        any.map(|any| self.address.unwrap_or(any))
    }

    /// The interface that clients have to come by; none: any.
    pub fn interface(&self) -> Option<&IfName> {
        self.interface.as_ref()
    }

    /// The ports of the host: at least one, and never 0.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Which guest it leads to.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The guest's port that the first of [`Self::ports`] leads to; further ones lead to those that follow, which are
    /// all there.
    pub fn guest_port(&self) -> u16 {
        self.guest_port
    }

    /// Whether both want the same of the host, which only one can have.
    pub fn overlaps(&self, other: &Self) -> bool {
        let share_ports = self.first <= other.last && other.first <= self.last;
        let share_interface =
            self.interface.is_none() || other.interface.is_none() || self.interface == other.interface;
        let share_address = |one: IpAddr, other: IpAddr| {
            let is_any = one.is_unspecified() || other.is_unspecified();
            one == other || is_any && one.is_ipv4() == other.is_ipv4()
        };
        self.protocol == other.protocol
            && share_ports
            && share_interface
            && self.listens_at().any(|one| other.listens_at().any(|other| share_address(one, other)))
    }
}

impl FromStr for Forward {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let (protocol, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Protocol::Tcp, rest),
            Some(("udp", rest)) => (Protocol::Udp, rest),
            _ => return problem("a forward begins with tcp: or udp:, for instance tcp:2222:22"),
        };
        let parts = parts(rest)?;
        let (host, ports, guest, guest_port) = match parts.as_slice() {
            [ports, guest_port] => (None, ports, None, guest_port),
            [ports, guest, guest_port] if is_like_ports(ports) => (None, ports, Some(guest), guest_port),
            [host, ports, guest_port] => (Some(host), ports, None, guest_port),
            [host, ports, guest, guest_port] => (Some(host), ports, Some(guest), guest_port),
            [_] | [] => return problem(format!("a forward says a port of the host, then one of the guest, {EXAMPLE}")),
            _ => {
                return problem(format!(
                    "a forward is PROTO:[ADDR:]PORT[-PORT]:[GUEST:]PORT, and an IPv6 address is in brackets, {EXAMPLE}"
                ));
            }
        };
        let (address, interface) = host.map_or(Ok((None, None)), |host| parse_host(host))?;
        let (first, last) = parse_ports(ports)?;
        let guest = guest.map_or(Ok(Guest::Only), |guest| parse_guest(guest))?;
        let guest_port = parse_guest_port(guest_port, last - first)?;
        if let (Some(address), Guest::Ip(ip)) = (address, &guest)
            && address.is_ipv4() != ip.is_ipv4()
        {
            return problem(format!(
                "clients of {address} have addresses that {ip} cannot answer: name both by IPv4, or both by IPv6"
            ));
        }
        Ok(Self { protocol, address, interface, first, last, guest, guest_port })
    }
}

impl fmt::Display for Forward {
    /// As it is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.protocol)?;
        if let Some(address) = self.address {
            write_ip(f, address)?;
        }
        if let Some(interface) = &self.interface {
            write!(f, "%{interface}")?;
        }
        if self.address.is_some() || self.interface.is_some() {
            f.write_str(":")?;
        }
        write!(f, "{}", self.first)?;
        if self.last > self.first {
            write!(f, "-{}", self.last)?;
        }
        f.write_str(":")?;
        match &self.guest {
            Guest::Only => {}
            Guest::Ip(ip) => {
                write_ip(f, *ip)?;
                f.write_str(":")?;
            }
            Guest::Port(name) => write!(f, "{name}:")?,
        }
        write!(f, "{}", self.guest_port)
    }
}

/// An IPv6 address is in brackets.
fn write_ip(f: &mut fmt::Formatter<'_>, ip: IpAddr) -> fmt::Result {
    match ip {
        IpAddr::V4(ip) => write!(f, "{ip}"),
        IpAddr::V6(ip) => write!(f, "[{ip}]"),
    }
}

/// What is between colons, but for those in brackets.
fn parts(text: &str) -> Result<Vec<&str>, Problem> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let bracketed = match (rest.starts_with('['), rest.find(']')) {
            (true, Some(end)) => end,
            (true, None) => return problem("the '[' has no ']', as in tcp:[::1]:2222:22"),
            (false, _) => 0,
        };
        let Some(colon) = rest[bracketed..].find(':') else {
            parts.push(rest);
            return Ok(parts);
        };
        let (part, behind) = rest.split_at(bracketed + colon);
        parts.push(part);
        rest = &behind[1..];
    }
}

/// Whether a text is meant as ports. No address is like them.
fn is_like_ports(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

fn parse_port(text: &str) -> Result<u16, Problem> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if port > 0 && is_number => Ok(port),
        _ => problem(format!("'{text}' is not a port from 1 to 65535: {EXAMPLE}")),
    }
}

/// The first and the last port.
fn parse_ports(text: &str) -> Result<(u16, u16), Problem> {
    let Some((first, last)) = text.split_once('-') else { return parse_port(text).map(|port| (port, port)) };
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    if last < first {
        return problem(format!("the range of ports ends before it begins: say {last}-{first}"));
    }
    Ok((first, last))
}

/// The guest's first port, which has `more` others behind it.
fn parse_guest_port(text: &str, more: u16) -> Result<u16, Problem> {
    if let Some((first, _)) = text.split_once('-').filter(|_| is_like_ports(text)) {
        return problem(format!("the guest's ports follow from the host's: say {first} in the place of {text}"));
    }
    let port = parse_port(text)?;
    if port.checked_add(more).is_none() {
        let (count, highest) = (u32::from(more) + 1, u16::MAX - more);
        return problem(format!("{count} ports from {port} on go beyond 65535: begin at {highest} or below"));
    }
    Ok(port)
}

/// The host's side: an address, an interface, or both.
fn parse_host(text: &str) -> Result<(Option<IpAddr>, Option<IfName>), Problem> {
    // An interface's name may have brackets in it.
    let end = if text.starts_with('[') { text.find(']').map(|at| at + 1) } else { text.find('%') };
    let (address, behind) = text.split_at(end.unwrap_or(text.len()));
    let interface = behind.strip_prefix('%').map(str::parse::<IfName>).transpose()?;
    if address.is_empty() && interface.is_some() {
        return Ok((None, interface));
    }
    let Some(address) = parse_ip(address).filter(|_| interface.is_some() || behind.is_empty()) else {
        return problem(format!(
            "'{text}' is not an address of the host, which is one of IPv4, one of IPv6 in brackets, or %eth0 for an \
             interface, as in tcp:[fe80::1]%eth0:2222:22"
        ));
    };
    match address {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => problem(format!("[{ip}] is IPv4: say it without ::ffff:")),
        _ if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            problem(format!("{address} is a group's address and not one of the host: name one of 'ip address'"))
        }
        IpAddr::V6(ip) if ip.is_unicast_link_local() && interface.is_none() => {
            problem(format!("{ip} is an address on one interface: say which, as in [{ip}]%eth0"))
        }
        _ => Ok((Some(address), interface)),
    }
}

fn parse_guest(text: &str) -> Result<Guest, Problem> {
    if let Some(ip) = parse_ip(text) {
        return Ok(Guest::Ip(ip));
    }
    match text.parse() {
        Ok(name) => Ok(Guest::Port(name)),
        Err(_) => problem(format!(
            "'{text}' is not a guest: say its IPv4 address, its IPv6 address in brackets, or the name of its port, \
             {EXAMPLE}"
        )),
    }
}

/// An address of IPv4, or one of IPv6 in brackets.
fn parse_ip(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn forward(text: &str) -> Forward {
        text.parse().unwrap_or_else(|problem| panic!("{text}: {problem}"))
    }

    #[test]
    fn what_may_be_left_out_has_its_meaning() {
        let listens_at = |forward: &Forward| forward.listens_at().map(|ip| ip.to_string()).collect::<Vec<_>>();
        let short = forward("tcp:2222:22");
        assert_eq!((short.protocol(), short.ports(), short.guest_port()), (Protocol::Tcp, 2222..=2222, 22));
        assert_eq!(
            (listens_at(&short), short.interface(), short.guest()),
            (vec!["0.0.0.0".to_owned(), "::".to_owned()], None, &Guest::Only)
        );
        let long = forward("udp:[fe80::1]%eth0:5000-5009:[fd00::5]:60000");
        assert_eq!((long.protocol(), long.ports(), long.guest_port()), (Protocol::Udp, 5000..=5009, 60000));
        assert_eq!(long.interface().map(IfName::as_str), Some("eth0"));
        assert_eq!(
            (listens_at(&long), long.guest()),
            (vec!["fe80::1".to_owned()], &Guest::Ip("fd00::5".parse().unwrap()))
        );
        for (text, at) in [
            ("tcp:127.0.0.1:80:80", "127.0.0.1"),
            ("tcp:0.0.0.0:80:80", "0.0.0.0"),
            ("tcp:[::]:80:web:80", "::"),
            ("tcp:80:10.0.2.15:80", "0.0.0.0"),
            ("tcp:%eth0:80:[fd00::5]:80", "::"),
        ] {
            assert_eq!(listens_at(&forward(text)), [at], "{text}");
        }
        // A name is one, even of digits: addresses and ports are elsewhere.
        assert_eq!(*forward("tcp:80:8080:80").guest(), Guest::Port("8080".parse().unwrap()));
        assert_eq!(forward("udp:%a]b:1:1").interface().map(IfName::as_str), Some("a]b"));
        assert_eq!(forward("tcp:1-65535:1").ports(), 1..=65535);
    }

    #[test]
    fn every_mistake_is_told_with_what_would_be_right() {
        for (text, says) in [
            ("", "begins with tcp: or udp:"),
            ("2222:22", "begins with tcp: or udp:"),
            ("TCP:2222:22", "begins with tcp: or udp:"),
            ("sctp:2222:22", "begins with tcp: or udp:"),
            ("tcp", "begins with tcp: or udp:"),
            ("tcp:22", "a port of the host, then one of the guest"),
            ("tcp:", "a port of the host, then one of the guest"),
            ("tcp:0:22", "'0' is not a port from 1 to 65535"),
            ("tcp:65536:22", "'65536' is not a port from 1 to 65535"),
            ("tcp:+80:22", "'+80' is not a port from 1 to 65535"),
            ("tcp:ssh:22", "'ssh' is not a port from 1 to 65535"),
            ("tcp:2222:ssh", "'ssh' is not a port from 1 to 65535"),
            ("tcp:2222:web:", "'' is not a port from 1 to 65535"),
            ("tcp:-:22", "'' is not a port from 1 to 65535"),
            ("tcp:90-80:80", "say 80-90"),
            ("tcp:80-90:80-90", "say 80 in the place of 80-90"),
            ("tcp:80-90:65530", "11 ports from 65530 on go beyond 65535: begin at 65525 or below"),
            ("tcp:localhost:80:80", "'localhost' is not an address of the host"),
            ("tcp::80:80", "'' is not an address of the host"),
            ("tcp:1.2.3:80:80", "'1.2.3' is not an address of the host"),
            ("tcp:[1.2.3.4]:80:80", "'[1.2.3.4]' is not an address of the host"),
            ("tcp:[fe80::1%eth0]:80:80", "as in tcp:[fe80::1]%eth0:2222:22"),
            ("tcp:%:80:80", "not an interface's name"),
            ("tcp:%a/b:80:80", "not an interface's name"),
            ("tcp:fd00::1:80:80", "an IPv6 address is in brackets"),
            ("tcp:[::1:80:80", "the '[' has no ']'"),
            ("tcp:[fe80::1]:80:80", "say which, as in [fe80::1]%eth0"),
            ("tcp:[::ffff:10.0.0.1]:80:80", "say it without ::ffff:"),
            ("tcp:224.0.0.1:80:80", "a group's address"),
            ("tcp:255.255.255.255:80:80", "a group's address"),
            ("tcp:[ff02::1]%eth0:80:80", "a group's address"),
            ("tcp:80:a/b:80", "'a/b' is not a guest"),
            ("tcp:80:[fd00::1%eth0]:80", "'[fd00::1%eth0]' is not a guest"),
            ("tcp:80::80", "'' is not a guest"),
            ("tcp:127.0.0.1:80:[fd00::5]:80", "name both by IPv4, or both by IPv6"),
            ("tcp:[::1]:80:10.0.2.15:80", "name both by IPv4, or both by IPv6"),
            ("tcp:1.1.1.1:80:web:80:90", "PROTO:[ADDR:]PORT[-PORT]:[GUEST:]PORT"),
        ] {
            let problem = text.parse::<Forward>().expect_err(text).to_string();
            assert!(problem.contains(says), "{text}: {problem}");
        }
    }

    #[test]
    fn what_only_one_can_have_overlaps() {
        for (one, other, overlaps) in [
            ("tcp:80:80", "tcp:80:81", true),
            ("tcp:80:80", "udp:80:80", false),
            ("tcp:80:80", "tcp:81:80", false),
            ("tcp:80-90:80", "tcp:90-99:80", true),
            ("tcp:80-90:80", "tcp:91-99:80", false),
            ("tcp:80:80", "tcp:127.0.0.1:80:80", true),
            ("tcp:80:80", "tcp:[::1]:80:80", true),
            ("tcp:0.0.0.0:80:80", "tcp:[::]:80:80", false),
            ("tcp:0.0.0.0:80:80", "tcp:127.0.0.1:80:80", true),
            ("tcp:127.0.0.1:80:80", "tcp:127.0.0.2:80:80", false),
            ("tcp:80:10.0.2.5:80", "tcp:80:[fd00::5]:80", false),
            ("tcp:80:10.0.2.5:80", "tcp:80:10.0.2.6:80", true),
            ("tcp:%eth0:80:80", "tcp:%eth1:80:80", false),
            ("tcp:%eth0:80:80", "tcp:%eth0:80:80", true),
            ("tcp:%eth0:80:80", "tcp:80:80", true),
            ("tcp:[fe80::1]%eth0:80:80", "tcp:[fe80::1]%eth1:80:80", false),
        ] {
            assert_eq!(forward(one).overlaps(&forward(other)), overlaps, "{one} {other}");
            assert_eq!(forward(other).overlaps(&forward(one)), overlaps, "{other} {one}");
        }
    }

    /// The parts of a forward, as a user may write them.
    fn written() -> impl Strategy<Value = String> {
        let v4 = any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).to_string());
        let v6 = any::<u128>().prop_map(|bits| format!("[{}]", Ipv6Addr::from_bits(bits)));
        let ip = prop_oneof![v4, v6, Just("127.0.0.1".to_owned()), Just("[::1]".to_owned()), Just(String::new())];
        let interface = prop_oneof![Just(String::new()), "%[a-z0-9.\\]\\[-]{1,15}"];
        let host =
            prop_oneof![Just(String::new()), (ip.clone(), interface).prop_map(|(ip, name)| format!("{ip}{name}:"))];
        let guest = prop_oneof![Just(String::new()), ip.prop_map(|ip| format!("{ip}:")), "[a-zA-Z0-9_.-]{1,32}:"];
        let ports = prop_oneof!["[0-9]{1,5}", "[0-9]{1,5}-[0-9]{1,5}"];
        let protocol = prop_oneof![Just("tcp"), Just("udp")];
        (protocol, host, ports, guest, any::<u16>())
            .prop_map(|(protocol, host, ports, guest, port)| format!("{protocol}:{host}{ports}:{guest}{port}"))
    }

    fn is_told_or_returns(text: &str) {
        match text.parse::<Forward>() {
            Ok(parsed) => {
                assert_eq!(parsed.to_string().parse(), Ok(parsed.clone()), "{text}");
                assert!(parsed.overlaps(&parsed) && parsed.first > 0 && parsed.first <= parsed.last, "{text}");
                assert!(parsed.guest_port.checked_add(parsed.last - parsed.first).is_some(), "{text}");
            }
            Err(problem) => assert_eq!(problem.to_string().lines().count(), 1, "{text:?}: {problem}"),
        }
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_written_so_that_it_is_parsed_again(text in written()) {
            is_told_or_returns(&text);
        }

        #[test]
        fn no_text_does_harm(text in "(tcp:|udp:)?[\\PC:\\[\\]%]{0,60}") {
            is_told_or_returns(&text);
        }
    }
}
