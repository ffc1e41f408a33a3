//! Which guests there are, and which addresses they have.
//!
//! Theory of operation. Ports are told of when they come and when they go. A guest's addresses are those that it has
//! sent from to the gateway, or has said to be its own when it was asked, and those that it has been given by DHCP,
//! which are looked up only where it has sent from none: of IPv6 there are no others than the first kind. A lease of
//! before a restart says no port: it is of the guest whose first frame came from its MAC address.
//!
//! Invariant: an address is one port's, and a port has no more than [`SEEN_PER_PORT_MAX`] that it was seen with.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use super::super::out::Guest;
use crate::config::{self, Name};
use crate::frame::ethernet::MacAddr;
use crate::switch::PortId;

/// Addresses of one port that are remembered: the last ones that it has sent from.
const SEEN_PER_PORT_MAX: usize = 16;

/// An address that was given to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Whose it is.
    pub mac: MacAddr,
    /// Where that one is; none: this is not known since we started.
    pub port: Option<PortId>,
}

/// Who knows of leases.
pub trait Directory: std::fmt::Debug + Send + Sync {
    /// All leases, and a number for the state that they are in; none: that is `known` still.
    fn leases(&self, known: Option<u64>) -> Option<(u64, Vec<Lease>)>;
}

/// Where a forward leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) guest: Guest,
    pub(super) address: IpAddr,
    /// The worker that the guest's port belongs to.
    pub(super) worker: usize,
}

/// Why it leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// No such guest is there, or its address is not known yet.
    Guest,
    /// Nobody is known to have this address.
    Address(IpAddr),
    /// More than one could be meant.
    Choice,
}

#[derive(Debug)]
struct Port {
    worker: usize,
    name: Option<Name>,
    /// The MAC address that its guest first sent from.
    met: Option<MacAddr>,
    /// The addresses that it has sent from, the last one at the end.
    seen: Vec<IpAddr>,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct People {
    ports: BTreeMap<PortId, Port>,
    seen: HashMap<IpAddr, Guest>,
    leases: HashMap<Ipv4Addr, Lease>,
    /// The state of the leases.
    known: Option<u64>,
}

impl People {
    /// A port has come, of this worker.
    pub(super) fn port_came(&mut self, id: PortId, worker: usize, name: Option<Name>) {
        self.ports.insert(id, Port { worker, name, met: None, seen: Vec::new() });
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, id: PortId) {
        self.ports.remove(&id);
        self.seen.retain(|_, guest| guest.port != id);
        self.leases.values_mut().filter(|lease| lease.port == Some(id)).for_each(|lease| lease.port = None);
    }

    /// The guest on a port has sent for the first time, from this address.
    pub(super) fn met(&mut self, id: PortId, mac: MacAddr) {
        if let Some(port) = self.ports.get_mut(&id) {
            port.met = Some(mac);
        }
    }

    /// A guest has sent from an address.
    pub(super) fn note(&mut self, guest: Guest, address: IpAddr) {
        if !self.ports.contains_key(&guest.port) {
            return;
        }
        let before = self.seen.insert(address, guest);
        if let Some(port) = before.and_then(|before| self.ports.get_mut(&before.port)) {
            port.seen.retain(|other| *other != address);
        }
        let Some(port) = self.ports.get_mut(&guest.port) else { return };
        port.seen.push(address);
        if port.seen.len() > SEEN_PER_PORT_MAX {
            let oldest = port.seen.remove(0);
            self.seen.remove(&oldest);
        }
    }

    /// The guest that a forward leads to, by an address of this family.
    pub(super) fn find(
        &mut self,
        guest: &config::Guest,
        is_ipv4: bool,
        directory: Option<&dyn Directory>,
    ) -> Result<Found, Missing> {
        if is_ipv4 && let Some((known, leases)) = directory.and_then(|directory| directory.leases(self.known)) {
            self.leases = leases.into_iter().map(|lease| (lease.address, lease)).collect();
            self.known = Some(known);
        }
        match guest {
            config::Guest::Ip(address) => self.of_address(*address).ok_or(Missing::Address(*address)),
            config::Guest::Port(name) => {
                let port = self.ports.iter().find(|(_, port)| port.name.as_ref() == Some(name));
                port.and_then(|(id, _)| self.of_port(*id, is_ipv4)).ok_or(Missing::Guest)
            }
            config::Guest::Only => {
                let mut found = self.ports.keys().filter_map(|id| self.of_port(*id, is_ipv4));
                let first = found.next().ok_or(Missing::Guest)?;
                found.next().map_or(Ok(first), |_| Err(Missing::Choice))
            }
        }
    }

    fn of_address(&self, address: IpAddr) -> Option<Found> {
        let leased = |address| {
            let lease = self.leases.get(&address)?;
            Some(Guest { port: self.port_of(lease)?, mac: lease.mac })
        };
        let seen = self.seen.get(&address).copied();
        let guest = seen.or_else(|| if let IpAddr::V4(address) = address { leased(address) } else { None })?;
        Some(Found { guest, address, worker: self.ports.get(&guest.port)?.worker })
    }

    /// Where the holder of a lease is.
    fn port_of(&self, lease: &Lease) -> Option<PortId> {
        let met = || self.ports.iter().find(|(_, port)| port.met == Some(lease.mac)).map(|(id, _)| *id);
        lease.port.or_else(met)
    }

    fn of_port(&self, id: PortId, is_ipv4: bool) -> Option<Found> {
        let seen = self.ports.get(&id)?.seen.iter().rev().find(|address| address.is_ipv4() == is_ipv4).copied();
        let leased = || {
            let mut its = self.leases.values().filter(|lease| self.port_of(lease) == Some(id));
            its.next().filter(|_| is_ipv4).map(|lease| lease.address.into())
        };
        self.of_address(seen.or_else(leased)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Given(u64, Vec<Lease>);

    impl Directory for Given {
        fn leases(&self, known: Option<u64>) -> Option<(u64, Vec<Lease>)> {
            (known != Some(self.0)).then(|| (self.0, self.1.clone()))
        }
    }

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn guest(port: u8) -> Guest {
        Guest { port: PortId(port.into()), mac: mac(port) }
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, last)
    }

    #[test]
    fn guests_are_found_by_what_they_have_sent_from_and_by_their_leases() {
        let (mut people, only) = (People::default(), config::Guest::Only);
        let by_name = config::Guest::Port("web".parse().unwrap());
        let by_ip = |last| config::Guest::Ip(address(last).into());
        let mut given = Given(1, Vec::new());
        assert_eq!(people.find(&only, true, Some(&given)), Err(Missing::Guest));
        people.port_came(PortId(1), 0, Some("web".parse().unwrap()));
        people.port_came(PortId(2), 1, None);
        people.note(guest(2), address(2).into());
        let two = Found { guest: guest(2), address: address(2).into(), worker: 1 };
        assert_eq!(people.find(&only, true, Some(&given)), Ok(two));
        assert_eq!(people.find(&only, false, Some(&given)), Err(Missing::Guest));
        assert_eq!(people.find(&by_name, true, Some(&given)), Err(Missing::Guest));
        // A lease of before we started: nobody knows where its holder is until that one's MAC address is met.
        given = Given(2, vec![Lease { address: address(1), mac: mac(1), port: None }]);
        assert_eq!(people.find(&by_name, true, Some(&given)), Err(Missing::Guest));
        people.met(PortId(1), mac(1));
        let one = Found { guest: guest(1), address: address(1).into(), worker: 0 };
        assert_eq!(people.find(&by_name, true, Some(&given)), Ok(one));
        assert_eq!(people.find(&by_ip(1), true, Some(&given)), Ok(one));
        assert_eq!(people.find(&only, true, Some(&given)), Err(Missing::Choice));
        // It moves on, and then goes.
        people.note(guest(1), address(3).into());
        assert_eq!(people.find(&by_name, true, Some(&given)).map(|found| found.address), Ok(address(3).into()));
        people.port_ended(PortId(1));
        assert_eq!(people.find(&only, true, Some(&given)), Ok(two));
        for last in [1, 3] {
            let missing = Missing::Address(address(last).into());
            assert_eq!(people.find(&by_ip(last), true, Some(&given)), Err(missing));
        }
        // Whoever sends from an address has it.
        people.port_came(PortId(1), 0, None);
        people.note(guest(1), address(2).into());
        assert_eq!(people.find(&only, true, None).map(|found| found.guest), Ok(guest(1)));
    }

    #[test]
    fn a_port_has_so_many_addresses_and_no_more() {
        let mut people = People::default();
        people.port_came(PortId(1), 0, None);
        (1..=200).for_each(|last| people.note(guest(1), address(last).into()));
        assert_eq!((people.seen.len(), people.ports[&PortId(1)].seen.len()), (SEEN_PER_PORT_MAX, SEEN_PER_PORT_MAX));
        people.port_ended(PortId(1));
        assert!(people.seen.is_empty());
    }
}
