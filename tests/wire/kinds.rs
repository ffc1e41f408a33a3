//! Every kind of super-frame, its segments, and plain frames like them, each built from nothing.
//!
//! A segment is not taken apart but compared with the frame that a driver would have built for that piece of the
//! payload: so every byte of every header counts.

use guestwire::vhost::features as f;

use crate::guest::mac;
use crate::packet::sum;

const ETHERNET: usize = 14;
/// An MTU's worth of IP packet.
const MTU: usize = 1500;
/// TCP's timestamps: a super-frame's options are those of all of its segments.
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0xde, 0xad, 0xbe, 0xef, 0xfe, 0xed, 0xfa, 0xce];

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// A kind of super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) ecn: bool,
}

pub(crate) const TSO4: Kind = Kind { v6: false, udp: false, ecn: false };
pub(crate) const TSO6: Kind = Kind { v6: true, ..TSO4 };
pub(crate) const TSO4_ECN: Kind = Kind { ecn: true, ..TSO4 };
pub(crate) const TSO6_ECN: Kind = Kind { ecn: true, ..TSO6 };
pub(crate) const USO4: Kind = Kind { udp: true, ..TSO4 };
pub(crate) const USO6: Kind = Kind { udp: true, ..TSO6 };

/// Which piece of a stream a frame carries.
#[derive(Clone, Copy, Debug)]
struct Place {
    index: usize,
    first: bool,
    last: bool,
    sequence: usize,
}

const WHOLE: Place = Place { index: 0, first: true, last: true, sequence: 0 };

impl Kind {
    /// What a driver that sends it must have, and no more.
    pub(crate) fn sent_by(self) -> u64 {
        let kind = match (self.udp, self.v6) {
            (true, _) => f::HOST_USO,
            (false, false) => f::HOST_TSO4,
            (false, true) => f::HOST_TSO6,
        };
        f::CSUM | kind | if self.ecn { f::HOST_ECN } else { 0 }
    }

    /// The same for one that takes it.
    pub(crate) fn taken_by(self) -> u64 {
        f::GUEST_CSUM | self.taken_bit() | if self.ecn { f::GUEST_ECN } else { 0 }
    }

    /// The feature by which it is taken, but for ECN.
    pub(crate) fn taken_bit(self) -> u64 {
        match (self.udp, self.v6) {
            (true, false) => f::GUEST_USO4,
            (true, true) => f::GUEST_USO6,
            (false, false) => f::GUEST_TSO4,
            (false, true) => f::GUEST_TSO6,
        }
    }

    fn gso_type(self) -> u8 {
        let kind = match (self.udp, self.v6) {
            (true, _) => 5,
            (false, false) => 1,
            (false, true) => 4,
        };
        kind | if self.ecn { 0x80 } else { 0 }
    }

    fn transport(self) -> usize {
        ETHERNET + if self.v6 { 40 } else { 20 }
    }

    fn checksum_at(self) -> usize {
        if self.udp { 6 } else { 16 }
    }

    /// Bytes of all headers.
    pub(crate) fn headers(self) -> usize {
        self.transport() + if self.udp { 8 } else { 20 + TIMESTAMPS.len() }
    }

    /// Payload of a frame of the usual MTU.
    pub(crate) fn mss(self) -> usize {
        MTU + ETHERNET - self.headers()
    }

    /// The most payload that one super-frame carries: IPv4 counts its own header.
    pub(crate) fn most(self) -> usize {
        65_535 - (self.headers() - self.transport()) - if self.v6 { 0 } else { 20 }
    }

    /// A frame with the whole of `payload`. Its checksum is complete, or the sum of the pseudo-header alone.
    pub(crate) fn frame(self, from: u8, to: u8, payload: &[u8], partial: bool) -> Vec<u8> {
        self.piece(from, to, payload, partial, WHOLE)
    }

    /// The frames that a super-frame with `payload` stands for.
    pub(crate) fn segments(self, ends: (u8, u8), payload: &[u8], size: usize, partial: bool) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(size);
        let chunks = payload.chunks(size).enumerate();
        let place = |index| Place { index, first: index == 0, last: index + 1 == count, sequence: index * size };
        chunks.map(|(index, chunk)| self.piece(ends.0, ends.1, chunk, partial, place(index))).collect()
    }

    fn piece(self, from: u8, to: u8, payload: &[u8], partial: bool, place: Place) -> Vec<u8> {
        let transport = self.transport_header(payload.len(), place);
        let len = transport.len() + payload.len();
        let (network, addresses) = self.network_header(from, to, len, place);
        let ethertype: [u8; 2] = if self.v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        let mut frame = [&mac(to)[..], &mac(from), &ethertype, &network, &transport, payload].concat();
        let pseudo = sum(&addresses, u32::from(self.protocol()) + len as u32);
        let checksum = match !sum(&frame[self.transport()..], u32::from(pseudo)) {
            _ if partial => pseudo,
            // No UDP checksum is written as zero, which would mean that there is none.
            0 if self.udp => 0xffff,
            checksum => checksum,
        };
        let at = self.transport() + self.checksum_at();
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    fn protocol(self) -> u8 {
        if self.udp { 17 } else { 6 }
    }

    /// The IP header and both addresses.
    fn network_header(self, from: u8, to: u8, len: usize, place: Place) -> (Vec<u8>, Vec<u8>) {
        let ect = if self.ecn { 2 } else { 0 };
        if self.v6 {
            let address = |number| [&[0xfd, 0, 0, 1][..], &[0; 11], &[number]].concat();
            let addresses = [address(from), address(to)].concat();
            // Traffic class and flow label are those of the super-frame.
            let first = [0x60, ect << 4 | 1, 0x23, 0x45];
            let header = [&first[..], &(len as u16).to_be_bytes(), &[self.protocol(), 64], &addresses].concat();
            return (header, addresses);
        }
        let addresses = vec![10, 0, 0, from, 10, 0, 0, to];
        let (total, id) = ((20 + len) as u16, 0xfff0u16.wrapping_add(place.index as u16));
        let fields = [&total.to_be_bytes()[..], &id.to_be_bytes()].concat();
        let mut header = [&[0x45, ect][..], &fields, &[0x40, 0, 64, self.protocol(), 0, 0], &addresses].concat();
        let checksum = !sum(&header, 0);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        (header, addresses)
    }

    fn transport_header(self, payload: usize, place: Place) -> Vec<u8> {
        let ports = [0x13, 0x88, 0x13, 0x89];
        if self.udp {
            return [&ports[..], &(8 + payload as u16).to_be_bytes(), &[0, 0]].concat();
        }
        // Near the end of the numbers, so that they begin anew in the middle of a super-frame.
        let sequence = 0xffff_f000u32.wrapping_add(place.sequence as u32);
        let flags = ACK | if place.last { FIN | PSH } else { 0 } | if self.ecn && place.first { CWR } else { 0 };
        let rest = [0x80, flags, 0xff, 0xff, 0, 0, 0, 0];
        [&ports[..], &sequence.to_be_bytes(), &[0, 0, 0, 1], &rest, &TIMESTAMPS].concat()
    }

    /// The virtio-net header of a frame whose checksum is left to be completed, and of a super-frame where `size` is
    /// the payload of its segments.
    pub(crate) fn header(self, size: Option<usize>) -> [u8; 12] {
        let mut header = [0; 12];
        header[0] = 1;
        header[6..8].copy_from_slice(&(self.transport() as u16).to_le_bytes());
        header[8..10].copy_from_slice(&(self.checksum_at() as u16).to_le_bytes());
        if let Some(size) = size {
            header[1] = self.gso_type();
            header[2..4].copy_from_slice(&(self.headers() as u16).to_le_bytes());
            header[4..6].copy_from_slice(&(size as u16).to_le_bytes());
        }
        header
    }
}

/// Bytes that repeat after no segment.
pub(crate) fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8 ^ (n >> 8) as u8).collect()
}
