//! The host of a network with an uplink: a namespace in which guestwire and programs of the host run.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::Turn;
use crate::console::Console;
use crate::daemon::Daemon;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::space::Space;

/// Longer than anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A network of one daemon in a namespace of its own.
pub(crate) struct Lan {
    pub(crate) lab: Lab,
    pub(crate) daemon: Daemon,
    pub(crate) space: Space,
    turn: Option<Turn>,
}

impl Lan {
    /// One whose daemon tells much, keeps its leases in its folder, and writes statistics often.
    pub(crate) fn host_only(options: &[&str]) -> Self {
        let all = ["-v", "--leases", "DIR/leases", "--stats", "DIR/stats", "--stats-interval", "0.1"];
        Self::start("host-only", &[&all[..], options].concat())
    }

    /// One of any mode.
    pub(crate) fn start(mode: &str, options: &[&str]) -> Self {
        let (turn, lab, space) = (Turn::wait(), Lab::prepared(), Space::new());
        let daemon = Daemon::run(&space.enter(), mode, options);
        Self { lab, daemon, space, turn: Some(turn) }
    }

    /// Lets another test have this one's turn: from here on it waits more than it works.
    pub(crate) fn give_turn_back(&mut self) {
        self.turn = None;
    }

    /// Runs one of the lab's programs on the host; it must succeed. Returns what it said.
    pub(crate) fn command(&self, program: &str, arguments: &str) -> String {
        self.space.command(&format!("{}/{program}", self.lab.get("NET_BIN")), arguments)
    }

    /// The last figures of a port, or of the uplink, by name.
    pub(crate) fn counters(&self, port: &str) -> Value {
        self.daemon.counters(port)
    }

    /// Waits until one of its counters is at least `least`.
    #[track_caller]
    pub(crate) fn expect_counter(&self, port: &str, name: &str, least: u64) {
        until(&format!("{name} of {port} at {least}"), || {
            let all = self.counters(port);
            all[name].as_u64().is_some_and(|value| value >= least).then_some(()).ok_or(all)
        });
    }
}

/// Waits until `done` has something.
#[track_caller]
pub(crate) fn until<T, E: std::fmt::Debug>(what: &str, mut done: impl FnMut() -> Result<T, E>) -> T {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        match done() {
            Ok(found) => return found,
            Err(error) => assert!(std::time::Instant::now() < end, "not within {PATIENCE:?}: {what}: {error:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that runs in a namespace until it ends or this is dropped.
pub(crate) struct Program {
    child: Child,
    output: Console,
}

impl Program {
    /// Starts one of the lab's programs.
    pub(crate) fn start(lab: &Lab, space: &Space, program: &str, arguments: &[&str]) -> Self {
        let words = space.enter();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["setpriv", "--pdeathsig", "KILL"])
            .arg(format!("{}/{program}", lab.get("NET_BIN")))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Console::default();
        output.collect(child.stdout.take().unwrap());
        output.collect(child.stderr.take().unwrap());
        Self { child, output }
    }

    /// What it says.
    pub(crate) fn output(&self) -> &Console {
        &self.output
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- a program's output:\n{}", self.output.tail(30));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell command that waits until a shell condition holds, for half a minute and more.
pub(crate) fn wait_for(condition: &str) -> String {
    format!("for n in $(seq 200); do {condition} && exit 0; usleep 200000; done; exit 1")
}

/// Brings the guest's NIC up and has busybox's client get it an address, which is returned.
pub(crate) fn get_lease(guest: &mut Guest) -> String {
    guest.ok("dhcp-up");
    address(guest)
}

/// The guest's IPv4 address.
pub(crate) fn address(guest: &mut Guest) -> String {
    let text = guest.ok("/bin/ip -4 -o addr show dev eth0");
    first_address(&text).unwrap_or_else(|| guest.fail(&format!("has no address: {text}")))
}

/// The address that the guest's kernel has made of the prefix that it was told, once it is in use.
pub(crate) fn unique_local(guest: &mut Guest) -> String {
    let list = "/bin/ip -6 -o addr show dev eth0 scope global -tentative";
    guest.ok(&wait_for(&format!("{list} | grep -q inet6")));
    first_address(&guest.ok(list)).unwrap()
}

/// The guest's link-local address.
pub(crate) fn link_local(guest: &mut Guest) -> String {
    let list = "/bin/ip -6 -o addr show dev eth0 scope link -tentative";
    guest.ok(&wait_for(&format!("{list} | grep -q inet6")));
    first_address(&guest.ok(list)).unwrap()
}

/// The first address in what `ip -o addr` says.
pub(crate) fn first_address(text: &str) -> Option<String> {
    let mut words = text.split_whitespace().skip_while(|word| !matches!(*word, "inet" | "inet6"));
    Some(words.nth(1)?.split('/').next()?.to_owned())
}
