//! Forwards: ports of the host that lead to guests.
//!
//! Theory of operation. A forward has a socket for each of its ports and families. All of a network's are bound before
//! anything else of it is there ([`Doors`]), and all engines of the network share them, and what is known of guests
//! ([`People`]). The first engine has the [`Porter`], which hears what comes to them.
//!
//! A connection is accepted first, and then the guest is asked, in the name of the client: the guest sees the client's
//! own address and port. If it refuses, or does not answer, the client's connection is broken off. The connection
//! belongs to the engine of the worker that the guest's port belongs to, since that is where the guest's segments come;
//! the porter hands it over.
//!
//! Datagrams the porter brings to the guest itself, and notes how their sender is reached ([`Peers`]); whichever engine
//! takes the answer sends it through the same socket, from the address of the host that the sender talks to. A guest
//! that sends to somebody else, from a port that a forward leads to, does so through the forward's socket as well, if
//! that is bound to no address: it is one endpoint to all (RFC 4787, REQ-1).
//!
//! Clients whose addresses mean something else to a guest, or nothing, are shown as the gateway: the host itself by its
//! loopback addresses is one. Two of them that have the same port are told apart by nothing: of connections the second
//! is refused, of datagrams the last one has the answers.
//!
//! A forward may name an address of a guest that has sent nothing yet, or has the address from somewhere else. Guests
//! are asked then who has it, as hosts ask each other (ARP, neighbour discovery), and clients wait for the answer. It
//! comes to the engine of the guest's worker, which wakes the first one.
//!
//! A client for whom there is no guest is refused, or what it sends is dropped; that is told once for each socket,
//! until there is one.
//!
//! Locks: what is known of guests, the peers, and each engine's letterbox are locked for a moment each, under an
//! engine's lock, and never two of them at once. Under the first, the directory may lock what it needs.

mod doors;
mod peers;
mod people;
mod porter;
mod question;
mod questions;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::out::Guest;
use super::policy::Policy;
use crate::config::{Name, Protocol};
use crate::frame::ethernet::MacAddr;
use crate::switch::PortId;
use crate::sys::net::reset_at_close;
use doors::Door;
pub use doors::{Doors, ForwardError};
use peers::{Pair, Peer, Peers};
pub use people::{Directory, Lease};
use people::{Found, Missing, People};
pub(super) use porter::Porter;

/// Connections that may wait in an engine's letterbox.
const HANDED_MAX: usize = 1024;
const SECOND: u64 = 1_000_000_000;

/// A connection that somebody has made to a guest.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) fd: OwnedFd,
    pub(super) guest: Guest,
    /// The guest's address and port.
    pub(super) to: SocketAddr,
    /// The client's, as the guest is to know it.
    pub(super) from: SocketAddr,
}

/// Breaks a client's connection off.
pub(super) fn refuse(fd: OwnedFd) {
    reset_at_close(&fd);
}

/// A client's address as guests are to know it; none: they have no address to know it by.
fn known_as(client: SocketAddr, policy: &Policy) -> Option<SocketAddr> {
    Some(SocketAddr::new(policy.known_to_guests(client.ip())?, client.port()))
}

/// The connections that an engine is to take over.
#[derive(Debug)]
struct Letterbox {
    clients: Mutex<Vec<Client>>,
    wake: EventFd,
}

/// How a guest's datagram leaves that belongs to a forward.
#[derive(Debug)]
pub(super) struct WayBack<'a> {
    pub(super) fd: &'a OwnedFd,
    pub(super) to: SocketAddr,
    /// From which of the host's addresses, if it has to be a certain one.
    pub(super) from: Option<IpAddr>,
}

/// See the module's theory of operation.
#[derive(Debug)]
pub struct Forwards {
    network: String,
    doors: Vec<Door>,
    /// The guests' ports that datagrams are forwarded to.
    datagram_ports: HashSet<u16>,
    directory: Option<Arc<dyn Directory>>,
    people: Mutex<People>,
    peers: Mutex<Peers>,
    /// By engine.
    letterboxes: Vec<Letterbox>,
    /// Whether guests were asked who has an address, and whether one has answered since that was last looked at.
    is_asking: AtomicBool,
    is_answered: AtomicBool,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forwards {
    /// For a network of this name with so many engines. `directory` knows which addresses were given to guests.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(
        Doors(doors): Doors,
        network: String,
        engines: usize,
        directory: Option<Arc<dyn Directory>>,
    ) -> io::Result<Arc<Self>> {
        let letterbox = |_| -> io::Result<Letterbox> {
            let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            Ok(Letterbox { clients: Mutex::default(), wake })
        };
        let datagrams = doors.iter().filter(|door| door.protocol == Protocol::Udp);
        Ok(Arc::new(Self {
            network,
            datagram_ports: datagrams.map(|door| door.guest_port).collect(),
            doors,
            directory,
            people: Mutex::default(),
            peers: Mutex::default(),
            letterboxes: (0..engines).map(letterbox).collect::<io::Result<_>>()?,
            is_asking: AtomicBool::new(false),
            is_answered: AtomicBool::new(false),
        }))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.doors.is_empty()
    }

    /// A port has come, of this worker; the name is the one it is declared by.
    pub fn port_came(&self, port: PortId, worker: usize, name: Option<Name>) {
        lock(&self.people).port_came(port, worker, name);
    }

    /// The guest on a port has sent for the first time, from this address.
    pub fn met(&self, port: PortId, mac: MacAddr) {
        lock(&self.people).met(port, mac);
    }

    /// A port has gone: nothing leads to it any more. To be told before the engines are.
    pub fn port_ended(&self, port: PortId) {
        lock(&self.people).port_ended(port);
        lock(&self.peers).port_ended(port);
    }

    /// A guest has sent from an address.
    pub(super) fn note(&self, guest: Guest, address: IpAddr) {
        lock(&self.people).note(guest, address);
    }

    /// Where a door leads to.
    fn look_up(&self, door: &Door) -> Result<Found, Missing> {
        lock(&self.people).find(&door.guest, door.is_ipv4, self.directory.as_deref())
    }

    /// What was found where a door leads to. If it leads nowhere, that is told.
    fn tell(&self, door: &Door, found: Result<Found, Missing>) -> Option<Found> {
        let was_told = door.is_told.swap(found.is_err(), Ordering::Relaxed);
        if let (Err(missing), false) = (&found, was_told) {
            let family = if door.is_ipv4 { "IPv4" } else { "IPv6" };
            let why = match missing {
                Missing::Guest => format!("no such guest is known to have an {family} address yet"),
                Missing::Address(address) => format!("no guest answers who was asked for {address}"),
                Missing::Choice => format!("there are several guests with {family}: say in the forward which is meant"),
            };
            tracing::warn!(network = self.network.as_str(), "{}: a client was refused: {why}", door.forward);
        }
        found.ok()
    }

    /// Takes note of a guest's answer, in a frame of `len` bytes that begins with `head`, to the question who has an
    /// address. Returns whether it is one, and there is such a question.
    pub(super) fn hear(&self, port: PortId, (head, len): (&[u8], usize), policy: &Policy) -> bool {
        if !self.is_asking.load(Ordering::Relaxed) {
            return false;
        }
        let answer = question::answer(head, len).filter(|address| policy.is_guests(*address));
        let Some((address, mac)) = answer.zip(MacAddr::source_of(head)) else { return false };
        self.note(Guest { port, mac }, address);
        self.is_answered.store(true, Ordering::Relaxed);
        if let Some(first) = self.letterboxes.first() {
            // It has the porter. Can only fail when the counter is full, and then it is being woken already.
            let _ = first.wake.write(1);
        }
        true
    }

    /// Whether [`Self::hear`] has heard an answer since this was last asked.
    fn was_answered(&self) -> bool {
        self.is_answered.swap(false, Ordering::Relaxed)
    }

    /// Whether there is a question.
    fn set_asking(&self, is_asking: bool) {
        self.is_asking.store(is_asking, Ordering::Relaxed);
    }

    /// A datagram's sender has come through a door.
    fn note_peer(&self, pair: Pair, peer: Peer, now: u64) {
        lock(&self.peers).note(pair, peer, now / SECOND);
    }

    /// How what a guest sends from its address and port `own` leaves, to one that it knows as `known`, if a forward
    /// says so. `target` is that one's address in the host's world, if the guest may go there unasked.
    pub(super) fn way_back(
        &self,
        guest: Guest,
        (own, known): (SocketAddr, SocketAddr),
        target: Option<IpAddr>,
        now: u64,
    ) -> Option<WayBack<'_>> {
        if !self.datagram_ports.contains(&own.port()) {
            return None;
        }
        let peer = lock(&self.peers).find((own, known), guest.port, now / SECOND);
        if let Some(peer) = peer {
            let door = self.doors.get(peer.door as usize)?;
            return Some(WayBack { fd: &door.fd, to: peer.client, from: peer.host });
        }
        let to = SocketAddr::new(target?, known.port());
        let is_wide = |door: &&Door| {
            let is_like = door.protocol == Protocol::Udp && door.guest_port == own.port();
            door.is_wide && is_like && door.is_ipv4 == own.is_ipv4()
        };
        let is_its = |found: Found| found.guest.port == guest.port && found.address == own.ip();
        let mut wide = self.doors.iter().filter(is_wide);
        let door = wide.find(|door| self.look_up(door).is_ok_and(is_its))?;
        Some(WayBack { fd: &door.fd, to, from: None })
    }

    /// Readable when [`Self::take`] has something for this engine.
    pub(super) fn letterbox_fd(&self, engine: usize) -> Option<BorrowedFd<'_>> {
        self.letterboxes.get(engine).map(|its| its.wake.as_fd())
    }

    /// Hands a connection over to an engine.
    fn hand(&self, engine: usize, client: Client) {
        let Some(its) = self.letterboxes.get(engine) else { return refuse(client.fd) };
        let mut clients = lock(&its.clients);
        if clients.len() >= HANDED_MAX {
            return refuse(client.fd);
        }
        clients.push(client);
        drop(clients);
        // Can only fail when the counter is full, and then the engine is being woken already.
        let _ = its.wake.write(1);
    }

    /// The connections that were handed over to an engine.
    pub(super) fn take(&self, engine: usize) -> Vec<Client> {
        let Some(its) = self.letterboxes.get(engine) else { return Vec::new() };
        // Quiet first, then look: one that comes in between wakes us once more for nothing.
        let _ = its.wake.read();
        std::mem::take(&mut *lock(&its.clients))
    }

    /// A port has gone: breaks off what waits for an engine in its name.
    pub(super) fn forget(&self, engine: usize, port: PortId) {
        let Some(its) = self.letterboxes.get(engine) else { return };
        lock(&its.clients).extract_if(.., |client| client.guest.port == port).for_each(|client| refuse(client.fd));
    }
}
