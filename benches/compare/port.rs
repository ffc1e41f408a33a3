//! A vhost-user frontend that attaches as a guest's VMM does, and a driver behind it that costs next to nothing.
//!
//! A descriptor of its rings is the same buffer for ever, and every entry of an available ring names the descriptor of
//! its own number. So to give back all that the device has used, in the order in which it was made available, is to
//! write one index. What is slow is the device, whoever drives.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use guestwire::vhost::features as f;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use memory::BASE;
pub(crate) use memory::Memory;

#[path = "../../tests/wire/memory.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod memory;

/// What a driver of Linux's takes of what it is offered, but for queues of commands.
pub(crate) const LIKE_LINUX: u64 = POLLING
    | f::CSUM
    | f::GUEST_CSUM
    | f::HOST_TSO4
    | f::HOST_TSO6
    | f::GUEST_TSO4
    | f::GUEST_TSO6
    | f::EVENT_IDX
    | f::INDIRECT_DESC;
/// What a driver that polls takes.
pub(crate) const POLLING: u64 = f::VERSION_1 | f::MRG_RXBUF | f::PROTOCOL_FEATURES;

/// Bytes of a buffer, header included.
const BUFFER: usize = 2048;
/// The virtio-net header.
const HEADER: usize = 12;
/// Where a ring's parts begin (virtio 1.3, 2.7), from the ring's own begin; room for 1,024 descriptors.
const AVAIL: usize = 0x4000;
const USED: usize = 0x5000;
const RING_SPACE: usize = 0x8000;
const BUFFERS: usize = 2 * RING_SPACE;
/// A page of the largest kind that a backend may be mapping.
const LARGE_PAGE: usize = 2 << 20;
/// The device may write to the buffer.
const WRITE: u16 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// Changes a frame: its number, the port's memory, and where the frame is in there.
pub(crate) type Change<'a> = &'a mut dyn FnMut(u64, &Memory, usize);

/// One ring, seen by its driver.
struct Ring {
    /// Where it is in memory.
    at: usize,
    /// The available index.
    avail: u16,
    kick: EventFd,
    _call: EventFd,
}

/// Detached when it is dropped.
pub(crate) struct Port {
    frontend: Frontend,
    memory: Memory,
    size: u16,
    receive: Ring,
    transmit: Ring,
    /// Frames that were received, and frames that the device has taken, since the last [`Self::forget`].
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Port {
    /// Attaches to the backend that listens at `socket` and starts one pair of rings of so many descriptors, with
    /// buffers to receive into.
    pub(crate) fn attach(socket: &Path, size: u16, known: u64) -> Result<Self, Box<dyn std::error::Error>> {
        let mut frontend = Frontend::connect(socket, 2)?;
        frontend.set_owner()?;
        let features = frontend.get_features()? & known;
        let protocol = frontend.get_protocol_features()?;
        frontend
            .set_protocol_features(protocol & (VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK))?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_features(features)?;
        let memory = Memory::new((BUFFERS + 2 * usize::from(size) * BUFFER).next_multiple_of(LARGE_PAGE));
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: memory.len() as u64,
            userspace_addr: memory.user_address(),
            mmap_offset: 0,
            mmap_handle: memory.fd.as_raw_fd(),
        }])?;
        let ring = |at| Ok::<_, std::io::Error>(Ring { at, avail: 0, kick: EventFd::new(0)?, _call: EventFd::new(0)? });
        let (receive, transmit) = (ring(0)?, ring(RING_SPACE)?);
        let mut port = Self { frontend, memory, size, receive, transmit, received: 0, sent: 0 };
        port.prepare();
        port.start()?;
        Ok(port)
    }

    /// Writes what stays as it is, and makes the receive buffers available.
    fn prepare(&mut self) {
        for (ring, flags) in [(&self.receive, WRITE), (&self.transmit, 0)] {
            for slot in 0..usize::from(self.size) {
                let address = BASE + self.buffer(ring, slot) as u64;
                let mut descriptor = [0; 16];
                descriptor[..8].copy_from_slice(&address.to_le_bytes());
                descriptor[8..12].copy_from_slice(&(BUFFER as u32).to_le_bytes());
                descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
                self.memory.write(ring.at + 16 * slot, &descriptor);
                self.memory.write(ring.at + AVAIL + 4 + 2 * slot, &(slot as u16).to_le_bytes());
            }
            self.memory.u16(ring.at + AVAIL).store(NO_INTERRUPT, Ordering::Relaxed);
        }
        self.receive.avail = self.size;
        self.memory.u16(self.receive.at + AVAIL + 2).store(self.size, Ordering::Release);
    }

    fn start(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        for (index, ring) in [&self.receive, &self.transmit].into_iter().enumerate() {
            let at = self.memory.user_address() + ring.at as u64;
            self.frontend.set_vring_num(index, self.size)?;
            self.frontend.set_vring_base(index, 0)?;
            let rings = VringConfigData {
                queue_max_size: self.size,
                queue_size: self.size,
                flags: 0,
                desc_table_addr: at,
                used_ring_addr: at + USED as u64,
                avail_ring_addr: at + AVAIL as u64,
                log_addr: None,
            };
            self.frontend.set_vring_addr(index, &rings)?;
            self.frontend.set_vring_call(index, &ring._call)?;
            self.frontend.set_vring_kick(index, &ring.kick)?;
        }
        for index in [0, 1] {
            self.frontend.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    fn buffer(&self, ring: &Ring, slot: usize) -> usize {
        let behind = if ring.at == 0 { 0 } else { usize::from(self.size) };
        BUFFERS + (behind + slot) * BUFFER
    }

    /// Puts a frame into each transmit buffer: the one that `frame` makes for its number. All are of one length.
    pub(crate) fn load(&mut self, frame: impl Fn(usize) -> Vec<u8>) {
        for slot in 0..usize::from(self.size) {
            self.put(slot, &[0; HEADER], &frame(slot));
        }
    }

    /// Puts a frame into a transmit buffer.
    fn put(&self, slot: usize, header: &[u8; HEADER], frame: &[u8]) {
        let at = self.buffer(&self.transmit, slot);
        self.memory.write(at, header);
        self.memory.write(at + HEADER, frame);
        let len = (HEADER + frame.len()) as u32;
        self.memory.write(self.transmit.at + 16 * slot + 8, &len.to_le_bytes());
    }

    /// Makes `count` more frames available to the device.
    pub(crate) fn send(&mut self, count: u16) {
        let ring = &mut self.transmit;
        ring.avail = ring.avail.wrapping_add(count);
        self.memory.u16(ring.at + AVAIL + 2).store(ring.avail, Ordering::Release);
        // The index is seen before we look whether the device sleeps; it does so the other way round.
        fence(Ordering::SeqCst);
        if self.memory.load(ring.at + USED) & NO_NOTIFY == 0 {
            ring.kick.write(1).expect("a kick");
        }
    }

    /// Makes every frame available that the device has given back, after `each` has changed it.
    pub(crate) fn send_on(&mut self, mut each: Option<Change<'_>>) {
        let left = self.transmit.avail.wrapping_sub(self.memory.load(self.transmit.at + USED + 2));
        let free = self.size - left;
        if free == 0 {
            return;
        }
        if let Some(each) = &mut each {
            for n in 0..free {
                let slot = usize::from(self.transmit.avail.wrapping_add(n) & (self.size - 1));
                each(self.sent + u64::from(n), &self.memory, self.buffer(&self.transmit, slot) + HEADER);
            }
        }
        self.sent += u64::from(free);
        self.send(free);
    }

    /// Sends what `next` makes, headers and frames, no more than `most` frames, as far as there is room for them.
    pub(crate) fn send_new(&mut self, most: u16, mut next: impl FnMut() -> ([u8; HEADER], Vec<u8>)) {
        let count = (self.size - self.in_flight()).min(most);
        for n in 0..count {
            let (header, frame) = next();
            self.put(usize::from(self.transmit.avail.wrapping_add(n) & (self.size - 1)), &header, &frame);
        }
        if count > 0 {
            self.sent += u64::from(count);
            self.send(count);
        }
    }

    /// Frames that the device has not given back.
    pub(crate) fn in_flight(&self) -> u16 {
        self.transmit.avail.wrapping_sub(self.memory.load(self.transmit.at + USED + 2))
    }

    /// Makes the buffers of what was received available again, no more than `limit` of them. Returns how many.
    pub(crate) fn receive(&mut self, limit: u16) -> u16 {
        let ring = &mut self.receive;
        let used = self.memory.load(ring.at + USED + 2);
        let count = (self.size - ring.avail.wrapping_sub(used)).min(limit);
        if count > 0 {
            ring.avail = ring.avail.wrapping_add(count);
            self.memory.u16(ring.at + AVAIL + 2).store(ring.avail, Ordering::Release);
            self.received += u64::from(count);
        }
        count
    }

    /// Receives what there is, and shows it: what one buffer has of each frame.
    pub(crate) fn receive_and_see(&mut self, mut see: impl FnMut(&[u8])) {
        let (used, first) = (self.receive.at + USED, self.receive.avail.wrapping_sub(self.size));
        let count = self.memory.load(used + 2).wrapping_sub(first);
        for n in 0..count {
            let slot = usize::from(first.wrapping_add(n) & (self.size - 1));
            let len = self.memory.u32(used + 4 + 8 * slot + 4) as usize;
            let mut frame = vec![0; len.saturating_sub(HEADER)];
            self.memory.read(self.buffer(&self.receive, slot) + HEADER, &mut frame);
            see(&frame);
        }
        self.receive(count);
    }

    /// Receives, and returns how many frames were for this port alone, not for a group.
    pub(crate) fn receive_own(&mut self) -> u16 {
        let before = self.receive.avail;
        let count = self.receive(u16::MAX);
        // A slot's frame stays where it is until the device has come round.
        let is_own = |n: &u16| {
            let slot = usize::from(before.wrapping_add(*n) & (self.size - 1));
            let mut first = [0];
            self.memory.read(self.buffer(&self.receive, slot) + HEADER, &mut first);
            first[0] & 1 == 0
        };
        (0..count).filter(is_own).count() as u16
    }

    /// Counts anew.
    pub(crate) fn forget(&mut self) {
        (self.sent, self.received) = (0, 0);
    }
}
