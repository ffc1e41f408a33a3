//! DHCP clients that others wrote, on a host-only network: they get a lease, renew it in time, and keep it when
//! guestwire is started again.

use std::collections::BTreeSet;

use crate::guest::{Guest, Plan, Vmm};
use crate::lan::{Lan, address, get_lease, wait_for};

/// Clients renew after half of it.
const LEASE: &str = "2m";
const RENEWAL_SECONDS: u32 = 60;

#[derive(Clone, Copy, Debug)]
enum Client {
    /// busybox's.
    Udhcpc,
    /// ISC's.
    Dhclient,
    Dhcpcd,
}

const CLIENTS: [Client; 3] = [Client::Udhcpc, Client::Dhclient, Client::Dhcpcd];

impl Client {
    /// Starts it, and waits until the guest has an address. It stays, and renews.
    fn begin(self, guest: &mut Guest) -> String {
        match self {
            Self::Udhcpc => return get_lease(guest),
            // In the foreground it writes what it does.
            Self::Dhclient => guest.ok("net-up; dhclient -d -v -lf /tmp/leases -pf /tmp/pid eth0 >/tmp/log 2>&1 &"),
            Self::Dhcpcd => guest.ok("net-up; touch /etc/dhcpcd.conf; dhcpcd -d -4 -j /tmp/log eth0 >/dev/null 2>&1"),
        };
        guest.ok(&wait_for("/bin/ip -4 -o addr show dev eth0 | grep -q inet"));
        address(guest)
    }

    /// A shell command for how often a server has confirmed its lease.
    fn count(self) -> &'static str {
        match self {
            Self::Udhcpc => "grep -c . /run/dhcp.events",
            Self::Dhclient => "grep -c ^DHCPACK /tmp/log",
            Self::Dhcpcd => "grep -c acknowledged /tmp/log",
        }
    }

    fn confirmations(self, guest: &mut Guest) -> u32 {
        guest.ok(self.count()).trim().parse().unwrap()
    }

    /// Waits until its lease was confirmed more often than `before`.
    fn wait_for_more(self, guest: &mut Guest, before: u32) {
        let condition = format!("[ $({}) -gt {before} ]", self.count());
        let job = guest.begin(&format!(
            "for n in $(seq {}); do {condition} && exit 0; sleep 1; done; cat /tmp/log; exit 1",
            RENEWAL_SECONDS * 3 / 2
        ));
        guest.finish(job, std::time::Duration::from_secs(u64::from(RENEWAL_SECONDS) * 2));
    }
}

/// Starts a guest for each client, with what it takes to run it.
fn start(lan: &Lan) -> Vec<(Client, Guest, String)> {
    let initrd = lan.lab.get("CLIENTS_INITRD").to_owned();
    let plans = (1..=3).map(|number| Plan::new(Vmm::QemuNew, number).without_addresses().initrd(initrd.as_ref()));
    let started: Vec<Guest> = plans.map(|plan| plan.start(&lan.lab, &lan.daemon)).collect();
    let with_client = CLIENTS.into_iter().zip(started.into_iter().map(Guest::booted));
    with_client
        .map(|(client, mut guest)| {
            let address = client.begin(&mut guest);
            (client, guest, address)
        })
        .collect()
}

#[test]
fn three_clients_keep_their_leases_when_guestwire_is_started_again() {
    let mut lan = Lan::host_only(&["--lease-time", LEASE]);
    let mut guests = start(&lan);
    // What is left is to wait.
    lan.give_turn_back();
    let all: BTreeSet<&String> = guests.iter().map(|(_, _, address)| address).collect();
    assert_eq!(all.len(), 3, "each has its own");
    for (client, guest, _) in &mut guests {
        // 3 and 121 are never told: there is no way out.
        let routes = guest.ok("/bin/ip route");
        assert!(!routes.contains("default"), "{client:?}: {routes}");
        client.wait_for_more(guest, 1);
    }
    lan.daemon.restart();
    for (client, guest, before) in &mut guests {
        // The host's kernel may have to ask who has the address, and the VMM needs a second to come back.
        guest.ok(&wait_for("ping -c 1 -W 1 192.168.56.1 >/dev/null"));
        assert_eq!(address(guest), *before, "{client:?}");
    }
    for (client, guest, before) in &mut guests {
        let confirmed = client.confirmations(guest);
        client.wait_for_more(guest, confirmed);
        assert_eq!(address(guest), *before, "{client:?}");
        guest.ok("ping -c 1 -W 5 192.168.56.1");
    }
    let leases = std::fs::read_to_string(lan.daemon.folder().join("leases")).unwrap();
    for (client, _, address) in &guests {
        assert!(leases.contains(address.as_str()), "{client:?}: {leases}");
    }
    lan.daemon.assert_alive();
}
