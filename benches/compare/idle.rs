//! The load "idle": ports that are attached and say nothing, and what they cost in CPU time, wakes and memory.
//!
//! Nothing is pinned but Open vSwitch's polling thread, to core 1; there is no other load. The kernel's bridge is no
//! peer here: it is no process whose processor time, wakes and memory could be read.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::ovs::Ovs;
use crate::pairs::in_turn;
use crate::port::{LIKE_LINUX, Port};
use crate::process::{cpu_seconds, of_each_thread};
use crate::recorder::{At, Recorder};
use crate::vm::daemon::Daemon;
use crate::vm::lab::Lab;

/// Descriptors of a ring; QEMU's default.
const QUEUE_SIZE: u16 = 256;
/// What just happened has an end: a switch may poll for a moment before it sleeps.
const SETTLE: Duration = Duration::from_secs(2);

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) pairs: usize,
    /// For which each switch is watched.
    pub(crate) seconds: u32,
    /// How many quiet ports.
    pub(crate) ports: Vec<usize>,
}

enum Running {
    Guestwire(Daemon),
    Ovs(Box<Ovs>),
}

impl Running {
    fn pid(&self) -> u32 {
        match self {
            Self::Guestwire(daemon) => daemon.pid(),
            Self::Ovs(ovs) => ovs.pid(),
        }
    }

    fn attach(&mut self, ports: usize) -> Vec<Port> {
        let sockets = match self {
            Self::Guestwire(daemon) => vec![daemon.socket(); ports],
            Self::Ovs(ovs) => ovs.add_listening_ports(ports),
        };
        let attach = |socket: &PathBuf| Port::attach(socket, QUEUE_SIZE, LIKE_LINUX);
        let attached: Result<Vec<_>, _> = sockets.iter().map(attach).collect();
        attached.unwrap_or_else(|error| panic!("a port of process {}: {error}", self.pid()))
    }
}

/// Each number of ports, on guestwire and on Open vSwitch in turn.
pub(crate) fn run(options: &Options, recorder: &mut Recorder) {
    let lab = Lab::prepared_for("bench");
    for &ports in &options.ports {
        for pair in 0..options.pairs {
            for side in in_turn(pair, ["guestwire", "ovs"]) {
                let at = At { load: "idle", case: &format!("ports-{ports}"), peer: "ovs", pair, side };
                recorder.measure(at, |recorder| {
                    let running = if side == "ovs" {
                        Running::Ovs(Box::new(Ovs::start(&lab, false, recorder)))
                    } else {
                        recorder.command("guestwire", "guestwire internal --socket-path net.sock");
                        Running::Guestwire(Daemon::with(&[]))
                    };
                    watch(running, ports, Duration::from_secs(options.seconds.into()))
                });
            }
        }
    }
}

/// Attaches so many ports and then only looks.
fn watch(mut running: Running, ports: usize, seconds: Duration) -> Vec<(&'static str, &'static str, f64)> {
    std::thread::sleep(SETTLE);
    let pid = running.pid();
    let empty = anonymous_kib(pid);
    let attached = running.attach(ports);
    std::thread::sleep(SETTLE);
    let full = anonymous_kib(pid);
    let (begin, cpu, sleeps) = (Instant::now(), cpu_seconds(pid), voluntary_switches(pid));
    std::thread::sleep(seconds);
    let (cpu, sleeps) = (cpu_seconds(pid) - cpu, voluntary_switches(pid) - sleeps);
    let watched = begin.elapsed().as_secs_f64();
    drop(attached);
    vec![
        ("cpu", "% of a core", cpu / watched * 100.0),
        ("wakes", "1/s", sleeps / watched),
        ("memory-per-port", "KiB", (full - empty) / ports as f64),
        ("memory", "KiB", full),
    ]
}

/// Anonymous memory in RAM; huge pages are not in it.
fn anonymous_kib(pid: u32) -> f64 {
    field(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "RssAnon:")
}

/// How often a thread of its has gone to sleep, which is how often it was woken.
fn voluntary_switches(pid: u32) -> f64 {
    of_each_thread(pid, "status").iter().map(|text| field(text, "voluntary_ctxt_switches:")).sum()
}

fn field(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    value.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().unwrap()
}
