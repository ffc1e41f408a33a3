//! The driver's side of a split ring (virtio 1.3, 2.7), for tests and benchmarks: it can lie.

use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::RingSetup;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;

/// One ring in a guest's memory.
pub(super) struct DriverRing {
    pub(super) mem: Arc<GuestMemoryMmap>,
    pub(super) size: u16,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    /// The available index.
    pub(super) idx: u16,
}

impl DriverRing {
    /// A ring at guest address `base` whose indexes start at `start`.
    pub(super) fn new(mem: &Arc<GuestMemoryMmap>, base: u64, size: u16, start: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let ring = Self { mem: mem.clone(), size, desc: base, avail, used, idx: start };
        ring.write(avail + 2, start);
        ring.write(used + 2, start);
        ring
    }

    /// What the frontend would say about the ring.
    pub(super) fn setup(&self) -> RingSetup {
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap().into();
        let Self { size, desc, avail, used, idx, .. } = *self;
        let (kick, call) = (event(), Some(event()));
        RingSetup { size, desc, avail, used, next_avail: idx, next_used: idx, kick, call, err: None }
    }

    /// Writes a number anywhere.
    pub(super) fn write(&self, addr: u64, value: u16) {
        self.mem.write_obj(value, GuestAddress(addr)).unwrap();
    }

    /// Reads a number anywhere.
    pub(super) fn read(&self, addr: u64) -> u16 {
        self.mem.read_obj(GuestAddress(addr)).unwrap()
    }

    /// Writes descriptor `index`: address, length, flags, next.
    pub(super) fn describe(&self, index: u16, descriptor: (u64, u32, u16, u16)) {
        self.describe_in(self.desc, index, descriptor);
    }

    /// Writes a descriptor of the table at guest address `table`.
    pub(super) fn describe_in(&self, table: u64, index: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.mem.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Makes the chain that starts at `head` available.
    pub(super) fn post(&mut self, head: u16) {
        let slot = u64::from(self.idx & (self.size - 1));
        self.write(self.avail + 4 + 2 * slot, head);
        self.idx = self.idx.wrapping_add(1);
        self.write(self.avail + 2, self.idx);
    }

    /// The used index.
    pub(super) fn used_idx(&self) -> u16 {
        self.read(self.used + 2)
    }
}
