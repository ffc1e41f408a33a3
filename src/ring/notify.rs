//! Telling the guest: the call descriptor (an interrupt) and the error descriptor.

use std::os::fd::OwnedFd;

use super::mailbox::RingSetup;

/// Takes the call descriptor out of the description of a ring that starts, and interrupts the guest by it: an interrupt
/// that was lost with whoever served the ring before would otherwise be waited for for ever.
pub(super) fn take_call(setup: &mut RingSetup) -> Option<OwnedFd> {
    signal(setup.call.as_ref());
    setup.call.take()
}

/// Writes to `fd` what an eventfd takes as one event. Returns whether it was told.
///
/// Never blocks: the gate has made the descriptor non-blocking. A counter or pipe that is full has been told already; a
/// pipe without a reader belongs to a frontend that is going away.
pub fn signal(fd: Option<&OwnedFd>) -> bool {
    fd.is_some_and(|fd| nix::unistd::write(fd, &1u64.to_ne_bytes()).is_ok())
}
