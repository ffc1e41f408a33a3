//! Data between guests whose devices offer different features, and on several queues.

use crate::bench;
use crate::guest::{Guest, Plan, Vmm};
use crate::traffic::{begin_iperf, feature, finish_iperf, iperf, negotiated, ping, send_data, serve};

const MEGABYTES: u32 = 8;
/// How long many flows at once talk.
const SECONDS: u32 = 1;

/// What one side's device leaves out; the rest is on.
#[derive(Clone, Copy, Default)]
struct Without {
    mergeable: bool,
    checksum: bool,
    segmentation: bool,
    event_idx: bool,
    indirect: bool,
}

const NOTHING: Without =
    Without { mergeable: false, checksum: false, segmentation: false, event_idx: false, indirect: false };
const EVERYTHING: Without =
    Without { mergeable: true, checksum: true, segmentation: true, event_idx: true, indirect: true };

impl Without {
    /// Each property of QEMU's device, the feature's bit, and whether the property is to be off.
    fn properties(self) -> [(&'static str, usize, bool); 9] {
        let segmentation = self.segmentation || self.checksum;
        [
            ("mrg_rxbuf", feature::MRG_RXBUF, self.mergeable),
            ("csum", feature::CSUM, self.checksum),
            ("guest_csum", feature::GUEST_CSUM, self.checksum),
            ("host_tso4", feature::HOST_TSO4, segmentation),
            ("host_tso6", feature::HOST_TSO6, segmentation),
            ("guest_tso4", feature::GUEST_TSO4, segmentation),
            ("guest_tso6", feature::GUEST_TSO6, segmentation),
            ("event_idx", feature::EVENT_IDX, self.event_idx),
            ("indirect_desc", feature::INDIRECT_DESC, self.indirect),
        ]
    }

    fn plan(self, vmm: Vmm, number: u8) -> Plan {
        let mut plan = Plan::new(vmm, number);
        if self.segmentation || self.checksum {
            // What stands on segmentation or a checksum goes with it.
            let newer = ["host_uso", "guest_uso4", "guest_uso6"].into_iter().filter(|_| vmm == Vmm::QemuNew);
            for name in ["host_ecn", "guest_ecn", "host_ufo", "guest_ufo"].into_iter().chain(newer) {
                plan = plan.device_option(name, "off");
            }
        }
        self.properties().into_iter().fold(
            plan,
            |plan, (name, _, off)| {
                if off { plan.device_option(name, "off") } else { plan }
            },
        )
    }

    fn assert_negotiated(self, guest: &mut Guest) {
        for (name, bit, off) in self.properties() {
            assert_eq!(negotiated(guest, bit), !off, "{guest}: {name}");
        }
    }
}

fn crosses_unchanged(one: Without, other: Without, four_queues: bool) {
    let mut bench = bench();
    let mut plans = [one.plan(Vmm::Qemu72, 1), other.plan(Vmm::QemuNew, 2)];
    if four_queues {
        plans = plans.map(Plan::four_queues);
    }
    let [a, b] = plans.map(|plan| plan.start(&bench.lab, &bench.daemon));
    let (mut a, mut b) = (a.booted(), b.booted());
    one.assert_negotiated(&mut a);
    other.assert_negotiated(&mut b);
    for guest in [&mut a, &mut b] {
        assert_eq!(negotiated(guest, feature::MQ), four_queues, "{guest}");
        serve(guest);
    }
    ping(&mut a, &b);
    ping(&mut b, &a);
    send_data(&mut a, &mut b, MEGABYTES);
    send_data(&mut b, &mut a, MEGABYTES);
    iperf(&mut a, &b.ip(), "");
    iperf(&mut b, &a.ip(), "");
    if four_queues {
        for guest in [&mut a, &mut b] {
            set_pairs(guest, 1);
        }
        send_data(&mut a, &mut b, MEGABYTES);
        send_data(&mut b, &mut a, MEGABYTES);
    }
    bench.daemon.assert_alive();
}

mod on_one_queue {
    use super::*;

    #[test]
    fn data_crosses_unchanged_between_everything_and_everything() {
        crosses_unchanged(NOTHING, NOTHING, false);
    }

    #[test]
    fn data_crosses_unchanged_between_everything_and_the_barest() {
        crosses_unchanged(NOTHING, EVERYTHING, false);
    }
}

/// And then on one of them.
mod on_four_queues {
    use super::*;

    #[test]
    fn data_crosses_unchanged_between_everything_and_everything() {
        crosses_unchanged(NOTHING, NOTHING, true);
    }

    #[test]
    fn data_crosses_unchanged_between_everything_and_the_barest() {
        crosses_unchanged(NOTHING, EVERYTHING, true);
    }

    #[test]
    fn data_crosses_unchanged_with_mergeable_off_on_both() {
        let without = Without { mergeable: true, ..NOTHING };
        crosses_unchanged(without, without, true);
    }

    #[test]
    fn data_crosses_unchanged_between_segmentation_and_checksum_alone() {
        let one = Without { event_idx: true, ..NOTHING };
        crosses_unchanged(one, Without { segmentation: true, ..NOTHING }, true);
    }

    #[test]
    fn data_crosses_unchanged_between_direct_descriptors_and_no_checksum() {
        let one = Without { indirect: true, mergeable: true, ..NOTHING };
        crosses_unchanged(one, Without { checksum: true, event_idx: true, ..NOTHING }, true);
    }
}

#[test]
fn four_pairs_and_one_pair_exchange_traffic_on_all_queues() {
    let mut bench = bench();
    let plans = [Plan::new(Vmm::Qemu72, 1).four_queues(), Plan::new(Vmm::QemuNew, 2)];
    let [a, b] = plans.map(|plan| plan.start(&bench.lab, &bench.daemon));
    let (mut a, mut b) = (a.booted(), b.booted());
    assert_eq!(current_pairs(&mut a), 4);
    // A driver with a CPU for each pair sends from CPU n on pair n.
    let echoes: Vec<String> =
        (0..4).map(|cpu| format!("taskset {:x} ping -c 20 -i 0.05 -W 5 {} | grep loss &", 1 << cpu, b.ip())).collect();
    let output = a.ok(&format!("{} wait", echoes.join(" ")));
    assert_eq!(output.matches(" 0% packet loss").count(), 4, "{output}");
    for queue in 0..4 {
        // The kernel sends some of them itself, from whichever CPU has learned the address.
        assert!(counter(&mut a, &format!("tx_queue_{queue}_packets")) >= 10, "{}", a.ok("ethtool -S eth0"));
    }
    serve(&mut a);
    serve(&mut b);
    iperf(&mut a, &b.ip(), "");
    // So many flows that each pair has one of them.
    let flows = begin_iperf(&mut b, &a, SECONDS, "-P 32");
    finish_iperf(&mut b, flows, SECONDS);
    for queue in 0..4 {
        assert!(counter(&mut a, &format!("rx_queue_{queue}_packets")) >= 10, "{}", a.ok("ethtool -S eth0"));
    }
    bench.daemon.assert_alive();
}

#[test]
fn a_change_of_pairs_under_traffic_loses_nothing_after_it_settles() {
    const WHILE: u32 = 12;
    let mut bench = bench();
    let plans = [Plan::new(Vmm::Qemu72, 1).four_queues(), Plan::new(Vmm::QemuNew, 2).four_queues()];
    let [a, b] = plans.map(|plan| plan.start(&bench.lab, &bench.daemon));
    let (mut a, mut b) = (a.booted(), b.booted());
    serve(&mut b);
    let traffic = begin_iperf(&mut a, &b, WHILE, "-P 4");
    for pairs in [1, 3, 4, 2, 4, 1, 4] {
        for guest in [&mut a, &mut b] {
            set_pairs(guest, pairs);
        }
        ping(&mut b, &a);
    }
    finish_iperf(&mut a, traffic, WHILE);
    ping(&mut a, &b);
    send_data(&mut a, &mut b, MEGABYTES);
    send_data(&mut b, &mut a, MEGABYTES);
    bench.daemon.assert_alive();
}

fn set_pairs(guest: &mut Guest, pairs: u32) {
    guest.ok(&format!("ethtool -L eth0 combined {pairs}"));
    assert_eq!(current_pairs(guest), pairs);
}

/// How many pairs the driver uses at the moment: the second number that ethtool calls "Combined".
fn current_pairs(guest: &mut Guest) -> u32 {
    let output = guest.ok("ethtool -l eth0");
    let combined = output.lines().filter_map(|line| line.strip_prefix("Combined:")).nth(1);
    combined.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("{guest}:\n{output}"))
}

/// One of the driver's own counters.
fn counter(guest: &mut Guest, name: &str) -> u64 {
    let output = guest.ok("ethtool -S eth0");
    let value = output.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{guest} has no counter {name}:\n{output}"))
}
