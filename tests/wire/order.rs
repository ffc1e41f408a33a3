//! IN_ORDER: buffers come back in the order in which they were made available. The ring of the driver asserts it of
//! every used element; here it gets all that could come between: frames that are dropped, that are cut up, that fill
//! several buffers, that go to many.

use guestwire::vhost::features as f;

use crate::daemon::{Daemon, until};
use crate::guest::{Config, Guest, introduce, mac, plain};
use crate::kinds::{TSO4, TSO6_ECN, USO6, payload};
use crate::segments::cross;

/// Frames sent at once, each of another shape; a third of them never arrives.
fn mixed(from: &mut Guest, to: &mut Guest, pair: usize, round: usize) -> Vec<Vec<u8>> {
    let (a, b) = (from.config.number, to.config.number);
    let mut expected = Vec::new();
    for n in 0..30 {
        let long = plain(mac(b), mac(a), &vec![(n + round) as u8; 1 + 97 * n + round]);
        let (frame, header, arrives) = match n % 6 {
            0 => (long, [0; 12], true),
            // Shorter than an Ethernet header; a super-frame of a kind that does not exist.
            1 => (long[..13].to_vec(), [0; 12], false),
            2 => (long, [1, 77, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], false),
            3 => (plain([0xff; 6], mac(a), &long[14..]), [0; 12], true),
            4 => (plain([3, 2, 1, 0, 0, n as u8], mac(a), b"group"), [0; 12], true),
            _ => (plain(mac(b), mac(a), &vec![n as u8; 9000]), [0; 12], true),
        };
        let split: Vec<usize> = (0..n % 9).map(|part| 1 + 11 * part).collect();
        assert!(from.push(pair, &header, &frame, &split), "room for frame {n}");
        expected.extend(arrives.then_some(frame));
    }
    from.transmit[pair].publish();
    expected
}

fn exchange(features: u64, without: u64, pairs: usize) {
    let mut daemon = Daemon::with(&[], false);
    let config = |number| Config { pairs, ..Config::usual(number).with(f::IN_ORDER | features).without(without) };
    let mut a = Guest::attach(&daemon.socket(), config(1));
    let mut b = Guest::attach(&daemon.socket(), Config { pairs: 1, ..config(2).without(f::MQ) });
    assert!(a.has(f::IN_ORDER) && b.has(f::IN_ORDER));
    introduce(&mut a, &mut b);
    // Often enough for every ring to begin anew several times, in the middle of a chain as well.
    for round in 0..60 {
        let pair = round % pairs;
        for frame in mixed(&mut a, &mut b, pair, round) {
            assert!(b.receive().frame == frame, "round {round}");
        }
        until("all given back", || a.all_sent(pair));
        // And the other way, one by one.
        let answer = plain(mac(1), mac(2), &[round as u8; 700]);
        b.send_with(&[0; 12], &answer, &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(a.receive().frame, answer);
        for kind in [TSO4, TSO6_ECN, USO6] {
            let (len, whole) = (5000 + 10 * round, b.has(kind.taken_bit()));
            cross(kind, &mut a, &mut b, len, kind.mss(), whole);
        }
    }
    daemon.assert_alive();
    assert_eq!(daemon.warnings(), Vec::<String>::new());
}

#[test]
fn buffers_come_back_in_order() {
    exchange(0, 0, 1);
}

#[test]
fn buffers_come_back_in_order_without_indirect_tables() {
    exchange(0, f::INDIRECT_DESC, 1);
}

#[test]
fn buffers_come_back_in_order_without_event_indexes() {
    exchange(0, f::INDIRECT_DESC | f::EVENT_IDX, 1);
}

#[test]
fn buffers_come_back_in_order_where_frames_are_cut_up() {
    exchange(0, f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_ECN | f::GUEST_USO4 | f::GUEST_USO6, 1);
}

#[test]
fn buffers_come_back_in_order_on_every_pair() {
    exchange(f::MQ, 0, 3);
}

#[test]
fn buffers_come_back_in_order_when_a_receiver_runs_out_of_them() {
    let mut daemon = Daemon::start();
    let config = |number| Config { size: 32, ..Config::usual(number).with(f::IN_ORDER) };
    let mut a = Guest::attach(&daemon.socket(), config(1));
    let mut b = Guest::attach(&daemon.socket(), config(2));
    introduce(&mut a, &mut b);
    let payload = payload(40_000);
    for round in 0..20u8 {
        // 32 buffers of 2,048 bytes: the second long frame does not fit, the short ones may.
        for len in [40_000, 40_000, 10, 3000] {
            let frame = plain(mac(2), mac(1), &[&[round], &payload[..len]].concat());
            a.send(&frame);
        }
        until("all given back", || a.all_sent(0));
        let mut received = 0;
        while let Some(frame) = b.poll(0) {
            assert_eq!(frame.frame[14], round);
            received += 1;
        }
        assert_eq!(received, 3, "round {round}");
    }
    assert_eq!(daemon.counters(1)["drop_rx_no_buffer"], 20);
    daemon.assert_alive();
}

#[test]
fn commands_come_back_in_order() {
    let mut daemon = Daemon::with(&[], false);
    let mut guest =
        Guest::attach(&daemon.socket(), Config::usual(1).with(f::IN_ORDER | f::CTRL_VQ | f::CTRL_RX | f::STATUS));
    for n in 0..600u32 {
        let known = n % 3 != 0;
        assert_eq!(guest.command(if known { 0 } else { 99 }, 0, &[1]), u8::from(!known), "command {n}");
    }
    daemon.assert_alive();
}
