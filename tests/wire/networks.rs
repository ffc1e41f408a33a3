//! Many networks in one process, declared ports, and the configuration read again.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::VhostBackend;

use crate::daemon::{Daemon, until};
use crate::guest::{Config, Guest, introduce, mac, plain};

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
    assert_eq!(connected(&daemon), 2);
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
