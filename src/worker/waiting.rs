//! Frames that wait, in their sender's memory, until their receiver has room.
//!
//! Theory of operation. A receiver that is slower than its sender runs out of buffers. What it has no room for could be
//! dropped, and TCP would take that for congestion and send it once more. So the burst waits instead, untouched and
//! unreturned: the sender's ring fills up, its own queues behind it, and TCP slows down without a loss.
//!
//! That must cost nobody but the two. Whatever the ring sends next waits behind the burst, so one may wait only
//!
//! * when the ring has sent to that receiver alone for [`ALONE_NS`], but for what is flooded: a frame for anybody else
//!   ends that, and what finds no room is dropped again from then on;
//! * as long as the receiver takes frames. When it has taken none for [`WAIT_NS`] it is stuck: what still
//!   finds no room is dropped, and nothing waits for it for [`STUCK_NS`].
//!
//! While a burst waits its ring is polled as a busy one is, so a receive ring still needs no kicks.
//!
//! Limits: one burst for each transmit ring, 12 KiB of our memory. When nothing waits each worker keeps one of them.

use crate::ring::Burst;

use super::network::Receiver;
use super::receiving::Judged;

/// How long a ring must have sent to one receiver alone before a burst waits for it, in nanoseconds. Short against the
/// time in which TCP finds its rate, long against a guest's pauses between two receivers.
pub(super) const ALONE_NS: u64 = 10_000_000;
/// How long a burst waits for a receiver that takes nothing, in nanoseconds: a guest that shares its processor with
/// others may be off it for that long.
pub(super) const WAIT_NS: u64 = 20_000_000;

/// How long nothing waits for a receiver that was stuck, in nanoseconds: waiting in vain takes a tenth of the time.
pub(super) const STUCK_NS: u64 = 200_000_000;

/// A burst that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) burst: Burst,
    pub(super) judged: Judged,
    pub(super) receiver: Receiver,
    /// The frames that the receiver had no room for, as bits.
    pub(super) left: u32,
    /// When it last took one.
    pub(super) since_ns: u64,
}

impl Waiting {
    /// Whether the receiver has had its time.
    pub(super) fn is_over(&self, now_ns: u64) -> bool {
        now_ns - self.since_ns > WAIT_NS
    }
}

/// To whom a transmit ring has sent lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Company {
    /// The place of the one receiver, if there is one.
    receiver: Option<u16>,
    /// When a burst may wait for it.
    from_ns: u64,
}

impl Company {
    /// The ring sends a burst to these receivers, beside what is flooded. Returns the one, if any, that it may wait
    /// for.
    #[inline]
    pub(super) fn note(&mut self, receivers: &[u16], now_ns: u64) -> Option<u16> {
        let only = match *receivers {
            [] => return None,
            [only] => Some(only),
            _ => None,
        };
        if only != self.receiver {
            *self = Self { receiver: only, from_ns: now_ns + ALONE_NS };
        }
        only.filter(|_| now_ns >= self.from_ns)
    }

    /// A burst has waited for too long.
    pub(super) fn give_up(&mut self, now_ns: u64) {
        self.from_ns = now_ns + STUCK_NS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_been_alone_for_a_while_is_waited_for() {
        let mut company = Company::default();
        assert_eq!(company.note(&[1], 5), None);
        assert_eq!(company.note(&[1], 4 + ALONE_NS), None, "not for long enough");
        assert_eq!(company.note(&[1], 5 + ALONE_NS), Some(1));
        assert_eq!(company.note(&[], 6 + ALONE_NS), None, "flooded frames are for nobody");
        assert_eq!(company.note(&[1], 7 + ALONE_NS), Some(1), "and change nothing");
        assert_eq!(company.note(&[1, 2], 8 + ALONE_NS), None);
        assert_eq!(company.note(&[1], 9 + ALONE_NS), None, "somebody else was there");
        assert_eq!(company.note(&[2], 9 + 2 * ALONE_NS), None);
        assert_eq!(company.note(&[2], 9 + 3 * ALONE_NS), Some(2));
    }

    #[test]
    fn who_is_stuck_is_not_waited_for_and_somebody_else_is() {
        let mut company = Company::default();
        company.note(&[1], 0);
        company.give_up(ALONE_NS);
        assert_eq!(company.note(&[1], ALONE_NS + STUCK_NS - 1), None);
        assert_eq!(company.note(&[1], ALONE_NS + STUCK_NS), Some(1));
        company.give_up(2 * STUCK_NS);
        assert_eq!(company.note(&[2], 2 * STUCK_NS), None);
        assert_eq!(company.note(&[2], 2 * STUCK_NS + ALONE_NS), Some(2));
    }
}
