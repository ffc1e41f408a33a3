//! Services as a guest meets them: whole frames in, whole frames out.

mod dhcp;
mod guard;
mod hostile;
mod model;
mod neighbours;

use std::net::{Ipv4Addr, Ipv6Addr};

use dhcproto::v4::{self, DhcpOption, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::*;
use crate::frame::checksum;

pub(super) const SERVER_MAC: MacAddr = MacAddr([0x02, 0x47, 0x57, 0, 0, 1]);
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 1);
pub(super) const BROADCAST_MAC: MacAddr = MacAddr([0xff; 6]);
pub(super) const NOW: u64 = 1_790_000_000;
pub(super) const LEASE: u64 = 3600;

pub(super) fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 56, last)
}

pub(super) fn mac(n: u16) -> MacAddr {
    let [high, low] = n.to_be_bytes();
    MacAddr([0x52, 0x54, 0, 0, high, low])
}

pub(super) fn v4() -> V4 {
    let subnet = Subnet::new(SERVER, 24).unwrap();
    V4 {
        subnet,
        pools: vec![subnet.hosts()],
        router: None,
        routes: Vec::new(),
        dns: Vec::new(),
        domain: None,
        search: Vec::new(),
        mtu: None,
        lease: LeaseTime::HOUR,
        reservations: Vec::new(),
    }
}

pub(super) fn v6() -> V6 {
    V6 {
        link_local: link_local(SERVER_MAC),
        address: Some("fd00:47:57::1".parse().unwrap()),
        prefix: Some("fd00:47:57::".parse().unwrap()),
        router_lifetime: 0,
        dns: Vec::new(),
        search: Vec::new(),
        mtu: None,
    }
}

pub(super) fn settings(v4: V4) -> Settings {
    Settings { server_mac: SERVER_MAC, answers_for_gateway: false, v4: Some(v4), v6: Some(v6()) }
}

pub(super) fn services() -> Services {
    Services::new(settings(v4()), Leases::default())
}

/// A client's message, field by field.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) source: MacAddr,
    pub(super) mac: MacAddr,
    pub(super) to_mac: MacAddr,
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    pub(super) flags: u16,
    pub(super) ciaddr: Ipv4Addr,
    pub(super) giaddr: Ipv4Addr,
    /// Codes and values.
    pub(super) options: Vec<(u8, Vec<u8>)>,
}

pub(super) const XID: u32 = 0xdead_beef;

impl Client {
    pub(super) fn new(n: u16, kind: MessageType) -> Self {
        Self {
            source: mac(n),
            mac: mac(n),
            to_mac: BROADCAST_MAC,
            from: Ipv4Addr::UNSPECIFIED,
            to: Ipv4Addr::BROADCAST,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            options: vec![(53, vec![kind.into()])],
        }
    }

    pub(super) fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    pub(super) fn requested(self, address: Ipv4Addr) -> Self {
        self.with(50, &address.octets())
    }

    pub(super) fn server(self, address: Ipv4Addr) -> Self {
        self.with(54, &address.octets())
    }

    pub(super) fn ciaddr(mut self, address: Ipv4Addr) -> Self {
        self.ciaddr = address;
        self
    }

    /// Says it to the server alone.
    pub(super) fn unicast(mut self) -> Self {
        (self.from, self.to, self.to_mac) = (self.ciaddr, SERVER, SERVER_MAC);
        self
    }

    pub(super) fn payload(&self) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, 0];
        bytes.extend(XID.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.ciaddr.octets());
        bytes.extend([0; 8]);
        bytes.extend(self.giaddr.octets());
        bytes.extend(self.mac.0);
        bytes.resize(236, 0);
        bytes.extend([99, 130, 83, 99]);
        for (code, value) in &self.options {
            bytes.extend([*code, u8::try_from(value.len()).unwrap()]);
            bytes.extend(value);
        }
        bytes.push(255);
        bytes
    }

    pub(super) fn frame(&self) -> Vec<u8> {
        udp4(self.source, self.to_mac, self.from, self.to, (68, 67), &self.payload())
    }
}

pub(super) fn udp4(
    source: MacAddr,
    to_mac: MacAddr,
    from: Ipv4Addr,
    to: Ipv4Addr,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let packet =
        PacketBuilder::ethernet2(source.0, to_mac.0).ipv4(from.octets(), to.octets(), 64).udp(ports.0, ports.1);
    let mut frame = Vec::new();
    packet.write(&mut frame, payload).unwrap();
    frame
}

pub(super) fn udp6(
    source: MacAddr,
    to_mac: MacAddr,
    from: Ipv6Addr,
    to: Ipv6Addr,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let packet =
        PacketBuilder::ethernet2(source.0, to_mac.0).ipv6(from.octets(), to.octets(), 64).udp(ports.0, ports.1);
    let mut frame = Vec::new();
    packet.write(&mut frame, payload).unwrap();
    frame
}

/// A message of ICMPv6 from its type on, its checksum completed.
pub(super) fn icmp6(
    source: MacAddr,
    to_mac: MacAddr,
    from: Ipv6Addr,
    to: Ipv6Addr,
    hop_limit: u8,
    message: &[u8],
) -> Vec<u8> {
    let [kind, code, _, _, a, b, c, d, rest @ ..] = message else { panic!("too short") };
    let packet = PacketBuilder::ethernet2(source.0, to_mac.0).ipv6(from.octets(), to.octets(), hop_limit).icmpv6_raw(
        *kind,
        *code,
        [*a, *b, *c, *d],
    );
    let mut frame = Vec::new();
    packet.write(&mut frame, rest).unwrap();
    frame
}

/// What comes of a frame at a time, on a port. Holds the promises that hold for any frame.
pub(super) fn send_at(services: &mut Services, port: u16, frame: &[u8], now: u64) -> (Outcome, Option<Vec<u8>>) {
    let wanted = services.settings().wants(&frame[..frame.len().min(WANTS_HEAD)]);
    let before = services.leases().map(Leases::to_text);
    let generation = services.leases().map(Leases::generation);
    let mut out = Vec::new();
    let outcome = services.handle(PortId(port), frame, Checksums::Complete, now, &mut out);
    assert!(wanted || outcome == Outcome::Ignored, "{outcome:?} for a frame that was not wanted");
    assert!(out.len() <= usize::from(outcome == Outcome::Answered));
    if let Some(leases) = services.leases() {
        assert_eq!(leases.inconsistency(), None);
        assert!(Some(leases.to_text()) == before || Some(leases.generation()) != generation, "a change unseen");
    }
    for answer in &out {
        assert_sums(answer);
        assert_eq!(MacAddr::source_of(answer), Some(SERVER_MAC));
        assert!(answer.len() <= ANSWER_LEN_MAX.max(frame.len()));
    }
    (outcome, out.pop())
}

pub(super) fn send(services: &mut Services, port: u16, frame: &[u8]) -> (Outcome, Option<Vec<u8>>) {
    send_at(services, port, frame, NOW)
}

/// Adds the sums up by hand.
fn assert_sums(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (pseudo, payload) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            assert_eq!(checksum::sum(ip.header().slice(), 0), 0xffff);
            let header = ip.header();
            let pseudo = [&header.source()[..], &header.destination()[..]].concat();
            (checksum::sum(&pseudo, 17), ip.payload().payload)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let pseudo = [&header.source()[..], &header.destination()[..]].concat();
            (checksum::sum(&pseudo, u16::from(header.next_header().0)), ip.payload().payload)
        }
        NetSlice::Arp(_) => return,
    };
    let pseudo = match packet.transport.as_ref().unwrap() {
        TransportSlice::Icmpv4(_) => 0,
        _ => checksum::add(pseudo, u16::try_from(payload.len()).unwrap()),
    };
    assert_eq!(checksum::sum(payload, pseudo), 0xffff);
}

/// A DHCP answer and where it goes.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) to_mac: MacAddr,
    pub(super) to: Ipv4Addr,
    pub(super) message: v4::Message,
}

impl Told {
    pub(super) fn read(frame: &[u8]) -> Self {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport) else {
            panic!("not UDP in IPv4")
        };
        assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
        assert_eq!(ip.header().source_addr(), SERVER);
        assert!(udp.payload().len() >= 300);
        let message = v4::Message::decode(&mut Decoder::new(udp.payload())).unwrap();
        assert_eq!((message.opcode(), message.xid()), (v4::Opcode::BootReply, XID));
        assert_eq!(message.opts().get(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(SERVER)));
        let to_mac = MacAddr::destination_of(frame).unwrap();
        Self { to_mac, to: ip.header().destination_addr(), message }
    }

    pub(super) fn kind(&self) -> MessageType {
        self.message.opts().msg_type().unwrap()
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        self.message.yiaddr()
    }

    pub(super) fn option(&self, code: u8) -> Option<DhcpOption> {
        self.message.opts().get(OptionCode::from(code)).cloned()
    }

    pub(super) fn codes(&self) -> Vec<u8> {
        self.message.opts().iter().map(|(code, _)| u8::from(*code)).collect()
    }
}

/// What a client's message is answered with.
pub(super) fn ask_at(services: &mut Services, port: u16, client: &Client, now: u64) -> Option<Told> {
    send_at(services, port, &client.frame(), now).1.map(|frame| Told::read(&frame))
}

pub(super) fn ask(services: &mut Services, port: u16, client: &Client) -> Option<Told> {
    ask_at(services, port, client, NOW)
}

/// Discover and request, as a client does it; the address it gets.
pub(super) fn lease_at(services: &mut Services, port: u16, n: u16, now: u64) -> Option<Ipv4Addr> {
    let offer = ask_at(services, port, &Client::new(n, MessageType::Discover), now)?;
    assert_eq!(offer.kind(), MessageType::Offer);
    let request = Client::new(n, MessageType::Request).requested(offer.address()).server(SERVER);
    let ack = ask_at(services, port, &request, now)?;
    assert_eq!((ack.kind(), ack.address()), (MessageType::Ack, offer.address()));
    Some(ack.address())
}

pub(super) fn lease(services: &mut Services, port: u16, n: u16) -> Option<Ipv4Addr> {
    lease_at(services, port, n, NOW)
}
