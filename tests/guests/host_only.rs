//! A host-only network: the host and its guests reach each other, by every kind of address.

use std::collections::BTreeSet;

use crate::guest::{COMMAND_WITHIN, Guest, Plan, Vmm};
use crate::lan::{Lan, Program, first_address, get_lease, link_local, unique_local};
use crate::traffic::{feature, negotiated, run_iperf};

const HOST: &str = "192.168.56.1";
const TAP: &str = "gw-host-only";

fn guests<const N: usize>(lan: &Lan, vmms: [Vmm; N]) -> [Guest; N] {
    let mut number = 0;
    let started = vmms.map(|vmm| {
        number += 1;
        Plan::new(vmm, number).without_addresses().start(&lan.lab, &lan.daemon)
    });
    started.map(Guest::booted)
}

/// Echo requests, none of which may be lost.
fn ping(from: &mut Guest, to: &str) {
    let interface = if to.starts_with("fe80") || to.starts_with("ff") { "-I eth0" } else { "" };
    let output = from.ok(&format!("ping -c 3 -i 0.2 -W 5 {interface} {to}"));
    assert!(output.contains(" 0% packet loss"), "{from} to {to}:\n{output}");
}

/// The hosts that answer one echo request to many.
fn who_answers(output: &str) -> Vec<String> {
    let from =
        |line: &str| Some(line.split(" from ").nth(1)?.split([' ', '%']).next()?.trim_end_matches(':').to_owned());
    output.lines().filter_map(from).collect()
}

#[test]
fn host_and_guests_reach_each_other_by_every_kind_of_address() {
    let mut lan = Lan::host_only(&[]);
    let [mut a, mut b] = guests(&lan, [Vmm::UmlNew; 2]);
    let v4 = [get_lease(&mut a), get_lease(&mut b)];
    let global = [unique_local(&mut a), unique_local(&mut b)];
    let local = [link_local(&mut a), link_local(&mut b)];
    let host = |scope: &str| first_address(&lan.space.ip(&format!("-6 -o addr show dev {TAP} scope {scope}"))).unwrap();
    let (host_global, host_local) = (host("global"), host("link"));
    assert_eq!(global[0][..15], host_global[..15], "the prefix of the host");
    for address in [HOST, &host_global, &host_local] {
        ping(&mut a, address);
        ping(&mut b, address);
    }
    for [x, y] in [&v4, &global, &local] {
        ping(&mut a, y);
        ping(&mut b, x);
        for address in [x, y] {
            let address = if address.starts_with("fe80") { format!("{address}%{TAP}") } else { address.clone() };
            lan.command("ping", &format!("-c 3 -i 0.2 -W 5 {address}"));
        }
    }
    // To all at once. Linux answers to such only when told to.
    lan.space.set("ipv4/icmp_echo_ignore_broadcasts", "0");
    for guest in [&mut a, &mut b] {
        guest.ok("echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_broadcasts");
    }
    let to_all = ["192.168.56.255", "224.0.0.1"];
    let others = |said: &str, own: &str| {
        let all = who_answers(said).into_iter().filter(|address| address != own);
        all.collect::<BTreeSet<String>>()
    };
    for address in to_all {
        let said = lan.command("ping", &format!("-b -I {TAP} -c 2 -W 2 {address}"));
        assert_eq!(others(&said, HOST), BTreeSet::from(v4.clone()), "{address} from the host:\n{said}");
        let said = a.ok(&format!("ping -I eth0 -c 2 -W 2 {address}"));
        let wanted = BTreeSet::from([HOST.to_owned(), v4[1].clone()]);
        assert_eq!(others(&said, &v4[0]), wanted, "{address} from a guest:\n{said}");
    }
    let from_host = who_answers(&lan.command("ping", &format!("-c 2 -W 2 ff02::1%{TAP}")));
    assert!(local.iter().all(|address| from_host.contains(address)), "{from_host:?}");
    let from_guest = who_answers(&a.ok("ping -I eth0 -c 2 -W 2 ff02::1"));
    assert!([&host_local, &local[1]].iter().all(|address| from_guest.contains(address)), "{from_guest:?}");
    lan.daemon.assert_alive();
}

fn crosses_unchanged(vmm: Vmm, megabytes: usize) {
    let mut lan = Lan::host_only(&[]);
    let [mut guest] = guests(&lan, [vmm]);
    get_lease(&mut guest);
    assert!(negotiated(&mut guest, feature::HOST_TSO4) && negotiated(&mut guest, feature::GUEST_TSO4));
    crate::data::echo(&lan.space, HOST, &mut guest, megabytes, 3 * COMMAND_WITHIN);
    // Super-frames, from the kernel and to it.
    lan.expect_counter("1", "tx_gso_frames", 100);
    lan.expect_counter("1", "rx_gso_frames", 100);
    lan.expect_counter("uplink", "rx_gso_frames", 100);
    lan.daemon.assert_alive();
}

#[test]
fn much_data_crosses_unchanged_between_the_host_and_user_mode_linux() {
    crosses_unchanged(Vmm::UmlNew, 200);
}

#[test]
fn much_data_crosses_unchanged_between_the_host_and_qemu() {
    crosses_unchanged(Vmm::QemuNew, 200);
}

#[test]
fn iperf3_runs_both_ways_between_the_host_and_a_guest_and_between_guests() {
    let mut lan = Lan::host_only(&[]);
    let [mut a, mut b] = guests(&lan, [Vmm::UmlNew; 2]);
    let addresses = [get_lease(&mut a), get_lease(&mut b)];
    let server = Program::start(&lan.lab, &lan.space, "iperf3", &["-s", "--forceflush"]);
    server.output().wait_for(0, COMMAND_WITHIN, |text| text.contains("listening").then_some(())).unwrap();
    crate::traffic::serve(&mut b);
    for (to, options) in [(HOST, ""), (HOST, "-R"), (HOST, "-u -b 50M"), (&*addresses[1], "")] {
        let output = run_iperf(&mut a, &format!("iperf3 -c {to} -t 1 -i 0 -f m {options}"));
        let rate = output.lines().rev().find_map(|line| line.ends_with("receiver").then(|| rate(line))).flatten();
        assert!(rate.is_some_and(|rate| rate > 1.0), "{to} {options}:\n{output}");
        println!("a guest to {to} {options}: {rate:?} Mb/s");
    }
    lan.daemon.assert_alive();
}

/// Mbit/s in a line of iperf3's.
fn rate(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "Mbits/sec")?;
    words[at.checked_sub(1)?].parse().ok()
}
