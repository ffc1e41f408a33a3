//! The engine: packets of guests into the host's sockets, and back.
//!
//! Theory of operation. One worker has one engine, for the guests of its ports. What those send to the gateway comes
//! by [`Engine::take_burst`]. The engine's sockets are watched by a poller of its own, whose descriptor the worker
//! watches ([`Engine::fd`]); what has happened to them is looked at in [`Engine::look`], and so is what is due by time.
//! What is for guests comes out in two ways: whole frames ([`Engine::frames`]), and offers of a connection's data,
//! which goes from the socket straight into the guest's buffers ([`Engine::offer`], [`Engine::supply`]).

#[cfg(test)]
pub(super) mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::Settings;
use super::carrier::{Departure, Row};
use super::dns::{self, Dns, Names};
use super::echo::{Echo, Query};
use super::efforts::Efforts;
use super::endpoints::Entry;
use super::forward::{Forwards, Porter};
use super::fragments::{First, Fragments};
use super::icmp::{Limits, Reason};
use super::id::{Id, Kind};
use super::out::{Frame, Guest, Out};
use super::packet::Packet;
use super::policy::{Policy, Way};
use super::sockets::Sockets;
use super::tcp::{Connection, Surroundings, Tcp};
pub use super::tcp::{Offer, Supply, Turnover};
use super::udp::{Source, Udp};
use crate::frame::ethernet::{MacAddr, be16};
use crate::frame::ip;
use crate::frame::offload::Offload;
use crate::frame::vnet::VnetHeader;
use crate::metrics::Counter;
use crate::ring::{Bytes, InPlace, VNET_HEADER_READ};
use crate::switch::PortId;
use crate::sys::poller::{Poller, READY_MAX, Ready, Trigger};

/// Times that the poller is asked in one go, while it has as much as it can tell.
const LOOKS_MAX: usize = 4;
/// Guests that have no room are looked at again after so long, in nanoseconds; each time in a row it is twice as long,
/// up to 2^[`STALLS_MAX`] times.
const STALL_NS: u64 = 50_000;
/// How often guests are told of the gateway, in nanoseconds: as often as routers may at the least (RFC 4861, 6.2.1).
const ADVERTISE_NS: u64 = 600_000_000_000;
const STALLS_MAX: u32 = 9;

/// See the module's theory of operation.
#[derive(Debug)]
pub struct Engine {
    gateway_mac: MacAddr,
    mtu: u16,
    policy: Policy,
    poller: Poller,
    sockets: Arc<Sockets>,
    forwards: Arc<Forwards>,
    /// Its number among the network's engines.
    number: usize,
    /// The first one's.
    porter: Option<Porter>,
    /// The guest, and its address, that were last told to `forwards`.
    noted: Option<(Guest, IpAddr)>,
    timer: TimerFd,
    /// When the timer goes off.
    armed_for: u64,
    /// When guests that have no room are looked at again.
    go_on_at: u64,
    /// How often in a row that was in vain.
    stalls: u32,
    /// What tells guests of the gateway, and when it is sent next.
    advertisement: Option<Vec<u8>>,
    advertise_at: u64,
    tcp: Tcp,
    udp: Udp,
    echo: Echo,
    limits: Limits,
    efforts: Efforts,
    fragments: Fragments,
    packets: u32,
    dns: Dns,
    row: Row,
    out: Out,
    taken: Vec<Frame>,
    happened: Vec<(u64, Ready)>,
}

impl Engine {
    /// An engine without connections, the one with this number among its network's, for guests whose names are these.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(
        settings: &Settings,
        names: Arc<dyn Names>,
        sockets: Arc<Sockets>,
        (forwards, number): (Arc<Forwards>, usize),
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        poller.add(&timer, Trigger::Edge, Id::TIMER)?;
        if let Some(fd) = forwards.letterbox_fd(number) {
            poller.add(fd, Trigger::Edge, Id::FIRST.token(Kind::Letterbox))?;
        }
        let porter = if number == 0 { Some(Porter::new(&forwards, &poller)?) } else { None };
        Ok(Self {
            gateway_mac: settings.gateway_mac,
            mtu: settings.mtu,
            policy: Policy::new(settings),
            poller,
            sockets,
            forwards,
            number,
            porter,
            noted: None,
            timer,
            armed_for: u64::MAX,
            go_on_at: u64::MAX,
            stalls: 0,
            advertisement: settings.advertisement.clone(),
            advertise_at: if settings.advertisement.is_some() { ADVERTISE_NS } else { u64::MAX },
            tcp: Tcp::new(settings.peek_offset),
            udp: Udp::new(),
            echo: Echo::new(),
            limits: Limits::default(),
            efforts: Efforts::default(),
            fragments: Fragments::default(),
            packets: 0,
            dns: Dns::new(settings, names),
            row: Row::default(),
            out: Out::default(),
            taken: Vec::new(),
            happened: Vec::new(),
        })
    }

    /// The protocols, and what they need of the rest.
    fn parts(&mut self, now: u64) -> (&mut Tcp, &mut Udp, &mut Echo, Surroundings<'_>) {
        let Self { policy, poller, sockets, forwards, tcp, udp, echo, out, packets, limits, efforts, .. } = self;
        let (gateway_mac, mtu) = (self.gateway_mac, self.mtu);
        let world =
            Surroundings { out, poller, policy, sockets, forwards, gateway_mac, mtu, now, packets, limits, efforts };
        (tcp, udp, echo, world)
    }

    fn dns_parts(&mut self, now: u64) -> (&mut Dns, &mut Tcp, Surroundings<'_>) {
        let Self { policy, poller, sockets, forwards, tcp, dns, out, packets, limits, efforts, .. } = self;
        let (gateway_mac, mtu) = (self.gateway_mac, self.mtu);
        let world =
            Surroundings { out, poller, policy, sockets, forwards, gateway_mac, mtu, now, packets, limits, efforts };
        (dns, tcp, world)
    }

    /// Readable when [`Self::look`] has something to look at.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    /// Takes a frame that the guest on a port has sent. `now` is a clock in nanoseconds.
    ///
    /// # Errors
    /// The counter of the reason why it goes no further.
    pub fn take(&mut self, port: PortId, offload: &Offload, bytes: &Bytes<'_>, now: u64) -> Result<(), Counter> {
        let mut result = Ok(());
        self.take_burst(port, [0].into_iter(), |_| (*offload, *bytes), now, |_, ended| result = ended);
        result
    }

    /// Takes those `frames` of a burst, each of which `view` shows. `ended` hears what became of each. Datagrams of one
    /// endpoint that follow one another are sent together.
    pub fn take_burst<'a>(
        &mut self,
        port: PortId,
        frames: impl Iterator<Item = usize>,
        view: impl Fn(usize) -> (Offload, Bytes<'a>),
        now: u64,
        mut ended: impl FnMut(usize, Result<(), Counter>),
    ) {
        let mut row = std::mem::take(&mut self.row);
        for frame in frames {
            let (offload, bytes) = view(frame);
            if !row.may_wait_for(&offload, &bytes) {
                self.depart(&mut row, &view, now, &mut ended);
            }
            match self.begin(port, &offload, &bytes, now) {
                Ok(None) => ended(frame, Ok(())),
                Err(reason) => ended(frame, Err(reason)),
                Ok(Some((id, departure))) => {
                    if !row.takes(id, &departure) {
                        self.depart(&mut row, &view, now, &mut ended);
                    }
                    row.push(id, Departure { frame, ..departure });
                }
            }
        }
        self.depart(&mut row, &view, now, &mut ended);
        self.row = row;
    }

    /// Sends what is in a row.
    fn depart<'a>(
        &mut self,
        row: &mut Row,
        view: &impl Fn(usize) -> (Offload, Bytes<'a>),
        now: u64,
        ended: &mut impl FnMut(usize, Result<(), Counter>),
    ) {
        if let Some((id, departures)) = row.all() {
            let (_, udp, _, mut world) = self.parts(now);
            udp.send_row(id, departures, |frame| view(frame).1, &mut world, ended);
            row.clear();
        }
    }

    /// Takes one. If it is a datagram that may go with others, that is left to be done.
    fn begin(
        &mut self,
        port: PortId,
        offload: &Offload,
        bytes: &Bytes<'_>,
        now: u64,
    ) -> Result<Option<(Id, Departure)>, Counter> {
        let head = bytes.head();
        if MacAddr::destination_of(head) != Some(self.gateway_mac) {
            // What is for all is the services'.
            return Err(Counter::DropRxFiltered);
        }
        if self.forwards.hear(port, (head, bytes.len()), &self.policy) {
            self.noted = None;
            return Ok(None);
        }
        let mut packet = Packet::parse(head, bytes.len(), offload).ok_or(Counter::DropRxBadPacket)?;
        if !self.policy.is_guests(packet.from) {
            return Err(Counter::DropRxForbidden);
        }
        if packet.is_fragment {
            self.give_up_pieces(now);
            let Some(whole) = self.fragments.take(port, &packet, bytes, now)? else { return Ok(None) };
            packet = Packet::parse(&whole, whole.len(), &Offload::None).ok_or(Counter::DropRxBadPacket)?;
            if packet.is_fragment {
                return Err(Counter::DropRxBadPacket);
            }
            // Its sender has cut it, and so may others.
            packet.is_to_stay_whole = false;
            let bytes = Bytes::private(&whole);
            let Some((id, departure)) = self.carry(port, &packet, (&Offload::None, &bytes), now)? else {
                return Ok(None);
            };
            let (mut result, (_, udp, _, mut world)) = (Ok(None), self.parts(now));
            udp.send_row(id, &[departure], |_| bytes, &mut world, |_, ended| result = ended.map(|()| None));
            return result;
        }
        self.carry(port, &packet, (offload, bytes), now)
    }

    /// Carries a packet that is whole. The guest is told if it goes no further.
    fn carry(
        &mut self,
        port: PortId,
        packet: &Packet,
        (offload, bytes): (&Offload, &Bytes<'_>),
        now: u64,
    ) -> Result<Option<(Id, Departure)>, Counter> {
        let guest = Guest { port, mac: packet.mac };
        self.dns.meet(guest, packet.from);
        // Where TCP and UDP have it; a frame that is too short for that is found out by either.
        let to_port = be16(bytes.head(), packet.transport + 2).unwrap_or_default();
        if self.is_question(packet, to_port) {
            return self.ask(guest, packet, offload, bytes, now).map(|()| None);
        }
        let target = self.target(packet);
        if !self.forwards.is_empty() && self.noted.replace((guest, packet.from)) != Some((guest, packet.from)) {
            self.forwards.note(guest, packet.from);
        }
        let (tcp, udp, echo, mut world) = self.parts(now);
        let result = match packet.protocol {
            _ if target == Err(Counter::DropRxHopLimit) => Err(Counter::DropRxHopLimit),
            ip::TCP => {
                let target = target.map(|target| SocketAddr::new(target, to_port));
                tcp.take(guest, packet, bytes, target, &mut world).map(|()| None)
            }
            ip::UDP => udp.take(guest, packet, (offload, bytes), target, &mut world),
            ip::ICMP | ip::ICMPV6 => {
                target.and_then(|target| echo.take(guest, packet, bytes, target, &mut world)).map(|()| None)
            }
            _ => Err(Counter::DropRxNotCarried),
        };
        if let Err(end @ (Counter::DropRxHopLimit | Counter::DropRxForbidden | Counter::DropRxFlowLimit)) = result {
            let reason = match (end, world.policy.way(packet.to), packet.protocol) {
                (Counter::DropRxHopLimit, ..) => Some(Reason::HopLimit),
                // For want of something too (RFC 5508, REQ-8).
                (Counter::DropRxFlowLimit, ..) | (_, Way::Forbidden, _) => Some(Reason::Prohibited),
                (_, Way::Gateway, ip::UDP) => Some(Reason::PortUnreachable),
                (_, Way::Gateway, ip::TCP) => {
                    tcp.refuse_packet(guest, packet, bytes, &mut world);
                    None
                }
                _ => None,
            };
            if let Some(reason) = reason {
                world.refuse(guest, packet, bytes.head(), reason);
            }
        }
        result
    }

    /// Gives up packets of which pieces have been missing for too long, and tells the guests that sent them.
    fn give_up_pieces(&mut self, now: u64) {
        for (port, First { packet, frame, .. }) in self.fragments.expire(now) {
            let (.., mut world) = self.parts(now);
            world.refuse(Guest { port, mac: packet.mac }, &packet, &frame, Reason::ReassemblyTime);
        }
    }

    /// Whether a packet is for the name server that we are.
    fn is_question(&self, packet: &Packet, to_port: u16) -> bool {
        matches!(packet.protocol, ip::TCP | ip::UDP) && to_port == dns::PORT && self.policy.is_gateway(packet.to)
    }

    /// Takes one that is.
    fn ask(
        &mut self,
        guest: Guest,
        packet: &Packet,
        offload: &Offload,
        bytes: &Bytes<'_>,
        now: u64,
    ) -> Result<(), Counter> {
        let (dns, tcp, mut world) = self.dns_parts(now);
        if packet.protocol == ip::UDP {
            return dns.take(guest, packet, (offload, bytes), &mut world);
        }
        let target = dns.target(guest.port, &world)?;
        tcp.take(guest, packet, bytes, Ok(target), &mut world)
    }

    fn target(&self, packet: &Packet) -> Result<IpAddr, Counter> {
        match self.policy.way(packet.to) {
            Way::Gateway => self.policy.loopback(packet.to).ok_or(Counter::DropRxForbidden),
            // It would have to be passed on.
            Way::Out(_) | Way::Forbidden if packet.hop_limit <= 1 => Err(Counter::DropRxHopLimit),
            Way::Out(to) => Ok(to),
            Way::Forbidden => Err(Counter::DropRxForbidden),
        }
    }

    /// All of a burst has been taken: acknowledges it. Returns whether it was dear: whether it has made sockets, or
    /// tried to.
    pub fn burst_ended(&mut self, now: u64) -> bool {
        let (tcp, .., mut world) = self.parts(now);
        tcp.acknowledge(&mut world);
        self.arm(now);
        self.efforts.end_burst()
    }

    /// Looks at what has happened, and at what is due.
    pub fn look(&mut self, now: u64) {
        let mut happened = std::mem::take(&mut self.happened);
        for _ in 0..LOOKS_MAX {
            happened.clear();
            // Fails for nothing that could be mended.
            let seen = self.poller.wait_for_sockets(|token, ready| happened.push((token, ready))).unwrap_or(0);
            for (token, ready) in &happened {
                self.heed(Id::from_token(*token), *ready, now);
            }
            if seen < READY_MAX {
                break;
            }
        }
        self.happened = happened;
        self.serve_doors(now);
        self.give_up_pieces(now);
        if self.go_on_at <= now {
            self.go_on_at = u64::MAX;
            self.tcp.go_on();
        }
        if self.advertise_at <= now
            && let Some(frame) = &self.advertisement
        {
            self.advertise_at = now + ADVERTISE_NS;
            self.efforts.note_nobodys();
            self.out.push(VnetHeader::default(), frame.clone());
        }
        let (tcp, udp, echo, mut world) = self.parts(now);
        tcp.timers(&mut world);
        tcp.acknowledge(&mut world);
        if udp.is_to_sweep(now) {
            udp.sweep(&mut world);
        }
        if echo.is_to_sweep(now) {
            echo.sweep(&mut world);
        }
        udp.receive(&mut world);
        echo.receive(&mut world);
        let (dns, _, mut world) = self.dns_parts(now);
        dns.timers(&mut world);
        self.arm(now);
    }

    fn heed(&mut self, (kind, id): (Kind, Id), ready: Ready, now: u64) {
        let number = self.number;
        let (tcp, udp, echo, mut world) = self.parts(now);
        match kind {
            Kind::Timer => {
                // Can only fail when it has not gone off.
                let _ = self.timer.wait();
                self.armed_for = u64::MAX;
            }
            Kind::Tcp => tcp.event(id, ready, &mut world),
            Kind::Udp => udp.event(id, ready, &mut world),
            Kind::Echo => echo.event(id, ready, &mut world),
            Kind::Door => self.porter.iter_mut().for_each(|porter| porter.event(id)),
            Kind::Letterbox => {
                world.forwards.take(number).into_iter().for_each(|client| tcp.accept(client, &mut world));
            }
            Kind::Dns | Kind::DnsListener | Kind::DnsStream => {
                let (dns, _, mut world) = self.dns_parts(now);
                dns.event(kind, id, &mut world);
            }
        }
    }

    /// Takes those in who have come to forwards.
    fn serve_doors(&mut self, now: u64) {
        let Some(mut porter) = self.porter.take() else { return };
        let number = self.number;
        let (tcp, .., mut world) = self.parts(now);
        porter.serve(number, tcp, &mut world);
        self.porter = Some(porter);
    }

    /// Has the timer go off when something is due.
    fn arm(&mut self, now: u64) {
        let porter = self.porter.as_ref().and_then(Porter::due);
        let due = self
            .tcp
            .due()
            .into_iter()
            .chain(self.udp.due())
            .chain(self.echo.due())
            .chain(porter)
            .chain(self.dns.due())
            .chain(self.fragments.due())
            .chain([self.go_on_at, self.advertise_at]);
        let due = due.min().unwrap_or(u64::MAX);
        if due < self.armed_for {
            let delay = i64::try_from(due.saturating_sub(now).max(1)).unwrap_or(i64::MAX);
            // Can only fail for times that there are none of.
            let _ = self.timer.set(Expiration::OneShot(TimeSpec::nanoseconds(delay)), TimerSetTimeFlags::empty());
            self.armed_for = due;
        }
    }

    /// Whether there is something for guests.
    pub fn has_any(&self) -> bool {
        !self.out.is_empty()
            || self.tcp.has_any()
            || self.udp.has_any()
            || self.echo.has_any()
            || self.porter.as_ref().is_some_and(Porter::has_any)
    }

    /// Hands up to `most` frames to `each`, with the virtio-net header of each, and returns how many.
    pub fn frames<R>(&mut self, most: usize, each: impl FnOnce(&[Frame]) -> R) -> Option<R> {
        self.out.take(most, &mut self.taken);
        let result = (!self.taken.is_empty()).then(|| each(&self.taken));
        self.out.put_back(&mut self.taken);
        result
    }

    /// The next connection that has something for its guest.
    pub fn offer(&mut self, now: u64) -> Option<Offer> {
        let (tcp, .., mut world) = self.parts(now);
        tcp.offer(&mut world)
    }

    /// The guest has no room for what it was offered: it is offered again when the guest has sent something, or a
    /// moment later.
    pub fn stall(&mut self, offer: &Offer, now: u64) {
        self.tcp.stall(offer);
        self.stalls = self.stalls.min(STALLS_MAX) + 1;
        self.go_on_at = self.go_on_at.min(now + (STALL_NS << self.stalls));
        self.arm(now);
    }

    /// Puts the next frame of an offer into the room that was lent for it, in which a frame may have `room` bytes.
    pub fn supply(&mut self, offer: &Offer, in_place: &mut InPlace, room: usize, now: u64) -> Supply {
        let (tcp, .., mut world) = self.parts(now);
        let supply = tcp.supply(offer, in_place, room, &mut world);
        if matches!(supply, Supply::Frame(..)) {
            self.stalls = 0;
        }
        supply
    }

    /// How many TCP connections, and UDP endpoints, there have been since this was last asked.
    pub fn turnover(&mut self) -> [Turnover; 2] {
        [self.tcp.turnover(), self.udp.turnover()]
    }

    /// Tells for which ports something has been done since this was last asked, and what part of all that was.
    pub fn efforts(&mut self, each: impl FnMut(PortId, f64)) {
        self.efforts.take(each);
    }

    /// A port has gone. Returns what it had open.
    pub fn port_ended(&mut self, port: PortId) -> Gone {
        let gone = Gone {
            connections: self.tcp.port_ended(port),
            _sources: self.udp.port_ended(port),
            _queries: self.echo.port_ended(port),
        };
        self.limits.port_ended(port);
        self.fragments.port_ended(port);
        self.forwards.forget(self.number, port);
        self.noted = None;
        self.dns.port_ended(port);
        self.efforts.port_ended(port);
        gone
    }
}

/// What a port that has gone had open: thousands of sockets, maybe, and to close them takes long.
#[derive(Debug)]
#[must_use = "it is closed where it is dropped, and connections are to be broken off"]
pub struct Gone {
    connections: Vec<Connection>,
    _sources: Vec<Entry<Source>>,
    _queries: Vec<Entry<Query>>,
}

impl Gone {
    /// Closes all of it. Peers hear that connections are broken off.
    pub fn close(self) {
        self.connections.into_iter().for_each(Connection::break_off);
    }
}

/// A frame and the virtio-net header before it.
impl Frame {
    /// The header.
    pub fn vnet(&self) -> [u8; VNET_HEADER_READ] {
        self.vnet
    }

    /// The frame.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
