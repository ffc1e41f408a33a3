//! A frame as pieces of memory for the kernel to read: the way from a guest's descriptors to a device without a copy of
//! ours.
//!
//! Theory of operation. A [`Gather`] is a list of pieces that belongs to an uplink and is filled again for each frame.
//! What [`Gather::collect`] hands out borrows the list, the frame and the header in front of it, so the guest's memory
//! stays mapped until the kernel has read it.
//!
//! Invariant: what is judged is what is delivered, as in `copy.rs`. The first piece after the header is the private
//! copy of the frame's first bytes; only what follows is read from the guest's memory, once, by the kernel. If that
//! memory has gone away meanwhile, the kernel says EFAULT, which costs this frame alone.

use std::ops::Range;

use super::copy::Bytes;

/// Pieces that the kernel takes at once (`UIO_MAXIOV`).
pub const PIECES_MAX: usize = 1024;

/// Room for the pieces of one frame.
#[derive(Default)]
pub struct Gather {
    pieces: Vec<libc::iovec>,
    /// Of a row of frames: where the pieces of each end.
    ends: Vec<usize>,
    /// A frame in more pieces than the kernel takes, in one.
    whole: Vec<u8>,
}

// SAFETY: outside of `collect` and what it hands out, which borrows the list, no piece is looked at, so the addresses
// of an earlier frame's pieces are numbers that mean nothing.
unsafe impl Send for Gather {}

impl std::fmt::Debug for Gather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gather").field("room", &self.pieces.capacity()).finish_non_exhaustive()
    }
}

impl Gather {
    /// Lists `header` and then the pieces of `bytes`.
    #[inline]
    pub fn collect<'a>(&'a mut self, header: &'a [u8], bytes: &Bytes<'a>) -> Pieces<'a> {
        self.pieces.clear();
        self.pieces.push(piece(header.as_ptr(), header.len()));
        let head = bytes.head();
        self.pieces.push(piece(head.as_ptr(), head.len()));
        for span in bytes.spans() {
            if self.pieces.len() == PIECES_MAX {
                self.join(header, bytes);
                break;
            }
            self.pieces.push(piece(span.ptr, span.len));
        }
        Pieces { pieces: &self.pieces, len: header.len() + bytes.len() }
    }

    /// Lists the pieces of a part of a frame: `len` bytes after the first `skip`, which it must have.
    pub fn collect_part<'a>(&'a mut self, bytes: &Bytes<'a>, skip: usize, len: usize) -> Pieces<'a> {
        debug_assert!(skip + len <= bytes.len());
        self.pieces.clear();
        let head = bytes.head();
        let mut parts = Part { skip, left: len };
        self.pieces.extend(parts.of(head.as_ptr(), head.len()));
        for span in bytes.spans() {
            if self.pieces.len() == PIECES_MAX {
                bytes.copy_out(&mut self.whole);
                self.pieces.clear();
                self.pieces.push(piece(self.whole[skip..].as_ptr(), len));
                break;
            }
            self.pieces.extend(parts.of(span.ptr, span.len));
        }
        Pieces { pieces: &self.pieces, len }
    }

    /// Lists the pieces of parts of several frames, as far as all together are no more than the kernel takes of one.
    pub fn collect_row<'a>(&'a mut self, parts: impl Iterator<Item = (Bytes<'a>, Range<usize>)>) -> Row<'a> {
        self.pieces.clear();
        self.ends.clear();
        for (bytes, part) in parts {
            debug_assert!(part.end <= bytes.len());
            let head = bytes.head();
            let mut listed = Part { skip: part.start, left: part.len() };
            self.pieces.extend(listed.of(head.as_ptr(), head.len()));
            for span in bytes.spans() {
                self.pieces.extend(listed.of(span.ptr, span.len));
            }
            if self.pieces.len() > PIECES_MAX {
                break;
            }
            self.ends.push(self.pieces.len());
        }
        Row { pieces: &self.pieces, ends: &self.ends }
    }

    /// Makes one piece of the whole frame.
    #[cold]
    fn join(&mut self, header: &[u8], bytes: &Bytes<'_>) {
        bytes.copy_out(&mut self.whole);
        self.pieces.clear();
        self.pieces.push(piece(header.as_ptr(), header.len()));
        self.pieces.push(piece(self.whole.as_ptr(), self.whole.len()));
    }
}

/// What is still to be skipped and to be listed.
struct Part {
    skip: usize,
    left: usize,
}

impl Part {
    /// The bytes of a piece that are in the part.
    fn of(&mut self, base: *const u8, len: usize) -> Option<libc::iovec> {
        let skipped = self.skip.min(len);
        let listed = self.left.min(len - skipped);
        self.skip -= skipped;
        self.left -= listed;
        // Not beyond the piece's end, which is all that it is to be good for.
        (listed > 0).then(|| piece(base.wrapping_add(skipped), listed))
    }
}

fn piece(base: *const u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len }
}

/// One frame and what stands before it, as at most [`PIECES_MAX`] pieces.
#[derive(Debug)]
pub struct Pieces<'a> {
    pieces: &'a [libc::iovec],
    len: usize,
}

impl Pieces<'_> {
    /// The pieces, for a system call that reads them: they are mapped as long as this is borrowed, but a guest may
    /// change what is in them at any time.
    #[inline]
    pub(crate) fn as_iovecs(&self) -> &[libc::iovec] {
        self.pieces
    }

    /// Bytes of all pieces together.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Parts of several frames.
#[derive(Debug)]
pub struct Row<'a> {
    pieces: &'a [libc::iovec],
    ends: &'a [usize],
}

impl Row<'_> {
    /// The pieces of each, as [`Pieces::as_iovecs`].
    pub(crate) fn as_iovecs(&self) -> impl Iterator<Item = &[libc::iovec]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(self.ends).map(|(start, end)| &self.pieces[start..*end])
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}
