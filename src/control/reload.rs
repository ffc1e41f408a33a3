//! The configuration read again while networks run.
//!
//! Theory of operation. What runs and what is asked for are compared by the names of networks and by their ways in. A
//! network whose section did not change, but for its ways in, is kept: of its ways, those that are in both stay as they
//! are, with their ports. Everything else is new or has to leave. A socket that leaves in one place and is asked for in
//! another, as it is, is handed over, so that its name never goes away.
//!
//! It is done in two halves. First everything new is made that can be: networks with new names, and sockets whose names
//! are free. If anything fails, or the file makes no sense, what was made is undone and nothing has changed. Then what
//! has to leave leaves, and the new takes its place. What is made anew under the same name has to wait for that, since
//! the old one holds what the new one wants: a network that then cannot be started is started as it was before, and a
//! socket that cannot be made is missing; either is logged, and the rest goes on.

use std::io;
use std::time::Instant;

use super::listeners::Door;
use super::running::Running;
use super::source::NetworkId;
use super::start::{StartError, bind, failed, start_network};
use super::supervisor::Supervisor;
use super::ways::WayIn;
use crate::config::file::{self, FileError};
use crate::config::{Attachment, Config, Network};
use crate::mode::InheritedTaps;

/// What will be in the place of what runs.
#[derive(Debug, Default)]
struct Plan {
    /// Networks that are kept, and the ways that they will have.
    kept: Vec<(NetworkId, Network)>,
    /// Networks that have to leave.
    leaving: Vec<NetworkId>,
    /// Networks with new names.
    new: Vec<Running>,
    /// Networks that are made anew once the one with the same name has left.
    anew: Vec<(NetworkId, Network)>,
    /// Ways in that are new, with their sockets where those could be made already.
    ways: Vec<(NetworkId, WayIn, Option<Door>)>,
}

/// Whether the one differs from the other in nothing but its ways in.
fn is_same_but_for_ways(one: &Network, other: &Network) -> bool {
    let without_ways = |network: &Network| Network { attachments: Vec::new(), ports: Vec::new(), ..network.clone() };
    without_ways(one) == without_ways(other)
}

impl Supervisor {
    /// Reads the file again, if there is one, and does what it says now.
    ///
    /// # Errors
    /// When the loop itself cannot go on. Whatever is wrong with the file is logged.
    pub(super) fn reload(&mut self) -> io::Result<()> {
        let Some(source) = self.config.source.clone() else {
            tracing::info!("SIGHUP: there is no configuration file to read again; ignored");
            return Ok(());
        };
        // Anything else might keep us waiting for its writer.
        if std::fs::metadata(&source).is_ok_and(|metadata| !metadata.is_file()) {
            tracing::error!("SIGHUP: {} is not a regular file; nothing was changed", source.display());
            return Ok(());
        }
        let config = match file::read(&source) {
            Ok(config) => config,
            Err(error) => {
                log_problems(&error);
                return Ok(());
            }
        };
        match self.plan(&config) {
            Ok(plan) => self.carry_out(plan, config),
            Err(error) => {
                tracing::error!("SIGHUP: {error}; nothing was changed");
                Ok(())
            }
        }
    }

    /// The first half.
    fn plan(&mut self, config: &Config) -> Result<Plan, StartError> {
        let mut plan = Plan::default();
        let made = self.make_plan(config, &mut plan);
        if made.is_err() {
            plan.new.iter_mut().for_each(|running| drop(running.leave(&self.poller)));
        }
        made.map(|()| plan)
    }

    fn make_plan(&mut self, config: &Config, plan: &mut Plan) -> Result<(), StartError> {
        for network in &config.networks {
            let before = self.networks.values().filter(|running| !running.is_leaving());
            let before = before.into_iter().find(|running| running.network.name == network.name);
            match before {
                Some(running) if is_same_but_for_ways(&running.network, network) => {
                    plan.kept.push((running.id, network.clone()));
                }
                before => {
                    let is_new = before.is_none();
                    let id = self.new_id().map_err(failed("run one more network"))?;
                    if is_new {
                        plan.new.push(start_network(id, network, &mut InheritedTaps::new(), &mut self.common)?);
                    } else {
                        plan.anew.push((id, network.clone()));
                    }
                }
            }
        }
        let stays = |id: &NetworkId| plan.kept.iter().any(|(kept, _)| kept == id);
        plan.leaving = self.networks.keys().filter(|id| !stays(id)).copied().collect();
        let leaving_ways = self.leaving_ways(plan);
        let started = plan.new.iter().map(|running| (running.id, &running.network));
        let others = plan.kept.iter().chain(&plan.anew).map(|(id, network)| (*id, network));
        let mut ways = Vec::new();
        for (id, network) in started.chain(others) {
            let before = self.networks.get(&id).map(|running| WayIn::all(&running.network)).unwrap_or_default();
            for way in WayIn::all(network).into_iter().filter(|way| !before.contains(way)) {
                let door = new_door(&way, &leaving_ways)?;
                ways.push((id, way, door));
            }
        }
        plan.ways = ways;
        Ok(())
    }

    /// The ways in that there will not be any more.
    fn leaving_ways(&self, plan: &Plan) -> Vec<WayIn> {
        let mut leaving = Vec::new();
        for running in self.networks.values().filter(|running| !running.is_leaving()) {
            let kept = plan.kept.iter().find(|(id, _)| *id == running.id);
            let stay = kept.map(|(_, network)| WayIn::all(network)).unwrap_or_default();
            leaving.extend(WayIn::all(&running.network).into_iter().filter(|way| !stay.contains(way)));
        }
        leaving
    }

    /// The second half.
    fn carry_out(&mut self, plan: Plan, config: Config) -> io::Result<()> {
        let Plan { kept, leaving, new, anew, mut ways } = plan;
        let (networks, changed) = (new.len() + anew.len(), ways.len());
        let (mut doors, mut left) = (Vec::new(), Vec::new());
        for id in leaving {
            left.extend(self.networks.get(&id).map(|running| running.network.clone()));
            doors.extend(self.leave(id));
        }
        for (id, network) in kept {
            let Some(running) = self.networks.get_mut(&id) else { continue };
            let stay = WayIn::all(&network);
            doors.extend(running.close_unless(|way| stay.contains(way), &self.poller));
            running.network = network;
        }
        for running in new {
            self.add(running)?;
        }
        for (id, network) in anew {
            self.start_anew(id, &network, &left, &mut ways)?;
        }
        // Sockets that nobody asks for any more go away now: their names may be asked for in another way.
        doors.retain(|(left, _)| ways.iter().any(|(_, way, _)| way.attachment == left.attachment));
        for (id, way, door) in ways {
            if let Err(error) = self.open_again(id, &way, door, &mut doors) {
                tracing::error!("SIGHUP: {error}; VMs cannot come in there until it works when the file is read again");
                if let Some(running) = self.networks.get_mut(&id) {
                    running.lacks(&way);
                }
            }
        }
        if (&config.stats, config.verbosity) != (&self.config.stats, self.config.verbosity) {
            tracing::debug!("SIGHUP: [statistics] and [log] stay as they were when the process was started");
        }
        tracing::info!(
            started = networks,
            left = left.len(),
            sockets = changed,
            "SIGHUP: the configuration was read again"
        );
        self.config = Config { stats: self.config.stats.clone(), verbosity: self.config.verbosity, ..config };
        self.try_clients()
    }

    /// Starts a network in the place of the one with its name among those that have `left`, or else that one again.
    fn start_anew(
        &mut self,
        id: NetworkId,
        network: &Network,
        left: &[Network],
        ways: &mut Vec<(NetworkId, WayIn, Option<Door>)>,
    ) -> io::Result<()> {
        let taps = &mut InheritedTaps::new();
        let error = match start_network(id, network, taps, &mut self.common) {
            Ok(running) => return self.add(running),
            Err(error) => error,
        };
        ways.retain(|(of, _, _)| *of != id);
        let Some(before) = left.iter().find(|before| before.name == network.name) else { return Ok(()) };
        tracing::error!("SIGHUP: network {}: {error}; it is started again as it was before", network.name);
        match start_network(id, before, taps, &mut self.common) {
            Ok(running) => {
                ways.extend(WayIn::all(before).into_iter().map(|way| (id, way, None)));
                self.add(running)
            }
            Err(error) => {
                tracing::error!("SIGHUP: network {}: {error}; it is down until the file is read again", network.name);
                Ok(())
            }
        }
    }

    fn open_again(
        &mut self,
        id: NetworkId,
        way: &WayIn,
        door: Option<Door>,
        doors: &mut Vec<(WayIn, Door)>,
    ) -> Result<(), StartError> {
        let handed_over = doors.iter().position(|(left, _)| left.attachment == way.attachment);
        let door = match (door, handed_over, &way.attachment) {
            (Some(door), _, _) => door,
            (None, Some(place), _) => doors.swap_remove(place).1,
            (None, None, Attachment::Listen(listen)) => Door::Bound(bind(listen)?),
            (None, None, Attachment::Connect(_)) => {
                if let Some(running) = self.networks.get_mut(&id) {
                    running.clients.add(way.clone(), Instant::now());
                }
                return Ok(());
            }
            // It was a connection, which has ended with the network that it led to.
            (None, None, Attachment::Inherit(fd)) => return Err(StartError::NoDescriptor(fd.number())),
        };
        self.add_door(id, door, way.clone()).map_err(failed("wait for VMs"))
    }
}

/// The socket of a way in that is new, if it needs one and no socket that leaves is in its place.
fn new_door(way: &WayIn, leaving: &[WayIn]) -> Result<Option<Door>, StartError> {
    match &way.attachment {
        Attachment::Connect(_) => Ok(None),
        Attachment::Listen(listen) => {
            let is_in_place = |left: &WayIn| left.attachment.path() == Some(listen.path.as_path());
            if leaving.iter().any(is_in_place) {
                Ok(None)
            } else {
                bind(listen).map(|socket| Some(Door::Bound(socket)))
            }
        }
        Attachment::Inherit(fd) => {
            let is_handed_over = leaving.iter().any(|left| left.attachment == way.attachment);
            if is_handed_over { Ok(None) } else { Err(StartError::NoDescriptor(fd.number())) }
        }
    }
}

fn log_problems(error: &FileError) {
    match error {
        FileError::Problems(problems) => {
            problems.iter().for_each(|problem| tracing::error!("SIGHUP: {}", problem.summary()));
            tracing::error!("SIGHUP: the file makes no sense; nothing was changed");
        }
        other => tracing::error!("SIGHUP: {other}; nothing was changed"),
    }
}
