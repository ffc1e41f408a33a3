//! Network namespaces of a test's own, and what is in them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use guestwire::sys::netlink::{Link, Netlink};
use nix::sched::{CloneFlags, setns, unshare};

/// Longer than anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace. It ends, with all that is in it, when nobody refers to it any more.
pub(crate) struct Space {
    file: File,
}

impl Space {
    /// A new one, with its loopback interface up.
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests of uplinks need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let space = Self { file: made.join().unwrap() };
        space.ip("link set lo up");
        space
    }

    /// Does something in it: sockets and devices that are made there stay there.
    pub(crate) fn run<R: Send>(&self, job: impl FnOnce() -> R + Send) -> R {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        };
        match std::thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a program in it, which must succeed. Returns what it said.
    pub(crate) fn command(&self, program: &str, arguments: &str) -> String {
        let output = self.run(|| Command::new(program).args(arguments.split_whitespace()).output().unwrap());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `ip` in it.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    /// An interface of it.
    pub(crate) fn link(&self, name: &str) -> Option<Link> {
        self.run(|| Netlink::open().unwrap().link(name).unwrap())
    }

    /// Waits until an interface is no more. Programs that other tests are about to run may hold its descriptor for a
    /// moment.
    pub(crate) fn wait_until_gone(&self, name: &str) {
        let end = Instant::now() + PATIENCE;
        while self.link(name).is_some() {
            assert!(Instant::now() < end, "{name} is still there");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The MAC address of an interface.
    pub(crate) fn mac(&self, name: &str) -> [u8; 6] {
        self.link(name).unwrap().mac.unwrap()
    }

    /// The words before a command that is to run in it, while this process lives. The command takes the place of the
    /// program that enters, so that both are one process.
    pub(crate) fn enter(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net={}", self.path())]
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Gives an interface to another namespace, which calls it `name`. Who has it open keeps it.
    #[allow(dead_code, reason = "the tests with guests have it")]
    pub(crate) fn give(&self, interface: &str, other: &Space, name: &str) {
        self.ip(&format!("link set {interface} netns {} name {name}", other.path()));
    }

    /// Writes to a file of `/proc/sys/net`.
    pub(crate) fn set(&self, name: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap());
    }

    /// A pair of interfaces: `name` here and `peer` in `other`, both up.
    pub(crate) fn cable(&self, name: &str, other: &Space, peer: &str) {
        self.ip(&format!("link add {name} type veth peer name {peer} netns {}", other.path()));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {peer} up"));
    }
}
