//! Which process has a path to itself.
//!
//! Theory of operation. `PATH.lock` is locked with flock(2) for as long as its [`PathLock`] lives, with our process id
//! in it; the kernel unlocks it however we end. Its name goes while it is still locked, so that whoever opened it
//! meanwhile sees that it has gone, and tries again.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Times that a lock is tried to be taken whose file goes away meanwhile: there are file systems on which a name never
/// is the file that was opened by it.
const TRIES_MAX: usize = 100;

/// Why a path could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("it is in use by {0}")]
    Held(Holder),
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    System {
        /// What we tried, as a verb.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The process that holds a lock.
#[derive(Debug)]
pub struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// `PATH.lock`, locked. Removed when dropped.
#[derive(Debug)]
pub struct PathLock {
    path: PathBuf,
    _file: Flock<File>,
}

impl PathLock {
    /// Locks `path`, which itself is left alone, and need not exist. Does not wait.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let path = with_suffix(path, ".lock");
        let failed = |doing, source| LockError::System { doing, path: path.clone(), source };
        for _ in 0..TRIES_MAX {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = options.open(&path).map_err(|e| failed("open", e))?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((file, Errno::EWOULDBLOCK)) => return Err(LockError::Held(holder(file))),
                Err((_, e)) => return Err(failed("lock", e.into())),
            };
            // The holder before us may have removed the file between our opening and our locking it: then we hold a
            // lock that nobody else will ever see, and try again with the file that has the name now.
            let ours = file.metadata().map_err(|e| failed("look at", e))?;
            if std::fs::symlink_metadata(&path).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())) {
                // For people to read: on a full disk there is a lock all the same.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                return Ok(Self { path, _file: file });
            }
        }
        Err(failed("lock", io::Error::other("its name is another file each time")))
    }
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // While it is locked.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn holder(lock: File) -> Holder {
    let mut text = String::new();
    // It may have locked the file and not yet written: then we do not know who.
    let _ = lock.take(32).read_to_string(&mut text);
    Holder(text.trim().parse().ok())
}

/// A name beside that of `path`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
