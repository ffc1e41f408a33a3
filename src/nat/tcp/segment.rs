//! TCP segments: what a guest sends, and what it is sent.

use std::ops::Range;

use super::super::seq::Seq;
use crate::frame::ethernet::be16;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

/// Bytes of a header without options.
pub(super) const HEADER_LEN: usize = 20;
/// Bytes of the options that a SYN of ours has at most.
pub(super) const SYN_OPTIONS_MAX: usize = 8;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_SCALE: u8 = 3;
/// The largest scale that may be used (RFC 7323, 2.3).
const SCALE_MAX: u8 = 14;

/// A segment of a guest's. What is urgent in it is like all else, and where that ends is nothing we look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from_port: u16,
    pub(super) to_port: u16,
    pub(super) seq: Seq,
    /// If it acknowledges anything.
    pub(super) ack: Option<Seq>,
    /// FIN, SYN, RST.
    pub(super) flags: u8,
    /// Not scaled.
    pub(super) window: u16,
    /// Where its bytes are in the frame.
    pub(super) payload: Range<usize>,
    /// Options of a SYN.
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
}

impl Segment {
    /// Reads the header at `at` of the frame that begins with `head`; the packet ends at `end`. None: it contradicts
    /// itself, or its header goes on beyond `head`.
    pub(super) fn parse(head: &[u8], at: usize, end: usize) -> Option<Self> {
        let header = head.get(at..at + HEADER_LEN)?;
        let len = usize::from(header[12] >> 4) * 4;
        if len < HEADER_LEN || at + len > end {
            return None;
        }
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let flags = header[13];
        let mut segment = Self {
            from_port: be16(header, 0)?,
            to_port: be16(header, 2)?,
            seq: Seq(word(4)),
            ack: (flags & ACK != 0).then(|| Seq(word(8))),
            flags,
            window: be16(header, 14)?,
            payload: at + len..end,
            mss: None,
            scale: None,
        };
        let options = head.get(at + HEADER_LEN..at + len)?;
        if segment.has(SYN) {
            segment.read_options(options)?;
        }
        Some(segment)
    }

    fn read_options(&mut self, mut options: &[u8]) -> Option<()> {
        // Each round takes a byte at least.
        while let [kind, rest @ ..] = options {
            options = match *kind {
                OPTION_END => break,
                OPTION_NOP => rest,
                kind => {
                    let len = usize::from(*rest.first()?);
                    let value = options.get(2..len.max(2))?;
                    match (kind, value) {
                        (OPTION_MSS, [a, b]) => self.mss = Some(u16::from_be_bytes([*a, *b])),
                        (OPTION_SCALE, [scale]) => self.scale = Some((*scale).min(SCALE_MAX)),
                        _ => {}
                    }
                    options.get(len.max(2)..)?
                }
            };
        }
        Some(())
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of payload.
    pub(super) fn len(&self) -> u32 {
        self.payload.len() as u32
    }
}

/// The header of a segment for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: u8,
    /// Scaled.
    pub(super) window: u16,
    /// Options of a SYN.
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
}

impl Header {
    /// Writes it, with the checksum left out. Returns how long it is.
    pub(super) fn emit(&self, from_port: u16, to_port: u16, out: &mut [u8; HEADER_LEN + SYN_OPTIONS_MAX]) -> usize {
        let mut len = HEADER_LEN;
        if let Some(mss) = self.mss {
            out[len..len + 4].copy_from_slice(&[OPTION_MSS, 4, (mss >> 8) as u8, mss as u8]);
            len += 4;
        }
        if let Some(scale) = self.scale {
            out[len..len + 4].copy_from_slice(&[OPTION_NOP, OPTION_SCALE, 3, scale]);
            len += 4;
        }
        out[..2].copy_from_slice(&from_port.to_be_bytes());
        out[2..4].copy_from_slice(&to_port.to_be_bytes());
        out[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        out[12..14].copy_from_slice(&[(len as u8 / 4) << 4, self.flags]);
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..20].fill(0);
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            numbers: (u32, u32, u16),
            flags in 0_u8..64,
            mss: Option<u16>,
            scale in 0_u8..15,
        ) {
            let (seq, ack, window) = numbers;
            let syn = flags & SYN != 0;
            let (mss, scale) = (mss.filter(|_| syn), Some(scale).filter(|_| syn));
            let header = Header { seq: Seq(seq), ack: Seq(ack), flags, window, mss, scale };
            let mut out = [0; HEADER_LEN + SYN_OPTIONS_MAX];
            let len = header.emit(7, 9, &mut out);
            let frame = [&[0; 3], &out[..len], b"payload"].concat();
            let read = Segment::parse(&frame, 3, frame.len()).unwrap();
            let ack = (flags & ACK != 0).then_some(Seq(ack));
            let payload = 3 + len..frame.len();
            let expected =
                Segment { from_port: 7, to_port: 9, seq: Seq(seq), ack, flags, window, payload, mss, scale };
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), at in 0_usize..50, end in 0_usize..200) {
            let _ = Segment::parse(&bytes, at, end);
        }
    }
}
