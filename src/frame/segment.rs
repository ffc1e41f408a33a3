//! Cutting a super-frame into segments, as a NIC would (TSO, USO).
//!
//! Each segment gets a copy of the headers, with the lengths, the IPv4 identification, the TCP sequence number and
//! flags and the checksums that it must have. The transport's checksum field of the super-frame holds the sum of its
//! pseudo-header; a segment's differs in the length alone, so it is derived from that one. The addresses are not looked
//! at, and routing headers, which make the final destination another than the IP header's, need no care.

use super::checksum::{self, add};
use super::ethernet::be16;
use super::offload::{Gso, GsoKind, Offload};

const TCP_FLAG_FIN: u8 = 0x01;
const TCP_FLAG_PSH: u8 = 0x08;
const TCP_FLAG_CWR: u8 = 0x80;

/// Private memory for one segment, to be used again and again.
#[derive(Debug, Default)]
pub struct Scratch(Vec<u8>);

/// Cuts `frame`, which [`super::offload::validate`] has judged to be `gso`, and hands each segment to `emit` with what
/// is left to do to it: nothing, or with `partial` its checksum.
pub fn segment(frame: &[u8], gso: &Gso, partial: bool, scratch: &mut Scratch, emit: &mut dyn FnMut(&[u8], Offload)) {
    let Some((headers, payload)) = frame.split_at_checked(usize::from(gso.payload)) else { return };
    let Some(pseudo) = pseudo_without_length(frame, gso) else { return };
    let size = usize::from(gso.size).max(1);
    let count = payload.len().div_ceil(size).max(1);
    let mut chunks = payload.chunks(size);
    for i in 0..count {
        let out = &mut scratch.0;
        out.clear();
        out.extend_from_slice(headers);
        out.extend_from_slice(chunks.next().unwrap_or(&[]));
        let place = Place { index: i, last: i + 1 == count };
        if fix_network(out, gso, place).and_then(|()| fix_transport(out, gso, place)).is_none() {
            return;
        }
        let offload = fix_checksum(out, gso, pseudo, partial);
        emit(out, offload);
    }
}

/// Which of the segments it is.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    last: bool,
}

/// The sum of the pseudo-header but for the length in it.
fn pseudo_without_length(frame: &[u8], gso: &Gso) -> Option<u16> {
    let at = gso.checksum();
    let stored = be16(frame, usize::from(at.start) + usize::from(at.offset))?;
    Some(add(stored, !length_sum(frame.len() - usize::from(gso.transport))))
}

/// A length as it counts in a pseudo-header: 32 bits for IPv6, and for IPv4, where it has 16, the same.
fn length_sum(len: usize) -> u16 {
    add((len >> 16) as u16, len as u16)
}

fn put16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    bytes.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

fn fix_network(out: &mut [u8], gso: &Gso, place: Place) -> Option<()> {
    let network = usize::from(gso.network);
    let len = out.len() - network;
    match gso.kind {
        GsoKind::Tcp4 | GsoKind::Udp4 => {
            put16(out, network + 2, len as u16)?;
            let id = be16(out, network + 4)?.wrapping_add(place.index as u16);
            put16(out, network + 4, id)?;
            put16(out, network + 10, 0)?;
            let header_len = usize::from(*out.get(network)? & 0xf) * 4;
            let sum = !checksum::sum(out.get(network..network + header_len)?, 0);
            put16(out, network + 10, sum)
        }
        GsoKind::Tcp6 | GsoKind::Udp6 => put16(out, network + 4, (len - 40) as u16),
    }
}

fn fix_transport(out: &mut [u8], gso: &Gso, place: Place) -> Option<()> {
    let transport = usize::from(gso.transport);
    match gso.kind {
        GsoKind::Udp4 | GsoKind::Udp6 => put16(out, transport + 4, (out.len() - transport) as u16),
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            let sequence = out.get_mut(transport + 4..transport + 8)?.first_chunk_mut::<4>()?;
            let offset = (place.index * usize::from(gso.size)) as u32;
            *sequence = u32::from_be_bytes(*sequence).wrapping_add(offset).to_be_bytes();
            let flags = out.get_mut(transport + 13)?;
            if place.index > 0 {
                *flags &= !TCP_FLAG_CWR;
            }
            if !place.last {
                *flags &= !(TCP_FLAG_FIN | TCP_FLAG_PSH);
            }
            Some(())
        }
    }
}

/// Stores the pseudo-header's sum, and completes the checksum unless that is left to the receiver.
fn fix_checksum(out: &mut [u8], gso: &Gso, pseudo: u16, partial: bool) -> Offload {
    let at = gso.checksum();
    let sum = add(pseudo, length_sum(out.len() - usize::from(gso.transport)));
    // Inside the headers, as the other fixes have found.
    let _ = put16(out, usize::from(at.start) + usize::from(at.offset), sum);
    if partial {
        return Offload::Checksum(at);
    }
    checksum::complete(out, at);
    Offload::None
}
