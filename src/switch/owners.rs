//! Who has which address, with a share for each port: the memory of [`super::mac_nat`].
//!
//! Theory of operation. All addresses are in one hash map, keyed at random since guests choose them; each is also in
//! the share of the port that has it. A port's share has a limit, and a port that goes over it loses its own address
//! that was not seen for the longest time; no other port's. So the whole has a limit too, and the work of a claim is
//! that of looking through one share.
//!
//! An address that is claimed by a second port stays with the first as long as that one is active, that is, was heard
//! within [`HOLD_S`] seconds. So a guest cannot take a neighbour's traffic by using its address, and yet an address
//! moves when its guest has gone. Two claims move it at once: by the same MAC address behind another port, which is the
//! guest itself on its way (whether a port may use a MAC address is for the switch and the guards to say); and by
//! somebody who knows better, such as the server that gave the address to the second.
//!
//! Nothing runs on a timer: what was not heard for [`AGE_MAX_S`] seconds is absent wherever it is met.

use std::collections::HashMap;
use std::hash::Hash;

use super::PortId;
use crate::frame::ethernet::MacAddr;

/// Seconds for which a silent port keeps its address from others.
pub(super) const HOLD_S: u32 = 30;
/// Seconds after which an address that was not heard is nobody's: as long as the slowest routers keep their ARP
/// entries, who would otherwise send to a guest that nobody knows any more.
pub(super) const AGE_MAX_S: u32 = 4 * 3600;

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) port: PortId,
    pub(super) mac: MacAddr,
    pub(super) seen_s: u32,
    /// Whether it is the port's by a higher word. Said by [`Owners::claim`].
    pub(super) is_given: bool,
}

impl Owner {
    fn is_within(&self, seconds: u32, now_s: u32) -> bool {
        now_s.saturating_sub(self.seen_s) <= seconds
    }
}

/// How sure a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The port uses the address.
    Used,
    /// The address is the port's by a higher word.
    Given,
}

/// The addresses of all ports. See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Owners<K> {
    owners: HashMap<K, Owner>,
    shares: HashMap<PortId, Vec<K>>,
    share_max: usize,
}

impl<K: Copy + Eq + Hash> Owners<K> {
    pub(super) fn new(share_max: usize) -> Self {
        Self { owners: HashMap::new(), shares: HashMap::new(), share_max }
    }

    pub(super) fn find(&self, address: K, now_s: u32) -> Option<Owner> {
        self.owners.get(&address).copied().filter(|owner| owner.is_within(AGE_MAX_S, now_s))
    }

    /// Notes that `owner` has `address` now. `false` if another has it, and keeps it.
    pub(super) fn claim(&mut self, address: K, owner: Owner, claim: Claim) -> bool {
        let Some(known) = self.owners.get_mut(&address) else {
            self.make_room(owner.port).push(address);
            self.owners.insert(address, Owner { is_given: claim == Claim::Given, ..owner });
            return true;
        };
        let is_same_guest = known.port == owner.port || known.mac == owner.mac;
        if !is_same_guest && claim == Claim::Used && known.is_within(HOLD_S, owner.seen_s) {
            return false;
        }
        let is_given = claim == Claim::Given || is_same_guest && known.is_given;
        let previous = std::mem::replace(known, Owner { is_given, ..owner });
        if previous.port != owner.port {
            if let Some(share) = self.shares.get_mut(&previous.port) {
                share.retain(|&other| other != address);
            }
            self.make_room(owner.port).push(address);
        }
        true
    }

    /// Forgets all that a port has.
    pub(super) fn remove_port(&mut self, port: PortId) {
        for address in self.shares.remove(&port).unwrap_or_default() {
            self.owners.remove(&address);
        }
    }

    fn make_room(&mut self, port: PortId) -> &mut Vec<K> {
        let share = self.shares.entry(port).or_default();
        if share.len() >= self.share_max {
            let seen_s = |address: &K| self.owners.get(address).map_or(0, |owner| owner.seen_s);
            let oldest = (0..share.len()).min_by_key(|&i| seen_s(&share[i]));
            if let Some(oldest) = oldest {
                self.owners.remove(&share.swap_remove(oldest));
            }
        }
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARE: usize = 4;

    fn owner(port: u16, mac: u8, seen_s: u32) -> Owner {
        Owner { port: PortId(port), mac: MacAddr([2, 0, 0, 0, 0, mac]), seen_s, is_given: false }
    }

    impl<K: Copy + Eq + Hash> Owners<K> {
        /// Addresses that are remembered, expired ones among them.
        pub(in crate::switch) fn len(&self) -> usize {
            self.owners.len()
        }

        fn assert_consistent(&self) {
            let in_shares: usize = self.shares.values().map(Vec::len).sum();
            assert_eq!(in_shares, self.owners.len());
            for (port, share) in &self.shares {
                assert!(share.len() <= self.share_max);
                assert!(share.iter().all(|address| self.owners[address].port == *port));
            }
        }
    }

    #[test]
    fn an_active_owner_keeps_its_address_and_a_silent_one_does_not() {
        let mut owners = Owners::new(SHARE);
        assert!(owners.claim('x', owner(1, 1, 100), Claim::Used));
        assert!(!owners.claim('x', owner(2, 2, 100 + HOLD_S), Claim::Used));
        assert_eq!(owners.find('x', 130), Some(owner(1, 1, 100)));
        assert!(owners.claim('x', owner(2, 2, 101 + HOLD_S), Claim::Used));
        assert_eq!(owners.find('x', 131), Some(owner(2, 2, 131)));
        assert!(owners.claim('x', owner(3, 2, 131), Claim::Used), "the guest itself, behind another port");
        assert!(owners.claim('x', owner(3, 9, 131), Claim::Used), "another station behind the same port");
        assert!(owners.claim('x', owner(4, 4, 131), Claim::Given));
        let given = |by: Owner| Some(Owner { is_given: true, ..by });
        assert_eq!(owners.find('x', 131), given(owner(4, 4, 131)));
        assert!(owners.claim('x', owner(4, 4, 132), Claim::Used));
        assert_eq!(owners.find('x', 132), given(owner(4, 4, 132)), "it stays so while it is used");
        assert_eq!(owners.find('x', 132 + AGE_MAX_S).map(|owner| owner.port), Some(PortId(4)));
        assert_eq!(owners.find('x', 133 + AGE_MAX_S), None);
        assert!(owners.claim('x', owner(5, 5, 200), Claim::Used));
        assert_eq!(owners.find('x', 200), Some(owner(5, 5, 200)), "to another it was not given");
        owners.assert_consistent();
    }

    #[test]
    fn a_port_over_its_share_loses_its_own_oldest() {
        let mut owners = Owners::new(SHARE);
        owners.claim(0, owner(1, 1, 5), Claim::Used);
        for address in 10..10 + SHARE as u32 {
            owners.claim(address, owner(2, 2, address), Claim::Used);
        }
        owners.claim(10, owner(2, 2, 50), Claim::Used);
        owners.claim(20, owner(2, 2, 51), Claim::Used);
        let known = |address| owners.find(address, 51).is_some();
        assert_eq!([0, 10, 11, 12, 13, 20].map(known), [true, true, false, true, true, true]);
        owners.remove_port(PortId(2));
        assert_eq!((owners.len(), owners.find(0, 51).is_some()), (1, true));
        owners.assert_consistent();
    }

    proptest! {
        #[test]
        fn shares_and_owners_agree_and_nobody_pushes_out_another(
            steps in prop::collection::vec((0u8..12, 0u16..4, 0u8..6, 0u32..20, 0u8..10), 0..200),
        ) {
            let (mut owners, mut now_s) = (Owners::new(SHARE), 0);
            for (address, port, mac, seconds, kind) in steps {
                now_s += seconds;
                let before: Vec<_> = (0..12).map(|a| owners.find(a, now_s)).collect();
                match kind {
                    0 => owners.remove_port(PortId(port)),
                    1 => { owners.claim(address, owner(port, mac, now_s), Claim::Given); }
                    _ => { owners.claim(address, owner(port, mac, now_s), Claim::Used); }
                }
                owners.assert_consistent();
                for (a, before) in (0..12).zip(before) {
                    // Another port's other addresses are untouched.
                    if a != address && before.is_some_and(|owner| owner.port != PortId(port)) {
                        prop_assert_eq!(owners.find(a, now_s), before);
                    }
                }
            }
        }
    }
}
