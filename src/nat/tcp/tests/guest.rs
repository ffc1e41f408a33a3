//! A simulated guest: one end of a connection as RFC 9293 has it, with the freedom that it leaves.

use super::super::super::seq::Seq;
use super::super::segment::{ACK, FIN, HEADER_LEN, Header, PSH, RST, SYN, SYN_OPTIONS_MAX, Segment};
use super::{MILLI, Rng, SECOND, Stream, distance};

/// Nothing says anything about what is urgent.
const URG: u8 = 32;
const RETRY: u64 = 200 * MILLI;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Listens,
    SynSent,
    SynReceived,
    /// From established to the wait at the end.
    Open,
    /// It has ended as it should.
    Done,
    /// It was reset, or refused.
    Reset,
    /// Its application has broken it off.
    Aborted,
    /// There is nobody any more.
    Gone,
}

/// How it is, all through a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
    /// Whether it may take back room that it has told.
    pub(super) shrinks: bool,
    pub(super) delays_acks: bool,
    /// Whether it throws away what comes too early.
    pub(super) forgets: bool,
    /// Whether it takes a bare segment right behind its window.
    pub(super) is_lenient: bool,
    /// The most that it gives to its device at once.
    pub(super) frame_max: u32,
    /// Whether its FIN keeps within the window.
    pub(super) fin_waits: bool,
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) rng: Rng,
    pub(super) habits: Habits,
    pub(super) state: State,
    /// What it says, how much of it its application has written, and whether it has said all.
    pub(super) says: Stream,
    pub(super) written: u32,
    pub(super) has_closed: bool,
    iss: Seq,
    pub(super) una: Seq,
    nxt: Seq,
    max: Seq,
    /// The end of the room that it was told.
    pub(super) edge: Seq,
    peer_scale: u8,
    equal_acks: u8,
    /// What it hears, how much has come in order, and how much its application has read.
    pub(super) hears: Stream,
    irs: Seq,
    pub(super) rcv_nxt: Seq,
    pub(super) read: u32,
    rcv_edge: Seq,
    /// What came too early.
    early: Vec<(Seq, Seq)>,
    peer_fin: Option<Seq>,
    pub(super) has_heard_end: bool,
    pub(super) capacity: u32,
    retry_at: Option<u64>,
    backoff: u32,
    ack_at: Option<u64>,
    leaves_at: Option<u64>,
    /// Frames for its device.
    pub(super) out: Vec<Vec<u8>>,
}

impl Guest {
    pub(super) fn new(mut rng: Rng, habits: Habits, says: Stream, hears: Stream, capacity: u32) -> Self {
        // Numbers go around the circle now and then.
        let iss = Seq((rng.next() as u32) | if rng.happens(300) { 0xffff_f000 } else { 0 });
        Self {
            rng,
            habits,
            state: State::Listens,
            says,
            written: 0,
            has_closed: false,
            iss,
            una: iss,
            nxt: iss,
            max: iss,
            edge: iss.plus(1),
            peer_scale: 0,
            equal_acks: 0,
            hears,
            irs: Seq(0),
            rcv_nxt: Seq(1),
            read: 0,
            rcv_edge: Seq(0),
            early: Vec::new(),
            peer_fin: None,
            has_heard_end: false,
            capacity,
            retry_at: None,
            backoff: 0,
            ack_at: None,
            leaves_at: None,
            out: Vec::new(),
        }
    }

    pub(super) fn connect(&mut self, now: u64) {
        self.state = State::SynSent;
        (self.nxt, self.max) = (self.iss.plus(1), self.iss.plus(1));
        self.retry_at = Some(now + SECOND);
        self.syn(SYN);
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Reset | State::Aborted | State::Gone)
    }

    /// Bytes that have come in order.
    pub(super) fn heard(&self) -> u32 {
        let all = self.rcv_nxt.since(self.irs.plus(1));
        all - u32::from(self.has_heard_end)
    }

    /// Whether it has told of room until there, or takes some back now and then.
    pub(super) fn has_room_until(&self, end: Seq) -> bool {
        self.habits.shrinks || !self.rcv_edge.is_before(end)
    }

    /// Where its own FIN is, when all before has been written.
    fn fin(&self) -> Option<Seq> {
        self.has_closed.then(|| self.iss.plus(1 + self.written))
    }

    pub(super) fn all_said(&self) -> bool {
        self.fin().is_some_and(|fin| fin.is_before(self.una))
    }

    /// A number of its own, `back` before what is acknowledged, but not before its beginning.
    pub(super) fn old_seq(&self, back: u32) -> Seq {
        let at = self.una.since(self.iss.plus(1)).saturating_sub(u32::from(self.all_said()));
        self.iss.plus(1 + at.saturating_sub(back))
    }

    pub(super) fn window(&mut self) -> u16 {
        let scale = self.habits.scale.unwrap_or(0);
        let free = self.capacity.saturating_sub(self.heard() - self.read);
        let told = self.rcv_edge.since(self.rcv_nxt).min(1 << 30);
        let mut units = free >> scale;
        if !self.habits.shrinks && units << scale < told {
            units = told.div_ceil(1 << scale);
        }
        let units = units.min(u16::MAX.into());
        let edge = self.rcv_nxt.plus(units << scale);
        self.rcv_edge = if self.habits.shrinks { edge } else { self.rcv_edge.max(edge) };
        units as u16
    }

    fn push(&mut self, header: &Header, payload: &[u8]) {
        let mut head = [0; HEADER_LEN + SYN_OPTIONS_MAX];
        let len = header.emit(1, 2, &mut head);
        // What is urgent is nobody's business.
        if self.rng.happens(10) {
            head[13] |= URG;
            head[18..20].copy_from_slice(&(self.rng.next() as u16).to_be_bytes());
        }
        self.out.push([&head[..len], payload].concat());
    }

    fn syn(&mut self, flags: u8) {
        let free = self.capacity.min(u16::MAX.into());
        self.rcv_edge = self.rcv_edge.max(self.rcv_nxt.plus(free));
        let Habits { mss, scale, .. } = self.habits;
        let ack = self.rcv_nxt;
        self.push(&Header { seq: self.iss, ack, flags, window: free as u16, mss, scale }, &[]);
    }

    /// Sends a segment from its stream; what a FIN needs is not of the stream.
    fn send(&mut self, seq: Seq, len: u32, flags: u8) {
        let header = Header { seq, ack: self.rcv_nxt, flags, window: self.window(), mss: None, scale: None };
        let says = self.says.clone();
        let at = if len == 0 { 0 } else { seq.since(self.iss.plus(1)) };
        self.push(&header, says.part(at, len));
        self.ack_at = None;
    }

    pub(super) fn send_ack(&mut self) {
        self.send(self.nxt, 0, ACK);
    }

    /// Asks whether the other side is there.
    pub(super) fn keep_alive(&mut self) {
        if self.state == State::Open && self.una == self.max {
            self.send(Seq(self.nxt.0.wrapping_sub(1)), 0, ACK);
        }
    }

    pub(super) fn abort(&mut self) {
        if self.state == State::Open {
            self.send(self.nxt, 0, RST | ACK);
            self.state = State::Aborted;
        }
    }

    /// The application takes what has come.
    pub(super) fn take(&mut self, most: u32) {
        let before = self.rcv_edge;
        self.read += most.min(self.heard() - self.read);
        if self.state != State::Open || self.has_heard_end {
            return;
        }
        let opens = i64::from(self.capacity.saturating_sub(self.heard() - self.read)) - distance(before, self.rcv_nxt);
        let told = distance(before, self.rcv_nxt);
        let scale = self.habits.scale.unwrap_or(0);
        if opens >= 1 << scale && opens > told {
            self.send_ack();
        }
    }

    /// Sends what may be sent.
    pub(super) fn transmit(&mut self, now: u64) {
        if self.state != State::Open {
            return;
        }
        let end = self.iss.plus(1 + self.written);
        while self.nxt.is_before(end) && self.nxt.is_before(self.edge) {
            let most = end.since(self.nxt).min(self.edge.since(self.nxt)).min(self.habits.frame_max);
            let len = if self.rng.happens(200) { self.rng.range(1, most) } else { most };
            let is_last = self.has_closed && self.nxt.plus(len) == end && self.rng.happens(500);
            let is_last = is_last && (self.nxt.plus(len).is_before(self.edge) || !self.habits.fin_waits);
            self.send(self.nxt, len, if is_last { ACK | PSH | FIN } else { ACK });
            self.nxt = self.nxt.plus(len + u32::from(is_last));
            self.note_sent(now);
        }
        let may = self.nxt.is_before(self.edge) || self.nxt == self.edge && !self.habits.fin_waits;
        if self.fin() == Some(self.nxt) && may {
            self.send(self.nxt, 0, ACK | FIN);
            self.nxt = self.nxt.plus(1);
            self.note_sent(now);
        }
        let waits = self.nxt.is_before(end) || self.fin() == Some(self.nxt);
        if waits && self.una == self.max {
            self.retry_at.get_or_insert(now + RETRY);
        }
    }

    fn note_sent(&mut self, now: u64) {
        self.max = self.max.max(self.nxt);
        self.retry_at.get_or_insert(now + RETRY);
    }

    pub(super) fn due(&self) -> u64 {
        let all = [self.retry_at, self.ack_at, self.leaves_at];
        if self.is_over() { u64::MAX } else { all.into_iter().flatten().min().unwrap_or(u64::MAX) }
    }

    pub(super) fn timer(&mut self, now: u64) {
        if self.leaves_at.is_some_and(|at| at <= now) {
            self.state = State::Done;
        }
        if self.ack_at.is_some_and(|at| at <= now) {
            self.send_ack();
        }
        if self.is_over() || self.retry_at.is_none_or(|at| at > now) {
            return;
        }
        self.backoff += 1;
        self.retry_at = Some(now + (RETRY << self.backoff.min(9)).min(60 * SECOND));
        match self.state {
            State::SynSent => self.syn(SYN),
            State::SynReceived => self.syn(SYN | ACK),
            _ => self.retry(now),
        }
    }

    fn retry(&mut self, now: u64) {
        let end = self.iss.plus(1 + self.written);
        if self.una == self.max {
            // There was no room: one byte beyond it asks whether there is now.
            if self.nxt.is_before(end) {
                self.send(self.nxt, 1, ACK);
                self.nxt = self.nxt.plus(1);
                self.max = self.max.max(self.nxt);
            } else if self.fin() == Some(self.nxt) {
                self.send(Seq(self.nxt.0.wrapping_sub(1)), 0, ACK);
            } else {
                (self.retry_at, self.backoff) = (None, 0);
            }
            return;
        }
        self.send_first_again();
        if self.rng.happens(300) {
            self.nxt = self.una;
            self.transmit(now);
        }
    }

    fn send_first_again(&mut self) {
        let end = self.iss.plus(1 + self.written);
        if self.una.is_before(end) && self.una.is_before(self.edge) {
            let most = end.since(self.una).min(self.edge.since(self.una)).min(self.max.since(self.una));
            let most = self.rng.range(1, most.min(self.habits.frame_max));
            self.send(self.una, most, ACK | PSH);
        } else if self.una.is_before(end) {
            self.send(self.una, 1, ACK);
        } else {
            self.send(self.una, 0, ACK | FIN);
        }
    }

    /// A segment for it.
    pub(super) fn receive(&mut self, frame: &[u8], now: u64) {
        let segment = Segment::parse(frame, 0, frame.len()).unwrap();
        match self.state {
            State::Gone => {}
            State::Done | State::Reset | State::Aborted => self.refuse(&segment),
            State::Listens => self.listen(&segment, now),
            State::SynSent => self.answered(&segment, now),
            State::SynReceived | State::Open => self.go_on(&segment, frame, now),
        }
        if self.has_heard_end && self.all_said() {
            // What comes again shows that the last word was lost.
            self.leaves_at = Some(now + 60 * SECOND);
        }
    }

    fn refuse(&mut self, segment: &Segment) {
        if segment.has(RST) {
            return;
        }
        let (seq, ack, flags) = match segment.ack {
            Some(ack) => (ack, Seq(0), RST),
            None => (Seq(0), segment.seq.plus(segment.len() + u32::from(segment.has(SYN))), RST | ACK),
        };
        self.push(&Header { seq, ack, flags, window: 0, mss: None, scale: None }, &[]);
    }

    fn listen(&mut self, segment: &Segment, now: u64) {
        if segment.has(RST) || segment.ack.is_some() {
            return self.refuse(segment);
        }
        if segment.has(SYN) {
            self.state = State::SynReceived;
            (self.nxt, self.max) = (self.iss.plus(1), self.iss.plus(1));
            self.retry_at = Some(now + SECOND);
            self.meet(segment);
            self.syn(SYN | ACK);
        }
    }

    fn answered(&mut self, segment: &Segment, now: u64) {
        let is_ours = segment.ack == Some(self.iss.plus(1));
        match (is_ours, segment.has(RST), segment.has(SYN)) {
            (true, true, _) => self.state = State::Reset,
            (true, false, true) => {
                self.meet(segment);
                self.state = State::Open;
                self.acknowledged(segment, self.iss.plus(1), now);
                self.send_ack();
                self.transmit(now);
            }
            (false, false, _) if segment.ack.is_some() => self.refuse(segment),
            _ => {}
        }
    }

    fn meet(&mut self, segment: &Segment) {
        self.irs = segment.seq;
        self.rcv_nxt = self.irs.plus(1);
        self.rcv_edge = self.rcv_nxt;
        match segment.scale {
            Some(scale) if self.habits.scale.is_some() => self.peer_scale = scale,
            _ => self.habits.scale = None,
        }
        // What it told when it asked, which was not scaled.
        self.rcv_edge = self.rcv_nxt.plus(self.capacity.min(u16::MAX.into()));
    }

    fn is_acceptable(&self, segment: &Segment) -> bool {
        let len = segment.len() + u32::from(segment.has(FIN)) + u32::from(segment.has(SYN));
        let room = distance(self.rcv_edge, self.rcv_nxt);
        let from = distance(segment.seq, self.rcv_nxt);
        let to = from + i64::from(len) - 1;
        match (len, room) {
            (0, 0) => from == 0,
            (0, _) => (0..room).contains(&from) || self.habits.is_lenient && from == room,
            (_, 0) => false,
            _ => (0..room).contains(&from) || (0..room).contains(&to) || from < 0 && to >= room,
        }
    }

    fn go_on(&mut self, segment: &Segment, frame: &[u8], now: u64) {
        if segment.has(RST) {
            if segment.seq == self.rcv_nxt {
                // At the very end it has nothing to lose.
                let is_at_end = self.has_heard_end && self.max == self.iss.plus(2 + self.written);
                self.state = if is_at_end { State::Done } else { State::Reset };
            } else if self.is_acceptable(segment) {
                self.send_ack();
            }
            return;
        }
        if self.state == State::SynReceived && segment.has(SYN) && segment.seq == self.irs {
            return self.syn(SYN | ACK);
        }
        if !self.is_acceptable(segment) || segment.has(SYN) {
            return self.send_ack();
        }
        let Some(ack) = segment.ack else { return };
        assert!(!self.max.is_before(ack), "acknowledges {ack:?}, which is beyond {:?}", self.max);
        if self.state == State::SynReceived {
            assert_eq!(ack, self.iss.plus(1));
            self.state = State::Open;
        }
        self.acknowledged(segment, ack, now);
        self.hear(segment, frame, now);
        self.transmit(now);
    }

    fn acknowledged(&mut self, segment: &Segment, ack: Seq, now: u64) {
        let window = u32::from(segment.window) << if segment.has(SYN) { 0 } else { self.peer_scale };
        let edge = self.edge.max(ack.plus(window));
        let has_more = std::mem::replace(&mut self.edge, edge) != edge;
        if self.una.is_before(ack) {
            (self.una, self.nxt) = (ack, self.nxt.max(ack));
            (self.backoff, self.equal_acks) = (0, 0);
            self.retry_at = (self.una != self.max).then_some(now + RETRY);
        } else if ack == self.una && self.una != self.max && segment.len() == 0 && !has_more {
            self.equal_acks += 1;
            if self.equal_acks == 3 {
                self.send_first_again();
            }
        }
    }

    fn hear(&mut self, segment: &Segment, frame: &[u8], now: u64) {
        let len = segment.len();
        if len == 0 && !segment.has(FIN) {
            return;
        }
        // What it was sent is what the peer said, wherever it lies.
        let payload = &frame[segment.payload.clone()];
        let at = segment.seq.since(self.irs.plus(1));
        assert_eq!(payload, self.hears.part(at, len), "what the peer said");
        let end = segment.seq.plus(len);
        let cut = if self.rcv_edge.is_before(end) { self.rcv_edge } else { end };
        if segment.has(FIN) && !self.rcv_edge.is_before(end.plus(1)) {
            assert!(self.peer_fin.is_none_or(|fin| fin == end), "ends twice");
            assert_eq!(at + len, self.hears.len, "ends too early");
            self.peer_fin = Some(end);
        }
        let is_in_order = !self.rcv_nxt.is_before(segment.seq);
        if is_in_order || !self.habits.forgets {
            self.early.push((segment.seq, cut));
        }
        let before = self.rcv_nxt;
        while let Some(i) = self.early.iter().position(|(from, _)| !self.rcv_nxt.is_before(*from)) {
            let (_, to) = self.early.swap_remove(i);
            self.rcv_nxt = self.rcv_nxt.max(to);
        }
        if self.peer_fin == Some(self.rcv_nxt) && !self.has_heard_end {
            self.has_heard_end = true;
            self.rcv_nxt = self.rcv_nxt.plus(1);
        }
        let is_plain = is_in_order && before != self.rcv_nxt && self.early.is_empty() && !segment.has(FIN);
        if is_plain && self.habits.delays_acks && self.ack_at.is_none() {
            self.ack_at = Some(now + 40 * MILLI);
        } else {
            self.send_ack();
        }
    }
}
