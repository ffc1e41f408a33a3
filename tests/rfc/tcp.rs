//! RFC 5382.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::daemon::PATIENCE;
use crate::far::{FAR, NEAR};
use crate::heard::{Heard, Kind};
use crate::space::Space;
use crate::station::Station;
use crate::world::{HOST, OTHER, PEER, World, at, ip};

const SEQ: u32 = 0xffff_fff0;

/// The far one's address, as guests connect to it.
fn far() -> SocketAddr {
    SocketAddr::new(FAR.into(), 9)
}

/// The next connection of a listener.
#[track_caller]
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, from) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream, from)
}

/// Connects a guest's port to a listener. Returns also its external address and port.
#[track_caller]
fn connect(guest: &mut Station, port: u16, listener: &TcpListener) -> (TcpStream, SocketAddr, Heard) {
    let heard = guest.connect(port, listener.local_addr().unwrap(), SEQ);
    let (stream, from) = accept(listener);
    (stream, from, heard)
}

#[track_caller]
fn read(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected));
}

/// Connects from a space, as its kernel does.
fn connected(space: &Space, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = space.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Bytes of a stream, whose segment is acknowledged.
#[track_caller]
fn hear_bytes(guest: &mut Station, from: SocketAddr, bytes: &[u8], seq: u32) -> Heard {
    let heard = guest.hear("what was sent", |heard| heard.from == from && !heard.payload.is_empty());
    assert_eq!(heard.payload, bytes);
    guest.tcp(heard.to.port(), from, (seq, Some(heard.next())), "", b"");
    heard
}

pub(crate) fn mapping() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    let mut streams = Vec::new();
    for family in 0..2 {
        for (address, port) in [(PEER, 4000), (PEER, 4001), (OTHER, 4000)] {
            let listener = world.listener(at(address[family], port));
            let (mut stream, from, heard) = connect(&mut guest, 5000, &listener);
            assert_eq!(from, at(HOST[family], 5000));
            guest.tcp(5000, heard.from, (SEQ + 1, Some(heard.next())), "", b"over there");
            read(&mut stream, b"over there");
            streams.push((stream, listener));
        }
    }
    // As long as there is any of them.
    streams.drain(..2);
    let listener = world.listener(at(OTHER[0], 4002));
    assert_eq!(connect(&mut guest, 5000, &listener).1, at(HOST[0], 5000));
}

pub(crate) fn handshake() {
    let world = World::new(&["--forward", "tcp:2222:22"]);
    let [mut guest] = world.stations();
    for family in 0..2 {
        let listener = world.listener(at(PEER[family], 4000));
        let (mut stream, _, heard) = connect(&mut guest, 5000, &listener);
        guest.tcp(5000, heard.from, (SEQ + 1, Some(heard.next())), "", b"out");
        read(&mut stream, b"out");
        stream.write_all(b"back").unwrap();
        hear_bytes(&mut guest, heard.from, b"back", SEQ + 4);
        // From outside, to a port that was opened.
        let mut stream = connected(&world.machine, at(HOST[family], 2222)).unwrap();
        let syn = guest.accept(22, SEQ);
        assert_eq!(syn.from, stream.local_addr().unwrap());
        stream.write_all(b"in").unwrap();
        hear_bytes(&mut guest, syn.from, b"in", SEQ + 1);
        guest.tcp(22, syn.from, (SEQ + 1, Some(syn.next() + 2)), "", b"back");
        read(&mut stream, b"back");
    }
}

pub(crate) fn simultaneous_open() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    guest.tcp(5000, far(), (SEQ, None), "S", b"");
    let syn = world.far.hear("a SYN", Heard::is_syn);
    // Its own is on the way already.
    world.far.tcp(syn.from.port(), (700, None), "S", b"");
    let answer = world.far.hear("the answer to it", Heard::is_syn_ack);
    assert!(matches!(answer.kind, Kind::Tcp { ack: Some(701), .. }), "{answer:?}");
    world.far.tcp(syn.from.port(), (700, Some(syn.next())), "S", b"");
    let heard = guest.hear("that it is there", Heard::is_syn_ack);
    guest.tcp(5000, far(), (SEQ + 1, Some(heard.next())), "", b"out");
    let out = world.far.hear("what the guest says", |heard| !heard.payload.is_empty());
    assert_eq!(out.payload, b"out");
    world.far.tcp(syn.from.port(), (701, Some(out.next())), "", b"back");
    hear_bytes(&mut guest, far(), b"back", SEQ + 4);
}

pub(crate) fn filtering() {
    let mut world = World::new(&["--forward", "tcp:2222:22"]);
    let [mut guest] = world.stations();
    let listener = world.listener(at(PEER[0], 4000));
    let (_stream, from, _) = connect(&mut guest, 5000, &listener);
    // The mapping is there; the kernel refuses all but the one that the guest talks to.
    let refused = connected(&world.machine, from);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    world.far.tcp(from.port(), (700, None), "S", b"");
    world.far.hear("a reset", Heard::is_reset);
    // To a port that was opened all may come.
    world.machine.ip("address add 192.0.2.9/24 dev eth0");
    for address in [PEER[0], OTHER[0]] {
        let stream = world.machine.run(|| {
            let socket = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Inet,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::empty(),
                None,
            );
            let socket = socket.unwrap();
            rustix::net::bind(&socket, &at(address, 0)).unwrap();
            rustix::net::connect(&socket, &at(HOST[0], 2222)).unwrap();
            TcpStream::from(socket)
        });
        let syn = guest.accept(22, SEQ);
        assert_eq!((syn.from.ip(), syn.from), (ip(address), stream.local_addr().unwrap()));
    }
}

pub(crate) fn unsolicited() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    let begin = Instant::now();
    for port in [7777, 5000] {
        world.far.tcp(port, (700, None), "S", b"");
        let reset = world.far.hear("a reset", Heard::is_reset);
        assert_eq!(reset.from, SocketAddr::new(NEAR.into(), port));
    }
    assert!(begin.elapsed() < Duration::from_secs(6));
    // It costs the guest nothing: its own SYN goes out from there, and is answered.
    guest.tcp(5000, far(), (SEQ, None), "S", b"");
    let syn = world.far.hear("a SYN", Heard::is_syn);
    assert_eq!(syn.from.port(), 5000);
    world.far.tcp(5000, (900, Some(syn.next())), "S", b"");
    guest.hear("that it is there", Heard::is_syn_ack);
}

/// What application-level gateways would change: addresses and ports of the guest's within what it says.
pub(crate) fn no_meddling() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    let own = guest.addresses[0];
    let ftp = format!("PORT {},19,136\r\nEPRT |1|{own}|5000|\r\n", own.to_string().replace('.', ","));
    let answer = b"227 Entering Passive Mode (10,0,2,1,19,136)\r\n";
    for (port, words) in [(21, ftp.clone()), (5060, format!("INVITE sip:a@{own} SIP/2.0\r\n")), (6667, ftp)] {
        let listener = world.listener(at(PEER[0], port));
        let (mut stream, _, heard) = connect(&mut guest, 5000, &listener);
        guest.tcp(5000, heard.from, (SEQ + 1, Some(heard.next())), "", words.as_bytes());
        read(&mut stream, words.as_bytes());
        stream.write_all(answer).unwrap();
        hear_bytes(&mut guest, heard.from, answer, SEQ.wrapping_add(1 + words.len() as u32));
    }
}

pub(crate) fn overloading() {
    let world = World::new(&[]);
    let mut guests: [Station; 3] = world.stations();
    for family in 0..2 {
        let _holder = world.host.run(|| TcpListener::bind(at(HOST[family], 5001)).unwrap());
        let [one, other] = [PEER, OTHER].map(|address| world.listener(at(address[family], 4000)));
        let mut kept = Vec::new();
        for port in [5000, 5001] {
            let mut seen = Vec::new();
            for guest in &mut guests {
                // To different destinations one port would do for the kernel.
                let both = [&one, &other].map(|listener| connect(guest, port, listener));
                assert_eq!(both[0].1, both[1].1);
                seen.push(both[0].1.port());
                kept.push(both);
            }
            assert_eq!(seen[0] == port, port == 5000);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), guests.len());
        }
        // What stands for guests is in no server's way on the host.
        drop(world.host.run(|| TcpListener::bind(at(HOST[family], 5000)).unwrap()));
    }
}

pub(crate) fn hairpin() {
    let world = World::of_two("tcp:2222:b:22");
    let [mut one, mut other] = [("a.sock", 1), ("b.sock", 2)].map(|(name, n)| Station::new(&world.daemon, name, n));
    for family in 0..2 {
        // So that it is known.
        other.udp(9, at(PEER[family], 9), b"");
        other.hear_icmp();
        let listener = world.listener(at(PEER[family], 4000));
        let (_stream, external, _) = connect(&mut one, 5000, &listener);
        let door = at(HOST[family], 2222);
        one.tcp(5000, door, (SEQ, None), "S", b"");
        let syn = other.accept(22, 77);
        assert_eq!((syn.from, syn.to.ip()), (external, other.addresses[family]));
        let there = one.hear("that it is there", Heard::is_syn_ack);
        assert_eq!(there.from, door);
        one.tcp(5000, door, (SEQ + 1, Some(there.next())), "", b"question");
        hear_bytes(&mut other, external, b"question", 78);
        other.tcp(22, external, (78, Some(syn.next() + 8)), "", b"answer");
        hear_bytes(&mut one, door, b"answer", SEQ + 9);
    }
}

pub(crate) fn hairpin_itself() {
    let world = World::new(&["--forward", "tcp:2222:22"]);
    let [mut guest] = world.stations();
    for family in 0..2 {
        guest.udp(9, at(PEER[family], 9), b"");
        guest.hear_icmp();
        let door = at(HOST[family], 2222);
        guest.tcp(5000, door, (SEQ, None), "S", b"");
        // Both ends are its own, and hear of each other in any order.
        let [mut syn, mut there] = [None, None];
        while syn.is_none() || there.is_none() {
            let heard = guest.hear("the two ends", |heard| heard.is_syn() || heard.is_syn_ack());
            let place = if heard.is_syn() { &mut syn } else { &mut there };
            *place = Some(heard);
        }
        let (syn, there) = (syn.unwrap(), there.unwrap());
        let own = SocketAddr::new(guest.addresses[family], 22);
        assert_eq!((syn.from, syn.to, there.from), (at(HOST[family], 5000), own, door));
        guest.tcp(22, syn.from, (77, Some(syn.next())), "S", b"");
        guest.tcp(5000, door, (SEQ + 1, Some(there.next())), "", b"myself");
        hear_bytes(&mut guest, syn.from, b"myself", 78);
    }
    // By the port that it comes from nobody is met: not even itself.
    let own = at(HOST[0], 5001);
    guest.tcp(5001, own, (SEQ, None), "S", b"");
    assert!(guest.hear("a reset", |heard| heard.is_tcp() && heard.from == own).is_reset());
}

pub(crate) fn unreachable() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    for code in [0, 1, 3, 13] {
        guest.tcp(5000, far(), (SEQ, None), "S", b"");
        let syn = world.far.hear("a SYN", Heard::is_syn);
        world.far.icmp(FAR, (3, code), 0, &syn.frame[14..]);
        let heard = guest.hear_icmp();
        assert_eq!((heard.from.ip(), heard.icmp()), (FAR.into(), Some((3, code))));
        let (from, to, transport) = heard.quoted();
        assert_eq!((from, to), (guest.addresses[0], FAR.into()));
        assert_eq!(transport[..8], [&[0x13, 0x88, 0, 9][..], &SEQ.to_be_bytes()].concat());
    }
}

pub(crate) fn icmp_ends_nothing() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    guest.tcp(5000, far(), (SEQ, None), "S", b"");
    let syn = world.far.hear("a SYN", Heard::is_syn);
    world.far.tcp(5000, (900, Some(syn.next())), "S", b"");
    let there = guest.hear("that it is there", Heard::is_syn_ack);
    guest.tcp(5000, far(), (SEQ + 1, Some(there.next())), "", b"out");
    let out = world.far.hear("what the guest says", |heard| heard.payload == b"out");
    // What they are about is on its way still.
    let kinds = (0..16).map(|code| (3, code)).chain([(4, 0), (5, 1), (11, 0), (11, 1), (12, 0), (12, 2)]);
    for (kind, code) in kinds {
        world.far.icmp(FAR, (kind, code), 0, &out.frame[14..]);
    }
    world.far.tcp(5000, (901, Some(out.next())), "", b"still there?");
    let heard = guest.hear("what comes", |heard| heard.is_tcp() && heard.from == far() && !heard.payload.is_empty());
    assert_eq!(heard.payload, b"still there?");
    guest.tcp(5000, far(), (SEQ + 4, Some(heard.next())), "", b"yes");
    world.far.hear("the answer", |heard| heard.payload == b"yes" && heard.from.port() == 5000);
}

pub(crate) fn icmp_while_opening() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    for _ in 0..3 {
        guest.tcp(5000, far(), (SEQ, None), "S", b"");
        let syn = world.far.hear("a SYN", Heard::is_syn);
        assert_eq!(syn.from.port(), 5000);
        world.far.icmp(FAR, (3, 1), 0, &syn.frame[14..]);
        assert_eq!(guest.hear_icmp().icmp(), Some((3, 1)));
    }
    // It asks again, as if nothing had been said.
    guest.tcp(5000, far(), (SEQ, None), "S", b"");
    let syn = world.far.hear("a SYN", Heard::is_syn);
    assert_eq!(syn.from.port(), 5000);
    world.far.tcp(5000, (900, Some(syn.next())), "S", b"");
    guest.hear("that it is there", Heard::is_syn_ack);
}
