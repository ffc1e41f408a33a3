//! How much of the host guests may have: of the process's sockets so many that it can still let VMs in, of the ports
//! from which connections are made so many that the host's programs can still make some, and of the kernel's memory for
//! what peers send [`ROOM_MAX`], beside what every connection has.
//!
//! Theory of operation. The fewer sockets are left, the fewer one guest may have: no more of a kind than [`SHARE`]
//! times as many as are left then. So one that takes as many as it gets leaves a part of them to the others, as do
//! several, and where there are plenty nobody notices. So it is with room for what peers send.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ports of TCP that may stand for guests': a quarter of all.
const PORTS_MAX: usize = 16_384;
/// Room for what peers send, in bytes, that connections may have together beside what each has from the beginning.
const ROOM_MAX: usize = 256 << 20;
/// How many times as many as are left a guest may have.
const SHARE: usize = 3;

/// What all NAT networks of a process share.
#[derive(Debug)]
pub struct Sockets {
    open: AtomicUsize,
    max: usize,
    ports: AtomicUsize,
    /// In bytes.
    room: AtomicUsize,
}

impl Sockets {
    /// None is open, and `max` may be.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), max, ports: AtomicUsize::new(0), room: AtomicUsize::new(0) })
    }

    /// The right to one more, for a guest that has so many of its kind; none: there are as many as may be.
    pub(super) fn take(self: &Arc<Self>, has: usize) -> Option<Ticket> {
        take(&self.open, 1, self.max.saturating_sub(has / SHARE)).then(|| Ticket(self.clone()))
    }

    /// The right to one more port; none: there are as many as may be.
    pub(super) fn take_port(self: &Arc<Self>) -> Option<PortTicket> {
        take(&self.ports, 1, PORTS_MAX).then(|| PortTicket(self.clone()))
    }

    /// The right to so many bytes more of room for what peers send, for a guest that has `has` bytes of it; none: there
    /// are as many as may be.
    pub(super) fn take_room(self: &Arc<Self>, bytes: usize, has: usize) -> Option<RoomTicket> {
        take(&self.room, bytes, ROOM_MAX.saturating_sub(has / SHARE)).then(|| RoomTicket(self.clone(), bytes))
    }
}

/// Counts `more`, unless that makes more than `max`.
fn take(count: &AtomicUsize, more: usize, max: usize) -> bool {
    let all = |count: usize| count.checked_add(more).filter(|count| *count <= max);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, all).is_ok()
}

/// The right to one socket, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Sockets>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to one port, until it is dropped.
#[derive(Debug)]
pub(super) struct PortTicket(Arc<Sockets>);

impl Drop for PortTicket {
    fn drop(&mut self) {
        self.0.ports.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to so many bytes of room, until it is dropped.
#[derive(Debug)]
pub(super) struct RoomTicket(Arc<Sockets>, usize);

impl Drop for RoomTicket {
    fn drop(&mut self) {
        self.0.room.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_no_more() {
        let sockets = Sockets::new(2);
        let [one, _two] = [sockets.take(0).unwrap(), sockets.take(0).unwrap()];
        assert!(sockets.take(0).is_none());
        drop(one);
        assert!(sockets.take(0).is_some());
        let mut ports: Vec<PortTicket> = (0..PORTS_MAX).map(|_| sockets.take_port().unwrap()).collect();
        assert!(sockets.take_port().is_none());
        ports.pop();
        assert!(sockets.take_port().is_some());
    }

    #[test]
    fn whoever_takes_all_it_gets_leaves_some_to_others() {
        let sockets = Sockets::new(1000);
        let all = || {
            let mut its = Vec::new();
            while let Some(ticket) = sockets.take(its.len()) {
                its.push(ticket);
            }
            its
        };
        let guests = [all(), all(), all()];
        assert_eq!(guests.each_ref().map(Vec::len), [750, 188, 47]);
        assert!(sockets.take(0).is_some());
    }

    #[test]
    fn whoever_takes_all_the_room_it_gets_leaves_some_to_others() {
        let (sockets, piece) = (Sockets::new(1), ROOM_MAX / 1024);
        let all = || {
            let mut its = Vec::new();
            while let Some(ticket) = sockets.take_room(piece, its.len() * piece) {
                its.push(ticket);
            }
            its
        };
        let mut guests = [all(), all(), all()];
        assert_eq!(guests.each_ref().map(Vec::len), [768, 192, 48]);
        assert!(sockets.take_room(17 * piece, 0).is_none());
        guests[0].pop();
        assert!(sockets.take_room(17 * piece, 0).is_some());
    }
}
