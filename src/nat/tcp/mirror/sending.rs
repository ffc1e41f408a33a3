//! What the socket has, on its way to the guest.

use super::super::super::seq::Seq;
use super::super::segment::{ACK, FIN, Header, PSH, Segment};
use super::{EQUAL_ACKS, HostSocket, Mirror, Phase, Wanted};

impl Mirror {
    /// What the guest acknowledges, which was sent, and what it has room for.
    pub(super) fn acknowledged(&mut self, segment: &Segment, ack: Seq, socket: &mut impl HostSocket, now: u64) {
        let (window, equal) = (u32::from(segment.window) << self.guest_scale, ack == self.una);
        let is_new = self.una.is_before(ack);
        if is_new {
            self.advance(ack, socket, now);
        } else if equal && segment.payload.is_empty() && !segment.has(FIN) && window == self.window {
            self.count_equal(now);
        }
        let (by_seq, by_ack) = self.window_by;
        // What acknowledges more than all before was sent after it, even if it repeats old bytes.
        let is_newer = is_new || by_seq.is_before(segment.seq) || by_seq == segment.seq && !ack.is_before(by_ack);
        if is_newer && !ack.is_before(self.una) {
            let opens = self.window == 0 && window > 0;
            (self.window, self.window_by) = (window, (segment.seq, ack));
            if opens && self.una != self.max {
                // It had taken its room back from what was sent, which it has thrown away then.
                self.send_again();
                (self.retries, self.retry_at) = (0, self.waits_until(now));
            }
        }
    }

    fn advance(&mut self, ack: Seq, socket: &mut impl HostSocket, now: u64) {
        let mut bytes = ack.since(self.una);
        if self.phase == Phase::Answered {
            self.phase = Phase::Open;
            self.is_readable = true;
            // The SYN.
            bytes -= 1;
        }
        if self.fin.is_some_and(|fin| fin.is_before(ack)) {
            bytes -= 1;
        }
        if bytes > 0 {
            socket.consume(bytes);
        }
        self.una = ack;
        self.round_trips.acknowledged(ack, now);
        if self.nxt.is_before(ack) {
            self.nxt = ack;
        }
        self.equal_acks = 0;
        self.retries = 0;
        self.retry_at = self.waits_until(now).filter(|_| self.una != self.max);
        // Not before it has acknowledged more than that: what it had already and got again, it answers with equal
        // acknowledgements of just that (RFC 6582, 4.1).
        if self.recovers.is_some_and(|until| until.is_before(self.una)) {
            self.recovers = None;
        }
    }

    fn count_equal(&mut self, now: u64) {
        if self.una == self.max || self.recovers.is_some() {
            return;
        }
        self.equal_acks += 1;
        if self.equal_acks == EQUAL_ACKS {
            self.recovers = Some(self.max);
            self.send_again();
            self.retry_at = self.waits_until(now);
        }
    }

    pub(super) fn send_again(&mut self) {
        self.nxt = self.una;
        self.is_readable = true;
        self.round_trips.sent_again();
    }

    /// Until when what is sent now may stay without an acknowledgement.
    fn waits_until(&self, now: u64) -> Option<u64> {
        Some(now + self.round_trips.wait())
    }

    /// What could be sent to the guest now; none: it has no room, or there is nothing left to say.
    pub(in super::super) fn wanted(&self) -> Option<Wanted> {
        if self.phase != Phase::Open || self.reads_later || self.fin.is_some_and(|fin| fin.is_before(self.nxt)) {
            return None;
        }
        let sent = self.nxt.since(self.una);
        let len = self.window.saturating_sub(sent);
        // Not in crumbs (RFC 9293, 3.8.6.2.1): with others on their way, the guest's answer will tell of more room.
        let is_crumb = sent > 0 && len < u32::from(self.mss).min(self.window / 2);
        (len > 0 && !is_crumb).then_some(Wanted { skip: sent, len })
    }

    /// So many bytes are about to be sent to the guest, which are the last that there will ever be if it says so.
    /// Returns their header.
    pub(in super::super) fn sends(
        &mut self,
        len: u32,
        are_last: bool,
        socket: &mut impl HostSocket,
        now: u64,
    ) -> Header {
        let seq = self.nxt;
        self.nxt = self.nxt.plus(len);
        if are_last {
            self.fin = Some(self.nxt);
            self.nxt = self.nxt.plus(1);
        }
        self.note_sent(now);
        self.header(seq, ACK | PSH | if are_last { FIN } else { 0 }, socket)
    }

    /// The kernel has nothing more for the guest, and never will. Returns what tells it.
    pub(in super::super) fn ends(&mut self, socket: &mut impl HostSocket, now: u64) -> Header {
        let seq = self.nxt;
        self.fin = Some(seq);
        self.nxt = seq.plus(1);
        self.note_sent(now);
        self.header(seq, ACK | FIN, socket)
    }

    /// Whether what is to be sent next is our FIN, again.
    pub(in super::super) fn ends_again(&self) -> bool {
        self.fin == Some(self.nxt)
    }

    fn note_sent(&mut self, now: u64) {
        if self.una == self.max {
            // What was due was a question, whether the guest has room or is there at all.
            (self.retries, self.retry_at) = (0, None);
        }
        if self.max.is_before(self.nxt) {
            self.max = self.nxt;
            self.round_trips.sent(self.nxt, now);
        }
        self.retry_at = self.retry_at.or(self.waits_until(now));
    }
}
