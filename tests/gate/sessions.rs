//! What a session owes to the rest of the process.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use guestwire::ring::mailbox::{Mailbox, PortMailbox, PortShared, STATUS_LINK_UP};
use guestwire::vhost::features::Offer;
use guestwire::vhost::message::*;
use guestwire::vhost::session::spawn;

use crate::session::{Frontend, MAC};
use crate::worker::Worker;

fn u64_message(request: u32, value: u64) -> Message {
    Message::new(request, value.to_le_bytes().to_vec())
}

#[test]
fn all_sessions_end_at_once_when_they_are_told() {
    let workers: Vec<_> = (0..64).map(|_| Worker::start()).collect();
    let (done, ended) = channel();
    let mut frontends = Vec::new();
    let sessions: Vec<_> = (0..)
        .zip(&workers)
        .map(|(number, worker)| {
            let (near, far) = UnixStream::pair().unwrap();
            frontends.push(near);
            let port = Arc::new(PortShared::new(number, "test".into(), MAC).unwrap());
            let done = done.clone();
            let on_end = Box::new(move || done.send(number).unwrap());
            spawn(far, port, worker.port(number), Offer::new(0, None), on_end).unwrap()
        })
        .collect();
    // Half of them are in the middle of a message.
    for stream in frontends.iter().step_by(2) {
        std::io::Write::write_all(&mut &*stream, &[1, 0, 0]).unwrap();
    }
    let begun = Instant::now();
    sessions.iter().for_each(|session| session.shutdown());
    sessions.into_iter().for_each(|session| session.join());
    let took = begun.elapsed();
    drop(done);
    assert_eq!(ended.iter().count(), 64, "each has called back");
    for worker in workers {
        assert_eq!(worker.finish().last().unwrap(), "Detach");
    }
    // The promise is 100 ms in all; a busy machine has a second.
    assert!(took < Duration::from_secs(1), "{took:?}");
    for mut stream in frontends {
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "the frontend sees the end");
    }
}

#[test]
fn without_a_worker_a_session_ends() {
    let mailbox = Arc::new(Mailbox::new().unwrap());
    mailbox.close();
    let (mut near, far) = UnixStream::pair().unwrap();
    let port = Arc::new(PortShared::new(0, "test".into(), MAC).unwrap());
    let session = spawn(far, port, PortMailbox::new(0, mailbox), Offer::new(0, None), Box::new(|| {})).unwrap();
    session.join();
    assert_eq!(near.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_change_of_status_goes_to_the_backend_channel_and_into_the_configuration() {
    let frontend = Frontend::connect(Offer::new(0, None));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    frontend.send(&Message { fds: vec![theirs.into()], ..Message::new(SET_BACKEND_REQ_FD, Vec::new()) });
    frontend.send(&Message::new(GET_FEATURES, Vec::new()));
    frontend.receive();
    frontend.port.change_status(0, STATUS_LINK_UP);
    let mut told = [0; 12];
    ours.read_exact(&mut told).unwrap();
    assert_eq!(told, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    frontend.send(&Message::new(GET_CONFIG, [6u32, 2, 0, 0].map(u32::to_le_bytes).concat()));
    assert_eq!(frontend.receive().body[12..], [0, 0], "the link is down");
    // Nobody reads: more of it blocks nothing.
    for i in 0..10_000u32 {
        let (set, clear) = if i.is_multiple_of(2) { (STATUS_LINK_UP, 0) } else { (0, STATUS_LINK_UP) };
        frontend.port.change_status(set, clear);
        if i.is_multiple_of(100) {
            frontend.send(&Message::new(GET_FEATURES, Vec::new()));
            frontend.receive();
        }
    }
    assert_eq!(frontend.finish(), ["Attach 5", "Detach"]);
}

#[test]
fn an_enable_is_told_once() {
    let frontend = Frontend::connect(Offer::new(0, None));
    frontend.send(&u64_message(SET_FEATURES, 1 << 32 | 1 << 30));
    for on in [1u64, 1, 0, 0, 1] {
        frontend.send(&u64_message(SET_VRING_ENABLE, 3 | on << 32));
    }
    frontend.send(&Message::new(RESET_DEVICE, Vec::new()));
    frontend.send(&Message::new(RESET_DEVICE, Vec::new()));
    let heard = frontend.finish();
    let about: Vec<_> = heard.iter().filter(|line| line.starts_with("RingEnable")).collect();
    assert_eq!(
        about,
        ["RingEnable 3 on=true", "RingEnable 3 on=false", "RingEnable 3 on=true", "RingEnable 3 on=false"]
    );
}
