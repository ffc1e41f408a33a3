//! An epoll instance that owns its descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use epoll::{ControlOptions, Event, Events};

/// How a descriptor is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Ready as long as it is readable.
    Level,
    /// Ready once for each write to it: an eventfd need not be read.
    Edge,
}

/// Tells which of many descriptors are readable.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// A poller that watches nothing yet.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let fd = epoll::create(true)?;
        // SAFETY: `epoll::create` has just made the descriptor, and nobody else knows it.
        Ok(Self { epoll: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// A handle on the same poller, for whoever ends what it watches.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { epoll: self.epoll.try_clone()? })
    }

    /// Watches `fd`; `token` names it in [`Self::wait`].
    ///
    /// # Errors
    /// When the descriptor cannot be watched (a regular file), is watched already, or memory is short.
    pub fn add(&self, fd: impl AsFd, trigger: Trigger, token: u64) -> io::Result<()> {
        let mut events = Events::EPOLLIN;
        if trigger == Trigger::Edge {
            events |= Events::EPOLLET;
        }
        let fd = fd.as_fd().as_raw_fd();
        epoll::ctl(self.epoll.as_raw_fd(), ControlOptions::EPOLL_CTL_ADD, fd, Event::new(events, token))
    }

    /// Watches `fd` no longer. To be called before the descriptor is closed: another copy of it, in the frontend, would
    /// keep it in the kernel's list.
    pub fn remove(&self, fd: impl AsFd) {
        let fd = fd.as_fd().as_raw_fd();
        // Fails only when the descriptor was not watched, and then there is nothing to do.
        let _ = epoll::ctl(self.epoll.as_raw_fd(), ControlOptions::EPOLL_CTL_DEL, fd, Event::new(Events::empty(), 0));
    }

    /// Waits until a descriptor is ready or `timeout_ms` have passed (-1: for ever), and hands each one's token to
    /// `each`. A signal ends the wait early.
    ///
    /// # Errors
    /// None that a caller could mend.
    pub fn wait(&self, timeout_ms: i32, mut each: impl FnMut(u64)) -> io::Result<()> {
        let mut ready = [Event::new(Events::empty(), 0); 64];
        match epoll::wait(self.epoll.as_raw_fd(), timeout_ms, &mut ready) {
            Ok(n) => ready[..n].iter().for_each(|event| each(event.data)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::EventFd;

    #[test]
    fn an_edge_is_reported_for_each_write_without_reading() {
        let (poller, event) = (Poller::new().unwrap(), EventFd::new().unwrap());
        poller.add(&event, Trigger::Edge, 9).unwrap();
        for round in 0..3 {
            event.write(1).unwrap();
            let mut seen = Vec::new();
            poller.wait(0, |token| seen.push(token)).unwrap();
            assert_eq!(seen, [9], "round {round}");
            poller.wait(0, |_| panic!("reported twice in round {round}")).unwrap();
        }
        poller.remove(&event);
        event.write(1).unwrap();
        poller.wait(0, |_| panic!("no longer watched")).unwrap();
    }
}
