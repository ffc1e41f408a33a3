//! guestwire itself, started for one test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::console::Console;

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
    /// One that tells much.
    pub(crate) fn start() -> Self {
        Self::with(&["-v"])
    }

    /// One with other options.
    pub(crate) fn with(options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("guestwire-guests-").expect("a temporary folder");
        // Should the test be killed, the daemon ends with it.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", env!("CARGO_BIN_EXE_guestwire")])
            .arg("internal")
            .args(options)
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

    #[allow(dead_code, reason = "benches/compare has it")]
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("net.sock")
    }

    /// The QEMU command line that it has printed for its first VM, as one line; with `before_9_2` for an old QEMU.
    pub(crate) fn printed_line(&self, before_9_2: bool) -> String {
        let (line, old) = self
            .log
            .wait_for(0, START_WITHIN, |text| {
                let line = text[text.find("  qemu-system-")?..].split_once("\n\n")?.0;
                let old = text.lines().find(|line| line.contains(",reconnect=1 "))?;
                Some((line.to_owned(), old.to_owned()))
            })
            .unwrap_or_else(|| panic!("guestwire has printed no command line:\n{}", self.log.tail(40)));
        let pick = |part: &str| if before_9_2 && part.contains("-chardev") { old.clone() } else { part.to_owned() };
        line.lines().map(pick).map(|part| part.trim_end_matches('\\').to_owned()).collect()
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
