//! What hostile guests of a NAT network send. The tests send it as fast as it is taken, `benches/compare` beside guests
//! that have work to do.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};

use etherparse::PacketBuilder;

/// A network behind the machine that is attacked, where nobody answers.
pub(crate) const BEHIND: &str = "10.8.0.0/16";
/// Where the machine refuses connections, lets them wait, and says something to all who come.
const REFUSES: u16 = 9;
pub(crate) const WAITS: u16 = 4001;
pub(crate) const SPEAKS: u16 = 4002;
/// What it says there: more than a segment, and less than what a socket takes at once.
const WORDS: [u8; 16 * 1024] = [b'x'; 16 * 1024];

/// Where fields are in a frame of IPv4 without options.
const TO: usize = 30;
const FROM_PORT: usize = 34;
const TO_PORT: usize = 36;
const SEQ: usize = 38;
const ACK: usize = 42;
const FLAGS: usize = 47;
const WINDOW: usize = 48;
/// The number that a connection begins with.
const ISN: u32 = 7;

/// What a hostile guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// SYNs to a port that refuses all of them.
    Refused,
    /// SYNs to where nobody answers.
    Unanswered,
    /// SYNs to a port that takes them, and no word more.
    HalfOpen,
    /// Connections on which much comes, and that have no room for anything, ever.
    ZeroWindow,
    /// The same with room, and nothing of what comes is acknowledged.
    NeverAcks,
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
    /// The same of what is before a packet and of who it comes from, and to the network's services.
    Lies,
}

pub(crate) const ATTACKS: [Attack; 12] = [
    Attack::Refused,
    Attack::Unanswered,
    Attack::HalfOpen,
    Attack::ZeroWindow,
    Attack::NeverAcks,
    Attack::Destinations,
    Attack::Endpoints,
    Attack::Pieces,
    Attack::Questions,
    Attack::Echoes,
    Attack::Nonsense,
    Attack::Lies,
];

/// A virtio-net header (virtio 1.3, 5.1.6), and a frame.
pub(crate) type Made = ([u8; 12], Vec<u8>);

/// Between whom an attacker's frames go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway_mac: [u8; 6],
    pub(crate) gateway: Ipv4Addr,
    pub(crate) machine: Ipv4Addr,
}

/// Makes a hostile guest's frames, one after the other.
pub(crate) struct Attacker {
    ends: Ends,
    /// Frames to begin with, by attack.
    udp: Vec<u8>,
    tcp: Vec<u8>,
    echo: Vec<u8>,
    question: Vec<u8>,
    made: u32,
}

impl Attacker {
    pub(crate) fn new(ends: &Ends) -> Self {
        let ip = |to: Ipv4Addr| {
            PacketBuilder::ethernet2(ends.mac, ends.gateway_mac).ipv4(ends.address.octets(), to.octets(), 64)
        };
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = Vec::new();
            write(&mut frame);
            frame
        };
        let udp = written(&|frame| ip(ends.machine).udp(5000, WAITS).write(frame, b"flood").unwrap());
        let tcp = written(&|frame| ip(ends.machine).tcp(5000, REFUSES, ISN, 0).syn().write(frame, b"").unwrap());
        let echo = written(&|frame| ip(ends.machine).icmpv4_echo_request(1, 1).write(frame, b"flood").unwrap());
        let name = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07nothere\x00\x00\x01\x00\x01";
        let question = written(&|frame| ip(ends.gateway).udp(5000, 53).write(frame, name).unwrap());
        Self { ends: *ends, udp, tcp, echo, question, made: 0 }
    }

    /// A datagram that does nobody any harm, the same each time.
    #[allow(dead_code, reason = "benches/compare has it")]
    pub(crate) fn harmless(&self) -> Made {
        ([0; 12], self.udp.clone())
    }

    /// The next frame of an attack.
    pub(crate) fn next(&mut self, attack: Attack) -> Made {
        self.made += 1;
        let n = self.made;
        let word = |n: u32| (n as u16).to_be_bytes();
        let frame = match attack {
            Attack::Refused => self.syn(n, REFUSES),
            Attack::HalfOpen => self.syn(n, WAITS),
            Attack::ZeroWindow | Attack::NeverAcks => self.syn(n, SPEAKS),
            Attack::Unanswered => with(&self.syn(n, WAITS), TO, &[10, 8, 0, 9]),
            Attack::Destinations => with(&self.udp, TO, &[10, 8, (n >> 8) as u8, n as u8]),
            Attack::Endpoints => with(&self.udp, FROM_PORT, &word(n.max(1))),
            // An identification each, and more to come.
            Attack::Pieces => {
                let mut frame = with(&with(&self.udp, 18, &word(n)), 20, &[0x20, 0]);
                frame.truncate(42);
                with(&frame, 16, &28_u16.to_be_bytes())
            }
            Attack::Questions => self.question.clone(),
            Attack::Echoes => with(&self.echo, 38, &word(n)),
            Attack::Nonsense => self.nonsense(n),
            Attack::Lies if n.is_multiple_of(2) => return self.header_lie(n / 2),
            Attack::Lies => self.lie(n / 2),
        };
        ([0; 12], frame)
    }

    /// The SYN of one of 60,000 connections to this port.
    fn syn(&self, n: u32, port: u16) -> Vec<u8> {
        let from = (1024 + n % 60_000) as u16;
        with(&with(&self.tcp, FROM_PORT, &from.to_be_bytes()), TO_PORT, &port.to_be_bytes())
    }

    /// By turns all kinds of it.
    fn nonsense(&self, n: u32) -> Vec<u8> {
        let Self { udp, tcp, .. } = self;
        match n % 12 {
            // IPv4's header length and total length, UDP's length, TCP's header length.
            0 => with(udp, 14, &[0x44]),
            1 => with(udp, 14, &[0x4f]),
            2 => with(udp, 16, &[0xff]),
            3 => with(udp, 38, &[0xff; 2]),
            4 => with(udp, 38, &[0, 7]),
            5 => with(tcp, 46, &[0x10]),
            6 => with(tcp, 46, &[0xf0]),
            // Ports that there are none of.
            7 => with(udp, TO_PORT, &[0; 2]),
            // Cut off.
            8 => udp[..20].to_vec(),
            // From somebody else, to where nobody may go, of a protocol that nobody carries.
            9 => with(udp, 26, &[192, 0, 2, 1]),
            10 => with(udp, TO, &[[127, 0, 0, 1], [169, 254, 169, 254], [224, 0, 0, 1]][n as usize / 12 % 3]),
            _ => with(udp, 23, &[47]),
        }
    }

    /// A virtio-net header that its frame does not go with: flags, kind, length of headers, size of segments, where a
    /// checksum is to begin, and where it is to be from there.
    fn header_lie(&self, n: u32) -> Made {
        let (frame, flags, kind, fields): (_, u8, u8, [u16; 4]) = match n % 12 {
            0 => (&self.tcp, 1, 0x7f, [54, 1460, 34, 16]),
            1 => (&self.tcp, 1, 1, [54, 0, 34, 16]),
            2 => (&self.tcp, 1, 1, [54, 1, 34, 16]),
            3 => (&self.udp, 1, 1, [54, 100, 34, 16]),
            4 => (&self.tcp, 1, 4, [54, 100, 34, 16]),
            5 => (&self.tcp, 1, 5, [54, 100, 34, 16]),
            6 => (&self.tcp, 1, 0x80, [54, 100, 34, 16]),
            7 => (&self.tcp, 1, 1, [u16::MAX, 100, 34, 16]),
            8 => (&self.udp, 1, 0, [0, 0, u16::MAX, 6]),
            9 => (&self.udp, 1, 0, [0, 0, 34, u16::MAX]),
            10 => (&self.udp, 1, 0, [0, 0, 40, 6]),
            _ => (&self.udp, 0xff, 0xff, [u16::MAX; 4]),
        };
        let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..10].as_chunks_mut().0.iter_mut().zip(fields).for_each(|(place, field)| *place = field.to_le_bytes());
        (header, frame.clone())
    }

    /// One about who sends, or about what there is for the network's services.
    fn lie(&self, n: u32) -> Vec<u8> {
        let Self { ends, udp, .. } = self;
        let to_all = |kind: [u8; 2], payload: &[u8]| [&[0xff; 6][..], &ends.mac, &kind, payload].concat();
        let arp = |lens: [u8; 2], operation, address: Ipv4Addr| {
            let head = [&[0, 1, 8, 0][..], &lens, &[0, operation], &ends.mac, &address.octets()].concat();
            to_all([8, 6], &[&head[..], &[0; 6], &address.octets(), &[0; 18]].concat())
        };
        let to_service = |to: [u8; 4], ports: (u16, u16), payload: &[u8]| {
            let ip = PacketBuilder::ethernet2(ends.mac, ends.gateway_mac).ipv4(ends.address.octets(), to, 64);
            let mut frame = Vec::new();
            ip.udp(ports.0, ports.1).write(&mut frame, payload).unwrap();
            frame
        };
        match n % 16 {
            // From a group, from nobody, from the gateway, from somebody else each time.
            0 => with(udp, 6, &[0x01, 0, 0x5e, 0, 0, 1]),
            1 => with(udp, 6, &[0; 6]),
            2 => with(udp, 6, &ends.gateway_mac),
            3 => with(udp, 6, &[&[0x52, 0x55][..], &n.to_be_bytes()].concat()),
            // To a bridge, with tags in tags, and too short.
            4 => with(udp, 0, &[0x01, 0x80, 0xc2, 0, 0, 0]),
            5 => to_all([0x81, 0], &[&[0, 5, 0x81, 0, 0, 6][..], &[0x88, 0xa8], &[0; 50]].concat()),
            6 => udp[..13].to_vec(),
            // ARP: lengths that are none, and whose addresses the gateway's and a group's are.
            7 => arp([255, 255], 1, ends.address),
            8 => arp([6, 4], 2, ends.gateway),
            9 => arp([6, 4], 1, Ipv4Addr::BROADCAST),
            // DHCP: nothing, options that go on behind the end.
            10 => to_service([255; 4], (68, 67), b""),
            11 => {
                to_service([255; 4], (68, 67), &[&[1, 1, 6, 0][..], &[0; 232], &[99, 130, 83, 99, 53, 255, 1]].concat())
            }
            // DNS: a name that points to itself, more questions than there are.
            12 => with(&self.question, 54, &[0xc0, 12]),
            13 => with(&self.question, 46, &[0xff; 8]),
            // ICMP: an error about a packet that is none, a redirect.
            14 => with(&self.echo, 34, &[3, 4, 0, 0, 0, 0, 0, 0]),
            _ => with(&self.echo, 34, &[5, 1, 0, 0, 10, 0, 2, 9]),
        }
    }

    /// What it has to say to a frame that has come: it takes a connection, on its conditions.
    pub(crate) fn answer(&self, attack: Attack, heard: &[u8]) -> Option<Made> {
        let window: u16 = match attack {
            Attack::ZeroWindow => 0,
            Attack::NeverAcks => u16::MAX,
            _ => return None,
        };
        // A SYN, of TCP over IPv4.
        let is_syn = heard.len() > WINDOW && heard[12..14] == [8, 0] && heard[23] == 6 && heard[FLAGS] & 2 != 0;
        if !is_syn {
            return None;
        }
        let seq = u32::from_be_bytes(heard[SEQ..ACK].try_into().ok()?);
        let frame = with(&with(&self.tcp, FROM_PORT, &heard[TO_PORT..SEQ]), TO_PORT, &heard[FROM_PORT..TO_PORT]);
        let frame = with(&with(&frame, SEQ, &(ISN + 1).to_be_bytes()), ACK, &(seq.wrapping_add(1)).to_be_bytes());
        Some(([0; 12], with(&with(&frame, FLAGS, &[0x10]), WINDOW, &window.to_be_bytes())))
    }
}

/// A frame with other bytes at one place. Checksums stay as they were: what is carried on is summed anew.
fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..][..bytes.len()].copy_from_slice(bytes);
    frame
}

/// Says something to all who come, and is done with them: what they do not take stays with their host.
pub(crate) fn speak(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        // Whoever has gone already hears nothing.
        let _ = stream.write_all(&WORDS);
    }
}
