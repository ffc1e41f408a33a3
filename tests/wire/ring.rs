//! The driver's side of a split ring (virtio 1.3, 2.7).

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::{BASE, Memory};

pub(crate) const AVAIL: usize = 0x4000;
pub(crate) const USED: usize = 0x5000;
const INDIRECT: usize = 0x8000;
/// Entries of an indirect table.
const INDIRECT_LEN: usize = 256;
/// Bytes of memory that a ring takes.
pub(crate) const RING_SPACE: usize = INDIRECT + 256 * 16 * INDIRECT_LEN;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT_FLAG: u16 = 4;

/// One buffer of a chain: offset in memory, length, written by the device.
pub(crate) type Buffer = (usize, usize, bool);

pub(crate) struct Ring {
    pub(crate) memory: Rc<Memory>,
    /// Where the ring is in memory.
    pub(crate) at: usize,
    pub(crate) size: u16,
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    in_order: bool,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) kicks: u64,
    pub(crate) calls: u64,
    pub(crate) avail: u16,
    pub(crate) used: u16,
    free: VecDeque<u16>,
    /// Descriptors of each chain in flight, by head.
    chains: Vec<Vec<u16>>,
    /// With IN_ORDER: heads in flight, in the order in which they were made available.
    order: VecDeque<u16>,
}

impl Ring {
    pub(crate) fn new(memory: Rc<Memory>, at: usize, size: u16, event_idx: bool, indirect: bool) -> Self {
        memory.write(at, &vec![0; INDIRECT]);
        Self {
            memory,
            at,
            size,
            event_idx,
            indirect,
            in_order: false,
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd"),
            call: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd"),
            kicks: 0,
            calls: 0,
            avail: 0,
            used: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            order: VecDeque::new(),
        }
    }

    /// Uses descriptors in the order in which they stand in the table, as IN_ORDER asks of a driver, and holds the
    /// device to giving chains back in the order in which they were made available.
    pub(crate) fn in_order(mut self) -> Self {
        self.in_order = true;
        self.free = (0..self.size).collect();
        self
    }

    /// Begins in mid-life: as if so many chains had come and gone.
    pub(crate) fn resumed_at(mut self, base: u16) -> Self {
        (self.avail, self.used) = (base, base);
        for area in [AVAIL, USED] {
            self.memory.u16(self.at + area + 2).store(base, Ordering::Release);
        }
        self
    }

    pub(crate) fn write_descriptor(&self, at: usize, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write(at, &bytes);
    }

    /// Makes a chain available, without telling the device. Returns its head, or nothing when the ring is full.
    pub(crate) fn push(&mut self, buffers: &[Buffer]) -> Option<u16> {
        assert!(!buffers.is_empty() && buffers.len() <= INDIRECT_LEN.max(usize::from(self.size)));
        let indirect = self.indirect && buffers.len() > 1 && buffers.len() <= INDIRECT_LEN;
        let needed = if indirect { 1 } else { buffers.len() };
        if self.free.len() < needed {
            return None;
        }
        let chain: Vec<u16> = if self.in_order {
            self.free.drain(..needed).collect()
        } else {
            self.free.split_off(self.free.len() - needed).into()
        };
        let head = chain[0];
        let table = self.at + INDIRECT + usize::from(head % 256) * 16 * INDIRECT_LEN;
        for (i, &(offset, len, writable)) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if writable { WRITE } else { 0 };
            let (at, next) = if indirect {
                (table + 16 * i, (i + 1) as u16)
            } else {
                (self.at + 16 * usize::from(chain[i]), chain.get(i + 1).copied().unwrap_or(0))
            };
            self.write_descriptor(at, BASE + offset as u64, len as u32, flags, next);
        }
        if indirect {
            let len = (16 * buffers.len()) as u32;
            self.write_descriptor(self.at + 16 * usize::from(head), BASE + table as u64, len, INDIRECT_FLAG, 0);
        }
        self.chains[usize::from(head)] = chain;
        if self.in_order {
            self.order.push_back(head);
        }
        self.push_head(head);
        Some(head)
    }

    /// Buffers in the chain at `head`, counted as a device does: by what stands in memory.
    pub(crate) fn chain_len(&self, head: u16) -> usize {
        let read = |at: usize| {
            let mut bytes = [0; 16];
            self.memory.read(at, &mut bytes);
            let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            (u64::from_le_bytes(*bytes.first_chunk().expect("16 bytes")), word(12), word(14))
        };
        let (mut table, mut index, mut len) = (self.at, head, 0);
        loop {
            let (address, flags, next) = read(table + 16 * usize::from(index));
            if flags & INDIRECT_FLAG != 0 {
                (table, index) = ((address - BASE) as usize, 0);
                continue;
            }
            len += 1;
            if flags & NEXT == 0 {
                return len;
            }
            index = next;
        }
    }

    /// Puts any number into the available ring.
    pub(crate) fn push_head(&mut self, head: u16) {
        let slot = self.at + AVAIL + 4 + 2 * usize::from(self.avail % self.size);
        self.memory.write(slot, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows the device what was pushed, and kicks it if it wants that.
    pub(crate) fn publish(&mut self) {
        let index = self.memory.u16(self.at + AVAIL + 2);
        let old = index.swap(self.avail, Ordering::Release);
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.memory.load(self.at + USED + 4 + 8 * usize::from(self.size));
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old)
        } else {
            self.memory.load(self.at + USED) & 1 == 0
        };
        if wanted {
            self.kick_now();
        }
    }

    pub(crate) fn kick_now(&mut self) {
        self.kick.write(1).expect("a kick");
        self.kicks += 1;
    }

    /// Takes back one chain: its head and the bytes written into it.
    pub(crate) fn pop(&mut self) -> Option<(u16, u32)> {
        if let Ok(calls) = self.call.read() {
            self.calls += calls;
        }
        if self.memory.load(self.at + USED + 2) == self.used {
            return None;
        }
        let slot = self.at + USED + 4 + 8 * usize::from(self.used % self.size);
        let (head, len) = (self.memory.u32(slot), self.memory.u32(slot + 4));
        self.used = self.used.wrapping_add(1);
        if self.event_idx {
            let event = self.at + AVAIL + 4 + 2 * usize::from(self.size);
            self.memory.u16(event).store(self.used, Ordering::SeqCst);
        }
        let head = u16::try_from(head).expect("a descriptor's number");
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        assert!(!chain.is_empty(), "chain {head} was given back twice");
        if self.in_order {
            assert_eq!(self.order.pop_front(), Some(head), "IN_ORDER: the first in flight comes back first");
            self.free.extend(chain);
        } else {
            self.free.extend(chain.into_iter().rev());
        }
        Some((head, len))
    }
}

/// Asks not to be interrupted, or to be.
pub(crate) fn set_interrupts(ring: &Ring, wanted: bool) {
    ring.memory.u16(ring.at + AVAIL).store(u16::from(!wanted), Ordering::SeqCst);
}
