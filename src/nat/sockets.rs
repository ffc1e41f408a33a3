//! How much of the host guests may have: of the process's sockets so many that it can still let VMs in, and of the
//! ports from which connections are made so many that the host's programs can still make some.
//!
//! Theory of operation. The fewer sockets are left, the fewer one guest may have: no more of a kind than [`SHARE`]
//! times as many as are left then. So one that takes as many as it gets leaves a part of them to the others, as do
//! several, and where there are plenty nobody notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ports of TCP that may stand for guests': a quarter of all.
const PORTS_MAX: usize = 16_384;
/// How many times as many as are left a guest may have.
const SHARE: usize = 3;

/// What all NAT networks of a process share.
#[derive(Debug)]
pub struct Sockets {
    open: AtomicUsize,
    max: usize,
    ports: AtomicUsize,
}

impl Sockets {
    /// None is open, and `max` may be.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), max, ports: AtomicUsize::new(0) })
    }

    /// The right to one more, for a guest that has so many of its kind; none: there are as many as may be.
    pub(super) fn take(self: &Arc<Self>, has: usize) -> Option<Ticket> {
        one_more(&self.open, self.max.saturating_sub(has / SHARE)).then(|| Ticket(self.clone()))
    }

    /// The right to one more port; none: there are as many as may be.
    pub(super) fn take_port(self: &Arc<Self>) -> Option<PortTicket> {
        one_more(&self.ports, PORTS_MAX).then(|| PortTicket(self.clone()))
    }
}

fn one_more(count: &AtomicUsize, max: usize) -> bool {
    let one_more = |count| (count < max).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
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
}
