//! A guest: a real kernel under a real VMM, driven over its console (the protocol is told in `tests/lab/guest-init`).

use std::fmt;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use super::console::Console;
use super::daemon::Daemon;
use super::lab::Lab;

/// A boot takes 2 to 5 s on emulated CPUs, more when others are busy.
const BOOT_WITHIN: Duration = Duration::from_secs(60);
/// What one command may take unless it is told otherwise.
pub(crate) const COMMAND_WITHIN: Duration = Duration::from_secs(40);

/// What runs the guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vmm {
    /// Debian 12's QEMU.
    Qemu72,
    /// A QEMU of 11 or later.
    QemuNew,
    /// Debian 12's User Mode Linux.
    Uml61,
    /// A User Mode Linux of 7.2 or later.
    UmlNew,
}

/// What a guest's NIC is attached to.
#[derive(Clone, Debug)]
pub(crate) enum Wire {
    /// A vhost-user backend that listens here.
    Socket(PathBuf),
    /// The tap device of this name, in the network namespace that the VMM runs in.
    #[allow(dead_code, reason = "benches/compare has it")]
    Tap(String),
    /// Two of them, for a User Mode Linux that takes no frame of more than so many bytes of payload, and sends none.
    Taps([&'static str; 2], u32),
}

/// How a guest is started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    vmm: Vmm,
    /// Its last byte of MAC, IPv4 and IPv6 address.
    number: u8,
    queues: u16,
    device_options: Vec<(String, String)>,
    /// Started by this line, one that guestwire has printed, not by those of `qemu-examples`.
    printed_line: Option<String>,
    by_printed_line: bool,
    /// A command that runs the VMM: one that pins it to a CPU, or enters a namespace.
    under: Vec<String>,
    /// Instead of the lab's.
    initrd: Option<PathBuf>,
    /// Whether the guest is told its addresses.
    addresses: bool,
}

impl Plan {
    pub(crate) fn new(vmm: Vmm, number: u8) -> Self {
        Self {
            vmm,
            number,
            queues: 1,
            device_options: Vec::new(),
            printed_line: None,
            by_printed_line: false,
            under: Vec::new(),
            initrd: None,
            addresses: true,
        }
    }

    /// By the command line that guestwire prints.
    pub(crate) fn by_printed_line(self) -> Self {
        Self { by_printed_line: true, ..self }
    }

    /// With the VMM run by another command, which comes before those given so far.
    #[allow(dead_code, reason = "benches/compare has it")]
    pub(crate) fn under(mut self, command: &[&str]) -> Self {
        self.under.splice(0..0, command.iter().map(|&word| word.to_owned()));
        self
    }

    /// With another initramfs than the lab's.
    #[allow(dead_code, reason = "benches/compare has it")]
    pub(crate) fn initrd(self, path: &Path) -> Self {
        Self { initrd: Some(path.to_owned()), ..self }
    }

    /// Without addresses: its NIC is down until somebody brings it up.
    pub(crate) fn without_addresses(self) -> Self {
        Self { addresses: false, ..self }
    }

    /// With four pairs of queues and four CPUs.
    pub(crate) fn four_queues(mut self) -> Self {
        self.queues = 4;
        self
    }

    /// With a property of QEMU's virtio-net device set.
    pub(crate) fn device_option(mut self, name: &str, value: &str) -> Self {
        self.device_options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it; [`Guest::booted`] waits for it.
    pub(crate) fn start(mut self, lab: &Lab, daemon: &Daemon) -> Guest {
        if self.by_printed_line {
            self.printed_line = Some(daemon.printed_line(self.vmm == Vmm::Qemu72));
        }
        self.start_on(lab, &Wire::Socket(daemon.socket()), daemon.folder())
    }

    /// The same on anything; its own files go into `folder`.
    pub(crate) fn start_on(self, lab: &Lab, wire: &Wire, folder: &Path) -> Guest {
        let mut command = match self.vmm {
            Vmm::Qemu72 | Vmm::QemuNew => self.qemu(lab, wire),
            Vmm::Uml61 | Vmm::UmlNew => self.uml(lab, wire, folder),
        };
        let mut child = command
            // A User Mode Linux that panics sends SIGTERM to its whole process group.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; run tests/lab/prepare.sh tests"));
        let (console, errors) = (Console::default(), Console::default());
        console.collect(child.stdout.take().expect("stdout is a pipe"));
        errors.collect(child.stderr.take().expect("stderr is a pipe"));
        let input = child.stdin.take().expect("stdin is a pipe");
        let wants_eth0 = self.nic_is_a_vector(wire);
        Guest { plan: self, child, input, console, errors, last_id: 0, wants_eth0, line: told(&command) }
    }

    /// QEMU with the command line that `qemu-examples/internal/` gives its readers, as it stands there.
    fn qemu(&self, lab: &Lab, wire: &Wire) -> Command {
        let (folder, before) = match self.vmm {
            Vmm::Qemu72 => (lab.get("QEMU_72"), "before-9.2-"),
            _ => (lab.get("QEMU_NEW"), ""),
        };
        let line = if let Some(line) = &self.printed_line {
            printed(line)
        } else {
            let queues = if self.queues == 1 { "1-queue" } else { "4-queues" };
            let file =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("qemu-examples/internal/qemu-{before}{queues}.cmd"));
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        };
        let line = match wire {
            Wire::Socket(_) => line,
            Wire::Tap(name) => on_tap(&line, name),
            Wire::Taps(..) => panic!("{:?} has one NIC", self.vmm),
        };
        let mut line = format!("exec {} setpriv --pdeathsig KILL {}", self.under.join(" "), line.replace('\n', " "));
        for (name, value) in &self.device_options {
            line.push_str(&format!(" -set device.nic0.{name}={value}"));
        }
        if self.vmm == Vmm::Qemu72 && lab.is_emulated() {
            // QEMU 7.2 crashes on a vhost-user NIC with MSI-X under TCG.
            line.push_str(" -set device.nic0.vectors=0");
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(line)
            .env("PATH", format!("{folder}:{path}"))
            .env("KERNEL", lab.get("KERNEL"))
            .env("INITRD", self.initrd_or(lab.get("INITRD")))
            .env("ACCEL", lab.get("ACCEL"))
            .env("MAC", format!("52:54:00:67:77:{:02x}", self.number))
            // An emulated timer that is late when the kernel tests it would be given up for good.
            .env("APPEND", format!("no_timer_check {}", self.addresses()));
        if let Wire::Socket(path) = wire {
            command.env("SOCKET", path);
        }
        command
    }

    fn uml(&self, lab: &Lab, wire: &Wire, folder: &Path) -> Command {
        let name = if self.vmm == Vmm::Uml61 { "UML_61" } else { "UML_NEW" };
        let folder = folder.join(format!("uml-{}", self.number));
        std::fs::create_dir_all(&folder).expect("a folder for User Mode Linux");
        let mut words = self.under.iter().map(String::as_str).chain(["setpriv", "--pdeathsig", "KILL", lab.get(name)]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .args(["mem=256M", "quiet", "con=null", "con0=fd:0,fd:1", "ssl=null", "seccomp=auto"])
            .arg(format!("initrd={}", self.initrd_or(lab.get(&format!("{name}_INITRD"))).display()))
            .arg(format!("uml_dir={}", folder.display()));
        match wire {
            Wire::Socket(path) => {
                command.arg(format!("virtio_uml.device={}:1", path.display())).args(self.addresses().split(' '))
            }
            // Frames longer than the MTU are sent in any case, and taken only with "gro".
            Wire::Tap(name) => command.arg(format!("vec0:transport=tap,ifname={name},gro=1")),
            Wire::Taps(names, mtu) => command
                .args([0, 1].map(|number| format!("vec{number}:transport=tap,ifname={},mtu={mtu}", names[number]))),
        };
        command
    }

    /// Whether the NIC is User Mode Linux's own one, which the guest's `/init` does not know: it is called `vec0`.
    fn nic_is_a_vector(&self, wire: &Wire) -> bool {
        matches!((self.vmm, wire), (Vmm::Uml61 | Vmm::UmlNew, Wire::Tap(_)))
    }

    fn initrd_or<'a>(&'a self, labs: &'a str) -> &'a Path {
        self.initrd.as_deref().unwrap_or(Path::new(labs))
    }

    fn addresses(&self) -> String {
        if !self.addresses {
            return "gw.later".to_owned();
        }
        format!("gw.ip=10.9.0.{0}/24 gw.ip6=fd09::{0:x}/64", self.number)
    }
}

/// A command as one would type it. The caller's own variables are not told.
fn told(command: &Command) -> String {
    let variables = command.get_envs().filter(|(name, _)| *name != "PATH");
    let variables = variables.map(|(name, value)| format!("{}={:?} ", name.display(), value.unwrap_or_default()));
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    variables.collect::<String>() + &words.join(" ")
}

/// A line that guestwire has printed, with what makes it a machine here: a kernel, a console, an accelerator that
/// works.
fn printed(line: &str) -> String {
    let line = line.replace("-accel kvm -accel tcg", "$ACCEL").replace("virtio-net-pci,", "virtio-net-pci,id=nic0,");
    assert!(line.contains("$ACCEL") && line.contains(",id=nic0,"), "{line}");
    line + r#" -kernel $KERNEL -initrd $INITRD -append "console=ttyS0 quiet $APPEND" -display none -serial stdio"#
}

/// A line of `qemu-examples` with its NIC on a tap device, which QEMU itself serves.
fn on_tap(line: &str, name: &str) -> String {
    let tap = format!("-netdev tap,id=net0,ifname={name},script=no,downscript=no,vhost=off");
    let without = line.lines().filter(|part| !part.trim_start().starts_with("-chardev"));
    let changed: Vec<String> =
        without.map(|part| part.replace("-netdev vhost-user,id=net0,chardev=chr0", &tap)).collect();
    assert!(changed.iter().any(|part| part.contains(&tap)), "{line}");
    changed.join("\n")
}

/// A guest that runs. Dropped, it is killed; its console is printed when that is because a test failed.
pub(crate) struct Guest {
    plan: Plan,
    child: Child,
    input: ChildStdin,
    console: Console,
    errors: Console,
    last_id: u32,
    wants_eth0: bool,
    #[allow(dead_code, reason = "benches/compare has it")]
    line: String,
}

/// What a guest's command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) output: String,
}

/// A command that runs in a guest while others are given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job(u32);

impl Guest {
    /// Waits until its console listens.
    pub(crate) fn booted(mut self) -> Self {
        self.ready_after(0);
        if self.wants_eth0 {
            let (ip, ip6) = (self.ip(), self.ip6());
            self.ok(&format!(
                "/bin/ip link set lo up && /bin/ip link set vec0 name eth0 && /bin/ip link set eth0 up && \
                 /bin/ip addr add {ip}/24 dev eth0 && /bin/ip addr add {ip6}/64 dev eth0 nodad"
            ));
        }
        self
    }

    /// The command that has started it.
    #[allow(dead_code, reason = "benches/compare has it")]
    pub(crate) fn command_line(&self) -> &str {
        &self.line
    }

    fn ready_after(&self, from: usize) {
        self.console
            .wait_for(from, BOOT_WITHIN, |text| text.contains("GUEST READY\n").then_some(()))
            .unwrap_or_else(|| self.fail("did not boot"));
    }

    pub(crate) fn ip(&self) -> String {
        format!("10.9.0.{}", self.plan.number)
    }

    pub(crate) fn ip6(&self) -> String {
        format!("fd09::{:x}", self.plan.number)
    }

    /// Runs a shell command in it, and waits for its end.
    pub(crate) fn run(&mut self, command: &str, within: Duration) -> Outcome {
        let id = self.next_id();
        self.ask(id, &format!("RUN {id} {command}"), within)
    }

    /// Runs a shell command that must succeed; its output.
    pub(crate) fn ok(&mut self, command: &str) -> String {
        let outcome = self.run(command, COMMAND_WITHIN);
        self.expect_success(command, outcome)
    }

    /// Starts a shell command in the background.
    pub(crate) fn begin(&mut self, command: &str) -> Job {
        let id = self.next_id();
        self.ask(id, &format!("START {id} {command}"), COMMAND_WITHIN);
        Job(id)
    }

    /// Waits for what [`Guest::begin`] began, which must succeed; its output.
    pub(crate) fn finish(&mut self, job: Job, within: Duration) -> String {
        let outcome = self.ask(job.0, &format!("WAIT {}", job.0), within);
        self.expect_success("a background command", outcome)
    }

    /// Restarts the machine, its VMM staying, and waits for its console.
    pub(crate) fn reboot(&mut self) {
        let from = self.console.len();
        self.send("REBOOT");
        self.ready_after(from);
    }

    /// Ends the VMM as a crash would: SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the VMM can be killed");
        self.child.wait().expect("the VMM ends");
    }

    /// Ends the machine from inside and waits for its VMM to end by itself, without an error.
    pub(crate) fn power_off(mut self) {
        self.send("POWEROFF");
        if !self.console.ended(COMMAND_WITHIN) {
            self.fail("did not power off");
        }
        let status = self.child.wait().expect("the VMM is our child");
        assert!(status.success(), "guest {} ended with {status}:\n{}", self.plan.number, self.errors.tail(20));
    }

    /// Fails the test with the end of what this guest printed.
    pub(crate) fn fail(&self, what: &str) -> ! {
        panic!("{self} {what}\n--- its VMM:\n{}", self.errors.tail(20))
    }

    fn expect_success(&self, command: &str, outcome: Outcome) -> String {
        if outcome.code != 0 {
            self.fail(&format!("ran `{command}`, which ended with {}:\n{}", outcome.code, outcome.output));
        }
        outcome.output
    }

    fn next_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    fn ask(&mut self, id: u32, line: &str, within: Duration) -> Outcome {
        let from = self.console.len();
        self.send(line);
        self.console
            .wait_for(from, within, |text| answer(text, id))
            .unwrap_or_else(|| self.fail(&format!("did not answer `{line}` within {within:?}")))
    }

    fn send(&mut self, line: &str) {
        assert!(line.len() < 4000, "the console takes no line of {} bytes", line.len());
        if let Err(error) = self.input.write_all(format!("{line}\n").as_bytes()) {
            self.fail(&format!("takes no input: {error}"));
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {} ({:?})", self.plan.number, self.plan.vmm)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of {self}'s console:\n{}", self.console.tail(30));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output before the line `DONE ID CODE`, and the code.
fn answer(text: &str, id: u32) -> Option<Outcome> {
    let marker = format!("\nDONE {id} ");
    let (output, rest) = text.split_once(&marker)?;
    let (code, _) = rest.split_once('\n')?;
    Some(Outcome { code: code.trim().parse().ok()?, output: output.to_owned() })
}
