//! The loads "guests" and "qemu": two real guests and what is between them, by what their own tools measure.
//!
//! Two cores is all there is. Guest 1, which sends, runs on core 0 with all of its VMM's threads, guest 2 on core 1,
//! and so on every side. The switch: guestwire's threads may run on both; the bridge has no thread, its work is done in
//! the guests' own writes; Open vSwitch polls on core 1 without a pause, beside guest 2, and its other threads are on
//! core 0. With `apart` both guests are on core 0 and what switches is on core 1 alone, for who thinks that fairer to a
//! switch that polls: the bridge then has one core in all.
//!
//! What the guests' drivers and the switch agree to offload is what they agree to by default.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::extras::{compile, initrd_with};
use crate::pairs::{Cases, in_turn};
use crate::process::{busy_seconds, cpu_seconds};
use crate::recorder::{At, Recorder};
use crate::switches::{Side, Switch};
use crate::vm::guest::{COMMAND_WITHIN, Guest, Plan, Vmm};
use crate::vm::lab::Lab;

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) pairs: usize,
    /// Of each case.
    pub(crate) seconds: u32,
    /// Of "bridge", "ovs-tso", "ovs".
    pub(crate) peers: Vec<String>,
    pub(crate) cases: Cases,
    /// Guests on one core, the switch on the other.
    pub(crate) apart: bool,
}

#[derive(Clone, Copy, Debug)]
enum Case {
    /// So many streams at once.
    Tcp(u32),
    /// As fast as the sender can, in datagrams of this length; iperf3's own choice is what fits in a frame.
    Udp(Option<u32>),
    RoundTrips,
}

const ALL: &[Case] =
    &[Case::Tcp(1), Case::Tcp(4), Case::Tcp(8), Case::Udp(None), Case::Udp(Some(64)), Case::RoundTrips];

impl Case {
    fn name(self, apart: bool) -> String {
        let name = match self {
            Self::Tcp(streams) => format!("tcp-{streams}"),
            Self::Udp(None) => "udp".to_owned(),
            Self::Udp(Some(length)) => format!("udp-{length}"),
            Self::RoundTrips => "round-trips".to_owned(),
        };
        if apart { name + "-apart" } else { name }
    }
}

/// User Mode Linux: Linux's own driver at nearly a machine's speed.
pub(crate) fn run_uml(options: &Options, recorder: &mut Recorder) {
    Load::new("guests", Vmm::UmlNew, "UML_NEW_INITRD", options, recorder).run(recorder);
}

/// QEMU on emulated CPUs.
pub(crate) fn run_qemu(options: &Options, recorder: &mut Recorder) {
    Load::new("qemu", Vmm::QemuNew, "INITRD", options, recorder).run(recorder);
}

struct Load<'a> {
    name: &'static str,
    vmm: Vmm,
    options: &'a Options,
    lab: Lab,
    initrd: PathBuf,
    _folder: TempDir,
}

/// A figure: its name, its unit, itself.
pub(crate) type Figure = (&'static str, &'static str, f64);

impl<'a> Load<'a> {
    fn new(name: &'static str, vmm: Vmm, initrd: &str, options: &'a Options, recorder: &mut Recorder) -> Self {
        let (lab, folder) = (Lab::prepared_for("bench"), TempDir::with_prefix("guestwire-compare-").unwrap());
        let program = compile("round_trips", folder.path(), recorder);
        let initrd = initrd_with(Path::new(lab.get(initrd)), &program, folder.path());
        Self { name, vmm, options, lab, initrd, _folder: folder }
    }

    fn run(&self, recorder: &mut Recorder) {
        for name in &self.options.peers {
            let peer = Side::peer(name).unwrap_or_else(|| panic!("{name} is no peer of the load {}", self.name));
            for pair in 0..self.options.pairs {
                for side in in_turn(pair, [Side::Guestwire, peer]) {
                    self.side(name, pair, side, recorder);
                }
            }
        }
    }

    /// One side of a pair: a switch and two guests, for all cases.
    fn side(&self, peer: &str, pair: usize, side: Side, recorder: &mut Recorder) {
        let switch = Switch::start(side, self.vmm, &self.lab, recorder);
        let start = |number: u8| {
            let core = if self.options.apart { "0".to_owned() } else { (number - 1).to_string() };
            let plan = Plan::new(self.vmm, number).initrd(&self.initrd).under(&["taskset", "-c", &core]);
            let (plan, wire) = switch.attach(plan, number);
            plan.start_on(&self.lab, &wire, switch.folder())
        };
        let (a, b) = (start(1), start(2));
        recorder.command(&format!("{} on {}", self.name, side.name()), a.command_line());
        let (mut a, mut b) = (a.booted(), b.booted());
        if self.options.apart {
            switch.pin("1", recorder);
        }
        prepare(&mut a, &mut b);
        let wanted = |case: &Case| self.options.cases.has(&case.name(false));
        for &case in ALL.iter().filter(|case| wanted(case)) {
            let name = case.name(self.options.apart);
            let at = At { load: self.name, case: &name, peer, pair, side: side.name() };
            recorder.measure(at, |recorder| {
                let (begin, all, own) = (Instant::now(), busy_seconds(), switch.pid().map(cpu_seconds));
                let mut figures = measure(case, &mut a, &mut b, self.options.seconds, recorder);
                let elapsed = begin.elapsed().as_secs_f64();
                // What all had of the two cores, and the switch of it, if that is a process.
                figures.push(("cpu", "cores", (busy_seconds() - all) / elapsed));
                let own = own.zip(switch.pid()).map(|(own, pid)| (cpu_seconds(pid) - own) / elapsed);
                figures.extend(own.map(|own| ("switch-cpu", "cores", own)));
                figures
            });
        }
    }
}

/// Has them know each other, and `b` serve.
fn prepare(a: &mut Guest, b: &mut Guest) {
    let address = b.ip();
    a.ok(&format!("for n in 1 2 3 4 5 6 7 8 9 10; do ping -c 1 -W 1 {address} && exit 0; sleep 1; done; exit 1"));
    b.ok("iperf3 -s -D");
    b.begin("round_trips serve 7001");
    for port in [5201, 7001] {
        b.ok(&format!(
            "for n in 1 2 3 4 5 6 7 8 9 10; do netstat -ltn | grep -q :{port} && exit 0; usleep 200000; done; exit 1"
        ));
    }
}

fn measure(case: Case, a: &mut Guest, b: &mut Guest, seconds: u32, recorder: &mut Recorder) -> Vec<Figure> {
    let address = b.ip();
    let command = match case {
        Case::Tcp(streams) => format!("iperf3 -c {address} -t {seconds} -i 0 -J -P {streams}"),
        Case::Udp(length) => {
            let length = length.map_or(String::new(), |length| format!("-l {length}"));
            format!("iperf3 -c {address} -t {seconds} -i 0 -J -u -b 0 {length}")
        }
        Case::RoundTrips => format!("round_trips ask {address} 7001 {seconds}"),
    };
    recorder.command("guest 1", &command);
    let outcome = a.run(&command, COMMAND_WITHIN + Duration::from_secs(seconds.into()));
    let figures = json(&outcome.output).and_then(|json| match case {
        Case::Tcp(_) => tcp(&json),
        Case::Udp(_) => udp(&json),
        Case::RoundTrips => round_trips(&json),
    });
    figures.unwrap_or_else(|| a.fail(&format!("ran `{command}`, and that measured nothing:\n{}", outcome.output)))
}

/// A guest's kernel may have written around it.
pub(crate) fn json(output: &str) -> Option<Value> {
    serde_json::from_str(output.get(output.find('{')?..=output.rfind('}')?)?).ok()
}

/// What the receiver had.
pub(crate) fn tcp(json: &Value) -> Option<Vec<Figure>> {
    let rate = json.pointer("/end/sum_received/bits_per_second")?.as_f64()?;
    let retransmits = json.pointer("/end/sum_sent/retransmits")?.as_f64()?;
    Some(vec![("received", "Gb/s", rate / 1e9), ("retransmits", "segments", retransmits)])
}

/// The sum is of what was sent, and of what the receiver missed.
pub(crate) fn udp(json: &Value) -> Option<Vec<Figure>> {
    let sum = json.pointer("/end/sum")?;
    let of = |name: &str| sum.get(name)?.as_f64();
    let arrived = 1.0 - of("lost_packets")? / of("packets")?;
    let rate = of("bits_per_second")? * arrived;
    Some(vec![
        ("received", "Mb/s", rate / 1e6),
        ("received-packets", "kpps", of("packets")? * arrived / of("seconds")? / 1e3),
        ("lost", "%", of("lost_percent")?),
    ])
}

pub(crate) fn round_trips(json: &Value) -> Option<Vec<Figure>> {
    let of = |name: &str| json.get(name)?.as_f64();
    let times = [("p50", "p50_us"), ("p99", "p99_us"), ("p999", "p999_us"), ("max", "max_us")];
    let times = times.into_iter().map(|(metric, name)| Some((metric, "µs", of(name)?)));
    times.chain([Some(("count", "round trips", of("count")?))]).collect()
}
