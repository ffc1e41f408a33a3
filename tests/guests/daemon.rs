//! guestwire itself, started for one test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::console::Console;

/// Longer than a start may take on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(10);
/// Longer than an end may take on a busy machine.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A user and a group that own nothing.
const NOBODY: u32 = 65534;

/// A running guestwire, its socket in a folder of its own. Both go when it is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: Console,
    folder: TempDir,
    words: Vec<String>,
}

impl Daemon {
    /// One of mode internal that tells much.
    pub(crate) fn start() -> Self {
        Self::with(&["-v"])
    }

    /// One of mode internal with other options.
    pub(crate) fn with(options: &[&str]) -> Self {
        Self::run(&[], "internal", options)
    }

    /// One of any mode, run by another command: one that enters a namespace. In the options `DIR` is its folder. Its
    /// statistics are in DIR/stats if the options say so.
    pub(crate) fn run(under: &[String], mode: &str, options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("guestwire-guests-").expect("a temporary folder");
        Self::run_in(folder, env!("CARGO_BIN_EXE_guestwire"), under, mode, options)
    }

    /// The same by a user who has nothing but the folder, which has a copy of the program, and no right to anything.
    pub(crate) fn run_as_nobody(under: &[String], mode: &str, options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("guestwire-guests-").expect("a temporary folder");
        let program = folder.path().join("guestwire");
        std::fs::copy(env!("CARGO_BIN_EXE_guestwire"), &program).expect("a copy of the program");
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("root's right");
        let user = format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups --no-new-privs --bounding-set=-all");
        let user = ["setpriv"].into_iter().chain(user.split(' ')).map(str::to_owned);
        let under: Vec<String> = under.iter().cloned().chain(user).collect();
        Self::run_in(folder, &program.display().to_string(), &under, mode, options)
    }

    fn run_in(folder: TempDir, program: &str, under: &[String], mode: &str, options: &[&str]) -> Self {
        let place = folder.path().display().to_string();
        // Should the test be killed, the daemon ends with it.
        let program = ["setpriv", "--pdeathsig", "TERM", program, mode];
        let options = options.iter().copied().chain(["--socket-path", "DIR/net.sock"]);
        let words = program.into_iter().map(str::to_owned).chain(options.map(|word| word.replace("DIR", &place)));
        let words: Vec<String> = under.iter().cloned().chain(words).collect();
        let log = Console::default();
        let daemon = Self { child: spawn(&words, &log), log, folder, words };
        daemon.wait_until_ready();
        daemon
    }

    /// Ends it as a service manager does, and starts it again by the same words, in the same folder.
    pub(crate) fn restart(&mut self) {
        self.end();
        self.child = spawn(&self.words, &self.log);
        self.wait_until_ready();
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + START_WITHIN;
        while !self.socket().exists() {
            assert!(Instant::now() < deadline, "guestwire made no socket:\n{}", self.log.tail(40));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it tells.
    #[allow(dead_code, reason = "benches/compare has no use for it")]
    pub(crate) fn log(&self) -> &Console {
        &self.log
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

    /// The last figures of a port, or of the uplink, by name.
    pub(crate) fn counters(&self, port: &str) -> Value {
        let text = std::fs::read_to_string(self.folder.path().join("stats")).unwrap_or_default();
        let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let number: Option<u64> = port.parse().ok();
        let is_meant = |entry: &&Value| entry["name"] == port || number.is_some() && entry["port"].as_u64() == number;
        let find = |line: Value| line["ports"].as_array()?.iter().find(is_meant).cloned();
        lines.into_iter().find_map(find).unwrap_or_default()
    }

    /// A folder for the guests' own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn end(&mut self) {
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

    /// Asserts that it still runs: no guest may end it.
    pub(crate) fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("guestwire is our child");
        assert!(ended.is_none(), "guestwire ended ({ended:?}):\n{}", self.log.tail(40));
    }
}

fn spawn(words: &[String], log: &Console) -> Child {
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("guestwire starts");
    log.collect(child.stdout.take().expect("stdout is a pipe"));
    log.collect(child.stderr.take().expect("stderr is a pipe"));
    child
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of guestwire's log:\n{}", self.log.tail(60));
            let stats = std::fs::read_to_string(self.folder.path().join("stats")).unwrap_or_default();
            // Counters that are zero say nothing.
            let last =
                stats.lines().last().unwrap_or_default().split([',', '{', '}']).filter(|part| !part.ends_with(":0"));
            eprintln!("--- its last statistics: {}", last.collect::<Vec<_>>().join(" "));
        }
        self.end();
    }
}
