//! The Internet checksum (RFC 1071).

/// A checksum that is left to be completed: the field holds the sum of the pseudo-header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where checksumming starts, in bytes from the start of the frame.
    pub start: u16,
    /// Where the checksum is stored, in bytes from `start`.
    pub offset: u16,
}

/// Where the checksum is in a UDP header.
pub(crate) const UDP_CHECKSUM: u16 = 6;

/// The ones' complement sum of `bytes`, folded to 16 bits, on top of `initial`. An odd last byte counts as the high
/// one.
#[inline]
pub fn sum(bytes: &[u8], initial: u16) -> u16 {
    // Ones' complement addition is the same in any byte order, so words are added as they are and turned at the end;
    // and in any order, so four sums grow side by side.
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [u64::from(initial.to_be()), 0, 0, 0];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = add64(*lane, u64::from_ne_bytes(*word));
        }
    }
    let mut total = lanes.into_iter().fold(0, add64);
    for word in rest.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        total = add64(total, u64::from_ne_bytes(bytes));
    }
    u16::from_be(fold(total))
}

#[inline]
fn add64(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

fn fold(mut total: u64) -> u16 {
    total = (total >> 32) + (total & 0xffff_ffff);
    total = (total >> 32) + (total & 0xffff_ffff);
    total = (total >> 16) + (total & 0xffff);
    total = (total >> 16) + (total & 0xffff);
    total = (total >> 16) + (total & 0xffff);
    total as u16
}

/// `a + b` in ones' complement.
#[inline]
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// What a checksum becomes when the bytes `old`, which it covers, are replaced by `new` (RFC 1624, equation 3). Both
/// have the same even length, and stand an even number of bytes from where checksumming starts.
pub fn update(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    !add(add(!checksum, !sum(old, 0)), sum(new, 0))
}

/// Completes a checksum. Does nothing when it does not lie inside the frame.
///
/// UDP's sum of zero is stored as 0xffff, which is the same number and does not mean "none" (RFC 768).
pub fn complete(frame: &mut [u8], at: PartialChecksum) {
    let start = usize::from(at.start);
    let field = start + usize::from(at.offset);
    let Some(covered) = frame.get(start..) else { return };
    let checksum = match !sum(covered, 0) {
        0 if at.offset == UDP_CHECKSUM => 0xffff,
        checksum => checksum,
    };
    if let Some(bytes) = frame.get_mut(field..field + 2) {
        bytes.copy_from_slice(&checksum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 says it.
    fn slow(bytes: &[u8], initial: u16) -> u16 {
        let mut total = u32::from(initial);
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total >> 16) + (total & 0xffff);
        }
        total as u16
    }

    /// Zero has two representations.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a | b == 0xffff && a & b == 0)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // 0xdd2f over words with 0x5555; that word becomes 0x3285. The RFC's other equation gives 0xffff here.
        assert_eq!(update(0xdd2f, &[0x55, 0x55], &[0x32, 0x85]), 0x0000);
    }

    proptest! {
        #[test]
        fn an_updated_checksum_is_that_of_the_new_bytes(
            mut bytes in prop::collection::vec(any::<u8>(), 20..100),
            at in 0usize..10,
            new in prop::collection::vec(any::<[u8; 2]>(), 0..5),
        ) {
            let (checksum, at, new) = (!sum(&bytes, 0), 2 * at, new.concat());
            prop_assume!(at + new.len() <= bytes.len());
            let old = bytes[at..at + new.len()].to_vec();
            bytes[at..at + new.len()].copy_from_slice(&new);
            prop_assert_eq!(sum(&bytes, update(checksum, &old, &new)), 0xffff);
        }

        #[test]
        fn fast_and_slow_agree(bytes in prop::collection::vec(any::<u8>(), 0..2000), initial: u16) {
            prop_assert!(same(sum(&bytes, initial), slow(&bytes, initial)));
        }

        #[test]
        fn a_completed_checksum_verifies(
            mut frame in prop::collection::vec(any::<u8>(), 40..1600),
            start in 14u16..30,
            offset in 0u16..9,
        ) {
            let offset = offset * 2;
            prop_assume!(usize::from(start + offset) + 2 <= frame.len());
            let field = usize::from(start + offset);
            let pseudo = u16::from_be_bytes([frame[field], frame[field + 1]]);
            complete(&mut frame, PartialChecksum { start, offset });
            // A receiver adds the pseudo-header to all that is covered, and must get all ones.
            prop_assert_eq!(slow(&frame[usize::from(start)..], pseudo), 0xffff);
            prop_assert!(offset != UDP_CHECKSUM || frame[field..field + 2] != [0, 0]);
        }

        #[test]
        fn no_place_panics(mut frame in prop::collection::vec(any::<u8>(), 0..100), start: u16, offset: u16) {
            complete(&mut frame, PartialChecksum { start, offset });
        }
    }
}
