//! Whose turn it is where a burst may cost far more than its bytes.
//!
//! Theory of operation. On a network with a gateway a frame may be dear: a SYN makes a socket and connects it, which
//! takes as long as copying a hundred frames, and as much time again when the host says what has become of it. With one
//! burst for each port and round, who sends nothing but such frames would have most of the worker's time. So each port
//! has an account of the time that its dear frames took, and of what came of them, and there is a clock that goes as
//! fast as time does if one port sends anything, a quarter as fast if two do, a sixth if three do, and so on. A port
//! that is more than [`AHEAD_NS`] ahead of the clock passes its turn. So dear frames get no more than half of the
//! port's share of the worker, and the other half makes up for what they cost the processor's caches and the host
//! beside it; those that are not dear are not slowed by it, and a port that is alone never waits.
//!
//! What must hold: the clock does not go back, and a port that had nothing to send for a while has not saved anything
//! up.

/// How far a port may be ahead of the clock, in nanoseconds: a few dear frames.
const AHEAD_NS: u64 = 200_000;
/// Ports count as sending that had a turn, or had to pass it, in the last so many nanoseconds.
const WINDOW_NS: u64 = 1_000_000;

/// What a port's dear frames have had of the worker's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// In nanoseconds of the clock.
    had_ns: u64,
    /// The window in which it was last counted.
    counted_in: u64,
}

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Turns {
    clock_ns: u64,
    /// When it was last looked at, and when the window ends, in nanoseconds of real time.
    now_ns: u64,
    window_ends_ns: u64,
    /// The window's number, and how many ports have sent in it so far, and in the last one.
    window: u64,
    count: u64,
    before: u64,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { clock_ns: 0, now_ns: 0, window_ends_ns: 0, window: 1, count: 0, before: 0 }
    }

    /// It is that late.
    pub(super) fn go_on(&mut self, now_ns: u64) {
        let senders = self.before.max(self.count);
        self.clock_ns += now_ns.saturating_sub(self.now_ns) / if senders > 1 { 2 * senders } else { 1 };
        self.now_ns = now_ns;
        if now_ns >= self.window_ends_ns {
            self.window_ends_ns = now_ns + WINDOW_NS;
            self.window += 1;
            (self.before, self.count) = (self.count, 0);
        }
    }

    /// Whether it is the turn of a port, which may have something to send.
    #[inline]
    pub(super) fn is_up(&mut self, account: &mut Account) -> bool {
        let is_up = account.had_ns <= self.clock_ns + AHEAD_NS;
        if !is_up {
            self.sends(account);
        }
        is_up
    }

    /// A port sends something.
    #[inline]
    pub(super) fn sends(&mut self, account: &mut Account) {
        if account.counted_in != self.window {
            account.counted_in = self.window;
            self.count += 1;
        }
    }

    /// What is dear has taken a port so many nanoseconds.
    pub(super) fn charge(&self, account: &mut Account, ns: u64) {
        account.had_ns = account.had_ns.max(self.clock_ns) + ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a port sends: how long its turns take, how much of that is dear, and in how many rounds it has any.
    #[derive(Clone, Copy)]
    struct Load(u64, u64, u64);

    /// Rounds of such ports for so many nanoseconds. Returns what part of it each has had.
    fn rounds<const N: usize>(loads: [Load; N], time_ns: u64) -> [f64; N] {
        let (mut turns, mut accounts, mut had) = (Turns::new(), [Account::default(); N], [0; N]);
        let (mut now_ns, mut round) = (0, 0);
        while now_ns < time_ns {
            round += 1;
            now_ns += 1000;
            turns.go_on(now_ns);
            for (i, Load(ns, dear_ns, one_in)) in loads.into_iter().enumerate() {
                if turns.is_up(&mut accounts[i]) && round % one_in == 0 {
                    turns.sends(&mut accounts[i]);
                    turns.charge(&mut accounts[i], dear_ns);
                    had[i] += ns;
                    now_ns += ns;
                }
            }
        }
        had.map(|had| had as f64 / now_ns as f64)
    }

    #[test]
    fn dear_frames_get_no_more_than_half_a_share() {
        // One round of three has something of the others: they wait for what they send, now and then.
        let [a, b, c, dear] = rounds(
            [Load(20_000, 0, 3), Load(30_000, 0, 3), Load(10_000, 0, 3), Load(2_000_000, 2_000_000, 1)],
            10_000_000_000,
        );
        assert!(dear < 0.14 && a + b + c > 0.7, "{a} {b} {c} {dear}");
    }

    #[test]
    fn whoever_is_alone_need_not_wait() {
        let [dear] = rounds([Load(2_000_000, 2_000_000, 1)], 1_000_000_000);
        assert!(dear > 0.95, "{dear}");
    }

    #[test]
    fn what_is_not_dear_is_not_slowed() {
        let [busy, others @ ..] = rounds([Load(100_000, 0, 1), Load(1000, 0, 5), Load(1000, 0, 7)], 1_000_000_000);
        assert!(busy > 0.95, "{busy} {others:?}");
    }

    #[test]
    fn nothing_is_saved_up() {
        let (mut turns, mut account) = (Turns::new(), Account::default());
        turns.go_on(1_000_000_000);
        turns.charge(&mut account, 1_000_000);
        assert!(!turns.is_up(&mut account));
        turns.go_on(1_000_000_000 + 1_000_000 - AHEAD_NS);
        assert!(turns.is_up(&mut account));
    }
}
