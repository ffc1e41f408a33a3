//! Clients of datagrams: through which door each has come, so that what the guest answers leaves by the same.
//!
//! An entry ends when it was not used for [`IDLE_S`], or when there are [`PEERS_MAX`] that were used later: the client
//! makes another when it sends again.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use crate::switch::PortId;

/// How long an entry lives unused, in seconds (RFC 4787, REQ-5).
const IDLE_S: u64 = 300;
/// Entries of a network's guests together. Whoever makes up senders' addresses makes entries.
const PEERS_MAX: usize = 65_536;

/// A guest's address and port, and a client's as the guest knows it.
pub(super) type Pair = (SocketAddr, SocketAddr);

/// How a client is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// The guest's port.
    pub(super) port: PortId,
    /// The door's number.
    pub(super) door: u32,
    /// The client's own address.
    pub(super) client: SocketAddr,
    /// Which of the host's addresses it talks to, if that is known.
    pub(super) host: Option<IpAddr>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: HashMap<Pair, (u64, Peer)>,
    /// When each was last used, in seconds.
    used: BTreeSet<(u64, Pair)>,
}

impl Peers {
    /// A client has sent.
    pub(super) fn note(&mut self, pair: Pair, peer: Peer, now_s: u64) {
        let before = self.peers.insert(pair, (now_s, peer)).map(|(used_s, _)| used_s);
        if before == Some(now_s) {
            return;
        }
        if let Some(used_s) = before {
            self.used.remove(&(used_s, pair));
        }
        self.used.insert((now_s, pair));
        while let Some(&(used_s, oldest)) = self.used.first()
            && (used_s + IDLE_S < now_s || self.used.len() > PEERS_MAX)
        {
            self.used.pop_first();
            self.peers.remove(&oldest);
        }
    }

    /// How the guest on a port answers a client, if that has sent before.
    pub(super) fn find(&mut self, pair: Pair, port: PortId, now_s: u64) -> Option<Peer> {
        let (used_s, peer) = *self.peers.get(&pair)?;
        if peer.port != port || used_s + IDLE_S < now_s {
            return None;
        }
        self.note(pair, peer, now_s);
        Some(peer)
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.peers.retain(|_, (_, peer)| peer.port != port);
        self.used.retain(|(_, pair)| self.peers.contains_key(pair));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u32) -> SocketAddr {
        SocketAddr::new(std::net::Ipv4Addr::from_bits(n).into(), 53)
    }

    #[test]
    fn the_oldest_gives_way_and_what_is_idle_ends() {
        let (mut peers, guest) = (Peers::default(), at(1));
        let peer = |n| Peer { port: PortId(1), door: n, client: at(n), host: None };
        let count = PEERS_MAX as u32;
        (0..count).for_each(|n| peers.note((guest, at(n)), peer(n), 7));
        assert_eq!(peers.find((guest, at(0)), PortId(1), 8), Some(peer(0)));
        assert_eq!(peers.find((guest, at(0)), PortId(2), 8), None);
        peers.note((guest, at(count)), peer(count), 8);
        assert_eq!(peers.peers.len(), PEERS_MAX);
        assert_eq!(peers.find((guest, at(0)), PortId(1), 9), Some(peer(0)), "it was used");
        assert_eq!(peers.find((guest, at(1)), PortId(1), 9), None, "it was the first of the oldest");
        assert_eq!(peers.find((guest, at(2)), PortId(1), 8 + IDLE_S), None);
        peers.note((guest, at(5)), peer(5), 9 + IDLE_S);
        assert_eq!((peers.peers.len(), peers.used.len()), (2, 2), "all others were idle");
        peers.port_ended(PortId(1));
        assert_eq!((peers.peers.len(), peers.used.len()), (0, 0));
    }
}
