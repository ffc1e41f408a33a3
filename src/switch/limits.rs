//! How much one port may flood.
//!
//! Theory of operation. A frame that is flooded on a network of 255 ports costs as much as 254 that are forwarded, so a
//! guest that floods would take the time of all others. What is limited is therefore the copies beyond the first: a
//! network of two ports is never limited, and on larger ones flooding stays within reach of what forwarding costs.
//!
//! Two bounds hold. The one per burst bounds how long others wait while one burst is served. The one per second
//! and port bounds which part of a worker's time a port can take for good: at 50 ns for a copy of a short frame,
//! 1.3 %. A port that has used up its second loses only its own flooded frames, and only until the next second.
//! Normal guests stay far below both: on 255 ports they leave 16 broadcasts in one burst and 1,000 in a second, on 16
//! ports every frame of a burst and 17,000 in a second.
//!
//! The bounds count frames, not bytes: the switch sees only a frame's first bytes. How many bytes a burst may be copied
//! into is for the caller to bound.

/// Copies beyond the first, summed over all frames of one burst, before further frames are no longer flooded.
pub const FLOOD_COPIES_PER_BURST_MAX: u32 = 4096;

/// Copies beyond the first that the frames of one port make within a second of the caller's clock.
pub const FLOOD_COPIES_PER_SECOND_MAX: u32 = 1 << 18;

// The largest network floods several frames of a burst, one of 255 ports 16, one of 128 every frame of a burst of 32;
// and a second is many bursts.
const _: () = assert!(FLOOD_COPIES_PER_BURST_MAX as usize >= 4 * (super::PORTS_MAX - 2));
const _: () = assert!(FLOOD_COPIES_PER_BURST_MAX >= 16 * (255 - 2) && FLOOD_COPIES_PER_BURST_MAX >= 32 * (128 - 2));
const _: () = assert!(FLOOD_COPIES_PER_SECOND_MAX >= 32 * FLOOD_COPIES_PER_BURST_MAX);

/// What one burst has left to flood.
#[derive(Debug)]
pub(super) struct BurstBudget {
    copies_left: u32,
}

impl BurstBudget {
    pub(super) const FULL: Self = Self { copies_left: FLOOD_COPIES_PER_BURST_MAX };
}

/// What one port has used up of its present second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PortBudget {
    second: u32,
    copies: u32,
}

impl PortBudget {
    /// Takes a frame for `receivers` ports from both budgets. `false` if either lacks it; then nothing is taken.
    pub(super) fn take(&mut self, burst: &mut BurstBudget, receivers: u32, now_s: u32) -> bool {
        if self.second != now_s {
            *self = Self { second: now_s, copies: 0 };
        }
        let extra = receivers.saturating_sub(1);
        if extra > burst.copies_left || extra > FLOOD_COPIES_PER_SECOND_MAX - self.copies {
            return false;
        }
        burst.copies_left -= extra;
        self.copies += extra;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames that pass in one burst of 32.
    fn burst(port: &mut PortBudget, receivers: u32, now_s: u32) -> usize {
        let mut budget = BurstBudget::FULL;
        (0..32).filter(|_| port.take(&mut budget, receivers, now_s)).count()
    }

    #[test]
    fn a_burst_floods_less_the_more_receivers_there_are() {
        let passed = |receivers| burst(&mut PortBudget::default(), receivers, 7);
        assert_eq!(
            [1, 16, 127, 254, 1023].map(passed),
            [32, 32, 32, 16, 4],
            "frames of 32 to 1, 16, 127, 254, 1023 receivers"
        );
    }

    #[test]
    fn a_second_bounds_all_bursts_of_a_port_and_the_next_one_starts_anew() {
        let mut port = PortBudget::default();
        for second in [0, 1, u32::MAX] {
            let frames: usize = (0..1000).map(|_| burst(&mut port, 254, second)).sum();
            assert_eq!(frames, (FLOOD_COPIES_PER_SECOND_MAX / 253) as usize);
        }
    }

    #[test]
    fn two_ports_are_never_limited() {
        let mut port = PortBudget::default();
        assert_eq!((0..100_000).map(|_| burst(&mut port, 1, 0)).sum::<usize>(), 3_200_000);
    }
}
