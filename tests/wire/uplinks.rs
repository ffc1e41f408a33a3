//! Uplinks whose interfaces come and go, or are not as one would have them: in namespaces of their own.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guestwire::frame::vnet::GSO_UDP_L4;
use guestwire::sys::tap;
use guestwire::vhost::features as f;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

use crate::daemon::{Daemon, until, workers};
use crate::dhcp::{lease, renew};
use crate::guest::{Config, Guest, Received, mac, plain};
use crate::space::Space;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 1);

/// Warnings but those that an interface is down, as one that is deleted is for a moment.
fn warnings(daemon: &Daemon) -> Vec<String> {
    daemon.warnings().into_iter().filter(|line| !line.contains("the uplink is down")).collect()
}

/// The number of the interface that is made next: each that is made in the namespace uses up one.
fn next_index(space: &Space) -> u32 {
    space.ip("link add count0 type bridge");
    let index = space.link("count0").unwrap().index;
    space.ip("link delete count0");
    index
}

#[test]
fn an_inherited_tap_that_is_gone_is_told_once_and_not_tried() {
    let space = Space::new();
    let fd = space.run(|| {
        let fd = tap::open().unwrap();
        tap::attach(&fd, "left0", tap::IFF_TAP | tap::IFF_NO_PI | tap::IFF_VNET_HDR).unwrap();
        fd
    });
    let mut daemon = Daemon::in_space_with(&space, fd, "host-only", &["--tap-fd", "5"]);
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(1));
    let address = lease(&mut guest);
    space.ip("link delete left0");
    daemon.wait_for_line("descriptor 5 cannot be opened again");
    // Whatever happens to interfaces, and for longer than the first pause.
    space.ip("tuntap add left0 mode tap");
    std::thread::sleep(Duration::from_millis(2500));
    next_index(&space);
    assert_eq!(lease(&mut guest), address, "guests are served among themselves");
    let warnings = warnings(&daemon);
    assert_eq!(warnings.len(), 2, "that it is gone, and what to do: {warnings:#?}");
    assert!(warnings[1].contains("name a tap with --tap"), "{warnings:#?}");
    daemon.assert_alive();
}

#[test]
fn an_uplink_that_cannot_be_opened_is_tried_after_growing_pauses() {
    let space = Space::new();
    space.ip("link add br0 type bridge");
    let mut daemon = Daemon::in_space(&space, "bridged", &["--bridge", "br0", "--name", "lan"]);
    // More than a tap can have: our next one is made, and goes again.
    space.ip("link set br0 mtu 65535");
    let before = next_index(&space);
    let start = Instant::now();
    space.ip("link delete gw-lan");
    daemon.wait_for_line("the uplink cannot be opened again");
    std::thread::sleep(Duration::from_secs(4));
    let (made, elapsed) = (next_index(&space) - before - 1, start.elapsed());
    // At once, and 1, 3 and 7 seconds later.
    assert!((2..=4).contains(&made) || elapsed > Duration::from_secs(10), "{made} taps in {elapsed:?}");
    assert_eq!(warnings(&daemon).len(), 2, "{:#?}", daemon.warnings());
    space.ip("link set br0 mtu 1500");
    daemon.wait_for_line("the uplink is back");
    daemon.assert_alive();
}

#[test]
fn a_tap_that_is_made_again_has_the_address_that_guests_know() {
    let space = Space::new();
    space.ip("tuntap add lab0 mode tap");
    let host = space.mac("lab0");
    let mut daemon = Daemon::in_space(&space, "host-only", &["--tap", "lab0"]);
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(1));
    let address = lease(&mut guest);
    renew(&mut guest, address, HOST, host);
    space.ip("link delete lab0");
    daemon.wait_for_line("the uplink is gone");
    space.ip("tuntap add lab0 mode tap");
    daemon.wait_for_line("the uplink is back");
    assert_eq!(space.mac("lab0"), host);
    renew(&mut guest, address, HOST, host);
    daemon.assert_alive();
}

#[test]
fn a_host_without_ipv6_has_a_network_and_one_warning() {
    let space = Space::new();
    space.set("ipv6/conf/default/disable_ipv6", "1");
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    lease(&mut Guest::attach(&daemon.socket(), Config::usual(1)));
    // Up again is when addresses are given again.
    space.ip("link set gw-host-only down");
    daemon.wait_for_line("the uplink is down");
    space.ip("link set gw-host-only up");
    daemon.wait_for_line("the uplink is up");
    let warnings = warnings(&daemon);
    assert!(warnings.len() == 1 && warnings[0].contains("disable_ipv6"), "{warnings:#?}");
    daemon.assert_alive();
}

/// Whoever has no right to change interfaces can use one that is ready.
const WITHOUT_RIGHTS: &[&str] = &["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];

#[test]
fn a_tap_that_was_prepared_needs_no_rights() {
    const SUBNET6: &str = "fd12:3456:789a::";
    let space = Space::new();
    space.ip("tuntap add lab0 mode tap user 0");
    space.ip("addr add 192.168.56.1/24 dev lab0");
    space.ip(&format!("-6 addr add {SUBNET6}1/64 dev lab0 nodad"));
    space.ip("link set lab0 mtu 9000 up");
    let subnet6 = format!("{SUBNET6}/64");
    let arguments = ["--tap", "lab0", "--subnet6", &subnet6, "--mtu", "9000"];
    let mut daemon = Daemon::in_space_by(&space, WITHOUT_RIGHTS, "host-only", &arguments);
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(1));
    let address = lease(&mut guest);
    renew(&mut guest, address, HOST, space.mac("lab0"));
    assert_eq!(daemon.warnings(), Vec::<String>::new());
    // One that is made again as it was, but with an address that guests do not know.
    space.ip("link delete lab0");
    daemon.wait_for_line("the uplink is gone");
    space.ip("tuntap add lab0 mode tap user 0");
    daemon.wait_for_line("ip link set lab0 address");
    daemon.assert_alive();
}

/// A datagram of the host's that a tap brings as one long frame: the data, and its mark in the middle.
fn long_datagram(mark: &[u8]) -> Vec<u8> {
    let mut data: Vec<u8> = (0..40_000_u32).map(|n| (n * 7 / 3) as u8).collect();
    data[20_000..20_000 + mark.len()].copy_from_slice(mark);
    data
}

/// The next IPv4 packet that a guest gets; the host says much else.
#[track_caller]
fn receive_ip(guest: &mut Guest) -> Received {
    loop {
        let received = guest.receive();
        if received.frame[12..14] == [8, 0] {
            return received;
        }
    }
}

/// The same, which is a long one.
#[track_caller]
fn receive_long(guest: &mut Guest) -> Vec<u8> {
    let received = receive_ip(guest);
    assert_eq!((received.gso_type(), received.gso_size()), (GSO_UDP_L4, 1000));
    received.frame
}

#[test]
fn long_frames_come_whole_to_a_guest_that_is_alone_and_no_guest_ever_sees_anothers() {
    let space = Space::new();
    space.ip("tuntap add lan0 mode tap");
    space.ip("addr add 10.0.0.1/24 dev lan0");
    let mut daemon = Daemon::in_space(&space, "bridged", &["--tap", "lan0"]);
    space.ip("link set lan0 up");
    let sender = space.run(|| UdpSocket::bind("10.0.0.1:0").unwrap());
    setsockopt(&sender, sockopt::UdpGsoSegment, &1000).unwrap();
    let address = |n: u8| format!("10.0.0.{n}:7000");
    for n in 2..7 {
        space.ip(&format!("neigh add 10.0.0.{n} lladdr 52:54:00:00:00:0{n} dev lan0"));
    }
    let send = |n: u8, mark: &[u8]| {
        let data = long_datagram(mark);
        sender.send_to(&data, address(n)).unwrap();
        data
    };
    for config in [Config::usual(4), Config::usual(5).without(f::MRG_RXBUF)] {
        let number = config.number;
        let mut only = Guest::attach(&daemon.socket(), config);
        only.send(&plain([0xff; 6], mac(number), b"here"));
        for round in 0..200_u32 {
            let data = send(number, &round.to_be_bytes());
            assert!(receive_long(&mut only).ends_with(&data), "round {round}");
        }
    }
    let mut only = Guest::attach(&daemon.socket(), Config::usual(6).without(f::GUEST_USO4 | f::GUEST_USO6));
    only.send(&plain([0xff; 6], mac(6), b"here"));
    for round in 0..20_u32 {
        let data = send(6, &round.to_be_bytes());
        for piece in data.chunks(1000) {
            assert!(receive_ip(&mut only).frame.ends_with(piece), "round {round}");
        }
    }
    drop(only);
    let mut first = Guest::attach(&daemon.socket(), Config::usual(2));
    first.send(&plain([0xff; 6], mac(2), b"here"));
    let data = send(2, b"alone");
    assert!(receive_long(&mut first).ends_with(&data));
    let mut second = Guest::attach(&daemon.socket(), Config::usual(3));
    second.send(&plain([0xff; 6], mac(3), b"here too"));
    let heard = |first: &mut Guest| first.poll(0).is_some_and(|got| got.frame.ends_with(b"here too"));
    until("the first one has heard of the second", || heard(&mut first));
    for round in 0..3_u32 {
        let (ours, theirs) = (*b"for the first one", *b"for the other one");
        let data = [send(2, &ours), send(3, &theirs)];
        assert!(receive_long(&mut first).ends_with(&data[0]), "round {round}");
        assert!(receive_long(&mut second).ends_with(&data[1]), "round {round}");
        assert!(!first.holds(&theirs) && !second.holds(&ours), "round {round}");
    }
    daemon.assert_alive();
}

#[test]
fn no_guest_has_the_link_local_address_that_the_kernel_chose_for_the_host() {
    const RANDOM: &str = "3";
    let space = Space::new();
    space.set("ipv6/conf/default/addr_gen_mode", RANDOM);
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let addresses = space.ip("-6 addr show dev gw-host-only scope link");
    let host = addresses.split_whitespace().find_map(|word| word.strip_suffix("/64")).expect("a link-local address");
    let host: Ipv6Addr = host.parse().unwrap();
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(1));
    let send = |guest: &mut Guest, from: Ipv6Addr| {
        let to: Ipv6Addr = "ff02::1".parse().unwrap();
        let packet = [&[0x60, 0, 0, 0, 0, 0, 59, 64][..], &from.octets(), &to.octets()].concat();
        guest.send(&[&[0x33, 0x33, 0, 0, 0, 1][..], &mac(1), &[0x86, 0xdd], &packet].concat());
    };
    send(&mut guest, "fe80::7".parse().unwrap());
    send(&mut guest, host);
    daemon.expect_counter(1, "drop_tx_spoofed_ip", 1);
    assert_eq!(daemon.counters(1)["drop_tx_spoofed_ip"], 1, "the host's, and not the guest's own");
    daemon.assert_alive();
}

#[test]
fn a_process_without_an_uplink_hears_of_no_interface_and_with_one_again() {
    let space = Space::new();
    let text = |mode: &str| format!("[[network]]\nname = \"lab\"\nmode = \"{mode}\"\nsocket-path = \"DIR/net.sock\"\n");
    let mut daemon = Daemon::of_file_in(&space, Stdio::null(), &text("host-only"), "net.sock");
    daemon.reload(&text("internal"), "started=1 left=1");
    std::thread::sleep(Duration::from_millis(500));
    let before = daemon.sleeps();
    for _ in 0..5 {
        next_index(&space);
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(daemon.sleeps(), before, "woken by interfaces that are nobody's");
    daemon.reload(&text("host-only"), "started=1 left=1");
    space.ip("link delete gw-lab");
    daemon.wait_for_line("the uplink is back");
    daemon.assert_alive();
}

/// What the switch drops shows where it was read to: it lies in the guest's buffers, and is not announced.
#[test]
fn long_frames_are_read_straight_into_the_memory_of_a_guest_that_is_alone_with_one_worker() {
    const NEIGHBOUR: &str = "52:54:00:00:00:09";
    let space = Space::new();
    // A short frame of the host's in between would end the reading in place.
    space.set("ipv6/conf/default/disable_ipv6", "1");
    space.ip("tuntap add lan0 mode tap");
    space.ip("addr add 10.0.0.1/24 dev lan0");
    let mut daemon = Daemon::in_space(&space, "bridged", &["--tap", "lan0"]);
    space.ip("link set lan0 up");
    let sender = space.run(|| UdpSocket::bind("10.0.0.1:0").unwrap());
    let own = space.mac("lan0").map(|byte| format!("{byte:02x}")).join(":");
    // With its address an interface loses its neighbours.
    let become_station = |address: &str| {
        space.ip(&format!("link set lan0 address {address}"));
        for (ip, mac) in [("10.0.0.2", "52:54:00:00:00:02"), ("10.0.0.9", NEIGHBOUR)] {
            space.ip(&format!("neigh replace {ip} lladdr {mac} dev lan0 nud permanent"));
        }
    };
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(2));
    guest.send(&plain([0xff; 6], mac(2), b"here"));
    // A station of the LAN is known: a bridge that floods what is for it sends that to us too.
    become_station(NEIGHBOUR);
    sender.send_to(b"known", "10.0.0.2:7000").unwrap();
    while !receive_ip(&mut guest).frame.ends_with(b"known") {}
    become_station(&own);
    setsockopt(&sender, sockopt::UdpGsoSegment, &1000).unwrap();
    let data = long_datagram(b"for the guest");
    sender.send_to(&data, "10.0.0.2:7000").unwrap();
    assert!(receive_long(&mut guest).ends_with(&data));
    sender.send_to(&long_datagram(b"for the neighbour"), "10.0.0.9:7000").unwrap();
    daemon.expect_counter(0, "drop_tx_hairpin", 1);
    assert_eq!(guest.holds(b"for the neighbour"), workers() == 1);
    assert!(guest.poll(0).is_none(), "it is not announced");
    daemon.assert_alive();
}

#[test]
fn a_tap_of_many_queues_has_one_program() {
    let space = Space::new();
    space.ip("tuntap add lan0 mode tap multi_queue");
    let text = "[[network]]\nname = \"lan\"\nmode = \"bridged\"\nsocket-path = \"DIR/net.sock\"\ntap = \"lan0\"\n\
                workers = 2\n";
    let mut daemon = Daemon::of_file_in(&space, Stdio::null(), text, "net.sock");
    let second = daemon.path("second.sock");
    for workers in ["1", "2"] {
        let output = space.run(|| {
            let mut second_daemon = Command::new(env!("CARGO_BIN_EXE_guestwire"));
            second_daemon.args(["bridged", "--tap", "lan0", "--workers", workers, "--socket-path"]).arg(&second);
            second_daemon.output().unwrap()
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("lan0 is in use by another program"), "{said}");
    }
    daemon.assert_alive();
}

#[test]
fn an_uplink_has_one_of_the_places_for_ports() {
    const PLACES: usize = 1024;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let space = Space::new();
    let mut daemon = Daemon::in_space(&space, "host-only", &[]);
    let mut vms: Vec<_> = (1..PLACES).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    let connected = |daemon: &Daemon| daemon.lines_with("a VM has connected");
    until("all are let in", || connected(&daemon) == PLACES - 1);
    let _late = UnixStream::connect(daemon.socket()).unwrap();
    daemon.wait_for_line("the network has 1023 ports, the most there can be");
    assert_eq!(connected(&daemon), PLACES - 1);
    vms.pop();
    until("the one that waited is let in", || connected(&daemon) == PLACES);
    assert_eq!(daemon.lines_with("not attached"), 0);
    daemon.assert_alive();
}

#[test]
fn a_quiet_network_with_leases_wakes_no_thread_with_its_uplink_or_without() {
    let space = Space::new();
    space.ip("tuntap add lab0 mode tap");
    let text = "[[network]]\nname = \"lab\"\nmode = \"host-only\"\nsocket-path = \"DIR/net.sock\"\ntap = \"lab0\"\n\
                [network.dhcp]\nleases = \"DIR/leases\"\n";
    let mut daemon = Daemon::of_file_in(&space, Stdio::null(), text, "net.sock");
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(1));
    lease(&mut guest);
    until("leases are written", || daemon.path("leases").exists());
    // What the host says of itself when its interface comes up is over.
    space.set("ipv6/conf/lab0/disable_ipv6", "1");
    for is_there in [true, false] {
        if !is_there {
            space.ip("link delete lab0");
            daemon.wait_for_line("the uplink is gone");
        }
        std::thread::sleep(Duration::from_millis(500));
        let before = daemon.sleeps();
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(daemon.sleeps(), before, "there is an uplink: {is_there}");
    }
    daemon.assert_alive();
}
