//! Whom the engine says that it has worked for.

use std::net::{Ipv4Addr, UdpSocket};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::forward::Doors;
use super::*;
use crate::frame::checksum;

const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const SECOND: u64 = 1_000_000_000;

/// Guests have no names.
#[derive(Debug)]
struct Nameless;

impl Names for Nameless {
    fn host(&self, _: &str) -> Option<(Ipv4Addr, Option<MacAddr>)> {
        None
    }

    fn name_at(&self, _: Ipv4Addr) -> Option<String> {
        None
    }

    fn name_of(&self, _: PortId, _: MacAddr) -> Option<String> {
        None
    }
}

/// One whose guests reach the host.
fn engine() -> Engine {
    engine_with(100)
}

/// One that may have so many sockets.
fn engine_with(sockets: usize) -> Engine {
    let settings = Settings {
        gateway_mac: GATEWAY_MAC,
        subnet: "10.0.2.0/24".parse().unwrap(),
        subnet6: None,
        domain: None,
        mtu: 1500,
        advertisement: None,
        forwards: Vec::new(),
        host_loopback: true,
        allow: Vec::new(),
        deny: Vec::new(),
        peek_offset: true,
    };
    let forwards = Forwards::new(Doors::default(), "network".to_owned(), 1, None).unwrap();
    Engine::new(&settings, Arc::new(Nameless), Sockets::new(sockets), (forwards, 0)).unwrap()
}

/// A guest's datagram to the gateway, with nothing in it.
fn datagram(guest: u8, from_port: u16, to_port: u16) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 10 + guest];
    ip.extend(GATEWAY.octets());
    let sum = !checksum::sum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [from_port, to_port, 8, 0].map(u16::to_be_bytes).concat();
    [&GATEWAY_MAC.0[..], &[2, 0, 0, 0, 0, guest], &[8, 0], &ip, &udp].concat()
}

/// Something comes, soon.
pub(in super::super) fn await_readable(fd: impl AsFd) {
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(poll(&mut polled, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap(), 1, "nothing comes");
}

/// What each port has to answer for since the last time, in parts.
fn parts(engine: &mut Engine) -> Vec<(u16, f64)> {
    let mut parts = Vec::new();
    engine.efforts(|port, part| parts.push((port.0, part)));
    parts.sort_by_key(|(port, _)| *port);
    parts
}

#[test]
fn whose_endpoints_are_ended_answers_for_that() {
    let mut engine = engine();
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to_port = host.local_addr().unwrap().port();
    let send = |engine: &mut Engine, guest: u8, from_port, now| {
        let frame = datagram(guest, from_port, to_port);
        engine.take(PortId(guest.into()), &Offload::None, &Bytes::private(&frame), now).unwrap();
        assert!(engine.burst_ended(now), "it made a socket");
    };
    (0..7).for_each(|n| send(&mut engine, 1, 2000 + n, SECOND));
    engine.look(SECOND);
    parts(&mut engine);
    let later = 302 * SECOND;
    send(&mut engine, 2, 2000, later);
    engine.look(later);
    // The other one has made a socket, of which the kernel tells that it can be written to.
    let its = parts(&mut engine);
    assert!(matches!(its[..], [(1, part), (2, _)] if part > 0.7), "seven were ended: {its:?}");
    assert_eq!(engine.turnover()[1].closed, 7);
    let mut buffer = [0; 1];
    host.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let from = (0..8).map(|_| host.recv_from(&mut buffer).unwrap().1).last().unwrap();
    host.send_to(b"x", from).unwrap();
    await_readable(engine.fd());
    engine.look(later);
    assert!(!engine.out.is_empty(), "the guest is sent it");
    assert_eq!(parts(&mut engine), [(2, 1.0)]);
}

#[test]
fn what_a_burst_has_for_an_endpoint_is_sent_before_that_gives_way() {
    let mut engine = engine_with(1);
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_nonblocking(true).unwrap();
    let to_port = host.local_addr().unwrap().port();
    let frames = [1000, 1000, 1001, 1002, 1002].map(|from_port| datagram(1, from_port, to_port));
    let mut ended = Vec::new();
    let view = |i: usize| (Offload::None, Bytes::private(&frames[i]));
    engine.take_burst(PortId(1), 0..frames.len(), view, 0, |i, result| ended.push((i, result)));
    assert_eq!(ended, [0, 1, 2, 3, 4].map(|i| (i, Ok(()))));
    for _ in &frames {
        await_readable(&host);
        assert_eq!(host.recv(&mut [0; 8]).unwrap(), 0);
    }
}
