//! How much room the kernel has for what a connection's peer sends.
//!
//! Theory of operation. What a peer can send in a round trip is what there is room for, so a stream over a long way
//! needs more. The kernel sees only what is peeked and not taken away, and gives hardly more by itself
//! ([`net::set_receive_room`]). So each time that the guest has taken as much as there is room for, it is looked how
//! long that took: less than [`TRIPS`] round trips mean that the room is what limits the stream, or will be when the
//! peer sends twice as much in the next one, as it does in the beginning (RFC 5681, 3.1). Then there is to be twice as
//! much. The round trip is the kernel's to the peer and ours to the guest: a byte keeps its room until the guest has
//! acknowledged it.
//!
//! The kernel takes nothing back, so what is over [`net::RECEIVE_ROOM`] is counted until the connection ends, and all
//! guests have a budget of it, of which each may have a share ([`super::super::sockets`]). A stream that gets no more
//! goes on as it is.

use std::sync::Arc;

use super::super::sockets::{RoomTicket, Sockets};
use crate::sys::net;

/// The most that the kernel is asked to have room for, in bytes.
const MAX: u32 = 8 << 20;
/// The room is what limits who takes it all in less than this many round trips.
const TRIPS: u64 = 2;

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct ReceiveRoom {
    /// In bytes.
    asked: u32,
    /// Bytes that the guest has taken since then, on the clock in nanoseconds.
    taken: u32,
    since: u64,
    /// For each time that there was to be more.
    tickets: Vec<RoomTicket>,
}

impl ReceiveRoom {
    /// What a connection has from the beginning.
    pub(super) fn new(now: u64) -> Self {
        Self { asked: net::RECEIVE_ROOM, taken: 0, since: now, tickets: Vec::new() }
    }

    /// The guest has taken so many bytes.
    pub(super) fn take(&mut self, len: u32) {
        self.taken = self.taken.saturating_add(len);
    }

    /// How much of the budget it has, in bytes.
    pub(super) fn budgeted(&self) -> usize {
        (self.asked - net::RECEIVE_ROOM) as usize
    }

    /// How much there is to be room for, if that is more than there is: `round_trip` is asked, in nanoseconds, when
    /// that depends on it. The guest has `has` bytes of the budget.
    pub(super) fn grow(
        &mut self,
        now: u64,
        round_trip: impl FnOnce() -> u64,
        (sockets, has): (&Arc<Sockets>, usize),
    ) -> Option<u32> {
        if self.taken < self.asked || self.asked >= MAX {
            return None;
        }
        let (taken, time) = (std::mem::take(&mut self.taken), now.saturating_sub(self.since));
        self.since = now;
        if !is_limit(self.asked, (taken, time), round_trip()) {
            return None;
        }
        self.tickets.push(sockets.take_room(self.asked as usize, has)?);
        self.asked *= 2;
        Some(self.asked)
    }
}

/// Whether so much room is what limits a stream of which so many bytes were taken in so many nanoseconds.
fn is_limit(room: u32, (taken, time): (u32, u64), round_trip: u64) -> bool {
    u128::from(room) * u128::from(time) < u128::from(taken) * u128::from(round_trip) * u128::from(TRIPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;
    const ROOM: u32 = net::RECEIVE_ROOM;

    #[test]
    fn the_room_limits_who_takes_it_in_less_than_two_round_trips() {
        // As fast as may be, as fast as a peer that doubles, and a little slower.
        assert!(is_limit(ROOM, (ROOM, 100 * MILLI), 100 * MILLI));
        assert!(is_limit(ROOM, (ROOM, 200 * MILLI - 1), 100 * MILLI));
        assert!(!is_limit(ROOM, (ROOM, 200 * MILLI), 100 * MILLI));
        // What counts is how fast, not how much at once.
        assert!(is_limit(ROOM, (3 * ROOM, 500 * MILLI), 100 * MILLI));
        assert!(!is_limit(ROOM, (3 * ROOM, 700 * MILLI), 100 * MILLI));
        // Quick over a short way needs none, and what the kernel has never measured says nothing.
        assert!(!is_limit(ROOM, (ROOM, MILLI), MILLI / 10));
        assert!(!is_limit(ROOM, (ROOM, 0), 0));
        assert!(is_limit(u32::MAX, (u32::MAX, u64::MAX / 2), u64::MAX));
    }

    /// What a connection gets whose guest takes so much at a time, each in so long, 100 times.
    fn grown(len: u32, time: u64, round_trip: u64, sockets: &Arc<Sockets>) -> ReceiveRoom {
        let mut room = ReceiveRoom::new(0);
        for step in 1..=100 {
            room.take(len);
            let had = room.asked;
            if let Some(asked) = room.grow(step * time, || round_trip, (sockets, room.budgeted())) {
                assert_eq!(asked, 2 * had);
            }
        }
        room
    }

    #[test]
    fn it_grows_as_far_as_is_of_use() {
        let sockets = Sockets::new(1);
        let asked = |len, time, round_trip| grown(len, time, round_trip, &sockets).asked;
        assert_eq!(asked(MAX, MILLI, 100 * MILLI), MAX);
        assert_eq!(asked(ROOM, MILLI, MILLI / 10), ROOM);
        // 1 MiB in a round trip, which is more than half of 1 MiB, and no more than half of 2 MiB.
        assert_eq!(asked(1 << 20, 100 * MILLI, 100 * MILLI), 2 << 20);
    }

    #[test]
    fn nobody_is_asked_for_the_round_trip_before_a_room_is_taken() {
        let (mut room, sockets) = (ReceiveRoom::new(0), Sockets::new(1));
        room.take(ROOM - 1);
        assert_eq!(room.grow(1, || panic!("asked"), (&sockets, 0)), None);
        room.take(1);
        assert_eq!(room.grow(1, || MILLI, (&sockets, 0)), Some(2 * ROOM));
        room.take(ROOM);
        assert_eq!(room.grow(1, || panic!("asked"), (&sockets, 0)), None);
    }

    #[test]
    fn the_budget_comes_back_with_the_end() {
        let sockets = Sockets::new(1);
        let fast = || grown(MAX, MILLI, 100 * MILLI, &sockets);
        let mut all = Vec::new();
        // Each says that it is alone: the share is another's test.
        while let Some(room) = Some(fast()).filter(|room| room.asked == MAX) {
            all.push(room);
            assert!(all.len() < 1000, "there is no end of it");
        }
        let most = all.len();
        assert!(most > 10, "{most}");
        drop(all);
        let all: Vec<_> = (0..most).map(|_| fast()).collect();
        assert!(all.iter().all(|room| room.asked == MAX));
    }
}
