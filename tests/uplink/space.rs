//! Network namespaces of a test's own, and what is in them.

use std::fs::File;
use std::process::Command;

use guestwire::sys::netlink::{Link, Netlink};
use nix::sched::{CloneFlags, setns, unshare};

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

    /// The MAC address of an interface.
    pub(crate) fn mac(&self, name: &str) -> [u8; 6] {
        self.link(name).unwrap().mac.unwrap()
    }
}
