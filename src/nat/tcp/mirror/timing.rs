//! What is to be done when nothing comes.

use super::super::super::SHORTAGE_NS;
use super::super::super::seq::Seq;
use super::super::segment::{ACK, Header};
use super::{
    HostSocket, KEEPALIVE_NS, Mirror, PROBE_NS, PROBES_MAX, Phase, RETRIES_MAX, RETRY_MAX_NS, RETRY_NS, SYN_RETRIES_MAX,
};

/// What is to be done about time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Timer {
    /// Nothing.
    Nothing,
    /// What the host had no memory for is to be tried again: [`Mirror::pass_on`].
    PassOn,
    /// Our SYN is to be sent again.
    Syn,
    /// What was not acknowledged is to be sent again.
    Again,
    /// The guest is to be asked what it has.
    Probe,
    /// The guest does not answer.
    GiveUp,
}

impl Mirror {
    /// When [`Self::timer`] is due.
    pub(in super::super) fn due(&self) -> u64 {
        let due = self.retry_at.unwrap_or(self.heard_at + KEEPALIVE_NS);
        self.again_at.map_or(due, |again_at| again_at.min(due))
    }

    /// The host has no memory for what the socket was given.
    pub(super) fn waits_for_memory(&mut self, now: u64) {
        self.again_at.get_or_insert(now + SHORTAGE_NS);
    }

    /// The host has no memory to read the socket with.
    pub(in super::super) fn reads_later(&mut self, now: u64) {
        self.reads_later = true;
        self.waits_for_memory(now);
    }

    /// Something is due: says what to do.
    pub(in super::super) fn timer(&mut self, now: u64) -> Timer {
        if now < self.due() {
            return Timer::Nothing;
        }
        if self.again_at.is_some_and(|again_at| again_at <= now) {
            (self.again_at, self.reads_later) = (None, false);
            return Timer::PassOn;
        }
        let most = match self.phase {
            Phase::Connecting => return self.wait_on(now),
            Phase::Open if self.una == self.max => PROBES_MAX,
            Phase::Answered | Phase::Asked => SYN_RETRIES_MAX,
            Phase::Open => RETRIES_MAX,
        };
        // Who has no room may go on having none, as long as it says so: one lost answer is no silence.
        let (has_no_room, patience) = (self.has_no_room(), u64::from(RETRIES_MAX) * RETRY_MAX_NS);
        if self.retries >= most && !(has_no_room && now < self.heard_at + patience) {
            return Timer::GiveUp;
        }
        self.retries = self.retries.saturating_add(1);
        let does = match self.phase {
            Phase::Answered | Phase::Asked => Timer::Syn,
            _ if self.una == self.max || has_no_room => Timer::Probe,
            _ => Timer::Again,
        };
        let first = if does == Timer::Again { self.round_trips.wait() } else { RETRY_NS };
        let is_silent = self.una == self.max && !has_no_room;
        let pause = if is_silent { PROBE_NS } else { (first << self.retries.min(RETRIES_MAX)).min(RETRY_MAX_NS) };
        self.retry_at = Some(now + pause);
        match does {
            Timer::Again => {
                self.send_again();
                (self.equal_acks, self.recovers) = (0, Some(self.max));
            }
            _ => self.round_trips.sent_again(),
        }
        does
    }

    /// The kernel gives up by itself.
    fn wait_on(&mut self, now: u64) -> Timer {
        self.retry_at = Some(now + KEEPALIVE_NS);
        Timer::Nothing
    }

    /// Whether the guest has no room for what there is, be it new or what it has taken its room back from.
    pub(super) fn has_no_room(&self) -> bool {
        let is_something_left = self.una != self.max || self.is_readable && self.fin.is_none();
        self.phase == Phase::Open && self.window == 0 && is_something_left
    }

    /// The guest has no room for what there is: it is asked now and then, should the segment that says so be lost.
    pub(in super::super) fn waits_for_window(&mut self, now: u64) {
        if self.has_no_room() {
            self.retry_at.get_or_insert(now + RETRY_NS);
        }
    }

    /// What asks the guest what it has: a segment from before.
    pub(in super::super) fn probe(&mut self, socket: &mut impl HostSocket) -> Header {
        let seq = Seq(self.una.0.wrapping_sub(1));
        self.header(seq, ACK, socket)
    }
}
