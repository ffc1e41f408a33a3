//! Connections that others make to guests.

use super::super::forward::{Client, refuse};
use super::super::id::Kind;
use super::connection::{Key, bare};
use super::mirror::Fate;
use super::{CONNECTIONS_MAX, HALF_OPEN_MAX, Mirror, PER_GUEST_MAX, Surroundings, Tcp};
use crate::ring::Gather;

impl Tcp {
    /// Asks a guest whether it takes a connection that somebody has made to it. If there can be no more, or one with
    /// the same addresses and ports is there already, the client is refused.
    pub(in super::super) fn accept(&mut self, client: Client, world: &mut Surroundings<'_>) {
        let Client { fd, guest, to, from } = client;
        world.efforts.note(guest.port);
        let key = Key { guest: to, remote: from };
        if let Some(id) = self.find(&key)
            && self.is_ending(id)
        {
            self.remove(id);
        }
        let share = self.shares.get(&guest.port).copied().unwrap_or_default();
        let is_full = share.connections >= PER_GUEST_MAX
            || share.half_open >= HALF_OPEN_MAX
            || self.by_key.len() >= CONNECTIONS_MAX
            || self.by_key.contains_key(&key);
        let Some(ticket) = world.sockets.take(share.connections).filter(|_| !is_full) else { return refuse(fd) };
        let isn = self.isn(&key, world.now);
        let id = self.insert(guest, key, (fd, ticket, false), Mirror::to_guest(isn, world.now), world);
        let Some(connection) = self.get(id) else { return };
        if world.poller.add_socket(&connection.fd, id.token(Kind::Tcp)).is_err() {
            return self.break_off(id);
        }
        let (own_mss, ends) = (connection.own_mss(world.mtu), connection.ends(world.gateway_mac));
        let mut gather = Gather::default();
        let (mirror, mut kernel) = connection.split(&mut gather);
        let syn = mirror.syn(own_mss, &mut kernel);
        bare(&key, &ends, &syn, world.out);
        self.settle(id, Fate::Lives, world);
    }
}
