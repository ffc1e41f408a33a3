//! Hostile guests of a NAT network: what they do is refused and counted, holds up nobody else, and is given
//! back when they go.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::attacks::{ATTACKS, Attack, Attacker, BEHIND, Ends, Made, SPEAKS, WAITS, speak};
use crate::daemon::{Daemon, Facts, PATIENCE, until};
use crate::guest::mac;
use crate::nat::{GATEWAY, Talker, UPLINK, open, serve, world};
use crate::space::Space;

/// The machine beyond the host.
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
/// Where it answers.
const ANSWERS: u16 = 4000;

/// What is counted of so many frames of an attack, at the least: by the gateway, or by the guest's own port (`tx`).
fn counted(attack: Attack, frames: u64) -> (&'static str, u64) {
    match attack {
        Attack::Refused => ("tcp_closed", frames),
        // All but the half-open ones that a guest may have.
        Attack::Unanswered | Attack::HalfOpen => ("drop_rx_flow_limit", frames - 1024),
        // Of these it may have no more either until the guest has heard of them.
        Attack::ZeroWindow | Attack::NeverAcks => ("tcp_opened", frames / 2),
        Attack::Destinations | Attack::Pieces | Attack::Questions | Attack::Echoes => ("rx_frames", frames),
        // All but the one from a DHCP server's port.
        Attack::Endpoints => ("udp_opened", frames - 1),
        // Kinds of which there are that many among all: six of twelve, ten of twenty-four.
        Attack::Nonsense => ("drop_rx_bad_packet", frames / 12 * 6),
        Attack::Lies => ("drop_tx_bad_header", frames / 24 * 10),
    }
}

/// A hostile guest.
struct Hostile {
    talker: Talker,
    attacker: Attacker,
    /// What there was no room for.
    unsent: Option<Made>,
}

impl Hostile {
    fn new(daemon: &Daemon, number: u8) -> Self {
        let talker = Talker::new(daemon, number);
        let (address, gateway_mac) = (talker.address, talker.gateway);
        let ends = Ends { mac: mac(number), address, gateway_mac, gateway: GATEWAY, machine: MACHINE };
        Self { talker, attacker: Attacker::new(&ends), unsent: None }
    }

    /// Sends up to so many frames, as there is room. Returns how many.
    fn attack(&mut self, attack: Attack, most: u64) -> u64 {
        self.answer(attack);
        let mut count = 0;
        while count < most {
            let made = self.unsent.take().unwrap_or_else(|| self.attacker.next(attack));
            if !self.talker.guest.push(0, &made.0, &made.1, &[]) {
                self.unsent = Some(made);
                break;
            }
            count += 1;
        }
        self.talker.guest.transmit[0].publish();
        count
    }

    /// Answers what has come.
    fn answer(&mut self, attack: Attack) {
        for _ in 0..64 {
            let Some(heard) = self.talker.guest.poll(0) else { return };
            if let Some((header, frame)) = self.attacker.answer(attack, &heard.frame) {
                self.talker.guest.send_with(&header, &frame, &[]);
            }
        }
    }
}

/// The world of these attacks: the machine answers, lets others wait at the socket, and speaks to others.
fn hostile_world() -> (Daemon, [Space; 2], OwnedFd) {
    let (daemon, host, machine) = world(&[]);
    host.ip(&format!("route add {BEHIND} via {MACHINE}"));
    host.set("ipv4/ping_group_range", "0 2147483647");
    serve(&machine, b"answer");
    let waits = machine.run(|| {
        let any = SocketAddr::from(([0; 4], WAITS));
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        bind(&socket, &any).unwrap();
        listen(&socket, 2000).unwrap();
        socket
    });
    let speaks = machine.run(|| TcpListener::bind(("0.0.0.0", SPEAKS)).unwrap());
    std::thread::spawn(move || speak(&speaks));
    (daemon, [host, machine], waits)
}

/// A guest's whole conversation, from the SYN to the answer.
fn converse(talker: &mut Talker, port: u16) {
    let to = (MACHINE, ANSWERS);
    talker.tcp(port, to, (7, None), "S", b"");
    let heard = std::iter::repeat_with(|| talker.hear()).find(|heard| heard.to_port == port).unwrap();
    assert!(heard.syn && !heard.rst, "{heard:?}");
    talker.tcp(port, to, (8, Some(heard.seq + 1)), "", b"ask!");
    let answered = |heard: &crate::nat::Heard| heard.to_port == port && !heard.payload.is_empty();
    let answer = std::iter::repeat_with(|| talker.hear()).find(answered).unwrap();
    assert_eq!(answer.payload, b"answer");
    talker.tcp(port, to, (12, Some(answer.seq + 7)), "R", b"");
}

#[test]
fn each_attack_is_counted_and_given_back_and_the_neighbour_goes_on() {
    const FRAMES: u64 = 4000;
    let (mut daemon, _spaces, _waits) = hostile_world();
    let mut neighbour = Talker::new(&daemon, 1);
    converse(&mut neighbour, 1000);
    until("the conversation is over", || open(&daemon, "tcp") == 0);
    let quiet = daemon.facts();
    for (n, attack) in (0..).zip(ATTACKS) {
        let mut hostile = Hostile::new(&daemon, 2);
        let (name, least) = counted(attack, FRAMES);
        // Ports are numbered as they come, the neighbour's first.
        let counter = if name.starts_with("drop_tx") { 2 + n } else { UPLINK };
        let before = daemon.counters(counter)[name];
        let (mut sent, mut conversations, deadline) = (0, 0, Instant::now() + PATIENCE);
        while sent < FRAMES {
            assert!(Instant::now() < deadline, "{attack:?}: {sent} frames were taken");
            sent += hostile.attack(attack, 64.min(FRAMES - sent));
            if sent / 500 > conversations {
                converse(&mut neighbour, (2000 + 10 * n + conversations) as u16);
                conversations += 1;
            }
        }
        until("all connections that may be are there", || {
            !matches!(attack, Attack::ZeroWindow | Attack::NeverAcks) || {
                hostile.answer(attack);
                daemon.counters(UPLINK)[name] >= before + least
            }
        });
        daemon.expect_counter(counter, name, before + least);
        let Facts { rss_anon_kib, .. } = daemon.facts();
        assert!(rss_anon_kib < quiet.rss_anon_kib + 64 * 1024, "{attack:?}: {rss_anon_kib} KiB");
        drop(hostile);
        until(&format!("what is left of {attack:?} goes"), || {
            daemon.facts().fds == quiet.fds && open(&daemon, "tcp") + open(&daemon, "udp") == 0
        });
        assert!(conversations >= FRAMES / 500 - 1);
    }
    assert!(daemon.log().len() < 200, "nobody's attacks fill the log: {:#?}", daemon.log());
    daemon.assert_alive();
}
