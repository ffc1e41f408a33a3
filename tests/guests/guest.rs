//! A guest: a real kernel under a real VMM, driven over its console (the protocol is told in `tests/lab/guest-init`).

use std::fmt;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::console::Console;
use crate::daemon::Daemon;
use crate::lab::Lab;

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

/// How a guest is started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    vmm: Vmm,
    /// Its last byte of MAC, IPv4 and IPv6 address.
    number: u8,
    queues: u16,
    device_options: Vec<(String, String)>,
    /// Started by the line that guestwire prints, not by those of `qemu-examples`.
    by_printed_line: bool,
}

impl Plan {
    pub(crate) fn new(vmm: Vmm, number: u8) -> Self {
        Self { vmm, number, queues: 1, device_options: Vec::new(), by_printed_line: false }
    }

    /// By the command line that guestwire prints.
    pub(crate) fn by_printed_line(self) -> Self {
        Self { by_printed_line: true, ..self }
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
    pub(crate) fn start(self, lab: &Lab, daemon: &Daemon) -> Guest {
        let mut command = match self.vmm {
            Vmm::Qemu72 | Vmm::QemuNew => self.qemu(lab, daemon),
            Vmm::Uml61 | Vmm::UmlNew => self.uml(lab, daemon),
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
        Guest { plan: self, child, input, console, errors, last_id: 0 }
    }

    /// QEMU with the command line that `qemu-examples/internal/` gives its readers, as it stands there.
    fn qemu(&self, lab: &Lab, daemon: &Daemon) -> Command {
        let (folder, before) = match self.vmm {
            Vmm::Qemu72 => (lab.get("QEMU_72"), "before-9.2-"),
            _ => (lab.get("QEMU_NEW"), ""),
        };
        let line = if self.by_printed_line {
            self.printed(daemon)
        } else {
            let queues = if self.queues == 1 { "1-queue" } else { "4-queues" };
            let file =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("qemu-examples/internal/qemu-{before}{queues}.cmd"));
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        };
        let mut line = format!("exec setpriv --pdeathsig KILL {}", line.replace('\n', " "));
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
            .env("SOCKET", daemon.socket())
            .env("KERNEL", lab.get("KERNEL"))
            .env("INITRD", lab.get("INITRD"))
            .env("ACCEL", lab.get("ACCEL"))
            .env("MAC", format!("52:54:00:67:77:{:02x}", self.number))
            // An emulated timer that is late when the kernel tests it would be given up for good.
            .env("APPEND", format!("no_timer_check {}", self.addresses()));
        command
    }

    /// The printed line with what makes it a machine here: a kernel, a console, and an accelerator that works.
    fn printed(&self, daemon: &Daemon) -> String {
        let mut line = daemon.printed_line(self.vmm == Vmm::Qemu72);
        line = line.replace("-accel kvm -accel tcg", "$ACCEL").replace("virtio-net-pci,", "virtio-net-pci,id=nic0,");
        assert!(line.contains("$ACCEL") && line.contains(",id=nic0,"), "{line}");
        line + r#" -kernel $KERNEL -initrd $INITRD -append "console=ttyS0 quiet $APPEND" -display none -serial stdio"#
    }

    fn uml(&self, lab: &Lab, daemon: &Daemon) -> Command {
        let name = if self.vmm == Vmm::Uml61 { "UML_61" } else { "UML_NEW" };
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", lab.get(name)])
            .args(["mem=256M", "quiet", "con=null", "con0=fd:0,fd:1", "ssl=null", "seccomp=auto"])
            .arg(format!("initrd={}", lab.get(&format!("{name}_INITRD"))))
            .arg(format!("uml_dir={}", self.uml_folder(daemon).display()))
            .arg(format!("virtio_uml.device={}:1", daemon.socket().display()))
            .args(self.addresses().split(' '));
        command
    }

    fn uml_folder(&self, daemon: &Daemon) -> PathBuf {
        let folder = daemon.folder().join(format!("uml-{}", self.number));
        std::fs::create_dir_all(&folder).expect("a folder for User Mode Linux");
        folder
    }

    fn addresses(&self) -> String {
        format!("gw.ip=10.9.0.{0}/24 gw.ip6=fd09::{0:x}/64", self.number)
    }
}

/// A guest that runs. Dropped, it is killed; its console is printed when that is because a test failed.
pub(crate) struct Guest {
    plan: Plan,
    child: Child,
    input: ChildStdin,
    console: Console,
    errors: Console,
    last_id: u32,
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
    pub(crate) fn booted(self) -> Self {
        self.ready_after(0);
        self
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
