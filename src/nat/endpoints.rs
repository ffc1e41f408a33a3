//! Endpoints of guests: what they send from, each with a socket of the host's that stands for it. UDP and echo have a
//! table of them each.
//!
//! Theory of operation. A guest's packet finds its endpoint by a key, or makes one; what it says goes out from the
//! guest's memory by the endpoint's [`Carrier`]. What comes is read when there is room for it among the frames for
//! guests, and waits in its socket until then.
//!
//! An endpoint ends when neither side has used it for as long as its protocol says; that something has become of what
//! was sent is no use of it (RFC 5508, REQ-6). One more than there may be, by our bounds or the process's, takes the
//! place of the one of the guest's own that was used the longest ago, to the second; who has none is refused, or takes
//! another's place, as [`Endpoint::gives_way`] says. Where the host has no memory, none gives way: that makes no room.
//!
//! What the host has no memory to read waits where it is, and is read a moment later.
//!
//! Bounds: those that [`Endpoint::BOUNDS`] has, and as many sockets as the process can have ([`super::sockets`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use super::SHORTAGE_NS;
use super::carrier::{Carrier, Departure, Load, Original};
use super::id::{Id, Kind};
use super::out::Guest;
use super::packet::Packet;
use super::policy::Policy;
use super::tcp::{Surroundings, Turnover};
use crate::metrics::Counter;
use crate::ring::{Bytes, Gather};
use crate::switch::PortId;
use crate::sys::datagrams::{Inbox, Received};
use crate::sys::errqueue::Lost;
use crate::sys::net;
use crate::sys::poller::Ready;

/// Nanoseconds.
pub(super) const SECOND: u64 = 1_000_000_000;
/// What is read of one endpoint before the next one is: so many messages.
const READS_MAX: usize = 16;
/// Endpoints that are ended in one go: to close their sockets takes the time that others' frames wait.
const SWEPT_MAX: usize = 256;

/// How many endpoints of a protocol there may be, and for how long.
pub(super) struct Bounds {
    /// Endpoints of one guest.
    pub(super) per_guest: usize,
    /// Endpoints of all guests together.
    pub(super) all: usize,
    /// How long an endpoint lives unused, in nanoseconds.
    pub(super) idle_ns: u64,
    /// How often it is looked for endpoints that have been unused for so long, in nanoseconds.
    pub(super) sweep_ns: u64,
}

/// What a packet is counted as that gets no socket.
fn no_socket(error: &io::Error) -> Counter {
    match error.raw_os_error() {
        // The host has no such protocol.
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => Counter::DropRxNotCarried,
        _ => Counter::DropRxFlowLimit,
    }
}

/// Whether there are as many of something as may be, so that one that is given up makes room.
fn are_too_many(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::EADDRINUSE))
}

/// What an endpoint is to its protocol.
pub(super) trait Endpoint: Debug + Sized {
    /// What says of a packet which endpoint it is from.
    type Key: Copy + Debug + Eq + Hash;
    /// What its socket is.
    const KIND: Kind;
    const BOUNDS: Bounds;

    fn new(key: Self::Key) -> Self;

    fn key(&self) -> Self::Key;

    /// The guest's address.
    fn address(&self) -> IpAddr;

    /// A socket that stands for such an endpoint.
    ///
    /// # Errors
    /// Those of socket(2), and of what makes it one that stands for the endpoint.
    fn socket(key: &Self::Key) -> io::Result<OwnedFd>;

    /// Which endpoint gives way to one more of a guest's on this port when there are as many as may be.
    fn gives_way(used: &Used, port: PortId) -> Option<u32>;

    /// A packet is about to be sent to `to` in the host's world.
    fn will_send(&mut self, _packet: &Packet, _to: &SocketAddr) {}

    /// What a packet was for the guest that was lost, and of which `sent` has come back; none: the guest is not told.
    fn original(&self, lost: &Lost, sent: &[u8], policy: &Policy) -> Option<Original>;

    /// Makes frames for the guest of what has come.
    fn deliver(&self, guest: Guest, received: &Received, bytes: &mut [u8], world: &mut Surroundings<'_>);
}

/// When endpoints were last used, in seconds, by port.
#[derive(Debug, Default)]
pub(super) struct Used(BTreeMap<PortId, BTreeSet<(u64, u32)>>);

impl Used {
    /// The endpoint of a port that was used the longest ago.
    pub(super) fn oldest(&self, port: PortId) -> Option<u32> {
        self.0.get(&port)?.first().map(|(_, index)| *index)
    }

    /// That of all ports.
    pub(super) fn oldest_of_all(&self) -> Option<u32> {
        self.0.values().filter_map(BTreeSet::first).min().map(|(_, index)| *index)
    }

    fn count(&self, port: PortId) -> usize {
        self.0.get(&port).map_or(0, BTreeSet::len)
    }

    fn of(&self, port: PortId) -> Vec<u32> {
        self.0.get(&port).into_iter().flatten().map(|(_, index)| *index).collect()
    }

    /// All that were last used before then.
    fn before(&self, limit_s: u64, most: usize) -> Vec<u32> {
        let old = self.0.values().flat_map(|its| its.range(..(limit_s, 0)));
        old.map(|(_, index)| *index).take(most).collect()
    }

    fn insert(&mut self, port: PortId, at: (u64, u32)) {
        self.0.entry(port).or_default().insert(at);
    }

    fn remove(&mut self, port: PortId, at: (u64, u32)) {
        if let Some(its) = self.0.get_mut(&port) {
            its.remove(&at);
            if its.is_empty() {
                self.0.remove(&port);
            }
        }
    }
}

/// An endpoint, and what each has.
#[derive(Debug)]
pub(super) struct Entry<E> {
    endpoint: E,
    guest: Guest,
    carrier: Carrier,
    /// When it was last used, in seconds.
    used_s: u64,
    /// Whether it is in line to be read.
    is_ready: bool,
}

impl<E: Endpoint> Entry<E> {
    fn touch(&mut self, index: u32, used: &mut Used, now: u64) {
        let now_s = now / SECOND;
        if self.used_s != now_s {
            used.remove(self.guest.port, (self.used_s, index));
            used.insert(self.guest.port, (now_s, index));
            self.used_s = now_s;
        }
    }

    /// Reads what has come. Returns whether that was anything, and what is left.
    fn read(&self, inbox: &mut Inbox, world: &mut Surroundings<'_>) -> (bool, Left) {
        let (mut has_come, mut left) = (false, READS_MAX);
        while left > 0 {
            let deliver =
                |received: &Received, bytes: &mut [u8]| self.endpoint.deliver(self.guest, received, bytes, world);
            match inbox.receive(&self.carrier.fd, left, deliver) {
                Ok(came) => {
                    has_come = true;
                    left -= came;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (has_come, Left::Nothing),
                Err(error) if net::is_out_of_memory(&error) => return (has_come, Left::Later),
                // What became of something that was sent, which is told elsewhere.
                Err(_) => left -= 1,
            }
        }
        (has_come, Left::More)
    }
}

/// What is left of what has come to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    More,
    /// The host has no memory to read it.
    Later,
}

#[derive(Debug)]
struct Slot<E> {
    generation: u32,
    entry: Option<Box<Entry<E>>>,
}

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Endpoints<E: Endpoint> {
    slots: Vec<Slot<E>>,
    free: Vec<u32>,
    by_key: HashMap<E::Key, u32>,
    used: Used,
    ready: VecDeque<Id>,
    /// Those that could not be read, and when they are read again.
    waiting: Vec<Id>,
    again_at: Option<u64>,
    swept_at: u64,
    pub(super) gather: Gather,
    turnover: Turnover,
    inbox: Inbox,
}

impl<E: Endpoint> Endpoints<E> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            used: Used::default(),
            ready: VecDeque::new(),
            waiting: Vec::new(),
            again_at: None,
            swept_at: 0,
            gather: Gather::default(),
            turnover: Turnover::default(),
            inbox: Inbox::default(),
        }
    }

    /// Sends a guest's packet to `to` in the host's world, from the endpoint that has this key.
    pub(super) fn send(
        &mut self,
        guest: Guest,
        key: E::Key,
        (load, to): (&Load<'_, '_>, &SocketAddr),
        world: &mut Surroundings<'_>,
    ) -> Result<(), Counter> {
        let id = self.prepare(guest, key, (load.packet, to), world)?;
        let Some((entry, gather)) = self.entry(id) else { return Err(Counter::DropRxFlowLimit) };
        let Entry { endpoint, carrier, .. } = entry;
        carrier.send((guest, &*endpoint), (load, to), gather, world)
    }

    /// Has an endpoint of this key for a guest's packet that is about to be sent to `to`.
    pub(super) fn prepare(
        &mut self,
        guest: Guest,
        key: E::Key,
        (packet, to): (&Packet, &SocketAddr),
        world: &mut Surroundings<'_>,
    ) -> Result<Id, Counter> {
        let index = match self.by_key.get(&key) {
            Some(&index) => index,
            None => self.open(guest, key, world)?,
        };
        let Self { slots, used, .. } = self;
        let slot = &mut slots[index as usize];
        let entry = slot.entry.as_mut().ok_or(Counter::DropRxFlowLimit)?;
        if entry.guest.port != guest.port {
            return Err(Counter::DropRxForbidden);
        }
        entry.guest = guest;
        entry.touch(index, used, world.now);
        entry.endpoint.will_send(packet, to);
        Ok(Id { index, generation: slot.generation })
    }

    /// Sends packets from the endpoint that was prepared for them. `bytes` has those of their frames; `ended` hears
    /// what became of each.
    pub(super) fn send_row<'a>(
        &mut self,
        id: Id,
        row: &[Departure],
        bytes: impl Fn(usize) -> Bytes<'a>,
        world: &mut Surroundings<'_>,
        mut ended: impl FnMut(usize, Result<(), Counter>),
    ) {
        let Some((entry, gather)) = self.entry(id) else {
            // It has had to give way meanwhile.
            return row.iter().for_each(|departure| ended(departure.frame, Err(Counter::DropRxFlowLimit)));
        };
        let Entry { endpoint, carrier, guest, .. } = entry;
        carrier.send_row((*guest, &*endpoint), row, bytes, (gather, world), ended);
    }

    fn entry(&mut self, id: Id) -> Option<(&mut Entry<E>, &mut Gather)> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        Some((slot.entry.as_mut()?, &mut self.gather))
    }

    fn open(&mut self, guest: Guest, key: E::Key, world: &mut Surroundings<'_>) -> Result<u32, Counter> {
        world.efforts.is_dear = true;
        if self.used.count(guest.port) >= E::BOUNDS.per_guest || self.by_key.len() >= E::BOUNDS.all {
            self.remove(E::gives_way(&self.used, guest.port).ok_or(Counter::DropRxFlowLimit)?);
        }
        let carrier = match (self.carrier(guest.port, &key, world), self.used.oldest(guest.port)) {
            (Err(error), Some(oldest)) if are_too_many(&error) => {
                self.remove(oldest);
                self.carrier(guest.port, &key, world)
            }
            (made, _) => made,
        };
        let carrier = carrier.map_err(|error| no_socket(&error))?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, entry: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = Id { index, generation: slot.generation };
        if world.poller.add_socket(&carrier.fd, id.token(E::KIND)).is_err() {
            self.free.push(index);
            return Err(Counter::DropRxFlowLimit);
        }
        let used_s = world.now / SECOND;
        slot.entry = Some(Box::new(Entry { endpoint: E::new(key), guest, carrier, used_s, is_ready: false }));
        self.by_key.insert(key, index);
        self.turnover.opened += 1;
        self.used.insert(guest.port, (used_s, index));
        Ok(index)
    }

    fn carrier(&self, port: PortId, key: &E::Key, world: &Surroundings<'_>) -> io::Result<Carrier> {
        let ticket = world.sockets.take(self.used.count(port)).ok_or(io::Error::from_raw_os_error(libc::EMFILE))?;
        Ok(Carrier::new(E::socket(key)?, ticket))
    }

    /// Forgets an endpoint, and returns it: its socket is closed when it is dropped.
    fn remove(&mut self, index: u32) -> Option<Box<Entry<E>>> {
        let slot = &mut self.slots[index as usize];
        let entry = slot.entry.take()?;
        slot.generation = Id::next_generation(slot.generation);
        self.free.push(index);
        self.by_key.remove(&entry.endpoint.key());
        self.turnover.closed += 1;
        self.used.remove(entry.guest.port, (entry.used_s, index));
        Some(entry)
    }

    /// Something has come to an endpoint, or has become of what it sent.
    pub(super) fn event(&mut self, id: Id, ready: Ready, world: &mut Surroundings<'_>) {
        let Some((entry, _)) = self.entry(id) else { return };
        world.efforts.note(entry.guest.port);
        if ready.failed {
            entry.carrier.hear(entry.guest, &entry.endpoint, world);
        }
        if !std::mem::replace(&mut entry.is_ready, true) {
            self.ready.push_back(id);
        }
    }

    /// Whether any endpoint may have something for its guest.
    pub(super) fn has_any(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Reads what has come, as long as there is room for it.
    pub(super) fn receive(&mut self, world: &mut Surroundings<'_>) {
        if self.again_at.is_some_and(|at| at <= world.now) {
            self.again_at = None;
            self.ready.extend(self.waiting.drain(..));
        }
        for _ in 0..self.ready.len() {
            if !world.out.has_room() {
                return;
            }
            let Some(id) = self.ready.pop_front() else { return };
            let slot = &mut self.slots[id.index as usize];
            let Some(entry) = slot.entry.as_mut().filter(|_| slot.generation == id.generation) else { continue };
            world.efforts.note(entry.guest.port);
            let (has_come, left) = entry.read(&mut self.inbox, world);
            entry.is_ready = left != Left::Nothing;
            match left {
                Left::Nothing => {}
                Left::More => self.ready.push_back(id),
                Left::Later => {
                    self.waiting.push(id);
                    self.again_at.get_or_insert(world.now + SHORTAGE_NS);
                }
            }
            if has_come {
                entry.touch(id.index, &mut self.used, world.now);
            }
        }
    }

    /// Ends what was not used for long; of many a part, and the rest is due at once.
    pub(super) fn sweep(&mut self, world: &mut Surroundings<'_>) {
        let idle = self.used.before(world.now.saturating_sub(E::BOUNDS.idle_ns) / SECOND, SWEPT_MAX);
        if idle.len() < SWEPT_MAX {
            self.swept_at = world.now;
        }
        for index in idle {
            self.remove(index).iter().for_each(|entry| world.efforts.note(entry.guest.port));
        }
    }

    /// Whether [`Self::sweep`] is due.
    pub(super) fn is_to_sweep(&self, now: u64) -> bool {
        self.sweep_at().is_some_and(|at| at <= now)
    }

    fn sweep_at(&self) -> Option<u64> {
        (!self.by_key.is_empty()).then_some(self.swept_at + E::BOUNDS.sweep_ns)
    }

    /// When [`Self::sweep`] or [`Self::receive`] is due next, if nothing happens before.
    pub(super) fn due(&self) -> Option<u64> {
        self.sweep_at().into_iter().chain(self.again_at).min()
    }

    /// How many endpoints there have been since this was last asked.
    pub(super) fn turnover(&mut self) -> Turnover {
        std::mem::take(&mut self.turnover)
    }

    /// A port has gone. Returns its endpoints.
    pub(super) fn port_ended(&mut self, port: PortId) -> Vec<Entry<E>> {
        self.used.of(port).into_iter().filter_map(|index| self.remove(index).map(|entry| *entry)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_a_ports_own_or_that_of_all() {
        let mut used = Used::default();
        let (a, b) = (PortId(1), PortId(2));
        for (port, at) in [(a, (7, 0)), (a, (5, 1)), (b, (3, 2)), (b, (9, 3))] {
            used.insert(port, at);
        }
        assert_eq!((used.oldest(a), used.oldest(b), used.oldest_of_all()), (Some(1), Some(2), Some(2)));
        assert_eq!((used.oldest(PortId(3)), used.count(PortId(3)), used.count(a)), (None, 0, 2));
        assert_eq!((used.before(5, 9), used.before(6, 9), used.of(b)), (vec![2], vec![1, 2], vec![2, 3]));
        used.remove(b, (3, 2));
        assert_eq!(used.oldest_of_all(), Some(1));
        used.remove(b, (9, 3));
        assert_eq!(used.0.len(), 1, "nothing is kept of a port that has none");
    }
}
