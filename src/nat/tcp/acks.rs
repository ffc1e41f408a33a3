//! Acknowledgements for guests.
//!
//! Theory of operation. What a burst has brought is acknowledged when the burst has ended, once for each connection. A
//! small segment is most often a question, whose answer comes soon: its acknowledgement waits for [`WAIT_NS`] (RFC
//! 9293, 3.8.6.3), and goes with the answer then, so that the guest is interrupted once and not twice. Where guests are
//! told something else, some of those that wait go with that. They are in a sorted set, each connection once. One that
//! has said something since, and owes for a later segment, goes back in when its turn comes.
//!
//! What must hold: none waits longer than [`WAIT_NS`].

use std::collections::BTreeSet;

use super::super::id::Id;
use super::connection::bare;
use super::{Surroundings, Tcp};

/// How long an acknowledgement may wait, in nanoseconds: longer than most answers of a near machine take, and far less
/// than senders wait for one (RFC 9293: half a second at the most).
pub(super) const WAIT_NS: u64 = 500_000;

/// So many go with other frames.
const COMPANY_MAX: usize = 32;

/// Connections whose acknowledgements wait, and when they are due.
#[derive(Debug, Default)]
pub(super) struct WaitingAcks(BTreeSet<(u64, Id)>);

impl WaitingAcks {
    /// When the next one is due.
    pub(super) fn due(&self) -> Option<u64> {
        self.0.first().map(|(due, _)| *due)
    }

    /// One more waits until `due`.
    fn join(&mut self, due: u64, id: Id) {
        self.0.insert((due, id));
    }

    /// The next one that has waited long enough, or has company, and whether it has: so many may go in company.
    fn next(&mut self, now: u64, company: &mut usize) -> Option<(Id, bool)> {
        let (_, id) = *self.0.first().filter(|(due, _)| *due <= now || *company > 0)?;
        self.0.pop_first();
        let has_company = *company > 0;
        *company = company.saturating_sub(1);
        Some((id, has_company))
    }
}

impl Tcp {
    /// Acknowledges what has arrived since the last time, and what has waited long enough.
    pub(in super::super) fn acknowledge(&mut self, world: &mut Surroundings<'_>) {
        self.end_waits(world);
        let (mut owing, mut gather) = (std::mem::take(&mut self.owing), std::mem::take(&mut self.gather));
        for id in owing.drain(..) {
            let Some(connection) = self.get(id) else { continue };
            connection.owes = false;
            if let (true, Some(since)) = (connection.mirror.owes_ack, connection.mirror.ack_waits_since) {
                let due = since + WAIT_NS;
                if connection.ack_due.replace(due).is_none() {
                    self.waiting_acks.join(due, id);
                }
                continue;
            }
            // It may have been told with data meanwhile.
            if connection.mirror.owes_ack {
                let (key, ends) = (connection.key, connection.ends(world.gateway_mac));
                let (mirror, mut kernel) = connection.split(&mut gather);
                let header = mirror.acknowledge(&mut kernel);
                bare(&key, &ends, &header, world.out);
                connection.ask_for_room(id, world.poller);
            }
            if connection.mirror.is_done() {
                self.remove(id);
            }
        }
        (self.owing, self.gather) = (owing, gather);
    }

    /// Has those acknowledge that have waited long enough, or have company.
    fn end_waits(&mut self, world: &mut Surroundings<'_>) {
        let (now, mut company) = (world.now, if world.out.is_empty() { 0 } else { COMPANY_MAX });
        while let Some((id, has_company)) = self.waiting_acks.next(now, &mut company) {
            let Some(connection) = self.get(id) else { continue };
            let Some(due) = connection.ack_due.take().filter(|_| connection.mirror.owes_ack) else { continue };
            if due > now && !has_company {
                connection.ack_due = Some(due);
                self.waiting_acks.join(due, id);
                continue;
            }
            connection.mirror.ack_waits_since = None;
            if !has_company {
                world.efforts.note(connection.guest.port);
            }
            if !std::mem::replace(&mut connection.owes, true) {
                self.owing.push(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u32) -> Id {
        Id { index, generation: 7 }
    }

    /// Those that have waited until then, or have company.
    fn all(waiting: &mut WaitingAcks, now: u64, mut company: usize) -> Vec<(u32, bool)> {
        let next = || waiting.next(now, &mut company).map(|(id, has_company)| (id.index, has_company));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn each_goes_when_it_is_due_and_once() {
        let mut waiting = WaitingAcks::default();
        assert_eq!((waiting.due(), all(&mut waiting, u64::MAX, 5)), (None, vec![]));
        [(30, 3), (10, 1), (20, 2)].into_iter().for_each(|(due, index)| waiting.join(due, id(index)));
        assert_eq!((waiting.due(), all(&mut waiting, 9, 0)), (Some(10), vec![]));
        assert_eq!(all(&mut waiting, 20, 0), [(1, false), (2, false)]);
        assert_eq!((waiting.due(), all(&mut waiting, 29, 0)), (Some(30), vec![]));
        assert_eq!(all(&mut waiting, 30, 0), [(3, false)]);
        assert_eq!((waiting.due(), all(&mut waiting, 30, 0)), (None, vec![]));
    }

    #[test]
    fn what_goes_back_in_does_not_wait_for_those_that_came_before_and_are_due_later() {
        let mut waiting = WaitingAcks::default();
        [(10, 1), (40, 2)].into_iter().for_each(|(due, index)| waiting.join(due, id(index)));
        assert_eq!(all(&mut waiting, 10, 0), [(1, false)]);
        waiting.join(25, id(1));
        assert_eq!((waiting.due(), all(&mut waiting, 25, 0)), (Some(25), vec![(1, false)]));
    }

    #[test]
    fn so_many_go_in_company_those_first_that_are_due_first() {
        let mut waiting = WaitingAcks::default();
        (1..=5).for_each(|index| waiting.join(100 - u64::from(index), id(index)));
        assert_eq!(all(&mut waiting, 0, 2), [(5, true), (4, true)]);
        // Who is due goes without company, too.
        assert_eq!(all(&mut waiting, 98, 1), [(3, true), (2, false)]);
        assert_eq!((waiting.due(), all(&mut waiting, 99, 0)), (Some(99), vec![(1, false)]));
    }
}
