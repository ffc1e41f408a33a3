//! From a configuration to a supervisor that is ready to run.

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::hints::instructions;
use super::listeners::Door;
use super::statistics::Statistics;
use super::supervisor::Supervisor;
use super::{FDS_PER_PORT, FDS_SPARE};
use crate::config::{Attachment, Config, Group, Listen, Network, Stats, StatsTarget};
use crate::mode;
use crate::sys::rlimit::raise_nofile;
use crate::sys::signals::Signals;
use crate::sys::socket::{BindError, BoundSocket, InheritError, InheritedSocket, group_number, inherit};

/// Why the process could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket could not be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A descriptor that our parent should have left us is of no use.
    #[error("--fd {number}: {source}")]
    Inherit {
        /// The descriptor.
        number: RawFd,
        /// Why.
        source: InheritError,
    },
    /// There is no such group.
    #[error("there is no group '{0}': create it, or name another with --socket-group")]
    NoGroup(String),
    /// The statistics cannot be written.
    #[error("cannot open {} for statistics: {source}", path.display())]
    Statistics {
        /// The file, or `-`.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to run.
    #[error("no network asked for")]
    NoNetwork,
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

/// What our parent left us.
#[derive(Debug, Default)]
struct Inherited {
    doors: Vec<Door>,
    streams: Vec<(RawFd, UnixStream)>,
}

/// Starts everything; what has been started is undone when something cannot be.
pub(super) fn start(config: &Config) -> Result<Supervisor, StartError> {
    // First of all: a descriptor that we open could get the number of one that our parent forgot to leave open.
    let network = config.networks.first().ok_or(StartError::NoNetwork)?;
    let inherited = inherit_all(network)?;
    let signals =
        Signals::block(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]).map_err(failed("wait for signals"))?;
    let nofile_limit = raise_limit();
    tracing::info!(network = network.name.as_str(), offloads = %network.offload, "{}", mode::summary(network));
    let statistics = config.stats.as_ref().map(|stats| open_statistics(network, stats)).transpose()?;
    let mut supervisor =
        Supervisor::new(network, signals, nofile_limit, statistics).map_err(failed("wait for events"))?;
    for door in bind_all(network)?.into_iter().chain(inherited.doors) {
        supervisor.add_door(door).map_err(failed("wait for VMs"))?;
    }
    for (number, stream) in inherited.streams {
        supervisor.attach(stream, number).map_err(failed("make a port of the connection that --fd names"))?;
    }
    let connect_to = |a: &Attachment| if let Attachment::Connect(path) = a { Some(path.clone()) } else { None };
    for path in network.attachments.iter().filter_map(connect_to) {
        supervisor.add_client(path.as_path(), Instant::now());
    }
    tell(config);
    Ok(supervisor)
}

fn inherit_all(network: &Network) -> Result<Inherited, StartError> {
    let mut inherited = Inherited::default();
    for attachment in &network.attachments {
        let Attachment::Inherit(fd) = attachment else { continue };
        let number = fd.number();
        match inherit(number).map_err(|source| StartError::Inherit { number, source })? {
            InheritedSocket::Listening(listener) => inherited.doors.push(Door::Inherited(listener)),
            InheritedSocket::Connected(stream) => inherited.streams.push((number, stream)),
        }
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

fn bind_all(network: &Network) -> Result<Vec<Door>, StartError> {
    let mut doors = Vec::new();
    for attachment in &network.attachments {
        if let Attachment::Listen(Listen { path, mode, group }) = attachment {
            let gid = group.as_ref().map(find_group).transpose()?;
            doors.push(Door::Bound(BoundSocket::bind(path.as_path(), mode.bits(), gid)?));
        }
    }
    Ok(doors)
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

fn open_statistics(network: &Network, stats: &Stats) -> Result<Statistics, StartError> {
    Statistics::start(network.name.to_string(), stats).map_err(|source| {
        let path = match &stats.target {
            StatsTarget::Stdout => PathBuf::from("-"),
            StatsTarget::File(path) => path.clone(),
        };
        StartError::Statistics { path, source }
    })
}

/// Prints how to attach VMs: to the standard output, unless statistics go there.
fn tell(config: &Config) {
    let text: String = config.networks.iter().map(instructions).collect();
    let to_stdout = !matches!(config.stats, Some(Stats { target: StatsTarget::Stdout, .. }));
    // Nobody may be reading, and that is no reason not to run.
    let _ = if to_stdout {
        io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush())
    } else {
        io::stderr().write_all(text.as_bytes())
    };
}
