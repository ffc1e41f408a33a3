//! Sleep and wake: an idle daemon does nothing at all, and a busy one is not kicked and does not interrupt.

use std::time::{Duration, Instant};

use guestwire::vhost::features as f;

use crate::daemon::Daemon;
use crate::guest::{Config, Guest, introduce, mac, plain};

#[test]
fn sixty_four_quiet_ports_wake_no_thread_in_ten_seconds() {
    let mut daemon = Daemon::with(&[], false);
    let mut guests: Vec<_> = (1..=64).map(|i| Guest::attach(&daemon.socket(), Config::usual(i))).collect();
    let (first, rest) = guests.split_at_mut(1);
    introduce(&mut first[0], &mut rest[0]);
    // What they have just done has an end: the worker polls for a moment.
    std::thread::sleep(Duration::from_millis(300));
    let before = daemon.sleeps();
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(daemon.sleeps(), before);
    assert!(before.len() > 64, "{} threads", before.len());
    // And they are not dead.
    rest[62].send(&plain(mac(1), mac(64), b"awake"));
    while first[0].receive().frame[14..] != *b"awake" {}
    daemon.assert_alive();
}

/// Sends frames, one at a time, until `enough` of them have been taken without a kick.
fn sent_without_a_kick(features: u64, enough: u64) {
    let daemon = Daemon::with(&[], false);
    let config = |number| Config::usual(number).without(f::EVENT_IDX).with(features);
    let (mut a, mut b) = (Guest::attach(&daemon.socket(), config(1)), Guest::attach(&daemon.socket(), config(2)));
    introduce(&mut a, &mut b);
    let kicks = a.transmit[0].kicks;
    let frame = plain(mac(2), mac(1), &[7; 100]);
    let (mut sent, mut received) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut unkicked = 0;
    while unkicked < enough || received < sent {
        assert!(Instant::now() < deadline, "{unkicked} of {sent} without a kick, with {:?}", f::names(features));
        if unkicked < enough && sent - received < 128 && a.push(0, &[0; 12], &frame, &[]) {
            a.transmit[0].publish();
            sent += 1;
            unkicked = sent - (a.transmit[0].kicks - kicks);
        }
        while b.poll(0).is_some() {
            received += 1;
        }
    }
}

/// How many depends on who runs when; a driver that is never told to be quiet would kick for each.
#[test]
fn under_load_kicks_are_suppressed_with_and_without_event_idx() {
    for features in [f::EVENT_IDX, 0] {
        sent_without_a_kick(features, 5000);
    }
}

#[test]
fn a_guest_that_wants_no_interrupt_gets_none() {
    let daemon = Daemon::start();
    let config = |number| Config::usual(number).without(f::EVENT_IDX);
    let (mut a, mut b) = (Guest::attach(&daemon.socket(), config(1)), Guest::attach(&daemon.socket(), config(2)));
    introduce(&mut a, &mut b);
    let send = |a: &mut Guest, b: &mut Guest| {
        for _ in 0..50 {
            a.send(&plain(mac(2), mac(1), b"data"));
            b.receive();
        }
    };
    crate::ring::set_interrupts(&b.receive[0], false);
    // The interrupt of a frame before is out by the time that a later one is here.
    send(&mut a, &mut b);
    b.poll(0);
    let before = b.receive[0].calls;
    send(&mut a, &mut b);
    b.poll(0);
    assert_eq!(b.receive[0].calls, before);
    crate::ring::set_interrupts(&b.receive[0], true);
    send(&mut a, &mut b);
    crate::daemon::until("an interrupt", || {
        b.poll(0);
        b.receive[0].calls > before
    });
}

#[test]
fn interrupts_are_asked_for_by_index_with_event_idx() {
    let daemon = Daemon::start();
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), Config::usual(1)), Guest::attach(&daemon.socket(), Config::usual(2)));
    introduce(&mut a, &mut b);
    // The driver asks for one interrupt after each frame that it has taken: no more come than frames.
    let before = b.receive[0].calls;
    for _ in 0..50 {
        a.send(&plain(mac(2), mac(1), b"data"));
        b.receive();
    }
    let calls = b.receive[0].calls - before;
    // The interrupt of a frame before may come after that frame was seen.
    assert!((1..=51).contains(&calls), "{calls}");
    // Without a new wish there is one interrupt for many frames.
    let before = b.receive[0].calls;
    for _ in 0..50 {
        a.send(&plain(mac(2), mac(1), b"data"));
    }
    crate::daemon::until("all are sent", || a.all_sent(0));
    b.receive();
    // And perhaps the one for the frame before, if it was late.
    assert!(b.receive[0].calls - before <= 2);
}
