//! The switch: from a frame's header to a verdict.

use std::sync::Arc;

use super::fdb::Fdb;
use super::header::Header;
use super::limits::{BurstBudget, PortBudget};
use super::recent::Losses;
use super::{PORTS_MAX, PortId, Verdict};
use crate::metrics::Counter;

/// One Ethernet segment's ports and what it knows of the stations behind them.
#[derive(Debug)]
pub struct Switch {
    fdb: Fdb,
    /// The ports that are present, in no order.
    present: Vec<PortId>,
    /// By port index, as long as the highest port that was ever present.
    flooded: Vec<PortBudget>,
    burst: BurstBudget,
    now_s: u32,
    /// The host's address, and the port that leads to it.
    host: Option<(u64, PortId)>,
    /// The port behind which there are many who send, and what they have broadcast.
    crowd: Option<(PortId, PortBudget)>,
}

impl Switch {
    /// A switch without ports. `seed` keys the hash of its table: guests must not be able to guess it.
    pub fn new(seed: u64) -> Self {
        let (present, flooded) = (Vec::new(), Vec::new());
        Self { fdb: Fdb::new(seed), present, flooded, burst: BurstBudget::FULL, now_s: 0, host: None, crowd: None }
    }

    /// Counts the addresses that ports lose: what [`super::Recent`] must know. To be read without the switch.
    pub fn losses(&self) -> Arc<Losses> {
        self.fdb.losses().clone()
    }

    /// Makes a port present, with no addresses. Returns `false`, and changes nothing, if it is present already or not
    /// below [`PORTS_MAX`].
    pub fn add_port(&mut self, port: PortId) -> bool {
        if port.index() >= PORTS_MAX || !self.fdb.add_port(port) {
            return false;
        }
        self.present.push(port);
        if self.flooded.len() <= port.index() {
            self.flooded.resize(port.index() + 1, PortBudget::default());
        }
        self.flooded[port.index()] = PortBudget::default();
        true
    }

    /// Removes a port and forgets its addresses: from now on no verdict names it. Returns `false` if it is not present.
    pub fn remove_port(&mut self, port: PortId) -> bool {
        if !self.fdb.remove_port(port) {
            return false;
        }
        self.present.retain(|&p| p != port);
        true
    }

    /// Has `address` belong to the host, behind `port` and behind no other: whoever else sends from it is refused
    /// ([`Counter::DropTxSpoofedMac`]). There is one such address; another takes its place.
    pub fn set_host(&mut self, address: [u8; 6], port: PortId) {
        let [a, b, c, d, e, f] = address;
        self.host = Some((u64::from_be_bytes([0, 0, a, b, c, d, e, f]), port));
    }

    /// Has what `port` broadcasts count apart from what else it floods: behind it are many, and one of them that floods
    /// groups, or addresses that nobody has, must not keep the ARP and DHCP of the others from guests.
    pub fn set_crowd(&mut self, port: PortId) {
        self.crowd = Some((port, PortBudget::default()));
    }

    /// Starts a burst of frames from one ring. `now_s` is a monotonic clock in seconds, of any origin; a value below an
    /// earlier one counts as that earlier one.
    pub fn begin_burst(&mut self, now_s: u32) {
        self.now_s = self.now_s.max(now_s);
        self.burst = BurstBudget::FULL;
    }

    /// Announces frames that [`Self::forward`] will be asked about: in a large table their lookups wait for memory, and
    /// together they wait once. `heads` are as there.
    pub fn look_ahead<'a>(&self, heads: impl Iterator<Item = &'a [u8]>) {
        self.fdb.look_ahead(heads.filter_map(Header::parse).map(|header| header.destination_key()));
    }

    /// Learns from a frame that came from port `from` and says where it goes. `head` is a private copy of the frame's
    /// first bytes: all of them, or at least the Ethernet header with its VLAN tag (18 bytes suffice).
    ///
    /// A port that is not present sends nothing ([`Counter::DropTxDisabled`]).
    #[inline]
    pub fn forward(&mut self, from: PortId, head: &[u8]) -> Verdict {
        let Some(header) = Header::parse(head) else { return Verdict::Drop(Counter::DropTxRunt) };
        if !header.has_valid_source() {
            return Verdict::Drop(Counter::DropTxBadSource);
        }
        if header.is_reserved() {
            return Verdict::Drop(Counter::DropTxReserved);
        }
        if self.host.is_some_and(|(address, port)| address == header.source && port != from) {
            return Verdict::Drop(Counter::DropTxSpoofedMac);
        }
        if !self.fdb.learn(header.source_key(), from, self.now_s) {
            return Verdict::Drop(Counter::DropTxDisabled);
        }
        if header.is_to_group() {
            return self.flood(from, header.is_broadcast());
        }
        let to = match self.host {
            Some((address, port)) if address == header.destination => Some(port),
            _ => self.fdb.lookup(header.destination_key(), self.now_s),
        };
        match to {
            Some(to) if to != from => Verdict::Forward(to),
            Some(_) => Verdict::Drop(Counter::DropTxHairpin),
            None => self.flood(from, false),
        }
    }

    /// Whether the port has got or lost an address since [`Self::take_changed`].
    pub fn is_changed(&self, port: PortId) -> bool {
        self.fdb.is_changed(port)
    }

    /// Takes note of the change. Returns the addresses that were seen on the port last, each once, at most `max`.
    pub fn take_changed(&mut self, port: PortId, max: usize) -> Vec<[u8; 6]> {
        let mut found = Vec::new();
        for address in self.fdb.take_changed(port) {
            if found.len() == max {
                break;
            }
            // A station may use several VLANs.
            if !found.contains(&address) {
                found.push(address);
            }
        }
        found
    }

    /// Addresses that the port gave up before they expired, because its share was full, since the last call.
    pub fn take_evictions(&mut self, port: PortId) -> u64 {
        self.fdb.take_evicted(port)
    }

    /// Addresses that the port took over from other ports, where they had not expired, since the last call: migrations,
    /// or a fight over an address.
    pub fn take_moves(&mut self, port: PortId) -> u64 {
        self.fdb.take_moved(port)
    }

    #[inline(never)]
    fn flood(&mut self, from: PortId, is_broadcast: bool) -> Verdict {
        let receivers = self.present.len() - 1;
        if receivers == 0 {
            return Verdict::Drop(Counter::DropTxAlone);
        }
        let budget = match &mut self.crowd {
            Some((port, broadcast)) if *port == from && is_broadcast => broadcast,
            _ => &mut self.flooded[from.index()],
        };
        match budget.take(&mut self.burst, receivers as u32, self.now_s) {
            true => Verdict::Flood,
            false => Verdict::Drop(Counter::DropTxFloodLimit),
        }
    }
}

#[cfg(test)]
impl Switch {
    /// The ports that are present, in no particular order: who gets a flooded frame, but for the port it came from.
    pub(super) fn ports(&self) -> impl Iterator<Item = PortId> {
        self.present.iter().copied()
    }

    /// The port that the station with this address was last seen on, in VLAN `vlan_id` (0: untagged).
    pub(super) fn lookup(&self, vlan_id: u16, address: [u8; 6]) -> Option<PortId> {
        let [a, b, c, d, e, f] = address;
        self.fdb.lookup(super::key::Key::new(vlan_id, u64::from_be_bytes([0, 0, a, b, c, d, e, f])), self.now_s)
    }

    /// Addresses that take up room in the port's share, at most
    /// [`ADDRESSES_PER_PORT_MAX`](super::ADDRESSES_PER_PORT_MAX). Expired ones are among them until a new address of
    /// the port needs their room.
    pub(super) fn address_count(&self, port: PortId) -> usize {
        self.fdb.address_count(port)
    }

    /// Checks that the parts agree with each other.
    pub(super) fn check(&self) {
        self.fdb.check();
        assert!(self.fdb.ports().eq(self.present.iter().copied().collect::<std::collections::BTreeSet<_>>()));
    }
}
