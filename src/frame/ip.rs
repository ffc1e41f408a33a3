//! Where the headers of an IP packet are.

use super::ethernet::{TYPE_IPV4, TYPE_IPV6, be16, network};

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
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

fn layers_v6(head: &[u8], network: usize) -> Option<Layers> {
    let header = head.get(network..network + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut transport) = (header[6], network + 40);
    for _ in 0..EXTENSIONS_MAX {
        let units = usize::from(*head.get(transport + 1).unwrap_or(&0));
        let len = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (units + 1) * 8,
            FRAGMENT => {
                let protocol = *head.get(transport)?;
                let transport = transport + 8;
                return Some(Layers { version: Version::V6, network, transport, protocol, fragment: true });
            }
            _ => return Some(Layers { version: Version::V6, network, transport, protocol, fragment: false }),
        };
        protocol = *head.get(transport)?;
        transport += len;
        if transport > head.len() {
            return None;
        }
    }
    None
}
