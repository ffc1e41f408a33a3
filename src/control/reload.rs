//! The configuration read again while networks run.
//!
//! Theory of operation. What runs and what is asked for are compared by the names of networks and by their ways in. A
//! network whose section did not change, but for its ways in, is kept: of its ways, those that are in both stay as they
//! are, with their ports. Everything else is new or has to leave. A socket that leaves in one place and is asked for in
//! another, as it is, is handed over, so that its name never goes away.
//!
//! It is done in two halves. First everything new is made that can be: networks with new names, and sockets whose names
//! are free. If anything fails, or the file makes no sense, what was made is undone and nothing has changed. Then what
//! has to leave leaves, and the new takes its place. What is made anew under the same name has to wait for that, and so
//! has a network with a new name that wants what one that leaves still holds, as when a network is renamed. If it then
//! cannot be started, the one before it is started again as it was, and a socket that cannot be made is missing; either
//! is logged, and the rest goes on. Addresses that are kept for guests are other ones at once, for those who ask next.

use std::io;
use std::time::Instant;

use super::holdings::exclude_each_other;
use super::listeners::Door;
use super::running::Running;
use super::source::NetworkId;
use super::start::{StartError, bind, failed};
use super::supervisor::Supervisor;
use super::ways::WayIn;
use crate::config::file::{self, FileError};
use crate::config::{Attachment, Config, Name, Network};
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
    /// Networks that can be started only once those have left that hold what they want.
    anew: Vec<Anew>,
    /// Ways in that are new, with their sockets where those could be made already.
    ways: Vec<(NetworkId, WayIn, Option<Door>)>,
}

/// A network that can be started only once others have left.
#[derive(Debug)]
struct Anew {
    id: NetworkId,
    network: Network,
    /// The one that is started again if this one cannot be.
    before: Option<Name>,
}

/// Whether the one differs from the other in nothing but its ways in.
fn is_same_but_for_ways(one: &Network, other: &Network) -> bool {
    let without_ways = |network: &Network| Network { attachments: Vec::new(), ports: Vec::new(), ..network.clone() };
    without_ways(one) == without_ways(other)
}

/// Whether the one can be there only once the other has left.
fn succeeds(one: &Network, other: &Network) -> bool {
    one.name == other.name || exclude_each_other(one, other)
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
            let before = self.present().find(|running| running.network.name == network.name);
            if let Some(running) = before.filter(|running| is_same_but_for_ways(&running.network, network)) {
                plan.kept.push((running.id, network.clone()));
            }
        }
        let is_kept = |running: &Running| plan.kept.iter().any(|(id, _)| *id == running.id);
        plan.leaving = self.present().filter(|running| !is_kept(running)).map(|running| running.id).collect();
        for network in &config.networks {
            if !plan.kept.iter().any(|(_, kept)| kept.name == network.name) {
                self.plan_new(network, config, plan)?;
            }
        }
        let leaving_ways = self.leaving_ways(plan);
        let started = plan.new.iter().map(|running| (running.id, &running.network));
        let kept = plan.kept.iter().map(|(id, network)| (*id, network));
        let others = kept.chain(plan.anew.iter().map(|anew| (anew.id, &anew.network)));
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

    /// Networks that run and are not leaving.
    fn present(&self) -> impl Iterator<Item = &Running> {
        self.networks.values().filter(|running| !running.is_leaving())
    }

    /// Starts a network, or has it started once others have left that are in its way.
    fn plan_new(&mut self, network: &Network, config: &Config, plan: &mut Plan) -> Result<(), StartError> {
        if let Some(fd) = network.mode.inherited_tap() {
            return Err(StartError::InheritedTap { network: network.name.to_string(), number: fd.number() });
        }
        let id = self.new_id().map_err(failed("run one more network"))?;
        let leaving = self.present().filter(|running| plan.leaving.contains(&running.id));
        let in_the_way: Vec<&Name> =
            leaving.map(|running| &running.network).filter(|other| succeeds(network, other)).map(|o| &o.name).collect();
        if in_the_way.is_empty() {
            plan.new.push(self.start_network(id, network, &mut InheritedTaps::new())?);
        } else {
            // One whose name is another's now has that one in its place.
            let may_return = |name: &&&Name| !config.networks.iter().any(|other| other.name == ***name);
            let before = in_the_way.iter().find(|name| ***name == network.name);
            let before = before.or_else(|| in_the_way.iter().find(may_return)).map(|name| (*name).clone());
            plan.anew.push(Anew { id, network: network.clone(), before });
        }
        Ok(())
    }

    /// The ways in that there will not be any more.
    fn leaving_ways(&self, plan: &Plan) -> Vec<WayIn> {
        let mut leaving = Vec::new();
        for running in self.present() {
            let kept = plan.kept.iter().find(|(id, _)| *id == running.id);
            let stay = kept.map(|(_, network)| WayIn::all(network)).unwrap_or_default();
            leaving.extend(WayIn::all(&running.network).into_iter().filter(|way| !stay.contains(way)));
        }
        leaving
    }

    /// The second half.
    fn carry_out(&mut self, plan: Plan, config: Config) -> io::Result<()> {
        let Plan { kept, leaving, new, anew, mut ways } = plan;
        let (started, gone, changed) = (new.len() + anew.len(), leaving.len(), ways.len());
        let (mut doors, mut left) = (Vec::new(), Vec::new());
        for id in leaving {
            left.extend(self.networks.get(&id).map(|running| running.network.clone()));
            doors.extend(self.leave(id));
        }
        for (id, network) in kept {
            let Some(running) = self.networks.get_mut(&id) else { continue };
            let stay = WayIn::all(&network);
            doors.extend(running.close_unless(|way| stay.contains(way), &self.poller));
            if network.reservations() != running.network.reservations()
                && let Err(error) = running.beyond.reserve(&network)
            {
                tracing::error!("SIGHUP: network {}: {error}; other addresses are kept than it says", network.name);
            }
            running.set_network(network);
        }
        self.follow_links_if_needed();
        // That an interface has gone with its network is no news to the one that makes it again.
        self.follow_uplinks()?;
        for running in new {
            self.add(running);
        }
        for anew in anew {
            self.start_anew(&anew, &mut left, &mut ways);
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
        tracing::info!(started, left = gone, sockets = changed, "SIGHUP: the configuration was read again");
        self.config = Config { stats: self.config.stats.clone(), verbosity: self.config.verbosity, ..config };
        self.try_clients()
    }

    /// Starts a network in the place of one of those that have `left`, or else that one again.
    fn start_anew(&mut self, anew: &Anew, left: &mut Vec<Network>, ways: &mut Vec<(NetworkId, WayIn, Option<Door>)>) {
        let (Anew { id, network, before }, taps) = (anew, &mut InheritedTaps::new());
        let id = *id;
        let error = match self.start_network(id, network, taps) {
            Ok(running) => return self.add(running),
            Err(error) => error,
        };
        ways.retain(|(of, _, _)| *of != id);
        let place = left.iter().position(|left| Some(&left.name) == before.as_ref());
        let Some(before) = place.map(|place| left.swap_remove(place)) else {
            tracing::error!("SIGHUP: {error}; the network {} is down until the file is read again", network.name);
            return;
        };
        tracing::error!("SIGHUP: {error}; the network {} is started again as it was before", before.name);
        match self.start_network(id, &before, taps) {
            Ok(running) => {
                ways.extend(WayIn::all(&before).into_iter().map(|way| (id, way, None)));
                self.add(running);
            }
            Err(error) => {
                tracing::error!("SIGHUP: {error}; the network {} is down until the file is read again", before.name);
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
