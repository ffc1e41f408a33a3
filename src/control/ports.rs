//! The ports that exist, and the one place where a connection becomes one.
//!
//! Theory of operation. A port is numbered when its connection comes, and its number is never used again. Its session
//! runs in threads of its own and calls back when it has ended; the callback only leaves the number in [`Ended`] and
//! wakes the supervisor, which then joins the session and forgets the port.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{FDS_PER_PORT, FDS_SPARE};
use crate::metrics::export::PortReport;
use crate::ring::mailbox::{Mailbox, PortMailbox, PortShared};
use crate::switch::PORTS_MAX;
use crate::sys::rlimit::free_fds;
use crate::vhost::features::Offer;
use crate::vhost::session::{self, SessionHandle};

/// Addresses for guests that take theirs from the device's configuration: locally administered (IEEE 802), random, and
/// different for every port.
#[derive(Debug)]
struct Macs(RandomState);

impl Macs {
    fn new() -> Self {
        Self(RandomState::new())
    }

    fn of(&self, port: u32) -> [u8; 6] {
        let [a, b, ..] = self.0.hash_one("guestwire").to_be_bytes();
        let [_, c, d, e] = port.to_be_bytes();
        [0x02, a, b, c, d, e]
    }
}

/// Numbers of ports whose sessions have ended, on their way to the supervisor.
#[derive(Debug)]
struct Ended {
    numbers: Mutex<Vec<u32>>,
    wake: EventFd,
}

impl Ended {
    fn push(&self, number: u32) {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        // Can only fail when the counter is full, and then the supervisor is being woken already.
        let _ = self.wake.write(1);
    }

    fn take(&self) -> Vec<u32> {
        // Quiet first, then look: a number that comes in between wakes us once more for nothing.
        let _ = self.wake.read();
        std::mem::take(&mut *self.numbers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A port that has ended.
#[derive(Debug)]
pub(super) struct EndedPort {
    /// Its number.
    pub(super) number: u32,
    /// How long it existed.
    pub(super) lasted: Duration,
    /// Its last figures.
    pub(super) report: PortReport,
}

#[derive(Debug)]
struct LivePort {
    shared: Arc<PortShared>,
    session: SessionHandle,
    since: Instant,
    /// Which worker it belongs to.
    worker: usize,
}

/// The ports of a network.
#[derive(Debug)]
pub(super) struct Ports {
    network: String,
    offer: Offer,
    /// The workers' mailboxes; at least one.
    mailboxes: Vec<Arc<Mailbox>>,
    nofile_limit: u64,
    macs: Macs,
    live: BTreeMap<u32, LivePort>,
    next: u32,
    ended: Arc<Ended>,
}

impl Ports {
    /// None yet. Their guests are offered `offer`, `mailboxes` are their workers', and `nofile_limit` the process's
    /// limit on descriptors.
    pub(super) fn new(
        network: String,
        offer: Offer,
        mailboxes: Vec<Arc<Mailbox>>,
        nofile_limit: u64,
    ) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let ended = Arc::new(Ended { numbers: Mutex::new(Vec::new()), wake });
        Ok(Self { network, offer, mailboxes, nofile_limit, macs: Macs::new(), live: BTreeMap::new(), next: 0, ended })
    }

    /// Whether one more port can be made. To be asked before a connection is taken: one that has to be dropped again is
    /// harder on a VMM than one that waits.
    pub(super) fn room(&self) -> io::Result<()> {
        if self.live.len() >= PORTS_MAX {
            return Err(io::Error::other(format!("the network has {PORTS_MAX} ports, the most there can be")));
        }
        // As accept(2) fails when none is left, and a little earlier: see `FDS_SPARE`.
        if free_fds(self.ended_fd(), self.nofile_limit)? < FDS_PER_PORT + FDS_SPARE {
            return Err(Errno::EMFILE.into());
        }
        Ok(())
    }

    /// Makes a port of a connection and returns its number. `way_in` is for the log.
    pub(super) fn attach(&mut self, stream: UnixStream, way_in: &str) -> io::Result<u32> {
        let number = self.next;
        let next = number.checked_add(1).ok_or_else(|| io::Error::other("all port numbers are used up"))?;
        let mut shared = PortShared::new(number, self.network.clone(), self.macs.of(number))?;
        shared.pairs_told = self.offer.pairs_told;
        let shared = Arc::new(shared);
        let ended = self.ended.clone();
        let worker = self.least_used_worker();
        let mailbox = PortMailbox::new(number, self.mailboxes[worker].clone());
        let on_end = Box::new(move || ended.push(number));
        let session = session::spawn(stream, shared.clone(), mailbox, self.offer, on_end)?;
        self.next = next;
        self.live.insert(number, LivePort { shared, session, since: Instant::now(), worker });
        tracing::info!(port = number, network = self.network.as_str(), "a VM has connected{way_in}");
        Ok(number)
    }

    /// The worker with the fewest ports.
    fn least_used_worker(&self) -> usize {
        let mut used = vec![0; self.mailboxes.len()];
        self.live.values().for_each(|port| used[port.worker] += 1);
        used.iter().enumerate().min_by_key(|&(_, ports)| ports).map_or(0, |(worker, _)| worker)
    }

    /// Readable when [`Ports::take_ended`] has something to do.
    pub(super) fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended.wake.as_fd()
    }

    /// Forgets the ports whose sessions have ended.
    pub(super) fn take_ended(&mut self) -> Vec<EndedPort> {
        let numbers = self.ended.take();
        let forget = |number: u32| {
            let port = self.live.remove(&number)?;
            // It said that it had ended: this does not wait.
            port.session.join();
            let lasted = port.since.elapsed();
            tracing::debug!(port = number, network = self.network.as_str(), "the port has ended");
            Some(EndedPort { number, lasted, report: PortReport::new(number, true, &port.shared.counters) })
        };
        numbers.into_iter().filter_map(forget).collect()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The present figures of all ports, in the order of their numbers.
    pub(super) fn reports(&self) -> impl Iterator<Item = PortReport> + '_ {
        self.live.iter().map(|(&number, port)| PortReport::new(number, false, &port.shared.counters))
    }
}
