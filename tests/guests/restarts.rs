//! Guests that come and go while others exchange traffic: the others lose nothing.

use crate::bench;
use crate::guest::{Guest, Plan, Vmm};
use crate::traffic::{begin_iperf, begin_lossless, finish_iperf, finish_lossless, iperf, ping, send_data, serve};

/// How long the two others talk, in seconds.
const WHILE: u32 = 10;

/// Runs `change` on a third guest while two User Mode Linuxes exchange echoes and a TCP stream; then all three reach
/// each other.
fn while_two_others_talk(vmm: Vmm, change: impl FnOnce(Guest, &mut dyn FnMut() -> Guest) -> Guest) {
    let mut bench = bench();
    let plans = [Plan::new(Vmm::Uml61, 1), Plan::new(Vmm::UmlNew, 2)];
    let [a, b] = plans.map(|plan| plan.start(&bench.lab, &bench.daemon));
    let mut third = || Plan::new(vmm, 3).start(&bench.lab, &bench.daemon);
    let changing = third();
    let (mut a, mut b, mut changing) = (a.booted(), b.booted(), changing.booted());
    ping(&mut changing, &a);
    serve(&mut b);
    let echoes = begin_lossless(&mut a, &b, WHILE);
    // With a window that fits in the receiver's ring, so that it loses nothing even when its CPU is busy elsewhere.
    let stream = begin_iperf(&mut a, &b, WHILE, "-b 50M -w 32K");
    serve(&mut changing);
    // A stream into the guest that goes: what becomes of it is its own affair.
    begin_iperf(&mut b, &changing, WHILE / 2, "-b 20M --connect-timeout 3000");

    let mut changed = change(changing, &mut third);

    finish_lossless(&mut a, echoes, WHILE);
    finish_iperf(&mut a, stream, WHILE);
    for other in [&mut a, &mut b] {
        ping(&mut changed, other);
        ping(other, &changed);
    }
    send_data(&mut a, &mut changed, 4);
    send_data(&mut changed, &mut a, 4);
    iperf(&mut changed, &b, 2);
    bench.daemon.assert_alive();
}

fn rebind_driver(mut guest: Guest) -> Guest {
    for _ in 0..3 {
        guest.ok(concat!(
            "name=$(basename $(readlink -f /sys/class/net/eth0/device)) && cd /sys/bus/virtio/drivers/virtio_net",
            " && echo $name >unbind && echo $name >bind && net-up"
        ));
    }
    guest
}

#[test]
fn qemu_7_2_unbinds_and_binds_its_driver_under_traffic() {
    while_two_others_talk(Vmm::Qemu72, |guest, _| rebind_driver(guest));
}

#[test]
fn the_newer_qemu_unbinds_and_binds_its_driver_under_traffic() {
    while_two_others_talk(Vmm::QemuNew, |guest, _| rebind_driver(guest));
}

#[test]
fn user_mode_linux_unbinds_and_binds_its_driver_under_traffic() {
    while_two_others_talk(Vmm::UmlNew, |guest, _| rebind_driver(guest));
}

#[test]
fn qemu_7_2_reboots_under_traffic() {
    while_two_others_talk(Vmm::Qemu72, |mut guest, _| {
        guest.reboot();
        guest
    });
}

#[test]
fn the_newer_qemu_reboots_under_traffic() {
    while_two_others_talk(Vmm::QemuNew, |mut guest, _| {
        guest.reboot();
        guest
    });
}

#[test]
fn qemu_is_killed_and_started_again_while_two_others_lose_nothing() {
    while_two_others_talk(Vmm::Qemu72, |guest, start| {
        guest.kill();
        start().booted()
    });
}

#[test]
fn user_mode_linux_is_killed_and_started_again_while_two_others_lose_nothing() {
    while_two_others_talk(Vmm::UmlNew, |guest, start| {
        guest.kill();
        start().booted()
    });
}
