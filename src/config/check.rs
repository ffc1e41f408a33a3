//! What is wrong with a configuration as a whole, and where.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf, absolute};

use super::{
    ATTACHMENTS_MAX, Attachment, Bridged, Config, DNS_MAX, DeclaredPort, Dhcp, FORWARD_SOCKETS_MAX, FORWARDS_MAX,
    Forward, Guest, Holder, Mode, NETWORKS_MAX, Name, Nat, Network, Problem, ROUTES_MAX, SEARCH_MAX, Services, Subnet6,
    TapSource, Via,
};

/// What a problem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The network, counted from 0.
    pub network: usize,
    /// Its declared port, counted from 0, if it is about one.
    pub port: Option<usize>,
    /// Which of the things that are said there.
    pub field: Field,
}

/// One of the things that can be said about a network or a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Everything together.
    Whole,
    /// The name.
    Name,
    /// A way in, counted from 0.
    Attachment(usize),
    /// The MAC address of a port.
    Mac,
    /// The IP address of a port.
    Ip,
    /// What the network is connected with: the tap, the NIC or the bridge.
    Uplink,
    /// Whether guests share a MAC address.
    MacNat,
    /// The subnet.
    Subnet,
    /// The subnet of IPv6.
    Subnet6,
    /// Whether there is a DHCP server.
    Dhcp,
    /// The range of addresses for guests.
    Range,
    /// The name servers.
    Dns,
    /// The search domains.
    Search,
    /// The router.
    Router,
    /// The routes.
    Routes,
    /// The file of leases.
    Leases,
    /// The address of a reservation, counted from 0.
    ReservedIp(usize),
    /// The holder of a reservation, counted from 0.
    Holder(usize),
    /// A forward, counted from 0.
    Forward(usize),
    /// The guest that a forward leads to, likewise.
    ForwardGuest(usize),
}

/// What must be there only once in the whole configuration.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Unique {
    Socket(PathBuf),
    Descriptor(RawFd),
    Network(String),
    Interface(String),
    Subnet6(Subnet6),
    LeaseFile(PathBuf),
}

/// What must be there only once in a network.
#[derive(Debug, PartialEq, Eq, Hash)]
enum UniqueInNetwork {
    Port(String),
    Ip(Ipv4Addr),
    Holder(Holder),
}

/// Collects what is wrong.
#[derive(Debug, Default)]
struct Findings<'c> {
    found: Vec<(Place, Problem)>,
    seen: HashMap<Unique, ()>,
    /// Of the network that is being looked at.
    seen_here: HashMap<UniqueInNetwork, ()>,
    /// Each with its network's name.
    forwards: Vec<(&'c Name, &'c Forward)>,
    /// Sockets that they have.
    forward_sockets: usize,
}

/// Whether this is the first time.
fn is_first<K: Eq + Hash>(seen: &mut HashMap<K, ()>, key: K) -> bool {
    seen.insert(key, ()).is_none()
}

impl Config {
    /// What is wrong with the configuration as a whole: every problem, not only the first, in the order of the
    /// networks.
    pub fn problems(&self) -> Vec<(Place, Problem)> {
        let mut findings = Findings::default();
        if self.networks.len() > NETWORKS_MAX {
            let text = format!("{} networks and at most {NETWORKS_MAX} can be", self.networks.len());
            findings.add(Place { network: NETWORKS_MAX, port: None, field: Field::Whole }, text);
        }
        for (index, network) in self.networks.iter().enumerate() {
            findings.look_at(index, network);
            let Some(services) = network.services() else { continue };
            let earlier = self.networks[..index].iter().find_map(|earlier| {
                let theirs = earlier.services()?;
                theirs.subnet.overlaps(services.subnet).then_some((earlier, theirs.subnet))
            });
            if let Some((earlier, theirs)) = earlier {
                let (ours, name) = (services.subnet, &earlier.name);
                let text = format!("{ours} overlaps with {theirs} of the network '{name}': choose another subnet");
                findings.add(at(index, Field::Subnet), text);
            }
        }
        findings.found
    }
}

fn at(network: usize, field: Field) -> Place {
    Place { network, port: None, field }
}

impl<'c> Findings<'c> {
    fn add(&mut self, place: Place, text: impl Into<String>) {
        self.found.push((place, Problem(text.into())));
    }

    fn once(&mut self, place: Place, key: Unique, text: impl FnOnce() -> String) {
        if !is_first(&mut self.seen, key) {
            self.add(place, text());
        }
    }

    fn once_here(&mut self, place: Place, key: UniqueInNetwork, text: impl FnOnce() -> String) {
        if !is_first(&mut self.seen_here, key) {
            self.add(place, text());
        }
    }

    fn look_at(&mut self, index: usize, network: &'c Network) {
        self.seen_here.clear();
        let name = &network.name;
        self.once(at(index, Field::Name), Unique::Network(name.to_string()), || {
            format!("the network '{name}' is there twice: give each a name of its own")
        });
        self.look_at_ways_in(index, network);
        self.look_at_uplink(index, network);
        if let Some(services) = network.services() {
            self.look_at_services(index, services, &network.mode);
        }
        if let Mode::Nat(nat) = &network.mode {
            self.look_at_nat(index, network, nat);
        }
        for (number, port) in network.ports.iter().enumerate() {
            self.look_at_port(Place { network: index, port: Some(number), field: Field::Whole }, port, network);
        }
    }

    fn look_at_ways_in(&mut self, index: usize, network: &Network) {
        if network.attachments.is_empty() && network.ports.is_empty() {
            let ways = "add socket-path (VMs connect to us), connect (we connect to them) or fd";
            self.add(at(index, Field::Whole), format!("no way in for VMs: {ways}"));
        }
        let of_ports = network.ports.iter().map(|port| port.attachments.len());
        let count = network.attachments.len() + of_ports.sum::<usize>();
        if count > ATTACHMENTS_MAX {
            let text = format!("{count} ways in for VMs and at most {ATTACHMENTS_MAX} can be: name fewer");
            self.add(at(index, Field::Whole), text);
        }
        self.look_at_attachments(at(index, Field::Whole), &network.attachments);
    }

    fn look_at_attachments(&mut self, place: Place, attachments: &[Attachment]) {
        for (i, attachment) in attachments.iter().enumerate() {
            let key = match attachment {
                Attachment::Inherit(fd) => Unique::Descriptor(fd.number()),
                Attachment::Listen(listen) => Unique::Socket(whole(listen.path.as_path())),
                Attachment::Connect(path) => Unique::Socket(whole(path.as_path())),
            };
            let place = Place { field: Field::Attachment(i), ..place };
            self.once(place, key, || format!("{attachment} is named twice: name it once"));
        }
    }

    fn look_at_uplink(&mut self, index: usize, network: &Network) {
        let place = at(index, Field::Uplink);
        let tap = match &network.mode {
            Mode::Internal(_) | Mode::Nat(_) => return,
            Mode::HostOnly(host_only) => Some(&host_only.tap),
            Mode::Bridged(Bridged { via, mac_nat }) => {
                if *mac_nat && !matches!(via, Via::Nic(_)) {
                    let text = "guests share the MAC address of a NIC: leave mac-nat out, or say which nic";
                    self.add(at(index, Field::MacNat), text);
                }
                match via {
                    Via::Nic(_) => None,
                    Via::Bridge(_) => Some(&TapSource::Auto),
                    Via::Tap(tap) => Some(tap),
                }
            }
        };
        let Some(tap) = tap else { return };
        if let TapSource::Inherit(fd) = tap {
            let key = Unique::Descriptor(fd.number());
            self.once(place, key, || format!("descriptor {} is named twice: name it once", fd.number()));
        }
        if let Some(device) = tap.name(&network.name) {
            self.once(place, Unique::Interface(device.to_string()), || match tap {
                TapSource::Auto => format!("the tap {device} would be another network's too: rename this network"),
                _ => format!("the tap {device} is another network's too: name one that is not"),
            });
        }
    }

    fn look_at_services(&mut self, index: usize, services: &Services, mode: &Mode) {
        if let Some(subnet6) = services.subnet6 {
            self.once(at(index, Field::Subnet6), Unique::Subnet6(subnet6), || {
                format!("{subnet6} is another network's too: choose another subnet")
            });
        }
        let Some(dhcp) = &services.dhcp else { return };
        let Services { subnet, .. } = services;
        let Dhcp { range, leases, .. } = dhcp;
        if !subnet.is_for_guests(range.first()) || !subnet.is_for_guests(range.last()) {
            let (first, last) = (subnet.first(), subnet.last());
            let text = format!("{range} is not within the addresses that {subnet} has for guests: {first}-{last}");
            self.add(at(index, Field::Range), text);
        }
        for (field, count, max, what) in [
            (Field::Dns, dhcp.dns.len(), DNS_MAX, "name servers"),
            (Field::Dns, dhcp.dns6.len(), DNS_MAX, "name servers of IPv6"),
            (Field::Search, dhcp.search.len(), SEARCH_MAX, "search domains"),
            (Field::Routes, dhcp.routes.len(), ROUTES_MAX, "routes"),
        ] {
            if count > max {
                self.add(at(index, field), format!("at most {max} {what} can be told to guests: name fewer"));
            }
        }
        if let (Some(server), None) = (dhcp.dns6.first(), services.subnet6) {
            let text =
                format!("guests are not told of {server} without a subnet of IPv6: add subnet6, or leave it out");
            self.add(at(index, Field::Dns), text);
        }
        self.look_at_routers(index, services, dhcp, mode);
        if let Some(path) = leases {
            let key = Unique::LeaseFile(whole(path));
            self.once(at(index, Field::Leases), key, || {
                format!("{} keeps another network's leases too: give each its own file", path.display())
            });
        }
        for (i, reservation) in dhcp.reservations.iter().enumerate() {
            let holder = &reservation.holder;
            self.look_at_ip(at(index, Field::ReservedIp(i)), reservation.ip, services);
            self.once_here(at(index, Field::Holder(i)), UniqueInNetwork::Holder(holder.clone()), || {
                format!("{holder} has a reservation already: give each one address")
            });
        }
    }

    fn look_at_routers(&mut self, index: usize, services: &Services, dhcp: &Dhcp, mode: &Mode) {
        let subnet = services.subnet;
        let routers = dhcp.router.map(|router| (Field::Router, router)).into_iter();
        for (field, router) in routers.chain(dhcp.routes.iter().map(|route| (Field::Routes, route.via()))) {
            let place = at(index, field);
            match (mode, field) {
                (Mode::HostOnly(_), _) => {
                    self.add(place, "nothing leaves a host-only network: leave it out, or have an internal one");
                }
                (Mode::Nat(_), Field::Router) => {
                    let own = subnet.own();
                    self.add(place, format!("the router of a nat network is guestwire, at {own}: leave it out"));
                }
                _ if !subnet.is_for_guests(router) => {
                    let (first, last) = (subnet.first(), subnet.last());
                    let text = format!("the router {router} is not one of the guests of {subnet}: {first}-{last}");
                    self.add(place, text);
                }
                _ => {}
            }
        }
    }

    fn look_at_nat(&mut self, index: usize, network: &'c Network, nat: &'c Nat) {
        if nat.services.dhcp.is_none() {
            let text = "guests of a nat network are told of the way out by DHCP: leave it out; guests that have \
                        addresses of their own need port-security = \"off\"";
            self.add(at(index, Field::Dhcp), text);
        }
        for (i, forward) in nat.forwards.iter().enumerate() {
            if let Some(text) = wrong_guest(forward, network, &nat.services) {
                self.add(at(index, Field::ForwardGuest(i)), text);
            }
            let place = at(index, Field::Forward(i));
            // Each is compared with all before it.
            if self.forwards.len() >= FORWARDS_MAX {
                self.add(place, format!("at most {FORWARDS_MAX} forwards can be: name fewer, or ranges of ports"));
                return;
            }
            if let Some((name, other)) = self.forwards.iter().find(|(_, other)| forward.overlaps(other)) {
                let of = if **name == network.name { String::new() } else { format!(" of the network '{name}'") };
                let text = format!(
                    "{forward} wants what {other}{of} has already: choose another port of the host, or an address for \
                     each"
                );
                self.add(place, text);
            }
            let has_family = |address: &IpAddr| address.is_ipv4() || nat.services.subnet6.is_some();
            let (before, sockets) =
                (self.forward_sockets, forward.ports().len() * forward.listens_at().filter(has_family).count());
            self.forward_sockets += sockets;
            if before <= FORWARD_SOCKETS_MAX && self.forward_sockets > FORWARD_SOCKETS_MAX {
                let text = format!(
                    "at most {FORWARD_SOCKETS_MAX} ports can be forwarded, those of IPv4 and IPv6 counted each, and \
                     with {forward} they are {}: name fewer, or an address to listen at",
                    self.forward_sockets
                );
                self.add(at(index, Field::Forward(i)), text);
            }
            self.forwards.push((&network.name, forward));
        }
    }

    fn look_at_ip(&mut self, place: Place, ip: Ipv4Addr, services: &Services) {
        let subnet = services.subnet;
        if !subnet.is_for_guests(ip) {
            let (first, last) = (subnet.first(), subnet.last());
            self.add(place, format!("{ip} is not one of the addresses that {subnet} has for guests: {first}-{last}"));
        }
        let key = UniqueInNetwork::Ip(ip);
        self.once_here(place, key, || format!("{ip} is kept for another guest already: choose another"));
    }

    fn look_at_port(&mut self, place: Place, port: &DeclaredPort, network: &Network) {
        let about = |field| Place { field, ..place };
        let name = &port.name;
        self.once_here(about(Field::Name), UniqueInNetwork::Port(name.to_string()), || {
            format!("the port '{name}' is there twice: give each a name of its own")
        });
        if port.attachments.is_empty() {
            self.add(place, "no way in for the VM: add socket-path, connect or fd");
        }
        self.look_at_attachments(place, &port.attachments);
        if let Some(mac) = port.mac {
            self.once_here(about(Field::Mac), UniqueInNetwork::Holder(Holder::Mac(mac)), || {
                format!("{mac} is another port's, or has a reservation: give each port its own, and say ip here")
            });
        }
        let Some(ip) = port.ip else { return };
        if port.mac.is_none() {
            self.add(about(Field::Ip), "an ip is given by DHCP, which knows the guest by its MAC address: add mac");
        }
        match network.services().filter(|services| services.dhcp.is_some()) {
            Some(services) => self.look_at_ip(about(Field::Ip), ip, services),
            None => {
                self.add(about(Field::Ip), "an ip is given by DHCP, and this network has none of ours: leave it out")
            }
        }
    }
}

/// Why a forward leads to no guest of its network, if it does not.
fn wrong_guest(forward: &Forward, network: &Network, services: &Services) -> Option<String> {
    let Services { subnet, subnet6, .. } = services;
    if subnet6.is_none() && forward.listens_at().all(|address| address.is_ipv6()) {
        return Some("guests have no IPv6 with subnet6 off: leave that out, or this forward".into());
    }
    match (forward.guest(), subnet6) {
        (Guest::Ip(IpAddr::V4(ip)), _) if !subnet.is_for_guests(*ip) => {
            let (first, last) = (subnet.first(), subnet.last());
            Some(format!("{ip} is not one of the addresses that {subnet} has for guests: {first}-{last}"))
        }
        (Guest::Ip(IpAddr::V6(ip)), Some(subnet6)) if !subnet6.is_for_guests(*ip) => {
            Some(format!("{ip} is not one of the addresses that {subnet6} has for guests"))
        }
        (Guest::Port(name), _) if !network.ports.iter().any(|port| port.name == *name) => Some(format!(
            "the network has no port '{name}': declare it as [[network.port]], or say the guest's address"
        )),
        _ => None,
    }
}

/// The same path, whether or not the present directory is spelt out.
fn whole(path: &Path) -> PathBuf {
    absolute(path).unwrap_or_else(|_| path.to_owned())
}
