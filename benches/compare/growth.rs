//! The loads "growth", "workers" and "receivers": guestwire beside itself, with more to do and with less.
//!
//! Drivers that cost next to nothing (`port`) share one thread on core 0; the worker is on core 1. What is measured is
//! the worker's rate, and what its statistics say a frame costs it. The peer of a pair is the same without what the
//! case is named after. In the load "workers" nothing is pinned, and the drivers look at their rings only so often that
//! two workers have the two cores nearly to themselves.

use std::fs::read_to_string;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_timerslack;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::guests::Figure;
use crate::pairs::in_turn;
use crate::port::{Change, LIKE_LINUX, Memory, POLLING, Port};
use crate::process::cpu_seconds;
use crate::recorder::{At, Recorder};
use crate::switches::pin;
use crate::vm::daemon::Daemon;

/// Descriptors of a busy port's rings.
const SIZE: u16 = 256;
/// Bytes of a frame.
const FRAME: usize = 64;
/// Before anything is counted. Statistics come every 50 ms.
const WARM_UP: Duration = Duration::from_millis(500);
/// Round trips that are timed.
const ROUND_TRIPS: usize = 20_000;
/// Ports that addresses are spread over: a port may have 4,096.
const CROWD: usize = 15;
/// Between two looks of the drivers at their rings in the load "workers", for each port: short enough for no ring to
/// run empty. A look takes some 20 µs of a core, most of it for the sleep, and both cores are the workers'.
const PAUSE_PER_PORT: Duration = Duration::from_micros(10);

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) pairs: usize,
    /// That are counted, of each side of a pair.
    pub(crate) seconds: u32,
}

/// What is beside, or behind, the busy pair of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Alone,
    /// So many ports that say nothing.
    Idle(usize),
    /// So many pairs that are as busy.
    Busy(usize),
    /// So many addresses in the table, behind 15 quiet ports.
    Addresses(usize),
    /// The same, and each frame goes to the next of them.
    Spread(usize),
    /// One port that sends broadcasts as fast as it can.
    Flooder,
}

/// Each with what it is compared with.
const GROWTH: &[(Case, Case, &str)] = &[
    (Case::Idle(16), Case::Alone, "alone"),
    (Case::Idle(64), Case::Alone, "alone"),
    (Case::Idle(255), Case::Alone, "alone"),
    (Case::Busy(8), Case::Alone, "alone"),
    (Case::Addresses(1_000), Case::Addresses(1), "1-address"),
    (Case::Addresses(60_000), Case::Addresses(1), "1-address"),
    (Case::Spread(1_000), Case::Spread(CROWD), "15-addresses"),
    (Case::Spread(60_000), Case::Spread(CROWD), "15-addresses"),
    (Case::Flooder, Case::Alone, "alone"),
];

impl Case {
    fn name(self) -> String {
        match self {
            Self::Alone => "alone".to_owned(),
            Self::Idle(ports) => format!("idle-{ports}"),
            Self::Busy(pairs) => format!("busy-{pairs}"),
            Self::Addresses(count) => format!("addresses-{count}"),
            Self::Spread(count) => format!("spread-{count}"),
            Self::Flooder => "flooder".to_owned(),
        }
    }
}

/// A busy pair beside more and more.
pub(crate) fn run(options: &Options, recorder: &mut Recorder) {
    for &(case, baseline, peer) in GROWTH {
        for pair in 0..options.pairs {
            for (side, case_of_side) in in_turn(pair, [("guestwire", case), (peer, baseline)]) {
                let at = At { load: "growth", case: &case.name(), peer, pair, side };
                recorder.measure(at, |recorder| {
                    // A port has many addresses where the table is to be full.
                    let is_crowded = matches!(case, Case::Addresses(_) | Case::Spread(_));
                    let security = if is_crowded { "off" } else { "on" };
                    on_core(0, || Bed::new(1, security, recorder, Some(1)).growth(case_of_side, options.seconds))
                });
            }
        }
    }
}

/// Two workers, and one. With eight pairs the drivers look a quarter as often, so what they take of the cores shows.
pub(crate) fn run_workers(options: &Options, recorder: &mut Recorder) {
    // The kernel makes some 50 µs more of each pause unless it is told not to.
    set_timerslack(1).unwrap();
    for (pairs_of_ports, frame) in [(2, 64), (2, 1500), (8, 64), (8, 1500)] {
        let case = format!("{pairs_of_ports}-pairs-{frame}");
        for pair in 0..options.pairs {
            for (side, workers) in in_turn(pair, [("guestwire", 2), ("one-worker", 1)]) {
                let at = At { load: "workers", case: &case, peer: "one-worker", pair, side };
                recorder.measure(at, |recorder| {
                    Bed::new(workers, "on", recorder, None).busy_pairs(pairs_of_ports, frame, options.seconds)
                });
            }
        }
    }
}

/// A sender with one receiver that is quick and one that is slow, or stuck.
pub(crate) fn run_receivers(options: &Options, recorder: &mut Recorder) {
    for (name, refill) in [("slow", Some(Duration::from_millis(1))), ("stuck", None)] {
        for pair in 0..options.pairs {
            for (side, other) in in_turn(pair, [("guestwire", refill), ("both-quick", Some(Duration::ZERO))]) {
                let at = At { load: "receivers", case: name, peer: "both-quick", pair, side };
                recorder.measure(at, |recorder| {
                    on_core(0, || Bed::new(1, "on", recorder, Some(1)).two_receivers(other, options.seconds))
                });
            }
        }
    }
}

/// Runs something with the thread on one core.
fn on_core<T>(core: usize, work: impl FnOnce() -> T) -> T {
    let (this, mut only) = (Pid::from_raw(0), CpuSet::new());
    let before = sched_getaffinity(this).unwrap();
    only.set(core).unwrap();
    sched_setaffinity(this, &only).unwrap();
    let done = work();
    sched_setaffinity(this, &before).unwrap();
    done
}

/// The address of one of a port's guests.
fn mac(port: usize, guest: usize) -> [u8; 6] {
    let (port, [.., high, middle, low]) = (port as u8, (guest as u32).to_be_bytes());
    [0x52, port, 0, high, middle, low]
}

fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut bytes = [&to[..], &from, &[0x88, 0xb5]].concat();
    bytes.resize(len, 0x5a);
    bytes
}

/// guestwire and the ports on it.
struct Bed {
    daemon: Daemon,
    statistics: PathBuf,
    ports: Vec<Port>,
    _folder: TempDir,
}

impl Bed {
    fn new(workers: usize, security: &str, recorder: &mut Recorder, core: Option<usize>) -> Self {
        let folder = TempDir::with_prefix("guestwire-compare-").unwrap();
        let (statistics, workers) = (folder.path().join("statistics"), workers.to_string());
        let mut options = vec!["--port-security", security, "--workers", &workers, "--stats-interval", "0.05"];
        options.extend(["--stats", statistics.to_str().unwrap()]);
        recorder.command("guestwire", &format!("guestwire internal --socket-path net.sock {}", options.join(" ")));
        let daemon = Daemon::with(&options);
        let cores = core.map_or("0,1".to_owned(), |core| core.to_string());
        pin(&daemon, &cores, recorder);
        Self { daemon, statistics, ports: Vec::new(), _folder: folder }
    }

    /// Attaches `count` ports more. Returns the first one's number.
    fn attach(&mut self, count: usize, size: u16, known: u64) -> usize {
        let first = self.ports.len();
        for _ in 0..count {
            let port = Port::attach(&self.daemon.socket(), size, known).unwrap_or_else(|error| panic!("{error}"));
            self.ports.push(port);
        }
        first
    }

    /// Has every port send once from each of its addresses, which are so many each, to port 0, which is known.
    fn teach(&mut self, ports: std::ops::Range<usize>, addresses: usize, len: usize) {
        for number in ports {
            let to = if number == 0 { [0xff; 6] } else { mac(0, 0) };
            for first in (0..addresses).step_by(32) {
                let count = 32.min(addresses - first);
                let port = &mut self.ports[number];
                port.load(|slot| frame(to, mac(number, first + slot % 32), len));
                port.send(count as u16);
                self.until("a port is known", |bed| bed.ports[number].in_flight() == 0);
            }
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            for port in &mut self.ports {
                port.receive(u16::MAX);
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "not within ten seconds: {what}");
        }
    }

    /// The last whole line of statistics.
    fn statistics(&self) -> Value {
        let text = read_to_string(&self.statistics).expect("guestwire writes statistics");
        let (whole, _) = text.rsplit_once('\n').expect("a line of statistics");
        serde_json::from_str(whole.lines().last().unwrap()).expect("statistics are JSON")
    }

    /// Busy nanoseconds and packets of all workers.
    fn worked(&self) -> (f64, f64) {
        let line = self.statistics();
        let workers = line["workers"].as_array().expect("workers");
        let sum = |name: &str| workers.iter().map(|worker| worker[name].as_f64().expect("a figure")).sum();
        (sum("busy_ns"), sum("packets"))
    }

    /// Frames that a port has flooded so far, and that were not refused.
    fn flooded(&self, number: usize) -> f64 {
        let line = self.statistics();
        let of = |name: &str| line["ports"][number][name].as_f64().expect("a counter");
        of("tx_frames") - of("drop_tx_flood_limit")
    }

    /// Lets time pass while `turn` drives.
    fn pass(&mut self, time: Duration, turn: &mut impl FnMut(&mut Vec<Port>)) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            turn(&mut self.ports);
        }
    }

    /// Frames a second, in millions, that arrive at the ports `counted`, but for what port `flooder` sends to all; the
    /// device's busy time for each of all that it takes; and what its threads and the driver, which is our own thread,
    /// have of the cores.
    fn measure(
        &mut self,
        counted: &[usize],
        flooder: Option<usize>,
        seconds: u32,
        turn: &mut impl FnMut(&mut Vec<Port>),
    ) -> Vec<Figure> {
        self.pass(WARM_UP, turn);
        let flooded = |bed: &Self| flooder.map_or(0.0, |number| bed.flooded(number));
        let (worked, others) = (self.worked(), flooded(self));
        self.ports.iter_mut().for_each(Port::forget);
        let (begin, before) = (Instant::now(), [self.daemon.pid(), std::process::id()].map(cpu_seconds));
        self.pass(Duration::from_secs(seconds.into()), turn);
        let received: u64 = counted.iter().map(|&number| self.ports[number].received).sum();
        let (elapsed, after) =
            (begin.elapsed().as_secs_f64(), [self.daemon.pid(), std::process::id()].map(cpu_seconds));
        let [core, driver] = [0, 1].map(|n| (after[n] - before[n]) / elapsed);
        let now = self.worked();
        let busy = (now.0 - worked.0) / (now.1 - worked.1);
        let own = received as f64 - (flooded(self) - others) * counted.len() as f64;
        let rate = ("rate", "Mpps", own / elapsed / 1e6);
        vec![rate, ("busy", "ns", busy), ("core", "cores", core), ("driver", "cores", driver)]
    }

    fn growth(&mut self, case: Case, seconds: u32) -> Vec<Figure> {
        // The busy pair.
        self.attach(2, SIZE, POLLING);
        let (mut busy, mut spread) = (vec![0, 1], 0);
        self.teach(0..2, 1, FRAME);
        match case {
            Case::Alone => {}
            Case::Idle(ports) => {
                self.attach(ports, SIZE, LIKE_LINUX);
            }
            Case::Busy(pairs) => {
                let first = self.attach(2 * pairs, SIZE, POLLING);
                self.teach(first..first + 2 * pairs, 1, FRAME);
                busy.extend(first..first + 2 * pairs);
            }
            Case::Addresses(count) | Case::Spread(count) => {
                let (first, each) = (self.attach(CROWD, SIZE, POLLING), count.div_ceil(CROWD));
                let ports = if count == 1 { first..first + 1 } else { first..first + CROWD };
                self.teach(ports, each, FRAME);
                if matches!(case, Case::Spread(_)) {
                    (busy, spread) = (vec![0], each);
                }
            }
            Case::Flooder => {
                let flooder = self.attach(1, SIZE, POLLING);
                self.ports[flooder].load(|_| frame([0xff; 6], mac(flooder, 0), FRAME));
            }
        }
        for &number in &busy {
            self.ports[number].load(|_| frame(mac(number ^ 1, 0), mac(number, 0), FRAME));
        }
        let senders: Vec<usize> = if case == Case::Flooder { vec![0, 1, self.ports.len() - 1] } else { busy.clone() };
        let mut each = |n: u64, memory: &Memory, at: usize| {
            let (port, guest) = (2 + n as usize % CROWD, n as usize / CROWD % spread.max(1));
            memory.write(at, &mac(port, guest));
        };
        // Those that say nothing are not looked at, unless frames are for them.
        let receivers = if spread > 0 { (2..2 + CROWD).collect() } else { senders.clone() };
        let mut turn = |ports: &mut Vec<Port>| {
            for &number in &senders {
                let each: Option<Change<'_>> = if spread > 0 { Some(&mut each) } else { None };
                ports[number].send_on(each);
            }
            for &number in &receivers {
                ports[number].receive(u16::MAX);
            }
        };
        // Of many busy pairs, what the first has is what it is beside the others.
        let counted = if spread > 0 { &receivers } else { &vec![0, 1] };
        let flooder = (case == Case::Flooder).then(|| self.ports.len() - 1);
        let mut figures = self.measure(counted, flooder, seconds, &mut turn);
        let received = |ports: &[usize]| ports.iter().map(|&number| self.ports[number].received as f64).sum::<f64>();
        if busy.len() > 1 {
            let (_, _, of_counted) = figures[0];
            figures.push(("rate-of-all", "Mpps", of_counted * received(&busy) / received(counted)));
        }
        if spread == 0 {
            let others: Vec<usize> = senders.into_iter().filter(|&number| number > 1).collect();
            figures.extend(self.round_trips(&others));
        }
        figures
    }

    /// One frame there and one back, again and again, while other ports are as busy as before.
    fn round_trips(&mut self, others: &[usize]) -> [Figure; 2] {
        let drive = |ports: &mut Vec<Port>| {
            for &number in others {
                ports[number].send_on(None);
                ports[number].receive(u16::MAX);
            }
        };
        for number in [0, 1] {
            while self.ports[number].in_flight() > 0 {
                drive(&mut self.ports);
                self.ports[0].receive(u16::MAX);
                self.ports[1].receive(u16::MAX);
            }
        }
        self.pass(Duration::from_millis(10), &mut |ports| {
            drive(ports);
            ports[0].receive(u16::MAX);
            ports[1].receive(u16::MAX);
        });
        let mut nanoseconds = Vec::with_capacity(ROUND_TRIPS);
        let give_up = Instant::now() + Duration::from_secs(20);
        while nanoseconds.len() < ROUND_TRIPS && Instant::now() < give_up {
            let begin = Instant::now();
            for (from, to) in [(0, 1), (1, 0)] {
                self.ports[from].send(1);
                // What a flooder sends arrives as well.
                while self.ports[to].receive_own() == 0 && Instant::now() < give_up {
                    self.ports[from].receive(u16::MAX);
                    drive(&mut self.ports);
                }
            }
            nanoseconds.push(begin.elapsed().as_nanos() as f64);
        }
        assert_eq!(nanoseconds.len(), ROUND_TRIPS, "a frame was lost, or they take too long");
        nanoseconds.sort_by(f64::total_cmp);
        let at = |part: f64| nanoseconds[((nanoseconds.len() - 1) as f64 * part) as usize] / 1e3;
        [("p50", "µs", at(0.5)), ("p99", "µs", at(0.99))]
    }

    fn busy_pairs(&mut self, pairs: usize, len: usize, seconds: u32) -> Vec<Figure> {
        let ports: Vec<usize> = (0..2 * pairs).collect();
        self.attach(ports.len(), 1024, POLLING);
        self.teach(0..ports.len(), 1, len);
        for &number in &ports {
            self.ports[number].load(|_| frame(mac(number ^ 1, 0), mac(number, 0), len));
        }
        let pause = PAUSE_PER_PORT * ports.len() as u32;
        self.measure(&ports, None, seconds, &mut |ports| {
            for port in ports.iter_mut() {
                port.receive(u16::MAX);
                port.send_on(None);
            }
            std::thread::sleep(pause);
        })
    }

    /// `refill` is how often the second receiver takes what it has; never, if it is stuck.
    fn two_receivers(&mut self, refill: Option<Duration>, seconds: u32) -> Vec<Figure> {
        self.attach(3, SIZE, POLLING);
        self.teach(0..3, 1, FRAME);
        self.ports[0].load(|slot| frame(mac(1 + slot % 2, 0), mac(0, 0), FRAME));
        let mut last = Instant::now();
        // Half of what is sent is for port 1.
        self.measure(&[1], None, seconds, &mut |ports| {
            ports[0].send_on(None);
            ports[1].receive(u16::MAX);
            if refill.is_some_and(|refill| refill.is_zero() || last.elapsed() > refill) {
                last = Instant::now();
                ports[2].receive(u16::MAX);
            }
        })
    }
}
