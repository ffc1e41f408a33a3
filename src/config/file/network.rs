//! A network's section of the file.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::Reader;
use super::section::{Given, Section, Wants};
use crate::config::{
    Attachment, Bridged, ConnectPath, DNS_MAX, DeclaredPort, Dhcp, Field, Forward, Group, Holder, HostOnly,
    InheritedFd, Internal, LeaseTime, Listen, ListenPath, Mode, Name, Nat, Network, OffloadMask, Place, Problem,
    QueuePairs, ROUTES_MAX, Range4, Reservation, SEARCH_MAX, Security, Services, SocketMode, Subnet4, Subnet6,
    Subnet6Choice, TapSource, Via, WorkerCount, file_path, ip_net, problem,
};

/// Keys that say something in some modes only.
const OF_MODES: &[(&str, &[&str])] = &[
    ("subnet", &["internal", "host-only", "nat"]),
    ("subnet6", &["internal", "host-only", "nat"]),
    ("dhcp", &["internal", "host-only", "nat"]),
    ("tap", &["host-only", "bridged"]),
    ("tap-fd", &["host-only", "bridged"]),
    ("nic", &["bridged"]),
    ("bridge", &["bridged"]),
    ("mac-nat", &["bridged"]),
    ("forward", &["nat"]),
    ("allow-host-loopback", &["nat"]),
    ("allow", &["nat"]),
    ("deny", &["nat"]),
];

/// How the sockets of a section are made.
#[derive(Clone)]
struct SocketKind {
    mode: SocketMode,
    group: Option<Group>,
}

/// Everything that a section says about its mode.
struct ModeSaid {
    subnet: Option<Subnet4>,
    subnet6: Option<Subnet6Choice>,
    dhcp: Option<DhcpSaid>,
    tap: Option<TapSource>,
    nic: Option<Via>,
    bridge: Option<Via>,
    mac_nat: bool,
    forwards: Vec<Forward>,
    host_loopback: bool,
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

/// What `[network.dhcp]` says.
struct DhcpSaid {
    is_enabled: bool,
    range: Option<Range4>,
    dhcp: Dhcp,
}

fn parse_bool(text: &str) -> Result<bool, Problem> {
    Ok(text == "true")
}

fn parse_ip(text: &str) -> Result<Ipv4Addr, Problem> {
    text.parse().or_else(|_| problem("not an IPv4 address, such as 192.168.56.1"))
}

fn parse_dns(text: &str) -> Result<IpAddr, Problem> {
    text.parse().or_else(|_| problem("not an IP address, such as 192.168.56.1"))
}

impl Reader {
    pub(super) fn network(&mut self, index: usize, mut section: Section<'_>) -> Network {
        let at = |field| Place { network: index, port: None, field };
        self.places.insert(at(Field::Whole), section.span());
        let name = self.name(at(Field::Name), &mut section);
        let mode = section.word("mode", Mode::NAMES, parse_mode, self);
        if section.lacks("mode") {
            self.found(section.span(), format!("the network has no mode: add mode = one of {}", quoted(Mode::NAMES)));
        }
        let said = self.mode_said(index, &mut section);
        let word = mode.value();
        let mode = match word {
            Some(word) => self.mode(index, word, &name, said, &section),
            None => {
                // What is missing for one mode may be superfluous in another.
                self.unsure.extend([at(Field::Subnet), at(Field::Uplink)]);
                Mode::Internal(Internal::default())
            }
        };
        let security = section.word("port-security", Security::WORDS, str::parse, self).value();
        let security = security.unwrap_or(mode.default_security());
        let kind = SocketKind {
            mode: section.value("socket-mode", Wants::Octal, str::parse, self).value().unwrap_or(SocketMode::PRIVATE),
            group: section.value("socket-group", Wants::String, str::parse, self).value(),
        };
        let attachments = self.attachments(at(Field::Whole), &mut section, &kind);
        let sections: Vec<_> = section.tables("port", "[[network.port]]", self).collect();
        let mut ports = Vec::new();
        for (number, section) in sections.into_iter().enumerate() {
            ports.push(self.port(Place { port: Some(number), ..at(Field::Whole) }, section, &kind, security));
        }
        let network = Network {
            name,
            mode,
            attachments,
            ports,
            security,
            mtu: section.value("mtu", Wants::Number, str::parse, self).value(),
            offload: section.value("offload", Wants::String, str::parse, self).value().unwrap_or(OffloadMask::ALL),
            queue_pairs: section
                .value("queue-pairs", Wants::Number, str::parse, self)
                .value()
                .unwrap_or(QueuePairs::ONE),
            workers: section.value("workers", Wants::Number, str::parse, self).value().unwrap_or(WorkerCount::ONE),
        };
        section.finish(self);
        network
    }

    fn name(&mut self, place: Place, section: &mut Section<'_>) -> Name {
        let given = section.value("name", Wants::String, str::parse, self);
        if section.lacks("name") {
            self.found(section.span(), "there is no name: add name = \"...\"");
        }
        self.keep(place, given).unwrap_or_else(|| Name::unknown(place.network, place.port))
    }

    fn mode_said(&mut self, index: usize, section: &mut Section<'_>) -> ModeSaid {
        let at = |field| Place { network: index, port: None, field };
        let subnet = section.value("subnet", Wants::String, str::parse, self);
        let subnet = self.keep(at(Field::Subnet), subnet);
        let subnet6 = section.value("subnet6", Wants::String, str::parse, self);
        let subnet6 = self.keep(at(Field::Subnet6), subnet6);
        let dhcp = section.table("dhcp", "[network.dhcp]", self).map(|section| self.dhcp(index, section));
        let tap = section.value("tap", Wants::String, |text| text.parse().map(TapSource::Name), self);
        let tap = self.keep(at(Field::Uplink), tap);
        let tap_fd = section.value("tap-fd", Wants::Number, |text| text.parse().map(TapSource::Inherit), self);
        let tap_fd = self.keep(at(Field::Uplink), tap_fd);
        let nic = section.value("nic", Wants::String, |text| text.parse().map(Via::Nic), self);
        let nic = self.keep(at(Field::Uplink), nic);
        let bridge = section.value("bridge", Wants::String, |text| text.parse().map(Via::Bridge), self);
        let bridge = self.keep(at(Field::Uplink), bridge);
        let mac_nat = section.value("mac-nat", Wants::Bool, parse_bool, self);
        let mac_nat = self.keep(at(Field::MacNat), mac_nat).unwrap_or(false);
        let forwards = self.forwards(index, section);
        let host_loopback = section.value("allow-host-loopback", Wants::Bool, parse_bool, self).value();
        let host_loopback = host_loopback.unwrap_or(false);
        let mut ranges =
            |key| section.values(key, Wants::String, ip_net, self).into_iter().filter_map(Given::value).collect();
        let (allow, deny) = (ranges("allow"), ranges("deny"));
        let tap = tap.or(tap_fd);
        ModeSaid { subnet, subnet6, dhcp, tap, nic, bridge, mac_nat, forwards, host_loopback, allow, deny }
    }

    fn forwards(&mut self, index: usize, section: &mut Section<'_>) -> Vec<Forward> {
        let mut forwards = Vec::new();
        for given in section.values("forward", Wants::String, str::parse, self) {
            if let Given::Good(forward, span) = given {
                for field in [Field::Forward(forwards.len()), Field::ForwardGuest(forwards.len())] {
                    self.places.insert(Place { network: index, port: None, field }, span.clone());
                }
                forwards.push(forward);
            }
        }
        forwards
    }

    fn mode(&mut self, index: usize, word: &'static str, name: &Name, said: ModeSaid, section: &Section<'_>) -> Mode {
        for (key, modes) in OF_MODES {
            if let Some(span) = section.key_span(key).filter(|_| !modes.contains(&word)) {
                self.found(span, format!("{key} says nothing on a network of mode \"{word}\": leave it out"));
            }
        }
        let has = |key: &&&str| section.has(key);
        let uplinks = if word == "host-only" { &["tap", "tap-fd"][..] } else { &["nic", "bridge", "tap", "tap-fd"] };
        let given: Vec<_> = uplinks.iter().filter(has).copied().collect();
        if let [first, others @ ..] = given.as_slice() {
            for key in others {
                let span = section.key_span(key).unwrap_or_default();
                self.found(span, format!("{first} says already what the network is connected to: say one of them"));
            }
        }
        match word {
            "host-only" => Mode::HostOnly(host_only(name, said)),
            "nat" => Mode::Nat(nat(name, said)),
            "bridged" => {
                if given.is_empty() {
                    let text = "a bridged network needs one of nic, bridge, tap or tap-fd: for instance nic = \"eth0\"";
                    self.found(section.span(), text);
                }
                self.bridged(index, name, said)
            }
            _ => self.internal(index, said, section),
        }
    }

    fn internal(&mut self, index: usize, said: ModeSaid, section: &Section<'_>) -> Mode {
        let subnet_place = Place { network: index, port: None, field: Field::Subnet };
        let is_served = said.dhcp.as_ref().is_some_and(|dhcp| dhcp.is_enabled);
        if let (false, Some(span)) = (is_served, section.key_span("subnet6")) {
            self.found(span, "nobody tells guests of this subnet: have [network.dhcp] enabled, or leave it out");
        }
        let services = match said.subnet {
            Some(subnet) if is_served => {
                let subnet6 = match said.subnet6 {
                    Some(Subnet6Choice::Subnet(subnet6)) => Some(subnet6),
                    Some(Subnet6Choice::Off) | None => None,
                };
                Some(Services { subnet, subnet6, dhcp: said.dhcp.and_then(|dhcp| dhcp.of(subnet)) })
            }
            Some(_) => {
                let span = self.place(subnet_place);
                self.found(
                    span,
                    "nobody gives out the addresses of this subnet: have [network.dhcp] enabled, or leave it out",
                );
                self.unsure.insert(subnet_place);
                None
            }
            None if is_served && !section.has("subnet") => {
                let text = "the DHCP server has no addresses to give: add subnet = \"192.168.56.0/24\" to the network";
                self.found(section.key_span("dhcp").unwrap_or_default(), text);
                self.unsure.insert(subnet_place);
                None
            }
            None => None,
        };
        Mode::Internal(Internal { services })
    }

    fn bridged(&mut self, index: usize, name: &Name, said: ModeSaid) -> Mode {
        let via = said.nic.or(said.bridge).or(said.tap.map(Via::Tap)).unwrap_or_else(|| {
            // Something has to stand here until the problems are told.
            self.unsure.insert(Place { network: index, port: None, field: Field::Uplink });
            Via::Tap(TapSource::Name(crate::config::IfName::of_tap(name)))
        });
        Mode::Bridged(Bridged { via, mac_nat: said.mac_nat })
    }

    fn attachments(&mut self, place: Place, section: &mut Section<'_>, kind: &SocketKind) -> Vec<Attachment> {
        let listen = |text: &str| {
            let SocketKind { mode, group } = kind.clone();
            Ok(Attachment::Listen(Listen { path: ListenPath::new(text.into())?, mode, group }))
        };
        let connect = |text: &str| ConnectPath::new(text.into()).map(Attachment::Connect);
        let inherit = |text: &str| text.parse::<InheritedFd>().map(Attachment::Inherit);
        let mut given = section.values("socket-path", Wants::String, listen, self);
        given.extend(section.values("connect", Wants::String, connect, self));
        given.extend(section.values("fd", Wants::Number, inherit, self));
        let mut attachments = Vec::new();
        let keys = ["socket-path", "connect", "fd"];
        if given.is_empty() && !keys.iter().all(|key| section.lacks(key)) {
            self.unsure.insert(place);
        }
        for given in given {
            match given {
                Given::Good(attachment, span) => {
                    self.places.insert(Place { field: Field::Attachment(attachments.len()), ..place }, span);
                    attachments.push(attachment);
                }
                Given::Bad | Given::Absent => {
                    self.unsure.insert(place);
                }
            }
        }
        attachments
    }

    fn port(
        &mut self,
        place: Place,
        mut section: Section<'_>,
        kind: &SocketKind,
        network_security: Security,
    ) -> DeclaredPort {
        let about = |field| Place { field, ..place };
        self.places.insert(place, section.span());
        let name = self.name(about(Field::Name), &mut section);
        let kind = SocketKind {
            mode: section.value("socket-mode", Wants::Octal, str::parse, self).value().unwrap_or(kind.mode),
            group: section.value("socket-group", Wants::String, str::parse, self).value().or(kind.group.clone()),
        };
        let attachments = self.attachments(place, &mut section, &kind);
        let mac = section.value("mac", Wants::String, str::parse, self);
        let mac = self.keep(about(Field::Mac), mac);
        let ip = section.value("ip", Wants::String, parse_ip, self);
        let ip = self.keep(about(Field::Ip), ip);
        let security = section.word("port-security", Security::WORDS, str::parse, self).value();
        section.finish(self);
        DeclaredPort { name, attachments, mac, ip, security: security.unwrap_or(network_security) }
    }

    fn dhcp(&mut self, index: usize, mut section: Section<'_>) -> DhcpSaid {
        let at = |field| Place { network: index, port: None, field };
        let is_enabled = section.value("enabled", Wants::Bool, parse_bool, self);
        let is_enabled = self.keep(at(Field::Dhcp), is_enabled).unwrap_or(true);
        let range = section.value("range", Wants::String, str::parse, self);
        let range = self.keep(at(Field::Range), range);
        let mut dhcp = Dhcp::of(Subnet4::HOST_ONLY);
        dhcp.lease = section.value("lease", Wants::String, str::parse, self).value().unwrap_or(LeaseTime::HOUR);
        let dns = section.values("dns", Wants::String, parse_dns, self);
        dhcp.set_dns(&self.keep_all(at(Field::Dns), DNS_MAX, dns));
        dhcp.domain = section.value("domain", Wants::String, str::parse, self).value();
        let search = section.values("search", Wants::String, str::parse, self);
        dhcp.search = self.keep_all(at(Field::Search), SEARCH_MAX, search);
        let router = section.value("router", Wants::String, parse_ip, self);
        dhcp.router = self.keep(at(Field::Router), router);
        let routes = section.values("routes", Wants::String, str::parse, self);
        dhcp.routes = self.keep_all(at(Field::Routes), ROUTES_MAX, routes);
        let leases = section.value("leases", Wants::String, |text| file_path(text.into()), self);
        dhcp.leases = self.keep(at(Field::Leases), leases);
        let sections: Vec<_> = section.tables("reservation", "[[network.dhcp.reservation]]", self).collect();
        for section in sections {
            if let Some(reservation) = self.reservation(index, dhcp.reservations.len(), section) {
                dhcp.reservations.push(reservation);
            }
        }
        section.finish(self);
        DhcpSaid { is_enabled, range, dhcp }
    }

    /// What is said in a list. It stands where its first element does, or, if it is too long, the one at `max`.
    fn keep_all<T>(&mut self, place: Place, max: usize, given: Vec<Given<T>>) -> Vec<T> {
        let mut values = Vec::new();
        for given in given {
            if let Given::Good(value, span) = given {
                if values.is_empty() || values.len() == max {
                    self.places.insert(place, span);
                }
                values.push(value);
            }
        }
        values
    }

    fn reservation(&mut self, index: usize, number: usize, mut section: Section<'_>) -> Option<Reservation> {
        let at = |field| Place { network: index, port: None, field };
        let mac = section.value("mac", Wants::String, |text| text.parse().map(Holder::Mac), self);
        let client = section.value("client-id", Wants::String, |text| text.parse().map(Holder::Client), self);
        if let (Given::Absent, Given::Absent) | (Given::Good(..), Given::Good(..)) = (&mac, &client) {
            self.found(section.span(), "a reservation is for one guest: say its mac or its client-id, one of them");
        }
        let ip = section.value("ip", Wants::String, parse_ip, self);
        if section.lacks("ip") {
            self.found(section.span(), "a reservation keeps an address: add ip = \"...\"");
        }
        let name = section.value("name", Wants::String, str::parse, self).value();
        section.finish(self);
        let holder = self.keep(at(Field::Holder(number)), mac);
        let holder = holder.or_else(|| self.keep(at(Field::Holder(number)), client));
        let ip = self.keep(at(Field::ReservedIp(number)), ip);
        Some(Reservation { holder: holder?, ip: ip?, name })
    }
}

impl DhcpSaid {
    /// The server of this subnet; none when it is turned off.
    fn of(self, subnet: Subnet4) -> Option<Dhcp> {
        let range = self.range.unwrap_or(Range4::of(subnet));
        self.is_enabled.then_some(Dhcp { range, ..self.dhcp })
    }
}

fn host_only(name: &Name, said: ModeSaid) -> HostOnly {
    let ModeSaid { subnet, subnet6, dhcp, tap, .. } = said;
    let services = services(name, subnet.unwrap_or(Subnet4::HOST_ONLY), subnet6, dhcp);
    HostOnly { tap: tap.unwrap_or(TapSource::Auto), services }
}

fn nat(name: &Name, said: ModeSaid) -> Nat {
    let ModeSaid { subnet, subnet6, dhcp, forwards, host_loopback, allow, deny, .. } = said;
    let services = services(name, subnet.unwrap_or(Subnet4::NAT), subnet6, dhcp);
    Nat { services, forwards, host_loopback, allow, deny }
}

/// What is served on a network that has addresses for guests without being asked.
fn services(name: &Name, subnet: Subnet4, subnet6: Option<Subnet6Choice>, dhcp: Option<DhcpSaid>) -> Services {
    let subnet6 = match subnet6 {
        None => Some(Subnet6::derived(name, subnet)),
        Some(Subnet6Choice::Off) => None,
        Some(Subnet6Choice::Subnet(subnet6)) => Some(subnet6),
    };
    let dhcp = match dhcp {
        None => Some(Dhcp::of(subnet)),
        Some(dhcp) => dhcp.of(subnet),
    };
    Services { subnet, subnet6, dhcp }
}

fn parse_mode(text: &str) -> Result<&'static str, Problem> {
    let found = Mode::NAMES.iter().find(|name| **name == text);
    found.copied().map_or_else(|| problem(format!("not a mode: there are {}", quoted(Mode::NAMES))), Ok)
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}
