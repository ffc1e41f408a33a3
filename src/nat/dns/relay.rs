//! Questions that came as datagrams and are asked of the host's resolvers.
//!
//! Theory of operation. A question is asked under a number that nobody can guess, from a socket of its own whose port
//! nobody can guess either, and which is connected: the kernel drops what does not come from the resolver (RFC 5452).
//! An answer must have the number and repeat the question. The next resolver is asked when one does not answer for
//! [`RETRY_NS`], cannot be reached, or says that it cannot tell; those that were asked may still answer. Where the host
//! has too few of something to ask the next one, that is tried again as long after. If nobody has answered for
//! [`GIVE_UP_NS`], or all have said that they cannot tell, the guest hears that.
//!
//! Nothing is remembered: those who do that are the guest and the resolver.
//!
//! Bounds: [`PER_GUEST_MAX`] questions of a guest and [`QUESTIONS_MAX`] of all, each with a socket for each resolver
//! that was asked. One more takes the place of the oldest of the guest's own, or of all.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use super::super::id::{Id, Kind};
use super::super::sockets::Ticket;
use super::super::tcp::Surroundings;
use super::message::{Question, Saying, is_failure, renumbered};
use super::slots::Slots;
use super::{Client, give};
use crate::metrics::Counter;
use crate::switch::PortId;
use crate::sys::net;

/// Questions of one guest that wait for an answer.
pub(super) const PER_GUEST_MAX: usize = 512;
/// Those of all guests.
const QUESTIONS_MAX: usize = 2048;
/// How long one resolver is waited for before the next one is asked, in nanoseconds.
pub(super) const RETRY_NS: u64 = 2_000_000_000;
/// How long all are waited for: longer than resolvers try that ask others.
pub(super) const GIVE_UP_NS: u64 = 12_000_000_000;
/// What names a socket has this many numbers for each question.
const SOCKETS_MAX: u32 = 4;
/// The longest answer.
const ANSWER_MAX: usize = 65_535;
/// Datagrams that are read of one socket in one go.
const READS_MAX: usize = 8;

#[derive(Debug)]
struct Socket {
    socket: UdpSocket,
    _ticket: Ticket,
    /// Under which the question was asked.
    number: u16,
}

#[derive(Debug)]
struct Asked {
    client: Client,
    /// As the guest sent it.
    message: Vec<u8>,
    question: Question,
    resolvers: Arc<[SocketAddr]>,
    /// By resolver; none: it cannot be reached, or has said that it cannot tell.
    sockets: Vec<Option<Socket>>,
    /// What was said last by somebody who cannot tell.
    failure: Option<Vec<u8>>,
    /// Its place among all questions, by age.
    number: u64,
    begun: u64,
    due: u64,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Relay {
    asked: Slots<Asked>,
    by_age: BTreeMap<u64, Id>,
    by_port: BTreeMap<PortId, BTreeSet<u64>>,
    due: BTreeSet<(u64, Id)>,
    /// How many were asked.
    count: u64,
    numbers: Numbers,
    buffer: Vec<u8>,
}

/// Numbers that nobody can guess.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Its hash cannot be told from noise by those who do not know its key, which is random.
    secret: RandomState,
    count: u64,
}

impl Numbers {
    pub(super) fn next(&mut self) -> u16 {
        self.count += 1;
        self.secret.hash_one(self.count) as u16
    }
}

impl Relay {
    /// Asks a guest's question.
    pub(super) fn ask(
        &mut self,
        client: Client,
        message: &[u8],
        question: Question,
        resolvers: Arc<[SocketAddr]>,
        world: &mut Surroundings<'_>,
    ) -> Result<(), Counter> {
        world.efforts.is_dear = true;
        let port = client.guest.port;
        let its_oldest = |relay: &Self| relay.by_port.get(&port).and_then(|its| its.first().copied());
        if self.by_port.get(&port).is_some_and(|its| its.len() >= PER_GUEST_MAX) {
            its_oldest(self).into_iter().for_each(|oldest| self.remove(oldest));
        }
        if self.asked.len() >= QUESTIONS_MAX {
            let oldest = self.by_age.first_key_value().map(|(oldest, _)| *oldest);
            oldest.into_iter().for_each(|oldest| self.remove(oldest));
        }
        let (message, number) = (message.to_vec(), self.count);
        self.count += 1;
        let (sockets, begun) = (Vec::new(), world.now);
        let asked = Asked { client, message, question, resolvers, sockets, failure: None, number, begun, due: begun };
        let id = self.asked.insert(asked);
        self.by_age.insert(number, id);
        self.by_port.entry(port).or_default().insert(number);
        self.due.insert((begun, id));
        let mut asking = self.next(id, world);
        if asking == Err(Shortage { is_ours: true })
            && let Some(oldest) = its_oldest(self).filter(|oldest| *oldest != number)
        {
            // An old one of the guest's own gives up what there are too few of.
            self.remove(oldest);
            asking = self.next(id, world);
        }
        if asking.is_err() {
            self.remove(number);
            return Err(Counter::DropRxFlowLimit);
        }
        self.settle(id, world);
        Ok(())
    }

    /// Asks the next resolver that can be reached, if there is one.
    fn next(&mut self, id: Id, world: &Surroundings<'_>) -> Result<(), Shortage> {
        let Some(asked) = self.asked.get(id) else { return Ok(()) };
        self.due.remove(&(asked.due, id));
        asked.due = asked.begun + GIVE_UP_NS;
        while let Some(resolver) = asked.resolvers.get(asked.sockets.len()) {
            let (number, at) = (self.numbers.next(), asked.sockets.len() as u32);
            let token = Id { index: id.index * SOCKETS_MAX + at, generation: id.generation }.token(Kind::Dns);
            match send(resolver, &renumbered(&asked.message, number), world, token) {
                Ok((socket, ticket)) => {
                    let is_last = asked.sockets.len() + 1 == asked.resolvers.len();
                    asked.sockets.push(Some(Socket { socket, _ticket: ticket, number }));
                    if !is_last {
                        asked.due = world.now + RETRY_NS;
                    }
                    break;
                }
                Err(error) if is_shortage(&error) => {
                    asked.due = asked.due.min(world.now + RETRY_NS);
                    self.due.insert((asked.due, id));
                    return Err(Shortage { is_ours: !net::is_out_of_memory(&error) });
                }
                Err(_) => asked.sockets.push(None),
            }
        }
        self.due.insert((asked.due, id));
        Ok(())
    }

    /// Answers a question that nobody is left for.
    fn settle(&mut self, id: Id, world: &mut Surroundings<'_>) {
        let Some(asked) = self.asked.get(id) else { return };
        let is_open = asked.sockets.len() < asked.resolvers.len() || asked.sockets.iter().any(Option::is_some);
        if !is_open {
            self.give_up(id, world);
        }
    }

    fn give_up(&mut self, id: Id, world: &mut Surroundings<'_>) {
        let Some(asked) = self.asked.get(id) else { return };
        let own = || asked.question.answer(&asked.message, Saying::FAILED);
        if let Some(answer) = asked.failure.take().or_else(own) {
            give(world, &asked.client, &asked.question, &asked.message, &answer);
        }
        let number = asked.number;
        self.remove(number);
    }

    /// Something has happened to a socket.
    pub(super) fn event(&mut self, id: Id, world: &mut Surroundings<'_>) {
        let at = (id.index % SOCKETS_MAX) as usize;
        let id = Id { index: id.index / SOCKETS_MAX, ..id };
        let Some(asked) = self.asked.get(id) else { return };
        world.efforts.note(asked.client.guest.port);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(ANSWER_MAX, 0);
        match self.read(id, at, &mut buffer) {
            Read::Nothing => {}
            Read::Answer(len) => {
                if let Some(asked) = self.asked.get(id) {
                    give(world, &asked.client, &asked.question, &asked.message, &buffer[..len]);
                    let number = asked.number;
                    self.remove(number);
                }
            }
            Read::Failure => {
                // If the host has too few of something, time brings another attempt.
                let _ = self.next(id, world);
                self.settle(id, world);
            }
        }
        self.buffer = buffer;
    }

    fn read(&mut self, id: Id, at: usize, buffer: &mut [u8]) -> Read {
        let Some(asked) = self.asked.get(id) else { return Read::Nothing };
        let Some(Some(Socket { socket, number, .. })) = asked.sockets.get(at) else { return Read::Nothing };
        for _ in 0..READS_MAX {
            match socket.recv(buffer) {
                Ok(len) if asked.question.is_answered_by(&buffer[..len], &asked.message, *number) => {
                    asked.question.restore(&mut buffer[..len], &asked.message);
                    if !is_failure(&buffer[..len]) {
                        return Read::Answer(len);
                    }
                    asked.failure = Some(buffer[..len].to_vec());
                    asked.sockets[at] = None;
                    return Read::Failure;
                }
                // Somebody who guesses.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Nothing,
                Err(_) => {
                    asked.sockets[at] = None;
                    return Read::Failure;
                }
            }
        }
        // Whoever guesses so often gets no more attempts.
        asked.sockets[at] = None;
        Read::Failure
    }

    /// Does what is due.
    pub(super) fn timers(&mut self, world: &mut Surroundings<'_>) {
        while let Some((due, id)) = self.due.first().copied().filter(|(due, _)| *due <= world.now) {
            let Some(asked) = self.asked.get(id) else {
                self.due.remove(&(due, id));
                continue;
            };
            world.efforts.note(asked.client.guest.port);
            let has_next = asked.sockets.len() < asked.resolvers.len();
            if !has_next || world.now >= asked.begun + GIVE_UP_NS {
                self.give_up(id, world);
            } else {
                // If the host has too few of something, time brings another attempt.
                let _ = self.next(id, world);
                self.settle(id, world);
            }
        }
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    fn remove(&mut self, number: u64) {
        let Some(id) = self.by_age.remove(&number) else { return };
        let Some(asked) = self.asked.remove(id) else { return };
        self.due.remove(&(asked.due, id));
        let port = asked.client.guest.port;
        if let Some(its) = self.by_port.get_mut(&port) {
            its.remove(&number);
            if its.is_empty() {
                self.by_port.remove(&port);
            }
        }
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.by_port.remove(&port).into_iter().flatten().for_each(|number| self.remove(number));
    }
}

/// What came of a socket.
enum Read {
    Nothing,
    /// An answer of this length.
    Answer(usize),
    /// It will bring none.
    Failure,
}

/// The host has too few of something.
#[derive(Debug, PartialEq)]
struct Shortage {
    /// Whether it is something that our sockets have, and not memory.
    is_ours: bool,
}

fn is_shortage(error: &io::Error) -> bool {
    let is_ours = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::EADDRINUSE));
    is_ours || net::is_out_of_memory(error)
}

/// A socket on which a resolver was sent a message.
fn send(to: &SocketAddr, message: &[u8], world: &Surroundings<'_>, token: u64) -> io::Result<(UdpSocket, Ticket)> {
    let ticket = world.sockets.take(PER_GUEST_MAX).ok_or(io::Error::from_raw_os_error(libc::EMFILE))?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The kernel chooses a port at random.
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    world.poller.add_socket(&socket, token)?;
    socket.send(message)?;
    Ok((socket, ticket))
}
