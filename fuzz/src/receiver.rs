//! A guest's receive ring, whose driver gives each buffer back at once.

use std::os::fd::{AsFd, OwnedFd};

use guestwire::ring::mailbox::RingSetup;
use guestwire::ring::{Bytes, InPlace, RingOptions, RxRing, VNET_HEADER_WRITTEN};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::memory::GuardedMemory;

/// Buffers, and bytes of each.
const BUFFERS: u16 = 8;
const BUFFER_LEN: u32 = 2048;
/// Where the ring's areas and its buffers lie.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x200;
const USED: u64 = 0x400;
const ROOM: u64 = 0x1000;

/// See the module's description.
pub struct Receiver {
    memory: GuardedMemory,
    ring: RxRing,
}

impl Default for Receiver {
    fn default() -> Self {
        let memory = GuardedMemory::default();
        for i in 0..u64::from(BUFFERS) {
            memory.write(DESCRIPTORS + 16 * i, &(ROOM + i * u64::from(BUFFER_LEN)).to_le_bytes());
            memory.write(DESCRIPTORS + 16 * i + 8, &BUFFER_LEN.to_le_bytes());
            // Ours to write.
            memory.write(DESCRIPTORS + 16 * i + 12, &2_u16.to_le_bytes());
            memory.write(AVAILABLE + 4 + 2 * i, &(i as u16).to_le_bytes());
        }
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).expect("an eventfd");
        let kick: OwnedFd = event.as_fd().try_clone_to_owned().expect("a descriptor");
        let mut setup = RingSetup {
            size: BUFFERS,
            desc: DESCRIPTORS,
            avail: AVAILABLE,
            used: USED,
            next_avail: 0,
            next_used: 0,
            kick,
            call: None,
            err: None,
        };
        let options = RingOptions { event_idx: false, indirect: false };
        let ring = RxRing::new(memory.snapshot.clone(), &mut setup, options, VNET_HEADER_WRITTEN, true);
        Self { ring: ring.expect("a ring"), memory }
    }
}

impl Receiver {
    /// Makes the guest's buffers the room for a frame of up to `len` bytes. Returns how long it may be.
    pub fn lend(&mut self, in_place: &mut InPlace, len: usize) -> usize {
        let all = self.ring.next_avail().wrapping_add(BUFFERS);
        self.memory.write(AVAILABLE + 2, &all.to_le_bytes());
        in_place.lend(&mut self.ring, len)
    }

    /// Has the guest take a frame, for which it was asked for room.
    ///
    /// # Panics
    /// When there is none.
    pub fn take(&mut self, bytes: &Bytes<'_>) {
        self.ring.deliver([0; VNET_HEADER_WRITTEN], bytes).expect("there is room");
        self.ring.flush();
    }
}
