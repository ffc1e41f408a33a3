//! How many sockets of the process guests may have it open: so many that it can still let VMs in.
//!
//! Theory of operation. The fewer are left, the fewer one guest may have: no more of a kind than [`SHARE`] times as
//! many as are left then. So one that takes as many as it gets leaves a part of them to the others, as do several, and
//! where there are plenty nobody notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many times as many as are left a guest may have.
const SHARE: usize = 3;

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

    /// The right to one more, for a guest that has so many of its kind; none: there are as many as may be.
    pub(super) fn take(self: &Arc<Self>, has: usize) -> Option<Ticket> {
        let one_more = |open| (open + has / SHARE < self.max).then_some(open + 1);
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
        let [one, _two] = [sockets.take(0).unwrap(), sockets.take(0).unwrap()];
        assert!(sockets.take(0).is_none());
        drop(one);
        assert!(sockets.take(0).is_some());
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
