//! A receive ring: buffers that a guest has made available for frames.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::copy::{Bytes, HEAD_PLAIN, expect_copy, fill, fill_plain, fill_rest, scatter};
use super::error::RingError;
use super::mailbox::RingSetup;
use super::memory::{GuestMem, Span};
use super::notify::{signal, take_call};
use super::split::{Buffer, Direction, QUEUE_SIZE_MAX, RingOptions, SplitRing};
use super::tx::{BURST_FRAMES_MAX, Burst, FRAME_LEN_MAX};

/// Descriptors that one frame may fill. The longest frame in the smallest sensible buffers, 64 bytes, needs half of it.
pub const FRAME_DESCRIPTORS_MAX: u32 = 2 * QUEUE_SIZE_MAX as u32;
/// Descriptors that are read between two flushes, that is for the frames of one burst; a frame may go over it. Those of
/// the longest burst in buffers of 256 bytes need half of it.
const FLUSH_DESCRIPTORS_MAX: u32 = 4 * QUEUE_SIZE_MAX as u32;
/// Bytes after which the guest is told of its frames before the burst ends, so that it works while we copy. No frame is
/// longer, nor are all the segments of one, so one alone is not told of before [`RxRing::flush`].
const PUBLISH_BYTES: usize = FRAME_LEN_MAX + 8 * 1024;
/// The virtio-net header that we write: with `num_buffers`.
pub const VNET_HEADER_WRITTEN: usize = 12;

/// Where more than this follows a frame's head, in bytes, the next frame is fetched while it is copied: for less it
/// takes more than it saves.
const EXPECTED_MIN: usize = 512;

/// What stands before a frame that leaves nothing to its receiver, in one buffer.
const PLAIN_HEADER: [u8; VNET_HEADER_WRITTEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Why a frame was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not enough buffers are available.
    NoBuffer,
    /// The frame is longer than the buffer, and buffers are not merged.
    TooBig,
    /// The ring lies and must be stopped.
    Ring(RingError),
}

impl From<RingError> for Refusal {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

/// A receive ring of a guest.
#[derive(Debug)]
pub struct RxRing {
    ring: SplitRing,
    call: Option<OwnedFd>,
    header_len: usize,
    mergeable: bool,
    /// The buffers of the frame being delivered: kept for its capacity only.
    spans: Vec<Span>,
    /// The next buffers, as they were last looked at: kept for its room only.
    buffers: [Buffer; BURST_FRAMES_MAX],
    /// The chains of the frame being delivered and the bytes that each gets.
    chains: Vec<(u16, u32)>,
    /// Bytes delivered since the guest was last shown some.
    unpublished: usize,
    /// Interrupts since [`RxRing::flush`] last reported them.
    calls: u64,
    /// The least room that was missing when this many chains were available: until there are more, a frame that needs
    /// as much is refused without looking at them again.
    starved: Option<(u16, u64)>,
    /// The next entry whose buffer was found too small for a frame that needs so many bytes.
    small: Option<(u16, u64)>,
    /// Descriptors read since the last flush.
    effort: u32,
}

// SAFETY: the spans and buffers are used only by the calls that find them, while the ring keeps their memory alive.
unsafe impl Send for RxRing {}

impl RxRing {
    /// Starts a ring; takes the call descriptor out of `setup` and interrupts the guest once. `header_len` is the
    /// length of the virtio-net header in bytes, 10 or 12; `mergeable` says that a frame may fill several buffers
    /// (VIRTIO_NET_F_MRG_RXBUF).
    ///
    /// # Errors
    /// When an area of the ring is not where it may be.
    pub fn new(
        mem: Arc<GuestMem>,
        setup: &mut RingSetup,
        options: RingOptions,
        header_len: usize,
        mergeable: bool,
    ) -> Result<Self, RingError> {
        let ring = SplitRing::new(mem, setup, options)?;
        // We never wait for buffers, so the guest need never kick this ring.
        ring.quiet();
        let (spans, chains) = (Vec::new(), Vec::new());
        Ok(Self {
            ring,
            call: take_call(setup),
            header_len,
            mergeable,
            spans,
            buffers: [Buffer::NONE; BURST_FRAMES_MAX],
            chains,
            unpublished: 0,
            calls: 0,
            starved: None,
            small: None,
            effort: 0,
        })
    }

    /// Where a frame of up to `len` bytes would go if it came next, its header included. Returns how many bytes of it
    /// have room.
    /// What one such look may cost is bounded ([`FRAME_DESCRIPTORS_MAX`]).
    pub(super) fn look_ahead(&mut self, len: usize, spans: &mut Vec<Span>) -> usize {
        self.ring.reset_effort();
        // That there is no room for a frame that has not come is nothing to remember.
        let known = (self.starved.take(), self.small.take());
        let found = self.reserve((self.header_len + len) as u64);
        (self.starved, self.small) = known;
        // Who copies there finds a lie, and reports it.
        if matches!(found, Err(Refusal::Ring(_))) {
            return 0;
        }
        spans.extend_from_slice(&self.spans);
        let room: usize = self.spans.iter().map(|span| span.len).sum();
        room.saturating_sub(self.header_len).min(len)
    }

    /// Bytes of the virtio-net header before each frame.
    pub(super) fn header_len(&self) -> usize {
        self.header_len
    }

    /// The guest's memory.
    pub(super) fn mem(&self) -> &Arc<GuestMem> {
        self.ring.mem()
    }

    /// Copies one frame into the guest's buffers, behind `header`, whose `num_buffers` is filled in here. The guest
    /// sees it after [`Self::flush`], or earlier.
    ///
    /// # Errors
    /// [`Refusal`]; the guest's buffers are untouched then.
    #[inline]
    pub fn deliver(&mut self, mut header: [u8; VNET_HEADER_WRITTEN], bytes: &Bytes<'_>) -> Result<(), Refusal> {
        if self.effort > FLUSH_DESCRIPTORS_MAX {
            return Err(Refusal::NoBuffer);
        }
        self.ring.reset_effort();
        if !self.deliver_to_one(&mut header, bytes)? {
            let delivered = self.deliver_to_many(header, bytes);
            self.effort += self.ring.effort();
            delivered?;
        }
        self.unpublished += bytes.len();
        if self.unpublished > PUBLISH_BYTES {
            self.publish();
        }
        Ok(())
    }

    /// Does the same with frames of a burst, those that `frames` has bits for, all of them plain, as far as each finds
    /// room in the next buffer. Returns those that have not.
    pub fn deliver_plain(&mut self, burst: &Burst, frames: u32) -> u32 {
        if self.unpublished + burst.byte_count() as usize > PUBLISH_BYTES {
            // The guest should hear of some before the last is copied.
            return frames;
        }
        match self.header_len {
            VNET_HEADER_WRITTEN => self.deliver_rows::<VNET_HEADER_WRITTEN>(burst, frames),
            _ => self.deliver_rows::<{ VNET_HEADER_WRITTEN - 2 }>(burst, frames),
        }
    }

    // Not inlined: its loop needs every register.
    #[inline(never)]
    fn deliver_rows<const HEADER_LEN: usize>(&mut self, burst: &Burst, frames: u32) -> u32 {
        let wanted = frames.count_ones() as u16;
        let available = match self.ring.available() {
            _ if self.starved.is_some() => 0,
            Ok(seen) if seen >= wanted => wanted,
            // A lie is found again, and reported, by whoever asks for the next frame.
            Ok(_) => self.ring.refresh().unwrap_or(0).min(wanted),
            Err(_) => 0,
        };
        let found = self.ring.gather::<true>(0, &mut self.buffers[..usize::from(available)]);
        let (mut n, mut left) = (0, frames);
        while n < found {
            // Frames for one receiver come in rows. The burst has as many as the row's last, so no row is longer.
            let first = left.trailing_zeros() as usize;
            let row = ((left >> first).trailing_ones() as usize).min(found - n);
            let filled = deliver_row::<HEADER_LEN>(burst, first, &mut self.buffers[n..n + row]);
            n += filled;
            left &= !(((1_u64 << filled) - 1) << first) as u32;
            if filled < row {
                break;
            }
        }
        self.ring.push_all_used(&self.buffers[..n], |buffer| buffer.len);
        // At most BURST_FRAMES_MAX.
        self.ring.advance(n as u16);
        self.unpublished += burst.bytes_of(frames & !left) as usize;
        left
    }

    /// Most frames find room in the next buffer. `false` if this one does not.
    #[inline(always)]
    fn deliver_to_one(&mut self, header: &mut [u8; VNET_HEADER_WRITTEN], bytes: &Bytes<'_>) -> Result<bool, RingError> {
        if self.starved.is_some() || self.ring.available()? == 0 {
            return Ok(false);
        }
        // Far below 4 GiB.
        let need = (self.header_len + bytes.len()) as u32;
        let mut buffer = [Buffer::NONE];
        if self.ring.gather::<true>(0, &mut buffer) == 0 || buffer[0].len < need {
            return Ok(false);
        }
        let [Buffer { ptr, len, chain, .. }] = buffer;
        header[10..].copy_from_slice(&1u16.to_le_bytes());
        fill(&header[..self.header_len], bytes, Span { ptr, len: len as usize });
        self.ring.push_used(chain, need);
        self.ring.advance(1);
        Ok(true)
    }

    /// The same with a frame that may take several buffers.
    #[inline(never)]
    fn deliver_to_many(&mut self, mut header: [u8; VNET_HEADER_WRITTEN], bytes: &Bytes<'_>) -> Result<(), Refusal> {
        let need = (self.header_len + bytes.len()) as u64;
        if self.small.is_some_and(|(next, least)| next == self.ring.next_avail() && need >= least) {
            return Err(Refusal::TooBig);
        }
        self.reserve(need)?;
        header[10..].copy_from_slice(&(self.chains.len() as u16).to_le_bytes());
        scatter(&header[..self.header_len], bytes, &self.spans);
        for &(head, len) in &self.chains {
            self.ring.push_used(head, len);
        }
        // At most the ring's size.
        self.ring.advance(self.chains.len() as u16);
        self.starved = None;
        Ok(())
    }

    /// Finds chains with room for `need` bytes, without taking them yet.
    fn reserve(&mut self, need: u64) -> Result<(), Refusal> {
        self.spans.clear();
        self.chains.clear();
        let mut available = self.ring.available()?;
        let mut room = 0;
        while room < need {
            let taken = self.chains.len() as u16;
            if taken > 0 && !self.mergeable {
                self.small = Some((self.ring.next_avail(), need));
                return Err(Refusal::TooBig);
            }
            if taken >= available || self.is_starved(available, need) {
                // May be less than before: the guest can take back what was seen.
                available = self.ring.refresh()?;
                if taken >= available || self.is_starved(available, need) {
                    let least = self.starved.filter(|s| s.0 == available).map_or(need, |s| s.1.min(need));
                    self.starved = Some((available, least));
                    return Err(Refusal::NoBuffer);
                }
            }
            let head = self.ring.head(taken);
            let chain = self.ring.open(head)?;
            let capacity = self.ring.walk(chain, Direction::Writable, need - room, &mut self.spans)?;
            if capacity == 0 || (taken == 0 && capacity < self.header_len as u64) {
                return Err(RingError::ReceiveBufferRunt(capacity).into());
            }
            if self.ring.effort() > FRAME_DESCRIPTORS_MAX {
                return Err(RingError::ReceiveBuffersTiny.into());
            }
            // At most `need`, which fits.
            self.chains.push((head, capacity.min(need - room) as u32));
            room += capacity;
        }
        Ok(())
    }

    /// Whether a frame that needs no more was refused with as many chains available.
    #[inline]
    fn is_starved(&self, available: u16, need: u64) -> bool {
        self.starved.is_some_and(|(chains, least)| chains == available && need >= least)
    }

    /// Shows the guest what was delivered, and does not interrupt it.
    pub fn show(&mut self) {
        self.ring.show();
        self.unpublished = 0;
        self.effort = 0;
    }

    /// Shows the guest what was delivered, and interrupts it if it wants that. Returns how often it was since the last
    /// flush.
    #[inline]
    pub fn flush(&mut self) -> u64 {
        self.publish();
        self.effort = 0;
        std::mem::take(&mut self.calls)
    }

    #[inline]
    fn publish(&mut self) {
        self.unpublished = 0;
        if self.ring.publish() && signal(self.call.as_ref()) {
            self.calls += 1;
        }
    }

    /// Moves the ring to a new snapshot of the guest's memory.
    ///
    /// # Errors
    /// When an area of the ring is not in the new memory.
    pub fn rebase(&mut self, mem: Arc<GuestMem>) -> Result<(), RingError> {
        (self.starved, self.small) = (None, None);
        self.ring.rebase(mem)
    }

    /// Replaces the call descriptor.
    pub fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        // What was delivered while there was none would otherwise never be told.
        signal(self.call.as_ref());
    }

    /// The next available entry to take.
    pub fn next_avail(&self) -> u16 {
        self.ring.next_avail()
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }
}

/// Fills a buffer with each frame from frame `first` on, all of them plain, up to the first buffer that is too small.
/// Returns how many are filled; their lengths are then what was written.
#[inline(always)]
fn deliver_row<const HEADER_LEN: usize>(burst: &Burst, first: usize, buffers: &mut [Buffer]) -> usize {
    let count = buffers.len();
    let buffers = Cell::from_mut(buffers).as_slice_of_cells();
    for (n, (buffer, (len, head))) in buffers.iter().zip(burst.row(first, count)).enumerate() {
        let Buffer { ptr, len: room, .. } = buffer.get();
        // Far below 4 GiB.
        let need = (HEADER_LEN + len) as u32;
        if room < need {
            return n;
        }
        let to = Span { ptr, len: need as usize };
        if len >= HEAD_PLAIN {
            fill_plain::<HEADER_LEN, _>(head, to);
            if len > HEAD_PLAIN {
                deliver_rest(burst, first + n, to.split_within(HEADER_LEN + HEAD_PLAIN).1, buffers.get(n + 1));
            }
        } else {
            fill(&PLAIN_HEADER[..HEADER_LEN], &burst.bytes(first + n), to);
        }
        buffer.set(Buffer { len: need, ..buffer.get() });
    }
    count
}

/// Copies what follows the head of frame `i`, and has what the next one needs fetched meanwhile.
// Not inlined: most frames need none of it.
#[inline(never)]
fn deliver_rest(burst: &Burst, i: usize, to: Span, next: Option<&Cell<Buffer>>) {
    if to.len > EXPECTED_MIN
        && let Some(Buffer { ptr, len, .. }) = next.map(Cell::get)
    {
        expect_copy(burst.rest(i + 1), Span { ptr, len: len as usize });
    }
    fill_rest(&burst.bytes(i), to);
}
