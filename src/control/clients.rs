//! VMMs that listen, and that we connect to.
//!
//! Theory of operation. Each is either connected, and then its port's number is known, or waiting for the moment of the
//! next attempt. An attempt never blocks. One timer serves all: it runs to the earliest of those moments, and not at all
//! while every VMM is connected. A VMM that is not there is logged once, not once per attempt.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use crate::sys::socket::connect_now;

/// A VMM that listens.
#[derive(Debug)]
struct Client {
    path: PathBuf,
    state: State,
    backoff: Backoff,
    /// That it is not there has been logged.
    missed: bool,
}

#[derive(Debug)]
enum State {
    Waiting { until: Instant },
    Connected { port: u32 },
}

/// All VMMs that listen.
#[derive(Debug, Default)]
pub(super) struct Clients(Vec<Client>);

impl Clients {
    /// Adds one; the first attempt is due at once.
    pub(super) fn add(&mut self, path: &Path, now: Instant) {
        let state = State::Waiting { until: now };
        self.0.push(Client { path: path.to_owned(), state, backoff: Backoff::new(), missed: false });
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the next attempt is due, if any VMM is not connected.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        let waiting = |client: &Client| match client.state {
            State::Waiting { until } => Some(until),
            State::Connected { .. } => None,
        };
        self.0.iter().filter_map(waiting).min()
    }

    /// Tries all whose moment has come. `attach` makes a port of a connection and returns its number.
    pub(super) fn try_due(&mut self, now: Instant, mut attach: impl FnMut(UnixStream, &Path) -> io::Result<u32>) {
        for client in &mut self.0 {
            if matches!(client.state, State::Waiting { until } if until <= now) {
                client.attempt(now, &mut attach);
            }
        }
    }

    /// A port has ended after `lasted`. If it was one of ours, it will be tried again.
    pub(super) fn ended(&mut self, port: u32, lasted: Duration, now: Instant) {
        for client in &mut self.0 {
            if matches!(client.state, State::Connected { port: its } if its == port) {
                client.state = State::Waiting { until: now + client.backoff.ended(lasted) };
            }
        }
    }
}

impl Client {
    fn attempt(&mut self, now: Instant, attach: &mut impl FnMut(UnixStream, &Path) -> io::Result<u32>) {
        match connect_now(&self.path).and_then(|stream| attach(stream, &self.path)) {
            Ok(port) => {
                self.missed = false;
                self.state = State::Connected { port };
            }
            Err(error) => {
                let path = self.path.display();
                if std::mem::replace(&mut self.missed, true) {
                    tracing::debug!(%path, %error, "not connected");
                } else {
                    tracing::info!(%path, %error, "not connected; trying again until it is there");
                }
                self.state = State::Waiting { until: now + self.backoff.failed() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_vmm_is_tried_until_it_is_there_and_again_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock");
        let start = Instant::now();
        let mut clients = Clients::default();
        clients.add(&path, start);
        assert_eq!(clients.next_attempt(), Some(start));
        let mut never = |_: UnixStream, _: &Path| -> io::Result<u32> { panic!("nobody listens") };
        clients.try_due(start, &mut never);
        let second = start + Duration::from_millis(100);
        assert_eq!(clients.next_attempt(), Some(second));
        clients.try_due(second - Duration::from_millis(1), &mut never);
        assert_eq!(clients.next_attempt(), Some(second), "not due yet");
        let _listener = UnixListener::bind(&path).unwrap();
        clients.try_due(second, |_, _| Err(io::ErrorKind::OutOfMemory.into()));
        let third = second + Duration::from_millis(200);
        assert_eq!(clients.next_attempt(), Some(third), "no port could be made");
        clients.try_due(third, |_, _| Ok(7));
        assert_eq!(clients.next_attempt(), None);
        clients.ended(8, Duration::from_secs(5), third);
        assert_eq!(clients.next_attempt(), None, "another port");
        clients.ended(7, Duration::from_secs(5), third);
        assert_eq!(clients.next_attempt(), Some(third + Duration::from_millis(100)));
    }
}
