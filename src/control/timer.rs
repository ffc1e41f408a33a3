//! A timer to wait for.

use std::cell::Cell;
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
pub(super) struct Timer {
    fd: TimerFd,
    /// Whether it was started by [`Self::begin`] and that was not taken note of yet.
    has_begun: Cell<bool>,
}

impl Timer {
    /// A stopped timer.
    pub(super) fn new() -> io::Result<Self> {
        let fd = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        Ok(Self { fd, has_begun: Cell::new(false) })
    }

    /// Goes off once, after `delay`.
    pub(super) fn once(&self, delay: Duration) -> io::Result<()> {
        self.set(Expiration::OneShot(TimeSpec::from_duration(delay.max(DELAY_MIN))))
    }

    /// Goes off once, after `delay`, or earlier if it has begun before: whoever begins it again and again does not put
    /// it off.
    pub(super) fn begin(&self, delay: Duration) -> io::Result<()> {
        if !self.has_begun.get() {
            self.once(delay)?;
            self.has_begun.set(true);
        }
        Ok(())
    }

    /// Goes off again and again.
    pub(super) fn every(&self, interval: Duration) -> io::Result<()> {
        self.set(Expiration::Interval(TimeSpec::from_duration(interval.max(DELAY_MIN))))
    }

    fn set(&self, expiration: Expiration) -> io::Result<()> {
        Ok(self.fd.set(expiration, TimerSetTimeFlags::empty())?)
    }

    /// Stops it.
    pub(super) fn stop(&self) -> io::Result<()> {
        self.has_begun.set(false);
        Ok(self.fd.unset()?)
    }

    /// Takes note that it went off, so that it is quiet again.
    pub(super) fn take(&self) -> io::Result<()> {
        self.has_begun.set(false);
        match self.fd.wait() {
            Ok(()) | Err(Errno::EAGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn beginning_again_does_not_put_it_off() {
        const DELAY: Duration = Duration::from_millis(50);
        let timer = Timer::new().unwrap();
        let start = Instant::now();
        let went_off = || timer.fd.get().unwrap().is_none();
        timer.begin(DELAY).unwrap();
        while !went_off() {
            assert!(start.elapsed() < DELAY * 40, "it is put off");
            std::thread::sleep(DELAY / 10);
            timer.begin(DELAY).unwrap();
        }
        assert!(start.elapsed() >= DELAY);
        // Not even now, until somebody has heard of it.
        timer.begin(DELAY).unwrap();
        assert!(went_off());
        timer.take().unwrap();
        timer.begin(DELAY).unwrap();
        assert!(!went_off(), "it runs again");
        timer.stop().unwrap();
        assert!(went_off());
    }
}
