//! Connections that cannot be made, and how the guest hears of it: by ICMP, as it would from a router.

use super::super::icmp::Reason;
use super::super::out::Guest;
use super::super::packet::Packet;
use super::super::seq::Seq;
use super::segment::Segment;
use super::{Connection, Fate, Key, Surroundings, Tcp};
use crate::frame::ip::TCP;
use crate::ring::Bytes;
use crate::sys::errqueue;
use crate::sys::net;
use std::net::{IpAddr, SocketAddr};

/// Tells a guest why the connection that its SYN with this number asked for cannot be made.
pub(super) fn tell(
    guest: Guest,
    key: &Key,
    seq: Seq,
    (by, reason): (Option<IpAddr>, Reason),
    world: &mut Surroundings<'_>,
) {
    // What a guest knows a connection by: its ports, and its number.
    let mut transport = [0; 8];
    transport[..2].copy_from_slice(&key.guest.port().to_be_bytes());
    transport[2..4].copy_from_slice(&key.remote.port().to_be_bytes());
    transport[4..].copy_from_slice(&seq.0.to_be_bytes());
    let packet = super::super::icmp::rebuild(key.guest.ip(), key.remote.ip(), TCP, &transport);
    world.report(guest, key.guest.ip(), by, reason, &packet);
}

/// A connection's socket has an error, or had one: what becomes of the connection. None: nothing.
///
/// While a connection is being made, the kernel gives it up for the first router that says that there is no way, and
/// keeps what was said in the queue of errors.
pub(super) fn failure(connection: &Connection, world: &mut Surroundings<'_>) -> Option<Fate> {
    let is_connecting = connection.mirror.is_connecting();
    let lost = if is_connecting { errqueue::next(&connection.fd, &mut []).ok() } else { None };
    let said = lost.and_then(|lost| Some((lost.message?.by, Reason::said(&lost)?)));
    let failure = net::failure(&connection.fd);
    if matches!(failure, Ok(None)) && said.is_none() {
        return None;
    }
    let reason = failure.ok().flatten().and_then(|error| Reason::of(&error, None));
    let told = said.or(reason.map(|reason| (None, reason))).filter(|_| is_connecting);
    let Some(told) = told else { return Some(Fate::Failed) };
    tell(connection.guest, &connection.key, connection.mirror.syn_seq(), told, world);
    Some(Fate::Broken)
}

impl Tcp {
    /// Answers a guest's segment for a port that nobody has.
    pub(in super::super) fn refuse_packet(
        &self,
        guest: Guest,
        packet: &Packet,
        bytes: &Bytes<'_>,
        world: &mut Surroundings<'_>,
    ) {
        let Some(segment) = Segment::parse(bytes.head(), packet.transport, packet.end) else { return };
        let key = Key {
            guest: SocketAddr::new(packet.from, segment.from_port),
            remote: SocketAddr::new(packet.to, segment.to_port),
        };
        self.refuse(guest, &key, &segment, world);
    }
}
