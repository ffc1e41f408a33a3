//! Taps.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guestwire::frame::vnet::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHeader};
use guestwire::metrics::Counter;
use guestwire::ring::mailbox::PortShared;
use guestwire::sys::netlink::{Change, Monitor, Netlink};
use guestwire::sys::tap as calls;
use guestwire::uplink::{FrameBuffer, Gone, Received, Tap, Uplink};
use guestwire::worker::{Network, Parts, UplinkHalf, Worker, WorkerHandle};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};

use crate::frames::{Frame, PATIENCE, expect, is_udp_to, next, send, udp};
use crate::space::Space;
use crate::wire::{Seen, join};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A tap in the space with the first address of 10.1.0.0/24 and fd01::/64, up; 10.1.0.2 is a guest behind it.
pub(crate) fn host(space: &Space, name: &str) -> Tap {
    let tap = space.run(|| Tap::open(name).unwrap());
    assert_eq!(tap.name(), format!("tap {name}"));
    address(space, name, 1);
    space.ip(&format!("neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev {name}"));
    tap
}

/// Gives an interface address number `n` of both subnets, and brings it up.
pub(crate) fn address(space: &Space, name: &str, n: u8) {
    space.ip(&format!("addr add 10.1.0.{n}/24 dev {name}"));
    space.ip(&format!("addr add fd01::{n}/64 dev {name} nodad"));
    space.ip(&format!("link set {name} up"));
}

pub(crate) fn socket(space: &Space, address: &str) -> UdpSocket {
    let socket = space.run(|| UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn a_datagram_reaches_a_socket_of_the_host_and_another_comes_back() {
    let space = Space::new();
    let mut tap = host(&space, "gw0");
    let peer = socket(&space, "10.1.0.1:7000");
    let mac = space.mac("gw0");
    let frame = udp(mac, GUEST, [10, 1, 0, 2], [10, 1, 0, 1], 7000, b"over there");
    let mut data = [0; 100];
    for frame in [frame.clone(), frame.clone().completed()] {
        send(&mut tap, &frame).unwrap();
        let (len, from) = peer.recv_from(&mut data).unwrap();
        assert_eq!((&data[..len], from.to_string()), (&b"over there"[..], "10.1.0.2:5000".to_owned()));
    }
    // A checksum that is wrong is wrong.
    let mut wrong = frame.clone().completed();
    *wrong.bytes.last_mut().unwrap() ^= 1;
    send(&mut tap, &wrong).unwrap();
    peer.send_to(b"and back", "10.1.0.2:5000").unwrap();
    let back = expect(&mut tap, |frame| is_udp_to(frame, 5000));
    assert_eq!((back.header.flags & F_NEEDS_CSUM, back.header.csum_start), (F_NEEDS_CSUM, 34));
    assert_eq!((&back.bytes[..6], &back.bytes[6..12]), (&GUEST[..], &mac[..]));
    assert!(back.bytes.ends_with(b"and back"));
    peer.set_nonblocking(true).unwrap();
    assert!(peer.recv_from(&mut data).is_err());
}

#[test]
fn what_the_kernel_refuses_is_counted_and_nothing_else_happens() {
    let space = Space::new();
    let mut tap = host(&space, "gw0");
    let good = udp(space.mac("gw0"), GUEST, [10, 1, 0, 2], [10, 1, 0, 1], 7000, b"x");
    let peer = socket(&space, "10.1.0.1:7000");
    let bad = VnetHeader { flags: F_NEEDS_CSUM, csum_start: 60_000, csum_offset: 2, ..VnetHeader::default() };
    let runt = Frame::plain(vec![0; 9]);
    for frame in [Frame { header: bad, ..good.clone() }, runt] {
        assert_eq!(send(&mut tap, &frame), Err(Some(Counter::DropRxRefused)));
    }
    send(&mut tap, &good).unwrap();
    peer.recv_from(&mut [0; 10]).unwrap();
}

/// A host and a guest, each with a tap, joined.
fn two_hosts(mtu: u32) -> ((Space, Tap), (Space, Tap)) {
    let end = |n| {
        let space = Space::new();
        let tap = space.run(|| Tap::open("eth0").unwrap());
        space.ip(&format!("link set eth0 mtu {mtu}"));
        address(&space, "eth0", n);
        (space, tap)
    };
    (end(1), end(2))
}

/// Sends `len` bytes from one space to the other over TCP and compares them.
pub(crate) fn stream(from: &Space, to: &Space, address: &str, len: usize) {
    let listener = to.run(|| TcpListener::bind((address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let data: Vec<u8> = (0..len).map(|i| (i * 31 + i / 65_536) as u8).collect();
    let receiver = std::thread::spawn(move || {
        let mut received = Vec::new();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    let target = (address.to_owned(), port);
    let mut sender = from.run(|| TcpStream::connect(target).unwrap());
    sender.set_write_timeout(Some(PATIENCE)).unwrap();
    sender.write_all(&data).unwrap();
    drop(sender);
    assert!(receiver.join().unwrap() == data, "the data came out different");
}

pub(crate) fn assert_whole(seen: &Seen, kind: u8) {
    // Nearly all of the bytes came in super-frames.
    let count = seen.super_frames.get(&kind).copied().unwrap_or(0);
    assert!(count > 50 && seen.frames < seen.bytes / 4000, "{seen:?}");
    assert!(seen.longest > 30_000 && seen.dropped.is_empty(), "{seen:?}");
}

#[test]
fn super_frames_of_tcp_pass_whole_both_ways() {
    let ((one, mut tap), (other, mut guest)) = two_hosts(1500);
    for (kind, a, b) in [(GSO_TCPV4, "10.1.0.1", "10.1.0.2"), (GSO_TCPV6, "fd01::1", "fd01::2")] {
        let ((), [seen, _]) = join(&mut tap, &mut guest, || stream(&one, &other, b, 20_000_000));
        assert_whole(&seen, kind);
        let ((), [_, seen]) = join(&mut tap, &mut guest, || stream(&other, &one, a, 20_000_000));
        assert_whole(&seen, kind);
    }
}

#[test]
fn super_frames_of_udp_pass_whole() {
    let ((one, mut tap), (other, mut guest)) = two_hosts(1500);
    assert!(tap.takes().uso4 && tap.takes().uso6, "this kernel has no USO");
    for (from, to) in [("10.1.0.1:9000", "10.1.0.2:9001"), ("[fd01::1]:9000", "[fd01::2]:9001")] {
        let (sender, receiver) = (socket(&one, from), socket(&other, to));
        setsockopt(&sender, sockopt::UdpGsoSegment, &1000).unwrap();
        let data: Vec<u8> = (0..20_500).map(|i| (i / 100) as u8).collect();
        let ((), [seen, _]) = join(&mut tap, &mut guest, || {
            sender.send_to(&data, to).unwrap();
            let mut datagram = [0; 2000];
            for chunk in data.chunks(1000) {
                let len = receiver.recv(&mut datagram).unwrap();
                assert_eq!(&datagram[..len], chunk);
            }
        });
        assert_eq!(seen.super_frames.get(&GSO_UDP_L4), Some(&1), "{seen:?}");
    }
}

#[test]
fn jumbo_frames_pass() {
    let ((one, mut tap), (other, mut guest)) = two_hosts(9000);
    let (sender, receiver) = (socket(&one, "10.1.0.1:9000"), socket(&other, "10.1.0.2:9001"));
    let data = vec![0x5a; 9000 - 28];
    let (len, [seen, _]) = join(&mut tap, &mut guest, || {
        sender.send_to(&data, "10.1.0.2:9001").unwrap();
        receiver.recv(&mut [0; 10_000]).unwrap()
    });
    assert_eq!((len, seen.longest), (9000 - 28, 9014));
}

#[test]
fn a_tap_that_is_down_drops_and_comes_back() {
    let space = Space::new();
    let mut tap = host(&space, "gw0");
    let peer = socket(&space, "10.1.0.1:7000");
    let frame = udp(space.mac("gw0"), GUEST, [10, 1, 0, 2], [10, 1, 0, 1], 7000, b"x");
    space.ip("link set gw0 down");
    for _ in 0..3 {
        assert_eq!(send(&mut tap, &frame), Err(Some(Counter::DropRxDown)));
    }
    assert!(next(&mut tap, Duration::from_millis(10), |_| false).is_none());
    space.ip("link set gw0 up");
    send(&mut tap, &frame).unwrap();
    peer.recv_from(&mut [0; 10]).unwrap();
}

#[test]
fn a_tap_that_is_renamed_goes_on_under_its_new_name() {
    let space = Space::new();
    let mut tap = host(&space, "gw0");
    let mut monitor = space.run(|| Monitor::open().unwrap());
    let frame = udp(space.mac("gw0"), GUEST, [10, 1, 0, 2], [10, 1, 0, 1], 7000, b"x");
    let peer = socket(&space, "10.1.0.1:7000");
    space.ip("link set gw0 name other0");
    send(&mut tap, &frame).unwrap();
    peer.recv_from(&mut [0; 10]).unwrap();
    assert_eq!(tap.name(), "tap other0");
    assert!(monitor.read().unwrap().iter().any(|event| event.change == Change::Renamed("gw0".into())));
}

#[test]
fn a_tap_that_is_deleted_is_gone_and_can_be_made_again() {
    let space = Space::new();
    let mut tap = host(&space, "gw0");
    space.ip("link del gw0");
    // Whoever waits for a frame is woken.
    assert!(crate::frames::wait(&tap, PATIENCE));
    assert!(matches!(tap.receive(&mut FrameBuffer::default()), Received::Gone(Gone::Deleted)));
    assert_eq!(send(&mut tap, &Frame::plain(vec![0; 60])), Err(None));
    assert_eq!(tap.name(), "tap gw0");
    drop(host(&space, "gw0"));
    // And with its last queue it ends.
    space.wait_until_gone("gw0");
}

#[test]
fn a_tap_that_exists_is_used_and_left() {
    let space = Space::new();
    space.ip("tuntap add old0 mode tap");
    space.ip("tuntap add many0 mode tap multi_queue");
    space.run(|| {
        for name in ["old0", "many0"] {
            let _tap = Tap::open(name).unwrap();
            assert_eq!(Tap::open(name).is_err(), name == "old0");
        }
        Tap::open("new0").unwrap();
    });
    assert!(space.link("old0").is_some() && space.link("many0").is_some());
    space.wait_until_gone("new0");
}

#[test]
fn an_open_tap_is_taken_over_if_it_is_as_it_must_be() {
    let space = Space::new();
    let open = |name: &str, flags| {
        space.run(|| {
            let fd = calls::open().unwrap();
            calls::attach(&fd, name, flags).unwrap();
            fd
        })
    };
    let flags = calls::IFF_TAP | calls::IFF_NO_PI;
    let mut tap = Tap::from_fd(open("in0", flags | calls::IFF_VNET_HDR)).unwrap();
    address(&space, "in0", 1);
    let peer = socket(&space, "10.1.0.1:7000");
    let frame = udp(space.mac("in0"), GUEST, [10, 1, 0, 2], [10, 1, 0, 1], 7000, b"x");
    send(&mut tap, &frame).unwrap();
    peer.recv_from(&mut [0; 10]).unwrap();
    let error = |fd| Tap::from_fd(fd).unwrap_err().to_string();
    assert!(error(open("in1", flags)).contains("IFF_VNET_HDR"));
    assert!(error(open("in2", libc::IFF_TUN | calls::IFF_NO_PI)).contains("IFF_TUN"));
    assert!(error(calls::open().unwrap()).contains("not attached"));
    assert!(error(std::fs::File::open("/dev/null").unwrap().into()).contains("something else"));
    let deleted = open("in3", flags | calls::IFF_VNET_HDR);
    space.ip("link del in3");
    assert!(error(deleted).contains("deleted"));
}

#[test]
fn each_frame_is_in_one_of_a_taps_queues_and_a_flow_is_where_it_was_sent_by() {
    let space = Space::new();
    let mut first = space.run(|| Tap::open_many("gw0").unwrap());
    let mut second = space.run(|| first.add_queue().unwrap().unwrap());
    address(&space, "gw0", 1);
    space.ip("neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev gw0");
    let mac = space.mac("gw0");
    let flows = 64;
    let peers: Vec<_> = (0..flows).map(|n| socket(&space, &format!("10.1.0.1:{}", 7000 + n))).collect();
    let send_all = || {
        for peer in &peers {
            peer.send_to(b"x", "10.1.0.2:5000").unwrap();
        }
    };
    send_all();
    let count = |queue: &mut dyn Uplink| {
        std::iter::from_fn(|| next(queue, Duration::from_millis(200), |frame| is_udp_to(frame, 5000))).count()
    };
    let counts = (count(&mut first), count(second.as_mut()));
    assert!(counts.0 + counts.1 == flows && counts.0 > 0 && counts.1 > 0, "{counts:?}");
    // What is sent by a queue is answered by it.
    for (port, peer) in (7000..).zip(&peers) {
        send(second.as_mut(), &udp(mac, GUEST, [10, 1, 0, 2], [10, 1, 0, 1], port, b"x")).unwrap();
        peer.recv_from(&mut [0; 10]).unwrap();
    }
    send_all();
    assert_eq!((count(&mut first), count(second.as_mut())), (0, flows));
    // A device that was made for one queue has one.
    space.ip("tuntap add one0 mode tap");
    assert!(space.run(|| Tap::open_many("one0").unwrap().add_queue().unwrap().is_none()));
    assert!(space.run(|| Tap::open("gw1").unwrap().add_queue().unwrap().is_none()));
}

#[test]
fn a_tap_that_was_left_to_us_and_is_deleted_wakes_nobody() {
    let space = Space::new();
    let open = || {
        let fd = calls::open().unwrap();
        calls::attach(&fd, "in0", calls::IFF_TAP | calls::IFF_NO_PI | calls::IFF_VNET_HDR).unwrap();
        fd
    };
    let parents = space.run(open);
    let tap = Tap::from_fd(parents.try_clone().unwrap()).unwrap();
    address(&space, "in0", 1);
    let shared = PortShared::new(0, "net".into(), [0; 6]).unwrap();
    let half = UplinkHalf::new(vec![shared], None).unwrap();
    half.connect(Box::new(tap));
    let network = Network::with(Parts { uplink: Some(half.clone()), ..Parts::default() }, 0);
    let worker = Worker::new(network).unwrap().spawn("worker-test").unwrap();
    space.ip("link del in0");
    let end = Instant::now() + PATIENCE;
    while !half.is_gone() {
        assert!(Instant::now() < end, "the worker did not hear of it");
        std::thread::sleep(Duration::from_millis(1));
    }
    // What it has begun it ends.
    std::thread::sleep(Duration::from_millis(50));
    let woken = || worker.counters().wakeups.load(Ordering::Relaxed);
    let before = woken();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(woken(), before, "woken for nothing");
    WorkerHandle::stop_all(vec![worker]);
    drop(parents);
}

#[test]
fn errors_say_what_helps() {
    let space = Space::new();
    space.ip("link add br0 type bridge");
    let error = |name: &str| space.run(|| Tap::open(name).unwrap_err().to_string());
    assert!(error("br0").contains("is not a tap"));
    let held = space.run(|| Tap::open("held0").unwrap());
    assert!(error("held0").contains("in use by another program"));
    drop(held);
    for name in ["", "a name", "a/b", "sixteen_letters_", "tap%d", ".."] {
        assert!(error(name).contains("no name of an interface"), "{name}");
    }
    let without = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        for arguments in ["--make-rprivate /", "-t tmpfs none /dev/net"] {
            assert!(Command::new("mount").args(arguments.split(' ')).status().unwrap().success());
        }
        Tap::open("x0").unwrap_err().to_string()
    });
    let error = without.join().unwrap();
    assert!(error.contains("/dev/net/tun") && error.contains("modprobe tun"), "{error}");
}

/// Runs one test of this program in a process without capabilities, but for those in `but`, in a namespace.
pub(crate) fn without_capabilities(space: &Space, but: &str, test: &str) {
    let program = std::env::current_exe().unwrap();
    let arguments =
        format!("--bounding-set=-all{but} --inh-caps=-all {} --exact {test} --nocapture", program.display());
    let output = space.run(|| {
        let mut command = Command::new("setpriv");
        command.args(arguments.split(' ')).env("GUESTWIRE_WITHOUT_CAPABILITIES", "1").output().unwrap()
    });
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn is_without_capabilities() -> bool {
    std::env::var_os("GUESTWIRE_WITHOUT_CAPABILITIES").is_some()
}

#[test]
fn without_the_capability_the_error_says_so() {
    if is_without_capabilities() {
        let error = Tap::open("gw0").unwrap_err().to_string();
        assert!(error.contains("CAP_NET_ADMIN") && error.contains("--tap-fd N"), "{error}");
        // One that was made for us needs none.
        Tap::open("ours0").unwrap();
        return;
    }
    let space = Space::new();
    space.ip("tuntap add ours0 mode tap user 0");
    without_capabilities(&space, "", "tap::without_the_capability_the_error_says_so");
}

#[test]
fn a_tap_that_joins_a_bridge_reaches_what_is_behind_it() {
    let (host, lan, guest) = (Space::new(), Space::new(), Space::new());
    host.cable("eth0", &lan, "lan0");
    address(&lan, "lan0", 1);
    host.ip("link add br0 type bridge");
    host.ip("link set eth0 master br0");
    host.ip("link set br0 up");
    let mut tap = host.run(|| {
        let tap = Tap::open("port0").unwrap();
        let mut netlink = Netlink::open().unwrap();
        let [port, bridge] = ["port0", "br0"].map(|name| netlink.link(name).unwrap().unwrap().index);
        netlink.set_bridge(port, Some(bridge)).unwrap();
        netlink.set_up(port, true).unwrap();
        tap
    });
    let mut device = guest.run(|| Tap::open("eth0").unwrap());
    address(&guest, "eth0", 2);
    let ((), [_, seen]) = join(&mut tap, &mut device, || stream(&guest, &lan, "10.1.0.1", 20_000_000));
    assert_whole(&seen, GSO_TCPV4);
    drop(tap);
    host.wait_until_gone("port0");
}
