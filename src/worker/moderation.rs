//! Interrupt moderation: when guests are told of the data that they were given.
//!
//! Theory of operation. A guest that is interrupted for each frame has little time left for anything else when frames
//! come quickly. So it is shown data at once, for it may be looking at its ring anyway, and interrupted for all that
//! has come together: at once, or, if it was told of a lot a moment ago, when [`HOLD_NS`] have passed since then. Who
//! is sent little, requests and answers, never waits. Nor does a guest whose ring is full, nor one that has got
//! [`BYTES_MAX`] meanwhile. Each guest has its own pace: none waits for another.
//!
//! What must hold: the worker does not sleep while a guest is still to be told ([`Moderation::has_any`]).

use crate::switch::PortId;

/// How long after it was told of a lot a guest is told again, in nanoseconds: as network cards do when data streams,
/// and a small part of what a guest's TCP takes for the shortest delay there can be.
const HOLD_NS: u64 = 150_000;
/// What is a lot, in bytes: the longest frame.
const LOT: usize = 64 * 1024;
/// Bytes after which a guest is told in any case.
const BYTES_MAX: usize = 1024 * 1024;

/// One guest's pace.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Bytes that it was not told of.
    bytes: usize,
    /// Until when it is not told, in nanoseconds.
    holds_until_ns: u64,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Moderation {
    /// By port.
    paces: Vec<Pace>,
    /// Whose guests are still to be told.
    untold: Vec<PortId>,
}

impl Moderation {
    fn pace(&mut self, port: PortId) -> &mut Pace {
        let index = usize::from(port.0);
        if self.paces.len() <= index {
            self.paces.resize(index + 1, Pace::default());
        }
        &mut self.paces[index]
    }

    /// The guest on a port was given a frame of `len` bytes, and not told.
    pub(super) fn gave(&mut self, port: PortId, len: usize) {
        let pace = self.pace(port);
        let is_first = pace.bytes == 0;
        pace.bytes += len;
        if is_first {
            self.untold.push(port);
        }
    }

    /// The guest on a port has no room for more: there is nothing to wait for.
    pub(super) fn is_full(&mut self, port: PortId) {
        self.pace(port).holds_until_ns = 0;
    }

    /// Whether a guest is still to be told.
    #[inline]
    pub(super) fn has_any(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Has the guests told whose time has come.
    pub(super) fn tell(&mut self, now_ns: u64, mut tell: impl FnMut(PortId)) {
        let Self { paces, untold } = self;
        untold.retain(|port| {
            let pace = &mut paces[usize::from(port.0)];
            if now_ns < pace.holds_until_ns && pace.bytes < BYTES_MAX {
                return true;
            }
            tell(*port);
            let holds_until_ns = if pace.bytes < LOT { 0 } else { now_ns + HOLD_NS };
            *pace = Pace { bytes: 0, holds_until_ns };
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PortId = PortId(3);
    const B: PortId = PortId(1);

    fn told(moderation: &mut Moderation, now_ns: u64) -> Vec<PortId> {
        let mut told = Vec::new();
        moderation.tell(now_ns, |port| told.push(port));
        told
    }

    #[test]
    fn who_was_told_of_a_lot_a_moment_ago_waits_and_nobody_else() {
        let mut moderation = Moderation::default();
        moderation.gave(A, LOT);
        assert_eq!(told(&mut moderation, 1000), [A]);
        assert!(!moderation.has_any());
        moderation.gave(A, LOT);
        moderation.gave(B, LOT - 1);
        assert_eq!(told(&mut moderation, 1001), [B]);
        assert!(moderation.has_any());
        moderation.gave(A, 1);
        moderation.gave(B, 1);
        assert_eq!(told(&mut moderation, 999 + HOLD_NS), [B], "it was told of little");
        assert_eq!(told(&mut moderation, 1000 + HOLD_NS), [A]);
        assert_eq!(told(&mut moderation, u64::MAX), [], "once");
    }

    #[test]
    fn nobody_waits_who_has_no_room_or_got_very_much() {
        let mut moderation = Moderation::default();
        let prepared: [fn(&mut Moderation); 2] = [|its| its.is_full(A), |its| its.gave(A, BYTES_MAX)];
        for prepare in prepared {
            moderation.gave(A, LOT);
            assert_eq!(told(&mut moderation, HOLD_NS), [A]);
            moderation.gave(A, 1);
            assert_eq!(told(&mut moderation, HOLD_NS + 1), []);
            prepare(&mut moderation);
            assert_eq!(told(&mut moderation, HOLD_NS + 2), [A]);
            moderation.is_full(A);
        }
    }
}
