//! A frame that is read from an uplink straight into the buffers of the only guest that can receive it.
//!
//! Theory of operation. [`InPlace::lend`] notes where the next frame for a receive ring would go, and takes none of the
//! buffers. There the kernel puts a frame, but for its first bytes, which come into private memory. From then on it is
//! a frame like any other, which happens to lie where it goes: it is judged by its private head, and when it is
//! delivered to that ring, whoever copies finds the rest in its place. If it is dropped instead, the buffers are still
//! the guest's next ones, and what is in them was not announced.
//!
//! What must hold: the guest is the only one that could receive the frame, whatever is in it, for it can see what lies
//! in its buffers. Between the lending and the delivery, the ring and its memory are left alone: all of that is done by
//! one thread.

use super::copy::skip_front;
use super::gather::PIECES_MAX;
use super::memory::Span;
use super::rx::{RxRing, VNET_HEADER_WRITTEN};
use super::tx::{Burst, FRAME_LEN_MAX, HEAD_MAX, VNET_HEADER_READ};

/// Pieces that are not the guest's: the virtio-net header, the head, and a byte that no frame has.
const PIECES_OURS: usize = 3;

/// See the module's theory of operation. Belongs to a worker and is filled again and again.
#[derive(Default)]
pub struct InPlace {
    burst: Burst,
    vnet: [u8; VNET_HEADER_WRITTEN],
    /// Shows that a frame was longer than any may be.
    beyond: u8,
    pieces: Vec<libc::iovec>,
}

// SAFETY: the pieces are looked at only by the call that lists them (`pieces`), which borrows all that they point to.
unsafe impl Send for InPlace {}

impl std::fmt::Debug for InPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InPlace").field("burst", &self.burst).finish_non_exhaustive()
    }
}

impl InPlace {
    /// Makes the next buffers of a ring the room for a frame of up to `len` bytes. Returns how long it may be: less if
    /// there is less room, nothing if there is none.
    pub fn lend(&mut self, ring: &mut RxRing, len: usize) -> usize {
        let spans = self.burst.begin_in_place(ring.mem());
        let room = ring.look_ahead(len.min(FRAME_LEN_MAX), spans);
        if room == 0 {
            return 0;
        }
        let mut first = 0;
        skip_front(spans, &mut first, (ring.header_len() + HEAD_MAX).min(ring.header_len() + room));
        spans.drain(..first);
        if spans.len() + PIECES_OURS <= PIECES_MAX { room } else { 0 }
    }

    /// The room behind a header of `header` bytes, up to `max` bytes of it, for a system call that fills it. Before it
    /// there is `scrap` again and again, for the `skip` bytes that come first and nobody wants. As [`Self::pieces`]
    /// else.
    pub(crate) fn payload_pieces(
        &mut self,
        (scrap, skip): (&mut [u8], usize),
        header: usize,
        max: usize,
    ) -> &[libc::iovec] {
        let (head, spans) = self.burst.room_in_place();
        let mut left = max;
        let mut piece = |base: *mut u8, len: usize| {
            let len = len.min(left);
            left -= len;
            libc::iovec { iov_base: base.cast(), iov_len: len }
        };
        self.pieces.clear();
        for at in (0..skip).step_by(scrap.len().max(1)) {
            let iov_len = scrap.len().min(skip - at);
            self.pieces.push(libc::iovec { iov_base: scrap.as_mut_ptr().cast(), iov_len });
        }
        let payload = &mut head[header.min(HEAD_MAX)..];
        self.pieces.push(piece(payload.as_mut_ptr(), payload.len()));
        self.pieces.extend(spans.iter().map(|Span { ptr, len }| piece(*ptr, *len)));
        &self.pieces
    }

    /// Writes the frame's first bytes, which are ours.
    pub fn set_header(&mut self, header: &[u8]) {
        let (head, _) = self.burst.room_in_place();
        head[..header.len()].copy_from_slice(header);
    }

    /// The room, for a system call that fills it, in order: a virtio-net header of [`VNET_HEADER_WRITTEN`] bytes, the
    /// frame, and one byte more. All of it is mapped, and nobody has a reference into it, as long as this is borrowed.
    pub(crate) fn pieces(&mut self) -> &[libc::iovec] {
        let piece = |base: *mut u8, len: usize| libc::iovec { iov_base: base.cast(), iov_len: len };
        let (head, spans) = self.burst.room_in_place();
        self.pieces.clear();
        self.pieces.push(piece(self.vnet.as_mut_ptr(), self.vnet.len()));
        self.pieces.push(piece(head.as_mut_ptr(), head.len()));
        self.pieces.extend(spans.iter().map(|Span { ptr, len }| piece(*ptr, *len)));
        self.pieces.push(piece(&raw mut self.beyond, 1));
        &self.pieces
    }

    /// The virtio-net header that came with the frame.
    pub fn vnet(&self) -> &[u8; VNET_HEADER_WRITTEN] {
        &self.vnet
    }

    /// The frame's first bytes, after `len` bytes of it have come.
    pub fn head(&mut self, len: usize) -> &[u8] {
        let (head, _) = self.burst.room_in_place();
        &head[..len.min(HEAD_MAX)]
    }

    /// The frame, of which `len` bytes have come, with a virtio-net header for those who judge it. To be asked once
    /// after each time that the room was filled.
    pub fn frame(&mut self, vnet: [u8; VNET_HEADER_READ], len: usize) -> &Burst {
        self.burst.fill_in_place(vnet, len.min(FRAME_LEN_MAX));
        &self.burst
    }

    /// Lets go of the guest's memory.
    pub fn release(&mut self) {
        self.burst.release();
    }
}
