//! What a descriptor that somebody else sent us really is.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};

/// The length in bytes of a file that can be mapped shared, readable and writable.
///
/// # Errors
/// Says what the descriptor is instead.
pub fn shareable_len(fd: &OwnedFd) -> Result<u64, String> {
    let stat = fstat(fd).map_err(|error| format!("its descriptor cannot be looked at: {error}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("its descriptor is not a file that can be mapped (a memfd, or a file in tmpfs or hugetlbfs)".into());
    }
    let flags = fcntl_getfl(fd).map_err(|error| format!("its descriptor cannot be looked at: {error}"))?;
    if flags & OFlags::RWMODE != OFlags::RDWR || flags.contains(OFlags::PATH) {
        return Err("its file is not open for reading and writing".into());
    }
    u64::try_from(stat.st_size).map_err(|_| "its file has no size".into())
}

/// Makes sure that `fd` is something on which an event can be told, an eventfd, a pipe or (User Mode Linux) a socket,
/// and that telling or reading it never blocks.
///
/// # Errors
/// Says what is wrong with it.
pub fn make_event(fd: &OwnedFd) -> Result<(), String> {
    let stat = fstat(fd).map_err(|error| format!("cannot be looked at: {error}"))?;
    let is_pipe = matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket);
    if !is_pipe && !is_eventfd(fd) {
        return Err("is neither an eventfd nor a pipe".into());
    }
    let flags = fcntl_getfl(fd).map_err(|error| format!("cannot be looked at: {error}"))?;
    if flags.contains(OFlags::PATH) {
        return Err("is not open".into());
    }
    fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|error| format!("cannot be made non-blocking: {error}"))
}

/// Whether `fd` is a socket.
pub fn is_socket(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    std::fs::read_link(link).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}
