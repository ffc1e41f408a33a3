//! A program that a load has started: its output kept, and its end certain.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::vm::console::Console;

/// Longer than a program may take to end on a busy machine.
const END_WITHIN: Duration = Duration::from_secs(10);

/// A program that runs until this is dropped.
pub(crate) struct Process {
    child: Child,
    log: Console,
}

/// Waits until `done` gives something. `None` when that does not come.
pub(crate) fn within<T>(time: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    loop {
        let found = done();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a program to its end, which must be a good one; what it wrote.
pub(crate) fn run(words: &[&str], environment: &[(&str, String)]) -> String {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).envs(environment.iter().map(|(name, value)| (*name, value))).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{error}", words.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What all that we have started has had of the processors so far, children that have ended too, and the kernel's
/// threads for interrupts, in seconds. What others run is not in it.
pub(crate) fn busy_seconds() -> f64 {
    let folders = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("stat")));
    let all: HashMap<u32, Usage> = folders.filter_map(|path| usage(&std::fs::read_to_string(path).ok()?)).collect();
    let parent = |pid: &u32| all.get(pid).map(|usage| usage.parent);
    let is_ours = |pid: u32| std::iter::successors(parent(&pid), parent).any(|pid| pid == std::process::id());
    let counted = all.iter().filter(|(pid, usage)| usage.handles_interrupts || is_ours(**pid));
    let ticks: u64 = counted.map(|(_, usage)| usage.ticks).sum();
    ticks as f64 / sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64
}

/// What all threads of a process have run so far, in seconds; to the nanosecond.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let times = of_each_thread(pid, "schedstat");
    let nanoseconds = times.iter().map(|text| text.split(' ').next().unwrap().parse::<f64>().unwrap());
    nanoseconds.sum::<f64>() / 1e9
}

/// A file of `/proc/PID/task/TID`, of each thread.
pub(crate) fn of_each_thread(pid: u32, file: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap_or_else(|error| panic!("process {pid}: {error}"));
    let paths = tasks.map(|task| task.unwrap().path().join(file)).collect::<Vec<_>>();
    // A thread may end between being named and being read.
    paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

/// What the kernel says of a process.
struct Usage {
    parent: u32,
    ticks: u64,
    handles_interrupts: bool,
}

/// Reads `/proc/PID/stat` (proc(5)). The name is between parentheses and may have any in it.
fn usage(stat: &str) -> Option<(u32, Usage)> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // utime, stime, cutime, cstime.
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    let parent = fields.get(1)?.parse().ok()?;
    Some((pid.parse().ok()?, Usage { parent, ticks, handles_interrupts: name.starts_with("ksoftirqd/") }))
}

impl Process {
    /// Starts it. Should we be killed, it is killed too.
    pub(crate) fn start(words: &[&str], environment: &[(&str, String)]) -> Self {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(words)
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv {words:?}: {error}"));
        let log = Console::default();
        log.collect(child.stdout.take().unwrap());
        log.collect(child.stderr.take().unwrap());
        Self { child, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of what it wrote.
    pub(crate) fn tail(&self) -> String {
        self.log.tail(30)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of what process {} wrote:\n{}", self.pid(), self.tail());
        }
        let _ = kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), Signal::SIGTERM);
        if within(END_WITHIN, || self.has_ended().then_some(())).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
