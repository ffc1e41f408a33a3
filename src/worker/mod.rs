//! A worker: a thread that polls rings while there is work and sleeps when there is none.
//!
//! Theory of operation. A network has one worker or several, and each port belongs to one of them. A transmit ring is
//! either polled, and then its guest is told that it need not kick, or armed, and then its kick descriptor is watched.
//! A kick makes it polled; when it has been empty for as long as its [`patience`] says it is armed again, with one more
//! look after the arming. With no ring polled the worker sleeps in epoll without a timeout, so a quiet network costs
//! nothing; with some, it still looks at epoll every [`ROUNDS_PER_WAIT`] rounds, and at least every [`UNSEEN_MAX_NS`],
//! so a kick or a session's message is never starved. A round gives each port with work one burst, from its rings in
//! turn: a busy guest delays the others by one burst, not more, however many queues it has.
//!
//! Mail from sessions is applied between rounds, when no pointer into any guest's memory is held: that is the quiescent
//! point that [`crate::ring::mailbox`] promises. The clock is read once a turn.

mod desk;
mod forward;
mod handle;
mod mail;
mod moderation;
mod nat;
mod network;
mod patience;
mod port;
mod receiving;
mod sender;
mod turns;
mod uplink;
mod waiting;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::metrics::{Counter, WorkerCounters};
use crate::ring::mailbox::Mailbox;
use crate::ring::{Burst, HEAD_MAX, RingError};
use crate::switch::PortId;
use crate::sys::poller::{Poller, Trigger};
use crate::sys::sigbus;

pub use desk::Desk;
use forward::Forwarder;
pub use handle::{STOP_MAX_MS, WorkerHandle};
pub use nat::NatHalf;
use nat::NatReader;
pub use network::{Network, Parts};
use port::{Port, Ring, Slot};
use turns::Turns;
use uplink::Reader;
pub use uplink::UplinkHalf;

/// Rounds of polling between two looks at what else is ready.
const ROUNDS_PER_WAIT: u32 = 16;
/// How long what else is ready may go unseen while bursts are long, in nanoseconds: a guest that wakes up waits so
/// long, and one burst.
const UNSEEN_MAX_NS: u64 = 100_000;

/// How long the worker polls in vain before it lets others have the processor between two rounds, in nanoseconds.
const SPIN_NS: u64 = 5_000;

const _: () = assert!(HEAD_MAX >= crate::frame::FRAME_HEAD_MAX, "what is judged is what was copied");

/// What may wake the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A session has sent mail, or the worker should end.
    Mailbox,
    /// Frames may have come in from the uplink.
    Uplink,
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
            Self::Uplink => u64::MAX - 1,
            Self::Kick { port, ring } => ((port as u64) << 32) | ring as u64,
        }
    }

    fn from_token(token: u64) -> Self {
        match token {
            u64::MAX => Self::Mailbox,
            token if token == u64::MAX - 1 => Self::Uplink,
            token => Self::Kick { port: (token >> 32) as usize, ring: (token & 0xffff_ffff) as usize },
        }
    }
}

/// A ring that is being polled.
#[derive(Clone, Copy, Debug)]
struct Polled {
    port: usize,
    ring: usize,
    /// When it was first seen empty since it last had work.
    empty_since_ns: Option<u64>,
    /// Whether it is still to be polled after this round.
    stays: bool,
}

/// What forwards the frames of some of a network's ports.
pub struct Worker {
    mailbox: Arc<Mailbox>,
    stop: Arc<AtomicBool>,
    ended: Arc<EventFd>,
    counters: Arc<WorkerCounters>,
    poller: Poller,
    network: Arc<Network>,
    forwarder: Forwarder,
    /// By place in the network: the ports of this worker.
    ports: Vec<Option<Port>>,
    /// Where each of them is, by [`PortShared::number`].
    by_number: HashMap<u32, usize>,
    polled: Vec<Polled>,
    /// Its queue of the network's uplink, if there is one.
    reader: Option<Reader>,
    /// Its engine of the network's gateway, if there is one, and whose turn it is then.
    nat: Option<NatReader>,
    turns: Option<Turns>,
    /// Whether the uplink had frames when it was last read, and may have more.
    reads_on: bool,
    /// Control queues, by port and ring, that have had their turn and may hold more commands.
    unfinished: Vec<(usize, usize)>,
    burst: Burst,
    /// Another, for when that one waits: kept for its room only.
    spare: Option<Burst>,
    /// [`sigbus::faults`] when it was last looked at.
    faults_seen: u64,
    /// [`Network::now_ns`] at the end of the last turn.
    now_ns: u64,
    /// Whether this turn has found something to do.
    worked: bool,
    /// When a turn last had.
    worked_at_ns: u64,
    /// When it last looked at what is ready.
    looked_at_ns: u64,
    /// Rounds so far.
    rounds: u32,
    /// Tokens of what is ready: kept for its capacity only.
    ready: Vec<u64>,
}

impl Worker {
    /// One more worker of a network, without ports.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(network: Arc<Network>) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let poller = Poller::new()?;
        poller.add(mailbox.wake_fd(), Trigger::Level, Source::Mailbox.token())?;
        let number = network.enlist(mailbox.clone());
        let reader = network.reader(number);
        if let Some(reader) = &reader {
            reader.watch(&poller, Source::Uplink.token(), &network);
        }
        let nat = network.nat_reader(number);
        if let Some(nat) = &nat {
            nat.watch(&poller, Source::Uplink.token())?;
        }
        Ok(Self {
            reader,
            turns: nat.is_some().then(Turns::new),
            nat,
            reads_on: false,
            mailbox,
            stop: Arc::new(AtomicBool::new(false)),
            ended: Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?),
            counters: Arc::default(),
            poller,
            forwarder: Forwarder::new(network.clone(), number),
            ports: Vec::new(),
            by_number: HashMap::new(),
            polled: Vec::new(),
            unfinished: Vec::new(),
            burst: Burst::default(),
            spare: None,
            faults_seen: sigbus::faults(),
            now_ns: network.now_ns(),
            worked: false,
            worked_at_ns: 0,
            looked_at_ns: 0,
            rounds: 0,
            ready: Vec::new(),
            network,
        })
    }

    /// Lets the worker run in a thread named `name`.
    ///
    /// # Errors
    /// When the process is out of threads.
    pub fn spawn(mut self, name: &str) -> io::Result<WorkerHandle> {
        let (mailbox, stop, ended) = (self.mailbox.clone(), self.stop.clone(), self.ended.clone());
        let counters = self.counters.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !self.stop.load(Ordering::Relaxed) {
                self.turn();
            }
        })?;
        Ok(WorkerHandle { mailbox, stop, ended, counters, thread })
    }

    /// Where sessions post.
    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Gives each polled ring one burst; sleeps first while none is polled.
    pub fn turn(&mut self) {
        self.worked = false;
        if self.polled.is_empty() && !self.reads_on {
            // Asleep we hold nobody's memory.
            self.burst.release();
            if self.unfinished.is_empty() {
                self.wait(-1);
                WorkerCounters::add(&self.counters.wakeups, 1);
            } else {
                self.wait(0);
            }
        } else if self.rounds.is_multiple_of(ROUNDS_PER_WAIT) || self.now_ns - self.looked_at_ns > UNSEEN_MAX_NS {
            self.wait(0);
        }
        self.rounds = self.rounds.wrapping_add(1);
        for (index, ring) in std::mem::take(&mut self.unfinished) {
            self.look_at(index, ring);
        }
        self.poll_round();
        self.reads_on |= self.nat.as_ref().is_some_and(NatReader::has_any);
        if self.reads_on {
            self.read_uplink();
        }
        self.account();
    }

    /// Reads the uplink's next frames.
    fn read_uplink(&mut self) {
        let Self { reader, nat, turns, ports, forwarder, now_ns, .. } = self;
        let charge = |port: PortId, ns| {
            if let (Some(turns), Some(Some(port))) = (&turns, ports.get_mut(usize::from(port.0))) {
                turns.charge(&mut port.account, ns);
            }
        };
        // Looking for more may have made what no descriptor tells of: the end of a connection.
        let (frames, has_more) = match (reader, nat) {
            (Some(reader), _) => (reader.turn(forwarder, *now_ns), false),
            (None, Some(nat)) => (nat.turn(forwarder, *now_ns, charge), nat.has_any()),
            (None, None) => return,
        };
        let has_read = frames > 0;
        self.reads_on = has_read || has_more;
        self.worked |= has_read;
        WorkerCounters::add(&self.counters.packets, frames as u64);
        WorkerCounters::add(&self.counters.batches, u64::from(has_read));
        self.stop_faulted();
    }

    /// Notes what the turn took.
    #[inline]
    fn account(&mut self) {
        let now_ns = self.network.now_ns();
        let spent = if self.worked { &self.counters.busy_ns } else { &self.counters.idle_ns };
        WorkerCounters::add(spent, now_ns - self.now_ns);
        self.now_ns = now_ns;
        if self.worked {
            self.worked_at_ns = now_ns;
        } else if now_ns - self.worked_at_ns > SPIN_NS {
            // Perhaps it is a guest who would work on this processor, and whose frames we poll for.
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Handles what is ready, after waiting for it for `timeout_ms`.
    fn wait(&mut self, timeout_ms: i32) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        if let Err(error) = self.poller.wait(timeout_ms, |token| ready.push(token)) {
            tracing::error!("epoll failed: {error}; the worker ends");
            self.stop.store(true, Ordering::SeqCst);
        }
        if timeout_ms != 0 {
            // Time asleep is nobody's.
            self.now_ns = self.network.now_ns();
        }
        self.looked_at_ns = self.now_ns;
        self.worked |= !ready.is_empty();
        for &token in &ready {
            match Source::from_token(token) {
                Source::Mailbox => self.read_mail(),
                Source::Uplink => self.reads_on = true,
                Source::Kick { port: index, ring } => self.take_kick(index, ring),
            }
        }
        self.ready = ready;
        self.stop_faulted();
    }

    fn take_kick(&mut self, index: usize, ring: usize) {
        if let Some(port) = self.port_mut(index) {
            port.shared.counters.owner.count(Counter::Kicks);
        }
        let now_ns = self.now_ns;
        if let Some(slot) = self.port_mut(index).map(|port| &mut port.slots[ring])
            && !slot.polled
        {
            slot.patience.kicked(now_ns);
        }
        self.look_at(index, ring);
    }

    #[inline]
    fn port_mut(&mut self, index: usize) -> Option<&mut Port> {
        self.ports.get_mut(index)?.as_mut()
    }

    /// Looks at a ring that has, or may have, been kicked.
    fn look_at(&mut self, index: usize, ring: usize) {
        let Some(port) = self.port_mut(index) else { return };
        match &port.slots[ring].ring {
            Ring::Tx(_) => self.poll_ring(index, ring),
            Ring::Control(_) => match port.serve_control(ring) {
                Ok(true) => self.unfinished.push((index, ring)),
                Ok(false) => {}
                Err(error) => self.break_ring(index, ring, &error),
            },
            Ring::Rx | Ring::Stopped { .. } | Ring::Broken { .. } => self.ignore_kicks(index, ring),
        }
    }

    /// Stops listening to a ring's kicks, so that nobody can wake us with them.
    fn ignore_kicks(&self, index: usize, ring: usize) {
        if let Some(kick) = self.ports.get(index).and_then(Option::as_ref).and_then(|port| port.kick(ring)) {
            self.poller.remove(kick);
        }
    }

    /// Adds a transmit ring to those that are polled.
    fn poll_ring(&mut self, index: usize, ring: usize) {
        let Some(port) = self.port_mut(index) else { return };
        let slot = &mut port.slots[ring];
        if let Ring::Tx(tx) = &slot.ring
            && !slot.polled
        {
            tx.quiet();
            slot.polled = true;
            self.polled.push(Polled { port: index, ring, empty_since_ns: None, stays: true });
        }
    }

    /// Gives each port with work one burst. Each round begins with another ring, so that a port's rings take turns.
    fn poll_round(&mut self) {
        let count = self.polled.len();
        if let Some(turns) = &mut self.turns {
            turns.go_on(self.now_ns);
        }
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
        let Some(Some(port)) = self.ports.get_mut(index) else { return false };
        let slot = &mut port.slots[ring];
        // A ring that was stopped meanwhile, and perhaps started again, is no longer the one that was polled.
        let Ring::Tx(tx) = &mut slot.ring else { return false };
        if !slot.polled {
            return false;
        }
        if port.served_in == self.rounds {
            return true;
        }
        if slot.waiting.is_some() {
            return self.resume(index, ring);
        }
        if self.turns.as_mut().is_some_and(|turns| !turns.is_up(&mut port.account)) {
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
        polled.empty_since_ns = None;
        port.served_in = self.rounds;
        self.worked = true;
        let stays = self.forward(index, ring);
        self.charge(index);
        stays
    }

    /// Charges a port with what was dear in its burst.
    #[inline]
    fn charge(&mut self, index: usize) {
        let Self { turns: Some(turns), nat: Some(nat), ports, .. } = self else { return };
        let Some(Some(port)) = ports.get_mut(index) else { return };
        turns.sends(&mut port.account);
        turns.charge(&mut port.account, nat.dear_ns());
    }

    /// Forwards the burst and returns its buffers to their guest. Returns whether the ring stays polled.
    fn forward(&mut self, index: usize, ring: usize) -> bool {
        let frames = self.burst.len() as u64;
        WorkerCounters::add(&self.counters.packets, frames);
        WorkerCounters::add(&self.counters.batches, 1);
        let Some(Some(port)) = self.ports.get_mut(index) else { return false };
        let mut is_waiting = false;
        if port.slots[ring].enabled {
            let Port { sender, slots, .. } = port;
            let company = Some(&mut slots[ring].company);
            if let Some(left) = self.forwarder.forward(index, sender, company, &self.burst, self.now_ns) {
                let burst = std::mem::replace(&mut self.burst, self.spare.take().unwrap_or_default());
                slots[ring].waiting = Some(left.wait(burst, &self.forwarder, self.now_ns));
                is_waiting = true;
            }
        } else {
            // A disabled ring's frames are taken and discarded (vhost-user specification, ring states).
            port.shared.counters.owner.add(Counter::TxFrames, frames);
            port.shared.counters.owner.add(Counter::DropTxDisabled, frames);
        }
        self.stop_faulted();
        is_waiting || self.complete(index, ring)
    }

    /// Returns the burst's buffers to their guest. Returns whether the ring stays polled.
    fn complete(&mut self, index: usize, ring: usize) -> bool {
        let Some(Some(port)) = self.ports.get_mut(index) else { return false };
        let Ring::Tx(tx) = &mut port.slots[ring].ring else { return false };
        let called = tx.complete(&self.burst);
        port.shared.counters.owner.add_any(Counter::Calls, u64::from(called));
        true
    }

    /// Gives the burst that waits in a ring another try. Returns whether the ring stays polled.
    #[cold]
    fn resume(&mut self, index: usize, ring: usize) -> bool {
        let (now_ns, round) = (self.now_ns, self.rounds);
        let Some(Some(port)) = self.ports.get_mut(index) else { return false };
        port.served_in = round;
        let Slot { waiting: place, company, .. } = &mut port.slots[ring];
        let Some(mut waiting) = place.take() else { return true };
        let is_last = waiting.is_over(now_ns);
        if is_last {
            company.give_up(now_ns);
        }
        self.worked |= self.forwarder.try_again(&mut waiting, now_ns, is_last);
        let is_done = waiting.left == 0;
        if is_done {
            let mut spare = std::mem::replace(&mut self.burst, waiting.burst);
            spare.release();
            self.spare = Some(spare);
        } else {
            *place = Some(waiting);
        }
        self.stop_faulted();
        !is_done || self.complete(index, ring)
    }

    /// What to do with a ring that was found empty: poll on for a while, then arm it.
    fn stays_polled(&mut self, polled: &mut Polled) -> bool {
        let now_ns = self.now_ns;
        let since_ns = *polled.empty_since_ns.get_or_insert(now_ns);
        let Some(port) = self.port_mut(polled.port) else { return false };
        let slot = &mut port.slots[polled.ring];
        if now_ns - since_ns < slot.patience.poll_ns() {
            return true;
        }
        let Ring::Tx(tx) = &mut slot.ring else { return false };
        match tx.arm() {
            Ok(false) => {
                slot.polled = false;
                slot.patience.armed(since_ns);
                false
            }
            Ok(true) => {
                tx.quiet();
                polled.empty_since_ns = None;
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
            self.ports.iter_mut().flatten().filter(|port| port.memory_faulted()).for_each(Port::break_memory);
            // It may have been another worker's port, and that worker asleep.
            self.network.ring_bells();
        }
    }

    fn break_ring(&mut self, index: usize, ring: usize, error: &RingError) {
        self.ignore_kicks(index, ring);
        if let Some(port) = self.port_mut(index) {
            port.break_ring(ring, error);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::mailbox::{Message, PortMailbox};

    #[test]
    fn the_end_of_a_worker_is_heard_by_all_who_wait() {
        let worker = Worker::new(Network::new(0)).unwrap().spawn("worker-test").unwrap();
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
