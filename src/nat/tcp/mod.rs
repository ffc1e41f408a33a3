//! TCP: the connections of guests.
//!
//! Theory of operation. Each connection has a [`Mirror`] and a socket of the host's. A guest's SYN makes both, if the
//! guest has not too many; the guest hears of it when the kernel has the connection. Segments find their connection by
//! addresses and ports. What a burst brings is acknowledged when the burst has ended, once for each connection.
//!
//! Connections that have something for their guest wait in line ([`Tcp::offer`]); each gives one frame, as long as may
//! be, and goes to the end of the line. The frame's bytes are peeked from the socket straight into the guest's buffers.
//! A connection whose guest has no room waits for the guest's acknowledgement, one whose socket is empty for the
//! socket.
//!
//! What is small is acknowledged a moment later, or with what is said to the guest meanwhile ([`acks`]).
//!
//! When something is due is in a sorted set, once for each connection; what is due later than it says goes back in.
//!
//! Bounds: [`PER_GUEST_MAX`] connections for a guest, [`HALF_OPEN_MAX`] of them half open, [`CONNECTIONS_MAX`] for all;
//! [`KEPT_PER_GUEST_MAX`] bytes of a guest's that cannot be passed on yet; room in the kernel for what peers send
//! ([`receive_room`]).

mod accept;
mod acks;
mod connection;
mod lines;
mod mappings;
mod mirror;
mod pending;
mod receive_room;
mod segment;
mod supply;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "trials"))]
pub(super) mod trial;
mod unreachable;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::efforts::Efforts;
use super::forward::Forwards;
use super::headers::{Ends, HOP_LIMIT, NETWORK_MAX};
use super::icmp::{Limits, Reason};
use super::id::{Id, Kind};
use super::out::{Guest, Out};
use super::packet::Packet;
use super::policy::Policy;
use super::seq::Seq;
use super::sockets::{Sockets, Ticket};
use crate::frame::ethernet::MacAddr;
use crate::frame::flow::flow_hash;
use crate::frame::ip::TCP;
use crate::metrics::Counter;
use crate::ring::{Bytes, Gather};
use crate::switch::PortId;
use crate::sys::net;
use crate::sys::poller::{Poller, Ready};
use acks::WaitingAcks;
pub(super) use connection::Connection;
use connection::{Key, bare};
use lines::Lines;
use mappings::Mappings;
use mirror::{Fate, Mirror, Timer};
use receive_room::ReceiveRoom;
use segment::{ACK, HEADER_LEN, Header, RST, SYN, Segment};
use supply::Peeks;
pub use supply::{Offer, Supply};

/// Connections of one guest.
const PER_GUEST_MAX: usize = 32_768;
/// Those of them that are not there for both sides yet.
const HALF_OPEN_MAX: usize = 1024;
/// Bytes that are kept of one guest's streams: what came before others that are missing, or found no room.
const KEPT_PER_GUEST_MAX: usize = 16 << 20;
/// Connections of all guests together.
const CONNECTIONS_MAX: usize = 131_072;
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

/// What a guest has.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    connections: usize,
    half_open: usize,
    /// What is kept of its streams, in bytes with what it takes to keep them.
    kept: usize,
    /// What it has of the budget of room for what peers send, in bytes.
    room: usize,
}

/// How many of something there have been, since this was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turnover {
    /// So many began.
    pub opened: u64,
    /// So many ended.
    pub closed: u64,
}

/// Something that the connections need of whoever has them.
pub(super) struct Surroundings<'a> {
    pub(super) out: &'a mut Out,
    pub(super) poller: &'a Poller,
    pub(super) policy: &'a Policy,
    pub(super) sockets: &'a Arc<Sockets>,
    pub(super) forwards: &'a Forwards,
    pub(super) gateway_mac: MacAddr,
    pub(super) mtu: u16,
    pub(super) now: u64,
    /// Packets that were cut into pieces so far: each has its number.
    pub(super) packets: &'a mut u32,
    pub(super) limits: &'a mut Limits,
    pub(super) efforts: &'a mut Efforts,
}

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Tcp {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    shares: HashMap<PortId, Share>,
    mappings: Mappings,
    lines: Lines,
    owing: Vec<Id>,
    waiting_acks: WaitingAcks,
    due: BTreeSet<(u64, Id)>,
    gather: Gather,
    peeks: Peeks,
    turnover: Turnover,
}

impl Tcp {
    /// No connections yet. With `peek_offset`, `SO_PEEK_OFF` is used where the kernel has it.
    pub(super) fn new(peek_offset: bool) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            shares: HashMap::new(),
            mappings: Mappings::default(),
            lines: Lines::default(),
            owing: Vec::new(),
            waiting_acks: WaitingAcks::default(),
            due: BTreeSet::new(),
            gather: Gather::default(),
            peeks: Peeks::new(peek_offset),
            turnover: Turnover::default(),
        }
    }

    /// Takes a guest's packet. `target` is where it goes in the host's world, if the guest may begin a connection
    /// there.
    pub(super) fn take(
        &mut self,
        guest: Guest,
        packet: &Packet,
        bytes: &Bytes<'_>,
        target: Result<SocketAddr, Counter>,
        world: &mut Surroundings<'_>,
    ) -> Result<(), Counter> {
        let segment = Segment::parse(bytes.head(), packet.transport, packet.end).ok_or(Counter::DropRxBadPacket)?;
        // Who sends may have taken in what it had no room for.
        self.lines.go_on(guest.port);
        let key = Key {
            guest: SocketAddr::new(packet.from, segment.from_port),
            remote: SocketAddr::new(packet.to, segment.to_port),
        };
        if segment.from_port == 0 || segment.to_port == 0 {
            return Err(Counter::DropRxBadPacket);
        }
        if let Some(id) = self.find(&key) {
            let is_new = segment.has(SYN) && segment.ack.is_none() && self.is_ending(id);
            if !is_new {
                self.segment(id, guest, &segment, bytes, world);
                return Ok(());
            }
            self.remove(id);
        }
        let target = target?;
        let is_syn = segment.flags & (SYN | ACK | RST) == SYN;
        if !is_syn {
            self.refuse(guest, &key, &segment, world);
            return Ok(());
        }
        self.open(guest, key, &segment, (target, packet.passed_on()), world)
    }

    fn find(&self, key: &Key) -> Option<Id> {
        let index = *self.by_key.get(key)?;
        Some(Id { index, generation: self.slots[index as usize].generation })
    }

    fn get(&mut self, id: Id) -> Option<&mut Box<Connection>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.connection.as_mut().filter(|_| slot.generation == id.generation)
    }

    fn is_ending(&mut self, id: Id) -> bool {
        self.get(id).is_some_and(|connection| connection.mirror.is_ending())
    }

    /// Answers a segment of no connection (RFC 9293, 3.10.7.1).
    fn refuse(&self, guest: Guest, key: &Key, segment: &Segment, world: &mut Surroundings<'_>) {
        if segment.has(RST) {
            return;
        }
        let ends = Ends { mac: world.gateway_mac, to_mac: guest.mac, from: key.remote.ip(), to: key.guest.ip() };
        let len = segment.len() + u32::from(segment.has(SYN)) + u32::from(segment.has(segment::FIN));
        let (seq, ack, flags) = match segment.ack {
            Some(ack) => (ack, Seq(0), RST),
            None => (Seq(0), segment.seq.plus(len), RST | ACK),
        };
        bare(key, &ends, &Header { seq, ack, flags, window: 0, mss: None, scale: None }, world.out);
    }

    fn open(
        &mut self,
        guest: Guest,
        key: Key,
        syn: &Segment,
        (target, hop_limit): (SocketAddr, u8),
        world: &mut Surroundings<'_>,
    ) -> Result<(), Counter> {
        let share = self.shares.entry(guest.port).or_default();
        let is_full = share.connections >= PER_GUEST_MAX || share.half_open >= HALF_OPEN_MAX;
        if is_full || self.by_key.len() >= CONNECTIONS_MAX {
            return Err(Counter::DropRxFlowLimit);
        }
        let ticket = world.sockets.take(share.connections).ok_or(Counter::DropRxFlowLimit)?;
        world.efforts.is_dear = true;
        let (fd, is_mapped) = match self.mappings.begin((guest.port, key.guest), (&target, hop_limit), world.sockets) {
            Ok(begun) => begun,
            Err(error) if is_shortage(&error) => return Err(Counter::DropRxFlowLimit),
            Err(error) => {
                match Reason::of(&error, None) {
                    Some(reason) => unreachable::tell(guest, &key, syn.seq, (None, reason), world),
                    None => self.refuse(guest, &key, syn, world),
                }
                return Ok(());
            }
        };
        let isn = self.isn(&key, world.now);
        let id = self.insert(guest, key, (fd, ticket, is_mapped), Mirror::asked_for(syn, isn, world.now), world);
        let poller = world.poller;
        let watched = self.get(id).map(|connection| poller.add_socket(&connection.fd, id.token(Kind::Tcp)));
        if !matches!(watched, Some(Ok(()))) {
            self.remove(id);
            return Err(Counter::DropRxFlowLimit);
        }
        self.settle(id, Fate::Lives, world);
        Ok(())
    }

    /// Our first number: another for each connection, and a later one for the next of the same ends (RFC 6528).
    fn isn(&self, key: &Key, now: u64) -> Seq {
        let secret = std::hash::BuildHasher::hash_one(self.by_key.hasher(), key) as u32;
        Seq(secret).plus((now / 4000) as u32)
    }

    fn insert(
        &mut self,
        guest: Guest,
        key: Key,
        (fd, ticket, is_mapped): (OwnedFd, Ticket, bool),
        mirror: Mirror,
        world: &Surroundings<'_>,
    ) -> Id {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let mut connection = Box::new(Connection {
            key,
            guest,
            fd,
            _ticket: ticket,
            is_mapped,
            mirror,
            has_offset: self.peeks.has_offset(&key),
            peek_at: None,
            reads_again: false,
            receive_room: ReceiveRoom::new(world.now),
            is_last: false,
            asks_for_room: false,
            is_in_line: false,
            owes: false,
            ack_due: None,
            due_in_set: u64::MAX,
            kept: 0,
            is_half_open: true,
            flow: 0,
        });
        let ends = connection.ends(world.gateway_mac);
        let mut head = [0; NETWORK_MAX + HEADER_LEN];
        ends.emit(TCP, HOP_LIMIT, HEADER_LEN, &mut head);
        head[ends.len()..][..2].copy_from_slice(&key.remote.port().to_be_bytes());
        head[ends.len() + 2..][..2].copy_from_slice(&key.guest.port().to_be_bytes());
        connection.flow = flow_hash(&head[..ends.len() + HEADER_LEN]);
        let slot = &mut self.slots[index as usize];
        slot.connection = Some(connection);
        self.by_key.insert(key, index);
        self.turnover.opened += 1;
        let share = self.shares.entry(guest.port).or_default();
        share.connections += 1;
        share.half_open += 1;
        Id { index, generation: slot.generation }
    }

    /// Forgets a connection, and returns it: its socket is closed when it is dropped.
    fn remove(&mut self, id: Id) -> Option<Box<Connection>> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        let connection = slot.connection.take()?;
        slot.generation = Id::next_generation(slot.generation);
        self.free.push(id.index);
        self.by_key.remove(&connection.key);
        if connection.is_mapped {
            self.mappings.end(&connection.key.guest);
        }
        self.due.remove(&(connection.due_in_set, id));
        self.turnover.closed += 1;
        if let Some(share) = self.shares.get_mut(&connection.guest.port) {
            share.connections -= 1;
            share.half_open -= usize::from(connection.is_half_open);
            share.kept -= connection.kept;
            share.room -= connection.receive_room.budgeted();
            if share.connections == 0 {
                self.shares.remove(&connection.guest.port);
            }
        }
        Some(connection)
    }

    fn segment(&mut self, id: Id, guest: Guest, segment: &Segment, bytes: &Bytes<'_>, world: &mut Surroundings<'_>) {
        let (mss, mut gather) = (world.mtu, std::mem::take(&mut self.gather));
        if let Some(connection) = self.get(id).filter(|connection| connection.guest.port == guest.port) {
            connection.guest = guest;
            let (own_mss, ends, key) = (connection.own_mss(mss), connection.ends(world.gateway_mac), connection.key);
            let (mirror, mut kernel) = connection.split(&mut gather);
            if segment.has(SYN) && mirror.is_same_syn(segment) {
                let header = mirror.syn(own_mss, &mut kernel);
                bare(&key, &ends, &header, world.out);
            } else {
                let fate = mirror.segment(segment, bytes, &mut kernel, world.now);
                connection.mirror.is_readable |= std::mem::take(&mut connection.reads_again);
                if fate == Fate::Stray {
                    self.refuse(guest, &key, segment, world);
                }
                self.settle(id, fate, world);
            }
        }
        self.gather = gather;
    }

    /// Does what has to be done after a connection has changed.
    fn settle(&mut self, id: Id, fate: Fate, world: &mut Surroundings<'_>) {
        let Some(connection) = self.get(id) else { return };
        match fate {
            Fate::Broken => return self.break_off(id),
            Fate::Failed => {
                let (key, ends) = (connection.key, connection.ends(world.gateway_mac));
                bare(&key, &ends, &connection.mirror.reset_header(), world.out);
                return self.break_off(id);
            }
            Fate::Lives | Fate::Done | Fate::Stray => {}
        }
        connection.ask_for_room(id, world.poller);
        let is_open = connection.is_half_open && !connection.mirror.is_half_open();
        connection.is_half_open &= !is_open;
        let port = connection.guest.port;
        let owes = connection.mirror.owes_ack && !std::mem::replace(&mut connection.owes, connection.mirror.owes_ack);
        let is_wanted = connection.mirror.is_readable && connection.wanted().is_some();
        let joins = is_wanted && !connection.is_in_line;
        connection.is_in_line |= is_wanted;
        connection.mirror.waits_for_window(world.now);
        let due = connection.mirror.due();
        let due_in_set = connection.due_in_set;
        connection.due_in_set = due.min(due_in_set);
        let is_over = connection.mirror.is_done();
        if is_open && let Some(share) = self.shares.get_mut(&port) {
            share.half_open -= 1;
        }
        if is_over {
            self.remove(id);
            return;
        }
        self.count_kept(id);
        self.grow_room(id, world);
        if owes {
            self.owing.push(id);
        }
        if joins {
            self.lines.join(port, id);
        }
        if due < due_in_set {
            self.due.remove(&(due_in_set, id));
            self.due.insert((due, id));
        }
    }

    /// Has one that keeps more than its guest may have kept give that up.
    fn count_kept(&mut self, id: Id) {
        let Some(slot) = self.slots.get_mut(id.index as usize) else { return };
        let Some(connection) = slot.connection.as_mut() else { return };
        let Some(share) = self.shares.get_mut(&connection.guest.port) else { return };
        share.kept = share.kept + connection.mirror.kept() - connection.kept;
        connection.kept = connection.mirror.kept();
        if share.kept > KEPT_PER_GUEST_MAX {
            share.kept -= std::mem::take(&mut connection.kept);
            connection.mirror.forget_kept();
        }
    }

    /// Has the kernel have more room for what the peer sends, if that is what keeps it back.
    fn grow_room(&mut self, id: Id, world: &Surroundings<'_>) {
        let Some(slot) = self.slots.get_mut(id.index as usize) else { return };
        let Some(connection) = slot.connection.as_mut() else { return };
        let Some(share) = self.shares.get_mut(&connection.guest.port) else { return };
        let Connection { fd, mirror, receive_room, .. } = &mut **connection;
        let had = receive_room.budgeted();
        // One that is not there any more is as near as may be.
        let round_trip = || net::round_trip(&*fd).map_or(0, |trip| trip + mirror.round_trip());
        if let Some(bytes) = receive_room.grow(world.now, round_trip, (world.sockets, share.room)) {
            share.room += receive_room.budgeted() - had;
            // Fails for nothing that is a socket.
            let _ = net::set_receive_room(&*fd, bytes);
        }
    }

    /// The peer hears of it.
    fn break_off(&mut self, id: Id) {
        if let Some(connection) = self.remove(id) {
            connection.break_off();
        }
    }

    /// Something has happened to a connection's socket.
    pub(super) fn event(&mut self, id: Id, ready: Ready, world: &mut Surroundings<'_>) {
        let mut gather = std::mem::take(&mut self.gather);
        if let Some(connection) = self.get(id) {
            world.efforts.note(connection.guest.port);
            let fate = Self::heed(connection, ready, &mut gather, world);
            self.settle(id, fate, world);
        }
        self.gather = gather;
    }

    fn heed(connection: &mut Connection, ready: Ready, gather: &mut Gather, world: &mut Surroundings<'_>) -> Fate {
        if ready.failed
            && let Some(fate) = unreachable::failure(connection, world)
        {
            return fate;
        }
        let (own_mss, ends, key) = (connection.own_mss(world.mtu), connection.ends(world.gateway_mac), connection.key);
        let (mirror, mut kernel) = connection.split(gather);
        if mirror.is_connecting() {
            if !ready.writable || ready.hung_up {
                return if ready.hung_up { Fate::Failed } else { Fate::Lives };
            }
            let header = mirror.connected(own_mss, &mut kernel, world.now);
            net::connection_made(&connection.fd, &key.remote);
            bare(&key, &ends, &header, world.out);
            return Fate::Lives;
        }
        mirror.is_readable |= ready.readable || ready.hung_up;
        connection.is_last |= ready.ended || ready.hung_up;
        let (mirror, mut kernel) = connection.split(gather);
        if ready.writable { mirror.has_room(&mut kernel, world.now) } else { Fate::Lives }
    }

    /// Something may be due.
    pub(super) fn timers(&mut self, world: &mut Surroundings<'_>) {
        while let Some((due, id)) = self.due.first().copied() {
            if due > world.now {
                break;
            }
            self.due.pop_first();
            let mut gather = std::mem::take(&mut self.gather);
            if let Some(connection) = self.get(id) {
                connection.due_in_set = u64::MAX;
                world.efforts.note(connection.guest.port);
                let fate = Self::timer(connection, &mut gather, world);
                self.settle(id, fate, world);
            }
            self.gather = gather;
        }
    }

    fn timer(connection: &mut Connection, gather: &mut Gather, world: &mut Surroundings<'_>) -> Fate {
        let (own_mss, ends, key) = (connection.own_mss(world.mtu), connection.ends(world.gateway_mac), connection.key);
        let (mirror, mut kernel) = connection.split(gather);
        let header = match mirror.timer(world.now) {
            Timer::Nothing | Timer::Again => return Fate::Lives,
            Timer::GiveUp => return Fate::Failed,
            Timer::PassOn => return mirror.pass_on(&mut kernel, world.now),
            Timer::Syn => mirror.syn(own_mss, &mut kernel),
            Timer::Probe => mirror.probe(&mut kernel),
        };
        bare(&key, &ends, &header, world.out);
        Fate::Lives
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due).into_iter().chain(self.waiting_acks.due()).min()
    }

    /// How many connections there have been since this was last asked.
    pub(super) fn turnover(&mut self) -> Turnover {
        std::mem::take(&mut self.turnover)
    }

    /// A port has gone. Returns its connections, which are to be broken off.
    pub(super) fn port_ended(&mut self, port: PortId) -> Vec<Connection> {
        let is_its = |slot: &Slot| slot.connection.as_ref().is_some_and(|connection| connection.guest.port == port);
        let its: Vec<Id> = (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| is_its(slot))
            .map(|(index, slot)| Id { index, generation: slot.generation })
            .collect();
        self.lines.port_ended(port);
        its.into_iter().filter_map(|id| self.remove(id).map(|connection| *connection)).collect()
    }
}

/// Whether the host has too few of something at the moment.
fn is_shortage(error: &io::Error) -> bool {
    let is_full = [libc::EMFILE, libc::ENFILE, libc::EADDRNOTAVAIL, libc::EADDRINUSE];
    net::is_out_of_memory(error) || error.raw_os_error().is_some_and(|error| is_full.contains(&error))
}
