//! Endpoints of guests: what they send from, each with a socket of the host's that stands for it. UDP and echo have a
//! table of them each.
//!
//! Theory of operation. A guest's packet finds its endpoint by a key, or makes one; what it says goes out from the
//! guest's memory by the endpoint's [`Carrier`]. What comes is read when there is room for it among the frames for
//! guests, and waits in its socket until then.
//!
//! An endpoint ends when neither side has used it for as long as its protocol says; that something has become of what
//! was sent is no use of it (RFC 5508, REQ-6). One more than there may be takes the place of the one of the guest's own
//! that was used the longest ago, to the second; who has none is refused, or takes another's place, as
//! [`Endpoint::gives_way`] says.
//!
//! Bounds: those that [`Endpoint::BOUNDS`] has, and as many sockets as the process can have ([`super::sockets`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use super::carrier::{Carrier, Load, Original};
use super::id::{Id, Kind};
use super::out::Guest;
use super::packet::Packet;
use super::policy::Policy;
use super::tcp::{Surroundings, Turnover};
use crate::metrics::Counter;
use crate::ring::Gather;
use crate::switch::PortId;
use crate::sys::errqueue::Lost;
use crate::sys::net::{self, Received};
use crate::sys::poller::Ready;

/// Nanoseconds.
pub(super) const SECOND: u64 = 1_000_000_000;
/// Times that one endpoint is read before the next one is.
const READS_MAX: usize = 16;
/// Endpoints that are ended in one go: to close their sockets takes the time that others' frames wait.
const SWEPT_MAX: usize = 256;
/// The longest that may come in one go.
const RECEIVED_MAX: usize = 65_535;

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
pub(super) fn no_socket(error: &io::Error) -> Counter {
    match error.raw_os_error() {
        // The host has no such protocol.
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => Counter::DropRxNotCarried,
        _ => Counter::DropRxFlowLimit,
    }
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
    /// What a packet is counted as that gets none; [`Counter::DropRxFlowLimit`] if it might get one later.
    fn socket(key: &Self::Key) -> Result<OwnedFd, Counter>;

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

    /// Reads what has come. Returns whether that was anything, and whether there may be more.
    fn read(&self, room: &mut [u8], world: &mut Surroundings<'_>) -> (bool, bool) {
        let mut has_come = false;
        for _ in 0..READS_MAX {
            match net::receive_datagrams(&self.carrier.fd, room) {
                Ok(received) => {
                    has_come = true;
                    self.endpoint.deliver(self.guest, &received, &mut room[..received.len], world);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (has_come, false),
                // What became of something that was sent, which is told elsewhere.
                Err(_) => {}
            }
        }
        (has_come, true)
    }
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
    swept_at: u64,
    pub(super) gather: Gather,
    turnover: Turnover,
    /// Where is received what comes.
    room: Vec<u8>,
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
            swept_at: 0,
            gather: Gather::default(),
            turnover: Turnover::default(),
            room: Vec::new(),
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
        let index = match self.by_key.get(&key) {
            Some(&index) => index,
            None => self.open(guest, key, world)?,
        };
        let Self { slots, used, gather, .. } = self;
        let Some(entry) = slots[index as usize].entry.as_mut() else { return Ok(()) };
        if entry.guest.port != guest.port {
            return Err(Counter::DropRxForbidden);
        }
        entry.guest = guest;
        entry.touch(index, used, world.now);
        entry.endpoint.will_send(load.packet, to);
        let Entry { endpoint, carrier, .. } = &mut **entry;
        carrier.send((guest, &*endpoint), (load, to), gather, world)
    }

    fn open(&mut self, guest: Guest, key: E::Key, world: &mut Surroundings<'_>) -> Result<u32, Counter> {
        world.efforts.is_dear = true;
        if self.used.count(guest.port) >= E::BOUNDS.per_guest || self.by_key.len() >= E::BOUNDS.all {
            self.remove(E::gives_way(&self.used, guest.port).ok_or(Counter::DropRxFlowLimit)?);
        }
        let carrier = match (self.carrier(guest.port, &key, world), self.used.oldest(guest.port)) {
            (Err(Counter::DropRxFlowLimit), Some(oldest)) => {
                // There are too many of something: the guest's oldest may give it up.
                self.remove(oldest);
                self.carrier(guest.port, &key, world)?
            }
            (made, _) => made?,
        };
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

    fn carrier(&self, port: PortId, key: &E::Key, world: &Surroundings<'_>) -> Result<Carrier, Counter> {
        let ticket = world.sockets.take(self.used.count(port)).ok_or(Counter::DropRxFlowLimit)?;
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
        let Some(slot) = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation) else {
            return;
        };
        let Some(entry) = &mut slot.entry else { return };
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
        for _ in 0..self.ready.len() {
            if !world.out.has_room() {
                return;
            }
            let Some(id) = self.ready.pop_front() else { return };
            let slot = &mut self.slots[id.index as usize];
            let Some(entry) = slot.entry.as_mut().filter(|_| slot.generation == id.generation) else { continue };
            self.room.resize(RECEIVED_MAX, 0);
            world.efforts.note(entry.guest.port);
            let (has_come, has_more) = entry.read(&mut self.room, world);
            entry.is_ready = has_more;
            if has_more {
                self.ready.push_back(id);
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

    /// When [`Self::sweep`] is due next.
    pub(super) fn due(&self) -> Option<u64> {
        (!self.by_key.is_empty()).then_some(self.swept_at + E::BOUNDS.sweep_ns)
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
