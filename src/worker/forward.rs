//! From a burst to its receivers: the path of a frame between two rings.

use crate::frame::ethernet::MacAddr;
use crate::frame::offload::{Fit, Offload, Offloads};
use crate::frame::{checksum, flow, offload, segment, vnet::VnetHeader};
use crate::metrics::Counter;
use crate::ring::{BURST_BYTES_MAX, Burst, Bytes, FRAME_LEN_MAX, Refusal};
use crate::switch::{PortId, Switch, Verdict};

use super::port::{Port, Ring};

/// What the frames of one burst may cost when they are flooded, in bytes that are copied beyond a first time: a frame
/// of 1,500 bytes to 340 ports, or ARP to all. The first frame may cost more, up to the next bound.
const FLOOD_COST_PER_BURST_MAX: usize = BURST_BYTES_MAX as usize;
/// What one frame may cost: a super-frame of usual segments to 70 ports. Others wait for so long, about 10 ms.
const FLOOD_COST_PER_FRAME_MAX: usize = 8 << 20;
/// What a port's flooding may cost in a second: about a tenth of a worker's time.
const FLOOD_COST_PER_SECOND_MAX: usize = 1 << 30;
/// What a segment costs in software, in bytes that could be copied meanwhile.
const SEGMENT_COST: usize = 1024;

/// A frame that is on its way, judged.
#[derive(Clone, Copy)]
struct Frame<'a> {
    head: &'a [u8],
    bytes: Bytes<'a>,
    offload: Offload,
}

/// Who has sent a burst.
struct Sender {
    /// Its port's place.
    from: usize,
    sends: Offloads,
    /// Whether its address has been noted.
    is_known: bool,
    now_s: u32,
}

/// One Ethernet segment: its ports and what it has learned.
pub(super) struct Network {
    /// By [`PortId`].
    pub(super) ports: Vec<Option<Port>>,
    pub(super) switch: Switch,
    /// Receive rings with frames that their guest has not been told of.
    unflushed: Vec<(usize, usize)>,
    /// Private memory for frames that must be changed for a receiver.
    linear: Vec<u8>,
    segment: segment::Scratch,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            ports: Vec::new(),
            switch: Switch::new(seed),
            unflushed: Vec::new(),
            linear: Vec::new(),
            segment: segment::Scratch::default(),
        }
    }

    /// Forwards every frame of a burst that port `from` has sent, and tells the receivers.
    pub(super) fn forward(&mut self, from: usize, burst: &Burst, now_s: u32) {
        let Some(port) = &self.ports[from] else { return };
        let mut sender = Sender { from, sends: port.negotiated.sends, is_known: port.mac.is_some(), now_s };
        self.switch.begin_burst(now_s);
        let mut flood_left = FLOOD_COST_PER_BURST_MAX;
        let mut bytes = 0;
        for i in 0..burst.len() {
            bytes += burst.frame_len(i) as u64;
            if let Err(reason) = self.forward_one(&mut sender, burst, i, &mut flood_left) {
                self.count(from, reason, 1);
            }
        }
        self.flush();
        self.count(from, Counter::TxFrames, burst.len() as u64);
        self.count(from, Counter::TxBytes, bytes);
        let (evicted, moved) = (self.switch.take_evictions(port_id(from)), self.switch.take_moves(port_id(from)));
        self.count(from, Counter::AddressesEvicted, evicted);
        self.count(from, Counter::AddressesMoved, moved);
    }

    fn count(&self, port: usize, counter: Counter, n: u64) {
        if let Some(port) = &self.ports[port] {
            port.shared.counters.add(counter, n);
        }
    }

    #[inline(always)]
    fn forward_one(
        &mut self,
        sender: &mut Sender,
        burst: &Burst,
        i: usize,
        flood_left: &mut usize,
    ) -> Result<(), Counter> {
        let from = sender.from;
        let (head, len) = (burst.head(i), burst.frame_len(i));
        if len > FRAME_LEN_MAX {
            return Err(Counter::DropTxTooLong);
        }
        let header = VnetHeader::parse(burst.vnet(i));
        let offload = offload::validate(&header, head, len, sender.sends).map_err(|_| Counter::DropTxBadHeader)?;
        if matches!(offload, Offload::Segment(_)) {
            self.count(from, Counter::TxGsoFrames, 1);
        }
        let verdict = self.switch.forward(port_id(from), head);
        if !sender.is_known && !matches!(verdict, Verdict::Drop(_)) {
            self.meet(from, MacAddr::source_of(head));
            sender.is_known = true;
        }
        let frame = Frame { head, bytes: burst.bytes(i), offload };
        match verdict {
            Verdict::Forward(to) => self.deliver(usize::from(to.0), &frame),
            Verdict::Flood => self.flood(from, &frame, flood_left, sender.now_s)?,
            Verdict::Drop(reason) => return Err(reason),
        }
        Ok(())
    }

    /// Notes the first address that a guest sends from, and says so when it is not the only one with it.
    fn meet(&mut self, from: usize, mac: Option<MacAddr>) {
        let twin = self.ports.iter().flatten().find(|port| port.mac == mac).map(|port| port.shared.number);
        let (Some(port), Some(mac)) = (&mut self.ports[from], mac) else { return };
        port.mac = Some(mac);
        let (number, network) = (port.shared.number, port.shared.network.as_str());
        match twin {
            None => tracing::info!(port = number, network, %mac, "the guest sends"),
            Some(twin) => tracing::warn!(
                port = number,
                network,
                %mac,
                "the guest has the address of the guest on port {twin}: frames for one will reach the other; \
                 give each its own mac="
            ),
        }
    }

    fn flood(&mut self, from: usize, frame: &Frame<'_>, left: &mut usize, now_s: u32) -> Result<(), Counter> {
        let receivers = self.ports.iter().flatten().count().saturating_sub(1);
        let segments = if let Offload::Segment(gso) = frame.offload { gso.segments(frame.bytes.len()) } else { 0 };
        // As the switch counts: beyond the first copy, which forwarding would make as well.
        let cost = receivers.saturating_sub(1) * (frame.bytes.len() + segments * SEGMENT_COST);
        // A long frame on a large network must not be refused for ever, so a burst's first one may go over its bound.
        let is_first = *left == FLOOD_COST_PER_BURST_MAX && cost <= FLOOD_COST_PER_FRAME_MAX;
        let Some(port) = &mut self.ports[from] else { return Ok(()) };
        if (cost > *left && !is_first) || !port.may_flood(cost, FLOOD_COST_PER_SECOND_MAX, now_s) {
            return Err(Counter::DropTxFloodLimit);
        }
        *left = left.saturating_sub(cost);
        for to in 0..self.ports.len() {
            if to != from {
                self.deliver(to, frame);
            }
        }
        Ok(())
    }

    /// Gives a frame to port `to`, changed as that port needs it, and counts how it ended.
    fn deliver(&mut self, to: usize, frame: &Frame<'_>) {
        let Self { ports, unflushed, linear, segment, .. } = self;
        let Some(port) = ports[to].as_mut() else { return };
        let Some(index) = choose_receiver(port, frame.head) else {
            port.shared.counters.count(Counter::DropRxNotReady);
            return;
        };
        if !port.control.filter().accepts(frame.head) {
            port.shared.counters.count(Counter::DropRxFiltered);
            return;
        }
        if !std::mem::replace(&mut port.slots[index].unflushed, true) {
            unflushed.push((to, index));
        }
        let mut receiver = Receiver { port, index };
        match frame.offload.fit(receiver.port.negotiated.takes) {
            Fit::Whole => receiver.put(frame.offload, &frame.bytes),
            Fit::Complete => {
                frame.bytes.copy_out(linear);
                if let Offload::Checksum(at) = frame.offload {
                    checksum::complete(linear, at);
                }
                receiver.port.shared.counters.count(Counter::RxChecksummed);
                receiver.put(Offload::None, &Bytes::private(linear));
            }
            Fit::Segment { partial } => {
                frame.bytes.copy_out(linear);
                receiver.port.shared.counters.count(Counter::RxSegmented);
                if let Offload::Segment(gso) = frame.offload {
                    segment::segment(linear, &gso, partial, segment, &mut |piece, offload| {
                        receiver.put(offload, &Bytes::private(piece));
                    });
                }
            }
        }
    }

    /// Shows receivers their frames.
    fn flush(&mut self) {
        for (to, index) in self.unflushed.drain(..) {
            let Some(port) = &mut self.ports[to] else { continue };
            port.slots[index].unflushed = false;
            if let Ring::Rx(ring) = &mut port.slots[index].ring {
                let calls = ring.flush();
                port.shared.counters.add(Counter::Calls, calls);
            }
        }
    }
}

/// One receive ring, borrowed with its port.
struct Receiver<'a> {
    port: &'a mut Port,
    index: usize,
}

impl Receiver<'_> {
    /// Puts one frame into the ring and counts how that ended.
    fn put(&mut self, offload: Offload, bytes: &Bytes<'_>) {
        let Ring::Rx(ring) = &mut self.port.slots[self.index].ring else {
            self.port.shared.counters.count(Counter::DropRxFault);
            return;
        };
        let counters = &self.port.shared.counters;
        match ring.deliver(offload.header().emit(0), bytes) {
            Ok(()) => {
                counters.count(Counter::RxFrames);
                counters.add(Counter::RxBytes, bytes.len() as u64);
                if matches!(offload, Offload::Segment(_)) {
                    counters.count(Counter::RxGsoFrames);
                }
            }
            Err(Refusal::NoBuffer) => counters.count(Counter::DropRxNoBuffer),
            Err(Refusal::TooBig) => counters.count(Counter::DropRxTooBig),
            Err(Refusal::Ring(error)) => {
                counters.count(Counter::DropRxFault);
                self.port.break_ring(self.index, &error);
            }
        }
    }
}

/// Which of the port's receive rings a frame goes to: the frames of a flow stay on one, so that they stay in order.
fn choose_receiver(port: &Port, head: &[u8]) -> Option<usize> {
    match port.receivers.as_slice() {
        [] => None,
        [only] => Some(*only),
        several => Some(several[flow::flow_hash(head) as usize % several.len()]),
    }
}

/// The switch's name for the port in slot `index`, which is below `PORTS_MAX`.
pub(super) fn port_id(index: usize) -> PortId {
    PortId(index as u16)
}
