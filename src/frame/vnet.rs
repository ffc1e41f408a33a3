//! `struct virtio_net_hdr` (virtio 1.3, 5.1.6): what stands before each frame in a ring. Little-endian.

/// Bytes of the header with `num_buffers`, which is there with VERSION_1 or MRG_RXBUF.
pub const VNET_HEADER_LEN: usize = 12;
/// Bytes of the header without.
pub const VNET_HEADER_LEN_LEGACY: usize = 10;

/// `flags`: the checksum from `csum_start` on is left to the receiver of the frame.
pub const F_NEEDS_CSUM: u8 = 1;
/// `gso_type`: not a super-frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP, cut into datagrams (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type`: this bit says that the first segment alone carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// The header, as its sender wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `F_` bits.
    pub flags: u8,
    /// One of `GSO_`, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Length of the headers of a super-frame: a hint.
    pub hdr_len: u16,
    /// Payload of each segment, in bytes.
    pub gso_size: u16,
    /// Where checksumming starts, in bytes from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum is stored, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Reads the header.
    #[inline]
    pub fn parse(bytes: &[u8; VNET_HEADER_LEN_LEGACY]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, num_buffers: u16) -> [u8; VNET_HEADER_LEN] {
        let mut bytes = [0; VNET_HEADER_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, num_buffers];
        for (at, word) in words.iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let header = VnetHeader { flags: 1, gso_type: 4, hdr_len: 74, gso_size: 1440, csum_start: 54, csum_offset: 16 };
        let bytes = header.emit(3);
        assert_eq!(bytes, [1, 4, 74, 0, 0xa0, 5, 54, 0, 16, 0, 3, 0]);
        assert_eq!(VnetHeader::parse(bytes.first_chunk().unwrap()), header);
    }
}
