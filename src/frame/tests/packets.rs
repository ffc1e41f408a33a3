//! Frames made for tests, and a slow reading of RFC 1071, 791, 8200, 793 and 768.

use proptest::prelude::*;

use crate::frame::offload::GsoKind;
use crate::frame::vnet::{F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHeader};

/// What a test super-frame is made of.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) kind: GsoKind,
    pub(super) tags: Vec<u16>,
    /// IPv4 options, or IPv6 extension headers: (type, units of 8 bytes beyond the first).
    pub(super) ip_options: usize,
    pub(super) extensions: Vec<(u8, u8)>,
    pub(super) tcp_options: usize,
    pub(super) tcp_flags: u8,
    pub(super) sequence: u32,
    pub(super) id: u16,
    pub(super) payload: Vec<u8>,
    pub(super) gso_size: u16,
    pub(super) ecn: bool,
}

/// Where things are in a frame that `Packet::build` made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offsets {
    pub(super) network: usize,
    pub(super) transport: usize,
    pub(super) payload: usize,
}

impl Packet {
    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.kind, GsoKind::Tcp4 | GsoKind::Tcp6)
    }

    pub(super) fn is_v4(&self) -> bool {
        matches!(self.kind, GsoKind::Tcp4 | GsoKind::Udp4)
    }

    /// The frame as a driver sends it, its checksum field holding the pseudo-header's sum.
    pub(super) fn build(&self) -> (Vec<u8>, Offsets) {
        let mut frame = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
        for tag in &self.tags {
            frame.extend_from_slice(&0x8100u16.to_be_bytes());
            frame.extend_from_slice(&tag.to_be_bytes());
        }
        frame.extend_from_slice(if self.is_v4() { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        let network = frame.len();
        let protocol = if self.is_tcp() { 6 } else { 17 };
        let mut transport_header = self.transport_header();
        let transport_len = transport_header.len() + self.payload.len();
        if self.is_v4() {
            self.push_v4(&mut frame, protocol, transport_len);
        } else {
            self.push_v6(&mut frame, protocol, transport_len);
        }
        let transport = frame.len();
        let field = if self.is_tcp() { 16 } else { 6 };
        let sum = pseudo_sum(&frame, network, self.is_v4(), protocol, transport_len);
        transport_header[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(&transport_header);
        let payload = frame.len();
        frame.extend_from_slice(&self.payload);
        (frame, Offsets { network, transport, payload })
    }

    fn transport_header(&self) -> Vec<u8> {
        let mut header = vec![0x12, 0x34, 0x56, 0x78];
        if !self.is_tcp() {
            header.extend_from_slice(&((8 + self.payload.len()) as u16).to_be_bytes());
            header.extend_from_slice(&[0, 0]);
            return header;
        }
        header.extend_from_slice(&self.sequence.to_be_bytes());
        header.extend_from_slice(&[
            9,
            8,
            7,
            6,
            ((5 + self.tcp_options) as u8) << 4,
            self.tcp_flags,
            0x10,
            0,
            0,
            0,
            0,
            0,
        ]);
        header.resize(20 + 4 * self.tcp_options, 1);
        header
    }

    fn push_v4(&self, frame: &mut Vec<u8>, protocol: u8, transport_len: usize) {
        let header_len = 20 + 4 * self.ip_options;
        let total = (header_len + transport_len) as u16;
        let at = frame.len();
        frame.extend_from_slice(&[0x40 | (header_len / 4) as u8, 0]);
        frame.extend_from_slice(&total.to_be_bytes());
        frame.extend_from_slice(&self.id.to_be_bytes());
        frame.extend_from_slice(&[0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.resize(at + header_len, 1);
    }

    fn push_v6(&self, frame: &mut Vec<u8>, protocol: u8, transport_len: usize) {
        let types: Vec<u8> = self.extensions.iter().map(|e| e.0).chain([protocol]).collect();
        let extensions: usize = self.extensions.iter().map(|e| 8 * (usize::from(e.1) + 1)).sum();
        frame.extend_from_slice(&[0x60, 0, 0, 0]);
        frame.extend_from_slice(&((extensions + transport_len) as u16).to_be_bytes());
        frame.extend_from_slice(&[types[0], 64]);
        frame.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        for (i, (_, units)) in self.extensions.iter().enumerate() {
            let at = frame.len();
            frame.extend_from_slice(&[types[i + 1], *units]);
            frame.resize(at + 8 * (usize::from(*units) + 1), 0);
        }
    }

    pub(super) fn vnet(&self, offsets: Offsets) -> VnetHeader {
        let kind = match self.kind {
            GsoKind::Tcp4 => GSO_TCPV4,
            GsoKind::Tcp6 => GSO_TCPV6,
            GsoKind::Udp4 | GsoKind::Udp6 => GSO_UDP_L4,
        };
        VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: if self.ecn { kind | GSO_ECN } else { kind },
            // A lie, to be ignored.
            hdr_len: 3,
            gso_size: self.gso_size,
            csum_start: offsets.transport as u16,
            csum_offset: if self.is_tcp() { 16 } else { 6 },
        }
    }
}

/// RFC 1071 word by word.
pub(super) fn slow_sum(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

/// The pseudo-header of RFC 793 and RFC 8200 8.1, summed.
pub(super) fn pseudo_sum(frame: &[u8], network: usize, v4: bool, protocol: u8, transport_len: usize) -> u16 {
    let (from, to) = if v4 { (12, 20) } else { (8, 40) };
    let mut bytes = frame[network + from..network + to].to_vec();
    bytes.extend_from_slice(&(transport_len as u32).to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, protocol]);
    slow_sum(&bytes)
}

prop_compose! {
    pub(super) fn packet()(
        kind in prop_oneof![Just(GsoKind::Tcp4), Just(GsoKind::Tcp6), Just(GsoKind::Udp4), Just(GsoKind::Udp6)],
        tags in prop::collection::vec(any::<u16>(), 0..=2),
        ip_options in 0usize..=10,
        extensions in prop::collection::vec((prop_oneof![Just(0u8), Just(43), Just(60)], 0u8..3), 0..=3),
        tcp_options in 0usize..=10,
        tcp_flags: u8,
        sequence: u32,
        id: u16,
        len in prop_oneof![0usize..200, 0usize..10_000, 60_000usize..65_300],
        seed: u64,
        gso_size in prop_oneof![1u16..100, 500u16..1500, any::<u16>()],
        ecn: bool,
    ) -> Packet {
        let mut state = seed | 1;
        let payload = (0..len).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        }).collect();
        let tcp = matches!(kind, GsoKind::Tcp4 | GsoKind::Tcp6);
        Packet {
            kind, tags, ip_options, extensions, tcp_options, tcp_flags, sequence, id, payload,
            gso_size: gso_size.max(1), ecn: ecn && tcp,
        }
    }
}
