//! The DHCP server (RFC 2131): which address a client gets, and what it is told.
//!
//! Theory of operation. We are the only server on the network: what others on it answer is dropped. So unlike what
//! RFC 2131 (4.3.2) has for a server among several, a client that we do not know is not met with silence: it keeps the
//! address that it remembers if that can be given to it, which mends the loss of the file with the leases; and it is
//! told NAK if not, so that it begins anew at once.
//!
//! A client's address is, first of these: the one reserved for it; the one that it has or had; the one that it asks
//! for; one that its identifier hashes to, or the next free one after that; the one whose last lease expired the
//! longest ago. What cannot be had is passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use dhcproto::v4::MessageType;

use super::leases::{Binding, LEASES_MAX, LEASES_PER_PORT_MAX, Leases, State};
use super::names;
use super::reply::Reply;
use super::request::Request;
use super::settings::{ClientId, Pool, Reservation, V4};
use crate::frame::ethernet::MacAddr;
use crate::metrics::Counter;
use crate::switch::PortId;

/// How long an offer is kept, in seconds.
pub const OFFER_SECONDS: u64 = 60;
/// How long an address that a client declined rests, in seconds.
pub const DECLINE_SECONDS: u64 = 600;

/// What a request comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// This is said.
    Say {
        /// Offer, ACK or NAK.
        kind: MessageType,
        /// The address; none: NAK, or the client has one already.
        address: Option<Ipv4Addr>,
        /// An ACK that came without an offer.
        rapid_commit: bool,
    },
    /// All is done; nothing is to be said.
    Done,
    /// Nothing is done, nothing is said.
    Refuse(Counter),
}

/// The server's state.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) settings: V4,
    pub(super) leases: Leases,
    /// Indexes of the settings' reservations by address, and by client.
    reserved: BTreeMap<Ipv4Addr, usize>,
    reserved_by_client: BTreeMap<ClientId, usize>,
    /// Names that reservations give, and nobody else gets.
    reserved_names: BTreeSet<String>,
    /// The time of the request before; none: there was none.
    latest: Option<u64>,
}

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
struct Asker<'a> {
    port: PortId,
    request: &'a Request,
    now: u64,
}

impl Asker<'_> {
    /// Whether a binding is the client's own.
    fn owns(self, binding: &Binding) -> bool {
        binding.is_of(self.port, &self.request.client, self.request.mac, self.now)
    }
}

impl Server {
    /// A server with leases that it kept from before. What no longer agrees with the settings is forgotten.
    pub(super) fn new(settings: V4, leases: Leases) -> Self {
        let all = &settings.reservations;
        let reserved = all.iter().enumerate().map(|(i, r)| (r.address, i)).collect();
        let reserved_by_client = all.iter().enumerate().map(|(i, r)| (r.client.canonical(), i)).collect();
        let reserved_names = all.iter().filter_map(|r| Some(r.name.as_ref()?.as_str().to_owned())).collect();
        let mut server = Self { settings, leases, reserved, reserved_by_client, reserved_names, latest: None };
        let stale: Vec<Ipv4Addr> = server
            .leases
            .iter()
            .filter(|(address, b)| !server.agrees(*address, b))
            .map(|(address, _)| address)
            .collect();
        stale.into_iter().for_each(|address| server.leases.remove(address));
        for reservation in &server.settings.reservations {
            if let Some(name) = &reservation.name {
                server.leases.take_name(name.as_str(), reservation.address);
            }
        }
        server
    }

    /// Whether a binding may stay. One whose client has another address reserved now may: it is in use until it is
    /// renewed.
    fn agrees(&self, address: Ipv4Addr, binding: &Binding) -> bool {
        if self.reserved.contains_key(&address) {
            return !self.is_anothers(&binding.client, binding.mac, address);
        }
        self.is_dynamic(address)
    }

    fn reservation_at(&self, address: Ipv4Addr) -> Option<&Reservation> {
        self.reserved.get(&address).and_then(|i| self.settings.reservations.get(*i))
    }

    /// The reservation for a client, by its identifier, or else by its hardware address.
    fn reservation_for(&self, client: &ClientId, mac: MacAddr) -> Option<&Reservation> {
        let of = |client: &ClientId| {
            let reservation = self.settings.reservations.get(*self.reserved_by_client.get(client)?)?;
            self.is_usable(reservation.address).then_some(reservation)
        };
        of(client).or_else(|| of(&ClientId::Mac(mac)))
    }

    /// Whether a guest may have the address at all.
    fn is_usable(&self, address: Ipv4Addr) -> bool {
        let subnet = &self.settings.subnet;
        subnet.is_host(address) && address != subnet.server()
    }

    /// Whether any guest may have the address.
    fn is_dynamic(&self, address: Ipv4Addr) -> bool {
        self.is_usable(address)
            && self.settings.pools.iter().any(|pool| pool.contains(address))
            && !self.reserved.contains_key(&address)
            && !self.settings.dns.contains(&address)
            && self.settings.router != Some(address)
    }

    /// Judges a request, and does what it asks if that may be.
    pub(super) fn serve(&mut self, port: PortId, request: &Request, now: u64) -> Decision {
        if self.latest.is_none_or(|latest| now < latest) {
            // The clock may have been turned back, or was wrong when the file was written.
            let longest = u64::from(self.settings.lease.seconds()).max(DECLINE_SECONDS);
            self.leases.expire_by(now.saturating_add(longest));
        }
        self.latest = Some(now);
        let is_ours = request.server.is_none_or(|server| server == self.settings.subnet.server());
        let asker = Asker { port, request, now };
        match request.kind {
            MessageType::Discover => self.discover(asker),
            MessageType::Request if is_ours => self.request(asker),
            MessageType::Request => self.chose_another(asker),
            MessageType::Release if is_ours => self.release(asker),
            MessageType::Decline if is_ours => self.decline(asker),
            MessageType::Inform if is_ours => self.inform(request),
            _ => Decision::Refuse(Counter::DropTxBadRequest),
        }
    }

    fn discover(&mut self, asker: Asker<'_>) -> Decision {
        let address = match self.choose(asker) {
            Ok(address) => address,
            Err(counter) => return Decision::Refuse(counter),
        };
        if asker.request.rapid_commit {
            self.grant(asker, address);
            return Decision::Say { kind: MessageType::Ack, address: Some(address), rapid_commit: true };
        }
        let kept = |b: &Binding| asker.owns(b) && b.state == State::Leased;
        let expires = asker.now.saturating_add(OFFER_SECONDS);
        match self.leases.get(address) {
            // A client that has forgotten what it has keeps it.
            Some(binding) if kept(binding) && binding.expires >= expires => {
                self.leases.trim(asker.port, asker.now);
                self.leases.change(address, |binding| binding.port = Some(asker.port));
            }
            _ => self.bind(asker, address, State::Offered, expires, None),
        }
        Decision::Say { kind: MessageType::Offer, address: Some(address), rapid_commit: false }
    }

    /// The address for a client that asks for any.
    fn choose(&self, asker: Asker<'_>) -> Result<Ipv4Addr, Counter> {
        let own = self.own_address(asker);
        if self.is_share_used_up(asker, own) {
            return Err(Counter::DropTxLeaseShare);
        }
        let requested = || asker.request.requested.filter(|address| self.is_free(*address));
        let client = &asker.request.client;
        let may_be_taken = |address| self.is_dynamic(address);
        own.or_else(requested)
            .or_else(|| self.free_address(client))
            .or_else(|| self.leases.oldest_expired(asker.now, may_be_taken))
            .ok_or(Counter::DropTxPoolEmpty)
    }

    /// The address that is reserved for a client, or that it has or had.
    fn own_address(&self, asker: Asker<'_>) -> Option<Ipv4Addr> {
        let Asker { port, request, now } = asker;
        let reserved = self.reservation_for(&request.client, request.mac).map(|r| r.address);
        let had = || {
            self.leases
                .find(port, &request.client, request.mac, now)
                .filter(|a| !self.is_anothers(&request.client, request.mac, *a))
        };
        reserved.filter(|address| self.can_have(asker, *address)).or_else(had)
    }

    /// Whether the address is reserved, and not for this client.
    fn is_anothers(&self, client: &ClientId, mac: MacAddr, address: Ipv4Addr) -> bool {
        let reserved = self.reservation_for(client, mac).map(|r| r.address);
        self.reserved.contains_key(&address) && reserved != Some(address)
    }

    /// Whether a client that names an address may have it.
    fn can_have(&self, asker: Asker<'_>, address: Ipv4Addr) -> bool {
        let Asker { port, request, now } = asker;
        let reservation = self.reservation_for(&request.client, request.mac);
        let is_reserved = reservation.is_some_and(|r| r.address == address);
        match self.leases.get(address) {
            None => is_reserved || (self.is_dynamic(address) && self.leases.len() < LEASES_MAX),
            Some(b) if b.state == State::Declined && b.is_live(now) => false,
            Some(b) if asker.owns(b) => !self.is_anothers(&request.client, request.mac, address),
            // The same machine with another identifier, as when it boots from the network first.
            Some(b) => is_reserved && (!b.is_live(now) || b.port.map_or(b.mac == request.mac, |owner| owner == port)),
        }
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        self.is_dynamic(address) && self.leases.get(address).is_none() && self.leases.len() < LEASES_MAX
    }

    /// A free address: where the client's hash points to in the pools, or after that.
    fn free_address(&self, client: &ClientId) -> Option<Ipv4Addr> {
        if self.leases.len() >= LEASES_MAX {
            return None;
        }
        let size = self.settings.pools.iter().map(|pool| u64::from(pool.size())).sum::<u64>().max(1);
        let start = hash(client) % size;
        // Addresses that are taken or cannot be given, each of which a search may meet once in each pool.
        let passed = self.leases.len() + self.reserved.len() + self.settings.dns.len() + RESERVED_BY_US;
        let tries = (passed * self.settings.pools.len() + 1).min(usize::try_from(size).unwrap_or(usize::MAX));
        (start..).take(tries).filter_map(|n| nth(&self.settings.pools, n % size)).find(|address| self.is_free(*address))
    }

    /// Whether the port has all the addresses it may have, not counting one that it has already.
    fn is_share_used_up(&self, asker: Asker<'_>, address: Option<Ipv4Addr>) -> bool {
        self.leases.live_beside(asker.port, asker.request.mac, address, asker.now) >= LEASES_PER_PORT_MAX
    }

    fn request(&mut self, asker: Asker<'_>) -> Decision {
        let request = asker.request;
        // An address that is in use is renewed; else it is asked for (RFC 2131 4.3.2).
        let named = Some(request.ciaddr).filter(|address| !address.is_unspecified()).or(request.requested);
        let Some(address) = named else { return Decision::Refuse(Counter::DropTxBadRequest) };
        let is_elsewhere = self.own_address(asker).is_some_and(|own| own != address);
        if is_elsewhere || !self.can_have(asker, address) {
            return Decision::Say { kind: MessageType::Nak, address: None, rapid_commit: false };
        }
        if self.is_share_used_up(asker, Some(address)) {
            return Decision::Refuse(Counter::DropTxLeaseShare);
        }
        self.grant(asker, address);
        Decision::Say { kind: MessageType::Ack, address: Some(address), rapid_commit: false }
    }

    /// The client took another server's offer: ours is void.
    fn chose_another(&mut self, asker: Asker<'_>) -> Decision {
        let offered = self.leases.find(asker.port, &asker.request.client, asker.request.mac, asker.now);
        if let Some(address) = offered
            && self.leases.get(address).is_some_and(|binding| binding.state == State::Offered)
        {
            self.leases.remove(address);
        }
        Decision::Done
    }

    fn release(&mut self, asker: Asker<'_>) -> Decision {
        let (address, now) = (asker.request.ciaddr, asker.now);
        if !self.is_held(asker, address, State::Leased) {
            return Decision::Refuse(Counter::DropTxBadRequest);
        }
        // It is kept for the client until somebody needs it.
        self.leases.change(address, |binding| (binding.state, binding.expires) = (State::Released, now));
        Decision::Done
    }

    fn decline(&mut self, asker: Asker<'_>) -> Decision {
        let Some(address) = asker.request.requested else { return Decision::Refuse(Counter::DropTxBadRequest) };
        if !self.is_held(asker, address, State::Leased) && !self.is_held(asker, address, State::Offered) {
            return Decision::Refuse(Counter::DropTxBadRequest);
        }
        if self.is_share_used_up(asker, Some(address)) {
            return Decision::Refuse(Counter::DropTxLeaseShare);
        }
        let expires = asker.now.saturating_add(DECLINE_SECONDS);
        self.leases.trim(asker.port, asker.now);
        // It counts for the port's share, so that a port cannot decline the whole pool.
        self.leases.change(address, |binding| {
            (binding.state, binding.expires, binding.name) = (State::Declined, expires, None);
            binding.port = Some(asker.port);
        });
        Decision::Done
    }

    fn inform(&self, request: &Request) -> Decision {
        if !self.settings.subnet.is_host(request.ciaddr) {
            return Decision::Refuse(Counter::DropTxBadRequest);
        }
        Decision::Say { kind: MessageType::Ack, address: None, rapid_commit: false }
    }

    /// Whether the client has the address now, and on this port.
    fn is_held(&self, asker: Asker<'_>, address: Ipv4Addr, state: State) -> bool {
        let held = |b: &Binding| asker.owns(b) && b.state == state && b.is_live(asker.now);
        self.leases.get(address).is_some_and(held)
    }

    fn grant(&mut self, asker: Asker<'_>, address: Ipv4Addr) {
        let expires = asker.now.saturating_add(u64::from(self.settings.lease.seconds()));
        let name = self.name_for(asker, address);
        self.bind(asker, address, State::Leased, expires, name);
    }

    /// Binds an address to a client, and forgets what else the client had on this port.
    fn bind(&mut self, asker: Asker<'_>, address: Ipv4Addr, state: State, expires: u64, name: Option<String>) {
        let Asker { port, request, now } = asker;
        if let Some(other) = self.leases.find(port, &request.client, request.mac, now)
            && other != address
            && self.leases.get(other).is_some_and(|binding| binding.port == Some(port))
        {
            self.leases.remove(other);
        }
        self.leases.trim(port, now);
        let client = request.client.clone();
        self.leases.place(address, Binding { client, mac: request.mac, port: Some(port), state, expires, name });
    }

    /// The name of a client that gets an address: what its reservation says, what it says itself, or what it had.
    fn name_for(&mut self, asker: Asker<'_>, address: Ipv4Addr) -> Option<String> {
        if let Some(name) = self.reservation_at(address).and_then(|r| r.name.clone()) {
            self.leases.take_name(name.as_str(), address);
            return Some(name.as_str().to_owned());
        }
        let before = self.leases.get(address).filter(|b| asker.owns(b));
        let before = before.and_then(|b| b.name.clone());
        let said = asker.request.own_name().and_then(names::clean);
        let wanted = match (said, before) {
            // What it was given, because others have what it says, it keeps.
            (Some(said), Some(before)) if is_numbered(&before, &said) => before,
            (said, before) => said.or(before)?,
        };
        self.leases.claim_name(&wanted, address, asker.now, &self.reserved_names)
    }

    /// The message for a decision that says something.
    pub(super) fn reply(
        &self,
        blank: &dhcproto::v4::Message,
        request: &Request,
        kind: MessageType,
        address: Option<Ipv4Addr>,
        rapid_commit: bool,
    ) -> Option<Vec<u8>> {
        let name = address.and_then(|address| self.leases.get(address)?.name.as_deref());
        Reply { kind, address, name, rapid_commit }.encode(blank, &self.settings, request)
    }
}

/// The server's and the router's addresses.
const RESERVED_BY_US: usize = 2;

/// The address `n` after the first of the first pool.
fn nth(pools: &[Pool], mut n: u64) -> Option<Ipv4Addr> {
    for pool in pools {
        match u32::try_from(n) {
            Ok(n) if n < pool.size() => return Some(pool.nth(n)),
            _ => n -= u64::from(pool.size()),
        }
    }
    None
}

/// Whether a name is another with a number behind it.
fn is_numbered(name: &str, base: &str) -> bool {
    let number = name.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
    number.is_some_and(|number| name == names::numbered(base, number))
}

/// The same for a client at any time (FNV-1a), so that it gets the same address even when its lease was lost.
fn hash(client: &ClientId) -> u64 {
    let bytes = match client {
        ClientId::Mac(mac) => mac.0.as_slice(),
        ClientId::Identifier(bytes) => bytes,
    };
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
