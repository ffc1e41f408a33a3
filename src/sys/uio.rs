//! Frames to and from descriptors that take and give them whole: one call, one frame.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::ring::{InPlace, Pieces};

/// Writes one frame. Returns how many bytes of it were taken.
///
/// # Errors
/// Those of writev(2). EFAULT when the guest's memory under the frame has gone away.
#[inline]
pub fn write_gather(fd: impl AsFd, pieces: &Pieces<'_>) -> io::Result<usize> {
    let iovecs = pieces.as_iovecs();
    // No more than `PIECES_MAX`.
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(0);
    // SAFETY: the pieces are mapped as long as they are borrowed, and the kernel only reads them.
    let written = unsafe { libc::writev(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Reads one frame: its first bytes into `header`, what follows into `frame`. Returns how many bytes were given.
///
/// # Errors
/// Those of readv(2).
#[inline]
pub fn read_scatter(fd: impl AsFd, header: &mut [u8], frame: &mut [u8]) -> io::Result<usize> {
    let mut parts = [io::IoSliceMut::new(header), io::IoSliceMut::new(frame)];
    Ok(rustix::io::readv(fd, &mut parts)?)
}

/// Reads one frame straight into where it goes.
///
/// Returns how many bytes were given, the virtio-net header included.
///
/// # Errors
/// Those of readv(2). Where the guest's memory under the frame has gone away, EFAULT, and the frame is lost; or none,
/// as with taps, and what the guest then finds there is not the frame.
#[inline]
pub fn read_in_place(fd: impl AsFd, frame: &mut InPlace) -> io::Result<usize> {
    let iovecs = frame.pieces();
    // No more than `PIECES_MAX`.
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(0);
    // SAFETY: the pieces are mapped, writable and nobody else's as long as they are borrowed, but for a guest's memory,
    // which that guest may read and write meanwhile, and to which there are no references.
    let read = unsafe { libc::readv(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), count) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
