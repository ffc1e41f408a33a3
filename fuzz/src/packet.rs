//! Packets of guests, with right lengths and checksums, and what must hold of those that guests are sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use guestwire::frame::checksum;
use guestwire::frame::ethernet::HEADER_LEN;
use guestwire::frame::ip::{self, HEADER_V4_LEN, ICMP, ICMPV6, TCP, UDP, Version};
use guestwire::frame::offload::{self, Offload, Offloads};
use guestwire::frame::vnet::VnetHeader;
use guestwire::ring::VNET_HEADER_READ;

/// All that a gateway may leave to its guests.
const SENDS: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: false, uso4: true, uso6: true };
const FRAGMENT: u8 = 44;

/// Who sends to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The sender's MAC address.
    pub mac: [u8; 6],
    /// The receiver's.
    pub to_mac: [u8; 6],
    /// The sender's address.
    pub from: IpAddr,
    /// The receiver's, of the same family.
    pub to: IpAddr,
    /// The packet's hop limit.
    pub hop_limit: u8,
}

impl Ends {
    fn addresses(&self) -> Vec<u8> {
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
            (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
            _ => panic!("of two families: {self:?}"),
        }
    }

    fn pseudo_sum(&self, protocol: u8, len: usize) -> u16 {
        let rest = checksum::sum(&(len as u32).to_be_bytes(), protocol.into());
        checksum::sum(&self.addresses(), rest)
    }

    fn ethernet(&self) -> Vec<u8> {
        let kind = if self.from.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        [&self.to_mac[..], &self.mac, &kind].concat()
    }

    /// A packet of this protocol. `place` is the word of IPv4 with the flags and the fragment's offset.
    fn v4(&self, protocol: u8, place: u16, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 0, 0, 1, 0, 0, self.hop_limit, protocol, 0, 0];
        header[2..4].copy_from_slice(&((HEADER_V4_LEN + payload.len()) as u16).to_be_bytes());
        header[6..8].copy_from_slice(&place.to_be_bytes());
        header.extend(self.addresses());
        let sum = !checksum::sum(&header, 0);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [self.ethernet(), header, payload.to_vec()].concat()
    }

    fn v6(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, self.hop_limit];
        header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        [self.ethernet(), header, self.addresses(), payload.to_vec()].concat()
    }

    /// A packet that is whole.
    pub fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        if self.from.is_ipv4() { self.v4(protocol, 0, payload) } else { self.v6(protocol, payload) }
    }

    /// A piece of one, `at` bytes from its beginning, which are a multiple of eight.
    pub fn fragment(&self, protocol: u8, at: usize, is_last: bool, payload: &[u8]) -> Vec<u8> {
        if self.from.is_ipv4() {
            return self.v4(protocol, (at / 8) as u16 & 0x1fff | u16::from(!is_last) << 13, payload);
        }
        let place = (at as u16 & !7 | u16::from(!is_last)).to_be_bytes();
        self.v6(FRAGMENT, &[&[protocol, 0, place[0], place[1], 0, 0, 0, 1], payload].concat())
    }

    fn with_sum(&self, protocol: u8, at: usize, mut payload: Vec<u8>) -> Vec<u8> {
        let pseudo = if protocol == ICMP { 0 } else { self.pseudo_sum(protocol, payload.len()) };
        let sum = !checksum::sum(&payload, pseudo);
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        payload
    }

    /// A datagram, without the IP header before it.
    pub fn udp(&self, (from, to): (u16, u16), payload: &[u8]) -> Vec<u8> {
        let fields = [from, to, (8 + payload.len()) as u16, 0].map(u16::to_be_bytes);
        self.with_sum(UDP, 6, [fields.as_flattened(), payload].concat())
    }

    /// A segment, likewise. `options` are a multiple of four bytes.
    pub fn tcp(&self, segment: &Segment, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let Segment { ports: (from, to), seq, ack, flags, window, .. } = *segment;
        let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
        header.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
        header.extend([((20 + options.len()) as u8 / 4) << 4, flags]);
        header.extend([window.to_be_bytes(), [0; 2], [0; 2]].concat());
        self.with_sum(TCP, 16, [&header, options, payload].concat())
    }

    /// An echo request.
    pub fn echo(&self, id: u16, payload: &[u8]) -> (u8, Vec<u8>) {
        let (protocol, kind) = if self.from.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
        let message = [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1], payload].concat();
        (protocol, self.with_sum(protocol, 2, message))
    }
}

/// What a TCP header says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// The sender's port and the receiver's.
    pub ports: (u16, u16),
    /// The number of the first byte.
    pub seq: u32,
    /// The next byte that is expected, if the flags say so.
    pub ack: u32,
    /// As they are in the header.
    pub flags: u8,
    /// As it is in the header.
    pub window: u16,
    /// Where the payload begins, in bytes from the header's first.
    pub payload: usize,
}

/// A packet that a guest was sent.
#[derive(Debug)]
pub struct Heard<'a> {
    /// The sender.
    pub from: IpAddr,
    /// The receiver.
    pub to: IpAddr,
    /// The protocol.
    pub protocol: u8,
    /// Whether it is a piece of a packet.
    pub is_fragment: bool,
    /// What follows the IP header.
    pub payload: &'a [u8],
}

impl<'a> Heard<'a> {
    /// Reads a frame for a guest, which must be one that any guest takes: lengths and checksums are right, and no
    /// packet, or segment of a super-frame, is longer than `mtu` bytes.
    ///
    /// # Panics
    /// If it is not.
    pub fn read(vnet: [u8; VNET_HEADER_READ], frame: &'a [u8], mtu: usize) -> Self {
        let vnet = VnetHeader::parse(&vnet);
        let asks = offload::validate(&vnet, frame, frame.len(), SENDS);
        let asks = asks.unwrap_or_else(|error| panic!("{error}: {vnet:?} {frame:02x?}"));
        let layers = ip::layers(frame).unwrap_or_else(|| panic!("no packet: {frame:02x?}"));
        assert_eq!(layers.ends_at(frame), Some(frame.len()), "{frame:02x?}");
        let longest = match asks {
            Offload::Segment(gso) => usize::from(gso.payload) + usize::from(gso.size),
            _ => frame.len(),
        };
        assert!(longest <= HEADER_LEN + mtu, "{longest} bytes: {vnet:?}");
        let header = &frame[layers.network..layers.transport];
        let (from, to): (IpAddr, IpAddr) = if layers.version == Version::V4 {
            assert_eq!(checksum::sum(header, 0), 0xffff, "{header:02x?}");
            let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
            (address(12).into(), address(16).into())
        } else {
            let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("16 bytes"));
            (address(8).into(), address(24).into())
        };
        let heard = Self {
            from,
            to,
            protocol: layers.protocol,
            is_fragment: layers.fragment,
            payload: &frame[layers.transport..],
        };
        if asks == Offload::None && !heard.is_fragment {
            heard.check_sum();
        }
        heard
    }

    fn check_sum(&self) {
        let ends = Ends { mac: [0; 6], to_mac: [0; 6], from: self.from, to: self.to, hop_limit: 0 };
        let pseudo = if self.protocol == ICMP { 0 } else { ends.pseudo_sum(self.protocol, self.payload.len()) };
        assert_eq!(checksum::sum(self.payload, pseudo), 0xffff, "{self:02x?}");
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// Sender's and receiver's ports, of TCP and UDP.
    pub fn ports(&self) -> (u16, u16) {
        let ports = self.number(0);
        ((ports >> 16) as u16, ports as u16)
    }

    /// The segment that it is.
    pub fn segment(&self) -> Option<Segment> {
        if self.protocol != TCP || self.is_fragment {
            return None;
        }
        let (data_offset, flags, window) = (self.payload[12] >> 4, self.payload[13], self.number(14) >> 16);
        Some(Segment {
            ports: self.ports(),
            seq: self.number(4),
            ack: self.number(8),
            flags,
            window: window as u16,
            payload: usize::from(data_offset) * 4,
        })
    }
}
