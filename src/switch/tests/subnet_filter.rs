//! Host-only: nothing leaves, nothing foreign enters.

use proptest::prelude::*;

use super::packets::*;
use crate::config::Subnet4;
use crate::metrics::Counter::{self, *};
use crate::switch::subnet_filter::SubnetFilter;

const GUEST: &str = "192.168.56.7";
const HOST: &str = "192.168.56.1";
const LAN: &str = "10.1.2.3";

fn filter() -> SubnetFilter {
    SubnetFilter::new(Subnet4::HOST_ONLY, vec!["fd00:56::/64".parse().unwrap()], mac(9))
}

fn guest(kind: u16, rest: &[u8]) -> Result<(), Counter> {
    filter().check_guest(&frame(mac(9), mac(1), kind, rest))
}

fn host(kind: u16, rest: &[u8]) -> Result<(), Counter> {
    filter().check_host(&frame(mac(1), mac(9), kind, rest))
}

fn plain4(from: &str, to: &str) -> Vec<u8> {
    packet4(from, to, 6, &[], 0, &[9; 20])
}

fn plain6(from: &str, to: &str) -> Vec<u8> {
    packet6(from, to, 6, &[9; 20])
}

fn with_ttl(mut packet: Vec<u8>, ttl: u8) -> Vec<u8> {
    let at = if packet[0] >> 4 == 4 { 8 } else { 7 };
    packet[at] = ttl;
    packet
}

#[test]
fn ipv4_stays_in_the_subnet() {
    for to in [HOST, "192.168.56.255", "255.255.255.255", "224.0.0.1", "224.0.0.251"] {
        assert_eq!(guest(V4, &plain4(GUEST, to)), Ok(()), "{to}");
    }
    for to in [LAN, "192.168.57.1", "8.8.8.8", "169.254.1.1", "127.0.0.1", "0.0.0.0", "224.0.1.1", "239.255.255.250"] {
        assert_eq!(guest(V4, &plain4(GUEST, to)), Err(DropTxOutsideSubnet), "{to}");
        assert_eq!(guest(V4, &packet4(GUEST, to, 17, &[], 0x00b9, &[1; 32])), Err(DropTxOutsideSubnet), "a fragment");
        assert_eq!(guest(V4, &packet4(GUEST, to, 17, &[], 0x2000, &[1; 32])), Err(DropTxOutsideSubnet), "the first");
    }
    assert_eq!(guest(V4, &with_ttl(plain4(GUEST, "239.255.255.250"), 1)), Ok(()), "no router may pass it on");
    assert_eq!(guest(V4, &with_ttl(plain4(GUEST, LAN), 1)), Err(DropTxOutsideSubnet), "unicast is the host's own");
}

#[test]
fn ipv6_stays_in_the_prefixes() {
    for to in ["fd00:56::1", "fe80::1", "ff02::1", "ff02::1:ff00:1", "ff12::1", "ff01::1"] {
        assert_eq!(guest(V6, &plain6("fe80::7", to)), Ok(()), "{to}");
    }
    for to in ["fd00:57::1", "2001:db8::1", "::1", "::", "::ffff:10.1.2.3", "fec0::1", "ff05::2", "ff0e::1"] {
        assert_eq!(guest(V6, &plain6("fe80::7", to)), Err(DropTxOutsideSubnet), "{to}");
        let fragment = packet6("fe80::7", to, 44, &[17, 0, 0, 9, 0, 0, 0, 1, 9, 9]);
        assert_eq!(guest(V6, &fragment), Err(DropTxOutsideSubnet), "a fragment to {to}");
    }
    assert_eq!(guest(V6, &with_ttl(plain6("fe80::7", "ff05::2"), 1)), Ok(()));
}

#[test]
fn nothing_foreign_is_a_source() {
    for from in [LAN, "192.168.57.1", "169.254.1.1", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"] {
        assert_eq!(guest(V4, &plain4(from, HOST)), Err(DropTxForeignSource), "{from}");
        assert_eq!(host(V4, &plain4(from, GUEST)), Err(DropTxForeignSource), "{from}");
        assert_eq!(host(V4, &packet4(from, GUEST, 17, &[], 3, &[1; 32])), Err(DropTxForeignSource), "a fragment");
    }
    for from in ["2001:db8::1", "fd00:57::1", "::1", "ff02::1", "::"] {
        assert_eq!(guest(V6, &plain6(from, "fe80::1")), Err(DropTxForeignSource), "{from}");
        assert_eq!(host(V6, &plain6(from, "fe80::7")), Err(DropTxForeignSource), "{from}");
    }
    assert_eq!((host(V4, &plain4(HOST, GUEST)), host(V6, &plain6("fd00:56::1", "fd00:56::7"))), (Ok(()), Ok(())));
    assert_eq!((host(V6, &plain6("fe80::1", "fe80::7")), host(V4, &plain4(HOST, "239.255.255.250"))), (Ok(()), Ok(())));
}

#[test]
fn addresses_are_sought_and_found() {
    let discover = udp4(("0.0.0.0", 68), ("255.255.255.255", 67), &dhcp(1, 1, mac(1), "0.0.0.0"));
    assert_eq!((guest(V4, &discover), host(V4, &discover)), (Ok(()), Ok(())));
    let routed = udp4(("0.0.0.0", 68), (LAN, 67), &dhcp(1, 1, mac(1), "0.0.0.0"));
    assert_eq!(guest(V4, &routed), Err(DropTxOutsideSubnet));
    let detect = icmp6("::", "ff02::1:ff00:7", &neighbour(135, "fd00:56::7", &[]));
    assert_eq!((guest(V6, &detect), host(V6, &detect)), (Ok(()), Ok(())));
    let joins = packet6("fe80::7", "ff02::16", 0, &[58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest(V6, &joins), Ok(()), "MLDv2 behind a hop-by-hop header");
    let igmp = packet4(GUEST, "224.0.0.22", 2, &[148, 4, 0, 0], 0, &[0x22; 16]);
    assert_eq!(guest(V4, &igmp), Ok(()), "with a router alert");
}

#[test]
fn arp_is_of_the_subnet() {
    let ask = |from, to| guest(ARP, &arp(1, (mac(1), from), (mac(0), to)));
    assert_eq!([ask(GUEST, HOST), ask("0.0.0.0", GUEST), ask(GUEST, GUEST)], [Ok(()); 3]);
    assert_eq!((ask(LAN, HOST), ask(GUEST, LAN)), (Err(DropTxForeignSource), Err(DropTxOutsideSubnet)));
    assert_eq!(host(ARP, &arp(2, (mac(9), LAN), (mac(1), GUEST))), Err(DropTxForeignSource), "a proxy");
    assert_eq!(guest(ARP, &arp(1, (mac(1), GUEST), (mac(0), HOST))[..27]), Err(DropTxBadPacket));
}

#[test]
fn a_packet_that_asks_to_be_routed_is_refused() {
    let with_options = |options: &[u8]| guest(V4, &packet4(GUEST, HOST, 6, options, 0, &[9; 20]));
    let route = |kind| [1, kind, 7, 4, 10, 1, 2, 3];
    assert_eq!(with_options(&route(131)), Err(DropTxBadPacket), "LSRR");
    assert_eq!(with_options(&route(137)), Err(DropTxBadPacket), "SSRR");
    assert_eq!(with_options(&[7, 7, 4, 0, 0, 0, 0, 0]), Ok(()), "record route");
    assert_eq!(with_options(&[0, 131, 7, 4, 10, 1, 2, 3]), Ok(()), "behind the end");
    for bad in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7]] {
        assert_eq!(with_options(&bad), Err(DropTxBadPacket), "{bad:?}");
    }
    let behind = |first: u8, headers: &[[u8; 8]]| guest(V6, &packet6("fe80::7", "fe80::1", first, &headers.concat()));
    assert_eq!(behind(43, &[[59, 0, 4, 0, 0, 0, 0, 0]]), Err(DropTxBadPacket));
    assert_eq!(behind(0, &[[43, 0, 1, 4, 0, 0, 0, 0], [59, 0, 0, 0, 0, 0, 0, 0]]), Err(DropTxBadPacket));
    assert_eq!(behind(44, &[[43, 0, 0, 1, 0, 0, 0, 9], [59, 0, 0, 0, 0, 0, 0, 0]]), Err(DropTxBadPacket));
    assert_eq!(
        behind(44, &[[43, 0, 0, 9, 0, 0, 0, 9], [59, 0, 0, 0, 0, 0, 0, 0]]),
        Ok(()),
        "payload of a later fragment"
    );
    assert_eq!(behind(60, &[[59, 0, 1, 4, 0, 0, 0, 0]]), Ok(()));
    assert_eq!(behind(60, &[[60, 0, 1, 4, 0, 0, 0, 0]; 9]), Err(DropTxBadPacket), "too many to follow");
}

#[test]
fn only_ip_and_arp_and_only_if_they_can_be_read() {
    assert_eq!(guest(0x88cc, &[0; 46]), Err(DropTxNotIp));
    assert_eq!(guest(0x0026, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]), Err(DropTxNotIp));
    assert_eq!(
        filter().check_guest(&tagged(mac(9), mac(1), &[(0x8100, 5)], V4, &plain4(GUEST, HOST))),
        Err(DropTxTagged)
    );
    assert_eq!(
        filter().check_host(&tagged(mac(9), mac(1), &[(0x88a8, 5)], V4, &plain4(HOST, GUEST))),
        Err(DropTxTagged)
    );
    assert_eq!((filter().check_guest(&[0; 13]), guest(V4, &[])), (Err(DropTxRunt), Err(DropTxBadPacket)));
    for (at, byte) in [(0, 0x44), (0, 0x65), (0, 0x4f), (2, 0xff)] {
        let mut lie = plain4(GUEST, HOST);
        lie[at] = byte;
        if at == 2 {
            lie[2..4].copy_from_slice(&[0, 19]);
        }
        assert_eq!(guest(V4, &lie), Err(DropTxBadPacket), "byte {at} is {byte:#x}");
    }
    assert_eq!(guest(V6, &plain4(GUEST, HOST)), Err(DropTxBadPacket));
    assert_eq!(guest(V4, &plain6("fe80::7", "fe80::1")), Err(DropTxBadPacket));
}

proptest! {
    /// A kernel reads the type, then the addresses; so does this, in as few words as possible.
    #[test]
    fn what_passes_stays(bytes in any_frame(), from_host: bool) {
        let verdict = if from_host { filter().check_host(&bytes) } else { filter().check_guest(&bytes) };
        if verdict.is_ok() {
            let rest = &bytes[14..];
            match bytes[12..14] {
                [8, 6] => prop_assert!(rest[14..17] == [192, 168, 56] || rest[14..18] == [0; 4]),
                [8, 0] => {
                    prop_assert!(rest[12..15] == [192, 168, 56] || rest[12..16] == [0; 4]);
                    let stays = [[192, 168, 56], [224, 0, 0], [255; 3]].iter().any(|net| rest[16..19] == *net);
                    prop_assert!(from_host || stays || rest[16] >> 4 == 14 && rest[8] <= 1);
                    prop_assert!(from_host || rest[0] == 0x45 || rest[20] != 131);
                }
                [0x86, 0xdd] => {
                    let is_inside = |at: usize| {
                        rest[at] == 0xfe && rest[at + 1] >> 6 == 2 || rest[at..at + 4] == [0xfd, 0, 0, 0x56]
                    };
                    prop_assert!(is_inside(8) || rest[8..24] == [0; 16]);
                    prop_assert!(from_host || (is_inside(24) || rest[24] == 0xff) && rest[6] != 43);
                }
                ref other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (filter().check_guest(&bytes), filter().check_host(&bytes));
    }
}

#[test]
fn the_hosts_addresses_are_no_guests() {
    let neighbour = |kind: u8, target: &str| {
        let message = [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &v6(target).octets()].concat();
        packet6("fe80::7", "ff02::1", 58, &message)
    };
    assert_eq!(guest(V4, &plain4(HOST, GUEST)), Err(DropTxSpoofedIp));
    assert_eq!(guest(V6, &plain6("fd00:56::1", "fd00:56::7")), Err(DropTxSpoofedIp));
    assert_eq!(guest(V6, &neighbour(136, "fd00:56::1")), Err(DropTxSpoofedNeighbour));
    assert_eq!(guest(V6, &neighbour(136, "fd00:56::7")), Ok(()));
    assert_eq!(guest(V6, &neighbour(135, "fd00:56::1")), Ok(()), "who asks for it");
    assert_eq!((host(V4, &plain4(HOST, GUEST)), host(V6, &neighbour(136, "fd00:56::1"))), (Ok(()), Ok(())));
}

#[test]
fn what_the_host_might_pass_on_within_the_subnet_is_not_for_it() {
    // It may have got a route to a half of the subnet, of a VPN's.
    for (kind, packet) in [(V4, plain4(GUEST, "192.168.56.130")), (V6, plain6("fe80::7", "fd00:56::9"))] {
        assert_eq!(guest(kind, &packet), Err(DropTxOutsideSubnet));
        assert_eq!(filter().check_guest(&frame(mac(2), mac(1), kind, &packet)), Ok(()), "another guest");
        assert_eq!(filter().check_guest(&frame(BROADCAST, mac(1), kind, &packet)), Ok(()), "no host passes these on");
    }
}
