//! Many networks in one process, declared ports, and the configuration read again.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use etherparse::PacketBuilder;
use guestwire::sys::tap;
use vhost::VhostBackend;

use crate::daemon::{Daemon, until};
use crate::dhcp::lease;
use crate::guest::{Config, Guest, introduce, mac, plain};
use crate::space::Space;

/// What a log line says when the file was read again.
const DONE: &str = "the configuration was read again";
/// What a log line says when it was wrong.
const REFUSED: &str = "nothing was changed";

/// A network's section.
fn network(name: &str, more: &str) -> String {
    format!("[[network]]\nname = \"{name}\"\nmode = \"internal\"\nsocket-path = \"DIR/{name}.sock\"\n{more}\n")
}

fn statistics() -> String {
    "[statistics]\nfile = \"DIR/stats\"\ninterval = 0.02\n".to_owned()
}

fn pair(socket: &Path, first: u8) -> [Guest; 2] {
    let [mut a, mut b] = [first, first + 1].map(|number| Guest::attach(socket, Config::usual(number)));
    introduce(&mut a, &mut b);
    [a, b]
}

#[test]
fn networks_do_not_hear_each_other() {
    let text = network("one", "") + &network("two", "workers = 2") + &statistics();
    let mut daemon = Daemon::of_file(&text, "two.sock");
    let [mut a, mut b] = pair(&daemon.path("one.sock"), 1);
    let [mut c, mut d] = pair(&daemon.path("two.sock"), 3);
    a.send(&plain([0xff; 6], mac(1), b"one"));
    assert_eq!(b.receive().frame[14..], *b"one");
    c.send(&plain(mac(1), mac(3), b"two"));
    assert_eq!(d.receive().frame[14..], *b"two", "an address of the other network is unknown here");
    c.assert_gets_only_what_follows(&mut d);
    a.assert_gets_only_what_follows(&mut b);
    // Port numbers are the process's, and each network has lines of its own.
    daemon.expect_counter(0, "tx_frames", 2);
    daemon.expect_counter(2, "tx_frames", 2);
    let lines = fs::read_to_string(daemon.path("stats")).unwrap();
    let of = |name: &str| {
        let mut values = lines.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        values.find(|value| value["network"] == name).unwrap()
    };
    let ports =
        |value: &serde_json::Value| value["ports"].as_array().unwrap().iter().map(|p| p["port"].clone()).collect();
    let (one, two): (Vec<_>, Vec<_>) = (ports(&of("one")), ports(&of("two")));
    assert_eq!((one, two), (vec![0.into(), 1.into()], vec![2.into(), 3.into()]));
    assert_eq!(of("two")["workers"].as_array().unwrap().len(), 2);
    daemon.assert_alive();
}

const WEB: &str = "[[network.port]]\nname = \"web\"\nsocket-path = \"DIR/web.sock\"\nmac = \"52:54:00:aa:bb:01\"\n";

#[test]
fn a_declared_port_has_its_address_and_one_vm_at_a_time() {
    let mut daemon =
        Daemon::of_file(&(network("lab", &format!("port-security = \"off\"\n{WEB}")) + &statistics()), "web.sock");
    let mut first = Guest::attach(&daemon.path("web.sock"), Config::usual(1));
    assert_eq!(first.read_config(0, 6), [0x52, 0x54, 0, 0xaa, 0xbb, 1]);
    // The next waits, without an answer and without an end, until the first has gone.
    let mut next = UnixStream::connect(daemon.path("web.sock")).unwrap();
    let mut other = Guest::attach(&daemon.path("lab.sock"), Config::usual(2));
    introduce(&mut first, &mut other);
    let connected = |daemon: &Daemon| daemon.log().iter().filter(|line| line.contains("a VM has connected")).count();
    until("two are logged", || connected(&daemon) == 2);
    daemon.expect_counter(0, "tx_frames", 1);
    assert!(fs::read_to_string(daemon.path("stats")).unwrap().contains(r#""port":0,"name":"web","tx_frames""#));
    drop(first);
    until("the next is let in", || connected(&daemon) == 3);
    assert!(daemon.log().iter().any(|line| line.contains("port=2") && line.contains("a VM has connected as web")));
    // It speaks: SET_PROTOCOL_FEATURES nobody asked for, and gets an end for nonsense.
    std::io::Write::write_all(&mut next, &[0xff; 12]).unwrap();
    assert_eq!(next.read(&mut [0; 1]).unwrap_or(0), 0);
    daemon.assert_alive();
}

#[test]
fn a_declared_address_is_kept_for_its_port() {
    let declared = |number: u8| {
        let web = WEB.replace("aa:bb:01", &format!("00:00:{number:02x}"));
        network("lab", &web) + &statistics()
    };
    let mut daemon = Daemon::of_file(&declared(1), "web.sock");
    let mut thief = Guest::attach(&daemon.path("lab.sock"), Config::usual(1));
    thief.send(&plain([0xff; 6], mac(1), b"mine"));
    daemon.expect_counter(0, "drop_tx_spoofed_mac", 1);
    // When the file says another address, that one is kept, and the first is anybody's.
    daemon.reload(&declared(2), DONE);
    let mut other = Guest::attach(&daemon.path("lab.sock"), Config::usual(2));
    other.send(&plain([0xff; 6], mac(2), b"mine"));
    daemon.expect_counter(1, "drop_tx_spoofed_mac", 1);
    let mut web = Guest::attach(&daemon.path("web.sock"), Config::usual(2));
    introduce(&mut thief, &mut web);
    daemon.assert_alive();
}

#[test]
fn where_addresses_are_served_no_guest_serves_others_though_ports_are_not_secured() {
    let advertisement = |from: u8| {
        let packet = PacketBuilder::ethernet2(mac(from), [0x33, 0x33, 0, 0, 0, 1]);
        let packet = packet.ipv6([0xfe; 16], [0xff; 16], 255).icmpv6_raw(134, 0, [64, 0, 7, 8]);
        let mut frame = Vec::new();
        packet.write(&mut frame, &[0; 8]).unwrap();
        frame
    };
    let offer = |from: u8| {
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2(mac(from), [0xff; 6]).ipv4([10, 1, 0, 66], [255; 4], 64).udp(67, 68);
        packet.write(&mut frame, &[2; 240]).unwrap();
        frame
    };
    let served = "port-security = \"off\"\nsubnet = \"10.1.0.0/24\"\n[network.dhcp]\nleases = \"DIR/leases\"";
    let mut daemon = Daemon::of_file(&(network("lab", served) + &statistics()), "lab.sock");
    let [mut rogue, mut victim] = pair(&daemon.path("lab.sock"), 1);
    for frame in [advertisement(1), offer(1)] {
        rogue.send(&frame);
    }
    daemon.expect_counter(0, "drop_tx_rogue_server", 2);
    victim.assert_gets_only_what_follows(&mut rogue);
    daemon.assert_alive();
}

/// Sends numbered frames from `a` to `b` until `done` says so, and checks that each of them arrives. Returns how many.
fn stream(a: &mut Guest, b: &mut Guest, done: impl Fn() -> bool) -> u32 {
    let (to, from) = (mac(b.config.number), mac(a.config.number));
    let (mut sent, mut received) = (0_u32, 0_u32);
    while !done() || sent < 1000 {
        for _ in 0..8 {
            a.send(&plain(to, from, &sent.to_be_bytes()));
            sent += 1;
        }
        while received < sent {
            let frame = b.receive().frame;
            assert_eq!(frame[14..18], received.to_be_bytes(), "none is lost and none is late");
            received += 1;
        }
    }
    sent
}

#[test]
fn what_did_not_change_loses_no_frame() {
    let lab = network("lab", "");
    let mut daemon = Daemon::of_file(&(lab.clone() + &network("other", "") + &statistics()), "other.sock");
    let [mut a, mut b] = pair(&daemon.path("lab.sock"), 1);
    let [c, d] = pair(&daemon.path("other.sock"), 3);
    let done = AtomicBool::new(false);
    let texts = [
        // Another network changes, goes, and comes back.
        lab.clone() + &network("other", "mtu = 9000"),
        lab.clone(),
        network("new", "") + &lab + &network("other", "workers = 2"),
        // A socket and a port more on the very network, and fewer again.
        lab.replace("sock\"\n", "sock\"\nconnect = \"DIR/nobody\"\n") + WEB,
        lab.clone() + &WEB.replace("bb:01", "bb:02"),
        lab.clone(),
        // Nothing changes.
        lab.clone(),
    ];
    let daemon = &mut daemon;
    let frames = std::thread::scope(|scope| {
        let (finished, daemon) = (&done, &*daemon);
        scope.spawn(move || {
            for text in texts.iter().cycle().take(2 * texts.len()) {
                daemon.reload(&(text.clone() + &statistics()), DONE);
            }
            finished.store(true, Ordering::SeqCst);
        });
        stream(&mut a, &mut b, || done.load(Ordering::SeqCst))
    });
    daemon.expect_counter(0, "tx_frames", u64::from(frames) + 1);
    daemon.expect_counter(1, "rx_frames", u64::from(frames) + 1);
    // The other network has gone, and its guests have been told.
    until("the end of the connection", || c.frontend.get_features().is_err());
    assert!(d.frontend.get_features().is_err());
    assert!(!daemon.path("other.sock").exists() && !daemon.path("web.sock").exists());
    let facts = daemon.facts();
    assert!(facts.threads < 12, "what has left is gone: {facts:?}");
    daemon.assert_alive();
}

#[test]
fn a_file_that_is_wrong_changes_nothing() {
    let text = network("lab", "") + &network("other", "");
    let mut daemon = Daemon::of_file(&text, "other.sock");
    let [mut a, mut b] = pair(&daemon.path("lab.sock"), 1);
    daemon.reload("[[network]]\nname = \"lab\"\nmode = \"internl\"\nmtu = 1\n", REFUSED);
    let told: Vec<String> = daemon.log().into_iter().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    assert!(told[0].contains("guestwire.toml:1:1: no way in"), "{told:#?}");
    assert!(told[1].contains("guestwire.toml:3:8: not a mode") && told[1].contains("did you mean"), "{told:#?}");
    assert!(told[2].contains("guestwire.toml:4:7: not an MTU"), "{told:#?}");
    // A file that makes sense and cannot be done, for several reasons.
    let elsewhere = network("new", "") + &network("far", "").replace("DIR/far", "DIR/missing/far");
    daemon.reload(&elsewhere, "create the directory");
    let nowhere = network("out", "nic = \"nowhere0\"").replace("internal", "bridged");
    daemon.reload(&(network("lab", "") + &nowhere), "there is no interface nowhere0");
    daemon.reload(&network("lab", "fd = 9"), "was not left to us");
    fs::remove_file(daemon.path("guestwire.toml")).unwrap();
    nix::sys::signal::kill(daemon.pid(), nix::sys::signal::Signal::SIGHUP).unwrap();
    until("the file is missed", || daemon.log().iter().any(|line| line.contains("cannot read")));
    assert!(!daemon.path("new.sock").exists(), "what was made for nothing is undone");
    stream(&mut a, &mut b, || true);
    let [mut c, mut d] = pair(&daemon.path("other.sock"), 3);
    stream(&mut c, &mut d, || true);
    // And it can be mended.
    daemon.reload(&(text + &network("new", "")), DONE);
    pair(&daemon.path("new.sock"), 5);
    daemon.assert_alive();
}

#[test]
fn a_network_that_changes_keeps_its_socket() {
    let mut daemon = Daemon::of_file(&network("lab", ""), "lab.sock");
    let inode = |daemon: &Daemon| fs::metadata(daemon.path("lab.sock")).unwrap().ino();
    let before = inode(&daemon);
    let [a, _b] = pair(&daemon.path("lab.sock"), 1);
    daemon.reload(&network("lab", "mtu = 9000"), DONE);
    assert_eq!(inode(&daemon), before, "it was handed over");
    drop(a);
    let mut c = Guest::attach(&daemon.path("lab.sock"), Config::usual(3).with(guestwire::vhost::features::MTU));
    assert_eq!(c.read_config(10, 2), 9000_u16.to_le_bytes(), "the new network");
    // With another mode it is another socket, and the network goes on.
    daemon.reload(&network("lab", "mtu = 9000\nsocket-mode = 0o666"), DONE);
    assert_ne!(inode(&daemon), before);
    assert_eq!(fs::metadata(daemon.path("lab.sock")).unwrap().permissions().mode() & 0o777, 0o666);
    let mut d = Guest::attach(&daemon.path("lab.sock"), Config::usual(4));
    assert_eq!(d.read_config(10, 2), 9000_u16.to_le_bytes());
    daemon.assert_alive();
}

#[test]
fn a_vm_that_came_by_a_socket_that_is_gone_goes_too() {
    let two = network("lab", "").replace("\"DIR/lab.sock\"", "[\"DIR/lab.sock\", \"DIR/side.sock\"]");
    let mut daemon = Daemon::of_file(&two, "side.sock");
    let [mut a, mut b] = pair(&daemon.path("lab.sock"), 1);
    let mut side = UnixStream::connect(daemon.path("side.sock")).unwrap();
    until("it is a port", || daemon.log().iter().any(|line| line.contains("port=2") && line.contains("connected")));
    daemon.reload(&network("lab", ""), DONE);
    assert_eq!(side.read(&mut [0; 1]).unwrap(), 0, "its connection has ended");
    assert!(!daemon.path("side.sock").exists());
    stream(&mut a, &mut b, || true);
    daemon.assert_alive();
}

#[test]
fn a_declared_port_gets_the_address_that_the_file_says_now() {
    let port = |ip: &str| {
        let served =
            "subnet = \"10.1.0.0/24\"\n[network.dhcp]\nrange = \"10.1.0.100-10.1.0.199\"\nleases = \"DIR/leases\"\n";
        let port = format!("[[network.port]]\nname = \"web\"\nsocket-path = \"DIR/web.sock\"\nip = \"{ip}\"\n");
        network("lab", &format!("{served}{port}mac = \"52:54:00:00:00:01\""))
    };
    let mut daemon = Daemon::of_file(&port("10.1.0.10"), "web.sock");
    let mut other = Guest::attach(&daemon.path("lab.sock"), Config::usual(2));
    let its = lease(&mut other);
    for ip in ["10.1.0.10", "10.1.0.20", "10.1.0.30", "10.1.0.10"] {
        daemon.reload(&port(ip), DONE);
        let mut web = Guest::attach(&daemon.path("web.sock"), Config::usual(1));
        assert_eq!(lease(&mut web).to_string(), ip);
        assert_eq!(lease(&mut other), its, "the others' stay, and their connections");
    }
    daemon.assert_alive();
}

/// The host, which sends back what guests say to it.
struct Echo {
    guest: Guest,
    host: ([u8; 6], Ipv4Addr),
    address: Ipv4Addr,
    /// How many numbers.
    said: u32,
}

impl Echo {
    const PORT: u16 = 4007;

    /// A guest with this address, which the host knows, on a network where the host has the interface `tap`.
    fn new(space: &Space, guest: Guest, address: Ipv4Addr, tap: &str) -> Self {
        let [a, b, c, _] = address.octets();
        let own = mac(guest.config.number).map(|byte| format!("{byte:02x}")).join(":");
        space.ip(&format!("neigh replace {address} lladdr {own} dev {tap}"));
        Self { guest, host: (space.mac(tap), Ipv4Addr::new(a, b, c, 1)), address, said: 0 }
    }

    /// Has the host answer for as long as the socket lives, which is until the test's process ends.
    fn serve(space: &Space) {
        let socket = space.run(|| UdpSocket::bind(("0.0.0.0", Self::PORT)).unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while let Ok((len, from)) = socket.recv_from(&mut bytes) {
                socket.send_to(&bytes[..len], from).unwrap();
            }
        });
    }

    /// Says the next few numbers, and checks that each of them comes back.
    fn round(&mut self) {
        let own = mac(self.guest.config.number);
        let numbers = self.said..self.said + 8;
        for number in numbers.clone() {
            let packet = PacketBuilder::ethernet2(own, self.host.0);
            let packet = packet.ipv4(self.address.octets(), self.host.1.octets(), 64).udp(5, Self::PORT);
            let mut frame = Vec::new();
            packet.write(&mut frame, &number.to_be_bytes()).unwrap();
            self.guest.send(&frame);
        }
        for number in numbers {
            let is_answer = |frame: &[u8]| frame[..6] == own && frame[12..14] == [8, 0];
            // The host says other things too.
            let frame = std::iter::repeat_with(|| self.guest.receive().frame).find(|frame| is_answer(frame)).unwrap();
            assert_eq!(frame[42..46], number.to_be_bytes(), "none is lost and none is late");
            self.said += 1;
        }
    }
}

#[test]
fn what_did_not_change_loses_no_frame_to_the_host_and_the_lan() {
    let space = Space::new();
    space.ip("tuntap add lan0 mode tap");
    space.ip("addr add 10.2.0.1/24 dev lan0");
    space.ip("link set lan0 up");
    let bridged = network("lan", "tap = \"lan0\"").replace("internal", "bridged");
    let text = host_only("ho", "t0", 1, "ho.sock") + &bridged;
    let mut daemon = Daemon::of_file_in(&space, Stdio::null(), &text, "lan.sock");
    let [mut a, b] = [("ho.sock", 1), ("lan.sock", 2)]
        .map(|(socket, number)| Guest::attach(&daemon.path(socket), Config::usual(number)));
    let address = lease(&mut a);
    Echo::serve(&space);
    let mut echoes = [Echo::new(&space, a, address, "t0"), Echo::new(&space, b, [10, 2, 0, 9].into(), "lan0")];
    let done = AtomicBool::new(false);
    let texts = [
        // A network with an uplink comes, changes, and goes.
        text.clone() + &host_only("new", "t1", 3, "new.sock"),
        text.clone() + &host_only("new", "t1", 4, "new.sock"),
        // A socket and a declared port more on those that stay, and fewer again.
        text.replace("DIR/lan.sock\"", "DIR/lan.sock\"\nconnect = \"DIR/nobody\"") + WEB,
        text.clone(),
    ];
    std::thread::scope(|scope| {
        let (finished, daemon) = (&done, &daemon);
        scope.spawn(move || {
            for text in texts.iter().cycle().take(3 * texts.len()) {
                daemon.reload(text, DONE);
            }
            finished.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            echoes.iter_mut().for_each(Echo::round);
        }
    });
    assert!(echoes[0].said >= 100, "{} frames while the file was read again", echoes[0].said);
    assert!(space.link("t1").is_none() && daemon.warnings().is_empty(), "{:#?}", daemon.warnings());
    daemon.assert_alive();
}

/// A host-only network's section, whose VMs come by the socket `net.sock`.
fn host_only(name: &str, tap: &str, subnet: u8, socket: &str) -> String {
    let section = network(name, &format!("tap = \"{tap}\"\nsubnet = \"10.{subnet}.0.0/24\"\n[network.dhcp]"));
    let section =
        section.replace("internal", "host-only").replace(&format!("DIR/{name}.sock"), &format!("DIR/{socket}"));
    format!("{section}leases = \"DIR/{tap}.leases\"\n")
}

/// What kinds of descriptors a process has, in order: sockets that are no Unix sockets, and a tap, are the host's.
/// Those by which VMs and threads wake each other are not listed.
fn descriptors(daemon: &Daemon) -> Vec<String> {
    let kind = |path: &Path| {
        let target = fs::read_link(path).ok()?.display().to_string();
        Some(match &target {
            socket if socket.starts_with("socket:") => {
                let mut name = [0; 64];
                let length = rustix::fs::getxattr(path, "system.sockprotoname", &mut name[..]).ok()?;
                if name[..length].starts_with(b"UNIX") { "a VM's" } else { "the host's" }.to_owned()
            }
            tap if tap == "/dev/net/tun" => "the host's".to_owned(),
            // Names differ from one process to the next.
            device if device.starts_with("anon_inode") || device.starts_with("/dev/") => target,
            _ => "a file".to_owned(),
        })
    };
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let kinds = descriptors.filter_map(|entry| kind(&entry.unwrap().path()));
    let mut kinds: Vec<String> = kinds.filter(|kind| kind != "anon_inode:[eventfd]").collect();
    kinds.sort();
    kinds
}

#[test]
fn what_is_left_is_internal_and_has_nothing_of_the_hosts() {
    let space = Space::new();
    let (before, lab) = (space.ip("-o link"), network("lab", ""));
    let has_hosts = |daemon: &Daemon| descriptors(daemon).iter().filter(|kind| *kind == "the host's").count();
    let mut daemon = Daemon::of_file_in(&space, Stdio::null(), &(host_only("ho", "t0", 1, "ho") + &lab), "lab.sock");
    let [mut a, mut b] = pair(&daemon.path("lab.sock"), 1);
    assert!(has_hosts(&daemon) >= 3, "a tap, and netlink to hear and to ask");
    daemon.reload(&lab, DONE);
    until("it has nothing of the host's", || has_hosts(&daemon) == 0);
    assert_eq!(space.ip("-o link"), before);
    // It has what one has that never had another network, and nothing else.
    let fresh = Daemon::of_file_in(&space, Stdio::null(), &lab, "lab.sock");
    let _guests = pair(&fresh.path("lab.sock"), 1);
    until("it has what the fresh one has", || descriptors(&daemon) == descriptors(&fresh));
    stream(&mut a, &mut b, || true);
    daemon.assert_alive();
}

#[test]
fn networks_may_be_renamed_and_may_swap_what_they_have() {
    let space = Space::new();
    let first = host_only("a", "t0", 1, "one") + &host_only("b", "t1", 2, "two");
    let mut daemon = Daemon::of_file_in(&space, Stdio::null(), &first, "two");
    let renamed = "started=1 left=1";
    for (text, done) in [
        // One gets another name, and then the other.
        (host_only("c", "t0", 1, "one") + &host_only("b", "t1", 2, "two"), renamed),
        (host_only("c", "t0", 1, "one") + &host_only("a", "t1", 2, "two"), renamed),
        // They swap names, and then their sockets.
        (host_only("a", "t0", 1, "one") + &host_only("c", "t1", 2, "two"), "started=2 left=2"),
        (host_only("a", "t0", 1, "two") + &host_only("c", "t1", 2, "one"), "started=0 left=0 sockets=2"),
        // One goes, and the other has what it had.
        (host_only("x", "t0", 2, "one"), "started=1 left=2"),
    ] {
        daemon.reload(&text, done);
        let served: &[(&str, u8)] = match text.matches("DIR/one\"").count() + text.matches("DIR/two\"").count() {
            1 => &[("one", 2)],
            _ if done.ends_with("sockets=2") => &[("two", 1), ("one", 2)],
            _ => &[("one", 1), ("two", 2)],
        };
        for (socket, subnet) in served {
            let address = lease(&mut Guest::attach(&daemon.path(socket), Config::usual(1)));
            assert_eq!(address.octets()[..2], [10, *subnet], "{text}");
        }
    }
    assert!(space.link("t1").is_none() && !daemon.path("two").exists());
    assert!(daemon.warnings().is_empty(), "{:#?}", daemon.warnings());
    daemon.assert_alive();
}

#[test]
fn a_renamed_network_that_cannot_be_started_is_again_as_it_was() {
    let space = Space::new();
    let mut daemon = Daemon::of_file_in(&space, Stdio::null(), &host_only("a", "t0", 1, "one"), "one");
    space.ip("link add t9 type bridge");
    // The same subnet, on what cannot be a tap.
    daemon.reload(&host_only("b", "t9", 1, "one"), DONE);
    assert!(daemon.log().iter().any(|line| line.contains("the network a is started again")), "{:#?}", daemon.log());
    let address = lease(&mut Guest::attach(&daemon.path("one"), Config::usual(1)));
    assert_eq!(address.octets()[..2], [10, 1]);
    daemon.assert_alive();
}

#[test]
fn a_network_on_an_inherited_tap_stays_when_the_file_changes_it() {
    let space = Space::new();
    let fd = space.run(|| {
        let fd = tap::open().unwrap();
        tap::attach(&fd, "left0", tap::IFF_TAP | tap::IFF_NO_PI | tap::IFF_VNET_HDR).unwrap();
        fd
    });
    let text = host_only("a", "left0", 1, "one").replace("tap = \"left0\"", "tap-fd = 5");
    let mut daemon = Daemon::of_file_in(&space, fd, &text, "one");
    let mut guest = Guest::attach(&daemon.path("one"), Config::usual(1));
    let address = lease(&mut guest);
    daemon.reload(&text.replace("tap-fd", "mtu = 9000\ntap-fd"), REFUSED);
    assert!(daemon.log().iter().any(|line| line.contains("descriptor 5 can be taken only when we start")));
    assert_eq!(lease(&mut guest), address);
    daemon.assert_alive();
}
