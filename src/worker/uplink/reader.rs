//! What a worker reads from its queue of the uplink.
//!
//! Theory of operation. A burst of frames is read into memory of the worker's own, from where they go to their
//! receivers like any other burst. So no guest's memory ever holds a frame that is for another guest.
//!
//! Where one guest is alone on the network, no filter looks into frames, and no other worker is there, long frames are
//! read straight into its buffers, one by one ([`InPlace`]): that saves the second copy. What the switch then drops,
//! such as one that goes back to where it came from, lies in its buffers without being announced: it is nobody else's
//! here. Short frames are better copied, since their guest is told of many at once. What came last says what to expect
//! ([`LONG_MIN`]).
//!
//! Limits: [`READ_FRAMES_MAX`] and [`READ_BYTES_MAX`] for what is read in one go.

use std::sync::Arc;

use super::{Destination, Nat, Stations, UplinkHalf};
use crate::frame::vnet::{F_NEEDS_CSUM, VnetHeader};
use crate::metrics::Counter;
use crate::ring::{Burst, FRAME_LEN_MAX, InPlace, PrivateBurst, VNET_HEADER_READ};
use crate::sys::poller::Poller;
use crate::uplink::{FrameBuffer, Gone, Received};
use crate::worker::forward::Forwarder;
use crate::worker::network::Network;
use crate::worker::sender::{Origin, Sender};

/// Frames that are read in one go.
const READ_FRAMES_MAX: usize = 16;
/// Bytes after which no more are read.
const READ_BYTES_MAX: usize = 256 * 1024;
/// What a frame counts for in [`READ_BYTES_MAX`] at least, so that a device with nothing for us ends the turn too.
const FRAME_COST_MIN: usize = READ_BYTES_MAX / 256;
/// Bytes from which on a copy costs more than to tell the guest of a frame alone.
const LONG_MIN: usize = 16 * 1024;

/// See the module's theory of operation.
#[derive(Debug)]
pub(in crate::worker) struct Reader {
    half: Arc<UplinkHalf>,
    /// The worker's number.
    worker: usize,
    /// The uplink's place on the network.
    pub(super) index: usize,
    /// Whether frames are judged by more than their Ethernet headers.
    long_heads: bool,
    sender: Sender,
    buffers: Vec<FrameBuffer>,
    headers: Vec<[u8; VNET_HEADER_READ]>,
    burst: PrivateBurst,
    /// Whether frames may be read in place.
    may_lend: bool,
    /// Whether the last frames were long.
    is_long: bool,
    in_place: InPlace,
}

impl Reader {
    /// For the worker with this number, on a network whose uplink has the place `index`; none, if that has no queue for
    /// the worker.
    pub(in crate::worker) fn new(
        half: Arc<UplinkHalf>,
        worker: usize,
        index: usize,
        network: &Network,
    ) -> Option<Self> {
        let sender = Sender::new(half.queues.get(worker)?.shared.clone(), Origin::Uplink, None);
        let long_heads = network.looks_into(&sender);
        // What looks into a frame may refuse it, and what changes its addresses has to have them first.
        let may_lend = !long_heads && half.nat.is_none() && half.queues.len() == 1;
        Some(Self {
            half,
            worker,
            index,
            long_heads,
            sender,
            buffers: Vec::new(),
            headers: Vec::new(),
            burst: PrivateBurst::default(),
            may_lend,
            is_long: false,
            in_place: InPlace::default(),
        })
    }

    /// Looks for a device that is new, and watches it.
    pub(in crate::worker) fn watch(&self, poller: &Poller, token: u64, network: &Network) {
        if let Some(host) = self.half.watch(self.worker, poller, token) {
            network.set_host(host, self.index);
        }
    }

    /// Reads what is there, and forwards it. Returns the number of frames.
    pub(in crate::worker) fn turn(&mut self, forwarder: &mut Forwarder, now_ns: u64) -> usize {
        if self.is_long
            && let Some(frames) = self.turn_in_place(forwarder, now_ns)
        {
            return frames;
        }
        if let Some((generation, why)) = self.read((now_ns / 1_000_000_000) as u32) {
            self.half.lose(generation, &why);
        }
        if self.headers.is_empty() {
            return 0;
        }
        let frames = self.headers.iter().copied().zip(self.buffers.iter().map(FrameBuffer::frame));
        let burst: &Burst = self.burst.fill(frames, self.long_heads);
        self.is_long = self.may_lend && burst.not_shorter_than(LONG_MIN) != 0;
        forwarder.forward(self.index, &mut self.sender, None, burst, now_ns);
        burst.len()
    }

    /// The same in place, as long as frames are long. None: it cannot be.
    fn turn_in_place(&mut self, forwarder: &mut Forwarder, now_ns: u64) -> Option<usize> {
        let (mut frames, mut bytes) = (0, 0);
        let guest = forwarder.only_guest();
        while self.is_long && frames < READ_FRAMES_MAX && bytes < READ_BYTES_MAX {
            let room = guest.as_ref().map(|guest| guest.lend(&mut self.in_place, FRAME_LEN_MAX, None));
            self.is_long = room == Some(FRAME_LEN_MAX);
            if !self.is_long {
                break;
            }
            let Some((received, len)) = self.receive_in_place() else {
                (self.may_lend, self.is_long) = (false, false);
                break;
            };
            match received {
                Received::Frame(header) => {
                    let burst = self.in_place.frame(vnet(&header), len);
                    forwarder.forward(self.index, &mut self.sender, None, burst, now_ns);
                    self.is_long = len >= LONG_MIN;
                    (frames, bytes) = (frames + 1, bytes + len);
                }
                Received::Dropped(counter) => {
                    let counters = &self.sender.shared.counters.owner;
                    counters.count(Counter::TxFrames);
                    counters.count(counter);
                    // Perhaps for the sake of the guest's memory: who copies to that finds out.
                    self.is_long = false;
                }
                Received::Nothing | Received::NotOurs => break,
                Received::Gone(_) => self.is_long = false,
            }
        }
        self.in_place.release();
        // Where there was no room, or there is no device, the ordinary way says what becomes of that.
        (frames > 0 || self.is_long).then_some(frames)
    }

    /// Takes one frame, in place. None: the device never does that.
    fn receive_in_place(&mut self) -> Option<(Received, usize)> {
        let queue = self.half.queues.get(self.worker)?;
        let super::State { device, stations, .. } = &mut *queue.lock();
        let Some(device) = device else { return Some((Received::Gone(Gone::Deleted), 0)) };
        let (received, len) = device.receive_in_place(&mut self.in_place)?;
        self.sender.sends = device.sends();
        let is_reflected = matches!(received, Received::Frame(_)) && stations.has_declared(self.in_place.head(len));
        Some((if is_reflected { Received::Dropped(Counter::DropTxReflected) } else { received }, len))
    }

    /// Reads a burst of frames. Returns which device has gone, and why, if it has.
    fn read(&mut self, now_s: u32) -> Option<(u64, Gone)> {
        self.headers.clear();
        let queue = self.half.queues.get(self.worker)?;
        let counters = &queue.shared.counters.owner;
        let mut state = queue.lock();
        let generation = state.generation;
        let super::State { device: Some(device), stations, .. } = &mut *state else { return None };
        let mut nat = self.half.nat();
        nat.iter_mut().for_each(|nat| nat.follow_host(device.as_ref(), now_s));
        let mut bytes = 0;
        while self.headers.len() < READ_FRAMES_MAX && bytes < READ_BYTES_MAX {
            let place = self.headers.len();
            if place == self.buffers.len() {
                self.buffers.push(FrameBuffer::default());
            }
            match device.receive(&mut self.buffers[place]) {
                Received::Frame(header) => {
                    self.sender.sends = device.sends();
                    bytes += self.buffers[place].frame().len().max(FRAME_COST_MIN);
                    match admit(self.buffers[place].frame_mut(), stations, nat.as_deref_mut(), now_s) {
                        Ok(true) => {}
                        Ok(false) => continue,
                        Err(counter) => {
                            counters.count(Counter::TxFrames);
                            counters.count(counter);
                            continue;
                        }
                    }
                    self.headers.push(vnet(&header));
                }
                Received::Nothing => {
                    let (counter, lost) = device.lost();
                    counters.add_any(Counter::TxFrames, lost);
                    counters.add_any(counter, lost);
                    return None;
                }
                Received::Dropped(counter) => {
                    counters.count(Counter::TxFrames);
                    counters.count(counter);
                    bytes += FRAME_COST_MIN;
                }
                Received::NotOurs => bytes += FRAME_COST_MIN,
                Received::Gone(why) => return Some((generation, why)),
            }
        }
        None
    }
}

/// A header of the kernel's, for those who judge the frame.
fn vnet(header: &VnetHeader) -> [u8; VNET_HEADER_READ] {
    let [mut vnet @ .., _, _] = header.emit(0);
    // That the kernel has checked a sum is nothing to pass on.
    vnet[0] &= F_NEEDS_CSUM;
    vnet
}

/// Whether a frame from beyond is for one of ours, whose own address it then has.
#[inline]
fn admit(frame: &mut [u8], stations: &Stations, nat: Option<&mut Nat>, now_s: u32) -> Result<bool, Counter> {
    if stations.has_declared(frame) {
        return Err(Counter::DropTxReflected);
    }
    let Some(nat) = nat else { return Ok(true) };
    Ok(nat.table.incoming(frame, now_s)? != Destination::NotOurs)
}
