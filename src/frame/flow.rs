//! Telling flows apart, to keep the frames of each in order on one of several receive queues.

use super::ip::{self, Layers, TCP, UDP, Version};

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The same number for all frames of a flow: from the addresses, and the ports where there are any; fragments of a
/// packet go by addresses alone. Not secret: who chooses flows can choose the queue of the guest it sends to, which
/// gains nothing. The two directions of a flow need not have the same number.
#[inline]
pub fn flow_hash(head: &[u8]) -> u32 {
    match ip::layers(head) {
        Some(layers) => hash_packet(head, &layers),
        None => mix(0, head.get(..12).unwrap_or(head)),
    }
}

fn hash_packet(head: &[u8], layers: &Layers) -> u32 {
    let (from, to) = match layers.version {
        Version::V4 => (12, 20),
        Version::V6 => (8, 40),
    };
    let addresses = head.get(layers.network + from..layers.network + to).unwrap_or(&[]);
    let hash = mix(0, addresses);
    match layers.protocol {
        TCP | UDP if !layers.fragment => mix(hash, head.get(layers.transport..layers.transport + 4).unwrap_or(&[])),
        _ => hash,
    }
}

fn mix(hash: u32, bytes: &[u8]) -> u32 {
    let mut state = u64::from(hash) ^ MULTIPLIER;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word)).wrapping_mul(MULTIPLIER);
        state ^= state >> 32;
    }
    state as u32
}
