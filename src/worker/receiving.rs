//! The receiving half of a port: what any worker may give frames to.
//!
//! Theory of operation. A port's worker owns its receiving half as it owns the rest, but lends it: whoever has frames
//! for the guest locks the half, puts in what is for it of one burst, tells the guest once, and lets go. The owner
//! changes it (rings that start and stop, memory, the guest's filter) under the same lock, so after a change nobody
//! uses what was there before.
//!
//! A ring that lies is shut at once by whoever finds out, and the owner is told by mail; to stop the port is the
//! owner's business.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::frame::ethernet::MacAddr;
use crate::frame::offload::{Fit, Offload, Offloads};
use crate::frame::{checksum, flow, segment};
use crate::metrics::{Counter, Counters};
use crate::ring::mailbox::{Mailbox, Message, PortShared};
use crate::ring::{BURST_FRAMES_MAX, Burst, Bytes, GuestMem, InPlace, Refusal, RingError, RxRing};
use crate::switch::PortId;
use crate::vhost::control_queue::ControlQueue;
use crate::vhost::features::RINGS_MAX;

/// What each frame of a burst asks for, where it is not plain.
pub(super) type Judged = [Offload; BURST_FRAMES_MAX];

/// Frames on their way to a receiver.
pub(super) struct Delivery<'a> {
    pub(super) burst: &'a Burst,
    pub(super) judged: &'a Judged,
    /// Where they come from.
    pub(super) from: PortId,
    /// The number of the worker that has them.
    pub(super) worker: usize,
    /// When, in nanoseconds.
    pub(super) now_ns: u64,
    /// Those that find no room are not dropped.
    pub(super) may_wait: bool,
    /// The guest is shown the frames and not told yet: more comes, and whoever brings it tells
    /// ([`ReceivingHalf::tell`]).
    pub(super) has_more: bool,
}

impl Delivery<'_> {
    /// When, in seconds.
    pub(super) fn now_s(&self) -> u32 {
        (self.now_ns / 1_000_000_000) as u32
    }
}

/// Private memory for frames that must be changed for a receiver.
#[derive(Default)]
pub(super) struct Workshop {
    linear: Vec<u8>,
    segment: segment::Scratch,
}

impl Workshop {
    /// Does the work that a receiver leaves to us: `put` gets the frame, or its segments, and what they still ask for.
    #[inline(never)]
    pub(super) fn change(
        &mut self,
        offload: Offload,
        fit: Fit,
        bytes: &Bytes<'_>,
        mut put: impl FnMut(&Bytes<'_>, Offload),
    ) {
        let Self { linear, segment } = self;
        bytes.copy_out(linear);
        match (fit, offload) {
            (Fit::Segment { partial }, Offload::Segment(gso)) => {
                segment::segment(linear, &gso, partial, segment, &mut |piece, offload| {
                    put(&Bytes::private(piece), offload);
                });
            }
            (_, offload) => {
                if let Offload::Checksum(at) = offload {
                    checksum::complete(linear, at);
                }
                put(&Bytes::private(linear), Offload::None);
            }
        }
    }
}

/// A receive ring's place.
#[derive(Debug)]
enum Place {
    /// Not running. Remembers where it stopped.
    Stopped { next_avail: u16 },
    /// It has lied, and the owner is going to stop the port.
    Lied { next_avail: u16 },
    /// Running.
    Ring(Box<RxRing>),
}

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct ReceivingHalf {
    shared: Arc<PortShared>,
    owner: Arc<Mailbox>,
    state: Mutex<Receiving>,
}

/// The half while it is locked.
#[derive(Debug)]
pub(super) struct Receiving {
    /// By pair.
    rings: Vec<Place>,
    /// Pairs whose rings frames may go to.
    ready: Vec<usize>,
    /// What the guest takes.
    pub(super) takes: Offloads,
    pub(super) control: ControlQueue,
}

/// What became of the frames of one burst.
#[derive(Default)]
struct Tally {
    frames: u64,
    bytes: u64,
    gso: u64,
    segmented: u64,
    checksummed: u64,
    no_buffer: u64,
    too_big: u64,
    fault: u64,
    calls: u64,
    lie: Option<RingError>,
}

impl ReceivingHalf {
    /// The half of a port that the worker with this mailbox owns.
    pub(super) fn new(shared: Arc<PortShared>, owner: Arc<Mailbox>) -> Self {
        let rings = (0..RINGS_MAX / 2).map(|_| Place::Stopped { next_avail: 0 }).collect();
        let (takes, control) = (Offloads::default(), ControlQueue::default());
        Self { shared, owner, state: Mutex::new(Receiving { rings, ready: Vec::new(), takes, control }) }
    }

    /// The MAC address that the user has declared for the guest.
    pub(super) fn declared_mac(&self) -> Option<MacAddr> {
        self.shared.declared_mac.map(MacAddr)
    }

    /// The port's number.
    pub(super) fn number(&self) -> u32 {
        self.shared.number
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Receiving> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the guest the frames of a burst that `wanted` has bits for, changed as it needs them, and counts how each
    /// ended. Returns those that may wait and found no room: they have not ended, and must be given again or refused.
    pub(super) fn give(&self, delivery: &Delivery<'_>, wanted: u32, workshop: &mut Workshop) -> u32 {
        let burst = delivery.burst;
        let counters = &self.shared.counters.giver;
        let mut receiving = self.lock();
        let accepted = receiving.filter(burst, wanted);
        counters.add_any(Counter::DropRxFiltered, u64::from((wanted & !accepted).count_ones()));
        match *receiving.ready.as_slice() {
            [] => {
                counters.add_any(Counter::DropRxNotReady, u64::from(accepted.count_ones()));
                0
            }
            [only] => self.give_ring(&mut receiving, only, delivery, accepted, workshop),
            _ => receiving.spread(burst, accepted).fold(0, |left, (pair, frames)| {
                left | self.give_ring(&mut receiving, pair, delivery, frames, workshop)
            }),
        }
    }

    /// Gives the guest a frame of our own: a service's answer. It may ask for nothing.
    pub(super) fn give_own(&self, frame: &[u8]) {
        let mut receiving = self.lock();
        let counters = &self.shared.counters.giver;
        let Some(&pair) = receiving.ready.first() else { return counters.count(Counter::DropRxNotReady) };
        let mut tally = Tally::default();
        if let Place::Ring(ring) = &mut receiving.rings[pair] {
            tally.put(ring, Offload::None, &Bytes::private(frame));
            tally.calls = ring.flush();
        }
        tally.count(counters);
        self.close_if_it_lied(&mut receiving, pair, tally.lie);
    }

    /// Shuts a ring that has lied and tells its owner.
    fn close_if_it_lied(&self, receiving: &mut Receiving, pair: usize, lie: Option<RingError>) {
        if let Some(error) = lie {
            receiving.shut(pair);
            self.owner.report(self.shared.number, Message::RingLied { index: 2 * pair, error });
        }
    }

    /// Makes the guest's next buffers the room for a frame of up to `len` bytes that comes in place. `flow` is the
    /// frame's [`flow::flow_hash`]; none: it is not known yet. Returns how long the frame may be.
    pub(super) fn lend(&self, in_place: &mut InPlace, len: usize, flow: Option<u32>) -> usize {
        let receiving = &mut *self.lock();
        let pair = match (receiving.ready.as_slice(), flow) {
            ([only], _) => *only,
            ([_, ..], Some(flow)) => receiving.ring_of(flow),
            _ => return 0,
        };
        if let Place::Ring(ring) = &mut receiving.rings[pair] { in_place.lend(ring, len) } else { 0 }
    }

    /// Counts so many frames as dropped, which have waited for room.
    pub(super) fn refuse(&self, frames: u32) {
        let _writer = self.lock();
        self.shared.counters.giver.add_any(Counter::DropRxNoBuffer, u64::from(frames));
    }

    fn give_ring(
        &self,
        receiving: &mut Receiving,
        pair: usize,
        delivery: &Delivery<'_>,
        frames: u32,
        workshop: &mut Workshop,
    ) -> u32 {
        let Delivery { burst, judged, may_wait, has_more, .. } = *delivery;
        let counters = &self.shared.counters.giver;
        let Place::Ring(ring) = &mut receiving.rings[pair] else {
            counters.add(Counter::DropRxFault, u64::from(frames.count_ones()));
            return 0;
        };
        let mut tally = Tally::default();
        let mut left = frames;
        while left != 0 && tally.lie.is_none() {
            left = tally.put_plain(ring, burst, left);
            if left == 0 {
                break;
            }
            let i = left.trailing_zeros() as usize;
            let (frame, bytes) = (lowest_bit(left), burst.bytes(i));
            let offload = if burst.plain() & frame != 0 { Offload::None } else { judged[i] };
            let fit = offload.fit(receiving.takes);
            if fit == Fit::Whole {
                let refused = tally.no_buffer;
                tally.put_whole(ring, offload, &bytes);
                if tally.no_buffer > refused {
                    if may_wait {
                        tally.no_buffer = refused;
                        break;
                    }
                    // Who has no room for this one has none for those that are as long: to try each would take the
                    // sender's other receivers more time than to fill buffers does.
                    let hopeless = left & burst.plain() & !frame & burst.not_shorter_than(bytes.len());
                    tally.no_buffer += u64::from(hopeless.count_ones());
                    left &= !hopeless;
                }
            } else {
                // Does not wait: the work would be done again with each try.
                tally.put_changed(ring, offload, fit, &bytes, workshop);
            }
            left &= !frame;
        }
        if tally.lie.is_some() {
            tally.fault += u64::from(left.count_ones());
            left = 0;
        }
        if has_more {
            ring.show();
        } else {
            tally.calls = ring.flush();
        }
        tally.count(counters);
        self.close_if_it_lied(receiving, pair, tally.lie);
        left
    }

    /// Tells the guest of all that it was given and not told of.
    pub(super) fn tell(&self) {
        let mut receiving = self.lock();
        for place in &mut receiving.rings {
            if let Place::Ring(ring) = place {
                self.shared.counters.giver.add_any(Counter::Calls, ring.flush());
            }
        }
    }
}

impl Receiving {
    /// A ring starts.
    pub(super) fn start(&mut self, pair: usize, ring: RxRing) {
        self.rings[pair] = Place::Ring(Box::new(ring));
    }

    /// A ring stops. Returns the next available entry.
    pub(super) fn stop(&mut self, pair: usize) -> u16 {
        let next_avail = self.next_avail(pair);
        self.rings[pair] = Place::Stopped { next_avail };
        self.ready.retain(|&ready| ready != pair);
        next_avail
    }

    /// Where a ring is, or has stopped.
    pub(super) fn next_avail(&self, pair: usize) -> u16 {
        match &self.rings[pair] {
            Place::Stopped { next_avail } | Place::Lied { next_avail } => *next_avail,
            Place::Ring(ring) => ring.next_avail(),
        }
    }

    /// Whether a ring has lied and the port has not been stopped for it yet.
    pub(super) fn has_lied(&self, pair: usize) -> bool {
        matches!(self.rings[pair], Place::Lied { .. })
    }

    /// Moves a ring to a new snapshot of the guest's memory.
    pub(super) fn rebase(&mut self, pair: usize, mem: Arc<GuestMem>) -> Result<(), RingError> {
        if let Place::Ring(ring) = &mut self.rings[pair] { ring.rebase(mem) } else { Ok(()) }
    }

    pub(super) fn set_call(&mut self, pair: usize, call: Option<OwnedFd>) {
        if let Place::Ring(ring) = &mut self.rings[pair] {
            ring.set_call(call);
        }
    }

    /// Frames go to the rings of these pairs that run.
    pub(super) fn set_ready(&mut self, pairs: impl Iterator<Item = usize>) {
        self.ready.clear();
        self.ready.extend(pairs.filter(|&pair| matches!(self.rings[pair], Place::Ring(_))));
    }

    fn shut(&mut self, pair: usize) {
        self.rings[pair] = Place::Lied { next_avail: self.next_avail(pair) };
        self.ready.clear();
    }

    /// The frames among `wanted` that the guest wants too.
    #[inline]
    fn filter(&self, burst: &Burst, wanted: u32) -> u32 {
        let filter = self.control.filter();
        if filter.accepts_all() {
            return wanted;
        }
        bits(wanted).filter(|&i| filter.accepts(burst.head(i))).fold(0, |accepted, i| accepted | 1 << i)
    }

    /// Which of the rings that are ready has a flow's frames.
    fn ring_of(&self, flow: u32) -> usize {
        self.ready[flow as usize % self.ready.len()]
    }

    /// Which ring each frame goes to: those of a flow stay on one, so that they stay in order.
    fn spread(&self, burst: &Burst, frames: u32) -> impl Iterator<Item = (usize, u32)> + use<> {
        let mut chosen = [0_u32; RINGS_MAX / 2];
        for i in bits(frames) {
            chosen[self.ring_of(flow::flow_hash(burst.head(i)))] |= 1 << i;
        }
        chosen.into_iter().enumerate().filter(|&(_, frames)| frames != 0)
    }
}

impl Tally {
    /// Puts the plain frames among `left` into the ring, up to the first that is not plain or finds no room in one
    /// buffer. Returns what is left.
    #[inline(always)]
    fn put_plain(&mut self, ring: &mut RxRing, burst: &Burst, left: u32) -> u32 {
        let others = left & !burst.plain();
        let row = left & lowest_bit(others).wrapping_sub(1);
        if row == 0 {
            return left;
        }
        let refused = ring.deliver_plain(burst, row);
        let delivered = row & !refused;
        self.frames += u64::from(delivered.count_ones());
        self.bytes += burst.bytes_of(delivered);
        left & !delivered
    }

    /// Puts one frame into the ring.
    fn put(&mut self, ring: &mut RxRing, offload: Offload, bytes: &Bytes<'_>) {
        debug_assert!(self.lie.is_none(), "the same entry is never tried again");
        match ring.deliver(offload.header().emit(0), bytes) {
            Ok(()) => {
                self.frames += 1;
                self.bytes += bytes.len() as u64;
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    #[cold]
    fn refuse(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::NoBuffer => self.no_buffer += 1,
            Refusal::TooBig => self.too_big += 1,
            Refusal::Ring(error) => {
                self.fault += 1;
                self.lie = Some(error);
            }
        }
    }

    /// Puts a frame into the ring as it is.
    fn put_whole(&mut self, ring: &mut RxRing, offload: Offload, bytes: &Bytes<'_>) {
        let before = self.frames;
        self.put(ring, offload, bytes);
        if matches!(offload, Offload::Segment(_)) {
            self.gso += self.frames - before;
        }
    }

    /// Puts a frame into the ring with the work done that the guest leaves to us.
    fn put_changed(
        &mut self,
        ring: &mut RxRing,
        offload: Offload,
        fit: Fit,
        bytes: &Bytes<'_>,
        workshop: &mut Workshop,
    ) {
        let changed = if matches!(fit, Fit::Segment { .. }) { &mut self.segmented } else { &mut self.checksummed };
        *changed += 1;
        workshop.change(offload, fit, bytes, |bytes, offload| {
            if self.lie.is_none() {
                self.put(ring, offload, bytes);
            }
        });
    }

    fn count(&self, counters: &Counters) {
        counters.add(Counter::RxFrames, self.frames);
        counters.add(Counter::RxBytes, self.bytes);
        let rare = [
            (Counter::RxGsoFrames, self.gso),
            (Counter::RxSegmented, self.segmented),
            (Counter::RxChecksummed, self.checksummed),
            (Counter::DropRxNoBuffer, self.no_buffer),
            (Counter::DropRxTooBig, self.too_big),
            (Counter::DropRxFault, self.fault),
            (Counter::Calls, self.calls),
        ];
        for (counter, n) in rare {
            counters.add_any(counter, n);
        }
    }
}

/// The places of the bits that are set, lowest first.
#[inline(always)]
pub(super) fn bits(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if set == 0 {
            return None;
        }
        let lowest = set.trailing_zeros() as usize;
        set &= set - 1;
        Some(lowest)
    })
}

/// The lowest bit that is set, alone; zero if there is none.
fn lowest_bit(set: u32) -> u32 {
    set & set.wrapping_neg()
}
