//! Pieces of packets in any order, held against a simple account of what was sent.
//!
//! Theory of operation. The pieces are read from bytes, so that a fuzzer can choose them and a property test can draw
//! them: of which packet, from where, how long, and what they say. The account knows the rules as [`super`] tells them,
//! and keeps the pieces themselves instead of a packet: which one is refused, when one is whole and what it is, and
//! which have to give way must be the same.

use std::collections::BTreeMap;

use super::*;
use crate::frame::ethernet::MacAddr;
use crate::frame::ip::UDP;
use crate::frame::offload::Offload;

/// Pieces of one trial.
const STEPS_MAX: usize = 1000;
/// The longest piece, in bytes.
const PIECE_MAX: usize = 9000;

/// Runs a trial that these bytes describe.
///
/// # Panics
/// When the two do not agree.
pub fn trial(bytes: &[u8]) {
    let (mut fragments, mut account) = (Fragments::default(), Account::default());
    // Each piece comes later than the one before it, so that of two packets one is the older.
    let mut now = 1;
    for step in bytes.chunks(6).take(STEPS_MAX) {
        let mut fields = [0; 6];
        fields[..step.len()].copy_from_slice(step);
        let [what, which, at_high, at_low, len_high, len_low] = fields;
        now += 1;
        if what & 0xf0 == 0xf0 {
            now += u64::from(which) * (LIFE_NS / 64);
            let port = PortId(u16::from(at_high & 7));
            if at_high & 0x80 != 0 {
                fragments.port_ended(port);
                account.packets.retain(|(its, ..), _| *its != port);
            }
            continue;
        }
        let is_v4 = what & 1 == 0;
        let offset = usize::from(u16::from_be_bytes([at_high, at_low]) & 0x1fff) * 8;
        let len = usize::from(u16::from_be_bytes([len_high, len_low])) % PIECE_MAX;
        let piece = Sent {
            is_v4,
            port: PortId(u16::from(which & 7)),
            id: (which >> 3).into(),
            version: what >> 2 & 1,
            offset,
            is_last: what & 2 != 0,
            len: if what & 8 == 0 { len & !7 } else { len },
        };
        let frame = piece.frame();
        let Some(packet) = Packet::parse(&frame, frame.len(), &Offload::None) else { continue };
        if !packet.is_fragment {
            continue;
        }
        assert_eq!(fragments.expire(now).len(), account.expire(now));
        let got = fragments.take(piece.port, &packet, &Bytes::private(&frame), now);
        let expected = account.take(&piece, now);
        check(&piece, got, expected);
        assert_eq!(fragments.packets.len(), account.packets.len());
        assert!(fragments.packets.len() <= PACKETS_MAX);
    }
}

/// A piece as the guest sends it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    is_v4: bool,
    port: PortId,
    id: u32,
    /// Which of two packets that call themselves the same it is of.
    version: u8,
    offset: usize,
    is_last: bool,
    len: usize,
}

impl Sent {
    fn payload(&self) -> Vec<u8> {
        let byte = |n: usize| (n ^ n >> 8) as u8 ^ self.id as u8 ^ self.version << 7;
        (self.offset..self.offset + self.len).map(byte).collect()
    }

    fn ends(&self) -> Ends {
        let (from, to) = if self.is_v4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
        let address = |text: &str| text.parse().unwrap_or(IpAddr::from([0; 4]));
        Ends { mac: MacAddr([2; 6]), to_mac: MacAddr([4; 6]), from: address(from), to: address(to) }
    }

    fn frame(&self) -> Vec<u8> {
        let (ends, payload) = (self.ends(), self.payload());
        let mut frame = vec![0; ends.len()];
        if self.is_v4 {
            ends.emit(UDP, 9, payload.len(), &mut frame);
            let place = (self.offset / 8) as u16 | if self.is_last { 0 } else { MORE_V4 };
            let ip = &mut frame[ethernet::HEADER_LEN..];
            ip[4..6].copy_from_slice(&(self.id as u16).to_be_bytes());
            ip[6..8].copy_from_slice(&place.to_be_bytes());
        } else {
            ends.emit(FRAGMENT, 9, FRAGMENT_HEADER_LEN + payload.len(), &mut frame);
            frame.extend_from_slice(&[UDP, 0]);
            frame.extend_from_slice(&(self.offset as u16 | u16::from(!self.is_last)).to_be_bytes());
            frame.extend_from_slice(&self.id.to_be_bytes());
        }
        frame.extend_from_slice(&payload);
        frame
    }
}

type Name = (PortId, bool, u32);

/// What was sent and may still become a packet: the pieces, and when the first one came.
#[derive(Debug, Default)]
struct Account {
    packets: BTreeMap<Name, (u64, Vec<Sent>)>,
}

impl Account {
    /// What must come of a piece: the payload of the packet that it makes whole, or why it goes no further.
    fn take(&mut self, piece: &Sent, now: u64) -> Result<Option<Vec<u8>>, Counter> {
        let end = |piece: &Sent| piece.offset + piece.len;
        if piece.len == 0 || end(piece) > PACKET_MAX || !piece.is_last && !piece.len.is_multiple_of(8) {
            return Err(Counter::DropRxBadPacket);
        }
        let name = (piece.port, piece.is_v4, piece.id);
        if !self.packets.contains_key(&name) {
            self.make_room(piece.port);
        }
        let (_, pieces) = self.packets.entry(name).or_insert_with(|| (now, Vec::new()));
        let disagrees = |other: &Sent| {
            let overlaps = piece.offset < end(other) && other.offset < end(piece);
            let is_beyond = other.is_last && (piece.is_last || end(piece) > end(other));
            overlaps || is_beyond || piece.is_last && end(other) > end(piece)
        };
        if pieces.len() >= PIECES_MAX || pieces.iter().any(disagrees) {
            self.packets.remove(&name);
            return Err(Counter::DropRxBadPacket);
        }
        pieces.push(*piece);
        pieces.sort_by_key(|piece| piece.offset);
        let is_joined = pieces.windows(2).all(|two| end(&two[0]) == two[1].offset);
        let is_whole = is_joined && pieces[0].offset == 0 && pieces[pieces.len() - 1].is_last;
        if !is_whole {
            return Ok(None);
        }
        let payload = pieces.iter().flat_map(Sent::payload).collect::<Vec<_>>();
        self.packets.remove(&name);
        // IPv4 counts its header, too.
        let is_too_long = payload.len() + if piece.is_v4 { HEADER_V4_LEN } else { 0 } > PACKET_MAX;
        if is_too_long { Err(Counter::DropRxBadPacket) } else { Ok(Some(payload)) }
    }

    /// What is not whole in time. Returns of how many packets the first piece has come.
    fn expire(&mut self, now: u64) -> usize {
        let mut told = 0;
        self.packets.retain(|_, (since, pieces)| {
            let is_over = now - *since >= LIFE_NS;
            told += usize::from(is_over && pieces.iter().any(|piece| piece.offset == 0));
            !is_over
        });
        told
    }

    fn make_room(&mut self, port: PortId) {
        let count = |port| self.packets.keys().filter(|(its, ..)| *its == port).count();
        let most = self.packets.keys().map(|(its, ..)| count(*its)).max().unwrap_or_default();
        let has_place = self.packets.len() < PACKETS_MAX;
        let gives = |its: PortId| match count(port) {
            PACKETS_PER_GUEST_MAX.. => its == port,
            own if own == most => its == port && !has_place,
            _ => count(its) == most && !has_place,
        };
        let giving = self.packets.iter().filter(|((its, ..), _)| gives(*its));
        if let Some(name) = giving.min_by_key(|(_, (since, _))| *since).map(|(name, _)| *name) {
            self.packets.remove(&name);
        }
    }
}

fn check(piece: &Sent, got: Result<Option<Vec<u8>>, Counter>, expected: Result<Option<Vec<u8>>, Counter>) {
    let whole = match (got, expected) {
        (Ok(Some(frame)), Ok(Some(payload))) => (frame, payload),
        (got, expected) => {
            let got = got.map(|frame| frame.map(|frame| frame.len()));
            assert_eq!(got, expected.map(|payload| payload.map(|payload| payload.len())), "{piece:?}");
            return;
        }
    };
    let (frame, payload) = whole;
    let packet = Packet::parse(&frame, frame.len(), &Offload::None).map(|packet| Packet { hop_limit: 0, ..packet });
    let ends = piece.ends();
    let Some(packet) = packet else { panic!("no packet came of {piece:?}") };
    assert_eq!((packet.from, packet.to, packet.protocol, packet.is_fragment), (ends.from, ends.to, UDP, false));
    assert_eq!((packet.end, &frame[packet.transport..]), (frame.len(), &payload[..]), "{piece:?}");
    let ip = &frame[ethernet::HEADER_LEN..packet.transport];
    assert!(!piece.is_v4 || checksum::sum(ip, 0) == 0xffff, "{ip:02x?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Few packets, cut in few places, so that many become whole.
    fn step() -> impl Strategy<Value = [u8; 6]> {
        let what = prop_oneof![8 => 0_u8..8, 1 => 0xf0_u8..=0xff, 1 => any::<u8>()];
        let at = prop_oneof![4 => (0_u16..4).prop_map(|n| n * 4), 1 => any::<u16>()];
        let len = prop_oneof![4 => Just(32_u16), 1 => (1_u16..70).prop_map(|n| n * 8), 1 => any::<u16>()];
        (what, any::<u8>(), at, len).prop_map(|(what, which, at, len)| {
            let [(at_high, at_low), (len_high, len_low)] = [at, len].map(|n| ((n >> 8) as u8, n as u8));
            [what, which & 0x3f, at_high, at_low, len_high, len_low]
        })
    }

    proptest! {
        #[test]
        fn the_account_agrees(steps in prop::collection::vec(step(), 0..600)) {
            super::trial(steps.as_flattened());
        }
    }
}
