//! MAC-NAT: what leaves shows the NIC's address alone, and what comes finds its guest.

use ipnet::IpNet;
use proptest::prelude::*;

use super::packets::*;
use crate::frame::checksum::{self, PartialChecksum};
use crate::frame::ethernet::MacAddr;
use crate::metrics::Counter::{self, *};
use crate::switch::PortId;
use crate::switch::mac_nat::{ADDRESSES_PER_PORT_MAX, Destination, HostAddresses, MacNat};

const NIC: MacAddr = MacAddr([0x8c, 0x16, 0x45, 0xaa, 0xbb, 0xcc]);
const ROUTER: MacAddr = MacAddr([0x00, 0x1a, 0x2b, 0, 0, 1]);
const A: PortId = PortId(1);
const B: PortId = PortId(2);
const HOST: &str = "192.168.1.2";
const A4: &str = "192.168.1.11";
const B4: &str = "192.168.1.12";
const LAN4: &str = "192.168.1.1";
const A6: &str = "fe80::a";
const LAN6: &str = "fe80::1";

fn nat() -> MacNat {
    let mut nat = MacNat::new(NIC);
    nat.set_host_addresses(host(&["192.168.1.2/24", "fe80::2/64"]));
    nat
}

/// A host with these addresses on the NIC, and one elsewhere.
fn host(addresses: &[&str]) -> HostAddresses {
    let on_link: Vec<IpNet> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let own = on_link.iter().map(IpNet::addr).chain([v4("10.0.0.1").into()]).collect();
    HostAddresses { own, on_link }
}

/// What becomes of a frame that guest A (station 1) or B (station 2) sends.
fn send(nat: &mut MacNat, from: PortId, kind: u16, rest: &[u8], now_s: u32) -> Result<Vec<u8>, Counter> {
    let mut bytes = frame(BROADCAST, mac(from.0 as u8), kind, rest);
    nat.outgoing(&mut bytes, from, None, now_s).map(|()| bytes)
}

/// What becomes of a frame that comes to the NIC.
fn receive(nat: &mut MacNat, to: MacAddr, kind: u16, rest: &[u8], now_s: u32) -> (Destination, Vec<u8>) {
    let mut bytes = frame(to, ROUTER, kind, rest);
    let destination = nat.incoming(&mut bytes, now_s).unwrap();
    (destination, bytes)
}

/// A has A4 and A6, B has B4.
fn two_guests() -> MacNat {
    let mut nat = nat();
    send(&mut nat, A, V4, &packet4(A4, LAN4, 6, &[], 0, &[9; 20]), 0).unwrap();
    send(&mut nat, A, V6, &packet6(A6, LAN6, 6, &[9; 20]), 0).unwrap();
    send(&mut nat, B, V4, &packet4(B4, LAN4, 6, &[], 0, &[9; 20]), 0).unwrap();
    nat
}

#[test]
fn ipv4_goes_out_as_the_nics_and_comes_back_to_the_guest() {
    let mut nat = nat();
    let packet = packet4(A4, LAN4, 6, &[], 0, &[9; 20]);
    assert_eq!(send(&mut nat, A, V4, &packet, 0), Ok(frame(BROADCAST, NIC, V4, &packet)));
    let answer = packet4(LAN4, A4, 6, &[], 0, &[8; 20]);
    let arrived = receive(&mut nat, NIC, V4, &answer, 10);
    assert_eq!(arrived, (Destination::Guest(A), frame(mac(1), ROUTER, V4, &answer)));
    let fragment = packet4(LAN4, A4, 17, &[], 0x00b9, &[8; 20]);
    assert_eq!(receive(&mut nat, NIC, V4, &fragment, 10).0, Destination::Guest(A));
    for (to, address) in [(NIC, HOST), (NIC, B4), (mac(1), A4)] {
        let packet = packet4(LAN4, address, 6, &[], 0, &[8; 20]);
        assert_eq!(receive(&mut nat, to, V4, &packet, 10), (Destination::NotOurs, frame(to, ROUTER, V4, &packet)));
    }
    nat.remove_port(A);
    assert_eq!(receive(&mut nat, NIC, V4, &answer, 10).0, Destination::NotOurs);
}

#[test]
fn arp_is_translated_both_ways() {
    let mut nat = nat();
    // The guest asks for the router.
    let asked = send(&mut nat, A, ARP, &arp(1, (mac(1), A4), (mac(0), LAN4)), 0);
    assert_eq!(asked, Ok(frame(BROADCAST, NIC, ARP, &arp(1, (NIC, A4), (mac(0), LAN4)))));
    let told = receive(&mut nat, NIC, ARP, &arp(2, (ROUTER, LAN4), (NIC, A4)), 0);
    assert_eq!(told, (Destination::Guest(A), frame(mac(1), ROUTER, ARP, &arp(2, (ROUTER, LAN4), (mac(1), A4)))));
    // The router asks for the guest, of everyone; and then whether it is still there, of the NIC alone (RFC 1122).
    let request = arp(1, (ROUTER, LAN4), (MacAddr([0; 6]), A4));
    assert_eq!(
        receive(&mut nat, BROADCAST, ARP, &request, 0),
        (Destination::Group, frame(BROADCAST, ROUTER, ARP, &request))
    );
    let poll = receive(&mut nat, NIC, ARP, &arp(1, (ROUTER, LAN4), (NIC, A4)), 0);
    assert_eq!(poll, (Destination::Guest(A), frame(mac(1), ROUTER, ARP, &arp(1, (ROUTER, LAN4), (mac(1), A4)))));
    let answered = send(&mut nat, A, ARP, &arp(2, (mac(1), A4), (ROUTER, LAN4)), 0);
    assert_eq!(answered, Ok(frame(BROADCAST, NIC, ARP, &arp(2, (NIC, A4), (ROUTER, LAN4)))));
    // The host's own conversation.
    assert_eq!(receive(&mut nat, NIC, ARP, &arp(2, (ROUTER, LAN4), (NIC, HOST)), 0).0, Destination::NotOurs);
}

#[test]
fn gratuitous_arp_announces_the_nic() {
    for (operation, target) in [(1, mac(0)), (2, mac(1)), (2, BROADCAST)] {
        let mut nat = nat();
        let announced = send(&mut nat, A, ARP, &arp(operation, (mac(1), A4), (target, A4)), 0);
        let target = if target == mac(1) { NIC } else { target };
        assert_eq!(announced, Ok(frame(BROADCAST, NIC, ARP, &arp(operation, (NIC, A4), (target, A4)))));
        let packet = packet4(LAN4, A4, 6, &[], 0, &[]);
        assert_eq!(receive(&mut nat, NIC, V4, &packet, 0).0, Destination::Guest(A), "which teaches who it is");
    }
}

#[test]
fn an_arp_probe_claims_nothing_and_its_answer_is_heard() {
    let mut nat = two_guests();
    // B seeks A's address; A answers on the network itself. And B seeks one that somebody on the LAN has.
    for sought in [A4, LAN4] {
        let probe = send(&mut nat, B, ARP, &arp(1, (mac(2), "0.0.0.0"), (mac(0), sought)), 1);
        assert_eq!(probe, Ok(frame(BROADCAST, NIC, ARP, &arp(1, (NIC, "0.0.0.0"), (mac(0), sought)))));
    }
    assert_eq!(receive(&mut nat, NIC, V4, &packet4(LAN4, A4, 6, &[], 0, &[]), 1).0, Destination::Guest(A));
    let conflict = arp(2, (ROUTER, LAN4), (NIC, "0.0.0.0"));
    let heard = receive(&mut nat, NIC, ARP, &conflict, 1);
    assert_eq!(heard, (Destination::Group, frame(BROADCAST, ROUTER, ARP, &conflict)));
}

#[test]
fn neighbour_discovery_is_translated_and_its_checksum_follows() {
    for (from, message) in [
        (A6, neighbour(135, LAN6, &[(1, mac(1))])),
        (A6, neighbour(136, A6, &[(2, mac(1))])),
        (A6, neighbour(136, A6, &[(14, mac(1)), (2, mac(1))])),
        (A6, router(133, &[(1, mac(1))])),
        (A6, router(134, &[(1, mac(1)), (5, mac(0))])),
        ("::", neighbour(135, A6, &[])),
        ("::", router(133, &[])),
    ] {
        let mut nat = nat();
        let out = send(&mut nat, A, V6, &icmp6(from, "ff02::1", &message), 0).unwrap();
        let mut expected = message.clone();
        let mut at = message.len() - message.len() % 8;
        let options = crate::frame::ndp::options_start(message[0]).unwrap();
        while at > options {
            at -= 8;
            if matches!(expected[at], 1 | 2) {
                expected[at + 2..at + 8].copy_from_slice(&NIC.0);
            }
        }
        assert_eq!(out, frame(BROADCAST, NIC, V6, &icmp6(from, "ff02::1", &expected)), "{message:?}");
    }
}

#[test]
fn a_neighbour_is_found_and_kept() {
    let mut nat = two_guests();
    // Resolution: everyone is asked, the answer is for the NIC.
    let solicit = icmp6(LAN6, "ff02::1:ff00:a", &neighbour(135, A6, &[(1, ROUTER)]));
    let group = MacAddr([0x33, 0x33, 0xff, 0, 0, 0xa]);
    assert_eq!(receive(&mut nat, group, V6, &solicit, 0), (Destination::Group, frame(group, ROUTER, V6, &solicit)));
    // Unreachability detection (RFC 4861 7.3): the NIC is asked, the guest hears it and answers.
    let probe = icmp6(LAN6, A6, &neighbour(135, A6, &[(1, ROUTER)]));
    assert_eq!(receive(&mut nat, NIC, V6, &probe, 0), (Destination::Guest(A), frame(mac(1), ROUTER, V6, &probe)));
    // And the other way around: the LAN's own options stay.
    let confirm = icmp6(LAN6, A6, &neighbour(136, LAN6, &[(2, ROUTER)]));
    assert_eq!(receive(&mut nat, NIC, V6, &confirm, 0), (Destination::Guest(A), frame(mac(1), ROUTER, V6, &confirm)));
    assert_eq!(receive(&mut nat, NIC, V6, &icmp6(LAN6, "fe80::2", &router(134, &[])), 0).0, Destination::NotOurs);
}

#[test]
fn duplicate_address_detection_claims_nothing() {
    let mut nat = two_guests();
    // B seeks A's address. A answers on the network itself, and keeps its traffic.
    let detect = icmp6("::", "ff02::1:ff00:a", &neighbour(135, A6, &[]));
    assert_eq!(send(&mut nat, B, V6, &detect, 1), Ok(frame(BROADCAST, NIC, V6, &detect)));
    assert_eq!(receive(&mut nat, NIC, V6, &packet6(LAN6, A6, 6, &[]), 1).0, Destination::Guest(A));
    // The LAN defends an address of its own: to all nodes (RFC 4861 7.2.4).
    let defence = icmp6(LAN6, "ff02::1", &neighbour(136, LAN6, &[(2, ROUTER)]));
    let all = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(receive(&mut nat, all, V6, &defence, 1), (Destination::Group, frame(all, ROUTER, V6, &defence)));
    // What the access point sends back of ours is not taken for a second station's.
    let mut own = frame(group_of_a(), NIC, V6, &detect);
    assert_eq!(nat.incoming(&mut own, 1), Ok(Destination::NotOurs));
}

fn group_of_a() -> MacAddr {
    MacAddr([0x33, 0x33, 0xff, 0, 0, 0xa])
}

#[test]
fn the_first_of_two_keeps_an_address_until_it_is_silent() {
    let mut nat = two_guests();
    let use_it =
        |nat: &mut MacNat, from, now_s| send(nat, from, V4, &packet4(A4, LAN4, 6, &[], 0, &[]), now_s).map(|_| ());
    let advertise = |nat: &mut MacNat, from: PortId, now_s| {
        let advertisement = icmp6("fe80::b", "ff02::1", &neighbour(136, A6, &[(2, mac(from.0 as u8))]));
        send(nat, from, V6, &advertisement, now_s).map(|_| ())
    };
    let announce = arp(1, (mac(2), A4), (mac(0), A4));
    assert_eq!(use_it(&mut nat, B, 30), Err(DropTxAddressTaken));
    assert_eq!(send(&mut nat, B, ARP, &announce, 30), Err(DropTxAddressTaken));
    assert_eq!(advertise(&mut nat, B, 30), Err(DropTxAddressTaken));
    assert_eq!(use_it(&mut nat, A, 30), Ok(()));
    assert_eq!(use_it(&mut nat, B, 60), Err(DropTxAddressTaken));
    assert_eq!(use_it(&mut nat, B, 61), Ok(()));
    assert_eq!(advertise(&mut nat, B, 61), Ok(()));
    assert_eq!(receive(&mut nat, NIC, V4, &packet4(LAN4, A4, 6, &[], 0, &[]), 61).0, Destination::Guest(B));
    for host in [HOST, "fe80::2"] {
        let packet =
            if host == HOST { (V4, packet4(HOST, LAN4, 6, &[], 0, &[])) } else { (V6, packet6(host, LAN6, 6, &[])) };
        assert_eq!(send(&mut nat, A, packet.0, &packet.1, 9999), Err(DropTxAddressTaken), "the host's own");
    }
}

#[test]
fn one_guest_cannot_push_out_anothers_addresses() {
    let mut nat = two_guests();
    nat.set_host_addresses(HostAddresses::default());
    for i in 0..1000 * ADDRESSES_PER_PORT_MAX as u32 {
        let [_, b, c, d] = i.to_be_bytes();
        send(&mut nat, B, V4, &packet4(&format!("10.{b}.{c}.{d}"), LAN4, 6, &[], 0, &[]), 1).unwrap();
    }
    let known = |nat: &mut MacNat, address: &str| receive(nat, NIC, V4, &packet4(LAN4, address, 6, &[], 0, &[]), 2).0;
    assert_eq!(known(&mut nat, A4), Destination::Guest(A));
    assert_eq!(known(&mut nat, B4), Destination::NotOurs, "its own went");
    assert_eq!(known(&mut nat, "10.0.124.255"), Destination::Guest(B), "the last one is there");
}

#[test]
fn a_dhcp_request_asks_for_broadcast_and_stays_good() {
    let request = |flags: u8| {
        let mut message = dhcp(1, 1, mac(1), "0.0.0.0");
        message[10] = flags;
        udp4(("0.0.0.0", 68), ("255.255.255.255", 67), &message)
    };
    for flags in [0, 0x80, 0x7f] {
        let out = send(&mut nat(), A, V4, &request(flags), 0);
        assert_eq!(out, Ok(frame(BROADCAST, NIC, V4, &request(flags | 0x80))), "{flags:#x}");
    }
    let mut unsummed = request(0);
    unsummed[26..28].copy_from_slice(&[0, 0]);
    let out = send(&mut nat(), A, V4, &unsummed, 0).unwrap();
    assert_eq!((&out[14 + 26..14 + 28], out[14 + 28 + 10]), (&[0, 0][..], 0x80), "no checksum, as before");
    // Left to be completed: completed later, it is right.
    let mut partial = frame(BROADCAST, mac(1), V4, &request(0));
    let mut unsummed = request(0);
    unsummed[26..28].copy_from_slice(&[0, 0]);
    // The whole without the datagram.
    let pseudo = checksum::add(transport_sum(&unsummed, 20), !slow_sum(&unsummed[20..]));
    partial[40..42].copy_from_slice(&pseudo.to_be_bytes());
    let left = PartialChecksum { start: 34, offset: 6 };
    nat().outgoing(&mut partial, A, Some(left), 0).unwrap();
    checksum::complete(&mut partial, left);
    assert_eq!(transport_sum(&partial[14..], 20), 0xffff);
    // For another, or through a relay: the answer could be taken for the other's.
    let other = udp4(("0.0.0.0", 68), ("255.255.255.255", 67), &dhcp(1, 1, mac(2), "0.0.0.0"));
    assert_eq!(send(&mut nat(), A, V4, &other, 0), Err(DropTxBadPacket));
}

#[test]
fn a_lease_is_learned_before_the_guest_uses_it() {
    let mut nat = nat();
    let discover = udp4(("0.0.0.0", 68), ("255.255.255.255", 67), &dhcp(1, 3, mac(1), "0.0.0.0"));
    send(&mut nat, A, V4, &discover, 0).unwrap();
    let answer = |kind, client| udp4((LAN4, 67), ("255.255.255.255", 68), &dhcp(2, kind, client, A4));
    let known = |nat: &mut MacNat| receive(nat, NIC, V4, &packet4(LAN4, A4, 6, &[], 0, &[]), 1).0;
    for (kind, client) in [(2, mac(1)), (6, mac(1)), (5, mac(9))] {
        assert_eq!(receive(&mut nat, BROADCAST, V4, &answer(kind, client), 1).0, Destination::Group);
        assert_eq!(known(&mut nat), Destination::NotOurs, "an offer, a refusal, a stranger's");
    }
    let ack = answer(5, mac(1));
    assert_eq!(receive(&mut nat, BROADCAST, V4, &ack, 1), (Destination::Group, frame(BROADCAST, ROUTER, V4, &ack)));
    assert_eq!(known(&mut nat), Destination::Guest(A));
    // A server that sends to the client's address nevertheless.
    let offer = udp4((LAN4, 67), ("192.168.1.99", 68), &dhcp(2, 2, mac(1), "192.168.1.99"));
    assert_eq!(receive(&mut nat, NIC, V4, &offer, 1), (Destination::Guest(A), frame(mac(1), ROUTER, V4, &offer)));
    let host = udp4((LAN4, 67), (HOST, 68), &dhcp(2, 5, NIC, HOST));
    assert_eq!(receive(&mut nat, NIC, V4, &host, 1).0, Destination::NotOurs);
}

#[test]
fn groups_that_were_sent_as_unicast_are_groups_again() {
    let mut nat = two_guests();
    for (kind, packet, group) in [
        (V4, packet4(LAN4, "239.255.255.250", 17, &[], 0, &[]), MacAddr([1, 0, 0x5e, 0x7f, 0xff, 0xfa])),
        (V4, packet4(LAN4, "255.255.255.255", 17, &[], 0, &[]), BROADCAST),
        (V6, packet6(LAN6, "ff02::1:2", 17, &[]), MacAddr([0x33, 0x33, 0, 1, 0, 2])),
    ] {
        assert_eq!(receive(&mut nat, NIC, kind, &packet, 0), (Destination::Group, frame(group, ROUTER, kind, &packet)));
    }
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let packet = packet4(A4, LAN4, 6, &[], 0, &[]);
    let out = |mut bytes: Vec<u8>| nat().outgoing(&mut bytes, A, None, 0);
    assert_eq!(out(tagged(BROADCAST, mac(1), &[(0x8100, 5)], V4, &packet)), Err(DropTxTagged));
    assert_eq!(out(frame(BROADCAST, mac(1), 0x888e, &[1, 1, 0, 0])), Err(DropTxNotIp), "EAPOL");
    assert_eq!(out(frame(BROADCAST, NIC, V4, &packet)), Err(DropTxSpoofedMac));
    assert_eq!(out(frame(BROADCAST, BROADCAST, V4, &packet)), Err(DropTxBadSource));
    assert_eq!(out(vec![0; 13]), Err(DropTxRunt));
    assert_eq!(out(frame(BROADCAST, mac(1), V4, &packet[..19])), Err(DropTxBadPacket));
    assert_eq!(out(frame(BROADCAST, mac(1), V4, &packet4("127.0.0.1", LAN4, 6, &[], 0, &[]))), Err(DropTxBadPacket));
    assert_eq!(out(frame(BROADCAST, mac(1), ARP, &[0; 27])), Err(DropTxBadPacket));
    let redirect = icmp6(A6, "ff02::1", &[&[137; 40][..], &[2, 1, 1, 2, 3, 4, 5, 6]].concat());
    assert_eq!(out(frame(BROADCAST, mac(1), V6, &redirect)), Err(DropTxRogueServer));
    let hidden =
        packet6(A6, "ff02::1", 44, &[&[58, 0, 0, 1, 0, 0, 0, 7][..], &neighbour(136, A6, &[(2, mac(1))])].concat());
    assert_eq!(out(frame(BROADCAST, mac(1), V6, &hidden)), Err(DropTxBadPacket), "in a fragment");
    let mut odd = neighbour(136, A6, &[(2, mac(1))]);
    odd[25] = 2;
    odd.extend_from_slice(&[0; 8]);
    assert_eq!(out(frame(BROADCAST, mac(1), V6, &icmp6(A6, "ff02::1", &odd))), Err(DropTxBadPacket), "a long address");
    let mut in_tagged = tagged(NIC, ROUTER, &[(0x8100, 5)], V4, &packet);
    assert_eq!(nat().incoming(&mut in_tagged, 0), Err(DropTxTagged));
    assert_eq!(nat().incoming(&mut [0; 13], 0), Err(DropTxRunt));
}

/// Whether a checksum of ICMPv6 or UDP is right; `None` without one.
fn is_summed(bytes: &[u8]) -> Option<bool> {
    let packet = bytes.get(14..)?;
    match ([bytes[12], bytes[13]], packet.get(6), packet.get(9)) {
        ([0x86, 0xdd], Some(58), _) if packet.len() > 44 => Some(transport_sum(packet, 40) == 0xffff),
        ([8, 0], _, Some(17)) if packet.len() > 28 && packet[0] == 0x45 && packet[26..28] != [0, 0] => {
            Some(transport_sum(packet, 20) == 0xffff)
        }
        _ => None,
    }
}

/// A guest's MAC address where a neighbour would take it from: ARP's addresses, and options of neighbour discovery.
fn shows_guest(bytes: &[u8]) -> bool {
    let is_guest = |bytes: &[u8]| bytes == mac(1).0;
    let rest = &bytes[14..];
    match bytes[12..14] {
        [8, 6] => is_guest(&rest[8..14]) || is_guest(&rest[18..24]),
        [0x86, 0xdd] if rest[6] == 58 && (133..=136).contains(&rest[40]) => {
            let options = &rest[40 + crate::frame::ndp::options_start(rest[40]).unwrap()..];
            options.chunks(8).any(|option| matches!(option[0], 1 | 2) && option.get(2..8).is_some_and(is_guest))
        }
        _ => is_guest(&bytes[6..12]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_leaves_shows_no_guest_and_is_as_well_summed_as_before(bytes in any_frame()) {
        let mut out = bytes.clone();
        if bytes.len() >= 14 {
            out[6..12].copy_from_slice(&mac(1).0);
        }
        let before = is_summed(&out);
        if nat().outgoing(&mut out, A, None, 0).is_ok() {
            prop_assert_eq!(MacAddr::source_of(&out), Some(NIC));
            prop_assert!(!shows_guest(&out));
            prop_assert_eq!(is_summed(&out), before);
            prop_assert_eq!(out.len(), bytes.len());
        }
    }

    /// What answers a guest's frame comes to that guest, and to no other.
    #[test]
    fn an_answer_comes_to_its_guest(
        last in 20u8..250,
        first: bool,
        is_v6: bool,
        payload in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut nat = two_guests();
        let (guest, own) = if first { (A, mac(1)) } else { (B, mac(2)) };
        let (kind, ask, answer) = if is_v6 {
            let own = format!("2001:db8::{last:x}");
            (V6, packet6(&own, LAN6, 6, &payload), packet6(LAN6, &own, 6, &payload))
        } else {
            let own = format!("192.168.1.{last}");
            (V4, packet4(&own, LAN4, 6, &[], 0, &payload), packet4(LAN4, &own, 6, &[], 0, &payload))
        };
        let out = send(&mut nat, guest, kind, &ask, 5).unwrap();
        let arrived = receive(&mut nat, MacAddr::source_of(&out).unwrap(), kind, &answer, 6);
        prop_assert_eq!(arrived, (Destination::Guest(guest), frame(own, ROUTER, kind, &answer)));
    }

    #[test]
    fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), now_s: u32) {
        let mut nat = two_guests();
        let _ = nat.outgoing(&mut bytes, A, None, now_s);
        if bytes.len() > 6 {
            bytes[..6].copy_from_slice(&NIC.0);
        }
        let _ = nat.incoming(&mut bytes, now_s);
    }
}

#[test]
fn an_address_that_the_host_gets_is_the_hosts_whoever_used_it_before() {
    let mut nat = two_guests();
    nat.set_host_addresses(host(&["192.168.1.11/24", "fe80::a/64"]));
    let answer = packet4(LAN4, A4, 6, &[], 0, &[8; 20]);
    assert_eq!(receive(&mut nat, NIC, V4, &answer, 10).0, Destination::NotOurs);
    assert_eq!(receive(&mut nat, NIC, V6, &packet6(LAN6, A6, 6, &[8; 20]), 10).0, Destination::NotOurs);
    let packet = packet4(A4, LAN4, 6, &[], 0, &[9; 20]);
    assert_eq!(send(&mut nat, A, V4, &packet, 10), Err(DropTxAddressTaken));
}

#[test]
fn what_is_not_on_the_link_is_no_guests_unless_a_server_gave_it() {
    let (mut nat, far) = (nat(), "172.17.0.5");
    let packet = packet4(far, LAN4, 6, &[], 0, &[9; 20]);
    assert_eq!(send(&mut nat, A, V4, &packet, 0), Err(DropTxForeignSource));
    // What the host passes on to whoever is behind it.
    let routed = packet4(LAN4, far, 6, &[], 0, &[8; 20]);
    assert_eq!(receive(&mut nat, NIC, V4, &routed, 1).0, Destination::NotOurs);
    assert!(send(&mut nat, A, V4, &packet4("169.254.7.7", LAN4, 6, &[], 0, &[9; 20]), 1).is_ok());
    // The host has no prefix of IPv6 there, so that nothing is known of what is on the link.
    assert!(send(&mut nat, A, V6, &packet6("2001:db8::5", LAN6, 6, &[9; 20]), 1).is_ok());
    nat.set_host_addresses(host(&["192.168.1.2/24", "2001:db8:1::2/64"]));
    let other = packet6("2001:db8:2::5", LAN6, 6, &[9; 20]);
    assert_eq!(send(&mut nat, A, V6, &other, 2), Err(DropTxForeignSource));
    assert!(send(&mut nat, A, V6, &packet6("2001:db8:1::5", LAN6, 6, &[9; 20]), 2).is_ok());
    let ack = udp4((LAN4, 67), ("255.255.255.255", 68), &dhcp(2, 5, mac(1), far));
    receive(&mut nat, BROADCAST, V4, &ack, 3);
    assert_eq!(receive(&mut nat, NIC, V4, &routed, 4).0, Destination::Guest(A));
    assert!(send(&mut nat, A, V4, &packet, 5).is_ok());
    assert_eq!(send(&mut nat, B, V4, &packet, 5), Err(DropTxForeignSource));
}

#[test]
fn what_was_used_before_the_host_had_its_prefix_is_judged_anew() {
    let (mut nat, far) = (nat(), "172.17.0.5");
    // On an interface that has just come there are no addresses yet; those of others say nothing of its link.
    nat.set_host_addresses(host(&[]));
    let packet = packet4(far, LAN4, 6, &[], 0, &[9; 20]);
    assert!(send(&mut nat, A, V4, &packet, 0).is_ok());
    nat.set_host_addresses(host(&["192.168.1.2/24"]));
    let routed = packet4(LAN4, far, 6, &[], 0, &[8; 20]);
    assert_eq!(receive(&mut nat, NIC, V4, &routed, 1).0, Destination::NotOurs);
    assert_eq!(send(&mut nat, A, V4, &packet, 1), Err(DropTxForeignSource));
    // A host whose own address was given it alone does not know what else is on the link.
    nat.set_host_addresses(host(&["192.168.1.2/32"]));
    assert!(send(&mut nat, A, V4, &packet, 2).is_ok());
}
