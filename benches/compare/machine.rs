//! What a run ran on, and how quiet it was there.

use std::fs::{OpenOptions, read_dir, read_to_string};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::guests::Figure;
use crate::process::run;
use crate::vm::lab::Lab;

/// Round trips of a cache line that are timed at once.
const BOUNCES: u32 = 20_000;
/// Times that they are timed.
const TIMES: usize = 11;
/// The same before and after each side of a pair: 10 ms.
const TIMES_BESIDE: usize = 3;

/// Ticks of all processors together since the machine's start: all, and those that the host took away.
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    fn now() -> Self {
        let stat = read_to_string("/proc/stat").unwrap();
        let line = stat.lines().next().unwrap();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user already.
        Self { all: ticks[..8].iter().sum(), stolen: ticks[7] }
    }

    /// What the host has taken away since then, in percent.
    fn stolen_since(&self) -> f64 {
        let now = Self::now();
        100.0 * (now.stolen - self.stolen) as f64 / (now.all - self.all).max(1) as f64
    }
}

/// Writes about the machine into a run's folder, at the beginning and, when it is dropped, at the end.
pub(crate) struct Machine<'a> {
    folder: &'a Path,
    begin: Ticks,
}

impl<'a> Machine<'a> {
    pub(crate) fn begin(folder: &'a Path) -> Self {
        let field = |file: &str, name: &str| {
            let text = read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
            line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let machine = Self { folder, begin: Ticks::now() };
        machine.write(&[
            format!("begin: {}", run(&["date", "-u", "+%Y-%m-%d %H:%M:%S UTC"], &[]).trim()),
            format!("processor: {}", field("/proc/cpuinfo", "model name")),
            format!("processors: {}", std::thread::available_parallelism().unwrap()),
            topology(),
            format!("memory: {}", field("/proc/meminfo", "MemTotal")),
            format!("kernel: {}", run(&["uname", "-sr"], &[]).trim()),
            format!("compiler: {}", run(&["rustc", "--version"], &[]).trim()),
            format!("commit: {}", run(&["git", "rev-parse", "HEAD"], &[]).trim()),
            programs(),
            bounce_line(),
        ]);
        machine
    }

    fn write(&self, lines: &[String]) {
        let file = OpenOptions::new().append(true).create(true).open(self.folder.join("machine.txt"));
        writeln!(file.unwrap(), "{}", lines.join("\n")).unwrap();
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let share = self.begin.stolen_since();
        self.write(&[bounce_line(), format!("taken away by the host meanwhile: {share:.2} %\nend\n")]);
    }
}

/// What the processors share, as far as the machine says.
fn topology() -> String {
    let of = |file: &str| read_to_string(format!("/sys/{file}")).map_or("?".to_owned(), |text| text.trim().to_owned());
    let cpu = |file: &str| of(&format!("devices/system/cpu/cpu0/{file}"));
    let caches =
        (0..4).map(|n| format!("{} {}", cpu(&format!("cache/index{n}/level")), cpu(&format!("cache/index{n}/size"))));
    let caches = caches.collect::<Vec<_>>().join(", ");
    let (siblings, shared) = (cpu("topology/thread_siblings_list"), cpu("cache/index3/shared_cpu_list"));
    let huge = of("kernel/mm/transparent_hugepage/enabled");
    format!(
        "caches of processor 0, by level: {caches}; the last one is that of {shared}; threads of its core: {siblings}; \
         transparent huge pages: {huge}"
    )
}

/// The packages that the peers and the guests are of, as the lab has unpacked them.
fn programs() -> String {
    const OF_INTEREST: &[&str] = &[
        "dpdk",
        "openvswitch-switch-dpdk",
        "passt",
        "qemu-system-x86",
        "user-mode-linux",
        "linux-image-cloud",
        "iperf3",
    ];
    let peers = Path::new(Lab::prepared_for("bench").get("PEERS")).to_owned();
    let cache = read_dir(peers.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let made = cache.filter(|path| path.extension().is_some_and(|extension| extension == "made"));
    let mut packages: Vec<String> = made
        .flat_map(|path| read_to_string(path).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter(|file| file.ends_with(".deb"))
        .filter(|file| OF_INTEREST.iter().any(|name| file.starts_with(name) && !file.starts_with("dpdk-")))
        .map(|file| file.trim_end_matches(".deb").replace("%3a", ":"))
        .collect();
    packages.sort();
    packages.dedup();
    format!("packages: {}", packages.join(" "))
}

fn bounce_line() -> String {
    format!("core 0 to core 1 and back: {:.0} ns", bounce(TIMES))
}

/// How long a cache line takes from core 0 to core 1 and back, in nanoseconds: the median of so many times.
fn bounce(times: usize) -> f64 {
    let mut measured: Vec<f64> = (0..times).map(|_| bounce_once()).collect();
    measured.sort_by(f64::total_cmp);
    measured[times / 2]
}

/// The readings that tell how the machine was: a cache line from core to core and back, and what the host took away.
pub(crate) const WATCHED: [&str; 3] = ["bounce-before", "bounce-after", "stolen"];

/// How the machine is before and after one side of a pair, so that a reading far from the others can be understood.
pub(crate) struct Watch {
    begin: Ticks,
    bounce_ns: f64,
}

impl Watch {
    pub(crate) fn begin() -> Self {
        Self { bounce_ns: bounce(TIMES_BESIDE), begin: Ticks::now() }
    }

    /// What it was like, as readings beside the others.
    pub(crate) fn end(self) -> [Figure; 3] {
        let stolen = self.begin.stolen_since();
        let [before, after, share] = WATCHED;
        [(before, "ns", self.bounce_ns), (after, "ns", bounce(TIMES_BESIDE)), (share, "%", stolen)]
    }
}

fn bounce_once() -> f64 {
    let turn = AtomicU32::new(0);
    let pass = |core: usize, first: u32| {
        let mut set = CpuSet::new();
        set.set(core).unwrap();
        sched_setaffinity(Pid::from_raw(0), &set).unwrap();
        let begin = Instant::now();
        for n in 0..BOUNCES {
            let mine = 2 * n + first;
            while turn.load(Ordering::Acquire) != mine {
                std::hint::spin_loop();
            }
            turn.store(mine + 1, Ordering::Release);
        }
        begin.elapsed().as_nanos() as f64 / f64::from(BOUNCES)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| pass(1, 1));
        // A thread of its own, so that ours stays where it was.
        let time = scope.spawn(|| pass(0, 0)).join().unwrap();
        other.join().unwrap();
        time
    })
}
