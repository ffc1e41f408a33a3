//! The worker: one thread that polls rings while there is work and sleeps when there is none.
//!
//! Theory of operation. A transmit ring is either polled, and then its guest is told that it need not kick, or armed,
//! and then its kick descriptor is watched. A kick makes it polled; when it has been empty for [`POLL_IDLE_MAX`] it is
//! armed again, with one more look after the arming. With no ring polled the worker sleeps in epoll without a timeout,
//! so a quiet network costs nothing; with some, it still looks at epoll every [`ROUNDS_PER_WAIT`] rounds, and at least
//! every [`UNSEEN_MAX`], so a kick or a session's message is never starved. A round gives each port with work one
//! burst, from its rings in turn: a busy guest delays the others by one burst, not more, however many queues it has.
//!
//! Mail from sessions is applied between rounds, when no pointer into any guest's memory is held: that is the quiescent
//! point that [`crate::ring::mailbox`] promises.

mod forward;
mod port;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};

use crate::metrics::Counter;
use crate::ring::mailbox::{Envelope, Mailbox, Message, RingSetup};
use crate::ring::{Burst, HEAD_MAX, RingError};
use crate::switch::PORTS_MAX;
use crate::sys::poller::{Poller, Trigger};
use crate::sys::sigbus;

use forward::{Network, port_id};
use port::{Port, Ring};

/// How long a ring is polled after it was last seen with work.
const POLL_IDLE_MAX: Duration = Duration::from_micros(50);
/// How long the end of the process waits for the worker, in milliseconds. It takes far less, unless a frontend has made
/// a descriptor block that we made non-blocking.
pub const STOP_MAX_MS: u8 = 30;
/// Rounds of polling between two looks at what else is ready.
const ROUNDS_PER_WAIT: u32 = 16;
/// How long what else is ready may go unseen while bursts are long: a guest that wakes up waits so long, and one burst.
const UNSEEN_MAX: Duration = Duration::from_micros(100);

const _: () = assert!(HEAD_MAX >= crate::frame::FRAME_HEAD_MAX, "what is judged is what was copied");

/// What may wake the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A session has sent mail, or the worker should end.
    Mailbox,
    /// A guest has kicked a ring that is not polled (or has been so until just now).
    Kick {
        /// The port's place in the network.
        port: usize,
        /// The ring's number.
        ring: usize,
    },
}

impl Source {
    fn token(self) -> u64 {
        match self {
            Self::Mailbox => u64::MAX,
            Self::Kick { port, ring } => ((port as u64) << 32) | ring as u64,
        }
    }

    fn from_token(token: u64) -> Self {
        if token == u64::MAX {
            return Self::Mailbox;
        }
        Self::Kick { port: (token >> 32) as usize, ring: (token & 0xffff_ffff) as usize }
    }
}

/// A ring that is being polled.
#[derive(Clone, Copy, Debug)]
struct Polled {
    port: usize,
    ring: usize,
    /// When it was first seen empty since it last had work.
    empty_since: Option<Instant>,
    /// Whether it is still to be polled after this round.
    stays: bool,
}

/// A worker in a thread of its own.
#[derive(Debug)]
pub struct WorkerHandle {
    mailbox: Arc<Mailbox>,
    stop: Arc<AtomicBool>,
    ended: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl WorkerHandle {
    /// Where sessions post.
    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Readable once the worker has ended, for whatever reason.
    pub fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Ends the worker and waits for it, but not for ever. Sessions that still post are told that it is gone.
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.mailbox.ring_bell();
        let mut ended = [PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut ended, PollTimeout::from(STOP_MAX_MS)), Ok(1)) {
            return tracing::error!("the worker does not end: a frontend keeps it waiting; ending without it");
        }
        if self.thread.join().is_err() {
            tracing::error!("the worker has panicked; this is a bug");
        }
    }
}

/// What forwards one network's frames.
pub struct Worker {
    mailbox: Arc<Mailbox>,
    stop: Arc<AtomicBool>,
    ended: Arc<EventFd>,
    poller: Poller,
    network: Network,
    /// Where each port is, by [`crate::ring::mailbox::PortShared::number`].
    by_number: HashMap<u32, usize>,
    polled: Vec<Polled>,
    /// Control queues, by port and ring, that have had their turn and may hold more commands.
    unfinished: Vec<(usize, usize)>,
    burst: Burst,
    /// [`sigbus::faults`] when it was last looked at.
    faults_seen: u64,
    /// When it last looked at what is ready.
    looked_at: Instant,
    /// Rounds so far.
    rounds: u32,
    /// Tokens of what is ready: kept for its capacity only.
    ready: Vec<u64>,
}

impl Worker {
    /// A worker without ports. `seed` makes the address table's order unpredictable to guests.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(seed: u64) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let poller = Poller::new()?;
        poller.add(mailbox.wake_fd(), Trigger::Level, Source::Mailbox.token())?;
        Ok(Self {
            mailbox,
            stop: Arc::new(AtomicBool::new(false)),
            ended: Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?),
            poller,
            network: Network::new(seed),
            by_number: HashMap::new(),
            polled: Vec::new(),
            unfinished: Vec::new(),
            burst: Burst::default(),
            faults_seen: sigbus::faults(),
            looked_at: Instant::now(),
            rounds: 0,
            ready: Vec::new(),
        })
    }

    /// Lets the worker run in a thread named `name`.
    ///
    /// # Errors
    /// When the process is out of threads.
    pub fn spawn(mut self, name: &str) -> io::Result<WorkerHandle> {
        let (mailbox, stop, ended) = (self.mailbox.clone(), self.stop.clone(), self.ended.clone());
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !self.stop.load(Ordering::Relaxed) {
                self.turn();
            }
        })?;
        Ok(WorkerHandle { mailbox, stop, ended, thread })
    }

    /// Where sessions post.
    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Gives each polled ring one burst; sleeps first while none is polled.
    pub fn turn(&mut self) {
        if self.polled.is_empty() {
            // Asleep we hold nobody's memory.
            self.burst.release();
            self.wait(if self.unfinished.is_empty() { -1 } else { 0 });
        } else if self.rounds.is_multiple_of(ROUNDS_PER_WAIT) || self.looked_at.elapsed() > UNSEEN_MAX {
            self.wait(0);
        }
        self.rounds = self.rounds.wrapping_add(1);
        for (index, ring) in std::mem::take(&mut self.unfinished) {
            self.look_at(index, ring);
        }
        self.poll_round();
    }

    /// Handles what is ready, after waiting for it for `timeout_ms`.
    fn wait(&mut self, timeout_ms: i32) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        if let Err(error) = self.poller.wait(timeout_ms, |token| ready.push(token)) {
            tracing::error!("epoll failed: {error}; the worker ends");
            self.stop.store(true, Ordering::SeqCst);
        }
        for &token in &ready {
            match Source::from_token(token) {
                Source::Mailbox => self.read_mail(),
                Source::Kick { port: index, ring } => {
                    if let Some(port) = &self.network.ports[index] {
                        port.shared.counters.count(Counter::Kicks);
                    }
                    self.look_at(index, ring);
                }
            }
        }
        self.ready = ready;
        self.looked_at = Instant::now();
        self.stop_faulted();
    }

    /// Looks at a ring that has, or may have, been kicked.
    fn look_at(&mut self, index: usize, ring: usize) {
        let Some(port) = self.network.ports[index].as_mut() else { return };
        match &port.slots[ring].ring {
            Ring::Tx(_) => self.poll_ring(index, ring),
            Ring::Control(_) => match port.serve_control(ring) {
                Ok(true) => self.unfinished.push((index, ring)),
                Ok(false) => {}
                Err(error) => self.break_ring(index, ring, &error),
            },
            Ring::Rx(_) | Ring::Stopped { .. } | Ring::Broken { .. } => self.ignore_kicks(index, ring),
        }
    }

    /// Stops listening to a ring's kicks, so that nobody can wake us with them.
    fn ignore_kicks(&self, index: usize, ring: usize) {
        if let Some(kick) = self.network.ports[index].as_ref().and_then(|port| port.kick(ring)) {
            self.poller.remove(kick);
        }
    }

    /// Adds a transmit ring to those that are polled.
    fn poll_ring(&mut self, index: usize, ring: usize) {
        let Some(port) = self.network.ports[index].as_mut() else { return };
        let slot = &mut port.slots[ring];
        if let Ring::Tx(tx) = &slot.ring
            && !slot.polled
        {
            tx.quiet();
            slot.polled = true;
            self.polled.push(Polled { port: index, ring, empty_since: None, stays: true });
        }
    }

    /// Gives each port with work one burst. Each round begins with another ring, so that a port's rings take turns.
    fn poll_round(&mut self) {
        let count = self.polled.len();
        let mut all_stay = true;
        let mut at = if count > 1 { self.rounds as usize % count } else { 0 };
        for _ in 0..count {
            let mut polled = self.polled[at];
            polled.stays = self.poll_one(&mut polled);
            all_stay &= polled.stays;
            self.polled[at] = polled;
            at = if at + 1 == count { 0 } else { at + 1 };
        }
        if !all_stay {
            self.polled.retain(|polled| polled.stays);
        }
    }

    /// Gives one ring its burst, if its port has had none in this round. Returns whether it stays polled.
    fn poll_one(&mut self, polled: &mut Polled) -> bool {
        let Polled { port: index, ring, .. } = *polled;
        let Some(port) = self.network.ports[index].as_mut() else { return false };
        let slot = &mut port.slots[ring];
        // A ring that was stopped meanwhile, and perhaps started again, is no longer the one that was polled.
        let Ring::Tx(tx) = &mut slot.ring else { return false };
        if !slot.polled {
            return false;
        }
        if port.served_in == self.rounds {
            return true;
        }
        if let Err(error) = tx.take(&mut self.burst) {
            self.break_ring(index, ring, &error);
            return false;
        }
        if self.burst.is_empty() {
            // A ring whose memory has just gone away looks empty.
            self.stop_faulted();
            return self.stays_polled(polled);
        }
        polled.empty_since = None;
        port.served_in = self.rounds;
        if slot.enabled {
            self.network.forward(index, &self.burst, now_s());
        } else {
            // A disabled ring's frames are taken and discarded (vhost-user specification, ring states).
            port.shared.counters.add(Counter::TxFrames, self.burst.len() as u64);
            port.shared.counters.add(Counter::DropTxDisabled, self.burst.len() as u64);
        }
        self.complete(index, ring)
    }

    /// Returns the burst's buffers to their guest. Returns whether the ring stays polled.
    fn complete(&mut self, index: usize, ring: usize) -> bool {
        self.stop_faulted();
        let Some(port) = self.network.ports[index].as_mut() else { return false };
        let Ring::Tx(tx) = &mut port.slots[ring].ring else { return false };
        let called = tx.complete(&self.burst);
        port.shared.counters.add(Counter::Calls, u64::from(called));
        true
    }

    /// What to do with a ring that was found empty: poll on for a while, then arm it.
    fn stays_polled(&mut self, polled: &mut Polled) -> bool {
        let now = Instant::now();
        let since = *polled.empty_since.get_or_insert(now);
        if now.duration_since(since) < POLL_IDLE_MAX {
            std::hint::spin_loop();
            return true;
        }
        let Some(port) = self.network.ports[polled.port].as_mut() else { return false };
        let slot = &mut port.slots[polled.ring];
        let Ring::Tx(tx) = &mut slot.ring else { return false };
        match tx.arm() {
            Ok(false) => {
                slot.polled = false;
                false
            }
            Ok(true) => {
                tx.quiet();
                polled.empty_since = None;
                true
            }
            Err(error) => {
                self.break_ring(polled.port, polled.ring, &error);
                false
            }
        }
    }

    /// Stops the ports whose memory has gone away since the last look.
    #[inline]
    fn stop_faulted(&mut self) {
        let faults = sigbus::faults();
        if faults != self.faults_seen {
            self.faults_seen = faults;
            self.network.ports.iter_mut().flatten().filter(|port| port.memory_faulted()).for_each(Port::break_memory);
        }
    }

    fn break_ring(&mut self, index: usize, ring: usize, error: &RingError) {
        self.ignore_kicks(index, ring);
        if let Some(port) = self.network.ports[index].as_mut() {
            port.break_ring(ring, error);
        }
    }

    fn read_mail(&mut self) {
        // The quiescent point: after this line nothing of a guest's is in use.
        self.burst.release();
        for envelope in self.mailbox.take() {
            self.apply(envelope);
        }
        self.stop_faulted();
    }

    fn apply(&mut self, envelope: Envelope) {
        let (number, message, reply) = envelope.open();
        let mut next_avail = 0;
        if let Message::Attach(shared) = message {
            self.attach(number, Port::new(shared));
        } else if let Some(&index) = self.by_number.get(&number) {
            next_avail = self.apply_to(index, message);
        }
        reply.send(next_avail);
    }

    /// Applies a message to a port that exists.
    fn apply_to(&mut self, index: usize, message: Message) -> u16 {
        let Some(port) = self.network.ports[index].as_mut() else { return 0 };
        match message {
            Message::Attach(_) => {}
            Message::Features(features) => port.set_features(features),
            Message::Memory(mem) => port.set_memory(mem),
            Message::RingStart { index: ring, setup } => self.start_ring(index, ring, setup),
            Message::RingCall { index: ring, call } if ring < port.slots.len() => port.set_call(ring, call),
            Message::RingEnable { index: ring, on } if ring < port.slots.len() => port.enable(ring, on),
            Message::RingStop { index: ring } => return self.stop_ring(index, ring),
            Message::RingCall { .. } | Message::RingEnable { .. } => {}
            Message::Detach => self.detach(index),
        }
        0
    }

    fn attach(&mut self, number: u32, port: Port) {
        let free = self.network.ports.iter().position(Option::is_none);
        let index = free.unwrap_or(self.network.ports.len());
        if index >= PORTS_MAX {
            tracing::warn!(port = number, "not attached: the network has {PORTS_MAX} ports already");
            return;
        }
        if free.is_none() {
            self.network.ports.push(None);
        }
        self.network.ports[index] = Some(port);
        // False only for a port that is there already, and this place was free.
        let _ = self.network.switch.add_port(port_id(index));
        self.by_number.insert(number, index);
    }

    fn detach(&mut self, index: usize) {
        let rings = self.network.ports[index].as_ref().map_or(0, |port| port.slots.len());
        for ring in 0..rings {
            self.stop_ring(index, ring);
        }
        let _ = self.network.switch.remove_port(port_id(index));
        if let Some(port) = self.network.ports[index].take() {
            self.by_number.remove(&port.shared.number);
        }
    }

    fn start_ring(&mut self, index: usize, ring: usize, setup: RingSetup) {
        self.stop_ring(index, ring);
        let Some(port) = self.network.ports[index].as_mut().filter(|port| ring < port.slots.len()) else { return };
        port.start(ring, setup);
        if !matches!(port.slots[ring].ring, Ring::Tx(_) | Ring::Control(_)) {
            return;
        }
        let Some(kick) = port.kick(ring) else { return };
        if let Err(error) = self.poller.add(kick, Trigger::Edge, Source::Kick { port: index, ring }.token()) {
            tracing::warn!(port = port.shared.number, ring, "the ring's kick cannot be watched: {error}");
        }
        // The guest may have made buffers available, and kicked, before we listened.
        self.look_at(index, ring);
    }

    fn stop_ring(&mut self, index: usize, ring: usize) -> u16 {
        self.ignore_kicks(index, ring);
        self.polled.retain(|polled| (polled.port, polled.ring) != (index, ring));
        let port = self.network.ports[index].as_mut().filter(|port| ring < port.slots.len());
        port.map_or(0, |port| port.stop(ring))
    }
}

impl Drop for Worker {
    /// However the worker ends, no session may wait for it, and the supervisor hears of it.
    fn drop(&mut self) {
        self.mailbox.close();
        // Can only fail when the counter is full, and nobody else writes to it.
        let _ = self.ended.write(1);
    }
}

/// Seconds of a monotonic clock, cheap and coarse: what ageing needs.
fn now_s() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |time| time.tv_sec() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::mailbox::PortMailbox;

    #[test]
    fn the_end_of_a_worker_is_heard_by_all_who_wait() {
        let worker = Worker::new(0).unwrap().spawn("worker-test").unwrap();
        let poller = Poller::new().unwrap();
        poller.add(worker.ended_fd(), Trigger::Level, 7).unwrap();
        let mut tokens = Vec::new();
        poller.wait(0, |token| tokens.push(token)).unwrap();
        assert!(tokens.is_empty(), "it runs");
        worker.stop.store(true, Ordering::SeqCst);
        worker.mailbox.ring_bell();
        poller.wait(10_000, |token| tokens.push(token)).unwrap();
        assert_eq!(tokens, [7]);
        assert!(PortMailbox::new(0, worker.mailbox()).post(Message::Detach).is_err());
    }
}
