//! What time does.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use guestwire::frame::offload::Offload;
use guestwire::metrics::Counter;
use guestwire::nat::Turnover;
use guestwire::ring::Bytes;
use guestwire::switch::PortId;

use crate::clock::{Clock, LOCAL};
use crate::daemon::until;
use crate::far::FAR;
use crate::heard::Kind;

const HOUR: u64 = 3600;
/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

fn far() -> SocketAddr {
    SocketAddr::new(FAR.into(), 9)
}

/// A clock on which the guest has just sent a datagram from port 5000.
fn with_mapping() -> Clock {
    let mut clock = Clock::new(100);
    clock.udp(5000, far()).unwrap();
    assert_eq!(clock.bound("udp"), [5000]);
    clock
}

/// Sends to the mapping from beyond, and expects that it comes.
fn send_in(clock: &mut Clock) {
    let mut frame = Vec::new();
    clock.far.from(FAR).udp(9, 5000).write(&mut frame, b"unasked").unwrap();
    clock.far.send(&frame);
    clock.hear("what comes", |heard| heard.payload == b"unasked" && heard.to.port() == 5000);
}

pub(crate) fn udp_least() {
    let mut clock = with_mapping();
    clock.pass(120);
    send_in(&mut clock);
}

pub(crate) fn udp_default() {
    let mut clock = with_mapping();
    clock.pass(300);
    assert_eq!(clock.bound("udp"), [5000]);
    clock.pass(11);
    clock.until_bound("udp", &[]);
}

pub(crate) fn udp_outbound() {
    let mut clock = with_mapping();
    for _ in 0..12 {
        clock.pass(290);
        clock.udp(5000, far()).unwrap();
    }
    assert_eq!(clock.engine.turnover()[1], Turnover { opened: 1, closed: 0 });
    assert_eq!(clock.bound("udp"), [5000]);
}

pub(crate) fn udp_inbound() {
    let mut clock = with_mapping();
    for _ in 0..12 {
        clock.pass(290);
        send_in(&mut clock);
    }
    assert_eq!(clock.engine.turnover()[1], Turnover { opened: 1, closed: 0 });
    clock.pass(311);
    clock.until_bound("udp", &[]);
}

#[test]
fn what_became_of_a_datagram_keeps_no_mapping() {
    let mut clock = with_mapping();
    let sent = clock.far.hear("the datagram", |heard| heard.to.port() == 9);
    clock.pass(200);
    clock.far.icmp(FAR, (3, 1), 0, &sent.frame[14..]);
    clock.hear("the error", |heard| heard.icmp() == Some((3, 1)));
    clock.pass(111);
    clock.until_bound("udp", &[]);
}

#[test]
fn the_endpoint_that_was_used_the_longest_ago_gives_way_to_one_more() {
    let mut clock = Clock::new(3);
    for port in [5000, 5001, 5002, 5000] {
        clock.udp(port, far()).unwrap();
        clock.pass(1);
    }
    clock.udp(5003, far()).unwrap();
    clock.until_bound("udp", &[5000, 5002, 5003]);
    // What comes is use as well.
    let mut frame = Vec::new();
    clock.far.from(FAR).udp(9, 5002).write(&mut frame, b"unasked").unwrap();
    clock.far.send(&frame);
    clock.hear("what comes", |heard| heard.payload == b"unasked");
    clock.udp(5004, far()).unwrap();
    clock.until_bound("udp", &[5002, 5003, 5004]);
}

/// What there is to be read from a connection: nothing yet, the end, or how it ended.
fn state(mut stream: &TcpStream) -> Result<usize, ErrorKind> {
    stream.read(&mut [0; 9]).map_err(|error| error.kind())
}

/// Waits, while no time passes on the clock, until a connection was broken off.
#[track_caller]
fn until_reset(stream: &TcpStream) {
    until("a reset", || state(stream) == Err(ErrorKind::ConnectionReset));
}

#[track_caller]
fn assert_idle(stream: &TcpStream) {
    assert_eq!(state(stream), Err(ErrorKind::WouldBlock));
}

/// To close thousands of sockets takes long, and the engine is not to be held up by it: whoever ends a port does that
/// when the engine is free again.
#[test]
fn what_a_port_that_has_gone_had_is_forgotten_first_and_then_closed() {
    let mut clock = with_mapping();
    let listener = clock.listener();
    let (stream, _) = clock.ask(5001, &listener);
    clock.ping(LOCAL).unwrap();
    let gone = clock.engine.port_ended(PortId(1));
    assert_eq!(clock.engine.turnover(), [Turnover { opened: 1, closed: 1 }; 2]);
    assert_eq!((clock.bound("udp"), clock.bound("icmp").len()), (vec![5000], 1));
    assert_idle(&stream);
    // The engine goes on, and knows nothing of them.
    clock.udp(5000, far()).unwrap();
    assert_eq!(clock.bound("udp").len(), 2);
    gone.close();
    until_reset(&stream);
    until("the former are closed", || clock.bound("udp").len() == 1 && clock.bound("icmp").is_empty());
}

pub(crate) fn tcp_established() {
    [true, false].into_iter().for_each(stays_established);
}

fn stays_established(peek_offset: bool) {
    let mut clock = Clock::peeking(100, peek_offset);
    let listener = clock.listener();
    let to = listener.local_addr().unwrap();
    let [silent, other] = [5000, 5001].map(|port| {
        let (stream, there) = clock.ask(port, &listener);
        clock.tcp(port, to, (101, Some(there.next())), "").unwrap();
        (stream, there.next())
    });
    clock.heard();
    clock.pass(2 * HOUR - 1);
    assert_eq!(clock.heard(), []);
    // One of them answers when it is asked whether it is there.
    for second in 0..240 {
        assert_idle(&silent.0);
        clock.pass(1);
        let mut asked: Vec<u16> = clock.heard().iter().map(|heard| heard.to.port()).collect();
        asked.sort_unstable();
        let expected = if second == 0 { &[5000, 5001][..] } else { &[5000][..] };
        assert_eq!(asked, if second % 30 == 0 { expected } else { &[] }, "{second}");
        if second == 0 {
            clock.tcp(5001, to, (101, Some(other.1)), "").unwrap();
        }
    }
    // After two hours and four minutes.
    clock.pass(1);
    assert!(clock.heard().iter().all(|heard| heard.is_reset() && heard.to.port() == 5000));
    until_reset(&silent.0);
    assert_idle(&other.0);
    for _ in 0..5 {
        clock.tcp(5001, to, (101, Some(other.1)), "").unwrap();
        clock.pass(2 * HOUR);
        assert_eq!(clock.heard().len(), 1);
    }
    assert_idle(&other.0);
}

pub(crate) fn tcp_transitory() {
    [true, false].into_iter().for_each(opens_and_closes);
}

fn opens_and_closes(peek_offset: bool) {
    const LEAST: u64 = 240;
    let mut clock = Clock::peeking(100, peek_offset);
    let listener = clock.listener();
    let to = listener.local_addr().unwrap();
    // Opening: nobody answers, and the guest does not.
    clock.tcp(5000, far(), (100, None), "S").unwrap();
    let (half_open, _) = clock.ask(5001, &listener);
    // Closing: the guest has ended its side.
    let (mut closing, there) = clock.ask(5002, &listener);
    clock.tcp(5002, to, (101, Some(there.next())), "").unwrap();
    clock.tcp(5002, to, (101, Some(there.next())), "F").unwrap();
    until("the end of what the guest sends", || state(&closing) == Ok(0));
    clock.heard();
    clock.pass(LEAST);
    assert!(clock.bound("tcp").contains(&5000), "the kernel asks still");
    assert_idle(&half_open);
    closing.write_all(b"still there?").unwrap();
    let mut offer = None;
    until("something for the guest", || {
        clock.look();
        offer = clock.engine.offer(clock.now());
        offer.is_some()
    });
    // A moment later.
    clock.pass(4);
    until_reset(&half_open);
    assert!(clock.heard().iter().any(|heard| heard.is_reset() && heard.to.port() == 5001));
}

pub(crate) fn echo_least() {
    let mut clock = Clock::new(100);
    clock.ping(LOCAL).unwrap();
    clock.hear("the reply", |heard| heard.icmp() == Some((0, 0)));
    clock.pass(60);
    assert_eq!(clock.bound("icmp").len(), 1);
    clock.pass(6);
    clock.until_bound("icmp", &[]);
}

pub(crate) fn echo_error() {
    let mut clock = Clock::new(100);
    clock.ping(FAR).unwrap();
    let request = clock.far.hear("a request", |heard| heard.icmp() == Some((8, 0)));
    clock.pass(30);
    clock.far.icmp(FAR, (11, 0), 0, &request.frame[14..]);
    let heard = clock.hear("the error", |heard| heard.icmp() == Some((11, 0)));
    assert_eq!(heard.quoted().2[4..8], [0, 7, 0, 1], "by the guest's own identifier");
    clock.pass(30);
    assert_eq!(clock.bound("icmp").len(), 1);
    clock.pass(6);
    clock.until_bound("icmp", &[]);
}

pub(crate) fn reassembly() {
    let far6 = "2001:db8::9".parse().unwrap();
    for (to, gateway, time_exceeded) in [(FAR.into(), "10.0.2.1", (11, 1)), (far6, "fd00:77::1", (3, 1))] {
        let mut clock = Clock::new(100);
        let [first, last] = [true, false].map(|is_first| Clock::piece(to, 1, is_first));
        let now = clock.now();
        clock.engine.take(PortId(1), &Offload::None, &Bytes::private(&first), now).unwrap();
        // It is told when it is due, though nothing else happens.
        clock.engine.burst_ended(now + 60 * SECOND - SECOND / 10);
        assert!(!clock.wakes_within(50) && clock.wakes_within(10_000));
        clock.pass(59);
        assert_eq!(clock.heard(), []);
        clock.pass(1);
        let heard = clock.heard();
        let [error] = &heard[..] else { panic!("{heard:?}") };
        assert_eq!((error.from.ip(), error.icmp()), (gateway.parse().unwrap(), Some(time_exceeded)));
        assert_eq!(error.payload, first[14..]);
        // What comes later begins anew, and without the first piece nobody is told (RFC 792).
        clock.send(&last).unwrap();
        clock.pass(120);
        assert_eq!(clock.heard(), []);
    }
}

pub(crate) fn shortage() {
    let mut clock = Clock::new(1);
    clock.tcp(5000, far(), (100, None), "S").unwrap();
    assert_eq!(clock.tcp(5001, far(), (100, None), "S"), Err(Counter::DropRxFlowLimit));
    assert_eq!(clock.udp(5001, far()), Err(Counter::DropRxFlowLimit));
    assert_eq!(clock.ping(FAR), Err(Counter::DropRxFlowLimit));
    clock.look();
    let heard = clock.heard();
    let kinds: Vec<Kind> = heard.iter().map(|heard| heard.kind).collect();
    assert_eq!(kinds, [Kind::Icmp { kind: 3, code: 13, rest: 0 }; 3]);
    // Each quotes its own: TCP, UDP and ICMP.
    assert_eq!(heard.iter().map(|heard| heard.payload[9]).collect::<Vec<u8>>(), [6, 17, 1]);
}
