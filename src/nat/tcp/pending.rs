//! Bytes of a guest's stream that the host's socket has not got yet: those that came before others that are missing,
//! and those that it had no room for.

use std::collections::VecDeque;

use super::super::seq::Seq;

/// Bytes that are kept for one connection. The guest sends others again.
const BYTES_MAX: usize = 1 << 20;
/// Pieces that are kept for one connection.
const PIECES_MAX: usize = 128;
/// What a piece costs beside its bytes.
const PIECE_COST: usize = 64;
/// A piece shorter than this is made longer by what follows it.
const PIECE_JOINS: usize = 16 * 1024;

/// Pieces of a stream, in order, no two of which overlap.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pieces: VecDeque<(Seq, Vec<u8>)>,
    bytes: usize,
}

impl Pending {
    /// What the pieces cost, in bytes.
    pub(super) fn cost(&self) -> usize {
        self.bytes + self.pieces.len() * PIECE_COST
    }

    /// Gives all of them up: the guest, which was not told that they are there, sends them again.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Keeps bytes that come after `next`, as far as they are not kept already. Nothing is kept beyond the bounds.
    pub(super) fn insert(&mut self, next: Seq, mut at: Seq, mut bytes: &[u8]) {
        let mut place = 0;
        while !bytes.is_empty() {
            let Some((start, piece)) = self.pieces.get(place) else {
                self.put(place, at, bytes);
                return;
            };
            let (from, to) = (start.since(next), start.since(next) as usize + piece.len());
            let here = at.since(next);
            if (here as usize) < to && here >= from {
                // What is kept stays: the first word holds.
                let known = (to - here as usize).min(bytes.len());
                (at, bytes) = (at.plus(known as u32), &bytes[known..]);
            } else if here < from {
                let gap = ((from - here) as usize).min(bytes.len());
                if !self.put(place, at, &bytes[..gap]) {
                    return;
                }
                (at, bytes) = (at.plus(gap as u32), &bytes[gap..]);
                // What is at this place now may be the same piece as before.
                continue;
            }
            place += 1;
        }
    }

    fn put(&mut self, place: usize, at: Seq, bytes: &[u8]) -> bool {
        if self.bytes + bytes.len() > BYTES_MAX {
            return false;
        }
        // Small ones that follow each other become one, so that many of them do not use up the places.
        let is_full = self.pieces.len() >= PIECES_MAX;
        let before = place.checked_sub(1).and_then(|before| self.pieces.get_mut(before));
        match before.filter(|(from, piece)| from.plus(piece.len() as u32) == at && piece.len() < PIECE_JOINS) {
            Some((_, piece)) => piece.extend_from_slice(bytes),
            None if is_full => return false,
            None => self.pieces.insert(place, (at, bytes.to_vec())),
        }
        self.bytes += bytes.len();
        true
    }

    /// How many bytes are missing at `next` before the first that is kept.
    pub(super) fn gap(&self, next: Seq) -> usize {
        self.pieces.front().map_or(usize::MAX, |(at, _)| at.since(next) as usize)
    }

    /// The end of all that is kept.
    pub(super) fn end(&self) -> Option<Seq> {
        self.pieces.back().map(|(at, piece)| at.plus(piece.len() as u32))
    }

    /// The bytes at `next`, if they are there.
    pub(super) fn front(&self, next: Seq) -> Option<&[u8]> {
        let (at, piece) = self.pieces.front()?;
        (*at == next).then_some(piece)
    }

    /// The first `n` bytes, all of them of one piece, are in the socket.
    pub(super) fn advance(&mut self, n: usize) {
        let Some((at, piece)) = self.pieces.front_mut() else { return };
        self.bytes -= n;
        if n == piece.len() {
            self.pieces.pop_front();
        } else {
            *at = at.plus(n as u32);
            piece.drain(..n);
        }
    }
}

#[cfg(any(test, feature = "trials"))]
impl Pending {
    /// Where the pieces are, and how long.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (Seq, u32)> {
        self.pieces.iter().map(|(at, piece)| (*at, piece.len() as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever comes in whatever order, what comes out is what was first said of each byte.
        #[test]
        fn a_stream_comes_out_as_it_was(
            start: u32,
            pieces in prop::collection::vec((0_u32..200, 1_usize..60), 1..60),
            taken in prop::collection::vec(1_usize..40, 0..60),
        ) {
            let byte = |n: u32| (n * 7 + n / 256) as u8;
            let (base, mut pending, mut next) = (Seq(start), Pending::default(), Seq(start));
            let mut known = std::collections::BTreeSet::new();
            let mut taken = taken.into_iter().cycle();
            for (from, len) in pieces {
                let bytes: Vec<u8> = (from..from + len as u32).map(byte).collect();
                let skip = (next.since(base).saturating_sub(from) as usize).min(len);
                pending.insert(next, base.plus(from + skip as u32), &bytes[skip..]);
                known.extend((from + skip as u32..from + len as u32).filter(|n| *n >= next.since(base)));
                let wanted = taken.next().unwrap_or(1);
                if let Some(front) = pending.front(next) {
                    let n = wanted.min(front.len());
                    let expected: Vec<u8> = (next.since(base)..).take(n).map(byte).collect();
                    prop_assert_eq!(&front[..n], &expected[..]);
                    pending.advance(n);
                    for _ in 0..n {
                        prop_assert!(known.remove(&next.since(base)));
                        next = next.plus(1);
                    }
                }
                prop_assert_eq!(pending.bytes, known.len());
            }
        }
    }

    #[test]
    fn it_is_bounded() {
        let mut pending = Pending::default();
        for i in 0..1000 {
            pending.insert(Seq(0), Seq(10 + 2 * i), b"x");
        }
        assert_eq!(pending.bytes, PIECES_MAX);
        let mut pending = Pending::default();
        for i in 0..100 {
            pending.insert(Seq(0), Seq(1 + i * (1 << 16)), &vec![0; 1 << 16]);
        }
        assert_eq!(pending.bytes, BYTES_MAX);
    }
}
