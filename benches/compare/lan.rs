//! The load "lan": a real guest on a LAN beyond the host, by guestwire in the host's bridge, and by the kernel alone: a
//! tap in the same bridge, which the guest's VMM serves itself.
//!
//! Host and LAN are network namespaces with a pair of interfaces between them. The guest runs on core 0 with all of its
//! VMM's threads, the iperf3 of the LAN on core 1; guestwire's threads may run on both. The processors' time is that of
//! guest, switch, iperf3 and the kernel's threads for interrupts; other interrupts count as whom they interrupt.

use std::time::Duration;

use tempfile::TempDir;

use crate::guests::{Figure, json};
use crate::pairs::{Options, in_turn};
use crate::process::{Process, busy_seconds, within};
use crate::recorder::{At, Recorder};
use crate::vm::daemon::Daemon;
use crate::vm::guest::{COMMAND_WITHIN, Guest, Plan, Vmm, Wire};
use crate::vm::lab::Lab;
use crate::vm::space::Space;

/// The LAN's address.
const ADDRESS: &str = "10.9.0.200";
const PEER: &str = "bridge";
/// Longer than iperf3 takes to listen.
const SERVER_WITHIN: Duration = Duration::from_secs(10);

/// A case: its name, and what iperf3 is told.
type Case = (&'static str, &'static str);

/// User Mode Linux, at nearly a machine's speed, and QEMU on emulated CPUs.
const GUESTS: &[(Vmm, [Case; 2])] = &[
    (Vmm::UmlNew, [("to-lan", ""), ("from-lan", "-R")]),
    (Vmm::QemuNew, [("qemu-to-lan", ""), ("qemu-from-lan", "-R")]),
];

/// Each kind of guest by guestwire and by the kernel in turn.
pub(crate) fn run(options: &Options, recorder: &mut Recorder) {
    let lab = Lab::prepared_for("bench");
    for (vmm, cases) in GUESTS {
        let cases: Vec<&Case> = cases.iter().filter(|case| options.cases.has(case.0)).collect();
        for pair in (0..options.pairs).filter(|_| !cases.is_empty()) {
            for side in in_turn(pair, ["guestwire", PEER]) {
                let lan = Lan::new(&lab, recorder);
                let (_switch, mut guest) = lan.attach(*vmm, side, &lab, recorder);
                for &&(case, direction) in &cases {
                    let at = At { load: "lan", case, peer: PEER, pair, side };
                    recorder.measure(at, |_| measure(&mut guest, direction, options.seconds));
                }
            }
        }
    }
}

/// The host, with a bridge that its NIC is in, and the machine at the other end of the wire.
struct Lan {
    host: Space,
    _lan: Space,
    _server: Process,
    folder: TempDir,
}

impl Lan {
    fn new(lab: &Lab, recorder: &mut Recorder) -> Self {
        let (host, lan) = (Space::new(), Space::new());
        host.cable("eth0", &lan, "lan0");
        for line in ["link add br0 type bridge", "link set eth0 master br0", "link set br0 up"] {
            recorder.command("host", &format!("ip {line}"));
            host.ip(line);
        }
        lan.ip(&format!("addr add {ADDRESS}/24 dev lan0"));
        let program = format!("{}/iperf3", lab.get("NET_BIN"));
        recorder.command("lan", "taskset -c 1 iperf3 -s");
        let words = lan.enter();
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["taskset", "-c", "1", &program, "-s"]).collect();
        let server = Process::start(&words, &[]);
        // It has port 5201, in hexadecimal digits.
        let sockets = || std::fs::read_to_string(format!("/proc/{}/net/tcp6", server.pid())).ok();
        let ready = within(SERVER_WITHIN, || sockets()?.contains(":1451 ").then_some(()));
        ready.unwrap_or_else(|| panic!("no iperf3:\n{}", server.tail()));
        Self { host, _lan: lan, _server: server, folder: TempDir::with_prefix("guestwire-compare-").unwrap() }
    }

    /// Starts a guest, which must end before what switches for it, if that is a process.
    fn attach(&self, vmm: Vmm, side: &str, lab: &Lab, recorder: &mut Recorder) -> (Option<Daemon>, Guest) {
        let plan = Plan::new(vmm, 1).under(&["taskset", "-c", "0"]);
        let (daemon, plan, wire) = if side == PEER {
            for line in ["tuntap add t1 mode tap", "link set t1 master br0 up"] {
                recorder.command(PEER, &format!("ip {line}"));
                self.host.ip(line);
            }
            (None, plan.under(&self.host.enter().each_ref().map(String::as_str)), Wire::Tap("t1".to_owned()))
        } else {
            recorder.command("guestwire", "guestwire bridged --bridge br0 --socket-path net.sock");
            let daemon = Daemon::run(&self.host.enter(), "bridged", &["--bridge", "br0"]);
            let wire = Wire::Socket(daemon.socket());
            (Some(daemon), plan, wire)
        };
        let guest = plan.start_on(lab, &wire, self.folder.path());
        recorder.command(&format!("lan on {side}"), guest.command_line());
        let mut guest = guest.booted();
        guest.ok(&format!(
            "for n in 1 2 3 4 5 6 7 8 9 10; do ping -c 1 -W 1 {ADDRESS} && exit 0; sleep 1; done; exit 1"
        ));
        (daemon, guest)
    }
}

/// One TCP stream.
fn measure(guest: &mut Guest, direction: &str, seconds: u32) -> Vec<Figure> {
    let command = format!("iperf3 -c {ADDRESS} -t {seconds} -i 0 -J {direction}");
    let before = busy_seconds();
    let outcome = guest.run(&command, COMMAND_WITHIN + Duration::from_secs(seconds.into()));
    let busy = busy_seconds() - before;
    let figures = || {
        let json = json(&outcome.output)?;
        let of = |name: &str| json.pointer(&format!("/end/sum_received/{name}"))?.as_f64();
        let (rate, gigabytes) = (of("bits_per_second")? / 1e9, of("bytes")? / 1e9);
        Some(vec![("received", "Gb/s", rate), ("cpu-per-gb", "s", busy / gigabytes)])
    };
    figures().unwrap_or_else(|| guest.fail(&format!("ran `{command}`, and that measured nothing:\n{}", outcome.output)))
}
