//! dpdk-testpmd, obeying its prompt: as the driver of two virtio-net devices, and as a switch of two vhost-user ports.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::openpty;

use crate::process::within;
use crate::vm::console::Console;
use crate::vm::lab::Lab;

/// Longer than it may take to take its memory and find its devices.
const START_WITHIN: Duration = Duration::from_secs(20);
/// Longer than an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longer than its end may take.
const END_WITHIN: Duration = Duration::from_secs(10);
const PROMPT: &str = "testpmd>";

/// The addresses of the two devices that the driver drives.
const MACS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];

/// A running testpmd. It ends when it is dropped.
pub(crate) struct Testpmd {
    child: Child,
    prompt: ChildStdin,
    console: Console,
}

impl Testpmd {
    /// Starts it with its own command line, which is returned in full.
    fn start(lab: &Lab, arguments: &[String]) -> (Self, String) {
        let program = format!("{}/dpdk-testpmd", lab.get("PEERS_BIN"));
        // It answers at once only to what looks like a terminal.
        let terminal = openpty(None, None).expect("a pseudo terminal");
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", &program])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(terminal.slave.try_clone().unwrap())
            .stderr(terminal.slave)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let console = Console::default();
        console.collect(File::from(terminal.master));
        let testpmd = Self { prompt: child.stdin.take().unwrap(), child, console };
        if testpmd.console.wait_for(0, START_WITHIN, |text| text.contains(PROMPT).then_some(())).is_none() {
            panic!("testpmd does not start:\n{}", testpmd.console.tail(30));
        }
        (testpmd, format!("dpdk-testpmd {}", arguments.join(" ")))
    }

    /// As a switch of two ports, which passes on what comes in without a look at it; polls on core 1. Returns it, where
    /// its ports listen, and its command line.
    pub(crate) fn switch(lab: &Lab, folder: &Path, size: usize) -> (Self, Vec<PathBuf>, String) {
        let sockets: Vec<PathBuf> = ["a.sock", "b.sock"].iter().map(|name| folder.join(name)).collect();
        let port = |n: usize| format!("--vdev=net_vhost{n},iface={},queues=1", sockets[n].display());
        let words = [
            "--lcores=0@0,1@1 -m 256 --no-pci --file-prefix=guestwire-switch".to_owned(),
            port(0),
            port(1),
            format!("-- -i --forward-mode=io --record-core-cycles --auto-start {}", buffers(size)),
        ];
        let (testpmd, line) = Self::start(lab, &split(&words));
        (testpmd, sockets, line)
    }

    /// As the driver of two devices, on core 0: each sends on to the other what it gets, frames of `size` bytes. With
    /// `packed` by packed rings (virtio 1.3, 2.8).
    pub(crate) fn driver(lab: &Lab, sockets: &[PathBuf], size: usize, packed: bool) -> (Self, String) {
        let device = |n: usize| {
            let (path, mac) = (sockets[n].display(), MACS[n]);
            let packed = if packed { ",packed_vq=1" } else { "" };
            format!("--vdev=net_virtio_user{n},path={path},queues=1,queue_size=1024,mrg_rxbuf=1,mac={mac}{packed}")
        };
        let words = [
            "--lcores=0@0,1@0 -m 512 --no-pci --single-file-segments".to_owned(),
            "--file-prefix=guestwire-driver".to_owned(),
            device(0),
            device(1),
            // What a frame may be is judged by what a buffer holds, in this order.
            format!("-- -i --no-flush-rx --forward-mode=mac {} --txpkts={size}", buffers(size)),
            format!("--eth-peer=0,{} --eth-peer=1,{}", MACS[1], MACS[0]),
        ];
        Self::start(lab, &split(&words))
    }

    /// Has both devices send, so many bursts of 32 frames each that are then on their way for ever, unless one is lost.
    pub(crate) fn send(&mut self, bursts: u32) {
        self.tell("stop");
        self.tell(&format!("start tx_first {bursts}"));
    }

    /// Frames that both devices have received, their bytes, and when.
    pub(crate) fn received(&mut self) -> (u64, u64, Instant) {
        let from = self.console.len();
        self.tell("show port stats all");
        let of_both = |text: &str, name: &str| {
            let counts = text.split(name).skip(1);
            let counts: Vec<u64> =
                counts.filter_map(|rest| rest.trim_start().split_once([' ', '\n'])?.0.parse().ok()).collect();
            (counts.len() == 2).then(|| counts.iter().sum::<u64>())
        };
        let of_both = |text: &str| Some((of_both(text, "RX-packets:")?, of_both(text, "RX-bytes:")?));
        let now = Instant::now();
        let counted = self.console.wait_for(from, ANSWER_WITHIN, of_both);
        let (frames, bytes) = counted.unwrap_or_else(|| panic!("testpmd does not count:\n{}", self.console.tail(30)));
        (frames, bytes, now)
    }

    /// Forgets what it has counted of its own work.
    pub(crate) fn forget_work(&mut self) {
        self.tell("clear fwd stats all");
    }

    /// Nanoseconds for each frame in rounds that found any, since it was last told to forget.
    pub(crate) fn busy_ns(&mut self) -> Option<f64> {
        let from = self.console.len();
        self.tell("show fwd stats all");
        let cost = |text: &str| {
            let (cycles, rest) = text.split_once("CPU cycles/packet=")?.1.split_once(' ')?;
            let (clock, _) = rest.split_once(") at ")?.1.split_once(" MHz")?;
            Some(cycles.parse::<f64>().ok()? * 1e3 / clock.parse::<f64>().ok()?)
        };
        self.console.wait_for(from, ANSWER_WITHIN, cost)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn tell(&mut self, line: &str) {
        if writeln!(self.prompt, "{line}").is_err() {
            panic!("testpmd has ended:\n{}", self.console.tail(30));
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.prompt.write_all(b"stop\nquit\n");
        if within(END_WITHIN, || self.child.try_wait().ok()?.map(drop)).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Enough buffers for all rings, each large enough for one frame of `size` bytes.
fn buffers(size: usize) -> String {
    let large = if size > 2000 { " --mbuf-size=10240 --max-pkt-len=9018" } else { "" };
    format!("--total-num-mbufs=16384{large}")
}

fn split(words: &[String]) -> Vec<String> {
    words.iter().flat_map(|words| words.split(' ')).map(str::to_owned).collect()
}
