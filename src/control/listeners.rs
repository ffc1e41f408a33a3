//! Sockets on which VMs connect to us.
//!
//! Theory of operation. A listener is armed (in the epoll set) or paused. It is paused when there is no room for one
//! more port, or when a port could not be made for another reason: what waits to be accepted then waits on, which a VMM
//! takes better than a connection that ends at once, and a loop that cannot accept does not spin. Listeners that are
//! paused for such a shortage are armed again when a port has ended or some time has passed. The trouble is logged
//! once, until nobody waits any more. A listener of a declared port is paused, too, while a VM is on that port: the
//! next one waits until it has gone.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;

use super::ports::{Common, Ports};
use super::source::{NetworkId, Source};
use super::ways::WayIn;
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

/// Whether VMs are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Armed,
    /// Something was short.
    Short,
    /// A VM is on the declared port.
    Taken,
}

#[derive(Debug)]
struct Listener {
    door: Door,
    way: WayIn,
    state: State,
}

/// All sockets of a network to accept on.
#[derive(Debug)]
pub(super) struct Listeners {
    network: NetworkId,
    /// By a number that is never used again.
    listeners: BTreeMap<u32, Listener>,
    next: u32,
    /// There is trouble, and it has been logged.
    troubled: bool,
}

impl Listeners {
    /// None yet.
    pub(super) fn new(network: NetworkId) -> Self {
        Self { network, listeners: BTreeMap::new(), next: 0, troubled: false }
    }

    /// Adds one, and arms it unless a VM is on its port.
    pub(super) fn add(&mut self, door: Door, way: WayIn, poller: &Poller, ports: &Ports) -> io::Result<()> {
        let number = self.next;
        self.next = number.checked_add(1).ok_or_else(|| io::Error::other("all numbers of sockets are used up"))?;
        self.listeners.insert(number, Listener { door, way, state: State::Taken });
        self.arm(number, poller, ports)
    }

    /// Takes those away that are not to stay, each with its socket.
    pub(super) fn take_unless(&mut self, stays: impl Fn(&WayIn) -> bool, poller: &Poller) -> Vec<(WayIn, Door)> {
        let leave: Vec<u32> =
            self.listeners.iter().filter(|(_, l)| !stays(&l.way)).map(|(number, _)| *number).collect();
        let taken = leave.into_iter().filter_map(|number| self.listeners.remove(&number));
        taken
            .map(|listener| {
                poller.remove(listener.door.listener());
                (listener.way, listener.door)
            })
            .collect()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Whether one is paused because something was short.
    pub(super) fn any_short(&self) -> bool {
        self.listeners.values().any(|listener| listener.state == State::Short)
    }

    /// Accepts on one listener while VMs wait there and there is room for them in `ports`.
    pub(super) fn accept(&mut self, number: u32, poller: &Poller, ports: &mut Ports, common: &mut Common) {
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            let Some(Listener { door, way, state: State::Armed }) = self.listeners.get(&number) else { return };
            if ports.is_taken(way) {
                return self.pause(number, State::Taken, poller);
            }
            let accepted = ports.room(common).and_then(|()| door.listener().accept());
            match accepted.and_then(|(stream, _)| ports.attach(stream, way, common)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Nobody waits any more.
                    self.troubled = false;
                    return;
                }
                // The VMM gave up waiting.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.troubled, true) {
                        tracing::warn!(
                            %error,
                            "no more VMs can come in for now; those that wait are let in when a port has ended"
                        );
                    }
                    return self.pause(number, State::Short, poller);
                }
            }
        }
    }

    fn pause(&mut self, number: u32, state: State, poller: &Poller) {
        let Some(listener) = self.listeners.get_mut(&number) else { return };
        listener.state = state;
        poller.remove(listener.door.listener());
    }

    /// Arms all that are paused and may be armed. One that the system refuses stays paused until the next time.
    pub(super) fn resume(&mut self, poller: &Poller, ports: &Ports) {
        let numbers: Vec<u32> = self.listeners.keys().copied().collect();
        for number in numbers {
            if let Err(error) = self.arm(number, poller, ports) {
                tracing::debug!(%error, "a listener stays paused");
            }
        }
    }

    fn arm(&mut self, number: u32, poller: &Poller, ports: &Ports) -> io::Result<()> {
        let Some(listener) = self.listeners.get_mut(&number) else { return Ok(()) };
        if listener.state == State::Armed || ports.is_taken(&listener.way) {
            return Ok(());
        }
        poller.add(listener.door.listener(), Trigger::Level, Source::Listener(self.network, number).token())?;
        listener.state = State::Armed;
        Ok(())
    }
}
