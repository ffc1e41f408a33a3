//! Data crosses unchanged between every two drivers, whatever each has negotiated.

use std::collections::BTreeSet;

use guestwire::vhost::features as f;
use sha2::{Digest, Sha256};

use crate::daemon::Daemon;
use crate::guest::{Config, Guest, introduce};
use crate::packet::{self, MSS, SUPER};

const MEGABYTE: usize = 1 << 20;
/// Super-frames, or frames, in flight at a time: fewer than any receiver has room for.
const WINDOW_SUPER: usize = 4;
const WINDOW: usize = 32;

/// What receivers saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    super_frames: bool,
    partial: bool,
}

/// The driver with these five choices: each of the 32 accepts something else.
///
/// Three in four are drivers as they should be. The others accept TSO without a checksum, which virtio 1.3, 5.1.3.1,
/// forbids them and the daemon does not punish. For them TSO is inert in both directions: such a driver cannot even
/// say what a super-frame is, for its headers are not looked at, and it is given segments. So these eight talk as if
/// they had not accepted TSO, but what they accepted is another thing, and it is known to make no difference.
fn config(number: u8, choices: u32) -> Config {
    let mut features = f::VERSION_1 | f::PROTOCOL_FEATURES;
    let choose = |bit: u32, choice: u64| if choices & (1 << bit) != 0 { choice } else { 0 };
    features |= choose(0, f::MRG_RXBUF);
    features |= choose(1, f::HOST_TSO4 | f::GUEST_TSO4);
    features |= choose(2, f::CSUM | f::GUEST_CSUM);
    features |= choose(3, f::EVENT_IDX);
    features |= choose(4, f::INDIRECT_DESC);
    Config { features, ..Config::usual(number) }
}

/// What of it counts.
fn counts(guest: &Guest, feature: u64) -> bool {
    let needed = match feature {
        f::HOST_TSO4 => f::CSUM,
        f::GUEST_TSO4 => f::GUEST_CSUM,
        _ => feature,
    };
    guest.has(feature) && guest.has(needed)
}

/// Bytes that repeat after no power of two.
fn stream(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len.div_ceil(8))
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state ^ (state >> 29)).to_le_bytes()
        })
        .take(len)
        .collect()
}

/// Sends `data` `times` over from one guest to the other and compares its SHA-256 each time.
fn transfer(from: &mut Guest, to: &mut Guest, data: &[u8], hash: &[u8], times: usize) -> Seen {
    let partial = from.has(f::CSUM);
    let super_frames = counts(from, f::HOST_TSO4);
    // Few and long buffers, ready for super-frames that never come: one frame's segments is what they have room for.
    let in_vain = to.has(f::GUEST_TSO4) && !counts(to, f::GUEST_TSO4);
    let (piece, window) = match (super_frames, in_vain) {
        (false, _) => (MSS, WINDOW),
        (true, false) => (SUPER, WINDOW_SUPER),
        (true, true) => (SUPER, 1),
    };
    let (a, b) = (from.config.number, to.config.number);
    let mut seen = Seen::default();
    for _ in 0..times {
        let mut hasher = Sha256::new();
        let mut expected = 0;
        for chunk in data.chunks(piece * window) {
            let mut sent = (expected as u32, 0);
            for payload in chunk.chunks(piece) {
                let frame = packet::tcp(a, b, sent.0, payload, partial);
                let header = packet::header(partial, super_frames && payload.len() > MSS);
                assert!(from.push(0, &header, &frame, &[100, 4096, 33]), "room for a window");
                sent = (sent.0 + payload.len() as u32, sent.1 + payload.len());
            }
            from.transmit[0].publish();
            let mut received = 0;
            while received < chunk.len() {
                let frame = to.receive();
                let (sequence, payload) = packet::check(to, &frame);
                assert_eq!(sequence as usize, expected, "in order, and nothing lost");
                seen.super_frames |= frame.gso_size() > 0;
                seen.partial |= frame.needs_checksum();
                hasher.update(payload);
                expected += payload.len();
                received += payload.len();
            }
        }
        assert_eq!(hasher.finalize().as_slice(), hash, "SHA-256");
    }
    seen
}

fn pairing(daemon: &mut Daemon, one: u32, other: u32, times: usize) {
    let data = stream(2 * MEGABYTE);
    let hash = Sha256::digest(&data);
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), config(1, one)), Guest::attach(&daemon.socket(), config(2, other)));
    introduce(&mut a, &mut b);
    both_ways(&mut a, &mut b, &data, &hash, times);
    daemon.assert_alive();
}

fn both_ways(a: &mut Guest, b: &mut Guest, data: &[u8], hash: &[u8], times: usize) {
    for towards_b in [true, false] {
        let (from, to) = if towards_b { (&mut *a, &mut *b) } else { (&mut *b, &mut *a) };
        let seen = transfer(from, to, data, hash, times);
        let expected = Seen {
            super_frames: counts(from, f::HOST_TSO4) && counts(to, f::GUEST_TSO4),
            partial: from.has(f::CSUM) && to.has(f::GUEST_CSUM),
        };
        assert_eq!(seen, expected, "{:?} to {:?}", f::names(from.features), f::names(to.features));
    }
}

/// A quarter of the 1,024 pairings, so that they run side by side: those whose first driver's number leaves `rest`.
fn quarter(rest: u32) {
    let mut daemon = Daemon::with(&[], false);
    let data = stream(2 * MEGABYTE);
    let hash = Sha256::digest(&data);
    let mut pairings = 0;
    for one in (0..32).filter(|one| one % 4 == rest) {
        // Another address for each: the port of the one before may still be on its way out.
        let mut a = Guest::attach(&daemon.socket(), config(100 + one as u8, one));
        for other in 0..32 {
            let mut b = Guest::attach(&daemon.socket(), config(2 + other as u8, other));
            introduce(&mut a, &mut b);
            both_ways(&mut a, &mut b, &data, &hash, 1);
            pairings += 1;
        }
    }
    daemon.assert_alive();
    assert_eq!(pairings, 256);
    // The guest before may still be on its way out: that two have one address is said, and no more.
    assert!(daemon.warnings().iter().all(|line| line.contains("has the address")), "{:#?}", daemon.warnings());
}

#[test]
fn the_pairings_are_all_different() {
    let daemon = Daemon::with(&[], false);
    let accepted: BTreeSet<u64> =
        (0..32).map(|choices| Guest::prepare(&daemon.socket(), config(1, choices)).features).collect();
    assert_eq!(accepted.len(), 32);
    assert_eq!(accepted.iter().filter(|&&features| f::without_dangling(features) == features).count(), 24);
}

#[test]
fn two_megabytes_cross_every_pairing_first_quarter() {
    quarter(0);
}

#[test]
fn two_megabytes_cross_every_pairing_second_quarter() {
    quarter(1);
}

#[test]
fn two_megabytes_cross_every_pairing_third_quarter() {
    quarter(2);
}

#[test]
fn two_megabytes_cross_every_pairing_last_quarter() {
    quarter(3);
}

#[test]
fn two_hundred_megabytes_cross_eight_pairings() {
    let mut daemon = Daemon::with(&[], false);
    for (one, other) in [(31, 31), (31, 0), (0, 31), (0, 0), (31, 28), (30, 31), (7, 27), (14, 23)] {
        pairing(&mut daemon, one, other, 100);
    }
}
