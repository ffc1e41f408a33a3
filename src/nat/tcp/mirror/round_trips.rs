//! How long a guest takes to acknowledge, and how long it is waited for therefore (RFC 6298).
//!
//! One sending is timed at a time, and none that was sent again, since nobody knows which of the two is acknowledged
//! (Karn). Times are in nanoseconds.

use super::super::super::seq::Seq;
use super::{RETRY_MAX_NS, SECOND};

/// The first wait (2.1).
const FIRST_NS: u64 = SECOND;
/// The shortest. A guest may leave an acknowledgement for 40 ms, and its processor may be another's for a while.
const LEAST_NS: u64 = SECOND / 5;
/// What the clock's steps could hide, of the variance (G).
const GRAIN_NS: u64 = SECOND / 1000;

/// See the module's theory of operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrips {
    smoothed: u64,
    variance: u64,
    wait: u64,
    /// What is timed: the number that acknowledges it, and when it was sent.
    timed: Option<(Seq, u64)>,
}

impl RoundTrips {
    pub(super) fn new() -> Self {
        Self { smoothed: 0, variance: 0, wait: FIRST_NS, timed: None }
    }

    /// How long an acknowledgement is waited for.
    pub(super) fn wait(&self) -> u64 {
        self.wait
    }

    /// How long acknowledgements take, in nanoseconds; zero: there was none yet (SRTT).
    pub(super) fn smoothed(&self) -> u64 {
        self.smoothed
    }

    /// Something new was sent, which this number acknowledges.
    pub(super) fn sent(&mut self, until: Seq, now: u64) {
        self.timed.get_or_insert((until, now));
    }

    /// Something is sent again.
    pub(super) fn sent_again(&mut self) {
        self.timed = None;
    }

    /// All before this number is acknowledged.
    pub(super) fn acknowledged(&mut self, ack: Seq, now: u64) {
        let Some((_, sent_at)) = self.timed.filter(|(until, _)| !ack.is_before(*until)) else { return };
        self.timed = None;
        let sample = now.saturating_sub(sent_at).min(RETRY_MAX_NS);
        if self.smoothed == 0 {
            (self.smoothed, self.variance) = (sample.max(1), sample / 2);
        } else {
            self.variance = (3 * self.variance + self.smoothed.abs_diff(sample)) / 4;
            self.smoothed = (7 * self.smoothed + sample) / 8;
        }
        self.wait = (self.smoothed + (4 * self.variance).max(GRAIN_NS)).clamp(LEAST_NS, RETRY_MAX_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = SECOND / 1000;

    fn after(samples: &[u64]) -> RoundTrips {
        let (mut trips, mut now) = (RoundTrips::new(), 5);
        for (number, sample) in (1..).zip(samples) {
            trips.sent(Seq(number), now);
            now += sample * MILLI;
            trips.acknowledged(Seq(number), now);
        }
        trips
    }

    #[test]
    fn waits_follow_the_round_trips() {
        assert_eq!(after(&[]).wait(), SECOND);
        // The first one counts twice its half for variance: three times itself (2.2).
        assert_eq!(after(&[400]).wait(), 1200 * MILLI);
        assert_eq!(after(&[400, 400]).wait(), 1000 * MILLI);
        assert_eq!(after(&[0]).wait(), LEAST_NS);
        assert_eq!(after(&[1; 20]).wait(), LEAST_NS);
        assert_eq!(after(&[100_000; 3]).wait(), RETRY_MAX_NS);
        let steady = after(&[400; 60]).wait();
        assert!((400 * MILLI..410 * MILLI).contains(&steady), "{steady}");
    }

    #[test]
    fn acknowledgements_take_so_long() {
        assert_eq!(after(&[]).smoothed(), 0);
        assert_eq!(after(&[400, 400, 800]).smoothed(), 450 * MILLI);
    }

    #[test]
    fn what_was_sent_again_is_not_timed() {
        let mut trips = RoundTrips::new();
        trips.sent(Seq(10), 0);
        trips.sent_again();
        trips.acknowledged(Seq(10), 700 * MILLI);
        assert_eq!(trips.wait(), SECOND);
        // Nor by what acknowledges less.
        trips.sent(Seq(20), SECOND);
        trips.acknowledged(Seq(19), 5 * SECOND);
        assert_eq!(trips.wait(), SECOND);
        trips.acknowledged(Seq(21), SECOND + 100 * MILLI);
        assert_eq!(trips.wait(), 300 * MILLI);
    }
}
