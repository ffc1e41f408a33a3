//! Packets as they were heard, by a guest or beyond the host.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Udp,
    Tcp {
        seq: u32,
        ack: Option<u32>,
        syn: bool,
        fin: bool,
        rst: bool,
    },
    /// With what follows the checksum.
    Icmp {
        kind: u8,
        code: u8,
        rest: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Of ICMP the ports are zero.
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) kind: Kind,
    pub(crate) payload: Vec<u8>,
    pub(crate) frame: Vec<u8>,
}

impl Heard {
    /// None for what is neither UDP nor TCP nor ICMP, for fragments, and for what hosts say to find each other.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (from, to): (IpAddr, IpAddr) = match &packet.net {
            Some(NetSlice::Ipv4(v4)) => (v4.header().source_addr().into(), v4.header().destination_addr().into()),
            Some(NetSlice::Ipv6(v6)) => (v6.header().source_addr().into(), v6.header().destination_addr().into()),
            _ => return None,
        };
        let icmp = |slice: &[u8]| {
            let rest = u32::from_be_bytes(slice[4..8].try_into().unwrap());
            (0, 0, Kind::Icmp { kind: slice[0], code: slice[1], rest }, slice[8..].to_vec())
        };
        let (from_port, to_port, kind, payload) = match packet.transport? {
            TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port(), Kind::Udp, udp.payload().to_vec()),
            TransportSlice::Tcp(tcp) => {
                let ack = tcp.ack().then(|| tcp.acknowledgment_number());
                let (seq, syn, fin, rst) = (tcp.sequence_number(), tcp.syn(), tcp.fin(), tcp.rst());
                let kind = Kind::Tcp { seq, ack, syn, fin, rst };
                (tcp.source_port(), tcp.destination_port(), kind, tcp.payload().to_vec())
            }
            TransportSlice::Icmpv4(slice) => icmp(slice.slice()),
            TransportSlice::Icmpv6(slice) if !(130..144).contains(&slice.slice()[0]) => icmp(slice.slice()),
            TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => return None,
        };
        let (from, to) = (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port));
        Some(Self { from, to, kind, payload, frame: frame.to_vec() })
    }

    /// Of TCP: the number of what would come next.
    pub(crate) fn next(&self) -> u32 {
        let Kind::Tcp { seq, syn, fin, .. } = self.kind else { panic!("{self:?}") };
        seq.wrapping_add(self.payload.len() as u32).wrapping_add(u32::from(syn) + u32::from(fin))
    }

    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.kind, Kind::Tcp { .. })
    }

    pub(crate) fn is_syn(&self) -> bool {
        matches!(self.kind, Kind::Tcp { syn: true, ack: None, rst: false, .. })
    }

    pub(crate) fn is_syn_ack(&self) -> bool {
        matches!(self.kind, Kind::Tcp { syn: true, ack: Some(_), rst: false, .. })
    }

    pub(crate) fn is_reset(&self) -> bool {
        matches!(self.kind, Kind::Tcp { rst: true, .. })
    }

    /// Of ICMP: its type and code.
    pub(crate) fn icmp(&self) -> Option<(u8, u8)> {
        if let Kind::Icmp { kind, code, .. } = self.kind { Some((kind, code)) } else { None }
    }

    /// Of an ICMP error about an IPv4 packet without options: whose that was, whom for, and what followed its header.
    pub(crate) fn quoted(&self) -> (IpAddr, IpAddr, &[u8]) {
        let quoted = &self.payload;
        assert_eq!(quoted[0], 0x45, "{self:?}");
        let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&quoted[at..at + 4]).unwrap());
        (ip(12), ip(16), &quoted[20..])
    }
}
