//! Which of the frames that a NIC brings are those that we ourselves gave to its host.
//!
//! Theory of operation. What guests send to groups goes to the wire and to the host, and the way to the host ends in
//! the NIC's own receive path, where our socket hears it once more, like a frame of the LAN. By its source it cannot be
//! told apart: a guest may send from any address, also from one of a station of the LAN, whose frames must not be lost
//! for that. So the frame as a whole tells. Each is remembered, as a keyed hash, when it is given to the host, and
//! forgotten with the first that comes and is the same, byte for byte. Should the LAN bring the very same frame at that
//! moment, one of the two is dropped and one passes: nobody can tell which.
//!
//! Limits: [`ECHOES_MAX`] and [`ECHO_AGE_MAX`] for those that are lost on their way.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Frames that are remembered: more than come back between two looks at the socket.
const ECHOES_MAX: usize = 1024;
/// How long they are. The kernel brings them back before it returns from the call that gave them.
const ECHO_AGE_MAX: Duration = Duration::from_secs(1);

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    /// Oldest first.
    expected: VecDeque<(u64, Instant)>,
    key: RandomState,
}

impl Echoes {
    /// Notes a frame that will come back.
    pub(super) fn expect(&mut self, frame: &[u8], now: Instant) {
        if self.expected.len() == ECHOES_MAX {
            self.expected.pop_front();
        }
        self.expected.push_back((self.key.hash_one(frame), now));
    }

    /// Whether a frame that came is one that was to come back; if so it will not come again.
    pub(super) fn take(&mut self, frame: &[u8], now: impl FnOnce() -> Instant) -> bool {
        if self.expected.is_empty() {
            return false;
        }
        let now = now();
        while self.expected.front().is_some_and(|(_, since)| now.duration_since(*since) > ECHO_AGE_MAX) {
            self.expected.pop_front();
        }
        let hash = self.key.hash_one(frame);
        let found = self.expected.iter().position(|(expected, _)| *expected == hash);
        found.and_then(|at| self.expected.remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frame_comes_back_once_and_soon() {
        let (mut echoes, start) = (Echoes::default(), Instant::now());
        assert!(!echoes.take(b"one", || panic!("nothing is expected")));
        for frame in [b"one", b"two", b"one"] {
            echoes.expect(frame, start);
        }
        assert!(echoes.take(b"two", || start) && !echoes.take(b"two", || start));
        assert!(echoes.take(b"one", || start) && echoes.take(b"one", || start) && !echoes.take(b"one", || start));
        echoes.expect(b"one", start);
        assert!(!echoes.take(b"one", || start + ECHO_AGE_MAX + Duration::from_millis(1)));
        assert!(echoes.expected.is_empty());
    }

    #[test]
    fn what_never_comes_back_takes_bounded_room() {
        let (mut echoes, start) = (Echoes::default(), Instant::now());
        (0..5 * ECHOES_MAX).for_each(|n| echoes.expect(&n.to_le_bytes(), start));
        assert_eq!(echoes.expected.len(), ECHOES_MAX);
        assert!(echoes.take(&(5 * ECHOES_MAX - 1).to_le_bytes(), || start));
    }
}
