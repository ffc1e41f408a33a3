//! Guests of every kind on one socket reach each other.

use crate::bench;
use crate::daemon::Daemon;
use crate::guest::{Guest, Plan, Vmm};
use crate::traffic::{feature, iperf, negotiated, ping, serve};

#[test]
fn two_user_mode_linuxes_and_qemu_7_2_reach_each_other() {
    three_guests(Plan::new(Vmm::Qemu72, 3));
}

#[test]
fn two_user_mode_linuxes_and_the_newer_qemu_with_four_queues_reach_each_other() {
    three_guests(Plan::new(Vmm::QemuNew, 3).four_queues());
}

#[test]
fn the_lines_that_guestwire_prints_attach_guests_of_old_and_new_qemus() {
    let mut bench = bench();
    // The second guest changes its address.
    bench.daemon = Daemon::with(&["-v", "--port-security", "off"]);
    let start = |vmm, number| Plan::new(vmm, number).by_printed_line().start(&bench.lab, &bench.daemon);
    let (old, new) = (start(Vmm::Qemu72, 1), start(Vmm::QemuNew, 2));
    let (mut old, mut new) = (old.booted(), new.booted());
    // Both were started by the line for the first VM, and two VMs must differ.
    new.ok("ip link set eth0 address 02:00:00:00:00:99 && ip addr");
    ping(&mut old, &new);
    ping(&mut new, &old);
    bench.daemon.assert_alive();
}

fn three_guests(qemu: Plan) {
    let mut bench = bench();
    let plans = [Plan::new(Vmm::Uml61, 1), Plan::new(Vmm::UmlNew, 2), qemu];
    let started: Vec<Guest> = plans.into_iter().map(|plan| plan.start(&bench.lab, &bench.daemon)).collect();
    let mut guests: Vec<Guest> = started.into_iter().map(Guest::booted).collect();
    for guest in &mut guests {
        assert!(negotiated(guest, feature::VERSION_1), "{guest} is not a virtio 1 driver");
        // User Mode Linux hands its control queue to us, and waits for ever for an answer to what it asks there.
        assert!(negotiated(guest, feature::CTRL_VQ), "{guest} has no control queue");
        guest.ok("ip link set eth0 promisc on && ip link set eth0 promisc off");
        assert!(negotiated(guest, feature::MRG_RXBUF), "{guest} has no mergeable buffers");
        assert!(negotiated(guest, feature::HOST_TSO4), "{guest} sends no TSO frames");
        assert!(negotiated(guest, feature::GUEST_TSO4), "{guest} takes no TSO frames");
        serve(guest);
    }
    for from in 0..guests.len() {
        for to in (0..guests.len()).filter(|&to| to != from) {
            let (from, to) = pair(&mut guests, from, to);
            ping(from, to);
            iperf(from, &to.ip(), "");
        }
    }
    for guest in guests {
        guest.power_off();
    }
    bench.daemon.assert_alive();
}

/// Two of the guests, the first of them to be driven.
fn pair(guests: &mut [Guest], from: usize, to: usize) -> (&mut Guest, &Guest) {
    let [from, to] = guests.get_disjoint_mut([from, to]).expect("two different guests");
    (from, to)
}
