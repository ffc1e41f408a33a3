//! How many file descriptors the process may have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// RLIMIT_NOFILE, before and after [`raise_nofile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NofileLimit {
    /// What we were started with.
    pub before: u64,
    /// What holds now.
    pub now: u64,
}

/// Raises the limit on file descriptors to the highest that we may set without privileges.
///
/// # Errors
/// When the system refuses (a sandbox may).
pub fn raise_nofile() -> io::Result<NofileLimit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(NofileLimit { before: soft, now: hard })
}

/// The most descriptors that can still be opened when `limit` holds: exact unless there are some open above the
/// lowest free number. `any` is an open descriptor.
///
/// # Errors
/// When there is not even one (EMFILE, ENFILE).
pub fn free_fds(any: BorrowedFd<'_>, limit: u64) -> io::Result<u64> {
    // The kernel gives the lowest free number, so everything below it is in use.
    let lowest = any.try_clone_to_owned()?.as_raw_fd();
    Ok(limit.saturating_sub(u64::try_from(lowest).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_lowest_free_number_tells_how_many_are_left() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let left = free_fds(file.as_fd(), 1000).unwrap();
        assert!(left > 0 && left <= 997, "{left}");
        assert_eq!(free_fds(file.as_fd(), 1).unwrap(), 0);
    }
}
