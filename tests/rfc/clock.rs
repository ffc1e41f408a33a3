//! The engine alone, with sockets of a kernel's, on a clock that goes as fast as a test likes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use guestwire::frame::ethernet::MacAddr;
use guestwire::frame::offload::Offload;
use guestwire::metrics::Counter;
use guestwire::nat::{Doors, Engine, Forwards, Frame, Names, Settings, Sockets};
use guestwire::ring::Bytes;
use guestwire::switch::PortId;

use crate::daemon::until;
use crate::far::Far;
use crate::guest::mac;
use crate::heard::Heard;
use crate::space::Space;
use crate::station::segment;

const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 7);
/// An address of the host's.
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SECOND: u64 = 1_000_000_000;
/// Frames that are taken in one go.
const FRAMES: usize = 64;

/// Guests have no names here.
#[derive(Debug)]
struct Nameless;

impl Names for Nameless {
    fn host(&self, _: &str) -> Option<(Ipv4Addr, Option<MacAddr>)> {
        None
    }

    fn name_at(&self, _: Ipv4Addr) -> Option<String> {
        None
    }

    fn name_of(&self, _: PortId, _: MacAddr) -> Option<String> {
        None
    }
}

pub(crate) struct Clock {
    space: Space,
    pub(crate) far: Far,
    pub(crate) engine: Engine,
    now_s: u64,
    heard: Vec<Heard>,
}

impl Clock {
    /// With so many sockets and no more.
    pub(crate) fn new(sockets: usize) -> Self {
        Self::peeking(sockets, true)
    }

    /// With so many sockets, on a kernel that reads what comes on a connection from an offset (SO_PEEK_OFF), or on one
    /// that does not know that of TCP (before Linux 6.9).
    pub(crate) fn peeking(sockets: usize, peek_offset: bool) -> Self {
        let space = Space::new();
        space.ip(&format!("address add {LOCAL}/32 dev lo"));
        space.set("ipv4/ping_group_range", "0 2147483647");
        let far = Far::new(&space);
        let settings = Settings {
            gateway_mac: GATEWAY,
            subnet: "10.0.2.0/24".parse().unwrap(),
            subnet6: None,
            domain: None,
            mtu: 1500,
            advertisement: None,
            forwards: Vec::new(),
            host_loopback: false,
            allow: Vec::new(),
            deny: Vec::new(),
            peek_offset,
        };
        let forwards = Forwards::new(Doors::default(), "net".to_owned(), 1, None).unwrap();
        let sockets = Sockets::new(sockets);
        let engine = Engine::new(&settings, Arc::new(Nameless), sockets, (forwards, 0)).unwrap();
        Self { space, far, engine, now_s: 1000, heard: Vec::new() }
    }

    pub(crate) fn now(&self) -> u64 {
        self.now_s * SECOND
    }

    /// Looks at what has happened.
    pub(crate) fn look(&mut self) {
        let now = self.now();
        self.engine.look(now);
        let heard = &mut self.heard;
        let mut take = |frames: &[Frame]| {
            heard.extend(frames.iter().filter_map(|frame| Heard::parse(frame.bytes())));
        };
        while self.engine.frames(FRAMES, &mut take).is_some() {}
    }

    /// Lets so many seconds pass, one after the other.
    pub(crate) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now_s += 1;
            self.look();
        }
    }

    /// What the guest has heard since this was last asked.
    pub(crate) fn heard(&mut self) -> Vec<Heard> {
        std::mem::take(&mut self.heard)
    }

    /// Waits, while no time passes, until the guest hears something of which `is_it` is true.
    #[track_caller]
    pub(crate) fn hear(&mut self, what: &str, is_it: impl Fn(&Heard) -> bool) -> Heard {
        let mut found = None;
        until(what, || {
            self.look();
            found = self.heard().into_iter().find(&is_it);
            found.is_some()
        });
        found.unwrap()
    }

    fn to(to: IpAddr) -> PacketBuilderStep<IpHeaders> {
        let IpAddr::V4(to) = to else { panic!("{to}") };
        PacketBuilder::ethernet2(mac(1), GATEWAY.0).ipv4(GUEST.octets(), to.octets(), 64)
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), Counter> {
        let (now, engine) = (self.now(), &mut self.engine);
        self.space.run(|| {
            let taken = engine.take(PortId(1), &Offload::None, &Bytes::private(frame), now);
            engine.burst_ended(now);
            taken
        })
    }

    pub(crate) fn udp(&mut self, from: u16, to: SocketAddr) -> Result<(), Counter> {
        let mut frame = Vec::new();
        Self::to(to.ip()).udp(from, to.port()).write(&mut frame, b"a datagram").unwrap();
        self.send(&frame)
    }

    /// Sends a segment with these flags: S, F.
    pub(crate) fn tcp(
        &mut self,
        from: u16,
        to: SocketAddr,
        numbers: (u32, Option<u32>),
        flags: &str,
    ) -> Result<(), Counter> {
        self.send(&segment(Self::to(to.ip()), (from, to.port()), numbers, flags, b""))
    }

    pub(crate) fn ping(&mut self, to: Ipv4Addr) -> Result<(), Counter> {
        let mut frame = Vec::new();
        Self::to(to.into()).icmpv4_echo_request(7, 1).write(&mut frame, b"hello").unwrap();
        self.send(&frame)
    }

    /// A listener of the host's.
    pub(crate) fn listener(&self) -> TcpListener {
        self.space.run(|| TcpListener::bind((LOCAL, 0)).unwrap())
    }

    /// Asks for a connection, with number 100. Returns the host's end, and what tells the guest that it is there.
    pub(crate) fn ask(&mut self, from: u16, listener: &TcpListener) -> (TcpStream, Heard) {
        self.tcp(from, listener.local_addr().unwrap(), (100, None), "S").unwrap();
        let there = self.hear("that it is there", |heard| heard.is_syn_ack() && heard.to.port() == from);
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        (stream, there)
    }

    /// The local ports, or identifiers, of the kernel's sockets of this kind.
    pub(crate) fn bound(&self, kind: &str) -> Vec<u16> {
        let text = self.space.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{kind}")).unwrap());
        let port = |line: &str| {
            let local = line.split_whitespace().nth(1).unwrap().to_owned();
            u16::from_str_radix(local.rsplit(':').next().unwrap(), 16).unwrap()
        };
        let mut ports: Vec<u16> = text.lines().skip(1).map(port).collect();
        ports.sort_unstable();
        ports
    }

    /// Waits, while no time passes, until these are all. Programs that other tests are about to run may hold a copy of
    /// what is closed for a moment.
    #[track_caller]
    pub(crate) fn until_bound(&self, kind: &str, expected: &[u16]) {
        until(&format!("{kind} of {expected:?}: {:?}", self.bound(kind)), || self.bound(kind) == expected);
    }
}
