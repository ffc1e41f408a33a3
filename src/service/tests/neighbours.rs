//! Router advertisements, DHCPv6, and the server's own addresses: ARP, neighbour discovery, echo.

use super::guard::arp;
use super::*;
use dhcproto::v6::{self, OptionCode as Code};

const GUEST: &str = "fe80::5054:ff:fe00:7";
const ALL_ROUTERS: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 2]);
const ALL_DHCP: MacAddr = MacAddr([0x33, 0x33, 0, 1, 0, 2]);

fn guest() -> Ipv6Addr {
    GUEST.parse().unwrap()
}

fn with_v6(v6: V6) -> Services {
    Services::new(Settings { v6: Some(v6), ..settings(v4()) }, Leases::default())
}

/// Services that have the server's addresses too.
fn gateway() -> Services {
    Services::new(Settings { answers_for_gateway: true, ..settings(v4()) }, Leases::default())
}

fn solicit(from: Ipv6Addr, hop_limit: u8, options: &[u8]) -> Vec<u8> {
    let message = [&[133, 0, 0, 0, 0, 0, 0, 0], options].concat();
    icmp6(mac(7), ALL_ROUTERS, from, "ff02::2".parse().unwrap(), hop_limit, &message)
}

/// The addresses of an IPv6 frame, and what is behind its header.
fn parts(frame: &[u8]) -> (Ipv6Addr, Ipv6Addr, &[u8]) {
    let ip = etherparse::Ipv6Slice::from_slice(&frame[14..]).unwrap();
    (ip.header().source_addr(), ip.header().destination_addr(), &frame[54..])
}

#[test]
fn a_router_advertisement_byte_by_byte() {
    let v6 = V6 {
        dns: vec!["fd00:47:57::1".parse().unwrap()],
        search: vec!["lab.example".parse().unwrap()],
        mtu: Some(9000),
        ..v6()
    };
    let mut services = with_v6(v6);
    let (_, answer) = send(&mut services, 1, &solicit(guest(), 255, &[1, 1, 0x52, 0x54, 0, 0, 0, 7]));
    let answer = answer.unwrap();
    let (from, to, message) = parts(&answer);
    assert_eq!((from, to), (link_local(SERVER_MAC), guest()));
    assert_eq!((MacAddr::destination_of(&answer), answer[21]), (Some(mac(7)), 255));
    // Hop limit 64; the flag for other configuration; no default router; no times.
    assert_eq!(&message[..2], [134, 0]);
    assert_eq!(&message[4..16], [64, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let prefix = [0xfd, 0, 0, 0x47, 0, 0x57, 0, 0];
    let mut expected = vec![1, 1, 2, 0x47, 0x57, 0, 0, 1, 5, 1, 0, 0, 0, 0, 0x23, 0x28];
    expected.extend([3, 4, 64, 0xc0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]);
    expected.extend([&prefix[..], &[0; 8]].concat());
    expected.extend([&[25, 3, 0, 0, 255, 255, 255, 255], &prefix[..], &[0, 0, 0, 0, 0, 0, 0, 1]].concat());
    expected.extend([31, 3, 0, 0, 255, 255, 255, 255]);
    expected.extend(b"\x03lab\x07example\x00\x00\x00\x00");
    assert_eq!(&message[16..], expected);
}

#[test]
fn a_host_without_an_address_is_answered_through_all() {
    let mut services = with_v6(V6 { router_lifetime: 1800, ..v6() });
    let (_, answer) = send(&mut services, 1, &solicit(Ipv6Addr::UNSPECIFIED, 255, &[]));
    let answer = answer.unwrap();
    let (_, to, message) = parts(&answer);
    assert_eq!((to, MacAddr::destination_of(&answer)), (ndp::ALL_NODES, Some(ndp::ALL_NODES_MAC)));
    // Nothing more to ask for; half an hour a default router.
    assert_eq!(&message[4..8], [64, 0, 7, 8]);
}

#[test]
fn solicitations_that_are_not_valid_are_dropped() {
    let good = solicit(guest(), 255, &[]);
    let mut bad_sum = good.clone();
    *bad_sum.last_mut().unwrap() ^= 1;
    let mut code = good.clone();
    code[55] = 1;
    for bad in [
        bad_sum,
        code,
        solicit(guest(), 64, &[]),
        solicit(guest(), 255, &[1, 0, 0, 0, 0, 0, 0, 0]),
        solicit(guest(), 255, &[1, 2, 0, 0, 0, 0, 0, 0]),
        solicit(guest(), 255, &[1]),
        solicit(Ipv6Addr::UNSPECIFIED, 255, &[1, 1, 0x52, 0x54, 0, 0, 0, 7]),
        solicit("ff02::9".parse().unwrap(), 255, &[]),
        good[..good.len() - 2].to_vec(),
    ] {
        assert_eq!(send(&mut services(), 1, &bad), (Outcome::Drop(Counter::DropTxBadRequest), None), "{bad:02x?}");
    }
}

fn information_request(options: &[u8]) -> Vec<u8> {
    let payload = [&[11, 1, 2, 3], options].concat();
    udp6(mac(7), ALL_DHCP, guest(), "ff02::1:2".parse().unwrap(), (546, 547), &payload)
}

#[test]
fn dhcpv6_tells_what_is_asked_for() {
    let dns: Ipv6Addr = "fd00:47:57::1".parse().unwrap();
    let search = vec!["a.lab".parse().unwrap(), "b.lab".parse().unwrap()];
    let mut services = with_v6(V6 { dns: vec![dns], search, ..v6() });
    let mut ask = |options: &[u8]| {
        let (_, answer) = send(&mut services, 1, &information_request(options));
        let answer = answer.unwrap();
        let (from, to, datagram) = parts(&answer);
        assert_eq!((from, to, &datagram[..4]), (link_local(SERVER_MAC), guest(), &[2, 35, 2, 34][..]));
        // No name is shortened (RFC 8415 10).
        let has = |bytes: &[u8]| datagram.windows(bytes.len()).any(|window| window == bytes);
        assert!(!has(b"lab") || has(b"\0\x18\0\x0e\x01a\x03lab\0\x01b\x03lab\0"));
        v6::Message::decode(&mut Decoder::new(&datagram[8..])).unwrap()
    };
    let client = [0, 1, 0, 4, 0xaa, 0xbb, 0xcc, 0xdd];
    let told = ask(&[&client[..], &[0, 6, 0, 4, 0, 23, 0, 32]].concat());
    assert_eq!((told.msg_type(), told.xid()), (v6::MessageType::Reply, [1, 2, 3]));
    assert_eq!(told.opts().get(Code::ClientId), Some(&v6::DhcpOption::ClientId(vec![0xaa, 0xbb, 0xcc, 0xdd])));
    let identifier = [&[0, 3, 0, 1], &SERVER_MAC.0[..]].concat();
    assert_eq!(told.opts().get(Code::ServerId), Some(&v6::DhcpOption::ServerId(identifier)));
    assert_eq!(told.opts().get(Code::DomainNameServers), Some(&v6::DhcpOption::DomainNameServers(vec![dns])));
    assert_eq!(told.opts().get(Code::DomainSearchList), None);
    let told = ask(&[]);
    assert_eq!(told.opts().get(Code::ClientId), None);
    let names = ["a.lab.", "b.lab."].map(|name| dhcproto::Name::from_ascii(name).unwrap()).to_vec();
    assert_eq!(told.opts().get(Code::DomainSearchList), Some(&v6::DhcpOption::DomainSearchList(names)));
}

#[test]
fn the_longest_lists_fit_into_a_frame() {
    let label = |n: usize| format!("{}{n}", "a".repeat(61));
    let domain = |n: usize| format!("{}.{}.{}", label(n % 10), label(n / 10 % 10), label(3)).parse().unwrap();
    let dns = (0..99).map(|n| Ipv6Addr::from_bits(n << 64 | 1)).collect();
    let v6 = V6 { dns, search: (0..99).map(domain).collect(), mtu: Some(9000), ..v6() };
    let mut services = with_v6(v6);
    // `send` holds the length against its bound.
    let (_, answer) = send(&mut services, 1, &solicit(guest(), 255, &[]));
    assert!(answer.unwrap().len() > 1300);
    let (_, answer) = send(&mut services, 1, &information_request(&[&[0, 1, 0, 130][..], &[9; 130]].concat()));
    assert!(answer.unwrap().len() > 900);
}

#[test]
fn dhcpv6_gives_no_addresses_and_hears_no_nonsense() {
    let solicit = udp6(mac(7), ALL_DHCP, guest(), "ff02::1:2".parse().unwrap(), (546, 547), &[1, 1, 2, 3]);
    let from_nobody = udp6(mac(7), ALL_DHCP, Ipv6Addr::UNSPECIFIED, guest(), (546, 547), &[11, 1, 2, 3]);
    let mut no_sum = information_request(&[]);
    no_sum[60..62].fill(0);
    for bad in [
        solicit,
        from_nobody,
        no_sum,
        information_request(&[0, 2, 0, 1, 9]),
        information_request(&[0, 3, 0, 0]),
        information_request(&[0, 6, 0, 9, 0]),
        information_request(&[0, 6, 0]),
        information_request(&[&[0, 1, 0, 200][..], &[0; 200]].concat()),
    ] {
        assert_eq!(send(&mut services(), 1, &bad), (Outcome::Drop(Counter::DropTxBadRequest), None), "{bad:02x?}");
    }
}

#[test]
fn arp_for_the_server_is_answered_byte_by_byte() {
    let mut services = gateway();
    let (_, answer) = send(&mut services, 1, &arp(1, mac(7), ip(7), SERVER));
    let mut expected = [&mac(7).0[..], &SERVER_MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
    expected.extend([&SERVER_MAC.0[..], &SERVER.octets(), &mac(7).0, &ip(7).octets()].concat());
    assert_eq!(answer.unwrap(), expected);
    // A probe too, so that nobody takes the address by mistake.
    assert!(send(&mut services, 1, &arp(1, mac(7), Ipv4Addr::UNSPECIFIED, SERVER)).1.is_some());
    let mut lies = arp(1, mac(7), ip(7), SERVER);
    lies[18] = 7;
    for other in [arp(1, mac(7), ip(7), ip(8)), arp(2, mac(7), ip(7), SERVER), lies] {
        assert_eq!(send(&mut services, 1, &other), (Outcome::Ignored, None));
    }
    let kernels = send(&mut super::services(), 1, &arp(1, mac(7), ip(7), SERVER));
    assert_eq!(kernels, (Outcome::Ignored, None), "an interface of the host answers");
}

fn neighbour(from: Ipv6Addr, target: Ipv6Addr, to: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..]].concat();
    icmp6(mac(7), MacAddr([0x33, 0x33, 0xff, 0, 0, 1]), from, to, hop_limit, &message)
}

#[test]
fn neighbour_solicitations_for_the_server_are_answered() {
    let mut services = gateway();
    let group = "ff02::1:ff00:1".parse().unwrap();
    for ours in [link_local(SERVER_MAC), "fd00:47:57::1".parse().unwrap()] {
        let (_, answer) = send(&mut services, 1, &neighbour(guest(), ours, group, 255));
        let answer = answer.unwrap();
        let (from, to, message) = parts(&answer);
        assert_eq!((from, to, answer[21]), (ours, guest(), 255));
        // Solicited, and overrides what was known; no router.
        assert_eq!((&message[..2], &message[4..8]), (&[136, 0][..], &[0x60, 0, 0, 0][..]));
        assert_eq!(message[8..], [&ours.octets()[..], &[2, 1], &SERVER_MAC.0].concat());
        let (_, answer) = send(&mut services, 1, &neighbour(Ipv6Addr::UNSPECIFIED, ours, group, 255));
        let answer = answer.unwrap();
        assert_eq!((parts(&answer).1, parts(&answer).2[4]), (ndp::ALL_NODES, 0x20));
    }
    let ours = link_local(SERVER_MAC);
    let bad = Outcome::Drop(Counter::DropTxBadRequest);
    assert_eq!(send(&mut services, 1, &neighbour(guest(), ours, group, 254)), (bad, None));
    assert_eq!(send(&mut services, 1, &neighbour(Ipv6Addr::UNSPECIFIED, ours, ours, 255)), (bad, None));
    assert_eq!(send(&mut services, 1, &neighbour(guest(), guest(), group, 255)), (Outcome::Ignored, None));
    let kernels = send(&mut super::services(), 1, &neighbour(guest(), ours, group, 255));
    assert_eq!(kernels, (Outcome::Ignored, None));
}

fn ping(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(mac(7).0, SERVER_MAC.0)
        .ipv4(from.octets(), to.octets(), 64)
        .icmpv4_echo_request(0x1234, 5);
    let mut frame = Vec::new();
    packet.write(&mut frame, payload).unwrap();
    frame
}

#[test]
fn echo_requests_to_the_server_are_answered() {
    let mut services = gateway();
    for len in [0, 1, 56, 1472, 60_000] {
        let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let (_, answer) = send(&mut services, 1, &ping(ip(7), SERVER, &payload));
        let answer = answer.unwrap();
        assert_eq!((&answer[..6], &answer[26..34]), (&mac(7).0[..], &[SERVER.octets(), ip(7).octets()].concat()[..]));
        assert_eq!((&answer[34..36], &answer[38..42]), (&[0, 0][..], &[0x12, 0x34, 0, 5][..]));
        assert_eq!(answer[42..], payload);
    }
    let mut bad_sum = ping(ip(7), SERVER, b"x");
    bad_sum[42] ^= 1;
    let bad = Outcome::Drop(Counter::DropTxBadRequest);
    assert_eq!(send(&mut services, 1, &bad_sum), (bad, None));
    for from in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 1)] {
        assert_eq!(send(&mut services, 1, &ping(from, SERVER, b"x")), (bad, None));
    }
    assert_eq!(send(&mut services, 1, &ping(ip(7), ip(9), b"x")), (Outcome::Ignored, None));
    let kernels = send(&mut super::services(), 1, &ping(ip(7), SERVER, b"x"));
    assert_eq!(kernels, (Outcome::Ignored, None));
}

#[test]
fn echo_requests_of_ipv6_are_answered() {
    let mut services = gateway();
    let ours: Ipv6Addr = "fd00:47:57::1".parse().unwrap();
    let request = |to| icmp6(mac(7), SERVER_MAC, guest(), to, 64, b"\x80\0\0\0\x12\x34\0\x05hello");
    let (_, answer) = send(&mut services, 1, &request(ours));
    let answer = answer.unwrap();
    let (from, to, message) = parts(&answer);
    assert_eq!((from, to), (ours, guest()));
    assert_eq!((&message[..2], &message[4..]), (&[129, 0][..], &b"\x12\x34\0\x05hello"[..]));
    assert_eq!(send(&mut services, 1, &request(guest())), (Outcome::Ignored, None));
    // The packet says that it is longer than it is.
    let mut lies = request(ours);
    lies[19] += 8;
    assert_eq!(send(&mut services, 1, &lies), (Outcome::Drop(Counter::DropTxBadRequest), None));
    let ours = with_v6(v6()).settings().v6.clone().unwrap().address.unwrap();
    assert_eq!(send(&mut super::services(), 1, &request(ours)), (Outcome::Ignored, None));
}
