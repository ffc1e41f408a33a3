//! NAT beyond a network that is far across, and that loses and reorders packets: streams arrive as they were sent, and
//! about as soon as the host's own.

use std::time::Duration;

use tempfile::TempDir;

use crate::Turn;
use crate::daemon::Daemon;
use crate::data::echo_of;
use crate::guest::{COMMAND_WITHIN, Guest, Plan, Vmm};
use crate::lab::Lab;
use crate::lan::{Program, get_lease};
use crate::router::{Router, Weather};
use crate::space::Space;

/// How many times as long as the host's own stream a guest's may take.
const TIMES: u32 = 2;
/// And this much more: less than what the mirror waits before it sends anything again, which is a second.
const GRACE: Duration = Duration::from_millis(500);
/// How often both are tried. Chance has its say where packets are lost, and so have others on this machine: the guest's
/// best is compared with the host's worst. A stall that comes each time stays in the best.
const TRIES: u32 = 4;

/// The host and a machine, a network between them, and a guest of the host's.
struct World {
    // In this order, so that guests end before what they are plugged into.
    guest: Guest,
    router: Router,
    daemon: Daemon,
    host: Space,
    server: Space,
    lab: Lab,
    _folder: TempDir,
}

impl World {
    fn new(mtu: u32) -> Self {
        let [host, server] = [Space::new(), Space::new()];
        let (lab, folder) = (Lab::prepared(), TempDir::with_prefix("guestwire-router-").unwrap());
        let router = Router::between(&lab, [&host, &server], mtu, &[], folder.path());
        for space in [&host, &server] {
            // Each stream is to find out for itself how far it is, and whatever this machine has been set to, by what
            // any namespace may have.
            space.set("ipv4/tcp_no_metrics_save", "1");
            space.set("ipv4/tcp_congestion_control", "reno");
        }
        let daemon =
            Daemon::run_as_nobody(&host.enter(), "nat", &["-v", "--leases", "DIR/leases", "--mtu", &mtu.to_string()]);
        let mut guest = Plan::new(Vmm::UmlNew, 1).without_addresses().start(&lab, &daemon).booted();
        guest.ok(&format!("net-up && /bin/ip link set eth0 mtu {mtu}"));
        get_lease(&mut guest);
        Self { guest, router, daemon, host, server, lab, _folder: folder }
    }

    /// So much data to the host and back, and to the guest and back.
    fn echo(&mut self, weather: Weather, kilobytes: usize) {
        self.router.set(weather);
        let (mut worst, mut best) = (Duration::ZERO, Duration::MAX);
        for _ in 0..TRIES {
            let (host, own) = self.times(kilobytes * 1000);
            println!("{weather}, {kilobytes} kB there and back: the host's {host:.2?}, the guest's {own:.2?}");
            (worst, best) = (worst.max(host), best.min(own));
            if best <= worst * TIMES + GRACE {
                return;
            }
        }
        panic!("{weather}: the host took {worst:.2?} at the worst, and the guest {best:.2?} at the best");
    }

    /// How long it takes, by the host and by the guest.
    fn times(&mut self, bytes: usize) -> (Duration, Duration) {
        let address = Router::address(1);
        let mut program = None;
        let host = echo_of(&self.server, &address, bytes, |command| {
            let words: Vec<&str> = command.split(' ').collect();
            program = Some(Program::start(&self.lab, &self.host, "busybox", &words));
        });
        let (mut job, guest) = (None, &mut self.guest);
        let own = echo_of(&self.server, &address, bytes, |command| job = Some(guest.begin(command)));
        guest.finish(job.expect("it was begun"), COMMAND_WITHIN);
        self.daemon.assert_alive();
        (host, own)
    }
}

fn weather(rtt_ms: f64, lost: u32, reorders: bool) -> Weather {
    Weather { rtt_us: (rtt_ms * 1000.0) as u32, lost, reorders }
}

#[test]
fn a_guest_goes_far_through_bad_weather() {
    let _turn = Turn::wait();
    let mut world = World::new(1500);
    world.echo(weather(0.1, 10, true), 10_000);
    world.echo(weather(10.0, 1, true), 4_000);
    world.echo(weather(100.0, 10, false), 400);
    world.echo(weather(500.0, 0, true), 500);
}

#[test]
fn a_guest_goes_far_with_long_packets() {
    let _turn = Turn::wait();
    let mut world = World::new(9000);
    world.echo(weather(0.1, 0, false), 50_000);
    world.echo(weather(100.0, 1, true), 2_000);
}
