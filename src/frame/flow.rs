//! Telling flows apart, to keep the frames of each in order on one of several receive queues.

use super::ip::{self, Layers, TCP, UDP, Version};

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// What is looked at of a frame. The caller may know more of one than of another, by what they ask of their receiver,
/// and that must not part them.
const LOOKED_AT: usize = 64;

/// The same number for all frames of a flow: from the addresses, and the ports where there are any that lie within the
/// first 64 bytes; fragments of a packet go by addresses alone. Not secret: who chooses flows can choose the queue of
/// the guest it sends to, which gains nothing. The two directions of a flow need not have the same number.
#[inline]
pub fn flow_hash(head: &[u8]) -> u32 {
    let head = &head[..head.len().min(LOOKED_AT)];
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

#[cfg(test)]
mod tests {
    use super::*;

    /// UDP over IPv4 between two addresses, from `port`; `fragment` is the IP header's flags and offset.
    fn datagram(tags: usize, port: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        (0..tags).for_each(|_| frame.extend_from_slice(&[0x81, 0, 0, 7]));
        frame.extend_from_slice(&[8, 0, 0x45, 0, 0, (28 + payload.len()) as u8, 0, 1]);
        frame.extend_from_slice(&fragment.to_be_bytes());
        frame.extend_from_slice(&[64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend_from_slice(&port.to_be_bytes());
        frame.extend_from_slice(&[0, 53, 0, (8 + payload.len()) as u8, 0, 0]);
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn a_flow_has_one_number_whatever_it_carries() {
        for tags in 0..2 {
            assert_eq!(flow_hash(&datagram(tags, 9, 0, b"one")), flow_hash(&datagram(tags, 9, 0, b"another")));
        }
    }

    #[test]
    fn what_is_known_beyond_changes_nothing() {
        let frame = datagram(20, 9, 0, &[7; 60]);
        assert_eq!(flow_hash(&frame), flow_hash(&frame[..LOOKED_AT]));
    }

    #[test]
    fn flows_spread_over_queues() {
        let mut queues = [0; 4];
        (0..1000).for_each(|port| queues[flow_hash(&datagram(0, port, 0, b"")) as usize % 4] += 1);
        assert!(queues.iter().all(|&flows| (150..350).contains(&flows)), "{queues:?}");
    }

    #[test]
    fn the_fragments_of_a_packet_stay_together() {
        // What stands where the ports would be is payload in all fragments but the first.
        let (first, second) = (datagram(0, 9, 0x2000, b"head"), datagram(0, 77, 0x00b9, b"tail"));
        assert_eq!(flow_hash(&first), flow_hash(&second));
    }

    #[test]
    fn what_is_no_ip_or_is_cut_short_goes_by_what_there_is() {
        let frame = datagram(0, 9, 0, b"");
        for len in 0..frame.len() {
            flow_hash(&frame[..len]);
        }
        assert_ne!(flow_hash(&[1; 12]), flow_hash(&[2; 12]));
    }
}
