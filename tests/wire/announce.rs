//! GUEST_ANNOUNCE: a guest whose device is another than before is asked to tell where it is (virtio 1.3, 5.1.6.5.4).

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guestwire::vhost::features as f;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::daemon::{Daemon, PATIENCE, until};
use crate::guest::{Config, Guest, introduce, mac, plain};

const LINK_UP: [u8; 2] = [1, 0];
const LINK_UP_ANNOUNCE: [u8; 2] = [3, 0];
const ANNOUNCES: u64 = f::STATUS | f::CTRL_VQ | f::GUEST_ANNOUNCE;

fn attach(daemon: &Daemon, number: u8, features: u64, base: u16) -> Guest {
    let guest = Guest::attach(&daemon.socket(), Config { base, ..Config::usual(number).with(features) });
    assert_eq!(guest.features & features, features, "all of it was offered");
    guest
}

/// Tells it as a driver does, and acknowledges the request.
fn announce(guest: &mut Guest) {
    guest.send(&plain([0xff; 6], mac(guest.config.number), b"here I am"));
    assert_eq!(guest.command(3, 0, &[]), 0, "ANNOUNCE_ACK");
    until("the request is cleared", || guest.read_config(6, 2) == LINK_UP);
}

#[test]
fn a_guest_in_mid_life_is_asked_to_announce_itself() {
    let mut daemon = Daemon::with(&[], false);
    let mut other = Guest::attach(&daemon.socket(), Config::usual(1));
    // The last of them pass the end of the 16-bit index with the guest's 256 buffers already.
    for (number, base) in [(2, 1), (3, 1000), (4, 0x7fff), (5, 65_300), (6, 65_535)] {
        let mut guest = attach(&daemon, number, ANNOUNCES, base);
        until("the request", || guest.read_config(6, 2) == LINK_UP_ANNOUNCE);
        // It stays until it is acknowledged, whatever else is commanded or sent.
        assert_eq!(guest.command(99, 0, &[]), 1);
        introduce(&mut other, &mut guest);
        assert_eq!(guest.read_config(6, 2), LINK_UP_ANNOUNCE);
        announce(&mut guest);
        assert_eq!(other.receive().frame[14..], *b"here I am");
        // Once is enough.
        for n in 0..300u16 {
            let frame = plain(mac(number), mac(1), &n.to_le_bytes());
            other.send(&frame);
            assert_eq!(guest.receive().frame, frame, "base {base}");
        }
        assert_eq!(guest.read_config(6, 2), LINK_UP);
    }
    daemon.assert_alive();
}

#[test]
fn the_request_and_its_end_reach_the_backend_channel() {
    let mut daemon = Daemon::with(&[], false);
    let mut guest = Guest::prepare(&daemon.socket(), Config { base: 77, ..Config::usual(1).with(ANNOUNCES) });
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    guest.frontend.set_backend_request_fd(&theirs).expect("SET_BACKEND_REQ_FD");
    let told = || {
        let mut message = [0; 12];
        (&ours).read_exact(&mut message).expect("CONFIG_CHANGE");
        assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    };
    guest.start();
    told();
    until("the request", || guest.read_config(6, 2) == LINK_UP_ANNOUNCE);
    announce(&mut guest);
    told();
    daemon.assert_alive();
}

#[test]
fn a_ring_that_stops_and_goes_on_asks_again() {
    let mut daemon = Daemon::with(&[], false);
    let mut guest = attach(&daemon, 1, ANNOUNCES, 0);
    let mut other = Guest::attach(&daemon.socket(), Config::usual(2));
    introduce(&mut other, &mut guest);
    assert_eq!(guest.read_config(6, 2), LINK_UP);
    for _ in 0..3 {
        // As a frontend does on either side of a migration or a stop of the machine.
        let base = guest.frontend.get_vring_base(0).expect("GET_VRING_BASE");
        assert_eq!(base, u32::from(guest.receive[0].used));
        guest.start_ring(0, &guest.receive[0]);
        until("the request", || guest.read_config(6, 2) == LINK_UP_ANNOUNCE);
        announce(&mut guest);
        assert_eq!(other.receive().frame[14..], *b"here I am");
        other.assert_gets_only_what_follows(&mut guest);
        guest.assert_gets_only_what_follows(&mut other);
    }
    daemon.assert_alive();
}

#[test]
fn nobody_else_is_asked() {
    let mut daemon = Daemon::with(&[], false);
    for (number, features, base) in [
        (1, ANNOUNCES, 0),
        (2, f::STATUS | f::CTRL_VQ, 1000),
        // Without a control queue there would be nothing to acknowledge it by.
        (3, f::STATUS | f::GUEST_ANNOUNCE, 1000),
    ] {
        let mut guest = attach(&daemon, number, features, base);
        let mut other = Guest::attach(&daemon.socket(), Config::usual(100 + number));
        introduce(&mut other, &mut guest);
        // What has crossed the worker after the rings were started would have been preceded by a request.
        assert!(guest.receive_within(Duration::ZERO).is_none());
        assert_eq!(guest.read_config(6, 2), LINK_UP, "{}", f::names(features));
    }
    daemon.assert_alive();
}
