//! Nobody sleeps through a frame: neither the daemon, whose worker goes to sleep when its guests are quiet for a
//! moment, nor a guest that sleeps until it is interrupted.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use guestwire::vhost::features as f;
use vhost::VhostBackend;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::daemon::{Daemon, PATIENCE};
use crate::guest::{Config, Guest, introduce, mac, plain};

const ROUNDS: u64 = 5000;
/// The worker polls a ring for 20 to 200 µs after its last frame: pauses end before that, after it, and right there.
const PAUSE_MAX_NS: u64 = 400_000;

/// A guest that sleeps until it is interrupted.
struct Sleeper {
    guest: Guest,
    epoll: Epoll,
}

impl Sleeper {
    fn new(guest: Guest) -> Self {
        let epoll = Epoll::new().expect("an epoll");
        let (call, event) = (guest.receive[0].call.as_raw_fd(), EpollEvent::new(EventSet::IN, 0));
        epoll.ctl(ControlOperation::Add, call, event).expect("an eventfd can be watched");
        Self { guest, epoll }
    }

    /// The next frame. Taking one has asked for an interrupt by the next, and looking again before sleeping is what a
    /// driver must do.
    fn receive(&mut self) -> Vec<u8> {
        loop {
            if let Some(received) = self.guest.poll(0) {
                return received.frame;
            }
            let patience = i32::try_from(PATIENCE.as_millis()).expect("fits");
            let ready = self.epoll.wait(patience, &mut [EpollEvent::default()]).expect("epoll_wait");
            assert_eq!(ready, 1, "the guest was not interrupted");
        }
    }
}

/// Frames to and fro between two guests that sleep, with pauses of every length around the worker's own.
fn to_and_fro(features: u64) {
    let mut daemon = Daemon::with(&[], false);
    let config = |number| Config::usual(number).without(f::EVENT_IDX).with(features);
    let (mut a, mut b) = (Guest::attach(&daemon.socket(), config(1)), Guest::attach(&daemon.socket(), config(2)));
    introduce(&mut a, &mut b);
    let (kicks, calls) = (a.transmit[0].kicks, a.receive[0].calls);
    let mut guests = [Sleeper::new(a), Sleeper::new(b)];
    let frames = [plain(mac(2), mac(1), b"to"), plain(mac(1), mac(2), b"fro")];
    for round in 0..ROUNDS {
        let from = (round % 2) as usize;
        guests[from].guest.send(&frames[from]);
        assert_eq!(guests[1 - from].receive(), frames[from], "round {round}");
        let until = Instant::now() + Duration::from_nanos(round * 7919 % PAUSE_MAX_NS);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
    let a = &guests[0].guest;
    assert!(a.transmit[0].kicks > kicks && a.receive[0].calls > calls, "both sides have slept");
    daemon.assert_alive();
}

#[test]
fn no_frame_is_slept_through_by_index() {
    to_and_fro(f::EVENT_IDX);
}

#[test]
fn no_frame_is_slept_through_by_flag() {
    to_and_fro(0);
}

#[test]
fn an_interrupt_is_not_lost_when_its_descriptor_is_replaced() {
    let mut daemon = Daemon::with(&[], false);
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), Config::usual(1)), Guest::attach(&daemon.socket(), Config::usual(2)));
    introduce(&mut a, &mut b);
    for round in 0..300u16 {
        let frames: Vec<_> =
            (0..8u8).map(|n| plain(mac(2), mac(1), &[&round.to_le_bytes()[..], &[n]].concat())).collect();
        frames.iter().for_each(|frame| a.send(frame));
        // QEMU does so whenever a guest masks a vector.
        b.receive[0].call = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd");
        b.frontend.set_vring_call(0, &b.receive[0].call).expect("SET_VRING_CALL");
        let mut sleeper = Sleeper::new(b);
        frames.iter().for_each(|frame| assert_eq!(sleeper.receive(), *frame, "round {round}"));
        b = sleeper.guest;
    }
    daemon.assert_alive();
}
