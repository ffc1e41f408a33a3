//! A transmit ring: frames that a guest sends, taken in bursts.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::copy::{Bytes, HEAD_PLAIN, copy_front, skip_front, take_front, what_is_copied_stays};
use super::error::RingError;
use super::mailbox::RingSetup;
use super::memory::{GuestMem, Span};
use super::notify::{signal, take_call};
use super::split::{Chain, Direction, QUEUE_SIZE_MAX, RingOptions, SplitRing};

/// Frames in a burst.
pub const BURST_FRAMES_MAX: usize = 32;
/// Descriptors after which a burst ends. A burst may go over it by one chain.
pub const BURST_DESCRIPTORS_MAX: u32 = 1024;
/// Bytes after which a burst ends. A burst may go over it by one frame.
pub const BURST_BYTES_MAX: u64 = 512 * 1024;
/// The longest frame: IPv6 with 65,535 bytes of payload, two VLAN tags, an Ethernet header.
pub const FRAME_LEN_MAX: usize = 65_535 + 40 + 8 + 14;
/// Bytes of a frame that are copied to be judged when it asks for an offload.
pub const HEAD_MAX: usize = 256;
/// The virtio-net header without the field `num_buffers`, which means nothing when sending (virtio 1.3, 5.1.6.2).
pub const VNET_HEADER_READ: usize = 10;

const _: () = assert!(BURST_DESCRIPTORS_MAX >= QUEUE_SIZE_MAX as u32, "one chain of any legal length fits a burst");

/// One frame of a burst.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// The chain's first descriptor, to give it back by.
    descriptor: u16,
    head_len: u16,
    /// Length without the virtio-net header; saturated, so that a frame that is too long still is.
    len: u32,
    first_span: u32,
    end_span: u32,
}

impl Frame {
    const NONE: Self = Self { descriptor: 0, head_len: 0, len: 0, first_span: 0, end_span: 0 };
}

/// Frames taken from one ring in one go. Belongs to the worker and is filled again and again.
///
/// Invariant: the spans lie in `mem`, which the burst keeps alive.
#[derive(Debug)]
pub struct Burst {
    mem: Option<Arc<GuestMem>>,
    len: usize,
    bytes: u64,
    /// Frames that ask for no offload, as bits.
    plain: u32,
    frames: [Frame; BURST_FRAMES_MAX],
    spans: Vec<Span>,
    heads: Box<[[u8; HEAD_MAX]; BURST_FRAMES_MAX]>,
    vnets: [[u8; VNET_HEADER_READ]; BURST_FRAMES_MAX],
}

// SAFETY: the spans are raw addresses in mappings that `mem` keeps alive.
unsafe impl Send for Burst {}

impl Default for Burst {
    fn default() -> Self {
        Self {
            mem: None,
            len: 0,
            bytes: 0,
            plain: 0,
            frames: [Frame::NONE; BURST_FRAMES_MAX],
            spans: Vec::with_capacity(4 * BURST_FRAMES_MAX),
            heads: Box::new([[0; HEAD_MAX]; BURST_FRAMES_MAX]),
            vnets: [[0; VNET_HEADER_READ]; BURST_FRAMES_MAX],
        }
    }
}

impl Burst {
    /// Number of frames, at most [`BURST_FRAMES_MAX`].
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all frames together, without their virtio-net headers.
    #[inline]
    pub fn byte_count(&self) -> u64 {
        self.bytes
    }

    /// Forgets the frames and lets go of the guest's memory.
    pub fn release(&mut self) {
        self.len = 0;
        self.spans.clear();
        self.mem = None;
    }

    /// Whether frame `i` asks for no offload, so that there is nothing in its virtio-net header to look at.
    #[inline]
    pub fn is_plain(&self, i: usize) -> bool {
        self.plain & (1 << i) != 0
    }

    /// The virtio-net header of frame `i`, which is not plain, as the guest wrote it: not validated.
    #[inline]
    pub fn vnet(&self, i: usize) -> &[u8; VNET_HEADER_READ] {
        &self.vnets[i]
    }

    /// A private copy of frame `i`'s first bytes. Empty for a frame that is too long.
    #[inline]
    pub fn head(&self, i: usize) -> &[u8] {
        &self.heads[i][..usize::from(self.frames[i].head_len)]
    }

    /// Frame `i`'s length in bytes, without the virtio-net header. Above [`FRAME_LEN_MAX`] the frame has no bytes.
    #[inline]
    pub fn frame_len(&self, i: usize) -> usize {
        self.frames[i].len as usize
    }

    /// Frame `i`'s bytes. Empty for a frame that is too long.
    #[inline]
    pub fn bytes(&self, i: usize) -> Bytes<'_> {
        let frame = &self.frames[i];
        if frame.len as usize > FRAME_LEN_MAX {
            return Bytes::private(&[]);
        }
        let rest = &self.spans[frame.first_span as usize..frame.end_span as usize];
        Bytes::guest(self.head(i), rest, frame.len as usize)
    }

    fn begin(&mut self, mem: &Arc<GuestMem>) {
        (self.len, self.bytes, self.plain) = (0, 0, 0);
        self.spans.clear();
        // The same guest again is the common case: no reference count moves.
        if !self.mem.as_ref().is_some_and(|held| Arc::ptr_eq(held, mem)) {
            self.mem = Some(mem.clone());
        }
    }

    /// Adds the frame whose head is in place, with its other spans from `first_span` on.
    #[inline(always)]
    fn add(&mut self, descriptor: u16, head_len: usize, len: usize, first_span: usize, plain: bool) {
        let i = self.len;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.plain |= u32::from(plain) << i;
        self.bytes += u64::from(len);
        self.frames[i] = Frame {
            descriptor,
            // At most HEAD_MAX.
            head_len: head_len as u16,
            len,
            first_span: first_span as u32,
            end_span: self.spans.len() as u32,
        };
        self.len = i + 1;
    }
}

/// A transmit ring of a guest.
#[derive(Debug)]
pub struct TxRing {
    ring: SplitRing,
    call: Option<OwnedFd>,
    header_len: usize,
    read_header: bool,
}

impl TxRing {
    /// Starts a ring; takes the call descriptor out of `setup` and interrupts the guest once. `header_len` is the
    /// length of the virtio-net header in bytes; it is looked at only with `read_header`, that is when the guest has
    /// an offload to ask for.
    ///
    /// # Errors
    /// When an area of the ring is not where it may be.
    pub fn new(
        mem: Arc<GuestMem>,
        setup: &mut RingSetup,
        options: RingOptions,
        header_len: usize,
        read_header: bool,
    ) -> Result<Self, RingError> {
        let ring = SplitRing::new(mem, setup, options)?;
        Ok(Self { ring, call: take_call(setup), header_len, read_header })
    }

    /// Takes up to a burst of frames. The burst is empty when nothing is available.
    ///
    /// # Errors
    /// When the first chain breaks the rules. Chains before a bad one are taken; it is found again, and reported, the
    /// next time.
    #[inline]
    pub fn take(&mut self, burst: &mut Burst) -> Result<(), RingError> {
        burst.begin(self.ring.mem());
        let available = usize::from(self.ring.available()?).min(BURST_FRAMES_MAX);
        self.ring.reset_effort();
        for i in 0..available {
            if let Err(error) = self.take_one(i, burst) {
                if i == 0 {
                    return Err(error);
                }
                break;
            }
            if self.ring.effort() > BURST_DESCRIPTORS_MAX || burst.bytes > BURST_BYTES_MAX {
                break;
            }
        }
        what_is_copied_stays();
        // At most BURST_FRAMES_MAX.
        self.ring.advance(burst.len as u16);
        Ok(())
    }

    /// Takes the chain `i` entries ahead.
    #[inline(always)]
    fn take_one(&mut self, i: usize, burst: &mut Burst) -> Result<(), RingError> {
        let descriptor = self.ring.head(i as u16);
        let chain = self.ring.open(descriptor)?;
        let limit = (self.header_len + FRAME_LEN_MAX) as u64;
        match self.ring.single(&chain, Direction::Readable, limit) {
            Some(buffer) if buffer.len >= self.header_len + HEAD_PLAIN => {
                self.take_single(descriptor, buffer, burst);
                Ok(())
            }
            _ => self.take_any(descriptor, chain, burst),
        }
    }

    /// Takes a frame that is in one buffer and is not short.
    #[inline(always)]
    fn take_single(&self, descriptor: u16, buffer: Span, burst: &mut Burst) {
        let i = burst.len;
        let (header, frame) = buffer.split_at(self.header_len);
        let first_span = burst.spans.len();
        let rest;
        let (mut plain, mut head_len) = (true, HEAD_PLAIN);
        if self.read_header && copy_front(header, &mut burst.vnets[i]) {
            what_is_copied_stays();
            (plain, head_len) = head_wanted(&burst.vnets[i], frame.len);
        }
        if plain && let Some(head) = burst.heads[i].first_chunk_mut::<HEAD_PLAIN>() {
            copy_front(frame, head);
            (_, rest) = frame.split_at(HEAD_PLAIN);
        } else {
            let (head, others) = frame.split_at(head_len);
            take_front(&mut [head], &mut 0, &mut burst.heads[i][..head_len]);
            rest = others;
        }
        if rest.len > 0 {
            burst.spans.push(rest);
        }
        burst.add(descriptor, head_len, frame.len, first_span, plain);
    }

    #[inline(never)]
    fn take_any(&mut self, descriptor: u16, chain: Chain, burst: &mut Burst) -> Result<(), RingError> {
        let mut first = burst.spans.len();
        let limit = (self.header_len + FRAME_LEN_MAX) as u64;
        let total = match self.ring.walk(chain, Direction::Readable, limit, &mut burst.spans) {
            Ok(total) => total,
            Err(error) => {
                burst.spans.truncate(first);
                return Err(error);
            }
        };
        let vnet = &mut burst.vnets[burst.len];
        *vnet = [0; VNET_HEADER_READ];
        let header = self.header_len.min(total as usize);
        let read = if self.read_header { header.min(VNET_HEADER_READ) } else { 0 };
        take_front(&mut burst.spans, &mut first, &mut vnet[..read]);
        skip_front(&mut burst.spans, &mut first, header - read);

        let len = (total as usize).saturating_sub(self.header_len);
        let (plain, head_len) = head_wanted(vnet, len);
        take_front(&mut burst.spans, &mut first, &mut burst.heads[burst.len][..head_len]);
        burst.add(descriptor, head_len, len, first, plain);
        Ok(())
    }

    /// Gives the burst's buffers back to the guest. Returns whether the guest was interrupted.
    #[inline]
    pub fn complete(&mut self, burst: &Burst) -> bool {
        for frame in &burst.frames[..burst.len] {
            self.ring.push_used(frame.descriptor, 0);
        }
        self.ring.publish() && signal(self.call.as_ref())
    }

    /// Tells the guest that it need not kick.
    pub fn quiet(&self) {
        self.ring.quiet();
    }

    /// Asks for a kick. With `true` there is work already, and there may be no kick for it.
    ///
    /// # Errors
    /// When the guest's index lies.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.ring.arm()
    }

    /// Moves the ring to a new snapshot of the guest's memory.
    ///
    /// # Errors
    /// When an area of the ring is not in the new memory.
    pub fn rebase(&mut self, mem: Arc<GuestMem>) -> Result<(), RingError> {
        self.ring.rebase(mem)
    }

    /// Replaces the call descriptor.
    pub fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        // What was completed while there was none would otherwise never be told.
        signal(self.call.as_ref());
    }

    /// The next available entry to take.
    pub fn next_avail(&self) -> u16 {
        self.ring.next_avail()
    }
}

/// Whether a frame of `len` bytes with this virtio-net header asks for no offload, and how much of it is needed to
/// judge it.
#[inline]
fn head_wanted(vnet: &[u8; VNET_HEADER_READ], len: usize) -> (bool, usize) {
    // Any offload sets `flags` or `gso_type`, and then the headers up to the transport's are needed.
    let plain = vnet[0] | vnet[1] == 0;
    let head_max = if plain { HEAD_PLAIN } else { HEAD_MAX };
    // Nothing of a frame that is too long is looked at; what is left of the frame before must not be either.
    (plain, if len <= FRAME_LEN_MAX { len.min(head_max) } else { 0 })
}
