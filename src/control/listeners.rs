//! Sockets on which VMs connect to us.
//!
//! Theory of operation. A listener is armed (in the epoll set) or paused. It is paused when there are too few descriptors
//! for one more port, or when a port could not be made for another reason: what waits to be accepted then waits on, which
//! a VMM takes better than a connection that ends at once, and a loop that cannot accept does not spin. Paused listeners
//! are armed again when a port has ended or some time has passed. The trouble is logged once, until
//! nobody waits any more.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::source::Source;
use super::{FDS_PER_PORT, FDS_SPARE};
use crate::sys::rlimit::free_fds;
use crate::sys::socket::BoundSocket;

/// VMs accepted on one listener before anything else is looked at.
pub(super) const ACCEPTS_PER_TURN_MAX: usize = 16;

/// A socket to accept on.
#[derive(Debug)]
pub(super) enum Door {
    /// We bound it.
    Bound(BoundSocket),
    /// It was left to us.
    Inherited(UnixListener),
}

impl Door {
    fn listener(&self) -> &UnixListener {
        match self {
            Door::Bound(socket) => socket.listener(),
            Door::Inherited(listener) => listener,
        }
    }
}

/// All sockets to accept on.
#[derive(Debug)]
pub(super) struct Listeners {
    doors: Vec<(Door, bool)>,
    nofile_limit: u64,
    /// There is trouble, and it has been logged.
    troubled: bool,
}

impl Listeners {
    /// None yet. `nofile_limit` is the process's limit on descriptors.
    pub(super) fn new(nofile_limit: u64) -> Self {
        Self { doors: Vec::new(), nofile_limit, troubled: false }
    }

    /// Adds one, and arms it.
    pub(super) fn add(&mut self, door: Door, epoll: &Epoll) -> io::Result<()> {
        let index = self.doors.len();
        self.doors.push((door, true));
        self.arm(index, epoll)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.doors.is_empty()
    }

    /// Whether one is paused.
    pub(super) fn any_paused(&self) -> bool {
        self.doors.iter().any(|(_, paused)| *paused)
    }

    /// Accepts on one listener while VMs wait there. `attach` makes a port of a connection.
    pub(super) fn accept(
        &mut self,
        index: u32,
        epoll: &Epoll,
        mut attach: impl FnMut(UnixStream) -> io::Result<u32>,
    ) -> io::Result<()> {
        let Ok(index) = usize::try_from(index) else { return Ok(()) };
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            let Some((door, false)) = self.doors.get(index) else { return Ok(()) };
            let accepted = enough_fds(epoll.0.as_fd(), self.nofile_limit).and_then(|()| door.listener().accept());
            match accepted.and_then(|(stream, _)| attach(stream)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Nobody waits any more.
                    self.troubled = false;
                    return Ok(());
                }
                // The VMM gave up waiting.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                Err(error) => return self.pause(index, &error, epoll),
            }
        }
        Ok(())
    }

    fn pause(&mut self, index: usize, error: &io::Error, epoll: &Epoll) -> io::Result<()> {
        if !std::mem::replace(&mut self.troubled, true) {
            tracing::warn!(%error, "no more VMs can come in for now; those that wait are let in when a port has ended");
        }
        let Some((door, paused)) = self.doors.get_mut(index) else { return Ok(()) };
        *paused = true;
        Ok(epoll.delete(door.listener())?)
    }

    /// Arms all that are paused. One that the system refuses stays paused until the next time.
    pub(super) fn resume(&mut self, epoll: &Epoll) {
        for index in 0..self.doors.len() {
            if let Err(error) = self.arm(index, epoll) {
                tracing::debug!(%error, "a listener stays paused");
            }
        }
    }

    fn arm(&mut self, index: usize, epoll: &Epoll) -> io::Result<()> {
        let Some((door, paused @ true)) = self.doors.get_mut(index) else { return Ok(()) };
        let token = Source::Listener(u32::try_from(index).unwrap_or(u32::MAX)).token();
        epoll.add(door.listener(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        *paused = false;
        Ok(())
    }
}

/// Fails like accept(2) does when the descriptors are used up, and a little earlier: see [`FDS_SPARE`].
fn enough_fds(any: BorrowedFd<'_>, limit: u64) -> io::Result<()> {
    if free_fds(any, limit)? < FDS_PER_PORT + FDS_SPARE {
        return Err(nix::errno::Errno::EMFILE.into());
    }
    Ok(())
}
