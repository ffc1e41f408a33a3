//! Services: frames that are answered here instead of being passed on.
//!
//! Theory of operation. [`Services`] is made from the [`Settings`] of one network and knows nothing but what it is
//! told: a frame, the port that it came from, and the time. Whoever moves frames asks for each frame of a guest
//!
//! 1. [`Settings::offence`]: whether it is sent in the server's name. Together with what the switch's guards refuse,
//!    other servers' answers and routers' messages, no guest can become its neighbours' router or resolver;
//! 2. [`Settings::wants`]: whether it may be for a service, from the first bytes;
//! 3. and if so [`Services::handle`], with the whole frame: it answers, or leaves the frame to the switch. Answers are
//!    whole frames with complete checksums, and go to the port that asked, nowhere else.
//!
//! What is served: DHCP (`dhcp.rs`, with its leases in `leases.rs`), router advertisements (`ndp.rs`) and stateless
//! DHCPv6 (`dhcp6.rs`). Where no interface of the host is on the network, the server's own MAC and IP addresses are
//! ours too ([`Settings::answers_for_gateway`]): ARP, neighbour discovery and echo are then answered here as well.
//! Frames with a VLAN tag are never for a service.
//!
//! Requests come from guests, so each is checked whole before anything is done: lengths against each other, checksums,
//! addresses. What a request can change is bounded by the port that it came from: that port's own leases, of which it
//! has [`LEASES_PER_PORT_MAX`]. A request is answered by at most one frame, not much longer than itself or than
//! [`ANSWER_LEN_MAX`]; an echo is as long as what it echoes.
//!
//! Leases outlive the process as text: whoever owns the services sees from [`Leases::generation`] that there is
//! something to write, and writes [`Leases::to_text`] when it likes; a guest can make it change with every request.
//!
//! Limits: no relays, fragments, IP options or extension headers; an address is not probed before it is offered, for a
//! client probes itself and declines. Nothing is sent without having been asked for, so there is no timer: prefixes
//! and DNS servers are advertised without an end. A default route of IPv6 has one: who has a timer sends
//! [`Settings::router_advertisement`] before that.

mod arp;
mod classify;
mod dhcp;
mod dhcp6;
mod leases;
mod names;
mod ndp;
mod packet;
mod reply;
mod request;
mod settings;
mod stored;

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};

use dhcproto::v4::MessageType;
use etherparse::{Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Ipv4Slice, Ipv6Slice, UdpSlice};

pub use dhcp::{DECLINE_SECONDS, OFFER_SECONDS};
pub use leases::{Binding, LEASES_MAX, LEASES_PER_PORT_MAX, Leases, State};
pub use settings::{
    ClientId, Domain, HostName, LeaseTime, PREFIX_LEN_RANGE, Pool, Reservation, Route, Settings, SettingsError, Subnet,
    V4, V6, link_local,
};
pub use stored::LeasesError;

use crate::config::{DNS_MAX, SEARCH_MAX};
use crate::frame::arp::Arp;
use crate::frame::dhcp::{CLIENT_PORT, CLIENT_PORT_V6, SERVER_PORT, SERVER_PORT_V6};
use crate::frame::ethernet::{HEADER_LEN, MacAddr};
use crate::frame::ip::{ICMPV6, UDP};
use crate::metrics::Counter;
use crate::switch::PortId;
use classify::{Ask, ECHO_REPLY_V6};
use dhcp::{Decision, Server};
use packet::{Ends, is_sum_right, pseudo_header_v6, udp_pseudo_header_v4};
use request::Request;

/// First bytes of a frame that [`Settings::wants`] looks at: a whole neighbour solicitation without options.
pub const WANTS_HEAD: usize = 78;
/// The longest answer to anything but an echo, in bytes of a frame.
pub const ANSWER_LEN_MAX: usize = 1514;

/// Whether the checksums of a frame are there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// They are: they are verified.
    Complete,
    /// The transport's is left to its receiver (`VIRTIO_NET_HDR_F_NEEDS_CSUM`): the sender vouches for the bytes.
    Partial,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was for a service and ends here. The answer, if it gets one, is ready.
    Answered,
    /// It is none of ours: the switch decides.
    Ignored,
    /// It was for a service, and is dropped with nothing done and nothing answered.
    Drop(Counter),
}

impl Outcome {
    /// The counter, of the port that it came from, that the frame ends in; none: it goes on.
    pub fn counter(self) -> Option<Counter> {
        match self {
            Outcome::Answered => Some(Counter::TxServed),
            Outcome::Ignored => None,
            Outcome::Drop(counter) => Some(counter),
        }
    }
}

/// An answer, or why there is none: a counter, or `None` for a frame that goes on to the switch.
type Answer = Result<Option<Vec<u8>>, Option<Counter>>;

const BAD_REQUEST: Option<Counter> = Some(Counter::DropTxBadRequest);

impl Settings {
    /// A frame that advertises the router to all hosts, to be sent now and then where there is one: a default route is
    /// lost after [`V6::router_lifetime`] unless it is told of again.
    pub fn router_advertisement(&self) -> Option<Vec<u8>> {
        let v6 = self.v6.as_ref().filter(|v6| v6.router_lifetime > 0)?;
        let has_more = dhcp6::Server::new(self.server_mac, v6).has_any();
        ndp::advertisement_to_all(self.server_mac, v6, has_more)
    }
}

/// The services of one network.
#[derive(Debug)]
pub struct Services {
    settings: Settings,
    dhcp: Option<Server>,
    dhcp6: Option<dhcp6::Server>,
    advertisement_options: Vec<u8>,
    blank: dhcproto::v4::Message,
}

impl Services {
    /// Services, with the leases of the last time. Leases that do not agree with the settings are forgotten. Of DNS
    /// servers and of domains to search, no more than [`DNS_MAX`] and [`SEARCH_MAX`] are told.
    pub fn new(mut settings: Settings, leases: Leases) -> Self {
        let mac = settings.server_mac;
        if let Some(v4) = &mut settings.v4 {
            v4.dns.truncate(DNS_MAX);
            v4.search.truncate(SEARCH_MAX);
        }
        if let Some(v6) = &mut settings.v6 {
            v6.dns.truncate(DNS_MAX);
            v6.search.truncate(SEARCH_MAX);
        }
        Self {
            dhcp: settings.v4.clone().map(|v4| Server::new(v4, leases)),
            dhcp6: settings.v6.as_ref().map(|v6| dhcp6::Server::new(mac, v6)),
            advertisement_options: settings
                .v6
                .as_ref()
                .map(|v6| ndp::advertisement_options(mac, v6))
                .unwrap_or_default(),
            blank: dhcproto::v4::Message::default(),
            settings,
        }
    }

    /// What they were made from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Keeps these addresses for clients from now on, and no others. Leases that do not agree are forgotten, as in
    /// [`Self::new`].
    pub fn set_reservations(&mut self, reservations: Vec<Reservation>) {
        let (Some(v4), Some(dhcp)) = (&mut self.settings.v4, &mut self.dhcp) else { return };
        v4.reservations = reservations;
        let leases = std::mem::take(&mut dhcp.leases);
        *dhcp = Server::new(v4.clone(), leases);
    }

    /// The leases; none: DHCP is not served.
    pub fn leases(&self) -> Option<&Leases> {
        self.dhcp.as_ref().map(|dhcp| &dhcp.leases)
    }

    /// The address of the guest with this name, and its MAC address, if that is known: of one that has a lease, or that
    /// an address is kept for.
    pub fn host(&self, name: &str, now: u64) -> Option<(Ipv4Addr, Option<MacAddr>)> {
        let leased = self.leases().and_then(|leases| leases.named(name, now));
        let kept = || {
            let mut all = self.settings.v4.iter().flat_map(|v4| &v4.reservations);
            all.find(|kept| kept.name.as_ref().is_some_and(|own| own.as_str() == name)).map(|kept| match kept.client {
                ClientId::Mac(mac) => (kept.address, Some(mac)),
                ClientId::Identifier(_) => (kept.address, None),
            })
        };
        leased.map(|(address, mac)| (address, Some(mac))).or_else(kept)
    }

    /// The name of the guest with this address.
    pub fn name_at(&self, address: Ipv4Addr, now: u64) -> Option<&str> {
        let leased = self.leases().and_then(|leases| leases.name_at(address, now));
        let kept = || {
            let mut all = self.settings.v4.iter().flat_map(|v4| &v4.reservations);
            all.find(|kept| kept.address == address)?.name.as_ref().map(HostName::as_str)
        };
        leased.or_else(kept)
    }

    /// The name of the guest with this MAC address on a port.
    pub fn name_of(&self, port: PortId, mac: MacAddr, now: u64) -> Option<&str> {
        self.leases()?.name_of(port, mac, now)
    }

    /// Answers a frame that came from a port, or does not. `now` is wall-clock time in seconds. What is to be sent back
    /// to the port is appended to `out`: at most one frame.
    pub fn handle(
        &mut self,
        port: PortId,
        frame: &[u8],
        checksums: Checksums,
        now: u64,
        out: &mut Vec<Vec<u8>>,
    ) -> Outcome {
        let Some(ask) = self.settings.asks(frame) else { return Outcome::Ignored };
        let Some(from_mac) = MacAddr::source_of(frame) else { return Outcome::Ignored };
        let packet = &frame[HEADER_LEN..];
        let answer = match ask {
            Ask::Arp => self.answer_arp(frame),
            Ask::Dhcp => self.answer_dhcp(port, from_mac, packet, checksums, now),
            Ask::Echo => self.answer_echo(from_mac, packet),
            Ask::Dhcp6 => self.answer_dhcp6(from_mac, packet, checksums),
            Ask::Router | Ask::Neighbour | Ask::EchoV6 => self.answer_icmpv6(ask, from_mac, packet),
        };
        match answer {
            Ok(answer) => {
                out.extend(answer);
                Outcome::Answered
            }
            Err(Some(counter)) => Outcome::Drop(counter),
            Err(None) => Outcome::Ignored,
        }
    }

    /// The port has ended. Its number may be used for another from now on.
    pub fn port_ended(&mut self, port: PortId) {
        if let Some(dhcp) = &mut self.dhcp {
            dhcp.leases.port_ended(port);
        }
    }

    fn has_more(&self) -> bool {
        self.dhcp6.as_ref().is_some_and(dhcp6::Server::has_any)
    }

    /// What is no question, such as another's answer, goes on.
    fn answer_arp(&self, frame: &[u8]) -> Answer {
        let asked = Arp::parse(frame, HEADER_LEN).ok_or(None)?;
        arp::answer(&asked, self.settings.server_mac).map(Some).ok_or(None)
    }

    /// Who asks is who sends: otherwise a guest could ask in another's name, and have its address.
    fn answer_dhcp(
        &mut self,
        port: PortId,
        from_mac: MacAddr,
        packet: &[u8],
        checksums: Checksums,
        now: u64,
    ) -> Answer {
        let dhcp = self.dhcp.as_mut().ok_or(None)?;
        let ip = Ipv4Slice::from_slice(packet).map_err(|_| BAD_REQUEST)?;
        let udp = UdpSlice::from_slice(ip.payload().payload).map_err(|_| BAD_REQUEST)?;
        let header = ip.header();
        let pseudo_header = udp_pseudo_header_v4(header.source_addr(), header.destination_addr(), udp.length());
        let must_fit = checksums == Checksums::Complete && udp.checksum() != 0;
        let fits = is_sum_right(header.slice(), 0) && (!must_fit || is_sum_right(udp.slice(), pseudo_header));
        let request = Request::parse(udp.payload()).filter(|_| fits).ok_or(BAD_REQUEST)?;
        if !request.giaddr.is_unspecified() || request.mac != from_mac {
            return Err(BAD_REQUEST);
        }
        let (kind, address, rapid_commit) = match dhcp.serve(port, &request, now) {
            Decision::Say { kind, address, rapid_commit } => (kind, address, rapid_commit),
            Decision::Done => return Ok(None),
            Decision::Refuse(counter) => return Err(Some(counter)),
        };
        let payload = dhcp.reply(&self.blank, &request, kind, address, rapid_commit).ok_or(BAD_REQUEST)?;
        // Where to (RFC 2131 4.1).
        let to = match (kind, request.ciaddr, address) {
            (MessageType::Nak, ..) => None,
            (_, ciaddr, _) if !ciaddr.is_unspecified() => Some(ciaddr),
            (_, _, address) => address.filter(|_| !request.wants_broadcast()),
        };
        let (mac, ip) = (self.settings.server_mac, dhcp.settings.subnet.server());
        let to_mac = if to.is_some() { request.mac } else { MacAddr([0xff; 6]) };
        let ends = Ends { mac, to_mac, ip, to_ip: to.unwrap_or(Ipv4Addr::BROADCAST) };
        Ok(ends.udp((SERVER_PORT, CLIENT_PORT), &payload))
    }

    fn answer_echo(&self, to_mac: MacAddr, packet: &[u8]) -> Answer {
        let ip = Ipv4Slice::from_slice(packet).map_err(|_| BAD_REQUEST)?;
        let (header, payload) = (ip.header(), ip.payload().payload);
        let icmp = Icmpv4Slice::from_slice(payload).map_err(|_| BAD_REQUEST)?;
        let from = header.source_addr();
        let is_host = !from.is_unspecified() && !from.is_multicast() && !from.is_broadcast() && !from.is_loopback();
        match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) if is_host && is_sum_right(header.slice(), 0) && is_sum_right(payload, 0) => {
                let ends = Ends { mac: self.settings.server_mac, to_mac, ip: header.destination_addr(), to_ip: from };
                Ok(ends.echo_reply(echo.id, echo.seq, icmp.payload()))
            }
            _ => Err(BAD_REQUEST),
        }
    }

    fn answer_dhcp6(&self, to_mac: MacAddr, packet: &[u8], checksums: Checksums) -> Answer {
        let (Some(dhcp6), Some(v6)) = (&self.dhcp6, &self.settings.v6) else { return Err(None) };
        let ip = Ipv6Slice::from_slice(packet).map_err(|_| BAD_REQUEST)?;
        let udp = UdpSlice::from_slice(ip.payload().payload).map_err(|_| BAD_REQUEST)?;
        let (from, to) = (ip.header().source_addr(), ip.header().destination_addr());
        let sum = pseudo_header_v6(from, to, UDP, udp.length());
        // Zero is no checksum here (RFC 8200 8.1).
        let fits = checksums == Checksums::Partial || (udp.checksum() != 0 && is_sum_right(udp.slice(), sum));
        if !fits || from.is_unspecified() || from.is_multicast() {
            return Err(BAD_REQUEST);
        }
        let payload = dhcp6.serve(udp.payload()).ok_or(BAD_REQUEST)?;
        let ends = Ends { mac: self.settings.server_mac, to_mac, ip: v6.link_local, to_ip: from };
        Ok(ends.udp((SERVER_PORT_V6, CLIENT_PORT_V6), &payload))
    }

    fn answer_icmpv6(&self, ask: Ask, from_mac: MacAddr, packet: &[u8]) -> Answer {
        let Some(v6) = &self.settings.v6 else { return Err(None) };
        let ip = Ipv6Slice::from_slice(packet).map_err(|_| BAD_REQUEST)?;
        let (header, bytes) = (ip.header(), ip.payload().payload);
        let (from, to): (Ipv6Addr, Ipv6Addr) = (header.source_addr(), header.destination_addr());
        let len = u16::try_from(bytes.len()).map_err(|_| BAD_REQUEST)?;
        if !is_sum_right(bytes, pseudo_header_v6(from, to, ICMPV6, len)) || from.is_multicast() {
            return Err(BAD_REQUEST);
        }
        let message = ndp::Message { from_mac, from, to, hop_limit: header.hop_limit(), bytes };
        let mac = self.settings.server_mac;
        let answer = match ask {
            Ask::Router => {
                let options = &self.advertisement_options;
                ndp::answer_router_solicitation(&message, mac, v6, self.has_more(), options)
            }
            Ask::Neighbour => ndp::answer_neighbour_solicitation(&message, mac, v6),
            _ if from.is_unspecified() => None,
            _ => Icmpv6Slice::from_slice(bytes).ok().and_then(|icmp| {
                let ends = Ends { mac, to_mac: from_mac, ip: to, to_ip: from };
                ends.icmp(ECHO_REPLY_V6, icmp.bytes5to8(), icmp.payload())
            }),
        };
        answer.map(Some).ok_or(BAD_REQUEST)
    }
}
