//! Where guests of NAT may go, and that they stay connected when the host's own networks change.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::daemon::{Daemon, PATIENCE, until};
use crate::nat::{GATEWAY, Talker, world};
use crate::space::Space;

const PORT: u16 = 4000;
/// Where clouds tell a machine about itself.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);

/// What a guest hears when it asks for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Welcome,
    Refused,
    /// An ICMP error, destination unreachable, with this code.
    Unreachable(u8),
}

const FORBIDDEN: Said = Said::Unreachable(13);

impl Talker {
    /// Asks for a connection from this port. Returns what comes back, and the number of what comes next.
    fn knock(&mut self, from: u16, to: Ipv4Addr) -> (Said, u32) {
        self.tcp(from, (to, PORT), (7, None), "S", b"");
        let mut said = None;
        until("an answer", || {
            said = self.guest.poll(0).and_then(|received| answer(&received.frame, from));
            said.is_some()
        });
        said.unwrap()
    }

    /// What the next connection from this port hears.
    fn asks(&mut self, from: u16, to: Ipv4Addr) -> Said {
        self.knock(from, to).0
    }

    /// Waits for a datagram to this port. Returns from whom it came, and what it says.
    fn hears(&mut self, port: u16) -> (Ipv4Addr, Vec<u8>) {
        let mut heard = None;
        until("a datagram", || {
            let is_it =
                |frame: &Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == port.to_be_bytes();
            heard = self.guest.poll(0).map(|received| received.frame).filter(is_it);
            heard.is_some()
        });
        let frame = heard.unwrap();
        let len = usize::from(u16::from_be_bytes([frame[38], frame[39]])) - 8;
        (<[u8; 4]>::try_from(&frame[26..30]).unwrap().into(), frame[42..42 + len].to_vec())
    }
}

/// What a frame answers to a SYN from this port, if it does.
fn answer(frame: &[u8], port: u16) -> Option<(Said, u32)> {
    let port = port.to_be_bytes();
    match (frame[12..14] == [8, 0], frame[23]) {
        (true, 6) if frame[36..38] == port => {
            let next = u32::from_be_bytes(frame[38..42].try_into().unwrap()).wrapping_add(1);
            Some((if frame[47] & 4 == 0 { Said::Welcome } else { Said::Refused }, next))
        }
        // It quotes the header of IPv4 and what came behind.
        (true, 1) if frame[34] == 3 && frame[62..64] == port => Some((Said::Unreachable(frame[35]), 0)),
        _ => None,
    }
}

/// Has somebody in a namespace say back what it hears, by TCP and UDP, on these addresses' port.
fn serve(space: &Space, addresses: &[Ipv4Addr]) {
    for address in addresses {
        let (listener, socket) =
            space.run(|| (TcpListener::bind((*address, PORT)).unwrap(), UdpSocket::bind((*address, PORT)).unwrap()));
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                thread::spawn(move || {
                    let mut bytes = [0; 100];
                    while let Ok(len @ 1..) = stream.read(&mut bytes) {
                        let _ = stream.write_all(&bytes[..len]);
                    }
                });
            }
        });
        thread::spawn(move || {
            let mut bytes = [0; 100];
            while let Ok((len, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..len], from);
            }
        });
    }
}

#[test]
fn the_longest_prefix_says_where_guests_may_go() {
    const EACH: [u8; 4] = [2, 3, 4, 5];
    let at = |number| Ipv4Addr::new(10, 7, 0, number);
    for (options, reached) in [
        (&[][..], &EACH[..]),
        (&["--deny", "10.7.0.4"], &[2, 3, 5]),
        (&["--allow", "10.7.0.3"], &[3]),
        (&["--allow", "10.7.0.0/24", "--deny", "10.7.0.2/31"], &[4, 5]),
        (&["--deny", "10.7.0.0/24", "--allow", "10.7.0.5", "--allow", "10.7.0.2"], &[2, 5]),
        (&["--allow", "10.7.0.3", "--deny", "10.7.0.3"], &[]),
    ] {
        let (mut daemon, _host, machine) = world(options);
        serve(&machine, &EACH.map(at));
        let mut talker = Talker::new(&daemon, 1);
        for number in EACH {
            let expected = if reached.contains(&number) { Said::Welcome } else { FORBIDDEN };
            assert_eq!(talker.asks(1000 + u16::from(number), at(number)), expected, "{options:?}: {}", at(number));
        }
        for number in reached {
            talker.udp(2000, (at(*number), PORT), b"hello");
            assert_eq!(talker.hears(2000), (at(*number), b"hello".to_vec()), "{options:?}");
        }
        daemon.assert_alive();
    }
}

/// A host whose own addresses somebody listens at, the daemon on it, and a guest.
fn host_with_secrets(options: &[&str]) -> (Daemon, Space, Talker) {
    let (daemon, host, _) = world(options);
    host.ip(&format!("address add {METADATA}/32 dev lo"));
    serve(&host, &[Ipv4Addr::LOCALHOST, METADATA]);
    let talker = Talker::new(&daemon, 1);
    (daemon, host, talker)
}

#[test]
fn what_the_host_keeps_to_itself_is_reached_only_when_that_is_allowed_by_name() {
    let (mut daemon, _host, mut talker) = host_with_secrets(&[]);
    assert_eq!(talker.asks(1000, GATEWAY), Said::Refused);
    for (port, to) in [(1001, Ipv4Addr::LOCALHOST), (1002, METADATA)] {
        assert_eq!(talker.asks(port, to), FORBIDDEN, "{to}");
    }
    daemon.assert_alive();
    // Nor is it by a list that has it.
    let (mut daemon, _host, mut talker) = host_with_secrets(&["--allow", "0.0.0.0/0", "--allow", "169.254.169.254"]);
    assert_eq!(talker.asks(1000, METADATA), FORBIDDEN);
    daemon.assert_alive();
    // The gateway stands for the host's loopback.
    let (mut daemon, _host, mut talker) = host_with_secrets(&["--allow-host-loopback"]);
    for (port, to) in [(1000, GATEWAY), (1001, METADATA)] {
        assert_eq!(talker.asks(port, to), Said::Welcome, "{to}");
        talker.udp(port, (to, PORT), b"hello");
        assert_eq!(talker.hears(port), (to, b"hello".to_vec()));
    }
    assert_eq!(talker.asks(1002, Ipv4Addr::LOCALHOST), FORBIDDEN);
    daemon.assert_alive();
}

#[test]
fn guests_stay_connected_when_the_hosts_networks_change() {
    let (mut daemon, host, machine) = world(&[]);
    serve(&machine, &[Ipv4Addr::new(10, 7, 0, 3)]);
    let listener = machine.run(|| TcpListener::bind((SERVER, PORT)).unwrap());
    let socket = machine.run(|| UdpSocket::bind((SERVER, PORT)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut talker = Talker::new(&daemon, 1);
    let (said, next) = talker.knock(1000, SERVER);
    assert_eq!(said, Said::Welcome);
    let (mut stream, _) = listener.accept().unwrap();
    talker.udp(2000, (SERVER, PORT), b"before");
    let (_, from) = socket.recv_from(&mut [0; 8]).unwrap();
    // The host's network goes, and guests hear that at once.
    host.ip("link set eth0 down");
    assert_eq!(talker.asks(1001, SERVER), Said::Unreachable(0));
    thread::sleep(Duration::from_millis(100));
    host.ip("link set eth0 up");
    // It comes back: what was open goes on.
    talker.tcp(1000, (SERVER, PORT), (8, Some(next)), "", b"I am back");
    let mut heard = [0; 9];
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"I am back");
    // The host moves to another network: the same endpoint goes by that.
    let other = Space::new();
    host.cable("eth1", &other, "eth0");
    host.ip("link delete eth0");
    host.ip("address add 10.9.0.1/24 dev eth1");
    other.ip("address add 10.9.0.2/24 dev eth0");
    host.ip("route add default via 10.9.0.2");
    other.ip(&format!("address add {SERVER}/32 dev eth0"));
    let socket = other.run(|| UdpSocket::bind((SERVER, PORT)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    talker.udp(2000, (SERVER, PORT), b"after");
    let (_, moved) = socket.recv_from(&mut [0; 8]).unwrap();
    assert_eq!((moved.ip(), moved.port()), (Ipv4Addr::new(10, 9, 0, 1).into(), from.port()));
    socket.send_to(b"answer", moved).unwrap();
    assert_eq!(talker.hears(2000), (SERVER, b"answer".to_vec()));
    serve(&other, &[Ipv4Addr::new(10, 9, 0, 2)]);
    assert_eq!(talker.asks(1002, Ipv4Addr::new(10, 9, 0, 2)), Said::Welcome);
    daemon.assert_alive();
}
