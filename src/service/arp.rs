//! ARP for the server's own address (RFC 826).

use crate::frame::arp::{Arp, REPLY, REQUEST};
use crate::frame::ethernet::{MacAddr, TYPE_ARP};

/// The answer of `mac`, which has the address that is asked for. A probe, which names no sender (RFC 5227 2.1.1), is
/// answered too: so whoever is about to take the server's address learns that it is taken.
pub(super) fn answer(asked: &Arp, mac: MacAddr) -> Option<Vec<u8>> {
    if asked.operation != REQUEST || asked.sender_mac.is_group() {
        return None;
    }
    let answer = Arp {
        operation: REPLY,
        sender_mac: mac,
        sender: asked.target,
        target_mac: asked.sender_mac,
        target: asked.sender,
    };
    Some([&asked.sender_mac.0[..], &mac.0, &TYPE_ARP.to_be_bytes(), &answer.to_bytes()].concat())
}
