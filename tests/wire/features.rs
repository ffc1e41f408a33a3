//! Each feature with a driver that uses it and with one that does not.

use std::time::Duration;

use guestwire::vhost::features as f;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::daemon::{Daemon, until};
use crate::guest::{Config, Guest, introduce, mac, plain};
use crate::memory::BASE;

const OFFLOADS: u64 = f::CSUM
    | f::GUEST_CSUM
    | f::HOST_TSO4
    | f::HOST_TSO6
    | f::GUEST_TSO4
    | f::GUEST_TSO6
    | f::HOST_ECN
    | f::GUEST_ECN
    | f::HOST_USO
    | f::GUEST_USO4
    | f::GUEST_USO6;

/// Features that a driver may take or leave, one by one, without a change in what it can do.
const SINGLE: &[u64] = &[
    f::VERSION_1,
    f::MRG_RXBUF,
    f::CSUM,
    f::GUEST_CSUM,
    f::HOST_TSO4,
    f::HOST_TSO6,
    f::GUEST_TSO4,
    f::GUEST_TSO6,
    f::HOST_ECN,
    f::GUEST_ECN,
    f::HOST_USO,
    f::GUEST_USO4,
    f::GUEST_USO6,
    f::INDIRECT_DESC,
    f::EVENT_IDX,
    f::IN_ORDER,
    f::MAC,
    f::STATUS,
    f::CTRL_VQ,
];

#[test]
fn a_driver_with_any_one_feature_and_one_without_it_talk() {
    let mut daemon = Daemon::with(&[], false);
    let mut plainest = Guest::attach(&daemon.socket(), Config { features: f::PROTOCOL_FEATURES, ..Config::usual(1) });
    assert_eq!(plainest.header_len(), 10);
    for (i, &feature) in SINGLE.iter().enumerate() {
        for config in [
            Config { features: f::PROTOCOL_FEATURES | feature, ..Config::usual(2 + i as u8) },
            Config { features: f::OFFERED & !feature & !(f::CTRL_VQ | f::MQ), ..Config::usual(40 + i as u8) },
        ] {
            let mut guest = Guest::attach(&daemon.socket(), config);
            introduce(&mut guest, &mut plainest);
            introduce(&mut plainest, &mut guest);
        }
    }
    daemon.assert_alive();
    assert_eq!(daemon.warnings(), Vec::<String>::new());
}

#[test]
fn what_is_offered_is_what_is_implemented_and_nothing_else() {
    let daemon = Daemon::with(&[], false);
    let guest = Guest::prepare(&daemon.socket(), Config { features: u64::MAX, ..Config::usual(1) });
    assert_eq!(guest.features, f::OFFERED, "{}", f::names(guest.features ^ f::OFFERED));
}

#[test]
fn offload_off_is_not_offered_and_holds_for_frames() {
    let mut daemon = Daemon::with(&["--offload", "off", "--stats-interval", "0.02"], true);
    let mut a = Guest::attach(&daemon.socket(), Config::usual(1));
    assert_eq!(a.features & OFFLOADS, 0);
    let mut b = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut a, &mut b);
    // What was not negotiated is not looked at: the header of such a driver means nothing (virtio 1.3, 5.1.6.2).
    let frame = crate::packet::tcp(1, 2, 0, &[7; 3000], true);
    a.send_with(&crate::packet::header(true, true), &frame, &[]);
    let received = b.receive();
    assert!(!received.needs_checksum() && received.gso_type() == 0);
    assert_eq!(received.frame, frame);
    daemon.assert_alive();
}

#[test]
fn offloads_are_masked_one_by_one() {
    let daemon = Daemon::with(&["--offload", "tso=off"], false);
    let guest = Guest::prepare(&daemon.socket(), Config { features: u64::MAX, ..Config::usual(1) });
    let tso = f::HOST_TSO4 | f::HOST_TSO6 | f::GUEST_TSO4 | f::GUEST_TSO6 | f::HOST_ECN | f::GUEST_ECN;
    assert_eq!(guest.features, f::OFFERED & !tso);
}

#[test]
fn an_mtu_is_told_when_there_is_one() {
    let config = Config { features: u64::MAX, ..Config::usual(1) };
    let with = Daemon::with(&["--mtu", "9000"], false);
    let mut guest = Guest::prepare(&with.socket(), config);
    assert!(guest.has(f::MTU));
    assert_eq!(guest.read_config(10, 2), 9000u16.to_le_bytes());
    let without = Daemon::with(&[], false);
    assert!(!Guest::prepare(&without.socket(), config).has(f::MTU));
}

#[test]
fn the_configuration_has_address_status_and_pairs() {
    let daemon = Daemon::with(&[], false);
    let config = Config { features: u64::MAX, ..Config::usual(1) };
    let (mut a, mut b) = (Guest::prepare(&daemon.socket(), config), Guest::prepare(&daemon.socket(), config));
    let (one, other) = (a.read_config(0, 10), b.read_config(0, 10));
    assert_ne!(one[..6], other[..6], "each guest its own address");
    assert_eq!(one[0] & 3, 2, "locally administered, not a group");
    assert_eq!(one[6..], [1, 0, 1, 0]);
    let told = Daemon::with(&["--queue-pairs", "16"], false);
    assert_eq!(Guest::prepare(&told.socket(), config).read_config(6, 4), [1, 0, 16, 0]);
}

#[test]
fn memory_may_come_region_by_region_and_go_again() {
    let mut daemon = Daemon::with(&[], false);
    let mut a = Guest::attach(&daemon.socket(), Config { by_region: true, ..Config::usual(1) });
    let mut b = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut a, &mut b);
    // Memory that is plugged in and out beside what is in use disturbs nothing.
    let plugged = crate::memory::Memory::new(1 << 20);
    use std::os::fd::AsRawFd;
    let region = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: BASE + (1 << 32),
        memory_size: 1 << 20,
        userspace_addr: plugged.user_address(),
        mmap_offset: 0,
        mmap_handle: plugged.fd.as_raw_fd(),
    };
    for i in 0..1000u32 {
        a.frontend.add_mem_region(&region).expect("ADD_MEM_REG");
        a.send(&plain(mac(2), mac(1), &i.to_le_bytes()));
        assert_eq!(b.receive().frame[14..], i.to_le_bytes());
        a.frontend.remove_mem_region(&region).expect("REM_MEM_REG");
    }
    assert_eq!(a.frontend.get_max_mem_slots().expect("GET_MAX_MEM_SLOTS"), 509);
    daemon.assert_alive();
}

#[test]
fn buffers_may_cross_from_one_region_of_memory_into_the_next() {
    let mut daemon = Daemon::with(&[], false);
    for (regions, by_region) in [(2, false), (3, true), (8, false), (8, true)] {
        // One long buffer for each frame, so that many have a border in them.
        let config = |number| Config { regions, by_region, ..Config::usual(number).without(f::MRG_RXBUF) };
        let (mut a, mut b) = (Guest::attach(&daemon.socket(), config(1)), Guest::attach(&daemon.socket(), config(2)));
        introduce(&mut a, &mut b);
        let payload: Vec<u8> = (0..65_000u32).map(|n| (n % 251) as u8).collect();
        for n in 0..130u8 {
            let frame = plain(mac(2), mac(1), &[&[n], &payload[..]].concat());
            a.send(&frame);
            assert!(b.receive().frame == frame, "frame {n} over {regions} regions");
        }
    }
    daemon.assert_alive();
}

#[test]
fn a_disabled_transmit_ring_is_drained_and_discarded() {
    let daemon = Daemon::start();
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), Config::usual(1)), Guest::attach(&daemon.socket(), Config::usual(2)));
    introduce(&mut a, &mut b);
    a.enable(1, false);
    for _ in 0..10 {
        a.send(&plain(mac(2), mac(1), b"lost"));
    }
    until("all given back", || a.all_sent(0));
    daemon.expect_counter(0, "drop_tx_disabled", 10);
    a.enable(1, true);
    a.send(&plain(mac(2), mac(1), b"heard"));
    assert_eq!(b.receive().frame[14..], *b"heard");
}

#[test]
fn a_disabled_receive_ring_gets_nothing() {
    let daemon = Daemon::start();
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), Config::usual(1)), Guest::attach(&daemon.socket(), Config::usual(2)));
    introduce(&mut a, &mut b);
    b.enable(0, false);
    a.send(&plain(mac(2), mac(1), b"lost"));
    daemon.expect_counter(1, "drop_rx_not_ready", 1);
    assert!(b.receive_within(Duration::from_millis(20)).is_none());
    b.enable(0, true);
    a.send(&plain(mac(2), mac(1), b"heard"));
    assert_eq!(b.receive().frame[14..], *b"heard");
}

#[test]
fn a_ring_that_stops_says_where_and_goes_on_from_there() {
    let mut daemon = Daemon::with(&[], false);
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), Config::usual(1)), Guest::attach(&daemon.socket(), Config::usual(2)));
    introduce(&mut a, &mut b);
    for round in 0..10u8 {
        until("all given back", || a.all_sent(0));
        let base = a.frontend.get_vring_base(1).expect("GET_VRING_BASE");
        assert_eq!(base, u32::from(a.transmit[0].avail));
        a.start_ring(1, &a.transmit[0]);
        a.send(&plain(mac(2), mac(1), &[round]));
        assert_eq!(b.receive().frame[14..], [round]);
    }
    daemon.assert_alive();
}

#[test]
fn after_reset_device_the_guest_starts_anew() {
    let mut daemon = Daemon::with(&[], false);
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), Config::usual(1)), Guest::attach(&daemon.socket(), Config::usual(2)));
    introduce(&mut a, &mut b);
    a.frontend.reset_device().expect("RESET_DEVICE");
    b.send(&plain(mac(1), mac(2), b"lost"));
    until("it is lost", || b.all_sent(0));
    a.frontend.set_features(a.features).expect("SET_FEATURES");
    a.receive.clear();
    a.transmit.clear();
    let mut again = a.restarted();
    introduce(&mut again, &mut b);
    daemon.assert_alive();
}

#[test]
fn four_pairs_and_one_exchange_frames_on_all_queues() {
    let mut daemon = Daemon::with(&[], false);
    let mut many = Guest::attach(&daemon.socket(), Config { pairs: 4, ..Config::usual(1).with(f::MQ) });
    let mut one = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut one, &mut many);
    let mut received = [0; 4];
    for flow in 0..200u16 {
        // From every queue of the sender.
        let pair = usize::from(flow % 4);
        let out = plain(mac(2), mac(1), &flow.to_le_bytes());
        assert!(many.push(pair, &[0; 12], &out, &[]));
        many.transmit[pair].publish();
        assert_eq!(one.receive().frame, out);
        // Flows spread over the queues of the receiver, and stay where they are.
        let flow_to = |port: u16| crate::packet::tcp(2, 1, u32::from(port), &port.to_le_bytes(), false);
        let mut frame = flow_to(flow);
        frame[34..36].copy_from_slice(&(flow % 50).to_be_bytes());
        one.send(&frame);
        let mut at = None;
        until("the frame on some queue", || {
            at = (0..4).find(|&pair| many.poll(pair).is_some());
            at.is_some()
        });
        received[at.expect("found")] += 1;
    }
    assert!(received.iter().all(|&count| count >= 10), "{received:?}");
    // Fewer pairs: frames go to those alone.
    for ring in [2, 4, 6] {
        many.enable(ring, false);
    }
    for flow in 0..50u16 {
        let mut frame = crate::packet::tcp(2, 1, 0, b"data", false);
        frame[34..36].copy_from_slice(&flow.to_be_bytes());
        one.send(&frame);
        until("the frame on the first queue", || many.poll(0).is_some());
    }
    daemon.assert_alive();
}

/// Frames for guest `many` while its pairs change: each arrives or is counted, and later on those pairs alone.
fn change_of_pairs(daemon: &Daemon, many: &mut Guest, one: &mut Guest, mut change: impl FnMut(&mut Guest, usize)) {
    let flow_to = |flow: u16| {
        let mut frame = crate::packet::tcp(2, 1, 0, &flow.to_le_bytes(), false);
        frame[34..36].copy_from_slice(&flow.to_be_bytes());
        frame
    };
    let take = |many: &mut Guest| (0..4).find(|&pair| many.poll(pair).is_some());
    for pairs in [1, 4, 2, 3, 1, 4] {
        let before = daemon.counters(0);
        for flow in 0..60 {
            one.send(&flow_to(flow));
            if flow == 30 {
                change(many, pairs);
            }
        }
        until("all are sent", || one.all_sent(0));
        let mut received = 0;
        while take(many).is_some() {
            received += 1;
        }
        let after = daemon.counters(0);
        let grown = |name: &str| after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
        let dropped = grown("drop_rx_not_ready") + grown("drop_rx_no_buffer");
        assert_eq!((received + dropped, grown("rx_frames")), (60, received), "{pairs} pairs: {after:?}");
        // Settled: nothing is lost, and every pair that is there is used.
        let mut used = [0; 4];
        for flow in 0..100 {
            one.send(&flow_to(flow));
            let mut at = None;
            until("the frame on some pair", || {
                at = take(many);
                at.is_some()
            });
            used[at.expect("found")] += 1;
        }
        assert!(used[..pairs].iter().all(|&n| n > 0) && used[pairs..].iter().all(|&n| n == 0), "{pairs}: {used:?}");
    }
}

#[test]
fn the_frontend_changes_the_number_of_pairs_under_traffic() {
    let daemon = Daemon::start();
    let mut many = Guest::attach(&daemon.socket(), Config { pairs: 4, ..Config::usual(1).with(f::MQ) });
    let mut one = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut one, &mut many);
    change_of_pairs(&daemon, &mut many, &mut one, |many, pairs| {
        (0..4).for_each(|pair| many.enable(2 * pair, pair < pairs));
    });
}

#[test]
fn the_guest_changes_the_number_of_pairs_under_traffic() {
    let daemon = Daemon::with(&["--stats-interval", "0.02", "--queue-pairs", "16"], true);
    let mut many = Guest::attach(&daemon.socket(), Config { pairs: 4, ..Config::usual(1).with(f::MQ | f::CTRL_VQ) });
    let mut one = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut one, &mut many);
    change_of_pairs(&daemon, &mut many, &mut one, |many, pairs| {
        assert_eq!(many.command(4, 0, &(pairs as u16).to_le_bytes()), 0, "VQ_PAIRS_SET");
    });
}

#[test]
fn sixteen_pairs_are_all_used() {
    let mut daemon = Daemon::with(&[], false);
    let mut many = Guest::attach(&daemon.socket(), Config { pairs: 16, size: 64, ..Config::usual(1).with(f::MQ) });
    let mut one = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut one, &mut many);
    let mut used = [0; 16];
    for flow in 0..400u16 {
        let mut frame = crate::packet::tcp(2, 1, 0, b"in", false);
        frame[34..36].copy_from_slice(&flow.to_be_bytes());
        one.send(&frame);
        let mut at = None;
        until("the frame on some pair", || {
            at = (0..16).find(|&pair| many.poll(pair).is_some());
            at.is_some()
        });
        used[at.expect("found")] += 1;
        let pair = usize::from(flow % 16);
        let out = plain(mac(2), mac(1), &flow.to_le_bytes());
        assert!(many.push(pair, &[0; 12], &out, &[]));
        many.transmit[pair].publish();
        assert_eq!(one.receive().frame, out);
    }
    assert!(used.iter().all(|&count| count > 0), "{used:?}");
    daemon.assert_alive();
}

#[test]
fn the_control_queue_is_served() {
    let daemon = Daemon::with(&["--stats-interval", "0.02", "--queue-pairs", "3"], true);
    let control =
        f::CTRL_VQ | f::CTRL_RX | f::CTRL_RX_EXTRA | f::CTRL_VLAN | f::CTRL_MAC_ADDR | f::MQ | f::GUEST_ANNOUNCE;
    let mut a = Guest::attach(&daemon.socket(), Config { pairs: 2, ..Config::usual(1).with(control) });
    let mut b = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut a, &mut b);
    let group = plain([1, 2, 3, 4, 5, 6], mac(2), b"group");
    // Out of promiscuous mode, with an address of its own.
    assert_eq!(a.command(1, 1, &mac(1)), 0);
    assert_eq!(a.command(0, 0, &[0]), 0);
    b.send(&group);
    a.assert_gets_only_what_follows(&mut b);
    daemon.expect_counter(0, "drop_rx_filtered", 1);
    let table = [&0u32.to_le_bytes()[..], &1u32.to_le_bytes(), &[1, 2, 3, 4, 5, 6]].concat();
    assert_eq!(a.command(1, 0, &table), 0);
    b.send(&group);
    assert_eq!(a.receive().frame, group);
    // VLANs.
    let tagged = [&mac(1)[..], &mac(2), &[0x81, 0, 0, 100, 0x88, 0xb5], b"tagged"].concat();
    b.send(&tagged);
    a.assert_gets_only_what_follows(&mut b);
    assert_eq!(a.command(2, 0, &100u16.to_le_bytes()), 0);
    b.send(&tagged);
    assert_eq!(a.receive().frame, tagged);
    // Pairs: one until more are asked for.
    for (pairs, spread) in [(2u16, true), (1, false)] {
        assert_eq!(a.command(4, 0, &pairs.to_le_bytes()), 0);
        let mut on_second = 0;
        for flow in 0..40u16 {
            let mut frame = crate::packet::tcp(2, 1, 0, b"data", false);
            frame[34..36].copy_from_slice(&flow.to_be_bytes());
            b.send(&frame);
            let mut at = None;
            until("the frame", || {
                at = (0..2).find(|&pair| a.poll(pair).is_some());
                at.is_some()
            });
            on_second += at.expect("found");
        }
        assert_eq!(on_second > 0, spread, "{on_second} of 40 on the second pair");
    }
    assert_eq!(a.command(4, 0, &4u16.to_le_bytes()), 1);
    assert_eq!(a.command(3, 0, &[]), 0);
    assert_eq!(a.command(77, 0, &[1]), 1);
}

#[test]
fn many_commands_with_one_kick_are_all_served() {
    let daemon = Daemon::with(&[], false);
    for features in [f::CTRL_VQ | f::CTRL_RX, f::CTRL_VQ | f::CTRL_RX | f::EVENT_IDX] {
        let config = Config::usual(1).without(f::EVENT_IDX | f::INDIRECT_DESC).with(features);
        let mut a = Guest::attach(&daemon.socket(), Config { size: 1024, ..config });
        let at = a.memory.len() - 8192;
        // VIRTIO_NET_CTRL_RX_PROMISC on, and the byte for the answer.
        a.memory.write(at, &[0, 0, 1, 0xee]);
        let control = a.control.as_mut().expect("a control queue");
        for _ in 0..300 {
            control.push(&[(at, 3, false), (at + 3, 1, true)]).expect("room");
        }
        control.publish();
        let mut answered = 0;
        until("all answers", || {
            while control.pop().is_some() {
                answered += 1;
            }
            answered == 300
        });
    }
}

#[test]
fn a_configuration_change_reaches_the_backend_channel() {
    let mut daemon = Daemon::start();
    let mut a = Guest::attach(&daemon.socket(), Config::usual(1).with(f::STATUS));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    a.frontend.set_backend_request_fd(&theirs).expect("SET_BACKEND_REQ_FD");
    assert_eq!(a.read_config(6, 2), [1, 0]);
    // A ring that lies takes the link down.
    a.transmit[0].push_head(9999);
    a.transmit[0].publish();
    ours.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let mut message = [0; 12];
    std::io::Read::read_exact(&mut &ours, &mut message).expect("CONFIG_CHANGE");
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(a.read_config(6, 2), [0, 0]);
    daemon.expect_warning("descriptor 9999 does not exist");
    daemon.assert_alive();
}
