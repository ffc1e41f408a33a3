//! What all workers of a network share: its switch, and the way to every port.
//!
//! Theory of operation. Each port belongs to one worker, which takes what the guest sends. Whom a frame is for is said
//! by the one [`Switch`] of the network, under a lock that is taken at most once for a burst, and for most bursts not
//! at all (see [`crate::switch::Recent`]). To the receiver leads a [`Receiver`], a guest's rings or the uplink, which
//! any worker may lock. Both locks are held for one burst at most, never both at once, and never while waiting for
//! anything else.
//!
//! A worker keeps its own list of the receivers and makes a new one when [`Network::version`] has changed, that
//! is when a port has come or gone. A receiver outlives its port in such a list for a moment; it is empty then.

use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use super::desk::Desk;
use super::nat::{NatHalf, NatReader};
use super::receiving::{Delivery, ReceivingHalf, Workshop};
use super::sender::{Origin, Sender};
use super::uplink::{Reader, Stations, UplinkHalf};
use crate::config::{Security, Subnet6};
use crate::frame::ethernet::MacAddr;
use crate::ring::mailbox::{Mailbox, PortShared};
use crate::switch::guard::{self, Claims, Guard};
use crate::switch::{Losses, PORTS_MAX, PortId, SubnetFilter, Switch};

/// The switch's name for the port in place `index`, which is below `PORTS_MAX`.
pub(super) fn port_id(index: usize) -> PortId {
    PortId(index as u16)
}

/// What a port receives with.
#[derive(Clone, Debug)]
pub(super) enum Receiver {
    /// A guest's rings.
    Guest(Arc<ReceivingHalf>),
    /// The way out of the network.
    Uplink(Arc<UplinkHalf>),
    /// The gateway.
    Nat(Arc<NatHalf>),
}

impl Receiver {
    /// The port's number.
    fn number(&self) -> u32 {
        match self {
            Receiver::Guest(half) => half.number(),
            Receiver::Uplink(half) => half.number(),
            Receiver::Nat(half) => half.number(),
        }
    }

    /// Gives it the frames of a burst that `wanted` has bits for. Returns those that may wait and found no room.
    #[inline]
    pub(super) fn give(&self, delivery: &Delivery<'_>, wanted: u32, workshop: &mut Workshop) -> u32 {
        match self {
            Receiver::Guest(half) => half.give(delivery, wanted, workshop),
            Receiver::Uplink(half) => {
                half.give(delivery, wanted, workshop);
                0
            }
            Receiver::Nat(half) => {
                half.give(delivery, wanted);
                0
            }
        }
    }

    /// Counts so many frames as dropped, which have waited for room: only a guest's rings have them wait.
    pub(super) fn refuse(&self, frames: u32) {
        if let Receiver::Guest(half) = self {
            half.refuse(frames);
        }
    }
}

/// What a network is made of, apart from its guests.
#[derive(Debug, Default)]
pub struct Parts {
    /// The way out.
    pub uplink: Option<Arc<UplinkHalf>>,
    /// The gateway to what is beyond the host.
    pub nat: Option<Arc<NatHalf>>,
    /// What is answered here.
    pub services: Option<Arc<Desk>>,
    /// What keeps guests' frames in the network's subnets.
    pub filter: Option<SubnetFilter>,
    /// The prefixes in which guests make addresses of their own.
    pub prefixes: Vec<Subnet6>,
    /// Addresses that are the host's own, and no guest's.
    pub reserved: Vec<Ipv6Addr>,
}

/// A port's place on the network.
#[derive(Debug)]
struct Place {
    receiver: Receiver,
    /// The first address that its guest has sent from.
    met: Option<MacAddr>,
    /// Those that it has sent from last.
    stations: Vec<MacAddr>,
}

impl Place {
    fn new(receiver: Receiver) -> Self {
        Self { receiver, met: None, stations: Vec::new() }
    }

    /// The address that the user has declared for its guest.
    fn declared(&self) -> Option<MacAddr> {
        if let Receiver::Guest(half) = &self.receiver { half.declared_mac() } else { None }
    }
}

/// Addresses of one port that an uplink hears frames for, beside the declared one: those of a guest that has guests of
/// its own. What others there may be hear from the LAN what is for all.
const STATIONS_PER_PORT_MAX: usize = 64;

/// One Ethernet segment.
#[derive(Debug)]
pub struct Network {
    switch: Mutex<Switch>,
    losses: Arc<Losses>,
    /// By [`PortId`].
    places: RwLock<Vec<Option<Place>>>,
    version: AtomicU64,
    workers: Mutex<Vec<Arc<Mailbox>>>,
    origin: Instant,
    parts: Parts,
    /// The IPv6 addresses that guests have.
    claims: Arc<Claims>,
    /// The uplink's place.
    uplink_at: OnceLock<usize>,
    /// The gateway's place.
    nat_at: OnceLock<usize>,
}

impl Network {
    /// A network without ports. `seed` makes the address table's order unpredictable to guests.
    pub fn new(seed: u64) -> Arc<Self> {
        Self::with(Parts::default(), seed)
    }

    /// The same, with what else the network is made of.
    pub fn with(parts: Parts, seed: u64) -> Arc<Self> {
        let switch = Switch::new(seed);
        let network = Self {
            losses: switch.losses(),
            switch: Mutex::new(switch),
            places: RwLock::default(),
            version: AtomicU64::new(0),
            workers: Mutex::default(),
            origin: Instant::now(),
            uplink_at: OnceLock::new(),
            nat_at: OnceLock::new(),
            claims: Arc::default(),
            parts,
        };
        let uplink = network.parts.uplink.clone();
        network.services().and_then(|desk| desk.settings().claims_mac()).map(|mac| network.claims.reserve_mac(mac));
        let server = network.services().and_then(|desk| desk.settings().v6.as_ref());
        let answers = server.into_iter().flat_map(|v6| v6.address.into_iter().chain([v6.link_local]));
        for address in answers.chain(network.parts.reserved.iter().copied()) {
            // False for one that both have.
            network.claims.reserve(address);
        }
        if let Some(index) = uplink.and_then(|half| network.add_port(Receiver::Uplink(half))) {
            network.switch().set_crowd(port_id(index));
            network.uplink_at.get_or_init(|| index);
        }
        if let Some(half) = network.parts.nat.clone() {
            let mac = half.mac();
            if let Some(index) = network.add_port(Receiver::Nat(half)) {
                network.set_host(mac, index);
                network.nat_at.get_or_init(|| index);
            }
        }
        Arc::new(network)
    }

    /// The addresses that guests have. After a change of those that are declared its workers have to be woken.
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// What the worker with this number reads of the uplink, if there is one with a queue for it.
    pub(super) fn reader(&self, worker: usize) -> Option<Reader> {
        Reader::new(self.parts.uplink.clone()?, worker, *self.uplink_at.get()?, self)
    }

    /// What the worker with this number reads of the gateway, if there is one.
    pub(super) fn nat_reader(&self, worker: usize) -> Option<NatReader> {
        NatReader::new(self.parts.nat.clone()?, worker, *self.nat_at.get()?)
    }

    /// What keeps guests' frames in the network's subnets.
    pub(super) fn filter(&self) -> Option<&SubnetFilter> {
        self.parts.filter.as_ref()
    }

    /// What holds a port's guest to its own addresses, if anything does.
    pub(super) fn guard(&self, shared: &PortShared) -> Option<Guard> {
        let Security { mac, ip } = shared.security;
        let serves_addresses = self.services().is_some_and(|desk| desk.settings().v4.is_some());
        let settings = guard::Settings {
            mac: shared.declared_mac.map(MacAddr),
            lock_mac: mac,
            lock_ip: ip && serves_addresses,
            // Where others than our guests would believe them.
            refuse_servers: self.services().is_some() || ip && self.parts.uplink.is_some(),
        };
        let is_needed = mac || ip || settings.refuse_servers;
        is_needed.then(|| {
            let mut guard = Guard::new(settings, self.claims.clone());
            guard.set_prefixes(&self.parts.prefixes);
            guard
        })
    }

    /// Whether frames of a sender are judged by more than their Ethernet headers.
    pub(super) fn looks_into(&self, sender: &Sender) -> bool {
        let by_guard = sender.guard.as_ref().is_some_and(Guard::looks_beyond_ethernet);
        by_guard || self.filter().is_some() || (sender.origin == Origin::Guest && self.services().is_some())
    }

    /// What is answered here.
    pub fn services(&self) -> Option<&Desk> {
        self.parts.services.as_deref()
    }

    /// Nanoseconds of a monotonic clock that all workers share.
    #[inline]
    pub(super) fn now_ns(&self) -> u64 {
        let elapsed = self.origin.elapsed();
        elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }

    /// One more worker serves the network. Returns its number.
    pub(super) fn enlist(&self, mailbox: Arc<Mailbox>) -> usize {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.push(mailbox);
        workers.len() - 1
    }

    /// Lets every worker look around.
    pub(super) fn ring_bells(&self) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|mailbox| mailbox.ring_bell());
    }

    pub(super) fn switch(&self) -> MutexGuard<'_, Switch> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn losses(&self) -> &Arc<Losses> {
        &self.losses
    }

    /// Changes when a port comes or goes.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What ports receive with, by port.
    pub(super) fn receivers(&self) -> Vec<Option<Receiver>> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.iter().map(|place| place.as_ref().map(|place| place.receiver.clone())).collect()
    }

    /// Gives a port a place. `None` when there are [`PORTS_MAX`] already.
    pub(super) fn add_port(&self, receiver: Receiver) -> Option<usize> {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let index = places.iter().position(Option::is_none).unwrap_or(places.len());
        if index >= PORTS_MAX {
            return None;
        }
        if index == places.len() {
            places.push(None);
        }
        places[index] = Some(Place::new(receiver));
        // False only for a port that is there already, and this place was free.
        let _ = self.switch().add_port(port_id(index));
        self.tell_uplink(&places);
        self.version.fetch_add(1, Ordering::Release);
        Some(index)
    }

    /// The port in this place is a guest's, and belongs to the worker with this number.
    pub(super) fn introduce(&self, index: usize, worker: usize, shared: &PortShared) {
        self.parts.nat.iter().for_each(|half| half.port_came(port_id(index), worker, shared));
    }

    /// Takes a port off the network: from now on no verdict names it.
    pub(super) fn remove_port(&self, index: usize) {
        // While its place is still its own, and without a lock: whoever has the gateway's may want to look around.
        self.parts.nat.iter().for_each(|half| half.port_ended(port_id(index)));
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let _ = self.switch().remove_port(port_id(index));
        if let Some(place) = places.get_mut(index) {
            *place = None;
        }
        self.parts.uplink.iter().for_each(|half| half.port_ended(port_id(index)));
        self.tell_uplink(&places);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Tells the uplink whose frames it is to bring.
    fn tell_uplink(&self, places: &[Option<Place>]) {
        let Some(half) = &self.parts.uplink else { return };
        let mut declared: Vec<_> = places.iter().flatten().filter_map(Place::declared).collect();
        let learned = places.iter().flatten().flat_map(|place| &place.stations);
        let mut heard: Vec<_> = learned.chain(&declared).copied().collect();
        for list in [&mut heard, &mut declared] {
            list.sort_unstable();
            list.dedup();
        }
        half.set_stations(&Stations { heard, declared });
    }

    /// Whether there is an uplink.
    pub(super) fn has_uplink(&self) -> bool {
        self.parts.uplink.is_some()
    }

    /// Whether there is a gateway.
    pub(super) fn has_nat(&self) -> bool {
        self.parts.nat.is_some()
    }

    /// Tells the uplink of the addresses that ports have got and lost.
    pub(super) fn follow_stations(&self) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let mut switch = self.switch();
        let mut is_changed = false;
        for (index, place) in places.iter_mut().enumerate() {
            let Some(place) = place.as_mut().filter(|place| matches!(place.receiver, Receiver::Guest(_))) else {
                continue;
            };
            if switch.is_changed(port_id(index)) {
                let stations = switch.take_changed(port_id(index), STATIONS_PER_PORT_MAX);
                place.stations = stations.into_iter().map(MacAddr).collect();
                is_changed = true;
            }
        }
        drop(switch);
        if is_changed {
            self.tell_uplink(&places);
        }
    }

    /// The uplink in place `index` has a device, on which the host has this address.
    pub(super) fn set_host(&self, mac: MacAddr, index: usize) {
        self.switch().set_host(mac.0, port_id(index));
        // What was decided before, by whoever decides without the switch.
        self.losses.count_all();
    }

    /// Notes the address that the guest of port `index` sends from. Returns the number of another port whose guest
    /// sends from it too.
    pub(super) fn meet(&self, index: usize, mac: MacAddr) -> Option<u32> {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let twin = places.iter().flatten().find(|place| place.met == Some(mac)).map(|place| place.receiver.number());
        if let Some(Some(place)) = places.get_mut(index) {
            place.met = Some(mac);
        }
        self.parts.nat.iter().for_each(|half| half.met(port_id(index), mac));
        twin
    }
}
