//! The supervisor's loop.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::RESUME_AFTER;
use super::beyond::LEASES_WAIT;
use super::listeners::Door;
use super::ports::Common;
use super::running::Running;
use super::source::{NetworkId, Source};
use super::start::{StartError, failed};
use super::statistics::{ENDED_PORTS_MAX, Statistics};
use super::timer::Timer;
use super::ways::WayIn;
use crate::config::Config;
use crate::sys::netlink::Monitor;
use crate::sys::poller::{Poller, Trigger};
use crate::sys::signals::Signals;
use crate::worker::WorkerHandle;

/// Everything that the main thread owns.
#[derive(Debug)]
pub(super) struct Supervisor {
    /// What the user asked for.
    pub(super) config: Config,
    pub(super) poller: Poller,
    signals: Signals,
    /// Those that run, and those that are leaving.
    pub(super) networks: BTreeMap<NetworkId, Running>,
    /// The id of the next network; none when all are used up.
    next_id: Option<NetworkId>,
    pub(super) common: Common,
    /// Hears of the host's interfaces. Only where there are uplinks.
    monitor: Option<Monitor>,
    lease_timer: Timer,
    uplink_timer: Timer,
    resume: Timer,
    retry: Timer,
    statistics: Option<Statistics>,
}

impl Supervisor {
    /// A supervisor of no network yet.
    pub(super) fn new(
        config: Config,
        signals: Signals,
        nofile_limit: u64,
        statistics: Option<Statistics>,
    ) -> io::Result<Self> {
        let supervisor = Self {
            config,
            poller: Poller::new()?,
            signals,
            networks: BTreeMap::new(),
            next_id: Some(NetworkId::FIRST),
            common: Common::new(nofile_limit)?,
            monitor: None,
            lease_timer: Timer::new()?,
            uplink_timer: Timer::new()?,
            resume: Timer::new()?,
            retry: Timer::new()?,
            statistics,
        };
        supervisor.watch(&supervisor.signals, Source::Signals)?;
        supervisor.watch(supervisor.common.ended_fd(), Source::SessionEnded)?;
        supervisor.watch(&supervisor.resume, Source::ResumeTimer)?;
        supervisor.watch(&supervisor.retry, Source::RetryTimer)?;
        supervisor.watch(&supervisor.lease_timer, Source::LeaseTimer)?;
        supervisor.watch(&supervisor.uplink_timer, Source::UplinkTimer)?;
        if let Some(statistics) = &supervisor.statistics {
            supervisor.watch(statistics.timer(), Source::StatsTimer)?;
        }
        Ok(supervisor)
    }

    fn watch(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        self.poller.add(fd, Trigger::Level, source.token())
    }

    /// An id for one more network.
    pub(super) fn new_id(&mut self) -> io::Result<NetworkId> {
        let id = self.next_id.ok_or_else(|| io::Error::other("all numbers of networks are used up"))?;
        self.next_id = id.next();
        Ok(id)
    }

    /// Adds a network that was started.
    pub(super) fn add(&mut self, running: Running) {
        self.networks.insert(running.id, running);
        self.follow_links_if_needed();
    }

    /// Hears of the host's interfaces if a network has an uplink, and else of none.
    pub(super) fn follow_links_if_needed(&mut self) {
        let mut present = self.networks.values().filter(|running| !running.is_leaving());
        let is_needed = present.any(|running| running.beyond.has_uplink());
        if is_needed && self.monitor.is_none() {
            let monitor = Monitor::open().and_then(|monitor| {
                self.watch(monitor.fd(), Source::Links)?;
                Ok(monitor)
            });
            match monitor {
                Ok(monitor) => self.monitor = Some(monitor),
                Err(error) => tell_deaf(&error),
            }
        } else if !is_needed && let Some(monitor) = self.monitor.take() {
            self.poller.remove(monitor.fd());
        }
    }

    /// Adds a way into a network: a socket on which VMs connect.
    pub(super) fn add_door(&mut self, id: NetworkId, door: Door, way: WayIn) -> io::Result<()> {
        let Some(running) = self.networks.get_mut(&id) else { return Ok(()) };
        running.listeners.add(door, way, &self.poller, &running.ports)
    }

    /// Adds a connection that was left to us.
    pub(super) fn attach(&mut self, id: NetworkId, stream: UnixStream, way: &WayIn) -> io::Result<()> {
        let Some(running) = self.networks.get_mut(&id) else { return Ok(()) };
        running.ports.attach(stream, way, &mut self.common).map(|_| ())
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
            // Of one that has left meanwhile, that is as it should be.
            Source::WorkerEnded(id) if self.networks.get(&id).is_some_and(|running| !running.is_leaving()) => {
                return Err(io::Error::other("a worker has ended by itself; this is a bug"));
            }
            Source::WorkerEnded(_) => {}
            Source::Listener(id, listener) => {
                if let Some(running) = self.networks.get_mut(&id) {
                    running.accept(listener, &self.poller, &mut self.common);
                }
                self.rest_paused()?;
            }
            Source::ResumeTimer => {
                self.resume.take()?;
                self.resume_listeners()?;
            }
            Source::RetryTimer => {
                self.retry.take()?;
                self.try_clients()?;
            }
            Source::UplinkGone(_) | Source::Links => self.follow_uplinks()?,
            Source::UplinkTimer => {
                self.uplink_timer.take()?;
                self.follow_uplinks()?;
            }
            Source::LeasesChanged(id) => {
                self.networks.get(&id).iter().for_each(|running| running.beyond.hear_of_leases());
                self.lease_timer.begin(LEASES_WAIT)?;
            }
            Source::LeaseTimer => {
                self.lease_timer.take()?;
                self.networks.values_mut().for_each(|running| running.beyond.write_leases());
            }
            Source::StatsTimer => {
                if let Some(statistics) = &mut self.statistics {
                    statistics.take_timer()?;
                    statistics.write(self.networks.values_mut().filter(|running| !running.is_leaving()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Opens uplinks again whose devices are back.
    pub(super) fn follow_uplinks(&mut self) -> io::Result<()> {
        let events = match self.monitor.as_mut().map(Monitor::read) {
            Some(Ok(events)) => events,
            Some(Err(error)) => {
                tell_deaf(&error);
                self.monitor.take().iter().for_each(|monitor| self.poller.remove(monitor.fd()));
                Vec::new()
            }
            None => Vec::new(),
        };
        let now = Instant::now();
        for running in self.networks.values_mut().filter(|running| !running.is_leaving()) {
            if running.beyond.follow(&running.network, &events, now) {
                running.ring_bells();
            }
        }
        match self.networks.values().filter_map(|running| running.beyond.next_attempt()).min() {
            Some(at) => self.uplink_timer.once(at.saturating_duration_since(now)),
            None => self.uplink_timer.stop(),
        }
    }

    fn take_signals(&mut self) -> io::Result<ControlFlow<()>> {
        while let Some(signal) = self.signals.take()? {
            match signal {
                Signal::SIGHUP => self.reload()?,
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
        for (id, number) in self.common.take_ended() {
            let Some(running) = self.networks.get_mut(&id) else { continue };
            running.forget(number, now);
            match &mut self.statistics {
                Some(statistics) if running.figures_waiting() >= ENDED_PORTS_MAX => {
                    statistics.write(std::iter::once(running));
                }
                Some(_) => {}
                None => running.drop_figures(),
            }
            self.forget_if_gone(id);
        }
        self.resume_listeners()?;
        // Those that were held for a port that is free now are due at once.
        self.try_clients()?;
        if self.networks.values().all(Running::is_deserted) {
            tracing::info!("the last VM has gone and no other can come: ending");
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    fn resume_listeners(&mut self) -> io::Result<()> {
        for running in self.networks.values_mut() {
            running.listeners.resume(&self.poller, &running.ports);
        }
        self.rest_paused()
    }

    /// Has the timer run while a listener is paused because something was short.
    fn rest_paused(&self) -> io::Result<()> {
        let any_short = self.networks.values().any(|running| running.listeners.any_short());
        if any_short { self.resume.once(RESUME_AFTER) } else { self.resume.stop() }
    }

    /// Tries to reach the VMMs that listen, where the moment has come. Has the timer run while one is not connected.
    pub(super) fn try_clients(&mut self) -> io::Result<()> {
        let now = Instant::now();
        for running in self.networks.values_mut() {
            running.try_clients(now, &mut self.common);
        }
        match self.networks.values().filter_map(|running| running.clients.next_attempt()).min() {
            Some(at) => self.retry.once(at.saturating_duration_since(now)),
            None => self.retry.stop(),
        }
    }

    /// Has a network leave, and returns its sockets.
    pub(super) fn leave(&mut self, id: NetworkId) -> Vec<(WayIn, Door)> {
        let Some(running) = self.networks.get_mut(&id) else { return Vec::new() };
        let doors = running.leave(&self.poller);
        self.forget_if_gone(id);
        doors
    }

    /// Forgets a network that has left and whose last session has ended, with a last line of statistics.
    fn forget_if_gone(&mut self, id: NetworkId) {
        let is_gone = |running: &Running| running.is_leaving() && running.is_deserted();
        if !self.networks.get(&id).is_some_and(is_gone) {
            return;
        }
        if let (Some(mut running), Some(statistics)) = (self.networks.remove(&id), &mut self.statistics) {
            statistics.write(std::iter::once(&mut running));
        }
    }

    /// Ends what has to end in order: nobody new comes in, no guest's memory is touched any more, and only then do the
    /// connections close. That is left to the end of the process: to wake a thousand sessions for it takes longer, and
    /// nothing of theirs outlives the process.
    fn finish(self) {
        let Self { mut networks, poller, statistics, .. } = self;
        let workers = networks.values_mut().flat_map(|running| running.close_for_good(&poller)).collect();
        WorkerHandle::stop_all(workers);
        networks.values_mut().for_each(|running| running.beyond.write_leases());
        if let Some(mut statistics) = statistics {
            statistics.write(networks.values_mut());
            statistics.finish();
        }
    }
}

/// Networks go on without it: what has gone is found by who uses it.
fn tell_deaf(error: &io::Error) {
    tracing::warn!("the host's interfaces cannot be followed until the file is read again (SIGHUP): {error}");
}
