//! Telling the guest: the call descriptor (an interrupt) and the error descriptor.

use std::os::fd::OwnedFd;

/// Writes to `fd` what an eventfd takes as one event. Returns whether it was told.
///
/// Never blocks: the gate has made the descriptor non-blocking. A counter or pipe that is full has been told already; a
/// pipe without a reader belongs to a frontend that is going away.
pub fn signal(fd: Option<&OwnedFd>) -> bool {
    fd.is_some_and(|fd| nix::unistd::write(fd, &1u64.to_ne_bytes()).is_ok())
}
