//! From a burst to its receivers: the path of a frame between two rings.
//!
//! Theory of operation. A burst is forwarded in two steps. First each frame is judged: what it asks for, and where it
//! goes. That makes a plan: for each receiver one bit for each of the burst's frames. Then each receiver is locked
//! once, gets its frames in the order in which they were sent, and is told once.

use std::net::Ipv4Addr;
use std::sync::{Arc, MutexGuard};

use crate::frame::arp::Arp;
use crate::frame::ethernet::{self, HEADER_LEN, MacAddr};
use crate::frame::ip::HeaderV4;
use crate::frame::offload::{self, Offload};
use crate::frame::vnet::VnetHeader;
use crate::metrics::Counter;
use crate::ring::{BURST_BYTES_MAX, BURST_FRAMES_MAX, Burst, FRAME_LEN_MAX};
use crate::service::Checksums;
use crate::switch::{Addresses, PortId, Switch, Verdict};

use super::desk::Desk;
use super::network::{Network, Receiver, port_id};
use super::receiving::{Delivery, Judged, ReceivingHalf, Workshop};
use super::sender::{Origin, Sender};
use super::waiting::{Company, Waiting};

/// What the frames of one burst may cost when they are flooded, in bytes that are copied beyond a first time: a frame
/// of 1,500 bytes to 340 ports, or ARP to all. The first frame may cost more, up to the next bound.
const FLOOD_COST_PER_BURST_MAX: usize = BURST_BYTES_MAX as usize;
/// What one frame may cost: a super-frame of usual segments to 70 ports. Others wait for so long, about 10 ms.
const FLOOD_COST_PER_FRAME_MAX: usize = 8 << 20;
/// What a port's flooding may cost in a second: about a tenth of a worker's time.
const FLOOD_COST_PER_SECOND_MAX: u32 = 1 << 30;
/// What a segment costs in software, in bytes that could be copied meanwhile.
const SEGMENT_COST: usize = 1024;

/// Requests to services that a guest may make in a second: the address of a port is asked for far less often, and each
/// takes a lock that all of the network's workers share.
const REQUESTS_PER_SECOND_MAX: u32 = 256;
/// The same for addresses that a guest uses and that we may have given it: it has few, and they are remembered.
const LOOKUPS_PER_SECOND_MAX: u32 = 64;
/// How often in a second an uplink is told of new addresses of one sender: each time the kernel gets a new filter.
const CHANGES_PER_SECOND_MAX: u32 = 64;
/// How long a guest may go on using an address that it had from us, in seconds: its lease may be over.
const GUARD_S: u32 = 30;

/// No port's place.
const NOBODY: usize = usize::MAX;

const _: () = assert!(BURST_FRAMES_MAX == u32::BITS as usize, "a burst's frames are the bits of a word");

/// What is to become of a burst.
struct Plan {
    /// What each frame asks for that is not plain.
    judged: Judged,
    /// Frames for one port alone, by port, as bits.
    frames_for: Vec<u32>,
    /// The ports that have any.
    receivers: Vec<u16>,
    /// Frames for all, as bits.
    flooded: u32,
    /// Where the burst comes from.
    from: PortId,
    /// The worker's number.
    worker: usize,
    /// When, in nanoseconds.
    now_ns: u64,
    /// The place of the port whose guest is told later, or [`NOBODY`].
    untold: usize,
}

impl Plan {
    /// Adds frames for one port.
    #[inline]
    fn add(&mut self, to: PortId, row: u32) {
        let port = usize::from(to.0);
        if port >= self.frames_for.len() {
            self.frames_for.resize(port + 1, 0);
        }
        let frames = &mut self.frames_for[port];
        if *frames == 0 {
            self.receivers.push(to.0);
        }
        *frames |= row;
    }
}

/// What a worker forwards with.
pub(super) struct Forwarder {
    network: Arc<Network>,
    /// By port, as of `version`.
    receivers: Vec<Option<Receiver>>,
    version: u64,
    plan: Plan,
    workshop: Workshop,
    /// A request to a service, whole: kept for its capacity only.
    request: Vec<u8>,
    /// Services' answers to the sender.
    answers: Vec<Vec<u8>>,
}

/// What of a burst found no room and may wait for it.
pub(super) struct Left {
    receiver: Receiver,
    frames: u32,
}

impl Left {
    /// Has the burst wait.
    pub(super) fn wait(self, burst: Burst, forwarder: &Forwarder, now_ns: u64) -> Box<Waiting> {
        let Self { receiver, frames } = self;
        let judged = forwarder.plan.judged;
        Box::new(Waiting { burst, judged, receiver, left: frames, since_ns: now_ns })
    }
}

impl Forwarder {
    /// For the worker with this number.
    pub(super) fn new(network: Arc<Network>, worker: usize) -> Self {
        let plan = Plan {
            judged: [Offload::None; BURST_FRAMES_MAX],
            frames_for: Vec::new(),
            receivers: Vec::new(),
            flooded: 0,
            from: PortId(0),
            worker,
            now_ns: 0,
            untold: NOBODY,
        };
        let (receivers, workshop) = (Vec::new(), Workshop::default());
        Self { network, receivers, version: 0, plan, workshop, request: Vec::new(), answers: Vec::new() }
    }

    /// Forwards every frame of a burst that the port in place `from` has sent, and tells the receivers. Without
    /// `company` nothing waits for room.
    #[inline]
    pub(super) fn forward(
        &mut self,
        from: usize,
        sender: &mut Sender,
        company: Option<&mut Company>,
        burst: &Burst,
        now_ns: u64,
    ) -> Option<Left> {
        self.follow();
        self.plan.now_ns = now_ns;
        self.judge(from, sender, burst, (now_ns / 1_000_000_000) as u32);
        let counters = &sender.shared.counters.owner;
        counters.add(Counter::TxFrames, burst.len() as u64);
        counters.add(Counter::TxBytes, burst.byte_count());
        let waits_for = company.and_then(|company| company.note(&self.plan.receivers, now_ns));
        let frames = self.deliver(from, burst, waits_for);
        if !self.answers.is_empty() {
            self.answer(from);
        }
        if frames == 0 {
            return None;
        }
        counters.count(Counter::TxWaits);
        let receiver = self.receivers.get(usize::from(waits_for?))?.clone()?;
        Some(Left { receiver, frames })
    }

    /// Gives a guest what services have answered.
    #[cold]
    fn answer(&mut self, to: usize) {
        if let Some(Some(Receiver::Guest(half))) = self.receivers.get(to) {
            self.answers.iter().for_each(|answer| half.give_own(answer));
        }
        self.answers.clear();
    }

    /// Gives a burst that waits another try; after the last one nothing is left. Returns whether any frame has ended.
    pub(super) fn try_again(&mut self, waiting: &mut Waiting, now_ns: u64, is_last: bool) -> bool {
        let Waiting { burst, judged, receiver, left, since_ns } = waiting;
        // Only an uplink asks where frames are from and when, and nothing waits for one.
        let Plan { from, worker, .. } = self.plan;
        let delivery = Delivery { burst, judged, from, worker, now_ns, may_wait: !is_last, has_more: false };
        let before = std::mem::replace(left, receiver.give(&delivery, *left, &mut self.workshop));
        let ended = before != *left;
        if ended {
            *since_ns = now_ns;
        }
        ended
    }

    /// The number of the worker whose it is.
    pub(super) fn worker(&self) -> usize {
        self.plan.worker
    }

    /// Looks around if ports have come or gone since the last time.
    #[inline]
    pub(super) fn follow(&mut self) {
        if self.version != self.network.version() {
            self.look_around();
        }
    }

    #[cold]
    fn look_around(&mut self) {
        // First the version: a port that comes in between is seen now or the next time.
        self.version = self.network.version();
        self.receivers = self.network.receivers();
    }

    /// From now on all guests but this port's are told of their frames at once; that one, by whoever has more for it.
    pub(super) fn tell_later(&mut self, port: Option<PortId>) {
        self.plan.untold = port.map_or(NOBODY, |port| port.0.into());
    }

    /// The guest of a port.
    pub(super) fn guest(&mut self, port: PortId) -> Option<&ReceivingHalf> {
        self.follow();
        match self.receivers.get(usize::from(port.0)) {
            Some(Some(Receiver::Guest(half))) => Some(half),
            _ => None,
        }
    }

    /// The network's guest, if there is one and no other.
    pub(super) fn only_guest(&mut self) -> Option<Arc<ReceivingHalf>> {
        self.follow();
        let guest = |receiver: &Receiver| if let Receiver::Guest(half) = receiver { Some(half.clone()) } else { None };
        let mut guests = self.receivers.iter().flatten().filter_map(guest);
        guests.next().filter(|_| guests.next().is_none())
    }

    /// Makes the plan.
    #[inline(never)]
    fn judge(&mut self, from: usize, sender: &mut Sender, burst: &Burst, now_s: u32) {
        let Self { network, receivers, plan, request, answers, .. } = self;
        sender.recent.begin_burst(port_id(from), network.losses(), now_s);
        let flood_left = FLOOD_COST_PER_BURST_MAX;
        let (switch, met, asked, looks_into) = (None, None, 0, network.looks_into(sender));
        let (from, receivers) = (from, receivers.as_slice());
        let mut judge = Judge {
            network,
            from,
            sender,
            receivers,
            now_s,
            switch,
            asked,
            looks_into,
            met,
            flood_left,
            request,
            answers,
        };
        (plan.flooded, plan.from) = (0, port_id(from));
        let ended = if judge.looks_into { judge.screen_all(burst, &mut plan.judged) } else { 0 };
        // Frames to one guest come in rows.
        let mut i = 0;
        while i < burst.len() {
            let (first, frame) = (i, 1_u32 << i);
            i += 1;
            if ended & frame != 0 {
                continue;
            }
            match judge.judge(burst, first, &mut plan.judged[first]) {
                Verdict::Forward(to) => {
                    // A tag has more to say than the header: each frame that has one is judged by itself.
                    if Addresses::of(burst.ethernet_header(first)) != Addresses::NONE {
                        i += burst.alike(first);
                    }
                    plan.add(to, (u32::MAX >> (BURST_FRAMES_MAX - (i - first))) << first);
                }
                Verdict::Flood => plan.flooded |= frame,
                Verdict::Drop(reason) => judge.sender.shared.counters.owner.count(reason),
            }
        }
        judge.finish();
    }

    /// Carries the plan out. Returns what found no room at the port in place `waits_for`; what finds none elsewhere is
    /// dropped.
    fn deliver(&mut self, from: usize, burst: &Burst, waits_for: Option<u16>) -> u32 {
        let flooded = self.plan.flooded;
        let mut left = 0;
        if flooded != 0 {
            for to in (0..self.receivers.len()).filter(|&to| to != from) {
                left |= self.give(to, burst, flooded, waits_for);
            }
        }
        while let Some(to) = self.plan.receivers.pop() {
            left |= self.give(usize::from(to), burst, 0, waits_for);
        }
        left
    }

    /// Gives port `to` what is for it alone and what is for all.
    fn give(&mut self, to: usize, burst: &Burst, flooded: u32, waits_for: Option<u16>) -> u32 {
        let alone = self.plan.frames_for.get_mut(to).map_or(0, std::mem::take);
        let wanted = alone | flooded;
        if wanted == 0 {
            return 0;
        }
        if !matches!(self.receivers.get(to), Some(Some(_))) {
            // It came after we had looked around.
            self.look_around();
        }
        let Some(Some(receiver)) = self.receivers.get(to) else { return 0 };
        let may_wait = waits_for.map(usize::from) == Some(to);
        let Plan { ref judged, from, worker, now_ns, untold, .. } = self.plan;
        let has_more = untold == to;
        let delivery = Delivery { burst, judged, from, worker, now_ns, may_wait, has_more };
        receiver.give(&delivery, wanted, &mut self.workshop)
    }
}

/// Judges the frames of one burst.
struct Judge<'a> {
    network: &'a Network,
    /// The sender's place.
    from: usize,
    sender: &'a mut Sender,
    receivers: &'a [Option<Receiver>],
    now_s: u32,
    /// Locked with the first frame that cannot be judged without it.
    switch: Option<MutexGuard<'a, Switch>>,
    /// Frames that it was asked about.
    asked: u32,
    /// Whether the frames are judged by more than their Ethernet headers.
    looks_into: bool,
    /// The first address that the guest has sent from.
    met: Option<MacAddr>,
    /// What the burst's flooding may still cost.
    flood_left: usize,
    request: &'a mut Vec<u8>,
    answers: &'a mut Vec<Vec<u8>>,
}

impl Judge<'_> {
    /// What frame `i` asks for, and where it goes.
    #[inline(never)]
    fn judge(&mut self, burst: &Burst, i: usize, asks: &mut Offload) -> Verdict {
        if burst.plain() & 1 << i != 0 {
            *asks = Offload::None;
        } else if !self.looks_into {
            match self.check_offload(burst, i) {
                Ok(offload) => *asks = offload,
                Err(reason) => return Verdict::Drop(reason),
            }
        }
        // Perhaps it has not even an Ethernet header.
        let is_whole = burst.head(i).len() >= HEADER_LEN;
        let addresses = if is_whole { Addresses::of(burst.ethernet_header(i)) } else { Addresses::NONE };
        match self.sender.recent.find(addresses, self.network.losses()) {
            Some(to) => Verdict::Forward(to),
            None => self.ask_switch(burst, i, addresses, asks),
        }
    }

    fn check_offload(&mut self, burst: &Burst, i: usize) -> Result<Offload, Counter> {
        let (head, len) = (burst.head(i), burst.frame_len(i));
        if len > FRAME_LEN_MAX {
            return Err(Counter::DropTxTooLong);
        }
        let header = VnetHeader::parse(burst.vnet(i));
        let offload = offload::validate(&header, head, len, self.sender.sends).map_err(|_| Counter::DropTxBadHeader)?;
        if matches!(offload, Offload::Segment(_)) {
            self.sender.shared.counters.owner.count(Counter::TxGsoFrames);
        }
        Ok(offload)
    }

    /// Looks into all frames of the burst, before the switch is locked for any. Returns those that end here, as bits.
    #[inline(never)]
    fn screen_all(&mut self, burst: &Burst, judged: &mut Judged) -> u32 {
        let mut ended = 0;
        for (i, asks) in judged.iter_mut().enumerate().take(burst.len()) {
            let end = match self.check_offload(burst, i) {
                Ok(offload) => {
                    *asks = offload;
                    self.screen(burst, i, asks)
                }
                Err(reason) => Some(reason),
            };
            if let Some(reason) = end {
                self.sender.shared.counters.owner.count(reason);
                ended |= 1 << i;
            }
        }
        ended
    }

    /// Whether the frame must not be sent here, or ends with a service: returns what it ends in.
    fn screen(&mut self, burst: &Burst, i: usize, asks: &Offload) -> Option<Counter> {
        let (filter, head) = (self.network.filter(), burst.head(i));
        if self.sender.origin == Origin::Uplink {
            return filter.and_then(|filter| filter.check_host(head).err());
        }
        if !asks.is_transport_checksum(head) {
            return Some(Counter::DropTxBadHeader);
        }
        let (guarded, services) = (self.check_guard(head), self.network.services());
        // A client that renews a lease which we no longer know must hear that it is over, or have it again.
        let may_ask =
            |end| end == Counter::DropTxSpoofedIp && services.is_some_and(|desk| desk.settings().is_dhcp(head));
        let refused = guarded.err().filter(|end| !may_ask(*end));
        let refused = refused.or_else(|| filter.and_then(|filter| filter.check_guest(head).err()));
        match refused {
            Some(end) => Some(end),
            None => services.and_then(|desk| self.serve(desk, burst, i, asks)).or(guarded.err()),
        }
    }

    /// Asks the port's guard.
    fn check_guard(&mut self, head: &[u8]) -> Result<(), Counter> {
        let Some(guard) = &mut self.sender.guard else { return Ok(()) };
        if self.now_s - self.sender.guarded_since_s >= GUARD_S {
            // Leases expire, and are given to others.
            guard.set_addresses(&[]);
            self.sender.guarded_since_s = self.now_s;
        }
        let refused = match guard.check(head) {
            Err(refused @ (Counter::DropTxSpoofedIp | Counter::DropTxSpoofedNeighbour)) => refused,
            Err(Counter::DropTxSpoofedMac) => {
                let is_of_another = guard.mac().is_none();
                self.meet_once(head, is_of_another);
                return Err(Counter::DropTxSpoofedMac);
            }
            checked => return checked,
        };
        // Perhaps it has been given the address since.
        let (Some(desk), Some(address), Some(mac)) =
            (self.network.services(), sender_v4(head), MacAddr::source_of(head))
        else {
            return Err(refused);
        };
        let may_ask = self.sender.lookups.take(LOOKUPS_PER_SECOND_MAX, self.now_s);
        if may_ask && desk.has_given(port_id(self.from), mac, address) && guard.allow(address) {
            return guard.check(head);
        }
        Err(refused)
    }

    /// Whether the frame ends with a service: returns what it ends in.
    fn serve(&mut self, desk: &Desk, burst: &Burst, i: usize, asks: &Offload) -> Option<Counter> {
        let (settings, head) = (desk.settings(), burst.head(i));
        if let Some(offence) = settings.offence(head) {
            return Some(offence);
        }
        if settings.wants(head) {
            if !self.sender.requests.take(REQUESTS_PER_SECOND_MAX, self.now_s) {
                return Some(Counter::DropTxRequestLimit);
            }
            burst.bytes(i).copy_out(self.request);
            let checksums = if *asks == Offload::None { Checksums::Complete } else { Checksums::Partial };
            let outcome = desk.serve(port_id(self.from), self.request, checksums, self.answers);
            if settings.is_dhcp(head) {
                // It may have given an address back.
                self.sender.guard.iter_mut().for_each(|guard| guard.set_addresses(&[]));
            }
            if let Some(end) = outcome.counter() {
                return Some(end);
            }
        }
        // What is left for an address of ours is the gateway's, or nobody's.
        let is_ours = settings.claims_mac().is_some_and(|mac| head.starts_with(&mac.0)) && !self.network.has_nat();
        is_ours.then_some(Counter::DropTxNotServed)
    }

    fn ask_switch(&mut self, burst: &Burst, i: usize, addresses: Addresses, asks: &Offload) -> Verdict {
        let (head, len) = (burst.head(i), burst.frame_len(i));
        let (network, now_s) = (self.network, self.now_s);
        if !self.looks_into
            && let Err(end) = self.check_guard(head)
        {
            return Verdict::Drop(end);
        }
        let switch = self.switch.get_or_insert_with(|| {
            let mut switch = network.switch();
            switch.begin_burst(now_s);
            switch
        });
        self.asked += 1;
        if self.asked == 2 {
            // Most bursts ask once, if at all. This one seems to go to many.
            switch.look_ahead((i..burst.len()).map(|i| burst.head(i)));
        }
        let verdict = switch.forward(port_id(self.from), head);
        if let Verdict::Forward(to) = verdict {
            self.sender.recent.remember(addresses, to, network.losses());
        }
        self.meet_once(head, !matches!(verdict, Verdict::Drop(_)));
        match verdict {
            Verdict::Flood if !self.may_flood(head, len, asks) => Verdict::Drop(Counter::DropTxFloodLimit),
            verdict => verdict,
        }
    }

    /// Has the network told of the address that the guest begins with, if `is_told` says that this frame tells it: one
    /// that passes, or one that is refused because another guest has the address.
    fn meet_once(&mut self, head: &[u8], is_told: bool) {
        if is_told && !self.sender.is_known {
            self.sender.is_known = true;
            self.met = MacAddr::source_of(head);
        }
    }

    /// Whether a frame may be flooded once more; if so, it is charged for.
    fn may_flood(&mut self, head: &[u8], len: usize, asks: &Offload) -> bool {
        let segments = if let Offload::Segment(gso) = asks { gso.segments(len) } else { 0 };
        // As the switch counts: beyond the first copy, which forwarding would make as well.
        let ports = self.receivers.iter().flatten().count();
        let cost = ports.saturating_sub(2) * (len + segments * SEGMENT_COST);
        // A long frame on a large network must not be refused for ever, so a burst's first one may go over its bound.
        let is_first = self.flood_left == FLOOD_COST_PER_BURST_MAX && cost <= FLOOD_COST_PER_FRAME_MAX;
        let fits = cost <= self.flood_left || is_first;
        let charge = u32::try_from(cost).unwrap_or(u32::MAX);
        if !fits || !self.sender.may_flood(head, charge, FLOOD_COST_PER_SECOND_MAX, self.now_s) {
            return false;
        }
        self.flood_left = self.flood_left.saturating_sub(cost);
        true
    }

    /// Lets go of the switch, counts what has happened to the sender's addresses, and introduces a guest that has sent
    /// for the first time.
    fn finish(mut self) {
        if let Some(switch) = self.switch.take() {
            self.follow_addresses(switch);
        }
        let Some(mac) = self.met else { return };
        let (number, network) = (self.sender.shared.number, self.sender.shared.network.as_str());
        match self.network.meet(self.from, mac) {
            None => tracing::info!(port = number, network, %mac, "the guest sends"),
            Some(twin) => tracing::warn!(
                port = number,
                network,
                %mac,
                "the guest has the address of the guest on port {twin}: its frames are refused or, without port \
                 security, reach the other; give each its own mac="
            ),
        }
    }

    /// Counts what the switch has learned of the sender's addresses, and tells the uplink.
    fn follow_addresses(&mut self, mut switch: MutexGuard<'_, Switch>) {
        let from = port_id(self.from);
        let (evicted, moved) = (switch.take_evictions(from), switch.take_moves(from));
        // Of an uplink's stations only those matter that were ours before.
        let is_changed = moved > 0 || self.sender.origin == Origin::Guest && switch.is_changed(from);
        drop(switch);
        let counters = &self.sender.shared.counters.owner;
        counters.add_any(Counter::AddressesEvicted, evicted);
        counters.add_any(Counter::AddressesMoved, moved);
        if is_changed && self.network.has_uplink() && self.sender.changes.take(CHANGES_PER_SECOND_MAX, self.now_s) {
            self.network.follow_stations();
        }
    }
}

/// The IPv4 address that a frame says it is from, or probes, in its ARP or IP header.
fn sender_v4(head: &[u8]) -> Option<Ipv4Addr> {
    match ethernet::network(head)? {
        (ethernet::TYPE_ARP, at) => Arp::parse(head, at).map(|arp| arp.claimed()),
        (ethernet::TYPE_IPV4, at) => HeaderV4::parse(head, at).map(|header| header.source),
        _ => None,
    }
}
