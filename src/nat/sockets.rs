//! How much of the host guests may have: of the process's sockets so many that it can still let VMs in, and of the
//! ports from which connections are made so many that the host's programs can still make some.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ports of TCP that may stand for guests': a quarter of all.
const PORTS_MAX: usize = 16_384;

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

    /// The right to one more; none: there are as many as may be.
    pub(super) fn take(self: &Arc<Self>) -> Option<Ticket> {
        one_more(&self.open, self.max).then(|| Ticket(self.clone()))
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
        let [one, _two] = [sockets.take().unwrap(), sockets.take().unwrap()];
        assert!(sockets.take().is_none());
        drop(one);
        assert!(sockets.take().is_some());
        let mut ports: Vec<PortTicket> = (0..PORTS_MAX).map(|_| sockets.take_port().unwrap()).collect();
        assert!(sockets.take_port().is_none());
        ports.pop();
        assert!(sockets.take_port().is_some());
    }
}
