//! A worker in a thread of its own, as the supervisor sees it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::metrics::WorkerCounters;
use crate::ring::mailbox::Mailbox;

/// How long the end of the process waits for its workers, in milliseconds. They take far less, unless a frontend has
/// made a descriptor block that we made non-blocking.
pub const STOP_MAX_MS: u8 = 30;

/// A worker in a thread of its own.
#[derive(Debug)]
pub struct WorkerHandle {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) ended: Arc<EventFd>,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) thread: JoinHandle<()>,
}

impl WorkerHandle {
    /// Where sessions post.
    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Readable once the worker has ended, for whatever reason.
    pub fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// What it has done.
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.counters
    }

    /// Ends all of a network's workers and waits for them, but not for ever. Sessions that still post are told that
    /// they are gone.
    pub fn stop_all(workers: Vec<Self>) {
        for worker in &workers {
            worker.stop.store(true, Ordering::SeqCst);
            worker.mailbox.ring_bell();
        }
        let until = Instant::now() + Duration::from_millis(STOP_MAX_MS.into());
        workers.into_iter().for_each(|worker| worker.join_before(until));
    }

    fn join_before(self, until: Instant) {
        let mut ended = [PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
        if !matches!(poll(&mut ended, left), Ok(1)) {
            return tracing::error!("a worker does not end: a frontend keeps it waiting; ending without it");
        }
        if self.thread.join().is_err() {
            tracing::error!("a worker has panicked; this is a bug");
        }
    }
}
