//! A transmit ring: frames that a guest sends, taken in bursts.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::copy::{Bytes, HEAD_PLAIN, copy_front, copy_line, skip_front, take_front, what_is_copied_stays};
use super::error::RingError;
use super::mailbox::RingSetup;
use super::memory::{GuestMem, Span};
use super::notify::{signal, take_call};
use super::split::{Buffer, Direction, QUEUE_SIZE_MAX, RingOptions, SplitRing};

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

/// Frames shorter than this have no whole Ethernet header.
const RUNT_MAX: usize = 14;

const _: () = assert!(BURST_DESCRIPTORS_MAX >= QUEUE_SIZE_MAX as u32, "one chain of any legal length fits a burst");

/// Frames taken from one ring in one go. Belongs to the worker and is filled again and again.
///
/// Invariant: the spans, and what follows the heads, lie in `mem`, which the burst keeps alive; or, in a
/// [`PrivateBurst`], in memory that is borrowed as long as anybody can look at the burst.
#[derive(Debug)]
pub struct Burst {
    mem: Option<Arc<GuestMem>>,
    len: usize,
    bytes: u64,
    /// Frames that ask for no offload, are neither runts nor too long, and have heads of one cache line, as bits.
    plain: u32,
    /// What follows each frame's head, where that is in one piece; else `ptr` is null and `pieces` says where it is.
    /// The length is the frame's, head included; saturated, so that a frame that is too long still is.
    frames: [Buffer; BURST_FRAMES_MAX],
    /// For each frame the places of its pieces in `spans`: from, and up to.
    pieces: [(u32, u32); BURST_FRAMES_MAX],
    spans: Vec<Span>,
    heads: Box<[[u8; HEAD_MAX]; BURST_FRAMES_MAX]>,
    vnets: [[u8; VNET_HEADER_READ]; BURST_FRAMES_MAX],
}

// SAFETY: spans and frames are raw addresses in mappings that `mem` keeps alive, or in memory that a `PrivateBurst` has
// borrowed; that one hands its burst out by reference only, for as long.
unsafe impl Send for Burst {}

impl Default for Burst {
    fn default() -> Self {
        Self {
            mem: None,
            len: 0,
            bytes: 0,
            plain: 0,
            frames: [Buffer::NONE; BURST_FRAMES_MAX],
            pieces: [(0, 0); BURST_FRAMES_MAX],
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

    /// Bytes of the frames that `frames` has bits for.
    #[inline]
    pub fn bytes_of(&self, mut frames: u32) -> u64 {
        if frames.count_ones() as usize == self.len {
            return self.bytes;
        }
        let mut bytes = 0;
        while frames != 0 {
            bytes += u64::from(self.frames[frames.trailing_zeros() as usize].len);
            frames &= frames - 1;
        }
        bytes
    }

    /// The frames of `len` bytes or more, as bits.
    pub fn not_shorter_than(&self, len: usize) -> u32 {
        let frames = self.frames[..self.len].iter().enumerate();
        frames.fold(0, |set, (i, frame)| set | u32::from(frame.len as usize >= len) << i)
    }

    /// Forgets the frames and lets go of the guest's memory.
    pub fn release(&mut self) {
        self.len = 0;
        self.spans.clear();
        self.mem = None;
    }

    /// The frames that ask for no offload, so that there is nothing in their virtio-net headers to look at, and that
    /// are neither runts nor too long; as bits.
    #[inline]
    pub fn plain(&self) -> u32 {
        self.plain
    }

    /// The virtio-net header of frame `i`, which is not [`Self::plain`], as the guest wrote it: not validated.
    #[inline]
    pub fn vnet(&self, i: usize) -> &[u8; VNET_HEADER_READ] {
        &self.vnets[i]
    }

    /// A private copy of frame `i`'s first bytes. Empty for a frame that is too long.
    #[inline]
    pub fn head(&self, i: usize) -> &[u8] {
        &self.heads[i][..usize::from(self.frames[i].head_len)]
    }

    /// Lengths and first bytes of `count` frames from frame `first` on. What is in the bytes beyond a frame's head is
    /// another's.
    #[inline(always)]
    pub(super) fn row(&self, first: usize, count: usize) -> impl Iterator<Item = (usize, &[u8; HEAD_MAX])> {
        let frames = self.frames[first..first + count].iter().map(|frame| frame.len as usize);
        frames.zip(&self.heads[first..first + count])
    }

    /// The Ethernet header of frame `i`, which must not be shorter than that: plain, say, or judged.
    #[inline(always)]
    pub fn ethernet_header(&self, i: usize) -> &[u8; 14] {
        self.heads[i % BURST_FRAMES_MAX].first_chunk().unwrap_or(&[0; RUNT_MAX])
    }

    /// How many frames after frame `i`, which must be judged, are plain and have the same Ethernet header.
    // Not inlined: its loop needs every register.
    #[inline(never)]
    pub fn alike(&self, i: usize) -> usize {
        let header = words(&self.heads[i]);
        let others = (self.plain >> i) >> 1;
        let alike = |(n, head): &(usize, &[u8; HEAD_MAX])| others >> n & 1 != 0 && words(head) == header;
        self.heads[i + 1..self.len].iter().enumerate().take_while(alike).count()
    }

    /// Frame `i`'s length in bytes, without the virtio-net header. Above [`FRAME_LEN_MAX`] the frame has no bytes.
    #[inline]
    pub fn frame_len(&self, i: usize) -> usize {
        self.frames[i].len as usize
    }

    /// What follows frame `i`'s head, if that is in one piece.
    #[inline(always)]
    pub(super) fn rest(&self, i: usize) -> Span {
        let Buffer { ptr, len, head_len, .. } = self.frames[i];
        let len = if ptr.is_null() { 0 } else { (len as usize).saturating_sub(usize::from(head_len)) };
        Span { ptr, len }
    }

    /// Frame `i`'s bytes. Empty for a frame that is too long.
    #[inline]
    pub fn bytes(&self, i: usize) -> Bytes<'_> {
        let frame = &self.frames[i];
        if frame.len as usize > FRAME_LEN_MAX {
            return Bytes::private(&[]);
        }
        let (len, head) = (frame.len as usize, self.head(i));
        if frame.ptr.is_null() {
            let (first, end) = self.pieces[i];
            return Bytes::guest(head, Span::EMPTY, &self.spans[first as usize..end as usize], len);
        }
        Bytes::guest(head, Span { ptr: frame.ptr, len: len - head.len() }, &[], len)
    }

    /// Forgets the frames. Returns the list of places for the rest of one frame in this memory.
    pub(super) fn begin_in_place(&mut self, mem: &Arc<GuestMem>) -> &mut Vec<Span> {
        self.begin(mem);
        &mut self.spans
    }

    /// The places of one frame's head and its rest.
    pub(super) fn room_in_place(&mut self) -> (&mut [u8; HEAD_MAX], &[Span]) {
        (&mut self.heads[0], &self.spans)
    }

    /// There is one frame, with `len` bytes in those places, which hold as many, and with this virtio-net header.
    pub(super) fn fill_in_place(&mut self, vnet: [u8; VNET_HEADER_READ], len: usize) {
        what_is_copied_stays();
        let head_len = len.min(HEAD_MAX);
        let mut rest = len - head_len;
        self.spans.iter_mut().for_each(|span| {
            span.len = span.len.min(rest);
            rest -= span.len;
        });
        self.spans.retain(|span| span.len > 0);
        self.pieces[0] = (0, self.spans.len() as u32);
        // Its head is longer than that of a plain frame.
        self.frames[0] = Buffer { ptr: std::ptr::null_mut(), len: len as u32, chain: 0, head_len: head_len as u16 };
        self.vnets[0] = vnet;
        (self.len, self.bytes, self.plain) = (1, len as u64, 0);
    }

    fn begin(&mut self, mem: &Arc<GuestMem>) {
        (self.len, self.bytes, self.plain) = (0, 0, 0);
        self.spans.clear();
        // The same guest again is the common case: no reference count moves.
        if !self.mem.as_ref().is_some_and(|held| Arc::ptr_eq(held, mem)) {
            self.mem = Some(mem.clone());
        }
    }
}

/// A burst of frames that are in private memory: what came in from an uplink.
#[derive(Debug, Default)]
pub struct PrivateBurst(Burst);

impl PrivateBurst {
    /// Fills the burst with frames, each with its virtio-net header, up to [`BURST_FRAMES_MAX`]. It can be looked at as
    /// long as the frames are borrowed, and no longer. With `long_heads` as in [`TxRing::with_long_heads`].
    pub fn fill<'a>(
        &'a mut self,
        from: impl Iterator<Item = ([u8; VNET_HEADER_READ], &'a [u8])>,
        long_heads: bool,
    ) -> &'a Burst {
        let burst = &mut self.0;
        (burst.len, burst.bytes, burst.plain) = (0, 0, 0);
        for (i, (vnet, frame)) in from.take(BURST_FRAMES_MAX).enumerate() {
            let (is_plain, head_len) = head_wanted(&vnet, frame.len(), long_heads);
            let (head, rest) = frame.split_at(head_len);
            burst.heads[i][..head_len].copy_from_slice(head);
            burst.vnets[i] = vnet;
            // Never written to: what a burst holds is only read. A frame that is too long has no bytes.
            let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
            burst.frames[i] = Buffer { ptr: rest.as_ptr().cast_mut(), len, chain: 0, head_len: head_len as u16 };
            burst.plain |= u32::from(is_plain) << i;
            burst.bytes += u64::from(len);
            burst.len = i + 1;
        }
        burst
    }
}

/// A transmit ring of a guest.
#[derive(Debug)]
pub struct TxRing {
    ring: SplitRing,
    call: Option<OwnedFd>,
    header_len: usize,
    read_header: bool,
    long_heads: bool,
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
        Ok(Self { ring, call: take_call(setup), header_len, read_header, long_heads: false })
    }

    /// With `on`, frames are judged by more than their Ethernet headers: as much is copied of each as of one that asks
    /// for an offload.
    pub fn with_long_heads(self, on: bool) -> Self {
        Self { long_heads: on, ..self }
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
        while burst.len < available {
            if self.read_header || self.long_heads {
                self.take_singles::<true>(available, burst);
            } else {
                self.take_singles::<false>(available, burst);
            }
            if burst.len == available || burst.bytes > BURST_BYTES_MAX {
                break;
            }
            if let Err(error) = self.take_any(burst) {
                if burst.len == 0 {
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

    /// Takes frames that are in one buffer and not runts, up to the first that is not so.
    // Not inlined: its loop needs every register.
    #[inline(never)]
    fn take_singles<const LOOK: bool>(&self, available: usize, burst: &mut Burst) {
        let Burst { frames, heads, vnets, .. } = burst;
        let (first, header_len) = (burst.len, self.header_len);
        let places = &mut frames[first..available];
        let found = self.ring.gather::<false>(first as u16, places);
        let (mut bytes, mut plain, mut end) = (burst.bytes, burst.plain, first);
        for ((buffer, head), vnet) in places[..found].iter_mut().zip(&mut heads[first..]).zip(&mut vnets[first..]) {
            let len = (buffer.len as usize).wrapping_sub(header_len);
            // One comparison for both bounds: below the least the difference wraps.
            let mut head_len = if len.wrapping_sub(HEAD_PLAIN) <= FRAME_LEN_MAX - HEAD_PLAIN {
                HEAD_PLAIN
            } else if (RUNT_MAX..HEAD_PLAIN).contains(&len) {
                len
            } else {
                break;
            };
            let mut is_plain = true;
            let (header, frame) = Span { ptr: buffer.ptr, len: buffer.len as usize }.split_within(header_len);
            if LOOK {
                if self.read_header {
                    copy_front(header, vnet);
                    what_is_copied_stays();
                } else {
                    *vnet = [0; VNET_HEADER_READ];
                }
                (is_plain, head_len) = head_wanted(vnet, frame.len, self.long_heads);
            }
            let (front, rest) = frame.split_within(head_len);
            if head_len == HEAD_PLAIN {
                copy_line(front, head);
            } else {
                take_front(&mut [front], &mut 0, &mut head[..head_len]);
            }
            // The head is at most HEAD_MAX, the frame at most FRAME_LEN_MAX long.
            (buffer.ptr, buffer.len, buffer.head_len) = (rest.ptr, frame.len as u32, head_len as u16);
            plain |= u32::from(is_plain) << end;
            bytes += frame.len as u64;
            end += 1;
            if bytes > BURST_BYTES_MAX {
                break;
            }
        }
        (burst.len, burst.bytes, burst.plain) = (end, bytes, plain);
    }

    /// Takes the next frame, however it lies.
    #[inline(never)]
    fn take_any(&mut self, burst: &mut Burst) -> Result<(), RingError> {
        let i = burst.len;
        let descriptor = self.ring.head(i as u16);
        let chain = self.ring.open(descriptor)?;
        let mut first = burst.spans.len();
        let limit = (self.header_len + FRAME_LEN_MAX) as u64;
        let total = match self.ring.walk(chain, Direction::Readable, limit, &mut burst.spans) {
            Ok(total) => total,
            Err(error) => {
                burst.spans.truncate(first);
                return Err(error);
            }
        };
        let vnet = &mut burst.vnets[i];
        *vnet = [0; VNET_HEADER_READ];
        let header = self.header_len.min(total as usize);
        let read = if self.read_header { header.min(VNET_HEADER_READ) } else { 0 };
        take_front(&mut burst.spans, &mut first, &mut vnet[..read]);
        skip_front(&mut burst.spans, &mut first, header - read);

        let len = (total as usize).saturating_sub(self.header_len);
        let (is_plain, head_len) = head_wanted(vnet, len, self.long_heads);
        take_front(&mut burst.spans, &mut first, &mut burst.heads[i][..head_len]);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        burst.frames[i] = Buffer { ptr: std::ptr::null_mut(), len, chain: descriptor, head_len: head_len as u16 };
        burst.pieces[i] = (first as u32, burst.spans.len() as u32);
        burst.plain |= u32::from(is_plain) << i;
        burst.bytes += u64::from(len);
        burst.len = i + 1;
        Ok(())
    }

    /// Gives the burst's buffers back to the guest. Returns whether the guest was interrupted.
    #[inline]
    pub fn complete(&mut self, burst: &Burst) -> bool {
        self.ring.push_all_used(&burst.frames[..burst.len], |_| 0);
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

/// The Ethernet header in a frame's first bytes, in a form that is quickly compared: eight bytes and eight, which
/// overlap.
#[inline(always)]
fn words(head: &[u8; HEAD_MAX]) -> [u64; 2] {
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|n| head[at + n]));
    [word(0), word(RUNT_MAX - 8)]
}

/// Whether a frame of `len` bytes with this virtio-net header is plain, and how much of it is needed to judge it. With
/// `long` as much as of one that asks for an offload, and it is not plain then.
#[inline]
fn head_wanted(vnet: &[u8; VNET_HEADER_READ], len: usize, long: bool) -> (bool, usize) {
    // Any offload sets `flags` or `gso_type`, and then the headers up to the transport's are needed.
    let asks_nothing = vnet[0] | vnet[1] == 0 && !long;
    let head_max = if asks_nothing { HEAD_PLAIN } else { HEAD_MAX };
    match len {
        ..RUNT_MAX => (false, len),
        RUNT_MAX..=FRAME_LEN_MAX => (asks_nothing, len.min(head_max)),
        // Nothing of a frame that is too long is looked at; what is left of the frame before must not be either.
        _ => (false, 0),
    }
}
