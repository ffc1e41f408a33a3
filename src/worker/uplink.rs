//! The network's uplink: what workers give it, and what it brings.
//!
//! Theory of operation. To the network an uplink is a port: it has a place in the switch, it is flooded to, addresses
//! are learned on it. Any worker may give it frames, under a lock taken once for a burst; each goes to the kernel
//! whole, from its sender's memory, in one system call. One worker, the first, watches its descriptor and reads it: a
//! burst of frames into memory of its own, from where they go to their receivers like any other burst. So no guest's
//! memory ever holds a frame that is not for that guest.
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
//! Limits: [`READ_FRAMES_MAX`] and [`READ_BYTES_MAX`] for what is read in one go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::frame::ethernet::MacAddr;
use crate::frame::offload::{Fit, Offload};
use crate::frame::vnet::F_NEEDS_CSUM;
use crate::metrics::{Counter, Counters};
use crate::ring::mailbox::PortShared;
use crate::ring::{Burst, Bytes, PrivateBurst, VNET_HEADER_READ};
use crate::switch::PortId;
use crate::switch::mac_nat::{Destination, MacNat};
use crate::sys::poller::{Poller, Trigger};
use crate::uplink::{FrameBuffer, Gone, Received, Sent, Uplink};

use super::forward::Forwarder;
use super::network::Network;
use super::receiving::{Delivery, Workshop, bits};
use super::sender::{Origin, Sender};

/// Frames that are read in one go.
const READ_FRAMES_MAX: usize = 16;
/// Bytes after which no more are read.
const READ_BYTES_MAX: usize = 256 * 1024;
/// How long the host's IP addresses are believed to be what they were, in seconds.
const HOST_AGE_S: u32 = 2;

/// See the module's theory of operation.
#[derive(Debug)]
pub struct UplinkHalf {
    shared: Arc<PortShared>,
    state: Mutex<State>,
    /// Readable when the uplink has gone.
    gone: EventFd,
}

/// The addresses of guests; each list is in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stations {
    /// Those that the device is to bring frames for.
    pub(super) heard: Vec<MacAddr>,
    /// Those of them that the user has declared.
    pub(super) declared: Vec<MacAddr>,
}

#[derive(Debug, Default)]
struct State {
    device: Option<Box<dyn Uplink>>,
    /// What the reading worker watches it with, once it does.
    watched_by: Option<Poller>,
    stations: Stations,
    /// Has guests share the NIC's address.
    nat: Option<MacNat>,
    /// When it was last told the host's IP addresses, in seconds.
    host_known_s: Option<u32>,
    /// A frame while its addresses are changed: kept for its capacity only.
    frame: Vec<u8>,
}

impl State {
    /// Lets go of the device.
    #[cold]
    fn lose(&mut self, shared: &PortShared, why: &Gone) {
        let Some(device) = self.device.take() else { return };
        if let Some(poller) = self.watched_by.take() {
            // Whoever left us its descriptor has another, which would keep it in the kernel's list, ready for ever.
            poller.remove(device.fd());
        }
        let network = shared.network.as_str();
        tracing::warn!(network, "the uplink is gone ({}): {why}", device.name());
    }

    /// Has the translation know the host's IP addresses.
    fn follow_host(&mut self, now_s: u32) {
        let (Some(nat), Some(device)) = (&mut self.nat, &self.device) else { return };
        if self.host_known_s.is_some_and(|known_s| now_s.saturating_sub(known_s) < HOST_AGE_S) {
            return;
        }
        self.host_known_s = Some(now_s);
        match device.host_addresses() {
            Ok(addresses) => nat.set_host_addresses(&addresses),
            Err(error) => tracing::debug!("the host's addresses cannot be read: {error}"),
        }
    }
}

impl UplinkHalf {
    /// An uplink without a device yet. Frames for it, and from it, are counted in `shared`. With `shared_mac` it is a
    /// NIC with this MAC address, which guests share.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(shared: Arc<PortShared>, shared_mac: Option<MacAddr>) -> std::io::Result<Arc<Self>> {
        let gone = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let state = State { nat: shared_mac.map(MacNat::new), ..State::default() };
        Ok(Arc::new(Self { shared, state: Mutex::new(state), gone }))
    }

    /// What it is counted in.
    pub fn shared(&self) -> &Arc<PortShared> {
        &self.shared
    }

    /// Readable when the device has gone, until [`Self::connect`].
    pub fn gone_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.gone)
    }

    /// Whether there is no device.
    pub fn is_gone(&self) -> bool {
        self.lock().device.is_none()
    }

    /// Whether its device is the interface of this name.
    pub fn is_on(&self, interface: &str) -> bool {
        let name = self.lock().device.as_ref().map(|device| device.name());
        name.is_some_and(|name| name.rsplit(' ').next() == Some(interface))
    }

    /// Says no more that the device has gone, until another has.
    pub fn hear_of_gone(&self) {
        // Can only fail when it was quiet.
        let _ = self.gone.read();
    }

    /// Puts a device in place. The worker that reads it has to be woken.
    pub fn connect(&self, mut device: Box<dyn Uplink>) {
        let mut state = self.lock();
        set_stations(device.as_mut(), &state.stations.heard);
        if let (Some(nat), Some(own)) = (&mut state.nat, device.host_mac()) {
            // It may be another NIC, or have got another address.
            nat.set_own(own);
        }
        (state.device, state.watched_by, state.host_known_s) = (Some(device), None, None);
    }

    /// Lets go of the device.
    pub fn disconnect(&self, why: &Gone) {
        let mut state = self.lock();
        self.lose(&mut state, why);
    }

    /// Takes note of whose frames the device is to bring.
    pub(super) fn set_stations(&self, stations: Stations) {
        let mut state = self.lock();
        if state.stations == stations {
            return;
        }
        if let Some(device) = &mut state.device {
            set_stations(device.as_mut(), &stations.heard);
        }
        state.stations = stations;
    }

    /// A port has gone; its place may be another's.
    pub(super) fn port_ended(&self, port: PortId) {
        self.lock().nat.iter_mut().for_each(|nat| nat.remove_port(port));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, state: &mut State, why: &Gone) {
        state.lose(&self.shared, why);
        // Can only fail when the counter is full, and then somebody is being told already.
        let _ = self.gone.write(1);
    }

    /// Gives the kernel the frames of a burst that `wanted` has bits for, changed as it needs them, and counts how each
    /// ended.
    pub(super) fn give(&self, delivery: &Delivery<'_>, wanted: u32, workshop: &mut Workshop) {
        let counters = &self.shared.counters.giver;
        let mut state = self.lock();
        state.follow_host(delivery.now_s);
        let State { device, nat, frame, .. } = &mut *state;
        let Some(device) = device else {
            return counters.add(Counter::DropRxNotReady, u64::from(wanted.count_ones()));
        };
        let takes = device.takes();
        let mut gone = None;
        for i in bits(wanted) {
            let is_plain = delivery.burst.plain() & 1 << i != 0;
            let offload = if is_plain { Offload::None } else { delivery.judged[i] };
            let (fit, mut bytes) = (offload.fit(takes), delivery.burst.bytes(i));
            if let Some(nat) = nat {
                bytes.copy_out(frame);
                let sent = match offload.is_transport_checksum(frame) {
                    true => nat.outgoing(frame, delivery.from, offload.checksum(), delivery.now_s),
                    false => Err(Counter::DropTxBadHeader),
                };
                if let Err(reason) = sent {
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
        if let Some(why) = gone {
            self.lose(&mut state, &why);
        }
    }

    /// Has the kernel tell `poller` under `token` when frames are there, if it does not already. Returns the host's
    /// address on a device that was not watched before.
    fn watch(&self, poller: &Poller, token: u64) -> Option<MacAddr> {
        let mut state = self.lock();
        let State { device: Some(device), watched_by, .. } = &mut *state else { return None };
        if watched_by.is_some() {
            return None;
        }
        let host = device.host_mac();
        let watching = poller.try_clone().and_then(|watching| {
            poller.add(device.fd(), Trigger::Level, token)?;
            Ok(watching)
        });
        match watching {
            Ok(watching) => *watched_by = Some(watching),
            Err(error) => self.lose(&mut state, &Gone::Failed(error)),
        }
        host
    }
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

/// What the worker that reads the uplink has for it.
#[derive(Debug)]
pub(super) struct Reader {
    half: Arc<UplinkHalf>,
    /// Its place on the network.
    index: usize,
    /// Whether frames are judged by more than their Ethernet headers.
    long_heads: bool,
    sender: Sender,
    buffers: Vec<FrameBuffer>,
    headers: Vec<[u8; VNET_HEADER_READ]>,
    burst: PrivateBurst,
}

impl Reader {
    pub(super) fn new(half: Arc<UplinkHalf>, index: usize, network: &Network) -> Self {
        let sender = Sender::new(half.shared.clone(), Origin::Uplink, None);
        let long_heads = network.looks_into(&sender);
        Self {
            half,
            index,
            long_heads,
            sender,
            buffers: Vec::new(),
            headers: Vec::new(),
            burst: PrivateBurst::default(),
        }
    }

    /// Looks for a device that is new, and watches it.
    pub(super) fn watch(&self, poller: &Poller, token: u64, network: &Network) {
        if let Some(host) = self.half.watch(poller, token) {
            network.set_host(host, self.index);
        }
    }

    /// Reads what is there, and forwards it. Returns the number of frames.
    pub(super) fn turn(&mut self, forwarder: &mut Forwarder, now_ns: u64) -> usize {
        self.read((now_ns / 1_000_000_000) as u32);
        if self.headers.is_empty() {
            return 0;
        }
        let frames = self.headers.iter().copied().zip(self.buffers.iter().map(FrameBuffer::frame));
        let burst: &Burst = self.burst.fill(frames, self.long_heads);
        forwarder.forward(self.index, &mut self.sender, None, burst, now_ns);
        burst.len()
    }

    fn read(&mut self, now_s: u32) {
        self.headers.clear();
        let counters = &self.half.shared.counters.owner;
        let mut state = self.half.lock();
        state.follow_host(now_s);
        let mut bytes = 0;
        while self.headers.len() < READ_FRAMES_MAX && bytes < READ_BYTES_MAX {
            let State { device: Some(device), stations, nat, .. } = &mut *state else { return };
            let place = self.headers.len();
            if place == self.buffers.len() {
                self.buffers.push(FrameBuffer::default());
            }
            match device.receive(&mut self.buffers[place]) {
                Received::Frame(header) => {
                    self.sender.sends = device.sends();
                    bytes += self.buffers[place].frame().len().max(FRAME_COST_MIN);
                    match admit(self.buffers[place].frame_mut(), stations, nat.as_mut(), now_s) {
                        Ok(true) => {}
                        Ok(false) => continue,
                        Err(counter) => {
                            counters.count(Counter::TxFrames);
                            counters.count(counter);
                            continue;
                        }
                    }
                    let [mut vnet @ .., _, _] = header.emit(0);
                    // That the kernel has checked a sum is nothing to pass on.
                    vnet[0] &= F_NEEDS_CSUM;
                    self.headers.push(vnet);
                }
                Received::Nothing => {
                    let (counter, lost) = device.lost();
                    counters.add_any(Counter::TxFrames, lost);
                    return counters.add_any(counter, lost);
                }
                Received::Dropped(counter) => {
                    counters.count(Counter::TxFrames);
                    counters.count(counter);
                    bytes += FRAME_COST_MIN;
                }
                Received::NotOurs => bytes += FRAME_COST_MIN,
                Received::Gone(why) => return self.half.lose(&mut state, &why),
            }
        }
    }
}

/// Whether a frame from beyond is for one of ours, whose own address it then has.
#[inline]
fn admit(frame: &mut [u8], stations: &Stations, nat: Option<&mut MacNat>, now_s: u32) -> Result<bool, Counter> {
    if MacAddr::source_of(frame).is_some_and(|source| stations.declared.binary_search(&source).is_ok()) {
        return Err(Counter::DropTxReflected);
    }
    let Some(nat) = nat else { return Ok(true) };
    Ok(nat.incoming(frame, now_s)? != Destination::NotOurs)
}

/// What a frame counts for in [`READ_BYTES_MAX`] at least, so that a device with nothing for us ends the turn too.
const FRAME_COST_MIN: usize = READ_BYTES_MAX / 256;

#[cfg(test)]
mod tests;
