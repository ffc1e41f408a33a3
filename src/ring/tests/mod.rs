//! Tests of the rings: against virtio-queue, and against every way in which a guest can lie.

mod delivery;
mod driver;
mod gather;
// Miri has no sockets.
#[cfg(not(miri))]
mod in_place;
mod lies;
mod oracle;

use std::sync::Arc;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use super::mailbox::RingSetup;
use super::*;
use driver::{DriverRing, NEXT, WRITE};

const INDIRECT: u16 = 4;
/// The first two regions adjoin in the guest, and then there is a hole.
const REGIONS: [(u64, usize); 3] = [(0, 0x4000), (0x4000, 0x2000), (0x1_0000, 0x8000)];
/// Where frames and buffers of tests lie.
const BUFFERS: u64 = 0x1_0000;
const ALL_OPTIONS: RingOptions = RingOptions { event_idx: false, indirect: true };

fn memory() -> Arc<GuestMemoryMmap> {
    memory_of(&REGIONS)
}

#[cfg(not(miri))]
fn memory_of(regions: &[(u64, usize)]) -> Arc<GuestMemoryMmap> {
    let ranges: Vec<_> = regions.iter().map(|&(start, len)| (GuestAddress(start), len)).collect();
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

/// Miri has no mmap: ordinary allocations, given back never.
#[cfg(miri)]
fn memory_of(regions: &[(u64, usize)]) -> Arc<GuestMemoryMmap> {
    use vm_memory::{GuestRegionMmap, MmapRegion};
    let regions = regions.iter().map(|&(start, len)| {
        let layout = std::alloc::Layout::from_size_align(len, 4096).unwrap();
        // SAFETY: the layout is not empty; the allocation is as long as the region and is never freed.
        let region = unsafe { MmapRegion::build_raw(std::alloc::alloc_zeroed(layout), len, 3, 0x22) }.unwrap();
        GuestRegionMmap::new(region, GuestAddress(start)).unwrap()
    });
    Arc::new(GuestMemoryMmap::from_regions(regions.collect()).unwrap())
}

fn snapshot(mem: &Arc<GuestMemoryMmap>) -> Arc<GuestMem> {
    Arc::new(GuestMem::new(mem.clone()).unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

/// A transmit ring of 8 entries at the start of memory.
fn transmit(options: RingOptions) -> (DriverRing, TxRing) {
    transmit_from(options, 0)
}

fn transmit_from(options: RingOptions, start: u16) -> (DriverRing, TxRing) {
    let driver = DriverRing::new(&memory(), 0, 8, start);
    let ring = TxRing::new(snapshot(&driver.mem), &mut driver.setup(), options, 12, true).unwrap();
    (driver, ring)
}

/// A receive ring of 8 entries at the start of memory.
fn receive(mergeable: bool) -> (DriverRing, RxRing) {
    let driver = DriverRing::new(&memory(), 0, 8, 0);
    let ring = RxRing::new(snapshot(&driver.mem), &mut driver.setup(), ALL_OPTIONS, 12, mergeable).unwrap();
    (driver, ring)
}

fn bytes_of(burst: &Burst, i: usize) -> Vec<u8> {
    let mut out = Vec::new();
    burst.bytes(i).copy_out(&mut out);
    out
}

fn read(mem: &GuestMemoryMmap, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}
