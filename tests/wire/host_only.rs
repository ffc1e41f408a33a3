//! Host-only networks in namespaces of their own: addresses for many and not for the greedy, and a tap that comes and
//! goes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;
use etherparse::{IcmpEchoHeader, Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::daemon::{Daemon, PATIENCE, until};
use crate::dhcp::{answer, ask, lease, renew};
use crate::guest::{Config, Guest, mac};
use crate::space::Space;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 1);
const TAP: &str = "gw-host-only";
/// The uplink comes first.
const FIRST_PORT: u64 = 1;

/// A guest that is a small burden: there are many.
fn small(number: u8) -> Config {
    Config { size: 32, ..Config::usual(number) }
}

#[test]
fn a_subnet_of_256_has_room_for_253_guests_and_the_next_gets_nothing() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut guests = Vec::new();
    let mut addresses = BTreeSet::new();
    for number in 1..=253 {
        let mut guest = Guest::attach(&daemon.socket(), small(number));
        addresses.insert(lease(&mut guest));
        guests.push(guest);
    }
    let all: BTreeSet<Ipv4Addr> = (2..=254).map(|last| Ipv4Addr::new(192, 168, 56, last)).collect();
    assert_eq!(addresses, all);
    let mut late = Guest::attach(&daemon.socket(), small(254));
    ask(&mut late, MessageType::Discover, 7, b"late", None);
    daemon.expect_counter(FIRST_PORT + 253, "drop_tx_pool_empty", 1);
    assert_eq!(answer(&mut late), None);
    daemon.assert_alive();
    // So many ports make long lines, for which a busy machine's disk may be slow.
    let warnings = daemon.warnings().into_iter().filter(|line| !line.contains("statistics"));
    assert_eq!(warnings.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn a_port_that_asks_a_thousand_times_gets_its_share_and_no_more() {
    const SHARE: usize = 8;
    const REQUESTS: u32 = 1000;
    const PER_SECOND: u32 = 120;
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut greedy = Guest::attach(&daemon.socket(), Config::usual(1));
    let mut other = Guest::attach(&daemon.socket(), Config::usual(2));
    let (mut offered, mut given) = (BTreeSet::new(), BTreeSet::new());
    let take = |guest: &mut Guest, offered: &mut BTreeSet<_>, given: &mut BTreeSet<_>| {
        while let Some(answer) = answer(guest) {
            match answer.kind {
                MessageType::Offer => {
                    offered.insert(answer.address);
                    let client = answer.transaction.to_be_bytes();
                    ask(guest, MessageType::Request, answer.transaction, &client, Some(answer.address));
                }
                MessageType::Ack => drop(given.insert(answer.address)),
                kind => panic!("{kind:?}"),
            }
        }
    };
    for n in 0..REQUESTS {
        ask(&mut greedy, MessageType::Discover, n, &n.to_be_bytes(), None);
        take(&mut greedy, &mut offered, &mut given);
        if n % PER_SECOND == PER_SECOND - 1 {
            // More than so many in a second are not looked at.
            std::thread::sleep(Duration::from_millis(1100));
        }
    }
    daemon.expect_counter(FIRST_PORT, "drop_tx_lease_share", u64::from(REQUESTS) - SHARE as u64);
    until("what was offered is given", || {
        take(&mut greedy, &mut offered, &mut given);
        given.len() >= SHARE
    });
    assert_eq!(offered, given);
    assert_eq!(given.len(), SHARE);
    assert_eq!(daemon.counters(FIRST_PORT)["drop_tx_lease_share"], u64::from(REQUESTS) - SHARE as u64);
    assert!(!given.contains(&lease(&mut other)));
    daemon.assert_alive();
}

/// What a guest with an address has to know to talk to the host.
struct Talker {
    guest: Guest,
    address: Ipv4Addr,
    sequence: u16,
}

impl Talker {
    fn new(daemon: &Daemon, number: u8) -> Self {
        let mut guest = Guest::attach(&daemon.socket(), Config::usual(number));
        let address = lease(&mut guest);
        Self { guest, address, sequence: 0 }
    }

    fn own(&self) -> [u8; 6] {
        mac(self.guest.config.number)
    }

    /// Sends an echo request to the host, whose address is `host`.
    fn ask(&mut self, host: [u8; 6]) -> u16 {
        self.sequence += 1;
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2(self.own(), host).ipv4(self.address.octets(), HOST.octets(), 64);
        let packet = packet.icmpv4_echo_request(self.guest.config.number.into(), self.sequence);
        packet.write(&mut frame, b"are you there?").unwrap();
        self.guest.send(&frame);
        self.sequence
    }

    /// Looks at what has come: answers the host that asks for its MAC address. Returns the number of an echo.
    fn hear(&mut self) -> Option<u16> {
        while let Some(received) = self.guest.poll(0) {
            let frame = received.frame;
            if frame.len() >= 42 && frame[12..14] == [8, 6] && frame[21] == 1 && frame[38..42] == self.address.octets()
            {
                let (asker, asker_mac) = (&frame[28..32], &frame[22..28]);
                let head = [asker_mac, &self.own(), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
                let arp = [&head, &self.own()[..], &self.address.octets(), asker_mac, asker].concat();
                self.guest.send(&arp);
            }
            let Ok(packet) = SlicedPacket::from_ethernet(&frame) else { continue };
            if let Some(TransportSlice::Icmpv4(icmp)) = packet.transport
                && let Icmpv4Type::EchoReply(IcmpEchoHeader { seq, .. }) = icmp.icmp_type()
            {
                return Some(seq);
            }
        }
        None
    }

    /// Sends echo requests until one is answered.
    #[track_caller]
    fn reach(&mut self, host: [u8; 6]) {
        let end = Instant::now() + PATIENCE;
        loop {
            let sequence = self.ask(host);
            let next = Instant::now() + Duration::from_millis(50);
            while Instant::now() < next {
                if self.hear() == Some(sequence) {
                    return;
                }
            }
            assert!(Instant::now() < end, "the host is not reached");
        }
    }
}

#[test]
fn a_guest_probes_for_what_it_is_offered_and_for_nothing_else() {
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut hearer = Guest::attach(&daemon.socket(), Config::usual(2));
    let taken = lease(&mut hearer);
    let mut asker = Guest::attach(&daemon.socket(), Config::usual(1));
    ask(&mut asker, MessageType::Discover, 7, b"asker", None);
    let mut offered = None;
    until("an address is offered", || {
        offered = answer(&mut asker).map(|answer| answer.address);
        offered.is_some()
    });
    // RFC 5227, 2.1.1. Who is about to take an address would hear that somebody else is.
    let probe = |target: Ipv4Addr| {
        let head = [&[0xff; 6][..], &mac(1), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac(1)].concat();
        [&head, &[0; 10][..], &target.octets(), &[0; 18]].concat()
    };
    let others = [taken, Ipv4Addr::new(192, 168, 56, 200)].map(probe);
    others.iter().for_each(|probe| asker.send(probe));
    daemon.expect_counter(FIRST_PORT + 1, "drop_tx_spoofed_neighbour", 2);
    let probe = probe(offered.unwrap());
    asker.send(&probe);
    loop {
        let frame = hearer.receive().frame;
        assert!(!others.contains(&frame));
        if frame == probe {
            break;
        }
    }
    daemon.assert_alive();
}

#[test]
fn a_lease_that_is_known_no_longer_is_renewed_and_may_be_used_again() {
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(1));
    let address = Ipv4Addr::new(192, 168, 56, 77);
    let mut other = Guest::attach(&daemon.socket(), Config::usual(2));
    let word = |to: [u8; 6]| {
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2(mac(1), to).ipv4(address.octets(), [192, 168, 56, 2], 64).udp(5, 5);
        packet.write(&mut frame, b"a word").unwrap();
        frame
    };
    guest.send(&word([0xff; 6]));
    daemon.expect_counter(FIRST_PORT, "drop_tx_spoofed_ip", 1);
    renew(&mut guest, address, HOST, space.mac(TAP));
    guest.send(&word([0xff; 6]));
    until("it is heard", || other.receive().frame == word([0xff; 6]));
    daemon.assert_alive();
}

#[test]
fn who_asks_the_gateway_often_keeps_its_own_address() {
    const TIMES: usize = 120;
    let mut daemon = Daemon::with(&["--dhcp", "--subnet", "10.1.0.0/24"], true);
    let [mut a, mut b] = [1, 2].map(|number| Guest::attach(&daemon.socket(), Config::usual(number)));
    let (own, to) = (lease(&mut a), lease(&mut b));
    let [x, y, z, _] = own.octets();
    let sender = [&mac(1)[..], &own.octets()].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &sender, &[0; 6], &[x, y, z, 1], &[0; 18]].concat();
    let arp = [&[0xff; 6][..], &mac(1), &[8, 6], &arp].concat();
    let mut udp = Vec::new();
    PacketBuilder::ethernet2(mac(1), mac(2))
        .ipv4(own.octets(), to.octets(), 64)
        .udp(5, 5)
        .write(&mut udp, b"x")
        .unwrap();
    for _ in 0..TIMES {
        a.send(&arp);
        a.send(&udp);
        until("the other hears it", || b.receive().frame == udp);
    }
    daemon.assert_alive();
}

/// A header that leaves a checksum to whoever receives the frame (virtio 1.3, 5.1.6.2).
fn partial(start: u16, offset: u16) -> [u8; 12] {
    let ([a, b], [c, d]) = (start.to_le_bytes(), offset.to_le_bytes());
    [1, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]
}

#[test]
fn a_checksum_that_would_be_written_into_what_was_judged_is_refused() {
    const IP: u16 = 14;
    const UDP: u16 = IP + 20;
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut liar = Talker::new(&daemon, 1);
    let mut hearer = Guest::attach(&daemon.socket(), Config::usual(2));
    let to = lease(&mut hearer);
    let own = liar.own();
    let sender = [&own[..], &liar.address.octets()].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &sender, &mac(2), &to.octets()].concat();
    let arp = [&mac(2)[..], &own, &[8, 6], &arp, &[0; 18]].concat();
    let mut udp = Vec::new();
    let packet = PacketBuilder::ethernet2(own, mac(2)).ipv4(liar.address.octets(), to.octets(), 64).udp(5, 5);
    packet.write(&mut udp, b"as it was sent").unwrap();
    // The address of who answers; a port; the address of who sends.
    for (frame, start, offset) in [(&arp, IP + 14, 0), (&arp, IP, 14), (&udp, UDP, 0), (&udp, IP, 12)] {
        liar.guest.send_with(&partial(start, offset), frame, &[]);
    }
    daemon.expect_counter(FIRST_PORT, "drop_tx_bad_header", 4);
    // UDP's own is what devices are for.
    liar.guest.send_with(&partial(UDP, 6), &udp, &[]);
    let heard = loop {
        let received = hearer.receive();
        if received.frame[12..14] == [8, 0] {
            break received;
        }
        assert_ne!(received.frame, arp);
    };
    assert!(heard.needs_checksum());
    assert_eq!(heard.frame[..usize::from(UDP)], udp[..usize::from(UDP)]);
    daemon.assert_alive();
}

#[test]
fn a_tap_that_is_deleted_is_made_again_and_the_guests_go_on() {
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut guest = Talker::new(&daemon, 1);
    let host = space.mac(TAP);
    guest.reach(host);
    space.ip(&format!("link delete {TAP}"));
    daemon.wait_for_line("the uplink is gone");
    daemon.wait_for_line("the uplink is back");
    assert_eq!(space.mac(TAP), host, "guests remember it");
    guest.reach(host);
    daemon.assert_alive();
}

#[test]
fn a_tap_of_the_users_is_waited_for() {
    let space = Space::new();
    space.ip("tuntap add lab0 mode tap");
    let mut daemon = Daemon::in_space(&space, "host-only", &["--tap", "lab0"]);
    let mut guest = Talker::new(&daemon, 1);
    guest.reach(space.mac("lab0"));
    space.ip("link delete lab0");
    daemon.wait_for_line("the uplink is gone");
    // Guests are among themselves meanwhile, and get leases.
    let mut other = Talker::new(&daemon, 2);
    assert_eq!(daemon.lines_with("the uplink is back"), 0);
    space.ip("tuntap add lab0 mode tap");
    daemon.wait_for_line("the uplink is back");
    let host = space.mac("lab0");
    guest.reach(host);
    other.reach(host);
    daemon.assert_alive();
}

#[test]
fn a_tap_that_goes_down_and_up_is_used_again() {
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut guest = Talker::new(&daemon, 1);
    let host = space.mac(TAP);
    guest.reach(host);
    let ours = space.ip(&format!("-6 -o addr show dev {TAP} scope global"));
    space.ip(&format!("link set {TAP} down"));
    daemon.wait_for_line("the uplink is down");
    guest.ask(host);
    daemon.expect_counter(0, "drop_rx_down", 1);
    space.ip(&format!("link set {TAP} up"));
    daemon.wait_for_line("the uplink is up");
    guest.reach(host);
    until("the host has its IPv6 address again", || {
        space.ip(&format!("-6 -o addr show dev {TAP} scope global")).split_whitespace().nth(3)
            == ours.split_whitespace().nth(3)
    });
    daemon.assert_alive();
}

#[test]
fn a_tap_may_be_renamed_while_frames_pass() {
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut guest = Talker::new(&daemon, 1);
    let host = space.mac(TAP);
    guest.reach(host);
    // Older kernels rename no interface that is up.
    space.ip(&format!("link set {TAP} down"));
    space.ip(&format!("link set {TAP} name other0"));
    space.ip("link set other0 up");
    daemon.wait_for_line("other0");
    guest.reach(host);
    assert_eq!(daemon.lines_with("the uplink is gone"), 0);
    daemon.assert_alive();
}

/// Runs the program, which is to refuse, and returns what it says.
fn refusal(space: &Space, arguments: &[&str]) -> String {
    let words = space.enter();
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args([env!("CARGO_BIN_EXE_guestwire"), "host-only", "--socket-path"])
        .arg(folder.path().join("net.sock"))
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_subnet_that_the_host_reaches_elsewhere_is_refused_and_another_is_named() {
    let space = Space::new();
    let other = Space::new();
    space.cable("lan0", &other, "lan1");
    space.ip("addr add 192.168.56.77/25 dev lan0");
    let said = refusal(&space, &[]);
    assert!(said.contains("192.168.56.0/24") && said.contains("192.168.56.77/32 dev lan0"), "{said}");
    let (_, free) = said.split_once("--subnet ").unwrap();
    let free = free.split_whitespace().next().unwrap();
    assert!(space.link(TAP).is_none(), "nothing was made");
    // What it names is free, and taken.
    let mut daemon = Daemon::in_space(&space, "host-only", &["--subnet", free]);
    lease(&mut Guest::attach(&daemon.socket(), Config::usual(1)));
    daemon.assert_alive();
    drop(daemon);
    space.wait_until_gone(TAP);
    // A route to somewhere behind a router counts too, and so does IPv6.
    space.ip("route add 10.9.0.0/16 via 192.168.56.1");
    let said = refusal(&space, &["--subnet", "10.9.8.0/24"]);
    assert!(said.contains("10.9.0.0/16 via 192.168.56.1"), "{said}");
    space.ip("-6 addr add fd12:3456:789a::9/64 dev lan0");
    let said = refusal(&space, &["--subnet", "10.1.0.0/24", "--subnet6", "fd12:3456:789a::/64"]);
    assert!(said.contains("fd12:3456:789a::/64 dev lan0") && said.contains("--subnet6 off"), "{said}");
    // Default routes lead everywhere, and collide with nothing.
    space.ip("route add default via 192.168.56.1");
    Daemon::in_space(&space, "host-only", &["--subnet", "10.1.0.0/24"]).assert_alive();
}

#[test]
fn a_file_of_leases_belongs_to_one_process_at_a_time() {
    let [one, other] = [Space::new(), Space::new()];
    let first = Daemon::in_space(&one, "host-only", &[]);
    let leases = first.path("leases").display().to_string();
    lease(&mut Guest::attach(&first.socket(), Config::usual(1)));
    until("the file", || std::fs::exists(&leases).unwrap());
    let before = std::fs::read(&leases).unwrap();
    let section = "[[network]]\nname = \"two\"\nmode = \"host-only\"\nsocket-path = \"DIR/two.sock\"\n";
    let text = format!("{section}[network.dhcp]\nleases = \"{leases}\"\n");
    let mut second = Daemon::of_file_in(&other, std::process::Stdio::null(), &text, "two.sock");
    second.expect_warning(&format!("{leases} has the leases of process {}: ours are not kept", first.pid()));
    lease(&mut Guest::attach(&second.path("two.sock"), Config::usual(2)));
    // Leases that have changed are written a second later.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(std::fs::read(&leases).unwrap(), before);
    second.assert_alive();
}
