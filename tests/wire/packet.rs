//! TCP over IPv4 as a driver hands it to its device, and what a receiver must find in it.

use crate::guest::{Guest, Received, mac};
use guestwire::vhost::features as f;

pub(crate) const HEADERS: usize = 14 + 20 + 20;
const TRANSPORT: usize = 34;
/// Payload of a segment at the usual MTU.
pub(crate) const MSS: usize = 1460;
/// The most payload that one super-frame carries.
pub(crate) const SUPER: usize = 65_535 - 40;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

pub(crate) fn sum(bytes: &[u8], initial: u32) -> u16 {
    let mut total = u64::from(initial);
    for pair in bytes.chunks(2) {
        total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

fn pseudo(frame: &[u8]) -> u16 {
    sum(&frame[26..34], 6 + (frame.len() - TRANSPORT) as u32)
}

/// A frame that carries `payload` as the bytes of a stream from `sequence` on. Its checksum is complete, or the sum of
/// the pseudo-header alone.
pub(crate) fn tcp(from: u8, to: u8, sequence: u32, payload: &[u8], partial: bool) -> Vec<u8> {
    let mut frame = [&mac(to)[..], &mac(from), &[0x08, 0x00]].concat();
    let total = (40 + payload.len()) as u16;
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&total.to_be_bytes());
    frame.extend_from_slice(&[0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    let checksum = !sum(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame.extend_from_slice(&[0x13, 0x88, 0x13, 0x89]);
    frame.extend_from_slice(&sequence.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend_from_slice(payload);
    let start = pseudo(&frame);
    let checksum = if partial { start } else { !sum(&frame[TRANSPORT..], u32::from(start)) };
    frame[50..52].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The header before such a frame.
pub(crate) fn header(partial: bool, super_frame: bool) -> [u8; 12] {
    let mut header = [0; 12];
    if partial {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&(TRANSPORT as u16).to_le_bytes());
        header[8..10].copy_from_slice(&16u16.to_le_bytes());
    }
    if super_frame {
        header[1] = GSO_TCPV4;
        header[2..4].copy_from_slice(&(HEADERS as u16).to_le_bytes());
        header[4..6].copy_from_slice(&(MSS as u16).to_le_bytes());
    }
    header
}

/// Checks a received frame against what its receiver has negotiated, and returns its sequence number and payload.
#[track_caller]
pub(crate) fn check<'a>(guest: &Guest, received: &'a Received) -> (u32, &'a [u8]) {
    let frame = &received.frame;
    assert!(frame.len() >= HEADERS, "{} bytes", frame.len());
    assert_eq!(sum(&frame[14..34], 0), 0xffff, "the IP header's checksum");
    assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14, "the IP length");
    if received.needs_checksum() {
        assert!(guest.has(f::GUEST_CSUM), "a checksum is left to a guest that takes none");
        assert_eq!(u16::from_be_bytes([frame[50], frame[51]]), pseudo(frame), "the pseudo-header's sum");
        assert_eq!(received.header[6..10], [TRANSPORT as u8, 0, 16, 0]);
    } else {
        assert_eq!(sum(&frame[TRANSPORT..], u32::from(pseudo(frame))), 0xffff, "the TCP checksum");
    }
    if received.gso_type() == 0 {
        assert!(frame.len() <= HEADERS + MSS, "{} bytes, and no super-frame", frame.len());
    } else {
        assert!(guest.has(f::GUEST_TSO4), "a super-frame for a guest that takes none");
        assert_eq!((received.gso_type(), usize::from(received.gso_size())), (GSO_TCPV4, MSS));
        assert!(received.needs_checksum());
    }
    let sequence = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
    (sequence, &frame[HEADERS..])
}
