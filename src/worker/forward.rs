//! From a burst to its receivers: the path of a frame between two rings.

use crate::frame::ethernet::MacAddr;
use crate::frame::offload::{Fit, Offload};
use crate::frame::{checksum, flow, offload, segment, vnet::VnetHeader};
use crate::metrics::Counter;
use crate::ring::{BURST_BYTES_MAX, Burst, Bytes, FRAME_LEN_MAX, Refusal};
use crate::switch::{PortId, Switch, Verdict};

use super::port::{Port, Ring};

/// Bytes that one burst may be copied into when it is flooded: a frame of 1,500 bytes to 340 ports, or ARP to all.
const FLOOD_BYTES_PER_BURST_MAX: usize = BURST_BYTES_MAX as usize;

/// A frame that is on its way, judged.
#[derive(Clone, Copy)]
struct Frame<'a> {
    head: &'a [u8],
    bytes: Bytes<'a>,
    offload: Offload,
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
        self.switch.begin_burst(now_s);
        let mut flood_bytes = FLOOD_BYTES_PER_BURST_MAX;
        for i in 0..burst.len() {
            if let Err(reason) = self.forward_one(from, burst, i, &mut flood_bytes)
                && let Some(port) = &self.ports[from]
            {
                port.shared.counters.count(reason);
            }
        }
        self.flush();
        let evicted = self.switch.take_evictions(port_id(from));
        if evicted > 0
            && let Some(port) = &self.ports[from]
        {
            port.shared.counters.add(Counter::AddressesEvicted, evicted);
        }
    }

    fn forward_one(&mut self, from: usize, burst: &Burst, i: usize, flood_bytes: &mut usize) -> Result<(), Counter> {
        let Some(port) = &mut self.ports[from] else { return Ok(()) };
        let (head, len) = (burst.head(i), burst.frame_len(i));
        let counters = &port.shared.counters;
        counters.count(Counter::TxFrames);
        counters.add(Counter::TxBytes, len as u64);
        if len > FRAME_LEN_MAX {
            return Err(Counter::DropTxTooLong);
        }
        let header = VnetHeader::parse(burst.vnet(i));
        let offload =
            offload::validate(&header, head, len, port.negotiated.sends).map_err(|_| Counter::DropTxBadHeader)?;
        if matches!(offload, Offload::Segment(_)) {
            counters.count(Counter::TxGsoFrames);
        }
        let verdict = self.switch.forward(port_id(from), head);
        if port.mac.is_none() && !matches!(verdict, Verdict::Drop(_)) {
            self.meet(from, MacAddr::source_of(head));
        }
        let frame = Frame { head, bytes: burst.bytes(i), offload };
        match verdict {
            Verdict::Forward(to) => self.deliver(usize::from(to.0), &frame),
            Verdict::Flood => self.flood(from, &frame, flood_bytes)?,
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

    fn flood(&mut self, from: usize, frame: &Frame<'_>, bytes_left: &mut usize) -> Result<(), Counter> {
        let receivers = self.ports.iter().flatten().count().saturating_sub(1);
        let bytes = frame.bytes.len() * receivers;
        // The first frame always passes, so that a long one on a large network is not refused for ever.
        if bytes > *bytes_left && *bytes_left < FLOOD_BYTES_PER_BURST_MAX {
            return Err(Counter::DropTxFloodLimit);
        }
        *bytes_left = bytes_left.saturating_sub(bytes.max(1));
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
        if unflushed.last() != Some(&(to, index)) && !unflushed.contains(&(to, index)) {
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
