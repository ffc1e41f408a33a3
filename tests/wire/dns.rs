//! DNS of NAT networks: whom guests' questions reach, by datagrams and by connections, and what they never reach.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tempfile::TempDir;

use crate::daemon::{Daemon, PATIENCE, until};
use crate::dhcp::lease_as;
use crate::guest::{Config, Guest, mac};
use crate::resolver::{Manner, Resolver};
use crate::space::Space;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const GATEWAY6: &str = "fd01::1";
const TOLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const TOLD_BY_OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const TABLE: &str = "127.0.0.1 localhost\n127.0.1.1 box.corp.example box\n10.1.2.3 secret.example.org\n";

/// A host with resolvers, and guestwire on it.
struct World {
    daemon: Daemon,
    /// It has to stay.
    _space: Space,
    folder: TempDir,
}

impl World {
    /// With this resolv.conf.
    fn new(space: Space, conf: &str) -> Self {
        let folder = TempDir::with_prefix("guestwire-dns-").unwrap();
        let [conf_file, table] = ["resolv.conf", "hosts"].map(|name| folder.path().join(name));
        fs::write(&conf_file, conf).unwrap();
        fs::write(&table, TABLE).unwrap();
        let mount = format!(
            "mount --bind {} /etc/resolv.conf && mount --bind {} /etc/hosts && exec \"$0\" \"$@\"",
            conf_file.display(),
            table.display()
        );
        let starter = ["unshare", "--mount", "sh", "-c", &mount];
        let options = ["--subnet", "10.0.2.0/24", "--subnet6", "fd01::/64", "--domain", "lab.example", "-v"];
        Self { daemon: Daemon::in_space_by(&space, &starter, "nat", &options), _space: space, folder }
    }

    /// Changes the resolv.conf.
    fn set_conf(&self, conf: &str) {
        fs::write(self.folder.path().join("resolv.conf"), conf).unwrap();
    }

    fn asker(&self, number: u8, name: Option<&str>) -> Asker {
        let mut guest = Guest::attach(&self.daemon.socket(), Config::usual(number));
        let address = lease_as(&mut guest, name);
        let gateway_mac = gateway_mac(&mut guest, address);
        Asker { guest, address, gateway_mac, port: 40_000, id: 0 }
    }
}

/// The MAC address of the gateway, as ARP says it.
fn gateway_mac(guest: &mut Guest, address: Ipv4Addr) -> [u8; 6] {
    let own = mac(guest.config.number);
    let head = [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own, &address.octets(), &[0; 6]].concat();
    guest.send(&[&head[..], &GATEWAY.octets()].concat());
    loop {
        let frame = guest.receive().frame;
        if frame[12..14] == [8, 6] && frame[28..32] == GATEWAY.octets() {
            return frame[22..28].try_into().unwrap();
        }
    }
}

fn question(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

/// A guest that asks.
struct Asker {
    guest: Guest,
    address: Ipv4Addr,
    gateway_mac: [u8; 6],
    port: u16,
    id: u16,
}

impl Asker {
    fn next(&mut self, name: &str, kind: RecordType) -> Message {
        (self.port, self.id) = (self.port + 1, self.id + 1);
        question(self.id, name, kind)
    }

    fn send(&mut self, message: &[u8]) {
        let packet = PacketBuilder::ethernet2(mac(self.guest.config.number), self.gateway_mac);
        let mut frame = Vec::new();
        packet.ipv4(self.address.octets(), GATEWAY.octets(), 64).udp(self.port, 53).write(&mut frame, message).unwrap();
        self.guest.send(&frame);
    }

    /// The next datagram from the gateway's name server to the port that was asked from last.
    fn hear(&mut self, within: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + within;
        while let Some(received) = self.guest.receive_within(end.saturating_duration_since(Instant::now())) {
            let Ok(packet) = SlicedPacket::from_ethernet(&received.frame) else { continue };
            let Some(TransportSlice::Udp(udp)) = &packet.transport else { continue };
            let from: Option<IpAddr> = match &packet.net {
                Some(NetSlice::Ipv4(ip)) => Some(ip.header().source_addr().into()),
                Some(NetSlice::Ipv6(ip)) => Some(ip.header().source_addr().into()),
                _ => None,
            };
            if udp.source_port() == 53 && udp.destination_port() == self.port {
                let gateways = [GATEWAY.into(), GATEWAY6.parse().unwrap()];
                assert!(from.is_some_and(|from| gateways.contains(&from)), "{from:?}");
                assert!(received.frame.len() <= 1514);
                return Some(udp.payload().to_vec());
            }
        }
        None
    }

    /// Asks by a datagram, and waits for the answer.
    #[track_caller]
    fn ask(&mut self, name: &str, kind: RecordType) -> Message {
        let message = self.next(name, kind);
        self.send(&message.to_vec().unwrap());
        let answer = self.hear(PATIENCE).unwrap_or_else(|| panic!("no answer for {name} {kind}"));
        checked(&message, &answer)
    }

    /// The same by IPv6, from this address.
    #[track_caller]
    fn ask6(&mut self, from: &str, name: &str, kind: RecordType) -> Message {
        let message = self.next(name, kind);
        let [from, to] = [from, GATEWAY6].map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        let packet = PacketBuilder::ethernet2(mac(self.guest.config.number), self.gateway_mac);
        let mut frame = Vec::new();
        packet.ipv6(from, to, 64).udp(self.port, 53).write(&mut frame, &message.to_vec().unwrap()).unwrap();
        self.guest.send(&frame);
        let answer = self.hear(PATIENCE).unwrap_or_else(|| panic!("no answer for {name} {kind} by IPv6"));
        checked(&message, &answer)
    }

    #[track_caller]
    fn expect(&mut self, name: &str, expected: Ipv4Addr) {
        let answer = self.ask(name, RecordType::A);
        assert_eq!(
            (answer.response_code, addresses(&answer)),
            (ResponseCode::NoError, vec![expected.into()]),
            "{name}"
        );
    }

    fn segment(&mut self, (seq, ack): (u32, u32), flags: &str, payload: &[u8]) {
        let packet = PacketBuilder::ethernet2(mac(self.guest.config.number), self.gateway_mac);
        let mut tcp = packet.ipv4(self.address.octets(), GATEWAY.octets(), 64).tcp(self.port, 53, seq, 65_000);
        if flags.contains('S') {
            tcp = tcp.syn();
        }
        if flags.contains('A') {
            tcp = tcp.ack(ack);
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, payload).unwrap();
        self.guest.send(&frame);
    }

    /// Asks several questions over one connection, and waits for as many answers.
    #[track_caller]
    fn ask_by_tcp(&mut self, messages: &[Message]) -> Vec<Message> {
        self.port += 1;
        let bytes = messages.iter().map(|message| message.to_vec().unwrap());
        let sent: Vec<u8> =
            bytes.flat_map(|bytes| [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()).collect();
        self.segment((1000, 0), "S", &[]);
        let (mut next, mut heard, mut answers) = (None, Vec::new(), Vec::new());
        let end = Instant::now() + PATIENCE;
        while answers.len() < messages.len() {
            let left = end.saturating_duration_since(Instant::now());
            let received = self.guest.receive_within(left).expect("a segment");
            let Ok(packet) = SlicedPacket::from_ethernet(&received.frame) else { continue };
            let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { continue };
            assert!(!tcp.rst(), "the connection is refused");
            if tcp.syn() && next.is_none() {
                next = Some(tcp.sequence_number().wrapping_add(1));
                // The first bytes alone.
                self.segment((1001, next.unwrap()), "A", &sent[..3]);
                self.segment((1004, next.unwrap()), "A", &sent[3..]);
            } else if next == Some(tcp.sequence_number()) && !tcp.payload().is_empty() {
                heard.extend_from_slice(tcp.payload());
                next = next.map(|next| next.wrapping_add(tcp.payload().len() as u32));
                self.segment((1001 + sent.len() as u32, next.unwrap()), "A", &[]);
            }
            while let Some((len, rest)) = heard.split_first_chunk::<2>()
                && let Some(answer) = rest.get(..usize::from(u16::from_be_bytes(*len)))
            {
                answers.push(checked(&messages[answers.len()], answer));
                heard = heard.split_off(2 + usize::from(u16::from_be_bytes(*len)));
            }
        }
        answers
    }
}

/// The answer to a message, which it must fit.
#[track_caller]
fn checked(message: &Message, answer: &[u8]) -> Message {
    let answer = Message::from_vec(answer).unwrap();
    assert_eq!((answer.id, answer.message_type), (message.id, MessageType::Response));
    assert_eq!(answer.queries, message.queries);
    answer
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| address(&record.data)).collect()
}

#[test]
fn questions_are_asked_of_the_hosts_resolver_so_that_nobody_can_guess() {
    let space = Space::new();
    let resolver = Resolver::start(&space, "127.0.0.53", Manner::Lies(TOLD));
    let mut world = World::new(space, "nameserver 127.0.0.53\noptions edns0\n");
    let mut asker = world.asker(1, None);
    const COUNT: usize = 40;
    for n in 0..COUNT {
        asker.expect(&format!("N{n}.Example.com"), TOLD);
    }
    assert_eq!(addresses(&asker.ask6("fd01::77", "by6.example.com", RecordType::A)), [IpAddr::V4(TOLD)]);
    let asked = resolver.asked();
    assert_eq!(asked.len(), COUNT + 1);
    assert!(asked.iter().all(|asked| !asked.by_tcp && asked.from.ip() == Ipv4Addr::LOCALHOST));
    for own in [asked.iter().map(|asked| asked.id).collect::<Vec<_>>(), asked.iter().map(|a| a.from.port()).collect()] {
        let is_counted = own.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 8).count();
        assert!(is_counted < COUNT / 4, "{own:?}");
    }
    world.daemon.assert_alive();
}

#[test]
fn guests_find_each_other_by_name() {
    let space = Space::new();
    let resolver = Resolver::start(&space, "127.0.0.1", Manner::Tells(TOLD));
    let mut world = World::new(space, "nameserver 127.0.0.1\n");
    let mut web = world.asker(1, Some("Web.somewhere"));
    let mut db = world.asker(2, Some("db"));
    let (web_address, db_address) = (web.address, db.address);
    for name in ["web", "web.lab.example", "WEB.Lab.Example"] {
        db.expect(name, web_address);
        assert_eq!(addresses(&db.ask(name, RecordType::AAAA)), [] as [IpAddr; 0]);
    }
    web.expect("db", db_address);
    // It is seen by what it sends.
    web.ask6("fd01::abcd", "db", RecordType::A);
    if crate::daemon::workers() == 1 {
        assert_eq!(addresses(&db.ask("web", RecordType::AAAA)), ["fd01::abcd".parse::<IpAddr>().unwrap()]);
    }
    let [_, _, _, last] = web_address.octets();
    let reverse = db.ask(&format!("{last}.2.0.10.in-addr.arpa"), RecordType::PTR);
    let names: Vec<String> = reverse.answers.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(names, ["web.lab.example."]);
    assert!(resolver.asked().is_empty(), "{:?}", resolver.asked());
    // Its lease lasts; where it was seen does not.
    drop(web);
    world.daemon.wait_for_line("the port has ended");
    db.expect("web", web_address);
    assert_eq!(addresses(&db.ask("web", RecordType::AAAA)), [] as [IpAddr; 0]);
    world.daemon.assert_alive();
}

#[test]
fn what_is_the_hosts_own_reaches_no_resolver() {
    let space = Space::new();
    let resolver = Resolver::start(&space, "127.0.0.1", Manner::Tells(TOLD));
    let mut world = World::new(space, "nameserver 127.0.0.1\nsearch corp.example contoso.local\n");
    let mut asker = world.asker(1, Some("web"));
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let private = [
        "printer",
        "_gateway",
        "_localdnsstub",
        "box.corp.example",
        "secret.example.org",
        "printer.local",
        own.trim(),
        "1.1.168.192.in-addr.arpa",
        "1.0.0.127.in-addr.arpa",
        "3.2.1.10.in-addr.arpa",
    ];
    for name in private {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::PTR, RecordType::TXT, RecordType::ANY] {
            let answer = asker.ask(name, kind);
            assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NXDomain, 0), "{name} {kind}");
        }
    }
    assert_eq!(addresses(&asker.ask("localhost", RecordType::A)), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    let by_tcp = private.map(|name| asker.next(name, RecordType::A));
    for answer in asker.ask_by_tcp(&by_tcp) {
        assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NXDomain, 0), "{answer:?}");
    }
    assert!(resolver.asked().is_empty(), "{:?}", resolver.asked());
    let zones = ["git.corp.example", "build.internal", "nas.lan", "nas.home.arpa", "dc1.contoso.local"];
    zones.iter().for_each(|name| asker.expect(name, TOLD));
    let asked: Vec<String> = resolver.asked().into_iter().map(|asked| asked.name).collect();
    assert_eq!(asked, zones.map(|name| format!("{name}.")));
    world.daemon.assert_alive();
}

#[test]
fn an_address_is_the_hosts_if_an_interface_has_it_and_not_if_it_can_be_bound() {
    let space = Space::new();
    for (family, own) in [("ipv4", "198.51.100.7/32"), ("ipv6", "2001:db8::7/128")] {
        space.set(&format!("{family}/ip_nonlocal_bind"), "1");
        space.ip(&format!("addr add {own} dev lo"));
    }
    let resolver = Resolver::start(&space, "127.0.0.1", Manner::Tells(TOLD));
    let mut world = World::new(space, "nameserver 127.0.0.1\n");
    let mut asker = world.asker(1, None);
    let [own, others] = [["198.51.100.7", "2001:db8::7"], ["198.51.100.8", "2001:db8::8"]]
        .map(|addresses| addresses.map(|address| reverse_name(address.parse().unwrap())));
    for name in own {
        assert_eq!(asker.ask(&name, RecordType::PTR).response_code, ResponseCode::NXDomain, "{name}");
    }
    assert!(resolver.asked().is_empty(), "{:?}", resolver.asked());
    for name in &others {
        assert_eq!(asker.ask(name, RecordType::PTR).response_code, ResponseCode::NoError, "{name}");
    }
    let asked: Vec<String> = resolver.asked().into_iter().map(|asked| asked.name).collect();
    assert_eq!(asked, others);
    world.daemon.assert_alive();
}

/// What an address is called in DNS when its name is asked for (RFC 1035, 3.5; RFC 3596, 2.5).
fn reverse_name(address: IpAddr) -> String {
    Name::from(address).to_string()
}

#[test]
fn a_resolver_that_is_changed_is_followed() {
    let space = Space::new();
    let _resolvers = [("127.0.0.1", TOLD), ("127.0.0.2", TOLD_BY_OTHER)]
        .map(|(address, told)| Resolver::start(&space, address, Manner::Tells(told)));
    let mut world = World::new(space, "nameserver 127.0.0.1\n");
    let mut asker = world.asker(1, None);
    asker.expect("a.example", TOLD);
    world.set_conf("# another\nnameserver 127.0.0.2\n");
    std::thread::sleep(Duration::from_millis(1100));
    asker.expect("a.example", TOLD_BY_OTHER);
    // None at all is the host itself.
    world.set_conf("");
    std::thread::sleep(Duration::from_millis(1100));
    asker.expect("a.example", TOLD);
    world.daemon.assert_alive();
}

#[test]
fn the_next_resolver_is_asked_when_one_cannot_tell() {
    let space = Space::new();
    let _told = Resolver::start(&space, "127.0.0.1", Manner::Tells(TOLD));
    let silent = Resolver::start(&space, "127.0.0.2", Manner::Silent);
    let fails = Resolver::start(&space, "127.0.0.3", Manner::Fails);
    // Nobody listens there.
    let mut world = World::new(space, "nameserver 127.0.0.9\nnameserver 127.0.0.3\nnameserver 127.0.0.1\n");
    let mut asker = world.asker(1, None);
    let begun = Instant::now();
    asker.expect("a.example", TOLD);
    let by_tcp = [asker.next("b.example", RecordType::A)];
    assert_eq!(addresses(&asker.ask_by_tcp(&by_tcp)[0]), [IpAddr::V4(TOLD)]);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!(fails.asked().len(), 2);
    world.set_conf("nameserver 127.0.0.2\nnameserver 127.0.0.1\n");
    std::thread::sleep(Duration::from_millis(1100));
    let begun = Instant::now();
    asker.expect("c.example", TOLD);
    let waited = begun.elapsed();
    assert!(waited > Duration::from_millis(1900) && waited < Duration::from_secs(5), "{waited:?}");
    assert_eq!(silent.asked().len(), 1);
    // All have said that they cannot tell.
    world.set_conf("nameserver 127.0.0.3\nnameserver 127.0.0.9\n");
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(asker.ask("d.example", RecordType::A).response_code, ResponseCode::ServFail);
    let by_tcp = [asker.next("e.example", RecordType::A)];
    assert_eq!(asker.ask_by_tcp(&by_tcp)[0].response_code, ResponseCode::ServFail);
    world.daemon.assert_alive();
}

#[test]
fn what_is_too_long_for_a_datagram_comes_by_a_connection() {
    let space = Space::new();
    let resolver = Resolver::start(&space, "127.0.0.1", Manner::Tells(TOLD));
    let mut world = World::new(space, "nameserver 127.0.0.1\n");
    let mut asker = world.asker(1, None);
    let mut message = asker.next("long.example", RecordType::TXT);
    let mut edns = Edns::new();
    edns.set_max_payload(8192);
    message.set_edns(edns);
    asker.send(&message.to_vec().unwrap());
    let answer = checked(&message, &asker.hear(PATIENCE).unwrap());
    assert!(answer.truncation && answer.answers.is_empty() && answer.edns.is_some());
    let messages = [message, asker.next("short.example", RecordType::A), asker.next("long.example", RecordType::TXT)];
    let answers = asker.ask_by_tcp(&messages);
    assert!(answers.iter().all(|answer| !answer.truncation && answer.answers.len() == 1));
    assert!(answers[2].to_vec().unwrap().len() > 4000);
    assert_eq!(addresses(&answers[1]), [IpAddr::V4(TOLD)]);
    assert_eq!(resolver.asked().iter().filter(|asked| asked.by_tcp).count(), 3);
    world.daemon.assert_alive();
}

#[test]
fn a_guest_that_asks_without_end_has_its_share() {
    let space = Space::new();
    let _silent = Resolver::start(&space, "127.0.0.2", Manner::Silent);
    let _told = Resolver::start(&space, "127.0.0.1", Manner::Tells(TOLD));
    let mut world = World::new(space, "nameserver 127.0.0.2\n");
    let (mut greedy, mut other) = (world.asker(1, None), world.asker(2, None));
    let before = world.daemon.facts().fds;
    for n in 0..1500 {
        let message = greedy.next(&format!("n{n}.example"), RecordType::A);
        greedy.send(&message.to_vec().unwrap());
    }
    until("all are taken", || greedy.guest.all_sent(0));
    let fds = world.daemon.facts().fds;
    assert!((before + 400..=before + 540).contains(&fds), "{before} descriptors, then {fds}");
    world.set_conf("nameserver 127.0.0.1\n");
    std::thread::sleep(Duration::from_millis(1100));
    other.expect("a.example", TOLD);
    drop(greedy);
    until("its sockets are closed", || world.daemon.facts().fds <= before + 10);
    world.daemon.assert_alive();
}
