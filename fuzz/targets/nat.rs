//! Two guests behind a gateway that is made of the sockets of a host which has a loopback interface and nothing else:
//! packets that are right, packets that are changed in some of their bytes, and bytes; listeners, clients of forwards,
//! and time. Each frame for a guest is right in all that any guest would check, no byte of a stream or a datagram
//! changes, no window shrinks, and when the guests have gone nothing of theirs is left.
#![no_main]

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;

use guestwire::frame::arp::{Arp, REQUEST};
use guestwire::frame::ethernet::{HEADER_LEN, MacAddr, TYPE_ARP};
use guestwire::frame::ip::{ICMPV6, TCP, UDP};
use guestwire::frame::ndp::NEIGHBOUR_SOLICITATION;
use guestwire::frame::offload::{self, Offload, Offloads};
use guestwire::frame::vnet::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHeader};
use guestwire::nat::{Doors, Engine, Forwards, Names, Settings, Sockets, Supply};
use guestwire::ring::{BURST_FRAMES_MAX, Bytes, InPlace, VNET_HEADER_READ};
use guestwire::switch::PortId;
use guestwire_fuzz::loopback::{DATAGRAMS, HOST, Listeners, STREAMS, Stream, byte, isolate, stream};
use guestwire_fuzz::packet::{Ends, Heard, Segment};
use guestwire_fuzz::receiver::Receiver;
use guestwire_fuzz::{Input, canary};
use libfuzzer_sys::fuzz_target;

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MTU: u16 = 1500;
const STEPS_MAX: usize = 64;
/// Sockets that guests may have at once: few, so that there are too few now and then.
const SOCKETS_MAX: usize = 24;
/// Ports of the host that lead to guests.
const DOORS: [&str; 2] = ["tcp:127.0.0.1:8000:10.0.2.11:80", "udp:127.0.0.1:8001:10.0.2.11:81"];
const CLIENTS_MAX: usize = 4;
const SECOND: u64 = 1_000_000_000;
/// Turns in which all that an input can bring about has happened.
const TURNS_MAX: usize = 200;
/// Bytes of frames that one step may bring guests: what waits at the most, and answers to what was sent.
const BYTES_PER_STEP_MAX: usize = 8 << 20;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

#[derive(Debug)]
struct Nobody;

impl Names for Nobody {
    fn host(&self, name: &str) -> Option<(Ipv4Addr, Option<MacAddr>)> {
        (name == "web").then_some((Ipv4Addr::new(10, 0, 2, 7), None))
    }

    fn name_at(&self, _: Ipv4Addr) -> Option<String> {
        None
    }

    fn name_of(&self, _: PortId, _: MacAddr) -> Option<String> {
        None
    }
}

fn settings(flags: u8) -> Settings {
    let forwards = if flags & 1 != 0 { &DOORS[..] } else { &[] };
    Settings {
        gateway_mac: MacAddr(GATEWAY_MAC),
        subnet: "10.0.2.0/24".parse().expect("a subnet"),
        subnet6: "fd00::/64".parse().ok(),
        domain: None,
        mtu: MTU,
        forwards: forwards.iter().map(|text| text.parse().expect("a forward")).collect(),
        host_loopback: flags & 2 != 0,
        allow: Vec::new(),
        deny: vec!["10.7.0.9/32".parse().expect("a range")],
        peek_offset: flags & 4 == 0,
        advertisement: None,
    }
}

/// A connection as the guest knows it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    ends: Ends,
    ports: (u16, u16),
    /// The guest's first number, and how many bytes it has said.
    iss: u32,
    said: u32,
    /// The other side's first number, and the next one.
    irs: Option<u32>,
    next: u32,
    is_scaled: bool,
    /// The end of the room that it was told.
    told: Option<u32>,
}

/// What is there for the whole run.
struct Rest {
    listeners: Listeners,
    receiver: Receiver,
    in_place: InPlace,
    /// Descriptors of an engine without guests, by the flags of its settings.
    descriptors: [Option<usize>; 8],
}

thread_local! {
    static REST: RefCell<Rest> = RefCell::new(Rest {
        listeners: Listeners::open(),
        receiver: Receiver::default(),
        in_place: InPlace::default(),
        descriptors: [None; 8],
    });
}

/// Descriptors of the process, that which counts them among them.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("our own").count()
}

fuzz_target!(init: isolate(), |data: &[u8]| {
    if !canary(data) {
        REST.with_borrow_mut(|rest| run(data, rest));
    }
});

fn run(data: &[u8], rest: &mut Rest) {
    let mut input = Input::new(data);
    let flags = input.u8() & 7;
    let mut world = World::new(flags, rest);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    let (opened, closed) = world.end();
    let left = descriptors();
    assert_eq!(left, *world.rest.descriptors[usize::from(flags)].get_or_insert(left), "descriptors");
    assert_eq!(opened, closed, "connections and endpoints");
    drop(world);
    rest.listeners.clear();
}

struct World<'a> {
    engine: Engine,
    forwards: Arc<Forwards>,
    rest: &'a mut Rest,
    now: u64,
    flows: Vec<Flow>,
    streams: Vec<Stream>,
    clients: Vec<UdpSocket>,
    /// Whether guests have sent what contradicts what else they say.
    is_honest: bool,
    has_forwards: bool,
    /// The datagrams that were sent, either way.
    datagrams: HashSet<Vec<u8>>,
    /// Whether guests take data.
    has_room: bool,
    turnover: (u64, u64),
    bytes: usize,
}

impl<'a> World<'a> {
    fn new(flags: u8, rest: &'a mut Rest) -> Self {
        let settings = settings(flags);
        let doors = Doors::open(&settings).expect("nobody else has these ports");
        let forwards = Forwards::new(doors, "fuzz".to_owned(), 1, None).expect("descriptors");
        let sockets = Sockets::new(SOCKETS_MAX);
        let engine = Engine::new(&settings, Arc::new(Nobody), sockets, (forwards.clone(), 0)).expect("descriptors");
        // What an engine has that nobody uses: the first input's that has such settings.
        rest.descriptors[usize::from(flags)].get_or_insert_with(descriptors);
        for port in [1, 2] {
            forwards.port_came(PortId(port), 0, None);
        }
        Self {
            engine,
            forwards,
            rest,
            now: SECOND,
            flows: Vec::new(),
            streams: Vec::new(),
            clients: Vec::new(),
            is_honest: true,
            has_forwards: flags & 1 != 0,
            datagrams: HashSet::new(),
            has_room: true,
            turnover: (0, 0),
            bytes: 0,
        }
    }

    /// One thing that a guest, the host or a client does.
    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        self.now += u64::from(what >> 4) * 1000;
        self.bytes = 0;
        match what & 15 {
            0 => self.connect(input),
            1 | 2 => self.say(input),
            3 => self.speak(input),
            4 => self.datagram(input),
            5 => self.echo(input),
            6 => self.question(input),
            7 => self.change(input),
            8 => self.piece(input),
            9 => self.super_frame(input),
            10 | 11 => self.host(input),
            12 => self.client(input),
            13 => self.time(input),
            14 => self.has_room = input.u8() & 1 != 0,
            _ => {
                let port = PortId(1 + u16::from(input.u8() & 1));
                self.forwards.port_ended(port);
                self.engine.port_ended(port).close();
                self.flows.retain(|flow| port_of(&flow.ends) != port);
                self.forwards.port_came(port, 0, None);
            }
        }
        self.turn();
    }

    /// From one of the guests to one of those that there are, or are not.
    fn ends(&self, choice: u8) -> Ends {
        let (guest, is_v4, hop_limit) = (choice & 1, choice & 2 == 0, if choice & 0xe0 == 0xe0 { 1 } else { 64 });
        let to = match (choice >> 2 & 7, is_v4) {
            (0..4, _) => HOST[usize::from(!is_v4)],
            (4, true) => "10.0.2.1",
            (4, false) => "fd00::1",
            (5, true) => "203.0.113.9",
            (5, false) => "2001:db8::9",
            (6, true) => "10.7.0.9",
            (6, false) => "fe80::1",
            (_, true) => "127.0.0.1",
            (_, false) => "::ffff:10.7.0.2",
        };
        let from = if is_v4 { format!("10.0.2.1{}", 1 + guest) } else { format!("fd00::1{}", 1 + guest) };
        let [from, to] = [from.as_str(), to].map(|text| text.parse().expect("an address"));
        Ends { mac: [0x52, 0, 0, 0, 0, guest], to_mac: GATEWAY_MAC, from, to, hop_limit }
    }

    /// Gives the engine a frame of a guest's.
    fn send(&mut self, ends: &Ends, frame: &[u8], offload: &Offload) {
        // However it ends, it is told by a counter.
        let _ = self.engine.take(port_of(ends), offload, &Bytes::private(frame), self.now);
        self.engine.burst_ended(self.now);
    }

    fn segment(&mut self, flow: &Flow, seq: u32, (flags, window): (u8, u16), options: &[u8], payload: &[u8]) {
        let ack = if flags & ACK != 0 { flow.next } else { 0 };
        let segment = Segment { ports: flow.ports, seq, ack, flags, window, payload: 0 };
        let tcp = flow.ends.tcp(&segment, options, payload);
        self.send(&flow.ends, &flow.ends.packet(TCP, &tcp), &Offload::None);
    }

    /// A guest asks for a connection.
    fn connect(&mut self, input: &mut Input<'_>) {
        let (choice, kind) = (input.u8(), input.u8());
        let ends = self.ends(choice);
        let to = match kind & 3 {
            3 if ends.to == self.ends(choice & 3 | 16).to => 53,
            3 => STREAMS + 7,
            _ => STREAMS,
        };
        let (ports, iss) = ((1000 + u16::from(kind >> 2 & 7), to), u32::from(input.u16()) << 16 | 0xff00);
        let flow = Flow { ends, ports, iss, said: 0, irs: None, next: 0, is_scaled: false, told: None };
        let options: &[u8] = match kind >> 5 & 3 {
            0 => &[2, 4, 5, 180, 1, 3, 3, 7],
            1 => &[2, 4, 0, 1, 1, 3, 3, 14],
            2 => &[2, 4, 5, 180],
            _ => &[],
        };
        let before = self.flows.len();
        self.flows.retain(|other| (other.ends.from, other.ports, other.ends.to) != (ends.from, ports, ends.to));
        // What it says of one may be taken for what it says of the other.
        self.is_honest &= self.flows.len() == before;
        self.flows.push(flow);
        self.segment(&flow, iss, (SYN, if kind & 0x80 == 0 { 65_535 } else { 0 }), options, &[]);
    }

    fn flow(&self, choice: u8) -> Option<usize> {
        (usize::from(choice) % self.flows.len().max(1) < self.flows.len())
            .then(|| usize::from(choice) % self.flows.len())
    }

    /// A guest says more of its stream, or some of it again, or some of it too early.
    fn say(&mut self, input: &mut Input<'_>) {
        let (choice, shift, len) = (input.u8(), input.u8() as i8, usize::from(input.u16() & 2047));
        let Some(i) = self.flow(choice) else { return };
        let flow = self.flows[i];
        let at = flow.said.saturating_add_signed(shift.into());
        let flags = if choice & 0x80 == 0 { ACK | PSH } else { ACK | PSH | FIN };
        self.is_honest &= choice & 0x80 == 0;
        if shift <= 0 {
            self.flows[i].said = flow.said.max(at.wrapping_add(len as u32));
        }
        self.segment(&flow, flow.iss.wrapping_add(1).wrapping_add(at), (flags, 4096), &[], &stream(at, len));
    }

    /// A guest says anything but bytes: acknowledgements, ends, resets.
    fn speak(&mut self, input: &mut Input<'_>) {
        let (choice, flags, window) = (input.u8(), input.u8(), input.u16());
        let Some(i) = self.flow(choice) else { return };
        let mut flow = self.flows[i];
        let seq = flow.iss.wrapping_add(1).wrapping_add(flow.said);
        let (seq, options): (u32, &[u8]) = if flags & SYN != 0 { (flow.iss, &[2, 4, 5, 180]) } else { (seq, &[]) };
        if choice & 0x40 != 0 {
            flow.next = flow.next.wrapping_add_signed(i32::from(input.u8() as i8) << (choice >> 3 & 7));
        }
        self.is_honest &= flags & (SYN | FIN) == 0;
        self.segment(&flow, seq, (flags & 63, window), options, &[]);
    }

    /// Where datagrams go.
    fn datagram_ports(&self, choice: u8) -> (u16, u16) {
        let to = if choice & 0x40 == 0 { DATAGRAMS } else { DATAGRAMS + 7 };
        (if choice & 0x80 == 0 { 81 } else { 2000 + u16::from(choice >> 3 & 7) }, to)
    }

    /// A guest sends a datagram, whole or in pieces.
    fn datagram(&mut self, input: &mut Input<'_>) {
        let (choice, cut, len) = (input.u8(), input.u8(), usize::from(input.u16() & 8191));
        let (ends, ports) = (self.ends(choice), self.datagram_ports(cut));
        let payload = stream(input.u8().into(), len);
        let datagram = ends.udp(ports, &payload);
        self.datagrams.insert(payload);
        if datagram.len() <= 1400 {
            return self.send(&ends, &ends.packet(UDP, &datagram), &Offload::None);
        }
        let piece = 1024 + usize::from(cut & 7) * 8;
        let mut pieces: Vec<Vec<u8>> = datagram
            .chunks(piece)
            .enumerate()
            .map(|(n, bytes)| ends.fragment(UDP, n * piece, (n + 1) * piece >= datagram.len(), bytes))
            .collect();
        let turn = usize::from(cut) % pieces.len();
        pieces.rotate_left(turn);
        for frame in pieces {
            self.send(&ends, &frame, &Offload::None);
        }
    }

    fn echo(&mut self, input: &mut Input<'_>) {
        let (choice, id, len) = (input.u8(), input.u8(), usize::from(input.u16() & 2047));
        let ends = self.ends(choice);
        let (protocol, message) = ends.echo(id.into(), &stream(0, len));
        if len <= 1400 {
            return self.send(&ends, &ends.packet(protocol, &message), &Offload::None);
        }
        for (at, is_last) in [(0, false), (1024, true)] {
            let part = &message[at..if is_last { message.len() } else { 1024 }];
            self.send(&ends, &ends.fragment(protocol, at, is_last, part), &Offload::None);
        }
    }

    /// A guest asks the gateway for a name.
    fn question(&mut self, input: &mut Input<'_>) {
        let (choice, kind) = (input.u8(), input.u8());
        let names: [&[u8]; 4] = [b"\x03web\x00", b"\x07example\x03com\x00", b"\x01x\x05local\x00", b""];
        let name = names[usize::from(kind & 3)];
        let len = usize::from(input.u8());
        let name = if name.is_empty() { input.bytes(len) } else { name };
        let message = [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[0, kind >> 2, 0, 1]].concat();
        let ends = self.ends(choice & 3 | 16);
        if let Some(i) = self.flow(choice >> 2).filter(|_| choice & 0x80 != 0)
            && self.flows[i].ports.1 == 53
        {
            let flow = self.flows[i];
            let bytes = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
            self.flows[i].said = flow.said.wrapping_add(bytes.len() as u32);
            let seq = flow.iss.wrapping_add(1).wrapping_add(flow.said);
            return self.segment(&flow, seq, (ACK | PSH, 4096), &[], &bytes);
        }
        let datagram = ends.udp((3000 + u16::from(kind), 53), &message);
        self.send(&ends, &ends.packet(UDP, &datagram), &Offload::None);
    }

    /// A packet in which some bytes are others, or one of nothing but the input's.
    fn change(&mut self, input: &mut Input<'_>) {
        let (choice, kind, len) = (input.u8(), input.u8(), usize::from(input.u8()));
        let ends = self.ends(choice);
        let mut frame = match kind & 3 {
            0 => ends.packet(UDP, &ends.udp(self.datagram_ports(kind), &stream(0, len))),
            1 => {
                let ports = self.flow(choice).map_or((1000, STREAMS), |i| self.flows[i].ports);
                let segment = Segment { ports, seq: 0xff01, ack: 0, flags: ACK, window: 9, payload: 0 };
                ends.packet(TCP, &ends.tcp(&segment, &[1, 1, 1, 0], &stream(0, len)))
            }
            2 => {
                let (protocol, message) = ends.echo(kind.into(), &stream(0, len));
                ends.packet(protocol, &message)
            }
            _ => [&GATEWAY_MAC[..], &ends.mac, input.bytes(len)].concat(),
        };
        for _ in 0..kind >> 6 {
            let at = usize::from(input.u8()) % frame.len();
            frame[at] = input.u8();
        }
        if kind & 4 != 0 {
            frame.truncate(usize::from(input.u8()));
        }
        self.is_honest = false;
        self.send(&ends, &frame, &Offload::None);
    }

    /// A piece of a packet, which may fit no other.
    fn piece(&mut self, input: &mut Input<'_>) {
        let (choice, protocol, at) = (input.u8(), input.u8(), usize::from(input.u16() & 0x1fff) * 8);
        let len = usize::from(input.u16() & 2047);
        let ends = self.ends(choice);
        let protocol = [UDP, TCP, 1, 58, protocol][usize::from(protocol & 7).min(4)];
        self.is_honest = false;
        self.send(&ends, &ends.fragment(protocol, at, choice & 0x80 != 0, &stream(0, len)), &Offload::None);
    }

    /// Several segments or datagrams in one frame, which a virtio-net header tells of.
    fn super_frame(&mut self, input: &mut Input<'_>) {
        let (choice, size, len) = (input.u8(), input.u16(), usize::from(input.u16() & 0x7fff));
        let is_udp = choice & 0x80 != 0;
        let (frame, ends) = if is_udp {
            let ends = self.ends(choice & 0x1f);
            (ends.packet(UDP, &ends.udp(self.datagram_ports(choice), &stream(0, len))), ends)
        } else {
            let Some(i) = self.flow(choice) else { return };
            let flow = self.flows[i];
            let seq = flow.iss.wrapping_add(1).wrapping_add(flow.said);
            let segment = Segment { ports: flow.ports, seq, ack: flow.next, flags: ACK, window: 4096, payload: 0 };
            self.flows[i].said = flow.said.wrapping_add(len as u32);
            (flow.ends.packet(TCP, &flow.ends.tcp(&segment, &[], &stream(flow.said, len))), flow.ends)
        };
        self.is_honest &= !is_udp;
        let network = if ends.from.is_ipv4() { 34 } else { 54 };
        let vnet = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: match ends.from {
                _ if is_udp => GSO_UDP_L4,
                IpAddr::V4(_) => GSO_TCPV4,
                IpAddr::V6(_) => GSO_TCPV6,
            },
            hdr_len: network + if is_udp { 8 } else { 20 },
            gso_size: size,
            csum_start: network,
            csum_offset: if is_udp { 6 } else { 16 },
        };
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso4: true, uso6: true };
        if let Ok(offload) = offload::validate(&vnet, &frame, frame.len(), all) {
            self.send(&ends, &frame, &offload);
        }
    }

    /// The host does something.
    fn host(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        self.streams.extend(self.rest.listeners.accept());
        let count = self.streams.len();
        let (is_honest, datagrams) = (self.is_honest, &self.datagrams);
        self.rest.listeners.answer(|bytes| assert!(!is_honest || datagrams.contains(bytes), "{bytes:02x?}"));
        if count == 0 {
            return;
        }
        let at = usize::from(what >> 3) % count;
        match what & 7 {
            0..3 => self.streams[at].write(usize::from(input.u16())),
            3..5 => assert!(self.streams[at].read() || !self.is_honest, "what a guest said has changed"),
            5 => self.streams[at].end(),
            6 => drop(self.streams.remove(at)),
            _ => (0..4).for_each(|_| self.streams[at].write(usize::MAX)),
        }
    }

    /// Somebody comes to a forward.
    fn client(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        if !self.has_forwards || self.clients.len() + self.streams.len() > CLIENTS_MAX {
            return;
        }
        if what & 1 == 0 {
            self.streams.extend(Stream::connect((Ipv4Addr::LOCALHOST.into(), 8000)));
            return;
        }
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let payload = stream(what.into(), usize::from(input.u16() & 8191));
        // The gateway may have no room for it.
        let _ = socket.send_to(&payload, (Ipv4Addr::LOCALHOST, 8001));
        self.datagrams.insert(payload);
        self.clients.push(socket);
    }

    fn time(&mut self, input: &mut Input<'_>) {
        let n = u64::from(input.u8());
        self.now += n * if n & 1 == 0 { SECOND / 100 } else { SECOND * 16 };
    }

    /// The worker's turn: what there is for guests is brought to them.
    fn turn(&mut self) {
        for _ in 0..TURNS_MAX {
            self.engine.look(self.now);
            let mut frames: Vec<([u8; VNET_HEADER_READ], Vec<u8>)> = Vec::new();
            let copy = |frame: &guestwire::nat::Frame| (frame.vnet(), frame.bytes().to_vec());
            self.engine.frames(BURST_FRAMES_MAX, |taken| frames.extend(taken.iter().map(copy)));
            let count = frames.len() + self.supply();
            frames.iter().for_each(|(vnet, frame)| self.hear(*vnet, frame));
            for turnover in self.engine.turnover() {
                self.turnover.0 += turnover.opened;
                self.turnover.1 += turnover.closed;
            }
            if count == 0 && !self.engine.has_any() {
                return;
            }
            if count == 0 && !self.has_room {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Data of connections. Returns the number of frames.
    fn supply(&mut self) -> usize {
        let Some(offer) = self.engine.offer(self.now) else { return 0 };
        let room = if self.has_room { self.rest.receiver.lend(&mut self.rest.in_place, offer.len) } else { 0 };
        if room < offer.len.min(usize::from(MTU) + 14) {
            self.engine.stall(&offer, self.now);
            return 0;
        }
        let Supply::Frame(len, vnet) = self.engine.supply(&offer, &mut self.rest.in_place, room, self.now) else {
            return 0;
        };
        assert!(len <= room && len <= offer.len);
        let burst = self.rest.in_place.frame(vnet, len);
        self.rest.receiver.take(&burst.bytes(0));
        let mut frame = Vec::new();
        burst.bytes(0).copy_out(&mut frame);
        self.rest.in_place.release();
        self.hear(vnet, &frame);
        1
    }

    /// A guest is sent a frame.
    fn hear(&mut self, vnet: [u8; VNET_HEADER_READ], frame: &[u8]) {
        self.bytes += frame.len();
        assert!(self.bytes < BYTES_PER_STEP_MAX, "a step brings more and more");
        assert_eq!(MacAddr::source_of(frame), Some(MacAddr(GATEWAY_MAC)));
        if frame[12..14] == TYPE_ARP.to_be_bytes() {
            return hear_question(frame);
        }
        let heard = Heard::read(vnet, frame, MTU.into());
        assert!(!heard.from.is_loopback() && !heard.from.is_unspecified(), "{heard:02x?}");
        let is_question = heard.protocol == ICMPV6 && heard.payload[0] == NEIGHBOUR_SOLICITATION;
        let group = if is_question { "ff02::1:ff" } else { "fd00::" };
        let is_guests = heard.to.to_string().starts_with(if heard.to.is_ipv4() { "10.0.2." } else { group });
        assert!(is_guests, "{heard:02x?}");
        if heard.protocol == UDP && !heard.is_fragment && heard.ports().0 == DATAGRAMS && self.is_honest {
            assert!(self.datagrams.contains(&heard.payload[8..]), "a datagram has changed");
        }
        if let Some(segment) = heard.segment() {
            self.hear_segment(&heard, &segment);
        }
    }

    fn hear_segment(&mut self, heard: &Heard<'_>, segment: &Segment) {
        let (from_port, to_port) = segment.ports;
        let ends = Ends { from: heard.to, to: heard.from, ..self.ends(heard.to.to_string().ends_with('2').into()) };
        let is_its = |flow: &&mut Flow| {
            (flow.ends.from, flow.ends.to, flow.ports) == (heard.to, heard.from, (to_port, from_port))
        };
        let Some(flow) = self.flows.iter_mut().find(is_its) else {
            if segment.flags & (SYN | ACK) == SYN && to_port == 80 {
                let (ports, next) = ((to_port, from_port), segment.seq.wrapping_add(1));
                let irs = Some(segment.seq);
                let flow = Flow { ends, ports, iss: 0xff00, said: 0, irs, next, is_scaled: true, told: None };
                self.flows.push(flow);
            }
            return;
        };
        if segment.flags & (SYN | RST) != 0 {
            let has_scale = segment.payload >= 28;
            (flow.told, flow.is_scaled) = (None, has_scale);
            if segment.flags & SYN != 0 {
                (flow.irs, flow.next) = (Some(segment.seq), segment.seq.wrapping_add(1));
            }
            return;
        }
        let edge = segment.ack.wrapping_add(u32::from(segment.window) << if flow.is_scaled { 8 } else { 0 });
        let Some(irs) = flow.irs else { return };
        // A second SYN may have said another thing of scales.
        if self.is_honest && to_port != 80 {
            let told = flow.told.replace(edge).unwrap_or(edge);
            assert!(edge.wrapping_sub(told) < 1 << 31, "the window shrinks from {told} to {edge}");
        }
        let payload = &heard.payload[segment.payload..];
        let at = segment.seq.wrapping_sub(irs.wrapping_add(1));
        if from_port == STREAMS || to_port == 80 {
            let is_right = (0..).zip(payload).all(|(n, found)| byte(at.wrapping_add(n)) == *found);
            assert!(is_right, "what the host said has changed, at {at}");
        }
        let end = segment.seq.wrapping_add(payload.len() as u32 + u32::from(segment.flags & FIN));
        if segment.seq == flow.next {
            flow.next = end;
        }
    }

    /// All that guests had is taken from them. Returns how many connections and endpoints have begun and ended.
    fn end(&mut self) -> (u64, u64) {
        for port in [1, 2].map(PortId) {
            self.forwards.port_ended(port);
            self.engine.port_ended(port).close();
        }
        self.streams.clear();
        self.clients.clear();
        (self.bytes, self.has_room) = (0, true);
        self.turn();
        assert!(!self.engine.has_any());
        self.turnover
    }
}

fn port_of(ends: &Ends) -> PortId {
    PortId(1 + u16::from(ends.mac[5] & 1))
}

/// The gateway asks all guests who has an address.
fn hear_question(frame: &[u8]) {
    let arp = Arp::parse(frame, HEADER_LEN).unwrap_or_else(|| panic!("no ARP: {frame:02x?}"));
    assert!(frame[..6] == [0xff; 6] && arp.operation == REQUEST && arp.sender_mac == MacAddr(GATEWAY_MAC));
    assert!(arp.target.octets()[..3] == [10, 0, 2] && arp.target != arp.sender, "{arp:?}");
}
