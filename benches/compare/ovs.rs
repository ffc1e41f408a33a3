//! Open vSwitch with DPDK as the switch of guests: a bridge that learns, its ports vhost-user.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, run, within};
use crate::recorder::Recorder;
use crate::vm::lab::Lab;

/// Longer than its database may take to listen.
const DATABASE_WITHIN: Duration = Duration::from_secs(10);
/// Longer than it may take to take its memory, or to make hundreds of ports.
const START_WITHIN: Duration = Duration::from_secs(120);
/// The socket that it answers questions on.
const CONTROL: &str = "control.sock";
/// How ports are added, as one would type it.
const ADD_PORT: &str =
    "add-port br0 pN -- set Interface pN type=dpdkvhostuser (or dpdkvhostuserclient options:vhost-server-path=SOCKET)";
/// MiB of huge pages: with less, its pool of buffers leaves nothing for the tables of a port.
const MEMORY: u32 = 3072;

/// A running ovs-vswitchd with its database. Everything that it writes is in a folder of its own.
pub(crate) struct Ovs {
    // In this order, so that the switch ends before its database.
    switch: Process,
    _database: Process,
    folder: TempDir,
    programs: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Ovs {
    /// One that polls on core 1, its other threads on core 0.
    pub(crate) fn start(lab: &Lab, segmentation: bool, recorder: &mut Recorder) -> Self {
        let programs = PathBuf::from(lab.get("PEERS_BIN"));
        let folder = TempDir::with_prefix("guestwire-ovs-").unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let program = |name: &str| programs.join(name).to_str().unwrap().to_owned();
        let names = ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"];
        let mut environment: Vec<_> =
            names.into_iter().map(|name| (name, folder.path().to_str().unwrap().to_owned())).collect();
        environment.push(("OVS_PKGDATADIR", format!("{}/usr/share/openvswitch", lab.get("PEERS"))));
        let schema = format!("{}/usr/share/openvswitch/vswitch.ovsschema", lab.get("PEERS"));
        run(&[&program("ovsdb-tool"), "create", &at("conf.db"), &schema], &environment);
        let remote = format!("--remote=punix:{}", at("db.sock"));
        let database = Process::start(&[&program("ovsdb-server"), &at("conf.db"), &remote], &environment);
        within(DATABASE_WITHIN, || Path::new(&at("db.sock")).exists().then_some(()))
            .unwrap_or_else(|| panic!("no database of Open vSwitch's:\n{}", database.tail()));
        let settings = settings(segmentation);
        recorder.command("ovs-vsctl set Open_vSwitch .", &settings.join(" "));
        let set: Vec<&str> =
            ["--no-wait", "set", "Open_vSwitch", "."].into_iter().chain(settings.iter().map(String::as_str)).collect();
        control(&programs, &environment, &at("db.sock"), &["--no-wait", "init"]);
        control(&programs, &environment, &at("db.sock"), &set);
        let unixctl = format!("--unixctl={}", at(CONTROL));
        let words = [program("ovs-vswitchd-dpdk"), format!("unix:{}", at("db.sock")), unixctl];
        recorder.command("ovs", &words.join(" "));
        let switch = Process::start(&words.each_ref().map(String::as_str), &environment);
        let mut ovs = Self { switch, _database: database, folder, programs, environment };
        let bridge = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"];
        recorder.command("ovs-vsctl", &bridge.join(" "));
        recorder.command("ovs-vsctl, for each port", ADD_PORT);
        ovs.set(&bridge);
        ovs
    }

    /// Adds a port that connects to the vhost-user frontend, or the proxy for one, that listens at `path`.
    pub(crate) fn add_connecting_port(&mut self, name: &str, path: &Path) {
        let option = format!("options:vhost-server-path={}", path.display());
        self.set(&["add-port", "br0", name, "--", "set", "Interface", name, "type=dpdkvhostuserclient", &option]);
    }

    /// Adds so many ports that listen for a vhost-user frontend each; where. At once, since the switch goes through all
    /// that it has for each change.
    pub(crate) fn add_listening_ports(&mut self, count: usize) -> Vec<PathBuf> {
        let names: Vec<String> = (0..count).map(|port| format!("p{port}")).collect();
        let add = |name| ["--", "add-port", "br0", name, "--", "set", "Interface", name, "type=dpdkvhostuser"];
        let words: Vec<&str> = names.iter().flat_map(|name| add(name)).collect();
        self.set(&words[1..]);
        let paths: Vec<PathBuf> = names.iter().map(|name| self.folder.path().join(name)).collect();
        for path in &paths {
            within(START_WITHIN, || path.exists().then_some(()))
                .unwrap_or_else(|| panic!("Open vSwitch has no {}:\n{}", path.display(), self.switch.tail()));
        }
        paths
    }

    /// Lets frames for an MTU of `mtu` pass through so many of its listening ports.
    pub(crate) fn set_mtu(&mut self, ports: usize, mtu: usize, recorder: &mut Recorder) {
        let request = format!("mtu_request={mtu}");
        recorder.command("ovs-vsctl, for each port", &format!("set Interface pN {request}"));
        for port in 0..ports {
            self.set(&["set", "Interface", &format!("p{port}"), &request]);
        }
    }

    /// Forgets what its polling thread has counted.
    pub(crate) fn forget_work(&self) {
        self.ask("dpif-netdev/pmd-stats-clear");
    }

    /// Nanoseconds for each frame in rounds that found any, since it was last told to forget.
    pub(crate) fn busy_ns(&self) -> Option<f64> {
        let answer = self.ask("dpif-netdev/pmd-stats-show");
        let (_, rest) = answer.split_once("avg processing cycles per packet: ")?;
        let cycles: f64 = rest.split_whitespace().next()?.parse().ok()?;
        let processors = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        // Of the counter that it counts with, as far as the machine says.
        let line = processors.lines().find(|line| line.starts_with("cpu MHz"))?;
        Some(cycles * 1e3 / line.split_once(": ")?.1.parse::<f64>().ok()?)
    }

    fn ask(&self, question: &str) -> String {
        let program = self.programs.join("ovs-appctl");
        let control = self.folder.path().join(CONTROL);
        run(&[program.to_str().unwrap(), "-t", control.to_str().unwrap(), question], &self.environment)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.switch.pid()
    }

    /// Has its database changed, and waits until the switch is as the database says.
    fn set(&mut self, words: &[&str]) {
        let wait = format!("--timeout={}", START_WITHIN.as_secs());
        let words: Vec<&str> = [wait.as_str()].into_iter().chain(words.iter().copied()).collect();
        let socket = self.folder.path().join("db.sock");
        control(&self.programs, &self.environment, socket.to_str().unwrap(), &words);
        assert!(!self.switch.has_ended(), "Open vSwitch has ended:\n{}", self.switch.tail());
    }
}

/// What it is told before it starts. Two cores are all there are: the guests' own are said in `guests.rs`.
fn settings(segmentation: bool) -> Vec<String> {
    vec![
        "other_config:dpdk-init=true".to_owned(),
        "other_config:dpdk-lcore-mask=0x1".to_owned(),
        "other_config:pmd-cpu-mask=0x2".to_owned(),
        format!("other_config:dpdk-socket-mem={MEMORY}"),
        format!("other_config:dpdk-socket-limit={MEMORY}"),
        // No file of huge pages stays behind, whatever becomes of it.
        "other_config:dpdk-extra=\"--no-pci --in-memory\"".to_owned(),
        format!("other_config:userspace-tso-enable={segmentation}"),
    ]
}

fn control(programs: &Path, environment: &[(&'static str, String)], socket: &str, words: &[&str]) {
    let program = programs.join("ovs-vsctl");
    let database = format!("--db=unix:{socket}");
    let words: Vec<&str> = [program.to_str().unwrap(), &database].into_iter().chain(words.iter().copied()).collect();
    run(&words, environment);
}
