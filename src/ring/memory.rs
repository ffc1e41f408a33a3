//! A guest's memory as a table of regions, and the translation of guest addresses into checked host ranges.
//!
//! Invariant: a [`Span`] made by [`GuestMem`] lies inside one mapping that stays mapped as long as that `GuestMem`
//! lives. The memory's content belongs to the guest, which may change it at any moment: it is only ever touched through
//! raw pointers, and what is read is copied before it is checked.

use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::error::RingError;
use crate::sys::sigbus;

/// A checked range of a guest's memory in our address space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) ptr: *mut u8,
    pub(super) len: usize,
}

impl Span {
    /// No bytes.
    pub(super) const EMPTY: Self = Self { ptr: std::ptr::null_mut(), len: 0 };

    /// The first `at` bytes and the rest, where `at` is known to be no more than all.
    #[inline(always)]
    pub(super) fn split_within(self, at: usize) -> (Self, Self) {
        debug_assert!(at <= self.len);
        // SAFETY: at most the span's length, so inside its mapping or at the end of it.
        let rest = Self { ptr: unsafe { self.ptr.add(at) }, len: self.len - at };
        (Self { len: at, ..self }, rest)
    }
}

/// A piece of a guest's memory that is in one piece here too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    start: u64,
    /// In bytes. `start + len` never wraps: a region that would is left out.
    len: u64,
    host: *mut u8,
}

impl Region {
    /// The longest checked range from `addr` on, at most `len` bytes, inside this region.
    #[inline(always)]
    fn span(&self, addr: u64, len: usize) -> Option<Span> {
        let offset = addr.wrapping_sub(self.start);
        if offset >= self.len {
            return None;
        }
        // Both fit: the region is mapped here whole.
        let (offset, room) = (offset as usize, (self.len - offset) as usize);
        // SAFETY: the offset is inside the region's one mapping.
        Some(Span { ptr: unsafe { self.host.add(offset) }, len: len.min(room) })
    }

    /// Where the range `addr .. addr + len` is here, if it lies inside this region.
    #[inline(always)]
    pub(super) fn locate(&self, addr: u64, len: u32) -> Option<*mut u8> {
        let offset = addr.wrapping_sub(self.start);
        let end = offset.checked_add(len.into())?;
        // SAFETY: the offset is inside the region's one mapping, or at the end of it.
        (end <= self.len).then(|| unsafe { self.host.add(offset as usize) })
    }
}

/// A snapshot of a guest's memory. Keeps the mappings alive, and guards them: should a file behind them shrink, what is
/// left reads as zero and [`GuestMem::faulted`] says so.
#[derive(Debug)]
pub struct GuestMem {
    /// In the order of their addresses.
    regions: Vec<Region>,
    // Before the mappings: fields are dropped in this order, and a guard must not outlive its mapping.
    guards: Vec<sigbus::Guard>,
    _mappings: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointers are addresses of mappings that `_mappings` keeps alive, owned by no thread in particular; all
// access through them is raw and expects concurrent change.
unsafe impl Send for GuestMem {}
// SAFETY: as above; a `GuestMem` itself is never changed after it was made.
unsafe impl Sync for GuestMem {}

impl GuestMem {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// When a mapping cannot be guarded.
    pub fn new(mappings: Arc<GuestMemoryMmap>) -> std::io::Result<Self> {
        let mut regions: Vec<Region> = mappings
            .iter()
            .filter_map(|region| {
                let start = region.start_addr().0;
                let len = region.len();
                start.checked_add(len)?;
                Some(Region { start, len, host: region.as_ptr() })
            })
            .collect();
        regions.sort_unstable_by_key(|region| region.start);
        let guards: Result<_, _> =
            regions.iter().map(|region| sigbus::guard(region.host, region.len as usize)).collect();
        Ok(Self { regions, guards: guards?, _mappings: mappings })
    }

    /// Whether some of the memory has gone away since the snapshot was taken.
    pub fn faulted(&self) -> bool {
        self.guards.iter().any(sigbus::Guard::faulted)
    }
}

/// A guest's memory as one ring uses it: it remembers the region that was used last, since the buffers of a ring almost
/// always lie in one.
#[derive(Debug)]
pub(super) struct View {
    mem: Arc<GuestMem>,
    /// One of `mem`'s, or an empty one.
    last: Region,
}

impl View {
    pub(super) fn new(mem: Arc<GuestMem>) -> Self {
        Self { mem, last: Region { start: 0, len: 0, host: std::ptr::null_mut() } }
    }

    pub(super) fn mem(&self) -> &Arc<GuestMem> {
        &self.mem
    }

    /// The region that was used last.
    #[inline(always)]
    pub(super) fn last(&self) -> Region {
        self.last
    }

    /// The longest checked range from `addr` on, at most `len` bytes, inside one region.
    #[inline(always)]
    fn find(&mut self, addr: u64, len: usize) -> Option<Span> {
        self.last.span(addr, len).or_else(|| self.find_anew(addr, len))
    }

    #[cold]
    #[inline(never)]
    fn find_anew(&mut self, addr: u64, len: usize) -> Option<Span> {
        // There may be hundreds, and a guest may go from one to another with each buffer.
        let after = self.mem.regions.partition_point(|region| region.start <= addr);
        self.last = *self.mem.regions.get(after.checked_sub(1)?)?;
        self.last.span(addr, len)
    }

    /// The range `addr .. addr + len` if it lies inside one region.
    #[inline(always)]
    pub(super) fn contiguous(&mut self, addr: u64, len: usize) -> Option<Span> {
        self.find(addr, len).filter(|span| span.len == len)
    }

    /// Appends the range `addr .. addr + len` to `spans`: one span, or one for each region that it crosses when regions
    /// adjoin in the guest but not here. Nothing is appended for a length of zero, whatever the address.
    #[inline]
    pub(super) fn translate(&mut self, addr: u64, len: u32, spans: &mut Vec<Span>) -> Result<(), RingError> {
        let mut at = addr;
        let mut left = len as usize;
        while left > 0 {
            let Some(span) = self.find(at, left) else {
                return Err(RingError::BufferOutside { addr, len });
            };
            spans.push(span);
            left -= span.len;
            // Cannot wrap: the span ends inside a region, whose end did not.
            at += span.len as u64;
        }
        Ok(())
    }
}
