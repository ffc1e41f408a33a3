//! Port security: what a guest may send, and the ways around it that it tries.

use std::sync::Arc;

use proptest::prelude::*;

use super::packets::*;
use crate::frame::FRAME_HEAD_MAX;
use crate::frame::ethernet::MacAddr;
use crate::metrics::Counter::{self, *};
use crate::switch::guard::{ADDRESSES_PER_PORT_MAX, CLAIMS_PER_PORT_MAX, Claims, Guard, Settings};

const ALL: Settings = Settings { mac: None, lock_mac: true, lock_ip: true, refuse_servers: true };
const OWN: &str = "10.0.0.1";
const OTHER: &str = "10.0.0.2";

fn guard_with(settings: Settings, claims: &Arc<Claims>) -> Guard {
    let mut guard = Guard::new(settings, claims.clone());
    guard.set_addresses(&[v4(OWN)]);
    guard.set_prefixes(&["fd00::/64".parse().unwrap()]);
    guard
}

fn guard(settings: Settings) -> Guard {
    guard_with(settings, &Arc::default())
}

/// From station 1 to everyone.
fn from_1(kind: u16, rest: &[u8]) -> Vec<u8> {
    frame(BROADCAST, mac(1), kind, rest)
}

/// The verdict on a frame by the bytes of it that a worker copies.
fn check(guard: &mut Guard, bytes: &[u8]) -> Result<(), Counter> {
    guard.check(&bytes[..bytes.len().min(FRAME_HEAD_MAX)])
}

fn judge(kind: u16, rest: &[u8]) -> Result<(), Counter> {
    check(&mut guard(ALL), &from_1(kind, rest))
}

#[test]
fn the_first_station_or_the_declared_one_is_the_only_one() {
    let mut locked = guard(Settings { lock_mac: true, ..Settings::default() });
    assert_eq!(locked.check(&frame(mac(9), BROADCAST, 0x9999, &[])), Err(DropTxBadSource));
    assert_eq!(locked.check(&frame(mac(9), MacAddr([0; 6]), 0x9999, &[])), Err(DropTxBadSource));
    assert_eq!((locked.check(&[0; 13]), locked.mac()), (Err(DropTxRunt), None), "these lock nothing");
    assert_eq!(locked.check(&frame(mac(9), mac(1), 0x9999, &[])), Ok(()));
    assert_eq!(locked.check(&frame(mac(9), mac(2), 0x9999, &[])), Err(DropTxSpoofedMac));
    assert_eq!((locked.check(&frame(mac(9), mac(1), 0x9999, &[])), locked.mac()), (Ok(()), Some(mac(1))));
    assert!(!locked.looks_beyond_ethernet());
    let mut declared = guard(Settings { mac: Some(mac(7)), ..ALL });
    assert_eq!(declared.check(&frame(mac(9), mac(1), 0x9999, &[])), Err(DropTxSpoofedMac));
    assert_eq!(declared.check(&frame(mac(9), mac(7), 0x9999, &[])), Ok(()));
    let mut open = guard(Settings { mac: Some(mac(7)), lock_mac: false, ..ALL });
    assert_eq!((open.check(&frame(mac(9), mac(1), 0x9999, &[])), open.mac()), (Ok(()), None));
}

#[test]
fn an_ipv4_source_is_the_ports_own_even_behind_tags_and_in_fragments() {
    for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 5), (0x8100, 6)]] {
        for (fragment, protocol) in [(0, 6), (0, 17), (0x2000, 6), (0x00b9, 17)] {
            let of = |source| packet4(source, OTHER, protocol, &[], fragment, &[9; 40]);
            let mut guard = guard(ALL);
            let mut judge = |source| check(&mut guard, &tagged(mac(2), mac(1), tags, V4, &of(source)));
            assert_eq!(judge(OWN), Ok(()), "{tags:?}");
            for source in [OTHER, "0.0.0.0", "255.255.255.255", "127.0.0.1", "224.0.0.1"] {
                assert_eq!(judge(source), Err(DropTxSpoofedIp), "{source} {tags:?}");
            }
        }
    }
    let third = tagged(mac(2), mac(1), &[(0x8100, 5); 3], V4, &packet4(OTHER, OWN, 6, &[], 0, &[]));
    assert_eq!(check(&mut guard(ALL), &third), Err(DropTxBadPacket));
    let mut snap = vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
    snap.extend_from_slice(&packet4(OTHER, OWN, 6, &[], 0, &[]));
    assert_eq!(judge(snap.len() as u16, &snap), Err(DropTxBadPacket));
    assert_eq!(judge(39, &[0x42, 0x42, 3, 0]), Ok(()), "spanning tree is the switch's business");
}

#[test]
fn ipv4_without_an_address_is_for_seeking_one() {
    let request = udp4(("0.0.0.0", 68), ("255.255.255.255", 67), &dhcp(1, 1, mac(1), "0.0.0.0"));
    assert_eq!(judge(V4, &request), Ok(()));
    assert_eq!(judge(V4, &packet4("0.0.0.0", "224.0.0.22", 2, &[148, 4, 0, 0], 0, &[0x22; 16])), Ok(()), "IGMP");
    for (from, to) in [(68, 69), (67, 67), (53, 67)] {
        let answer = judge(V4, &udp4(("0.0.0.0", from), (OTHER, to), b""));
        assert!(matches!(answer, Err(DropTxSpoofedIp)), "{from} to {to}: {answer:?}");
    }
    let later = packet4("0.0.0.0", OTHER, 17, &[], 1, &udp(68, 67, b""));
    assert_eq!(judge(V4, &later), Err(DropTxSpoofedIp), "a later fragment has no ports");
}

#[test]
fn headers_that_cannot_be_read_are_refused() {
    let good = packet4(OWN, OTHER, 17, &[], 0, &udp(1, 2, b"hello"));
    for (at, byte) in [(0, 0x55), (0, 0x44), (0, 0x4f)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(judge(V4, &bad), Err(DropTxBadPacket), "byte {at} is {byte:#x}");
    }
    assert_eq!(judge(V4, &good[..19]), Err(DropTxBadPacket));
    assert_eq!(judge(V4, &good[..22]), Err(DropTxBadPacket), "ports");
    let good = packet6("fe80::1", "ff02::1", 0, &[&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0]].concat());
    assert_eq!(judge(V6, &good), Ok(()));
    for len in [39, 47, 48] {
        assert_eq!(judge(V6, &good[..len]), Err(DropTxBadPacket), "{len} bytes");
    }
    let long = packet6("fe80::1", "ff02::1", 60, &[&[58, 30][..], &[0; 246], &router(134, &[])].concat());
    assert_eq!(judge(V6, &long), Err(DropTxBadPacket), "headers beyond what is seen");
}

#[test]
fn a_guest_answers_arp_for_itself_alone() {
    let arp_about = |operation, sender, target| judge(ARP, &arp(operation, sender, target));
    let arp_from = |operation, sender, target| arp_about(operation, sender, (target, OTHER));
    assert_eq!(arp_from(1, (mac(1), OWN), mac(0)), Ok(()));
    assert_eq!(arp_from(2, (mac(1), OWN), mac(2)), Ok(()));
    assert_eq!(arp_about(1, (mac(1), "0.0.0.0"), (mac(0), OWN)), Ok(()), "a probe");
    let probe = arp_from(1, (mac(1), "0.0.0.0"), mac(0));
    assert_eq!(probe, Err(DropTxSpoofedNeighbour), "a probe for another's, who would think that it is taken");
    assert_eq!(arp_from(2, (mac(1), "0.0.0.0"), mac(0)), Err(DropTxSpoofedNeighbour));
    assert_eq!(arp_from(2, (mac(1), OTHER), mac(2)), Err(DropTxSpoofedNeighbour));
    assert_eq!(arp_from(2, (mac(2), OWN), mac(2)), Err(DropTxSpoofedNeighbour));
    assert_eq!(arp_from(3, (mac(1), OWN), mac(2)), Err(DropTxBadPacket), "RARP");
    let reply = arp(2, (mac(1), OTHER), (mac(2), OTHER));
    assert_eq!(
        check(&mut guard(ALL), &tagged(mac(2), mac(1), &[(0x8100, 9)], ARP, &reply)),
        Err(DropTxSpoofedNeighbour)
    );
    for (at, byte) in [(4, 8), (5, 16), (1, 6), (3, 1)] {
        let mut lie = arp(1, (mac(1), OWN), (mac(0), OTHER));
        lie[at] = byte;
        assert_eq!(judge(ARP, &lie), Err(DropTxBadPacket), "byte {at} is {byte}");
    }
}

#[test]
fn an_ipv6_source_is_of_the_network_and_its_first_users() {
    let claims = Arc::default();
    let (mut one, mut two) = (guard_with(ALL, &claims), guard_with(ALL, &claims));
    assert!(claims.reserve(v6("fe80::aaaa")) && !claims.reserve(v6("fe80::aaaa")));
    let send = |guard: &mut Guard, n, source| {
        check(guard, &frame(mac(9), mac(n), V6, &packet6(source, "fd00::9", 6, &[9; 20])))
    };
    for source in ["fe80::1", "fd00::1", "fd00::1"] {
        assert_eq!(send(&mut one, 1, source), Ok(()));
        assert_eq!(send(&mut two, 2, source), Err(DropTxSpoofedIp), "the other port was first");
    }
    for source in ["2001:db8::1", "fd00:0:0:1::1", "::1", "::", "ff02::1", "::ffff:10.0.0.1", "fe80::aaaa"] {
        assert_eq!(send(&mut one, 1, source), Err(DropTxSpoofedIp), "{source}");
    }
    assert_eq!(send(&mut two, 2, "fe80::2"), Ok(()));
    one.set_prefixes(&[]);
    assert_eq!((send(&mut two, 2, "fd00::1"), send(&mut two, 2, "fe80::1")), (Ok(()), Err(DropTxSpoofedIp)));
    drop(one);
    assert_eq!(send(&mut two, 2, "fe80::1"), Ok(()), "a port that leaves gives up what it had");
}

#[test]
fn a_port_that_claims_too_much_gives_up_its_own() {
    let claims = Arc::default();
    let (mut one, mut two) = (guard_with(ALL, &claims), guard_with(ALL, &claims));
    let send = |guard: &mut Guard, n, i| {
        let source = format!("fd00::{i:x}");
        check(guard, &frame(mac(9), mac(n), V6, &packet6(&source, "fd00::9", 6, &[9; 20])))
    };
    assert_eq!(send(&mut two, 2, 0xffff), Ok(()));
    for i in 1..=1000 {
        assert_eq!(send(&mut one, 1, i), Ok(()));
    }
    assert_eq!(send(&mut one, 1, 0xffff), Err(DropTxSpoofedIp));
    assert_eq!(
        (send(&mut two, 2, 1000 - CLAIMS_PER_PORT_MAX), send(&mut two, 2, 1000)),
        (Ok(()), Err(DropTxSpoofedIp))
    );
}

#[test]
fn neighbour_discovery_speaks_for_the_port_alone() {
    let all = "ff02::1";
    let advertise = |target, options: &[_]| judge(V6, &icmp6("fe80::1", all, &neighbour(136, target, options)));
    assert_eq!(advertise("fe80::1", &[(2, mac(1))]), Ok(()));
    assert_eq!(advertise("fd00::5", &[]), Ok(()), "its own too, from now on");
    assert_eq!(advertise("2001:db8::1", &[(2, mac(1))]), Err(DropTxSpoofedNeighbour));
    assert_eq!(advertise("fe80::1", &[(2, mac(2))]), Err(DropTxSpoofedNeighbour));
    assert_eq!(
        advertise("fe80::1", &[(14, mac(2)), (2, mac(2))]),
        Err(DropTxSpoofedNeighbour),
        "behind another option"
    );
    let claims: Arc<Claims> = Arc::default();
    claims.reserve(v6("fd00::fe"));
    let spoof = from_1(V6, &icmp6("fe80::1", all, &neighbour(136, "fd00::fe", &[(2, mac(1))])));
    assert_eq!(check(&mut guard_with(ALL, &claims), &spoof), Err(DropTxSpoofedNeighbour));
    let ask = |source, mac| judge(V6, &icmp6(source, "ff02::1:ff00:2", &neighbour(135, "fe80::2", &[(1, mac)])));
    assert_eq!((ask("fe80::1", mac(1)), ask("fe80::1", mac(3))), (Ok(()), Err(DropTxSpoofedNeighbour)));
    let detect = icmp6("::", "ff02::1:ff00:1", &neighbour(135, "fe80::1", &[]));
    assert_eq!(judge(V6, &detect), Ok(()), "duplicate address detection");
    assert_eq!(judge(V6, &icmp6("::", "ff02::2", &router(133, &[]))), Ok(()));
    assert_eq!(judge(V6, &icmp6("::", "ff02::16", &[143, 0, 0, 0, 0, 0, 0, 0])), Ok(()), "MLDv2");
    assert_eq!(judge(V6, &icmp6("::", all, &neighbour(136, "fe80::1", &[]))), Err(DropTxSpoofedIp));
    assert_eq!(judge(V6, &icmp6("::", "fe80::2", &neighbour(135, "fe80::2", &[]))), Err(DropTxSpoofedIp), "unicast");
    let mut empty_option = neighbour(136, "fe80::1", &[(2, mac(1))]);
    empty_option[25] = 0;
    assert_eq!(judge(V6, &icmp6("fe80::1", all, &empty_option)), Err(DropTxBadPacket));
    let advertisement = neighbour(136, "fe80::1", &[(2, mac(1))]);
    let fragment = packet6("fe80::1", all, 44, &[&[58, 0, 0, 1, 0, 0, 0, 7][..], &advertisement].concat());
    assert_eq!(judge(V6, &fragment), Err(DropTxBadPacket), "in a fragment");
}

/// A question whether anybody has an address (RFC 4862, 5.4.2).
fn seeks(guard: &mut Guard, n: u8, target: &str) -> Result<(), Counter> {
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &v6(target).octets()].concat();
    check(guard, &frame(mac(9), mac(n), V6, &packet6("::", "ff02::1:ff00:1", 58, &message)))
}

fn sends6(guard: &mut Guard, n: u8, source: &str) -> Result<(), Counter> {
    check(guard, &frame(mac(9), mac(n), V6, &packet6(source, "fd00::9", 6, &[9; 20])))
}

#[test]
fn an_address_that_is_sought_is_its_seekers_and_nobody_says_no_to_it() {
    let claims = Arc::default();
    let (mut one, mut two) = (guard_with(ALL, &claims), guard_with(ALL, &claims));
    assert_eq!(seeks(&mut one, 1, "fd00::7"), Ok(()));
    assert_eq!(seeks(&mut two, 2, "fd00::7"), Err(DropTxSpoofedNeighbour), "it would be a no (RFC 4862, 5.4.3)");
    assert_eq!(sends6(&mut two, 2, "fd00::7"), Err(DropTxSpoofedIp));
    assert_eq!(sends6(&mut one, 1, "fd00::7"), Ok(()));
    assert_eq!(seeks(&mut two, 2, "fd00::7"), Ok(()), "one who has it says so");
    assert_eq!(sends6(&mut two, 2, "fd00::7"), Err(DropTxSpoofedIp));
}

#[test]
fn an_address_that_is_made_of_a_mac_address_is_for_who_has_that() {
    let claims = Arc::default();
    let (mut one, mut two) = (guard_with(ALL, &claims), guard_with(ALL, &claims));
    let of = |n| {
        let [a, b, c, d, e, f, g, h] = crate::frame::ndp::interface_id(mac(n)).map(u16::from);
        std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, a << 8 | b, c << 8 | d, e << 8 | f, g << 8 | h).to_string()
    };
    assert_eq!(seeks(&mut two, 2, &of(1)), Err(DropTxSpoofedNeighbour));
    assert_eq!(sends6(&mut two, 2, &of(1)), Err(DropTxSpoofedIp));
    assert_eq!(sends6(&mut two, 2, &of(2)), Ok(()));
    assert_eq!(seeks(&mut one, 1, &of(1)), Ok(()));
}

#[test]
fn the_address_that_a_port_uses_least_is_the_first_that_it_gives_up() {
    let claims = Arc::default();
    let (mut one, mut two) = (guard_with(ALL, &claims), guard_with(ALL, &claims));
    let of = |n: usize| format!("fd00::{n:x}");
    assert_eq!(seeks(&mut one, 1, &of(0xff)), Ok(()));
    assert!((1..CLAIMS_PER_PORT_MAX).all(|n| sends6(&mut one, 1, &of(n)) == Ok(())));
    // A temporary address in the place of one that was only asked for, and the next of one that rests.
    assert!([0x101, 1, 0x102].iter().all(|n| sends6(&mut one, 1, &of(*n)) == Ok(())));
    let is_free = [0xff, 1, 2, 3].map(|n| sends6(&mut two, 2, &of(n)).is_ok());
    assert_eq!(is_free, [true, false, true, false]);
}

#[test]
fn an_address_that_is_declared_for_another_is_lost_to_who_used_it_first() {
    let claims: Arc<Claims> = Arc::default();
    let send = |guard: &mut Guard, n| check(guard, &frame(mac(9), mac(n), 0x88b5, &[0; 46]));
    let (mut first, mut other) = (guard_with(ALL, &claims), guard_with(ALL, &claims));
    assert_eq!((send(&mut first, 3), send(&mut other, 4)), (Ok(()), Ok(())));
    claims.set_declared([mac(3)]);
    let mut declared = guard_with(Settings { mac: Some(mac(3)), ..ALL }, &claims);
    assert_eq!([&mut first, &mut other, &mut declared].map(Guard::follow_declared), [true, false, false]);
    assert_eq!(send(&mut first, 3), Err(DropTxSpoofedMac));
    assert_eq!((send(&mut declared, 3), send(&mut other, 4), send(&mut first, 5)), (Ok(()), Ok(()), Ok(())));
}

#[test]
fn a_mac_address_is_one_ports_and_declared_ones_are_kept() {
    let claims: Arc<Claims> = Arc::default();
    claims.set_declared([mac(3)]);
    let send = |guard: &mut Guard, n| check(guard, &frame(mac(9), mac(n), 0x88b5, &[0; 46]));
    let (mut one, mut two) = (guard_with(ALL, &claims), guard_with(ALL, &claims));
    assert_eq!(send(&mut one, 1), Ok(()));
    assert_eq!(send(&mut two, 1), Err(DropTxSpoofedMac));
    assert_eq!(send(&mut two, 3), Err(DropTxSpoofedMac), "its guest may yet come");
    assert_eq!(send(&mut guard_with(Settings { mac: Some(mac(3)), ..ALL }, &claims), 3), Ok(()));
    assert_eq!(send(&mut two, 2), Ok(()), "nothing was its first so far");
    drop(one);
    let mut third = guard_with(ALL, &claims);
    assert_eq!((send(&mut third, 2), send(&mut third, 1)), (Err(DropTxSpoofedMac), Ok(())));
}

#[test]
fn a_guest_plays_no_server() {
    let router_4 = |kind| packet4(OWN, OTHER, 1, &[], 0, &[kind, 1, 0, 0, 0, 0, 0, 0]);
    let behind =
        |kind: u8, header: [u8; 8], rest: &[u8]| packet6("fe80::1", "ff02::1", kind, &[&header[..], rest].concat());
    let advertisement = router(134, &[(1, mac(1))]);
    let rogue = [
        (V4, udp4((OWN, 67), (OTHER, 68), &dhcp(2, 2, mac(2), OTHER))),
        (V4, udp4((OWN, 1067), (OTHER, 68), b"")),
        (V4, packet4(OWN, OTHER, 17, &[], 0x2000, &udp(67, 68, &[0; 24]))),
        (V4, packet4(OWN, OTHER, 17, &[1; 40], 0, &udp(67, 68, &[0; 24]))),
        (V4, router_4(5)),
        (V4, router_4(9)),
        (V6, packet6("fe80::1", "fe80::2", 17, &udp(547, 546, b""))),
        (V6, packet6("fe80::1", "fe80::2", 17, &udp(1547, 546, b""))),
        (V6, behind(60, [17, 0, 1, 4, 0, 0, 0, 0], &udp(547, 546, b""))),
        (V6, icmp6("fe80::1", "ff02::1", &advertisement)),
        (V6, icmp6("fe80::1", "ff02::1", &[137; 40])),
        (V6, behind(0, [58, 0, 1, 4, 0, 0, 0, 0], &advertisement)),
        (V6, behind(44, [58, 0, 0, 1, 0, 0, 0, 9], &advertisement)),
        (V6, behind(44, [60, 0, 0, 1, 0, 0, 0, 9], &[&[58, 0, 1, 4, 0, 0, 0, 0][..], &advertisement].concat())),
    ];
    for (i, (kind, packet)) in rogue.iter().enumerate() {
        assert_eq!(judge(*kind, packet), Err(DropTxRogueServer), "{i}");
        let tagged = tagged(BROADCAST, mac(1), &[(0x88a8, 4), (0x8100, 5)], *kind, packet);
        assert_eq!(check(&mut guard(ALL), &tagged), Err(DropTxRogueServer), "{i}, tagged");
        let mut only_servers = guard(Settings { refuse_servers: true, ..Settings::default() });
        assert_eq!(check(&mut only_servers, &from_1(*kind, packet)), Err(DropTxRogueServer), "{i}, no lock");
    }
    let mut open = guard(Settings::default());
    assert!(rogue.iter().all(|(kind, packet)| open.check(&from_1(*kind, packet)) == Ok(())));
    assert_eq!(judge(V4, &packet4(OWN, OTHER, 17, &[], 3, &udp(67, 68, b""))), Ok(()), "payload that looks like ports");
    assert_eq!(judge(V4, &udp4((OWN, 68), (OTHER, 67), b"")), Ok(()));
    assert_eq!(judge(V6, &packet6("fe80::1", "ff02::1:2", 17, &udp(546, 547, b""))), Ok(()));
    assert_eq!(judge(V4, &router_4(8)), Ok(()), "an echo");
}

#[test]
fn a_port_may_have_several_addresses_and_not_too_many() {
    let mut guard = guard(ALL);
    assert!((1..=ADDRESSES_PER_PORT_MAX as u8).all(|n| guard.allow(v4(&format!("10.0.0.{n}")))));
    assert!(!guard.allow(v4("10.0.1.0")) && guard.allow(v4(OTHER)));
    let of = |source| from_1(V4, &packet4(source, "10.0.0.99", 6, &[], 0, &[9; 20]));
    assert_eq!([OTHER, "10.0.1.0"].map(|source| guard.check(&of(source)).is_ok()), [true, false]);
    guard.set_addresses(&[v4("10.0.1.0")]);
    assert_eq!([OTHER, "10.0.1.0"].map(|source| guard.check(&of(source)).is_ok()), [false, true]);
}

/// What the guest says it is at, read without the parsers of the guard.
fn spoofs(bytes: &[u8]) -> bool {
    let mut at = 12;
    while matches!(bytes[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    let rest = &bytes[at + 2..];
    match bytes[at..at + 2] {
        [8, 0] => rest[12..16] != [10, 0, 0, 1] && rest[12..16] != [0; 4],
        [8, 6] => rest[8..14] != bytes[6..12] || (rest[14..18] != [10, 0, 0, 1] && rest[14..18] != [0; 4]),
        [0x86, 0xdd] => rest[8..24] != [0; 16] && rest[8..10] != [0xfe, 0x80] && rest[8..10] != [0xfd, 0],
        _ => false,
    }
}

proptest! {
    #[test]
    fn what_passes_spoofs_nothing(bytes in any_frame()) {
        let mut guard = guard(ALL);
        if check(&mut guard, &bytes).is_ok() {
            prop_assert_eq!(Some(MacAddr(bytes[6..12].try_into().unwrap())), guard.mac());
            prop_assert!(!spoofs(&bytes));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (check(&mut guard(ALL), &bytes), guard(Settings { lock_mac: false, ..ALL }).check(&bytes));
    }
}
