//! How long to wait before trying again what failed.

use std::time::Duration;

/// The wait after the first failure to reach a VMM, and after a connection that had worked.
pub(super) const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest wait for a VMM.
pub(super) const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
/// A connection that lasted at least as long has worked; one that ended sooner counts as a failure to connect.
pub(super) const WORKED_MIN: Duration = Duration::from_secs(1);
/// The wait after the first failure to open an uplink again: whoever makes a tap holds it for a moment.
pub(super) const UPLINK_DELAY_MIN: Duration = Duration::from_secs(1);
/// The longest wait for an uplink.
pub(super) const UPLINK_DELAY_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(RETRY_DELAY_MIN.as_millis() <= RETRY_DELAY_MAX.as_millis());
const _: () = assert!(UPLINK_DELAY_MIN.as_millis() <= UPLINK_DELAY_MAX.as_millis());

/// The waits between attempts: doubling, with a bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// Of attempts to reach a VMM, as after a connection that worked.
    pub(super) fn of_vmm() -> Self {
        Self { next: RETRY_DELAY_MIN, min: RETRY_DELAY_MIN, max: RETRY_DELAY_MAX }
    }

    /// Of attempts to open an uplink.
    pub(super) fn of_uplink() -> Self {
        Self { next: UPLINK_DELAY_MIN, min: UPLINK_DELAY_MIN, max: UPLINK_DELAY_MAX }
    }

    /// The wait after an attempt that failed.
    pub(super) fn failed(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        wait
    }

    /// Begins anew: something has changed.
    pub(super) fn restart(&mut self) {
        self.next = self.min;
    }

    /// The wait after a connection that ended after `lasted`.
    pub(super) fn ended(&mut self, lasted: Duration) -> Duration {
        if lasted >= WORKED_MIN {
            self.restart();
        }
        self.failed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_vmm_double_up_to_a_second() {
        let mut backoff = Backoff::of_vmm();
        let waits: Vec<_> = (0..6).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.ended(WORKED_MIN - Duration::from_millis(1)), RETRY_DELAY_MAX, "it never worked");
        assert_eq!(backoff.ended(WORKED_MIN), RETRY_DELAY_MIN);
        assert_eq!(backoff.failed(), RETRY_DELAY_MIN * 2);
    }

    #[test]
    fn waits_for_an_uplink_double_up_to_half_a_minute() {
        let mut backoff = Backoff::of_uplink();
        let waits: Vec<_> = (0..7).map(|_| backoff.failed().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        backoff.restart();
        assert_eq!(backoff.failed(), UPLINK_DELAY_MIN);
    }
}
