//! NAT: guests reach what the host reaches, by a process that has no right to anything.

use std::time::Duration;

use crate::Turn;
use crate::daemon::Daemon;
use crate::guest::{Guest, Plan, Vmm};
use crate::lab::Lab;
use crate::lan::{Program, get_lease, unique_local, until};
use crate::segment::iperf_both_ways;
use crate::space::Space;
use crate::traffic::run_iperf;

const GATEWAY: &str = "10.0.2.1";
pub(crate) const SERVER: &str = "10.7.0.2";
pub(crate) const SERVER6: &str = "fd07::2";
/// Emulated processors are slow.
const DATA_WITHIN: Duration = Duration::from_secs(160);
/// Set for guestwire: it takes the kernel for one that has no SO_PEEK_OFF.
const NO_PEEK_OFFSET: &str = "GUESTWIRE_NO_PEEK_OFFSET=1";

/// The host, and a machine beyond it.
pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) daemon: Daemon,
    pub(crate) server: Space,
    /// The host, which has to stay, and programs of the machine.
    _host: Space,
    _programs: Vec<Program>,
}

impl World {
    /// With guestwire run by a further command, with further options.
    pub(crate) fn new(under: &[&str], options: &[&str]) -> Self {
        let [host, server] = [Space::new(), Space::new()];
        let lab = Lab::prepared();
        host.cable("eth0", &server, "eth0");
        for (space, number) in [(&host, 1), (&server, 2)] {
            space.ip(&format!("addr add 10.7.0.{number}/24 dev eth0"));
            space.ip(&format!("addr add fd07::{number}/64 dev eth0 nodad"));
        }
        let under: Vec<String> = host.enter().into_iter().chain(under.iter().map(|word| (*word).to_owned())).collect();
        let always = ["-v", "--leases", "DIR/leases", "--stats", "DIR/stats", "--stats-interval", "0.1"];
        let daemon = Daemon::run_as_nobody(&under, "nat", &[&always, options].concat());
        let programs = vec![Program::start(&lab, &server, "iperf3", &["-s"])];
        until("iperf3", || {
            let sockets = server.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6")).unwrap();
            if sockets.contains(":1451 ") { Ok(()) } else { Err(sockets) }
        });
        Self { lab, daemon, server, _host: host, _programs: programs }
    }

    fn guests<const N: usize>(&self, vmms: [Vmm; N]) -> [Guest; N] {
        let mut number = 0;
        let started = vmms.map(|vmm| {
            number += 1;
            Plan::new(vmm, number).without_addresses().start(&self.lab, &self.daemon)
        });
        started.map(Guest::booted)
    }

    /// Data from the machine to a guest and back, which must not change.
    fn data_both_ways(&self, address: &str, guest: &mut Guest, megabytes: usize) {
        crate::data::echo(&self.server, address, guest, megabytes, DATA_WITHIN);
    }
}

/// Has a guest get its addresses. Returns those that others know it by.
pub(crate) fn join(guest: &mut Guest) -> [String; 2] {
    [get_lease(guest), unique_local(guest)]
}

fn ping(from: &mut Guest, to: &str) {
    let output = from.ok(&format!("ping -c 3 -i 0.2 -W 5 {to}"));
    assert!(output.contains(" 0% packet loss"), "{from} to {to}:\n{output}");
}

/// Datagrams of all sizes, longer ones than packets among them, arrive both ways: most of them, since a guest may be
/// slow to read what comes in bursts, and on a busy machine not the first time.
fn datagrams(guest: &mut Guest) {
    const TRIES: usize = 3;
    for (address, lengths) in [(SERVER, [200, 60_000]), (SERVER6, [8000, 60_000])] {
        for options in lengths.iter().flat_map(|len| [format!("-l {len}"), format!("-l {len} -R")]) {
            let most_arrive = (0..TRIES).any(|_| {
                let (sent, lost) = exchange(guest, &format!("iperf3 -c {address} -u -b 4M -t 1 -i 0 -J {options}"));
                println!("{address} {options}: {lost} of {sent} are lost");
                sent >= 4 && lost * 2 <= sent
            });
            assert!(most_arrive, "{address} {options}: too many are lost");
        }
    }
}

/// How many datagrams an iperf3 has sent, and how many of them were lost.
fn exchange(guest: &mut Guest, command: &str) -> (u64, u64) {
    let output = run_iperf(guest, command);
    let json: serde_json::Value =
        serde_json::from_str(&output[output.find('{').unwrap_or(0)..]).unwrap_or_else(|e| panic!("{e}: {output}"));
    let of_sum = |name| json["end"]["sum"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {output}"));
    (of_sum("packets"), of_sum("lost_packets"))
}

#[test]
fn guests_reach_what_the_host_reaches() {
    let _turn = Turn::wait();
    let mut world = World::new(&[], &[]);
    let [mut uml, mut qemu] = world.guests([Vmm::UmlNew, Vmm::Qemu72]);
    let addresses = [join(&mut uml), join(&mut qemu)];
    for guest in [&mut uml, &mut qemu] {
        ping(guest, GATEWAY);
        for address in [SERVER, SERVER6] {
            iperf_both_ways(guest, address);
        }
    }
    datagrams(&mut uml);
    world.data_both_ways(SERVER, &mut uml, 200);
    world.data_both_ways(SERVER6, &mut uml, 100);
    world.data_both_ways(SERVER, &mut qemu, 40);
    // And each other.
    for (from, to) in [(&mut uml, &addresses[1]), (&mut qemu, &addresses[0])] {
        to.iter().for_each(|to| ping(from, to));
    }
    world.daemon.assert_alive();
}

#[test]
fn a_guest_reaches_it_by_two_workers_and_without_peek_offsets() {
    let _turn = Turn::wait();
    let mut world = World::new(&["env", NO_PEEK_OFFSET], &["--workers", "2"]);
    let [mut guest] = world.guests([Vmm::UmlNew]);
    join(&mut guest);
    for (address, megabytes) in [(SERVER, 200), (SERVER6, 50)] {
        iperf_both_ways(&mut guest, address);
        world.data_both_ways(address, &mut guest, megabytes);
    }
    world.daemon.assert_alive();
}

#[test]
fn a_hundred_streams_at_once() {
    let _turn = Turn::wait();
    let mut world = World::new(&[], &[]);
    let [mut guest] = world.guests([Vmm::UmlNew]);
    join(&mut guest);
    for (address, options) in [(SERVER, ""), (SERVER, "-R"), (SERVER6, "-R")] {
        let output = run_iperf(&mut guest, &format!("iperf3 -c {address} -P 100 -t 1 -i 0 {options}"));
        let sums: Vec<&str> = output.lines().filter(|line| line.starts_with("[SUM]")).collect();
        println!("{address} {options}: {sums:#?}");
        assert!(sums.iter().any(|line| line.contains("receiver")), "{output}");
        let silent = |line: &str| line.contains("receiver") && line.contains(" 0.00 Bytes");
        assert!(!output.lines().any(silent), "a stream got nothing:\n{output}");
    }
    world.daemon.assert_alive();
}
