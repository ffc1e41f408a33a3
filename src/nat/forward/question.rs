//! Who has an address: the gateway's question, and a guest's answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::headers::Ends;
use super::super::icmp::put_checksum;
use super::super::packet::Packet;
use crate::frame::arp::{Arp, REPLY, REQUEST};
use crate::frame::checksum;
use crate::frame::ethernet::{self, MacAddr, TYPE_ARP};
use crate::frame::ip::ICMPV6;
use crate::frame::ndp::{self, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, SOURCE_LINK_LAYER};
use crate::frame::offload::Offload;

/// The hop limit that says that a packet comes from the link (RFC 4861, 7.1).
const ON_LINK: u8 = 255;
/// The group of those who may have an address, but for the last three bytes, which are the address's own (RFC 4291,
/// 2.7.1), and where frames for it go, but for the last four (RFC 2464, 7).
const SOLICITED_NODE: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0);
const GROUPS: [u8; 2] = [0x33, 0x33];

/// A frame that asks all guests who has an address. `own` is the gateway's of the same family.
pub(super) fn ask(mac: MacAddr, own: IpAddr, address: IpAddr) -> Option<Vec<u8>> {
    match (own, address) {
        (IpAddr::V4(own), IpAddr::V4(address)) => Some(ask_v4(mac, own, address)),
        (IpAddr::V6(own), IpAddr::V6(address)) => Some(ask_v6(mac, own, address)),
        _ => None,
    }
}

fn ask_v4(mac: MacAddr, own: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    let target_mac = MacAddr([0; 6]);
    let arp = Arp { operation: REQUEST, sender_mac: mac, sender: own, target_mac, target: address };
    [&[0xff; 6][..], &mac.0, &TYPE_ARP.to_be_bytes(), &arp.to_bytes()].concat()
}

fn ask_v6(mac: MacAddr, own: Ipv6Addr, address: Ipv6Addr) -> Vec<u8> {
    let mut group = SOLICITED_NODE.octets();
    group[13..].copy_from_slice(&address.octets()[13..]);
    let [.., a, b, c, d] = group;
    let to_mac = MacAddr([GROUPS[0], GROUPS[1], a, b, c, d]);
    let ends = Ends { mac, to_mac, from: own.into(), to: Ipv6Addr::from(group).into() };
    let kind = [NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    let mut message = [&kind[..], &address.octets(), &[SOURCE_LINK_LAYER, 1], &mac.0].concat();
    put_checksum(&ends, &mut message);
    let mut frame = vec![0; ends.len()];
    ends.emit(ICMPV6, ON_LINK, message.len(), &mut frame);
    frame.extend_from_slice(&message);
    frame
}

/// The address that the sender of a frame of `len` bytes, which begins with `head`, says it has, if the frame is an
/// answer.
pub(super) fn answer(head: &[u8], len: usize) -> Option<IpAddr> {
    if ethernet::be16(head, 12)? == TYPE_ARP {
        let arp = Arp::parse(head, ethernet::HEADER_LEN)?;
        let is_answer = arp.operation == REPLY && Some(arp.sender_mac) == MacAddr::source_of(head);
        return is_answer.then_some(arp.sender.into());
    }
    let packet = Packet::parse(head, len, &Offload::None)?;
    if packet.protocol != ICMPV6 || packet.is_fragment || packet.hop_limit != ON_LINK {
        return None;
    }
    let message = head.get(packet.transport..packet.end)?;
    let ends = Ends { mac: packet.mac, to_mac: packet.mac, from: packet.from, to: packet.to };
    let is_right = packet.from.is_ipv6() && checksum::sum(message, ends.pseudo_sum(ICMPV6, message.len())) == 0xffff;
    let is_answer = is_right && message.starts_with(&[NEIGHBOUR_ADVERTISEMENT, 0]);
    is_answer.then(|| ndp::target(message)).flatten().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const GUEST: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 7]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn another_program_reads_the_question() {
        let frame = ask(OWN, ip("10.0.2.1"), ip("10.0.2.7")).unwrap();
        let Some(NetSlice::Arp(arp)) = SlicedPacket::from_ethernet(&frame).unwrap().net else { panic!() };
        assert_eq!((arp.operation().0, arp.sender_protocol_addr()), (1, &[10, 0, 2, 1][..]));
        assert_eq!((arp.target_protocol_addr(), arp.sender_hw_addr()), (&[10, 0, 2, 7][..], &OWN.0[..]));
        let frame = ask(OWN, ip("fd00::1"), ip("fd00::ab:cdef")).unwrap();
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0xab, 0xcd, 0xef]);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(v6)) = &packet.net else { panic!() };
        let (from, to) = (v6.header().source_addr(), v6.header().destination_addr());
        assert_eq!((IpAddr::V6(to), v6.header().hop_limit()), (ip("ff02::1:ffab:cdef"), 255));
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!() };
        assert!(matches!(icmp.icmp_type(), Icmpv6Type::NeighborSolicitation));
        assert!(icmp.is_checksum_valid(from.octets(), to.octets()));
        assert_eq!(icmp.payload(), [&ip_octets("fd00::ab:cdef")[..], &[1, 1], &OWN.0].concat());
        assert_eq!(ask(OWN, ip("fd00::1"), ip("10.0.2.7")), None);
    }

    fn ip_octets(text: &str) -> [u8; 16] {
        let IpAddr::V6(address) = ip(text) else { panic!() };
        address.octets()
    }

    fn reply(operation: u16, sender_mac: MacAddr) -> Vec<u8> {
        let [sender, target] = ["10.0.2.7", "10.0.2.1"].map(|text| text.parse().unwrap());
        let arp = Arp { operation, sender_mac, sender, target_mac: OWN, target };
        [&OWN.0[..], &GUEST.0, &[8, 6], &arp.to_bytes()].concat()
    }

    fn advertisement(hop_limit: u8) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2(GUEST.0, OWN.0);
        let ips = (ip_octets("fe80::7"), ip_octets("fd00::1"));
        let header =
            etherparse::icmpv6::NeighborAdvertisementHeader { router: false, solicited: true, r#override: true };
        let builder = builder.ipv6(ips.0, ips.1, hop_limit).icmpv6(Icmpv6Type::NeighborAdvertisement(header));
        let mut frame = Vec::new();
        builder.write(&mut frame, &ip_octets("fd00::7")).unwrap();
        frame
    }

    #[test]
    fn only_an_answer_is_one() {
        let of = |frame: &[u8]| answer(frame, frame.len());
        assert_eq!(of(&reply(REPLY, GUEST)), Some(ip("10.0.2.7")));
        assert_eq!([of(&reply(REQUEST, GUEST)), of(&reply(REPLY, OWN))], [None; 2]);
        assert_eq!(of(&advertisement(255)), Some(ip("fd00::7")));
        assert_eq!(of(&advertisement(254)), None);
        for at in [54, 55, 60, 70] {
            let mut wrong = advertisement(255);
            wrong[at] ^= 1;
            assert_eq!(of(&wrong), None, "{at}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_does_harm(head in prop::collection::vec(any::<u8>(), 0..100), more in 0_usize..100) {
            answer(&head, head.len() + more);
        }
    }
}
