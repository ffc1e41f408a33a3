//! Frames made for tests, byte by byte, and a slow look at their checksums.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use crate::frame::ethernet::MacAddr;

pub(super) const BROADCAST: MacAddr = MacAddr::BROADCAST;

/// Station `n`: unicast, locally administered.
pub(super) fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, n])
}

pub(super) fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub(super) fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A frame with these tags (type and VLAN) and what is behind them.
pub(super) fn tagged(to: MacAddr, from: MacAddr, tags: &[(u16, u16)], kind: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    for (tag, vlan) in tags {
        frame.extend_from_slice(&tag.to_be_bytes());
        frame.extend_from_slice(&vlan.to_be_bytes());
    }
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(rest);
    frame
}

pub(super) fn frame(to: MacAddr, from: MacAddr, kind: u16, rest: &[u8]) -> Vec<u8> {
    tagged(to, from, &[], kind, rest)
}

pub(super) const ARP: u16 = 0x0806;
pub(super) const V4: u16 = 0x0800;
pub(super) const V6: u16 = 0x86dd;

pub(super) fn arp(operation: u16, sender: (MacAddr, &str), target: (MacAddr, &str)) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4];
    message.extend_from_slice(&operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        message.extend_from_slice(&mac.0);
        message.extend_from_slice(&v4(address).octets());
    }
    message
}

/// An IPv4 packet. `fragment` is flags and offset.
pub(super) fn packet4(from: &str, to: &str, protocol: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    assert!(header_len.is_multiple_of(4));
    let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
    packet.extend_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 7]);
    packet.extend_from_slice(&fragment.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    packet.extend_from_slice(&v4(from).octets());
    packet.extend_from_slice(&v4(to).octets());
    packet.extend_from_slice(options);
    let checksum = !slow_sum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

pub(super) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [from.to_be_bytes(), to.to_be_bytes(), ((8 + payload.len()) as u16).to_be_bytes()].concat();
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    datagram
}

/// UDP over IPv4, summed.
pub(super) fn udp4(from: (&str, u16), to: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = packet4(from.0, to.0, 17, &[], 0, &udp(from.1, to.1, payload));
    let checksum = match !transport_sum(&packet, 20) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet[26..28].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// An IPv6 packet whose payload begins with a header of type `next`.
pub(super) fn packet6(from: &str, to: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[next, 255]);
    packet.extend_from_slice(&v6(from).octets());
    packet.extend_from_slice(&v6(to).octets());
    packet.extend_from_slice(payload);
    packet
}

/// ICMPv6, summed.
pub(super) fn icmp6(from: &str, to: &str, message: &[u8]) -> Vec<u8> {
    let mut packet = packet6(from, to, 58, message);
    packet[42..44].copy_from_slice(&[0, 0]);
    let checksum = !transport_sum(&packet, 40);
    packet[42..44].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// A neighbour solicitation (135) or advertisement (136) with options.
pub(super) fn neighbour(kind: u8, target: &str, options: &[(u8, MacAddr)]) -> Vec<u8> {
    let flags = if kind == 136 { 0x60 } else { 0 };
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&v6(target).octets());
    for (kind, mac) in options {
        message.extend_from_slice(&[*kind, 1]);
        message.extend_from_slice(&mac.0);
    }
    message
}

/// A router solicitation (133) or advertisement (134) with options.
pub(super) fn router(kind: u8, options: &[(u8, MacAddr)]) -> Vec<u8> {
    let mut message = vec![0; if kind == 133 { 8 } else { 16 }];
    message[0] = kind;
    for (kind, mac) in options {
        message.extend_from_slice(&[*kind, 1]);
        message.extend_from_slice(&mac.0);
    }
    message
}

/// A DHCP message with this operation and message type.
pub(super) fn dhcp(operation: u8, kind: u8, client: MacAddr, your: &str) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..8].copy_from_slice(&[operation, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    message[16..20].copy_from_slice(&v4(your).octets());
    message[28..34].copy_from_slice(&client.0);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend_from_slice(&[53, 1, kind, 255]);
    message
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

/// The sum of pseudo-header and transport, whose header is at `at` of the packet: all ones when its checksum is right.
pub(super) fn transport_sum(packet: &[u8], at: usize) -> u16 {
    let is_v4 = packet[0] >> 4 == 4;
    let (addresses, protocol) = if is_v4 { (12..20, packet[9]) } else { (8..40, 58) };
    let mut bytes = packet[addresses].to_vec();
    bytes.extend_from_slice(&((packet.len() - at) as u32).to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, protocol]);
    bytes.extend_from_slice(&packet[at..]);
    slow_sum(&bytes)
}

/// Bytes that look like frames as far as they go: the headers of this module, and then anything put anywhere.
pub(super) fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let address4 =
        prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "192.168.56.1", "192.168.56.7", "0.0.0.0", "224.0.0.1"]);
    let address6 =
        prop::sample::select(vec!["fe80::1", "fe80::2", "fd00::1", "fd00:56::1", "2001:db8::1", "::", "ff02::1"]);
    let kinds = (0u8..8, address4.clone(), address4, address6.clone(), address6, 0u8..4, 0u8..4);
    let bodies = kinds.prop_map(|(kind, a4, b4, a6, b6, a, b)| match kind {
        0 => (ARP, arp(1 + u16::from(a) % 2, (mac(a), a4), (mac(b), b4))),
        1 => (V4, udp4((a4, 68), (b4, 67), &dhcp(1, 3, mac(a), "0.0.0.0"))),
        2 => (V4, udp4((a4, 67), (b4, 68), &dhcp(2, 5, mac(b), "10.0.0.9"))),
        3 => (V4, packet4(a4, b4, 6, &[131, 3, 4, 0], 0, &[9; 20])),
        4 => (V6, icmp6(a6, b6, &neighbour(135 + a % 2, a6, &[(1 + b % 2, mac(a))]))),
        5 => (V6, icmp6(a6, b6, &router(133 + a % 2, &[(1, mac(a)), (2, mac(b))]))),
        6 => (V6, packet6(a6, b6, 44, &[&[58, 0, 0, 1, 0, 0, 0, 7][..], &router(134, &[])].concat())),
        _ => (V6, packet6(a6, b6, 43, &[&[17, 0, 4, 0, 0, 0, 0, 0][..], &udp(547, 546, b"x")].concat())),
    });
    let to = prop_oneof![Just(BROADCAST), (0u8..4).prop_map(mac)];
    let tags = prop::collection::vec((prop_oneof![Just(0x8100u16), Just(0x88a8)], any::<u16>()), 0..=2);
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (to, (0u8..4).prop_map(mac), tags, bodies, damage, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(to, from, tags, (kind, body), damage, cut, is_cut)| {
            let mut bytes = tagged(to, from, &tags, kind, &body);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if is_cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}
