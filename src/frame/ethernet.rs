//! Ethernet II and VLAN tags (IEEE 802.3, 802.1Q).

use std::fmt;

/// Bytes of an Ethernet header without tags.
pub const HEADER_LEN: usize = 14;
/// EtherType of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const TYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const TYPE_IPV6: u16 = 0x86dd;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_SERVICE_VLAN: u16 = 0x88a8;
/// The least number that is a type; what is below is a length (802.3, 3.2.6).
const TYPE_MIN: u16 = 0x0600;
/// LLC with the SNAP extension, unnumbered (802.2, RFC 1042): a type follows.
const LLC_SNAP: [u8; 3] = [0xaa, 0xaa, 0x03];
/// Tags that are looked through: a customer's inside a provider's.
const TAGS_MAX: usize = 2;

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Everyone's address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The destination of the frame that begins with `head`.
    #[inline]
    pub fn destination_of(head: &[u8]) -> Option<Self> {
        head.first_chunk().map(|bytes| Self(*bytes))
    }

    /// The source of the frame that begins with `head`.
    #[inline]
    pub fn source_of(head: &[u8]) -> Option<Self> {
        head.get(6..12)?.try_into().ok().map(Self)
    }

    /// Whether it addresses a group (multicast or broadcast).
    #[inline]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it addresses everyone.
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// Whether it can be a station's: neither a group's nor zero.
    #[inline]
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The 16-bit number in network byte order at `at`.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// The VLAN identifier of the outermost tag, if there is one. Zero is a priority tag: no VLAN (802.1Q, 9.6).
#[inline]
pub fn vlan_id(head: &[u8]) -> Option<u16> {
    match be16(head, 12)? {
        TYPE_VLAN | TYPE_SERVICE_VLAN => be16(head, 14).map(|tci| tci & 0xfff),
        _ => None,
    }
}

/// The EtherType behind the tags, and where the network header starts.
#[inline]
pub fn network(head: &[u8]) -> Option<(u16, usize)> {
    let mut at = HEADER_LEN;
    for _ in 0..=TAGS_MAX {
        match be16(head, at - 2)? {
            TYPE_VLAN | TYPE_SERVICE_VLAN => at += 4,
            ethertype => return Some((ethertype, at)),
        }
    }
    None
}

/// Whether the frame has a VLAN tag, of either kind.
#[inline]
pub fn is_tagged(head: &[u8]) -> bool {
    matches!(be16(head, 12), Some(TYPE_VLAN | TYPE_SERVICE_VLAN))
}

/// Whether what [`network`] found is no type but a length, followed by a header with a type of its own: IP and ARP can
/// be sent so, and some systems take them.
#[inline]
pub fn is_snap(head: &[u8], ethertype: u16, at: usize) -> bool {
    ethertype < TYPE_MIN && head.get(at..at + 3) == Some(&LLC_SNAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: &[(u16, u16)], ethertype: u16) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        for (tag, tci) in tags {
            bytes.extend_from_slice(&tag.to_be_bytes());
            bytes.extend_from_slice(&tci.to_be_bytes());
        }
        bytes.extend_from_slice(&ethertype.to_be_bytes());
        bytes
    }

    #[test]
    fn tags_are_looked_through_up_to_two() {
        assert_eq!(network(&frame(&[], TYPE_IPV4)), Some((TYPE_IPV4, 14)));
        assert_eq!(network(&frame(&[(0x8100, 5)], TYPE_IPV6)), Some((TYPE_IPV6, 18)));
        assert_eq!(network(&frame(&[(0x88a8, 7), (0x8100, 5)], TYPE_IPV6)), Some((TYPE_IPV6, 22)));
        assert_eq!(network(&frame(&[(0x8100, 7); 3], TYPE_IPV6)), None);
        assert_eq!(network(&[0; 13]), None);
    }

    #[test]
    fn the_outer_tag_names_the_vlan() {
        assert_eq!(vlan_id(&frame(&[(0x88a8, 0xe007), (0x8100, 5)], TYPE_IPV6)), Some(7));
        assert_eq!(vlan_id(&frame(&[], TYPE_IPV6)), None);
        assert_eq!(vlan_id(&frame(&[(0x8100, 5)], 0)[..14]), None);
    }

    #[test]
    fn a_type_behind_a_length_is_recognized() {
        let snap = [&frame(&[(0x8100, 5)], 36)[..], &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]].concat();
        assert!(is_tagged(&snap) && is_snap(&snap, 36, 18) && !is_snap(&snap, TYPE_IPV4, 18));
        assert!(!is_snap(&snap[..20], 36, 18) && !is_tagged(&frame(&[], TYPE_IPV4)));
    }

    #[test]
    fn addresses_are_read_and_written() {
        let head: Vec<u8> = (0..14).collect();
        assert_eq!(MacAddr::destination_of(&head), Some(MacAddr([0, 1, 2, 3, 4, 5])));
        assert_eq!(MacAddr::source_of(&head), Some(MacAddr([6, 7, 8, 9, 10, 11])));
        assert_eq!(MacAddr::source_of(&head[..11]), None);
        assert_eq!(MacAddr([0x52, 0x54, 0, 0, 0, 0xfe]).to_string(), "52:54:00:00:00:fe");
        assert!(MacAddr([1, 0, 0, 0, 0, 0]).is_group() && !MacAddr([2, 0, 0, 0, 0, 0]).is_group());
    }
}
