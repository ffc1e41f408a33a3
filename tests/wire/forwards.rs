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
