//! Guests on a LAN that exists already, by each of the three ways there.

use std::process::{Command, Output};
use std::time::Duration;

use crate::Turn;
use crate::daemon::Daemon;
use crate::guest::{COMMAND_WITHIN, Guest, Plan, Vmm, Wire};
use crate::lan::{PATIENCE, until};
use crate::segment::{HOST, OTHER, SERVER, Segment, Way, ip, iperf_both_ways, ping_machine};
use crate::space::Space;
use crate::traffic::ping;

const MEGABYTES: usize = 200;
/// Emulated processors are slow.
const DATA_WITHIN: Duration = Duration::from_secs(160);

/// Guests get addresses from the LAN, and reach all of it, the host, and each other.
fn on_the_lan(way: Way, workers: &str) {
    let _turn = Turn::wait();
    let segment = Segment::new(way, 1500);
    let mut daemon = segment.daemon(&["--workers", workers]);
    let [mut uml, mut qemu] = segment.guests(&daemon, [Plan::new(Vmm::UmlNew, 10), Plan::new(Vmm::Qemu72, 11)]);
    std::thread::scope(|scope| {
        // In an order of its own for each, since an iperf3 has one client at a time.
        scope.spawn(|| reaches_all_of_it(&segment, &mut uml, [SERVER, OTHER, HOST], &[SERVER, HOST]));
        scope.spawn(|| reaches_all_of_it(&segment, &mut qemu, [HOST, SERVER, OTHER], &[SERVER]));
    });
    ping(&mut uml, &qemu);
    ping(&mut qemu, &uml);
    iperf_both_ways(&mut uml, &qemu.ip());
    daemon.assert_alive();
}

/// A guest reaches all machines, and they it; with some of them it exchanges much data.
fn reaches_all_of_it(segment: &Segment, guest: &mut Guest, machines: [u8; 3], with_data: &[u8]) {
    for machine in machines {
        ping_machine(guest, machine);
        segment.ping_guest(machine, guest);
        iperf_both_ways(guest, &ip(machine));
    }
    groups(segment, guest, &machines);
    for &machine in with_data {
        segment.data_both_ways(machine, guest, MEGABYTES, DATA_WITHIN);
    }
}

/// Guests that share the NIC's MAC address get addresses from the LAN and reach all of it, and each other, with long
/// frames too.
#[test]
fn guests_that_share_the_nics_address_are_on_the_lan() {
    let _turn = Turn::wait();
    let segment = Segment::new(Way::Nic, 9000);
    let mut daemon = segment.daemon(&["--mac-nat", "--workers", "2", "--mtu", "9000"]);
    let [mut uml, mut qemu] = segment.guests(&daemon, [Plan::new(Vmm::UmlNew, 10), jumbo_qemu()]);
    let shared = segment.host.mac("eth0").map(|byte| format!("{byte:02x}")).join(":");
    for guest in [&mut uml, &mut qemu] {
        for machine in [SERVER, OTHER] {
            ping_machine(guest, machine);
            segment.ping_guest(machine, guest);
        }
        jumbo(&segment, guest, [SERVER, OTHER]);
        groups(&segment, guest, &[SERVER, OTHER]);
        for address in [guest.ip(), guest.ip6()] {
            let seen = segment.other.ip(&format!("neigh show {address}"));
            assert!(seen.contains(&shared), "{guest} is not at {shared}: {seen}");
        }
    }
    ping(&mut uml, &qemu);
    iperf_both_ways(&mut uml, &qemu.ip());
    segment.data_both_ways(SERVER, &mut uml, MEGABYTES, DATA_WITHIN);
    segment.data_both_ways(OTHER, &mut qemu, MEGABYTES, DATA_WITHIN);
    daemon.assert_alive();
}

/// What a machine sends to all is heard by a guest, and what the guest sends to all by all machines that it reaches,
/// which are these.
fn groups(segment: &Segment, guest: &mut Guest, machines: &[u8]) {
    guest.ok("echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_broadcasts");
    let answers = guest.ok("ping -c 3 -i 0.2 10.9.0.255");
    for machine in machines {
        assert!(answers.contains(&format!("from {}:", ip(*machine))), "{guest} asked {machine} among all:\n{answers}");
    }
    let answers = segment.command(&segment.other, "ping", "-c 3 -i 0.2 -b 10.9.0.255");
    assert!(answers.contains(&format!("from {}:", guest.ip())), "{guest} was asked among all:\n{answers}");
    let answers = guest.ok("ping -6 -c 3 -i 0.2 -I eth0 ff02::1");
    for machine in machines {
        let (space, interface) = segment.interface(*machine);
        let address = link_local(&space.ip(&format!("-6 -o addr show dev {interface} scope link")));
        assert!(answers.contains(&format!("from {address}")), "{guest} asked {address} among all:\n{answers}");
    }
    let address = link_local(&guest.ok("/bin/ip -6 -o addr show dev eth0 scope link"));
    let answers = segment.command(&segment.other, "ping", "-c 3 -i 0.2 -I eth0 ff02::1");
    assert!(answers.contains(&format!("from {address}")), "{guest} was asked among all:\n{answers}");
}

fn link_local(text: &str) -> String {
    crate::lan::first_address(text).unwrap_or_else(|| panic!("no address: {text}"))
}

#[test]
fn guests_are_machines_of_the_lan_by_a_bridge() {
    on_the_lan(Way::Bridge, "2");
}

#[test]
fn guests_are_machines_of_the_lan_by_a_tap() {
    on_the_lan(Way::Tap, "1");
}

#[test]
fn guests_are_machines_of_the_lan_by_the_nic() {
    on_the_lan(Way::Nic, "2");
}

/// Frames of 9,000 bytes pass whole, and tagged frames of a guest and a machine that are on VLAN 100 too.
fn jumbo_and_tagged(way: Way) {
    let _turn = Turn::wait();
    let segment = Segment::new(way, 9000);
    let mut daemon = segment.daemon(&["--mtu", "9000"]);
    // A machine of the LAN that knows VLANs: this one's kernel may not.
    segment.server.ip("tuntap add port2 mode tap");
    segment.server.ip("link set port2 mtu 9000 master lan0 up");
    let enter = segment.server.enter();
    let plan = Plan::new(Vmm::UmlNew, 20).under(&enter.each_ref().map(String::as_str));
    let peer = plan.start_on(&segment.lab, &Wire::Tap("port2".into()), segment.folder());
    let [mut guest, mut qemu] = segment.guests(&daemon, [Plan::new(Vmm::UmlNew, 10), jumbo_qemu()]);
    let mut peer = peer.booted();
    for guest in [&mut guest, &mut qemu] {
        jumbo(&segment, guest, [SERVER, HOST]);
    }
    guest.ok(&format!("ping -c 3 -i 0.2 -W 5 -s 8972 {}", qemu.ip()));
    // Under full emulation it would slow down all that follows.
    drop(qemu);
    tagged(&mut guest, &mut peer);
    ping_machine(&mut guest, SERVER);
    daemon.assert_alive();
}

/// A QEMU guest whose NIC takes the MTU that guestwire tells.
fn jumbo_qemu() -> Plan {
    Plan::new(Vmm::Qemu72, 11).device_option("host_mtu", "9000")
}

fn jumbo(segment: &Segment, guest: &mut Guest, machines: [u8; 2]) {
    assert_eq!(guest.ok("cat /sys/class/net/eth0/mtu").trim(), "9000");
    for machine in machines {
        let output = guest.ok(&format!("ping -c 3 -i 0.2 -W 5 -s 8972 {}", ip(machine)));
        assert!(output.contains(" 0% packet loss"), "{output}");
        // Nobody may fragment these.
        segment.ping_from(segment.interface(machine).0, &format!("-M do -s 8972 {}", guest.ip()));
        iperf_both_ways(guest, &ip(machine));
        segment.data_both_ways(machine, guest, 20, COMMAND_WITHIN);
    }
    for name in ["eth0", "br0"] {
        assert!(segment.host.link(name).is_none_or(|link| link.mtu == 9000), "the MTU of {name} has changed");
    }
}

/// Two guests, of which one is on the LAN without guestwire, and takes no long frames.
fn tagged(guest: &mut Guest, peer: &mut Guest) {
    for (guest, number) in [(&mut *guest, 10), (&mut *peer, 20)] {
        guest.ok(&format!(
            "for module in /modules/vlan/*.ko; do insmod $module || exit; done; \
             /bin/ip link add link eth0 name eth0.100 mtu 1500 type vlan id 100 && /bin/ip link set eth0.100 up && \
             /bin/ip addr add 10.100.0.{number}/24 dev eth0.100 && \
             /bin/ip addr add fd64::{number}/64 dev eth0.100 nodad"
        ));
    }
    peer.ok("iperf3 -s -D");
    for (guest, other) in [(&mut *guest, 20), (&mut *peer, 10)] {
        for (flag, address) in [("-4", format!("10.100.0.{other}")), ("-6", format!("fd64::{other}"))] {
            let output = guest.ok(&format!("ping {flag} -c 3 -i 0.2 -W 5 {address}"));
            assert!(output.contains(" 0% packet loss"), "{guest} to {address}:\n{output}");
        }
        // Whoever is not on the VLAN does not answer on it.
        let outcome = guest.run("/bin/ip neigh flush all; ping -c 1 -W 1 -I eth0.100 10.9.0.1", COMMAND_WITHIN);
        assert_ne!(outcome.code, 0, "{}", outcome.output);
    }
    iperf_both_ways(guest, "10.100.0.20");
    iperf_both_ways(peer, "10.100.0.10");
}

#[test]
fn jumbo_and_tagged_frames_pass_by_a_bridge() {
    jumbo_and_tagged(Way::Bridge);
}

#[test]
fn jumbo_and_tagged_frames_pass_by_a_tap() {
    jumbo_and_tagged(Way::Tap);
}

#[test]
fn jumbo_and_tagged_frames_pass_by_the_nic() {
    jumbo_and_tagged(Way::Nic);
}

/// What guestwire is on is taken away from a guest whose iperf3 runs, and given back.
struct Removal {
    way: Way,
    options: &'static [&'static str],
    /// Machines that guests reach.
    machines: &'static [u8],
    take: fn(&Segment),
    give: fn(&Segment),
    /// What guestwire says.
    said: [&'static str; 2],
}

impl Removal {
    fn of_nic(options: &'static [&'static str], machines: &'static [u8]) -> Self {
        let take = |segment: &Segment| drop(segment.host.ip("link del eth0"));
        let said = ["the uplink is gone (nic eth0)", "the uplink is back: nic eth0"];
        Self { way: Way::Nic, options, machines, take, give: Segment::plug_in, said }
    }

    /// All is as before afterwards.
    fn outlive(self) {
        let _turn = Turn::wait();
        let segment = Segment::new(self.way, 1500);
        let mut daemon = segment.daemon(self.options);
        let plans = [Plan::new(Vmm::UmlNew, 10), Plan::new(Vmm::UmlNew, 11)];
        let [mut guest, mut neighbour] = segment.guests(&daemon, plans);
        let stream =
            guest.begin(&format!("iperf3 -c {} -t 200 -i 0 & echo $! >/tmp/stream; wait $!; true", ip(SERVER)));
        expect_more(&daemon);
        (self.take)(&segment);
        expect_log(&daemon, self.said[0]);
        ping(&mut neighbour, &guest);
        (self.give)(&segment);
        expect_log(&daemon, self.said[1]);
        // TCP tries again after pauses that double: it notices within as long as the way was away.
        expect_more(&daemon);
        guest.ok("kill -INT $(cat /tmp/stream)");
        guest.finish(stream, COMMAND_WITHIN);
        for machine in self.machines {
            until("the LAN and the host are back", || {
                if segment.can_ping6(*machine, &neighbour) { Ok(()) } else { Err(()) }
            });
            ping_machine(&mut neighbour, *machine);
            segment.ping_guest(*machine, &neighbour);
        }
        segment.data_both_ways(SERVER, &mut guest, 20, COMMAND_WITHIN);
        daemon.assert_alive();
    }
}

/// Waits until 20 MB more have gone out.
fn expect_more(daemon: &Daemon) {
    let sent = || daemon.counters("uplink")["rx_bytes"].as_u64().unwrap_or(0);
    let least = sent() + (20 << 20);
    until("the stream goes on", || if sent() >= least { Ok(()) } else { Err(sent()) });
}

fn expect_log(daemon: &Daemon, words: &str) {
    let said = daemon.log().wait_for(0, PATIENCE, |text| text.contains(words).then_some(()));
    assert!(said.is_some(), "guestwire did not say {words:?}:\n{}", daemon.log().tail(30));
}

#[test]
fn iperf_outlives_a_nic_that_is_taken_away_and_given_back() {
    Removal::of_nic(&[], &[SERVER, HOST]).outlive();
}

#[test]
fn iperf_outlives_a_nic_whose_address_is_shared() {
    Removal::of_nic(&["--mac-nat"], &[SERVER, OTHER]).outlive();
}

#[test]
fn iperf_outlives_a_tap_that_is_deleted_and_made_again() {
    let take = |segment: &Segment| drop(segment.host.ip("link del vm0"));
    let said = ["the uplink is gone (tap vm0)", "the uplink is back: tap vm0"];
    let give = Segment::make_tap;
    Removal { way: Way::Tap, options: &[], machines: &[SERVER, HOST], take, give, said }.outlive();
}

#[test]
fn iperf_outlives_a_bridge_that_is_deleted_and_made_again() {
    let take = |segment: &Segment| drop(segment.host.ip("link del br0"));
    let give = |segment: &Segment| {
        segment.make_bridge();
        segment.host.ip("link set eth0 master br0");
        segment.address(&segment.host, "br0", HOST);
    };
    let said = ["the uplink is gone (tap gw-bridged)", "the uplink is back: tap gw-bridged"];
    Removal { way: Way::Bridge, options: &[], machines: &[SERVER, HOST], take, give, said }.outlive();
}

#[test]
fn a_tap_that_is_down_for_a_while_or_renamed_goes_on() {
    let _turn = Turn::wait();
    let segment = Segment::new(Way::Tap, 1500);
    let mut daemon = segment.daemon(&[]);
    let [mut guest] = segment.guests(&daemon, [Plan::new(Vmm::UmlNew, 10)]);
    segment.host.ip("link set vm0 down");
    let outcome = guest.run(&format!("ping -c 2 -W 1 {}", ip(SERVER)), COMMAND_WITHIN);
    assert_ne!(outcome.code, 0, "{}", outcome.output);
    segment.host.ip("link set vm0 up");
    ping_machine(&mut guest, SERVER);
    segment.host.ip("link set vm0 name vm1");
    ping_machine(&mut guest, SERVER);
    segment.ping_guest(SERVER, &guest);
    daemon.assert_alive();
}

#[test]
fn a_tap_of_ours_joins_the_bridge_and_leaves_it_at_the_end() {
    let _turn = Turn::wait();
    let segment = Segment::new(Way::Bridge, 1400);
    let before = segment.host.ip("-o link show");
    let daemon = segment.daemon(&[]);
    let [bridge, tap] = ["br0", "gw-bridged"].map(|name| segment.host.link(name).unwrap());
    assert_eq!((tap.controller, tap.mtu, bridge.mtu), (Some(bridge.index), 1400, 1400));
    drop(daemon);
    segment.host.wait_until_gone("gw-bridged");
    assert_eq!(segment.host.ip("-o link show"), before);
    // One that is killed leaves nothing either.
    let daemon = segment.daemon(&[]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    segment.host.wait_until_gone("gw-bridged");
    assert_eq!(segment.host.ip("-o link show"), before);
}

#[test]
fn the_nic_stays_as_it_is() {
    let _turn = Turn::wait();
    let segment = Segment::new(Way::Nic, 1500);
    let state = || ["-o link show", "-o addr show dev eth0", "route show"].map(|line| segment.host.ip(line));
    let before = state();
    let daemon = segment.daemon(&[]);
    assert_eq!(state()[1..], before[1..]);
    drop(daemon);
    until("all as before", || if state() == before { Ok(()) } else { Err(state()) });
}

#[test]
fn without_the_right_to_make_a_way_to_the_host_the_lan_is_reached_all_the_same() {
    let _turn = Turn::wait();
    let segment = Segment::new(Way::Nic, 1500);
    let only_raw = ["setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all"];
    let mut daemon = segment.daemon_under(&only_raw, &[]);
    expect_log(&daemon, "guests on eth0 and this host itself do not reach each other");
    expect_log(&daemon, "CAP_NET_ADMIN");
    let [mut guest] = segment.guests(&daemon, [Plan::new(Vmm::UmlNew, 10)]);
    for machine in [SERVER, OTHER] {
        ping_machine(&mut guest, machine);
        segment.ping_guest(machine, &guest);
    }
    let outcome = guest.run(&format!("ping -c 2 -W 1 {}", ip(HOST)), COMMAND_WITHIN);
    assert_ne!(outcome.code, 0, "{}", outcome.output);
    daemon.assert_alive();
}

/// What guestwire says when it cannot start.
fn refusal(host: &Space, under: &[&str], options: &str) -> String {
    let folder = tempfile::TempDir::with_prefix("guestwire-guests-").unwrap();
    let enter = host.enter();
    let words: Vec<&str> = enter.iter().map(String::as_str).chain(under.iter().copied()).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["timeout", "10", env!("CARGO_BIN_EXE_guestwire"), "bridged", "--socket-path"]);
    command.arg(folder.path().join("net.sock")).args(options.split(' '));
    let Output { status, stderr, .. } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success() && status.code() != Some(124), "{options}: {status}:\n{text}");
    text
}

#[test]
fn what_is_no_way_to_a_lan_is_refused_with_what_helps() {
    let (host, lan) = (Space::new(), Space::new());
    host.cable("eth0", &lan, "port0");
    host.cable("eth1", &lan, "port1");
    host.ip("link add br0 type bridge");
    host.ip("link set eth1 master br0");
    let wireless = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /sys/class/net && \
          mkdir -p /sys/class/net/eth0/wireless && exec \"$@\"",
        "sh",
    ];
    let only_raw = ["setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all"];
    let nothing = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let cases: &[(&[&str], &str, &[&str])] = &[
        (&[], "--bridge eth0", &["eth0 is not a Linux bridge", "--nic eth0"]),
        (&[], "--bridge br7", &["there is no bridge br7", "ip link add br7 type bridge"]),
        (&[], "--nic eth7", &["there is no interface eth7", "there are:", "eth0"]),
        (&[], "--nic eth1", &["eth1 is a port of the bridge br0: use --bridge br0"]),
        (&[], "--nic lo", &["lo is not an Ethernet interface"]),
        (&[], "--tap br0", &["br0 exists and is not a tap"]),
        (&wireless, "--nic eth0", &["eth0 is a wireless NIC", "--mac-nat", "mode nat"]),
        (&only_raw, "--bridge br0", &["CAP_NET_ADMIN"]),
        (&nothing, "--nic eth0", &["CAP_NET_RAW"]),
    ];
    for (under, options, expected) in cases {
        let text = refusal(&host, under, options);
        for words in *expected {
            assert!(text.contains(words), "{options} is refused without {words:?}:\n{text}");
        }
        assert_eq!(text.lines().filter(|line| line.contains("error")).count(), 1, "{options}:\n{text}");
    }
}
