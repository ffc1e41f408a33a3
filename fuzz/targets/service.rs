//! Frames of a few ports for the services of a network, whole or built around a few bytes, with time going by. Nothing
//! panics, an answer is one frame of a bounded length, and the leases keep their bounds and survive their file.
#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr};

use guestwire::frame::checksum;
use guestwire::frame::ethernet::MacAddr;
use guestwire::service::{
    ANSWER_LEN_MAX, Checksums, ClientId, LeaseTime, Leases, Outcome, Pool, Reservation, Route, Services, Settings,
    Subnet, V4, V6, WANTS_HEAD, link_local,
};
use guestwire::switch::PortId;
use guestwire_fuzz::{Input, canary};
use libfuzzer_sys::fuzz_target;

const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const STEPS_MAX: usize = 200;

fn settings(gateway: bool, plenty: bool) -> Settings {
    let subnet = Subnet::new(SERVER, 27).expect("a host of it");
    let reserved = Ipv4Addr::new(10, 0, 0, 5);
    let client = ClientId::Mac(MacAddr([0x52, 0, 0, 0, 0, 1]));
    let v4 = V4 {
        subnet,
        pools: vec![Pool::new(&subnet, Ipv4Addr::new(10, 0, 0, 4), Ipv4Addr::new(10, 0, 0, 20)).expect("hosts of it")],
        router: plenty.then_some(SERVER),
        routes: vec![Route::new(Ipv4Addr::new(10, 1, 0, 0), 16, SERVER).expect("a network")],
        dns: vec![SERVER; usize::from(plenty)],
        domain: "lab.example".parse().ok(),
        search: vec!["example".parse().expect("a domain"); usize::from(plenty)],
        mtu: plenty.then_some(1400),
        lease: LeaseTime::HOUR,
        reservations: vec![Reservation { client, address: reserved, name: "one".parse().ok() }],
    };
    let v6 = V6 {
        link_local: link_local(SERVER_MAC),
        address: plenty.then_some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
        prefix: plenty.then_some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)),
        router_lifetime: u16::from(plenty),
        dns: vec![Ipv6Addr::LOCALHOST; usize::from(plenty)],
        search: vec!["example".parse().expect("a domain"); usize::from(plenty)],
        mtu: plenty.then_some(1400),
    };
    Settings { server_mac: SERVER_MAC, answers_for_gateway: gateway, v4: Some(v4), v6: Some(v6) }
}

fn ethernet(to: [u8; 6], client: u8, ethertype: u16) -> Vec<u8> {
    [&to[..], &[0x52, 0, 0, 0, 0, client], &ethertype.to_be_bytes()].concat()
}

fn ipv4(input: &mut Input<'_>, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let to = if input.u8() & 1 != 0 { SERVER_MAC.0 } else { [0xff; 6] };
    let mut frame = ethernet(to, input.u8() & 7, 0x0800);
    let len = (20 + payload.len()) as u16;
    frame.extend([&[0x45, 0][..], &len.to_be_bytes(), &[0, 0, 0, 0, 64, protocol, 0, 0]].concat());
    frame.extend([[10, 0, 0, input.u8() & 31], SERVER.octets()].concat());
    frame.extend(payload);
    frame
}

/// A client's message around an input's options.
fn dhcp(input: &mut Input<'_>) -> Vec<u8> {
    let (kind, client, address) = (input.u8() & 15, input.u8() & 15, input.u8() & 31);
    let overload = [input.bytes(8), input.bytes(8)];
    let options = input.u8();
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, options & 0x80, 0];
    message.extend([10, 0, 0, if options & 1 != 0 { address } else { 0 }]);
    message.resize(28, 0);
    message.extend([0x52, 0, 0, 0, 0, client]);
    message.resize(44, 0);
    message.extend(overload[0]);
    message.resize(108, 0);
    message.extend(overload[1]);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, kind]);
    if options & 1 == 0 {
        message.extend([50, 4, 10, 0, 0, address]);
    }
    let count = usize::from(input.u16() & 1023);
    message.extend(input.bytes(count));
    let len = (8 + message.len()) as u16;
    let datagram = [&[0, 68, 0, 67][..], &len.to_be_bytes(), &[0, 0], &message].concat();
    let mut frame = ipv4(input, 17, &datagram);
    if options & 1 == 0 {
        frame[26..30].fill(0);
    }
    frame
}

/// A packet of IPv6 around an input's message.
fn ipv6(input: &mut Input<'_>) -> Vec<u8> {
    let groups = [[0x33, 0x33, 0, 0, 0, 2], [0x33, 0x33, 0, 1, 0, 2], SERVER_MAC.0];
    let mut frame = ethernet(groups[usize::from(input.u8()) % 3], 1, 0x86dd);
    let (is_udp, hops, from) = (input.u8() & 1 != 0, input.u8() | 0x80, input.u8());
    let count = usize::from(input.u16() & 511);
    let mut message = input.bytes(count).to_vec();
    if is_udp {
        let len = (8 + message.len()) as u16;
        message = [&[2, 34, 2, 35][..], &len.to_be_bytes(), &[0, 0], &message].concat();
    }
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend([if is_udp { 17 } else { 58 }, hops]);
    let from = if from == 0 { Ipv6Addr::UNSPECIFIED } else { Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, from.into()) };
    frame.extend(from.octets());
    frame.extend(link_local(SERVER_MAC).octets());
    frame.extend(message);
    frame
}

/// Completes the sums that a frame must have to be looked at further.
fn repair(frame: &mut [u8]) {
    let ethertype = frame.get(12..14).map(|bytes| [bytes[0], bytes[1]]);
    let (at, covered, pseudo) = match (ethertype, frame.get(20).copied(), frame.get(23).copied()) {
        (Some([8, 0]), Some(_), protocol) if frame.len() >= 42 => {
            frame[24..26].fill(0);
            let sum = !checksum::sum(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            if protocol != Some(1) {
                return;
            }
            (36, 34, 0)
        }
        (Some([0x86, 0xdd]), Some(protocol), _) if frame.len() >= 62 => {
            let pseudo = checksum::sum(&frame[22..54], u16::from(protocol));
            let pseudo = checksum::add(pseudo, (frame.len() - 54) as u16);
            (if protocol == 58 { 56 } else { 60 }, 54, pseudo)
        }
        _ => return,
    };
    frame[at..at + 2].fill(0);
    let sum = !checksum::sum(&frame[covered..], pseudo);
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn handle(services: &mut Services, port: PortId, frame: &[u8], checksums: Checksums, now: u64) {
    let wanted = services.settings().wants(&frame[..frame.len().min(WANTS_HEAD)]);
    let _ = services.settings().offence(frame);
    let generation = services.leases().map(Leases::generation);
    let before = services.leases().map(Leases::to_text);
    let mut out = Vec::new();
    let outcome = services.handle(port, frame, checksums, now, &mut out);
    assert!(wanted || outcome == Outcome::Ignored);
    assert!(out.len() <= usize::from(outcome == Outcome::Answered));
    for answer in &out {
        assert!(answer.len() <= ANSWER_LEN_MAX.max(frame.len()));
        assert_eq!(MacAddr::source_of(answer), Some(SERVER_MAC));
    }
    let leases = services.leases().expect("DHCP is served");
    assert_eq!(leases.inconsistency(), None);
    assert!(before == Some(leases.to_text()) || generation != Some(leases.generation()), "a change unseen");
}

fuzz_target!(|data: &[u8]| {
    if canary(data) {
        return;
    }
    let mut input = Input::new(data);
    let flags = input.u8();
    let (gateway, plenty) = (flags & 1 != 0, flags & 2 != 0);
    let mut services = Services::new(settings(gateway, plenty), Leases::default());
    let mut now = 1_000_000;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let (what, port) = (input.u8(), PortId(u16::from(input.u8() & 3)));
        let mut frame = match what & 7 {
            0 => {
                let count = usize::from(input.u16() & 2047);
                input.bytes(count).to_vec()
            }
            1..=3 => dhcp(&mut input),
            4 | 5 => ipv6(&mut input),
            6 => {
                let count = usize::from(input.u8());
                let echo = [&[8, 0, 0, 0], input.bytes(count)].concat();
                ipv4(&mut input, 1, &echo)
            }
            _ => {
                now = u64::from(input.u32());
                services.port_ended(port);
                continue;
            }
        };
        if what & 0x80 == 0 {
            repair(&mut frame);
        }
        let checksums = if what & 0x40 == 0 { Checksums::Complete } else { Checksums::Partial };
        now += u64::from(what & 0x38) * 60;
        handle(&mut services, port, &frame, checksums, now);
    }
    let text = services.leases().expect("DHCP is served").to_text();
    let again = Leases::from_text(&text).expect("we wrote it");
    assert_eq!(again.to_text(), text);
    assert_eq!(Services::new(settings(gateway, plenty), again).leases().map(Leases::to_text), Some(text));
});
