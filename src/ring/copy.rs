//! Copies between guests, and between a guest and private memory. The only place where frame bytes move.
//!
//! Invariant: what is judged is what is delivered. A frame's first bytes (`head`) are read once, into private memory,
//! when the frame is taken, judged there and written to every receiver from there, so a guest that rewrites a frame
//! while we forward it cannot have one header judged and another delivered. The rest is read once for each receiver.

use super::memory::Span;

/// Bytes of a frame that are copied to be judged when it asks for no offload: one cache line.
pub(super) const HEAD_PLAIN: usize = 64;
/// Bytes that move between memory and processor together.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// The bytes of one frame: a private copy of its first bytes, and where the rest lies in its sender's memory.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    head: &'a [u8],
    /// What follows the head, if that is in one piece.
    next: Span,
    /// What follows.
    rest: &'a [Span],
    len: usize,
}

impl<'a> Bytes<'a> {
    /// A frame that is wholly in private memory.
    pub fn private(frame: &'a [u8]) -> Self {
        Self { head: frame, next: Span::EMPTY, rest: &[], len: frame.len() }
    }

    /// `next` and `rest` hold `len - head.len()` bytes of mapped guest memory, at least as long as `'a`.
    #[inline(always)]
    pub(super) fn guest(head: &'a [u8], next: Span, rest: &'a [Span], len: usize) -> Self {
        debug_assert_eq!(len, head.len() + next.len + rest.iter().map(|s| s.len).sum::<usize>());
        Self { head, next, rest, len }
    }

    /// The private copy of the first bytes: an Ethernet header at least, of a frame that was judged.
    #[inline(always)]
    pub fn head(&self) -> &'a [u8] {
        self.head
    }

    /// What follows the head, in order.
    #[inline(always)]
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> + use<'a> {
        [self.next].into_iter().filter(|span| span.len > 0).chain(self.rest.iter().copied())
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the frame into `out`, which is cleared first: for what cannot be done in the sender's memory.
    pub fn copy_out(&self, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(self.len);
        out.extend_from_slice(self.head);
        for span in self.spans() {
            let at = out.len();
            // SAFETY: the span is mapped guest memory, `out` has `len` bytes reserved of which this span is a part (see
            // `guest`), and private memory does not overlap a guest's. All bytes below the new length are written.
            unsafe {
                std::ptr::copy_nonoverlapping(span.ptr, out.as_mut_ptr().add(at), span.len);
                out.set_len(at + span.len);
            }
        }
    }
}

/// Copies the first `N` bytes of a span into private memory. `false` if it is shorter; then nothing is copied. To be
/// followed by [`what_is_copied_stays`] before the copy is looked at.
#[inline(always)]
pub(super) fn copy_front<const N: usize>(span: Span, out: &mut [u8; N]) -> bool {
    if span.len < N {
        return false;
    }
    // SAFETY: `N` bytes are inside the span, which is mapped guest memory; `out` is private and so does not overlap it.
    unsafe { std::ptr::copy_nonoverlapping(span.ptr, out.as_mut_ptr(), N) };
    true
}

/// The same for a head of one cache line, where the span is known to be as long.
#[inline(always)]
pub(super) fn copy_line<const N: usize>(span: Span, out: &mut [u8; N]) {
    const { assert!(N >= HEAD_PLAIN) };
    debug_assert!(span.len >= HEAD_PLAIN);
    // SAFETY: as in `copy_front`.
    unsafe { std::ptr::copy_nonoverlapping(span.ptr, out.as_mut_ptr(), HEAD_PLAIN) };
}

/// What was copied is what is judged: the compiler must not read the guest's memory again in its place.
#[inline(always)]
pub(super) fn what_is_copied_stays() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

/// Writes `header` and then `bytes` to the front of `to`, which must hold as many.
#[inline(never)]
pub(super) fn fill(header: &[u8], bytes: &Bytes<'_>, to: Span) {
    debug_assert!(to.len >= header.len() + bytes.len);
    let head = bytes.head;
    // SAFETY: header, head and rest are `header.len() + bytes.len` bytes together (see `guest` and `private`), which
    // the caller says `to` holds, so every write stays inside `to`, which is mapped guest memory. Header and head are
    // private memory, which overlaps no guest's; the rest may be of the same guest, so that copy may overlap.
    unsafe {
        copy_usual::<12>(header, to.ptr);
        let mut at = to.ptr.add(header.len());
        copy_usual::<HEAD_PLAIN>(head, at);
        at = at.add(head.len());
        for span in bytes.spans() {
            bring(span.ptr, at, span.len);
            at = at.add(span.len);
        }
    }
}

/// Copies `len` bytes, which may overlap, or be in their place already.
///
/// # Safety
/// `from` is readable and `to` writable for as many bytes.
#[inline(always)]
unsafe fn bring(from: *const u8, to: *mut u8, len: usize) {
    if !std::ptr::eq(from, to) {
        // SAFETY: as the caller says.
        unsafe { std::ptr::copy(from, to, len) };
    }
}

/// Writes the first cache line of a frame that leaves nothing to its receiver to the front of `to`, which must hold as
/// many bytes: without a call, since many frames are no longer.
#[inline(always)]
pub(super) fn fill_plain<const HEADER_LEN: usize, const N: usize>(head: &[u8; N], to: Span) {
    const { assert!((HEADER_LEN == 10 || HEADER_LEN == 12) && HEAD_PLAIN <= N) };
    debug_assert!(to.len >= HEADER_LEN + HEAD_PLAIN);
    // SAFETY: `to` holds as many bytes, as the caller says; the head is longer than a line, and private memory, which
    // overlaps no guest's.
    unsafe {
        to.ptr.cast::<[u8; 8]>().write_unaligned([0; 8]);
        if HEADER_LEN == 12 {
            // `num_buffers`, behind two bytes of `csum_offset`.
            to.ptr.add(8).cast::<[u8; 4]>().write_unaligned([0, 0, 1, 0]);
        } else {
            to.ptr.add(8).cast::<[u8; 2]>().write_unaligned([0; 2]);
        }
        std::ptr::copy_nonoverlapping(head.as_ptr(), to.ptr.add(HEADER_LEN), HEAD_PLAIN);
    }
}

/// Writes what follows a frame's head to the front of `to`, which must hold as many bytes.
#[inline(never)]
pub(super) fn fill_rest(bytes: &Bytes<'_>, to: Span) {
    debug_assert!(to.len >= bytes.len - bytes.head.len());
    let mut at = to.ptr;
    for span in bytes.spans() {
        // SAFETY: as in `fill`.
        unsafe {
            bring(span.ptr, at, span.len);
            at = at.add(span.len);
        }
    }
}

/// Has the processor fetch a frame's rest and the buffer that it is about to be copied into, while the frame before it
/// is being copied: it finds out by itself only with the third cache line of each. Changes nothing.
#[inline(never)]
pub(super) fn expect_copy(from: Span, to: Span) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..from.len.min(to.len)).step_by(CACHE_LINE) {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch touches no memory that the program could tell; both addresses are inside of their spans.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(from.ptr.add(at).cast::<i8>());
            _mm_prefetch::<_MM_HINT_ET0>(to.ptr.add(at).cast::<i8>());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, to);
}

/// Copies `from`, whose length is usually `N`: then without a call.
///
/// # Safety
/// `to` is writable for as many bytes, and they do not overlap.
#[inline(always)]
unsafe fn copy_usual<const N: usize>(from: &[u8], to: *mut u8) {
    // SAFETY: as the caller says.
    unsafe {
        match from.first_chunk::<N>() {
            Some(whole) if from.len() == N => to.cast::<[u8; N]>().write_unaligned(*whole),
            _ => std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()),
        }
    }
}

/// Takes `out.len()` bytes from the front of `spans` into private memory, and shortens `spans` by them: spans before
/// `*first` are used up. The spans must hold that many bytes.
#[inline(never)]
pub(super) fn take_front(spans: &mut [Span], first: &mut usize, out: &mut [u8]) {
    let mut at = 0;
    while at < out.len() {
        let Some(span) = spans.get_mut(*first) else { return };
        let n = span.len.min(out.len() - at);
        // SAFETY: `n` bytes are inside the span, which is mapped guest memory, and inside `out`, which is private and
        // so does not overlap it. The rest of the span stays inside its mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(span.ptr, out.as_mut_ptr().add(at), n);
            span.ptr = span.ptr.add(n);
        }
        span.len -= n;
        at += n;
        if span.len == 0 {
            *first += 1;
        }
    }
    what_is_copied_stays();
}

/// Drops `n` bytes from the front of `spans`, as [`take_front`] does, without reading them.
#[inline]
pub(super) fn skip_front(spans: &mut [Span], first: &mut usize, mut n: usize) {
    while n > 0 {
        let Some(span) = spans.get_mut(*first) else { return };
        let some = span.len.min(n);
        // SAFETY: `some` is at most the span's length, so the rest of the span stays inside its mapping.
        span.ptr = unsafe { span.ptr.add(some) };
        span.len -= some;
        n -= some;
        if span.len == 0 {
            *first += 1;
        }
    }
}

/// Writes `header` and then `bytes` into `to`, in order. `to` must hold at least as many bytes; what does not fit is
/// not written.
#[inline]
pub(super) fn scatter(header: &[u8], bytes: &Bytes<'_>, to: &[Span]) {
    let mut cursor = Cursor { to, offset: 0 };
    cursor.write(header.as_ptr(), header.len());
    cursor.write(bytes.head.as_ptr(), bytes.head.len());
    for span in bytes.spans() {
        cursor.write(span.ptr, span.len);
    }
}

struct Cursor<'a> {
    to: &'a [Span],
    offset: usize,
}

impl Cursor<'_> {
    /// Writes `len` bytes from `from`, which must be mapped and readable.
    #[inline]
    fn write(&mut self, mut from: *const u8, mut len: usize) {
        while len > 0 {
            let Some(span) = self.to.first() else { return };
            let n = len.min(span.len - self.offset);
            // SAFETY: `n` bytes from `offset` are inside the span, which is mapped guest memory; `from` is readable for
            // `len >= n` bytes. Two guests' memories are different mappings, but one guest's frame may be written to
            // memory that it also sends from, so the copy may overlap.
            unsafe {
                bring(from, span.ptr.add(self.offset), n);
                from = from.add(n);
            }
            len -= n;
            self.offset += n;
            if self.offset == span.len {
                self.to = &self.to[1..];
                self.offset = 0;
            }
        }
    }
}
