//! Frames: views over bytes. No state, no input or output, no panic on any bytes.
//!
//! A frame is judged by a private copy of its first bytes (`head`), never by the memory of the guest that sent it.

pub mod arp;
pub mod checksum;
pub mod dhcp;
pub mod ethernet;
pub mod flow;
pub mod ip;
pub mod ndp;
pub mod offload;
pub mod segment;
pub mod vnet;

/// Bytes of a frame that [`offload::validate`] wants to see: Ethernet with two VLAN tags, IPv6 with extension headers
/// of up to 134 bytes, TCP with all its options.
pub const FRAME_HEAD_MAX: usize = 14 + 8 + 40 + 134 + 60;

#[cfg(test)]
mod tests;
