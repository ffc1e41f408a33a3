//! An internal network has nothing of the host's: no interface, no socket but those of its VMs.

use std::collections::BTreeMap;
use std::fs;

use crate::guest::{Plan, Vmm};
use crate::lan::{Lan, get_lease};
use crate::traffic::ping;

/// The kinds of descriptors that the process may have, by what they are links to (proc(5)). The last is a file without
/// a name: guests' memory, and the end of a session's own connection.
const ALLOWED: [&str; 6] = [
    "anon_inode:[eventfd]",
    "anon_inode:[eventpoll]",
    "anon_inode:[signalfd]",
    "anon_inode:[timerfd]",
    "pipe:",
    " (deleted)",
];

/// What each descriptor of a process is.
fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
    entries.filter_map(|entry| target(entry.unwrap())).map(|path| path.display().to_string()).collect()
}

/// The sockets of a process's namespace, by inode: the protocol's name and the line that lists it. Every protocol that
/// the kernel lists is looked at.
fn sockets(pid: u32) -> BTreeMap<String, (String, String)> {
    // The column that the inode is in, from the left (proc_net(5)).
    let tables = [
        ("unix", 6),
        ("netlink", 9),
        ("packet", 8),
        ("tcp", 9),
        ("tcp6", 9),
        ("udp", 9),
        ("udp6", 9),
        ("raw", 9),
        ("raw6", 9),
        ("icmp", 9),
        ("icmp6", 9),
    ];
    let mut all = BTreeMap::new();
    for (name, column) in tables {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let inode = line.split_whitespace().nth(column);
            all.extend(inode.map(|inode| (inode.to_owned(), (name.to_owned(), line.to_owned()))));
        }
    }
    all
}

/// Asserts that the process has nothing but what VMs need of it. Returns how many sockets there are.
fn has_nothing_of_the_hosts(lan: &Lan) -> usize {
    let pid = lan.daemon.pid();
    let mut known = sockets(pid);
    // A VM's connection counts as one of the namespace that the VMM is in: ours.
    known.extend(sockets(std::process::id()).into_iter().filter(|(_, (protocol, _))| protocol == "unix"));
    let folder = lan.daemon.folder().display().to_string();
    // What whoever runs the tests has left open.
    let inherited = descriptors(std::process::id());
    let private = std::env::temp_dir().join("guestwire-").display().to_string();
    let mut count = 0;
    for target in descriptors(pid) {
        if let Some(inode) = target.strip_prefix("socket:[") {
            let inode = inode.trim_end_matches(']');
            let (protocol, line) = known.get(inode).unwrap_or_else(|| panic!("socket {inode} is of no known protocol"));
            let path = line.split_whitespace().nth(7).unwrap_or(&folder);
            // The socket that VMs connect to; and the connection of a session's two halves.
            let is_vms = path.starts_with(&folder) || path.starts_with(&private) && path.ends_with("/private");
            assert!(protocol == "unix" && is_vms, "{protocol}: {line}");
            count += 1;
        } else {
            let is_allowed = ALLOWED.iter().any(|kind| target.starts_with(kind) || target.ends_with(kind));
            assert!(is_allowed || target.starts_with(&folder) || inherited.contains(&target), "{target}");
        }
    }
    count
}

fn nothing_of_the_hosts_is_touched(options: &[&str], with_dhcp: bool) {
    let before = links_of_a_new_space();
    let mut lan = Lan::start("internal", options);
    let plans = [1, 2].map(|number| Plan::new(Vmm::UmlNew, number));
    let plans = if with_dhcp { plans.map(Plan::without_addresses) } else { plans };
    let mut guests = plans.map(|plan| plan.start(&lan.lab, &lan.daemon)).map(crate::guest::Guest::booted);
    if with_dhcp {
        let addresses = guests.each_mut().map(get_lease);
        guests[0].ok(&format!("ping -c 3 -W 5 {}", addresses[1]));
    } else {
        let [a, b] = &mut guests;
        ping(a, b);
    }
    // The listener, and two ends or more for each VM.
    assert!(has_nothing_of_the_hosts(&lan) >= 3);
    assert_eq!(lan.space.ip("-o link"), before, "an interface has come or changed");
    assert!(lan.space.ip("route show table all").lines().all(|line| line.contains("dev lo")));
    lan.daemon.assert_alive();
    drop(guests);
    assert!(has_nothing_of_the_hosts(&lan) >= 1);
}

/// What a namespace lists in which nobody has made anything.
fn links_of_a_new_space() -> String {
    crate::space::Space::new().ip("-o link")
}

#[test]
fn an_internal_network_has_no_interface_and_no_socket_but_its_vms() {
    nothing_of_the_hosts_is_touched(&["-v"], false);
}

#[test]
fn the_same_with_dhcp() {
    let options = ["-v", "--dhcp", "--subnet", "10.1.0.0/24", "--leases", "DIR/leases"];
    nothing_of_the_hosts_is_touched(&options, true);
}
