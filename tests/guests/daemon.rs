//! guestwire itself, started for one test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::console::Console;

/// Longer than a start may take on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(10);
/// Longer than an end may take on a busy machine.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A running `guestwire internal`, its socket in a folder of its own. Both go when it is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: Console,
    folder: TempDir,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let folder = TempDir::with_prefix("guestwire-guests-").expect("a temporary folder");
        // Should the test be killed, the daemon ends with it.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", env!("CARGO_BIN_EXE_guestwire")])
            .args(["internal", "-v"])
            .arg("--socket-path")
            .arg(folder.path().join("net.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("guestwire starts");
        let log = Console::default();
        log.collect(child.stdout.take().expect("stdout is a pipe"));
        log.collect(child.stderr.take().expect("stderr is a pipe"));
        let daemon = Self { child, log, folder };
        let deadline = Instant::now() + START_WITHIN;
        while !daemon.socket().exists() {
            assert!(Instant::now() < deadline, "guestwire made no socket:\n{}", daemon.log.tail(40));
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("net.sock")
    }

    /// A folder for the guests' own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Asserts that it still runs: no guest may end it.
    pub(crate) fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("guestwire is our child");
        assert!(ended.is_none(), "guestwire ended ({ended:?}):\n{}", self.log.tail(40));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of guestwire's log:\n{}", self.log.tail(60));
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits"));
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + END_WITHIN;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
