//! Verdicts that a port was given a moment ago, to be given again without asking the table.
//!
//! Theory of operation. A guest talks with few others at a time, so its next frame has most probably the addresses of
//! one before. [`Recent`] remembers, for a handful of pairs of addresses, the port that such a frame went to, and
//! answers with a few comparisons. Its owner is whoever serves the sending port, so no lock is needed.
//!
//! An answer is given only while the switch would give the same one. That holds as long as neither the sender nor the
//! receiver has lost an address since: [`Losses`] counts those for each port, whatever took the address away. New
//! addresses alone change no verdict that forwards. Time is the other thing that could: an address is due to be
//! noted again each second and may expire, so everything remembered is forgotten when the second changes. And what is
//! remembered was judged whole: no reserved destination, no bad source, no tag; a tagged frame is never remembered.
//!
//! Guests that go from one destination to the next miss, and pay for the table what they would have paid anyway.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{PORTS_MAX, PortId};

/// Pairs of addresses that are remembered for one port. A power of two.
const PAIRS: usize = 8;
/// Bytes of an Ethernet header without a tag: two addresses and a type.
const ETHERNET_HEADER_LEN: usize = 14;
/// The source address in a little-endian word of the source and the type.
const SOURCE: u64 = 0xffff_ffff_ffff;
/// The type of a customer VLAN tag, as it is read here.
const TYPE_C_TAG: u16 = 0x8100_u16.to_be();

/// For each port, how many times it has lost an address. Read by any thread, written under the switch's lock.
#[derive(Debug)]
pub struct Losses(Box<[AtomicU32]>);

impl Default for Losses {
    fn default() -> Self {
        Self((0..PORTS_MAX).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Losses {
    /// An address of the port now belongs to another, or to nobody.
    pub(super) fn count(&self, port: u16) {
        if let Some(losses) = self.0.get(usize::from(port)) {
            losses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Addresses of any port may have.
    pub fn count_all(&self) {
        (0..PORTS_MAX as u16).for_each(|port| self.count(port));
    }

    // Relaxed will do: a frame that is judged while an address moves goes to either port.
    #[inline]
    fn of(&self, port: u16) -> u32 {
        self.0.get(usize::from(port)).map_or(0, |losses| losses.load(Ordering::Relaxed))
    }
}

/// Between whom a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Bytes 0 to 7 of the frame: the destination, and the first bytes of the source.
    front: u64,
    /// Bytes 6 to 11: the source.
    source: u64,
}

impl Addresses {
    /// Those of a frame that cannot be remembered: `source` has bits above an address's.
    pub const NONE: Self = Self { front: 0, source: u64::MAX };

    /// Those of a frame with this header; [`Self::NONE`] if it has a tag.
    #[inline(always)]
    pub fn of(header: &[u8; ETHERNET_HEADER_LEN]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let back = word(6);
        match (back >> 48) as u16 {
            TYPE_C_TAG => Self::NONE,
            _ => Self { front: word(0), source: back & SOURCE },
        }
    }

    /// Where they are remembered: guests count the last bytes of addresses up, so those decide.
    #[inline(always)]
    fn place(self) -> usize {
        ((self.front >> 40) ^ (self.source >> 40)) as usize % PAIRS
    }
}

/// One pair of addresses and the port it led to.
#[derive(Clone, Copy, Debug)]
struct Pair {
    addresses: Addresses,
    to: u16,
    /// What the receiver had lost by then.
    losses: u32,
}

impl Pair {
    const NONE: Self = Self { addresses: Addresses::NONE, to: 0, losses: 0 };
}

/// The recent verdicts for one port. See the module's theory of operation.
#[derive(Debug)]
pub struct Recent {
    pairs: [Pair; PAIRS],
    now_s: u32,
    /// What the sender had lost at the last look.
    losses: u32,
}

impl Default for Recent {
    fn default() -> Self {
        Self { pairs: [Pair::NONE; PAIRS], now_s: 0, losses: 0 }
    }
}

impl Recent {
    /// To be called before the frames of a burst from port `from`: forgets what may no longer hold.
    #[inline]
    pub fn begin_burst(&mut self, from: PortId, losses: &Losses, now_s: u32) {
        let lost = losses.of(from.0);
        if self.now_s != now_s || self.losses != lost {
            *self = Self { pairs: [Pair::NONE; PAIRS], now_s, losses: lost };
        }
    }

    /// The port that a frame between these two is forwarded to, if that is remembered.
    #[inline]
    pub fn find(&self, addresses: Addresses, losses: &Losses) -> Option<PortId> {
        let pair = &self.pairs[addresses.place()];
        let known = addresses == pair.addresses && addresses != Addresses::NONE && losses.of(pair.to) == pair.losses;
        known.then_some(PortId(pair.to))
    }

    /// Remembers that a frame between these two is forwarded to port `to`. To be called with the switch that has just
    /// said so still at hand, that is, before it changes.
    pub fn remember(&mut self, addresses: Addresses, to: PortId, losses: &Losses) {
        if addresses != Addresses::NONE {
            self.pairs[addresses.place()] = Pair { addresses, to: to.0, losses: losses.of(to.0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(destination: u8, source: u8, kind: [u8; 2]) -> Addresses {
        let mut header = [0x52, 0x54, 0, 0, 0, destination, 0x52, 0x54, 0, 0, 0, source, 0, 0];
        header[12..].copy_from_slice(&kind);
        Addresses::of(&header)
    }

    const IPV4: [u8; 2] = [0x08, 0x00];

    #[test]
    fn both_addresses_must_be_the_same_and_the_type_may_differ() {
        let (mut recent, losses) = (Recent::default(), Losses::default());
        recent.remember(between(1, 2, IPV4), PortId(7), &losses);
        assert_eq!(recent.find(between(1, 2, IPV4), &losses), Some(PortId(7)));
        assert_eq!(recent.find(between(1, 2, [0x86, 0xdd]), &losses), Some(PortId(7)));
        for (destination, source) in [(1, 3), (3, 2), (2, 1), (9, 10)] {
            assert_eq!(recent.find(between(destination, source, IPV4), &losses), None, "{destination} {source}");
        }
    }

    #[test]
    fn tagged_frames_are_never_remembered_or_found() {
        let (mut recent, losses) = (Recent::default(), Losses::default());
        let tagged = between(1, 2, [0x81, 0x00]);
        assert_eq!(tagged, Addresses::NONE);
        recent.remember(tagged, PortId(7), &losses);
        assert_eq!(recent.find(between(1, 2, IPV4), &losses), None);
        assert_eq!(recent.find(tagged, &losses), None);
    }

    #[test]
    fn a_loss_of_either_side_or_another_second_forgets() {
        let losses = Losses::default();
        let frame = between(1, 2, IPV4);
        let remembered = || {
            let mut recent = Recent::default();
            recent.begin_burst(PortId(3), &losses, 9);
            recent.remember(frame, PortId(7), &losses);
            recent
        };
        let mut recent = remembered();
        recent.begin_burst(PortId(3), &losses, 9);
        losses.count(4);
        assert_eq!(recent.find(frame, &losses), Some(PortId(7)), "a stranger's loss does not matter");
        losses.count(7);
        assert_eq!(recent.find(frame, &losses), None, "the receiver's does");
        recent = remembered();
        losses.count(3);
        recent.begin_burst(PortId(3), &losses, 9);
        assert_eq!(recent.find(frame, &losses), None, "the sender's does from the next burst on");
        recent = remembered();
        recent.begin_burst(PortId(3), &losses, 10);
        assert_eq!(recent.find(frame, &losses), None);
    }
}
