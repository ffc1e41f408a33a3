//! A guest's memory in which each region lies between pages that nobody may touch: one byte outside ends the process.

use std::num::NonZeroUsize;
use std::sync::Arc;

use guestwire::ring::GuestMem;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The regions: guest address and pages. The first two adjoin in the guest and not here; the last ends near 2^64.
pub const REGIONS: [(u64, usize); 4] = [(0, 4), (0x4000, 2), (0x1_0000, 4), (0xffff_ffff_ffff_e000, 1)];

/// A guest's memory, for the whole run.
pub struct GuardedMemory {
    /// What the rings are given.
    pub snapshot: Arc<GuestMem>,
    hosts: [*mut u8; REGIONS.len()],
}

// SAFETY: addresses of mappings that stay for the whole run. They are only touched with volatile accesses.
unsafe impl Sync for GuardedMemory {}
// SAFETY: as above.
unsafe impl Send for GuardedMemory {}

impl Default for GuardedMemory {
    fn default() -> Self {
        let hosts = REGIONS.map(|(_, pages)| map_guarded(pages * PAGE));
        let regions = REGIONS.iter().zip(hosts).map(|(&(guest, pages), host)| {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: `host` is a mapping of that many bytes which is never unmapped.
            let region = unsafe { MmapRegion::build_raw(host, pages * PAGE, prot, flags) };
            GuestRegionMmap::new(region.expect("a region"), GuestAddress(guest)).expect("no wrap")
        });
        let mappings = GuestMemoryMmap::from_regions(regions.collect()).expect("regions in order");
        let snapshot = Arc::new(GuestMem::new(Arc::new(mappings)).expect("few guards"));
        Self { snapshot, hosts }
    }
}

/// Maps `len` bytes with a page on either side that may not be touched.
fn map_guarded(len: usize) -> *mut u8 {
    let whole = NonZeroUsize::new(len + 2 * PAGE).expect("not zero");
    // SAFETY: a new mapping, of which the middle is made accessible.
    unsafe {
        let base = mmap_anonymous(None, whole, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE).expect("a mapping");
        let middle = base.byte_add(PAGE);
        mprotect(middle, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).expect("access");
        madvise(middle, len, MmapAdvise::MADV_NOHUGEPAGE).expect("small pages");
        middle.as_ptr().cast()
    }
}

impl GuardedMemory {
    /// Makes all of the memory zero.
    pub fn clear(&self) {
        for (&(_, pages), host) in REGIONS.iter().zip(self.hosts) {
            // SAFETY: the region's own bytes.
            unsafe { host.write_bytes(0, pages * PAGE) };
        }
    }

    /// Writes `bytes` from guest address `addr` on, byte by byte as a guest might at any time. What lies outside of the
    /// memory is not written.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            if let Some(at) = self.host(addr.wrapping_add(i as u64)) {
                // SAFETY: inside a region.
                unsafe { at.write_volatile(*byte) };
            }
        }
    }

    /// Reads a 16-bit number at guest address `addr`, which is even; zero outside of the memory.
    pub fn u16(&self, addr: u64) -> u16 {
        // SAFETY: inside a region, whose length is even.
        self.host(addr & !1).map_or(0, |at| unsafe { at.cast::<u16>().read_volatile() })
    }

    fn host(&self, addr: u64) -> Option<*mut u8> {
        let mut regions = REGIONS.iter().zip(self.hosts);
        regions.find_map(|(&(guest, pages), host)| {
            let offset = usize::try_from(addr.checked_sub(guest)?).ok()?;
            // SAFETY: inside the region.
            (offset < pages * PAGE).then(|| unsafe { host.add(offset) })
        })
    }
}
