//! A frame of any length, in any number of pieces, arrives whole or is counted as dropped for its reason.

use std::collections::BTreeSet;

use guestwire::ring::FRAME_LEN_MAX;
use guestwire::vhost::features as f;

use crate::daemon::{Daemon, until};
use crate::guest::{Config, Guest, introduce, mac, plain};

/// A small generator with a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

/// A frame of `len` bytes from 1 to 2 whose content tells its length, as far as there is room.
fn frame(len: usize) -> Vec<u8> {
    let mut bytes = plain(mac(2), mac(1), &len.to_le_bytes());
    let fill = (len as u8) | 1;
    bytes.resize(len.max(bytes.len()), fill);
    bytes.truncate(len);
    bytes
}

fn pair(daemon: &Daemon, receiver: Config) -> (Guest, Guest) {
    let mut a = Guest::attach(&daemon.socket(), Config::usual(1));
    let mut b = Guest::attach(&daemon.socket(), receiver);
    introduce(&mut a, &mut b);
    (a, b)
}

#[test]
fn every_length_arrives_split_at_a_random_place() {
    let mut daemon = Daemon::start();
    let (mut a, mut b) = pair(&daemon, Config::usual(2));
    let mut random = Random(0x5eed);
    for len in 0..=65_562 {
        let frame = frame(len);
        a.send_with(&[0; 12], &frame, &[1 + random.below(len + 12)]);
        if len >= 14 {
            assert_eq!(b.receive().frame, frame, "{len} bytes");
        }
    }
    let counters = daemon.counters(0);
    assert_eq!(counters["drop_tx_runt"], 14, "0 to 13 bytes");
    assert_eq!(counters["tx_frames"], 65_563 + 1);
    assert_eq!(daemon.counters(1)["rx_frames"], 65_563 - 14 + 1);
    daemon.assert_alive();
}

/// Lengths of exactly `descriptors` buffers that hold `total` bytes: cut at places that are all different, and where
/// there are fewer bytes than buffers, with empty buffers among them, which a ring may have.
fn pieces(random: &mut Random, total: usize, descriptors: usize) -> Vec<usize> {
    let full = descriptors.min(total);
    let mut cuts = BTreeSet::from([0, total]);
    // The virtio-net header alone may be spread over many.
    if random.below(2) == 0 {
        cuts.extend((1..13).filter(|&place| place < total).take(full.saturating_sub(1)));
    }
    while cuts.len() < full + 1 {
        cuts.insert(1 + random.below(total - 1));
    }
    let cuts: Vec<usize> = cuts.into_iter().collect();
    let mut pieces: Vec<usize> = cuts.windows(2).map(|ends| ends[1] - ends[0]).collect();
    while pieces.len() < descriptors {
        pieces.insert(random.below(pieces.len() + 1), 0);
    }
    pieces
}

fn a_dozen_lengths(indirect: bool) {
    let mut daemon = Daemon::with(&[], false);
    let sender = if indirect { Config::usual(1) } else { Config::usual(1).without(f::INDIRECT_DESC) };
    let (mut a, mut b) = (
        Guest::attach(&daemon.socket(), sender),
        Guest::attach(&daemon.socket(), Config { buffer: 1000, ..Config::usual(2) }),
    );
    introduce(&mut a, &mut b);
    let mut random = Random(0xfeed);
    for len in [14, 15, 60, 64, 65, 256, 257, 1514, 4096, 9014, 40_000, 65_562] {
        let frame = frame(len);
        for descriptors in 1..=64usize {
            let pieces = pieces(&mut random, 12 + len, descriptors);
            assert_eq!((pieces.len(), pieces.iter().sum::<usize>()), (descriptors, 12 + len));
            let found = a.send_in_pieces(&[0; 12], &frame, &pieces);
            assert_eq!(found, descriptors, "{len} bytes");
            assert!(b.receive().frame == frame, "{len} bytes over {pieces:?}");
        }
    }
    // Nothing but empty buffers is no frame either, and harms nobody.
    until("all given back", || a.all_sent(0));
    for descriptors in 1..=64 {
        let empty = vec![(0, 0, false); descriptors];
        a.transmit[0].push(&empty).expect("the ring is empty");
        a.transmit[0].publish();
        until("it is given back", || a.transmit[0].pop().is_some());
    }
    b.assert_gets_only_what_follows(&mut a);
    daemon.assert_alive();
    assert_eq!(daemon.warnings(), Vec::<String>::new());
}

#[test]
fn a_dozen_lengths_arrive_over_one_to_sixty_four_descriptors_of_the_ring() {
    a_dozen_lengths(false);
}

#[test]
fn a_dozen_lengths_arrive_over_one_to_sixty_four_descriptors_of_a_table() {
    a_dozen_lengths(true);
}

#[test]
fn what_is_longer_than_any_frame_is_dropped_for_that() {
    let mut daemon = Daemon::start();
    let (mut a, mut b) = pair(&daemon, Config::usual(2));
    a.send(&frame(FRAME_LEN_MAX));
    assert_eq!(b.receive().frame.len(), FRAME_LEN_MAX);
    a.send(&frame(FRAME_LEN_MAX + 1));
    b.assert_gets_only_what_follows(&mut a);
    daemon.expect_counter(0, "drop_tx_too_long", 1);
    daemon.assert_alive();
}

#[test]
fn what_is_longer_than_a_receivers_buffer_is_dropped_for_that() {
    let mut daemon = Daemon::start();
    let receiver = Config::usual(2)
        .without(f::MRG_RXBUF | f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_USO4 | f::GUEST_USO6 | f::GUEST_ECN);
    let (mut a, mut b) = pair(&daemon, receiver);
    a.send(&frame(2036));
    assert_eq!(b.receive().frame, frame(2036));
    a.send(&frame(2037));
    b.assert_gets_only_what_follows(&mut a);
    daemon.expect_counter(1, "drop_rx_too_big", 1);
    daemon.assert_alive();
}

#[test]
fn a_receiver_without_buffers_loses_its_own_frames_alone() {
    let mut daemon = Daemon::start();
    let (mut a, mut b) = pair(&daemon, Config::usual(2));
    let mut c = Guest::attach(&daemon.socket(), Config::usual(3));
    introduce(&mut a, &mut c);
    while b.receive_within(std::time::Duration::from_millis(20)).is_some() {}
    // Guest 2 takes nothing off its ring of 256 buffers.
    for i in 0..300 {
        a.send(&frame(100));
        if i % 10 == 0 {
            c.assert_gets_only_what_follows(&mut a);
        }
    }
    daemon.expect_counter(1, "drop_rx_no_buffer", 44);
    assert_eq!(daemon.counters(1)["drop_rx_no_buffer"], 44);
    assert_eq!((0..300).take_while(|_| b.poll(0).is_some()).count(), 256, "what it has is whole");
    a.send(&frame(99));
    assert_eq!(b.receive().frame, frame(99), "and it goes on");
    daemon.assert_alive();
}
