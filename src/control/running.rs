//! One network that runs: its workers, its ports, and the ways into it.
//!
//! Theory of operation. A network begins with workers and no way in; ways are added and taken away while it runs, and
//! only the ports that came by those notice. It ends in two steps: it leaves, that is it gives up its sockets, its
//! workers stop, so that no guest's memory is touched any more, and its sessions are asked to end; and it is gone when
//! the last of them has. No other network waits for that.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::beyond::Beyond;
use super::clients::{Attempt, Clients};
use super::listeners::{Door, Listeners};
use super::ports::{Common, EndedPort, Ports};
use super::source::{NetworkId, Source};
use super::ways::WayIn;
use crate::config::{Attachment, Network};
use crate::frame::ethernet::MacAddr;
use crate::metrics::WorkerCounters;
use crate::metrics::export::{PortReport, Report, WorkerReport, seconds};
use crate::mode::Made;
use crate::switch::guard::Claims;
use crate::sys::poller::{Poller, Trigger};
use crate::sys::socket::connect_now;
use crate::worker::{self, Worker, WorkerHandle};

/// The MAC addresses that are declared for ports.
fn declared(network: &Network) -> impl Iterator<Item = MacAddr> {
    network.ports.iter().filter_map(|port| port.mac).map(|mac| MacAddr(mac.bytes()))
}

/// A network that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: NetworkId,
    /// What the user asked for.
    pub(super) network: Network,
    pub(super) listeners: Listeners,
    pub(super) clients: Clients,
    pub(super) ports: Ports,
    pub(super) beyond: Beyond,
    /// The addresses that are somebody's.
    claims: Arc<Claims>,
    /// None once it is leaving.
    workers: Vec<WorkerHandle>,
    counters: Vec<Arc<WorkerCounters>>,
    /// Last figures of ended ports that no line of statistics has had yet.
    ended: Vec<PortReport>,
}

impl Running {
    /// A network that has no way in yet.
    pub(super) fn new(id: NetworkId, network: &Network, made: Made, common: &mut Common) -> io::Result<Self> {
        let beyond = Beyond::new(network, made, common)?;
        // The table's order must not be known to guests, who choose the addresses in it.
        let seed = RandomState::new().hash_one("addresses");
        let segment = worker::Network::with(beyond.parts(), seed);
        let claims = segment.claims().clone();
        claims.set_declared(declared(network));
        let mut workers = Vec::new();
        for number in 0..network.workers.get() {
            let worker = Worker::new(segment.clone()).and_then(|worker| worker.spawn(&format!("worker-{number}")));
            match worker {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    WorkerHandle::stop_all(workers);
                    return Err(error);
                }
            }
        }
        let mailboxes = workers.iter().map(WorkerHandle::mailbox).collect();
        let ports = Ports::new(id, network, mailboxes, beyond.has_uplink());
        Ok(Self {
            id,
            network: network.clone(),
            listeners: Listeners::new(id),
            clients: Clients::default(),
            ports,
            beyond,
            claims,
            counters: workers.iter().map(|worker| worker.counters().clone()).collect(),
            workers,
            ended: Vec::new(),
        })
    }

    /// Has its workers watched.
    pub(super) fn watch(&self, poller: &Poller) -> io::Result<()> {
        let token = Source::WorkerEnded(self.id).token();
        self.workers.iter().try_for_each(|worker| poller.add(worker.ended_fd(), Trigger::Level, token))?;
        self.beyond.watch(self.id, poller)
    }

    /// Takes what the user asks for now, which differs in nothing but ways in and declared ports.
    pub(super) fn set_network(&mut self, network: Network) {
        self.claims.set_declared(declared(&network));
        self.workers.iter().for_each(|worker| worker.mailbox().ring_bell());
        self.network = network;
    }

    /// Whether it has ended but for its last sessions.
    pub(super) fn is_leaving(&self) -> bool {
        self.workers.is_empty()
    }

    /// Whether no VM is there and none can come.
    pub(super) fn is_deserted(&self) -> bool {
        self.ports.is_empty() && self.listeners.is_empty() && self.clients.is_empty()
    }

    /// Takes note that a way in could not be opened: it is new again when the file is next read.
    pub(super) fn lacks(&mut self, way: &WayIn) {
        let keep = |attachment: &Attachment| *attachment != way.attachment;
        self.network.attachments.retain(keep);
        self.network.ports.iter_mut().for_each(|port| port.attachments.retain(keep));
    }

    /// Takes those ways away that are not to stay, with the ports that came by them. Returns their sockets.
    pub(super) fn close_unless(&mut self, stays: impl Fn(&WayIn) -> bool, poller: &Poller) -> Vec<(WayIn, Door)> {
        self.clients.retain(&stays);
        self.ports.end_unless(&stays);
        self.listeners.take_unless(&stays, poller)
    }

    /// Ends everything but the sessions, which are asked to end, and returns its sockets.
    pub(super) fn leave(&mut self, poller: &Poller) -> Vec<(WayIn, Door)> {
        self.stop_workers(poller);
        self.close_unless(|_| false, poller)
    }

    /// Has its workers look around.
    pub(super) fn ring_bells(&self) {
        self.workers.iter().for_each(|worker| worker.mailbox().ring_bell());
    }

    fn stop_workers(&mut self, poller: &Poller) {
        self.workers.iter().for_each(|worker| poller.remove(worker.ended_fd()));
        WorkerHandle::stop_all(std::mem::take(&mut self.workers));
        self.beyond.ignore(poller);
        self.beyond.write_leases();
        // The device and its lease file are free for another network.
        self.beyond = Beyond::default();
    }

    /// The end of the process begins: nobody new comes in. Returns the workers, which are to be stopped next.
    pub(super) fn close_for_good(&mut self, poller: &Poller) -> Vec<WorkerHandle> {
        drop(self.listeners.take_unless(|_| false, poller));
        std::mem::take(&mut self.workers)
    }

    /// Accepts on the listener with this number.
    pub(super) fn accept(&mut self, listener: u32, poller: &Poller, common: &mut Common) {
        self.listeners.accept(listener, poller, &mut self.ports, common);
    }

    /// Tries to reach the VMMs that listen, where the moment has come.
    pub(super) fn try_clients(&mut self, now: Instant, common: &mut Common) {
        let ports = &mut self.ports;
        self.clients.try_due(now, |way| {
            let Attachment::Connect(path) = &way.attachment else { return Err(io::ErrorKind::InvalidInput.into()) };
            if ports.is_taken(way) {
                return Ok(Attempt::Held);
            }
            ports.room(common)?;
            ports.attach(connect_now(path.as_path())?, way, common).map(Attempt::Connected)
        });
    }

    /// Forgets a port whose session has ended.
    pub(super) fn forget(&mut self, number: u32, now: Instant) {
        let Some(EndedPort { number, lasted, report }) = self.ports.forget(number) else { return };
        self.clients.ended(number, lasted, now);
        self.clients.release(now);
        self.ended.push(report);
    }

    /// Ended ports whose last figures wait for the next line.
    pub(super) fn figures_waiting(&self) -> usize {
        self.ended.len()
    }

    /// Drops figures that no line will have.
    pub(super) fn drop_figures(&mut self) {
        self.ended.clear();
    }

    /// Its figures now, with the last of ports that have ended since they were taken before.
    pub(super) fn report(&mut self) -> Report<'_> {
        let mut ports = std::mem::take(&mut self.ended);
        ports.extend(self.beyond.report());
        ports.extend(self.ports.reports());
        ports.sort_by_key(|report| report.port);
        let workers = self.counters.iter().enumerate().map(|(number, counters)| WorkerReport::new(number, counters));
        let time = seconds(SystemTime::now());
        Report { time, network: self.network.name.as_str(), workers: workers.collect(), ports }
    }
}
