//! The sending side of a port, whatever is behind it: a guest, or an uplink.
//!
//! Theory of operation. A burst is judged by what its sender may do and has done: what it has negotiated, where its
//! frames went lately, what it has flooded. All of that belongs to the worker that takes the sender's frames.

use std::sync::Arc;

use crate::frame::ethernet::MacAddr;
use crate::frame::offload::Offloads;
use crate::ring::mailbox::PortShared;
use crate::switch::Recent;
use crate::switch::guard::Guard;

/// What frames come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A guest, who may be hostile.
    Guest,
    /// The host, or a network beyond it.
    Uplink,
}

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) shared: Arc<PortShared>,
    pub(super) origin: Origin,
    /// What it may ask of us.
    pub(super) sends: Offloads,
    /// Where its frames went lately.
    pub(super) recent: Recent,
    /// Whether it has sent from an address of its own.
    pub(super) is_known: bool,
    /// What holds it to its own addresses, if anything does.
    pub(super) guard: Option<Guard>,
    /// When the guard was last told anew whose addresses are whose, in seconds.
    pub(super) guarded_since_s: u32,
    /// What it has asked services.
    pub(super) requests: Budget,
    /// How often it was looked up whether an address is its own.
    pub(super) lookups: Budget,
    /// How often the uplink was told of its new addresses.
    pub(super) changes: Budget,
    /// What flooding has cost, in bytes.
    flooded: Budget,
    /// The same for broadcasts of an uplink. Behind it are many: whoever of them floods groups, or addresses that
    /// nobody has, must not keep others' ARP and DHCP from guests.
    broadcast: Budget,
}

impl Sender {
    pub(super) fn new(shared: Arc<PortShared>, origin: Origin, guard: Option<Guard>) -> Self {
        let (sends, recent) = (Offloads::default(), Recent::default());
        let [requests, lookups, changes, flooded, broadcast] = [Budget::default(); 5];
        // Behind an uplink are many, none of whom is introduced.
        let is_known = origin == Origin::Uplink;
        Self {
            shared,
            origin,
            sends,
            recent,
            is_known,
            guard,
            guarded_since_s: 0,
            requests,
            lookups,
            changes,
            flooded,
            broadcast,
        }
    }

    /// Has the guard take note of addresses that were declared for others since.
    pub(super) fn follow_declared(&mut self) {
        if self.guard.as_mut().is_some_and(Guard::follow_declared) {
            self.recent = Recent::default();
        }
    }

    /// Charges it for a frame that is flooded. `false` when it would go over `max` in this second.
    pub(super) fn may_flood(&mut self, head: &[u8], cost: u32, max: u32, now_s: u32) -> bool {
        let is_broadcast = MacAddr::destination_of(head).is_some_and(MacAddr::is_broadcast);
        let apart = self.origin == Origin::Uplink && is_broadcast;
        let budget = if apart { &mut self.broadcast } else { &mut self.flooded };
        budget.charge(cost, max, now_s)
    }
}

/// What may be had in a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    now_s: u32,
    spent: u32,
}

impl Budget {
    /// Takes one of `max`. `false` when there is none left in this second.
    pub(super) fn take(&mut self, max: u32, now_s: u32) -> bool {
        self.charge(1, max, now_s)
    }

    /// Takes `cost` of `max`.
    fn charge(&mut self, cost: u32, max: u32, now_s: u32) -> bool {
        if self.now_s != now_s {
            *self = Self { now_s, spent: 0 };
        }
        let fits = cost <= max.saturating_sub(self.spent);
        if fits {
            self.spent += cost;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_full_again_with_each_second() {
        let mut budget = Budget::default();
        assert!((0..3).all(|_| budget.take(3, 7)));
        assert!(!budget.take(3, 7));
        assert!(budget.charge(3, 3, 8));
        assert!(!budget.charge(1, 3, 8));
        assert!(!budget.charge(4, 3, 9), "more than there is at all");
        assert!(budget.charge(u32::MAX, u32::MAX, 9));
    }
}
