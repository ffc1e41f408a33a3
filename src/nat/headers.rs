//! Headers of packets for guests.

use std::net::IpAddr;

use crate::frame::checksum;
use crate::frame::ethernet::{self, MacAddr, TYPE_IPV4, TYPE_IPV6};
use crate::frame::ip::{HEADER_V4_LEN, HEADER_V6_LEN};

/// Bytes of the longest headers up to the transport's.
pub(super) const NETWORK_MAX: usize = ethernet::HEADER_LEN + HEADER_V6_LEN;
/// How far packets of ours may go.
pub(super) const HOP_LIMIT: u8 = 64;
/// IPv4: not to be fragmented.
pub(super) const DONT_FRAGMENT: u16 = 0x4000;

/// Who sends a packet to whom. Both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// The gateway's.
    pub(super) mac: MacAddr,
    /// The guest's.
    pub(super) to_mac: MacAddr,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
}

impl Ends {
    /// Bytes of the headers that [`Self::emit`] writes.
    pub(super) fn len(&self) -> usize {
        ethernet::HEADER_LEN + if self.to.is_ipv4() { HEADER_V4_LEN } else { HEADER_V6_LEN }
    }

    /// Writes the headers of a packet with `payload` bytes of this protocol behind the IP header: all in all no more
    /// than a packet may have. `out` must be as long as [`NETWORK_MAX`].
    pub(super) fn emit(&self, protocol: u8, hop_limit: u8, payload: usize, out: &mut [u8]) {
        out[..6].copy_from_slice(&self.to_mac.0);
        out[6..12].copy_from_slice(&self.mac.0);
        let (kind, ip) = (if self.to.is_ipv4() { TYPE_IPV4 } else { TYPE_IPV6 }, ethernet::HEADER_LEN);
        out[12..14].copy_from_slice(&kind.to_be_bytes());
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = &mut out[ip..ip + HEADER_V4_LEN];
                let total = (HEADER_V4_LEN + payload) as u16;
                header[..2].copy_from_slice(&[0x45, 0]);
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[4..6].fill(0);
                header[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
                header[8..12].copy_from_slice(&[hop_limit, protocol, 0, 0]);
                header[12..16].copy_from_slice(&from.octets());
                header[16..20].copy_from_slice(&to.octets());
                let sum = !checksum::sum(header, 0);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = &mut out[ip..ip + HEADER_V6_LEN];
                header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                header[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
                header[6..8].copy_from_slice(&[protocol, hop_limit]);
                header[8..24].copy_from_slice(&from.octets());
                header[24..40].copy_from_slice(&to.octets());
            }
            _ => unreachable!("both are of one family"),
        }
    }

    /// The sum of the pseudo-header of `payload` bytes of this protocol (RFC 9293, 3.1; RFC 8200, 8.1).
    pub(super) fn pseudo_sum(&self, protocol: u8, payload: usize) -> u16 {
        let rest = checksum::sum(&(payload as u32).to_be_bytes(), protocol.into());
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => checksum::sum(&to.octets(), checksum::sum(&from.octets(), rest)),
            (IpAddr::V6(from), IpAddr::V6(to)) => checksum::sum(&to.octets(), checksum::sum(&from.octets(), rest)),
            _ => unreachable!("both are of one family"),
        }
    }
}
