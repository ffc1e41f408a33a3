//! The control queue's commands (virtio 1.3, 5.1.6.5): pure; the ring is read elsewhere.
//!
//! Theory of operation. QEMU and cloud-hypervisor serve this queue themselves and never pass it on; User Mode Linux
//! hands it to us and waits for the answer. Until the first command, and for guests whose queue we never see, a port
//! takes every frame, all pairs that are enabled are used, and nothing is filtered.
//!
//! Limits: [`UNICAST_MAX`] and [`MULTICAST_MAX`] addresses; a guest that sets more gets all frames of that kind, as
//! 5.1.6.5.2 allows a device to do.

use std::collections::HashSet;

use crate::frame::ethernet::{self, MacAddr};

/// Unicast addresses that are filtered exactly.
pub const UNICAST_MAX: usize = 64;
/// Multicast addresses that are filtered exactly.
pub const MULTICAST_MAX: usize = 256;

const OK: u8 = 0;
const ERR: u8 = 1;

/// What a command asks of the port beyond this module's own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest has announced itself.
    Announced,
}

/// Which frames a guest wants.
#[derive(Debug)]
pub struct ReceiveFilter {
    /// Everything, tagged or not: a guest that bridges needs it, and QEMU's device does the same.
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: HashSet<MacAddr>,
    unicast_overflow: bool,
    multicast: HashSet<MacAddr>,
    multicast_overflow: bool,
    /// The guest's own address, once it has told us.
    own: Option<MacAddr>,
    /// One bit for each VLAN that passes; `None` without VIRTIO_NET_F_CTRL_VLAN: all pass. Untagged frames always do.
    vlans: Option<Box<[u64; 64]>>,
}

impl Default for ReceiveFilter {
    fn default() -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: HashSet::new(),
            unicast_overflow: false,
            multicast: HashSet::new(),
            multicast_overflow: false,
            own: None,
            vlans: None,
        }
    }
}

impl ReceiveFilter {
    /// Whether the guest wants every frame.
    #[inline]
    pub fn accepts_all(&self) -> bool {
        self.promiscuous
    }

    /// Whether the guest wants the frame that begins with `head`.
    #[inline]
    pub fn accepts(&self, head: &[u8]) -> bool {
        self.promiscuous || (self.accepts_vlan(head) && self.accepts_address(head))
    }

    fn accepts_vlan(&self, head: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else { return true };
        match ethernet::vlan_id(head) {
            Some(id) if id != 0 => vlans[usize::from(id) / 64] & (1 << (id % 64)) != 0,
            _ => true,
        }
    }

    fn accepts_address(&self, head: &[u8]) -> bool {
        let Some(destination) = MacAddr::destination_of(head) else { return true };
        if destination.is_broadcast() {
            return !self.no_broadcast;
        }
        if destination.is_group() {
            let all = self.all_multicast || self.multicast_overflow;
            return !self.no_multicast && (all || self.multicast.contains(&destination));
        }
        let all = self.all_unicast || self.unicast_overflow || self.own.is_none();
        !self.no_unicast && (all || self.own == Some(destination) || self.unicast.contains(&destination))
    }
}

/// What the guest has set by commands.
#[derive(Debug)]
pub struct ControlQueue {
    filter: ReceiveFilter,
    pairs: u16,
    pairs_max: u16,
}

impl Default for ControlQueue {
    fn default() -> Self {
        // A device with several pairs starts with the first alone (5.1.6.5.6).
        Self { filter: ReceiveFilter::default(), pairs: 1, pairs_max: 1 }
    }
}

impl ControlQueue {
    /// Which frames the guest wants.
    #[inline]
    pub fn filter(&self) -> &ReceiveFilter {
        &self.filter
    }

    /// The pairs that the guest uses, from 1 to those that it was told of.
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// A queue that the guest has just started. `own` is the address that the device gave it, and `pairs_max` how many
    /// pairs it has; with `filters_vlans` no VLAN passes until the guest adds it (5.1.6.5.3), unless it is promiscuous.
    pub fn started(own: MacAddr, filters_vlans: bool, pairs_max: u16) -> Self {
        let mut queue = Self { pairs_max, ..Self::default() };
        queue.filter.own = Some(own);
        queue.filter.vlans = filters_vlans.then(|| Box::new([0; 64]));
        queue
    }

    /// Serves one command and returns the answer: 0 for done, 1 for an error, and then nothing has changed.
    pub fn serve(&mut self, command: &[u8], effect: &mut Effect) -> u8 {
        let done = match command {
            [0, mode, data @ ..] => self.receive_mode(*mode, data),
            [1, 0, data @ ..] => self.mac_table(data),
            [1, 1, data @ ..] => self.mac_address(data),
            [2, action, data @ ..] => self.vlan(*action, data),
            [3, 0, ..] => {
                *effect = Effect::Announced;
                Some(())
            }
            [4, 0, data @ ..] => self.set_pairs(data),
            _ => None,
        };
        if done.is_some() { OK } else { ERR }
    }

    fn receive_mode(&mut self, mode: u8, data: &[u8]) -> Option<()> {
        let on = match data {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let filter = &mut self.filter;
        let field = match mode {
            0 => &mut filter.promiscuous,
            1 => &mut filter.all_multicast,
            2 => &mut filter.all_unicast,
            3 => &mut filter.no_multicast,
            4 => &mut filter.no_unicast,
            5 => &mut filter.no_broadcast,
            _ => return None,
        };
        *field = on;
        Some(())
    }

    /// Two tables, unicast and multicast, each a 32-bit count and that many addresses (5.1.6.5.2).
    fn mac_table(&mut self, data: &[u8]) -> Option<()> {
        let (unicast, rest) = addresses(data)?;
        let (multicast, rest) = addresses(rest)?;
        if !rest.is_empty() {
            return None;
        }
        let filter = &mut self.filter;
        filter.unicast_overflow = unicast.len() > UNICAST_MAX;
        filter.multicast_overflow = multicast.len() > MULTICAST_MAX;
        filter.unicast = unicast.iter().take(UNICAST_MAX).map(|&a| MacAddr(a)).collect();
        filter.multicast = multicast.iter().take(MULTICAST_MAX).map(|&a| MacAddr(a)).collect();
        Some(())
    }

    fn mac_address(&mut self, data: &[u8]) -> Option<()> {
        let own = MacAddr(data.try_into().ok()?);
        if own.is_group() {
            return None;
        }
        self.filter.own = Some(own);
        Some(())
    }

    fn vlan(&mut self, action: u8, data: &[u8]) -> Option<()> {
        let id = u16::from_le_bytes(data.try_into().ok()?);
        if id >= 4096 || action > 1 {
            return None;
        }
        let vlans = self.filter.vlans.as_mut()?;
        let (word, bit) = (usize::from(id) / 64, 1 << (id % 64));
        if action == 0 {
            vlans[word] |= bit;
        } else {
            vlans[word] &= !bit;
        }
        Some(())
    }

    fn set_pairs(&mut self, data: &[u8]) -> Option<()> {
        let pairs = u16::from_le_bytes(data.try_into().ok()?);
        if !(1..=self.pairs_max).contains(&pairs) {
            return None;
        }
        self.pairs = pairs;
        Some(())
    }
}

/// Splits a counted table of addresses from what follows it.
fn addresses(data: &[u8]) -> Option<(&[[u8; 6]], &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
    let (table, rest) = rest.split_at_checked(len)?;
    Some((table.as_chunks().0, rest))
}
