//! Ports of the host that lead to guests, with clients on the host and beyond it. A guest here is the driver in
//! process, and its TCP is written by hand: a test says each segment.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice};

use crate::daemon::{Daemon, PATIENCE, until};
use crate::dhcp::lease;
use crate::guest::{Config, Guest, mac};
use crate::space::Space;

/// The host's addresses on the way to its clients, and a client's.
const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const GATEWAY: [&str; 2] = ["10.0.2.1", "fd00:1::1"];
/// Somebody whom a guest may send something to, so that it is known.
const ANYBODY: [&str; 2] = ["192.0.2.99", "2001:db8::99"];
const SUBNET6: [&str; 2] = ["--subnet6", "fd00:1::/64"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

/// A host, and a machine that is connected to it.
fn spaces() -> (Space, Space) {
    let (host, outside) = (Space::new(), Space::new());
    host.cable("wan", &outside, "eth0");
    for (space, name, [v4, v6]) in [(&host, "wan", HOST), (&outside, "eth0", CLIENT)] {
        space.ip(&format!("address add {v4}/24 dev {name}"));
        space.ip(&format!("address add {v6}/64 dev {name} nodad"));
    }
    (host, outside)
}

fn daemon(space: &Space, forwards: &[&str]) -> Daemon {
    let flags = forwards.iter().flat_map(|forward| ["--forward", forward]);
    Daemon::in_space(space, "nat", &SUBNET6.into_iter().chain(flags).collect::<Vec<_>>())
}

/// What a guest hears.
#[derive(Debug)]
struct Heard {
    from: SocketAddr,
    to: SocketAddr,
    payload: Vec<u8>,
    /// Of TCP.
    seq: u32,
    ack: Option<u32>,
    syn: bool,
    fin: bool,
    rst: bool,
}

/// A guest with addresses.
struct Server {
    guest: Guest,
    gateway: [u8; 6],
    addresses: [IpAddr; 2],
}

impl Server {
    /// One that has got an address by DHCP, and has sent nothing yet.
    fn new(daemon: &Daemon, socket: &str, number: u8) -> Self {
        let mut guest = Guest::attach(&daemon.path(socket), Config::usual(number));
        let address = lease(&mut guest);
        // Who the gateway is.
        let own = mac(number);
        let ask = [&[0xff; 6], &own[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own, &address.octets(), &[0; 6]].concat();
        guest.send(&[ask, vec![10, 0, 2, 1]].concat());
        let mut gateway = None;
        until("the gateway answers", || {
            gateway = guest.poll(0).filter(|received| received.frame[12..14] == [8, 6]);
            gateway.is_some()
        });
        let gateway = gateway.unwrap().frame[6..12].try_into().unwrap();
        let v6 = ip(&format!("fd00:1::{number}"));
        Self { guest, gateway, addresses: [address.into(), v6] }
    }

    /// Makes itself known to the gateway by both addresses.
    fn known(mut self) -> Self {
        for (own, to) in self.addresses.into_iter().zip(ANYBODY) {
            self.send_datagram(SocketAddr::new(own, 9), at(to, 9), b"");
        }
        self
    }

    fn packet(&self, from: SocketAddr, to: SocketAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
        let builder = PacketBuilder::ethernet2(mac(self.guest.config.number), self.gateway);
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("{from} {to}"),
        }
    }

    fn send_datagram(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let mut frame = Vec::new();
        self.packet(from, to).udp(from.port(), to.port()).write(&mut frame, payload).unwrap();
        self.guest.send(&frame);
    }

    /// Sends a segment that acknowledges what was `heard`, and all before it.
    fn answer(&mut self, heard: &Heard, seq: u32, flags: &str, payload: &[u8]) {
        let (from, to) = (heard.to, heard.from);
        let ack = heard.seq + heard.payload.len() as u32 + u32::from(heard.syn) + u32::from(heard.fin);
        let mut tcp = self.packet(from, to).tcp(from.port(), to.port(), seq, 60_000).ack(ack);
        for flag in flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                _ => panic!("{flag}"),
            };
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, payload).unwrap();
        self.guest.send(&frame);
    }

    /// The next packet of TCP or UDP, if there is one.
    fn poll(&mut self) -> Option<Heard> {
        while let Some(received) = self.guest.poll(0) {
            let Ok(packet) = SlicedPacket::from_ethernet(&received.frame) else { continue };
            let ips: (IpAddr, IpAddr) = match &packet.net {
                Some(NetSlice::Ipv4(v4)) => (v4.header().source_addr().into(), v4.header().destination_addr().into()),
                Some(NetSlice::Ipv6(v6)) => (v6.header().source_addr().into(), v6.header().destination_addr().into()),
                _ => continue,
            };
            let (ports, payload, tcp) = match &packet.transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    ((tcp.source_port(), tcp.destination_port()), tcp.payload().to_vec(), Some(tcp))
                }
                Some(TransportSlice::Udp(udp)) => {
                    ((udp.source_port(), udp.destination_port()), udp.payload().to_vec(), None)
                }
                _ => continue,
            };
            return Some(Heard {
                from: SocketAddr::new(ips.0, ports.0),
                to: SocketAddr::new(ips.1, ports.1),
                payload,
                seq: tcp.map_or(0, |tcp| tcp.sequence_number()),
                ack: tcp.filter(|tcp| tcp.ack()).map(|tcp| tcp.acknowledgment_number()),
                syn: tcp.is_some_and(|tcp| tcp.syn()),
                fin: tcp.is_some_and(|tcp| tcp.fin()),
                rst: tcp.is_some_and(|tcp| tcp.rst()),
            });
        }
        None
    }

    /// Waits for a packet of which `is_it` is true.
    #[track_caller]
    fn hear(&mut self, what: &str, is_it: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = None;
        until(what, || {
            heard = self.poll().filter(&is_it);
            heard.is_some()
        });
        heard.unwrap()
    }

    /// Takes a connection to its port, of this client as it knows it, and returns the SYN as it was heard.
    #[track_caller]
    fn take(&mut self, from: SocketAddr, to: SocketAddr, seq: u32) -> Heard {
        let syn = self.hear(&format!("a SYN of {from}"), |heard| heard.syn && (heard.from, heard.to) == (from, to));
        assert_eq!(syn.ack, None);
        self.answer(&syn, seq, "S", b"");
        self.hear("an ACK", |heard| heard.from == syn.from && heard.ack == Some(seq.wrapping_add(1)));
        syn
    }
}

/// Connects. The kernel does so by itself; the guest is asked only then.
fn connect(space: &Space, to: SocketAddr) -> TcpStream {
    let stream = space.run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A socket for datagrams, at an address of the space's.
fn datagrams(space: &Space, address: &str) -> UdpSocket {
    let socket = space.run(|| UdpSocket::bind(at(address, 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Connects. Returns whether that is refused with a reset, which may come before the connection is looked at.
fn is_refused(space: &Space, to: SocketAddr, patience: Duration) -> bool {
    let made = space.run(|| TcpStream::connect_timeout(&to, PATIENCE));
    let heard = made.and_then(|mut stream| {
        stream.set_read_timeout(Some(patience))?;
        stream.read(&mut [0; 9])
    });
    heard.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[track_caller]
fn assert_is_reset(mut stream: TcpStream) {
    assert_eq!(stream.read(&mut [0; 9]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

#[track_caller]
fn read(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

/// One connection from its beginning to its end, both ways.
#[track_caller]
fn talk(server: &mut Server, mut client: TcpStream, to: SocketAddr, known_as: SocketAddr) {
    let seq = u32::MAX - 3;
    let syn = server.take(known_as, to, seq);
    client.write_all(b"question").unwrap();
    let question = server.hear("the question", |heard| heard.from == syn.from && !heard.payload.is_empty());
    assert_eq!(question.payload, b"question");
    server.answer(&question, seq.wrapping_add(1), "", b"the answer");
    read(&mut client, b"the answer");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let end = server.hear("the end", |heard| heard.from == syn.from && heard.fin);
    server.answer(&end, seq.wrapping_add(11), "F", b"");
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
    server.hear("its acknowledgement", |heard| heard.from == syn.from && heard.ack == Some(seq.wrapping_add(12)));
}

#[test]
fn a_guest_is_connected_to_and_sees_who_it_is() {
    let (host, outside) = spaces();
    let mut daemon = daemon(&host, &["tcp:2222:22", "tcp:127.0.0.2:3000-3002:80"]);
    let mut server = Server::new(&daemon, "net.sock", 5).known();
    for family in 0..2 {
        let to = SocketAddr::new(server.addresses[family], 22);
        let client = connect(&outside, at(HOST[family], 2222));
        let known_as = client.local_addr().unwrap();
        assert_eq!(known_as.ip(), ip(CLIENT[family]));
        talk(&mut server, client, to, known_as);
        // The host itself: by an address that it alone has, and by one that others reach too.
        let client = connect(&host, at(["127.0.0.1", "::1"][family], 2222));
        let known_as = at(GATEWAY[family], client.local_addr().unwrap().port());
        talk(&mut server, client, to, known_as);
        let client = connect(&host, at(HOST[family], 2222));
        let known_as = client.local_addr().unwrap();
        talk(&mut server, client, to, known_as);
    }
    let client = connect(&host, at("127.0.0.2", 3002));
    let known_as = at(GATEWAY[0], client.local_addr().unwrap().port());
    let to = SocketAddr::new(server.addresses[0], 82);
    talk(&mut server, client, to, known_as);
    for address in [at(HOST[0], 3002), at("127.0.0.2", 3003)] {
        let refused = host.run(|| TcpStream::connect_timeout(&address, PATIENCE));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    daemon.assert_alive();
    assert_eq!(daemon.warnings(), Vec::<String>::new());
}

#[test]
fn a_guest_that_refuses_and_one_that_gives_up_are_heard() {
    let (host, outside) = spaces();
    let mut daemon = daemon(&host, &["tcp:2222:22"]);
    let mut server = Server::new(&daemon, "net.sock", 5);
    let to = SocketAddr::new(server.addresses[0], 22);
    let client = connect(&outside, at(HOST[0], 2222));
    let syn = server.hear("a SYN, by what DHCP alone says", |heard| heard.syn && heard.to == to);
    server.answer(&syn, 0, "R", b"");
    assert_is_reset(client);
    // What it says of a connection that is not this one does no harm, and is answered.
    let client = connect(&outside, at(HOST[0], 2222));
    let syn = server.hear("a SYN", |heard| heard.syn && heard.to == to);
    let old = Heard { seq: syn.seq.wrapping_sub(9), ..syn };
    server.answer(&old, 77, "", b"");
    let reset = server.hear("a reset", |heard| heard.rst && heard.from == old.from);
    assert_eq!(reset.seq, old.seq + 1);
    let again = server.hear("the SYN again", |heard| heard.syn && heard.from == old.from);
    server.answer(&again, 99, "S", b"");
    server.hear("an ACK", |heard| heard.from == again.from && heard.ack == Some(100));
    server.answer(&again, 100, "R", b"");
    assert_is_reset(client);
    // A client that does not wait.
    let client = connect(&outside, at(HOST[0], 2222));
    let syn = server.hear("a SYN", |heard| heard.syn && heard.to == to);
    guestwire::sys::net::reset_at_close(&client);
    drop(client);
    server.hear("a reset", |heard| heard.rst && heard.from == syn.from);
    daemon.assert_alive();
}

/// A datagram there and one back, through the port that the client knows.
#[track_caller]
fn exchange(server: &mut Server, client: &UdpSocket, (host, to, known_as): (SocketAddr, SocketAddr, SocketAddr)) {
    client.send_to(b"question", host).unwrap();
    let question = server.hear("the question", |heard| heard.payload == b"question");
    assert_eq!((question.from, question.to), (known_as, to));
    server.send_datagram(to, question.from, b"answer");
    let mut bytes = [0; 99];
    let (len, from) = client.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..len], from), (&b"answer"[..], host));
}

#[test]
fn datagrams_are_answered_from_where_they_were_sent_to() {
    let (host, outside) = spaces();
    // A second address, which is not the one that the host answers from by itself.
    host.ip("address add 192.0.2.77/24 dev wan");
    let mut daemon = daemon(&host, &["udp:5353:53", "udp:127.0.0.9:6000-6001:52"]);
    let mut server = Server::new(&daemon, "net.sock", 5).known();
    for family in 0..2 {
        let to = SocketAddr::new(server.addresses[family], 53);
        let client = datagrams(&outside, CLIENT[family]);
        let known_as = client.local_addr().unwrap();
        exchange(&mut server, &client, (at(HOST[family], 5353), to, known_as));
        let [any, loopback] = [["0.0.0.0", "127.0.0.1"], ["::", "::1"]][family];
        let client = datagrams(&host, any);
        let known_as = at(GATEWAY[family], client.local_addr().unwrap().port());
        exchange(&mut server, &client, (at(loopback, 5353), to, known_as));
        // To somebody who never asked it is the same endpoint.
        let other = datagrams(&outside, CLIENT[family]);
        server.send_datagram(to, other.local_addr().unwrap(), b"unasked");
        let (len, from) = other.recv_from(&mut [0; 99]).unwrap();
        assert_eq!((len, from), (7, at(HOST[family], 5353)));
    }
    let client = datagrams(&outside, CLIENT[0]);
    let known_as = client.local_addr().unwrap();
    let to = SocketAddr::new(server.addresses[0], 53);
    exchange(&mut server, &client, (at("192.0.2.77", 5353), to, known_as));
    // Another port of the host, which leads to the same one of the guest.
    let client = datagrams(&host, "127.0.0.1");
    let known_as = at(GATEWAY[0], client.local_addr().unwrap().port());
    exchange(&mut server, &client, (at("127.0.0.9", 6001), to, known_as));
    // The host's own addresses are for those only who have asked.
    let silent = datagrams(&host, "127.0.0.1");
    server.send_datagram(to, at(GATEWAY[0], silent.local_addr().unwrap().port()), b"unasked");
    silent.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(silent.recv_from(&mut [0; 9]).is_err());
    daemon.assert_alive();
}

#[test]
fn a_forward_to_the_only_guest_waits_for_one_and_does_not_choose() {
    let (host, outside) = spaces();
    let mut daemon = daemon(&host, &["tcp:2222:22"]);
    for _ in 0..3 {
        assert!(is_refused(&outside, at(HOST[0], 2222), PATIENCE));
    }
    let none = "tcp:2222:22: a client was refused: no such guest is known to have an IPv4 address yet";
    // Who reads the log may be late.
    daemon.wait_for_line(none);
    let mut server = Server::new(&daemon, "net.sock", 5);
    let to = SocketAddr::new(server.addresses[0], 22);
    let client = connect(&outside, at(HOST[0], 2222));
    let known_as = client.local_addr().unwrap();
    talk(&mut server, client, to, known_as);
    let other = Server::new(&daemon, "net.sock", 6);
    for _ in 0..3 {
        assert!(is_refused(&outside, at(HOST[0], 2222), PATIENCE));
    }
    let several = "there are several guests with IPv4";
    daemon.wait_for_line(several);
    drop(other);
    // It has gone when its port has.
    until("the other guest is not there", || !is_refused(&outside, at(HOST[0], 2222), Duration::from_millis(500)));
    let client = connect(&outside, at(HOST[0], 2222));
    let known_as = client.local_addr().unwrap();
    talk(&mut server, client, to, known_as);
    for text in [none, several] {
        assert_eq!(daemon.lines_with(text), 1, "{:#?}", daemon.log());
    }
    daemon.assert_alive();
}

/// A network with two declared ports and a worker for each.
fn two_workers(forwards: &str) -> String {
    let port = |name: &str| format!("[[network.port]]\nname = \"{name}\"\nsocket-path = \"DIR/{name}.sock\"\n");
    format!(
        "[[network]]\nname = \"net\"\nmode = \"nat\"\nworkers = 2\nsubnet6 = \"fd00:1::/64\"\nforward = [{forwards}]\n\
         [network.dhcp]\nleases = \"DIR/leases\"\n{}{}",
        port("a"),
        port("b")
    )
}

#[test]
fn guests_of_any_worker_are_reached_by_their_ports_names() {
    let (host, outside) = spaces();
    let text = two_workers("\"tcp:2001:a:22\", \"tcp:2002:b:22\", \"udp:3001:a:53\", \"udp:3002:b:53\"");
    let mut daemon = Daemon::of_file_in(&host, Stdio::null(), &text, "b.sock");
    let mut servers =
        [("a.sock", 5), ("b.sock", 6)].map(|(socket, number)| Server::new(&daemon, socket, number).known());
    for round in 0..4 {
        let (family, number) = (round / 2, round % 2);
        let server = &mut servers[number];
        let own = server.addresses[family];
        let client = connect(&outside, at(HOST[family], 2001 + number as u16));
        let known_as = client.local_addr().unwrap();
        talk(server, client, SocketAddr::new(own, 22), known_as);
        let client = datagrams(&outside, CLIENT[family]);
        let known_as = client.local_addr().unwrap();
        exchange(server, &client, (at(HOST[family], 3001 + number as u16), SocketAddr::new(own, 53), known_as));
    }
    // A VM that goes takes its connections with it.
    let [a, mut b] = servers;
    let (one, other) = (connect(&outside, at(HOST[0], 2001)), connect(&outside, at(HOST[0], 2002)));
    drop(a);
    assert_is_reset(one);
    let (to, known_as) = (SocketAddr::new(b.addresses[0], 22), other.local_addr().unwrap());
    talk(&mut b, other, to, known_as);
    daemon.assert_alive();
}

#[test]
fn other_forwards_are_there_when_the_file_was_read_again() {
    const DONE: &str = "the configuration was read again";
    let (host, outside) = spaces();
    let mut daemon = Daemon::of_file_in(&host, Stdio::null(), &two_workers("\"tcp:2001-2003:a:22\""), "a.sock");
    let first = Server::new(&daemon, "a.sock", 5).known();
    daemon.reload(&two_workers("\"tcp:2002:a:80\""), DONE);
    drop(first);
    let mut server = Server::new(&daemon, "a.sock", 5).known();
    let to = SocketAddr::new(server.addresses[0], 80);
    let client = connect(&outside, at(HOST[0], 2002));
    let known_as = client.local_addr().unwrap();
    talk(&mut server, client, to, known_as);
    let refused = outside.run(|| TcpStream::connect_timeout(&at(HOST[0], 2001), PATIENCE));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // A port that somebody has is no reason to be without those that there were.
    let _holder = host.run(|| TcpListener::bind(at("0.0.0.0", 2003)).unwrap());
    daemon.reload(&two_workers("\"tcp:2003:a:22\""), DONE);
    let line = format!("(process {}) has it", std::process::id());
    assert_eq!(daemon.lines_with(&line), 1, "{:#?}", daemon.log());
    drop(server);
    let mut server = Server::new(&daemon, "a.sock", 5).known();
    let client = connect(&outside, at(HOST[0], 2002));
    let known_as = client.local_addr().unwrap();
    talk(&mut server, client, to, known_as);
    daemon.assert_alive();
}

/// What the daemon says when it cannot start.
fn refusal(space: &Space, forward: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let words = space.enter();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_guestwire")).args(["nat", "--forward", forward, "--socket-path"]);
    command.arg(folder.path().join("net.sock")).arg("--leases").arg(folder.path().join("leases"));
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    // One that has ended already is not hurt by it.
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code().is_some_and(|code| code != 0), "{forward}: {text}");
    text
}

#[test]
fn a_port_that_cannot_be_had_is_an_error_that_says_whose_it_is() {
    let (host, _outside) = spaces();
    let [_tcp, _six] = ["0.0.0.0", "::1"].map(|address| host.run(|| TcpListener::bind(at(address, 2222)).unwrap()));
    let _udp = host.run(|| UdpSocket::bind(at(HOST[0], 5353)).unwrap());
    let own = std::process::id();
    for (forward, at) in [
        ("tcp:2222:22", "0.0.0.0:2222"),
        ("tcp:127.0.0.1:2220-2224:22", "127.0.0.1:2222"),
        ("tcp:[::]:2222:22", "[::]:2222"),
        ("udp:5353:53", "0.0.0.0:5353"),
    ] {
        let text = refusal(&host, forward);
        assert!(text.contains(&format!("the forward {forward} cannot have {at}: ")), "{text}");
        assert!(text.contains(&format!("(process {own}) has it; end that, or choose another port")), "{text}");
    }
    for (forward, says) in [
        ("tcp:192.0.2.50:80:80", "192.0.2.50 is none of the host's addresses"),
        ("udp:%nosuch:80:80", "cannot have 0.0.0.0:80 of nosuch: there is no such interface"),
        ("tcp:1-4000:1", "at most 4096 ports can be forwarded"),
    ] {
        let text = refusal(&host, forward);
        assert!(text.contains(says), "{forward}: {text}");
    }
}

#[test]
fn a_forward_of_an_interface_is_for_those_who_come_by_it() {
    let (host, outside) = spaces();
    let mut daemon = daemon(&host, &["tcp:%wan:2222:22", "tcp:%lo:2222:23", "udp:%wan:5353:53"]);
    let mut server = Server::new(&daemon, "net.sock", 5).known();
    let own = server.addresses[0];
    let client = connect(&outside, at(HOST[0], 2222));
    let known_as = client.local_addr().unwrap();
    talk(&mut server, client, SocketAddr::new(own, 22), known_as);
    let client = connect(&host, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 2222));
    let known_as = at(GATEWAY[0], client.local_addr().unwrap().port());
    talk(&mut server, client, SocketAddr::new(own, 23), known_as);
    let client = datagrams(&outside, CLIENT[0]);
    let known_as = client.local_addr().unwrap();
    exchange(&mut server, &client, (at(HOST[0], 5353), SocketAddr::new(own, 53), known_as));
    daemon.assert_alive();
}

/// Who asks, and for which address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    mac: [u8; 6],
    by: IpAddr,
    address: IpAddr,
}

impl Asked {
    /// Of a frame that asks all who has an address.
    fn parse(frame: &[u8]) -> Option<Self> {
        let mac: [u8; 6] = frame[6..12].try_into().unwrap();
        let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
        let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
        match (&frame[12..14], frame[20], frame[21]) {
            ([8, 6], 0, 1) => {
                assert_eq!((&frame[..6], &frame[22..28]), (&[0xff; 6][..], &mac[..]));
                Some(Self { mac, by: v4(28), address: v4(38) })
            }
            ([0x86, 0xdd], 58, 255) if frame[54] == 135 => {
                assert_eq!((&frame[..3], &frame[3..6]), (&[0x33, 0x33, 0xff][..], &frame[75..78]));
                assert_eq!((&frame[78..80], &frame[80..86]), (&[1, 1][..], &mac[..]));
                Some(Self { mac, by: v6(22), address: v6(62) })
            }
            _ => None,
        }
    }
}

impl Server {
    /// One with addresses of its own choice, which has sent nothing yet.
    fn silent(daemon: &Daemon, number: u8) -> Self {
        let guest = Guest::attach(&daemon.socket(), Config::usual(number));
        let addresses = [ip(&format!("10.0.2.{number}")), ip(&format!("fd00:1::{number}"))];
        Self { guest, gateway: [0; 6], addresses }
    }

    /// The next question who has an address that has come, if there is one.
    fn asked(&mut self) -> Option<Asked> {
        std::iter::from_fn(|| self.guest.poll(0)).find_map(|received| Asked::parse(&received.frame))
    }

    /// Answers to it that it has this address.
    fn says_it_has(&mut self, asked: &Asked, address: IpAddr) {
        let own = mac(self.guest.config.number);
        let mut frame = Vec::new();
        match (address, asked.by) {
            (IpAddr::V4(address), IpAddr::V4(by)) => {
                frame = [&asked.mac[..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
                frame.extend_from_slice(&[&own[..], &address.octets(), &asked.mac, &by.octets()].concat());
            }
            (IpAddr::V6(address), IpAddr::V6(by)) => {
                let header = etherparse::icmpv6::NeighborAdvertisementHeader {
                    router: false,
                    solicited: true,
                    r#override: true,
                };
                let kind = etherparse::Icmpv6Type::NeighborAdvertisement(header);
                let builder = PacketBuilder::ethernet2(own, asked.mac).ipv6(address.octets(), by.octets(), 255);
                builder.icmpv6(kind).write(&mut frame, &[&address.octets()[..], &[2, 1], &own].concat()).unwrap();
            }
            _ => panic!("{address} {asked:?}"),
        }
        self.guest.send(&frame);
    }

    /// A port of its own.
    fn port(&self, family: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses[family], port)
    }

    /// Waits until it is asked for an address by the gateway, and answers.
    #[track_caller]
    fn is_asked(&mut self, address: IpAddr) {
        let mut asked = None;
        until("a question", || {
            asked = self.asked();
            asked.is_some()
        });
        let asked = asked.unwrap();
        assert_eq!((asked.by, asked.address), (ip(GATEWAY[usize::from(address.is_ipv6())]), address));
        self.gateway = asked.mac;
        self.says_it_has(&asked, address);
    }
}

#[test]
fn a_guest_that_has_sent_nothing_is_asked_for_its_address() {
    let (host, outside) = spaces();
    let forwards = ["tcp:2222:10.0.2.77:22", "tcp:2222:[fd00:1::77]:22", "udp:53:10.0.2.78:5", "udp:53:[fd00:1::78]:5"];
    let flags = forwards.iter().flat_map(|forward| ["--forward", forward]);
    // It has the addresses from nobody.
    let flags: Vec<&str> = SUBNET6.into_iter().chain(["--port-security", "mac"]).chain(flags).collect();
    let mut daemon = Daemon::in_space(&host, "nat", &flags);
    let mut other = Server::silent(&daemon, 9);
    let mut server = Server::silent(&daemon, 77);
    for (family, host) in HOST.iter().enumerate() {
        let client = connect(&outside, at(host, 2222));
        server.is_asked(server.addresses[family]);
        let known_as = client.local_addr().unwrap();
        let to = server.port(family, 22);
        talk(&mut server, client, to, known_as);
        // It is known now: all that its neighbour hears is that one question.
        let client = connect(&outside, at(host, 2222));
        let known_as = client.local_addr().unwrap();
        let to = server.port(family, 22);
        talk(&mut server, client, to, known_as);
        assert_eq!(other.asked().map(|asked| asked.address), Some(server.addresses[family]));
        assert_eq!(other.asked(), None);
    }
    // Datagrams wait as well, those of several clients, in order.
    server.addresses = [ip("10.0.2.78"), ip("fd00:1::78")];
    for family in 0..2 {
        let clients = [0; 2].map(|_| datagrams(&outside, CLIENT[family]));
        for client in &clients {
            client.send_to(b"early", at(HOST[family], 53)).unwrap();
        }
        server.is_asked(server.addresses[family]);
        for client in &clients {
            let heard = server.hear("what came early", |heard| heard.payload == b"early");
            assert_eq!(heard.from, client.local_addr().unwrap());
        }
        let to = server.port(family, 5);
        exchange(&mut server, &clients[0], (at(HOST[family], 53), to, clients[0].local_addr().unwrap()));
    }
    daemon.assert_alive();
    assert_eq!(daemon.warnings(), Vec::<String>::new());
}

#[test]
fn a_guest_that_has_an_ipv6_address_from_nobody_is_asked_under_port_security() {
    let (host, outside) = spaces();
    let mut daemon = daemon(&host, &["tcp:2222:[fd00:1::77]:22"]);
    let mut server = Server::new(&daemon, "net.sock", 77);
    let client = connect(&outside, at(HOST[1], 2222));
    let known_as = client.local_addr().unwrap();
    server.is_asked(server.addresses[1]);
    let to = server.port(1, 22);
    talk(&mut server, client, to, known_as);
    daemon.assert_alive();
}

#[test]
fn clients_are_refused_when_nobody_answers_and_guests_are_not_asked_too_often() {
    let (host, outside) = spaces();
    let forwards = ["tcp:2222:10.0.2.77:22", "tcp:2223:10.0.2.77:23", "tcp:2224:10.0.2.9:24"];
    let flags = forwards.iter().flat_map(|forward| ["--forward", forward]);
    let flags: Vec<&str> = ["--subnet6", "off", "--port-security", "mac"].into_iter().chain(flags).collect();
    let mut daemon = Daemon::in_space(&host, "nat", &flags);
    let mut server = Server::silent(&daemon, 9);
    let (begin, mut asked) = (Instant::now(), Vec::new());
    let mut clients: Vec<TcpStream> = (0..40).map(|n| connect(&outside, at(HOST[0], 2222 + n % 2))).collect();
    clients.iter().for_each(|client| client.set_nonblocking(true).unwrap());
    until("all clients are refused", || {
        while let Some(question) = server.asked() {
            assert_eq!(question.address, ip("10.0.2.77"));
            asked.push(begin.elapsed());
            // An answer to another question is none to this one.
            server.says_it_has(&question, ip("10.0.2.78"));
        }
        clients.retain(|client| match client.peek(&mut [0]).map_err(|error| error.kind()) {
            Err(ErrorKind::WouldBlock) => true,
            outcome => {
                assert_eq!(outcome, Err(ErrorKind::ConnectionReset));
                false
            }
        });
        clients.is_empty()
    });
    assert_eq!(asked.len(), 3, "{asked:?}");
    // A second for each of them.
    assert!(begin.elapsed() >= Duration::from_secs(3), "{asked:?}");
    daemon.wait_for_line("tcp:2222:10.0.2.77:22: a client was refused: no guest answers who was asked for 10.0.2.77");
    // Others wait for nobody.
    let client = connect(&outside, at(HOST[0], 2224));
    let known_as = client.local_addr().unwrap();
    server.is_asked(server.addresses[0]);
    let to = server.port(0, 24);
    talk(&mut server, client, to, known_as);
    daemon.assert_alive();
}
