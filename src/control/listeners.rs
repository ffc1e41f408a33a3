//! Sockets on which VMs connect to us.
//!
//! Theory of operation. A listener is armed (in the epoll set) or paused. It is paused when there is no room for one
//! more port, or when a port could not be made for another reason: what waits to be accepted then waits on, which a VMM
//! takes better than a connection that ends at once, and a loop that cannot accept does not spin. Paused listeners are
//! armed again when a port has ended or some time has passed. The trouble is logged once, until nobody waits any more.

use std::io;
use std::os::unix::net::UnixListener;

use super::ports::Ports;
use super::source::Source;
use crate::sys::poller::{Poller, Trigger};
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
#[derive(Debug, Default)]
pub(super) struct Listeners {
    /// Each with whether it is paused.
    doors: Vec<(Door, bool)>,
    /// There is trouble, and it has been logged.
    troubled: bool,
}

impl Listeners {
    /// Adds one, and arms it.
    pub(super) fn add(&mut self, door: Door, poller: &Poller) -> io::Result<()> {
        let index = self.doors.len();
        self.doors.push((door, true));
        self.arm(index, poller)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.doors.is_empty()
    }

    /// Whether one is paused.
    pub(super) fn any_paused(&self) -> bool {
        self.doors.iter().any(|(_, paused)| *paused)
    }

    /// Accepts on one listener while VMs wait there and there is room for them in `ports`.
    pub(super) fn accept(&mut self, index: u32, poller: &Poller, ports: &mut Ports) {
        let Ok(index) = usize::try_from(index) else { return };
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            let Some((door, false)) = self.doors.get(index) else { return };
            let accepted = ports.room().and_then(|()| door.listener().accept());
            match accepted.and_then(|(stream, _)| ports.attach(stream, "")) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Nobody waits any more.
                    self.troubled = false;
                    return;
                }
                // The VMM gave up waiting.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    self.pause(index, &error, poller);
                    return;
                }
            }
        }
    }

    fn pause(&mut self, index: usize, error: &io::Error, poller: &Poller) {
        if !std::mem::replace(&mut self.troubled, true) {
            tracing::warn!(%error, "no more VMs can come in for now; those that wait are let in when a port has ended");
        }
        let Some((door, paused)) = self.doors.get_mut(index) else { return };
        *paused = true;
        poller.remove(door.listener());
    }

    /// Arms all that are paused. One that the system refuses stays paused until the next time.
    pub(super) fn resume(&mut self, poller: &Poller) {
        for index in 0..self.doors.len() {
            if let Err(error) = self.arm(index, poller) {
                tracing::debug!(%error, "a listener stays paused");
            }
        }
    }

    fn arm(&mut self, index: usize, poller: &Poller) -> io::Result<()> {
        let Some((door, paused @ true)) = self.doors.get_mut(index) else { return Ok(()) };
        let token = Source::Listener(u32::try_from(index).unwrap_or(u32::MAX)).token();
        poller.add(door.listener(), Trigger::Level, token)?;
        *paused = false;
        Ok(())
    }
}
