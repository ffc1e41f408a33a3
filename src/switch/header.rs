//! What the switch reads of a frame: addresses and VLAN id.

use super::key::Key;

/// Bytes of an Ethernet header without a tag: two addresses and a type.
const ETHERNET_HEADER_LEN: usize = 14;

/// Type of a customer VLAN tag (IEEE 802.1Q table 9-1).
const TYPE_C_TAG: u64 = 0x8100;

/// The VLAN id within a tag's control information.
const VLAN_ID_MASK: u16 = 0x0fff;

/// The bit of an address that makes it a group's: the first that is sent, the lowest of the first byte.
const GROUP_BIT: u64 = 1 << 40;

/// 01-80-C2-00-00-00, the first of 16 addresses that never leave their link (IEEE 802.1Q table 8-1).
const RESERVED_FIRST: u64 = 0x0180_c200_0000;

const BROADCAST: u64 = 0xffff_ffff_ffff;

/// The fields that decide. Addresses are 48-bit numbers, the first byte on the wire being the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) destination: u64,
    pub(super) source: u64,
    /// 0 for a frame without a tag.
    pub(super) vlan_id: u16,
}

impl Header {
    /// `None` when the header, tag included, is not whole.
    #[inline]
    pub(super) fn parse(head: &[u8]) -> Option<Self> {
        let (header, rest) = head.split_first_chunk::<ETHERNET_HEADER_LEN>()?;
        let (destination, _) = header.split_first_chunk::<8>()?;
        let (_, source) = header.split_last_chunk::<8>()?;
        let source_and_type = u64::from_be_bytes(*source);
        let vlan_id = if source_and_type & 0xffff == TYPE_C_TAG {
            u16::from_be_bytes(*rest.first_chunk()?) & VLAN_ID_MASK
        } else {
            0
        };
        Some(Self { destination: u64::from_be_bytes(*destination) >> 16, source: source_and_type >> 16, vlan_id })
    }

    #[inline]
    pub(super) fn has_valid_source(&self) -> bool {
        self.source & GROUP_BIT == 0 && self.source != 0
    }

    #[inline]
    pub(super) fn is_to_group(&self) -> bool {
        self.destination & GROUP_BIT != 0
    }

    #[inline]
    pub(super) fn is_broadcast(&self) -> bool {
        self.destination == BROADCAST
    }

    /// Whether the destination is one that no bridge relays (IEEE 802.1Q 8.6.3): spanning tree, pause, LACP, LLDP.
    #[inline]
    pub(super) fn is_reserved(&self) -> bool {
        self.destination & !0xf == RESERVED_FIRST
    }

    #[inline]
    pub(super) fn source_key(&self) -> Key {
        Key::new(self.vlan_id, self.source)
    }

    #[inline]
    pub(super) fn destination_key(&self) -> Key {
        Key::new(self.vlan_id, self.destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESTINATION: [u8; 6] = [0x02, 0, 0, 0, 0, 0xaa];
    const SOURCE: [u8; 6] = [0x06, 1, 2, 3, 4, 5];

    fn head(rest: &[u8]) -> Vec<u8> {
        [&DESTINATION, &SOURCE, rest].concat()
    }

    #[test]
    fn reads_both_addresses_and_the_customer_tag() {
        let untagged = Header { destination: 0x0200_0000_00aa, source: 0x0601_0203_0405, vlan_id: 0 };
        assert_eq!(Header::parse(&head(&[0x08, 0x00])), Some(untagged));
        let tagged = Header { vlan_id: 0x234, ..untagged };
        assert_eq!(Header::parse(&head(&[0x81, 0x00, 0xf2, 0x34, 0x08, 0x00])), Some(tagged));
        assert_eq!(Header::parse(&head(&[0x88, 0xa8, 0xf2, 0x34, 0x08, 0x00])), Some(untagged));
    }

    #[test]
    fn a_header_that_is_not_whole_is_none() {
        let whole = head(&[0x81, 0x00, 0x00, 0x01]);
        for len in 0..whole.len() {
            assert_eq!(Header::parse(&whole[..len]), None, "{len} bytes");
        }
        assert!(Header::parse(&whole).is_some());
    }

    #[test]
    fn reserved_are_sixteen_addresses() {
        let at = |destination| Header { destination, source: 1, vlan_id: 0 }.is_reserved();
        assert!(at(RESERVED_FIRST) && at(RESERVED_FIRST + 0xf));
        assert!(!at(RESERVED_FIRST - 1) && !at(RESERVED_FIRST + 0x10));
    }
}
