//! A network that is as far across, and as bad, as one says: a User Mode Linux that routes between two namespaces,
//! with Linux's own netem on its way to either.
//!
//! Each namespace has a tap device as its `eth0`, whose other end is a NIC of the router's. Nothing there is longer
//! than the MTU, since netem would lose, delay and overtake super-frames whole: what comes from a tap is one segment
//! each (`gso_max_segs 1`), and the router's driver puts none together.

use std::fmt;
use std::path::Path;

use super::guest::{Guest, Plan, Vmm, Wire};
use super::lab::Lab;
use super::space::Space;

/// The router among guests.
const NUMBER: u8 = 200;
/// The taps before they are in their namespaces.
const TAPS: [&str; 2] = ["end0", "end1"];
/// Packets that a tap or netem keeps, more than senders send before they hear of any: what is lost is what should be.
const TAP_QUEUE: u32 = 20_000;
const QUEUE: u32 = 200_000;

/// What a network does to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weather {
    /// From end to end and back, in microseconds, besides what the router itself takes.
    pub(crate) rtt_us: u32,
    /// How many packets in a thousand are lost on their way, each way.
    pub(crate) lost: u32,
    /// Whether one in a hundred goes at once and overtakes those that wait.
    pub(crate) reorders: bool,
}

impl Weather {
    /// As tc(8) is told of one way of the two.
    fn netem(self) -> String {
        let mut words = format!("netem limit {QUEUE} delay {}us", self.rtt_us / 2);
        if self.lost > 0 {
            words += &format!(" loss {}.{}%", self.lost / 10, self.lost % 10);
        }
        if self.reorders {
            words += " reorder 1%";
        }
        words
    }
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms-{}%", f64::from(self.rtt_us) / 1000.0, f64::from(self.lost) / 10.0)?;
        if self.reorders { f.write_str("-reorder") } else { Ok(()) }
    }
}

/// See the module's description. It must end before its namespaces do.
pub(crate) struct Router {
    guest: Guest,
    /// Where its process is. The taps were made here.
    _space: Space,
}

impl Router {
    /// The address of the first or second namespace.
    pub(crate) fn address(end: usize) -> String {
        format!("10.7.{end}.1")
    }

    /// Boots one between two namespaces, with further words before its command; its own files go into `folder`.
    pub(crate) fn between(lab: &Lab, ends: [&Space; 2], mtu: u32, under: &[&str], folder: &Path) -> Self {
        let space = Space::new();
        for tap in TAPS {
            space.ip(&format!("tuntap add {tap} mode tap"));
            space.ip(&format!("link set {tap} mtu {mtu} txqueuelen {TAP_QUEUE} gso_max_segs 1"));
        }
        let plan = Plan::new(Vmm::UmlNew, NUMBER).initrd(Path::new(lab.get("ROUTER_INITRD"))).under(under);
        let plan = plan.under(&space.enter().each_ref().map(String::as_str));
        let mut guest = plan.start_on(lab, &Wire::Taps(TAPS, mtu), folder).booted();
        // It says nothing of itself before the taps are where they belong: its driver gives one up that takes no frame.
        guest.ok("for module in /modules/router/*.ko; do insmod $module; done; cd /proc/sys/net; \
             echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/disable_ipv6");
        for (number, end) in ends.into_iter().enumerate() {
            // This opens the tap, which stays open wherever it goes.
            guest.ok(&format!("/bin/ip link set vec{number} mtu {mtu} up"));
            space.give(TAPS[number], end, "eth0");
            end.ip("link set eth0 up");
            end.ip(&format!("addr add {}/24 dev eth0", Self::address(number)));
            end.ip(&format!("route add default via 10.7.{number}.254"));
            guest.ok(&format!("/bin/ip addr add 10.7.{number}.254/24 dev vec{number}"));
        }
        Self { guest, _space: space }
    }

    /// Changes the weather, both ways. What is still on its way is lost. Returns the commands. By its path, `tc` is
    /// iproute2's and not the shell's own.
    pub(crate) fn set(&mut self, weather: Weather) -> String {
        let line = |number| format!("/bin/tc qdisc replace dev vec{number} root {}", weather.netem());
        let lines = [0, 1].map(line).join(" && ");
        let clear = [0, 1].map(|number| format!("/bin/tc qdisc del dev vec{number} root 2>/dev/null")).join("; ");
        self.guest.ok(&format!("{clear}; {lines}"));
        lines
    }

    /// The command that has started it.
    #[allow(dead_code, reason = "benches/compare has it")]
    pub(crate) fn command_line(&self) -> &str {
        self.guest.command_line()
    }
}
