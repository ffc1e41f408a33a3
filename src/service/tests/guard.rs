//! What a guest may not send, and what is no service's business.

use std::sync::Arc;

use super::*;
use crate::switch::guard::{self, Guard};

const GUEST_V6: &str = "fe80::5054:ff:fe00:7";

fn offence(frame: &[u8]) -> Option<Counter> {
    services().settings().offence(&frame[..frame.len().min(crate::frame::FRAME_HEAD_MAX)])
}

fn tagged(frame: &[u8], id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()
}

/// IPv6 with headers between the first and the message.
fn behind(frame: &[u8], headers: &[u8], first: u8) -> Vec<u8> {
    let mut frame = [&frame[..54], headers, &frame[54..]].concat();
    frame[20] = first;
    let len = u16::try_from(frame.len() - 54).unwrap();
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    frame
}

fn advertisement() -> Vec<u8> {
    let to = "ff02::1".parse().unwrap();
    icmp6(mac(7), ndp::ALL_NODES_MAC, GUEST_V6.parse().unwrap(), to, 255, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0])
}

/// What the guard says of a frame that every port of a network with services has.
fn guarded(frame: &[u8]) -> Result<(), Counter> {
    let settings = guard::Settings { mac: None, lock_mac: false, lock_ip: false, refuse_servers: true };
    Guard::new(settings, Arc::default()).check(&frame[..frame.len().min(crate::frame::FRAME_HEAD_MAX)])
}

#[test]
fn answers_of_other_servers_are_dropped() {
    let offer = udp4(mac(7), mac(8), ip(7), ip(8), (67, 68), &[2; 300]);
    let any_port = udp4(mac(7), BROADCAST_MAC, ip(7), Ipv4Addr::BROADCAST, (1, 68), &[2; 300]);
    let (from, to) = (GUEST_V6.parse().unwrap(), "fe80::8".parse().unwrap());
    let reply = udp6(mac(7), mac(8), from, to, (547, 546), &[7; 30]);
    let redirect = icmp6(mac(7), mac(8), from, to, 255, &[137, 0, 0, 0, 0, 0, 0, 0]);
    for frame in [offer, any_port, reply, redirect, advertisement()] {
        assert_eq!(guarded(&frame), Err(Counter::DropTxRogueServer), "{frame:02x?}");
        assert_eq!(guarded(&tagged(&frame, 0)), Err(Counter::DropTxRogueServer), "a priority tag is no VLAN");
        assert_eq!(guarded(&tagged(&frame, 5)), Err(Counter::DropTxRogueServer), "nor on a VLAN");
        assert_eq!(send(&mut services(), 1, &frame), (Outcome::Ignored, None));
    }
}

#[test]
fn an_advertisement_does_not_hide_behind_headers() {
    let options = [58, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(guarded(&behind(&advertisement(), &options, 60)), Err(Counter::DropTxRogueServer));
    assert_eq!(guarded(&behind(&advertisement(), &options, 0)), Err(Counter::DropTxRogueServer));
    // The first fragment.
    assert!(guarded(&behind(&advertisement(), &[58, 0, 0, 1, 0, 0, 0, 9], 44)).is_err());
    // More headers than anyone needs.
    let many: Vec<u8> = std::iter::repeat_n([60, 0, 1, 4, 0, 0, 0, 0], 9).flatten().collect();
    let hidden = behind(&advertisement(), &many, 60);
    assert!(guarded(&hidden).is_err());
    assert_eq!(offence(&hidden), Some(Counter::DropTxBadPacket));
}

#[test]
fn the_servers_addresses_are_the_servers() {
    let spoofed = Some(Counter::DropTxSpoofedServer);
    let ours: Ipv6Addr = link_local(SERVER_MAC);
    let guest: Ipv6Addr = GUEST_V6.parse().unwrap();
    assert_eq!(offence(&udp4(SERVER_MAC, mac(8), ip(7), ip(8), (1, 2), &[])), spoofed);
    assert_eq!(offence(&udp4(mac(7), mac(8), SERVER, ip(8), (1, 2), &[])), spoofed);
    assert_eq!(offence(&udp6(mac(7), mac(8), ours, guest, (1, 2), &[])), spoofed);
    for operation in [1, 2] {
        assert_eq!(offence(&arp(operation, mac(7), SERVER, ip(8))), spoofed);
        assert_eq!(offence(&arp(operation, mac(7), ip(7), SERVER)), None);
    }
    let advertisement = |target: Ipv6Addr| {
        let message = [&[136, 0, 0, 0, 0x20, 0, 0, 0], &target.octets()[..], &[2, 1, 0x52, 0x54, 0, 0, 0, 7]].concat();
        icmp6(mac(7), ndp::ALL_NODES_MAC, guest, "ff02::1".parse().unwrap(), 255, &message)
    };
    assert_eq!(offence(&advertisement(ours)), spoofed);
    assert_eq!(offence(&advertisement("fd00:47:57::1".parse().unwrap())), spoofed);
    assert_eq!(offence(&advertisement(guest)), None);
}

#[test]
fn what_guests_say_to_each_other_is_no_offence_and_no_request() {
    let (from, to): (Ipv6Addr, Ipv6Addr) = (GUEST_V6.parse().unwrap(), "fe80::8".parse().unwrap());
    for frame in [
        Client::new(7, MessageType::Discover).frame(),
        udp4(mac(7), mac(8), ip(7), ip(8), (4000, 5000), &[0; 1400]),
        udp6(mac(7), mac(8), from, to, (4000, 5000), &[0; 1400]),
        icmp6(mac(7), mac(8), from, to, 255, &[128, 0, 0, 0, 0, 1, 0, 1]),
        arp(1, mac(7), ip(7), ip(8)),
    ] {
        assert_eq!(offence(&frame), None);
    }
    // DHCP to another than the server is between those two.
    let mut to_another = Client::new(7, MessageType::Discover);
    to_another.to_mac = mac(8);
    assert_eq!(send(&mut services(), 1, &to_another.frame()), (Outcome::Ignored, None));
}

#[test]
fn a_tag_makes_a_frame_none_of_ours() {
    let frame = Client::new(7, MessageType::Discover).frame();
    assert!(services().settings().wants(&frame));
    for id in [0, 5] {
        assert!(!services().settings().wants(&tagged(&frame, id)));
        assert_eq!(send(&mut services(), 1, &tagged(&frame, id)), (Outcome::Ignored, None));
    }
}

#[test]
fn the_servers_mac_is_ours_only_where_nobody_else_has_it() {
    let mut settings = settings(v4());
    assert_eq!(services().settings().claims_mac(), None);
    let to_server = udp4(mac(7), SERVER_MAC, ip(7), SERVER, (4000, 53), &[0; 40]);
    assert!(!services().settings().wants(&to_server), "the host's");
    settings.answers_for_gateway = true;
    let mut services = Services::new(settings, Leases::default());
    assert_eq!(services.settings().claims_mac(), Some(SERVER_MAC));
    assert!(!services.settings().wants(&to_server), "for the gateway, if there is one");
    assert_eq!(send(&mut services, 1, &to_server), (Outcome::Ignored, None));
}

pub(super) fn arp(operation: u8, sender_mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [&BROADCAST_MAC.0[..], &sender_mac.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    frame.extend([&sender_mac.0[..], &sender.octets(), &[0; 6], &target.octets()].concat());
    frame.resize(60, 0);
    frame
}
