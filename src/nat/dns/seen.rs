//! Which IPv6 addresses guests use: they make them themselves, and tell nobody.
//!
//! Bounds: [`PER_PORT_MAX`] addresses of a port, those that were met last.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use super::super::out::Guest;
use crate::frame::ethernet::MacAddr;
use crate::switch::PortId;

const PER_PORT_MAX: usize = 8;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Seen {
    by_port: BTreeMap<PortId, Vec<(MacAddr, Ipv6Addr)>>,
    /// The last one, which most often is the next one too.
    last: Option<(Guest, Ipv6Addr)>,
}

impl Seen {
    /// A guest has sent from an address.
    #[inline]
    pub(super) fn meet(&mut self, guest: Guest, from: IpAddr) {
        if let IpAddr::V6(address) = from
            && self.last != Some((guest, address))
        {
            self.add(guest, address);
        }
    }

    fn add(&mut self, guest: Guest, address: Ipv6Addr) {
        self.last = Some((guest, address));
        let known = self.by_port.entry(guest.port).or_default();
        known.retain(|(_, known)| *known != address);
        if known.len() >= PER_PORT_MAX {
            known.remove(0);
        }
        known.push((guest.mac, address));
    }

    /// The address that a guest has used last.
    pub(super) fn address_of(&self, mac: MacAddr) -> Option<Ipv6Addr> {
        let all = self.by_port.values().flat_map(|known| known.iter().rev());
        all.into_iter().find(|(known, _)| *known == mac).map(|(_, address)| *address)
    }

    /// Who uses an address.
    pub(super) fn holder(&self, address: Ipv6Addr) -> Option<Guest> {
        let mut all = self.by_port.iter().flat_map(|(port, known)| known.iter().map(move |known| (*port, known)));
        all.find(|(_, (_, known))| *known == address).map(|(port, (mac, _))| Guest { port, mac: *mac })
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.by_port.remove(&port);
        self.last = None;
    }
}
