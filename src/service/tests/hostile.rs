//! Bytes that no honest client sends.

use super::*;
use crate::frame::ethernet::MacAddr;
use proptest::prelude::*;

const BAD: (Outcome, Option<Vec<u8>>) = (Outcome::Drop(Counter::DropTxBadRequest), None);

/// A discover whose options are these bytes.
fn raw(options: &[u8]) -> Vec<u8> {
    let client = Client::new(7, MessageType::Discover);
    let payload = [&client.payload()[..240], options].concat();
    udp4(mac(7), BROADCAST_MAC, client.from, client.to, (68, 67), &payload)
}

/// A discover with a byte of its payload changed.
fn changed(at: usize, to: u8) -> Vec<u8> {
    let client = Client::new(7, MessageType::Discover);
    let mut payload = client.payload();
    payload[at] = to;
    udp4(mac(7), BROADCAST_MAC, client.from, client.to, (68, 67), &payload)
}

#[test]
fn messages_that_are_no_clients_are_dropped() {
    let mut services = services();
    let client = Client::new(7, MessageType::Discover);
    let short = udp4(mac(7), BROADCAST_MAC, client.from, client.to, (68, 67), &client.payload()[..239]);
    let mut group = client.clone();
    group.mac = MacAddr([1, 0, 0, 0, 0, 1]);
    let mut zero = client.clone();
    zero.mac = MacAddr([0; 6]);
    for bad in [
        short,
        group.frame(),
        zero.frame(),
        // An answer; another kind of hardware; lengths of addresses that are longer than the field; no cookie.
        changed(0, 2),
        changed(1, 6),
        changed(2, 255),
        changed(2, 16),
        changed(2, 0),
        changed(236, 0),
        // No type; a type that no client sends; a type of two bytes.
        raw(&[255]),
        raw(&[53, 1, 2, 255]),
        raw(&[53, 1, 200, 255]),
        raw(&[53, 2, 1, 1, 255]),
        // Addresses and sizes of other lengths.
        raw(&[53, 1, 1, 50, 3, 1, 2, 3, 255]),
        raw(&[53, 1, 1, 54, 5, 1, 2, 3, 4, 5, 255]),
        raw(&[53, 1, 1, 57, 1, 9, 255]),
        raw(&[53, 1, 1, 61, 0, 255]),
        raw(&[53, 1, 1, 52, 0, 255]),
        // An option that is longer than the message hides all that follows.
        raw(&[12, 200, 53, 1, 1, 255]),
    ] {
        assert_eq!(send(&mut services, 1, &bad), BAD, "{bad:02x?}");
    }
    assert!(services.leases().unwrap().is_empty());
}

#[test]
fn what_is_strange_but_whole_is_answered() {
    let mut services = services();
    let runs_of_pad = [&[0; 400][..], &[53, 1, 1], &[0; 400]].concat();
    let without_end = [53, 1, 1];
    let bytes_after_end = [&[53, 1, 1, 255][..], &[12, 255, 9]].concat();
    // Options that the decoder of the crate cannot take: a flag with a value, a name that is no text, a broken route.
    let broken = [80, 3, 1, 2, 3, 12, 2, 0xff, 0xfe, 121, 1, 99, 94, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 53, 1, 1, 255];
    for good in [&runs_of_pad[..], &without_end, &bytes_after_end, &broken] {
        assert_eq!(send(&mut services, 1, &raw(good)).0, Outcome::Answered, "{good:02x?}");
    }
}

#[test]
fn options_may_lie_in_the_other_fields_once() {
    let mut services = services();
    let client = Client::new(7, MessageType::Discover);
    let with = |overload: u8| {
        let mut payload = client.payload();
        payload.truncate(240);
        payload.extend([52, 1, overload, 255]);
        // In the file: the type, and the same option again, which means nothing here. In the name: the address.
        payload[108..115].copy_from_slice(&[53, 1, 1, 52, 1, 3, 255]);
        payload[44..51].copy_from_slice(&[50, 4, 192, 168, 56, 99, 255]);
        udp4(mac(7), BROADCAST_MAC, client.from, client.to, (68, 67), &payload)
    };
    assert_eq!(send(&mut services, 1, &with(2)), BAD);
    let (_, offer) = send(&mut services, 1, &with(3));
    assert_eq!(Told::read(&offer.unwrap()).address(), ip(99));
    let (_, offer) = send(&mut Services::new(settings(v4()), Leases::default()), 1, &with(1));
    assert_ne!(Told::read(&offer.unwrap()).address(), ip(99));
}

#[test]
fn an_identifier_as_long_as_can_be_is_a_clients_and_a_longer_one_nobodys() {
    let mut services = services();
    let long = Client::new(7, MessageType::Discover).with(61, &[9; 255]);
    let offer = ask(&mut services, 1, &long).unwrap();
    assert_eq!(offer.option(61), Some(DhcpOption::ClientIdentifier(vec![9; 255])));
    assert_eq!(send(&mut services, 1, &long.with(61, &[9]).frame()), BAD);
}

#[test]
fn sums_are_verified_unless_they_are_still_to_come() {
    let mut services = services();
    let client = Client::new(7, MessageType::Discover);
    let mut frame = client.frame();
    frame[40] ^= 0x55;
    assert_eq!(send(&mut services, 1, &frame), BAD);
    let mut out = Vec::new();
    let outcome = services.handle(PortId(1), &frame, Checksums::Partial, NOW, &mut out);
    assert_eq!((outcome, out.len()), (Outcome::Answered, 1));
    frame[40..42].fill(0);
    assert_eq!(send(&mut services, 1, &frame).0, Outcome::Answered, "zero is no checksum");
    frame[24] ^= 1;
    assert_eq!(send(&mut services, 1, &frame), BAD, "the header's own sum");
}

#[test]
fn lengths_that_contradict_each_other_are_dropped() {
    let frame = Client::new(7, MessageType::Discover).frame();
    let with = |at: usize, value: u16| {
        let mut frame = frame.clone();
        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
        frame
    };
    for bad in [with(16, 10), with(16, 60_000), with(38, 3), with(38, 60_000), frame[..100].to_vec()] {
        assert_eq!(send(&mut services(), 1, &bad), BAD);
    }
}

#[test]
fn nobody_asks_in_anothers_name() {
    let mut services = services();
    let mut client = Client::new(7, MessageType::Discover);
    client.source = mac(8);
    assert_eq!(send(&mut services, 1, &client.frame()), BAD);
    assert!(services.leases().unwrap().is_empty());
}

fn everything() -> Services {
    let v4 = V4 { router: Some(SERVER), domain: "lab".parse().ok(), dns: vec![SERVER], mtu: Some(9000), ..v4() };
    Services::new(Settings { answers_for_gateway: true, ..settings(v4) }, Leases::default())
}

proptest! {
    #[test]
    fn no_bytes_do_harm(frame in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut services = everything();
        let _ = services.settings().offence(&frame);
        send(&mut services, 1, &frame);
    }

    #[test]
    fn no_options_do_harm(options in prop::collection::vec(any::<u8>(), 0..600), name: [u8; 64], file: [u8; 128]) {
        let mut services = everything();
        let mut frame = raw(&[&[53, 1, 1, 52, 1, 3][..], &options].concat());
        frame[42 + 44..42 + 108].copy_from_slice(&name);
        frame[42 + 108..42 + 236].copy_from_slice(&file);
        frame[40..42].fill(0);
        send(&mut services, 1, &frame);
    }

    #[test]
    fn no_change_to_a_good_frame_does_harm(
        which in 0usize..4,
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..6),
        cut in 0usize..400,
    ) {
        let guest: Ipv6Addr = "fe80::7".parse().unwrap();
        let mut frame = match which {
            0 => Client::new(7, MessageType::Discover).with(12, b"web").with(61, &[9, 9]).with(55, &[1, 3, 6]).frame(),
            1 => super::guard::arp(1, mac(7), ip(7), SERVER),
            2 => icmp6(mac(7), MacAddr([0x33, 0x33, 0, 0, 0, 2]), guest, guest, 255, &[133, 0, 0, 0, 0, 0, 0, 0, 1, 1]),
            _ => udp6(mac(7), SERVER_MAC, guest, guest, (546, 547), &[11, 1, 2, 3, 0, 6, 0, 2, 0, 23]),
        };
        for (at, value) in changes {
            let at = at % frame.len();
            frame[at] = value;
        }
        frame.truncate(cut.max(14));
        let mut services = everything();
        let _ = services.settings().offence(&frame);
        send(&mut services, 1, &frame);
    }
}
