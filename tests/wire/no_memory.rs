//! NAT when the host has no memory, or no buffers, for what it is asked to do: strace(1) has the daemon's calls fail as
//! the kernel does then.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::daemon::{Daemon, PATIENCE, until};
use crate::nat::{Talker, UPLINK, world};
use crate::shortage::Talk;

const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const SERVER: (Ipv4Addr, u16) = (MACHINE, 4000);
/// Where nobody takes what comes, and who answers what it gets.
const OTHER: (Ipv4Addr, u16) = (MACHINE, 4001);
const ECHO: (Ipv4Addr, u16) = (MACHINE, 4002);
const SEGMENT: usize = 1000;
const BYTES: usize = 20 * SEGMENT;
/// How long there is no memory.
const WHILE: Duration = Duration::from_millis(700);
/// Calls that may fail meanwhile, of those that are made for one socket: what is tried again is tried ten times a
/// second, and once for what has just come.
const TRIED_MAX: usize = 12;

/// Calls of the daemon's workers that fail, until this is dropped. Other threads' are left alone: one waits in a call
/// for what its frontend says.
struct Failing {
    strace: Child,
    folder: TempDir,
}

impl Failing {
    fn begin(daemon: &Daemon, calls: &str, error: &str) -> Self {
        let folder = TempDir::with_prefix("guestwire-wire-").unwrap();
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let of = |task: &Path, file| fs::read_to_string(task.join(file)).unwrap();
        let tasks = tasks.map(|task| task.unwrap().path());
        let workers: Vec<PathBuf> = tasks.filter(|task| of(task, "comm").starts_with("worker-")).collect();
        assert_eq!(workers.len(), crate::daemon::workers());
        let mut strace = Command::new("strace");
        for worker in &workers {
            strace.arg("-p").arg(worker.file_name().unwrap());
        }
        let strace = strace
            .args(["-qq", "-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:error={error}"), "-o"])
            .arg(folder.path().join("calls"))
            .spawn()
            .expect("strace, which tests/lab/prepare.sh installs");
        let is_traced = |worker: &PathBuf| !of(worker, "status").contains("TracerPid:\t0\n");
        until("the workers are traced", || workers.iter().all(is_traced));
        Self { strace, folder }
    }

    /// How many have failed.
    fn count(&self) -> usize {
        let calls = fs::read_to_string(self.folder.path().join("calls")).unwrap();
        calls.lines().filter(|call| call.ends_with("(INJECTED)")).count()
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.strace.id().cast_signed()), Signal::SIGTERM);
        let _ = self.strace.wait();
    }
}

fn bytes() -> Vec<u8> {
    (0..BYTES as u32).map(|place| (place.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// The next IPv4 packet of a protocol for the guest, from behind its IP header, of which `is_it` is true.
#[track_caller]
fn packet(talker: &mut Talker, protocol: u8, is_it: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        let frame = talker.guest.receive().frame;
        if frame[12..14] == [8, 0] && frame[23] == protocol && is_it(&frame[34..]) {
            return frame[34..].to_vec();
        }
    }
}

/// What comes to this port of the guest's.
#[track_caller]
fn datagram(talker: &mut Talker, port: u16) -> Vec<u8> {
    packet(talker, 17, |udp| udp[2..4] == port.to_be_bytes())[8..].to_vec()
}

/// A datagram of the guest's comes back.
#[track_caller]
fn talks(talker: &mut Talker, port: u16, echo: &UdpSocket) {
    talker.udp(port, ECHO, b"hello");
    let mut room = [0; 16];
    let (len, from) = echo.recv_from(&mut room).unwrap();
    echo.send_to(&room[..len], from).unwrap();
    assert_eq!(datagram(talker, port), b"hello");
}

/// An echo request of the guest's is answered.
#[track_caller]
fn pings(talker: &mut Talker, identifier: u16) {
    talker.ping(&MACHINE.to_string(), 64, (identifier, 1), b"hello");
    packet(talker, 1, |icmp| icmp[0] == 0 && icmp[4..6] == identifier.to_be_bytes());
}

/// The worker's processor time meanwhile is next to nothing.
fn wait(daemon: &Daemon) {
    let before = daemon.cpu_ticks("worker-0");
    std::thread::sleep(WHILE);
    let spent = daemon.cpu_ticks("worker-0") - before;
    assert!(spent <= 10, "{spent} ticks in {WHILE:?}");
}

#[test]
fn what_is_new_is_refused_and_what_is_open_goes_on() {
    let (mut daemon, host, machine) = world(&[]);
    host.set("ipv4/ping_group_range", "0 2147483647");
    let [listener, _other] = [SERVER, OTHER].map(|at| machine.run(|| TcpListener::bind(at).unwrap()));
    let echo = machine.run(|| UdpSocket::bind(ECHO).unwrap());
    echo.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut talker = Talker::new(&daemon, 1);
    let mut old = Talk::begin(&mut talker, &listener, 1000);
    talks(&mut talker, 1000, &echo);
    pings(&mut talker, 1000);
    for (n, calls, error) in [(1, "socket", "ENOBUFS"), (2, "socket", "ENOMEM"), (3, "epoll_ctl", "ENOMEM")] {
        let (port, refused) = (1000 + n, daemon.counters(UPLINK)["drop_rx_flow_limit"]);
        let failing = Failing::begin(&daemon, calls, error);
        talker.tcp(port, OTHER, (7, None), "S", b"");
        talker.udp(port, ECHO, b"hello");
        talker.ping(&MACHINE.to_string(), 64, (port, 1), b"hello");
        for protocol in [6, 17, 1] {
            // Prohibited, with the packet that is (RFC 5508, REQ-8).
            let icmp = packet(&mut talker, 1, |_| true);
            assert_eq!((&icmp[..2], icmp[8 + 9]), (&[3, 13][..], protocol), "{calls} {error}");
        }
        old.goes_on(&mut talker, b"as if nothing had happened");
        talks(&mut talker, 1000, &echo);
        pings(&mut talker, 1000);
        assert_eq!(failing.count(), 3);
        drop(failing);
        assert_eq!(daemon.counters(UPLINK)["drop_rx_flow_limit"], refused + 3);
        Talk::begin(&mut talker, &listener, port).goes_on(&mut talker, b"and this is new");
        talks(&mut talker, port, &echo);
        pings(&mut talker, port);
    }
    daemon.assert_alive();
}

#[test]
fn what_a_guest_says_meanwhile_arrives_whole_though_it_says_no_more() {
    let (mut daemon, _host, machine) = world(&[]);
    let listener = machine.run(|| TcpListener::bind(SERVER).unwrap());
    let echo = machine.run(|| UdpSocket::bind(ECHO).unwrap());
    echo.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut talker = Talker::new(&daemon, 1);
    for (port, error) in [(1000, "ENOBUFS"), (1001, "ENOMEM")] {
        let mut talk = Talk::begin(&mut talker, &listener, port);
        talks(&mut talker, port, &echo);
        let (bytes, lost) = (bytes(), daemon.counters(UPLINK)["drop_rx_queue_full"]);
        let failing = Failing::begin(&daemon, "sendmsg,sendto", error);
        for (n, part) in bytes.chunks(SEGMENT).enumerate() {
            let seq = talk.seq + (n * SEGMENT) as u32;
            talker.tcp(port, SERVER, (seq, Some(talk.ack)), "", part);
        }
        talk.seq += BYTES as u32;
        talker.udp(port, ECHO, b"lost");
        wait(&daemon);
        // The datagram, too.
        assert!((2..=TRIED_MAX + 1).contains(&failing.count()), "{error}: {} calls", failing.count());
        drop(failing);
        let mut got = vec![0; BYTES];
        talk.server.read_exact(&mut got).unwrap();
        assert!(got == bytes, "{error}: they have changed");
        assert_eq!(daemon.counters(UPLINK)["drop_rx_queue_full"], lost + 1);
        talk.goes_on(&mut talker, b"and more");
        talks(&mut talker, port, &echo);
    }
    daemon.assert_alive();
}

#[test]
fn what_comes_for_a_guest_meanwhile_arrives_whole_though_nobody_says_more() {
    let (mut daemon, host, machine) = world(&["--forward", "tcp:5000:80", "--forward", "udp:5000:80"]);
    let listener = machine.run(|| TcpListener::bind(SERVER).unwrap());
    let echo = machine.run(|| UdpSocket::bind(ECHO).unwrap());
    echo.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut talker = Talker::new(&daemon, 1);
    let mut talk = Talk::begin(&mut talker, &listener, 1000);
    talker.udp(1000, ECHO, b"hello");
    let (_, source) = echo.recv_from(&mut [0; 16]).unwrap();
    let client = host.run(|| UdpSocket::bind("10.7.0.1:0").unwrap());
    let door = SocketAddr::from(([10, 7, 0, 1], 5000));
    let bytes = bytes();
    let failing = Failing::begin(&daemon, "recvmsg,recvmmsg,accept4", "ENOMEM");
    talk.server.write_all(&bytes).unwrap();
    echo.send_to(b"datagram", source).unwrap();
    client.send_to(b"knock", door).unwrap();
    let connected = host.run(|| TcpStream::connect(door).unwrap());
    wait(&daemon);
    // One connection, one endpoint, and two doors.
    assert!((4..=4 * TRIED_MAX).contains(&failing.count()), "{} calls", failing.count());
    drop(failing);
    let (mut got, mut left) = (vec![None; BYTES], BYTES);
    let (mut has_datagram, mut has_knocked, mut is_asked) = (false, false, false);
    until("all has come", || {
        while let Some(received) = talker.guest.poll(0) {
            let frame = received.frame;
            let to_port = u16::from_be_bytes([frame[36], frame[37]]);
            match (frame[23], to_port) {
                (17, 1000) => has_datagram |= &frame[42..] == b"datagram",
                (17, 80) => has_knocked |= &frame[42..] == b"knock",
                (6, 80) => is_asked = true,
                (6, 1000) => {
                    let [seq, header] = [&frame[38..42], &[0, 0, 0, frame[46] >> 4 << 2]]
                        .map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
                    let at = seq.wrapping_sub(talk.ack) as usize;
                    for (place, byte) in got[at..].iter_mut().zip(&frame[34 + header as usize..]) {
                        left -= usize::from(place.replace(*byte).is_none());
                    }
                }
                _ => {}
            }
        }
        left == 0 && has_datagram && has_knocked && is_asked
    });
    assert!(got.into_iter().flatten().eq(bytes), "they have changed");
    talk.ack += BYTES as u32;
    talker.tcp(1000, SERVER, (talk.seq, Some(talk.ack)), "", b"");
    talk.goes_on(&mut talker, b"and more");
    talks(&mut talker, 1000, &echo);
    drop(connected);
    daemon.assert_alive();
}
