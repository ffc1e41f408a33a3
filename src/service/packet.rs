//! Frames of ours, and the sums of others'.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;

use crate::frame::checksum;
use crate::frame::ethernet::MacAddr;
use crate::frame::ip::UDP;

/// Hops that an answer may take. Nobody forwards it anyway.
const TTL: u8 = 64;
/// Hops that say that nobody has forwarded a message of neighbour discovery (RFC 4861 3.1).
pub(super) const NDP_HOP_LIMIT: u8 = 255;

/// Whether the sum of an Internet checksum and what it covers is right: all ones.
pub(super) fn is_sum_right(covered: &[u8], pseudo_header: u16) -> bool {
    checksum::sum(covered, pseudo_header) == 0xffff
}

/// The sum of the pseudo-header before a UDP datagram in IPv4 (RFC 768).
pub(super) fn udp_pseudo_header_v4(from: Ipv4Addr, to: Ipv4Addr, len: u16) -> u16 {
    let sum = checksum::sum(&[from.octets(), to.octets()].concat(), u16::from(UDP));
    checksum::add(sum, len)
}

/// The sum of the pseudo-header before an upper layer's packet in IPv6 (RFC 8200 8.1).
pub(super) fn pseudo_header_v6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, len: u16) -> u16 {
    let sum = checksum::sum(&[from.octets(), to.octets()].concat(), u16::from(protocol));
    checksum::add(sum, len)
}

/// Who sends a frame to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<A> {
    pub(super) mac: MacAddr,
    pub(super) to_mac: MacAddr,
    pub(super) ip: A,
    pub(super) to_ip: A,
}

impl Ends<Ipv4Addr> {
    /// A frame with a UDP datagram.
    pub(super) fn udp(&self, ports: (u16, u16), payload: &[u8]) -> Option<Vec<u8>> {
        let packet = PacketBuilder::ethernet2(self.mac.0, self.to_mac.0)
            .ipv4(self.ip.octets(), self.to_ip.octets(), TTL)
            .udp(ports.0, ports.1);
        let mut frame = Vec::with_capacity(packet.size(payload.len()));
        packet.write_to_vec(&mut frame, payload).ok()?;
        Some(frame)
    }

    /// A frame with an echo reply.
    pub(super) fn echo_reply(&self, id: u16, number: u16, payload: &[u8]) -> Option<Vec<u8>> {
        let packet = PacketBuilder::ethernet2(self.mac.0, self.to_mac.0)
            .ipv4(self.ip.octets(), self.to_ip.octets(), TTL)
            .icmpv4_echo_reply(id, number);
        let mut frame = Vec::with_capacity(packet.size(payload.len()));
        packet.write_to_vec(&mut frame, payload).ok()?;
        Some(frame)
    }
}

impl Ends<Ipv6Addr> {
    /// A frame with a UDP datagram.
    pub(super) fn udp(&self, ports: (u16, u16), payload: &[u8]) -> Option<Vec<u8>> {
        let packet = PacketBuilder::ethernet2(self.mac.0, self.to_mac.0)
            .ipv6(self.ip.octets(), self.to_ip.octets(), TTL)
            .udp(ports.0, ports.1);
        let mut frame = Vec::with_capacity(packet.size(payload.len()));
        packet.write_to_vec(&mut frame, payload).ok()?;
        Some(frame)
    }

    /// A frame with a message of ICMPv6: its type, the four bytes after the checksum, and the rest. Messages of
    /// neighbour discovery have the hop limit that says that they come from the link.
    pub(super) fn icmp(&self, kind: u8, fixed: [u8; 4], rest: &[u8]) -> Option<Vec<u8>> {
        let packet = PacketBuilder::ethernet2(self.mac.0, self.to_mac.0)
            .ipv6(self.ip.octets(), self.to_ip.octets(), NDP_HOP_LIMIT)
            .icmpv6_raw(kind, 0, fixed);
        let mut frame = Vec::with_capacity(packet.size(rest.len()));
        packet.write_to_vec(&mut frame, rest).ok()?;
        Some(frame)
    }
}
