//! What a run ran on, and how quiet it was there.

use std::fs::{OpenOptions, read_to_string};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::process::run;

/// Round trips of a cache line that are timed at once.
const BOUNCES: u32 = 20_000;
/// Times that they are timed.
const TIMES: usize = 11;

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
            format!("memory: {}", field("/proc/meminfo", "MemTotal")),
            format!("kernel: {}", run(&["uname", "-sr"], &[]).trim()),
            format!("compiler: {}", run(&["rustc", "--version"], &[]).trim()),
            format!("commit: {}", run(&["git", "rev-parse", "HEAD"], &[]).trim()),
            bounce(),
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
        let end = Ticks::now();
        let (all, stolen) = (end.all - self.begin.all, end.stolen - self.begin.stolen);
        let share = 100.0 * stolen as f64 / all.max(1) as f64;
        self.write(&[bounce(), format!("taken away by the host meanwhile: {share:.2} %\nend\n")]);
    }
}

/// How long a cache line takes from core 0 to core 1 and back.
fn bounce() -> String {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        return "core 0 to core 1 and back: there is one core only".to_owned();
    }
    let mut times: Vec<f64> = (0..TIMES).map(|_| bounce_once()).collect();
    times.sort_by(f64::total_cmp);
    format!("core 0 to core 1 and back: {:.0} ns", times[TIMES / 2])
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
