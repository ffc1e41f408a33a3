//! What the supervisor waits for.

/// Which of the networks that have run in this process. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NetworkId(u32);

/// Bits of a token that a network's number has.
const NETWORK_BITS: u32 = 24;
/// Where they begin; below is the index of a listener.
const NETWORK_SHIFT: u32 = 32;
/// Where the kind of source begins.
const KIND_SHIFT: u32 = NETWORK_SHIFT + NETWORK_BITS;

impl NetworkId {
    /// The first network.
    pub(super) const FIRST: NetworkId = NetworkId(0);

    /// The one after this. `None` when all are used up.
    pub(super) fn next(self) -> Option<Self> {
        let next = self.0 + 1;
        (next >> NETWORK_BITS == 0).then_some(Self(next))
    }
}

/// Everything that wakes the supervisor: the table of contents of its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// SIGTERM, SIGINT or SIGHUP has come.
    Signals,
    /// A session has ended; its port's number waits in `ports`.
    SessionEnded,
    /// A worker has ended, and its ports' frames move no more: so must we end, for whoever started us to start us
    /// again.
    WorkerEnded(NetworkId),
    /// VMs wait to be accepted on the listener with this number. Not waited for while it is paused.
    Listener(NetworkId, u32),
    /// Listeners that were paused for want of descriptors may try again. Runs only while there are some.
    ResumeTimer,
    /// A VMM that was not there may be there now. Runs only while one is not.
    RetryTimer,
    /// The device behind the network's uplink has gone.
    UplinkGone(NetworkId),
    /// Something has happened to an interface of the host. Exists only where there are uplinks.
    Links,
    /// An uplink whose device is there and could not be opened may be opened now. Runs only while there is one.
    UplinkTimer,
    /// Leases have changed.
    LeasesChanged(NetworkId),
    /// Leases that have changed are to be written now.
    LeaseTimer,
    /// A line of statistics is due. Exists only where statistics are wanted.
    StatsTimer,
}

impl Source {
    /// The source as epoll's user data.
    pub(super) fn token(self) -> u64 {
        let token = |kind: u64, network: NetworkId, index: u32| {
            kind << KIND_SHIFT | u64::from(network.0) << NETWORK_SHIFT | u64::from(index)
        };
        match self {
            Source::Signals => token(0, NetworkId::FIRST, 0),
            Source::SessionEnded => token(1, NetworkId::FIRST, 0),
            Source::ResumeTimer => token(2, NetworkId::FIRST, 0),
            Source::RetryTimer => token(3, NetworkId::FIRST, 0),
            Source::StatsTimer => token(4, NetworkId::FIRST, 0),
            Source::WorkerEnded(network) => token(5, network, 0),
            Source::Listener(network, index) => token(6, network, index),
            Source::UplinkGone(network) => token(7, network, 0),
            Source::Links => token(8, NetworkId::FIRST, 0),
            Source::LeasesChanged(network) => token(9, network, 0),
            Source::LeaseTimer => token(10, NetworkId::FIRST, 0),
            Source::UplinkTimer => token(11, NetworkId::FIRST, 0),
        }
    }

    /// The source that has this token.
    pub(super) fn from_token(token: u64) -> Option<Self> {
        let network = NetworkId((token >> NETWORK_SHIFT) as u32 & ((1 << NETWORK_BITS) - 1));
        let source = match token >> KIND_SHIFT {
            0 => Source::Signals,
            1 => Source::SessionEnded,
            2 => Source::ResumeTimer,
            3 => Source::RetryTimer,
            4 => Source::StatsTimer,
            5 => Source::WorkerEnded(network),
            6 => Source::Listener(network, (token & u64::from(u32::MAX)) as u32),
            7 => Source::UplinkGone(network),
            8 => Source::Links,
            9 => Source::LeasesChanged(network),
            10 => Source::LeaseTimer,
            11 => Source::UplinkTimer,
            _ => return None,
        };
        (source.token() == token).then_some(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_unambiguous() {
        use Source::{LeaseTimer, LeasesChanged, Links, Listener, ResumeTimer, RetryTimer};
        use Source::{SessionEnded, Signals, StatsTimer, UplinkGone, UplinkTimer, WorkerEnded};
        let last = NetworkId((1 << NETWORK_BITS) - 1);
        assert_eq!(last.next(), None);
        let one = NetworkId::FIRST.next().unwrap();
        let of_networks = [NetworkId::FIRST, one, last].into_iter().flat_map(|network| {
            let listeners = [0, 1, u32::MAX].map(|index| Listener(network, index));
            listeners.into_iter().chain([WorkerEnded(network), UplinkGone(network), LeasesChanged(network)])
        });
        let mut seen = std::collections::HashSet::new();
        let others = [Signals, SessionEnded, ResumeTimer, RetryTimer, StatsTimer, Links, LeaseTimer, UplinkTimer];
        for source in others.into_iter().chain(of_networks) {
            assert_eq!(Source::from_token(source.token()), Some(source));
            assert!(seen.insert(source.token()), "{source:?}");
        }
        assert_eq!(Source::from_token(12 << KIND_SHIFT), None);
        assert_eq!(Source::from_token(1), None);
        assert_eq!(Source::from_token(u64::MAX), None);
    }
}
