//! What a sender leaves to us, checked against the frame; what a receiver takes; and what lies between them.
//!
//! Virtio 1.3, 5.1.6.2 (sending) and 5.1.6.4 (receiving).

use super::checksum::{PartialChecksum, UDP_CHECKSUM};
use super::ethernet::{self, TYPE_IPV4, TYPE_IPV6};
use super::ip::{self, Layers, TCP, UDP, Version};
use super::vnet::{F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHeader};

/// The least payload of a segment where there are more than [`SMALL_SEGMENTS_MAX`] of them, in bytes: what Linux's TCP
/// never goes below. Without a bound a guest could have us make 65,000 frames of one.
pub const SEGMENT_SIZE_MIN: usize = 48;
/// Segments that may be smaller: as many as Linux makes of one UDP super-frame, of whatever size the program chose.
pub const SMALL_SEGMENTS_MAX: usize = 128;
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: u16 = 16;
/// Bytes of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;

/// The offloads that one side has negotiated: as a sender what it may ask of us, as a receiver what it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums left to be completed.
    pub checksum: bool,
    /// TCP over IPv4 super-frames.
    pub tso4: bool,
    /// TCP over IPv6 super-frames.
    pub tso6: bool,
    /// Super-frames whose first segment alone carries CWR.
    pub ecn: bool,
    /// UDP over IPv4 super-frames.
    pub uso4: bool,
    /// UDP over IPv6 super-frames.
    pub uso6: bool,
}

impl Offloads {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        // No super-frame without a checksum.
        self.checksum
    }

    fn has(&self, kind: GsoKind) -> bool {
        match kind {
            GsoKind::Tcp4 => self.tso4,
            GsoKind::Tcp6 => self.tso6,
            GsoKind::Udp4 => self.uso4,
            GsoKind::Udp6 => self.uso6,
        }
    }
}

/// What a super-frame is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

/// A super-frame. Offsets in bytes from the start of the frame; each lies inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// What it is made of.
    pub kind: GsoKind,
    /// Payload of each segment, in bytes; not zero.
    pub size: u16,
    /// The first segment alone carries CWR.
    pub ecn: bool,
    /// Where the IP header starts.
    pub network: u16,
    /// Where the transport header starts.
    pub transport: u16,
    /// Where the payload starts.
    pub payload: u16,
}

impl Gso {
    /// Where the transport's checksum is left to be completed.
    pub fn checksum(&self) -> PartialChecksum {
        let offset = match self.kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => TCP_CHECKSUM,
            GsoKind::Udp4 | GsoKind::Udp6 => UDP_CHECKSUM,
        };
        PartialChecksum { start: self.transport, offset }
    }

    /// Segments that a frame of `len` bytes is cut into.
    pub fn segments(&self, len: usize) -> usize {
        len.saturating_sub(usize::from(self.payload)).div_ceil(usize::from(self.size).max(1)).max(1)
    }
}

/// What a frame needs of whoever receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// Its checksum completed.
    Checksum(PartialChecksum),
    /// To be cut into segments.
    Segment(Gso),
}

/// What must be done to a frame for a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Nothing: the receiver takes it as it is.
    Whole,
    /// Its checksum must be completed.
    Complete,
    /// It must be cut; with `partial`, the receiver completes the segments' checksums.
    Segment {
        /// See above.
        partial: bool,
    },
}

/// Why a virtio-net header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// A checksum is left to us without CSUM.
    #[error("a checksum is left to the device, but CSUM was not negotiated")]
    ChecksumNotNegotiated,
    /// The checksum does not lie inside the frame, or covers the Ethernet or the IP header.
    #[error("the checksum lies outside of the frame")]
    ChecksumOutside,
    /// A `gso_type` that does not exist or was not negotiated.
    #[error("a super-frame of a type that was not negotiated")]
    TypeNotNegotiated,
    /// A super-frame whose checksum is not left to us.
    #[error("a super-frame whose checksum is not left to the device")]
    SegmentWithoutChecksum,
    /// A super-frame with a segment size of zero, or that would be cut into too many.
    #[error("a super-frame of segments without a size, or of very many small ones")]
    SegmentSize,
    /// The frame's own headers are not those of its `gso_type`.
    #[error("a super-frame whose headers are not those of its type")]
    HeadersMismatch,
}

/// Checks a header against the frame that follows it. `head` is a private copy of the frame's first bytes, up to
/// [`super::FRAME_HEAD_MAX`]; `frame_len` is the length of it all.
///
/// # Errors
/// [`BadHeader`]: the frame is to be dropped.
#[inline]
pub fn validate(
    header: &VnetHeader,
    head: &[u8],
    frame_len: usize,
    negotiated: Offloads,
) -> Result<Offload, BadHeader> {
    if header.flags & F_NEEDS_CSUM == 0 && header.gso_type == GSO_NONE {
        return Ok(Offload::None);
    }
    validate_offload(header, head, frame_len, negotiated)
}

fn validate_offload(
    header: &VnetHeader,
    head: &[u8],
    frame_len: usize,
    negotiated: Offloads,
) -> Result<Offload, BadHeader> {
    if header.flags & F_NEEDS_CSUM == 0 {
        return Err(BadHeader::SegmentWithoutChecksum);
    }
    if !negotiated.checksum {
        return Err(BadHeader::ChecksumNotNegotiated);
    }
    let at = PartialChecksum { start: header.csum_start, offset: header.csum_offset };
    let end = usize::from(at.start) + usize::from(at.offset) + 2;
    // What is written there must be nothing that the switch has judged: not the addresses, not a tag.
    let floor = match ethernet::network(head) {
        Some((TYPE_IPV4, network)) => network + 20,
        Some((TYPE_IPV6, network)) => network + 40,
        Some((_, network)) => network,
        None => return Err(BadHeader::ChecksumOutside),
    };
    if usize::from(at.start) < floor || end > frame_len {
        return Err(BadHeader::ChecksumOutside);
    }
    if header.gso_type == GSO_NONE {
        return Ok(Offload::Checksum(at));
    }
    let layers = ip::layers(head).filter(|layers| !layers.fragment).ok_or(BadHeader::HeadersMismatch)?;
    let gso = super_frame(header, head, &layers)?;
    if !negotiated.has(gso.kind) || (gso.ecn && !negotiated.ecn) {
        return Err(BadHeader::TypeNotNegotiated);
    }
    let ends = layers.ends_at(head).is_some_and(|end| end == frame_len);
    if at != gso.checksum() || usize::from(gso.payload) > frame_len || !ends {
        return Err(BadHeader::HeadersMismatch);
    }
    let (payload, size) = (frame_len - usize::from(gso.payload), usize::from(gso.size));
    if size == 0 || (size < SEGMENT_SIZE_MIN && payload.div_ceil(size) > SMALL_SEGMENTS_MAX) {
        return Err(BadHeader::SegmentSize);
    }
    Ok(Offload::Segment(gso))
}

/// Reads a super-frame's headers: those that `gso_type` says, wholly inside `head`.
fn super_frame(header: &VnetHeader, head: &[u8], layers: &Layers) -> Result<Gso, BadHeader> {
    let ecn = header.gso_type & GSO_ECN != 0;
    let kind = match (header.gso_type & !GSO_ECN, layers.version, layers.protocol) {
        (GSO_TCPV4, Version::V4, TCP) => GsoKind::Tcp4,
        (GSO_TCPV6, Version::V6, TCP) => GsoKind::Tcp6,
        (GSO_UDP_L4, Version::V4, UDP) if !ecn => GsoKind::Udp4,
        (GSO_UDP_L4, Version::V6, UDP) if !ecn => GsoKind::Udp6,
        (GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4, ..) => return Err(BadHeader::HeadersMismatch),
        _ => return Err(BadHeader::TypeNotNegotiated),
    };
    let header_len = match kind {
        GsoKind::Udp4 | GsoKind::Udp6 => UDP_HEADER_LEN,
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            let offset = head.get(layers.transport + 12).ok_or(BadHeader::HeadersMismatch)?;
            let len = usize::from(offset >> 4) * 4;
            if len < 20 {
                return Err(BadHeader::HeadersMismatch);
            }
            len
        }
    };
    let payload = layers.transport + header_len;
    if payload > head.len() {
        return Err(BadHeader::HeadersMismatch);
    }
    // All three are inside `head`, which is far shorter than 64 KiB.
    let (network, transport, payload) = (layers.network as u16, layers.transport as u16, payload as u16);
    Ok(Gso { kind, size: header.gso_size, ecn, network, transport, payload })
}

impl Offload {
    /// The checksum that is left to be completed, if any.
    pub fn checksum(&self) -> Option<PartialChecksum> {
        match self {
            Offload::None => None,
            Offload::Checksum(at) => Some(*at),
            Offload::Segment(gso) => Some(gso.checksum()),
        }
    }

    /// Whether what is left to be completed is nothing but the transport's own checksum. Completing it writes the sum
    /// of any bytes to where the sender says, after the frame was judged: elsewhere that could be an address in ARP, a
    /// port, or a type of ICMPv6. Whoever judges frames by such things must refuse the others. Linux leaves no other
    /// checksums to a device than TCP's and UDP's in whole packets.
    pub fn is_transport_checksum(&self, head: &[u8]) -> bool {
        let Offload::Checksum(at) = self else { return true };
        let Some(layers) = ip::layers(head).filter(|layers| !layers.fragment) else { return false };
        let offset = match layers.protocol {
            TCP => TCP_CHECKSUM,
            UDP => UDP_CHECKSUM,
            _ => return false,
        };
        usize::from(at.start) == layers.transport && at.offset == offset
    }

    /// A header of our own for a receiver that takes the frame as it is. Nothing in it is the sender's word alone.
    #[inline]
    pub fn header(&self) -> VnetHeader {
        match self {
            Self::None => VnetHeader::default(),
            Self::Checksum(at) => VnetHeader {
                flags: F_NEEDS_CSUM,
                csum_start: at.start,
                csum_offset: at.offset,
                ..VnetHeader::default()
            },
            Self::Segment(gso) => {
                let at = gso.checksum();
                let kind = match gso.kind {
                    GsoKind::Tcp4 => GSO_TCPV4,
                    GsoKind::Tcp6 => GSO_TCPV6,
                    GsoKind::Udp4 | GsoKind::Udp6 => GSO_UDP_L4,
                };
                VnetHeader {
                    flags: F_NEEDS_CSUM,
                    gso_type: if gso.ecn { kind | GSO_ECN } else { kind },
                    hdr_len: gso.payload,
                    gso_size: gso.size,
                    csum_start: at.start,
                    csum_offset: at.offset,
                }
            }
        }
    }

    /// What must be done to the frame for a receiver that takes `takes`.
    #[inline]
    pub fn fit(&self, takes: Offloads) -> Fit {
        match self {
            Self::None => Fit::Whole,
            Self::Checksum(_) if takes.checksum => Fit::Whole,
            Self::Checksum(_) => Fit::Complete,
            Self::Segment(gso) if takes.checksum && takes.has(gso.kind) && (takes.ecn || !gso.ecn) => Fit::Whole,
            Self::Segment(_) => Fit::Segment { partial: takes.checksum },
        }
    }
}
