//! NAT when the process may open nothing any more.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::daemon::{Daemon, PATIENCE, until};
use crate::nat::{Talker, UPLINK, open, world};

const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 7, 0, 2), 4000);
/// Where nobody takes what comes.
const OTHER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 7, 0, 2), 4001);
/// More than are left.
const TRIED: u16 = 100;
/// Descriptors that are left.
const LEFT: usize = 10;

/// Sets how many descriptors the daemon may have.
fn limit(daemon: &Daemon, descriptors: usize) {
    let (pid, limit) = (format!("--pid={}", daemon.pid()), format!("--nofile={descriptors}:"));
    assert!(Command::new("prlimit").args([pid, limit]).status().unwrap().success());
}

/// A connection of a guest's, which says something and hears it back.
pub(crate) struct Talk {
    port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) server: TcpStream,
}

impl Talk {
    pub(crate) fn begin(talker: &mut Talker, listener: &TcpListener, port: u16) -> Self {
        talker.tcp(port, SERVER, (7, None), "S", b"");
        let syn = std::iter::repeat_with(|| talker.hear()).find(|heard| heard.to_port == port && heard.syn).unwrap();
        let ack = syn.seq + 1;
        talker.tcp(port, SERVER, (8, Some(ack)), "", b"");
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { port, seq: 8, ack, server }
    }

    pub(crate) fn goes_on(&mut self, talker: &mut Talker, text: &[u8]) {
        talker.tcp(self.port, SERVER, (self.seq, Some(self.ack)), "", text);
        self.seq += text.len() as u32;
        let mut heard = vec![0; text.len()];
        self.server.read_exact(&mut heard).unwrap();
        self.server.write_all(&heard).unwrap();
        let is_it = |heard: &crate::nat::Heard| heard.to_port == self.port && !heard.payload.is_empty();
        let answer = std::iter::repeat_with(|| talker.hear()).find(is_it).unwrap();
        assert_eq!((answer.payload.as_slice(), answer.seq), (text, self.ack));
        self.ack += text.len() as u32;
        talker.tcp(self.port, SERVER, (self.seq, Some(self.ack)), "", b"");
    }
}

#[test]
fn without_descriptors_what_is_open_goes_on_and_what_is_new_is_refused() {
    let (mut daemon, host, machine) = world(&["--forward", "tcp:5000:80"]);
    let [listener, _other] = [SERVER, OTHER].map(|at| machine.run(|| TcpListener::bind(at).unwrap()));
    let mut talker = Talker::new(&daemon, 1);
    let mut old = Talk::begin(&mut talker, &listener, 1000);
    let before = daemon.facts().fds;
    limit(&daemon, before + LEFT);
    for n in 0..TRIED {
        talker.tcp(2000 + n, OTHER, (7, None), "S", b"");
        talker.udp(3000 + n, OTHER, b"hello");
    }
    until("some are refused", || daemon.counters(UPLINK)["drop_rx_flow_limit"] > u64::from(TRIED) / 2);
    // The limit is one of their numbers: there may have been gaps.
    assert!(daemon.facts().fds <= before + 2 * LEFT, "{:?}", daemon.facts());
    old.goes_on(&mut talker, b"as if nothing had happened");
    // Clients of a forward wait at the door, which wakes nobody again and again.
    let clients: Vec<_> = (0..4).map(|_| host.run(|| TcpStream::connect("10.7.0.1:5000").unwrap())).collect();
    std::thread::sleep(Duration::from_millis(500));
    let spent = daemon.cpu_ticks("worker-0");
    std::thread::sleep(Duration::from_secs(1));
    let spent = daemon.cpu_ticks("worker-0") - spent;
    assert!(spent <= 10, "{spent} ticks in a second");
    old.goes_on(&mut talker, b"still");
    // When there are some again, so are connections.
    limit(&daemon, before + 1000);
    let opened = open(&daemon, "tcp");
    let mut new = Talk::begin(&mut talker, &listener, 4000);
    new.goes_on(&mut talker, b"and this is new");
    assert!(open(&daemon, "tcp") > opened, "{:?}", daemon.counters(UPLINK));
    drop(clients);
    daemon.assert_alive();
}
