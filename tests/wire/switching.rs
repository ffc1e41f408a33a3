//! Who gets a frame.

use guestwire::vhost::features as f;

use crate::daemon::Daemon;
use crate::guest::{Config, Guest, introduce, mac, plain};

fn three(daemon: &Daemon) -> [Guest; 3] {
    [1, 2, 3].map(|number| Guest::attach(&daemon.socket(), Config::usual(number)))
}

/// Three guests of which the switch knows every address.
fn three_known(daemon: &Daemon) -> [Guest; 3] {
    let [mut a, mut b, mut c] = three(daemon);
    introduce(&mut a, &mut b);
    assert_eq!(c.receive().frame[14..], *b"hello");
    introduce(&mut c, &mut a);
    assert_eq!(b.receive().frame[14..], *b"hello");
    [a, b, c]
}

#[test]
fn unknown_goes_to_all_and_known_to_one_and_nothing_comes_back() {
    let mut daemon = Daemon::start();
    let [mut a, mut b, mut c] = three_known(&daemon);
    let unknown = plain(mac(77), mac(1), b"who");
    a.send(&unknown);
    assert_eq!(b.receive().frame, unknown);
    assert_eq!(c.receive().frame, unknown);
    let answer = plain(mac(1), mac(2), b"me");
    b.send(&answer);
    assert_eq!(a.receive().frame, answer, "and not its own frame before");
    c.assert_gets_only_what_follows(&mut b);
    let group = plain([0x33, 0x33, 0, 0, 0, 1], mac(3), b"all");
    c.send(&group);
    assert_eq!(a.receive().frame, group);
    assert_eq!(b.receive().frame, group);
    // To an address behind the very port that it comes from.
    a.send(&plain(mac(1), mac(1), b"myself"));
    a.assert_gets_only_what_follows(&mut c);
    daemon.expect_counter(0, "drop_tx_hairpin", 1);
    daemon.assert_alive();
}

#[test]
fn an_address_that_moves_is_followed() {
    let daemon = Daemon::with(&["--port-security", "off"], true);
    let [mut a, _b, mut c] = three_known(&daemon);
    // The VM with address 2 now lives on the third port.
    c.send(&plain(mac(1), mac(2), b"moved"));
    assert_eq!(a.receive().frame[14..], *b"moved");
    a.send(&plain(mac(2), mac(1), b"there?"));
    assert_eq!(c.receive().frame[14..], *b"there?");
}

#[test]
fn two_guests_with_one_address_are_named() {
    let daemon = Daemon::start();
    let [mut a, _b, mut c] = three(&daemon);
    a.send(&plain([0xff; 6], mac(1), b"I am 1"));
    c.receive();
    c.send(&plain([0xff; 6], mac(1), b"so am I"));
    daemon.expect_warning("the address of the guest on port 0");
}

#[test]
fn frames_that_no_bridge_passes_are_counted_by_reason() {
    let mut daemon = Daemon::start();
    let [mut a, mut b, _c] = three_known(&daemon);
    a.send(&plain([0x01, 0x80, 0xc2, 0, 0, 0x0e], mac(1), b"LLDP"));
    a.send(&plain(mac(2), [1, 2, 3, 4, 5, 6], b"from a group"));
    a.send(&plain(mac(2), [0; 6], b"from nobody"));
    a.send(&[1, 2, 3]);
    a.send(&[]);
    b.assert_gets_only_what_follows(&mut a);
    // With the two of the introduction.
    daemon.expect_counter(0, "tx_frames", 8);
    let counters = daemon.counters(0);
    let drops: Vec<_> = counters.iter().filter(|(name, n)| name.starts_with("drop") && **n > 0).collect();
    assert_eq!(counters["drop_tx_reserved"], 1, "{drops:?}");
    assert_eq!(counters["drop_tx_bad_source"], 2, "{drops:?}");
    assert_eq!(counters["drop_tx_runt"], 2, "{drops:?}");
    assert_eq!(drops.len(), 3, "{drops:?}");
    daemon.assert_alive();
}

#[test]
fn alone_on_the_network_there_is_nobody_to_get_it() {
    let daemon = Daemon::start();
    let mut a = Guest::attach(&daemon.socket(), Config::usual(1));
    a.send(&plain([0xff; 6], mac(1), b"anyone?"));
    daemon.expect_counter(0, "drop_tx_alone", 1);
}

#[test]
fn a_guest_with_very_many_addresses_evicts_its_own_alone() {
    let mut daemon = Daemon::with(&["--port-security", "off"], true);
    let [mut a, mut b, mut c] = three_known(&daemon);
    const ADDRESSES: u32 = 100_000;
    let mut sent = 0u32;
    while sent < ADDRESSES {
        let [x, y, z, w] = sent.to_be_bytes();
        if c.push(0, &[0; 12], &plain(mac(3), [2, 9, x, y, z, w], b""), &[]) {
            sent += 1;
        } else {
            c.transmit[0].publish();
            std::thread::yield_now();
        }
        while a.poll(0).is_some() || b.poll(0).is_some() {}
    }
    c.transmit[0].publish();
    daemon.expect_counter(2, "tx_frames", u64::from(ADDRESSES) + 1);
    daemon.expect_counter(2, "addresses_evicted", u64::from(ADDRESSES) - 5000);
    while a.poll(0).is_some() || b.poll(0).is_some() {}
    // Both are still known where they are: nothing of theirs is flooded to the third.
    while c.poll(0).is_some() {}
    a.send(&plain(mac(2), mac(1), b"still"));
    assert_eq!(b.receive().frame[14..], *b"still");
    c.assert_gets_only_what_follows(&mut b);
    daemon.assert_alive();
}

/// Twelve receivers that take no super-frames, and one of tiny segments for all of them.
#[test]
fn a_flood_that_would_be_very_much_work_is_refused() {
    let mut daemon = Daemon::start();
    let mut a = Guest::attach(&daemon.socket(), Config::usual(1));
    let plain_ones = |number| Config::usual(number).without(f::GUEST_TSO4 | f::GUEST_TSO6);
    let mut others: Vec<_> = (2..14).map(|number| Guest::attach(&daemon.socket(), plain_ones(number))).collect();
    let mut to_all = |payload: usize, segment: u16| {
        let mut frame = crate::packet::tcp(1, 2, 0, &vec![7; payload], true);
        frame[..6].copy_from_slice(&[0xff; 6]);
        let mut header = crate::packet::header(true, true);
        header[4..6].copy_from_slice(&segment.to_le_bytes());
        a.send_with(&header, &frame, &[]);
    };
    to_all(crate::packet::SUPER, 48);
    daemon.expect_counter(0, "drop_tx_flood_limit", 1);
    to_all(20_000, 1460);
    for other in &mut others {
        let got: usize = (0..14).map(|_| other.receive().frame.len() - crate::packet::HEADERS).sum();
        assert_eq!(got, 20_000);
    }
    daemon.assert_alive();
}

#[test]
fn a_guest_sends_from_its_own_address_only() {
    let mut daemon = Daemon::start();
    let [mut a, mut b, mut c] = three_known(&daemon);
    // The third guest would have what is for the second.
    c.send(&plain(mac(1), mac(2), b"I am 2"));
    c.send(&plain(mac(1), mac(3), b"I am 3"));
    assert_eq!(a.receive().frame[14..], *b"I am 3");
    daemon.expect_counter(2, "drop_tx_spoofed_mac", 1);
    a.send(&plain(mac(2), mac(1), b"for 2"));
    assert_eq!(b.receive().frame[14..], *b"for 2");
    daemon.assert_alive();
}
