//! How many sockets of the process guests may have it open: so many that it can still let VMs in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all NAT networks of a process share.
#[derive(Debug)]
pub struct Sockets {
    open: AtomicUsize,
    max: usize,
}

impl Sockets {
    /// None is open, and `max` may be.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), max })
    }

    /// The right to one more; none: there are as many as may be.
    pub(super) fn take(self: &Arc<Self>) -> Option<Ticket> {
        let one_more = |open| (open < self.max).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Ticket(self.clone()))
    }
}

/// The right to one socket, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Sockets>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
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
    }
}
