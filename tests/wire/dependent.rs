//! Features that mean nothing without another one, accepted without it; and offloads that the user has turned off.
//!
//! Virtio 1.3, 5.1.3.1, forbids a driver the former. The daemon lets the guest live: such a feature counts for nothing.

use std::time::Duration;

use guestwire::vhost::features as f;
use vhost::VhostBackend;

use crate::daemon::{Daemon, until};
use crate::guest::{Config, Guest, introduce, mac, plain};
use crate::kinds::{Kind, TSO4, TSO4_ECN, TSO6, TSO6_ECN, USO4, USO6, payload};
use crate::segments::cross;

const BASIC: u64 = f::VERSION_1 | f::PROTOCOL_FEATURES;
const KINDS: [Kind; 6] = [TSO4, TSO6, TSO4_ECN, TSO6_ECN, USO4, USO6];

fn attach(daemon: &Daemon, features: u64, number: u8) -> Guest {
    let guest = Guest::attach(&daemon.socket(), Config { features, ..Config::usual(number) });
    assert_eq!(guest.features, features, "all of it was offered");
    guest
}

/// Sends a super-frame that its sender has no leave for, and asserts that it is dropped and counted.
#[track_caller]
fn dropped(daemon: &Daemon, kind: Kind, from: &mut Guest, to: &mut Guest) {
    let before = daemon.counters(0)["drop_tx_bad_header"];
    let frame = kind.frame(from.config.number, to.config.number, &payload(5000), true);
    from.send_with(&kind.header(Some(kind.mss())), &frame, &[]);
    to.assert_gets_only_what_follows(from);
    daemon.expect_counter(0, "drop_tx_bad_header", before + 1);
    assert_eq!(daemon.counters(0)["drop_tx_bad_header"], before + 1, "{kind:?}");
}

/// Sends a frame whose header asks for an offload to a daemon that does not look at headers of this sender.
#[track_caller]
fn unread(kind: Kind, from: &mut Guest, to: &mut Guest) {
    let frame = kind.frame(from.config.number, to.config.number, &payload(5000), true);
    from.send_with(&kind.header(Some(kind.mss())), &frame, &[]);
    let received = to.receive();
    assert_eq!(received.header[..10], [0; 10], "{kind:?}: nothing is taken from a header that means nothing");
    assert_eq!(received.frame, frame, "{kind:?}");
}

#[test]
fn sending_super_frames_without_checksums_is_inert() {
    let mut daemon = Daemon::start();
    let mut receiver = attach(&daemon, f::OFFERED & !(f::CTRL_VQ | f::MQ), 100);
    for (i, kind) in KINDS.into_iter().enumerate() {
        let mut sender = attach(&daemon, BASIC | kind.sent_by() & !f::CSUM, 1 + i as u8);
        introduce(&mut sender, &mut receiver);
        unread(kind, &mut sender, &mut receiver);
    }
    daemon.assert_alive();
    assert_eq!(daemon.warnings(), Vec::<String>::new());
}

#[test]
fn sending_ecn_without_tso_is_inert() {
    for other in [0, f::HOST_USO] {
        let mut daemon = Daemon::start();
        let mut sender = attach(&daemon, BASIC | f::CSUM | f::HOST_ECN | other, 1);
        let mut receiver = attach(&daemon, f::OFFERED & !(f::CTRL_VQ | f::MQ), 2);
        introduce(&mut sender, &mut receiver);
        for kind in [TSO4, TSO6, TSO4_ECN, TSO6_ECN] {
            dropped(&daemon, kind, &mut sender, &mut receiver);
        }
        if other != 0 {
            cross(USO4, &mut sender, &mut receiver, 5000, USO4.mss(), true);
        }
        daemon.assert_alive();
    }
}

#[test]
fn a_kind_that_was_not_accepted_is_dropped_whatever_else_was() {
    for kind in KINDS {
        let mut daemon = Daemon::start();
        let all = f::CSUM | f::HOST_TSO4 | f::HOST_TSO6 | f::HOST_ECN | f::HOST_USO;
        let own = if kind.ecn { f::HOST_ECN } else { kind.sent_by() & !f::CSUM };
        let mut sender = attach(&daemon, BASIC | all & !own, 1);
        let mut receiver = attach(&daemon, f::OFFERED & !(f::CTRL_VQ | f::MQ), 2);
        introduce(&mut sender, &mut receiver);
        dropped(&daemon, kind, &mut sender, &mut receiver);
        for other in KINDS {
            if other.sent_by() & own == 0 {
                cross(other, &mut sender, &mut receiver, 5000, other.mss(), true);
            }
        }
        daemon.assert_alive();
    }
}

#[test]
fn taking_super_frames_without_checksums_is_inert() {
    let mut daemon = Daemon::start();
    for (i, kind) in KINDS.into_iter().enumerate() {
        let mut sender = attach(&daemon, BASIC | kind.sent_by(), 1 + 2 * i as u8);
        let mut receiver = attach(&daemon, BASIC | kind.taken_by() & !f::GUEST_CSUM, 2 + 2 * i as u8);
        introduce(&mut sender, &mut receiver);
        cross(kind, &mut sender, &mut receiver, 5000, kind.mss(), false);
    }
    daemon.assert_alive();
}

#[test]
fn taking_ecn_without_tso_is_inert() {
    let mut daemon = Daemon::start();
    for (i, kind) in [TSO4_ECN, TSO6_ECN].into_iter().enumerate() {
        let mut sender = attach(&daemon, BASIC | kind.sent_by(), 1 + 2 * i as u8);
        let mut receiver = attach(&daemon, BASIC | f::GUEST_CSUM | f::GUEST_ECN, 2 + 2 * i as u8);
        introduce(&mut sender, &mut receiver);
        let without_ecn = Kind { ecn: false, ..kind };
        for kind in [kind, without_ecn] {
            cross(kind, &mut sender, &mut receiver, 5000, kind.mss(), false);
        }
    }
    daemon.assert_alive();
}

#[test]
fn what_the_control_queue_sets_is_inert_without_one() {
    let needs_queue =
        f::CTRL_RX | f::CTRL_RX_EXTRA | f::CTRL_VLAN | f::CTRL_MAC_ADDR | f::GUEST_ANNOUNCE | f::MQ | f::STATUS;
    let mut daemon = Daemon::with(&[], false);
    let mut b = attach(&daemon, BASIC, 2);
    for (i, features) in [
        f::CTRL_RX,
        f::CTRL_RX_EXTRA,
        f::CTRL_VLAN,
        f::CTRL_MAC_ADDR,
        f::GUEST_ANNOUNCE | f::STATUS,
        f::MQ,
        needs_queue,
    ]
    .into_iter()
    .enumerate()
    {
        let number = 10 + i as u8;
        let mut a = attach(&daemon, BASIC | features, number);
        introduce(&mut a, &mut b);
        // Nothing is filtered: no group, no VLAN, not even another's address, flooded.
        let tagged = [&mac(number)[..], &mac(2), &[0x81, 0, 0, 100, 0x88, 0xb5], b"tagged"].concat();
        for frame in [tagged, plain([1, 2, 3, 4, 5, 6], mac(2), b"group"), plain(mac(99), mac(2), b"other")] {
            b.send(&frame);
            assert_eq!(a.receive().frame, frame, "{}", f::names(features));
        }
        assert_eq!(a.read_config(6, 2), [1, 0], "{}", f::names(features));
    }
    daemon.assert_alive();
    assert_eq!(daemon.warnings(), Vec::<String>::new());
}

#[test]
fn all_pairs_are_used_where_the_frontend_keeps_the_control_queue_to_itself() {
    // QEMU does: it passes MQ on, without CTRL_VQ.
    let mut daemon = Daemon::with(&[], false);
    let mut many = Guest::attach(&daemon.socket(), Config { pairs: 2, features: BASIC | f::MQ, ..Config::usual(1) });
    let mut one = attach(&daemon, BASIC, 2);
    introduce(&mut one, &mut many);
    let mut used = [0; 2];
    for flow in 0..40u16 {
        let mut frame = crate::packet::tcp(2, 1, 0, b"data", false);
        frame[34..36].copy_from_slice(&flow.to_be_bytes());
        one.send(&frame);
        let mut at = None;
        until("the frame on some pair", || {
            at = (0..2).find(|&pair| many.poll(pair).is_some());
            at.is_some()
        });
        used[at.expect("found")] += 1;
    }
    assert!(used.iter().all(|&count| count > 0), "{used:?}");
    daemon.assert_alive();
}

#[test]
fn one_offload_turned_off_is_refused_and_the_others_go_on() {
    for (list, off) in [
        ("tso=off", &[TSO4, TSO6, TSO4_ECN, TSO6_ECN][..]),
        ("uso=off", &[USO4, USO6]),
        ("ecn=off", &[TSO4_ECN, TSO6_ECN]),
        ("off,csum=on", &KINDS),
        ("off,csum=on,uso=on", &[TSO4, TSO6, TSO4_ECN, TSO6_ECN]),
    ] {
        let mut daemon = Daemon::with(&["--offload", list, "--stats-interval", "0.02"], true);
        let config = |number| Config { features: f::OFFERED & !(f::CTRL_VQ | f::MQ), ..Config::usual(number) };
        let mut sender = Guest::attach(&daemon.socket(), config(1));
        let mut receiver = Guest::attach(&daemon.socket(), config(2));
        // It would take every kind, if it were asked.
        let mut lesser = Guest::attach(&daemon.socket(), config(3).without(f::GUEST_TSO6 | f::GUEST_USO4));
        introduce(&mut receiver, &mut sender);
        assert!(lesser.receive_within(Duration::from_secs(20)).is_some(), "it hears that, too");
        for kind in KINDS {
            if off.contains(&kind) {
                assert!(sender.features & kind.sent_by() != kind.sent_by(), "{list} offers {kind:?}");
                assert!(receiver.features & kind.taken_by() != kind.taken_by(), "{list} offers {kind:?}");
                dropped(&daemon, kind, &mut sender, &mut receiver);
            } else {
                cross(kind, &mut sender, &mut receiver, 5000, kind.mss(), true);
            }
        }
        lesser.send(&plain([0xff; 6], mac(3), b"hello"));
        assert_eq!(sender.receive().frame[14..], *b"hello");
        for kind in KINDS.into_iter().filter(|kind| !off.contains(kind)) {
            let whole = lesser.has(kind.taken_bit());
            cross(kind, &mut sender, &mut lesser, 5000, kind.mss(), whole);
        }
        daemon.assert_alive();
    }
}

#[test]
fn without_checksums_no_header_is_read() {
    let mut daemon = Daemon::with(&["--offload", "csum=off"], false);
    let config = |number| Config { features: f::OFFERED & !(f::CTRL_VQ | f::MQ), ..Config::usual(number) };
    let mut a = Guest::attach(&daemon.socket(), config(1));
    let mut b = Guest::attach(&daemon.socket(), config(2));
    introduce(&mut a, &mut b);
    for kind in KINDS {
        assert!(a.features & (kind.sent_by() | kind.taken_by()) == 0, "csum=off offers {kind:?}");
        unread(kind, &mut a, &mut b);
    }
    daemon.assert_alive();
}

#[test]
fn accepting_what_was_turned_off_ends_the_connection() {
    for (list, feature) in [
        ("tso=off", f::HOST_TSO4),
        ("tso=off", f::GUEST_TSO6),
        ("tso=off", f::GUEST_ECN),
        ("uso=off", f::GUEST_USO4),
        ("ecn=off", f::HOST_ECN),
        ("csum=off", f::GUEST_USO6),
    ] {
        let mut daemon = Daemon::with(&["--offload", list], false);
        let guest = Guest::prepare(&daemon.socket(), Config { features: BASIC, ..Config::usual(1) });
        assert!(guest.frontend.set_features(BASIC | feature).is_err(), "{list}: {}", f::names(feature));
        daemon.expect_warning(&format!("it accepts what was not offered: {}", f::names(feature)));
        daemon.assert_alive();
    }
}
