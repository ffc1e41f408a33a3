//! The filtering database (IEEE 802.1Q 8.8): which address is behind which port.
//!
//! Theory of operation. All entries are in one [`Table`]; each is also in the [`Share`] of the port it is behind, and
//! these are the invariants: an entry's value names a present port and the node of its key there, and every node's key
//! has an entry that names it. A present port is one that has a share; removing it removes what it learned, so an
//! answer is never a port that is gone.
//!
//! A share holds at most [`ADDRESSES_PER_PORT_MAX`](super::ADDRESSES_PER_PORT_MAX) addresses. A new one then replaces
//! the port's own oldest, which is counted as evicted. So what a port can know depends on its own traffic alone, and
//! the work and memory it can cause have a bound. Only one act of a port reaches another's share: sending from an
//! address that the other has, which takes over that one address.
//!
//! Nothing runs on a timer. An entry that was last seen more than [`AGE_MAX_S`] seconds ago is treated as absent
//! wherever it is met, and its room is used for the next new address of its port: the oldest of a share is looked at
//! before the share grows. The time stamp of an address, and its place in the share, are written once a second at most;
//! a frame from an address that was already seen in this second reads one cache line of the table and writes none.

use std::sync::Arc;

use super::PortId;
use super::key::{Hasher, Key};
use super::recent::Losses;
use super::share::Share;
use super::table::{Table, Value};

/// Seconds after which an address that was not seen is forgotten (IEEE 802.1Q table 8-6, recommended value).
pub const AGE_MAX_S: u32 = 300;

/// A present port.
#[derive(Debug)]
struct Port {
    /// The address that was learned or refreshed last, if it is still behind this port: most guests have one. Its entry
    /// was stamped in second `latest_s`.
    latest: Key,
    latest_s: u32,
    share: Share,
    evicted: u64,
    moved: u64,
    /// Whether it has got or lost an address since [`Fdb::take_changed`].
    is_changed: bool,
}

impl Port {
    const fn new() -> Self {
        Self { latest: Key::NONE, latest_s: 0, share: Share::new(), evicted: 0, moved: 0, is_changed: false }
    }
}

/// What is known of stations. See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Fdb {
    table: Table,
    /// By port index; as long as the highest port that was ever present.
    ports: Vec<Option<Port>>,
    losses: Arc<Losses>,
}

/// Whether an entry of this time stamp still counts.
#[inline]
fn is_live(stamp_s: u32, now_s: u32) -> bool {
    now_s.saturating_sub(stamp_s) <= AGE_MAX_S
}

impl Fdb {
    pub(super) fn new(seed: u64) -> Self {
        Self { table: Table::new(Hasher::new(seed)), ports: Vec::new(), losses: Arc::default() }
    }

    /// Counts each address that a port ceases to have.
    pub(super) fn losses(&self) -> &Arc<Losses> {
        &self.losses
    }

    /// Makes a port present. Returns `false` if it was.
    pub(super) fn add_port(&mut self, port: PortId) -> bool {
        let index = port.index();
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        let slot = &mut self.ports[index];
        let is_new = slot.is_none();
        slot.get_or_insert(Port::new());
        is_new
    }

    /// Forgets a port with all its addresses. Returns `false` if it was not present.
    pub(super) fn remove_port(&mut self, port: PortId) -> bool {
        let Some(removed) = self.ports.get_mut(port.index()).and_then(Option::take) else { return false };
        self.losses.count(port.0);
        for key in removed.share.keys() {
            self.table.remove(key);
        }
        self.table.release_if_empty();
        true
    }

    /// Notes that `key` was seen on `port` in second `now_s`. Returns `false` if the port is not present.
    #[inline]
    pub(super) fn learn(&mut self, key: Key, port: PortId, now_s: u32) -> bool {
        let Some(Some(owner)) = self.ports.get(port.index()) else { return false };
        if owner.latest != key || owner.latest_s != now_s {
            match self.table.get(key) {
                Some(value) if value.port == port.0 && value.stamp_s == now_s => {}
                known => self.learn_anew(key, known, port, now_s),
            }
        }
        true
    }

    /// The port that `key` is behind.
    #[inline]
    pub(super) fn lookup(&self, key: Key, now_s: u32) -> Option<PortId> {
        self.table.get(key).filter(|value| is_live(value.stamp_s, now_s)).map(|value| PortId(value.port))
    }

    /// Has what [`Self::lookup`] will read for many keys come into the cache, all at the same time.
    pub(super) fn look_ahead(&self, keys: impl Iterator<Item = Key>) {
        // No read waits for the one before, as lookups would.
        keys.for_each(|key| {
            std::hint::black_box(self.table.touch(key));
        });
    }

    #[cfg(test)]
    /// Addresses in the share of `port`, expired ones among them until their room is needed.
    pub(super) fn address_count(&self, port: PortId) -> usize {
        self.ports.get(port.index()).and_then(Option::as_ref).map_or(0, |port| port.share.len())
    }

    /// Addresses that `port` gave up early, because its share was full, since the last call.
    pub(super) fn take_evicted(&mut self, port: PortId) -> u64 {
        self.port_mut(port.0).map_or(0, |port| std::mem::take(&mut port.evicted))
    }

    /// Addresses that `port` took over from other ports, where they had not expired, since the last call.
    pub(super) fn take_moved(&mut self, port: PortId) -> u64 {
        self.port_mut(port.0).map_or(0, |port| std::mem::take(&mut port.moved))
    }

    /// Whether `port` has got or lost an address since [`Self::take_changed`].
    pub(super) fn is_changed(&self, port: PortId) -> bool {
        self.ports.get(port.index()).and_then(Option::as_ref).is_some_and(|port| port.is_changed)
    }

    /// Takes note of the change. Returns the addresses that `port` has, of all VLANs, those that were seen last first.
    pub(super) fn take_changed(&mut self, port: PortId) -> impl Iterator<Item = [u8; 6]> {
        let share = self.port_mut(port.0).map(|port| {
            port.is_changed = false;
            &port.share
        });
        share.into_iter().flat_map(Share::keys_newest_first).map(Key::address)
    }

    #[inline]
    fn port_mut(&mut self, port: u16) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(port)).and_then(Option::as_mut)
    }

    /// The part of learning that writes: a new second, a new port, or a new address.
    #[inline(never)]
    fn learn_anew(&mut self, key: Key, known: Option<Value>, port: PortId, now_s: u32) {
        let is_stored = match known {
            Some(value) if value.port == port.0 => self.refresh(key, value, now_s),
            Some(value) => self.take_over(key, value, port, now_s),
            None => self.add(key, port, now_s),
        };
        if let Some(owner) = self.port_mut(port.0) {
            owner.latest = if is_stored { key } else { Key::NONE };
            owner.latest_s = now_s;
        }
    }

    fn refresh(&mut self, key: Key, known: Value, now_s: u32) -> bool {
        let Some(owner) = self.port_mut(known.port) else { return false };
        owner.share.refresh(known.node, now_s);
        self.update(key, Value { stamp_s: now_s, ..known })
    }

    fn take_over(&mut self, key: Key, known: Value, port: PortId, now_s: u32) -> bool {
        self.losses.count(known.port);
        if let Some(previous) = self.port_mut(known.port) {
            previous.share.remove(known.node);
            previous.is_changed = true;
            if previous.latest == key {
                previous.latest = Key::NONE;
            }
        }
        if let Some(owner) = self.port_mut(port.0) {
            owner.moved += u64::from(is_live(known.stamp_s, now_s));
        }
        let Some(value) = self.take_room(key, port, now_s) else { return false };
        self.update(key, value)
    }

    fn add(&mut self, key: Key, port: PortId, now_s: u32) -> bool {
        let Some(value) = self.take_room(key, port, now_s) else { return false };
        let is_stored = self.table.insert(key, value);
        if !is_stored && let Some(owner) = self.port_mut(port.0) {
            owner.share.remove(value.node);
        }
        is_stored
    }

    fn update(&mut self, key: Key, value: Value) -> bool {
        self.table.get_mut(key).map(|entry| *entry = value).is_some()
    }

    /// Gives `key` a node in the share of `port`, in the place of the port's oldest address if that has expired or the
    /// share is full. Returns the entry that belongs to it.
    fn take_room(&mut self, key: Key, port: PortId, now_s: u32) -> Option<Value> {
        let owner = self.ports.get_mut(port.index())?.as_mut()?;
        if let Some((oldest, stamp_s)) = owner.share.oldest()
            && (owner.share.is_full() || !is_live(stamp_s, now_s))
        {
            owner.evicted += u64::from(is_live(stamp_s, now_s));
            owner.share.remove_oldest();
            self.losses.count(port.0);
            self.table.remove(oldest);
        }
        owner.is_changed = true;
        Some(Value { port: port.0, node: owner.share.push(key, now_s), stamp_s: now_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Fdb {
        pub(in crate::switch) fn ports(&self) -> impl Iterator<Item = PortId> {
            (0..self.ports.len()).filter(|&index| self.ports[index].is_some()).map(|index| PortId(index as u16))
        }

        /// Checks the invariants that the theory of operation states.
        pub(in crate::switch) fn check(&self) {
            let mut entries = 0;
            for (index, port) in self.ports.iter().enumerate() {
                let Some(port) = port else { continue };
                let values: Vec<Value> = port.share.keys().map(|key| self.table.get(key).expect("an entry")).collect();
                assert!(values.iter().all(|value| usize::from(value.port) == index));
                assert!(port.share.nodes().eq(values.iter().map(|value| (value.node, value.stamp_s))));
                assert!(values.is_sorted_by_key(|value| value.stamp_s), "oldest first");
                assert_eq!(values.len(), port.share.len());
                let latest = self.table.get(port.latest).map(|value| (usize::from(value.port), value.stamp_s));
                assert!(port.latest.is_none() || latest == Some((index, port.latest_s)));
                entries += values.len();
            }
            self.table.check(entries);
        }
    }

    #[test]
    fn a_quiet_port_costs_a_few_hundred_bytes() {
        assert!(size_of::<Option<Port>>() < 256);
        let mut fdb = Fdb::new(1);
        assert!(fdb.add_port(PortId(0)));
        assert_eq!(fdb.ports[0].as_ref().map(|port| port.share.nodes().count()), Some(0));
        assert!(fdb.learn(Key::new(0, 1), PortId(0), 1));
        fdb.check();
    }

    #[test]
    fn an_address_that_the_table_refuses_takes_no_room_in_the_share() {
        let mut fdb = Fdb::new(1);
        fdb.add_port(PortId(0));
        fdb.table.allow_no_growth();
        let mut refused = 0;
        for n in 0..1000 {
            assert!(fdb.learn(Key::new(0, n), PortId(0), 1));
            refused += u64::from(fdb.lookup(Key::new(0, n), 1).is_none());
            fdb.check();
        }
        assert!(refused > 700, "{refused}");
        assert_eq!(fdb.address_count(PortId(0)) as u64, 1000 - refused);
    }
}
