//! The network's uplink: what workers give it, and what they read from it.
//!
//! Theory of operation. To the network an uplink is a port: it has a place in the switch, it is flooded to, addresses
//! are learned on it. Its device has a queue for each worker, if it can. A worker gives frames to its own queue, under
//! a lock taken once for a burst; each goes to the kernel whole, from its sender's memory, in one system call. It also
//! watches that queue's descriptor and reads it ([`reader`]). Of a device with fewer queues, the first workers read,
//! and the others give to the queues of those.
//!
//! Where guests share the NIC's MAC address, each frame is copied and its addresses are changed on the way, both ways.
//! The host's own IP addresses, which no guest may use, are asked for again while frames flow ([`HOST_AGE_S`]).
//!
//! What comes from a station that the user has declared a guest's is dropped, on whatever device: it has a loop in the
//! LAN for its cause, or somebody there who would like the guest's frames. An address that was only learned from a
//! guest proves nothing: a guest could send from that of the LAN's router, and cut all others from it. Such a frame
//! passes, and the switch lets the address move.
//!
//! A device that goes away takes nothing else with it: the network's guests go on among themselves, what they send to
//! it is dropped and counted, and the supervisor, who hears of it, puts another uplink in the place of the old one when
//! the device is back ([`UplinkHalf::connect`]).
//!
//! Locks: a queue's is taken before the one of the translation and after the one of the device's end, and no two
//! queues' at the same time.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::frame::ethernet::MacAddr;
use crate::frame::offload::{Fit, Offload};
use crate::metrics::{Counter, Counters};
use crate::ring::Bytes;
use crate::ring::mailbox::PortShared;
use crate::switch::PortId;
use crate::switch::mac_nat::{Destination, MacNat};
use crate::sys::poller::{Poller, Trigger};
use crate::uplink::{Gone, Sent, Uplink};

use super::receiving::{Delivery, Workshop, bits};

mod reader;

pub(super) use reader::Reader;

/// How long the host's IP addresses are believed to be what they were, in seconds.
const HOST_AGE_S: u32 = 2;

/// See the module's theory of operation.
#[derive(Debug)]
pub struct UplinkHalf {
    /// By worker.
    queues: Vec<Queue>,
    /// How many of them have a device's queue: the first ones.
    open: AtomicUsize,
    /// How many devices have been put in place.
    generation: AtomicU64,
    /// The last of them that has ended.
    ended: Mutex<u64>,
    /// Has guests share the NIC's address.
    nat: Option<Mutex<Nat>>,
    /// Readable when the uplink has gone.
    gone: EventFd,
}

/// One worker's part.
#[derive(Debug)]
struct Queue {
    /// Its frames are counted here: those it is given under its lock, those it brings by the worker that reads it.
    shared: Arc<PortShared>,
    state: Mutex<State>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses of guests; each list is in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stations {
    /// Those that the device is to bring frames for.
    pub(super) heard: Vec<MacAddr>,
    /// Those of them that the user has declared.
    pub(super) declared: Vec<MacAddr>,
}

impl Stations {
    /// Whether a frame says that it comes from a declared one.
    fn has_declared(&self, frame: &[u8]) -> bool {
        MacAddr::source_of(frame).is_some_and(|source| self.declared.binary_search(&source).is_ok())
    }
}

#[derive(Debug, Default)]
struct State {
    device: Option<Box<dyn Uplink>>,
    /// Which device it is: all queues of one have the same number.
    generation: u64,
    /// What the reading worker watches it with, once it does.
    watched_by: Option<Poller>,
    stations: Stations,
    /// A frame while its addresses are changed: kept for its capacity only.
    frame: Vec<u8>,
}

impl State {
    /// Lets go of the device.
    #[cold]
    fn lose(&mut self) {
        if let (Some(device), Some(poller)) = (self.device.take(), self.watched_by.take()) {
            // Whoever left us its descriptor has another, which would keep it in the kernel's list, ready for ever.
            poller.remove(device.fd());
        }
    }
}

/// What has guests share the NIC's address.
#[derive(Debug)]
struct Nat {
    table: MacNat,
    /// When it was last told the host's IP addresses, in seconds.
    host_known_s: Option<u32>,
}

impl Nat {
    /// Has the translation know the host's IP addresses.
    fn follow_host(&mut self, device: &dyn Uplink, now_s: u32) {
        if self.host_known_s.is_some_and(|known_s| now_s.saturating_sub(known_s) < HOST_AGE_S) {
            return;
        }
        self.host_known_s = Some(now_s);
        match device.host_addresses() {
            Ok(addresses) => self.table.set_host_addresses(addresses),
            Err(error) => tracing::debug!("the host's addresses cannot be read: {error}"),
        }
    }

    /// Changes a guest's frame to one of the NIC's own.
    fn outgoing(&mut self, frame: &mut [u8], delivery: &Delivery<'_>, offload: Offload) -> Result<(), Counter> {
        if !offload.is_transport_checksum(frame) {
            return Err(Counter::DropTxBadHeader);
        }
        self.table.outgoing(frame, delivery.from, offload.checksum(), delivery.now_s())
    }
}

impl UplinkHalf {
    /// An uplink without a device yet, with as many queues as there are `shared`, one for each of the network's
    /// workers: frames for and from each are counted there. With `shared_mac` it is a NIC with this MAC address, which
    /// guests share.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(shared: Vec<PortShared>, shared_mac: Option<MacAddr>) -> std::io::Result<Arc<Self>> {
        let gone = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let queue = |shared| Queue { shared: Arc::new(shared), state: Mutex::default() };
        let nat = shared_mac.map(|mac| Mutex::new(Nat { table: MacNat::new(mac), host_known_s: None }));
        let queues = shared.into_iter().map(queue).collect();
        let (open, generation, ended) = (AtomicUsize::new(0), AtomicU64::new(0), Mutex::new(0));
        Ok(Arc::new(Self { queues, open, generation, ended, nat, gone }))
    }

    /// What its frames are counted in, all of it together.
    pub fn shared(&self) -> impl Iterator<Item = &PortShared> {
        self.queues.iter().map(|queue| &*queue.shared)
    }

    /// Its number as a port.
    pub(super) fn number(&self) -> u32 {
        self.shared().next().map_or(0, |shared| shared.number)
    }

    /// Readable when the device has gone, until [`Self::connect`].
    pub fn gone_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.gone)
    }

    /// Whether there is no device.
    pub fn is_gone(&self) -> bool {
        self.queues.iter().all(|queue| queue.lock().device.is_none())
    }

    /// Whether its device is the interface of this name.
    pub fn is_on(&self, interface: &str) -> bool {
        self.name().is_some_and(|name| name.rsplit(' ').next() == Some(interface))
    }

    /// Says no more that the device has gone, until another has.
    pub fn hear_of_gone(&self) {
        // Can only fail when it was quiet.
        let _ = self.gone.read();
    }

    /// Puts a device in place, with a queue for each worker if it can have so many. The workers have to be woken.
    pub fn connect(&self, mut device: Box<dyn Uplink>) {
        if let (Some(mut nat), Some(own)) = (self.nat(), device.host_mac()) {
            // It may be another NIC, or have got another address.
            nat.table.set_own(own);
            nat.host_known_s = None;
        }
        let others: Vec<_> = (1..self.queues.len()).map_while(|_| add_queue(device.as_mut())).collect();
        self.open.store(1 + others.len(), Ordering::Relaxed);
        let generation = 1 + self.generation.fetch_add(1, Ordering::Relaxed);
        for (queue, mut device) in self.queues.iter().zip(std::iter::once(device).chain(others)) {
            let mut state = queue.lock();
            set_stations(device.as_mut(), &state.stations.heard);
            (state.device, state.watched_by, state.generation) = (Some(device), None, generation);
        }
    }

    /// Lets go of the device.
    pub fn disconnect(&self, why: &Gone) {
        self.end(self.generation.load(Ordering::Relaxed), why);
    }

    /// Takes note of whose frames the device is to bring.
    pub(super) fn set_stations(&self, stations: &Stations) {
        for queue in &self.queues {
            let mut state = queue.lock();
            if state.stations == *stations {
                continue;
            }
            if let Some(device) = &mut state.device {
                set_stations(device.as_mut(), &stations.heard);
            }
            state.stations = stations.clone();
        }
    }

    /// A port has gone; its place may be another's.
    pub(super) fn port_ended(&self, port: PortId) {
        self.nat().iter_mut().for_each(|nat| nat.table.remove_port(port));
    }

    fn nat(&self) -> Option<MutexGuard<'_, Nat>> {
        self.nat.as_ref().map(|nat| nat.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A queue has found that its device has gone: so have the others, unless there is another device meanwhile.
    #[cold]
    fn lose(&self, generation: u64, why: &Gone) {
        self.end(generation, why);
        // Can only fail when the counter is full, and then somebody is being told already.
        let _ = self.gone.write(1);
    }

    /// Lets go of a device, and tells of it once and before anybody can see that it is gone.
    #[cold]
    fn end(&self, generation: u64, why: &Gone) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *ended < generation
            && let (Some(name), Some(shared)) = (self.name(), self.shared().next())
        {
            *ended = generation;
            tracing::warn!(network = shared.network.as_str(), "the uplink is gone ({name}): {why}");
        }
        for queue in &self.queues {
            let mut state = queue.lock();
            if state.generation == generation {
                state.lose();
            }
        }
    }

    fn name(&self) -> Option<String> {
        self.queues.iter().find_map(|queue| queue.lock().device.as_ref().map(|device| device.name()))
    }

    /// Gives the kernel the frames of a burst that `wanted` has bits for, changed as it needs them, and counts how each
    /// ended.
    pub(super) fn give(&self, delivery: &Delivery<'_>, wanted: u32, workshop: &mut Workshop) {
        let open = self.open.load(Ordering::Relaxed).max(1);
        let Some(queue) = self.queues.get(delivery.worker % open) else { return };
        let counters = &queue.shared.counters.giver;
        let mut state = queue.lock();
        let State { device, frame, generation, .. } = &mut *state;
        let Some(device) = device else {
            return counters.add(Counter::DropRxNotReady, u64::from(wanted.count_ones()));
        };
        let mut nat = self.nat();
        nat.iter_mut().for_each(|nat| nat.follow_host(device.as_ref(), delivery.now_s()));
        let (takes, generation) = (device.takes(), *generation);
        let mut gone = None;
        for i in bits(wanted) {
            let is_plain = delivery.burst.plain() & 1 << i != 0;
            let offload = if is_plain { Offload::None } else { delivery.judged[i] };
            let (fit, mut bytes) = (offload.fit(takes), delivery.burst.bytes(i));
            if let Some(nat) = &mut nat {
                bytes.copy_out(frame);
                if let Err(reason) = nat.outgoing(frame, delivery, offload) {
                    counters.count(reason);
                    continue;
                }
                bytes = Bytes::private(frame);
            }
            if fit == Fit::Whole {
                gone = gone.or(send(device.as_mut(), offload, &bytes, counters));
            } else {
                let kind =
                    if matches!(fit, Fit::Segment { .. }) { Counter::RxSegmented } else { Counter::RxChecksummed };
                counters.count(kind);
                workshop.change(offload, fit, &bytes, |bytes, offload| {
                    gone = gone.take().or(send(device.as_mut(), offload, bytes, counters));
                });
            }
        }
        drop((nat, state));
        if let Some(why) = gone {
            self.lose(generation, &why);
        }
    }

    /// Has the kernel tell `poller` under `token` when frames are there for the worker with this number, if it does not
    /// already. Returns the host's address on a device that was not watched before.
    fn watch(&self, worker: usize, poller: &Poller, token: u64) -> Option<MacAddr> {
        let mut state = self.queues.get(worker)?.lock();
        let State { device: Some(device), watched_by, generation, .. } = &mut *state else { return None };
        if watched_by.is_some() {
            return None;
        }
        let (host, generation) = (device.host_mac(), *generation);
        let watching = poller.try_clone().and_then(|watching| {
            poller.add(device.fd(), Trigger::Level, token)?;
            Ok(watching)
        });
        match watching {
            Ok(watching) => *watched_by = Some(watching),
            Err(error) => {
                drop(state);
                self.lose(generation, &Gone::Failed(error));
            }
        }
        host
    }
}

/// One more queue of a device, if it can have one.
fn add_queue(device: &mut dyn Uplink) -> Option<Box<dyn Uplink>> {
    device.add_queue().unwrap_or_else(|error| {
        tracing::info!("{} has no further queue for another worker: {error}", device.name());
        None
    })
}

fn set_stations(device: &mut dyn Uplink, stations: &[MacAddr]) {
    if let Err(error) = device.set_stations(stations) {
        tracing::warn!("{} cannot be told the addresses of guests: {error}", device.name());
    }
}

/// Gives the kernel one frame. Returns why no other can be given.
#[inline]
fn send(device: &mut dyn Uplink, offload: Offload, bytes: &Bytes<'_>, counters: &Counters) -> Option<Gone> {
    match device.send(&offload.header(), bytes) {
        Sent::Whole => {
            counters.count(Counter::RxFrames);
            counters.add(Counter::RxBytes, bytes.len() as u64);
            counters.add_any(Counter::RxGsoFrames, u64::from(matches!(offload, Offload::Segment(_))));
            None
        }
        Sent::Dropped(counter) => {
            counters.count(counter);
            None
        }
        Sent::Gone(why) => {
            counters.count(Counter::DropRxNotReady);
            Some(why)
        }
    }
}

#[cfg(test)]
mod tests;
