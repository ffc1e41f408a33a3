//! Names for guests of a NAT network, on a host whose resolver is dnsmasq.

use tempfile::TempDir;

use crate::Turn;
use crate::daemon::Daemon;
use crate::guest::{Guest, Plan, Vmm};
use crate::lab::Lab;
use crate::lan::{Program, get_lease, unique_local, until};
use crate::space::Space;

const GATEWAY: &str = "10.0.2.1";

/// Asks a name server of a guest's busybox.
fn lookup(guest: &mut Guest, kind: &str, name: &str, server: &str) -> (i32, String) {
    let result = guest.run(&format!("nslookup -type={kind} {name} {server}"), crate::guest::COMMAND_WITHIN);
    (result.code, result.output)
}

#[test]
fn guests_ask_the_hosts_dnsmasq_and_find_each_other() {
    let _turn = Turn::wait();
    let (host, lab, folder) = (Space::new(), Lab::prepared(), TempDir::with_prefix("guestwire-dns-").unwrap());
    let conf = folder.path().join("resolv.conf");
    std::fs::write(&conf, "nameserver 127.0.0.1\n").unwrap();
    let options = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        "--log-facility=-",
        "--log-queries",
        "--address=/outside.example/203.0.113.9",
        "--address=/outside.example/2001:db8::9",
        "--host-record=printer,printer.local,192.168.7.7",
    ];
    let dnsmasq = Program::start(&lab, &host, "dnsmasq", &options);
    until("dnsmasq", || {
        let said = dnsmasq.output().tail(20);
        if said.contains("started") { Ok(()) } else { Err(said) }
    });
    let mount = format!("mount --bind {} /etc/resolv.conf && exec \"$0\" \"$@\"", conf.display());
    let under = ["unshare", "--mount", "sh", "-c", &mount].map(str::to_owned);
    let under: Vec<String> = host.enter().into_iter().chain(under).collect();
    let always = ["-v", "--leases", "DIR/leases", "--domain", "lab.example"];
    let mut daemon = Daemon::run_as_nobody(&under, "nat", &always);
    let [mut one, mut two] = [1, 2].map(|number| {
        let guest = Plan::new(Vmm::UmlNew, number).without_addresses().start(&lab, &daemon);
        let mut guest = guest.booted();
        guest.ok(&format!("hostname guest-{number}"));
        guest
    });
    let addresses = [&mut one, &mut two].map(|guest| {
        let address = get_lease(guest);
        let name = guest.ok("hostname");
        guest.ok(&format!("udhcpc -i eth0 -n -q -F {} -r {address}", name.trim()));
        unique_local(guest);
        address
    });
    for (kind, expected) in [("a", "203.0.113.9"), ("aaaa", "2001:db8::9")] {
        let (code, output) = lookup(&mut one, kind, "www.outside.example", GATEWAY);
        assert!(code == 0 && output.contains(expected), "{output}");
    }
    for name in ["guest-2", "guest-2.lab.example"] {
        let (code, output) = lookup(&mut one, "a", name, GATEWAY);
        assert!(code == 0 && output.contains(&addresses[1]), "{output}");
    }
    let octets: Vec<&str> = addresses[0].rsplit('.').collect();
    let (code, output) = lookup(&mut two, "ptr", &format!("{}.in-addr.arpa", octets.join(".")), GATEWAY);
    assert!(code == 0 && output.contains("guest-1.lab.example"), "{output}");
    for name in ["printer", "printer.local", "_gateway"] {
        let (_, output) = lookup(&mut one, "a", name, GATEWAY);
        assert!(output.contains("NXDOMAIN") && !output.contains("192.168.7.7"), "{output}");
    }
    let said = dnsmasq.output().tail(200);
    assert!(said.contains("www.outside.example") && !said.contains("printer") && !said.contains("guest-"), "{said}");
    daemon.assert_alive();
}
