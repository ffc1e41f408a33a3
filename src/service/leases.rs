//! The leases of one network: who has which address until when.
//!
//! Theory of operation. A binding says that an address is offered to, leased by, or was declined by a client; there is
//! at most one for an address. It is live until it expires, and is then kept, so that the client gets the same address
//! again, until somebody else needs the address more. Everything that changes a binding goes through
//! [`Leases::place`] and [`Leases::remove`], which keep indexes beside it: by time of expiry, by port, by client and
//! by MAC address for bindings without a port, and by name.
//!
//! A binding belongs to the port that asked for it. On another port the same client is another client: two machines
//! cloned from one disk share an identifier and each need an address; and nobody can give up or take what a neighbour
//! has. A port that has ended leaves its bindings to its clients, on whatever port they come back, and so do leases
//! read from a file. While such a lease is live, it goes to a client with the same identifier and the same MAC address
//! only, and who has that is said by the frame that the request came in: where MAC addresses are declared for ports,
//! nobody else can take it. Once it has expired, the identifier is enough.
//!
//! Limits: a port has [`LEASES_PER_PORT_MAX`] live bindings, those counted that wait for the MAC address it asks from,
//! and about as many expired ones; all ports together have [`LEASES_MAX`]. So a guest that comes back under one name
//! after the other gets no more than its share, if it is held to its MAC address. Each operation takes a time that
//! grows with the logarithm of the number of bindings and with the share of a port, but for the search for a free
//! address in a pool that is nearly full, which may pass all bindings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::names;
use super::settings::ClientId;
use crate::frame::ethernet::MacAddr;
use crate::switch::PortId;

/// Live bindings (offers, leases, declined addresses) that one port may have: the machine itself, and a few behind it.
pub const LEASES_PER_PORT_MAX: usize = 8;
/// Bindings that one network has, at most.
pub const LEASES_MAX: usize = 16_384;
/// Numbers that are tried behind a name that is taken.
const NAME_TRIES: std::ops::RangeInclusive<u32> = 2..=99;

/// What an address is to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Offered, and kept for a moment.
    Offered,
    /// Leased.
    Leased,
    /// Given back by its client: kept for it, and no longer in use.
    Released,
    /// Said to be in use by somebody else: given to nobody until it expires.
    Declined,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The client.
    pub client: ClientId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// The port it is on; none: the port has ended, or the process has begun anew.
    pub port: Option<PortId>,
    /// What the address is to it.
    pub state: State,
    /// When it expires, in seconds of wall-clock time.
    pub expires: u64,
    /// The client's name: a label, which no other binding has.
    pub name: Option<String>,
}

impl Binding {
    /// Whether it has not expired.
    pub fn is_live(&self, now: u64) -> bool {
        self.expires > now
    }

    fn is_leased(&self, now: u64) -> bool {
        self.state == State::Leased && self.is_live(now)
    }

    /// Whether a client on a port may do with it as it likes.
    pub(super) fn is_of(&self, port: PortId, client: &ClientId, mac: MacAddr, now: u64) -> bool {
        let is_left_to = || self.mac == mac || !self.is_live(now);
        self.client == *client && self.port.map_or_else(is_left_to, |owner| owner == port)
    }

    /// Whether it outlives the process.
    pub(super) fn is_kept(&self) -> bool {
        self.state != State::Offered
    }
}

/// The leases of one network.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    bindings: BTreeMap<Ipv4Addr, Binding>,
    by_expiry: BTreeSet<(u64, Ipv4Addr)>,
    by_port: BTreeMap<PortId, Vec<Ipv4Addr>>,
    orphans: BTreeMap<ClientId, Vec<Ipv4Addr>>,
    orphans_by_mac: BTreeMap<MacAddr, Vec<Ipv4Addr>>,
    names: BTreeMap<String, Ipv4Addr>,
    generation: u64,
}

impl PartialEq for Leases {
    /// The same bindings; how often they have changed does not matter.
    fn eq(&self, other: &Self) -> bool {
        self.bindings == other.bindings
    }
}

impl Leases {
    /// A number that changes with everything that [`Leases::to_text`] would say.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All bindings, by address.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, &Binding)> {
        self.bindings.iter().map(|(address, binding)| (*address, binding))
    }

    /// How many bindings there are, expired ones included.
    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }

    /// The binding of an address.
    pub fn get(&self, address: Ipv4Addr) -> Option<&Binding> {
        self.bindings.get(&address)
    }

    /// Who has this name and a lease.
    pub(super) fn named(&self, name: &str, now: u64) -> Option<(Ipv4Addr, MacAddr)> {
        let address = *self.names.get(name)?;
        self.get(address).filter(|binding| binding.is_leased(now)).map(|binding| (address, binding.mac))
    }

    /// The name of whoever has a lease of this address.
    pub(super) fn name_at(&self, address: Ipv4Addr, now: u64) -> Option<&str> {
        self.get(address).filter(|binding| binding.is_leased(now))?.name.as_deref()
    }

    /// The name of whoever has a lease on a port, with this MAC address.
    pub(super) fn name_of(&self, port: PortId, mac: MacAddr, now: u64) -> Option<&str> {
        let mut its = self.by_port.get(&port)?.iter().filter_map(|address| self.get(*address));
        its.find(|binding| binding.mac == mac && binding.is_leased(now))?.name.as_deref()
    }

    /// Whether the address is that of a guest on a port, with this MAC address: offered to it, for it looks whether
    /// others have it (RFC 5227) before it asks for it, or leased. Of leases from before a restart only the MAC address
    /// is known. Time ends none: a client whose machine was suspended goes on with what it has until it hears
    /// otherwise, and an address is its holder's until it is given to somebody else.
    pub fn is_for(&self, port: PortId, mac: MacAddr, address: Ipv4Addr) -> bool {
        self.get(address).is_some_and(|binding| {
            let is_its = binding.port.map_or(binding.mac == mac, |owner| owner == port);
            is_its && matches!(binding.state, State::Offered | State::Leased)
        })
    }

    /// The address that a client on a port has or had: its own on that port, or one without a port, best one with the
    /// same hardware address.
    pub(super) fn find(&self, port: PortId, client: &ClientId, mac: MacAddr, now: u64) -> Option<Ipv4Addr> {
        let usable = |address: &&Ipv4Addr| {
            self.get(**address).is_some_and(|b| b.is_of(port, client, mac, now) && b.state != State::Declined)
        };
        let own = self.by_port.get(&port).and_then(|all| all.iter().find(usable));
        let same_mac = |address: &&&Ipv4Addr| self.get(***address).is_some_and(|b| b.mac == mac);
        let orphan = || {
            let all = self.orphans.get(client)?;
            all.iter().filter(usable).find(|a| same_mac(&a)).or_else(|| all.iter().find(usable))
        };
        own.or_else(orphan).copied()
    }

    /// How many live bindings a port has, or would have if it took what waits for `mac`, apart from that of one
    /// address.
    pub(super) fn live_beside(&self, port: PortId, mac: MacAddr, address: Option<Ipv4Addr>, now: u64) -> usize {
        let waiting = self.orphans_by_mac.get(&mac);
        let all = self.by_port.get(&port).into_iter().chain(waiting).flatten();
        let others = all.filter(|a| Some(**a) != address).filter_map(|a| self.get(*a));
        others.filter(|binding| binding.is_live(now)).count()
    }

    /// The expired binding that has been so for longest, of those whose address `may` be given to others.
    pub(super) fn oldest_expired(&self, now: u64, may: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let expired = self.by_expiry.range(..=(now, Ipv4Addr::BROADCAST));
        expired.map(|(_, address)| *address).find(|address| may(*address))
    }

    /// Binds an address, whatever it was before.
    pub(super) fn place(&mut self, address: Ipv4Addr, binding: Binding) {
        if self.bindings.get(&address) == Some(&binding) {
            return;
        }
        let was_kept = self.take(address).is_some_and(|old| old.is_kept());
        self.generation += u64::from(was_kept || binding.is_kept());
        self.by_expiry.insert((binding.expires, address));
        match binding.port {
            Some(port) => self.by_port.entry(port).or_default().push(address),
            None => {
                self.orphans.entry(binding.client.clone()).or_default().push(address);
                self.orphans_by_mac.entry(binding.mac).or_default().push(address);
            }
        }
        if let Some(name) = &binding.name {
            self.names.insert(name.clone(), address);
        }
        self.bindings.insert(address, binding);
    }

    /// Forgets an address.
    pub(super) fn remove(&mut self, address: Ipv4Addr) {
        self.generation += u64::from(self.take(address).is_some_and(|old| old.is_kept()));
    }

    fn take(&mut self, address: Ipv4Addr) -> Option<Binding> {
        let binding = self.bindings.remove(&address)?;
        self.by_expiry.remove(&(binding.expires, address));
        match binding.port {
            Some(port) => drop_from(&mut self.by_port, &port, address),
            None => {
                drop_from(&mut self.orphans, &binding.client, address);
                drop_from(&mut self.orphans_by_mac, &binding.mac, address);
            }
        }
        if let Some(name) = &binding.name {
            self.names.remove(name);
        }
        Some(binding)
    }

    /// Changes one binding, if there is one.
    pub(super) fn change(&mut self, address: Ipv4Addr, change: impl FnOnce(&mut Binding)) {
        if let Some(binding) = self.bindings.get(&address) {
            let mut binding = binding.clone();
            change(&mut binding);
            self.place(address, binding);
        }
    }

    /// Forgets expired bindings of a port, the oldest first, until it has fewer than a share of them.
    pub(super) fn trim(&mut self, port: PortId, now: u64) {
        let all = self.by_port.get(&port).into_iter().flatten();
        let all = all.filter_map(|address| Some((self.get(*address)?.expires, *address)));
        let mut expired: Vec<(u64, Ipv4Addr)> = all.filter(|(expires, _)| *expires <= now).collect();
        expired.sort_unstable();
        let excess = (expired.len() + 1).saturating_sub(LEASES_PER_PORT_MAX);
        for (_, address) in expired.into_iter().take(excess) {
            self.remove(address);
        }
    }

    /// The port has ended: its offers are void, and its leases wait for their clients to come back on another.
    pub(super) fn port_ended(&mut self, port: PortId) {
        for address in self.by_port.remove(&port).unwrap_or_default() {
            // The list is gone already; what `take` looks for there, it does not find.
            match self.take(address) {
                Some(binding) if binding.is_kept() => {
                    // Who has it on which port is nothing that the text says.
                    let generation = self.generation;
                    self.place(address, Binding { port: None, ..binding });
                    self.generation = generation;
                }
                _ => {}
            }
        }
    }

    /// Lets nothing expire after `latest`: for when the clock has been turned back.
    pub(super) fn expire_by(&mut self, latest: u64) {
        let late: Vec<Ipv4Addr> = self.by_expiry.range((latest, Ipv4Addr::BROADCAST)..).map(|(_, a)| *a).collect();
        for address in late {
            self.change(address, |binding| binding.expires = latest);
        }
    }

    /// The name that the client of an address gets: the one it wants, or that with a number, or none. A name whose
    /// holder has expired is taken from it. Those that are `reserved` are others', whether or not they are here.
    pub(super) fn claim_name(
        &mut self,
        wanted: &str,
        address: Ipv4Addr,
        now: u64,
        reserved: &BTreeSet<String>,
    ) -> Option<String> {
        let numbered = NAME_TRIES.map(|number| names::numbered(wanted, number));
        let mut tries = std::iter::once(wanted.to_owned()).chain(numbered);
        let free = |name: &String| {
            let held = self.names.get(name).filter(|holder| **holder != address);
            !reserved.contains(name) && held.and_then(|holder| self.get(*holder)).is_none_or(|b| !b.is_live(now))
        };
        let name = tries.find(free)?;
        self.take_name(&name, address);
        Some(name)
    }

    /// Takes a name from whoever has it, unless it is the client of `address`.
    pub(super) fn take_name(&mut self, name: &str, address: Ipv4Addr) {
        if let Some(holder) = self.names.get(name).copied().filter(|holder| *holder != address) {
            self.change(holder, |binding| binding.name = None);
        }
    }

    /// What is wrong with the indexes or the bounds: for tests and fuzzers, which expect nothing.
    pub fn inconsistency(&self) -> Option<String> {
        let expiries = self.iter().map(|(address, b)| (b.expires, address)).collect();
        if self.by_expiry != expiries {
            return Some("by expiry".into());
        }
        let listed: usize = self.by_port.values().chain(self.orphans.values()).map(Vec::len).sum();
        if listed != self.len() || self.len() > LEASES_MAX {
            return Some(format!("{listed} listed, {} bound", self.len()));
        }
        let waiting: usize = self.orphans_by_mac.values().map(Vec::len).sum();
        if waiting != self.orphans.values().map(Vec::len).sum::<usize>() {
            return Some("by MAC address".into());
        }
        for (address, b) in self.iter() {
            let list = b.port.map_or_else(|| self.orphans.get(&b.client), |port| self.by_port.get(&port));
            let named = b.name.as_ref().is_none_or(|name| self.names.get(name) == Some(&address));
            if !list.is_some_and(|list| list.contains(&address)) || !named {
                return Some(format!("{address}: {b:?}"));
            }
        }
        if self.names.len() != self.iter().filter(|(_, b)| b.name.is_some()).count() {
            return Some("names".into());
        }
        let crowded = self.by_port.iter().find(|(_, all)| all.is_empty() || all.len() > 2 * LEASES_PER_PORT_MAX);
        crowded.map(|(port, all)| format!("{port:?} has {all:?}"))
    }
}

/// Takes an address from a list, and the list with its last one.
fn drop_from<K: Ord>(lists: &mut BTreeMap<K, Vec<Ipv4Addr>>, key: &K, address: Ipv4Addr) {
    if let Some(list) = lists.get_mut(key) {
        list.retain(|listed| *listed != address);
        if list.is_empty() {
            lists.remove(key);
        }
    }
}
