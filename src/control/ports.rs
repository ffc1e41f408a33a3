//! The ports that exist, and the one place where a connection becomes one.
//!
//! Theory of operation. A port is numbered when its connection comes, and its number is never used again in the process
//! ([`Common`]). Its session runs in threads of its own and calls back when it has ended; the callback only leaves the
//! number in [`Ended`] and wakes the supervisor, which then joins the session and forgets the port. A declared port has
//! one VM at a time: it is taken from when its connection comes until its session has ended.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::source::NetworkId;
use super::ways::WayIn;
use super::{FDS_PER_PORT, FDS_SPARE};
use crate::config::{MacAddr, Name, Network, Security};
use crate::metrics::export::PortReport;
use crate::nat::Sockets;
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
    numbers: Mutex<Vec<(NetworkId, u32)>>,
    wake: EventFd,
}

impl Ended {
    fn push(&self, network: NetworkId, number: u32) {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).push((network, number));
        // Can only fail when the counter is full, and then the supervisor is being woken already.
        let _ = self.wake.write(1);
    }

    fn take(&self) -> Vec<(NetworkId, u32)> {
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
    /// How its VM came.
    way: WayIn,
}

impl LivePort {
    fn report(&self, ended: bool) -> PortReport {
        let name = self.way.port.as_ref().map(|port| port.name.to_string());
        PortReport::new(self.shared.number, name, ended, [&self.shared.counters])
    }
}

/// What the ports of all networks have in common.
#[derive(Debug)]
pub(super) struct Common {
    nofile_limit: u64,
    macs: Macs,
    /// The number of the next port.
    next: u32,
    ended: Arc<Ended>,
    /// What guests of NAT networks may have open.
    nat_sockets: Arc<Sockets>,
}

impl Common {
    /// `nofile_limit` is the process's limit on descriptors.
    pub(super) fn new(nofile_limit: u64) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let ended = Arc::new(Ended { numbers: Mutex::new(Vec::new()), wake });
        // The rest lets VMs in.
        let nat_sockets = Sockets::new(usize::try_from(nofile_limit / 4 * 3).unwrap_or(usize::MAX));
        Ok(Self { nofile_limit, macs: Macs::new(), next: 0, ended, nat_sockets })
    }

    /// What guests of NAT networks may have open.
    pub(super) fn nat_sockets(&self) -> &Arc<Sockets> {
        &self.nat_sockets
    }

    /// A number for an uplink, which is counted as a port.
    pub(super) fn uplink_number(&mut self) -> u32 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Readable when [`Common::take_ended`] has something to tell.
    pub(super) fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended.wake.as_fd()
    }

    /// The ports whose sessions have ended since it was last asked.
    pub(super) fn take_ended(&self) -> Vec<(NetworkId, u32)> {
        self.ended.take()
    }
}

/// The ports of a network.
#[derive(Debug)]
pub(super) struct Ports {
    id: NetworkId,
    network: String,
    /// What guests without a declared port are held to.
    security: Security,
    offer: Offer,
    /// The workers' mailboxes; at least one.
    mailboxes: Vec<Arc<Mailbox>>,
    /// How many ports there may be.
    max: usize,
    live: BTreeMap<u32, LivePort>,
    /// The declared ports that have a VM.
    taken: HashSet<Name>,
}

impl Ports {
    /// None yet. `mailboxes` are those of the network's workers. An uplink has a port's place in the switch.
    pub(super) fn new(id: NetworkId, network: &Network, mailboxes: Vec<Arc<Mailbox>>, has_uplink: bool) -> Self {
        let max = PORTS_MAX - usize::from(has_uplink);
        let (offer, security) = (Offer::to_guests_of(network), network.security);
        let network = network.name.to_string();
        Self { id, network, security, offer, mailboxes, max, live: BTreeMap::new(), taken: HashSet::new() }
    }

    /// Whether one more port can be made. To be asked before a connection is taken: one that has to be dropped again is
    /// harder on a VMM than one that waits.
    pub(super) fn room(&self, common: &Common) -> io::Result<()> {
        if self.live.len() >= self.max {
            return Err(io::Error::other(format!("the network has {} ports, the most there can be", self.max)));
        }
        // As accept(2) fails when none is left, and a little earlier: see `FDS_SPARE`.
        if free_fds(common.ended_fd(), common.nofile_limit)? < FDS_PER_PORT + FDS_SPARE {
            return Err(Errno::EMFILE.into());
        }
        Ok(())
    }

    /// Whether the way leads to a declared port that has a VM.
    pub(super) fn is_taken(&self, way: &WayIn) -> bool {
        way.port.as_ref().is_some_and(|port| self.taken.contains(&port.name))
    }

    /// Makes a port of a connection and returns its number.
    pub(super) fn attach(&mut self, stream: UnixStream, way: &WayIn, common: &mut Common) -> io::Result<u32> {
        let number = common.next;
        let next = number.checked_add(1).ok_or_else(|| io::Error::other("all port numbers are used up"))?;
        let mac = way.port.as_ref().and_then(|port| port.mac).map_or_else(|| common.macs.of(number), MacAddr::bytes);
        let mut shared = PortShared::new(number, self.network.clone(), mac)?;
        shared.name = way.port.as_ref().map(|port| port.name.clone());
        shared.pairs_told = self.offer.pairs_told;
        shared.security = way.port.as_ref().map_or(self.security, |port| port.security);
        shared.declared_mac = way.port.as_ref().and_then(|port| port.mac).map(MacAddr::bytes);
        let shared = Arc::new(shared);
        let (ended, id) = (common.ended.clone(), self.id);
        let worker = self.least_used_worker();
        let mailbox = PortMailbox::new(number, self.mailboxes[worker].clone());
        let on_end = Box::new(move || ended.push(id, number));
        let session = session::spawn(stream, shared.clone(), mailbox, self.offer, on_end)?;
        common.next = next;
        tracing::info!(port = number, network = self.network.as_str(), "a VM has connected{way}");
        self.taken.extend(way.port.as_ref().map(|port| port.name.clone()));
        let port = LivePort { shared, session, since: Instant::now(), worker, way: way.clone() };
        self.live.insert(number, port);
        Ok(number)
    }

    /// The worker with the fewest ports.
    fn least_used_worker(&self) -> usize {
        let mut used = vec![0; self.mailboxes.len()];
        self.live.values().for_each(|port| used[port.worker] += 1);
        used.iter().enumerate().min_by_key(|&(_, ports)| ports).map_or(0, |(worker, _)| worker)
    }

    /// Ends the sessions of the ports whose way in is not to stay. They are forgotten when they have ended.
    pub(super) fn end_unless(&self, stays: impl Fn(&WayIn) -> bool) {
        self.live.values().filter(|port| !stays(&port.way)).for_each(|port| port.session.shutdown());
    }

    /// Forgets a port whose session has ended.
    pub(super) fn forget(&mut self, number: u32) -> Option<EndedPort> {
        let port = self.live.remove(&number)?;
        let report = port.report(true);
        // It said that it had ended: this does not wait.
        port.session.join();
        if let Some(declared) = &port.way.port {
            self.taken.remove(&declared.name);
        }
        let lasted = port.since.elapsed();
        tracing::debug!(port = number, network = self.network.as_str(), "the port has ended");
        Some(EndedPort { number, lasted, report })
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The present figures of all ports, in the order of their numbers.
    pub(super) fn reports(&self) -> impl Iterator<Item = PortReport> + '_ {
        self.live.values().map(|port| port.report(false))
    }
}
