//! The engine alone, with sockets of a kernel's, on a clock that goes as fast as a test likes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, PacketBuilder,
    PacketBuilderStep,
};
use guestwire::frame::ethernet::MacAddr;
use guestwire::frame::offload::Offload;
use guestwire::metrics::Counter;
use guestwire::nat::{Doors, Engine, Forwards, Frame, Names, Settings, Sockets};
use guestwire::ring::Bytes;
use guestwire::switch::PortId;
use nix::poll::{PollFd, PollFlags, poll};

use crate::daemon::until;
use crate::far::Far;
use crate::guest::mac;
use crate::heard::Heard;
use crate::space::Space;
use crate::station::segment;

const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 7);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 7);
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
            subnet6: Some("fd00:77::/64".parse().unwrap()),
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

    /// Whether the engine wakes who waits for it, within so many milliseconds.
    pub(crate) fn wakes_within(&self, time_ms: u16) -> bool {
        let mut fds = [PollFd::new(self.engine.fd(), PollFlags::POLLIN)];
        poll(&mut fds, time_ms).unwrap() > 0
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

    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<(), Counter> {
        let (now, engine) = (self.now(), &mut self.engine);
        self.space.run(|| {
            let taken = engine.take(PortId(1), &Offload::None, &Bytes::private(frame), now);
            engine.burst_ended(now);
            taken
        })
    }

    /// A frame with the first or the last of two pieces of a datagram of the guest's, which has this number.
    pub(crate) fn piece(to: IpAddr, number: u16, is_first: bool) -> Vec<u8> {
        // Each is eight bytes; the first is the datagram's header.
        let piece = if is_first { [5000, 9, 16, 0].map(u16::to_be_bytes) } else { [[7; 2]; 4] };
        let offset = IpFragOffset::try_new(u16::from(!is_first)).unwrap();
        let headers = match to {
            IpAddr::V4(to) => {
                let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, GUEST.octets(), to.octets()).unwrap();
                (header.identification, header.dont_fragment) = (number, false);
                (header.fragment_offset, header.more_fragments) = (offset, is_first);
                IpHeaders::Ipv4(header, Default::default())
            }
            IpAddr::V6(to) => {
                let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, is_first, number.into());
                let extensions = Ipv6Extensions { fragment: Some(fragment), ..Default::default() };
                let (source, destination) = (GUEST6.octets(), to.octets());
                let header = Ipv6Header { hop_limit: 64, source, destination, ..Default::default() };
                IpHeaders::Ipv6(header, extensions)
            }
        };
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2(mac(1), GATEWAY.0).ip(headers);
        packet.write(&mut frame, IpNumber::UDP, piece.as_flattened()).unwrap();
        frame
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
