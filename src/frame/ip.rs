//! Where the headers of an IP packet are.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ethernet::{TYPE_IPV4, TYPE_IPV6, be16, network};

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of IGMP.
pub const IGMP: u8 = 2;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Bytes of an IPv4 header without options.
pub const HEADER_V4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub const HEADER_V6_LEN: usize = 40;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers that are looked through.
const EXTENSIONS_MAX: usize = 8;

/// IP's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The headers of an IP packet in a frame. Offsets in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// The version.
    pub version: Version,
    /// Where the IP header starts.
    pub network: usize,
    /// Where the transport header starts.
    pub transport: usize,
    /// The transport protocol.
    pub protocol: u8,
    /// A fragment: what is at `transport` may be no header.
    pub fragment: bool,
}

impl Layers {
    /// Where the packet ends by its own word, in bytes from the start of the frame; the frame may go on, as padding.
    pub fn ends_at(&self, head: &[u8]) -> Option<usize> {
        Some(match self.version {
            Version::V4 => self.network + usize::from(be16(head, self.network + 2)?),
            Version::V6 => self.network + 40 + usize::from(be16(head, self.network + 4)?),
        })
    }
}

/// Finds the headers of the packet in the frame that begins with `head`. `None` when it is not IP, or its headers
/// contradict themselves or go on beyond `head`.
#[inline]
pub fn layers(head: &[u8]) -> Option<Layers> {
    let (ethertype, at) = network(head)?;
    match ethertype {
        TYPE_IPV4 => layers_v4(head, at),
        TYPE_IPV6 => layers_v6(head, at),
        _ => None,
    }
}

fn layers_v4(head: &[u8], network: usize) -> Option<Layers> {
    let header = head.get(network..network + 20)?;
    let ihl = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || ihl < 20 || head.len() < network + ihl {
        return None;
    }
    // More fragments, or an offset.
    let fragment = be16(header, 6)? & 0x3fff != 0;
    Some(Layers { version: Version::V4, network, transport: network + ihl, protocol: header[9], fragment })
}

#[inline]
fn layers_v6(head: &[u8], network: usize) -> Option<Layers> {
    let Chain { protocol, transport, fragment, .. } = walk_v6::<false>(head, network)?;
    Some(Layers { version: Version::V6, network, transport, protocol, fragment: fragment != Fragment::None })
}

/// Whether a packet is one, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    None,
    /// It begins a packet: the transport header is there.
    First,
    /// What it begins with is payload.
    Later,
}

/// What follows an IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The transport protocol.
    pub protocol: u8,
    /// Where its header starts, in bytes from the start of the frame.
    pub transport: usize,
    /// Whether there is a fragment header.
    pub fragment: Fragment,
    /// Whether there is a routing header: others than the destination address may be meant (RFC 8200, 4.4).
    pub is_routed: bool,
}

/// Follows the extension headers of the IPv6 header at `network`, those of a packet's first fragment to their end.
/// `None` as for [`layers`]; so a first fragment must hold all headers, as RFC 7112 has it.
#[inline]
pub fn chain_v6(head: &[u8], network: usize) -> Option<Chain> {
    walk_v6::<true>(head, network)
}

/// With `PAST_FRAGMENT` what follows the fragment header of a first fragment is looked through as well.
#[inline]
fn walk_v6<const PAST_FRAGMENT: bool>(head: &[u8], network: usize) -> Option<Chain> {
    let header = head.get(network..network + HEADER_V6_LEN)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut transport) = (header[6], network + HEADER_V6_LEN);
    let (mut fragment, mut is_routed) = (Fragment::None, false);
    for _ in 0..EXTENSIONS_MAX {
        let units = usize::from(*head.get(transport + 1).unwrap_or(&0));
        let len = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (units + 1) * 8,
            FRAGMENT => 8,
            _ => return Some(Chain { protocol, transport, fragment, is_routed }),
        };
        is_routed |= protocol == ROUTING;
        let is_fragment_header = protocol == FRAGMENT;
        protocol = *head.get(transport)?;
        if is_fragment_header {
            let is_first = be16(head, transport + 2)? & 0xfff8 == 0;
            fragment = if is_first { Fragment::First } else { Fragment::Later };
            if !PAST_FRAGMENT || !is_first {
                return Some(Chain { protocol, transport: transport + len, fragment, is_routed });
            }
        }
        transport += len;
        if transport > head.len() {
            return None;
        }
    }
    None
}

/// An IPv4 header, as its sender wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderV4 {
    /// The source address.
    pub source: Ipv4Addr,
    /// The destination address.
    pub destination: Ipv4Addr,
    /// Routers that may still pass it on, and one.
    pub ttl: u8,
    /// The transport protocol.
    pub protocol: u8,
    /// Bytes of header and payload.
    pub total_len: u16,
    /// Where the transport header starts, in bytes from the start of the frame.
    pub transport: usize,
    /// Whether it is a fragment.
    pub fragment: Fragment,
}

impl HeaderV4 {
    /// Reads the header at `network`. `None` when it is not whole within `head`, options included, or its length or
    /// version is wrong.
    #[inline]
    pub fn parse(head: &[u8], network: usize) -> Option<Self> {
        let header: &[u8; HEADER_V4_LEN] = head.get(network..)?.first_chunk()?;
        let len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || len < HEADER_V4_LEN || head.len() < network + len {
            return None;
        }
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let fragment = match word(6) & 0x3fff {
            0 => Fragment::None,
            more_and_offset if more_and_offset & 0x1fff == 0 => Fragment::First,
            _ => Fragment::Later,
        };
        Some(Self {
            source: address(12),
            destination: address(16),
            ttl: header[8],
            protocol: header[9],
            total_len: word(2),
            transport: network + len,
            fragment,
        })
    }
}

/// An IPv6 header, as its sender wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderV6 {
    /// The source address.
    pub source: Ipv6Addr,
    /// The destination address.
    pub destination: Ipv6Addr,
    /// Routers that may still pass it on, and one.
    pub hop_limit: u8,
    /// Where the packet ends, in bytes from the start of the frame.
    pub end: usize,
}

impl HeaderV6 {
    /// Reads the header at `network`. `None` when it is not whole within `head` or its version is wrong.
    #[inline]
    pub fn parse(head: &[u8], network: usize) -> Option<Self> {
        let header: &[u8; HEADER_V6_LEN] = head.get(network..)?.first_chunk()?;
        let address = |at: usize| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| header[at + i]));
        (header[0] >> 4 == 6).then(|| Self {
            source: address(8),
            destination: address(24),
            hop_limit: header[7],
            end: network + HEADER_V6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]])),
        })
    }
}

/// Source and destination port of the UDP or TCP header at `transport`.
#[inline]
pub fn ports(head: &[u8], transport: usize) -> Option<(u16, u16)> {
    Some((be16(head, transport)?, be16(head, transport + 2)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv6 frame whose headers are `first`, and then what these 8 bytes each say.
    fn frame_v6(first: u8, headers: &[[u8; 8]]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8 * headers.len() as u8, first, 64]);
        frame.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
        frame.extend_from_slice(&Ipv6Addr::UNSPECIFIED.octets());
        frame.extend_from_slice(&headers.concat());
        frame
    }

    #[test]
    fn extension_headers_are_followed_to_the_transport_or_a_later_fragment() {
        let chain = |first, headers: &[[u8; 8]]| {
            let chain = chain_v6(&frame_v6(first, headers), 14)?;
            Some((chain.protocol, chain.transport, chain.fragment, chain.is_routed))
        };
        let (next_udp, next_fragment, next_routing) =
            ([UDP, 0, 0, 0, 0, 0, 0, 0], [FRAGMENT; 8], [ROUTING, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(chain(UDP, &[]), Some((UDP, 54, Fragment::None, false)));
        assert_eq!(chain(HOP_BY_HOP, &[next_udp]), Some((UDP, 62, Fragment::None, false)));
        assert_eq!(chain(HOP_BY_HOP, &[next_routing, next_udp]), Some((UDP, 70, Fragment::None, true)));
        let fragment = |next, offset_and_more| [next, 0, 0, offset_and_more, 0, 0, 0, 1];
        assert_eq!(chain(FRAGMENT, &[fragment(ROUTING, 1), next_udp]), Some((UDP, 70, Fragment::First, true)));
        assert_eq!(chain(FRAGMENT, &[fragment(ROUTING, 0), next_udp]), Some((UDP, 70, Fragment::First, true)));
        assert_eq!(chain(FRAGMENT, &[fragment(ROUTING, 8), next_udp]), Some((ROUTING, 62, Fragment::Later, false)));
        assert_eq!(chain(FRAGMENT, &[fragment(ROUTING, 1)]), None, "the first fragment lacks headers");
        assert_eq!(chain(HOP_BY_HOP, &[next_fragment]), None, "a length of 45 units");
        assert_eq!(chain(HOP_BY_HOP, &[[HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0]; 9]), None, "more than are looked through");
        let layers = layers(&frame_v6(FRAGMENT, &[fragment(ROUTING, 1)])).unwrap();
        assert_eq!((layers.protocol, layers.transport, layers.fragment), (ROUTING, 62, true), "offloads stop there");
    }

    #[test]
    fn headers_are_read_as_they_were_written() {
        let mut frame = vec![0x47, 0, 0, 40, 0, 1, 0x20, 0, 63, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        frame.extend_from_slice(&[1; 8]);
        let header = HeaderV4 {
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination: Ipv4Addr::new(10, 0, 0, 2),
            ttl: 63,
            protocol: UDP,
            total_len: 40,
            transport: 28,
            fragment: Fragment::First,
        };
        assert_eq!(HeaderV4::parse(&frame, 0), Some(header));
        assert_eq!(HeaderV4::parse(&frame[..27], 0), None);
        let of = |flags: [u8; 2]| {
            frame[6..8].copy_from_slice(&flags);
            HeaderV4::parse(&frame, 0).map(|header| header.fragment)
        };
        let fragments = [[0x40, 0], [0x20, 0], [0x20, 1], [0, 1], [0x1f, 0xff]].map(of);
        let (none, first, later) = (Some(Fragment::None), Some(Fragment::First), Some(Fragment::Later));
        assert_eq!(fragments, [none, first, later, later, later]);
        let header = HeaderV6::parse(&frame_v6(UDP, &[[0; 8]]), 14).unwrap();
        assert_eq!((header.source, header.destination), (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED));
        assert_eq!((header.hop_limit, header.end), (64, 62));
        assert_eq!(HeaderV6::parse(&frame_v6(UDP, &[])[..53], 14), None);
    }
}
