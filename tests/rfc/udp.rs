//! RFC 4787.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv4Header, PacketBuilder, UdpHeader};

use crate::far::{FAR, MTU, NEAR, ROUTER, v4};
use crate::guest::mac;
use crate::heard::{Heard, Kind};
use crate::space::Space;
use crate::station::Station;
use crate::world::{
    A_MOMENT, GATEWAY, HOST, OTHER, PEER, UPLINK, World, assert_silent, at, external, ip, receive, socket,
};

pub(crate) fn mapping() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    for family in 0..2 {
        for (address, port) in [(PEER, 4000), (PEER, 4001), (OTHER, 4000)] {
            let socket = world.socket(at(address[family], port));
            assert_eq!(external(&mut guest, 5000, &socket), at(HOST[family], 5000));
        }
    }
}

pub(crate) fn pooling() {
    let world = World::prepared(&[], |host| {
        host.ip("address add 192.0.2.77/24 dev wan");
    });
    let socket = world.socket(at(PEER[0], 4000));
    for mut guest in world.stations::<2>() {
        for port in [5000, 6000] {
            assert_eq!(external(&mut guest, port, &socket).ip(), ip(HOST[0]));
        }
    }
    // The route says so, and nothing of ours.
    world.host.ip("route replace 192.0.2.3/32 dev wan src 192.0.2.77");
    let socket = world.socket(at(OTHER[0], 4000));
    let [_, _, mut guest] = world.stations();
    assert_eq!(external(&mut guest, 5000, &socket).ip(), ip("192.0.2.77"));
}

pub(crate) fn overloading() {
    let world = World::new(&[]);
    let mut guests: [Station; 3] = world.stations();
    for family in 0..2 {
        // A program of the host's has one as well.
        let _holder = socket(&world.host, at(HOST[family], 5001));
        let [one, other] = [PEER, OTHER].map(|address| world.socket(at(address[family], 4000)));
        for port in [5000, 5001] {
            let mut seen: Vec<SocketAddr> = guests.iter_mut().map(|guest| external(guest, port, &one)).collect();
            assert_eq!(seen[0].port() == port, port == 5000);
            // Not by way of different destinations either.
            let again: Vec<SocketAddr> = guests.iter_mut().map(|guest| external(guest, port, &other)).collect();
            assert_eq!(again, seen);
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), guests.len(), "{seen:?}");
            assert!(seen.iter().all(|from| from.port() != 5001), "{seen:?}");
        }
    }
}

pub(crate) fn range() {
    let allowed = |host: &Space| host.set("ipv4/ip_unprivileged_port_start", "0");
    let world = World::prepared(&[], allowed);
    let mut guests: [Station; 2] = world.stations();
    for address in PEER {
        let socket = world.socket(at(address, 4000));
        for (port, is_low) in [(1001, true), (1023, true), (1024, false), (60_001, false)] {
            let ports = guests.each_mut().map(|guest| external(guest, port, &socket).port());
            assert_eq!(ports[0], port);
            assert!(ports[1] != port && (ports[1] < 1024) == is_low, "{ports:?}");
        }
    }
    // Whoever has no right to those gets another.
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    let socket = world.socket(at(PEER[0], 4000));
    assert!(external(&mut guest, 1001, &socket).port() >= 1024);
}

pub(crate) fn parity() {
    let world = World::new(&[]);
    let mut guests: [Station; 3] = world.stations();
    for address in PEER {
        let socket = world.socket(at(address, 4000));
        for port in [5000, 5001, 65_534, 65_535, 1024, 1023, 2] {
            for guest in &mut guests {
                let other = external(guest, port, &socket).port();
                assert_eq!(other % 2, port % 2, "{port} is {other}");
            }
        }
    }
}

/// A machine in the host's world with an address that is in the guests' subnet as well.
pub(crate) fn conflict() {
    let hidden = "10.0.2.200";
    let world = World::prepared(&[], |host| {
        host.ip("address add 10.0.2.129/25 dev wan");
    });
    world.machine.ip("address add 10.0.2.200/25 dev eth0");
    world.daemon.wait_for_line("guests do not reach what the host reaches by its route 10.0.2.129/32");
    world.daemon.wait_for_line("their own subnet 10.0.2.0/24: choose another with --subnet, for instance 192.168.");
    let [mut guest] = world.stations();
    let socket = world.socket(at(hidden, 4000));
    guest.udp(5000, at(hidden, 4000), b"hello");
    assert_eq!(guest.hear_icmp().icmp(), Some((3, 13)), "the guest is told");
    assert_silent(&socket);
    // All else is as it was.
    let socket = world.socket(at(PEER[0], 4000));
    assert_eq!(external(&mut guest, 5000, &socket), at(HOST[0], 5000));
}

pub(crate) fn filtering() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    for family in 0..2 {
        let known = world.socket(at(PEER[family], 4000));
        let external = external(&mut guest, 5000, &known);
        for (address, port) in [(PEER, 4000), (PEER, 4001), (OTHER, 4002)] {
            let own = at(address[family], port);
            let socket = if port == 4000 { known.try_clone().unwrap() } else { world.socket(own) };
            socket.send_to(b"unasked", external).unwrap();
            let heard = guest.hear("what comes unasked", |heard| heard.payload == b"unasked");
            assert_eq!((heard.from, heard.to), (own, SocketAddr::new(guest.addresses[family], 5000)));
        }
    }
}

/// What a guest hears of another whom it knows by its external address, and the answer.
fn exchange(one: &mut Station, other: &mut Station, family: usize, ports: [(u16, SocketAddr); 2]) {
    let [(port, external), (other_port, other_external)] = ports;
    one.udp(port, other_external, b"question");
    let question = other.hear("the question", |heard| heard.payload == b"question");
    let to = SocketAddr::new(other.addresses[family], other_port);
    assert_eq!((question.from, question.to), (external, to));
    other.udp(other_port, external, b"answer");
    let answer = one.hear("the answer", |heard| heard.payload == b"answer");
    assert_eq!((answer.from, answer.to), (other_external, SocketAddr::new(one.addresses[family], port)));
}

pub(crate) fn hairpin() {
    let world = World::new(&[]);
    let [mut one, mut other] = world.stations();
    for (family, address) in PEER.iter().enumerate() {
        let rendezvous = world.socket(at(address, 4000));
        // Both use the same port.
        let ports = [&mut one, &mut other].map(|guest| (5000, external(guest, 5000, &rendezvous)));
        assert_ne!(ports[0], ports[1]);
        exchange(&mut one, &mut other, family, ports);
        let [a, b] = ports;
        exchange(&mut other, &mut one, family, [b, a]);
        // The host's other address is as good, though nobody was told of it.
        if family == 0 {
            let near = SocketAddr::new(NEAR.into(), b.1.port());
            one.udp(5000, near, b"the other way");
            let heard = other.hear("it", |heard| heard.payload == b"the other way");
            assert_eq!(heard.from, SocketAddr::new(NEAR.into(), a.1.port()));
        }
    }
}

/// One guest to itself: from one port to another, and from one to the same.
pub(crate) fn hairpin_itself() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    for (family, address) in PEER.iter().enumerate() {
        let rendezvous = world.socket(at(address, 4000));
        let [one, other] = [5000, 5001].map(|port| (port, external(&mut guest, port, &rendezvous)));
        for (from, to) in [(one, other), (other, one), (one, one)] {
            guest.udp(from.0, to.1, b"myself");
            let heard = guest.hear("itself", |heard| heard.payload == b"myself");
            let own = SocketAddr::new(guest.addresses[family], to.0);
            assert_eq!((heard.from, heard.to), (from.1, own), "by its external address and port");
        }
    }
}

/// What application-level gateways would change: addresses and ports of the guest's within what it says.
pub(crate) fn no_meddling() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    let own = guest.addresses[0];
    let sip =
        format!("INVITE sip:b@192.0.2.2 SIP/2.0\r\nVia: SIP/2.0/UDP {own}:5060\r\nContact: <sip:a@{own}>\r\n\r\n");
    let IpAddr::V4(v4) = own else { panic!() };
    let stun = [&[0, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12], &[0, 1, 0, 8, 0, 1, 0x13, 0xc4], &v4.octets()];
    let dns = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07gateway\0\0\x01\0\x01";
    for (port, words) in [(5060, sip.as_bytes()), (3478, &stun.concat()), (69, b"\0\x01file\0octet\0"), (53, dns)] {
        let socket = world.socket(at(PEER[0], port));
        guest.udp(5060, socket.local_addr().unwrap(), words);
        let (bytes, from) = receive(&socket);
        assert_eq!(bytes, words, "{port}");
        socket.send_to(words, from).unwrap();
        let heard = guest.hear("the same", |heard| heard.from.port() == port);
        assert_eq!(heard.payload, words, "{port}");
    }
}

pub(crate) fn deterministic() {
    let world = World::new(&[]);
    let [mut first, mut second] = world.stations();
    for family in 0..2 {
        let known = world.socket(at(PEER[family], 4000));
        external(&mut first, 5000, &known);
        // This one cannot have its own port; all else is as for the first.
        let mapped = external(&mut second, 5000, &known);
        assert_ne!(mapped.port(), 5000);
        for (address, port) in [(PEER, 4001), (OTHER, 4000)] {
            let socket = world.socket(at(address[family], port));
            assert_eq!(external(&mut second, 5000, &socket), mapped);
        }
        let stranger = world.socket(at(OTHER[family], 4001));
        stranger.send_to(b"unasked", mapped).unwrap();
        let heard = second.hear("what comes unasked", |heard| heard.payload == b"unasked");
        assert_eq!(heard.from, stranger.local_addr().unwrap());
    }
}

/// A guest's datagram as it was heard beyond the host, from the IP header on.
fn heard_far(world: &mut World, guest: &mut Station) -> (Heard, Vec<u8>) {
    guest.udp(5000, SocketAddr::new(FAR.into(), 9), b"a datagram");
    let heard = world.far.hear("a datagram", |heard| heard.kind == Kind::Udp && heard.to.port() == 9);
    assert_eq!(heard.payload, b"a datagram");
    let packet = heard.frame[14..].to_vec();
    (heard, packet)
}

pub(crate) fn icmp_ends_nothing() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    let (heard, packet) = heard_far(&mut world, &mut guest);
    // All unreachables, source quench, redirects, time exceeded, parameter problem, and what tells of no packet.
    let kinds =
        (0..16).map(|code| (3, code)).chain([(4, 0), (5, 1), (11, 0), (11, 1), (12, 0), (12, 2), (13, 0), (9, 0)]);
    for (kind, code) in kinds {
        world.far.icmp(FAR, (kind, code), 0, &packet);
    }
    assert_eq!(guest.hear_icmp().icmp(), Some((3, 0)), "they have come");
    // The mapping is there, and open to all.
    let socket = world.socket(at(PEER[0], 4000));
    socket.send_to(b"still there?", at(HOST[0], heard.from.port())).unwrap();
    guest.hear("what comes", |heard| heard.payload == b"still there?" && heard.to.port() == 5000);
    let (again, _) = heard_far(&mut world, &mut guest);
    assert_eq!(again.from, heard.from);
    assert_eq!(world.daemon.counters(UPLINK)["udp_opened"], 1);
}

pub(crate) fn icmp_of_anybody() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    let (_, packet) = heard_far(&mut world, &mut guest);
    for from in [FAR, ROUTER, Ipv4Addr::new(203, 0, 113, 7)] {
        world.far.icmp(from, (11, 0), 0, &packet);
        let heard = guest.hear_icmp();
        assert_eq!((heard.from.ip(), heard.icmp()), (from.into(), Some((11, 0))));
    }
}

pub(crate) fn unreachable() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    for (family, word) in [(0, (3, 3)), (1, (1, 4))] {
        guest.udp(5000, at(PEER[family], 9), b"nobody?");
        let heard = guest.hear_icmp();
        assert_eq!((heard.from.ip(), heard.icmp()), (ip(PEER[family]), Some(word)));
    }
}

/// Sends a datagram of so many bytes, which may be cut or may not.
fn long(guest: &mut Station, len: usize, may_be_cut: bool) {
    let mut frame = Vec::new();
    guest.to(FAR.into()).udp(5000, 9).write(&mut frame, &vec![7; len]).unwrap();
    if may_be_cut {
        let (mut header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
        header.dont_fragment = false;
        header.header_checksum = header.calc_header_checksum();
        frame[14..34].copy_from_slice(&header.to_bytes());
    }
    guest.guest.send(&frame);
}

pub(crate) fn too_long() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    long(&mut guest, 1400, false);
    let heard = guest.hear_icmp();
    assert_eq!(heard.kind, Kind::Icmp { kind: 3, code: 4, rest: MTU as u32 });
    assert_eq!(heard.from.ip(), ip(GATEWAY[0]));
    assert!(world.far.hear_within(A_MOMENT, |heard| heard.kind == Kind::Udp).is_none());
    // What fits goes.
    long(&mut guest, MTU - 28, false);
    assert_eq!(world.far.hear("what fits", |heard| heard.kind == Kind::Udp).payload.len(), MTU - 28);
}

pub(crate) fn cut() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    long(&mut guest, 1400, true);
    let (mut next, mut bytes) = (0, Vec::new());
    crate::daemon::until("all of it", || {
        let Some(frame) = world.far.poll().filter(|frame| frame[12..14] == [8, 0] && frame[23] == 17) else {
            return false;
        };
        let (header, payload) = Ipv4Header::from_slice(&frame[14..]).unwrap();
        let payload = &payload[..usize::from(header.total_len) - 20];
        assert_eq!(usize::from(header.fragment_offset.value()) * 8, next, "in order");
        assert!(frame.len() - 14 <= MTU);
        next += payload.len();
        bytes.extend_from_slice(payload);
        !header.more_fragments
    });
    assert_eq!((bytes.len(), bytes[8..].iter().all(|byte| *byte == 7)), (1408, true));
}

/// A datagram in three pieces, as frames behind these first bytes.
fn pieces(
    macs: [[u8; 6]; 2],
    (from, to): (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
    (id, payload): (u16, &[u8]),
) -> Vec<Vec<u8>> {
    let mut whole = Ipv4Header::new(0, 64, IpNumber::UDP, from.octets(), to.octets()).unwrap();
    whole.dont_fragment = false;
    whole.identification = id;
    let udp = UdpHeader::with_ipv4_checksum(ports.0, ports.1, &whole, payload).unwrap();
    let bytes = [&udp.to_bytes()[..], payload].concat();
    let size = (bytes.len() / 3).next_multiple_of(8);
    let piece = |(n, part): (usize, &[u8])| {
        let mut header = whole.clone();
        header.fragment_offset = IpFragOffset::try_new((n * size / 8) as u16).unwrap();
        header.more_fragments = (n + 1) * size < bytes.len();
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(macs[0], macs[1]).ip(IpHeaders::Ipv4(header, Default::default()));
        builder.write(&mut frame, IpNumber::UDP, part).unwrap();
        frame
    };
    bytes.chunks(size).enumerate().map(piece).collect()
}

pub(crate) fn fragments() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    let socket = world.socket(at(PEER[0], 4000));
    let external = external(&mut guest, 5000, &socket);
    let macs = [mac(1), guest.gateway];
    let (own, peer) = (v4(guest.addresses[0]), v4(ip(PEER[0])));
    let far_macs = [[2, 0, 0, 0, 0, 9], world.host.mac("far")];
    for (id, order) in (1..).zip([[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]]) {
        let payload: Vec<u8> = (0..1200_u16).map(|n| (n * id) as u8).collect();
        let out = pieces(macs, (own, peer), (5000, 4000), (id, &payload));
        order.iter().for_each(|n| guest.guest.send(&out[*n]));
        assert_eq!(receive(&socket), (payload.clone(), external), "{order:?}");
        let back = pieces(far_macs, (FAR, NEAR), (9, external.port()), (id, &payload));
        order.iter().for_each(|n| world.far.send(&back[*n]));
        let heard = guest.hear("what came in pieces", |heard| heard.kind == Kind::Udp);
        assert_eq!((heard.payload, heard.from), (payload, SocketAddr::new(FAR.into(), 9)), "{order:?}");
    }
}

pub(crate) fn fragment_flood() {
    let mut world = World::new(&[]);
    let [mut hostile, mut guest] = world.stations();
    let socket = world.socket(at(PEER[0], 4000));
    let (bad, good, peer) = (v4(hostile.addresses[0]), v4(guest.addresses[0]), v4(ip(PEER[0])));
    let macs = [[mac(1), hostile.gateway], [mac(2), guest.gateway]];
    for id in 1..=5000 {
        // Beginnings and ends of what never becomes whole.
        let mut all = pieces(macs[0], (bad, peer), (5000, 4000), (id, &[0; 1200]));
        hostile.guest.send(&all.swap_remove(usize::from(id % 2) * 2));
        if id % 500 == 0 {
            let payload = vec![id as u8; 1200];
            for piece in pieces(macs[1], (good, peer), (5000, 4000), (id, &payload)).iter().rev() {
                guest.guest.send(piece);
            }
            assert_eq!(receive(&socket).0, payload);
            guest.udp(5000, at(PEER[0], 4000), b"whole");
            assert_eq!(receive(&socket).0, b"whole");
            // Nor does it hurt what the hostile one itself sends whole.
            hostile.udp(5000, at(PEER[0], 4000), b"whole as well");
            assert_eq!(receive(&socket).0, b"whole as well");
        }
    }
    world.daemon.assert_alive();
}
