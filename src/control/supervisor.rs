//! The supervisor's loop.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::RESUME_AFTER;
use super::clients::Clients;
use super::listeners::{Door, Listeners};
use super::ports::Ports;
use super::source::Source;
use super::start::{StartError, failed};
use super::statistics::Statistics;
use super::timer::Timer;
use crate::config::Network;
use crate::sys::poller::{Poller, Trigger};
use crate::sys::signals::Signals;
use crate::sys::socket::connect_now;
use crate::vhost::features::Offer;
use crate::worker::{self, Worker, WorkerHandle};

/// Everything that the main thread owns.
#[derive(Debug)]
pub(super) struct Supervisor {
    poller: Poller,
    signals: Signals,
    listeners: Listeners,
    clients: Clients,
    ports: Ports,
    workers: Vec<WorkerHandle>,
    resume: Timer,
    retry: Timer,
    statistics: Option<Statistics>,
}

impl Supervisor {
    /// A supervisor of a network that has no way in yet.
    pub(super) fn new(
        network: &Network,
        signals: Signals,
        nofile_limit: u64,
        mut statistics: Option<Statistics>,
    ) -> io::Result<Self> {
        // The table's order must not be known to guests, who choose the addresses in it.
        let seed = RandomState::new().hash_one("addresses");
        let segment = worker::Network::new(seed);
        let workers: io::Result<Vec<WorkerHandle>> = (0..network.workers.get())
            .map(|number| Worker::new(segment.clone())?.spawn(&format!("worker-{number}")))
            .collect();
        let workers = workers?;
        if let Some(statistics) = &mut statistics {
            statistics.observe(workers.iter().map(|worker| worker.counters().clone()).collect());
        }
        let mailboxes = workers.iter().map(WorkerHandle::mailbox).collect();
        let ports = Ports::new(network.name.to_string(), Offer::to_guests_of(network), mailboxes, nofile_limit)?;
        let supervisor = Self {
            poller: Poller::new()?,
            signals,
            listeners: Listeners::default(),
            clients: Clients::default(),
            ports,
            workers,
            resume: Timer::new()?,
            retry: Timer::new()?,
            statistics,
        };
        supervisor.watch(&supervisor.signals, Source::Signals)?;
        supervisor.watch(supervisor.ports.ended_fd(), Source::SessionEnded)?;
        for worker in &supervisor.workers {
            supervisor.watch(worker.ended_fd(), Source::WorkerEnded)?;
        }
        supervisor.watch(&supervisor.resume, Source::ResumeTimer)?;
        supervisor.watch(&supervisor.retry, Source::RetryTimer)?;
        if let Some(statistics) = &supervisor.statistics {
            supervisor.watch(statistics.timer(), Source::StatsTimer)?;
        }
        Ok(supervisor)
    }

    fn watch(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        self.poller.add(fd, Trigger::Level, source.token())
    }

    /// Adds a socket on which VMs connect.
    pub(super) fn add_door(&mut self, door: Door) -> io::Result<()> {
        self.listeners.add(door, &self.poller)
    }

    /// Adds a VMM that listens.
    pub(super) fn add_client(&mut self, path: &Path, now: Instant) {
        self.clients.add(path, now);
    }

    /// Adds the connection that was left to us as the descriptor `number`.
    pub(super) fn attach(&mut self, stream: UnixStream, number: RawFd) -> io::Result<()> {
        self.ports.attach(stream, &format!(" on descriptor {number}")).map(|_| ())
    }

    /// Runs until a signal comes or nothing is left to wait for, and ends everything.
    pub(super) fn run(mut self) -> Result<(), StartError> {
        let result = self.run_loop().map_err(failed("wait for events"));
        self.finish();
        result
    }

    fn run_loop(&mut self) -> io::Result<()> {
        self.try_clients()?;
        let mut ready = Vec::new();
        loop {
            self.poller.wait(-1, |token| ready.push(token))?;
            for source in ready.drain(..).filter_map(Source::from_token) {
                if self.handle(source)?.is_break() {
                    return Ok(());
                }
            }
        }
    }

    fn handle(&mut self, source: Source) -> io::Result<ControlFlow<()>> {
        match source {
            Source::Signals => return self.take_signals(),
            Source::SessionEnded => return self.take_ended(),
            Source::WorkerEnded => return Err(io::Error::other("a worker has ended by itself; this is a bug")),
            Source::Listener(index) => self.accept(index)?,
            Source::ResumeTimer => {
                self.resume.take()?;
                self.listeners.resume(&self.poller);
                self.rest_paused()?;
            }
            Source::RetryTimer => {
                self.retry.take()?;
                self.try_clients()?;
            }
            Source::StatsTimer => {
                if let Some(statistics) = &mut self.statistics {
                    statistics.due(&self.ports)?;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn take_signals(&mut self) -> io::Result<ControlFlow<()>> {
        while let Some(signal) = self.signals.take()? {
            match signal {
                Signal::SIGHUP => tracing::info!("SIGHUP: there is no configuration file to read again; ignored"),
                signal => {
                    tracing::info!(%signal, "ending");
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn take_ended(&mut self) -> io::Result<ControlFlow<()>> {
        let now = Instant::now();
        for port in self.ports.take_ended() {
            self.clients.ended(port.number, port.lasted, now);
            if let Some(statistics) = &mut self.statistics {
                statistics.ended(&port, &self.ports);
            }
        }
        self.listeners.resume(&self.poller);
        self.rest_paused()?;
        self.set_retry(now)?;
        if self.ports.is_empty() && self.listeners.is_empty() && self.clients.is_empty() {
            tracing::info!("the last VM has gone and no other can come: ending");
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    fn accept(&mut self, index: u32) -> io::Result<()> {
        self.listeners.accept(index, &self.poller, &mut self.ports);
        self.rest_paused()
    }

    /// Has the timer run while a listener is paused.
    fn rest_paused(&self) -> io::Result<()> {
        if self.listeners.any_paused() { self.resume.once(RESUME_AFTER) } else { self.resume.stop() }
    }

    fn try_clients(&mut self) -> io::Result<()> {
        let ports = &mut self.ports;
        let now = Instant::now();
        self.clients.try_due(now, |path| {
            ports.room()?;
            ports.attach(connect_now(path)?, &format!(" at {}", path.display()))
        });
        self.set_retry(now)
    }

    /// Has the timer run while a VMM is not connected.
    fn set_retry(&self, now: Instant) -> io::Result<()> {
        match self.clients.next_attempt() {
            Some(at) => self.retry.once(at.saturating_duration_since(now)),
            None => self.retry.stop(),
        }
    }

    /// Ends what has to end in order: nobody new comes in, no guest's memory is touched any more, and only then do the
    /// connections close. That is left to the end of the process: to wake a thousand sessions for it takes longer, and
    /// nothing of theirs outlives the process.
    fn finish(self) {
        let Self { listeners, ports, workers, statistics, .. } = self;
        drop(listeners);
        WorkerHandle::stop_all(workers);
        if let Some(statistics) = statistics {
            statistics.finish(&ports);
        }
    }
}
