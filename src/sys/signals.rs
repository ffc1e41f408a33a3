//! Signals as a descriptor to wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that no longer interrupt anybody but are read from a descriptor.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks `signals` for this thread and all that it will start, and makes the descriptor. To be called before there
    /// is another thread: one that does not block them would be interrupted instead.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn block(signals: &[Signal]) -> io::Result<Self> {
        let mut set = SigSet::empty();
        signals.iter().for_each(|&signal| set.add(signal));
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal that has come, if any.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn take(&self) -> io::Result<Option<Signal>> {
        let Some(info) = self.0.read_signal()? else { return Ok(None) };
        Ok(i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Calls `start` with all signals blocked: a thread that it starts takes none, from its first moment on.
pub fn with_none_for_new_threads<T>(start: impl FnOnce() -> T) -> T {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let started = start();
    // Neither fails for any set of signals.
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    started
}
