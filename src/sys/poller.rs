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

/// How many sockets [`Poller::wait_for_sockets`] tells of in one go.
pub const READY_MAX: usize = 64;

/// What has happened to a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read, or the peer will send no more.
    pub readable: bool,
    /// The peer will send no more than what there is.
    pub ended: bool,
    /// There is room to write.
    pub writable: bool,
    /// Neither side will send any more.
    pub hung_up: bool,
    /// It has an error.
    pub failed: bool,
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

    /// Watches a socket for all that may happen to it, each time that it does; `token` names it in
    /// [`Self::wait_for_sockets`].
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn add_socket(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let events = Self::socket_events();
        let fd = fd.as_fd().as_raw_fd();
        epoll::ctl(self.epoll.as_raw_fd(), ControlOptions::EPOLL_CTL_ADD, fd, Event::new(events, token))
    }

    /// Looks at a socket that [`Self::add_socket`] has watched as if it were new: what it is now is told again, and the
    /// kernel takes note that somebody waits for what it is not.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn look_again(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let events = Self::socket_events();
        let fd = fd.as_fd().as_raw_fd();
        epoll::ctl(self.epoll.as_raw_fd(), ControlOptions::EPOLL_CTL_MOD, fd, Event::new(events, token))
    }

    fn socket_events() -> Events {
        Events::EPOLLIN | Events::EPOLLOUT | Events::EPOLLRDHUP | Events::EPOLLET
    }

    /// Hands what has happened to sockets, without waiting for more, to `each`. Returns how many there were; as many as
    /// [`READY_MAX`]: there may be more.
    ///
    /// # Errors
    /// None that a caller could mend.
    pub fn wait_for_sockets(&self, mut each: impl FnMut(u64, Ready)) -> io::Result<usize> {
        let mut ready = [Event::new(Events::empty(), 0); READY_MAX];
        let n = match epoll::wait(self.epoll.as_raw_fd(), 0, &mut ready) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &ready[..n] {
            let has = |events: Events| event.events & events.bits() != 0;
            let ready = Ready {
                readable: has(Events::EPOLLIN | Events::EPOLLRDHUP),
                ended: has(Events::EPOLLRDHUP),
                writable: has(Events::EPOLLOUT),
                hung_up: has(Events::EPOLLHUP),
                failed: has(Events::EPOLLERR),
            };
            each(event.data, ready);
        }
        Ok(n)
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
        let mut ready = [Event::new(Events::empty(), 0); READY_MAX];
        match epoll::wait(self.epoll.as_raw_fd(), timeout_ms, &mut ready) {
            Ok(n) => ready[..n].iter().for_each(|event| each(event.data)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl AsFd for Poller {
    /// Readable when something that is watched is ready.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
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
