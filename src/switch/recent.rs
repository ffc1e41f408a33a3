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
/// Bytes of a frame that are compared: both addresses, and the type to tell tagged frames.
const COMPARED: usize = 14;
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

    // Relaxed will do: a frame that is judged while an address moves goes to either port.
    #[inline]
    fn of(&self, port: u16) -> u32 {
        self.0.get(usize::from(port)).map_or(0, |losses| losses.load(Ordering::Relaxed))
    }
}

/// One pair of addresses and the port it led to.
#[derive(Clone, Copy, Debug)]
struct Pair {
    /// Bytes 0 to 7 of the frame.
    front: u64,
    /// Bytes 6 to 11: the source.
    source: u64,
    to: u16,
    /// What the receiver had lost by then.
    losses: u32,
}

impl Pair {
    /// Matches no frame: `source` has bits above an address's.
    const NONE: Self = Self { front: 0, source: u64::MAX, to: 0, losses: 0 };
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

    /// The port that a frame with these first bytes is forwarded to, if that is remembered.
    #[inline(always)]
    pub fn find(&self, head: &[u8], losses: &Losses) -> Option<PortId> {
        let (front, source, tagged) = read(head)?;
        let pair = &self.pairs[place(front, source)];
        let known = front == pair.front && source == pair.source && !tagged && losses.of(pair.to) == pair.losses;
        known.then_some(PortId(pair.to))
    }

    /// Remembers that a frame with these first bytes is forwarded to port `to`. To be called with the switch that has
    /// just said so still at hand, that is, before it changes.
    pub fn remember(&mut self, head: &[u8], to: PortId, losses: &Losses) {
        if let Some((front, source, false)) = read(head) {
            self.pairs[place(front, source)] = Pair { front, source, to: to.0, losses: losses.of(to.0) };
        }
    }
}

/// The first eight bytes, the source, and whether there is a tag.
#[inline(always)]
fn read(head: &[u8]) -> Option<(u64, u64, bool)> {
    let header = head.first_chunk::<COMPARED>()?;
    let (front, _) = header.split_first_chunk::<8>()?;
    let (_, back) = header.split_last_chunk::<8>()?;
    let back = u64::from_le_bytes(*back);
    Some((u64::from_le_bytes(*front), back & SOURCE, (back >> 48) as u16 == TYPE_C_TAG))
}

/// Where a pair of addresses is remembered: guests count the last bytes of addresses up, so those decide.
#[inline(always)]
fn place(front: u64, source: u64) -> usize {
    ((front >> 40) ^ (source >> 40)) as usize % PAIRS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(destination: u8, source: u8, kind: [u8; 2]) -> Vec<u8> {
        let mut head = vec![0x52, 0x54, 0, 0, 0, destination, 0x52, 0x54, 0, 0, 0, source];
        head.extend(kind);
        head.extend([0; 46]);
        head
    }

    const IPV4: [u8; 2] = [0x08, 0x00];

    #[test]
    fn both_addresses_must_be_the_same_and_the_type_may_differ() {
        let (mut recent, losses) = (Recent::default(), Losses::default());
        recent.remember(&head(1, 2, IPV4), PortId(7), &losses);
        assert_eq!(recent.find(&head(1, 2, IPV4), &losses), Some(PortId(7)));
        assert_eq!(recent.find(&head(1, 2, [0x86, 0xdd]), &losses), Some(PortId(7)));
        for (destination, source) in [(1, 3), (3, 2), (2, 1), (9, 10)] {
            assert_eq!(recent.find(&head(destination, source, IPV4), &losses), None, "{destination} {source}");
        }
        for len in 0..COMPARED {
            assert_eq!(recent.find(&head(1, 2, IPV4)[..len], &losses), None, "{len} bytes");
        }
    }

    #[test]
    fn tagged_frames_are_never_remembered_or_found() {
        let (mut recent, losses) = (Recent::default(), Losses::default());
        recent.remember(&head(1, 2, [0x81, 0x00]), PortId(7), &losses);
        assert_eq!(recent.find(&head(1, 2, IPV4), &losses), None);
        recent.remember(&head(1, 2, IPV4), PortId(7), &losses);
        assert_eq!(recent.find(&head(1, 2, [0x81, 0x00]), &losses), None);
    }

    #[test]
    fn a_loss_of_either_side_or_another_second_forgets() {
        let losses = Losses::default();
        let frame = head(1, 2, IPV4);
        let remembered = || {
            let mut recent = Recent::default();
            recent.begin_burst(PortId(3), &losses, 9);
            recent.remember(&frame, PortId(7), &losses);
            recent
        };
        let mut recent = remembered();
        recent.begin_burst(PortId(3), &losses, 9);
        losses.count(4);
        assert_eq!(recent.find(&frame, &losses), Some(PortId(7)), "a stranger's loss does not matter");
        losses.count(7);
        assert_eq!(recent.find(&frame, &losses), None, "the receiver's does");
        recent = remembered();
        losses.count(3);
        recent.begin_burst(PortId(3), &losses, 9);
        assert_eq!(recent.find(&frame, &losses), None, "the sender's does from the next burst on");
        recent = remembered();
        recent.begin_burst(PortId(3), &losses, 10);
        assert_eq!(recent.find(&frame, &losses), None);
    }
}
