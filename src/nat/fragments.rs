//! Fragments of packets: those that guests send, put together, and those that guests are sent.
//!
//! Theory of operation. The pieces of a packet are kept in memory of our own until all are there, and then the packet
//! goes on as if it had come whole. Pieces that overlap, or say different things of where the packet ends, cost the
//! whole packet (RFC 5722, and for IPv4 for the same reason): nobody honest sends such.
//!
//! A packet that does not become whole in time is given up. Whoever sent it is to hear that, if its first piece has
//! come: only that says what the packet was (RFC 792; RFC 1122, 3.3.2; RFC 8200, 4.5).
//!
//! Bounds: [`PACKETS_PER_GUEST_MAX`] packets of a guest, the oldest of which gives way to one more; [`PACKETS_MAX`] of
//! all, where the oldest of the guest that has the most gives way, so that however many they are, each gets its part;
//! [`PIECES_MAX`] pieces of a packet; [`LIFE_NS`] from the first piece that has come to the last.

#[cfg(any(test, feature = "trials"))]
pub(super) mod trial;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use super::headers::{Ends, HOP_LIMIT};
use super::packet::Packet;
use crate::frame::checksum;
use crate::frame::ethernet::{self, be16};
use crate::frame::ip::{HEADER_V4_LEN, HEADER_V6_LEN};
use crate::metrics::Counter;
use crate::ring::Bytes;
use crate::switch::PortId;

/// Packets of one guest that are being put together.
const PACKETS_PER_GUEST_MAX: usize = 16;
/// Packets of all guests.
const PACKETS_MAX: usize = 64;
/// Pieces of a packet.
const PIECES_MAX: usize = 64;
/// How long the pieces of a packet are waited for, in nanoseconds (RFC 1122, 3.3.2: a minute at the least; RFC 8200,
/// 4.5: a minute).
const LIFE_NS: u64 = 60_000_000_000;
/// The longest packet.
const PACKET_MAX: usize = 65_535;
/// IPv4: there are more.
const MORE_V4: u16 = 0x2000;
const OFFSET_V4: u16 = 0x1fff;
/// Bytes of IPv6's fragment header, and its number.
const FRAGMENT_HEADER_LEN: usize = 8;
const FRAGMENT: u8 = 44;

/// Which packet a piece is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    port: PortId,
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    id: u32,
}

/// What a piece says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    id: u32,
    /// Where its bytes are in the packet, without the headers before them.
    offset: usize,
    is_last: bool,
    /// Where they are in the frame.
    payload: usize,
    /// What the packet is, and where its headers end without that of the fragment.
    protocol: u8,
    headers: usize,
}

impl Piece {
    fn parse(head: &[u8], packet: &Packet) -> Option<Self> {
        let at = packet.network;
        if packet.from.is_ipv4() {
            let flags = be16(head, at + 6)?;
            let id = be16(head, at + 4)?.into();
            let (offset, payload) = (usize::from(flags & OFFSET_V4) * 8, packet.transport);
            let is_last = flags & MORE_V4 == 0;
            return Some(Self { id, offset, is_last, payload, protocol: packet.protocol, headers: payload });
        }
        // Only where nothing else stands between: hosts have no more to say in front of it.
        let headers = at + HEADER_V6_LEN;
        if *head.get(at + 6)? != FRAGMENT {
            return None;
        }
        let header = head.get(headers..headers + FRAGMENT_HEADER_LEN)?;
        let place = be16(header, 2)?;
        Some(Self {
            id: u32::from_be_bytes(header[4..8].try_into().ok()?),
            offset: usize::from(place & !7),
            is_last: place & 1 == 0,
            payload: headers + FRAGMENT_HEADER_LEN,
            protocol: header[0],
            headers,
        })
    }
}

/// The first piece of a packet.
#[derive(Debug)]
pub(super) struct First {
    /// What it says of the packet. The transport's header, which it has, is where the whole packet would have it.
    pub(super) packet: Packet,
    /// The frame that it came in.
    pub(super) frame: Vec<u8>,
    /// Where its headers end without that of the fragment.
    headers: usize,
}

/// A packet that is being put together.
#[derive(Debug)]
struct Partial {
    since: u64,
    first: Option<First>,
    bytes: Vec<u8>,
    /// Which of them are there: from, and up to.
    have: Vec<(usize, usize)>,
    /// How long it is, once that is known.
    len: Option<usize>,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    packets: HashMap<Key, Partial>,
    /// When [`Self::expire`] is due, or earlier.
    due: Option<u64>,
    frame: Vec<u8>,
}

impl Fragments {
    /// Takes a piece that came in a frame. Returns the frame of the whole packet, if this was the last one. What is due
    /// is to be done before ([`Self::expire`]).
    ///
    /// # Errors
    /// The counter of the reason why it was dropped.
    pub(super) fn take(
        &mut self,
        port: PortId,
        packet: &Packet,
        bytes: &Bytes<'_>,
        now: u64,
    ) -> Result<Option<Vec<u8>>, Counter> {
        bytes.copy_out(&mut self.frame);
        let piece = Piece::parse(&self.frame, packet).ok_or(Counter::DropRxBadPacket)?;
        let payload = self.frame.get(piece.payload..packet.end).ok_or(Counter::DropRxBadPacket)?;
        let (from, to) = (piece.offset, piece.offset + payload.len());
        // All but the last are of whole units of eight bytes, so that the next one has a number.
        if payload.is_empty() || to > PACKET_MAX || !piece.is_last && payload.len() % 8 != 0 {
            return Err(Counter::DropRxBadPacket);
        }
        let key = Key { port, from: packet.from, to: packet.to, protocol: piece.protocol, id: piece.id };
        if !self.packets.contains_key(&key) {
            make_room(&mut self.packets, port);
            self.due.get_or_insert(now + LIFE_NS);
        }
        let new = || Partial { since: now, first: None, bytes: Vec::new(), have: Vec::new(), len: None };
        let partial = self.packets.entry(key).or_insert_with(new);
        if !partial.may_have(from, to, piece.is_last) {
            self.packets.remove(&key);
            return Err(Counter::DropRxBadPacket);
        }
        if partial.bytes.len() < to {
            partial.bytes.resize(to, 0);
        }
        partial.bytes[from..to].copy_from_slice(payload);
        partial.have.push((from, to));
        if piece.offset == 0 {
            let (protocol, transport) = (piece.protocol, piece.payload);
            let packet = Packet { protocol, transport, is_fragment: false, ..*packet };
            let frame = self.frame[..packet.end].to_vec();
            partial.first = Some(First { packet, frame, headers: piece.headers });
        }
        if piece.is_last {
            partial.len = Some(to);
        }
        if !partial.is_whole() {
            return Ok(None);
        }
        let whole = self.packets.remove(&key).and_then(|partial| partial.join(packet.network, piece.protocol));
        whole.ok_or(Counter::DropRxBadPacket).map(Some)
    }

    /// When [`Self::expire`] is due, or earlier.
    pub(super) fn due(&self) -> Option<u64> {
        self.due
    }

    /// Gives up what has not become whole in time. Returns the first piece of each packet of which that has come, and
    /// the port that it came from.
    pub(super) fn expire(&mut self, now: u64) -> Vec<(PortId, First)> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let expired = self.packets.extract_if(|_, partial| now >= partial.since + LIFE_NS);
        let firsts = expired.filter_map(|(key, partial)| Some((key.port, partial.first?))).collect();
        self.due = self.packets.values().map(|partial| partial.since + LIFE_NS).min();
        firsts
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.packets.retain(|key, _| key.port != port);
    }
}

/// Makes room for one more of a guest's packets.
fn make_room(packets: &mut HashMap<Key, Partial>, port: PortId) {
    let mut counts: HashMap<PortId, usize> = HashMap::new();
    packets.keys().for_each(|key| *counts.entry(key.port).or_default() += 1);
    let count = |key: &Key| counts.get(&key.port).copied().unwrap_or_default();
    let is_own = |key: &Key| key.port == port;
    let gives_way = if counts.get(&port).is_some_and(|own| *own >= PACKETS_PER_GUEST_MAX) {
        packets.iter().filter(|(key, _)| is_own(key)).min_by_key(|(_, partial)| partial.since)
    } else if packets.len() >= PACKETS_MAX {
        // Who has as many as anybody takes nobody else's.
        packets.iter().max_by_key(|(key, partial)| (count(key), is_own(key), Reverse(partial.since)))
    } else {
        None
    };
    if let Some(key) = gives_way.map(|(key, _)| *key) {
        packets.remove(&key);
    }
}

impl Partial {
    /// Whether a piece agrees with those that are there.
    fn may_have(&self, from: usize, to: usize, is_last: bool) -> bool {
        let overlaps = self.have.iter().any(|(start, end)| from < *end && *start < to);
        let ends_otherwise = self.len.is_some_and(|len| is_last || to > len);
        let is_too_short = is_last && self.bytes.len() > to;
        !overlaps && !ends_otherwise && !is_too_short && self.have.len() < PIECES_MAX
    }

    fn is_whole(&self) -> bool {
        let there: usize = self.have.iter().map(|(from, to)| to - from).sum();
        self.first.is_some() && self.len == Some(there)
    }

    /// The frame of the whole packet.
    fn join(self, network: usize, protocol: u8) -> Option<Vec<u8>> {
        let First { mut frame, headers, .. } = self.first?;
        frame.truncate(headers);
        let ip = frame.get_mut(network..)?;
        if ip.first()? >> 4 == 4 {
            let total = u16::try_from(ip.len() + self.bytes.len()).ok()?;
            ip.get_mut(2..4)?.copy_from_slice(&total.to_be_bytes());
            ip.get_mut(6..8)?.fill(0);
            ip.get_mut(10..12)?.fill(0);
            let sum = !checksum::sum(ip, 0);
            ip.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
        } else {
            let len = u16::try_from(self.bytes.len()).ok()?;
            ip.get_mut(4..6)?.copy_from_slice(&len.to_be_bytes());
            *ip.get_mut(6)? = protocol;
        }
        frame.extend_from_slice(&self.bytes);
        Some(frame)
    }
}

/// Cuts a packet for a guest into pieces of no more than `mtu` bytes, each in a frame. `payload` is what follows the IP
/// header, with its checksum.
pub(super) fn cut(ends: &Ends, protocol: u8, payload: &[u8], mtu: usize, id: u32, mut each: impl FnMut(Vec<u8>)) {
    let headers = ends.len() - ethernet::HEADER_LEN + if ends.to.is_ipv6() { FRAGMENT_HEADER_LEN } else { 0 };
    let most = (mtu.saturating_sub(headers) & !7).max(8);
    for (n, piece) in payload.chunks(most).enumerate() {
        let (offset, is_last) = ((n * most) as u16, (n + 1) * most >= payload.len());
        let mut frame = vec![0; ends.len()];
        if ends.to.is_ipv4() {
            ends.emit(protocol, HOP_LIMIT, piece.len(), &mut frame);
            let ip = &mut frame[ethernet::HEADER_LEN..][..HEADER_V4_LEN];
            let flags = (offset / 8) | if is_last { 0 } else { MORE_V4 };
            ip[4..6].copy_from_slice(&(id as u16).to_be_bytes());
            ip[6..8].copy_from_slice(&flags.to_be_bytes());
            ip[10..12].fill(0);
            let sum = !checksum::sum(ip, 0);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            ends.emit(FRAGMENT, HOP_LIMIT, FRAGMENT_HEADER_LEN + piece.len(), &mut frame);
            let place = offset | u16::from(!is_last);
            frame.extend_from_slice(&[protocol, 0]);
            frame.extend_from_slice(&place.to_be_bytes());
            frame.extend_from_slice(&id.to_be_bytes());
        }
        frame.extend_from_slice(piece);
        each(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ethernet::MacAddr;
    use crate::frame::ip::UDP;
    use crate::frame::offload::Offload;
    use proptest::prelude::*;

    const A: PortId = PortId(1);

    fn ends(is_v4: bool) -> Ends {
        let (from, to) = if is_v4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
        let [from, to] = [from, to].map(|address| address.parse().unwrap());
        Ends { mac: MacAddr([2; 6]), to_mac: MacAddr([4; 6]), from, to }
    }

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 7 + n / 256) as u8).collect()
    }

    fn pieces(is_v4: bool, len: usize, mtu: usize, id: u32) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        cut(&ends(is_v4), UDP, &payload(len), mtu, id, |piece| pieces.push(piece));
        pieces
    }

    fn take(fragments: &mut Fragments, frame: &[u8], now: u64) -> Result<Option<Vec<u8>>, Counter> {
        take_from(A, fragments, frame, now)
    }

    fn take_from(port: PortId, fragments: &mut Fragments, frame: &[u8], now: u64) -> Result<Option<Vec<u8>>, Counter> {
        let packet = Packet::parse(frame, frame.len(), &Offload::None).unwrap();
        assert!(packet.is_fragment);
        fragments.take(port, &packet, &Bytes::private(frame), now)
    }

    proptest! {
        #[test]
        fn what_was_cut_comes_together_in_any_order(
            is_v4: bool,
            len in 1500_usize..65_000,
            mtu in 1280_usize..9000,
            order in any::<prop::sample::Index>(),
        ) {
            let mut pieces = pieces(is_v4, len, mtu, 7);
            prop_assume!(pieces.len() > 1 && pieces.len() <= PIECES_MAX);
            prop_assert!(pieces.iter().all(|piece| piece.len() <= mtu + 14));
            let turn = order.index(pieces.len());
            pieces.rotate_left(turn);
            let mut fragments = Fragments::default();
            let last = pieces.pop().unwrap();
            for piece in &pieces {
                prop_assert_eq!(take(&mut fragments, piece, 1), Ok(None));
            }
            let whole = take(&mut fragments, &last, 2).unwrap().unwrap();
            let packet = Packet::parse(&whole, whole.len(), &Offload::None).unwrap();
            prop_assert!(!packet.is_fragment && packet.protocol == UDP && packet.end == whole.len());
            prop_assert_eq!(&whole[packet.transport..], &payload(len)[..]);
            prop_assert!(!is_v4 || checksum::sum(&whole[14..34], 0) == 0xffff);
            prop_assert!(fragments.packets.is_empty());
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 14..200), is_v4: bool) {
            let kind = if is_v4 { [8, 0, 0x45] } else { [0x86, 0xdd, 0x60] };
            bytes.resize(bytes.len().max(17), 0);
            bytes[12..15].copy_from_slice(&kind);
            if let Some(packet) = Packet::parse(&bytes, bytes.len(), &Offload::None) {
                let _ = Fragments::default().take(A, &packet, &Bytes::private(&bytes), 1);
            }
        }
    }

    #[test]
    fn pieces_that_overlap_cost_the_packet() {
        for is_v4 in [true, false] {
            let pieces = pieces(is_v4, 4000, 1500, 7);
            let mut fragments = Fragments::default();
            assert_eq!(take(&mut fragments, &pieces[0], 1), Ok(None));
            assert_eq!(take(&mut fragments, &pieces[0], 1), Err(Counter::DropRxBadPacket));
            assert!(fragments.packets.is_empty());
        }
    }

    #[test]
    fn half_packets_are_few_and_do_not_stay() {
        let mut fragments = Fragments::default();
        for id in 0..1000 {
            assert_eq!(take(&mut fragments, &pieces(true, 4000, 1500, id)[0], u64::from(id)), Ok(None));
        }
        assert_eq!(fragments.packets.len(), PACKETS_PER_GUEST_MAX);
        assert_eq!(fragments.due(), Some(LIFE_NS), "or earlier");
        assert!(fragments.expire(LIFE_NS - 1 + 1000 - PACKETS_PER_GUEST_MAX as u64).is_empty());
        assert_eq!(fragments.expire(LIFE_NS + 1000 - PACKETS_PER_GUEST_MAX as u64).len(), 1);
        assert_eq!(fragments.expire(LIFE_NS + 998).len(), PACKETS_PER_GUEST_MAX - 2);
        assert_eq!((fragments.due(), fragments.packets.len()), (Some(LIFE_NS + 999), 1));
        assert_eq!(fragments.expire(LIFE_NS + 999).len(), 1);
        assert_eq!((fragments.due(), fragments.packets.len()), (None, 0));
    }

    #[test]
    fn what_is_given_up_is_told_by_its_first_piece_and_not_without() {
        for is_v4 in [true, false] {
            let mut fragments = Fragments::default();
            let [first, .., last] = &pieces(is_v4, 4000, 1500, 7)[..] else { panic!("too few") };
            assert_eq!(take(&mut fragments, last, 1), Ok(None));
            assert!(fragments.expire(LIFE_NS + 1).is_empty() && fragments.packets.is_empty());
            assert_eq!(take(&mut fragments, last, 1), Ok(None));
            assert_eq!(take(&mut fragments, first, 2), Ok(None));
            let told = fragments.expire(LIFE_NS + 1);
            let [(A, First { packet, frame, .. })] = &told[..] else { panic!("{told:?}") };
            assert_eq!((frame, packet.protocol, packet.is_fragment), (first, UDP, false));
            assert_eq!(&frame[packet.transport..][..8], &payload(8));
        }
    }

    #[test]
    fn who_comes_late_gets_a_part_of_what_others_have_taken_whole() {
        let (mut fragments, mut now) = (Fragments::default(), 0);
        let mut begin = |fragments: &mut Fragments, port, id| {
            now += 1;
            let piece = &pieces(true, 4000, 1500, id)[0];
            assert_eq!(take_from(PortId(port), fragments, piece, now), Ok(None));
        };
        let counts = |fragments: &Fragments| -> Vec<usize> {
            (1..=8).map(|port| fragments.packets.keys().filter(|key| key.port == PortId(port)).count()).collect()
        };
        for id in 0..100 {
            (1..=4).for_each(|port| begin(&mut fragments, port, id));
        }
        assert_eq!(counts(&fragments), [16, 16, 16, 16, 0, 0, 0, 0]);
        // Two are enough for it, and those that go on taking take them from each other.
        for id in 100..200 {
            (1..=4).for_each(|port| begin(&mut fragments, port, id));
            if id < 102 {
                begin(&mut fragments, 5, id);
            }
        }
        assert_eq!(counts(&fragments)[4..], [2, 0, 0, 0]);
        assert!(counts(&fragments)[..4].iter().all(|count| *count >= 15), "{:?}", counts(&fragments));
        for id in 200..300 {
            (1..=8).for_each(|port| begin(&mut fragments, port, id));
        }
        assert_eq!(counts(&fragments), [8; 8]);
        // Who has as many as anybody takes nobody else's.
        begin(&mut fragments, 8, 300);
        assert_eq!(counts(&fragments), [8; 8]);
    }
}
