//! What must hold in a simulated connection after each step.

use super::super::acks::WAIT_NS;
use super::distance;
use super::guest::State;
use super::sim::{BURST_MAX, World};
use super::weather::{CALM_MAX, CALM_STEPS_MAX, SILENT_MAX};

impl World {
    /// What must hold whatever has happened.
    pub(super) fn check(&mut self) {
        let limit = if matches!(self.guest.state, State::Gone | State::Aborted) { SILENT_MAX } else { CALM_MAX };
        if let Some(calm_at) = self.calm_at {
            assert!(self.now <= calm_at + limit, "it takes too long");
        }
        assert!(self.steps <= self.weather.rough + CALM_STEPS_MAX, "it takes too many steps");
        self.check_promptness();
        let Some(mirror) = &self.mirror else { return };
        let inside = mirror.inside();
        assert!(distance(inside.nxt, inside.una) >= 0 && distance(inside.max, inside.nxt) >= 0);
        if let Some(before) = self.before.replace(inside.clone())
            && before.is_open
        {
            assert!(!inside.edge.is_before(before.edge) && !inside.next.is_before(before.next));
            assert!(!inside.una.is_before(before.una) && !inside.max.is_before(before.max));
        }
        if !inside.is_open {
            return;
        }
        // What was kept lies within the window told, and within bounds.
        let kept: u32 = inside.pieces.iter().map(|(_, len)| len).sum();
        assert!(inside.pieces.len() <= 128 && kept <= 1 << 20);
        let mut end = inside.next;
        for (from, len) in &inside.pieces {
            assert!(distance(*from, end) >= 0, "pieces overlap, or are old");
            end = from.plus(*len);
        }
        assert!(!inside.edge.is_before(end), "kept beyond the window");
        // What was taken away was acknowledged, and what was acknowledged was heard.
        let acknowledged = inside.una.since(self.isn.plus(1)) - u32::from(inside.fin_is_acknowledged);
        assert_eq!(self.socket.consumed, acknowledged);
        assert!(acknowledged <= self.guest.heard() && self.guest.heard() <= self.socket.come);
        assert!(self.socket.taken <= self.guest.written);
    }

    /// Nothing waits for what nobody will tell: neither what is in the socket, nor an acknowledgement.
    fn check_promptness(&mut self) {
        let Some(mirror) = self.mirror.as_ref().filter(|mirror| !mirror.is_half_open()) else { return };
        if let Some(wanted) = mirror.wanted() {
            let is_there = self.socket.come > self.socket.consumed + wanted.skip;
            let is_coming = self.tells_at.is_some() || mirror.is_readable && self.supplies_at.is_some();
            assert!(!is_there || is_coming, "what is in the socket stays there: {wanted:?}");
        }
        self.owes_since = mirror.owes_ack.then(|| self.owes_since.unwrap_or(self.now));
        let waits = self.owes_since.map_or(0, |since| self.now - since);
        assert!(waits <= WAIT_NS + BURST_MAX, "an acknowledgement waits for {waits} ns");
    }
}
