//! Ways in for VMs.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Problem, problem};

/// The longest path of a Unix socket in bytes: `sun_path` holds 108, one of them the terminating zero.
pub const CONNECT_PATH_BYTES_MAX: usize = 107;
/// The longest path to listen on: one byte less, for the temporary name under which it is bound.
pub const LISTEN_PATH_BYTES_MAX: usize = CONNECT_PATH_BYTES_MAX - 1;
/// Descriptors below this one are the standard streams.
const INHERITED_FD_MIN: RawFd = 3;

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
            Ok(number) if number >= 0 => problem(format!("{number} is a standard stream: pass it as 3 or more")),
            _ => problem("not the number of a descriptor: pass that of what is open, 3 or more"),
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

impl Attachment {
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
