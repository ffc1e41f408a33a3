//! The program as its users meet it: command lines, sockets, signals, shortages. Each test runs the real binary.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BINARY: &str = env!("CARGO_BIN_EXE_guestwire");
/// What the slowest machine needs for anything at all.
const PATIENCE: Duration = Duration::from_secs(20);

fn run(arguments: &str) -> Output {
    Command::new(BINARY).args(arguments.split_whitespace()).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A stream of lines, read as they come.
struct Lines {
    incoming: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (outgoing, incoming) = channel();
        thread::spawn(move || BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|l| outgoing.send(l)));
        Self { incoming, seen: Vec::new() }
    }

    /// Waits for a line, which must come after those waited for before.
    fn wait_for(&mut self, needle: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(needle) {
                        return line;
                    }
                }
                Err(e) => panic!("no line with {needle:?} ({e}); there were:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Everything until the stream ends.
    fn all(mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.seen,
                Err(e) => panic!("the stream does not end ({e}); there were:\n{}", self.seen.join("\n")),
            }
        }
    }
}

/// A running guestwire. Killed when dropped.
struct Daemon {
    child: Child,
    out: Lines,
    err: Lines,
}

impl Daemon {
    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (Lines::of(child.stdout.take().unwrap()), Lines::of(child.stderr.take().unwrap()));
        Self { child, out, err }
    }

    fn start(arguments: &[&str]) -> Self {
        Self::spawn(Command::new(BINARY).args(arguments).stdin(Stdio::null()))
    }

    /// On one socket, and ready for VMs.
    fn on(socket: &Path, more: &[&str]) -> Self {
        let mut daemon = Self::start(&[&["internal", "--socket-path", socket.to_str().unwrap()], more].concat());
        daemon.out.wait_for("after guestwire was restarted");
        daemon
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it, and returns what it wrote: standard output, standard error.
    fn end(mut self) -> (Vec<String>, Vec<String>) {
        self.signal(Signal::SIGTERM);
        assert!(self.wait().success());
        let empty = || Lines { incoming: channel().1, seen: Vec::new() };
        (std::mem::replace(&mut self.out, empty()).all(), std::mem::replace(&mut self.err, empty()).all())
    }

    /// How often its threads went to sleep so far, all together.
    fn sleeps(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let sleeps = |status: String| {
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned));
            line.map_or(0, |count| count.trim().parse::<u64>().unwrap())
        };
        tasks.map(|task| sleeps(status(task.unwrap()))).sum()
    }

    /// Waits for a second in which it does not wake up.
    fn falls_asleep(&self) {
        // The last thread may still be on its way to sleep.
        let deadline = Instant::now() + PATIENCE;
        let mut before = self.sleeps();
        loop {
            thread::sleep(Duration::from_secs(1));
            let after = self.sleeps();
            if after == before {
                break;
            }
            assert!(Instant::now() < deadline, "it wakes up all the time");
            before = after;
        }
    }

    /// CPU time used so far, in ticks of 10 ms.
    fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn help_is_complete() {
    let help = run("--help");
    assert!(help.status.success());
    let help = text(&help.stdout);
    for needed in ["internal", "--print-capabilities", "Exit codes", "Examples", "Signals", "GUESTWIRE_LOG"] {
        assert!(help.contains(needed), "{needed}: {help}");
    }
    let help = run("internal --help");
    assert!(help.status.success());
    let help = text(&help.stdout);
    for needed in [
        "--socket-path <PATH>",
        "--connect <PATH>",
        "--fd <N>",
        "--socket-mode <OCTAL>",
        "--socket-group <GROUP>",
        "--mtu <N>",
        "--offload <LIST>",
        "--stats <FILE>",
        "--stats-interval <SECONDS>",
        "--verbose",
        "--quiet",
        "Examples",
    ] {
        assert!(help.contains(needed), "{needed}: {help}");
    }
    assert!(text(&run("--version").stdout).starts_with("guestwire 0."));
}

#[test]
fn bad_command_lines_get_one_line_and_exit_code_2() {
    for bad in [
        "",
        "internal",
        "intrenal",
        "nat",
        "nat --socket-path a --forward 22",
        "nat --socket-path a --forward tcp:2222:22 --forward tcp:2222:23",
        "nat --socket-path a --subnet 10.0.2.15/24",
        "nat --socket-path a --tap t0",
        "bridged --socket-path a",
        "bridged --nic eth0",
        "bridged --nic eth0 --bridge br0 --socket-path a",
        "bridged --bridge br0 --mac-nat --socket-path a",
        "host-only --socket-path a --subnet 192.168.56.7/24",
        "host-only --socket-path a --tap t0 --tap-fd 5",
        "host-only --socket-path a --dhcp-range 10.0.0.1-10.0.0.9",
        "host-only --socket-path a --no-dhcp --lease-time 1h",
        "internal --socket-path a --dhcp",
        "internal --socket-path a --subnet 10.0.0.0/24",
        "run",
        "check",
        "internal --soket-path a",
        "internal --socket-path",
        "internal --socket-path a --mtu 67",
        "internal --socket-path a --mtu 65536",
        "internal --socket-path a --offload lro=off",
        "internal --socket-path a --offload off,tso=on",
        "internal --socket-path a --socket-mode 0888",
        "internal --socket-path a --socket-path a",
        "internal --socket-path ./a --socket-path a",
        "internal --fd 5 --socket-mode 0660",
        "internal --socket-path a --fd 5",
        "internal --fd 1",
        "internal --fd five",
        "internal --connect a --socket-group kvm",
        "internal --socket-path a --stats-interval 1",
        "internal --socket-path a --stats - --stats-interval 0",
        "internal --socket-path a extra",
        "--verbose --quiet internal --socket-path a",
    ] {
        let output = run(bad);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{bad}: {said}");
        assert_eq!(said.lines().count(), 1, "{bad}: {said}");
        assert!(said.starts_with("guestwire: error: ") && said.contains("--help"), "{bad}: {said}");
        assert!(output.stdout.is_empty(), "{bad}");
    }
}

#[test]
fn a_descriptor_that_is_not_open_is_a_bad_command_line() {
    for line in ["internal --fd 77", "host-only --socket-path /tmp/never --tap-fd 77"] {
        let output = run(&format!("-q {line}"));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let (_, flag) = line.rsplit_once(" --").unwrap();
        assert!(said.lines().count() == 1 && said.contains(&format!(" --{flag}: it is not open")), "{said}");
    }
}

#[test]
fn help_may_be_asked_for_by_a_word() {
    for (word, flag) in [("help", "--help"), ("help internal", "internal --help")] {
        assert_eq!(run(word), run(flag), "{word}");
    }
}

#[test]
fn a_bad_log_filter_is_a_bad_command_line() {
    let folder = Folder::new();
    let mut command = Command::new(BINARY);
    command.env("GUESTWIRE_LOG", "guestwire=loud").args(["internal", "--socket-path"]).arg(folder.path("s"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("GUESTWIRE_LOG"));
}

#[test]
fn capabilities_follow_the_conventions() {
    for line in ["--print-capabilities", "internal --print-capabilities", "--nonsense --print-capabilities --fd x"] {
        let output = run(line);
        assert!(output.status.success(), "{line}");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value, serde_json::json!({"type": "net"}));
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn what_cannot_start_says_why_and_exits_with_1() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "").unwrap();
    let in_folder = |name: &str| folder.path(name).to_str().unwrap().to_owned();
    for (arguments, says) in [
        (format!("internal --socket-path {}", in_folder("missing/lab.sock")), "create the directory"),
        (format!("internal --socket-path {}", in_folder("file")), "not a socket"),
        (format!("internal --socket-path {} --socket-group no-such-group", in_folder("s")), "no-such-group"),
        (format!("internal --socket-path {} --stats {}", in_folder("s"), in_folder("missing/x")), "statistics"),
    ] {
        let output = run(&format!("-q {arguments}"));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(says), "{arguments}: {said}");
    }
    assert_eq!(folder.names(), ["file"], "nothing is left of what could not start");
}

#[test]
fn a_second_daemon_is_refused_by_name() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let daemon = Daemon::on(&socket, &[]);
    let output = run(&format!("-q internal --socket-path {}", socket.display()));
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&format!("{} is in use by process {}", socket.display(), daemon.child.id())), "{said}");
    UnixStream::connect(&socket).expect("the first still listens");
}

#[test]
fn mode_and_group_are_those_asked_for() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let default = Daemon::on(&socket, &[]);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, 0o600);
    default.end();
    // Without privileges only a group of our own can be given.
    let gid = if nix::unistd::geteuid().is_root() { 1 } else { nix::unistd::getegid().as_raw() };
    let group = nix::unistd::Group::from_gid(gid.into()).unwrap();
    for group in [Some(gid.to_string()), group.map(|g| g.name)].into_iter().flatten() {
        let _daemon = Daemon::on(&socket, &["--socket-mode", "0660", "--socket-group", &group]);
        let metadata = fs::metadata(&socket).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o7777, metadata.gid()), (0o660, gid), "{group}");
        assert!(metadata.file_type().is_socket());
    }
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let mut killed = Daemon::on(&socket, &[]);
    killed.child.kill().unwrap();
    killed.wait();
    let mut left = folder.names();
    left.sort();
    assert_eq!(left, ["lab.sock", "lab.sock.lock"]);
    let daemon = Daemon::on(&socket, &[]);
    UnixStream::connect(&socket).unwrap();
    daemon.end();
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[test]
fn a_name_that_somebody_else_took_over_is_left_alone() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let daemon = Daemon::on(&socket, &[]);
    fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    daemon.end();
    assert_eq!(folder.names(), ["lab.sock"]);
}

#[test]
fn sigterm_and_sigint_end_in_under_100_ms() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::on(&socket, &["--stats", folder.path("stats").to_str().unwrap()]);
        let vms: Vec<_> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        (0..8).for_each(|_| drop(daemon.err.wait_for("a VM has connected")));
        let start = Instant::now();
        daemon.signal(signal);
        let status = daemon.wait();
        let took = start.elapsed();
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_millis(100), "{took:?}");
        for mut vm in vms {
            assert_eq!(vm.read(&mut [0; 1]).unwrap(), 0, "the connection has ended");
        }
        assert_eq!(folder.names(), ["stats"]);
    }
}

#[test]
fn sighup_is_not_the_end() {
    let folder = Folder::new();
    let mut daemon = Daemon::on(&folder.path("lab.sock"), &[]);
    daemon.signal(Signal::SIGHUP);
    daemon.err.wait_for("SIGHUP");
    daemon.end();
}

#[test]
fn every_connection_is_a_port_with_a_number_of_its_own() {
    let folder = Folder::new();
    let (one, two) = (folder.path("1.sock"), folder.path("2.sock"));
    let mut daemon = Daemon::on(&one, &["--socket-path", two.to_str().unwrap()]);
    for (number, path) in [&one, &two, &one].into_iter().enumerate() {
        let vm = UnixStream::connect(path).unwrap();
        let line = daemon.err.wait_for("a VM has connected");
        assert!(line.contains(&format!("port={number} ")), "{line}");
        drop(vm);
        daemon.err.wait_for("detached");
    }
    daemon.end();
}

#[test]
fn a_vmm_that_listens_is_met_whenever_it_is_there() {
    let folder = Folder::new();
    let socket = folder.path("vm.sock");
    let mut daemon = Daemon::start(&["internal", "--connect", socket.to_str().unwrap()]);
    daemon.err.wait_for("trying again until it is there");
    let before = daemon.sleeps();
    // Attempts after 100, 300, 700, 1500 ms: more would be a spin.
    thread::sleep(Duration::from_millis(1000));
    assert!(daemon.sleeps() - before < 8, "{} times awake", daemon.sleeps() - before);
    let listener = UnixListener::bind(&socket).unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        let (vm, _) = listener.accept().unwrap();
        assert!(start.elapsed() < Duration::from_millis(1900), "{:?}", start.elapsed());
        daemon.err.wait_for("a VM has connected");
        drop(vm);
        daemon.err.wait_for("detached");
    }
    let (_, log) = daemon.end();
    assert_eq!(log.iter().filter(|line| line.contains("trying again until")).count(), 1, "{log:?}");
}

/// Runs guestwire with `fd` as its descriptor 3.
fn with_descriptor(fd: OwnedFd) -> Daemon {
    let script = format!("exec {BINARY} internal --fd 3 3<&0 0</dev/null");
    Daemon::spawn(Command::new("sh").args(["-c", &script]).stdin(Stdio::from(fd)))
}

#[test]
fn a_listening_descriptor_takes_vms() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.path("lab.sock")).unwrap();
    let mut daemon = with_descriptor(listener.into());
    for number in 0..2 {
        let _vm = UnixStream::connect(folder.path("lab.sock")).unwrap();
        let line = daemon.err.wait_for("a VM has connected");
        assert!(line.contains(&format!("port={number} ")), "{line}");
    }
    daemon.end();
    assert_eq!(folder.names(), ["lab.sock"], "a name that is not ours stays");
}

#[test]
fn a_connected_descriptor_is_one_vm_and_the_end_of_it_the_end() {
    let (vm, other) = UnixStream::pair().unwrap();
    let mut daemon = with_descriptor(other.into());
    daemon.err.wait_for("a VM has connected on descriptor 3");
    drop(vm);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused() {
    let mut daemon = with_descriptor(fs::File::open("/dev/null").unwrap().into());
    daemon.err.wait_for("--fd 3: it is not a Unix stream socket");
    assert_eq!(daemon.wait().code(), Some(2));
}

#[test]
fn a_shortage_of_descriptors_pauses_the_listener() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let script = format!("ulimit -n 64; exec {BINARY} internal --socket-path {}", socket.display());
    let mut daemon = Daemon::spawn(Command::new("sh").args(["-c", &script]).stdin(Stdio::null()));
    let line = daemon.err.wait_for("room for about");
    assert!(line.contains("now=64") && line.contains("about 3 ports"), "{line}");
    daemon.out.wait_for("after guestwire was restarted");
    let mut vms: Vec<_> = (0..64).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    daemon.err.wait_for("no more VMs can come in for now");
    let let_in = daemon.err.seen.iter().filter(|line| line.contains("a VM has connected")).count();
    assert!(let_in > 0 && let_in < 64, "{let_in}");
    let ticks = daemon.cpu_ticks();
    // Long enough for the listener to try again once or twice by itself.
    thread::sleep(Duration::from_millis(1500));
    assert!(daemon.cpu_ticks() - ticks <= 2, "{} ticks", daemon.cpu_ticks() - ticks);
    // One goes, and one of those that wait comes in.
    drop(vms.remove(0));
    daemon.err.wait_for("a VM has connected");
    // All go: everything is as before.
    drop(vms);
    let number = loop {
        let _vm = UnixStream::connect(&socket).unwrap();
        let line = daemon.err.wait_for("a VM has connected");
        let number = line.split("port=").nth(1).unwrap().split(' ').next().unwrap().parse::<u32>().unwrap();
        if number >= 64 {
            break number;
        }
    };
    assert!(number >= 64);
    let (_, log) = daemon.end();
    // Perhaps once more, when all had been let in and then too many were; not for each that waits.
    let warned = log.iter().filter(|line| line.contains("no more VMs")).count();
    assert!((1..=4).contains(&warned), "{}", log.join("\n"));
}

#[test]
fn an_idle_daemon_does_not_wake_up() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let mut daemon = Daemon::on(&socket, &[]);
    let _vms: Vec<_> = (0..4).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    (0..4).for_each(|_| drop(daemon.err.wait_for("a VM has connected")));
    daemon.falls_asleep();
}

#[test]
fn statistics_are_lines_of_json_and_nothing_else() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let path = socket.to_str().unwrap();
    let mut daemon = Daemon::start(&["internal", "--socket-path", path, "--stats", "-", "--stats-interval", "0.02"]);
    daemon.err.wait_for("after guestwire was restarted");
    let _stays = UnixStream::connect(&socket).unwrap();
    daemon.err.wait_for("a VM has connected");
    let goes = UnixStream::connect(&socket).unwrap();
    daemon.err.wait_for("a VM has connected");
    daemon.out.wait_for(r#""port":1,"#);
    drop(goes);
    daemon.out.wait_for(r#""port":1,"ended":true"#);
    let (lines, _) = daemon.end();
    let values: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let times: Vec<f64> = values.iter().map(|value| value["time"].as_f64().unwrap()).collect();
    assert!(times.is_sorted() && times.len() > 2, "{times:?}");
    assert!(values.iter().all(|value| value["network"] == "internal"));
    let last = &values.last().unwrap()["ports"];
    assert_eq!((last.as_array().unwrap().len(), &last[0]["port"], &last[0]["tx_frames"]), (1, &0.into(), &0.into()));
}

#[test]
fn statistics_that_cannot_be_written_end_nothing() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let mut daemon = Daemon::on(&socket, &["--stats", "/dev/full", "--stats-interval", "0.01"]);
    daemon.err.wait_for("statistics cannot be written");
    let _vm = UnixStream::connect(&socket).unwrap();
    daemon.err.wait_for("a VM has connected");
    thread::sleep(Duration::from_millis(200));
    let (_, log) = daemon.end();
    assert_eq!(log.iter().filter(|line| line.contains("cannot be written")).count(), 1, "{log:?}");
}

#[test]
fn statistics_into_a_closed_pipe_end_nothing() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let script = format!("exec {BINARY} internal --socket-path {} --stats - --stats-interval 0.01", socket.display());
    let mut child =
        Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let err = Lines::of(child.stderr.take().unwrap());
    let mut daemon = Daemon { child, out: Lines { incoming: channel().1, seen: Vec::new() }, err };
    daemon.err.wait_for("statistics cannot be written");
    let _vm = UnixStream::connect(&socket).unwrap();
    daemon.err.wait_for("a VM has connected");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn the_printed_lines_name_this_socket_and_mtu() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let daemon = Daemon::on(&socket, &["--mtu", "9000"]);
    let (out, _) = daemon.end();
    let out = out.join("\n");
    for needed in [
        "-object memory-backend-memfd,id=mem0,size=1G,share=on",
        &format!("-chardev socket,id=wire0,path={},reconnect-ms=1000", socket.display()),
        "-netdev vhost-user,id=net0,chardev=wire0",
        "-device virtio-net-pci,netdev=net0,mac=02:",
        "host_mtu=9000",
        "--memory size=1G,shared=on",
        &format!("vhost_user=true,socket={},vhost_mode=client", socket.display()),
    ] {
        assert!(out.contains(needed), "{needed}: {out}");
    }
}

#[test]
fn a_nat_network_needs_no_privileges_and_says_how_to_attach_vms() {
    let folder = Folder::new();
    let (socket, leases) = (folder.path("net.sock"), folder.path("leases"));
    let [path, leases] = [&socket, &leases].map(|path| path.to_str().unwrap());
    let mut daemon = Daemon::start(&["nat", "--socket-path", path, "--leases", leases]);
    daemon.err.wait_for("a network of VMs that reach what the host reaches");
    daemon.out.wait_for(&format!("VMs connect to {path}"));
    daemon.out.wait_for("after guestwire was restarted");
    daemon.end();
}

/// What a command line of QEMU says of the NIC and the memory, without what differs from VM to VM.
fn attachment(line: &str, socket: &str) -> BTreeSet<String> {
    let line = line.replace(socket, "$SOCKET").replace("wire0", "chr0").replace("mem0", "mem").replace("=1G", "=256M");
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_about_it = |flag: &str| ["-machine", "-object", "-chardev", "-netdev", "-device"].contains(&flag);
    let parts = |value: &str| {
        let parts = value.split(',').filter(|part| *part != "id=nic0");
        parts.map(|part| if part.starts_with("mac=") { "mac=$MAC" } else { part }).collect::<Vec<_>>().join(",")
    };
    words.windows(2).filter(|pair| is_about_it(pair[0])).map(|pair| format!("{} {}", pair[0], parts(pair[1]))).collect()
}

#[test]
fn the_examples_attach_vms_as_the_printed_lines_do_in_every_mode() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let (out, _) = Daemon::on(&socket, &[]).end();
    let printed = attachment(&out.join("\n"), socket.to_str().unwrap());
    let without = |side: &str| printed.iter().filter(|word| !word.ends_with(side)).cloned().collect::<BTreeSet<_>>();
    let example = |mode: &str, name: &str| {
        let path = format!("{}/qemu-examples/{mode}/{name}.cmd", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    for (version, other) in [("", ",reconnect=1"), ("before-9.2-", ",reconnect-ms=1000")] {
        let one = example("internal", &format!("qemu-{version}1-queue"));
        assert_eq!(attachment(&one, "$SOCKET"), without(other), "qemu-{version}1-queue");
        let four = example("internal", &format!("qemu-{version}4-queues"));
        let fewer = [" -smp 4", ",queues=4", ",mq=on,vectors=10"].iter().fold(four.clone(), |line, more| {
            assert!(line.contains(more), "{more}: {line}");
            line.replace(more, "")
        });
        assert_eq!(fewer, one, "qemu-{version}4-queues");
    }
    for mode in ["host-only", "bridged"] {
        for name in
            ["qemu-1-queue", "qemu-4-queues", "qemu-before-9.2-1-queue", "qemu-before-9.2-4-queues", "cloud-hypervisor"]
        {
            assert_eq!(example(mode, name), example("internal", name), "{mode}/{name}.cmd");
        }
    }
}

/// A network whose log goes to `stderr`.
fn logging_to(stderr: impl Into<Stdio>, socket: &Path) -> Daemon {
    let mut command = Command::new(BINARY);
    command.args(["internal", "-v", "--socket-path"]).arg(socket).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
    let out = Lines::of(child.stdout.take().unwrap());
    let mut daemon = Daemon { child, out, err: Lines { incoming: channel().1, seen: Vec::new() } };
    daemon.out.wait_for("after guestwire was restarted");
    daemon
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let folder = Folder::new();
    let (reader, gone) = nix::unistd::pipe().unwrap();
    drop(reader);
    let full: Stdio = std::fs::File::options().write(true).open("/dev/full").unwrap().into();
    for (name, stderr) in [("full", full), ("gone", gone.into())] {
        let socket = folder.path(name);
        let mut daemon = logging_to(stderr, &socket);
        for _ in 0..20 {
            // It answers, so it lives.
            let mut vm = UnixStream::connect(&socket).unwrap();
            vm.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            vm.read_exact(&mut [0; 20]).unwrap();
        }
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.wait().success(), "{name}");
    }
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let folder = Folder::new();
    let socket = folder.path("lab.sock");
    let (reader, writer) = nix::unistd::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut daemon = logging_to(writer, &socket);
    for _ in 0..200 {
        let mut vm = UnixStream::connect(&socket).unwrap();
        vm.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        vm.read_exact(&mut [0; 20]).unwrap();
    }
    daemon.signal(Signal::SIGTERM);
    let begin = Instant::now();
    assert!(daemon.wait().success());
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    drop(reader);
}

#[test]
fn check_says_what_would_run_and_starts_nothing() {
    let folder = Folder::new();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/guestwire.toml");
    let output = run(&format!("check {example}"));
    assert!(output.status.success() && output.stderr.is_empty());
    let said = text(&output.stdout);
    for needed in [
        "network lab: internal\n  VMs connect to /run/guestwire/lab.sock (mode 0600)\n",
        "network office: host-only\n  connected by the tap gw-office\n  subnet 192.168.57.0/24 and fd",
        "  DHCP gives out 192.168.57.100-192.168.57.199, each for 12h\n",
        "  192.168.57.10 is kept for 52:54:00:00:00:10\n",
        "  port web, MAC 52:54:00:00:00:10, IP 192.168.57.10\n    VMs connect to /run/guestwire/office-web.sock",
        "network lan: bridged\n  connected by the NIC eth0\n",
        "port security off",
        "network net: nat\n  connected by the host's own sockets\n  subnet 10.0.2.0/24 and fd",
        "  the host forwards tcp:127.0.0.1:2222:mail:22\n",
        "  guests do not reach 192.168.0.0/16, 10.0.0.0/8\n",
        "statistics: to /run/guestwire/statistics.json every 1s\nlog: normal\n",
    ] {
        assert!(said.contains(needed), "{needed}: {said}");
    }
    let output = run(&format!("check {example} --output json"));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["networks"][1]["services"]["dhcp"]["lease_seconds"], 43_200);
    assert_eq!(value["networks"][2]["uplink"], serde_json::json!({ "nic": "eth0", "mac_nat": false }));
    assert_eq!(value["networks"][3]["uplink"]["forwards"][1], "tcp:25:mail:25");
    assert_eq!(value["networks"][3]["uplink"]["deny"], serde_json::json!(["192.168.0.0/16", "10.0.0.0/8"]));
    // What is wrong: everything at once.
    let bad = folder.path("bad.toml");
    fs::write(&bad, "[[network]]\nname = \"a\"\nmode = \"intern\"\nsocket-path = \"/a\"\nmtu = 5\n").unwrap();
    let output = run(&format!("check {}", bad.display()));
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stdout);
    assert!(said.contains("bad.toml:3:8: ") && said.contains("3 | mode = \"intern\"\n  |        ^^^^^^^^\n"), "{said}");
    assert!(said.contains("bad.toml:5:7: not an MTU"), "{said}");
    let output = run(&format!("check {} --output json", bad.display()));
    assert_eq!(output.status.code(), Some(2));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["problems"][1]["line"], &value["problems"][1]["column"]), (&5.into(), &7.into()));
    assert_eq!(run("check /missing").status.code(), Some(2));
}

#[test]
fn a_file_that_cannot_run_says_why() {
    let folder = Folder::new();
    let file = folder.path("guestwire.toml");
    let run_file = || run(&format!("-q run --config {}", file.display()));
    fs::write(&file, "[[netwrok]]\n").unwrap();
    let output = run_file();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("did you mean network?"), "{}", text(&output.stderr));
    let socket = folder.path("a.sock");
    let section = format!("[[network]]\nname = \"a\"\nmode = \"MODE\"\nsocket-path = \"{}\"\n", socket.display());
    let nowhere = "bridged\"\nnic = \"nowhere0";
    fs::write(&file, section.replace("MODE", nowhere)).unwrap();
    let output = run_file();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("network a: there is no interface nowhere0"), "{}", text(&output.stderr));
    fs::write(&file, section.replace("MODE", "internal")).unwrap();
    let mut daemon = Daemon::start(&["run", "--config", file.to_str().unwrap()]);
    daemon.out.wait_for("after guestwire was restarted");
    daemon.end();
    assert_eq!(folder.names(), ["guestwire.toml"]);
}

#[test]
fn every_verb_has_help_with_an_example() {
    for verb in ["internal", "host-only", "bridged", "nat", "run", "check"] {
        let help = run(&format!("{verb} --help"));
        assert!(help.status.success(), "{verb}");
        let help = text(&help.stdout);
        assert!(help.contains("Example") && help.contains(&format!("guestwire {verb}")), "{verb}: {help}");
    }
}

#[test]
fn a_declared_port_is_one_vmm_at_a_time_however_they_are_met() {
    let folder = Folder::new();
    let file = folder.path("guestwire.toml");
    let paths = ["a.sock", "b.sock"].map(|name| folder.path(name));
    let listeners = paths.each_ref().map(|path| UnixListener::bind(path).unwrap());
    let section = "[[network]]\nname = \"lab\"\nmode = \"internal\"\n[[network.port]]\nname = \"web\"\n";
    fs::write(&file, format!("{section}connect = {paths:?}\n")).unwrap();
    let mut daemon = Daemon::start(&["run", "--config", file.to_str().unwrap()]);
    daemon.err.wait_for("a VM has connected at ");
    let (first, _) = listeners[0].accept().unwrap();
    daemon.falls_asleep();
    drop(first);
    let line = daemon.err.wait_for("a VM has connected at ");
    assert!(line.contains("b.sock as web"), "{line}");
    let (second, _) = listeners[1].accept().unwrap();
    drop(second);
    let line = daemon.err.wait_for("a VM has connected at ");
    assert!(line.contains("port=2 ") && line.contains("a.sock as web"), "{line}");
    daemon.end();
}

#[test]
fn a_descriptor_survives_a_change_of_its_network() {
    let folder = Folder::new();
    let file = folder.path("guestwire.toml");
    let listener = UnixListener::bind(folder.path("lab.sock")).unwrap();
    let section = "[[network]]\nname = \"lab\"\nmode = \"internal\"\nfd = 3\n";
    fs::write(&file, section).unwrap();
    let script = format!("exec {BINARY} run --config {} 3<&0 0</dev/null", file.display());
    let mut daemon =
        Daemon::spawn(Command::new("sh").args(["-c", &script]).stdin(Stdio::from(OwnedFd::from(listener))));
    daemon.out.wait_for("VMs come in on descriptor 3");
    let mut vm = UnixStream::connect(folder.path("lab.sock")).unwrap();
    daemon.err.wait_for("port=0 ");
    fs::write(&file, format!("{section}mtu = 9000\n")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.err.wait_for("was read again");
    assert_eq!(vm.read(&mut [0; 1]).unwrap(), 0, "the network was made anew");
    let _vm = UnixStream::connect(folder.path("lab.sock")).unwrap();
    daemon.err.wait_for("port=1 ");
    daemon.end();
}

#[test]
fn a_change_that_cannot_be_made_leaves_the_network_as_it_was() {
    let folder = Folder::new();
    let file = folder.path("guestwire.toml");
    let section = |name: &str, more: &str| {
        let socket = folder.path(name);
        format!("[[network]]\nname = \"{name}\"\nmode = \"internal\"\nsocket-path = {socket:?}\n{more}\n")
    };
    fs::write(&file, section("lab", "")).unwrap();
    let script = format!("ulimit -n 80; exec {BINARY} run --config {}", file.display());
    let mut daemon = Daemon::spawn(Command::new("sh").args(["-c", &script]).stdin(Stdio::null()));
    daemon.out.wait_for("after guestwire was restarted");
    let connect = |daemon: &mut Daemon, number: u32| {
        let vm = UnixStream::connect(folder.path("lab")).unwrap();
        daemon.err.wait_for(&format!("port={number} "));
        vm
    };
    let mut vm = connect(&mut daemon, 0);
    // Its session has all that it needs once it answers: GET_FEATURES of vhost-user.
    vm.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    vm.read_exact(&mut [0; 20]).unwrap();
    // So many workers need more descriptors than there may be. As a new network, that is no change at all.
    fs::write(&file, section("lab", "") + &section("new", "workers = 64")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.err.wait_for("nothing was changed");
    vm.set_nonblocking(true).unwrap();
    assert_eq!(vm.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the VM is still connected");
    assert!(!folder.names().contains(&"new".to_owned()));
    // In the place of the one that runs, that one has to come back.
    fs::write(&file, section("lab", "workers = 64")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.err.wait_for("the network lab is started again as it was before");
    daemon.err.wait_for("was read again");
    let _vm = connect(&mut daemon, 1);
    // And the next file is compared with what runs.
    fs::write(&file, section("lab", "")).unwrap();
    daemon.signal(Signal::SIGHUP);
    let line = daemon.err.wait_for("was read again");
    assert!(line.contains("started=0 left=0 sockets=0"), "{line}");
    daemon.end();
}
