//! NAT at work: what guests send to the gateway, and what comes back.
//!
//! Theory of operation. To the network the gateway is a port, whose address the switch knows. Each worker has an
//! [`Engine`] of its own for the guests of its ports, under a lock that only that worker takes but when a port ends.
//! What a burst brings for the gateway is taken when it is delivered, from the guests' memory; what there is for guests
//! then, and what comes to the engine's sockets, the worker reads like frames of an uplink. A connection's data is
//! read straight into the buffers of the guest that it is for: nobody else sees it.
//!
//! Locks: the engine's is taken before those of the switch, of receivers and of services.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::frame::ethernet::MacAddr;
use crate::frame::offload::{Offload, Offloads};
use crate::metrics::Counter;
use crate::nat::{Engine, Forwards, Frame, Offer, Settings, Sockets, Supply};
use crate::ring::mailbox::PortShared;
use crate::ring::{BURST_FRAMES_MAX, InPlace, PrivateBurst};
use crate::switch::PortId;
use crate::sys::poller::{Poller, Trigger};

use super::desk::Desk;
use super::forward::Forwarder;
use super::moderation::Moderation;
use super::receiving::{Delivery, bits};
use super::sender::{Origin, Sender};

/// Frames of data that are read in one go.
const DATA_FRAMES_MAX: usize = 16;
/// Bytes of data after which no more are read.
const DATA_BYTES_MAX: usize = 256 * 1024;
/// Bursts of other frames that are delivered in one go.
const BURSTS_MAX: usize = 8;
/// A guest with less room than this, or than it needs, is better given time to make more.
const ROOM_MIN: usize = 1514;

/// All that the gateway can send.
const SENDS: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: false, uso4: true, uso6: true };

/// See the module's theory of operation.
#[derive(Debug)]
pub struct NatHalf {
    mac: MacAddr,
    forwards: Arc<Forwards>,
    /// By worker.
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    shared: Arc<PortShared>,
    engine: Mutex<Engine>,
    /// Whether the worker is to read.
    has_any: AtomicBool,
    /// How long the frames of this burst have taken, in nanoseconds, if any of them was dear.
    dear_ns: AtomicU64,
}

impl Queue {
    /// Notes what has come of the engine's work.
    fn note(&self, engine: &mut Engine) {
        let (counters, [tcp, udp]) = (&self.shared.counters.giver, engine.turnover());
        counters.add_any(Counter::TcpOpened, tcp.opened);
        counters.add_any(Counter::TcpClosed, tcp.closed);
        counters.add_any(Counter::UdpOpened, udp.opened);
        counters.add_any(Counter::UdpClosed, udp.closed);
        self.has_any.store(engine.has_any(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NatHalf {
    /// A gateway for a network with as many workers as there are `shared`, with these forwards and services.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(
        settings: &Settings,
        (forwards, desk): (Arc<Forwards>, Arc<Desk>),
        shared: Vec<PortShared>,
        sockets: &Arc<Sockets>,
    ) -> io::Result<Arc<Self>> {
        let mut settings = settings.clone();
        let queue = |(number, shared)| -> io::Result<Queue> {
            let engine = Mutex::new(Engine::new(&settings, desk.clone(), sockets.clone(), (forwards.clone(), number))?);
            // One of them tells all.
            settings.advertisement = None;
            Ok(Queue { shared: Arc::new(shared), engine, has_any: AtomicBool::new(false), dear_ns: AtomicU64::new(0) })
        };
        let queues = shared.into_iter().enumerate().map(queue).collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { mac: settings.gateway_mac, forwards, queues }))
    }

    /// What its frames are counted in, all of it together.
    pub fn shared(&self) -> impl Iterator<Item = &PortShared> {
        self.queues.iter().map(|queue| &*queue.shared)
    }

    /// The gateway's MAC address.
    pub(super) fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Its number as a port.
    pub(super) fn number(&self) -> u32 {
        self.shared().next().map_or(0, |shared| shared.number)
    }

    /// Takes the frames of a burst that `wanted` has bits for, and counts how each ended.
    pub(super) fn give(&self, delivery: &Delivery<'_>, wanted: u32) {
        let Some(queue) = self.queues.get(delivery.worker) else { return };
        let counters = &queue.shared.counters.giver;
        let (now, begun) = (delivery.now_ns, Instant::now());
        let mut engine = queue.lock();
        let view = |i: usize| {
            let is_plain = delivery.burst.plain() & 1 << i != 0;
            (if is_plain { Offload::None } else { delivery.judged[i] }, delivery.burst.bytes(i))
        };
        engine.take_burst(delivery.from, bits(wanted), view, now, |i, ended| match ended {
            Ok(()) => {
                let (offload, bytes) = view(i);
                counters.count(Counter::RxFrames);
                counters.add(Counter::RxBytes, bytes.len() as u64);
                counters.add_any(Counter::RxGsoFrames, u64::from(matches!(offload, Offload::Segment(_))));
            }
            Err(reason) => counters.count(reason),
        });
        if engine.burst_ended(now) {
            queue.dear_ns.store(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        queue.note(&mut engine);
    }

    /// A port has come, of the worker with this number.
    pub(super) fn port_came(&self, port: PortId, worker: usize, shared: &PortShared) {
        self.forwards.port_came(port, worker, shared.name.clone());
    }

    /// The guest on a port has sent for the first time, from this address.
    pub(super) fn met(&self, port: PortId, mac: MacAddr) {
        self.forwards.met(port, mac);
    }

    /// A port is about to go; its place may be another's then.
    pub(super) fn port_ended(&self, port: PortId) {
        // In this order, and the first engine first: it is what hands things over to the others.
        self.forwards.port_ended(port);
        for queue in &self.queues {
            let mut engine = queue.lock();
            let gone = engine.port_ended(port);
            queue.note(&mut engine);
            // Not under the lock: other guests' frames wait for it.
            drop(engine);
            gone.close();
        }
    }
}

/// What a worker reads of its engine.
#[derive(Debug)]
pub(super) struct NatReader {
    half: Arc<NatHalf>,
    /// The worker's number.
    worker: usize,
    /// The gateway's place on the network.
    index: usize,
    sender: Sender,
    burst: PrivateBurst,
    in_place: InPlace,
    moderation: Moderation,
}

impl NatReader {
    /// For the worker with this number, on a network whose gateway has the place `index`.
    pub(super) fn new(half: Arc<NatHalf>, worker: usize, index: usize) -> Option<Self> {
        let mut sender = Sender::new(half.queues.get(worker)?.shared.clone(), Origin::Uplink, None);
        sender.sends = SENDS;
        Some(Self {
            half,
            worker,
            index,
            sender,
            burst: PrivateBurst::default(),
            in_place: InPlace::default(),
            moderation: Moderation::default(),
        })
    }

    /// Watches the engine.
    ///
    /// # Errors
    /// When memory is short.
    pub(super) fn watch(&self, poller: &Poller, token: u64) -> io::Result<()> {
        poller.add(self.half.queues[self.worker].lock().fd(), Trigger::Level, token)
    }

    /// Whether there is something to read, or a guest to be told of what was read.
    #[inline]
    pub(super) fn has_any(&self) -> bool {
        self.half.queues[self.worker].has_any.load(Ordering::Relaxed) || self.moderation.has_any()
    }

    /// How long the last burst has taken, in nanoseconds, if any of its frames was dear.
    #[inline]
    pub(super) fn dear_ns(&self) -> u64 {
        let dear_ns = &self.half.queues[self.worker].dear_ns;
        let ns = dear_ns.load(Ordering::Relaxed);
        if ns > 0 {
            dear_ns.store(0, Ordering::Relaxed);
        }
        ns
    }

    /// Reads what is there, and forwards it. Returns the number of frames. `charge` is told how many nanoseconds were
    /// spent on what has come of what a port has sent.
    pub(super) fn turn(
        &mut self,
        forwarder: &mut Forwarder,
        now_ns: u64,
        mut charge: impl FnMut(PortId, u64),
    ) -> usize {
        let half = self.half.clone();
        let queue = &half.queues[self.worker];
        let mut engine = queue.lock();
        let begun = Instant::now();
        engine.look(now_ns);
        engine.efforts(|port, share| charge(port, (begun.elapsed().as_nanos() as f64 * share) as u64));
        let frames = self.bursts(&mut engine, forwarder, now_ns) + self.data(&mut engine, forwarder, now_ns);
        queue.note(&mut engine);
        frames
    }

    /// Forwards frames that are the engine's own.
    fn bursts(&mut self, engine: &mut Engine, forwarder: &mut Forwarder, now_ns: u64) -> usize {
        let mut count = 0;
        for _ in 0..BURSTS_MAX {
            let Self { sender, burst, index, .. } = self;
            let forwarded = engine.frames(BURST_FRAMES_MAX, |frames: &[Frame]| {
                let frames = frames.iter().map(|frame| (frame.vnet(), frame.bytes()));
                let burst = burst.fill(frames, false);
                forwarder.forward(*index, sender, None, burst, now_ns);
                burst.len()
            });
            let Some(forwarded) = forwarded else { break };
            count += forwarded;
        }
        count
    }

    /// Forwards connections' data, and tells guests of it at their pace.
    fn data(&mut self, engine: &mut Engine, forwarder: &mut Forwarder, now_ns: u64) -> usize {
        let (mut frames, mut bytes) = (0, 0);
        while frames < DATA_FRAMES_MAX && bytes < DATA_BYTES_MAX {
            let Some(offer) = engine.offer(now_ns) else { break };
            let len = self.one(engine, &offer, forwarder, now_ns);
            frames += usize::from(len > 0);
            if len > 0 {
                self.moderation.gave(offer.port, len);
            }
            bytes += len.max(ROOM_MIN);
        }
        forwarder.tell_later(None);
        self.moderation.tell(now_ns, |port| {
            if let Some(guest) = forwarder.guest(port) {
                guest.tell();
            }
        });
        self.in_place.release();
        frames
    }

    /// Forwards one frame of data. Returns how long it is; zero for none.
    fn one(&mut self, engine: &mut Engine, offer: &Offer, forwarder: &mut Forwarder, now_ns: u64) -> usize {
        let guest = forwarder.guest(offer.port);
        let room = guest.map_or(0, |guest| guest.lend(&mut self.in_place, offer.len, Some(offer.flow)));
        if room < offer.len.min(ROOM_MIN) {
            engine.stall(offer, now_ns);
            self.moderation.is_full(offer.port);
            return 0;
        }
        match engine.supply(offer, &mut self.in_place, room, now_ns) {
            Supply::Frame(len, vnet) => {
                let burst = self.in_place.frame(vnet, len);
                forwarder.tell_later(Some(offer.port));
                forwarder.forward(self.index, &mut self.sender, None, burst, now_ns);
                len
            }
            Supply::Nothing => 0,
        }
    }
}
