//! A session over a socket pair, whose far end the test holds.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use guestwire::ring::mailbox::PortShared;
use guestwire::vhost::channel;
use guestwire::vhost::features::Offer;
use guestwire::vhost::message::Message;
use guestwire::vhost::session::{SessionHandle, spawn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::worker::Worker;

/// Longer than anything takes on a busy machine.
const WITHIN: Duration = Duration::from_secs(20);
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

pub(crate) struct Frontend {
    socket: UnixStream,
    pub(crate) port: Arc<PortShared>,
    session: SessionHandle,
    worker: Worker,
}

impl Frontend {
    pub(crate) fn connect(offer: Offer) -> Self {
        let (socket, far) = UnixStream::pair().unwrap();
        let worker = Worker::start();
        let mut port = PortShared::new(5, "test".into(), MAC).unwrap();
        port.pairs_told = offer.pairs_told;
        let port = Arc::new(port);
        let session = spawn(far, port.clone(), worker.port(5), offer, Box::new(|| {})).unwrap();
        Self { socket, port, session, worker }
    }

    pub(crate) fn send(&self, message: &Message) {
        channel::send(self.socket.as_fd(), message).unwrap_or_else(|error| panic!("{}: {error}", message.name()));
    }

    /// The next message from the backend.
    #[track_caller]
    pub(crate) fn receive(&self) -> Message {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(WITHIN).unwrap()).unwrap();
        assert_eq!(ready, 1, "no answer within {WITHIN:?}");
        channel::receive(self.socket.as_fd(), None).expect("an answer")
    }

    /// Asserts that the backend has nothing more to say, after everything sent so far was handled; ends the session and
    /// returns what the worker heard.
    #[track_caller]
    pub(crate) fn finish(self) -> Vec<String> {
        use guestwire::vhost::message::GET_FEATURES;
        self.send(&Message::new(GET_FEATURES, Vec::new()));
        assert_eq!(self.receive().request, GET_FEATURES, "an answer that nobody waits for");
        drop(self.socket);
        self.session.join();
        self.worker.finish()
    }
}
