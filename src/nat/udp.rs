//! UDP: the endpoints of guests.
//!
//! Theory of operation. Each address and port of a guest's that it sends from has one socket, bound to the same port of
//! the host if that is free, and connected to nobody. So the guest is the same to all that it talks to, and whoever
//! knows of the endpoint may answer (RFC 4787, REQ-1; endpoint-independent filtering, REQ-8). The rest is what
//! [`super::endpoints`] says. Nobody's endpoint gives way to another guest's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::OwnedFd;

use super::carrier::{self, Departure, Load, Original};
use super::endpoints::{Bounds, Endpoint, Endpoints, SECOND, Used};
use super::fragments;
use super::headers::{Ends, HOP_LIMIT};
use super::id::{Id, Kind};
use super::out::Guest;
use super::packet::Packet;
use super::policy::Policy;
use super::tcp::Surroundings;
use crate::frame::checksum::{self, PartialChecksum, UDP_CHECKSUM};
use crate::frame::ethernet::{self, MacAddr, be16};
use crate::frame::ip::UDP;
use crate::frame::offload::{Offload, UDP_HEADER_LEN};
use crate::frame::vnet::{F_NEEDS_CSUM, GSO_NONE, GSO_UDP_L4, VnetHeader};
use crate::metrics::Counter;
use crate::ring::Bytes;
use crate::switch::PortId;
use crate::sys::datagrams::{Received, Sending};
use crate::sys::errqueue::Lost;
use crate::sys::net;

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

/// An address and a port that a guest sends from.
#[derive(Debug)]
pub(super) struct Source {
    address: SocketAddr,
    /// An address of the host's world that the guest knows by the gateway's: what it was for the guest.
    alias: Option<Alias>,
}

impl Endpoint for Source {
    type Key = SocketAddr;
    const KIND: Kind = Kind::Udp;
    /// Five minutes: RFC 4787, REQ-5.
    const BOUNDS: Bounds = Bounds { per_guest: 32_768, all: 131_072, idle_ns: 300 * SECOND, sweep_ns: 10 * SECOND };

    fn new(address: SocketAddr) -> Self {
        Self { address, alias: None }
    }

    fn key(&self) -> SocketAddr {
        self.address
    }

    fn address(&self) -> IpAddr {
        self.address.ip()
    }

    fn socket(address: &SocketAddr) -> io::Result<OwnedFd> {
        net::datagram_socket(address)
    }

    fn gives_way(used: &Used, port: PortId) -> Option<u32> {
        used.oldest(port)
    }

    fn will_send(&mut self, packet: &Packet, to: &SocketAddr) {
        if to.ip() != packet.to {
            self.alias = Some((*to, SocketAddr::new(packet.to, to.port())));
        }
    }

    fn original(&self, lost: &Lost, payload: &[u8], policy: &Policy) -> Option<Original> {
        let to = self.as_guest_knows(lost.to, policy)?;
        let len = (UDP_HEADER_LEN + payload.len()) as u16;
        let fields = [self.address.port(), to.port(), len, 0].map(u16::to_be_bytes);
        Some((to.ip(), UDP, [fields.as_flattened(), payload].concat()))
    }

    fn deliver(&self, guest: Guest, received: &Received, bytes: &mut [u8], world: &mut Surroundings<'_>) {
        if let Some(from) = self.as_guest_knows(received.from, world.policy) {
            deliver((from, self.address), guest.mac, received, bytes, world);
        }
    }
}

impl Source {
    /// Another's address as the guest knows it. None: it may not know of it.
    fn as_guest_knows(&self, other: SocketAddr, policy: &Policy) -> Option<SocketAddr> {
        if let Some((real, known)) = self.alias
            && real == other
        {
            return Some(known);
        }
        if Some(other.ip()) == policy.loopback(other.ip()) {
            return Some(SocketAddr::new(policy.gateway(other.ip())?, other.port()));
        }
        (!other.ip().is_loopback()).then_some(other)
    }
}

/// See the module's theory of operation.
pub(super) type Udp = Endpoints<Source>;

impl Udp {
    /// Takes a guest's packet. `target` is where it goes in the host's world, if the guest may go there unasked. A
    /// datagram that stands alone is not sent yet: it may go with others of its endpoint's, whose this is.
    pub(super) fn take(
        &mut self,
        guest: Guest,
        packet: &Packet,
        (offload, bytes): (&Offload, &Bytes<'_>),
        target: Result<IpAddr, Counter>,
        world: &mut Surroundings<'_>,
    ) -> Result<Option<(Id, Departure)>, Counter> {
        let Header { from_port, to_port, payload } = Header::parse(bytes.head(), packet, offload)?;
        let address = SocketAddr::new(packet.from, from_port);
        let known = SocketAddr::new(packet.to, to_port);
        let segment = if let Offload::Segment(gso) = offload { Some(gso.size) } else { None };
        if let Some(way) = world.forwards.way_back(guest, (address, known), target.ok(), world.now) {
            let how = Sending { segment, from: way.from, hop_limit: Some(packet.passed_on()) };
            carrier::send(way.fd, &mut self.gather, (bytes, payload), &way.to, how).map_err(carrier::counter)?;
            return Ok(None);
        }
        let to = SocketAddr::new(target?, to_port);
        if segment.is_some() {
            self.send(guest, address, (&Load { packet, bytes, part: payload, segment }, &to), world)?;
            return Ok(None);
        }
        let id = self.prepare(guest, address, (packet, &to), world)?;
        Ok(Some((id, Departure { frame: 0, packet: *packet, from_port, part: (payload.start, payload.end), to })))
    }
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
