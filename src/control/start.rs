//! From a configuration to a supervisor that is ready to run.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::hints::all_instructions;
use super::listeners::Door;
use super::running::Running;
use super::source::NetworkId;
use super::statistics::Statistics;
use super::supervisor::Supervisor;
use super::ways::WayIn;
use super::{FDS_PER_PORT, FDS_SPARE};
use crate::config::{Attachment, Config, Group, Listen, Network, Stats, StatsTarget};
use crate::mode::{self, InheritedTaps, ModeError};
use crate::sys::rlimit::raise_nofile;
use crate::sys::signals::Signals;
use crate::sys::socket::{BindError, BoundSocket, InheritError, InheritedSocket, group_number, inherit, take_over};

/// Why the process could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket could not be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A descriptor that our parent should have left us is of no use.
    #[error("{flag} {number}: {source}")]
    Inherit {
        /// The flag that names it.
        flag: &'static str,
        /// The descriptor.
        number: RawFd,
        /// Why.
        source: InheritError,
    },
    /// A descriptor cannot be left to a process that runs.
    #[error("descriptor {0} was not left to us when we started: a socket-path can be added while we run")]
    NoDescriptor(RawFd),
    /// A tap that was left to us cannot be opened a second time.
    #[error(
        "network {network}: descriptor {number} can be taken only when we start, so that the network cannot change \
         now: start guestwire again, or name a tap as tap"
    )]
    InheritedTap {
        /// The network's name.
        network: String,
        /// The descriptor.
        number: RawFd,
    },
    /// There is no such group.
    #[error("there is no group '{0}': create it, or name another as socket-group")]
    NoGroup(String),
    /// The statistics cannot be written.
    #[error("cannot open {} for statistics: {source}", path.display())]
    Statistics {
        /// The file, or `-`.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a network is made of cannot be made.
    #[error("network {network}: {source}")]
    Mode {
        /// The network's name.
        network: String,
        /// Why.
        source: ModeError,
    },
    /// The system refused something else.
    #[error("cannot {doing}: {source}")]
    System {
        /// What we tried, as a verb.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl StartError {
    /// Whether it is the command line that asks for what cannot be.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Inherit { .. })
    }
}

/// Names what failed.
pub(super) fn failed(doing: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::System { doing, source }
}

/// What our parent left us, by the descriptor's number.
#[derive(Default)]
struct Inherited {
    sockets: HashMap<RawFd, InheritedSocket>,
    taps: InheritedTaps,
}

/// Starts everything; what has been started is undone when something cannot be.
pub(super) fn start(config: &Config) -> Result<Supervisor, StartError> {
    // First of all: a descriptor that we open could get the number of one that our parent forgot to leave open.
    let mut inherited = inherit_all(&config.networks)?;
    let signals =
        Signals::block(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]).map_err(failed("wait for signals"))?;
    let nofile_limit = raise_limit();
    let statistics = config.stats.as_ref().map(open_statistics).transpose()?;
    let mut supervisor =
        Supervisor::new(config.clone(), signals, nofile_limit, statistics).map_err(failed("wait for events"))?;
    for network in &config.networks {
        let id = supervisor.new_id().map_err(failed("run one more network"))?;
        let running = supervisor.start_network(id, network, &mut inherited.taps)?;
        supervisor.add(running);
        for way in WayIn::all(network) {
            open(&mut supervisor, id, way, &mut inherited.sockets)?;
        }
    }
    tell(config);
    Ok(supervisor)
}

impl Supervisor {
    /// Starts one network: everything but the ways into it.
    ///
    /// Whatever else a network is made of, its uplink and its services, begins here and nowhere else.
    pub(super) fn start_network(
        &mut self,
        id: NetworkId,
        network: &Network,
        taps: &mut InheritedTaps,
    ) -> Result<Running, StartError> {
        let name = network.name.as_str();
        let made = mode::make(network, taps).map_err(|source| StartError::Mode { network: name.to_owned(), source })?;
        tracing::info!(network = name, offloads = %network.offload, "{}", mode::summary(network));
        let mut running = Running::new(id, network, made, &mut self.common).map_err(failed("start workers"))?;
        if let Err(error) = running.watch(&self.poller) {
            drop(running.leave(&self.poller));
            return Err(failed("wait for events")(error));
        }
        Ok(running)
    }
}

/// Opens one way into a network.
fn open(
    supervisor: &mut Supervisor,
    id: NetworkId,
    way: WayIn,
    inherited: &mut HashMap<RawFd, InheritedSocket>,
) -> Result<(), StartError> {
    let door = match &way.attachment {
        Attachment::Connect(_) => {
            if let Some(running) = supervisor.networks.get_mut(&id) {
                running.clients.add(way, Instant::now());
            }
            return Ok(());
        }
        Attachment::Listen(listen) => Door::Bound(bind(listen)?),
        Attachment::Inherit(fd) => match inherited.remove(&fd.number()) {
            Some(InheritedSocket::Listening(listener)) => Door::Inherited(listener),
            Some(InheritedSocket::Connected(stream)) => {
                let made = supervisor.attach(id, stream, &way);
                return made.map_err(failed("make a port of the connection that --fd names"));
            }
            None => return Ok(()),
        },
    };
    supervisor.add_door(id, door, way).map_err(failed("wait for VMs"))
}

fn inherit_all(networks: &[Network]) -> Result<Inherited, StartError> {
    let mut inherited = Inherited::default();
    for way in networks.iter().flat_map(WayIn::all) {
        let Attachment::Inherit(fd) = way.attachment else { continue };
        let number = fd.number();
        let failed = |source| StartError::Inherit { flag: "--fd", number, source };
        let socket = inherit(number).map_err(failed)?;
        inherited.sockets.insert(number, socket);
    }
    for fd in networks.iter().filter_map(|network| network.mode.inherited_tap()) {
        let number = fd.number();
        let failed = |source| StartError::Inherit { flag: "--tap-fd", number, source };
        let tap = take_over(number).map_err(failed)?;
        inherited.taps.insert(number, tap);
    }
    Ok(inherited)
}

/// Raises the limit on descriptors as far as we may, says so, and returns it.
fn raise_limit() -> u64 {
    match raise_nofile() {
        Ok(limit) => {
            let ports = limit.now.saturating_sub(FDS_SPARE) / FDS_PER_PORT;
            tracing::info!(before = limit.before, now = limit.now, "file descriptors: room for about {ports} ports");
            limit.now
        }
        Err(error) => {
            tracing::warn!(%error, "the limit on file descriptors cannot be raised");
            u64::MAX
        }
    }
}

/// Makes a socket to listen on.
pub(super) fn bind(listen: &Listen) -> Result<BoundSocket, StartError> {
    let Listen { path, mode, group } = listen;
    let gid = group.as_ref().map(find_group).transpose()?;
    Ok(BoundSocket::bind(path.as_path(), mode.bits(), gid)?)
}

fn find_group(group: &Group) -> Result<u32, StartError> {
    match group {
        Group::Gid(gid) => Ok(*gid),
        Group::Name(name) => {
            let found = group_number(name).map_err(failed("read the list of groups"))?;
            found.ok_or_else(|| StartError::NoGroup(name.clone()))
        }
    }
}

fn open_statistics(stats: &Stats) -> Result<Statistics, StartError> {
    Statistics::start(stats).map_err(|source| {
        let path = match &stats.target {
            StatsTarget::Stdout => PathBuf::from("-"),
            StatsTarget::File(path) => path.clone(),
        };
        StartError::Statistics { path, source }
    })
}

/// Prints how to attach VMs: to the standard output, unless statistics go there.
fn tell(config: &Config) {
    let text = all_instructions(&config.networks);
    let to_stdout = !matches!(config.stats, Some(Stats { target: StatsTarget::Stdout, .. }));
    // Nobody may be reading, and that is no reason not to run.
    let _ = if to_stdout {
        io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush())
    } else {
        io::stderr().write_all(text.as_bytes())
    };
}
