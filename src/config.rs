//! Configuration: typed and already valid.
//!
//! Every value here was checked when it was made, so that no other module checks it again: a [`Config`] that exists can
//! be started. Nothing here looks at the machine; whether a directory exists or a group is known is found out at start.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};
use std::str::FromStr;
use std::time::Duration;

/// The longest path of a Unix socket in bytes: `sun_path` holds 108, one of them the terminating zero.
pub const CONNECT_PATH_BYTES_MAX: usize = 107;
/// The longest path to listen on: one byte less, for the temporary name under which it is bound.
pub const LISTEN_PATH_BYTES_MAX: usize = CONNECT_PATH_BYTES_MAX - 1;
/// The smallest MTU of a virtio network device (virtio 1.3, 5.1.4.1).
pub const MTU_MIN: u16 = 68;
/// Ways in for VMs that one network may have: sockets, connections and inherited descriptors together.
pub const ATTACHMENTS_MAX: usize = 1024;
/// The longest time between two lines of statistics, in seconds: a day.
pub const STATS_INTERVAL_SECONDS_MAX: f64 = 86_400.0;
/// The shortest time between two lines of statistics, in seconds.
pub const STATS_INTERVAL_SECONDS_MIN: f64 = 0.01;
/// Queue pairs that a port may have.
pub const QUEUE_PAIRS_MAX: u16 = 16;
/// Threads that forward one network's frames, at most.
pub const WORKERS_MAX: u8 = 64;
/// Descriptors below this one are the standard streams.
const INHERITED_FD_MIN: RawFd = 3;

/// What the user asked for, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The network to run.
    pub network: Network,
    /// Where statistics go, if anywhere.
    pub stats: Option<Stats>,
    /// How much to log.
    pub verbosity: Verbosity,
}

/// One Ethernet segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The name that log lines and statistics use.
    pub name: String,
    /// What the network is connected to.
    pub mode: Mode,
    /// How VMs come in: at least one, no two the same.
    pub attachments: Vec<Attachment>,
    /// The MTU that guests are told; none: they are told nothing and use their own.
    pub mtu: Option<Mtu>,
    /// The offloads that guests are offered.
    pub offload: OffloadMask,
    /// Queue pairs that guests are told of.
    pub queue_pairs: QueuePairs,
    /// Threads that forward frames.
    pub workers: WorkerCount,
}

/// What a network is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the VMs on it see each other and nobody else.
    Internal,
}

impl Mode {
    /// The verb of the command line that asks for this mode.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Internal => "internal",
        }
    }
}

/// One way in for VMs.
#[derive(Clone, Debug, PartialEq)]
pub enum Attachment {
    /// We listen, and each connection is a new port.
    Listen(Listen),
    /// A VMM listens, and we connect, again and again.
    Connect(ConnectPath),
    /// A descriptor that our parent process left us: a listening socket, or one connection.
    Inherit(InheritedFd),
}

/// A socket to listen on.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// Where.
    pub path: ListenPath,
    /// The permissions of the socket.
    pub mode: SocketMode,
    /// The group of the socket; none: our own.
    pub group: Option<Group>,
}

/// Where statistics go and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Where.
    pub target: StatsTarget,
    /// The time between two lines.
    pub interval: StatsInterval,
}

/// Where statistics go.
#[derive(Clone, Debug, PartialEq)]
pub enum StatsTarget {
    /// The standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// How much to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// Ports that come and go, too.
    Normal,
    /// What sessions negotiate, too.
    Debug,
    /// Everything.
    Trace,
}

/// Why a value was refused: what is wrong and what would be right, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(String);

fn problem<T>(text: impl Into<String>) -> Result<T, Problem> {
    Err(Problem(text.into()))
}

fn check_path(path: &OsStr, bytes_max: usize) -> Result<PathBuf, Problem> {
    let bytes = path.as_bytes();
    if bytes.is_empty() {
        return problem("the path is empty");
    }
    if bytes.contains(&0) {
        return problem("the path has a zero byte in it");
    }
    if bytes.len() > bytes_max {
        return problem(format!(
            "the path has {} bytes and a Unix socket's path at most {bytes_max}: choose a shorter one",
            bytes.len()
        ));
    }
    if Path::new(path).file_name().is_none() || bytes.ends_with(b"/") {
        return problem("the path must end in the name of a socket, such as /tmp/lab.sock");
    }
    Ok(PathBuf::from(path))
}

/// A path that a socket can be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenPath(PathBuf);

impl ListenPath {
    /// Checks a path.
    ///
    /// # Errors
    /// When it is empty, does not name a file, or is longer than [`LISTEN_PATH_BYTES_MAX`].
    pub fn new(path: OsString) -> Result<Self, Problem> {
        check_path(&path, LISTEN_PATH_BYTES_MAX).map(Self)
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

/// A path that a socket can be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectPath(PathBuf);

impl ConnectPath {
    /// Checks a path.
    ///
    /// # Errors
    /// When it is empty, does not name a file, or is longer than [`CONNECT_PATH_BYTES_MAX`].
    pub fn new(path: OsString) -> Result<Self, Problem> {
        check_path(&path, CONNECT_PATH_BYTES_MAX).map(Self)
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

/// The number of a descriptor that our parent process left open for us. Whether it is a socket is seen at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InheritedFd(RawFd);

impl InheritedFd {
    /// The number.
    pub fn number(self) -> RawFd {
        self.0
    }
}

impl FromStr for InheritedFd {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse::<RawFd>() {
            Ok(number) if number >= INHERITED_FD_MIN => Ok(Self(number)),
            Ok(number) if number >= 0 => {
                problem(format!("{number} is a standard stream: pass the socket as 3 or more"))
            }
            _ => problem("not the number of a descriptor: pass an open socket's, 3 or more"),
        }
    }
}

/// Permission bits of a socket. To connect, a process needs permission to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// Nobody but us: the default.
    pub const PRIVATE: SocketMode = SocketMode(0o600);

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for SocketMode {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        match u32::from_str_radix(digits, 8) {
            Ok(bits) if bits <= 0o777 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(Self(bits)),
            _ => problem("not a mode in octal from 0 to 0777: for instance 0660"),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// A group, by name or by number. Whether the name is known is seen at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// By name.
    Name(String),
    /// By number.
    Gid(u32),
}

impl FromStr for Group {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return problem("the group is empty: give its name or number");
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Group::Name(text.to_owned()));
        }
        // The largest number means "leave as it is" to chown(2).
        match text.parse::<u32>() {
            Ok(gid) if gid != u32::MAX => Ok(Group::Gid(gid)),
            _ => problem("no group has that number"),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Group::Name(name) => f.write_str(name),
            Group::Gid(gid) => write!(f, "{gid}"),
        }
    }
}

/// An MTU: the longest payload of an Ethernet frame, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u16);

impl Mtu {
    /// Bytes.
    pub fn bytes(self) -> u16 {
        self.0
    }
}

impl FromStr for Mtu {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse::<u16>() {
            Ok(bytes) if bytes >= MTU_MIN => Ok(Self(bytes)),
            _ => problem(format!("not an MTU: a number of bytes from {MTU_MIN} to {}, for instance 9000", u16::MAX)),
        }
    }
}

/// How many queue pairs guests are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairs(u16);

impl QueuePairs {
    /// One: the default.
    pub const ONE: QueuePairs = QueuePairs(1);

    /// The number, from 1 to [`QUEUE_PAIRS_MAX`].
    pub fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for QueuePairs {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse() {
            Ok(n) if (1..=QUEUE_PAIRS_MAX).contains(&n) => Ok(Self(n)),
            _ => problem(format!("not a number of queue pairs from 1 to {QUEUE_PAIRS_MAX}")),
        }
    }
}

/// How many threads forward a network's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerCount(u8);

impl WorkerCount {
    /// One: the default.
    pub const ONE: WorkerCount = WorkerCount(1);

    /// The number, from 1 to [`WORKERS_MAX`].
    pub fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for WorkerCount {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse() {
            Ok(n) if (1..=WORKERS_MAX).contains(&n) => Ok(Self(n)),
            _ => problem(format!("not a number of workers from 1 to {WORKERS_MAX}")),
        }
    }
}

/// The time between two lines of statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsInterval(Duration);

impl StatsInterval {
    /// One second: the default.
    pub const SECOND: StatsInterval = StatsInterval(Duration::from_secs(1));

    /// The time.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for StatsInterval {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse::<f64>() {
            Ok(s) if (STATS_INTERVAL_SECONDS_MIN..=STATS_INTERVAL_SECONDS_MAX).contains(&s) => {
                Ok(Self(Duration::from_secs_f64(s)))
            }
            _ => problem(format!(
                "not a number of seconds from {STATS_INTERVAL_SECONDS_MIN} to {STATS_INTERVAL_SECONDS_MAX}"
            )),
        }
    }
}

macro_rules! offloads {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal needs $needs:expr,)+) => {
        /// Work that guests leave to us or we to them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Offload {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Offload {
            /// All of them.
            pub const ALL: &'static [Offload] = &[$(Offload::$variant,)+];

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Offload::$variant => $name,)+
                }
            }

            /// The offload without which this one cannot be (virtio 1.3, 5.1.3.1).
            pub const fn needs(self) -> Option<Offload> {
                match self {
                    $(Offload::$variant => $needs,)+
                }
            }
        }
    };
}

offloads! {
    /// Checksums may be left to the receiver, in both directions: CSUM, GUEST_CSUM.
    Csum => "csum" needs None,
    /// TCP segments may be longer than the MTU, in both directions: HOST_TSO4, HOST_TSO6, GUEST_TSO4, GUEST_TSO6.
    Tso => "tso" needs Some(Offload::Csum),
    /// UDP datagrams may be joined, in both directions: HOST_USO, GUEST_USO4, GUEST_USO6.
    Uso => "uso" needs Some(Offload::Csum),
    /// Long TCP segments may carry ECN marks, in both directions: HOST_ECN, GUEST_ECN.
    Ecn => "ecn" needs Some(Offload::Tso),
}

/// The offloads that guests are offered. What an absent one needs is never present without it: see [`Offload::needs`].
///
/// On the command line: `on`, `off`, or a list such as `tso=off,uso=off`. A list starts from everything, or from the
/// `on` or `off` that is its first word. What needs an offload that is turned off goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadMask(u8);

impl OffloadMask {
    /// Everything: the default.
    pub const ALL: OffloadMask = OffloadMask((1 << Offload::ALL.len()) - 1);
    /// Nothing.
    pub const NONE: OffloadMask = OffloadMask(0);

    /// Whether the offload is offered.
    pub const fn contains(self, offload: Offload) -> bool {
        self.0 & (1 << offload as u8) != 0
    }

    const fn with(self, offload: Offload, on: bool) -> Self {
        if on { Self(self.0 | 1 << offload as u8) } else { Self(self.0 & !(1 << offload as u8)) }
    }

    /// Drops what lacks something it needs. `asked` are the ones that the user named as on: those must not be dropped.
    fn closed(self, asked: OffloadMask) -> Result<Self, Problem> {
        let mut mask = self;
        // In the order of `ALL` an offload comes after the one it needs.
        for &offload in Offload::ALL {
            if let Some(needed) = offload.needs()
                && mask.contains(offload)
                && !mask.contains(needed)
            {
                if asked.contains(offload) {
                    let (name, needed) = (offload.name(), needed.name());
                    return problem(format!(
                        "{name} needs {needed}, which is off: add {needed}=on or leave out {name}=on"
                    ));
                }
                mask = mask.with(offload, false);
            }
        }
        Ok(mask)
    }
}

impl FromStr for OffloadMask {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let mut words = text.split(',').peekable();
        let base = match words.peek() {
            Some(&"on") => words.next().map(|_| Self::ALL),
            Some(&"off") => words.next().map(|_| Self::NONE),
            _ => None,
        };
        let mut mask = base.unwrap_or(Self::ALL);
        let (mut asked, mut named) = (Self::NONE, Self::NONE);
        for word in words {
            let (offload, on) = parse_offload(word)?;
            if named.contains(offload) {
                return problem(format!("{} is named twice", offload.name()));
            }
            named = named.with(offload, true);
            asked = asked.with(offload, on);
            mask = mask.with(offload, on);
        }
        mask.closed(asked)
    }
}

fn parse_offload(word: &str) -> Result<(Offload, bool), Problem> {
    let names = || Offload::ALL.iter().map(|o| o.name()).collect::<Vec<_>>().join(", ");
    let Some((name, value)) = word.split_once('=') else {
        return problem(format!("'{word}' is not NAME=on or NAME=off, where NAME is one of {}", names()));
    };
    let Some(&offload) = Offload::ALL.iter().find(|o| o.name() == name) else {
        return problem(format!("there is no offload '{name}': there are {}", names()));
    };
    match value {
        "on" => Ok((offload, true)),
        "off" => Ok((offload, false)),
        _ => problem(format!("'{word}': say {name}=on or {name}=off")),
    }
}

impl fmt::Display for OffloadMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Offload::ALL.iter().filter(|&&o| self.contains(o)).map(|o| o.name()).collect();
        f.write_str(if names.is_empty() { "none".to_owned() } else { names.join(", ") }.as_str())
    }
}

impl Network {
    /// What is wrong with the network as a whole: every problem, not only the first.
    pub fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        if self.attachments.is_empty() {
            found.push(Problem(
                "no way in for VMs: add --socket-path PATH (VMs connect to us), --connect PATH (we connect) or --fd N"
                    .into(),
            ));
        }
        if self.attachments.len() > ATTACHMENTS_MAX {
            let count = self.attachments.len();
            found.push(Problem(format!("{count} ways in for VMs and at most {ATTACHMENTS_MAX} can be: name fewer")));
        }
        for (i, attachment) in self.attachments.iter().enumerate() {
            if self.attachments[..i].iter().any(|earlier| earlier.meets(attachment)) {
                found.push(Problem(format!("{attachment} is named twice: name it once")));
            }
        }
        found
    }
}

impl Attachment {
    /// Whether both are the same socket, as far as their names tell.
    fn meets(&self, other: &Attachment) -> bool {
        match (self.path(), other.path()) {
            // The same whether or not the present directory is spelt out.
            (Some(one), Some(two)) => absolute(one).ok() == absolute(two).ok(),
            _ => self == other,
        }
    }

    /// The path of the socket; none for an inherited descriptor.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Attachment::Listen(listen) => Some(listen.path.as_path()),
            Attachment::Connect(path) => Some(path.as_path()),
            Attachment::Inherit(_) => None,
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attachment::Listen(listen) => write!(f, "{}", listen.path.as_path().display()),
            Attachment::Connect(path) => write!(f, "{}", path.as_path().display()),
            Attachment::Inherit(fd) => write!(f, "descriptor {}", fd.number()),
        }
    }
}

#[cfg(test)]
mod tests;
