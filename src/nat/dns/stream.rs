//! DNS over TCP (RFC 7766).
//!
//! Theory of operation. A guest's connection to the gateway is mirrored like any other, to a listener of ours on the
//! host's loopback interface: each guest that connects has one of its own, made when it first does. So what a guest
//! asks by TCP is judged like what it asks by datagrams. Messages of a connection are answered one after the other;
//! what is to be relayed goes to the resolver over a connection of its own, under a number of our own. The next
//! resolver is asked as for datagrams.
//!
//! Bounds: [`PER_GUEST_MAX`] connections of a guest; more wait in the listener's queue. [`STREAMS_MAX`] of all: one
//! more takes the place of the one that has been idle for longest. A connection has one message of at most
//! [`QUERY_MAX`] bytes before it and one answer behind it, and ends when it has been idle for [`IDLE_NS`]. So many
//! messages are answered in one go that no other guest has to wait for long ([`MESSAGES_MAX`]).
//!
//! Limits: whoever may use the host's loopback interface can find the listener and ask what a guest could.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use super::super::id::{Id, Kind};
use super::super::sockets::Ticket;
use super::super::tcp::Surroundings;
use super::message::{HEADER_LEN, QUERY_MAX, Question, Saying, is_failure, renumbered};
use super::relay::{GIVE_UP_NS, Numbers, RETRY_NS};
use super::slots::Slots;
use crate::switch::PortId;
use crate::sys::net::{self, LocalPort};

/// Connections of one guest.
const PER_GUEST_MAX: usize = 16;
/// Those of all guests.
const STREAMS_MAX: usize = 256;
/// How long a connection may be idle, in nanoseconds.
const IDLE_NS: u64 = 10_000_000_000;
/// How often it is looked for those.
const SWEEP_NS: u64 = 500_000_000;
/// Messages of one connection that are answered before others' are.
const MESSAGES_MAX: usize = 32;
/// Bytes before each message: its length.
const PREFIX: usize = 2;
/// What is read in one go.
const READ_MAX: usize = 4096;

/// What is to be said of a message of a guest.
pub(super) enum Reply {
    /// This.
    Now(Vec<u8>),
    /// What one of these resolvers says.
    Ask(Question, Arc<[SocketAddr]>),
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    _ticket: Ticket,
    address: SocketAddr,
}

/// A message that is asked of a resolver.
#[derive(Debug)]
struct Asked {
    message: Vec<u8>,
    question: Question,
    resolvers: Arc<[SocketAddr]>,
    /// How many of them were asked.
    tried: usize,
    number: u16,
    socket: Option<(TcpStream, Ticket)>,
    /// What is still to be sent.
    request: Vec<u8>,
    /// What has come.
    answer: Vec<u8>,
    failure: Option<Vec<u8>>,
    begun: u64,
    due: u64,
}

#[derive(Debug)]
struct Stream {
    port: PortId,
    guest: TcpStream,
    _ticket: Ticket,
    /// What the guest has sent and is not answered.
    input: Vec<u8>,
    /// What is still to be sent to it.
    output: Vec<u8>,
    asked: Option<Asked>,
    used_at: u64,
}

/// A connection is at its end.
struct Over;

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Streams {
    listeners: HashMap<PortId, Listener>,
    streams: Slots<Stream>,
    numbers: Numbers,
    swept_at: u64,
}

impl Streams {
    /// Where the connections of a guest go to.
    ///
    /// # Errors
    /// When the host has too few of something.
    pub(super) fn target(&mut self, port: PortId, world: &Surroundings<'_>) -> io::Result<SocketAddr> {
        if let Some(listener) = self.listeners.get(&port) {
            return Ok(listener.address);
        }
        let ticket = world.sockets.take(PER_GUEST_MAX).ok_or(io::Error::from_raw_os_error(libc::EMFILE))?;
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        world.poller.add_socket(&socket, Id { index: port.0.into(), generation: 0 }.token(Kind::DnsListener))?;
        self.listeners.insert(port, Listener { socket, _ticket: ticket, address });
        Ok(address)
    }

    /// Somebody may have connected to a guest's listener. What they have sent already is told of when they are watched.
    pub(super) fn accept(&mut self, port: PortId, world: &mut Surroundings<'_>) {
        while self.streams.find(|stream| stream.port == port).len() < PER_GUEST_MAX {
            let Some(Ok((guest, _))) = self.listeners.get(&port).map(|listener| listener.socket.accept()) else {
                return;
            };
            world.efforts.note(port);
            if self.streams.len() >= STREAMS_MAX {
                self.end_most_idle();
            }
            let Some(ticket) = world.sockets.take(PER_GUEST_MAX).filter(|_| guest.set_nonblocking(true).is_ok()) else {
                continue;
            };
            let stream = Stream {
                port,
                guest,
                _ticket: ticket,
                input: Vec::new(),
                output: Vec::new(),
                asked: None,
                used_at: world.now,
            };
            let id = self.streams.insert(stream);
            let watched =
                self.streams.get(id).map(|stream| world.poller.add_socket(&stream.guest, token(id, Side::Guest)));
            if !matches!(watched, Some(Ok(()))) {
                self.streams.remove(id);
            }
        }
    }

    fn end_most_idle(&mut self) {
        let all = self.streams.find(|_| true);
        let oldest = all.into_iter().min_by_key(|id| self.streams.get(*id).map(|stream| stream.used_at));
        oldest.into_iter().for_each(|id| drop(self.streams.remove(id)));
    }

    /// Something has happened to a connection, that of the guest or that to a resolver: `reply` says what becomes of
    /// each message.
    pub(super) fn event(
        &mut self,
        id: Id,
        world: &mut Surroundings<'_>,
        mut reply: impl FnMut(&[u8]) -> Option<Reply>,
    ) {
        let Self { streams, numbers, .. } = self;
        let (id, side) = stream_of(id);
        let Some(stream) = streams.get(id) else { return };
        stream.used_at = world.now;
        world.efforts.note(stream.port);
        let mut asker = Asker { id, world, numbers };
        if side == Side::Resolver {
            stream.hear(&mut asker);
        }
        if stream.go_on(&mut asker, &mut reply).is_err() {
            self.end(id, world);
        }
    }

    /// A connection has ended: another may take its place.
    fn end(&mut self, id: Id, world: &mut Surroundings<'_>) {
        if let Some(stream) = self.streams.remove(id) {
            world.efforts.note(stream.port);
            self.accept(stream.port, world);
        }
    }

    /// When [`Self::sweep`] is due next.
    pub(super) fn due(&self) -> Option<u64> {
        (self.streams.len() > 0).then_some(self.swept_at + SWEEP_NS)
    }

    /// Does what is due.
    pub(super) fn sweep(&mut self, world: &mut Surroundings<'_>, mut reply: impl FnMut(&[u8]) -> Option<Reply>) {
        if self.due().is_none_or(|due| due > world.now) {
            return;
        }
        self.swept_at = world.now;
        for id in self.streams.find(|stream| stream.asked.as_ref().is_some_and(|asked| asked.due <= world.now)) {
            let Some(stream) = self.streams.get(id) else { continue };
            world.efforts.note(stream.port);
            let mut asker = Asker { id, world, numbers: &mut self.numbers };
            stream.ask_next(&mut asker);
            if stream.go_on(&mut asker, &mut reply).is_err() {
                self.end(id, world);
            }
        }
        for id in self.streams.find(|stream| stream.asked.is_none() && stream.used_at + IDLE_NS <= world.now) {
            self.end(id, world);
        }
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.listeners.remove(&port);
        let its = self.streams.find(|stream| stream.port == port);
        its.into_iter().for_each(|id| drop(self.streams.remove(id)));
    }
}

/// What asking a resolver needs.
struct Asker<'a> {
    id: Id,
    world: &'a Surroundings<'a>,
    numbers: &'a mut Numbers,
}

impl Stream {
    /// Sends what is to be sent, and answers what has come, as far as it goes.
    fn go_on(&mut self, asker: &mut Asker<'_>, reply: &mut impl FnMut(&[u8]) -> Option<Reply>) -> Result<(), Over> {
        for _ in 0..MESSAGES_MAX {
            if !write(&mut self.guest, &mut self.output)? || self.asked.is_some() {
                return Ok(());
            }
            while message(&self.input).is_none() {
                if !read(&mut self.guest, &mut self.input)? {
                    return Ok(());
                }
            }
            let message = message(&self.input).unwrap_or_default();
            if !(HEADER_LEN..=QUERY_MAX).contains(&message.len()) {
                return Err(Over);
            }
            let (len, reply) = (PREFIX + message.len(), reply(message).ok_or(Over)?);
            let message = self.input.drain(..len).skip(PREFIX).collect();
            match reply {
                Reply::Now(answer) => self.say(&answer),
                Reply::Ask(question, resolvers) => self.ask(message, question, resolvers, asker),
            }
        }
        // There may be more, of which nobody would tell.
        asker.world.poller.look_again(&self.guest, token(asker.id, Side::Guest)).map_err(|_| Over)
    }

    fn say(&mut self, answer: &[u8]) {
        self.output.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        self.output.extend_from_slice(answer);
    }

    fn ask(&mut self, message: Vec<u8>, question: Question, resolvers: Arc<[SocketAddr]>, asker: &mut Asker<'_>) {
        self.asked = Some(Asked {
            message,
            question,
            resolvers,
            tried: 0,
            number: 0,
            socket: None,
            request: Vec::new(),
            answer: Vec::new(),
            failure: None,
            begun: asker.world.now,
            due: asker.world.now,
        });
        self.ask_next(asker);
    }

    /// Asks the next resolver; if there is none, the guest hears that nobody can tell.
    fn ask_next(&mut self, asker: &mut Asker<'_>) {
        let Some(asked) = &mut self.asked else { return };
        asked.socket = None;
        while let Some(resolver) = asked.resolvers.get(asked.tried) {
            asked.tried += 1;
            let Some(ticket) = asker.world.sockets.take(PER_GUEST_MAX) else { continue };
            let Ok((socket, _)) = net::begin_connection(resolver, None, LocalPort::Any) else { continue };
            let socket = TcpStream::from(socket);
            if asker.world.poller.add_socket(&socket, token(asker.id, Side::Resolver)).is_err() {
                continue;
            }
            asked.number = asker.numbers.next();
            let message = renumbered(&asked.message, asked.number);
            asked.request = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
            asked.answer.clear();
            let is_last = asked.tried == asked.resolvers.len();
            asked.due = if is_last { asked.begun + GIVE_UP_NS } else { asker.world.now + RETRY_NS };
            asked.socket = Some((socket, ticket));
            return;
        }
        let Some(asked) = self.asked.take() else { return };
        let answer = asked.failure.or_else(|| asked.question.answer(&asked.message, Saying::FAILED));
        answer.into_iter().for_each(|answer| self.say(&answer));
    }

    /// Something has happened to the connection to a resolver.
    fn hear(&mut self, asker: &mut Asker<'_>) {
        let Some(asked) = &mut self.asked else { return };
        match asked.exchange() {
            Ok(false) => {}
            Ok(true) => {
                let Some(asked) = self.asked.take() else { return };
                self.say(&asked.answer[PREFIX..]);
            }
            Err(Over) => self.ask_next(asker),
        }
    }
}

impl Asked {
    /// Sends the question and reads the answer. Returns whether it is there.
    fn exchange(&mut self) -> Result<bool, Over> {
        let Some((socket, _)) = &mut self.socket else { return Ok(false) };
        if !write(socket, &mut self.request)? {
            return Ok(false);
        }
        while message(&self.answer).is_none() {
            if !read(socket, &mut self.answer)? {
                return Ok(false);
            }
        }
        let len = message(&self.answer).map_or(0, <[u8]>::len);
        // We have asked for no more than one.
        self.answer.truncate(PREFIX + len);
        let answer = &mut self.answer[PREFIX..];
        if !self.question.is_answered_by(answer, &self.message, self.number) {
            return Err(Over);
        }
        self.question.restore(answer, &self.message);
        if is_failure(answer) {
            self.failure = Some(answer.to_vec());
            return Err(Over);
        }
        Ok(true)
    }
}

/// The first message of what has come, once it is whole.
fn message(bytes: &[u8]) -> Option<&[u8]> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>()?;
    rest.get(..usize::from(u16::from_be_bytes(*prefix)))
}

/// Sends what there is. Returns whether it is all gone.
fn write(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<bool, Over> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(0) => return Err(Over),
            Ok(len) => drop(bytes.drain(..len)),
            // It is still being connected, or is full.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
                return Ok(false);
            }
            Err(_) => return Err(Over),
        }
    }
    Ok(true)
}

/// Reads what has come. Returns whether there was any.
fn read(socket: &mut TcpStream, into: &mut Vec<u8>) -> Result<bool, Over> {
    let at = into.len();
    into.resize(at + READ_MAX, 0);
    let result = socket.read(&mut into[at..]);
    into.truncate(at + *result.as_ref().unwrap_or(&0));
    match result {
        Ok(0) => Err(Over),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(_) => Err(Over),
    }
}

/// Which of a connection's two sockets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Guest,
    Resolver,
}

fn token(id: Id, side: Side) -> u64 {
    Id { index: id.index * 2 + u32::from(side == Side::Resolver), ..id }.token(Kind::DnsStream)
}

fn stream_of(id: Id) -> (Id, Side) {
    let side = if id.index.is_multiple_of(2) { Side::Guest } else { Side::Resolver };
    (Id { index: id.index / 2, ..id }, side)
}
