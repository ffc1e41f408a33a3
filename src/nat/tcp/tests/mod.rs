//! The TCP mirror between a simulated guest and a simulated socket, on a clock that is a number.

mod case;
mod cases;
mod flight;
mod garbage;
mod guest;
mod host;
mod invariants;
mod sim;
mod weather;

use super::super::seq::Seq;

/// A second of the clock.
pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const MILLI: u64 = 1_000_000;
pub(super) const MICRO: u64 = 1000;

/// Random numbers that are the same for the same seed, wherever and whenever (xorshift64*).
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        // Neighbouring seeds begin far apart, and none with zero, which would stay zero.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not zero.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// A number from `from` to `to`, both included.
    pub(super) fn range(&mut self, from: u32, to: u32) -> u32 {
        from + self.below(u64::from(to - from) + 1) as u32
    }

    /// Whether something happens that does so many times in a thousand.
    pub(super) fn happens(&mut self, in_thousand: u32) -> bool {
        self.below(1000) < u64::from(in_thousand)
    }

    pub(super) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// What one side sends to the other: as many bytes as its application has to say, which are the same whenever asked.
#[derive(Clone)]
pub(super) struct Stream {
    bytes: std::rc::Rc<[u8]>,
    from: usize,
    pub(super) len: u32,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

impl Stream {
    /// Longer than any stream.
    const SOURCE_LEN: usize = 1 << 20;

    pub(super) fn source(rng: &mut Rng) -> std::rc::Rc<[u8]> {
        (0..Self::SOURCE_LEN).map(|_| rng.next() as u8).collect()
    }

    pub(super) fn new(bytes: std::rc::Rc<[u8]>, len: u32, rng: &mut Rng) -> Self {
        let from = rng.below((Self::SOURCE_LEN - len as usize) as u64) as usize;
        Self { bytes, from, len }
    }

    /// `len` bytes from the `at`th on.
    pub(super) fn part(&self, at: u32, len: u32) -> &[u8] {
        assert!(at + len <= self.len, "bytes {at} to {} of a stream of {}", at + len, self.len);
        &self.bytes[self.from + at as usize..][..len as usize]
    }
}

/// How far `of` is after `from`; negative if it is before.
pub(super) fn distance(of: Seq, from: Seq) -> i64 {
    if of.is_before(from) { -i64::from(from.since(of)) } else { of.since(from).into() }
}
