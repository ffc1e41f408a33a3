//! A guest with addresses of both families, which sends and hears packets.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};

use crate::daemon::{Daemon, PATIENCE};
use crate::dhcp::lease;
use crate::guest::{Config, Guest, mac};
use crate::heard::Heard;
use crate::world::ip;

pub(crate) struct Station {
    pub(crate) guest: Guest,
    pub(crate) gateway: [u8; 6],
    pub(crate) addresses: [IpAddr; 2],
}

/// The frame of a segment with these flags: S, F, R.
pub(crate) fn segment(
    packet: PacketBuilderStep<IpHeaders>,
    (from, to): (u16, u16),
    (seq, ack): (u32, Option<u32>),
    flags: &str,
    payload: &[u8],
) -> Vec<u8> {
    let mut tcp = packet.tcp(from, to, seq, 60_000);
    for flag in flags.chars() {
        tcp = match flag {
            'S' => tcp.syn(),
            'F' => tcp.fin(),
            'R' => tcp.rst(),
            _ => panic!("{flag}"),
        };
    }
    if let Some(ack) = ack {
        tcp = tcp.ack(ack);
    }
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

impl Station {
    /// On the network's port of this name.
    pub(crate) fn new(daemon: &Daemon, socket: &str, number: u8) -> Self {
        let mut guest = Guest::attach(&daemon.path(socket), Config::usual(number));
        let address = lease(&mut guest);
        let own = mac(number);
        let ask = [&[0xff; 6], &own[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own, &address.octets(), &[0; 6]].concat();
        guest.send(&[ask, vec![10, 0, 2, 1]].concat());
        let answer = loop {
            let frame = guest.receive().frame;
            if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
                break frame;
            }
        };
        let addresses = [address.into(), ip(&format!("fd00:77::100:{number}"))];
        Self { guest, gateway: answer[6..12].try_into().unwrap(), addresses }
    }

    pub(crate) fn address(&self, like: IpAddr) -> IpAddr {
        self.addresses[usize::from(like.is_ipv6())]
    }

    /// The headers of a packet.
    pub(crate) fn to(&self, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
        self.within(to, 64)
    }

    /// The same with another hop limit.
    pub(crate) fn within(&self, to: IpAddr, hop_limit: u8) -> PacketBuilderStep<IpHeaders> {
        let builder = PacketBuilder::ethernet2(mac(self.guest.config.number), self.gateway);
        match (self.address(to), to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), hop_limit),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), hop_limit),
            _ => unreachable!("both are of one family"),
        }
    }

    pub(crate) fn udp(&mut self, from: u16, to: SocketAddr, payload: &[u8]) {
        let mut frame = Vec::new();
        self.to(to.ip()).udp(from, to.port()).write(&mut frame, payload).unwrap();
        self.guest.send(&frame);
    }

    /// Sends a segment with these flags: S, F, R.
    pub(crate) fn tcp(&mut self, from: u16, to: SocketAddr, numbers: (u32, Option<u32>), flags: &str, payload: &[u8]) {
        let frame = segment(self.to(to.ip()), (from, to.port()), numbers, flags, payload);
        self.guest.send(&frame);
    }

    /// Sends an echo request.
    pub(crate) fn ping(&mut self, to: IpAddr, identifier: u16, number: u16) {
        let (mut frame, packet) = (Vec::new(), self.to(to));
        if to.is_ipv4() {
            packet.icmpv4_echo_request(identifier, number).write(&mut frame, b"hello").unwrap();
        } else {
            packet.icmpv6_echo_request(identifier, number).write(&mut frame, b"hello").unwrap();
        }
        self.guest.send(&frame);
    }

    /// Sends an ICMP message.
    pub(crate) fn icmp(&mut self, to: IpAddr, (kind, code): (u8, u8), payload: &[u8]) {
        let mut frame = Vec::new();
        self.to(to).icmpv4_raw(kind, code, [0; 4]).write(&mut frame, payload).unwrap();
        self.guest.send(&frame);
    }

    /// The next packet within this time of which `is_it` is true.
    pub(crate) fn hear_within(&mut self, time: Duration, is_it: impl Fn(&Heard) -> bool) -> Option<Heard> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let heard = Heard::parse(&self.guest.receive_within(left)?.frame);
            if let Some(heard) = heard.filter(&is_it) {
                return Some(heard);
            }
        }
    }

    /// The next packet of which `is_it` is true.
    #[track_caller]
    pub(crate) fn hear(&mut self, what: &str, is_it: impl Fn(&Heard) -> bool) -> Heard {
        self.hear_within(PATIENCE, is_it).unwrap_or_else(|| panic!("not heard: {what}"))
    }

    /// The next ICMP message.
    #[track_caller]
    pub(crate) fn hear_icmp(&mut self) -> Heard {
        self.hear("an ICMP message", |heard| heard.icmp().is_some())
    }

    /// Makes a connection from its port, and returns the segment that says that it is there.
    #[track_caller]
    pub(crate) fn connect(&mut self, from: u16, to: SocketAddr, seq: u32) -> Heard {
        self.tcp(from, to, (seq, None), "S", b"");
        let answer = self.hear("an answer to a SYN", |heard| heard.is_tcp() && heard.from == to);
        assert!(answer.is_syn_ack(), "{answer:?}");
        self.tcp(from, to, (seq.wrapping_add(1), Some(answer.next())), "", b"");
        answer
    }

    /// Takes a connection that somebody makes to it, and returns the SYN.
    #[track_caller]
    pub(crate) fn accept(&mut self, port: u16, seq: u32) -> Heard {
        let syn = self.hear("a SYN", |heard| heard.is_syn() && heard.to.port() == port);
        self.tcp(port, syn.from, (seq, Some(syn.next())), "S", b"");
        self.hear("an ACK", |heard| heard.is_tcp() && heard.from == syn.from && heard.to == syn.to);
        syn
    }
}
