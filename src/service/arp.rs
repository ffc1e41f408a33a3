//! ARP for the server's own address (RFC 826).

use std::net::Ipv4Addr;

use crate::frame::ethernet::{HEADER_LEN, MacAddr};

/// EtherType of ARP.
pub(super) const TYPE_ARP: u16 = 0x0806;
/// Ethernet, IPv4, and the lengths of their addresses.
const KINDS: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Bytes of a packet for these kinds.
const LEN: usize = 28;

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    operation: u16,
    sender_mac: MacAddr,
    pub(super) sender: Ipv4Addr,
    pub(super) target: Ipv4Addr,
}

impl Packet {
    /// The packet at `at` of a frame, if it is about IPv4 on Ethernet.
    pub(super) fn parse(frame: &[u8], at: usize) -> Option<Self> {
        let packet: &[u8; LEN] = frame.get(at..)?.first_chunk()?;
        let address = |at: usize| packet[at..].first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
        Some(Self {
            operation: packet.starts_with(&KINDS).then(|| u16::from_be_bytes([packet[6], packet[7]]))?,
            sender_mac: MacAddr(*packet[8..].first_chunk()?),
            sender: address(14)?,
            target: address(24)?,
        })
    }

    /// The answer of `mac`, which has the address that is asked for. A probe, which names no sender (RFC 5227 2.1.1),
    /// is answered too: so whoever is about to take the server's address learns that it is taken.
    pub(super) fn answer(&self, mac: MacAddr) -> Option<Vec<u8>> {
        if self.operation != REQUEST || self.sender_mac.is_group() {
            return None;
        }
        let mut frame = Vec::with_capacity(HEADER_LEN + LEN);
        for part in [&self.sender_mac.0[..], &mac.0, &TYPE_ARP.to_be_bytes(), &KINDS, &REPLY.to_be_bytes()] {
            frame.extend_from_slice(part);
        }
        for part in [&mac.0[..], &self.target.octets(), &self.sender_mac.0, &self.sender.octets()] {
            frame.extend_from_slice(part);
        }
        Some(frame)
    }
}
