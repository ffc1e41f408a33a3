//! Every kind of super-frame, sent by a driver with no more than it needs for that, to drivers that take the kind and
//! to drivers that do not.

use guestwire::vhost::features as f;

use crate::daemon::Daemon;
use crate::guest::{Config, Guest, introduce};
use crate::kinds::{Kind, TSO4, TSO4_ECN, TSO6, TSO6_ECN, USO4, USO6, payload};

const BASIC: u64 = f::VERSION_1 | f::PROTOCOL_FEATURES;
const ALL_TAKEN: u64 =
    f::GUEST_CSUM | f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_ECN | f::GUEST_USO4 | f::GUEST_USO6 | f::MRG_RXBUF;

/// Sends a super-frame and asserts what comes of it.
#[track_caller]
pub(crate) fn cross(kind: Kind, from: &mut Guest, to: &mut Guest, len: usize, size: usize, whole: bool) {
    let (a, b) = (from.config.number, to.config.number);
    let payload = payload(len);
    let sent = kind.frame(a, b, &payload, true);
    from.send_with(&kind.header(Some(size)), &sent, &[100, 4096, 33]);
    let what = format!("{kind:?} of {len} by {size} to {}", f::names(to.features));
    if whole {
        let received = to.receive();
        assert_eq!(received.header[..10], kind.header(Some(size))[..10], "{what}");
        assert!(received.frame == sent, "{what}: the frame is another");
        return;
    }
    let partial = to.has(f::GUEST_CSUM);
    let segments = kind.segments((a, b), &payload, size, partial);
    for (i, segment) in segments.iter().enumerate() {
        let received = to.receive();
        let header = if partial { kind.header(None) } else { [0; 12] };
        assert_eq!(received.header[..10], header[..10], "{what}: segment {i}");
        let headers = kind.headers();
        assert_eq!(received.frame[..headers], segment[..headers], "{what}: segment {i} of {}", segments.len());
        assert!(received.frame == *segment, "{what}: the payload of segment {i}");
    }
}

/// Sends frames of an MTU and of less, their checksums complete or left, and asserts that each arrives as it should.
#[track_caller]
fn plain_frames_cross(kind: Kind, from: &mut Guest, to: &mut Guest) {
    let (a, b) = (from.config.number, to.config.number);
    for len in [kind.mss(), kind.mss() - 1, 1, 0] {
        let payload = payload(len);
        for left in [true, false] {
            let frame = |partial| kind.frame(a, b, &payload, partial);
            from.send_with(&if left { kind.header(None) } else { [0; 12] }, &frame(left), &[100]);
            let received = to.receive();
            let still_left = left && to.has(f::GUEST_CSUM);
            let header = if still_left { kind.header(None) } else { [0; 12] };
            assert_eq!(received.header[..10], header[..10], "{kind:?} of {len}");
            assert_eq!(received.frame, frame(still_left), "{kind:?} of {len} to {}", f::names(to.features));
        }
    }
}

/// Drivers that take the kind, and others that do not, by what they have negotiated.
fn receivers(kind: Kind) -> Vec<(u64, bool)> {
    let (bit, taken) = (kind.taken_bit(), kind.taken_by());
    let mut receivers = vec![
        (BASIC | taken, true),
        (BASIC | taken | f::MRG_RXBUF, true),
        // The header of a legacy driver is shorter.
        (f::PROTOCOL_FEATURES | taken, true),
        (BASIC | ALL_TAKEN, true),
        (BASIC, false),
        (f::PROTOCOL_FEATURES, false),
        (BASIC | f::MRG_RXBUF, false),
        (BASIC | f::GUEST_CSUM, false),
        // All other kinds, and ECN as long as there is a TSO that it is for.
        (BASIC | ALL_TAKEN & !bit, false),
    ];
    if kind.ecn {
        receivers.push((BASIC | taken & !f::GUEST_ECN, false));
        receivers.push((BASIC | ALL_TAKEN & !f::GUEST_ECN, false));
    }
    receivers
}

fn every_receiver(kind: Kind) {
    // The header of a legacy driver is shorter.
    for (basic, header_len) in [(BASIC, 12), (f::PROTOCOL_FEATURES, 10)] {
        let mut daemon = Daemon::start();
        let config = |features, number| Config { features, ..Config::usual(number) };
        let mut sender = Guest::attach(&daemon.socket(), config(basic | kind.sent_by(), 1));
        assert_eq!((sender.features, sender.header_len()), (basic | kind.sent_by(), header_len));
        let receivers = receivers(kind);
        for (i, &(features, whole)) in receivers.iter().enumerate() {
            let mut receiver = Guest::attach(&daemon.socket(), config(features, 2 + i as u8));
            assert_eq!(receiver.features, features, "all of it was offered");
            introduce(&mut sender, &mut receiver);
            plain_frames_cross(kind, &mut sender, &mut receiver);
            let mss = kind.mss();
            // Two segments, the second of one byte; none left over; the most there is; as many as a small MTU makes.
            for (len, size) in [(mss + 1, mss), (3 * mss, mss), (kind.most(), mss), (10_000, 536), (2000, 48)] {
                cross(kind, &mut sender, &mut receiver, len, size, whole);
            }
            plain_frames_cross(kind, &mut sender, &mut receiver);
        }
        let counters = daemon.counters(0);
        assert_eq!(counters["tx_gso_frames"], 5 * receivers.len() as u64);
        assert!(counters.iter().all(|(name, &value)| !name.starts_with("drop_tx") || value == 0), "{counters:?}");
        daemon.assert_alive();
    }
}

#[test]
fn tcp_over_ipv4() {
    every_receiver(TSO4);
}

#[test]
fn tcp_over_ipv6() {
    every_receiver(TSO6);
}

#[test]
fn tcp_over_ipv4_with_ecn() {
    every_receiver(TSO4_ECN);
}

#[test]
fn tcp_over_ipv6_with_ecn() {
    every_receiver(TSO6_ECN);
}

#[test]
fn udp_over_ipv4() {
    every_receiver(USO4);
}

#[test]
fn udp_over_ipv6() {
    every_receiver(USO6);
}

#[test]
fn a_flooded_super_frame_suits_each_receiver() {
    let mut daemon = Daemon::with(&[], false);
    let all = f::CSUM | f::HOST_TSO4 | f::HOST_TSO6 | f::HOST_ECN | f::HOST_USO;
    let config = |features, number| Config { features: BASIC | features, ..Config::usual(number) };
    let mut sender = Guest::attach(&daemon.socket(), config(all, 1));
    let mut takes = Guest::attach(&daemon.socket(), config(ALL_TAKEN, 2));
    let mut completes = Guest::attach(&daemon.socket(), config(f::GUEST_CSUM, 3));
    let mut plainest = Guest::attach(&daemon.socket(), config(0, 4));
    for kind in [TSO4, TSO6, TSO4_ECN, TSO6_ECN, USO4, USO6] {
        // To an address that nobody has sent from: 9.
        let (payload, size) = (payload(20_000), kind.mss());
        let sent = kind.frame(1, 9, &payload, true);
        sender.send_with(&kind.header(Some(size)), &sent, &[]);
        let whole = takes.receive();
        assert_eq!((&whole.header[..10], &whole.frame), (&kind.header(Some(size))[..10], &sent));
        for (guest, partial) in [(&mut completes, true), (&mut plainest, false)] {
            for segment in kind.segments((1, 9), &payload, size, partial) {
                let received = guest.receive();
                assert_eq!((received.needs_checksum(), received.gso_type()), (partial, 0), "{kind:?}");
                assert!(received.frame == segment, "{kind:?}, partial: {partial}");
            }
        }
    }
    daemon.assert_alive();
}
