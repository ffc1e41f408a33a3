//! The daemon: the real binary, in a folder of its own.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::space::Space;

/// Longer than anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const PROGRAM: &str = env!("CARGO_BIN_EXE_guestwire");
/// Figures often, and leases, where there are some, in the daemon's folder.
fn usual(mode: &str) -> &'static [&'static str] {
    let all = &["--stats-interval", "0.02", "--leases", "DIR/leases"];
    if mode == "bridged" { &all[..2] } else { all }
}

pub(crate) struct Daemon {
    child: Child,
    folder: TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

/// What the system says of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) threads: usize,
    pub(crate) fds: usize,
    pub(crate) maps: usize,
    pub(crate) rss_anon_kib: u64,
}

/// The program in a namespace, with a descriptor as number 5.
fn with_descriptor(space: &Space, fd: impl Into<Stdio>) -> Command {
    let words = space.enter();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["sh", "-c", "exec 5<&0 </dev/null; exec \"$0\" \"$@\"", PROGRAM]).stdin(fd);
    command
}

/// The daemon's workers.
pub(crate) fn workers() -> usize {
    std::env::var("WIRE_WORKERS").map_or(1, |workers| workers.parse().expect("WIRE_WORKERS is a number"))
}

/// Waits until `done` says so.
#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Daemon {
    /// A daemon that writes statistics often.
    pub(crate) fn start() -> Self {
        Self::with(&["--stats-interval", "0.02"], true)
    }

    /// A daemon with other arguments; without statistics it wakes up for nothing.
    pub(crate) fn with(arguments: &[&str], statistics: bool) -> Self {
        Self::launch(Command::new(PROGRAM), arguments, statistics)
    }

    /// A daemon that may have so many descriptors and no more.
    pub(crate) fn with_descriptors(limit: usize) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(PROGRAM);
        Self::launch(command, &[], false)
    }

    /// A daemon of another mode in a namespace, whose leases are in its folder.
    pub(crate) fn in_space(space: &Space, mode: &str, arguments: &[&str]) -> Self {
        Self::in_space_by(space, &[], mode, arguments)
    }

    /// The same, started by another program, which takes these words.
    pub(crate) fn in_space_by(space: &Space, starter: &[&str], mode: &str, arguments: &[&str]) -> Self {
        let words = space.enter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(starter).arg(PROGRAM).stdin(Stdio::null());
        Self::launch_mode(command, mode, &[arguments, usual(mode)].concat(), true)
    }

    /// The same, with a descriptor that is left open to it as number 5.
    pub(crate) fn in_space_with(space: &Space, fd: OwnedFd, mode: &str, arguments: &[&str]) -> Self {
        Self::launch_mode(with_descriptor(space, fd), mode, &[arguments, usual(mode)].concat(), true)
    }

    /// A daemon of a configuration file, in which `DIR` is its folder. Ready once `socket` is there.
    pub(crate) fn of_file(text: &str, socket: &str) -> Self {
        let mut command = Command::new(PROGRAM);
        command.stdin(Stdio::null());
        Self::launch_file(command, text, socket)
    }

    /// The same in a namespace, with a descriptor that is left open to it as number 5.
    pub(crate) fn of_file_in(space: &Space, fd: impl Into<Stdio>, text: &str, socket: &str) -> Self {
        Self::launch_file(with_descriptor(space, fd), text, socket)
    }

    fn launch_file(mut command: Command, text: &str, socket: &str) -> Self {
        let folder = TempDir::with_prefix("guestwire-wire-").expect("a temporary folder");
        let file = folder.path().join("guestwire.toml");
        fs::write(&file, text.replace("DIR", &folder.path().display().to_string())).expect("a file");
        command.args(["run", "--config"]).arg(file);
        Self::spawn(command, folder, socket)
    }

    /// Replaces the file, has it read again, and waits until that is done: until a log line says `done`.
    pub(crate) fn reload(&self, text: &str, done: &str) {
        let count = || self.log().iter().filter(|line| line.contains(done)).count();
        let before = count();
        let file = self.folder.path().join("guestwire.toml");
        fs::write(file, text.replace("DIR", &self.folder.path().display().to_string())).expect("a file");
        kill(self.pid(), Signal::SIGHUP).expect("our child");
        until(&format!("a line with {done:?}; the log: {:#?}", self.log()), || count() > before);
    }

    fn launch(mut command: Command, arguments: &[&str], statistics: bool) -> Self {
        command.stdin(Stdio::null());
        Self::launch_mode(command, "internal", arguments, statistics)
    }

    /// In the arguments `DIR` is its folder.
    fn launch_mode(mut command: Command, mode: &str, arguments: &[&str], statistics: bool) -> Self {
        let folder = TempDir::with_prefix("guestwire-wire-").expect("a temporary folder");
        let place = folder.path().display().to_string();
        command.arg(mode).arg("--socket-path").arg(folder.path().join("net.sock"));
        command.args(arguments.iter().map(|word| word.replace("DIR", &place)));
        // The same tests must hold however many workers there are; `tests/run.sh` runs them with one and with two.
        command.args(["--workers", &workers().to_string()]);
        if statistics {
            command.arg("--stats").arg(folder.path().join("stats"));
        }
        Self::spawn(command, folder, "net.sock")
    }

    fn spawn(mut command: Command, folder: TempDir, socket: &str) -> Self {
        let mut child = command
            .env("NO_COLOR", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("guestwire starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (log.clone(), child.stderr.take().expect("stderr is a pipe"));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("not poisoned").push(line);
            }
        });
        let daemon = Self { child, folder, log };
        // It is bound under another name and moved there once it accepts.
        until("the socket", || daemon.path(socket).exists());
        daemon
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("net.sock")
    }

    /// A name in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits"))
    }

    #[track_caller]
    pub(crate) fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("our child");
        assert!(ended.is_none(), "guestwire has ended: {ended:?}\n{}", self.log().join("\n"));
        assert!(!self.log().iter().any(|line| line.contains("panic") || line.contains("bug")), "{:#?}", self.log());
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().expect("not poisoned").clone()
    }

    /// How many lines of its log have this text.
    pub(crate) fn lines_with(&self, text: &str) -> usize {
        self.log().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits until its log has this text.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, text: &str) {
        until(&format!("{text:?} in the log: {:#?}", self.log()), || self.lines_with(text) > 0);
    }

    /// Log lines that are warnings or worse.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.log().into_iter().filter(|line| line.contains(" WARN ") || line.contains("ERROR ")).collect()
    }

    /// Waits for one warning that contains `text`, and asserts that there is no other.
    #[track_caller]
    pub(crate) fn expect_warning(&self, text: &str) {
        until(&format!("a warning with {text:?}; the log: {:#?}", self.log()), || {
            self.warnings().iter().any(|line| line.contains(text))
        });
        let warnings = self.warnings();
        assert_eq!(warnings.len(), 1, "one line, not more: {warnings:#?}");
    }

    /// The last figures of a port, by name. Waits for figures taken after the call.
    pub(crate) fn counters(&self, port: u64) -> HashMap<String, u64> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let mut found = HashMap::new();
        until("figures of the port", || {
            let text = fs::read_to_string(self.folder.path().join("stats")).unwrap_or_default();
            for line in text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
                if line["time"].as_f64().is_none_or(|time| time < now + 0.001) {
                    continue;
                }
                for entry in line["ports"].as_array().into_iter().flatten() {
                    if entry["port"] == port {
                        let values = entry.as_object().into_iter().flatten();
                        found = values.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect();
                        return true;
                    }
                }
            }
            false
        });
        found
    }

    /// Waits until a port's counter is at least `least`.
    #[track_caller]
    pub(crate) fn expect_counter(&self, port: u64, name: &str, least: u64) {
        until(&format!("{name} of port {port} at {least}: {:?}", self.counters(port)), || {
            self.counters(port).get(name).is_some_and(|&value| value >= least)
        });
    }

    pub(crate) fn facts(&self) -> Facts {
        let folder = PathBuf::from(format!("/proc/{}", self.child.id()));
        let count = |name: &str| fs::read_dir(folder.join(name)).map_or(0, Iterator::count);
        let maps = fs::read_to_string(folder.join("maps")).unwrap_or_default().lines().count();
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        let rss = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let rss_anon_kib = rss.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("RssAnon");
        Facts { threads: count("task"), fds: count("fd"), maps, rss_anon_kib }
    }

    /// Hundredths of a second that the thread of this name has run.
    pub(crate) fn cpu_ticks(&self, name: &str) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("our child");
        let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
        let stat = stats.into_iter().find(|stat| stat.contains(&format!("({name})"))).expect("a thread of that name");
        // utime and stime, the 14th and 15th of all, the 12th and 13th after the name (proc(5)).
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// Times that each thread has gone to sleep of its own will, by thread and name.
    pub(crate) fn sleeps(&self) -> Vec<(String, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("our child");
        let mut sleeps: Vec<_> = tasks
            .filter_map(|task| {
                let path = task.ok()?.path();
                let name = fs::read_to_string(path.join("comm")).ok()?;
                let status = fs::read_to_string(path.join("status")).ok()?;
                let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
                Some((format!("{} {}", path.display(), name.trim()), count.trim().parse().ok()?))
            })
            .collect();
        sleeps.sort();
        sleeps
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- guestwire's log:\n{}", self.log().join("\n"));
        }
        let _ = kill(self.pid(), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
