//! Where a frame goes: a learning Ethernet switch as pure logic.
//!
//! Theory of operation. The caller has a frame's first bytes in private memory and asks [`Switch::forward`] what to do
//! with it; the answer is a [`Verdict`] and nothing has been sent. There is no descriptor, socket or clock in here:
//! ports are numbers, time is what [`Switch::begin_burst`] was told, and every state can be reached in a test by
//! calling methods.
//!
//! A frame passes these steps, and the first one that ends it names the verdict:
//!
//! 1. It must be a frame that a bridge relays: a whole header ([`Counter::DropTxRunt`]), from one station
//!    ([`Counter::DropTxBadSource`]), not to a group that stays on its link ([`Counter::DropTxReserved`]). A frame that
//!    fails here teaches nothing.
//! 2. Its source must not be the host's own address ([`Switch::set_host`], [`Counter::DropTxSpoofedMac`]), which stays
//!    where it is. Any other is learned on the port it came from, for its VLAN alone (IEEE 802.1Q 8.7, independent VLAN
//!    learning). Frames without a tag and frames with a priority tag (VLAN id 0) are one VLAN. Only the tag of a
//!    customer VLAN (type 0x8100) counts; a frame with a service tag is, as 802.1Q has it for a customer bridge,
//!    untagged.
//! 3. A destination that is known goes to its port ([`Verdict::Forward`]), unless that is where the frame came from
//!    ([`Counter::DropTxHairpin`]).
//! 4. Everything else goes to all other ports ([`Verdict::Flood`]), if there are any ([`Counter::DropTxAlone`]) and the
//!    sender has not used up what it may flood ([`Counter::DropTxFloodLimit`], see `limits.rs`).
//!
//! Guests choose the addresses, so each structure is built for the guest that chooses the worst ones. `fdb.rs` gives
//! every port a share of its own, out of which no other port can push it; `table.rs` keeps all entries in one hash
//! table with a key that guests do not know, and no operation on it takes longer than a small constant. Nothing is
//! freed or moved in bulk while frames flow: the only step whose length depends on a guest is the removal of its port,
//! which forgets at most [`ADDRESSES_PER_PORT_MAX`] addresses.
//!
//! A switch may serve several threads under a lock. So that most frames need neither lock nor table, `recent.rs` keeps
//! the latest verdicts of a port with whoever serves that port, and knows when they no longer hold.
//!
//! What learning cannot give is authenticity. An address belongs to whoever used it last, at once, because that is how
//! a migrated VM gets its traffic back; so a guest that sends with its neighbour's address receives the neighbour's
//! traffic until the neighbour sends again, and two guests (or one that bridges two of its ports) can make an address
//! flap with every frame. A flap costs what learning an address costs, takes no memory, and moves only the addresses
//! that both sides use; [`Switch::take_moves`] counts them so that the fight can be seen. Refusing a guest addresses
//! that are not its own is the business of a [`guard`] on the port, not of the table.
//!
//! Three more pieces judge or change frames before or after the switch does, where the network's mode asks for it:
//! [`guard`] (port security), [`subnet_filter`] (host-only), and [`mac_nat`] (bridged to Wi-Fi).

#[cfg(doc)]
use crate::metrics::Counter;

mod fdb;
mod forward;
pub mod guard;
mod header;
mod key;
mod limits;
pub mod mac_nat;
mod owners;
mod recent;
mod share;
mod subnet_filter;
mod table;

#[cfg(test)]
mod tests;

pub use fdb::AGE_MAX_S;
pub use forward::Switch;
pub use limits::{FLOOD_COPIES_PER_BURST_MAX, FLOOD_COPIES_PER_SECOND_MAX};
pub use mac_nat::HostAddresses;
pub use recent::{Addresses, Losses, Recent};
pub use share::ADDRESSES_PER_PORT_MAX;
pub use subnet_filter::SubnetFilter;

use crate::metrics;

/// Ports of one switch.
pub const PORTS_MAX: usize = 1024;

/// A port of the switch: a dense index below [`PORTS_MAX`], chosen by the caller and free for reuse once removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What is to be done with one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Give it to this port, which is present and not the one it came from.
    Forward(PortId),
    /// Give it to every port of [`Switch::ports`] but the one it came from; there is at least one.
    Flood,
    /// Give it to nobody and count this, one of the `DropTx` counters, for the port it came from.
    Drop(metrics::Counter),
}
