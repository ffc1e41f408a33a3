//! What a hostile guest sends in a simulated connection.

use super::super::super::seq::Seq;
use super::super::segment::{ACK, FIN, HEADER_LEN, Header, PSH, RST, SYN, SYN_OPTIONS_MAX};
use super::guest::State;
use super::sim::World;

impl World {
    /// Segments that nobody honest sends, or not now: none may do harm.
    pub(super) fn garbage(&mut self) {
        let Some(mirror) = self.mirror.as_ref().filter(|mirror| !mirror.is_half_open()) else { return };
        if self.guest.state != State::Open {
            return;
        }
        let inside = mirror.inside();
        let far = self.rng.range(1, 1 << 30);
        let near = self.rng.range(1, 2000);
        let (seq, good_ack) = (inside.next, Some(inside.una));
        let early = inside.edge.since(inside.next);
        let kind = self.rng.below(10);
        let (seq, ack, flags, len) = match kind {
            0 => (seq, Some(inside.max.plus(far)), ACK, near),
            1 => (seq, Some(inside.max.plus(1)), ACK | FIN, 0),
            2 => (Seq(seq.0.wrapping_sub(far)), good_ack, ACK, near.min(far)),
            3 => (self.guest.old_seq(near), good_ack, ACK, 0),
            4 => (seq.plus(far % 5000), good_ack, SYN | ACK, 0),
            5 => (Seq(seq.0.wrapping_sub(near)), None, SYN, 0),
            6 => (inside.edge.plus(1 + near), good_ack, ACK | PSH, near),
            7 => (inside.edge.plus(2 + far % 3), good_ack, ACK | FIN, 0),
            8 if early > 1 => (seq.plus(1 + far % (early - 1)), good_ack, RST, 0),
            8 => (inside.edge.plus(near), good_ack, RST, 0),
            _ => (seq, None, 0, near),
        };
        let mut head = [0; HEADER_LEN + SYN_OPTIONS_MAX];
        let flags = if ack.is_some() { flags | ACK } else { flags & !ACK };
        // What is not wrong altogether does not lie about the room.
        let window = if matches!(kind, 2 | 3) { self.guest.window() } else { self.rng.next() as u16 };
        let ack = ack.unwrap_or(Seq(0));
        let len_of_head = Header { seq, ack, flags, window, mss: None, scale: None }.emit(1, 2, &mut head);
        let frame = [&head[..len_of_head], &vec![0xee; len as usize]].concat();
        self.receive(&frame);
        assert!(self.mirror.is_some(), "garbage has ended it");
    }
}
