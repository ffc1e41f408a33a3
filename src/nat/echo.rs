//! Echo requests of guests, carried by ping sockets.
//!
//! Theory of operation. Each address and identifier of a guest's has one ping socket (`IPPROTO_ICMP` in icmp(7)), whose
//! own identifier the kernel chooses: so two guests may use the same one. Requests go out from the guest's memory;
//! nothing of them but the identifier is changed. Replies come to the socket that sent the request, and go to the guest
//! with the guest's identifier, from whoever sent them. They are read when there is room for them among the frames for
//! guests, and wait in their socket until then.
//!
//! The host may not allow ping sockets (`net.ipv4.ping_group_range`). That is said once, and requests are dropped.
//!
//! A flow ends when neither side has used it for [`IDLE_NS`]. One more than there may be takes the place of the one
//! that was used the longest ago, to the second: of the guest's own if it has any, or else of all.
//!
//! Bounds: [`PER_GUEST_MAX`] flows for a guest, [`FLOWS_MAX`] for all.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use super::carrier::{Carrier, Load, Original};
use super::fragments;
use super::headers::{Ends, HOP_LIMIT};
use super::icmp::{HEADER_LEN, Reason, put_checksum};
use super::id::{Id, Kind};
use super::out::Guest;
use super::packet::Packet;
use super::tcp::Surroundings;
use crate::frame::checksum;
use crate::frame::ethernet::{self, be16};
use crate::frame::ip::{ICMP, ICMPV6};
use crate::frame::vnet::VnetHeader;
use crate::metrics::Counter;
use crate::ring::{Bytes, Gather};
use crate::switch::PortId;
use crate::sys::errqueue::Lost;
use crate::sys::net;
use crate::sys::poller::Ready;

/// Flows of one guest.
const PER_GUEST_MAX: usize = 256;
/// Flows of all guests together.
const FLOWS_MAX: usize = 4096;
const SECOND: u64 = 1_000_000_000;
/// How long a flow lives unused (RFC 5508, REQ-2: a minute at the least), in nanoseconds.
const IDLE_NS: u64 = 60 * SECOND;
/// How often it is looked for flows that have been unused for so long.
const SWEEP_NS: u64 = 5 * SECOND;
/// Replies that are read from one socket before the next one is read.
const READS_MAX: usize = 16;
/// The longest message.
const MESSAGE_MAX: usize = 65_535;

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

/// Which flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    identifier: u16,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    guest: Guest,
    carrier: Carrier,
    /// When it was last used, in seconds.
    used_s: u64,
    is_ready: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    flow: Option<Box<Flow>>,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Echo {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// By port: when each flow was last used.
    used: BTreeMap<PortId, BTreeSet<(u64, u32)>>,
    ready: VecDeque<Id>,
    swept_at: u64,
    gather: Gather,
    /// Where replies are received.
    room: Vec<u8>,
}

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
        let key = Key { guest: packet.from, identifier: be16(header, IDENTIFIER).unwrap_or_default() };
        let index = match self.by_key.get(&key) {
            Some(&index) => index,
            None => match self.open(guest, key, world) {
                Ok(index) => index,
                Err(reason) => {
                    if reason == Counter::DropRxNotCarried {
                        // The host's policy (RFC 5508, REQ-8).
                        world.refuse(guest, packet, bytes.head(), Reason::Prohibited);
                    }
                    return Err(reason);
                }
            },
        };
        self.touch(index, world.now);
        let Self { slots, gather, .. } = self;
        let Some(flow) = slots[index as usize].flow.as_mut() else { return Ok(()) };
        if flow.guest.port != guest.port {
            return Err(Counter::DropRxForbidden);
        }
        flow.guest = guest;
        let load = Load { packet, bytes, part: packet.transport..packet.end, segment: None };
        let to = SocketAddr::new(target, 0);
        flow.carrier.send(guest, (&load, &to), gather, world, |_, lost, message| original(key, lost, message))
    }

    fn open(&mut self, guest: Guest, key: Key, world: &mut Surroundings<'_>) -> Result<u32, Counter> {
        world.efforts.is_dear = true;
        let its = self.used.get(&guest.port).map_or(0, BTreeSet::len);
        if its >= PER_GUEST_MAX || self.by_key.len() >= FLOWS_MAX {
            self.give_up_oldest(guest.port);
        }
        let mut carrier = carrier(&key.guest, its, world);
        if matches!(carrier, Err(Counter::DropRxFlowLimit)) && its > 0 {
            // There are too many of something: the guest's oldest may give it up.
            self.give_up_oldest(guest.port);
            carrier = self::carrier(&key.guest, its - 1, world);
        }
        let carrier = carrier?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = Id { index, generation: slot.generation };
        if world.poller.add_socket(&carrier.fd, id.token(Kind::Echo)).is_err() {
            self.free.push(index);
            return Err(Counter::DropRxFlowLimit);
        }
        let used_s = world.now / SECOND;
        slot.flow = Some(Box::new(Flow { key, guest, carrier, used_s, is_ready: false }));
        self.by_key.insert(key, index);
        self.used.entry(guest.port).or_default().insert((used_s, index));
        Ok(index)
    }

    /// Ends the flow of a port that was used the longest ago, or if it has none, that of all.
    fn give_up_oldest(&mut self, port: PortId) {
        let oldest = |used: &BTreeSet<(u64, u32)>| used.first().copied();
        let of_all = || self.used.values().filter_map(oldest).min();
        if let Some((_, index)) = self.used.get(&port).and_then(oldest).or_else(of_all) {
            self.remove(index);
        }
    }

    fn touch(&mut self, index: u32, now: u64) {
        let Some(flow) = self.slots[index as usize].flow.as_mut() else { return };
        let now_s = now / SECOND;
        if flow.used_s != now_s
            && let Some(used) = self.used.get_mut(&flow.guest.port)
        {
            used.remove(&(flow.used_s, index));
            used.insert((now_s, index));
            flow.used_s = now_s;
        }
    }

    fn remove(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let Some(flow) = slot.flow.take() else { return };
        slot.generation = Id::next_generation(slot.generation);
        self.free.push(index);
        self.by_key.remove(&flow.key);
        if let Some(used) = self.used.get_mut(&flow.guest.port) {
            used.remove(&(flow.used_s, index));
            if used.is_empty() {
                self.used.remove(&flow.guest.port);
            }
        }
    }

    /// Something has happened to a flow's socket.
    pub(super) fn event(&mut self, id: Id, ready: Ready, world: &mut Surroundings<'_>) {
        let Some(slot) = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation) else {
            return;
        };
        let Some(flow) = &mut slot.flow else { return };
        world.efforts.note(flow.guest.port);
        if ready.failed {
            let (key, address) = (flow.key, flow.key.guest);
            flow.carrier.hear(flow.guest, address, world, |_, lost, message| original(key, lost, message));
        }
        if !std::mem::replace(&mut flow.is_ready, true) {
            self.ready.push_back(id);
        }
    }

    /// Whether any flow may have something for its guest.
    pub(super) fn has_any(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Reads what has come, as long as there is room for it.
    pub(super) fn receive(&mut self, world: &mut Surroundings<'_>) {
        for _ in 0..self.ready.len() {
            if !world.out.has_room() {
                return;
            }
            let Some(id) = self.ready.pop_front() else { return };
            let slot = &mut self.slots[id.index as usize];
            let Some(flow) = slot.flow.as_mut().filter(|_| slot.generation == id.generation) else { continue };
            self.room.resize(MESSAGE_MAX, 0);
            world.efforts.note(flow.guest.port);
            let (replies, has_more) = read(flow, &mut self.room, world);
            flow.is_ready = has_more;
            if has_more {
                self.ready.push_back(id);
            }
            if replies > 0 {
                // What became of a request is no use of the flow (RFC 5508, REQ-6).
                self.touch(id.index, world.now);
            }
        }
    }

    /// Ends what was not used for long.
    pub(super) fn sweep(&mut self, now: u64) {
        self.swept_at = now;
        let limit = now.saturating_sub(IDLE_NS) / SECOND;
        let is_old = |(used_s, _): &&(u64, u32)| *used_s < limit;
        let old: Vec<u32> =
            self.used.values().flat_map(|used| used.iter().take_while(is_old)).map(|&(_, i)| i).collect();
        old.into_iter().for_each(|index| self.remove(index));
    }

    /// When [`Self::sweep`] is due next.
    pub(super) fn due(&self) -> Option<u64> {
        (!self.by_key.is_empty()).then_some(self.swept_at + SWEEP_NS)
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        let its: Vec<u32> = self.used.get(&port).into_iter().flatten().map(|(_, index)| *index).collect();
        its.into_iter().for_each(|index| self.remove(index));
    }
}

/// A socket for a flow of a guest that has so many.
fn carrier(like: &IpAddr, has: usize, world: &Surroundings<'_>) -> Result<Carrier, Counter> {
    let ticket = world.sockets.take(has).ok_or(Counter::DropRxFlowLimit)?;
    match net::ping_socket(like) {
        Ok(fd) => Ok(Carrier::new(fd, ticket)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                warn_once();
                Err(Counter::DropRxNotCarried)
            }
            // The host has no such protocol.
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => Err(Counter::DropRxNotCarried),
            _ => Err(Counter::DropRxFlowLimit),
        },
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

/// What a lost request was for the guest.
fn original(key: Key, lost: &Lost, message: &[u8]) -> Option<Original> {
    let mut message = message.to_vec();
    // On its way it had the socket's own.
    let (own, identifier) = (message.get(IDENTIFIER..IDENTIFIER + 2)?.to_vec(), key.identifier.to_be_bytes());
    message[IDENTIFIER..IDENTIFIER + 2].copy_from_slice(&identifier);
    if key.guest.is_ipv6() {
        // Its checksum is one with an address of the host's, which is nothing to the guest.
        return Some((lost.to.ip(), ICMPV6, message));
    }
    let sum = checksum::update(be16(&message, CHECKSUM)?, &own, &identifier);
    message[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    Some((lost.to.ip(), ICMP, message))
}

/// Reads what has come to a flow. Returns how much that was, and whether there may be more.
fn read(flow: &Flow, room: &mut [u8], world: &mut Surroundings<'_>) -> (usize, bool) {
    let mut replies = 0;
    for _ in 0..READS_MAX {
        match net::receive_datagrams(&flow.carrier.fd, room) {
            Ok(received) => {
                replies += 1;
                deliver(flow, received.from.ip(), &mut room[..received.len], world);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (replies, false),
            // What became of a request, which is told elsewhere.
            Err(_) => {}
        }
    }
    (replies, true)
}

/// Makes frames of a reply.
fn deliver(flow: &Flow, from: IpAddr, message: &mut [u8], world: &mut Surroundings<'_>) {
    let to = flow.key.guest;
    let ends = Ends { mac: world.gateway_mac, to_mac: flow.guest.mac, from, to };
    if !is_reply(message, to.is_ipv4()) || !world.policy.is_elsewhere(from) {
        return;
    }
    message[CHECKSUM..CHECKSUM + 2].fill(0);
    message[IDENTIFIER..IDENTIFIER + 2].copy_from_slice(&flow.key.identifier.to_be_bytes());
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

/// Whether a message that a ping socket has brought is a reply.
fn is_reply(message: &[u8], is_v4: bool) -> bool {
    message.len() >= HEADER_LEN && message[0] == if is_v4 { REPLY_V4 } else { REPLY_V6 }
}
