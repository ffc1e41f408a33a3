//! A burst waits for a receiver that has no room, if nobody else has to wait for that.

use std::time::{Duration, Instant};

use guestwire::vhost::features as f;
use vhost::VhostBackend;

use crate::daemon::{Daemon, until};
use crate::guest::{Config, Guest, introduce, mac, plain};

/// Longer than a ring must have sent to one receiver alone before anything waits for it.
const ALONE: Duration = Duration::from_millis(30);

/// Has a guest send to one other, and nobody else, for a while.
fn keep_company(from: &mut Guest, to: &mut Guest) {
    let begin = Instant::now();
    while begin.elapsed() < ALONE {
        from.send(&plain(mac(to.config.number), mac(from.config.number), b"company"));
        to.receive();
    }
}

fn numbered(from: &Guest, to: &Guest, number: u32) -> Vec<u8> {
    plain(mac(to.config.number), mac(from.config.number), &[&number.to_le_bytes()[..], &[7; 9000]].concat())
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[14..18].try_into().expect("four bytes"))
}

/// Sends what fits in the ring.
fn fill(from: &mut Guest, to: &Guest) -> u32 {
    let mut sent = 0;
    while from.push(0, &[0; 12], &numbered(from, to, sent), &[]) {
        sent += 1;
    }
    from.transmit[0].publish();
    sent
}

fn loses_nothing(features: u64) {
    let daemon = Daemon::start();
    let mut a = Guest::attach(&daemon.socket(), Config::usual(1).with(features));
    let mut b = Guest::attach(&daemon.socket(), Config::usual(2).with(features));
    introduce(&mut a, &mut b);
    keep_company(&mut a, &mut b);
    let (mut sent, mut received) = (0, 0);
    while received < 1000 {
        while sent < 1000 && a.push(0, &[0; 12], &numbered(&a, &b, sent), &[]) {
            sent += 1;
        }
        a.transmit[0].publish();
        // Slower than what is sent.
        std::thread::sleep(Duration::from_micros(50));
        assert_eq!(number(&b.receive().frame), received, "in order");
        received += 1;
    }
    daemon.expect_counter(1, "rx_frames", 1000);
    assert_eq!(daemon.counters(1)["drop_rx_no_buffer"], 0);
    assert!(daemon.counters(0)["tx_waits"] > 0, "it was not slow");
}

#[test]
fn a_slow_receiver_that_is_alone_loses_nothing() {
    loses_nothing(0);
    loses_nothing(f::IN_ORDER);
}

#[test]
fn what_waits_for_a_stuck_receiver_ends_and_others_get_theirs() {
    let daemon = Daemon::start();
    let attach = |number| Guest::attach(&daemon.socket(), Config::usual(number));
    let (mut a, mut b) = (attach(1), attach(2));
    introduce(&mut a, &mut b);
    let mut c = attach(3);
    c.send(&plain(mac(1), mac(3), b"hello"));
    a.receive();
    keep_company(&mut a, &mut b);
    fill(&mut a, &b);
    let begin = Instant::now();
    // It stands behind all that waits.
    a.send(&numbered(&a, &c, 77));
    assert_eq!(number(&c.receive().frame), 77);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    daemon.expect_counter(1, "drop_rx_no_buffer", 1);
    // From now on nothing waits: the ring sends to both.
    let waits = daemon.counters(0)["tx_waits"];
    assert!(waits > 0);
    for n in 0..500 {
        a.send(&numbered(&a, &b, n));
        a.send(&numbered(&a, &c, n));
        assert_eq!(number(&c.receive().frame), n);
    }
    until("all given back", || a.all_sent(0));
    daemon.expect_counter(0, "tx_frames", 1000);
    assert_eq!(daemon.counters(0)["tx_waits"], waits);
}

#[test]
fn a_ring_that_stops_gives_back_what_waits() {
    let mut daemon = Daemon::start();
    let mut a = Guest::attach(&daemon.socket(), Config::usual(1));
    let mut b = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut a, &mut b);
    keep_company(&mut a, &mut b);
    // More than there is room for; the device takes all of it, and a part waits.
    let sent = fill(&mut a, &b);
    std::thread::sleep(Duration::from_millis(3));
    a.frontend.get_vring_base(1).expect("GET_VRING_BASE");
    assert!(a.all_sent(0), "what was taken is given back");
    daemon.expect_counter(0, "tx_waits", 1);
    let mut received = 0;
    while let Some(frame) = b.poll(0) {
        assert_eq!(number(&frame.frame), received);
        received += 1;
    }
    assert!(0 < received && received < sent, "{received} of {sent}");
    daemon.expect_counter(1, "drop_rx_no_buffer", u64::from(sent - received));
    daemon.assert_alive();
}
