//! What all workers of a network share: its switch, and the way to every port.
//!
//! Theory of operation. Each port belongs to one worker, which takes what the guest sends. Whom a frame is for is said
//! by the one [`Switch`] of the network, under a lock that is taken at most once for a burst, and for most bursts not
//! at all (see [`crate::switch::Recent`]). To the receiver leads its [`ReceivingHalf`], which any worker may lock. Both
//! locks are held for one burst at most, never both at once, and never while waiting for anything else.
//!
//! A worker keeps its own list of the receiving halves and makes a new one when [`Network::version`] has changed, that
//! is when a port has come or gone. A half outlives its port in such a list for a moment; it is empty then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use super::receiving::ReceivingHalf;
use crate::frame::ethernet::MacAddr;
use crate::ring::mailbox::Mailbox;
use crate::switch::{Losses, PORTS_MAX, PortId, Switch};

/// The switch's name for the port in place `index`, which is below `PORTS_MAX`.
pub(super) fn port_id(index: usize) -> PortId {
    PortId(index as u16)
}

/// A port's place on the network.
#[derive(Debug)]
struct Place {
    half: Arc<ReceivingHalf>,
    /// The address that its guest sends from.
    mac: Option<MacAddr>,
}

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
}

impl Network {
    /// A network without ports. `seed` makes the address table's order unpredictable to guests.
    pub fn new(seed: u64) -> Arc<Self> {
        let switch = Switch::new(seed);
        Arc::new(Self {
            losses: switch.losses(),
            switch: Mutex::new(switch),
            places: RwLock::default(),
            version: AtomicU64::new(0),
            workers: Mutex::default(),
            origin: Instant::now(),
        })
    }

    /// Nanoseconds of a monotonic clock that all workers share.
    #[inline]
    pub(super) fn now_ns(&self) -> u64 {
        let elapsed = self.origin.elapsed();
        elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }

    /// One more worker serves the network.
    pub(super) fn enlist(&self, mailbox: Arc<Mailbox>) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(mailbox);
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

    /// The receiving halves, by port.
    pub(super) fn halves(&self) -> Vec<Option<Arc<ReceivingHalf>>> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.iter().map(|place| place.as_ref().map(|place| place.half.clone())).collect()
    }

    /// Gives a port a place. `None` when there are [`PORTS_MAX`] already.
    pub(super) fn add_port(&self, half: Arc<ReceivingHalf>) -> Option<usize> {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let index = places.iter().position(Option::is_none).unwrap_or(places.len());
        if index >= PORTS_MAX {
            return None;
        }
        if index == places.len() {
            places.push(None);
        }
        places[index] = Some(Place { half, mac: None });
        // False only for a port that is there already, and this place was free.
        let _ = self.switch().add_port(port_id(index));
        self.version.fetch_add(1, Ordering::Release);
        Some(index)
    }

    /// Takes a port off the network: from now on no verdict names it.
    pub(super) fn remove_port(&self, index: usize) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let _ = self.switch().remove_port(port_id(index));
        if let Some(place) = places.get_mut(index) {
            *place = None;
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Notes the address that the guest of port `index` sends from. Returns the number of another port whose guest
    /// sends from it too.
    pub(super) fn meet(&self, index: usize, mac: MacAddr) -> Option<u32> {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let twin = places.iter().flatten().find(|place| place.mac == Some(mac)).map(|place| place.half.number());
        if let Some(Some(place)) = places.get_mut(index) {
            place.mac = Some(mac);
        }
        twin
    }
}
