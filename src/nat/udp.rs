//! UDP: the endpoints of guests.
//!
//! Theory of operation. Each address and port of a guest's that it sends from has one socket, bound to the same port of
//! the host if that is free, and connected to nobody. So the guest is the same to all that it talks to, and whoever
//! knows of the endpoint may answer (RFC 4787, REQ-1; endpoint-independent filtering, REQ-8). What comes in is read
//! when there is room for it among the frames for guests, and waits in its socket until then.
//!
//! An endpoint ends when neither side has used it for [`IDLE_NS`]. One more than a guest may have takes the place of
//! the one of the guest's own that was used the longest ago, to the second.
//!
//! Bounds: [`PER_GUEST_MAX`] endpoints for a guest, [`ENDPOINTS_MAX`] for all.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::carrier::{self, Carrier, Load, Original};
use super::fragments;
use super::headers::{Ends, HOP_LIMIT};
use super::id::{Id, Kind};
use super::out::Guest;
use super::packet::Packet;
use super::policy::Policy;
use super::tcp::{Surroundings, Turnover};
use crate::frame::checksum::{self, PartialChecksum, UDP_CHECKSUM};
use crate::frame::ethernet::{self, MacAddr, be16};
use crate::frame::ip::UDP;
use crate::frame::offload::{Offload, UDP_HEADER_LEN};
use crate::frame::vnet::{F_NEEDS_CSUM, GSO_NONE, GSO_UDP_L4, VnetHeader};
use crate::metrics::Counter;
use crate::ring::{Bytes, Gather};
use crate::switch::PortId;
use crate::sys::errqueue::Lost;
use crate::sys::net::{self, Received, Sending};
use crate::sys::poller::Ready;

/// Endpoints of one guest.
const PER_GUEST_MAX: usize = 32_768;
/// Endpoints of all guests together.
const ENDPOINTS_MAX: usize = 131_072;
/// How long an endpoint lives unused (RFC 4787, REQ-5: five minutes), in nanoseconds.
const IDLE_NS: u64 = 300 * SECOND;
const SECOND: u64 = 1_000_000_000;
/// How often it is looked for endpoints that have been unused for so long.
const SWEEP_NS: u64 = 10 * SECOND;
/// Times that one endpoint is read before the next one is.
const READS_MAX: usize = 16;
/// The longest that may come in one go.
const RECEIVED_MAX: usize = 65_535;

/// What a datagram says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) from_port: u16,
    pub(super) to_port: u16,
    /// Where the payload is in the frame.
    pub(super) payload: Range<usize>,
}

impl Header {
    pub(super) fn parse(head: &[u8], packet: &Packet, offload: &Offload) -> Result<Self, Counter> {
        let at = packet.transport;
        let number = |n: usize| be16(head, at + n).ok_or(Counter::DropRxBadPacket);
        let (from_port, to_port, len) = (number(0)?, number(2)?, usize::from(number(4)?));
        let payload = at + UDP_HEADER_LEN;
        // A super-frame may not say how long it is.
        let end = if matches!(offload, Offload::Segment(_)) { packet.end } else { at + len };
        if end < payload || end > packet.end || from_port == 0 || to_port == 0 {
            return Err(Counter::DropRxBadPacket);
        }
        Ok(Self { from_port, to_port, payload: payload..end })
    }
}

/// An address of the host's world, and what it is for the guest.
type Alias = (SocketAddr, SocketAddr);

#[derive(Debug)]
pub(super) struct Endpoint {
    guest: Guest,
    address: SocketAddr,
    carrier: Carrier,
    /// When it was last used, in seconds.
    used_s: u64,
    is_ready: bool,
    /// An address of the host's world that the guest knows by the gateway's: what it was for the guest.
    alias: Option<Alias>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    endpoint: Option<Box<Endpoint>>,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Udp {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_address: HashMap<SocketAddr, u32>,
    /// By port: when each endpoint was last used.
    used: BTreeMap<PortId, BTreeSet<(u64, u32)>>,
    ready: VecDeque<Id>,
    swept_at: u64,
    gather: Gather,
    turnover: Turnover,
    /// Where datagrams are received.
    room: Vec<u8>,
}

impl Udp {
    /// Takes a guest's packet. `target` is where it goes in the host's world, if the guest may go there unasked.
    pub(super) fn take(
        &mut self,
        guest: Guest,
        packet: &Packet,
        (offload, bytes): (&Offload, &Bytes<'_>),
        target: Result<IpAddr, Counter>,
        world: &mut Surroundings<'_>,
    ) -> Result<(), Counter> {
        let Header { from_port, to_port, payload } = Header::parse(bytes.head(), packet, offload)?;
        let address = SocketAddr::new(packet.from, from_port);
        let known = SocketAddr::new(packet.to, to_port);
        let segment = if let Offload::Segment(gso) = offload { Some(gso.size) } else { None };
        if let Some(way) = world.forwards.way_back(guest, (address, known), target.ok(), world.now) {
            let how = Sending { segment, from: way.from, hop_limit: Some(packet.passed_on()) };
            return carrier::send(way.fd, &mut self.gather, (bytes, payload), &way.to, how).map_err(carrier::counter);
        }
        let target = SocketAddr::new(target?, to_port);
        let index = match self.by_address.get(&address) {
            Some(&index) => index,
            None => self.open(guest, address, world)?,
        };
        self.touch(index, world.now);
        let Self { slots, gather, .. } = self;
        let Some(endpoint) = slots[index as usize].endpoint.as_mut() else { return Ok(()) };
        if endpoint.guest.port != guest.port {
            return Err(Counter::DropRxForbidden);
        }
        endpoint.guest = guest;
        if target.ip() != packet.to {
            endpoint.alias = Some((target, known));
        }
        let load = Load { packet, bytes, part: payload, segment };
        let Endpoint { carrier, alias, .. } = &mut **endpoint;
        carrier.send(guest, (&load, &target), gather, world, |world, lost, payload| {
            original((address.port(), *alias), lost, payload, world.policy)
        })
    }

    fn open(&mut self, guest: Guest, address: SocketAddr, world: &mut Surroundings<'_>) -> Result<u32, Counter> {
        world.efforts.is_dear = true;
        let used = self.used.get(&guest.port);
        if used.is_some_and(|used| used.len() >= PER_GUEST_MAX) || self.by_address.len() >= ENDPOINTS_MAX {
            let oldest = used.and_then(|used| used.first()).map(|(_, index)| *index);
            self.remove(oldest.ok_or(Counter::DropRxFlowLimit)?);
        }
        let has = |udp: &Self| udp.used.get(&guest.port).map_or(0, BTreeSet::len);
        let made = socket(&address, has(self), world).or_else(|| {
            // There are too many of something: the guest's oldest may give it up.
            let (_, oldest) = *self.used.get(&guest.port)?.first()?;
            self.remove(oldest);
            socket(&address, has(self), world)
        });
        let carrier = made.ok_or(Counter::DropRxFlowLimit)?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = Id { index, generation: slot.generation };
        if world.poller.add_socket(&carrier.fd, id.token(Kind::Udp)).is_err() {
            self.free.push(index);
            return Err(Counter::DropRxFlowLimit);
        }
        let used_s = world.now / SECOND;
        let endpoint = Endpoint { guest, address, carrier, used_s, is_ready: false, alias: None };
        slot.endpoint = Some(Box::new(endpoint));
        self.by_address.insert(address, index);
        self.turnover.opened += 1;
        self.used.entry(guest.port).or_default().insert((used_s, index));
        Ok(index)
    }

    fn touch(&mut self, index: u32, now: u64) {
        let Some(endpoint) = self.slots[index as usize].endpoint.as_mut() else { return };
        let now_s = now / SECOND;
        if endpoint.used_s != now_s
            && let Some(used) = self.used.get_mut(&endpoint.guest.port)
        {
            used.remove(&(endpoint.used_s, index));
            used.insert((now_s, index));
            endpoint.used_s = now_s;
        }
    }

    /// Forgets an endpoint, and returns it: its socket is closed when it is dropped.
    fn remove(&mut self, index: u32) -> Option<Box<Endpoint>> {
        let slot = &mut self.slots[index as usize];
        let endpoint = slot.endpoint.take()?;
        slot.generation = Id::next_generation(slot.generation);
        self.free.push(index);
        self.by_address.remove(&endpoint.address);
        self.turnover.closed += 1;
        if let Some(used) = self.used.get_mut(&endpoint.guest.port) {
            used.remove(&(endpoint.used_s, index));
            if used.is_empty() {
                self.used.remove(&endpoint.guest.port);
            }
        }
        Some(endpoint)
    }

    /// Something has come to an endpoint, or has become of what it sent.
    pub(super) fn event(&mut self, id: Id, ready: Ready, world: &mut Surroundings<'_>) {
        let Some(slot) = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation) else {
            return;
        };
        let Some(endpoint) = &mut slot.endpoint else { return };
        world.efforts.note(endpoint.guest.port);
        if ready.failed {
            let Endpoint { guest, address, carrier, alias, .. } = &**endpoint;
            carrier.hear(*guest, address.ip(), world, |world, lost, payload| {
                original((address.port(), *alias), lost, payload, world.policy)
            });
        }
        if !std::mem::replace(&mut endpoint.is_ready, true) {
            self.ready.push_back(id);
        }
    }

    /// Whether any endpoint may have something for its guest.
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
            let Some(endpoint) = slot.endpoint.as_mut().filter(|_| slot.generation == id.generation) else { continue };
            self.room.resize(RECEIVED_MAX, 0);
            world.efforts.note(endpoint.guest.port);
            let has_more = read(endpoint, &mut self.room, world);
            endpoint.is_ready = has_more;
            if has_more {
                self.ready.push_back(id);
            }
            self.touch(id.index, world.now);
        }
    }

    /// Ends what was not used for long.
    pub(super) fn sweep(&mut self, now: u64) {
        self.swept_at = now;
        let limit = now.saturating_sub(IDLE_NS) / SECOND;
        for port in self.used.keys().copied().collect::<Vec<_>>() {
            while let Some((_, index)) =
                self.used.get(&port).and_then(|used| used.first()).copied().filter(|(used_s, _)| *used_s < limit)
            {
                self.remove(index);
            }
        }
    }

    /// When [`Self::sweep`] is due next.
    pub(super) fn due(&self) -> Option<u64> {
        (!self.by_address.is_empty()).then_some(self.swept_at + SWEEP_NS)
    }

    /// How many endpoints there have been since this was last asked.
    pub(super) fn turnover(&mut self) -> Turnover {
        std::mem::take(&mut self.turnover)
    }

    /// A port has gone. Returns its endpoints.
    pub(super) fn port_ended(&mut self, port: PortId) -> Vec<Endpoint> {
        let its: Vec<u32> = self.used.get(&port).into_iter().flatten().map(|(_, index)| *index).collect();
        its.into_iter().filter_map(|index| self.remove(index).map(|endpoint| *endpoint)).collect()
    }
}

/// A socket for an endpoint of a guest that has so many, if there can be one more.
fn socket(address: &SocketAddr, has: usize, world: &Surroundings<'_>) -> Option<Carrier> {
    let ticket = world.sockets.take(has)?;
    Some(Carrier::new(net::datagram_socket(address).ok()?, ticket))
}

/// Reads what has come to an endpoint. Returns whether there may be more.
fn read(endpoint: &Endpoint, room: &mut [u8], world: &mut Surroundings<'_>) -> bool {
    for _ in 0..READS_MAX {
        match net::receive_datagrams(&endpoint.carrier.fd, room) {
            Ok(received) => {
                if let Some(from) = as_guest_knows(endpoint.alias, received.from, world.policy) {
                    deliver((from, endpoint.address), endpoint.guest.mac, &received, &room[..received.len], world);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // What became of one that was sent, which is told elsewhere.
            Err(_) => {}
        }
    }
    true
}

/// Makes frames of datagrams for a guest, who has this MAC address.
pub(super) fn deliver(
    (from, to): (SocketAddr, SocketAddr),
    to_mac: MacAddr,
    received: &Received,
    bytes: &[u8],
    world: &mut Surroundings<'_>,
) {
    let ends = Ends { mac: world.gateway_mac, to_mac, from: from.ip(), to: to.ip() };
    let ports = (from.port(), to.port());
    let segment = received.segment.map_or(bytes.len(), usize::from).clamp(1, bytes.len().max(1));
    let headers = ends.len() - ethernet::HEADER_LEN + UDP_HEADER_LEN;
    if headers + segment <= world.mtu.into() {
        let segment = (segment < bytes.len()).then_some(segment as u16);
        return one_frame(&ends, ports, bytes, segment, world);
    }
    // The kernel has put them together; for the guest each is cut again.
    for datagram in bytes.chunks(segment) {
        *world.packets = world.packets.wrapping_add(1);
        let mut packet = udp_header(&ends, ports, datagram.len()).to_vec();
        packet.extend_from_slice(datagram);
        checksum::complete(&mut packet, PartialChecksum { start: 0, offset: UDP_CHECKSUM });
        let (id, out) = (*world.packets, &mut *world.out);
        fragments::cut(&ends, UDP, &packet, world.mtu.into(), id, |frame| out.push(VnetHeader::default(), frame));
    }
}

/// A header with the sum of the pseudo-header for a checksum.
fn udp_header(ends: &Ends, (from, to): (u16, u16), len: usize) -> [u8; UDP_HEADER_LEN] {
    let payload = UDP_HEADER_LEN + len;
    let mut header = [0; UDP_HEADER_LEN];
    let fields = [from, to, payload as u16, ends.pseudo_sum(UDP, payload)];
    header.chunks_mut(2).zip(fields).for_each(|(place, field)| place.copy_from_slice(&field.to_be_bytes()));
    header
}

/// A frame of one datagram, or of several that are `segment` bytes long.
pub(super) fn one_frame(
    ends: &Ends,
    ports: (u16, u16),
    bytes: &[u8],
    segment: Option<u16>,
    world: &mut Surroundings<'_>,
) {
    let network = ends.len();
    let mut frame = world.out.buffer();
    frame.resize(network, 0);
    ends.emit(UDP, HOP_LIMIT, UDP_HEADER_LEN + bytes.len(), &mut frame);
    frame.extend_from_slice(&udp_header(ends, ports, bytes.len()));
    frame.extend_from_slice(bytes);
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: if segment.is_some() { GSO_UDP_L4 } else { GSO_NONE },
        hdr_len: if segment.is_some() { (network + UDP_HEADER_LEN) as u16 } else { 0 },
        gso_size: segment.unwrap_or(0),
        csum_start: network as u16,
        csum_offset: UDP_CHECKSUM,
    };
    world.out.push(vnet, frame);
}

/// What a lost datagram was for the guest, who sent it from this port.
fn original((port, alias): (u16, Option<Alias>), lost: &Lost, payload: &[u8], policy: &Policy) -> Option<Original> {
    let to = as_guest_knows(alias, lost.to, policy)?;
    let fields = [port, to.port(), (UDP_HEADER_LEN + payload.len()) as u16, 0].map(u16::to_be_bytes);
    Some((to.ip(), UDP, [fields.as_flattened(), payload].concat()))
}

/// The sender's address as the guest knows it. None: it may not know of it.
fn as_guest_knows(alias: Option<Alias>, from: SocketAddr, policy: &Policy) -> Option<SocketAddr> {
    if let Some((real, known)) = alias
        && real == from
    {
        return Some(known);
    }
    if Some(from.ip()) == policy.loopback(from.ip()) {
        return Some(SocketAddr::new(policy.gateway(from.ip())?, from.port()));
    }
    (!from.ip().is_loopback()).then_some(from)
}
