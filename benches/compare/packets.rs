//! The load "packets": a driver that does nothing but send on what it gets, and what a switch between its two devices
//! can do at most.
//!
//! The driver is testpmd on core 0, the switch is on core 1, whichever it is. Every frame is answered with one of the
//! same size, so both directions are as busy. guestwire and Open vSwitch learn addresses and look them up; testpmd as a
//! switch does neither.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::ovs::Ovs;
use crate::pairs::in_turn;
use crate::process::cpu_seconds;
use crate::recorder::{At, Recorder};
use crate::switches::pin;
use crate::testpmd::Testpmd;
use crate::vm::daemon::Daemon;
use crate::vm::lab::Lab;

/// Bursts of 32 frames that each device sends to begin with: as many as its ring holds.
const BURSTS: u32 = 16;
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(1);
/// Times that the first frames may be lost.
const ATTEMPTS: u32 = 5;

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) pairs: usize,
    /// That are counted, of each side of a pair.
    pub(crate) seconds: u32,
    /// Of frames, in bytes.
    pub(crate) sizes: Vec<usize>,
    /// Of "testpmd", "ovs".
    pub(crate) peers: Vec<String>,
}

/// The switch under test.
enum Switch {
    Guestwire { daemon: Daemon, statistics: PathBuf },
    Testpmd(Testpmd),
    Ovs(Box<Ovs>),
}

impl Switch {
    /// Starts it on core 1. Returns it and where the driver's two devices connect.
    fn start(side: &str, size: usize, lab: &Lab, folder: &Path, recorder: &mut Recorder) -> (Self, Vec<PathBuf>) {
        match side {
            "guestwire" => {
                let statistics = folder.join("statistics");
                let options = ["--stats", statistics.to_str().unwrap(), "--stats-interval", "0.05"];
                recorder
                    .command("guestwire", &format!("guestwire internal --socket-path net.sock {}", options.join(" ")));
                let daemon = Daemon::with(&options);
                pin(&daemon, "1", recorder);
                let sockets = vec![daemon.socket(); 2];
                (Self::Guestwire { daemon, statistics }, sockets)
            }
            "testpmd" => {
                let (testpmd, sockets, line) = Testpmd::switch(lab, folder, size);
                recorder.command("testpmd", &line);
                (Self::Testpmd(testpmd), sockets)
            }
            "ovs" => {
                let mut ovs = Ovs::start(lab, false, recorder);
                let sockets = ovs.add_listening_ports(2);
                ovs.set_mtu(2, size.max(1500), recorder);
                (Self::Ovs(Box::new(ovs)), sockets)
            }
            other => panic!("{other} is no peer of the load packets"),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Guestwire { daemon, .. } => daemon.pid(),
            Self::Testpmd(testpmd) => testpmd.pid(),
            Self::Ovs(ovs) => ovs.pid(),
        }
    }

    /// Its work is counted from now on. Returns what [`Self::busy_ns`] needs.
    fn count_work(&mut self) -> (f64, f64) {
        match self {
            Self::Guestwire { statistics, .. } => worker(statistics),
            Self::Testpmd(testpmd) => {
                testpmd.forget_work();
                (0.0, 0.0)
            }
            Self::Ovs(ovs) => {
                ovs.forget_work();
                (0.0, 0.0)
            }
        }
    }

    /// Nanoseconds of work for each frame since then, by the switch's own account: time in rounds that found frames.
    fn busy_ns(&mut self, begin: (f64, f64)) -> Option<f64> {
        match self {
            Self::Guestwire { statistics, .. } => {
                let end = worker(statistics);
                Some((end.0 - begin.0) / (end.1 - begin.1))
            }
            Self::Testpmd(testpmd) => testpmd.busy_ns(),
            Self::Ovs(ovs) => ovs.busy_ns(),
        }
    }
}

/// Busy nanoseconds and packets of the worker, in the last whole line of statistics.
fn worker(statistics: &Path) -> (f64, f64) {
    let text = read_to_string(statistics).expect("guestwire writes statistics");
    let (whole, _) = text.rsplit_once('\n').expect("a line of statistics");
    let line: Value = serde_json::from_str(whole.lines().last().unwrap()).expect("statistics are JSON");
    let of = |name: &str| line["workers"][0][name].as_f64().expect("a worker's figures");
    (of("busy_ns"), of("packets"))
}

/// Each size beside each peer.
pub(crate) fn run(options: &Options, recorder: &mut Recorder) {
    let lab = Lab::prepared_for("bench");
    for size in &options.sizes {
        for peer in &options.peers {
            for pair in 0..options.pairs {
                for side in in_turn(pair, ["guestwire", peer]) {
                    eprintln!("packets {size} B, {peer}: pair {} of {}, {side}", pair + 1, options.pairs);
                    let at = At { load: "packets", case: &size.to_string(), peer, pair, side };
                    recorder.measure(at, |recorder| measure(side, *size, false, options.seconds, &lab, recorder));
                }
            }
        }
    }
}

/// Has frames go round. A switch may lose the first ones: Open vSwitch takes a moment to know its ports. Returns how
/// often it took: more than once, and there may be more frames on their way.
fn begin(driver: &mut Testpmd, recorder: &mut Recorder) -> u32 {
    std::thread::sleep(WARM_UP);
    recorder.command("driver, told", &format!("start tx_first {BURSTS}"));
    for attempt in 1..=ATTEMPTS {
        driver.send(BURSTS);
        std::thread::sleep(WARM_UP);
        let before = driver.received().0;
        std::thread::sleep(WARM_UP / 4);
        if driver.received().0 > before {
            return attempt;
        }
    }
    panic!("no frame comes back");
}

/// What packed rings gain: testpmd as driver and as switch, both DPDK's, with packed rings and with split ones.
pub(crate) fn run_packed(options: &Options, recorder: &mut Recorder) {
    let lab = Lab::prepared_for("bench");
    for size in &options.sizes {
        for pair in 0..options.pairs {
            for side in in_turn(pair, ["packed", "split"]) {
                let at = At { load: "packed", case: &size.to_string(), peer: "split", pair, side };
                recorder.measure(at, |recorder| {
                    measure("testpmd", *size, side == "packed", options.seconds, &lab, recorder)
                });
            }
        }
    }
}

fn measure(
    side: &str,
    size: usize,
    packed: bool,
    seconds: u32,
    lab: &Lab,
    recorder: &mut Recorder,
) -> Vec<(&'static str, &'static str, f64)> {
    let folder = TempDir::with_prefix("guestwire-compare-").unwrap();
    let (mut switch, sockets) = Switch::start(side, size, lab, folder.path(), recorder);
    let (mut driver, line) = Testpmd::driver(lab, &sockets, size, packed);
    recorder.command("driver", &line);
    let starts = begin(&mut driver, recorder);
    let (work, cpu, begin) = (switch.count_work(), cpu_seconds(switch.pid()), driver.received());
    std::thread::sleep(Duration::from_secs(seconds.into()));
    let end = driver.received();
    let (cpu, elapsed) = (cpu_seconds(switch.pid()) - cpu, (end.2 - begin.2).as_secs_f64());
    let frames = (end.0 - begin.0) as f64;
    assert!(frames > 0.0, "nothing passes through {side}");
    let mean = (end.1 - begin.1) as f64 / frames;
    assert!((mean - size as f64).abs() < 8.0, "frames of {size} bytes were sent, and of {mean:.0} received");
    let busy = switch.busy_ns(work).unwrap_or_else(|| panic!("{side} does not tell what a frame costs it"));
    let rate = ("rate", "Mpps", frames / elapsed / 1e6);
    vec![rate, ("core", "cores", cpu / elapsed), ("busy", "ns", busy), ("starts", "times", starts.into())]
}
