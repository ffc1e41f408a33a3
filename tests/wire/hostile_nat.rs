//! Hostile guests of a NAT network: what they do is refused and counted, holds up nobody else, and is given
//! back when they go.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::daemon::{Daemon, Facts, PATIENCE, until};
use crate::nat::{GATEWAY, Talker, UPLINK, open, serve, world};
use crate::space::Space;

/// The machine beyond the host, and a network behind it, where nobody answers.
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const BEHIND: &str = "10.8.0.0/16";
/// Where it answers, and where it lets connections wait.
const ANSWERS: u16 = 4000;
const WAITS: u16 = 4001;

/// Where fields are in a frame of IPv4 without options.
const TO: usize = 30;
const FROM_PORT: usize = 34;
const TO_PORT: usize = 36;
const SEQ: usize = 38;
const ACK: usize = 42;
const FLAGS: usize = 47;
const WINDOW: usize = 48;

/// What a hostile guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// SYNs to a port that refuses all of them.
    Refused,
    /// SYNs to where nobody answers.
    Unanswered,
    /// SYNs to a port that takes them, and no word more.
    HalfOpen,
    /// Connections that are opened and have no room for anything, ever.
    ZeroWindow,
    /// A datagram to each of 65,536 destinations.
    Destinations,
    /// One from each of 65,535 ports.
    Endpoints,
    /// First pieces of packets, of which there are no others.
    Pieces,
    /// Questions for the name server.
    Questions,
    /// Echo requests with an identifier each.
    Echoes,
    /// Headers that lie, and packets that nobody may send.
    Nonsense,
}

const ATTACKS: [Attack; 10] = [
    Attack::Refused,
    Attack::Unanswered,
    Attack::HalfOpen,
    Attack::ZeroWindow,
    Attack::Destinations,
    Attack::Endpoints,
    Attack::Pieces,
    Attack::Questions,
    Attack::Echoes,
    Attack::Nonsense,
];

impl Attack {
    /// What the gateway counts of so many frames, at the least.
    fn counted(self, frames: u64) -> (&'static str, u64) {
        match self {
            Self::Refused => ("tcp_closed", frames / 2),
            // Beyond the half-open ones that a guest may have.
            Self::Unanswered | Self::HalfOpen => ("drop_rx_flow_limit", frames / 2),
            Self::ZeroWindow => ("tcp_opened", 1000),
            Self::Destinations => ("rx_frames", frames / 2),
            Self::Endpoints => ("udp_opened", frames * 9 / 10),
            Self::Pieces => ("rx_frames", frames - 1),
            Self::Questions => ("rx_frames", frames - 1),
            Self::Echoes => ("rx_frames", frames / 2),
            Self::Nonsense => ("drop_rx_bad_packet", frames / 3),
        }
    }
}

/// A hostile guest.
struct Hostile {
    talker: Talker,
    /// Frames to begin with, by attack.
    udp: Vec<u8>,
    tcp: Vec<u8>,
    echo: Vec<u8>,
    question: Vec<u8>,
    sent: u32,
}

impl Hostile {
    fn new(daemon: &Daemon, number: u8) -> Self {
        let talker = Talker::new(daemon, number);
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = Vec::new();
            write(&mut frame);
            frame
        };
        let udp = written(&|frame| talker.ip(MACHINE).udp(5000, 9).write(frame, b"flood").unwrap());
        let tcp = written(&|frame| talker.ip(MACHINE).tcp(5000, 9, 7, 0).syn().write(frame, b"").unwrap());
        let echo = written(&|frame| talker.ip(MACHINE).icmpv4_echo_request(1, 1).write(frame, b"flood").unwrap());
        let name = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07nothere\x00\x00\x01\x00\x01";
        let question = written(&|frame| talker.ip(GATEWAY).udp(5000, 53).write(frame, name).unwrap());
        Self { talker, udp, tcp, echo, question, sent: 0 }
    }

    /// The next frame of an attack.
    fn next(&mut self, attack: Attack) -> Vec<u8> {
        self.sent += 1;
        let n = self.sent;
        let word = |n: u32| (n as u16).to_be_bytes();
        let source = if matches!(attack, Attack::Questions) { &self.question } else { &self.udp };
        let mut frame = match attack {
            Attack::Refused | Attack::Unanswered | Attack::HalfOpen | Attack::ZeroWindow => self.tcp.clone(),
            Attack::Echoes => self.echo.clone(),
            _ => source.clone(),
        };
        match attack {
            Attack::Refused | Attack::Unanswered | Attack::HalfOpen | Attack::ZeroWindow => {
                let port = if attack == Attack::Refused { 9 } else { WAITS };
                frame[FROM_PORT..][..2].copy_from_slice(&word(1024 + n % 60_000));
                frame[TO_PORT..][..2].copy_from_slice(&port.to_be_bytes());
                if attack == Attack::Unanswered {
                    frame[TO..][..4].copy_from_slice(&[10, 8, 0, 9]);
                }
            }
            Attack::Destinations => frame[TO..][..4].copy_from_slice(&[10, 8, (n >> 8) as u8, n as u8]),
            Attack::Endpoints => frame[FROM_PORT..][..2].copy_from_slice(&word(n.max(1))),
            // An identification each, and more to come.
            Attack::Pieces => {
                frame[18..20].copy_from_slice(&word(n));
                frame[20..22].copy_from_slice(&[0x20, 0]);
                frame.truncate(42);
                frame[16..18].copy_from_slice(&28_u16.to_be_bytes());
            }
            Attack::Questions => {}
            Attack::Echoes => frame[38..40].copy_from_slice(&word(n)),
            Attack::Nonsense => self.spoil(&mut frame, n),
        }
        frame
    }

    /// Makes nonsense of a packet, by turns of all kinds.
    fn spoil(&self, frame: &mut Vec<u8>, n: u32) {
        match n % 12 {
            // IPv4's header length and total length, UDP's length, TCP's header length.
            0 => frame[14] = 0x44,
            1 => frame[14] = 0x4f,
            2 => frame[16] = 0xff,
            3 => frame[38..40].copy_from_slice(&[0xff; 2]),
            4 => frame[38..40].copy_from_slice(&[0, 7]),
            5 | 6 => {
                *frame = self.tcp.clone();
                frame[46] = if n % 12 == 5 { 0x10 } else { 0xf0 };
            }
            // Ports that there are none of.
            7 => frame[TO_PORT..][..2].fill(0),
            // Cut off.
            8 => frame.truncate(20),
            // From somebody else, to where nobody may go, of a protocol that nobody carries.
            9 => frame[26..30].copy_from_slice(&[192, 0, 2, 1]),
            10 => frame[TO..][..4]
                .copy_from_slice(&[[127, 0, 0, 1], [169, 254, 169, 254], [224, 0, 0, 1]][n as usize / 12 % 3]),
            _ => frame[23] = 47,
        }
    }

    /// Sends up to so many frames, as there is room. Returns how many.
    fn attack(&mut self, attack: Attack, most: u64) -> u64 {
        if attack == Attack::ZeroWindow {
            self.answer();
        }
        let mut count = 0;
        while count < most {
            let frame = self.next(attack);
            if !self.talker.guest.push(0, &[0; 12], &frame, &[]) {
                break;
            }
            count += 1;
        }
        self.talker.guest.transmit[0].publish();
        count
    }

    /// Accepts what it has been answered, with no room for anything.
    fn answer(&mut self) {
        for _ in 0..64 {
            let Some(heard) = self.talker.poll_tcp() else { return };
            if heard.syn {
                let mut frame = self.tcp.clone();
                frame[FROM_PORT..][..2].copy_from_slice(&heard.to_port.to_be_bytes());
                frame[TO_PORT..][..2].copy_from_slice(&heard.remote.1.to_be_bytes());
                frame[SEQ..][..4].copy_from_slice(&8_u32.to_be_bytes());
                frame[ACK..][..4].copy_from_slice(&(heard.seq + 1).to_be_bytes());
                frame[FLAGS] = 0x10;
                frame[WINDOW..][..2].fill(0);
                self.talker.guest.send(&frame);
            }
        }
    }
}

/// The world of these attacks: the machine answers, and lets others wait at the socket.
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
        let (name, least) = attack.counted(FRAMES);
        let before = daemon.counters(UPLINK)[name];
        let (mut sent, mut conversations, deadline) = (0, 0, Instant::now() + PATIENCE);
        while sent < FRAMES {
            assert!(Instant::now() < deadline, "{attack:?}: {sent} frames were taken");
            sent += hostile.attack(attack, 64.min(FRAMES - sent));
            if sent / 500 > conversations {
                converse(&mut neighbour, 2000 + 10 * n + conversations as u16);
                conversations += 1;
            }
        }
        until("all connections that may be are there", || {
            attack != Attack::ZeroWindow || {
                hostile.answer();
                daemon.counters(UPLINK)[name] >= before + least
            }
        });
        daemon.expect_counter(UPLINK, name, before + least);
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
