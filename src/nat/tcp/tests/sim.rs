//! Many connections, one after the other, each with its own weather: what must hold is asked after each step.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use super::super::super::seq::Seq;
use super::super::acks::WAIT_NS;
use super::super::mirror::{Fate, Inside, Mirror, Timer};
use super::super::segment::{ACK, FIN, HEADER_LEN, Header, RST, SYN, SYN_OPTIONS_MAX, Segment};
use super::flight::{Flight, Flying};
use super::guest::{Guest, State};
use super::host::{CAPACITY_MIN, Socket};
use super::weather::{Weather, habits, weather};
use super::{MICRO, MILLI, Rng, SECOND, Stream};
use crate::ring::Bytes;

const STEPS: u64 = 1_000_000;
const SEED: u64 = 793;
const OWN_MSS: u16 = 1460;
/// No side says more than so many small pieces.
const PIECES_MAX: u32 = 200;
/// The longest burst.
pub(super) const BURST_MAX: u64 = 10 * MICRO;
/// How soon the poller tells of something.
const TELLS_MAX: u64 = 20 * MICRO;
/// So many frames in a row may be lost while the guest acknowledges nothing new: fewer than make it given up.
const LOSSES_MAX: u32 = 4;

/// Who has broken it off first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    Guest,
    Peer,
    Nobody,
}

/// One connection.
#[derive(Debug)]
pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) weather: Weather,
    pub(super) now: u64,
    pub(super) steps: u32,
    pub(super) calm_at: Option<u64>,
    pub(super) guest: Guest,
    pub(super) socket: Socket,
    pub(super) mirror: Option<Mirror>,
    fate: Option<Fate>,
    had_mirror: bool,
    breaker: Breaker,
    pub(super) isn: Seq,
    flying: BinaryHeap<Reverse<Flying>>,
    sent: u64,
    losses: u32,
    connects_at: Option<u64>,
    acts_at: u64,
    /// How long applications wait that have nothing to do.
    pause: u64,
    acks_at: Option<u64>,
    pub(super) supplies_at: Option<u64>,
    timer_at: Option<u64>,
    /// When the poller tells of what has come to the socket: once, by edges.
    pub(super) tells_at: Option<u64>,
    /// Whether it has told that nothing follows.
    is_last: bool,
    /// Since when the guest is owed an acknowledgement.
    pub(super) owes_since: Option<u64>,
    pub(super) before: Option<Inside>,
    told: Option<Seq>,
}

impl World {
    fn new(rng: &mut Rng, source: &std::rc::Rc<[u8]>) -> Self {
        let weather = weather(rng);
        let habits = habits(rng);
        let capacity = rng.one_of(&[256, 1000, 4000, 65_535, 300_000]).max(1 << habits.scale.unwrap_or(0));
        let most = rng.one_of(&[0, 1, 100, 3000, 3000, 20_000, 20_000, 200_000]);
        let piece = u32::from(habits.mss.unwrap_or(536).max(88)).min(capacity);
        let [says, hears] = [habits.frame_max.min(CAPACITY_MIN), piece].map(|piece| {
            let len = rng.range(0, most.min(piece * PIECES_MAX));
            Stream::new(source.clone(), len, rng)
        });
        let guest = Guest::new(Rng::new(rng.next()), habits, says.clone(), hears.clone(), capacity);
        let capacity = CAPACITY_MIN * rng.one_of(&[1, 1, 4, 20, 400]);
        let mut socket = Socket::new(Rng::new(rng.next()), says, hears, capacity);
        socket.is_moody = rng.happens(300);
        let mut world = Self {
            rng: Rng::new(rng.next()),
            weather,
            now: rng.below(1 << 50),
            steps: 0,
            calm_at: None,
            guest,
            socket,
            mirror: None,
            fate: None,
            had_mirror: false,
            breaker: Breaker::Nobody,
            isn: Seq((rng.next() as u32) | if rng.happens(300) { 0xffff_f000 } else { 0 }),
            flying: BinaryHeap::new(),
            sent: 0,
            losses: 0,
            connects_at: None,
            acts_at: 0,
            pause: MILLI,
            acks_at: None,
            supplies_at: None,
            timer_at: None,
            tells_at: None,
            is_last: false,
            owes_since: None,
            before: None,
            told: None,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.acts_at = self.now;
        if self.weather.is_asked_for {
            self.guest.connect(self.now);
        } else {
            let mut mirror = Mirror::to_guest(self.isn, self.now);
            let header = mirror.syn(OWN_MSS, &mut self.socket);
            (self.mirror, self.had_mirror) = (Some(mirror), true);
            self.emit(&header, &[]);
        }
        self.carry();
    }

    /// Puts a frame on its way.
    fn fly(&mut self, flight: Flight) {
        let rough = self.calm_at.is_none();
        if rough && self.losses < LOSSES_MAX && self.rng.happens(self.weather.loses) {
            self.losses += 1;
            return;
        }
        // Without delays what was sent first arrives first.
        let delay = match self.weather.delays {
            delays if rough && self.rng.happens(delays) => self.rng.below(20 * MILLI),
            1.. if rough => self.rng.below(20 * MICRO),
            _ => 20 * MICRO,
        };
        let at = self.now + delay;
        self.sent += 1;
        if rough && self.rng.happens(self.weather.doubles) {
            let again = match &flight {
                Flight::ToGuest(frame) => Flight::ToGuest(frame.clone()),
                Flight::ToHost(frame) => Flight::ToHost(frame.clone()),
            };
            let later = at + self.rng.below(MILLI);
            self.flying.push(Reverse(Flying { order: (later, self.sent), flight: again }));
            self.sent += 1;
        }
        self.flying.push(Reverse(Flying { order: (at, self.sent), flight }));
    }

    /// Sends the guest a segment.
    fn emit(&mut self, header: &Header, payload: &[u8]) {
        let mut head = [0; HEADER_LEN + SYN_OPTIONS_MAX];
        let len = header.emit(2, 1, &mut head);
        self.fly(Flight::ToGuest([&head[..len], payload].concat()));
        let Some(mirror) = &self.mirror else { return };
        let inside = mirror.inside();
        if header.flags & (SYN | RST) == 0 {
            // The window never shrinks, and is what the mirror believes that it told.
            let scale = if inside.is_scaled { 8 } else { 0 };
            let edge = header.ack.plus(u32::from(header.window) << scale);
            assert!(self.told.is_none_or(|told| !edge.is_before(told)), "the window shrinks to {edge:?}");
            assert_eq!(edge, inside.edge, "what was told");
            assert_eq!(header.ack, inside.next);
            self.told = Some(edge);
        }
    }

    /// What the guest has sent goes on its way.
    fn carry(&mut self) {
        for frame in std::mem::take(&mut self.guest.out) {
            self.fly(Flight::ToHost(frame));
        }
    }

    fn due(&self) -> u64 {
        let flight = self.flying.peek().map(|Reverse(flying)| flying.order.0);
        let mirror = self.mirror.as_ref().map(Mirror::due);
        let rest = [self.connects_at, self.tells_at, self.acks_at, self.supplies_at, flight, mirror];
        rest.into_iter().flatten().fold(self.guest.due().min(self.acts_at), u64::min)
    }

    fn step(&mut self) {
        self.steps += 1;
        if self.steps == self.weather.rough {
            (self.calm_at, self.acts_at) = (Some(self.now), self.now);
            // So much that what cannot be said in its window's units is little of it.
            self.guest.capacity = self.guest.capacity.max(4096).max(64 << self.guest.habits.scale.unwrap_or(0));
        }
        self.now = self.now.max(self.due());
        let now = self.now;
        let is_due = |at: Option<u64>| at.is_some_and(|at| at <= now);
        if is_due(self.connects_at) {
            self.connects_at = None;
            self.connect();
        } else if is_due(self.flying.peek().map(|Reverse(flying)| flying.order.0)) {
            match self.flying.pop().map(|Reverse(flying)| flying.flight) {
                Some(Flight::ToGuest(frame)) => self.guest.receive(&frame, now),
                Some(Flight::ToHost(frame)) => self.receive(&frame),
                None => {}
            }
        } else if is_due(self.tells_at) {
            self.tells_at = None;
            self.tell();
        } else if is_due(self.acks_at) {
            self.acks_at = None;
            self.acknowledge();
        } else if is_due(self.supplies_at) {
            self.supplies_at = None;
            self.supply();
        } else if is_due(self.mirror.as_ref().map(Mirror::due)) {
            self.timer();
        } else if self.guest.due() <= now {
            self.guest.timer(now);
        } else {
            self.act();
        }
        self.carry();
        self.check();
    }

    /// The kernel has connected, or failed to.
    fn connect(&mut self) {
        let Some(mirror) = &mut self.mirror else { return };
        if self.weather.is_refused {
            self.breaker = Breaker::Peer;
            self.socket.is_broken = true;
            return self.settle(Fate::Failed);
        }
        let header = mirror.connected(OWN_MSS, &mut self.socket, self.now);
        self.emit(&header, &[]);
        self.settle(Fate::Lives);
    }

    /// A segment of the guest's.
    pub(super) fn receive(&mut self, frame: &[u8]) {
        let segment = Segment::parse(frame, 0, frame.len()).unwrap();
        let Some(mirror) = &mut self.mirror else {
            if !self.had_mirror && segment.flags & (SYN | ACK | RST) == SYN {
                self.mirror = Some(Mirror::asked_for(&segment, self.isn, self.now));
                self.had_mirror = true;
                let after = self.rng.below(100 * MILLI) << if self.rng.happens(50) { 8 } else { 0 };
                self.connects_at = Some(self.now + after);
                return self.settle(Fate::Lives);
            }
            return self.refuse(&segment);
        };
        if segment.has(SYN) && mirror.is_same_syn(&segment) {
            let header = mirror.syn(OWN_MSS, &mut self.socket);
            return self.emit(&header, &[]);
        }
        let before = mirror.inside().una;
        let fate = mirror.segment(&segment, &Bytes::private(frame), &mut self.socket, self.now);
        if mirror.inside().una != before {
            self.losses = 0;
        }
        if fate == Fate::Stray {
            self.refuse(&segment);
        }
        self.settle(fate);
    }

    /// There is no such connection, or not any more.
    fn refuse(&mut self, segment: &Segment) {
        if segment.has(RST) {
            return;
        }
        let len = segment.len() + u32::from(segment.has(SYN)) + u32::from(segment.has(FIN));
        let (seq, ack, flags) = match segment.ack {
            Some(ack) => (ack, Seq(0), RST),
            None => (Seq(0), segment.seq.plus(len), RST | ACK),
        };
        self.emit(&Header { seq, ack, flags, window: 0, mss: None, scale: None }, &[]);
    }

    /// Does what follows from a change, as those do who have the mirror.
    fn settle(&mut self, fate: Fate) {
        let Some(mirror) = &mut self.mirror else { return };
        match fate {
            Fate::Broken => return self.end(fate),
            Fate::Failed => {
                let header = mirror.reset_header();
                self.emit(&header, &[]);
                return self.end(fate);
            }
            Fate::Lives | Fate::Done | Fate::Stray => {}
        }
        if mirror.is_readable && mirror.wanted().is_some() && self.supplies_at.is_none() {
            // A guest's ring is full now and then.
            let pause = if self.rng.happens(20) { 50 * MILLI } else { 10 * MICRO };
            self.supplies_at = Some(self.now + self.rng.below(pause));
        }
        mirror.waits_for_window(self.now);
        if mirror.is_done() {
            return self.end(Fate::Done);
        }
        if mirror.owes_ack {
            // At the end of the burst, or a moment later.
            let at = match mirror.ack_waits_since {
                Some(since) => since + WAIT_NS,
                None => self.now + self.rng.below(2) * BURST_MAX,
            };
            self.acks_at = Some(self.acks_at.map_or(at, |other| other.min(at)));
        }
    }

    fn end(&mut self, fate: Fate) {
        self.fate = Some(fate);
        self.mirror = None;
        (self.connects_at, self.tells_at, self.acks_at, self.supplies_at) = (None, None, None, None);
    }

    fn acknowledge(&mut self) {
        let Some(mirror) = self.mirror.as_mut().filter(|mirror| mirror.owes_ack) else { return };
        if let Some(due) = mirror.ack_waits_since.map(|since| since + WAIT_NS).filter(|due| *due > self.now)
            && !self.rng.happens(200)
        {
            // It was another's turn, and there is no company.
            self.acks_at = Some(due);
            return;
        }
        let header = mirror.acknowledge(&mut self.socket);
        self.emit(&header, &[]);
        self.settle(Fate::Lives);
    }

    /// The next frame of data.
    fn supply(&mut self) {
        let Some(mirror) = &mut self.mirror else { return };
        if mirror.ends_again() {
            let header = mirror.ends(&mut self.socket, self.now);
            self.emit(&header, &[]);
            return self.settle(Fate::Lives);
        }
        let Some(wanted) = mirror.wanted() else { return };
        let mss = u32::from(mirror.mss().min(OWN_MSS));
        let room = self.rng.one_of(&[1460, 9000, 65_000]);
        let most = wanted.len.min(room);
        let most = if most > mss { most - most % mss } else { most };
        let bytes = match self.socket.peek(wanted.skip, most) {
            Ok(Some(bytes)) => bytes.to_vec(),
            Ok(None) => {
                let header = mirror.ends(&mut self.socket, self.now);
                self.emit(&header, &[]);
                return self.settle(Fate::Lives);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                mirror.is_readable = false;
                return self.settle(Fate::Lives);
            }
            Err(_) => return self.settle(Fate::Failed),
        };
        let (una, len) = (mirror.inside().una, bytes.len() as u32);
        // Of more than that the poller tells, and of the end it may have told already.
        let is_all = len < most && self.socket.consumed + wanted.skip + len == self.socket.come;
        let is_end = is_all && self.is_last;
        mirror.is_readable = !is_all;
        let header = mirror.sends(len, is_end, &mut self.socket, self.now);
        assert!(!header.seq.is_before(una), "sends what was acknowledged");
        let end = header.seq.plus(bytes.len() as u32);
        assert!(self.guest.has_room_until(end), "sends more than the guest has room for");
        let part = if self.weather.coalesces { bytes.len() } else { mss as usize };
        let mut at = header.seq;
        for bytes in bytes.chunks(part) {
            let next = at.plus(bytes.len() as u32);
            let flags = if next == end { header.flags } else { header.flags & !FIN };
            self.emit(&Header { seq: at, flags, ..header }, bytes);
            at = next;
        }
        self.settle(Fate::Lives);
    }

    fn timer(&mut self) {
        let Some(mirror) = &mut self.mirror else { return };
        let header = match mirror.timer(self.now) {
            Timer::Nothing | Timer::Again => None,
            Timer::GiveUp => {
                let is_gone = matches!(self.guest.state, State::Gone);
                assert!(is_gone, "gives up a guest that is there");
                return self.settle(Fate::Failed);
            }
            Timer::Syn => Some(mirror.syn(OWN_MSS, &mut self.socket)),
            Timer::Probe => Some(mirror.probe(&mut self.socket)),
            Timer::PassOn => {
                let fate = mirror.pass_on(&mut self.socket, self.now);
                return self.settle(fate);
            }
        };
        let before = self.timer_at.replace(self.now);
        assert!(before.is_none_or(|before| self.now >= before + SECOND / 5), "a storm of timers");
        header.into_iter().for_each(|header| self.emit(&header, &[]));
        self.settle(Fate::Lives);
    }

    /// An application does something, or somebody else.
    fn act(&mut self) {
        let is_calm = self.calm_at.is_some();
        let amount = self.rng.range(1, if is_calm { 65_536 } else { self.weather.gulp });
        if is_calm {
            let done = |world: &Self| {
                u64::from(world.socket.come + world.socket.read) + u64::from(world.guest.written + world.guest.read)
            };
            let before = done(self);
            self.peer_writes(amount);
            self.peer_reads(amount);
            self.guest_writes(amount);
            self.guest.take(amount);
            if self.mirror.is_none() {
                // The reset may be lost, and a guest that only listens asks in the end.
                self.guest.keep_alive();
            }
            self.pause = if done(self) == before { (self.pause * 2).min(10 * SECOND) } else { MILLI };
            self.acts_at = self.now + self.pause;
            return;
        }
        self.acts_at = self.now + self.rng.below(self.weather.idle);
        match self.rng.below(5) {
            0 => self.peer_writes(amount),
            1 => self.peer_reads(amount),
            2 => self.guest_writes(amount),
            3 => self.guest.take(amount),
            _ => self.something_else(),
        }
    }

    fn peer_writes(&mut self, amount: u32) {
        let Some(mirror) = &self.mirror else { return };
        if mirror.is_connecting() || self.socket.is_broken || self.socket.peer_ended {
            return;
        }
        let len = amount.min(self.socket.from_peer.len - self.socket.come);
        self.socket.come += len;
        self.socket.peer_ended = self.socket.come == self.socket.from_peer.len;
        if len > 0 || self.socket.peer_ended {
            self.tells_at.get_or_insert(self.now + self.rng.below(TELLS_MAX));
        }
    }

    /// The poller tells that something has come.
    fn tell(&mut self) {
        let Some(mirror) = &mut self.mirror else { return };
        mirror.is_readable = true;
        self.is_last = self.socket.peer_ended;
        self.settle(Fate::Lives);
    }

    fn peer_reads(&mut self, amount: u32) {
        self.socket.read += amount.min(self.socket.taken - self.socket.read);
        let Some(mirror) = self.mirror.as_mut().filter(|mirror| !mirror.is_connecting()) else { return };
        if self.socket.tells_room() {
            let fate = mirror.has_room(&mut self.socket, self.now);
            self.settle(fate);
        }
    }

    fn guest_writes(&mut self, amount: u32) {
        let guest = &mut self.guest;
        guest.written += amount.min(guest.says.len - guest.written);
        guest.has_closed |= guest.written == guest.says.len;
        guest.transmit(self.now);
    }

    fn something_else(&mut self) {
        let Weather { aborts, breaks, vanishes, garbage, .. } = self.weather;
        if self.rng.happens(garbage) {
            self.garbage();
        } else if self.rng.happens(aborts) && self.guest.state == State::Open {
            self.guest.abort();
            self.breaker = if self.breaker == Breaker::Nobody { Breaker::Guest } else { self.breaker };
        } else if self.rng.happens(vanishes) {
            self.guest.state = State::Gone;
            self.breaker = if self.breaker == Breaker::Nobody { Breaker::Guest } else { self.breaker };
        } else if self.rng.happens(breaks) && self.mirror.as_ref().is_some_and(|mirror| !mirror.is_connecting()) {
            self.socket.is_broken = true;
            self.breaker = if self.breaker == Breaker::Nobody { Breaker::Peer } else { self.breaker };
            self.settle(Fate::Failed);
        } else if self.rng.happens(200) {
            self.guest.keep_alive();
        } else if self.rng.happens(100) {
            self.socket.capacity = CAPACITY_MIN * self.rng.range(1, 20);
        } else if self.rng.happens(100) {
            let least = 1 << self.guest.habits.scale.unwrap_or(0);
            let most = self.rng.range(least, 65_535);
            self.guest.capacity = if self.guest.habits.shrinks { most } else { self.guest.capacity.max(most) };
        }
    }

    fn is_over(&self) -> bool {
        let never_knew = self.guest.state == State::Listens && self.flying.is_empty();
        self.mirror.is_none() && (self.guest.is_over() || never_knew)
    }

    /// How it has ended is how those who ended it wanted it to.
    fn judge(&self) {
        let (guest, socket) = (&self.guest, &self.socket);
        match (self.breaker, self.fate) {
            (_, Some(Fate::Done)) => {
                assert!(socket.is_ended && socket.taken == socket.from_guest.len);
                assert_eq!((guest.heard(), guest.has_heard_end), (socket.from_peer.len, true));
            }
            (Breaker::Nobody, fate) => panic!("{fate:?} though nobody broke it off"),
            (Breaker::Guest, fate) => assert!(fate.is_none() || matches!(fate, Some(Fate::Broken | Fate::Failed))),
            (Breaker::Peer, _) => {
                assert!(guest.is_over() || guest.state == State::Listens)
            }
        }
        if self.breaker == Breaker::Nobody {
            assert_eq!(guest.state, State::Done);
        }
    }
}

/// The seed is said when something is wrong.
struct Seed(u64, u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("GUESTWIRE_SEED={} connection {}", self.0, self.1);
        }
    }
}

#[test]
fn a_million_steps() {
    let seed = std::env::var("GUESTWIRE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED);
    let mut said = Seed(seed, 0);
    let mut rng = Rng::new(seed);
    let source = Stream::source(&mut rng);
    let (mut steps, mut fates) = (0, [0_u32; 4]);
    while steps < STEPS {
        // Each connection has a seed of its own, so that one can be looked at alone.
        let mut world = World::new(&mut Rng::new(seed.wrapping_mul(1 << 20).wrapping_add(said.1)), &source);
        while !world.is_over() {
            world.step();
        }
        world.judge();
        steps += u64::from(world.steps);
        fates[match world.fate {
            Some(Fate::Done) => 0,
            Some(Fate::Broken) => 1,
            Some(Fate::Failed) => 2,
            _ => 3,
        }] += 1;
        said.1 += 1;
    }
    let [done, broken, failed, never] = fates;
    println!(
        "seed {seed}: {steps} steps, {} connections: {done} done, {broken} broken, {failed} failed, {never} never",
        said.1
    );
    assert!(done > 0 && broken > 0 && failed > 0);
}
