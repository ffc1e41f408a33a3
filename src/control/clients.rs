//! VMMs that listen, and that we connect to.
//!
//! Theory of operation. Each is either connected, and then its port's number is known, or waiting for the moment of the
//! next attempt. An attempt never blocks. One timer serves all: it runs to the earliest of those moments, and not at
//! all while every VMM is connected. A VMM that is not there is logged once, not once per attempt. One that leads to a
//! declared port which has a VM already is not tried until that one has gone.

use std::io;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::ways::WayIn;

/// A VMM that listens.
#[derive(Debug)]
struct Client {
    way: WayIn,
    state: State,
    backoff: Backoff,
    /// That it is not there has been logged.
    missed: bool,
}

#[derive(Debug)]
enum State {
    Waiting {
        until: Instant,
    },
    Connected {
        port: u32,
    },
    /// Another VM is on its port.
    Held,
}

/// What came of an attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    /// A port with this number.
    Connected(u32),
    /// Its port has a VM: see [`Clients::release`].
    Held,
}

/// All VMMs of a network that listen.
#[derive(Debug, Default)]
pub(super) struct Clients(Vec<Client>);

impl Clients {
    /// Adds one; the first attempt is due at once.
    pub(super) fn add(&mut self, way: WayIn, now: Instant) {
        let state = State::Waiting { until: now };
        self.0.push(Client { way, state, backoff: Backoff::of_vmm(), missed: false });
    }

    /// Forgets those that are not to stay.
    pub(super) fn retain(&mut self, stays: impl Fn(&WayIn) -> bool) {
        self.0.retain(|client| stays(&client.way));
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the next attempt is due, if any is.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        let waiting = |client: &Client| match client.state {
            State::Waiting { until } => Some(until),
            State::Connected { .. } | State::Held => None,
        };
        self.0.iter().filter_map(waiting).min()
    }

    /// Tries all whose moment has come. `connect` makes a connection to a VMM and a port of it.
    pub(super) fn try_due(&mut self, now: Instant, mut connect: impl FnMut(&WayIn) -> io::Result<Attempt>) {
        for client in &mut self.0 {
            if matches!(client.state, State::Waiting { until } if until <= now) {
                client.attempt(now, &mut connect);
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

    /// Has those tried again that were held: a port is free.
    pub(super) fn release(&mut self, now: Instant) {
        for client in &mut self.0 {
            if matches!(client.state, State::Held) {
                client.state = State::Waiting { until: now };
            }
        }
    }
}

impl Client {
    fn attempt(&mut self, now: Instant, connect: &mut impl FnMut(&WayIn) -> io::Result<Attempt>) {
        match connect(&self.way) {
            Ok(Attempt::Connected(port)) => {
                self.missed = false;
                self.state = State::Connected { port };
            }
            Ok(Attempt::Held) => self.state = State::Held,
            Err(error) => {
                let path = &self.way.attachment;
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
    use crate::config::{Attachment, ConnectPath};

    const SECOND: Duration = Duration::from_secs(1);

    fn at(path: &str) -> WayIn {
        WayIn { attachment: Attachment::Connect(ConnectPath::new(path.into()).unwrap()), port: None }
    }

    fn refuse(_: &WayIn) -> io::Result<Attempt> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    #[test]
    fn a_vmm_is_tried_until_it_is_there_and_again_when_it_is_gone() {
        let start = Instant::now();
        let mut clients = Clients::default();
        clients.add(at("/vm.sock"), start);
        assert_eq!(clients.next_attempt(), Some(start));
        clients.try_due(start, refuse);
        let second = start + Duration::from_millis(100);
        assert_eq!(clients.next_attempt(), Some(second));
        clients.try_due(second - Duration::from_millis(1), |_| panic!("not due yet"));
        clients.try_due(second, refuse);
        let third = second + Duration::from_millis(200);
        assert_eq!(clients.next_attempt(), Some(third));
        clients.try_due(third, |way| Ok(Attempt::Connected(if *way == at("/vm.sock") { 7 } else { 8 })));
        assert_eq!(clients.next_attempt(), None);
        clients.ended(8, SECOND, third);
        assert_eq!(clients.next_attempt(), None, "another port");
        clients.ended(7, SECOND, third);
        assert_eq!(clients.next_attempt(), Some(third + Duration::from_millis(100)));
    }

    #[test]
    fn the_earliest_of_several_is_next() {
        let start = Instant::now();
        let mut clients = Clients::default();
        clients.add(at("/one"), start);
        clients.try_due(start, refuse);
        clients.add(at("/two"), start + SECOND);
        assert_eq!(clients.next_attempt(), Some(start + Duration::from_millis(100)));
        clients.try_due(start + SECOND * 2, |way| Ok(Attempt::Connected(if *way == at("/one") { 1 } else { 2 })));
        assert_eq!(clients.next_attempt(), None);
        clients.ended(2, Duration::ZERO, start);
        assert_eq!(clients.next_attempt(), Some(start + Duration::from_millis(100)));
    }

    #[test]
    fn one_whose_port_has_a_vm_waits_without_a_timer() {
        let start = Instant::now();
        let mut clients = Clients::default();
        clients.add(at("/vm.sock"), start);
        clients.try_due(start, |_| Ok(Attempt::Held));
        assert_eq!(clients.next_attempt(), None);
        clients.release(start + SECOND);
        assert_eq!(clients.next_attempt(), Some(start + SECOND));
        clients.try_due(start + SECOND, |_| Ok(Attempt::Connected(3)));
        clients.retain(|way| *way != at("/vm.sock"));
        assert!(clients.is_empty());
    }
}
