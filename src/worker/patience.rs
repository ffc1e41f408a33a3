//! How long a ring is polled after it was last seen with work.
//!
//! Theory of operation. To poll a ring that stays empty takes a core from guests that could use it; to arm it too
//! early costs the guest a kick and us a wake-up. Which of the two is dearer depends on how long the ring stays empty,
//! and the best guess at that is how long it did the last times. So each ring learns from its own gaps: one that
//! polling to the bound would have spanned makes the ring's patience twice as long, one that was longer than the bound
//! makes it half as long. A ring in steady exchange is soon polled through its gaps, one that speaks once in a while is
//! armed almost at once. (KVM decides in the same way how long a halted processor is polled for.)
//!
//! Limits: [`MIN_NS`] and [`MAX_NS`], both small against what a person or a scheduler notices.

/// The shortest time to poll, in nanoseconds: less than a kick costs the guest.
pub(super) const MIN_NS: u64 = 2_000;
/// The longest time to poll, in nanoseconds.
pub(super) const MAX_NS: u64 = 200_000;

/// What one ring has learned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    poll_ns: u64,
    /// When it was first seen empty before it was armed.
    empty_since_ns: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { poll_ns: MAX_NS, empty_since_ns: 0 }
    }
}

impl Patience {
    /// How long to poll, in nanoseconds.
    pub(super) fn poll_ns(&self) -> u64 {
        self.poll_ns
    }

    /// The ring is armed, after being empty since then.
    pub(super) fn armed(&mut self, empty_since_ns: u64) {
        self.empty_since_ns = empty_since_ns;
    }

    /// The ring has been kicked.
    pub(super) fn kicked(&mut self, now_ns: u64) {
        let gap_ns = now_ns.saturating_sub(self.empty_since_ns);
        let poll_ns = if gap_ns <= MAX_NS { self.poll_ns * 2 } else { self.poll_ns / 2 };
        self.poll_ns = poll_ns.clamp(MIN_NS, MAX_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gaps_ns: &[u64]) -> u64 {
        let mut patience = Patience::default();
        let mut now_ns = 1_000_000;
        for gap_ns in gaps_ns {
            patience.armed(now_ns);
            now_ns += gap_ns;
            patience.kicked(now_ns);
        }
        patience.poll_ns()
    }

    #[test]
    fn gaps_that_polling_would_span_make_it_patient() {
        assert_eq!(after(&[]), MAX_NS);
        assert_eq!(after(&[MAX_NS]), MAX_NS);
        assert_eq!(after(&[1_000_000; 20]), MIN_NS);
        let (long, short) = ([1_000_000; 20], [MIN_NS; 7]);
        assert_eq!(after(&[long.as_slice(), &short].concat()), MAX_NS);
        assert_eq!(after(&[long.as_slice(), &short[..1]].concat()), 2 * MIN_NS);
    }
}
