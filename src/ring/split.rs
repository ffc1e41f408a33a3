//! The split virtqueue (virtio 1.3, 2.7) seen from the device, on raw pointers.
//!
//! Theory of operation. The ring's three areas are checked when the ring starts and whenever the guest's memory
//! changes: each lies aligned inside one region, so every later access is an offset inside it. The guest may write
//! anything there at any time, so each field is read exactly once, volatile, into a local copy that is checked and then
//! used. A lie is a [`RingError`]: the caller stops the ring; we never try the same entry again.
//!
//! Indexes are free-running 16-bit numbers. `next_avail` counts what we have taken, `next_used` what we have given
//! back; the used index that the guest sees is published once for many entries by [`SplitRing::publish`].
//!
//! Notifications (2.7.7, 2.7.10). While we poll, the guest need not kick: without EVENT_IDX `used->flags` says so, with
//! it `avail_event` is simply left behind. [`SplitRing::arm`] asks for a kick and then looks once more, with a full
//! barrier between, so that a buffer made available meanwhile is either seen here or kicked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::error::RingError;
use super::mailbox::RingSetup;
use super::memory::{GuestMem, Span, View};

#[cfg(target_endian = "big")]
compile_error!("rings are little-endian and are read as they are: a big-endian host needs byte swaps here");

/// The largest ring we offer, in entries.
pub const QUEUE_SIZE_MAX: u16 = 1024;

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
const DESC_LEN: usize = 16;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// What was negotiated that changes how a ring is walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingOptions {
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// Which way a buffer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device reads it.
    Readable,
    /// The device writes it.
    Writable,
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline(always)]
    fn from_words([addr, rest]: [u64; 2]) -> Self {
        Self { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// A chain whose first descriptor has been read. It is not read again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    first: Descriptor,
}

/// A chain of one buffer in one piece, or what is left of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) ptr: *mut u8,
    /// In bytes.
    pub(super) len: u32,
    /// The chain's first descriptor.
    pub(super) chain: u16,
    /// For whoever takes the buffer: bytes of it that are in private memory.
    pub(super) head_len: u16,
}

impl Buffer {
    pub(super) const NONE: Self = Self { ptr: std::ptr::null_mut(), len: 0, chain: 0, head_len: 0 };
}

/// The three areas as host pointers, checked.
#[derive(Clone, Copy, Debug)]
struct Areas {
    desc: *const u8,
    avail: *mut u8,
    used: *mut u8,
}

/// One ring.
#[derive(Debug)]
pub(super) struct SplitRing {
    view: View,
    areas: Areas,
    addresses: [u64; 3],
    size: u16,
    options: RingOptions,
    next_avail: u16,
    next_used: u16,
    /// The available index as last read: what lies between `next_avail` and it may be taken without looking again.
    seen_avail: u16,
    /// The used index that the guest was last told of.
    published: u16,
    /// Descriptors read since [`SplitRing::reset_effort`]: what a guest makes us do is bounded by it, not by bytes.
    effort: u32,
}

// SAFETY: the pointers in `areas` and `view` point into mappings that `view` keeps alive and are used raw by whoever
// owns the ring.
unsafe impl Send for SplitRing {}

impl SplitRing {
    pub(super) fn new(mem: Arc<GuestMem>, setup: &RingSetup, options: RingOptions) -> Result<Self, RingError> {
        if !setup.size.is_power_of_two() || setup.size > QUEUE_SIZE_MAX {
            return Err(RingError::Size(setup.size));
        }
        let addresses = [setup.desc, setup.avail, setup.used];
        let mut view = View::new(mem);
        let areas = locate(&mut view, addresses, setup.size)?;
        let (next_avail, next_used) = (setup.next_avail, setup.next_used);
        Ok(Self {
            view,
            areas,
            addresses,
            size: setup.size,
            options,
            next_avail,
            next_used,
            seen_avail: next_avail,
            published: next_used,
            effort: 0,
        })
    }

    /// Descriptors read since the last reset.
    #[inline]
    pub(super) fn effort(&self) -> u32 {
        self.effort
    }

    #[inline]
    pub(super) fn reset_effort(&mut self) {
        self.effort = 0;
    }

    /// Moves the ring to a new snapshot of the same guest's memory.
    pub(super) fn rebase(&mut self, mem: Arc<GuestMem>) -> Result<(), RingError> {
        let mut view = View::new(mem);
        self.areas = locate(&mut view, self.addresses, self.size)?;
        self.view = view;
        Ok(())
    }

    pub(super) fn mem(&self) -> &Arc<GuestMem> {
        self.view.mem()
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Chains that may be taken now. Reads the guest's index only when none of the ones seen before is left.
    #[inline]
    pub(super) fn available(&mut self) -> Result<u16, RingError> {
        let seen = self.seen_avail.wrapping_sub(self.next_avail);
        if seen > 0 { Ok(seen) } else { self.refresh() }
    }

    /// Reads the guest's available index and returns how many chains may be taken now.
    #[inline]
    pub(super) fn refresh(&mut self) -> Result<u16, RingError> {
        // Acquire: what the guest wrote before the index (entries, descriptors, buffers) is read after it.
        let idx = self.avail_u16(2).load(Ordering::Acquire);
        let count = idx.wrapping_sub(self.next_avail);
        if count > self.size {
            return Err(RingError::AvailIndex { idx, next: self.next_avail, size: self.size });
        }
        self.seen_avail = idx;
        Ok(count)
    }

    /// The head of the chain `ahead` entries after the next one. `ahead` must be below what [`Self::available`] said.
    #[inline]
    pub(super) fn head(&self, ahead: u16) -> u16 {
        let slot = usize::from(self.next_avail.wrapping_add(ahead) & (self.size - 1));
        // SAFETY: slot < size, and `locate` checked that the available ring has `size` entries of two bytes after its
        // four-byte header, aligned to two.
        unsafe { self.areas.avail.add(4 + 2 * slot).cast::<u16>().read_volatile() }
    }

    /// Looks at the chains from `ahead` on, one for each place in `buffers`, for those that are a single buffer going
    /// the wanted way, in the region that was used last. Notes them, up to the first that is not so, and returns how
    /// many there are. For the others [`Self::open`] and [`Self::walk`] must be asked. All must be among those that
    /// [`Self::available`] counted.
    // Not inlined: its loop needs every register.
    #[inline(never)]
    pub(super) fn gather<const WRITABLE: bool>(&self, ahead: u16, buffers: &mut [Buffer]) -> usize {
        // In values of its own, so that they stay in registers whatever the loop writes to memory.
        let (Areas { desc, avail, .. }, region) = (self.areas, self.view.last());
        let (size, mask) = (u32::from(self.size), usize::from(self.size - 1));
        let next = usize::from(self.next_avail.wrapping_add(ahead));
        for (n, buffer) in buffers.iter_mut().enumerate() {
            // SAFETY: as in `head`.
            let chain = unsafe { avail.add(4 + 2 * ((next + n) & mask)).cast::<u16>().read_volatile() };
            if u32::from(chain) >= size {
                return n;
            }
            // SAFETY: as in `descriptor`; `next` is not needed, and each other field is read once.
            let (addr, len, flags) = unsafe {
                let at = desc.add(DESC_LEN * usize::from(chain));
                (
                    at.cast::<u64>().read_volatile(),
                    at.add(8).cast::<u32>().read_volatile(),
                    at.add(12).cast::<u16>().read_volatile(),
                )
            };
            let wanted = if WRITABLE { DESC_F_WRITE } else { 0 };
            if flags & (DESC_F_NEXT | DESC_F_WRITE | DESC_F_INDIRECT) != wanted {
                return n;
            }
            let Some(ptr) = region.locate(addr, len) else { return n };
            (buffer.ptr, buffer.len, buffer.chain) = (ptr, len, chain);
        }
        buffers.len()
    }

    /// Counts `n` chains as taken.
    #[inline]
    pub(super) fn advance(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_add(n);
    }

    /// Reads the first descriptor of the chain `head`. Most chains have no other.
    #[inline(always)]
    pub(super) fn open(&mut self, head: u16) -> Result<Chain, RingError> {
        Ok(Chain { first: self.descriptor(head)? })
    }

    /// Walks a chain, all of whose buffers must go one way, and appends their first `limit` bytes to `spans`. Returns
    /// the length of all of them in bytes.
    ///
    /// What lies beyond the limit is neither used nor looked for: a chain of gigabytes costs no more than one of the
    /// limit's length.
    pub(super) fn walk(
        &mut self,
        chain: Chain,
        want: Direction,
        limit: u64,
        spans: &mut Vec<Span>,
    ) -> Result<u64, RingError> {
        let mut total = 0u64;
        self.walk_each(chain, &mut |ring, d| {
            if direction(d) != want {
                return Err(RingError::Direction(match want {
                    Direction::Readable => "should read it",
                    Direction::Writable => "should write it",
                }));
            }
            let wanted = limit.saturating_sub(total).min(u64::from(d.len));
            total += u64::from(d.len);
            // At most the descriptor's own length, which fits.
            ring.view.translate(d.addr, wanted as u32, spans)
        })?;
        Ok(total)
    }

    /// Walks a chain of readable buffers followed by writable ones (2.7.4.2), into two lists.
    pub(super) fn walk_both(
        &mut self,
        chain: Chain,
        readable: &mut Vec<Span>,
        writable: &mut Vec<Span>,
    ) -> Result<(), RingError> {
        let mut seen_writable = false;
        self.walk_each(chain, &mut |ring, d| {
            let spans = match direction(d) {
                Direction::Writable => {
                    seen_writable = true;
                    &mut *writable
                }
                Direction::Readable if seen_writable => return Err(RingError::Direction("should write it")),
                Direction::Readable => &mut *readable,
            };
            ring.view.translate(d.addr, d.len, spans)
        })
    }

    /// Calls `each` for every buffer descriptor of a chain, following at most one indirect table at its end. No more
    /// than `size` descriptors are read, so a loop ends.
    #[inline]
    fn walk_each(
        &mut self,
        chain: Chain,
        each: &mut impl FnMut(&mut Self, &Descriptor) -> Result<(), RingError>,
    ) -> Result<(), RingError> {
        let mut descriptor = chain.first;
        for walked in 0..self.size {
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return self.walk_indirect(&descriptor, self.size - walked, each);
            }
            each(self, &descriptor)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            descriptor = self.descriptor(descriptor.next)?;
        }
        Err(RingError::ChainTooLong(self.size))
    }

    /// Reads a descriptor of the ring's table.
    #[inline(always)]
    fn descriptor(&mut self, index: u16) -> Result<Descriptor, RingError> {
        if index >= self.size {
            return Err(RingError::DescriptorIndex { index, size: self.size });
        }
        self.effort += 1;
        // SAFETY: index < size, and `locate` checked that the table has `size` descriptors, aligned to 16.
        Ok(unsafe { read_table(self.areas.desc, index) })
    }

    /// Walks an indirect table (2.7.5.3) of at most `room` descriptors.
    fn walk_indirect(
        &mut self,
        table: &Descriptor,
        room: u16,
        each: &mut impl FnMut(&mut Self, &Descriptor) -> Result<(), RingError>,
    ) -> Result<(), RingError> {
        if !self.options.indirect {
            return Err(RingError::IndirectNotNegotiated);
        }
        if table.flags & DESC_F_NEXT != 0 {
            return Err(RingError::IndirectMisplaced("goes on with another descriptor"));
        }
        let len = table.len as usize;
        let entries = len / DESC_LEN;
        if entries == 0 || !len.is_multiple_of(DESC_LEN) || entries > usize::from(self.size) {
            return Err(RingError::IndirectLength(table.len));
        }
        let outside = RingError::BufferOutside { addr: table.addr, len: table.len };
        let span = self.view.contiguous(table.addr, len).ok_or(outside)?;
        // At most size, which fits.
        let entries = entries as u16;
        let mut index = 0;
        for _ in 0..room.min(entries) {
            if index >= entries {
                return Err(RingError::DescriptorIndex { index, size: entries });
            }
            // SAFETY: index < entries, and the span has `entries` descriptors inside one mapping.
            let descriptor = unsafe { read_descriptor(span.ptr.add(DESC_LEN * usize::from(index))) };
            self.effort += 1;
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return Err(RingError::IndirectMisplaced("inside an indirect table"));
            }
            each(self, &descriptor)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(RingError::ChainTooLong(room.min(entries)))
    }

    /// Gives the chain `head` back, with `len` bytes written into it. The guest sees it after [`Self::publish`].
    #[inline]
    pub(super) fn push_used(&mut self, head: u16, len: u32) {
        self.push_all_used(&[Buffer { chain: head, len, ..Buffer::NONE }], |buffer| buffer.len);
    }

    /// Gives the chains of many buffers back, no more than the ring has, each with so many bytes written into it.
    #[inline(always)]
    pub(super) fn push_all_used(&mut self, buffers: &[Buffer], written: impl Fn(&Buffer) -> u32) {
        let (size, slot) = (usize::from(self.size), usize::from(self.next_used & (self.size - 1)));
        // Up to the ring's end, and from its begin on.
        let (front, back) = buffers.split_at(buffers.len().min(size - slot));
        for (first, buffers) in [(slot, front), (0, &back[..back.len().min(size)])] {
            for (n, buffer) in buffers.iter().enumerate() {
                // SAFETY: `first + n` is below size, and `locate` checked that the used ring has `size` entries of
                // eight bytes after its four-byte header, aligned to four.
                unsafe {
                    let element = self.areas.used.add(4 + 8 * (first + n)).cast::<u32>();
                    element.write_volatile(u32::from(buffer.chain));
                    element.add(1).write_volatile(written(buffer));
                }
            }
        }
        // At most size.
        self.next_used = self.next_used.wrapping_add(buffers.len() as u16);
    }

    /// Shows the guest what was given back, without asking whether it wants an interrupt for that: [`Self::publish`]
    /// does, for all of it.
    pub(super) fn show(&self) {
        // Release: as there.
        self.used_u16(2).store(self.next_used, Ordering::Release);
    }

    /// Shows the guest what was given back since the last time. Returns whether it wants an interrupt for that (2.7.7).
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        // Release: the used elements and the buffers are written before the index that shows them.
        self.used_u16(2).store(new, Ordering::Release);
        self.published = new;
        // The index is visible before the guest's wish is read; the guest does it the other way round.
        fence(Ordering::SeqCst);
        if self.options.event_idx {
            let used_event = self.avail_u16(4 + 2 * usize::from(self.size)).load(Ordering::Relaxed);
            new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.avail_u16(0).load(Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Tells the guest that it need not kick: we are polling.
    #[inline]
    pub(super) fn quiet(&self) {
        if !self.options.event_idx {
            self.used_u16(0).store(USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Asks for a kick and looks once more: with `true`, chains are available already and there may be no kick.
    pub(super) fn arm(&mut self) -> Result<bool, RingError> {
        if self.options.event_idx {
            self.used_u16(4 + 8 * usize::from(self.size)).store(self.next_avail, Ordering::Relaxed);
        } else {
            self.used_u16(0).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        Ok(self.refresh()? > 0)
    }

    /// A 16-bit field of the driver area. `offset` is even and at most that of `used_event`.
    #[inline]
    fn avail_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `locate` checked the area up to and with `used_event`, aligned to two; it stays mapped as long as
        // `view`, and both sides treat the field as one 16-bit word.
        unsafe { AtomicU16::from_ptr(self.areas.avail.add(offset).cast()) }
    }

    /// A 16-bit field of the device area. `offset` is even and at most that of `avail_event`.
    #[inline]
    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as for `avail_u16`; the area is checked up to and with `avail_event`.
        unsafe { AtomicU16::from_ptr(self.areas.used.add(offset).cast()) }
    }
}

fn direction(descriptor: &Descriptor) -> Direction {
    if descriptor.flags & DESC_F_WRITE == 0 { Direction::Readable } else { Direction::Writable }
}

/// Checks the three areas (2.7: alignment; sizes with the event fields) and finds them in our address space.
fn locate(view: &mut View, addresses: [u64; 3], size: u16) -> Result<Areas, RingError> {
    let n = usize::from(size);
    let [desc, avail, used] = addresses;
    let mut area = |area, addr: u64, len, align| {
        if !addr.is_multiple_of(align) {
            return Err(RingError::AreaUnaligned { area, addr, align });
        }
        let span = view.contiguous(addr, len).ok_or(RingError::AreaOutside { area, addr })?;
        // A region may begin at any guest address but is mapped at a page: what is aligned there need not be here.
        if !(span.ptr as usize as u64).is_multiple_of(align) {
            return Err(RingError::AreaUnaligned { area, addr, align });
        }
        Ok(span.ptr)
    };
    Ok(Areas {
        desc: area("descriptor table", desc, DESC_LEN * n, 16)?.cast_const(),
        avail: area("available ring", avail, 6 + 2 * n, 2)?,
        used: area("used ring", used, 6 + 8 * n, 4)?,
    })
}

/// Reads descriptor `index` of a ring's table once.
///
/// # Safety
/// `table` is what `locate` found for a ring of more than `index` entries: mapped, and aligned to 16.
#[inline(always)]
unsafe fn read_table(table: *const u8, index: u16) -> Descriptor {
    // SAFETY: inside the table, as the caller says.
    let at = unsafe { table.add(DESC_LEN * usize::from(index)) }.cast::<u64>();
    // SAFETY: as above.
    Descriptor::from_words(unsafe { [at.read_volatile(), at.add(1).read_volatile()] })
}

/// Reads a descriptor once, wherever it lies.
///
/// # Safety
/// `at` points to 16 mapped bytes.
#[inline]
unsafe fn read_descriptor(at: *const u8) -> Descriptor {
    let mut words = [0u64; 2];
    if at.cast::<u64>().is_aligned() {
        // SAFETY: mapped, as the caller says, and aligned.
        words = unsafe { [at.cast::<u64>().read_volatile(), at.cast::<u64>().add(1).read_volatile()] };
    } else {
        // An indirect table may lie anywhere. Byte by byte: each is read once.
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: mapped, as the caller says; bytes need no alignment.
            let bytes = std::array::from_fn(|b| unsafe { at.add(8 * i + b).read_volatile() });
            *word = u64::from_le_bytes(bytes);
        }
    }
    Descriptor::from_words(words)
}
