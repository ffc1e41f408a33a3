//! The sending side of a port, whatever is behind it: a guest, or an uplink.
//!
//! Theory of operation. A burst is judged by what its sender may do and has done: what it has negotiated, where its
//! frames went lately, what it has flooded. All of that belongs to the worker that takes the sender's frames.

use std::sync::Arc;

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
    /// A second, and what flooding has cost in it.
    flooded: (u32, usize),
}

impl Sender {
    pub(super) fn new(shared: Arc<PortShared>, origin: Origin, guard: Option<Guard>) -> Self {
        let (sends, recent) = (Offloads::default(), Recent::default());
        // Behind an uplink are many, none of whom is introduced.
        let is_known = origin == Origin::Uplink;
        Self { shared, origin, sends, recent, is_known, guard, guarded_since_s: 0, flooded: (0, 0) }
    }

    /// Charges it for a frame that is flooded. `false` when it would go over `max` in this second.
    pub(super) fn may_flood(&mut self, cost: usize, max: usize, now_s: u32) -> bool {
        if self.flooded.0 != now_s {
            self.flooded = (now_s, 0);
        }
        let fits = cost <= max - self.flooded.1;
        if fits {
            self.flooded.1 += cost;
        }
        fits
    }
}
