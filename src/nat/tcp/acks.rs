//! Acknowledgements for guests.
//!
//! Theory of operation. What a burst has brought is acknowledged when the burst has ended, once for each connection. A
//! small segment is most often a question, whose answer comes soon: its acknowledgement waits for [`WAIT_NS`] (RFC
//! 9293, 3.8.6.3), and goes with the answer then, so that the guest is interrupted once and not twice. Where guests are
//! told something else, those that wait go with that. They are in line, each connection once. One that has said
//! something since, and owes for a later segment, goes to the end of the line, so that one may wait twice as long.

use std::collections::VecDeque;

use super::super::id::Id;
use super::connection::bare;
use super::{Surroundings, Tcp};

/// How long an acknowledgement may wait, in nanoseconds: longer than most answers of a near machine take, and far less
/// than senders wait for one (RFC 9293: half a second at the most).
const WAIT_NS: u64 = 500_000;

/// So many go with other frames.
const COMPANY_MAX: usize = 32;

/// Connections whose acknowledgements wait, and when they are due.
#[derive(Debug, Default)]
pub(super) struct WaitingAcks(VecDeque<(u64, Id)>);

impl WaitingAcks {
    /// When the next one is due.
    pub(super) fn due(&self) -> Option<u64> {
        self.0.front().map(|(due, _)| *due)
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
                    self.waiting_acks.0.push_back((due, id));
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
    fn end_waits(&mut self, world: &Surroundings<'_>) {
        let (now, mut company) = (world.now, if world.out.is_empty() { 0 } else { COMPANY_MAX });
        while let Some((due, id)) = self.waiting_acks.0.front().copied()
            && (due <= now || company > 0)
        {
            self.waiting_acks.0.pop_front();
            let has_company = company > 0;
            company = company.saturating_sub(1);
            let Some(connection) = self.get(id) else { continue };
            let due = connection.ack_due.take().filter(|_| connection.mirror.owes_ack);
            match due {
                Some(later) if later > now && !has_company => {
                    connection.ack_due = Some(later);
                    self.waiting_acks.0.push_back((later, id));
                }
                Some(_) => {
                    connection.mirror.ack_waits_since = None;
                    if !std::mem::replace(&mut connection.owes, true) {
                        self.owing.push(id);
                    }
                }
                None => {}
            }
        }
    }
}
