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

#[derive(Debug)]
struct Region {
    start: u64,
    /// One past the last guest address. Never wraps: a region that would is left out.
    end: u64,
    host: *mut u8,
}

/// A snapshot of a guest's memory. Keeps the mappings alive, and guards them: should a file behind them shrink, what is
/// left reads as zero and [`GuestMem::faulted`] says so.
#[derive(Debug)]
pub struct GuestMem {
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
        let regions: Vec<Region> = mappings
            .iter()
            .filter_map(|region| {
                let start = region.start_addr().0;
                let end = start.checked_add(region.len())?;
                Some(Region { start, end, host: region.as_ptr() })
            })
            .collect();
        let guards: Result<_, _> =
            regions.iter().map(|region| sigbus::guard(region.host, (region.end - region.start) as usize)).collect();
        Ok(Self { regions, guards: guards?, _mappings: mappings })
    }

    /// Whether some of the memory has gone away since the snapshot was taken.
    pub fn faulted(&self) -> bool {
        self.guards.iter().any(sigbus::Guard::faulted)
    }

    /// The longest checked range from `addr` on, at most `len` bytes, inside one region. `hint` is the region to try
    /// first and is updated to the one found: the buffers of a ring almost always lie in one region.
    #[inline]
    fn find(&self, addr: u64, len: usize, hint: &mut usize) -> Option<Span> {
        let inside = |r: &Region| addr >= r.start && addr < r.end;
        let index = match self.regions.get(*hint) {
            Some(region) if inside(region) => *hint,
            _ => self.regions.iter().position(inside)?,
        };
        *hint = index;
        let region = &self.regions[index];
        let room = usize::try_from(region.end - addr).unwrap_or(usize::MAX);
        let offset = usize::try_from(addr - region.start).ok()?;
        // SAFETY: `addr` is inside the region, so the offset is inside the region's one mapping.
        Some(Span { ptr: unsafe { region.host.add(offset) }, len: len.min(room) })
    }

    /// The range `addr .. addr + len` if it lies inside one region.
    #[inline]
    pub(super) fn contiguous(&self, addr: u64, len: usize, hint: &mut usize) -> Option<Span> {
        self.find(addr, len, hint).filter(|span| span.len == len)
    }

    /// Appends the range `addr .. addr + len` to `spans`: one span, or one for each region that it crosses when regions
    /// adjoin in the guest but not here. Nothing is appended for a length of zero, whatever the address.
    #[inline]
    pub(super) fn translate(
        &self,
        addr: u64,
        len: u32,
        hint: &mut usize,
        spans: &mut Vec<Span>,
    ) -> Result<(), RingError> {
        let mut at = addr;
        let mut left = len as usize;
        while left > 0 {
            let Some(span) = self.find(at, left, hint) else {
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
