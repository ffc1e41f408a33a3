//! The file in which a network's leases outlive the process.
//!
//! Theory of operation. Leases live in memory; the file is a copy that is read once, at start, and replaced as a whole
//! now and then. Nothing that is wrong with it stops the network: a file that cannot be understood is set aside under
//! another name, where a person can look at it, and a disk that is full or gone only costs the copy. Both are logged,
//! the latter once until it is mended. A file belongs to one process at a time ([`PathLock`]): whoever comes second
//! goes without.
//!
//! Limits: a file is written beside the old one, made durable, and then takes its name, so that after a crash there is
//! the old or the new one, whole; what was written under another name at that moment stays until somebody removes it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::service::{LEASES_MAX, Leases};
use crate::sys::lock::{LockError, PathLock};

/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: usize = 16 << 20;
/// The longest entry, in bytes: an identifier of 255 bytes in hexadecimal, a name, and all the rest.
const ENTRY_BYTES_MAX: usize = 1024;
/// What is appended to the name of a file that is set aside.
const SET_ASIDE: &str = ".corrupt";

const _: () = assert!(LEASES_MAX * ENTRY_BYTES_MAX <= FILE_BYTES_MAX, "what we write is read again");

/// A file for the leases of one network.
#[derive(Debug)]
pub struct LeaseFile {
    path: PathBuf,
    /// None as long as the folder does not let us make one.
    lock: Option<PathLock>,
    /// The last attempt to write it failed, and was logged.
    failing: bool,
}

impl LeaseFile {
    /// A file that may or may not exist. Its folder must. None if another process has it.
    pub fn new(path: PathBuf) -> Option<Self> {
        match PathLock::take(&path) {
            Ok(lock) => Some(Self { path, lock: Some(lock), failing: false }),
            Err(LockError::System { .. }) => Some(Self { path, lock: None, failing: false }),
            Err(LockError::Held(holder)) => {
                let path = path.display();
                warn!("{path} has the leases of {holder}: ours are not kept; give each network a file of its own");
                None
            }
        }
    }

    /// Reads the leases. There are none if there is no file, or one that cannot be read or understood; the latter is
    /// renamed.
    pub fn load(&self) -> Leases {
        let path = self.path.display();
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Leases::default(),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return self.set_aside(&e),
            Err(e) => {
                warn!("the leases in {path} cannot be read, and are begun anew: {e}");
                return Leases::default();
            }
        };
        Leases::from_text(&text).unwrap_or_else(|e| self.set_aside(&e))
    }

    fn set_aside(&self, reason: &dyn std::error::Error) -> Leases {
        let mut aside = self.path.clone().into_os_string();
        aside.push(SET_ASIDE);
        let (path, aside) = (self.path.display(), PathBuf::from(aside));
        match fs::rename(&self.path, &aside) {
            Ok(()) => warn!("{path} was set aside as {}, and leases are begun anew: {reason}", aside.display()),
            Err(e) => warn!("the leases in {path} are begun anew: {reason}; the file could not be set aside: {e}"),
        }
        Leases::default()
    }

    /// Replaces the file. Returns whether that worked; if not, the file is as it was.
    pub fn save(&mut self, text: &str) -> bool {
        let result = self.may_write().and_then(|()| replace(&self.path, text));
        match &result {
            Ok(()) if self.failing => info!("leases are kept in {} again", self.path.display()),
            Err(e) if !self.failing => {
                warn!("leases cannot be kept in {}, and will be lost with this process: {e}", self.path.display());
            }
            _ => {}
        }
        self.failing = result.is_err();
        result.is_ok()
    }

    /// A folder in which nothing can be locked, as on some networks' disks, may be written to all the same.
    fn may_write(&mut self) -> io::Result<()> {
        if self.lock.is_none() {
            self.lock = match PathLock::take(&self.path) {
                Err(error @ LockError::Held(_)) => return Err(io::Error::other(error)),
                taken => taken.ok(),
            };
        }
        Ok(())
    }
}

/// The text of a regular file, if it is one and not longer than ours are.
fn read(path: &Path) -> io::Result<String> {
    let is_file = fs::metadata(path)?.is_file();
    let mut bytes = Vec::new();
    if is_file {
        File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    }
    if !is_file || bytes.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of ours"));
    }
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Replaces a file with a text, or leaves it as it is.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new().prefix(".leases-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    // The name is the folder's, and as durable as that.
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const TEXT: &str = r#"{"version": 1, "leases": [
        {"address": "10.0.0.2", "client": "mac 52:54:00:00:00:01", "mac": "52:54:00:00:00:01", "expires": 9}]}"#;

    /// Locks apart.
    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = LeaseFile::new(folder.path().join("lab.json")).unwrap();
        assert!(file.load().is_empty());
        let leases = Leases::from_text(TEXT).unwrap();
        for _ in 0..2 {
            assert!(file.save(&leases.to_text()));
            assert_eq!(file.load(), leases);
            assert_eq!(names(folder.path()), ["lab.json"], "nothing is left beside it");
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_set_aside() {
        let whole = Leases::from_text(TEXT).unwrap().to_text();
        let cut = &whole.as_bytes()[..whole.len() / 2];
        for bytes in [&b""[..], b"\0\xff\xfe", b"[]", cut, &vec![b' '; FILE_BYTES_MAX + 1]] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("lab.json");
            fs::write(folder.path().join("lab.json.corrupt"), "one from before").unwrap();
            fs::write(&path, bytes).unwrap();
            let mut file = LeaseFile::new(path).unwrap();
            assert!(file.load().is_empty());
            assert_eq!(names(folder.path()), ["lab.json.corrupt"]);
            assert!(fs::read(folder.path().join("lab.json.corrupt")).unwrap() == bytes);
            assert!(file.save(TEXT) && file.load().len() == 1);
        }
    }

    #[test]
    fn a_folder_in_the_place_of_the_file_is_no_reason_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.json");
        fs::create_dir(&path).unwrap();
        assert!(LeaseFile::new(path).unwrap().load().is_empty());
        assert_eq!(names(folder.path()), ["lab.json.corrupt"]);
    }

    #[test]
    fn a_file_has_one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.json");
        let first = LeaseFile::new(path.clone()).unwrap();
        assert!(LeaseFile::new(path.clone()).is_none());
        drop(first);
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "the lock is gone");
        // One that could not be locked at first is not written when it has become another's.
        let mut late = LeaseFile { path: path.clone(), lock: None, failing: false };
        let other = LeaseFile::new(path).unwrap();
        assert!(!late.save(TEXT));
        drop(other);
        assert!(late.save(TEXT));
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_only_the_copy() {
        // Nobody can make a file there, not even root.
        let mut file = LeaseFile::new("/proc/self/leases.json".into()).unwrap();
        assert!(file.load().is_empty());
        assert!(!file.save(TEXT) && file.failing);
        assert!(!file.save(TEXT));
        let folder = tempfile::tempdir().unwrap();
        file.path = folder.path().join("lab.json");
        assert!(file.save(TEXT) && !file.failing);
        assert!(!LeaseFile::new(folder.path().join("gone/lab.json")).unwrap().save(TEXT));
    }

    /// The folder of a small disk: set where this test runs itself again, in a mount namespace of its own.
    const SMALL_DISK: &str = "GUESTWIRE_TEST_SMALL_DISK";

    #[test]
    fn a_full_disk_leaves_the_file_as_it_was() {
        if let Some(folder) = std::env::var_os(SMALL_DISK) {
            let folder = PathBuf::from(folder);
            let mut file = LeaseFile::new(folder.join("lab.json")).unwrap();
            assert!(file.save(TEXT));
            let long = TEXT.to_owned() + &" ".repeat(1 << 20);
            assert!(!file.save(&long), "the disk has 64 KiB");
            assert_eq!(file.load().len(), 1);
            assert_eq!(names(&folder), ["lab.json"], "what did not fit is gone");
            assert!(file.save(TEXT));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = format!("mount -t tmpfs -o size=64k none \"${SMALL_DISK}\" && exec \"$0\" \"$@\"");
        let mut again = Command::new("unshare");
        again.args(["--map-root-user", "--mount", "sh", "-c", &script]).arg(std::env::current_exe().unwrap());
        again.args(["--exact", "control::leases::tests::a_full_disk_leaves_the_file_as_it_was"]);
        let output = again.env(SMALL_DISK, folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(names(folder.path()).is_empty(), "the disk was mounted where only it could see it");
    }
}
