//! One port's share of the table: which entries are its own, and which of them is the oldest.
//!
//! Theory of operation. The share is a list in the order in which its addresses were last seen, kept in one vector
//! whose elements name their neighbours by index. An entry of the table names its node here, a node names the entry's
//! key, so each is found from the other without a search. The list is what makes a guest that sends from ever new
//! addresses harm itself alone: when the share is full, the address to give up is its own oldest, found at once.
//!
//! Addresses move to the new end at most once a second (when their time stamp changes), so within one second the order
//! is that of first sight. Stamps therefore never fall from the old end to the new one, and the oldest node tells
//! whether anything at all in the share has expired.
//!
//! The vector grows as addresses come, by doubling, and keeps free nodes in a list of their own. A port without
//! addresses has none.

use super::key::Key;

/// Addresses that one port can have learned at the same time, in all VLANs together.
pub const ADDRESSES_PER_PORT_MAX: usize = 4096;

/// The index that names no node.
const NO_NODE: u16 = u16::MAX;

const _: () = assert!(ADDRESSES_PER_PORT_MAX <= NO_NODE as usize);

/// An address in the share. A free node has no key, and `newer` names the next free one.
#[derive(Clone, Copy, Debug)]
struct Node {
    key: Key,
    stamp_s: u32,
    older: u16,
    newer: u16,
}

/// The addresses of one port, oldest first.
#[derive(Debug)]
pub(super) struct Share {
    nodes: Vec<Node>,
    oldest: u16,
    newest: u16,
    free: u16,
    len: u16,
}

impl Share {
    pub(super) const fn new() -> Self {
        Self { nodes: Vec::new(), oldest: NO_NODE, newest: NO_NODE, free: NO_NODE, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == ADDRESSES_PER_PORT_MAX
    }

    /// The address that was not seen for the longest time, and when it was seen.
    pub(super) fn oldest(&self) -> Option<(Key, u32)> {
        self.nodes.get(usize::from(self.oldest)).map(|node| (node.key, node.stamp_s))
    }

    /// All addresses, oldest first.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        self.walk(self.oldest, |node| node.newer)
    }

    /// All addresses, newest first.
    pub(super) fn keys_newest_first(&self) -> impl Iterator<Item = Key> {
        self.walk(self.newest, |node| node.older)
    }

    fn walk(&self, first: u16, next: fn(&Node) -> u16) -> impl Iterator<Item = Key> {
        let mut at = first;
        std::iter::from_fn(move || {
            let node = self.nodes.get(usize::from(at))?;
            at = next(node);
            Some(node.key)
        })
    }

    /// Adds an address as the newest and returns its node. The share must not be full.
    pub(super) fn push(&mut self, key: Key, now_s: u32) -> u16 {
        debug_assert!(!self.is_full());
        let node = match self.nodes.get(usize::from(self.free)) {
            Some(free) => std::mem::replace(&mut self.free, free.newer),
            None => {
                self.nodes.push(Node { key: Key::NONE, stamp_s: 0, older: NO_NODE, newer: NO_NODE });
                (self.nodes.len() - 1) as u16
            }
        };
        self.nodes[usize::from(node)].key = key;
        self.append(node, now_s);
        self.len += 1;
        node
    }

    /// Makes an address that was seen again the newest.
    pub(super) fn refresh(&mut self, node: u16, now_s: u32) {
        if self.newest != node {
            self.detach(node);
            self.append(node, now_s);
        } else {
            self.nodes[usize::from(node)].stamp_s = now_s;
        }
    }

    /// Takes an address out of the share.
    pub(super) fn remove(&mut self, node: u16) {
        self.detach(node);
        let removed = &mut self.nodes[usize::from(node)];
        debug_assert!(!removed.key.is_none());
        removed.key = Key::NONE;
        removed.newer = self.free;
        self.free = node;
        self.len -= 1;
    }

    /// Takes the oldest address, if there is one, out of the share.
    pub(super) fn remove_oldest(&mut self) {
        if self.oldest != NO_NODE {
            self.remove(self.oldest);
        }
    }

    fn append(&mut self, node: u16, now_s: u32) {
        let appended = &mut self.nodes[usize::from(node)];
        (appended.older, appended.newer, appended.stamp_s) = (self.newest, NO_NODE, now_s);
        match self.newest {
            NO_NODE => self.oldest = node,
            newest => self.nodes[usize::from(newest)].newer = node,
        }
        self.newest = node;
    }

    fn detach(&mut self, node: u16) {
        let Node { older, newer, .. } = self.nodes[usize::from(node)];
        match older {
            NO_NODE => self.oldest = newer,
            older => self.nodes[usize::from(older)].newer = newer,
        }
        match newer {
            NO_NODE => self.newest = older,
            newer => self.nodes[usize::from(newer)].older = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::new(0, n)
    }

    impl Share {
        /// The nodes in use and their time stamps, oldest first.
        pub(in crate::switch) fn nodes(&self) -> impl Iterator<Item = (u16, u32)> {
            let mut at = self.oldest;
            std::iter::from_fn(move || {
                let node = self.nodes.get(usize::from(at))?;
                Some((std::mem::replace(&mut at, node.newer), node.stamp_s))
            })
        }
    }

    #[test]
    fn keeps_the_order_of_last_sight_through_every_kind_of_change() {
        let mut share = Share::new();
        assert_eq!(share.oldest(), None);
        let nodes: Vec<u16> = (0..5).map(|n| share.push(key(n), 10)).collect();
        share.refresh(nodes[0], 11);
        share.refresh(nodes[0], 12);
        share.remove(nodes[1]);
        share.remove(nodes[3]);
        assert_eq!(share.oldest(), Some((key(2), 10)));
        share.refresh(nodes[2], 13);
        assert_eq!(share.keys().collect::<Vec<_>>(), [4, 0, 2].map(key));
        assert_eq!(share.push(key(9), 14), nodes[3], "a free node is used again, the last one first");
        assert_eq!(share.push(key(8), 14), nodes[1]);
        assert_eq!(share.keys().collect::<Vec<_>>(), [4, 0, 2, 9, 8].map(key));
        assert_eq!(share.keys_newest_first().collect::<Vec<_>>(), [8, 9, 2, 0, 4].map(key));
        for node in nodes {
            share.remove(node);
        }
        assert_eq!((share.len(), share.oldest(), share.keys().count()), (0, None, 0));
        share.push(key(7), 15);
        assert_eq!(share.keys().collect::<Vec<_>>(), [key(7)]);
    }
}
