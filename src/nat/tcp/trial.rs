//! A connection whose guest says anything and whose socket does anything: what must hold all the same.
//!
//! Theory of operation. What the guest, the socket and the clock do is read from bytes, so that a fuzzer can choose it
//! and a property test can draw it. The guest knows the connection's numbers better than any real one could, so that
//! what it says lies mostly just inside or just outside of what is allowed. Its stream and the peer's are the same
//! bytes whenever they are asked for.
//!
//! What holds: numbers are in order and do not go back; the window that is told does not shrink; what the socket is
//! given is what the guest said, once, in order, and within the window; what is taken from the socket is what the guest
//! has acknowledged; what is kept is bounded; time brings no storm, and a guest that falls silent is given up.

use std::io;
use std::ops::Range;

use super::super::seq::Seq;
use super::mirror::{Fate, HostSocket, Inside, Mirror, Timer, Wanted};
use super::segment::{ACK, FIN, Header, PSH, RST, SYN, Segment};
use crate::ring::Bytes;

const SECOND: u64 = 1_000_000_000;
const OWN_MSS: u16 = 1460;
/// Steps of one trial.
const STEPS_MAX: usize = 400;
/// Times that a silent guest may be asked before it is given up.
const QUESTIONS_MAX: usize = 64;
/// The longest payload, in bytes.
const PAYLOAD_MAX: u32 = 8191;

/// Runs a trial that these bytes describe.
///
/// # Panics
/// When something does not hold.
pub fn trial(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let mut world = World::new(&mut choices);
    for _ in 0..STEPS_MAX {
        if choices.0.is_empty() || world.mirror.is_none() {
            break;
        }
        world.step(&mut choices);
        world.check();
    }
    world.fall_silent();
}

/// Bytes that say what happens. What is not there is zero.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// A number up to 127 further on or back.
    fn near(&mut self, from: Seq) -> Seq {
        from.plus(i32::from(self.u8().cast_signed()).cast_unsigned())
    }
}

/// The byte at this place of either stream.
fn byte(at: u32) -> u8 {
    (at ^ at >> 8).wrapping_mul(7) as u8
}

fn stream(at: u32, len: u32) -> Vec<u8> {
    (0..len).map(|n| byte(at.wrapping_add(n))).collect()
}

/// The host's socket.
#[derive(Debug, Default)]
struct Socket {
    room: u32,
    /// Bytes of the guest's that it was given.
    taken: u32,
    is_ended: bool,
    /// Bytes of the peer's that have come, and that were taken away.
    come: u32,
    consumed: u32,
    peer_ended: bool,
    /// What the next call fails with.
    fails: Option<i32>,
}

impl HostSocket for Socket {
    fn send(&mut self, bytes: &Bytes<'_>, part: Range<usize>) -> io::Result<usize> {
        self.send_kept(&bytes.head()[part])
    }

    fn send_kept(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty() && !self.is_ended);
        if let Some(error) = self.fails.take() {
            return Err(io::Error::from_raw_os_error(error));
        }
        let len = self.room.min(bytes.len() as u32);
        assert_eq!(bytes[..len as usize], stream(self.taken, len), "what the guest said");
        self.taken += len;
        self.room -= len;
        if len == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(len as usize) }
    }

    fn room(&mut self) -> u32 {
        self.room
    }

    fn consume(&mut self, len: u32) {
        self.consumed += len;
        assert!(len > 0 && self.consumed <= self.come, "{self:?}");
    }

    fn end(&mut self) {
        assert!(!std::mem::replace(&mut self.is_ended, true), "ended twice");
    }
}

/// One connection.
struct World {
    mirror: Option<Mirror>,
    socket: Socket,
    now: u64,
    isn: Seq,
    /// The guest's first number, once it has said it.
    iss: Seq,
    before: Option<Inside>,
    told: Option<Seq>,
}

impl World {
    fn new(choices: &mut Choices<'_>) -> Self {
        let (kind, now) = (choices.u8(), SECOND);
        let [isn, iss] = [choices.u16(), choices.u16()].map(|n| Seq(u32::from(n) << 16 | 0xfff0));
        let mut socket = Socket { room: u32::from(choices.u16()), ..Socket::default() };
        let mut world = Self { mirror: None, socket: Socket::default(), now, isn, iss, before: None, told: None };
        world.mirror = Some(if kind & 1 == 0 {
            Mirror::asked_for(&world.syn(kind, None), isn, now)
        } else {
            let mut mirror = Mirror::to_guest(isn, now);
            mirror.syn(OWN_MSS, &mut socket);
            mirror
        });
        world.socket = socket;
        world
    }

    /// The guest's SYN, with the options that the bits of `kind` choose.
    fn syn(&self, kind: u8, ack: Option<Seq>) -> Segment {
        let mss = [None, Some(0), Some(536), Some(1460)][usize::from(kind >> 1 & 3)];
        let scale = [None, Some(0), Some(7), Some(14)][usize::from(kind >> 3 & 3)];
        let window = [0, 1, 4000, u16::MAX][usize::from(kind >> 5 & 3)];
        let flags = SYN | if ack.is_some() { ACK } else { 0 };
        Segment { from_port: 1, to_port: 2, seq: self.iss, ack, flags, window, payload: 0..0, mss, scale }
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        let what = choices.u8();
        let Some(mirror) = &mut self.mirror else { return };
        let (socket, is_connecting) = (&mut self.socket, mirror.is_connecting());
        match what & 15 {
            0..6 => self.speak(what >> 4, choices),
            6 => self.shake_hands(choices),
            7 | 8 => {
                socket.room = u32::from(choices.u16()) << (what >> 4 & 7);
                if !is_connecting {
                    let fate = mirror.has_room(socket, self.now);
                    self.settle(fate);
                }
            }
            9 if !is_connecting && !socket.peer_ended => {
                socket.come += u32::from(choices.u16());
                socket.peer_ended = what & 0x80 != 0;
                mirror.is_readable = true;
                self.settle(Fate::Lives);
            }
            10 | 11 => self.supply(choices.u16()),
            12 => self.acknowledge(),
            13 => {
                self.now += if what & 0x80 == 0 { SECOND / 4 } else { u64::from(choices.u16()) * SECOND };
                self.timer();
            }
            14 => {
                let errors = [libc::ENOBUFS, libc::EAGAIN, libc::EPIPE, libc::EFAULT];
                socket.fails = Some(errors[usize::from(what >> 4 & 3)]);
            }
            _ => mirror.forget_kept(),
        }
    }

    /// What brings the connection about: the kernel connects, or the guest answers.
    fn shake_hands(&mut self, choices: &mut Choices<'_>) {
        let kind = choices.u8();
        let syn = self.syn(kind, Some(self.isn.plus(1)));
        let Some(mirror) = &mut self.mirror else { return };
        if mirror.is_connecting() {
            let header = mirror.connected(OWN_MSS, &mut self.socket, self.now);
            assert_eq!((header.seq, header.flags, header.ack), (self.isn, SYN | ACK, self.iss.plus(1)));
            return self.settle(Fate::Lives);
        }
        self.hear(&syn, 0);
    }

    /// A segment of the guest's: its numbers lie near to those that mean something.
    fn speak(&mut self, bits: u8, choices: &mut Choices<'_>) {
        let Some(mirror) = &self.mirror else { return };
        let inside = mirror.inside();
        let kind = choices.u8();
        let seq = match kind & 3 {
            0 => inside.next,
            1 => choices.near(inside.next),
            2 => choices.near(inside.edge),
            _ => inside.next.plus(choices.u32()),
        };
        let ack = match kind >> 2 & 3 {
            0 => inside.max,
            1 => inside.una.plus(u32::from(choices.u16())),
            2 => choices.near(inside.max),
            _ => Seq(choices.u32()),
        };
        let len = match kind >> 4 & 3 {
            0 => 0,
            1 => choices.u8().into(),
            2 => u32::from(choices.u16()) & PAYLOAD_MAX,
            _ => inside.edge.since(seq).min(PAYLOAD_MAX),
        };
        let flags = if bits & 1 == 0 { ACK | PSH } else { choices.u8() };
        let window = if bits & 2 == 0 { u16::MAX } else { choices.u16() };
        let has_options = flags & SYN != 0;
        let segment = Segment {
            from_port: 1,
            to_port: 2,
            seq,
            ack: (flags & ACK != 0).then_some(ack),
            flags,
            window,
            payload: 0..len as usize,
            mss: has_options.then_some(u16::from(kind) << 4),
            scale: has_options.then_some(bits & 14),
        };
        self.hear(&segment, len);
    }

    fn hear(&mut self, segment: &Segment, len: u32) {
        let Some(mirror) = &mut self.mirror else { return };
        let bytes = stream(segment.seq.since(self.iss.plus(1)), len);
        let is_first = mirror.is_connecting() && segment.flags & (SYN | ACK | RST) == SYN;
        let answers = !mirror.inside().is_open && segment.has(SYN) && segment.ack == Some(self.isn.plus(1));
        if segment.has(SYN) && mirror.is_same_syn(segment) {
            mirror.syn(OWN_MSS, &mut self.socket);
            return;
        }
        let fate = mirror.segment(segment, &Bytes::private(&bytes), &mut self.socket, self.now);
        if is_first || answers && mirror.inside().is_open {
            self.iss = segment.seq;
        }
        self.settle(fate);
    }

    /// The next frame of the peer's data goes to the guest, if it has room for it.
    fn supply(&mut self, room: u16) {
        let Some(mirror) = &mut self.mirror else { return };
        let socket = &mut self.socket;
        if mirror.ends_again() {
            let header = mirror.ends(socket, self.now);
            self.sent(&header);
            return self.settle(Fate::Lives);
        }
        let Some(wanted) = mirror.wanted().filter(|_| mirror.is_readable) else { return };
        let there = socket.come - socket.consumed - wanted.skip;
        let most = wanted.len.min(u32::from(room));
        let len = there.min(most);
        let header = match len {
            0 if there == 0 && socket.peer_ended => mirror.ends(socket, self.now),
            0 => {
                mirror.is_readable &= there > 0;
                return self.settle(Fate::Lives);
            }
            _ => {
                // If that was all, the poller tells of more.
                mirror.is_readable = len == most;
                mirror.sends(len, len == there && socket.peer_ended, socket, self.now)
            }
        };
        // What is sent is where the peer's stream has it.
        let at = header.seq.since(self.isn.plus(1));
        assert_eq!(at, socket.consumed + wanted.skip, "{socket:?}");
        self.sent(&header);
        self.settle(Fate::Lives);
    }

    fn acknowledge(&mut self) {
        let Some(mirror) = self.mirror.as_mut().filter(|mirror| mirror.owes_ack) else { return };
        let header = mirror.acknowledge(&mut self.socket);
        self.sent(&header);
        self.settle(Fate::Lives);
    }

    fn timer(&mut self) {
        let Some(mirror) = &mut self.mirror else { return };
        match mirror.timer(self.now) {
            Timer::Nothing | Timer::Again => {}
            Timer::GiveUp => return self.settle(Fate::Failed),
            Timer::Syn => _ = mirror.syn(OWN_MSS, &mut self.socket),
            Timer::Probe => {
                let header = mirror.probe(&mut self.socket);
                self.sent(&header);
            }
            Timer::PassOn => {
                let fate = mirror.pass_on(&mut self.socket, self.now);
                self.settle(fate);
                // Something else may have been due meanwhile.
                return self.timer();
            }
        }
        self.settle(Fate::Lives);
        if let Some(mirror) = &self.mirror {
            assert!(mirror.due() > self.now, "what was due is due again at once");
        }
    }

    /// The guest has been sent a header.
    fn sent(&mut self, header: &Header) {
        let Some(mirror) = &self.mirror else { return };
        let inside = mirror.inside();
        let edge = header.ack.plus(u32::from(header.window) << if inside.is_scaled { 8 } else { 0 });
        assert_eq!((header.ack, edge), (inside.next, inside.edge), "what was told");
        assert!(self.told.is_none_or(|told| !edge.is_before(told)), "the window shrinks");
        self.told = Some(edge);
        let is_end = header.flags & FIN != 0;
        assert!(!is_end || self.socket.peer_ended, "it has not ended");
    }

    /// Does what follows from a change, as those do who have the mirror.
    fn settle(&mut self, fate: Fate) {
        let Some(mirror) = &mut self.mirror else { return };
        mirror.waits_for_window(self.now);
        let is_over = matches!(fate, Fate::Broken | Fate::Failed) || mirror.is_done();
        if is_over {
            if fate == Fate::Done {
                assert!(self.socket.is_ended && self.socket.peer_ended);
            }
            self.mirror = None;
        }
    }

    /// What must hold whatever has happened.
    fn check(&mut self) {
        let Some(mirror) = &self.mirror else { return };
        let inside = mirror.inside();
        let is_there = |wanted: Wanted| self.socket.come > self.socket.consumed + wanted.skip;
        let stays = inside.is_open && !mirror.is_readable && mirror.wanted().is_some_and(is_there);
        assert!(!stays, "what is in the socket stays there: {inside:?}");
        let is_in_order = |a: Seq, b: Seq| !b.is_before(a);
        assert!(is_in_order(inside.una, inside.nxt) && is_in_order(inside.nxt, inside.max), "{inside:?}");
        assert!(mirror.kept() <= (1 << 20) + 128 * 64, "{inside:?}");
        if !inside.is_open {
            return;
        }
        if let Some(before) = self.before.replace(inside.clone()) {
            assert!(is_in_order(before.edge, inside.edge) && is_in_order(before.next, inside.next));
            assert!(is_in_order(before.una, inside.una) && is_in_order(before.max, inside.max));
        }
        let mut end = inside.next;
        for (from, len) in &inside.pieces {
            assert!(is_in_order(end, *from), "pieces overlap, or are old: {inside:?}");
            end = from.plus(*len);
        }
        assert!(is_in_order(end, inside.edge), "kept beyond the window: {inside:?}");
        let taken = self.socket.taken + u32::from(self.socket.is_ended);
        assert_eq!(inside.next, self.iss.plus(1).plus(taken), "acknowledged is what the socket has");
        let acknowledged = inside.una.since(self.isn.plus(1)) - u32::from(inside.fin_is_acknowledged);
        assert_eq!(self.socket.consumed, acknowledged, "taken away is what the guest has acknowledged");
    }

    /// The guest says nothing any more.
    fn fall_silent(&mut self) {
        for _ in 0..QUESTIONS_MAX {
            let Some(mirror) = self.mirror.as_ref().filter(|mirror| !mirror.is_connecting()) else { return };
            self.now = self.now.max(mirror.due());
            self.timer();
            self.supply(u16::MAX);
            self.check();
        }
        assert!(self.mirror.is_none(), "a guest that says nothing is waited for without end");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_a_guest_says_it_holds(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            super::trial(&bytes);
        }
    }
}
