//! Configuration: typed and already valid.
//!
//! Every value here was checked when it was made, so that no other module checks it again: a [`Config`] that exists,
//! and whose [`Config::problems`] are none, can be started. Nothing here looks at the machine; whether a directory
//! exists or a group is known is found out at start.

mod address;
mod check;
mod dhcp;
pub mod file;
mod forward;
mod guest;
mod hash;
mod mode;
mod name;
mod network;
mod offload;
mod report;
mod socket;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

pub use address::{MacAddr, PREFIX_MAX, PREFIX_MIN, Subnet4, Subnet6, Subnet6Choice, ip_net};
pub use check::{Field, Place};
pub use dhcp::{
    CLIENT_ID_BYTES_MAX, ClientId, DNS_MAX, Dhcp, Holder, LEASE_SECONDS_MAX, LEASE_SECONDS_MIN, LeaseTime, ROUTES_MAX,
    Range4, Reservation, Route4, SEARCH_MAX, lease_file,
};
pub use forward::{FORWARD_SOCKETS_MAX, FORWARDS_MAX, Forward, Guest, Protocol};
pub use guest::{MTU_MIN, Mtu, QUEUE_PAIRS_MAX, QueuePairs, WORKERS_MAX, WorkerCount};
pub use hash::fnv1a;
pub use mode::{Bridged, HostOnly, Internal, Mode, Nat, Security, Services, TapSource, Via};
pub use name::{
    DOMAIN_BYTES_MAX, DomainName, HostName, IF_NAME_BYTES_MAX, IfName, LABEL_BYTES_MAX, NAME_BYTES_MAX, Name,
};
pub use network::{DeclaredPort, Network};
pub use offload::{Offload, OffloadMask};
pub use report::{
    STATS_INTERVAL_SECONDS_MAX, STATS_INTERVAL_SECONDS_MIN, Stats, StatsInterval, StatsTarget, Verbosity,
};
pub use socket::{
    Attachment, CONNECT_PATH_BYTES_MAX, ConnectPath, Group, InheritedFd, LISTEN_PATH_BYTES_MAX, Listen, ListenPath,
    SocketMode,
};

/// Ways in for VMs that one network may have: sockets, connections and inherited descriptors together.
pub const ATTACHMENTS_MAX: usize = 1024;
/// Networks that one process may run.
pub const NETWORKS_MAX: usize = 256;

/// What the user asked for, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The networks to run: at least one, no two with the same name.
    pub networks: Vec<Network>,
    /// Where statistics go, if anywhere.
    pub stats: Option<Stats>,
    /// How much to log.
    pub verbosity: Verbosity,
    /// The file that it was read from, to be read again when asked to; none: the command line said it all.
    pub source: Option<PathBuf>,
}

/// Why a value was refused: what is wrong and what would be right, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(String);

fn problem<T>(text: impl Into<String>) -> Result<T, Problem> {
    Err(Problem(text.into()))
}

/// The path of a file that is no socket. Whether it can be opened is seen at start.
///
/// # Errors
/// When no file can have that name.
pub fn file_path(path: OsString) -> Result<PathBuf, Problem> {
    if path.is_empty() || path.as_bytes().contains(&0) {
        return problem("no file can have that name: it is empty, or has a zero byte in it");
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests;
