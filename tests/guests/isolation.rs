//! A host that routes and masquerades, and a real guest of a host-only network that does all it can to get out by it.
//!
//! `tests/wire` has a guest that makes up its frames; here a kernel makes them.

use crate::guest::{COMMAND_WITHIN, Guest, Job, Plan, Vmm};
use crate::lan::{Lan, Program, first_address, get_lease, link_local, unique_local, until};
use crate::space::Space;

const TAP: &str = "gw-host-only";
const OUTSIDE: &str = "198.51.100.2";
const OUTSIDE6: &str = "2001:db8:1::2";
/// A port that only a frame after all others has.
const LAST_PORT: u16 = 9999;

const MASQUERADE: &str = "table ip gw {
    chain post {
        type nat hook postrouting priority 100
        oifname \"out0\" masquerade
    }
}
table ip6 gw {
    chain post {
        type nat hook postrouting priority 100
        oifname \"out0\" masquerade
    }
}
";

/// Makes the host route and masquerade to `outside`, and a neighbour whom it routes for.
fn let_everybody_out(lan: &Lan, outside: &Space, neighbour: &Space) {
    let host = &lan.space;
    host.set("ipv4/ip_forward", "1");
    host.set("ipv6/conf/all/forwarding", "1");
    host.cable("out0", outside, "in0");
    host.cable("near0", neighbour, "far0");
    for (space, interface, v4, v6) in [
        (host, "out0", "198.51.100.1/24", "2001:db8:1::1/64"),
        (outside, "in0", "198.51.100.2/24", "2001:db8:1::2/64"),
        (host, "near0", "10.77.0.1/24", "2001:db8:77::1/64"),
        (neighbour, "far0", "10.77.0.2/24", "2001:db8:77::2/64"),
    ] {
        space.ip(&format!("addr add {v4} dev {interface}"));
        space.ip(&format!("-6 addr add {v6} dev {interface} nodad"));
    }
    neighbour.ip("route add default via 10.77.0.1");
    neighbour.ip("-6 route add default via 2001:db8:77::1");
    // The way back, should it be needed.
    outside.ip("route add default via 198.51.100.1");
    outside.ip("-6 route add default via 2001:db8:1::1");
    let rules = lan.daemon.folder().join("rules");
    std::fs::write(&rules, MASQUERADE).unwrap();
    lan.command("nft", &format!("-f {}", rules.display()));
}

/// Does what a guest can do to get out. None of it may succeed.
fn attempt_all(guest: &mut Guest, host_local: &str) {
    guest.ok("/bin/ip route add default via 192.168.56.1 dev eth0");
    guest.ok(&format!("/bin/ip -6 route add default via {host_local} dev eth0"));
    in_vain(guest, &from_own_addresses());
    guest.ok("/bin/ip addr add 203.0.113.7/32 dev eth0 && /bin/ip -6 addr add 2001:db8:9::7/128 dev eth0 nodad");
    guest.ok("/bin/ip route add 239.0.0.0/8 dev eth0");
    in_vain(guest, &from_elsewhere(host_local));
}

/// Runs commands side by side, since each waits for answers. They must fail.
fn in_vain(guest: &mut Guest, attempts: &[String]) {
    let begin = |attempt: &String| guest.begin(&format!("if {attempt}; then echo '{attempt}' got out; exit 1; fi"));
    let jobs: Vec<Job> = attempts.iter().map(begin).collect();
    for job in jobs {
        guest.finish(job, COMMAND_WITHIN);
    }
}

fn from_own_addresses() -> Vec<String> {
    let mut all = Vec::new();
    for address in [OUTSIDE, OUTSIDE6, "198.51.100.1", "2001:db8:1::1", "10.77.0.2", "2001:db8:77::2"] {
        all.push(format!("ping -c 2 -i 0.2 -W 1 {address}"));
        // In fragments.
        all.push(format!("ping -c 1 -W 1 -s 4000 {address}"));
        all.push(format!("nc -w 1 {address} 80 </dev/null"));
    }
    all
}

fn from_elsewhere(host_local: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (source, addresses) in [("203.0.113.7", ["192.168.56.1", OUTSIDE]), ("2001:db8:9::7", [host_local, OUTSIDE6])] {
        for address in addresses {
            let scope = if address.starts_with("fe80") { "%eth0" } else { "" };
            all.push(format!("ping -c 1 -W 1 -I {source} {address}{scope}"));
            all.push(format!("ping -c 1 -W 1 -s 4000 -I {source} {address}{scope}"));
        }
    }
    // To groups that a router would pass on, farther than one hop.
    all.push("ping -c 1 -W 1 -t 9 239.1.1.1".to_owned());
    all
}

fn no_real_guest_gets_out(options: &[&str]) {
    let mut lan = Lan::host_only(options);
    let (outside, neighbour) = (Space::new(), Space::new());
    let_everybody_out(&lan, &outside, &neighbour);
    let mut guest = Plan::new(Vmm::UmlNew, 1).without_addresses().start(&lan.lab, &lan.daemon).booted();
    let v4 = get_lease(&mut guest);
    let (v6, local6) = (unique_local(&mut guest), link_local(&mut guest));
    let host_local = first_address(&lan.space.ip(&format!("-6 -o addr show dev {TAP} scope link"))).unwrap();

    // All that is no talk among neighbours.
    let quiet = "not arp and not (icmp6 and (ip6[40] >= 130 and ip6[40] <= 143))";
    let listen = ["-i", "in0", "-n", "-l", "--immediate-mode", "-Z", "root", quiet];
    let ear = Program::start(&lan.lab, &outside, "tcpdump", &listen);
    ear.output().wait_for(0, crate::lan::PATIENCE, |text| text.contains("listening on").then_some(())).unwrap();
    // The way out works, for those who may use it.
    let ping = format!("{}/ping", lan.lab.get("NET_BIN"));
    for address in [OUTSIDE, OUTSIDE6] {
        neighbour.command(&ping, &format!("-c 1 -W 5 {address}"));
    }
    let heard = |text: &str| ["198.51.100.1 >", "2001:db8:1::1 >"].iter().all(|from| text.contains(from)).then_some(());
    ear.output().wait_for(0, crate::lan::PATIENCE, heard).expect("the neighbour is masqueraded");
    guest.ok("ping -c 1 -W 5 192.168.56.1");
    let from = ear.output().len();

    attempt_all(&mut guest, &host_local);
    lan.space.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"last", (OUTSIDE, LAST_PORT)).unwrap();
    });
    let last = format!(".{LAST_PORT}:");
    let said = ear.output().wait_for(from, crate::lan::PATIENCE, |text| {
        text.contains(&last).then(|| text.lines().filter(|line| !line.contains(&last)).collect::<Vec<_>>().join("\n"))
    });
    let said = said.expect("tcpdump hears the last frame");
    // What the neighbour outside says to the last one, and what kernels tell their own link of groups they are in.
    let is_chatter = |line: &&str| line.contains("port 9999 unreachable") || line.contains("> ff02::16: ");
    let said: Vec<&str> = said.lines().filter(|line| !is_chatter(line)).collect();
    assert_eq!(said, [""; 0], "this has come out");
    lan.expect_counter("1", "drop_tx_outside_subnet", 20);
    let counters = lan.counters("1");
    let about_sources = ["drop_tx_foreign_source", "drop_tx_spoofed_ip"].map(|name| counters[name].as_u64().unwrap());
    assert!(about_sources.iter().sum::<u64>() >= 2, "{counters}");

    // Nor does anybody get in, though the host would pass them on and the guest has a way back by now.
    let echoes = |guest: &mut Guest| {
        let v4 = guest.ok("sed -n 's/^Icmp: \\([0-9].*\\)/\\1/p' /proc/net/snmp | awk '{ print $9 }'");
        let v6 = guest.ok("awk '/^Icmp6InEchos/ { print $2 }' /proc/net/snmp6");
        (v4.trim().to_owned(), v6.trim().to_owned())
    };
    let before = echoes(&mut guest);
    for address in [&v4, &v6] {
        let words = [ping.as_str(), "-c", "3", "-i", "0.2", "-W", "1", address];
        let status = outside.run(|| std::process::Command::new(words[0]).args(&words[1..]).status().unwrap());
        assert!(!status.success(), "{address} was reached from outside");
    }
    until("echo requests are refused", || {
        let counters = lan.counters("uplink");
        counters["drop_tx_foreign_source"].as_u64().is_some_and(|count| count >= 2).then_some(()).ok_or(counters)
    });
    assert_eq!(echoes(&mut guest), before, "the guest has heard of somebody outside");
    for address in [v4, v6, format!("{local6}%{TAP}")] {
        lan.command("ping", &format!("-c 1 -W 5 {address}"));
    }
    lan.daemon.assert_alive();
}

#[test]
fn no_real_guest_gets_out_of_a_host_only_network() {
    no_real_guest_gets_out(&[]);
}

#[test]
fn no_real_guest_gets_out_without_port_security_either() {
    no_real_guest_gets_out(&["--port-security", "off"]);
}
