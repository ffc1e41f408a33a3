//! What comes to the doors.
//!
//! Theory of operation. Doors are watched by edges: one that has something is read, or accepted on, until it has no
//! more, a bounded number of times in a row, in turn with the others. Where its clients cannot be taken now, they wait
//! where they are: in the door's own queue, of which the kernel bounds the length, and the door is looked at again
//! later. They wait for better times when the process or the host has too few of something to take one in, and for an
//! answer when it is not known where the address is that the door leads to, which guests are asked then
//! ([`Questions`]). If nobody answers, all that wait are refused.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use super::super::SHORTAGE_NS;
use super::super::id::{Id, Kind};
use super::super::tcp::{Surroundings, Tcp};
use super::super::udp;
use super::peers::Peer;
use super::people::{Found, Missing};
use super::questions::Questions;
use super::{Client, Forwards, known_as, question, refuse};
use crate::config::Protocol;
use crate::frame::vnet::VnetHeader;
use crate::sys::datagrams::{Inbox, Received};
use crate::sys::poller::{Poller, Trigger};
use crate::sys::{listen, net};

/// Connections that are accepted in a row on one socket, and messages that are read in a row.
const IN_A_ROW_MAX: usize = 32;

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(in super::super) struct Porter {
    ready: VecDeque<u32>,
    /// By door: whether it is among those, or waits.
    is_ready: Vec<bool>,
    /// Doors at which clients wait, and when those are looked at again.
    waiting: Vec<u32>,
    again_at: Option<u64>,
    questions: Questions,
    /// Where datagrams are received.
    inbox: Inbox,
}

/// What is left at a door that had its turn.
enum Left {
    Nothing,
    More,
    /// What there is cannot be taken before this time.
    Later(u64),
}

impl Porter {
    /// Has all doors watched.
    ///
    /// # Errors
    /// When memory is short.
    pub(in super::super) fn new(forwards: &Forwards, poller: &Poller) -> io::Result<Self> {
        for (index, door) in (0..).zip(&forwards.doors) {
            poller.add(&door.fd, Trigger::Edge, Id { index, generation: 0 }.token(Kind::Door))?;
        }
        Ok(Self { is_ready: vec![false; forwards.doors.len()], ..Self::default() })
    }

    /// Something has come to a door.
    pub(in super::super) fn event(&mut self, id: Id) {
        if let Some(is_ready) = self.is_ready.get_mut(id.index as usize)
            && !std::mem::replace(is_ready, true)
        {
            self.ready.push_back(id.index);
        }
    }

    /// Whether there may be something at any door.
    pub(in super::super) fn has_any(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When [`Self::serve`] is due, if nothing happens before.
    pub(in super::super) fn due(&self) -> Option<u64> {
        self.again_at
    }

    /// Takes what has come, each door in turn. Connections to guests of the engine that asks are made by its `tcp`.
    pub(in super::super) fn serve(&mut self, engine: usize, tcp: &mut Tcp, world: &mut Surroundings<'_>) {
        if world.forwards.was_answered() || self.again_at.is_some_and(|at| at <= world.now) {
            self.again_at = None;
            self.ready.extend(self.waiting.drain(..));
        }
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else { return };
            match self.serve_one(index, engine, tcp, world) {
                Left::More => self.ready.push_back(index),
                Left::Nothing => self.is_ready[index as usize] = false,
                Left::Later(at) => {
                    self.waiting.push(index);
                    self.again_at = Some(self.again_at.map_or(at, |other| other.min(at)));
                }
            }
        }
        world.forwards.set_asking(self.questions.are_open());
    }

    fn serve_one(&mut self, index: u32, engine: usize, tcp: &mut Tcp, world: &mut Surroundings<'_>) -> Left {
        let forwards = world.forwards;
        let door = &forwards.doors[index as usize];
        let found = forwards.look_up(door);
        match found {
            Ok(found) => self.questions.end(&found.address),
            Err(Missing::Address(address)) => {
                let ask = || {
                    let own = world.policy.gateway(address)?;
                    world.out.push(VnetHeader::default(), question::ask(world.gateway_mac, own, address)?);
                    Some(())
                };
                if let Some(at) = self.questions.ask(address, world.now, ask) {
                    return Left::Later(at);
                }
            }
            Err(Missing::Guest | Missing::Choice) => {}
        }
        let found = forwards.tell(door, found);
        match door.protocol {
            Protocol::Tcp => accept((index, found), engine, tcp, world),
            Protocol::Udp => self.read((index, found), world),
        }
    }

    /// Reads datagrams and brings them to the guest, if there is one.
    fn read(&mut self, (index, found): (u32, Option<Found>), world: &mut Surroundings<'_>) -> Left {
        let forwards = world.forwards;
        let door = &forwards.doors[index as usize];
        let mut left = IN_A_ROW_MAX;
        while left > 0 && world.out.has_room() {
            let bring = |received: &Received, bytes: &mut [u8]| {
                note(found, world);
                let Some((found, from)) = found.zip(known_as(received.from, world.policy)) else { return };
                let to = SocketAddr::new(found.address, door.guest_port);
                // What answers a group comes from one of the host's own.
                let host = received.to.filter(|to| !to.is_multicast());
                let peer = Peer { port: found.guest.port, door: index, client: received.from, host };
                forwards.note_peer((to, from), peer, world.now);
                udp::deliver((from, to), found.guest.mac, received, bytes, world);
            };
            match self.inbox.receive(&door.fd, left, bring) {
                Ok(came) => left -= came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Left::Nothing,
                Err(error) if net::is_out_of_memory(&error) => return Left::Later(world.now + SHORTAGE_NS),
                // What became of one that was sent.
                Err(_) => left -= 1,
            }
        }
        Left::More
    }
}

/// Something has come for the guest, or for nobody, and was taken.
fn note(found: Option<Found>, world: &mut Surroundings<'_>) {
    match found {
        Some(found) => world.efforts.note(found.guest.port),
        None => world.efforts.note_nobodys(),
    }
}

/// Accepts connections to the guest, if there is one.
fn accept((index, found): (u32, Option<Found>), engine: usize, tcp: &mut Tcp, world: &mut Surroundings<'_>) -> Left {
    let forwards = world.forwards;
    let door = &forwards.doors[index as usize];
    for _ in 0..IN_A_ROW_MAX {
        let (fd, client) = match listen::accept(&door.fd) {
            Ok(accepted) => accepted,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Left::Nothing,
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    return Left::Later(world.now + SHORTAGE_NS);
                }
                // That one has gone again.
                _ => continue,
            },
        };
        note(found, world);
        let Some((found, from)) = found.zip(known_as(client, world.policy)) else {
            refuse(fd);
            continue;
        };
        let client = Client { fd, guest: found.guest, to: SocketAddr::new(found.address, door.guest_port), from };
        if found.worker == engine { tcp.accept(client, world) } else { forwards.hand(found.worker, client) }
    }
    Left::More
}
