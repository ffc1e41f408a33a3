//! What switches between guests: guestwire or one of its peers, with a way to attach to each.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::filter::{Filter, NOT_FOR_USER_MODE_LINUX};
use crate::ovs::Ovs;
use crate::process::{Process, run, within};
use crate::recorder::Recorder;
use crate::vm::daemon::Daemon;
use crate::vm::guest::{Plan, Vmm, Wire};
use crate::vm::lab::Lab;

/// Longer than a namespace may take to be made.
const NAMESPACE_WITHIN: Duration = Duration::from_secs(5);

/// Who switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Guestwire,
    /// The kernel's own bridge, a tap device for each guest.
    Bridge,
    /// Open vSwitch with DPDK; with TSO, which is off unless asked for.
    Ovs {
        segmentation: bool,
    },
}

impl Side {
    /// The peer of this name.
    pub(crate) fn peer(name: &str) -> Option<Self> {
        match name {
            "bridge" => Some(Self::Bridge),
            "ovs-tso" => Some(Self::Ovs { segmentation: true }),
            "ovs" => Some(Self::Ovs { segmentation: false }),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Guestwire => "guestwire",
            Self::Bridge => "bridge",
            Self::Ovs { segmentation: true } => "ovs-tso",
            Self::Ovs { segmentation: false } => "ovs",
        }
    }
}

/// A running switch for two guests. They must end before it does.
pub(crate) struct Switch {
    running: Running,
    folder: TempDir,
}

enum Running {
    Guestwire(Daemon),
    Bridge(Process),
    Ovs { _filters: Vec<Filter>, ovs: Ovs },
}

impl Switch {
    /// Starts it for two guests under this VMM.
    pub(crate) fn start(side: Side, vmm: Vmm, lab: &Lab, recorder: &mut Recorder) -> Self {
        let folder = TempDir::with_prefix("guestwire-compare-").unwrap();
        let running = match side {
            Side::Guestwire => {
                recorder.command("guestwire", "guestwire internal --socket-path net.sock");
                Running::Guestwire(Daemon::with(&[]))
            }
            Side::Bridge => Running::Bridge(bridge(recorder)),
            Side::Ovs { segmentation } => {
                let mut ovs = Ovs::start(lab, segmentation, recorder);
                let mut filters = Vec::new();
                let masked = if matches!(vmm, Vmm::UmlNew) { NOT_FOR_USER_MODE_LINUX } else { 0 };
                for number in [1, 2] {
                    let at = |end: &str| folder.path().join(format!("{end}-{number}.sock"));
                    let (backend, frontend) = (at("backend"), at("frontend"));
                    filters.push(Filter::start(&backend, &frontend, masked).unwrap());
                    ovs.add_connecting_port(&format!("p{number}"), &backend);
                }
                Running::Ovs { _filters: filters, ovs }
            }
        };
        Self { running, folder }
    }

    /// What guest `number`, 1 or 2, is attached to, and the plan with what it takes to get there.
    pub(crate) fn attach(&self, plan: Plan, number: u8) -> (Plan, Wire) {
        match &self.running {
            Running::Guestwire(daemon) => (plan, Wire::Socket(daemon.socket())),
            Running::Bridge(holder) => {
                let plan = plan.under(&["nsenter", "--net", "--target", &holder.pid().to_string()]);
                (plan, Wire::Tap(format!("t{number}")))
            }
            Running::Ovs { .. } => (plan, Wire::Socket(self.folder.path().join(format!("frontend-{number}.sock")))),
        }
    }

    /// The process that switches, if there is one.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.running {
            Running::Guestwire(daemon) => Some(daemon.pid()),
            Running::Bridge(_) => None,
            Running::Ovs { ovs, .. } => Some(ovs.pid()),
        }
    }

    /// Has guestwire's threads, if it is that, run on one core.
    pub(crate) fn pin(&self, core: &str, recorder: &mut Recorder) {
        if let Running::Guestwire(daemon) = &self.running {
            pin(daemon, core, recorder);
        }
    }

    /// A folder for the guests' own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Has guestwire's threads run on these cores, and those that it makes.
pub(crate) fn pin(daemon: &Daemon, cores: &str, recorder: &mut Recorder) {
    recorder.command("guestwire", &format!("taskset -a -c -p {cores} PID"));
    run(&["taskset", "-a", "-c", "-p", cores, &daemon.pid().to_string()], &[]);
}

/// A bridge with the tap devices `t1` and `t2`, in a network namespace that a process holds: the machine's own network
/// is not touched, and the namespace goes with its last process, however we end.
fn bridge(recorder: &mut Recorder) -> Process {
    let holder = Process::start(&["unshare", "--net", "sleep", "infinity"], &[]);
    let target = holder.pid().to_string();
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
    // The name changes when the program has replaced the one that made the namespace.
    let ready = || {
        let name = std::fs::read_to_string(format!("/proc/{target}/comm")).ok()?;
        (name.trim() == "sleep" && namespace(&target)? != namespace("self")?).then_some(())
    };
    within(NAMESPACE_WITHIN, ready).unwrap_or_else(|| panic!("no network namespace:\n{}", holder.tail()));
    for line in [
        "link add br0 type bridge",
        "tuntap add dev t1 mode tap",
        "tuntap add dev t2 mode tap",
        "link set t1 master br0 up",
        "link set t2 master br0 up",
        "link set br0 up",
    ] {
        recorder.command("bridge", &format!("ip {line}"));
        let words = ["nsenter", "--net", "--target", &target, "ip"].into_iter().chain(line.split(' '));
        run(&words.collect::<Vec<_>>(), &[]);
    }
    holder
}
