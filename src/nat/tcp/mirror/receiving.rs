//! What the guest sends, on its way into the socket.

use std::io;
use std::ops::Range;

use super::super::super::seq::Seq;
use super::super::segment::{FIN, Segment};
use super::{Fate, HostSocket, Mirror, Phase, SCALE, SMALL_MAX};
use crate::ring::Bytes;
use crate::sys::net::is_out_of_memory;

/// More room is told in steps of a segment, or of this at the most. It is less than the least that the kernel has when
/// it says that it has room, so that no guest waits for a step that never comes.
const STEP_MAX: u16 = 1024;

impl Mirror {
    /// Takes what the segment brings.
    pub(super) fn take(
        &mut self,
        segment: &Segment,
        bytes: &Bytes<'_>,
        socket: &mut impl HostSocket,
        now: u64,
    ) -> Fate {
        let (mut at, mut part) = (segment.seq, segment.payload.clone());
        let ends_at = at.plus(segment.len());
        if part.is_empty() && !segment.has(FIN) {
            // An empty one from before is how it asks whether we are there. One from further on is not: what is
            // missing before it is on its way, or will be sent again.
            if at.is_before(self.next) {
                self.correct(segment, now);
            }
            return self.fate();
        }
        // The first small one after an acknowledgement, of those that come in order (RFC 9293, 3.8.6.3).
        let is_small = segment.payload.len() <= SMALL_MAX;
        let may_wait = is_small && !self.owes_ack && at == self.next;
        self.owe();
        self.note_fin(segment, ends_at);
        if at.is_before(self.next) {
            let known = (self.next.since(at) as usize).min(part.len());
            part.start += known;
            at = at.plus(known as u32);
        }
        // Nothing comes after the end.
        let limit = self.guest_fin.unwrap_or(self.edge);
        let room = if at.is_before(limit) { limit.since(at) as usize } else { 0 };
        part.end = part.start + part.len().min(room);
        if at == self.next {
            // What fills a gap goes straight through: it must not need room among what is kept, which waits for it.
            let direct = part.start..part.start + part.len().min(self.pending.gap(at));
            if !direct.is_empty() {
                let taken = match self.or_none(socket.send(bytes, direct), now) {
                    Ok(taken) => taken,
                    Err(fate) => return fate,
                };
                part.start += taken;
                at = at.plus(taken as u32);
                self.next = at;
            }
        }
        if !part.is_empty() {
            self.keep(at, bytes, part);
        } else if self.pending.end().is_none() {
            self.ack_waits_since = may_wait.then_some(now);
        }
        self.pass_on(socket, now)
    }

    /// Where the guest ends, if the segment says so: within its window, and not before what it has sent already.
    fn note_fin(&mut self, segment: &Segment, ends_at: Seq) {
        let is_inside = !self.edge.is_before(ends_at) && !ends_at.is_before(self.next);
        let is_last = self.pending.end().is_none_or(|end| !ends_at.is_before(end));
        if segment.has(FIN) && is_inside && is_last {
            self.guest_fin.get_or_insert(ends_at);
        }
    }

    /// Keeps bytes that the socket has not got.
    #[cold]
    fn keep(&mut self, at: Seq, bytes: &Bytes<'_>, part: Range<usize>) {
        let mut frame = Vec::new();
        bytes.copy_out(&mut frame);
        self.pending.insert(self.next, at, &frame[part]);
    }

    /// Gives the socket what was kept, and the end if the guest has ended.
    pub(in super::super) fn pass_on(&mut self, socket: &mut impl HostSocket, now: u64) -> Fate {
        while self.again_at.is_none()
            && let Some(kept) = self.pending.front(self.next)
        {
            let (len, sent) = (kept.len(), socket.send_kept(kept));
            let taken = match self.or_none(sent, now) {
                Ok(taken) => taken,
                Err(fate) => return fate,
            };
            self.pending.advance(taken);
            self.next = self.next.plus(taken as u32);
            if taken > 0 {
                self.owe();
            }
            if taken < len {
                break;
            }
        }
        if self.guest_fin == Some(self.next) && !self.is_ended {
            socket.end();
            self.is_ended = true;
            self.next = self.next.plus(1);
            // The end may come right behind the room for bytes.
            self.edge = self.edge.max(self.next);
            self.owes_ack = true;
        }
        self.fate()
    }

    fn fate(&self) -> Fate {
        let all_acknowledged = self.fin.is_some_and(|fin| fin.is_before(self.una));
        if self.is_ended && all_acknowledged { Fate::Done } else { Fate::Lives }
    }

    /// Whether it has ended, both ways, and the guest knows all that it has to.
    pub(in super::super) fn is_done(&self) -> bool {
        self.fate() == Fate::Done && !self.owes_ack
    }

    /// There is room for more: whether the guest waits for that.
    pub(in super::super) fn has_room(&mut self, socket: &mut impl HostSocket, now: u64) -> Fate {
        let before = self.next;
        let fate = self.pass_on(socket, now);
        if self.next == before && self.pending.front(before).is_some() {
            // It has room, and no memory to fill it with: and each time that it is tried it says that it has room.
            self.waits_for_memory(now);
        }
        let room = socket.room();
        let is_much = self.is_worth_telling(room) && room / 2 >= self.edge.since(self.next);
        if self.phase == Phase::Open && self.guest_fin.is_none() && is_much {
            self.owe();
        }
        fate
    }

    /// Whether so much room is enough more than the guest was told, not just crumbs (RFC 9293, 3.8.6.2.2).
    fn is_worth_telling(&self, room: u32) -> bool {
        let step = self.mss.clamp(1 << SCALE, STEP_MAX);
        room >= self.edge.since(self.next) + u32::from(step)
    }

    /// The window that the guest is told: the room that the kernel has, and never less than it was told before.
    pub(super) fn tell_window(&mut self, socket: &mut impl HostSocket) -> u16 {
        let scale = if self.is_scaled { SCALE } else { 0 };
        // Data on its way to a guest that only listens says what was said last: if that was little, the kernel tells
        // when it has more.
        let is_known = self.told_at.replace(self.next) == Some(self.next);
        // What is kept lies within the window, so its room counts already.
        let more = (!is_known).then(|| socket.room()).filter(|room| self.is_worth_telling(*room));
        // What cannot be said exactly is rounded to more, since what was told cannot be taken back.
        let units = more.map_or_else(|| self.edge.since(self.next).div_ceil(1 << scale), |room| room >> scale);
        let units = units.min(u16::MAX.into());
        self.edge = self.edge.max(self.next.plus(units << scale));
        units as u16
    }

    /// How much there was room for; or what becomes of the connection.
    fn or_none(&mut self, sent: io::Result<usize>, now: u64) -> Result<usize, Fate> {
        match sent {
            Ok(sent) => Ok(sent),
            Err(error) if is_out_of_memory(&error) => {
                self.waits_for_memory(now);
                Ok(0)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                // EFAULT among them: the guest's memory has gone.
                _ => Err(Fate::Failed),
            },
        }
    }
}
