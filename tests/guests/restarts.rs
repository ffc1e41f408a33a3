//! Guests that come and go while others exchange traffic: the others lose nothing.

use crate::bench;
use crate::guest::{Guest, Plan, Vmm};
use crate::traffic::{begin_iperf, begin_lossless, finish_iperf, finish_lossless, iperf, ping, send_data, serve};

/// What is done to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    RebindsDriver,
    Reboots,
    IsKilled,
}

impl Change {
    /// How long the two others talk, in seconds: longer than it takes.
    fn lasts(self) -> u32 {
        if self == Self::RebindsDriver { 5 } else { 10 }
    }
}

/// Changes a third guest again and again while two User Mode Linuxes exchange echoes and a TCP stream. After each
/// change all three reach each other.
fn two_others_lose_nothing(vmm: Vmm, changes: &[Change]) {
    let mut bench = bench();
    let plans = [Plan::new(Vmm::Uml61, 1), Plan::new(Vmm::UmlNew, 2)];
    let [a, b] = plans.map(|plan| plan.start(&bench.lab, &bench.daemon));
    let third = || Plan::new(vmm, 3).start(&bench.lab, &bench.daemon);
    let changing = third();
    let (mut a, mut b, mut changing) = (a.booted(), b.booted(), changing.booted());
    serve(&mut b);
    for &change in changes {
        ping(&mut changing, &a);
        let seconds = change.lasts();
        let echoes = begin_lossless(&mut a, &b, seconds);
        // With a window that fits in the receiver's ring, so that it loses nothing even when its CPU is busy elsewhere.
        let stream = begin_iperf(&mut a, &b, seconds, "-b 50M -w 32K");
        // A stream into the guest that goes: what becomes of it is its own affair.
        serve(&mut changing);
        begin_iperf(&mut b, &changing, seconds / 2, "-b 20M --connect-timeout 3000");

        match change {
            Change::RebindsDriver => rebind_driver(&mut changing),
            Change::Reboots => changing.reboot(),
            Change::IsKilled => {
                changing.kill();
                changing = third().booted();
            }
        }

        finish_lossless(&mut a, echoes, seconds);
        finish_iperf(&mut a, stream, seconds);
        for other in [&mut a, &mut b] {
            ping(&mut changing, other);
            ping(other, &changing);
        }
        send_data(&mut a, &mut changing, 4);
        send_data(&mut changing, &mut a, 4);
        iperf(&mut changing, &b.ip(), "");
    }
    bench.daemon.assert_alive();
}

fn rebind_driver(guest: &mut Guest) {
    for _ in 0..3 {
        guest.ok(concat!(
            "name=$(basename $(readlink -f /sys/class/net/eth0/device)) && cd /sys/bus/virtio/drivers/virtio_net",
            " && echo $name >unbind && echo $name >bind && net-up"
        ));
    }
}

#[test]
fn qemu_7_2_unbinds_its_driver_and_reboots_and_is_killed_under_traffic() {
    two_others_lose_nothing(Vmm::Qemu72, &[Change::RebindsDriver, Change::Reboots, Change::IsKilled]);
}

#[test]
fn the_newer_qemu_unbinds_its_driver_and_reboots_under_traffic() {
    two_others_lose_nothing(Vmm::QemuNew, &[Change::RebindsDriver, Change::Reboots]);
}

#[test]
fn user_mode_linux_unbinds_its_driver_and_is_killed_under_traffic() {
    two_others_lose_nothing(Vmm::UmlNew, &[Change::RebindsDriver, Change::IsKilled]);
}
