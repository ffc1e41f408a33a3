//! RFC 5508.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use etherparse::{IpNumber, Ipv4Header, Ipv4Options};
use guestwire::sys::net::ping_socket;

use crate::far::{FAR, NEAR, ROUTER, v4};
use crate::heard::Kind;
use crate::station::Station;
use crate::world::{A_MOMENT, GATEWAY, HOST, OTHER, PEER, UPLINK, World, assert_silent, at, external, ip};

pub(crate) fn queries() {
    let world = World::new(&[]);
    let mut guests: [Station; 2] = world.stations();
    for (family, reply) in [(0, 0), (1, 129)] {
        for address in [PEER, OTHER] {
            // Both use the same identifier.
            guests.iter_mut().for_each(|guest| guest.ping(ip(address[family]), 7, 1));
            for guest in &mut guests {
                let heard = guest.hear_icmp();
                assert_eq!((heard.from.ip(), heard.to.ip()), (ip(address[family]), guest.addresses[family]));
                assert_eq!(heard.kind, Kind::Icmp { kind: reply, code: 0, rest: 7 << 16 | 1 });
                assert_eq!(heard.payload, b"hello");
            }
        }
    }
}

pub(crate) fn mapping() {
    let mut world = World::new(&[]);
    let mut guests: [Station; 2] = world.stations();
    let mut seen = Vec::new();
    for guest in &mut guests {
        let identifiers = [FAR, ROUTER, FAR].map(|to| {
            guest.ping(to.into(), 7, 1);
            let heard = world.far.hear("a request", |heard| heard.icmp() == Some((8, 0)) && heard.to.ip() == to);
            let Kind::Icmp { rest, .. } = heard.kind else { panic!("{heard:?}") };
            rest >> 16
        });
        assert_eq!(identifiers, [identifiers[0]; 3]);
        seen.push(identifiers[0]);
    }
    assert_ne!(seen[0], seen[1]);
}

/// A guest's datagram as it left the host, from its IP header on. The first guest has the same port, so that this one
/// has another outside.
fn sent(world: &mut World) -> ([Station; 2], Vec<u8>) {
    let mut guests: [Station; 2] = world.stations();
    let mut packets = guests.each_mut().map(|guest| {
        guest.udp(5000, SocketAddr::new(FAR.into(), 9), b"a datagram");
        let heard = world.far.hear("a datagram", |heard| heard.payload == b"a datagram");
        (heard.from.port(), heard.frame[14..].to_vec())
    });
    assert!(packets[0].0 == 5000 && packets[1].0 != 5000);
    (guests, std::mem::take(&mut packets[1].1))
}

/// Expects that the guest hears, as the next message, of its own datagram, with this type and code.
#[track_caller]
fn expect_own(guest: &mut Station, word: (u8, u8)) {
    let heard = guest.hear_icmp();
    assert_eq!((heard.icmp(), heard.to.ip()), (Some(word), guest.addresses[0]));
    let (from, to, transport) = heard.quoted();
    assert_eq!((from, to), (guest.addresses[0], FAR.into()));
    // Its own port, and port 9.
    assert_eq!(transport[..4], [0x13, 0x88, 0, 9]);
}

pub(crate) fn wrong_checksum() {
    let mut world = World::new(&[]);
    let ([_, mut guest], packet) = sent(&mut world);
    let mut frame = Vec::new();
    world.far.from(FAR).icmpv4_raw(11, 0, [0; 4]).write(&mut frame, &packet).unwrap();
    frame[36] ^= 1;
    world.far.send(&frame);
    world.far.icmp(FAR, (3, 1), 0, &packet);
    expect_own(&mut guest, (3, 1));
}

/// Changes a quoted packet, and expects that its guest hears of it all the same.
fn changed(change: impl FnOnce(&mut Vec<u8>)) {
    let mut world = World::new(&[]);
    let ([_, mut guest], mut packet) = sent(&mut world);
    change(&mut packet);
    world.far.icmp(FAR, (3, 1), 0, &packet);
    expect_own(&mut guest, (3, 1));
}

pub(crate) fn wrong_inner_checksum() {
    changed(|packet| packet[10] ^= 1);
}

pub(crate) fn inner_options() {
    changed(|packet| {
        let (mut header, _) = Ipv4Header::from_slice(packet).unwrap();
        // Three of nothing, and the end.
        header.options = Ipv4Options::try_from(&[1, 1, 1, 0][..]).unwrap();
        header.total_len += 4;
        header.header_checksum = header.calc_header_checksum();
        packet.splice(..20, header.to_bytes());
    });
}

pub(crate) fn wrong_transport_checksum() {
    changed(|packet| packet[26] ^= 1);
}

pub(crate) fn extensions() {
    let mut world = World::new(&[]);
    let ([_, mut guest], mut packet) = sent(&mut world);
    // As RFC 4884 has it: 32 words of the packet and zeros, then version 2 and an object of MPLS's.
    packet.resize(128, 0);
    packet.extend_from_slice(&[0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 1, 0xff]);
    let sum = !guestwire::frame::checksum::sum(&packet[128..], 0);
    packet[130..132].copy_from_slice(&sum.to_be_bytes());
    world.far.icmp(ROUTER, (11, 0), 32 << 16, &packet);
    expect_own(&mut guest, (11, 0));
}

pub(crate) fn nobodys() {
    let mut world = World::new(&[]);
    let ([mut other, mut guest], packet) = sent(&mut world);
    // Of another protocol, and from another port.
    for (at, value) in [(9, 17 ^ 6), (20, 0x40)] {
        let mut packet = packet.clone();
        packet[at] ^= value;
        world.far.icmp(FAR, (11, 0), 0, &packet);
    }
    world.far.icmp(FAR, (3, 1), 0, &packet);
    expect_own(&mut guest, (3, 1));
    assert!(other.hear_within(A_MOMENT, |heard| heard.icmp().is_some()).is_none());
}

pub(crate) fn quote() {
    let mut world = World::new(&[]);
    let ([_, mut guest], packet) = sent(&mut world);
    // That a packet was not put together in time, the kernel keeps to itself.
    for word in [(3, 0), (3, 1), (3, 3), (3, 10), (3, 13), (11, 0)] {
        world.far.icmp(FAR, word, 0, &packet);
        expect_own(&mut guest, word);
    }
}

pub(crate) fn errors_of_guests() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    let socket = world.socket(at(PEER[0], 4000));
    let from = external(&mut guest, 5000, &socket);
    socket.connect(from).unwrap();
    socket.send(b"unwanted").unwrap();
    let heard = guest.hear("what is unwanted", |heard| heard.payload == b"unwanted");
    // About a packet of nobody's, and about this one.
    guest.icmp(ip(PEER[0]), (3, 3), &[0; 28]);
    guest.icmp(ip(PEER[0]), (3, 3), &heard.frame[14..]);
    world.daemon.expect_counter(UPLINK, "drop_rx_not_carried", 2);
    assert_silent(&socket);
    // There is no way to say it: what may send echo requests may send nothing else.
    let ping = world.host.run(|| UdpSocket::from(ping_socket(&ip(PEER[0])).unwrap()));
    let message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &heard.frame[14..]].concat();
    assert_eq!(ping.send_to(&message, at(PEER[0], 0)).unwrap_err().raw_os_error(), Some(nix::libc::EINVAL));
}

pub(crate) fn hairpin() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    let near = NEAR.to_string();
    for (family, address, word) in [(0, HOST[0], (3, 3)), (0, near.as_str(), (3, 3)), (1, HOST[1], (1, 4))] {
        // Of all ports of the host this one is nobody's.
        guest.udp(5000, at(address, 9), b"nobody?");
        let heard = guest.hear_icmp();
        assert_eq!((heard.from.ip(), heard.to.ip()), (ip(address), guest.addresses[family]));
        assert_eq!(heard.icmp(), Some(word));
        if family == 0 {
            assert_eq!(heard.quoted().2[..4], [0x13, 0x88, 0, 9], "the guest's own ports");
        }
    }
}

pub(crate) fn prohibited() {
    let world = World::new(&["--deny", OTHER[0], "--deny", OTHER[1]]);
    let [mut guest] = world.stations();
    for (family, word) in [(0, (3, 13)), (1, (1, 1))] {
        let to = at(OTHER[family], 4000);
        guest.udp(5000, to, b"hello");
        assert_eq!(guest.hear_icmp().icmp(), Some(word));
        guest.tcp(5000, to, (7, None), "S", b"");
        assert_eq!(guest.hear_icmp().icmp(), Some(word));
        guest.ping(to.ip(), 7, 1);
        assert_eq!(guest.hear_icmp().icmp(), Some(word));
    }
    // Where the host has no ping sockets for us, it is its policy.
    world.host.set("ipv4/ping_group_range", "1 0");
    guest.ping(ip(PEER[0]), 7, 1);
    assert_eq!(guest.hear_icmp().icmp(), Some((3, 13)));
}

/// None are sent outwards, and what they would be about is not hurt.
pub(crate) fn policy() {
    let mut world = World::new(&[]);
    let ([_, mut guest], packet) = sent(&mut world);
    let port = u16::from_be_bytes([packet[20], packet[21]]);
    let mut frame = Vec::new();
    world.far.from(FAR).udp(9, port).write(&mut frame, b"unwanted").unwrap();
    world.far.send(&frame);
    let heard = guest.hear("what is unwanted", |heard| heard.payload == b"unwanted");
    guest.icmp(FAR.into(), (3, 3), &heard.frame[14..]);
    world.daemon.expect_counter(UPLINK, "drop_rx_not_carried", 1);
    assert!(world.far.hear_within(A_MOMENT, |heard| heard.icmp().is_some()).is_none());
}

pub(crate) fn messages() {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    guest.udp(5000, at(PEER[0], 9), b"");
    let heard = guest.hear_icmp();
    assert_eq!((heard.from.ip(), heard.icmp()), (ip(PEER[0]), Some((3, 3))));
    // The gateway is a router, and so are those beyond.
    let mut frame = Vec::new();
    guest.within(FAR.into(), 1).udp(5000, 9).write(&mut frame, b"").unwrap();
    guest.guest.send(&frame);
    let heard = guest.hear_icmp();
    assert_eq!((heard.from.ip(), heard.icmp()), (ip(GATEWAY[0]), Some((11, 0))));
    let mut frame = Vec::new();
    guest.within(FAR.into(), 2).udp(5000, 9).write(&mut frame, b"").unwrap();
    guest.guest.send(&frame);
    let gone = world.far.hear("a datagram", |heard| heard.kind == Kind::Udp);
    assert_eq!(gone.frame[22], 1, "its hop limit");
    world.far.icmp(ROUTER, (11, 0), 0, &gone.frame[14..]);
    let heard = guest.hear_icmp();
    assert_eq!((heard.from.ip(), heard.icmp()), (ROUTER.into(), Some((11, 0))));
    guest.ping(ip(PEER[0]), 7, 1);
    assert_eq!(guest.hear_icmp().icmp(), Some((0, 0)));
}

/// Messages of a guest that go nowhere.
fn dropped(kinds: &[(u8, u8)]) {
    let mut world = World::new(&[]);
    let [mut guest] = world.stations();
    for word in kinds {
        guest.icmp(FAR.into(), *word, &[0; 12]);
    }
    world.daemon.expect_counter(UPLINK, "drop_rx_not_carried", kinds.len() as u64);
    assert!(world.far.hear_within(A_MOMENT, |heard| heard.icmp().is_some()).is_none());
    assert!(guest.hear_within(Duration::ZERO, |heard| heard.icmp().is_some()).is_none());
}

pub(crate) fn obsolete() {
    dropped(&[(4, 0), (15, 0), (16, 0)]);
    let mut world = World::new(&[]);
    let ([_, mut guest], packet) = sent(&mut world);
    world.far.icmp(FAR, (4, 0), 0, &packet);
    world.far.icmp(FAR, (3, 1), 0, &packet);
    expect_own(&mut guest, (3, 1));
}

pub(crate) fn when_not() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    // All of these have passed as many routers as they may.
    for kind in [3, 4, 5, 11, 12] {
        let mut frame = Vec::new();
        guest.within(FAR.into(), 1).write(&mut frame, IpNumber::ICMP, &[kind, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        guest.guest.send(&frame);
    }
    for to in ["255.255.255.255", "10.0.2.255", "224.0.0.1"] {
        let mut frame = Vec::new();
        guest.within(ip(to), 1).udp(5000, 9).write(&mut frame, b"").unwrap();
        guest.guest.send(&frame);
    }
    assert!(guest.hear_within(A_MOMENT, |heard| heard.icmp().is_some()).is_none());
    // A datagram is one to be told of.
    let mut frame = Vec::new();
    guest.within(FAR.into(), 1).udp(5000, 9).write(&mut frame, b"").unwrap();
    guest.guest.send(&frame);
    assert_eq!(guest.hear_icmp().icmp(), Some((11, 0)));
}

pub(crate) fn rate() {
    let world = World::new(&[]);
    let [mut guest] = world.stations();
    let mut frame = Vec::new();
    guest.within(v4(FAR.into()).into(), 1).udp(5000, 9).write(&mut frame, b"").unwrap();
    (0..1000).for_each(|_| guest.guest.send(&frame));
    world.daemon.expect_counter(UPLINK, "drop_rx_hop_limit", 1000);
    let mut count = 0;
    while guest.hear_within(A_MOMENT, |heard| heard.icmp() == Some((11, 0))).is_some() {
        count += 1;
    }
    // A hundred a second; on a slow machine all of that takes more than one.
    assert!((100..=400).contains(&count), "{count}");
}

/// Timestamps, masks, and what routers say.
pub(crate) fn others() {
    dropped(&[(13, 0), (14, 0), (17, 0), (18, 0), (10, 0)]);
}
