//! Packets that guests send to the gateway.

use std::net::IpAddr;

use super::headers::DONT_FRAGMENT;
use crate::frame::ethernet::{MacAddr, be16};
use crate::frame::ip::{self, Layers, Version};
use crate::frame::offload::Offload;

/// The headers of a packet, as far as the transport's. Offsets in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) mac: MacAddr,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
    pub(super) hop_limit: u8,
    /// Whether it is better lost than cut into fragments on its way.
    pub(super) is_to_stay_whole: bool,
    /// Where the IP header starts.
    pub(super) network: usize,
    /// Where the transport's header starts.
    pub(super) transport: usize,
    /// Where the packet ends.
    pub(super) end: usize,
    pub(super) is_fragment: bool,
}

impl Packet {
    /// Reads the headers of a frame of `len` bytes that begins with `head`. None: it is no packet, or contradicts
    /// itself.
    pub(super) fn parse(head: &[u8], len: usize, offload: &Offload) -> Option<Self> {
        let layers = ip::layers(head)?;
        let Layers { version, network, transport, protocol, fragment } = layers;
        let (from, to, hop_limit, is_to_stay_whole) = match version {
            Version::V4 => {
                let header = head.get(network..network + 20)?;
                let octets =
                    |at: usize| -> IpAddr { [header[at], header[at + 1], header[at + 2], header[at + 3]].into() };
                (octets(12), octets(16), header[8], be16(header, 6)? & DONT_FRAGMENT != 0)
            }
            Version::V6 => {
                let header = head.get(network..network + 40)?;
                let from: [u8; 16] = header[8..24].try_into().ok()?;
                let to: [u8; 16] = header[24..40].try_into().ok()?;
                // Only its sender may cut it (RFC 8200, 4.5).
                (from.into(), to.into(), header[7], true)
            }
        };
        // Not every driver writes a super-frame's length; it has no padding.
        let end = if matches!(offload, Offload::Segment(_)) { len } else { layers.ends_at(head)? };
        if end > len || transport > end {
            return None;
        }
        let mac = MacAddr::source_of(head)?;
        let is_fragment = fragment;
        Some(Self { mac, from, to, protocol, hop_limit, is_to_stay_whole, network, transport, end, is_fragment })
    }

    /// The hop limit with which it is passed on.
    pub(super) fn passed_on(&self) -> u8 {
        self.hop_limit.saturating_sub(1).max(1)
    }
}
