//! A timer to wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// The shortest time: zero would stop the timer.
const DELAY_MIN: Duration = Duration::from_millis(1);

/// A timer; stopped at first.
#[derive(Debug)]
pub(super) struct Timer(TimerFd);

impl Timer {
    /// A stopped timer.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?))
    }

    /// Goes off once, after `delay`.
    pub(super) fn once(&self, delay: Duration) -> io::Result<()> {
        self.set(Expiration::OneShot(TimeSpec::from_duration(delay.max(DELAY_MIN))))
    }

    /// Goes off again and again.
    pub(super) fn every(&self, interval: Duration) -> io::Result<()> {
        self.set(Expiration::Interval(TimeSpec::from_duration(interval.max(DELAY_MIN))))
    }

    fn set(&self, expiration: Expiration) -> io::Result<()> {
        Ok(self.0.set(expiration, TimerSetTimeFlags::empty())?)
    }

    /// Stops it.
    pub(super) fn stop(&self) -> io::Result<()> {
        Ok(self.0.unset()?)
    }

    /// Takes note that it went off, so that it is quiet again.
    pub(super) fn take(&self) -> io::Result<()> {
        match self.0.wait() {
            Ok(()) | Err(Errno::EAGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
