//! One TCP connection: the mirror between a guest and the host kernel's connection in its name.
//!
//! Theory of operation. The kernel's connection is the truth. What the guest sends goes into the kernel's send buffer
//! from the guest's memory, and the guest is told how much room is left there: that is its window. What the peer sends
//! stays in the kernel's receive buffer until the guest has acknowledged it, so that it can be sent again from there:
//! the peer's window is what the guest leaves room for. There are no buffers of ours between them, but for bytes that
//! came too early or that the kernel had no room for ([`Pending`]), and those lie within the window that the guest was
//! told.
//!
//! Opening, closing and breaking are carried across in both directions: a connection is there for the guest when it is
//! there for the kernel, FIN becomes the end of sending, the end of what can be received becomes FIN, and a reset or a
//! failure on one side is a reset on the other.
//!
//! Towards the guest nothing is lost but what its ring had no room for, and what the guest itself loses. So there is no
//! congestion window, and what is lost is found by three equal acknowledgements or by time, and then all of it is sent
//! again from there (go-back-N).
//!
//! Pure: the clock is a number, the kernel a [`HostSocket`]; segments come as they were read, and go out as
//! [`Header`]s.
//!
//! Where the host has no memory for a call, nothing is lost by that: what the guest has sent is kept, or not
//! acknowledged, what the peer has sent is in its place, and the call is made again a moment later. The kernel tells
//! nobody when it has memory again.
//!
//! Invariants: `una <= nxt <= max` on the circle; `edge` never moves back, and nothing beyond it is taken; nothing is
//! taken away from the kernel that the guest has not acknowledged.

mod receiving;
mod round_trips;
mod sending;
mod timing;

use std::io;
use std::ops::Range;

use super::super::seq::Seq;
use super::pending::Pending;
use super::segment::{ACK, FIN, Header, RST, SYN, Segment};
use crate::ring::Bytes;
use round_trips::RoundTrips;
pub(super) use timing::Timer;

/// A second of the clock, in nanoseconds.
const SECOND: u64 = 1_000_000_000;
/// The first wait for an answer to a SYN, and for room; each further one is twice as long.
const RETRY_NS: u64 = SECOND;
/// The longest wait for anything that was sent.
const RETRY_MAX_NS: u64 = 60 * SECOND;
/// After so many further waits, each twice as long, the guest is given up: after four minutes, if they begin with the
/// shortest (RFC 5382, REQ-5: the transitory timeout; RFC 9293, 3.8.3: 100 seconds).
const RETRIES_MAX: u8 = 11;
/// The same for the beginning of a connection: four minutes and three seconds (RFC 9293, 3.8.3: more than three).
const SYN_RETRIES_MAX: u8 = 8;
/// How long a guest may be silent before it is asked whether it is there (RFC 5382, REQ-5: two hours and four minutes
/// with what follows), in nanoseconds.
const KEEPALIVE_NS: u64 = 7200 * SECOND;
/// How often it is asked, and how many times.
const PROBE_NS: u64 = 30 * SECOND;
const PROBES_MAX: u8 = 8;
/// How often a segment that brings nothing and fits nowhere is answered: the answer may not fit for the guest either,
/// and the two would go on for ever (RFC 5961, 7).
const CORRECT_NS: u64 = SECOND / 2;
/// Equal acknowledgements that mean that a segment was lost (RFC 5681, 3.2).
const EQUAL_ACKS: u8 = 3;
/// What is no longer may be acknowledged a moment later: less than a full segment on any usual network.
const SMALL_MAX: usize = 1024;
/// Our windows are in units of 2^8 bytes: up to 16 MiB.
const SCALE: u8 = 8;
/// The segment size of a guest that does not say one (RFC 9293, 3.7.1).
const MSS_DEFAULT: u16 = 536;
/// The least that is sent in a segment, whatever a guest says.
const MSS_MIN: u16 = 88;

/// The host kernel's connection.
pub(super) trait HostSocket {
    /// Sends a part of a frame. Returns how much of it there was room for.
    fn send(&mut self, bytes: &Bytes<'_>, part: Range<usize>) -> io::Result<usize>;
    /// Sends bytes. Returns how many of them there was room for.
    fn send_kept(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// About how many bytes there is room for.
    fn room(&mut self) -> u32;
    /// Takes bytes away that were received.
    fn consume(&mut self, len: u32);
    /// Says to the peer that nothing more comes.
    fn end(&mut self);
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It has ended as it should, both ways.
    Done,
    /// The guest has broken it off: the peer is to hear so.
    Broken,
    /// The peer, or the host, has broken it off, or the guest does not answer: both are to hear so.
    Failed,
    /// It goes on, and the segment is of another one that is not: the guest is to hear so.
    Stray,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has asked for it, and the kernel is at it.
    Connecting,
    /// It is there, and the guest has been told.
    Answered,
    /// Somebody has connected, and the guest has been asked.
    Asked,
    /// Both know of it.
    Open,
}

/// What could be sent to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Bytes of what the kernel has that were sent before.
    pub(super) skip: u32,
    /// Bytes that the guest has room for.
    pub(super) len: u32,
}

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Mirror {
    phase: Phase,
    /// To the guest: the first byte that is not acknowledged, the next one to be sent, and the one after all that were
    /// ever sent.
    una: Seq,
    nxt: Seq,
    max: Seq,
    /// Our FIN's place, once all before it has been sent.
    fin: Option<Seq>,
    /// What the guest has room for from `una` on.
    window: u32,
    /// The segment that said so: its number and what it acknowledged.
    window_by: (Seq, Seq),
    guest_scale: u8,
    mss: u16,
    equal_acks: u8,
    /// What was sent last when segments were last found lost: until it is acknowledged, equal acknowledgements say
    /// nothing new.
    recovers: Option<Seq>,
    /// From the guest: the next byte, and the first one that it has not been told room for.
    next: Seq,
    edge: Seq,
    /// What `next` was when the guest was last told of room, unless there is more to tell.
    told_at: Option<Seq>,
    pending: Pending,
    /// The guest's FIN's place.
    guest_fin: Option<Seq>,
    /// Whether the kernel was told of that.
    is_ended: bool,
    /// Whether our windows are scaled.
    is_scaled: bool,
    /// Whether the guest is to hear what has arrived.
    pub(super) owes_ack: bool,
    /// Since when that waits for data that it could go with, if it may.
    pub(super) ack_waits_since: Option<u64>,
    /// Whether the kernel may have something for the guest.
    pub(super) is_readable: bool,
    retries: u8,
    round_trips: RoundTrips,
    /// When something is to be done about what was not acknowledged.
    retry_at: Option<u64>,
    /// When the socket is tried again, for which the host had no memory.
    again_at: Option<u64>,
    /// Whether it is not to be read until then.
    reads_later: bool,
    heard_at: u64,
    /// When a segment that brings nothing and fits nowhere is answered again.
    corrects_at: u64,
}

impl Mirror {
    /// A connection that a guest's SYN asks for. `isn` is our own first number.
    pub(super) fn asked_for(syn: &Segment, isn: Seq, now: u64) -> Self {
        let mut mirror = Self::new(Phase::Connecting, isn, now);
        mirror.meet(syn);
        mirror
    }

    /// A connection that somebody has made to a guest, which is asked now.
    pub(super) fn to_guest(isn: Seq, now: u64) -> Self {
        let mut mirror = Self::new(Phase::Asked, isn, now);
        mirror.asks(now);
        mirror
    }

    fn new(phase: Phase, isn: Seq, now: u64) -> Self {
        Self {
            phase,
            una: isn,
            nxt: isn,
            max: isn,
            fin: None,
            window: 0,
            window_by: (Seq(0), Seq(0)),
            guest_scale: 0,
            mss: MSS_DEFAULT,
            equal_acks: 0,
            recovers: None,
            next: Seq(0),
            edge: Seq(0),
            told_at: None,
            pending: Pending::default(),
            guest_fin: None,
            is_ended: false,
            is_scaled: true,
            owes_ack: false,
            ack_waits_since: None,
            is_readable: false,
            retries: 0,
            round_trips: RoundTrips::new(),
            retry_at: None,
            again_at: None,
            reads_later: false,
            heard_at: now,
            corrects_at: now,
        }
    }

    /// Takes note of what a guest's SYN says.
    fn meet(&mut self, syn: &Segment) {
        // If it was asked, it was told of some room then.
        let told = self.edge.since(self.next);
        self.next = syn.seq.plus(1);
        self.edge = self.next.plus(told);
        self.window = syn.window.into();
        self.window_by = (syn.seq, self.una);
        self.mss = syn.mss.unwrap_or(MSS_DEFAULT).max(MSS_MIN);
        self.is_scaled = syn.scale.is_some();
        self.guest_scale = syn.scale.unwrap_or(0);
    }

    /// The guest's segment size, in bytes of payload.
    pub(super) fn mss(&self) -> u16 {
        self.mss
    }

    /// The number of the guest's SYN, while that is all that has come.
    pub(super) fn syn_seq(&self) -> Seq {
        Seq(self.next.0.wrapping_sub(1))
    }

    /// Whether it was asked for by the guest and is not there yet.
    pub(super) fn is_connecting(&self) -> bool {
        self.phase == Phase::Connecting
    }

    /// Whether it is not there for both sides yet.
    pub(super) fn is_half_open(&self) -> bool {
        self.phase != Phase::Open
    }

    /// How long the guest takes to acknowledge, in nanoseconds; zero: nobody knows.
    pub(super) fn round_trip(&self) -> u64 {
        self.round_trips.smoothed()
    }

    /// What is kept for it costs so many bytes.
    pub(super) fn kept(&self) -> usize {
        self.pending.cost()
    }

    /// Gives up what is kept for it.
    pub(super) fn forget_kept(&mut self) {
        self.pending.forget();
    }

    /// The kernel has made the connection that the guest asked for: returns what tells the guest.
    pub(super) fn connected(&mut self, own_mss: u16, socket: &mut impl HostSocket, now: u64) -> Header {
        self.phase = Phase::Answered;
        self.asks(now);
        self.syn(own_mss, socket)
    }

    /// Our SYN is about to be sent.
    fn asks(&mut self, now: u64) {
        (self.nxt, self.max) = (self.una.plus(1), self.una.plus(1));
        self.retry_at = Some(now + RETRY_NS);
        self.round_trips.sent(self.max, now);
    }

    /// The SYN that asks the guest, or answers its own.
    pub(super) fn syn(&mut self, own_mss: u16, socket: &mut impl HostSocket) -> Header {
        let (flags, scale) = match self.phase {
            Phase::Asked => (SYN, Some(SCALE)),
            _ => (SYN | ACK, self.is_scaled.then_some(SCALE)),
        };
        // Not scaled (RFC 7323, 2.2), and no less than the last time.
        let window = socket.room().max(self.edge.since(self.next)).min(u16::MAX.into()) as u16;
        // What has been answered meanwhile may have told of more than a SYN can say.
        self.edge = self.edge.max(self.next.plus(window.into()));
        Header { seq: self.una, ack: self.next, flags, window, mss: Some(own_mss), scale }
    }

    /// Whether the guest's SYN, which has come again, is to be answered again.
    pub(super) fn is_same_syn(&self, segment: &Segment) -> bool {
        self.phase == Phase::Answered && segment.seq.plus(1) == self.next
    }

    /// Whether both sides have ended it, so that another may begin with the same addresses.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ended && self.fin.is_some()
    }

    /// A segment of the guest's. `bytes` is the frame it came in.
    pub(super) fn segment(
        &mut self,
        segment: &Segment,
        bytes: &Bytes<'_>,
        socket: &mut impl HostSocket,
        now: u64,
    ) -> Fate {
        self.heard_at = now;
        match self.phase {
            Phase::Connecting => {
                // It has nothing to acknowledge yet; it may give up, or have begun anew, which is what holds then.
                let gives_up = segment.has(RST) && segment.seq == self.next;
                if segment.flags & (SYN | ACK | RST) == SYN {
                    self.meet(segment);
                }
                return if gives_up { Fate::Broken } else { Fate::Lives };
            }
            Phase::Asked => return self.answer(segment, now),
            Phase::Answered | Phase::Open => {}
        }
        if segment.has(RST) {
            return self.reset(segment);
        }
        if segment.has(SYN) || self.edge.plus(1).is_before(segment.seq) {
            // A SYN may be an old one, or a forged one (RFC 5961, 4.2). What begins beyond the window is none of this
            // connection, and so is what it acknowledges and has room for (RFC 9293, 3.10.7.4); but who asks for room
            // with one byte too many goes on behind that.
            self.correct(segment, now);
            return Fate::Lives;
        }
        let Some(ack) = segment.ack else { return Fate::Lives };
        if self.phase == Phase::Answered && ack != self.max {
            return Fate::Stray;
        }
        if self.max.is_before(ack) {
            // Of what was never sent.
            self.correct(segment, now);
            return Fate::Lives;
        }
        self.acknowledged(segment, ack, socket, now);
        if self.una == self.max && !self.has_no_room() {
            // It is there.
            (self.retries, self.retry_at) = (0, None);
        }
        if self.phase == Phase::Open { self.take(segment, bytes, socket, now) } else { Fate::Lives }
    }

    /// The guest's answer to our SYN.
    fn answer(&mut self, segment: &Segment, now: u64) -> Fate {
        let is_ours = segment.ack == Some(self.max);
        match (is_ours, segment.has(RST), segment.has(SYN)) {
            (true, true, _) => Fate::Broken,
            (true, false, true) => {
                let (una, phase) = (self.max, Phase::Open);
                self.round_trips.acknowledged(una, now);
                self.meet(segment);
                (self.una, self.phase) = (una, phase);
                self.owe();
                self.window_by = (segment.seq, una);
                (self.retry_at, self.retries, self.heard_at) = (None, 0, now);
                self.is_readable = true;
                Fate::Lives
            }
            // It has another connection in mind, which it is to forget (RFC 9293, 3.10.7.3).
            (false, false, _) if segment.ack.is_some() => Fate::Stray,
            _ => Fate::Lives,
        }
    }

    /// Tells the guest how far it is, since it seems not to know.
    fn correct(&mut self, segment: &Segment, now: u64) {
        let brings_nothing = segment.payload.is_empty() && !segment.has(SYN | FIN);
        if !brings_nothing || now >= self.corrects_at {
            self.owe();
            self.corrects_at = now + CORRECT_NS;
        }
    }

    /// The guest breaks it off, if the segment is what it says (RFC 5961, 3.2).
    fn reset(&mut self, segment: &Segment) -> Fate {
        if segment.seq == self.next {
            return Fate::Broken;
        }
        // It has used all its room, maybe, and some of that is lost.
        let is_inside = !segment.seq.is_before(self.next) && !self.edge.is_before(segment.seq);
        if is_inside {
            self.owe();
        }
        Fate::Lives
    }

    /// The guest is to hear now what has arrived.
    fn owe(&mut self) {
        (self.owes_ack, self.ack_waits_since) = (true, None);
    }

    /// An acknowledgement of all that has arrived.
    pub(super) fn acknowledge(&mut self, socket: &mut impl HostSocket) -> Header {
        self.header(self.bare_seq(), ACK, socket)
    }

    /// What breaks the connection off for the guest.
    pub(super) fn reset_header(&self) -> Header {
        // Who was only asked has said nothing to acknowledge.
        let flags = if self.phase == Phase::Asked { RST } else { RST | ACK };
        let ack = if self.phase == Phase::Asked { Seq(0) } else { self.next };
        Header { seq: self.bare_seq(), ack, flags, window: 0, mss: None, scale: None }
    }

    /// The number of a segment that carries nothing: what comes after all that was sent, or the end of the guest's
    /// room, if it has taken room back. It does not look at anything further on.
    fn bare_seq(&self) -> Seq {
        let edge = self.una.plus(self.window);
        if self.phase == Phase::Open && edge.is_before(self.max) { edge } else { self.max }
    }

    fn header(&mut self, seq: Seq, flags: u8, socket: &mut impl HostSocket) -> Header {
        if std::mem::take(&mut self.owes_ack) {
            self.told_at = None;
        }
        self.ack_waits_since = None;
        let window = self.tell_window(socket);
        Header { seq, ack: self.next, flags, window, mss: None, scale: None }
    }
}

/// What the tests look at.
#[cfg(any(test, feature = "trials"))]
#[derive(Clone, Debug)]
pub(super) struct Inside {
    pub(super) una: Seq,
    pub(super) nxt: Seq,
    pub(super) max: Seq,
    pub(super) next: Seq,
    pub(super) edge: Seq,
    pub(super) is_open: bool,
    pub(super) is_scaled: bool,
    pub(super) fin_is_acknowledged: bool,
    pub(super) pieces: Vec<(Seq, u32)>,
}

#[cfg(any(test, feature = "trials"))]
impl Mirror {
    pub(super) fn inside(&self) -> Inside {
        Inside {
            una: self.una,
            nxt: self.nxt,
            max: self.max,
            next: self.next,
            edge: self.edge,
            is_open: self.phase == Phase::Open,
            is_scaled: self.is_scaled,
            fin_is_acknowledged: self.fin.is_some_and(|fin| fin.is_before(self.una)),
            pieces: self.pending.pieces().collect(),
        }
    }
}
