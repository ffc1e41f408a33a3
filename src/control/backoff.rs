//! How long to wait before trying to reach a VMM again.

use std::time::Duration;

/// The wait after the first failure, and after a connection that had worked.
pub(super) const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest wait.
pub(super) const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
/// A connection that lasted at least as long has worked; one that ended sooner counts as a failure to connect.
pub(super) const WORKED_MIN: Duration = Duration::from_secs(1);

const _: () = assert!(RETRY_DELAY_MIN.as_millis() <= RETRY_DELAY_MAX.as_millis());

/// The waits between attempts: doubling, with a bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    /// As after a connection that worked.
    pub(super) fn new() -> Self {
        Self(RETRY_DELAY_MIN)
    }

    /// The wait after an attempt that failed.
    pub(super) fn failed(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(RETRY_DELAY_MAX);
        wait
    }

    /// The wait after a connection that ended after `lasted`.
    pub(super) fn ended(&mut self, lasted: Duration) -> Duration {
        if lasted >= WORKED_MIN {
            *self = Self::new();
        }
        self.failed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..6).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.ended(WORKED_MIN - Duration::from_millis(1)), RETRY_DELAY_MAX, "it never worked");
        assert_eq!(backoff.ended(WORKED_MIN), RETRY_DELAY_MIN);
        assert_eq!(backoff.failed(), RETRY_DELAY_MIN * 2);
    }
}
