//! What the supervisor waits for.

/// Everything that wakes the supervisor: the table of contents of its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// SIGTERM, SIGINT or SIGHUP has come.
    Signals,
    /// A session has ended; its port's number waits in `ports`.
    SessionEnded,
    /// A worker has ended, and its ports' frames move no more: so must we end, for whoever started us to start us
    /// again.
    WorkerEnded,
    /// VMs wait to be accepted on the listener with this index. Not waited for while it is paused.
    Listener(u32),
    /// Listeners that were paused for want of descriptors may try again. Runs only while there are some.
    ResumeTimer,
    /// A VMM that was not there may be there now. Runs only while one is not.
    RetryTimer,
    /// A line of statistics is due. Exists only where statistics are wanted.
    StatsTimer,
}

impl Source {
    /// The source as epoll's user data.
    pub(super) fn token(self) -> u64 {
        match self {
            Source::Signals => 0,
            Source::SessionEnded => 1,
            Source::ResumeTimer => 2,
            Source::RetryTimer => 3,
            Source::StatsTimer => 4,
            Source::WorkerEnded => 5,
            Source::Listener(index) => LISTENERS | u64::from(index),
        }
    }

    /// The source that has this token.
    pub(super) fn from_token(token: u64) -> Option<Self> {
        match token {
            0 => Some(Source::Signals),
            1 => Some(Source::SessionEnded),
            2 => Some(Source::ResumeTimer),
            3 => Some(Source::RetryTimer),
            4 => Some(Source::StatsTimer),
            5 => Some(Source::WorkerEnded),
            listener if listener & LISTENERS != 0 => u32::try_from(listener & !LISTENERS).ok().map(Source::Listener),
            _ => None,
        }
    }
}

const LISTENERS: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_unambiguous() {
        use Source::{Listener, ResumeTimer, RetryTimer, SessionEnded, Signals, StatsTimer, WorkerEnded};
        let timers = [ResumeTimer, RetryTimer, StatsTimer];
        for source in [Signals, SessionEnded, WorkerEnded, Listener(0), Listener(u32::MAX)].into_iter().chain(timers) {
            assert_eq!(Source::from_token(source.token()), Some(source));
        }
        assert_eq!(Source::from_token(6), None);
        assert_eq!(Source::from_token(u64::MAX), None);
    }
}
