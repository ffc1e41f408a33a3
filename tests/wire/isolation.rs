//! What a hostile guest of a host-only network sends does not leave it, even where the host routes for everybody:
//! frames of every kind that a router would pass on, and the other way round.
//!
//! Each frame carries a mark. Sockets that hear everything that the host and its neighbour outside hear look for it.
//! That the host does pass on such packets when they come from elsewhere is tried in the same test.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use etherparse::{EtherType, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, PacketBuilder};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

use crate::daemon::{Daemon, until};
use crate::dhcp::lease;
use crate::guest::{Config, Guest, mac};
use crate::space::Space;

const TAP: &str = "gw-host-only";
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const UPLINK: u64 = 0;
const PORT: u64 = 1;

/// Hears every frame of a namespace, sent and received.
struct Ear(OwnedFd);

impl Ear {
    fn new(space: &Space) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = || socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        Self(space.run(open))
    }

    /// The numbers of the marks heard since the last time.
    fn marks(&self) -> Vec<u32> {
        let (mut found, mut frame) = (Vec::new(), vec![0; 70_000]);
        while let Ok(len) = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            let at = frame[..len].windows(MARK.len()).position(|window| window == MARK);
            let number = at.and_then(|at| frame[..len].get(at + MARK.len()..at + MARK.len() + 4));
            found.extend(number.map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap())));
        }
        found
    }

    #[track_caller]
    fn wait_for(&self, number: u32) {
        let mut heard = Vec::new();
        until(&format!("mark {number}"), || {
            heard.extend(self.marks());
            heard.contains(&number)
        });
    }
}

const MARK: &[u8] = b"guestwire leaks ";

fn mark(number: u32) -> Vec<u8> {
    [MARK, &number.to_be_bytes(), &[0; 12]].concat()
}

/// The host, which routes for everybody, its neighbour outside, and a machine that the host routes for.
struct World {
    host: Space,
    outside: Space,
    neighbour: Space,
}

impl World {
    fn new() -> Self {
        let world = Self { host: Space::new(), outside: Space::new(), neighbour: Space::new() };
        let Self { host, outside, neighbour } = &world;
        for (name, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
            host.set(name, value);
        }
        for which in ["all", "default"] {
            host.set(&format!("ipv4/conf/{which}/rp_filter"), "0");
            host.set(&format!("ipv4/conf/{which}/accept_source_route"), "1");
            host.set(&format!("ipv6/conf/{which}/accept_source_route"), "1");
        }
        host.cable("out0", outside, "in0");
        host.cable("near0", neighbour, "far0");
        let addresses = [
            (host, "out0", "198.51.100.1/24", "2001:db8:1::1/64"),
            (outside, "in0", "198.51.100.2/24", "2001:db8:1::2/64"),
            (host, "near0", "10.77.0.1/24", "2001:db8:77::1/64"),
            (neighbour, "far0", "10.77.0.2/24", "2001:db8:77::2/64"),
        ];
        for (space, interface, v4, v6) in addresses {
            space.ip(&format!("addr add {v4} dev {interface}"));
            space.ip(&format!("-6 addr add {v6} dev {interface} nodad"));
        }
        for (space, via, via6) in
            [(outside, "198.51.100.1", "2001:db8:1::1"), (neighbour, "10.77.0.1", "2001:db8:77::1")]
        {
            space.ip(&format!("route add default via {via}"));
            space.ip(&format!("-6 route add default via {via6}"));
        }
        // The host need ask nobody for these, so that what it passes on is seen at once.
        let (mac4, mac6) = (outside.mac("in0"), outside.mac("in0"));
        for (address, mac) in [(OUTSIDE.to_string(), mac4), (OUTSIDE6.to_string(), mac6)] {
            host.ip(&format!("neigh replace {address} lladdr {} dev out0", text(mac)));
        }
        world
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ether(to: [u8; 6], kind: u16, rest: &[u8]) -> Vec<u8> {
    [&to[..], &mac(1), &kind.to_be_bytes(), rest].concat()
}

/// A UDP datagram to a port where nobody listens.
fn udp4(source: Ipv4Addr, destination: Ipv4Addr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(source.octets(), destination.octets(), ttl).udp(4000, 4001);
    builder.write(&mut packet, payload).unwrap();
    packet
}

fn udp6(source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(source.octets(), destination.octets(), 64).udp(4000, 4001);
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// A fragment of a datagram.
fn fragment4(source: Ipv4Addr, destination: Ipv4Addr, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap();
    let mut header = Ipv4Header::new(len, 64, IpNumber::UDP, source.octets(), destination.octets()).unwrap();
    (header.identification, header.more_fragments) = (77, more);
    header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
    header.dont_fragment = false;
    finish4(header, payload)
}

/// A packet to the host with the way to somebody else in it (RFC 791: LSRR).
fn source_routed4(source: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap();
    let mut header = Ipv4Header::new(len, 64, IpNumber::UDP, source.octets(), HOST.octets()).unwrap();
    let [a, b, c, d] = OUTSIDE.octets();
    header.options = Ipv4Options::try_from(&[131, 7, 4, a, b, c, d, 0][..]).unwrap();
    finish4(header, payload)
}

fn finish4(mut header: Ipv4Header, payload: &[u8]) -> Vec<u8> {
    header.header_checksum = header.calc_header_checksum();
    let mut packet = Vec::new();
    header.write(&mut packet).unwrap();
    packet.extend(payload);
    packet
}

/// An IPv6 packet with one extension header (its bytes but for the first, which says that UDP follows).
fn extended6(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, rest: &[u8], payload: &[u8]) -> Vec<u8> {
    let extension = [&[17], rest].concat();
    let header = Ipv6Header {
        payload_length: u16::try_from(extension.len() + payload.len()).unwrap(),
        next_header: IpNumber(kind),
        hop_limit: 64,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv6Header::default()
    };
    [&header.to_bytes()[..], &extension, payload].concat()
}

/// The body of an ARP message of the guest's.
fn arp(operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let own = mac(1);
    [&[0, 1, 8, 0, 6, 4, 0, operation], &own[..], &sender.octets(), &[0; 6], &target.octets()].concat()
}

struct Attacker {
    host_mac: [u8; 6],
    v4: Ipv4Addr,
    /// Its own, and the host's, of the network's prefix.
    v6: Ipv6Addr,
    host6: Ipv6Addr,
}

impl Attacker {
    /// Everything that must not pass, each with its own mark but for ARP.
    fn frames(&self) -> Vec<Vec<u8>> {
        let (mut frames, mut number) = (Vec::new(), 0);
        let mut add = |to: [u8; 6], kind: u16, packet: &dyn Fn(&[u8]) -> Vec<u8>| {
            number += 1;
            frames.push(ether(to, kind, &packet(&mark(number))));
        };
        let Self { host_mac, v4, v6, host6 } = *self;
        let (ip4, ip6) = (EtherType::IPV4.0, EtherType::IPV6.0);
        let foreign = Ipv4Addr::new(203, 0, 113, 7);
        let foreign6 = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 7);
        let link6 = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);
        // To somewhere else, from anybody.
        for source in [v4, OUTSIDE, foreign, Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::LOCALHOST, HOST] {
            add(host_mac, ip4, &|mark| udp4(source, OUTSIDE, 64, mark));
        }
        for source in [v6, link6, foreign6, OUTSIDE6] {
            add(host_mac, ip6, &|mark| udp6(source, OUTSIDE6, mark));
        }
        add([0xff; 6], ip4, &|mark| udp4(v4, OUTSIDE, 64, mark));
        add(host_mac, ip4, &|mark| udp4(v4, Ipv4Addr::new(198, 51, 100, 1), 64, mark));
        add(host_mac, ip6, &|mark| udp6(v6, Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1), mark));
        // To the host, from somewhere else.
        for source in [OUTSIDE, foreign, Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
            add(host_mac, ip4, &|mark| udp4(source, HOST, 64, mark));
        }
        for source in [OUTSIDE6, foreign6, Ipv6Addr::LOCALHOST] {
            add(host_mac, ip6, &|mark| udp6(source, host6, mark));
        }
        // In pieces.
        add(host_mac, ip4, &|mark| {
            fragment4(v4, OUTSIDE, 0, true, &[&udp4(v4, OUTSIDE, 64, mark)[20..], &[0; 4]].concat())
        });
        add(host_mac, ip4, &|mark| fragment4(v4, OUTSIDE, 100, false, mark));
        add(host_mac, ip4, &|mark| fragment4(foreign, HOST, 100, false, mark));
        add(host_mac, ip6, &|mark| extended6(v6, OUTSIDE6, 44, &[0, 0, 1, 0, 0, 0, 7], mark));
        add(host_mac, ip6, &|mark| extended6(v6, OUTSIDE6, 44, &[0, 0, 64, 0, 0, 0, 7], mark));
        // With a way of its own: to the host, which is to pass it on.
        add(host_mac, ip4, &|mark| source_routed4(v4, mark));
        for kind in [0, 4] {
            let rest = [&[2, kind, 1, 0, 0, 0, 0][..], &OUTSIDE6.octets()].concat();
            add(host_mac, ip6, &|mark| extended6(v6, host6, 43, &rest, mark));
        }
        // To groups that routers pass on.
        let group6 = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 1, 1);
        add([1, 0, 0x5e, 1, 1, 1], ip4, &|mark| udp4(v4, Ipv4Addr::new(239, 1, 1, 1), 64, mark));
        add([0x33, 0x33, 0, 1, 0, 1], ip6, &|mark| udp6(v6, group6, mark));
        // Behind a tag, and what is not IP.
        add(host_mac, 0x8100, &|mark| [&[0, 1, 8, 0][..], &udp4(v4, OUTSIDE, 64, mark)].concat());
        add(host_mac, 0x88a8, &|mark| [&[0, 1, 8, 0][..], &udp4(v4, OUTSIDE, 64, mark)].concat());
        for kind in [0x8847, 0x8864, 0x88b5, 0x0022] {
            add(host_mac, kind, &|mark| mark.to_vec());
        }
        // Cut off, or longer inside than outside.
        add(host_mac, ip4, &|mark| [&udp4(v4, HOST, 64, &[])[..12], mark].concat()[..18].to_vec());
        add(host_mac, ip6, &|mark| udp6(v6, OUTSIDE6, mark)[..30].to_vec());
        // For neighbours of elsewhere, and as the host.
        frames.push(ether([0xff; 6], EtherType::ARP.0, &arp(1, OUTSIDE, HOST)));
        frames.push(ether([0xff; 6], EtherType::ARP.0, &arp(2, HOST, HOST)));
        frames.push(ether([0xff; 6], EtherType::ARP.0, &arp(1, v4, OUTSIDE)));
        frames
    }
}

fn drops(daemon: &Daemon, port: u64) -> u64 {
    let is_drop = |name: &str| name.starts_with("drop_tx_");
    daemon.counters(port).iter().filter(|(name, _)| is_drop(name)).map(|(_, value)| value).sum()
}

/// The address that the guest's kernel would make (RFC 4291, appendix A) of the host's prefix.
fn own_v6(host6: Ipv6Addr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac(1);
    let prefix = &host6.octets()[..8];
    let bytes = [prefix, &[a ^ 2, b, c, 0xff, 0xfe, d, e, f]].concat();
    <[u8; 16]>::try_from(bytes).unwrap().into()
}

/// Has a machine say something to an address.
fn say(from: &Space, to: String, number: u32) {
    from.run(|| UdpSocket::bind("[::]:0").unwrap().send_to(&mark(number), &*to).unwrap());
}

fn nothing_passes(options: &[&str]) {
    let world = World::new();
    let host = &world.host;
    let mut daemon = Daemon::in_space(host, "host-only", options);
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(1));
    let v4 = lease(&mut guest);
    let text6 = host.ip(&format!("-6 -o addr show dev {TAP} scope global"));
    let host6: Ipv6Addr = text6.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap();
    let attacker = Attacker { host_mac: host.mac(TAP), v4, v6: own_v6(host6), host6 };
    let (on_host, on_outside) = (Ear::new(host), Ear::new(&world.outside));

    // The host passes on what comes from elsewhere, and hears what its guest may say.
    say(&world.neighbour, format!("[::ffff:{OUTSIDE}]:4001"), 1001);
    on_outside.wait_for(1001);
    say(&world.neighbour, format!("[{OUTSIDE6}]:4001"), 1002);
    on_outside.wait_for(1002);
    for (number, kind, packet) in [
        (1003, EtherType::IPV4, udp4(v4, HOST, 64, &mark(1003))),
        (1004, EtherType::IPV6, udp6(attacker.v6, host6, &mark(1004))),
    ] {
        guest.send(&ether(attacker.host_mac, kind.0, &packet));
        on_host.wait_for(number);
    }

    let before = drops(&daemon, PORT);
    let frames = attacker.frames();
    for frame in &frames {
        guest.send(frame);
    }
    // Frames of one ring come in order.
    guest.send(&ether(attacker.host_mac, EtherType::IPV4.0, &udp4(v4, HOST, 64, &mark(1005))));
    until("the last frame", || guest.all_sent(0));
    let mut heard = on_host.marks();
    until("the last mark", || {
        heard.extend(on_host.marks());
        heard.contains(&1005)
    });
    heard.extend(on_outside.marks());
    heard.retain(|number| *number < 1000);
    assert_eq!(heard, Vec::<u32>::new(), "these of the attacker's frames have passed");
    assert_eq!(drops(&daemon, PORT) - before, frames.len() as u64, "{:?}", daemon.counters(PORT));
    for counter in ["drop_tx_outside_subnet", "drop_tx_tagged", "drop_tx_not_ip", "drop_tx_bad_packet"] {
        assert!(daemon.counters(PORT)[counter] > 0, "{counter}");
    }
    let about_sources = ["drop_tx_foreign_source", "drop_tx_spoofed_ip"];
    assert!(about_sources.iter().any(|counter| daemon.counters(PORT)[*counter] > 0));

    nothing_enters(&world, &daemon, &mut guest, &attacker);
    daemon.assert_alive();
}

/// Nothing of elsewhere comes in, though the host would pass it on.
fn nothing_enters(world: &World, daemon: &Daemon, guest: &mut Guest, attacker: &Attacker) {
    let (host, v4) = (&world.host, attacker.v4);
    host.ip(&format!("neigh replace {v4} lladdr {} dev {TAP}", text(mac(1))));
    host.ip(&format!("neigh replace {} lladdr {} dev {TAP}", attacker.v6, text(mac(1))));
    while guest.poll(0).is_some() {}
    let uplink = drops(daemon, UPLINK);
    say(&world.outside, format!("[::ffff:{v4}]:4001"), 2001);
    say(&world.outside, format!("[{}]:4001", attacker.v6), 2002);
    until("two frames are refused", || drops(daemon, UPLINK) >= uplink + 2);
    assert!(daemon.counters(UPLINK)["drop_tx_foreign_source"] >= 2);
    say(host, format!("[::ffff:{v4}]:4001"), 2003);
    let mut last = 0;
    until("what the host itself says", || {
        while let Some(received) = guest.poll(0) {
            if let Some(at) = received.frame.windows(MARK.len()).position(|window| window == MARK) {
                let bytes = &received.frame[at + MARK.len()..][..4];
                last = u32::from_be_bytes(bytes.try_into().unwrap());
                // What the host's kernel could not deliver may come back in its complaint.
                assert!(last == 2003 || last < 2000, "{last} has come in");
            }
        }
        last == 2003
    });
}

#[test]
fn nothing_leaves_a_host_only_network_and_nothing_foreign_enters_it() {
    nothing_passes(&[]);
}

#[test]
fn the_subnet_alone_is_enough_without_port_security() {
    nothing_passes(&["--port-security", "off"]);
}
