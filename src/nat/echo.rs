//! Echo requests of guests, carried by ping sockets.
//!
//! Theory of operation. Each address and identifier of a guest's has one ping socket (`IPPROTO_ICMP` in icmp(7)), whose
//! own identifier the kernel chooses: so two guests may use the same one. Of a request nothing but the identifier is
//! changed. Replies come to the socket that sent the request, and go to the guest with the guest's identifier, from
//! whoever sent them. The rest is what [`super::endpoints`] says. There are few, so a guest that has none takes the
//! place of the one that was used the longest ago of all.
//!
//! The host may not allow ping sockets (`net.ipv4.ping_group_range`). That is said once, and requests are dropped.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::carrier::{Load, Original};
use super::endpoints::{Bounds, Endpoint, Endpoints, SECOND, Used};
use super::fragments;
use super::headers::{Ends, HOP_LIMIT};
use super::icmp::{HEADER_LEN, Reason, put_checksum};
use super::id::Kind;
use super::out::Guest;
use super::packet::Packet;
use super::policy::Policy;
use super::tcp::Surroundings;
use crate::frame::checksum;
use crate::frame::ethernet::{self, be16};
use crate::frame::ip::{ICMP, ICMPV6};
use crate::frame::vnet::VnetHeader;
use crate::metrics::Counter;
use crate::ring::Bytes;
use crate::switch::PortId;
use crate::sys::datagrams::Received;
use crate::sys::errqueue::Lost;
use crate::sys::net;

/// Types of request and reply, of ICMP and ICMPv6.
const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;
/// Where the checksum and the identifier are in a message.
const CHECKSUM: usize = 2;
const IDENTIFIER: usize = 4;

/// Whether it was said that the host allows no ping sockets.
static HAS_WARNED: AtomicBool = AtomicBool::new(false);

/// An address that a guest sends echo requests from, and their identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Query {
    guest: IpAddr,
    identifier: u16,
}

impl Endpoint for Query {
    type Key = Self;
    const KIND: Kind = Kind::Echo;
    /// A minute: RFC 5508, REQ-2.
    const BOUNDS: Bounds = Bounds { per_guest: 256, all: 4096, idle_ns: 60 * SECOND, sweep_ns: 5 * SECOND };

    fn new(key: Self) -> Self {
        key
    }

    fn key(&self) -> Self {
        *self
    }

    fn address(&self) -> IpAddr {
        self.guest
    }

    fn socket(key: &Self) -> io::Result<OwnedFd> {
        net::ping_socket(&key.guest).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                warn_once();
                // For us it has none.
                io::Error::from_raw_os_error(libc::EPROTONOSUPPORT)
            }
            _ => error,
        })
    }

    fn gives_way(used: &Used, port: PortId) -> Option<u32> {
        used.oldest(port).or_else(|| used.oldest_of_all())
    }

    fn original(&self, lost: &Lost, message: &[u8], _: &Policy) -> Option<Original> {
        let mut message = message.to_vec();
        // On its way it had the socket's own.
        let (own, identifier) = (message.get(IDENTIFIER..IDENTIFIER + 2)?.to_vec(), self.identifier.to_be_bytes());
        message[IDENTIFIER..IDENTIFIER + 2].copy_from_slice(&identifier);
        if self.guest.is_ipv6() {
            // Its checksum is one with an address of the host's, which is nothing to the guest.
            return Some((lost.to.ip(), ICMPV6, message));
        }
        let sum = checksum::update(be16(&message, CHECKSUM)?, &own, &identifier);
        message[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        Some((lost.to.ip(), ICMP, message))
    }

    fn deliver(&self, guest: Guest, received: &Received, message: &mut [u8], world: &mut Surroundings<'_>) {
        let (from, to) = (received.from.ip(), self.guest);
        let ends = Ends { mac: world.gateway_mac, to_mac: guest.mac, from, to };
        if !is_reply(message, to.is_ipv4()) || !world.policy.is_elsewhere(from) {
            return;
        }
        message[CHECKSUM..CHECKSUM + 2].fill(0);
        message[IDENTIFIER..IDENTIFIER + 2].copy_from_slice(&self.identifier.to_be_bytes());
        put_checksum(&ends, message);
        let protocol = if to.is_ipv4() { ICMP } else { ICMPV6 };
        if ends.len() - ethernet::HEADER_LEN + message.len() > world.mtu.into() {
            *world.packets = world.packets.wrapping_add(1);
            let (id, out) = (*world.packets, &mut *world.out);
            return fragments::cut(&ends, protocol, message, world.mtu.into(), id, |frame| {
                out.push(VnetHeader::default(), frame);
            });
        }
        let mut frame = world.out.buffer();
        frame.resize(ends.len(), 0);
        ends.emit(protocol, HOP_LIMIT, message.len(), &mut frame);
        frame.extend_from_slice(message);
        world.out.push(VnetHeader::default(), frame);
    }
}

/// See the module's theory of operation.
pub(super) type Echo = Endpoints<Query>;

impl Echo {
    /// Takes a guest's ICMP message, which goes to `target` in the host's world, if it is an echo request.
    pub(super) fn take(
        &mut self,
        guest: Guest,
        packet: &Packet,
        bytes: &Bytes<'_>,
        target: IpAddr,
        world: &mut Surroundings<'_>,
    ) -> Result<(), Counter> {
        let header = bytes.head().get(packet.transport..packet.end.min(packet.transport + HEADER_LEN));
        let header: &[u8; HEADER_LEN] = header.and_then(<[u8]>::first_chunk).ok_or(Counter::DropRxBadPacket)?;
        let request = (packet.protocol, if packet.from.is_ipv4() { REQUEST_V4 } else { REQUEST_V6 });
        let is_own = packet.from.is_ipv4() == (packet.protocol == ICMP);
        if !is_own || request != (packet.protocol, header[0]) || header[1] != 0 {
            return Err(Counter::DropRxNotCarried);
        }
        let key = Query { guest: packet.from, identifier: be16(header, IDENTIFIER).unwrap_or_default() };
        let load = Load { packet, bytes, part: packet.transport..packet.end, segment: None };
        let sent = self.send(guest, key, (&load, &SocketAddr::new(target, 0)), world);
        if sent == Err(Counter::DropRxNotCarried) {
            // The host's policy (RFC 5508, REQ-8).
            world.refuse(guest, packet, bytes.head(), Reason::Prohibited);
        }
        sent
    }
}

/// Says that guests cannot ping beyond the gateway, and how they can.
fn warn_once() {
    if !HAS_WARNED.swap(true, Ordering::Relaxed) {
        let group = nix::unistd::getegid();
        tracing::warn!(
            "guests cannot ping beyond the gateway: the host allows this process's group, {group}, no ping sockets; \
             allow them with: sysctl -w net.ipv4.ping_group_range=\"{group} {group}\""
        );
    }
}

/// Whether a message that a ping socket has brought is a reply.
fn is_reply(message: &[u8], is_v4: bool) -> bool {
    message.len() >= HEADER_LEN && message[0] == if is_v4 { REPLY_V4 } else { REPLY_V6 }
}
