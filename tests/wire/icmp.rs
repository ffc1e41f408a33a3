//! ICMP of NAT networks: echo beyond the gateway, and what guests hear of packets that went no further.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{IpNumber, PacketBuilder};

use crate::daemon::{Daemon, until};
use crate::guest::mac;
use crate::nat::{GATEWAY, Talker, UPLINK};
use crate::space::Space;

const SUBNET6: &str = "fd00:77::/64";
const ROUTER: &str = "10.7.0.2";
const FAR: &str = "10.8.0.2";
const ROUTER6: &str = "fd07::2";
const FAR6: &str = "fd08::2";
/// To where nothing on the host leads.
const NOWHERE: &str = "192.0.2.1";
const NOWHERE6: &str = "2001:db8::1";
/// Bytes of packets that the router passes on.
const PATH_MTU: usize = 1400;

/// The host, with the daemon on it, the router that it knows, and a machine beyond.
struct World {
    daemon: Daemon,
    host: Space,
    _router: Space,
    _far: Space,
}

impl World {
    fn new(ping_groups: Option<&str>) -> Self {
        let [host, router, far] = [Space::new(), Space::new(), Space::new()];
        host.cable("eth0", &router, "eth0");
        router.cable("eth1", &far, "eth0");
        for (space, device, net, number) in
            [(&host, "eth0", 7, 1), (&router, "eth0", 7, 2), (&router, "eth1", 8, 1), (&far, "eth0", 8, 2)]
        {
            space.ip(&format!("addr add 10.{net}.0.{number}/24 dev {device}"));
            space.ip(&format!("addr add fd0{net}::{number}/64 dev {device} nodad"));
        }
        router.ip(&format!("link set eth1 mtu {PATH_MTU}"));
        router.set("ipv4/ip_forward", "1");
        router.set("ipv6/conf/all/forwarding", "1");
        // It says all that it has to say.
        for space in [&router, &far] {
            space.set("ipv4/icmp_ratelimit", "0");
            space.set("ipv6/icmp/ratelimit", "0");
        }
        for (space, net, via) in [(&host, 8, "7.0.2"), (&far, 7, "8.0.1")] {
            space.ip(&format!("route add 10.{net}.0.0/24 via 10.{via}"));
            space.ip(&format!("-6 route add fd0{net}::/64 via fd0{}", via.replacen(".0.", "::", 1)));
        }
        router.ip("route add unreachable 10.8.9.0/24");
        host.ip("route add 10.8.9.0/24 via 10.7.0.2");
        if let Some(groups) = ping_groups {
            host.set("ipv4/ping_group_range", groups);
        }
        let rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
        let daemon = Daemon::in_space_by(&host, &rights, "nat", &["--subnet6", SUBNET6]);
        Self { daemon, host, _router: router, _far: far }
    }
}

/// An ICMP message that a guest has got.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Icmp {
    from: IpAddr,
    kind: u8,
    code: u8,
    /// What follows the checksum.
    rest: u32,
    payload: Vec<u8>,
}

impl Icmp {
    /// Where it comes from, its type and its code.
    fn words(&self) -> (String, u8, u8) {
        (self.from.to_string(), self.kind, self.code)
    }

    /// Whom the packet that it quotes was for, and the first bytes of what followed the IP header.
    fn quoted(&self) -> (IpAddr, [u8; 8]) {
        let quoted = &self.payload;
        let octets = |at: usize, len: usize| quoted[at..at + len].to_vec();
        let (to, at) = if quoted[0] >> 4 == 4 {
            (IpAddr::from(<[u8; 4]>::try_from(octets(16, 4)).unwrap()), 20)
        } else {
            (IpAddr::from(<[u8; 16]>::try_from(octets(24, 16)).unwrap()), 40)
        };
        (to, quoted[at..at + 8].try_into().unwrap())
    }
}

/// The sum of a right checksum is all ones.
fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u32::from(*byte)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

impl Talker {
    fn address6(&self) -> [u8; 16] {
        let mut address = "fd00:77::100".parse::<std::net::Ipv6Addr>().unwrap().octets();
        address[15] = self.guest.config.number;
        address
    }

    fn to(&self, to: &str, hop_limit: u8) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(mac(self.guest.config.number), self.gateway);
        match to.parse().unwrap() {
            IpAddr::V4(to) => ethernet.ipv4(self.address.octets(), to.octets(), hop_limit),
            IpAddr::V6(to) => ethernet.ipv6(self.address6(), to.octets(), hop_limit),
        }
    }

    /// Sends an echo request.
    pub(crate) fn ping(&mut self, to: &str, hop_limit: u8, (identifier, number): (u16, u16), payload: &[u8]) {
        let (mut frame, packet) = (Vec::new(), self.to(to, hop_limit));
        if to.contains(':') {
            packet.icmpv6_echo_request(identifier, number).write(&mut frame, payload).unwrap();
        } else {
            packet.icmpv4_echo_request(identifier, number).write(&mut frame, payload).unwrap();
        }
        self.guest.send(&frame);
    }

    /// Sends a datagram from port 1000 to port 9, where nobody listens.
    fn datagram(&mut self, to: &str, hop_limit: u8, len: usize) {
        let mut frame = Vec::new();
        self.to(to, hop_limit).udp(1000, 9).write(&mut frame, &vec![5; len]).unwrap();
        self.guest.send(&frame);
    }

    /// Asks for a connection from port 1000 to port 9, where nobody listens.
    fn syn(&mut self, to: &str, hop_limit: u8) {
        let mut frame = Vec::new();
        self.to(to, hop_limit).tcp(1000, 9, 0x1234_5678, 65_000).syn().write(&mut frame, &[]).unwrap();
        self.guest.send(&frame);
    }

    /// The next ICMP message, but for neighbour discovery and router advertisements.
    fn icmp_within(&mut self, time: Duration) -> Option<Icmp> {
        loop {
            let frame = self.guest.receive_within(time)?.frame;
            let (from, message): (IpAddr, _) = match (&frame[12..14], frame[23], frame[20]) {
                ([8, 0], 1, _) => {
                    assert_eq!(sum(&[&frame[34..]]), 0xffff);
                    (<[u8; 4]>::try_from(&frame[26..30]).unwrap().into(), &frame[34..])
                }
                ([0x86, 0xdd], _, 58) if !(133..138).contains(&frame[54]) => {
                    let len = (frame.len() - 54) as u32;
                    assert_eq!(sum(&[&len.to_be_bytes(), &[0, 58], &frame[22..]]), 0xffff);
                    (<[u8; 16]>::try_from(&frame[22..38]).unwrap().into(), &frame[54..])
                }
                _ => continue,
            };
            let rest = u32::from_be_bytes(message[4..8].try_into().unwrap());
            return Some(Icmp { from, kind: message[0], code: message[1], rest, payload: message[8..].to_vec() });
        }
    }

    #[track_caller]
    fn icmp(&mut self) -> Icmp {
        self.icmp_within(crate::daemon::PATIENCE).expect("an ICMP message")
    }

    /// Expects an error from `from` about a packet to `to` that began with `transport`.
    #[track_caller]
    fn expect(&mut self, (from, kind, code): (&str, u8, u8), to: &str, transport: &[u8]) -> u32 {
        let icmp = self.icmp();
        assert_eq!(icmp.words(), (from.to_owned(), kind, code), "{icmp:?}");
        let (quoted_to, quoted) = icmp.quoted();
        assert_eq!(quoted_to, to.parse::<IpAddr>().unwrap());
        assert!(quoted.starts_with(transport), "{quoted:?}");
        icmp.rest
    }
}

const ALL_GROUPS: Option<&str> = Some("0 2147483647");
/// What all datagrams and SYNs of these tests begin with: the ports.
const PORTS: [u8; 4] = [0x03, 0xe8, 0, 9];
const OWN: &str = "10.0.2.1";
const OWN6: &str = "fd00:77::1";

#[test]
fn each_guest_gets_the_replies_to_its_own_requests() {
    let mut world = World::new(ALL_GROUPS);
    let mut talkers = [1, 2].map(|number| Talker::new(&world.daemon, number));
    for to in [ROUTER, FAR, ROUTER6, FAR6] {
        for (n, len) in [(1, 0), (2, 1), (3, 56), (4, 1300)] {
            let payload = |number: u8| vec![number; len];
            // Both use the same identifier.
            for talker in &mut talkers {
                talker.ping(to, 64, (7, n), &payload(talker.guest.config.number));
            }
            for talker in &mut talkers {
                let kind = if to.contains(':') { 129 } else { 0 };
                let (rest, payload) = (7 << 16 | u32::from(n), payload(talker.guest.config.number));
                assert_eq!(talker.icmp(), Icmp { from: to.parse().unwrap(), kind, code: 0, rest, payload });
            }
        }
    }
    world.daemon.assert_alive();
}

#[test]
fn many_identifiers_cost_so_many_sockets_and_no_more() {
    let mut world = World::new(ALL_GROUPS);
    let sockets = |world: &World| {
        let text = world.host.run(|| std::fs::read_to_string("/proc/thread-self/net/icmp")).unwrap();
        text.lines().count() - 1
    };
    let mut talker = Talker::new(&world.daemon, 1);
    for n in 0..300 {
        talker.ping(ROUTER, 64, (n, 1), b"hello");
        assert_eq!(talker.icmp().rest, u32::from(n) << 16 | 1);
    }
    assert_eq!(sockets(&world), 256);
    drop(talker);
    until("all are gone with their guest", || sockets(&world) == 0);
    world.daemon.assert_alive();
}

#[test]
fn long_requests_come_back_in_pieces() {
    let world = World::new(ALL_GROUPS);
    let mut talker = Talker::new(&world.daemon, 1);
    let payload: Vec<u8> = (0..4000).map(|n| n as u8).collect();
    let mut frame = Vec::new();
    talker.to(ROUTER, 64).icmpv4_echo_request(7, 1).write(&mut frame, &payload).unwrap();
    // It may be cut.
    frame[20] = 0;
    frame[24..26].fill(0);
    let checksum = !sum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    talker.guest.send(&frame);
    let mut reply = vec![0; 4008];
    let mut left = reply.len();
    while left > 0 {
        let frame = talker.guest.receive().frame;
        if frame[12..14] == [8, 0] && frame[23] == 1 {
            assert!(frame.len() <= 1514);
            let offset = usize::from(u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff) * 8;
            reply[offset..][..frame.len() - 34].copy_from_slice(&frame[34..]);
            left -= frame.len() - 34;
        }
    }
    assert_eq!(sum(&[&reply]), 0xffff);
    assert_eq!((&reply[..2], &reply[4..8], &reply[8..]), (&[0, 0][..], &[0, 7, 0, 1][..], &payload[..]));
}

#[test]
fn without_ping_sockets_one_warning_says_how_to_have_them() {
    let mut world = World::new(Some("1 0"));
    let mut talker = Talker::new(&world.daemon, 1);
    for n in 0..3 {
        talker.ping(ROUTER, 64, (7, n), b"hello");
        talker.ping(ROUTER6, 64, (8, n), b"hello");
        // The guest hears that it may not.
        assert_eq!([talker.icmp(), talker.icmp()].map(|icmp| (icmp.kind, icmp.code)), [(3, 13), (1, 1)]);
    }
    world.daemon.expect_counter(UPLINK, "drop_rx_not_carried", 6);
    world.daemon.expect_warning("net.ipv4.ping_group_range");
    // All else is as it was.
    talker.datagram(ROUTER, 64, 20);
    talker.expect((ROUTER, 3, 3), ROUTER, &PORTS);
    talker.syn(ROUTER, 64);
    assert!(talker.hear().rst);
    // And it is enough to allow them.
    world.host.set("ipv4/ping_group_range", "0 2147483647");
    talker.ping(ROUTER, 64, (7, 9), b"hello");
    assert_eq!(talker.icmp().words(), (ROUTER.to_owned(), 0, 0));
    world.daemon.assert_alive();
}

#[test]
fn routers_on_the_way_are_heard_by_all_who_trace_it() {
    let mut world = World::new(ALL_GROUPS);
    let mut talker = Talker::new(&world.daemon, 1);
    for (to, hops, kind, end) in [(FAR, [OWN, ROUTER, FAR], 11, (3, 3)), (FAR6, [OWN6, ROUTER6, FAR6], 3, (1, 4))] {
        for (hop_limit, from) in (1..).zip(hops) {
            let is_there = from == to;
            let said = if is_there { end } else { (kind, 0) };
            talker.datagram(to, hop_limit, 32);
            talker.expect((from, said.0, said.1), to, &PORTS);
            talker.ping(to, hop_limit, (7, hop_limit.into()), b"hello");
            if is_there {
                assert_eq!(talker.icmp().rest, 7 << 16 | u32::from(hop_limit));
            } else {
                let (_, quoted) = {
                    let icmp = talker.icmp();
                    assert_eq!(icmp.words(), (from.to_owned(), kind, 0));
                    icmp.quoted()
                };
                assert_eq!(quoted[4..], [0, 7, 0, hop_limit]);
                talker.syn(to, hop_limit);
                talker.expect((from, kind, 0), to, &[&PORTS[..], &[0x12, 0x34, 0x56, 0x78]].concat());
            }
        }
    }
    talker.syn(FAR, 3);
    assert!(talker.hear().rst);
    world.daemon.assert_alive();
}

#[test]
fn what_goes_nowhere_is_said_to() {
    let mut world = World::new(ALL_GROUPS);
    let mut talker = Talker::new(&world.daemon, 1);
    for (to, said) in [
        (NOWHERE, (OWN, 3, 0)),
        (NOWHERE6, (OWN6, 1, 0)),
        // Where guests may not go.
        ("127.0.0.1", (OWN, 3, 13)),
        ("169.254.169.254", (OWN, 3, 13)),
        ("::1", (OWN6, 1, 1)),
        // The router's own words.
        ("10.8.9.9", (ROUTER, 3, 1)),
    ] {
        talker.datagram(to, 64, 20);
        talker.expect(said, to, &PORTS);
        talker.syn(to, 64);
        talker.expect(said, to, &PORTS);
        talker.ping(to, 64, (7, 1), b"hello");
        assert_eq!(talker.icmp().words(), (said.0.to_owned(), said.1, said.2), "{to}");
    }
    // Nobody listens at the gateway.
    talker.datagram(OWN, 1, 20);
    talker.expect((OWN, 3, 3), OWN, &PORTS);
    talker.datagram(OWN6, 64, 20);
    talker.expect((OWN6, 1, 4), OWN6, &PORTS);
    talker.syn(OWN, 1);
    assert!(talker.hear().rst);
    // What a router quotes whole is quoted whole, with its length.
    for (to, len, headers) in [(FAR, 500, 28), (FAR6, 1100, 48)] {
        talker.datagram(to, 64, len);
        let quoted = talker.icmp().payload;
        let [ip, udp] = if to == FAR { [2, 24] } else { [4, 44] };
        let said = [ip, udp].map(|at| usize::from(u16::from_be_bytes([quoted[at], quoted[at + 1]])));
        assert_eq!(said, [if to == FAR { headers + len } else { 8 + len }, 8 + len]);
        assert_eq!(quoted[headers..], vec![5; len]);
    }
    // One that went wrong costs the next one nothing, from the same socket to elsewhere.
    talker.datagram(ROUTER, 64, 20);
    talker.expect((ROUTER, 3, 3), ROUTER, &PORTS);
    talker.datagram(FAR, 64, 20);
    talker.expect((FAR, 3, 3), FAR, &PORTS);
    world.daemon.assert_alive();
}

#[test]
fn the_paths_mtu_is_told_until_packets_fit() {
    let mut world = World::new(ALL_GROUPS);
    let mut talker = Talker::new(&world.daemon, 1);
    for (to, router, own, headers, too_big, end) in
        [(FAR, ROUTER, OWN, 28, (3, 4), (3, 3)), (FAR6, ROUTER6, OWN6, 48, (2, 0), (1, 4))]
    {
        // Longer than the host's own link takes, and than the way beyond.
        for (len, from, mtu) in [(2000, own, 1500), (1500 - headers, router, PATH_MTU), (1401 - headers, own, PATH_MTU)]
        {
            talker.datagram(to, 64, len);
            assert_eq!(talker.expect((from, too_big.0, too_big.1), to, &PORTS), mtu as u32);
            talker.ping(to, 64, (7, 1), &vec![1; len]);
            let icmp = talker.icmp();
            assert_eq!((icmp.kind, icmp.code, icmp.rest), (too_big.0, too_big.1, mtu as u32), "{icmp:?}");
        }
        talker.datagram(to, 64, PATH_MTU - headers);
        talker.expect((to, end.0, end.1), to, &PORTS);
    }
    world.daemon.assert_alive();
}

#[test]
fn nothing_is_said_of_errors_and_not_too_much_of_the_rest() {
    let mut world = World::new(ALL_GROUPS);
    let mut talker = Talker::new(&world.daemon, 1);
    // Errors of the guest's, and what is for many.
    for kind in [3, 11] {
        let mut frame = Vec::new();
        talker.to(ROUTER, 1).write(&mut frame, IpNumber::ICMP, &[kind, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        talker.guest.send(&frame);
    }
    for to in ["10.0.2.255", "255.255.255.255", "224.0.0.1", "ff02::1"] {
        talker.datagram(to, 1, 20);
    }
    assert_eq!(talker.icmp_within(Duration::from_millis(300)), None);
    let address = IpAddr::V4(GATEWAY);
    for _ in 0..2000 {
        talker.datagram(FAR, 1, 20);
    }
    let mut count = 0;
    while let Some(icmp) = talker.icmp_within(Duration::from_millis(300)) {
        assert_eq!((icmp.from, icmp.kind), (address, 11));
        count += 1;
    }
    assert!((100..1000).contains(&count), "{count}");
    until("all are counted", || world.daemon.counters(UPLINK)["drop_rx_hop_limit"] >= 2000);
    world.daemon.assert_alive();
}
