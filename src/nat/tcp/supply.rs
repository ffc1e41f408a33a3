//! What connections have for their guests: from the kernel's receive buffers straight into the guests' own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::headers::{Ends, HOP_LIMIT, NETWORK_MAX};
use super::super::id::Id;
use super::connection::{CHECKSUM, Connection, Key, bare};
use super::mirror::Fate;
use super::segment::{HEADER_LEN, Header, SYN_OPTIONS_MAX};
use super::{Surroundings, Tcp};
use crate::frame::ethernet;
use crate::frame::ip::TCP;
use crate::frame::vnet::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, VnetHeader};
use crate::ring::{Gather, InPlace, VNET_HEADER_READ};
use crate::switch::PortId;
use crate::sys::net;

/// The longest packet.
const PACKET_MAX: usize = 65_535;
/// Without `SO_PEEK_OFF`: bytes that may be on their way to a guest, which are read again with each frame.
pub(super) const REREAD_MAX: u32 = 512 * 1024;
const SCRAP_LEN: usize = 16 * 1024;

/// What the next frame of data needs.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub(super) id: Id,
    /// For which port it is.
    pub port: PortId,
    /// Its [`flow_hash`].
    pub flow: u32,
    /// How long it may be.
    pub len: usize,
}

/// What came of an offer that was taken.
#[derive(Clone, Copy, Debug)]
pub enum Supply {
    /// A frame of this length is in the room, for a receiver that does what its virtio-net header says.
    Frame(usize, [u8; VNET_HEADER_READ]),
    /// There was nothing.
    Nothing,
}

/// How what the guest has not acknowledged is left out when the kernel is asked for more.
#[derive(Debug)]
pub(super) struct Peeks {
    /// Whether the kernel does it, for IPv4 and IPv6.
    has_offset: [bool; 2],
    /// Where it is read to if not.
    scrap: Vec<u8>,
}

impl Peeks {
    pub(super) fn new(is_wanted: bool) -> Self {
        let any: [SocketAddr; 2] = [(Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::UNSPECIFIED, 0).into()];
        let has_offset = any.map(|address| is_wanted && net::has_peek_offset(&address).unwrap_or(false));
        let scrap = if has_offset == [true; 2] { Vec::new() } else { vec![0; SCRAP_LEN] };
        Self { has_offset, scrap }
    }

    /// Whether the kernel does it for such a connection.
    pub(super) fn has_offset(&self, key: &Key) -> bool {
        self.has_offset[usize::from(key.guest.is_ipv6())]
    }
}

impl Tcp {
    /// Whether a connection has something for its guest.
    pub(in super::super) fn has_any(&self) -> bool {
        self.lines.has_any()
    }

    /// The next connection in line that has something for its guest.
    pub(in super::super) fn offer(&mut self, world: &mut Surroundings<'_>) -> Option<Offer> {
        while let Some(id) = self.lines.next() {
            let mut gather = std::mem::take(&mut self.gather);
            let mut offer = None;
            if let Some(connection) = self.get(id) {
                connection.is_in_line = false;
                let header = connection.ends(world.gateway_mac).len() + HEADER_LEN;
                if let Some(wanted) = connection.wanted() {
                    let len = header + (wanted.len as usize).min(PACKET_MAX);
                    offer = Some(Offer { id, port: connection.guest.port, flow: connection.flow, len });
                }
                if connection.mirror.ends_again() {
                    offer = None;
                    Self::end(connection, &mut gather, world);
                }
            }
            self.gather = gather;
            if offer.is_some() {
                return offer;
            }
            self.settle(id, Fate::Lives, world);
        }
        None
    }

    fn end(connection: &mut Connection, gather: &mut Gather, world: &mut Surroundings<'_>) {
        let (ends, key) = (connection.ends(world.gateway_mac), connection.key);
        let (mirror, mut kernel) = connection.split(gather);
        let header = mirror.ends(&mut kernel, world.now);
        bare(&key, &ends, &header, world.out);
    }

    /// The guest has no room for what it was offered: it is offered again when it may have.
    pub(in super::super) fn stall(&mut self, offer: &Offer) {
        self.lines.stall(offer.port);
        if let Some(connection) = self.get(offer.id)
            && !std::mem::replace(&mut connection.is_in_line, true)
        {
            self.lines.join(offer.port, offer.id);
        }
    }

    /// All guests may have room again.
    pub(in super::super) fn go_on(&mut self) {
        self.lines.all_go_on();
    }

    /// Puts the next frame of an offer into the room that was lent for it, in which a frame may have `room` bytes.
    pub(in super::super) fn supply(
        &mut self,
        offer: &Offer,
        in_place: &mut InPlace,
        room: usize,
        world: &mut Surroundings<'_>,
    ) -> Supply {
        let mut gather = std::mem::take(&mut self.gather);
        let mut supply = Supply::Nothing;
        let slot = self.slots.get_mut(offer.id.index as usize).filter(|slot| slot.generation == offer.id.generation);
        if let Some(connection) = slot.and_then(|slot| slot.connection.as_mut()) {
            let tools = (&mut gather, &mut self.peeks);
            let fate = match Self::fill(connection, in_place, room, tools, world) {
                Ok(filled) => {
                    supply = filled;
                    Fate::Lives
                }
                Err(fate) => fate,
            };
            self.settle(offer.id, fate, world);
        }
        self.gather = gather;
        supply
    }

    fn fill(
        connection: &mut Connection,
        in_place: &mut InPlace,
        room: usize,
        (gather, peeks): (&mut Gather, &mut Peeks),
        world: &mut Surroundings<'_>,
    ) -> Result<Supply, Fate> {
        let ends = connection.ends(world.gateway_mac);
        let header_len = ends.len() + HEADER_LEN;
        let Some(wanted) = connection.wanted() else { return Ok(Supply::Nothing) };
        let mss = usize::from(connection.mirror.mss().min(connection.own_mss(world.mtu)));
        let most = PACKET_MAX - (header_len - ethernet::HEADER_LEN);
        let most = most.min(wanted.len as usize).min(room.saturating_sub(header_len));
        // Whole segments, if there is more than one.
        let most = if most > mss { most - most % mss } else { most };
        if most == 0 {
            return Ok(Supply::Nothing);
        }
        let has_offset = connection.has_offset;
        let reread = if has_offset { 0 } else { wanted.skip as usize };
        if has_offset && connection.peek_at != Some(wanted.skip) {
            net::set_peek_offset(&connection.fd, wanted.skip).map_err(|_| Fate::Failed)?;
            connection.peek_at = Some(wanted.skip);
        }
        let scrap = (peeks.scrap.as_mut_slice(), reread);
        let read = match net::peek_in_place(&connection.fd, in_place, scrap, header_len, most) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.mirror.is_readable = false;
                return Ok(Supply::Nothing);
            }
            Err(error) if net::is_out_of_memory(&error) => {
                connection.mirror.reads_later(world.now);
                return Ok(Supply::Nothing);
            }
            Err(_) => return Err(Fate::Failed),
        };
        let len = read.saturating_sub(reread);
        // A read ends before what is urgent, too, and where there are too many pieces.
        let is_all = len < most && unread(connection)? <= wanted.skip as usize + len;
        let is_end = is_all && (connection.is_last || read == 0);
        // If that was all, the kernel tells of more; of the end it has told already.
        connection.mirror.is_readable = !is_all && len > 0;
        if len == 0 {
            if is_end {
                Self::end(connection, gather, world);
            }
            connection.reads_again = !is_all;
            return Ok(Supply::Nothing);
        }
        connection.peek_at = Some(wanted.skip + len as u32);
        let key = connection.key;
        let (mirror, mut kernel) = connection.split(gather);
        let header = mirror.sends(len as u32, is_end, &mut kernel, world.now);
        Ok(put_header(&key, &ends, &header, in_place, len, mss))
    }
}

/// How many bytes have come that were not taken away.
fn unread(connection: &Connection) -> Result<usize, Fate> {
    net::unread(&connection.fd).map_err(|_| Fate::Failed)
}

/// Writes a frame's headers, which has `len` bytes of payload in its place already.
fn put_header(key: &Key, ends: &Ends, header: &Header, in_place: &mut InPlace, len: usize, mss: usize) -> Supply {
    let mut head = [0; NETWORK_MAX + HEADER_LEN];
    let (network, payload) = (ends.len(), HEADER_LEN + len);
    ends.emit(TCP, HOP_LIMIT, payload, &mut head);
    let mut tcp = [0; HEADER_LEN + SYN_OPTIONS_MAX];
    header.emit(key.remote.port(), key.guest.port(), &mut tcp);
    tcp[usize::from(CHECKSUM)..][..2].copy_from_slice(&ends.pseudo_sum(TCP, payload).to_be_bytes());
    head[network..network + HEADER_LEN].copy_from_slice(&tcp[..HEADER_LEN]);
    in_place.set_header(&head[..network + HEADER_LEN]);
    let gso_type = match () {
        () if len <= mss => GSO_NONE,
        () if key.guest.is_ipv4() => GSO_TCPV4,
        () => GSO_TCPV6,
    };
    let is_super = gso_type != GSO_NONE;
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso_type,
        hdr_len: if is_super { (network + HEADER_LEN) as u16 } else { 0 },
        gso_size: if is_super { mss as u16 } else { 0 },
        csum_start: network as u16,
        csum_offset: CHECKSUM,
    };
    let [vnet @ .., _, _] = vnet.emit(0);
    Supply::Frame(network + HEADER_LEN + len, vnet)
}
