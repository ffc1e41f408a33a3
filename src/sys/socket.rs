//! Unix sockets: bound without a gap, connected without waiting, inherited.
//!
//! Theory of operation. A frontend that is waiting for us tries to connect all the time, so the name of a socket must
//! never stand for something half made: [`BoundSocket::bind`] binds `PATH~`, gives it its group and mode, listens, and
//! then renames it to `PATH`. Whether another process has the path is not something that the socket can tell (it may
//! be stale, or about to be replaced), so a lock beside it does ([`PathLock`]). It also makes `PATH~` ours alone. When
//! we end, the listener is closed first, then the name goes, if it still is our socket's, and the lock file last.

use std::fmt;
use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, connect, getsockname,
    getsockopt, listen, socket, sockopt,
};

use super::lock::{Holder, LockError, PathLock, with_suffix};

/// Why a path could not be listened on. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A process of ours holds the lock.
    #[error("{} is in use by {holder}: stop that process or choose another path", path.display())]
    Locked {
        /// The socket.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// Somebody who knows nothing of the lock accepts connections.
    #[error("{} is in use by a program that listens on it: stop that program or choose another path", path.display())]
    Listening {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket has the name.
    #[error("{} exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket {
        /// What was found.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {}: {}", path.display(), Explained(source))]
    System {
        /// What we tried, as a verb.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl BindError {
    fn locking(socket: &Path, error: LockError) -> Self {
        match error {
            LockError::Held(holder) => Self::Locked { path: socket.to_owned(), holder },
            LockError::System { doing, path, source } => Self::System { doing, path, source },
        }
    }
}

/// A system's error with what usually is behind it.
struct Explained<'a>(&'a io::Error);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self.0.kind() {
            ErrorKind::NotFound => "; create the directory first",
            ErrorKind::PermissionDenied => "; use a directory that this user may write to, and a group it is in",
            ErrorKind::ReadOnlyFilesystem => "; use a directory on another file system, such as /run or /tmp",
            _ => "",
        };
        write!(f, "{}{hint}", self.0)
    }
}

trait Doing<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, BindError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, BindError> {
        self.map_err(|e| BindError::System { doing, path: path.to_owned(), source: e.into() })
    }
}

/// A listening socket that we made and whose name goes when it is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    // The order of the fields is the order in which they are dropped.
    listener: UnixListener,
    name: SocketName,
    _lock: PathLock,
}

/// The name of a socket that we bound. Removed when dropped.
#[derive(Debug)]
struct SocketName {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl BoundSocket {
    /// Listens on `path` (see the theory of operation). `mode` are the permission bits, `gid` the group.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(path: &Path, mode: u32, gid: Option<u32>) -> Result<Self, BindError> {
        let lock = PathLock::take(path).map_err(|error| BindError::locking(path, error))?;
        refuse_the_living(path)?;
        let temporary = with_suffix(path, "~");
        if std::fs::symlink_metadata(&temporary).is_ok_and(|m| m.file_type().is_socket()) {
            std::fs::remove_file(&temporary).doing("remove", &temporary)?;
        }
        let fd = stream_socket().doing("make a socket for", path)?;
        UnixAddr::new(&temporary).and_then(|address| bind(fd.as_raw_fd(), &address)).doing("bind", &temporary)?;
        let made = finish(&temporary, path, &fd, mode, gid);
        if made.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        let name = SocketName { path: path.to_owned(), identity: made? };
        Ok(Self { listener: UnixListener::from(fd), name, _lock: lock })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.name.path
    }

    /// The socket. It does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for SocketName {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What remains to be done with a bound name. Returns its device and inode.
fn finish(temporary: &Path, path: &Path, fd: &OwnedFd, mode: u32, gid: Option<u32>) -> Result<(u64, u64), BindError> {
    if let Some(gid) = gid {
        lchown(temporary, None, Some(gid)).doing("set the group of", path)?;
    }
    std::fs::set_permissions(temporary, Permissions::from_mode(mode)).doing("set the mode of", path)?;
    let metadata = std::fs::symlink_metadata(temporary).doing("look at", path)?;
    listen(fd, Backlog::MAXCONN).doing("listen on", path)?;
    std::fs::rename(temporary, path).doing("rename a socket to", path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A socket that nobody listens on may be replaced, anything else not.
fn refuse_the_living(path: &Path) -> Result<(), BindError> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).doing("look at", path),
        Ok(m) if !m.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match connect_now(path) {
        // EAGAIN: somebody listens, and is too busy to accept.
        Ok(_) => Err(BindError::Listening { path: path.to_owned() }),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Err(BindError::Listening { path: path.to_owned() }),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(e) => Err(e).doing("find out who listens on", path),
    }
}

fn stream_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// Connects to a listening socket without ever waiting for it. The stream blocks, as std's do.
///
/// # Errors
/// Those of connect(2); `WouldBlock` when as many as may are waiting to be accepted.
pub fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let fd = stream_socket()?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// The number of a group.
///
/// # Errors
/// When the group file cannot be read.
pub fn group_number(name: &str) -> io::Result<Option<u32>> {
    Ok(nix::unistd::Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

/// A socket that our parent process left us.
#[derive(Debug)]
pub enum InheritedSocket {
    /// It accepts connections. It does not block.
    Listening(UnixListener),
    /// It is a connection.
    Connected(UnixStream),
}

/// Why a descriptor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// Our parent did not leave it open.
    #[error("it is not open: pass the number of a descriptor that the starting process left open")]
    NotOpen,
    /// It is something else.
    #[error("it is not a Unix stream socket, which vhost-user needs")]
    NotAUnixSocket,
    /// The system refused.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Takes over a descriptor that our parent process left us, whatever it is.
///
/// # Errors
/// See [`InheritError`].
pub fn take_over(number: RawFd) -> Result<OwnedFd, InheritError> {
    // SAFETY: F_GETFD reads a flag of whatever has the number, and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // A descriptor that survived exec(2) does not have the flag, and each one that this process opens has it, as std
    // and nix set it. So one that has it is our own, and no parent's.
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(InheritError::NotOpen);
    }
    // SAFETY: it is open and no part of this process owns it (see above). It gets the flag before anything else
    // happens to it, so that it is not taken a second time.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(io::Error::from)?;
    Ok(fd)
}

/// Does that, and finds out what it is. A descriptor that is not a Unix stream socket is closed.
///
/// # Errors
/// See [`InheritError`].
pub fn inherit(number: RawFd) -> Result<InheritedSocket, InheritError> {
    let fd = take_over(number)?;
    let address = match getsockname::<SockaddrStorage>(number) {
        Err(Errno::ENOTSOCK) => return Err(InheritError::NotAUnixSocket),
        address => address.map_err(io::Error::from)?,
    };
    let kind = getsockopt(&fd, sockopt::SockType).map_err(io::Error::from)?;
    if address.family() != Some(AddressFamily::Unix) || kind != SockType::Stream {
        return Err(InheritError::NotAUnixSocket);
    }
    if getsockopt(&fd, sockopt::AcceptConn).map_err(io::Error::from)? {
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        return Ok(InheritedSocket::Listening(listener));
    }
    let stream = UnixStream::from(fd);
    // A socket that is neither listening nor connected would be a session that ends at once: say so instead.
    stream.peer_addr().map_err(InheritError::System)?;
    stream.set_nonblocking(false)?;
    Ok(InheritedSocket::Connected(stream))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_bound_socket_has_its_mode_and_leaves_nothing() {
        let folder = folder();
        let path = folder.path().join("lab.sock");
        let socket = BoundSocket::bind(&path, 0o620, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o620);
        assert_eq!(
            std::fs::read_to_string(with_suffix(&path, ".lock")).unwrap().trim(),
            std::process::id().to_string()
        );
        UnixStream::connect(&path).unwrap();
        assert!(socket.listener().accept().is_ok());
        drop(socket);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_path_is_taken_once() {
        let folder = folder();
        let path = folder.path().join("lab.sock");
        let _socket = BoundSocket::bind(&path, 0o600, None).unwrap();
        let error = BoundSocket::bind(&path, 0o600, None).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("lab.sock"), "{error}");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = folder();
        let path = folder.path().join("lab.sock");
        let living = UnixListener::bind(&path).unwrap();
        assert!(matches!(BoundSocket::bind(&path, 0o600, None), Err(BindError::Listening { .. })));
        drop(living);
        UnixListener::bind(with_suffix(&path, "~")).unwrap();
        BoundSocket::bind(&path, 0o600, None).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_is_not_touched() {
        let folder = folder();
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(BoundSocket::bind(&path, 0o600, None), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        let missing = folder.path().join("missing/lab.sock");
        let error = BoundSocket::bind(&missing, 0o600, None).unwrap_err().to_string();
        assert!(error.contains("create the directory"), "{error}");
    }

    #[test]
    fn a_name_that_is_no_longer_ours_stays() {
        let folder = folder();
        let path = folder.path().join("lab.sock");
        let socket = BoundSocket::bind(&path, 0o600, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    /// Gives a descriptor away as a parent process would: open across exec(2).
    fn left_over(fd: impl Into<OwnedFd>) -> RawFd {
        let fd = fd.into();
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        fd.into_raw_fd()
    }

    #[test]
    fn inherited_descriptors_are_what_they_are() {
        let (one, _two) = UnixStream::pair().unwrap();
        assert!(matches!(inherit(left_over(one)), Ok(InheritedSocket::Connected(_))));
        let folder = folder();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(matches!(inherit(left_over(listener)), Ok(InheritedSocket::Listening(_))));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(inherit(left_over(file)), Err(InheritError::NotAUnixSocket)));
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(matches!(inherit(left_over(udp)), Err(InheritError::NotAUnixSocket)));
        assert!(matches!(inherit(1 << 30), Err(InheritError::NotOpen)));
    }

    #[test]
    fn our_own_descriptors_are_not_inherited() {
        let (one, _two) = UnixStream::pair().unwrap();
        assert!(matches!(inherit(one.as_raw_fd()), Err(InheritError::NotOpen)));
        let Ok(InheritedSocket::Connected(two)) = inherit(left_over(one)) else { panic!() };
        assert!(matches!(inherit(two.as_raw_fd()), Err(InheritError::NotOpen)), "taken twice");
    }
}
