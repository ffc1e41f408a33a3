//! What we offer a driver, and what it makes of it.
//!
//! Bits are those of virtio 1.3, sections 5.1.3 and 6, and of the vhost-user specification.

use crate::config::{Mtu, Network, Offload, QUEUE_PAIRS_MAX};
use crate::frame::offload::Offloads;

/// Rings of a port: its pairs and the control queue.
pub const RINGS_MAX: usize = 2 * QUEUE_PAIRS_MAX as usize + 1;

const _: () = assert!(RINGS_MAX <= 64, "vhost-user-backend keeps rings in a 64-bit mask");

macro_rules! bits {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal,)+) => {
        $($(#[doc = $doc])+ pub const $name: u64 = 1 << $bit;)+

        /// The names of the features in `bits`, in the specification's words, for people.
        pub fn names(bits: u64) -> String {
            let known: &[(u64, &str)] = &[$(($name, stringify!($name)),)+];
            let mut names: Vec<String> =
                known.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
            let unknown = known.iter().fold(bits, |left, (bit, _)| left & !bit);
            if unknown != 0 {
                names.push(format!("unknown {unknown:#x}"));
            }
            names.join(" ")
        }
    };
}

bits! {
    /// The driver may leave a checksum to us.
    CSUM = 0,
    /// The driver takes frames whose checksum is left to it.
    GUEST_CSUM = 1,
    /// We tell the driver the largest MTU.
    MTU = 3,
    /// We give the driver a MAC address.
    MAC = 5,
    /// The driver takes TCP/IPv4 super-frames.
    GUEST_TSO4 = 7,
    /// The driver takes TCP/IPv6 super-frames.
    GUEST_TSO6 = 8,
    /// The driver takes super-frames with ECN.
    GUEST_ECN = 9,
    /// The driver may send TCP/IPv4 super-frames.
    HOST_TSO4 = 11,
    /// The driver may send TCP/IPv6 super-frames.
    HOST_TSO6 = 12,
    /// The driver may send super-frames with ECN.
    HOST_ECN = 13,
    /// A received frame may fill several buffers.
    MRG_RXBUF = 15,
    /// The configuration has a status field.
    STATUS = 16,
    /// There is a control queue.
    CTRL_VQ = 17,
    /// The control queue sets the receive mode.
    CTRL_RX = 18,
    /// The control queue filters VLANs.
    CTRL_VLAN = 19,
    /// The control queue has further receive modes.
    CTRL_RX_EXTRA = 20,
    /// The driver announces itself when asked.
    GUEST_ANNOUNCE = 21,
    /// There may be several queue pairs.
    MQ = 22,
    /// The control queue sets the MAC address.
    CTRL_MAC_ADDR = 23,
    /// A descriptor may point to a table of descriptors.
    INDIRECT_DESC = 28,
    /// Notifications are asked for by index.
    EVENT_IDX = 29,
    /// vhost-user: there are protocol features, and rings start disabled.
    PROTOCOL_FEATURES = 30,
    /// Virtio 1.0 or later.
    VERSION_1 = 32,
    /// Buffers are used in the order in which they were made available.
    IN_ORDER = 35,
    /// The driver takes UDP/IPv4 super-frames.
    GUEST_USO4 = 54,
    /// The driver takes UDP/IPv6 super-frames.
    GUEST_USO6 = 55,
    /// The driver may send UDP super-frames.
    HOST_USO = 56,
}

/// What a port is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Feature bits: [`OFFERED`] without what the user has turned off, and MTU when there is one.
    pub features: u64,
    /// The largest MTU in bytes, when the user has set one.
    pub mtu: Option<u16>,
    /// Queue pairs that the configuration tells of.
    pub pairs_told: u16,
}

impl Offer {
    /// Everything but what is in `masked`, and what cannot be without that; one queue pair.
    pub fn new(masked: u64, mtu: Option<u16>) -> Self {
        let mtu_bit = if mtu.is_some() { MTU } else { 0 };
        Self { features: without_dangling((OFFERED | mtu_bit) & !masked), mtu, pairs_told: 1 }
    }

    /// What a network's guests are offered.
    pub fn to_guests_of(network: &Network) -> Self {
        let off = |&&offload: &&Offload| !network.offload.contains(offload);
        let masked = Offload::ALL.iter().filter(off).fold(0, |bits, &offload| bits | offload_bits(offload));
        Self { pairs_told: network.queue_pairs.get(), ..Self::new(masked, network.mtu.map(Mtu::bytes)) }
    }
}

fn offload_bits(offload: Offload) -> u64 {
    match offload {
        Offload::Csum => CSUM | GUEST_CSUM,
        Offload::Tso => HOST_TSO4 | HOST_TSO6 | GUEST_TSO4 | GUEST_TSO6,
        Offload::Uso => HOST_USO | GUEST_USO4 | GUEST_USO6,
        Offload::Ecn => HOST_ECN | GUEST_ECN,
    }
}

/// Everything that every port is offered, unless the user turns some of it off. MTU is added when one is set.
pub const OFFERED: u64 = CSUM
    | GUEST_CSUM
    | MAC
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | STATUS
    | CTRL_VQ
    | CTRL_RX
    | CTRL_VLAN
    | CTRL_RX_EXTRA
    | GUEST_ANNOUNCE
    | MQ
    | CTRL_MAC_ADDR
    | INDIRECT_DESC
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | VERSION_1
    | IN_ORDER
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO;

/// Which feature cannot be had without which (virtio 1.3, 5.1.3.1): any of the second will do.
const NEEDS: &[(u64, u64)] = &[
    (GUEST_TSO4, GUEST_CSUM),
    (GUEST_TSO6, GUEST_CSUM),
    (GUEST_USO4, GUEST_CSUM),
    (GUEST_USO6, GUEST_CSUM),
    (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
    (HOST_TSO4, CSUM),
    (HOST_TSO6, CSUM),
    (HOST_USO, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
    (CTRL_RX, CTRL_VQ),
    (CTRL_RX_EXTRA, CTRL_VQ),
    (CTRL_VLAN, CTRL_VQ),
    (GUEST_ANNOUNCE, CTRL_VQ),
    (MQ, CTRL_VQ),
    (CTRL_MAC_ADDR, CTRL_VQ),
];

/// `bits` without those that need others which are not among them.
pub fn without_dangling(mut bits: u64) -> u64 {
    // Twice: ECN needs TSO, which needs a checksum.
    for _ in 0..2 {
        for (feature, needed) in NEEDS {
            if bits & needed == 0 {
                bits &= !feature;
            }
        }
    }
    bits
}

/// What was negotiated, in the terms in which a ring and a frame are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Length in bytes of the virtio-net header (virtio 1.3, 5.1.6.1): 12, or 10 for a legacy driver that merges
    /// nothing.
    pub header_len: usize,
    /// A received frame may fill several buffers.
    pub mergeable: bool,
    /// Notifications are asked for by index.
    pub event_idx: bool,
    /// A descriptor may point to a table.
    pub indirect: bool,
    /// There may be several pairs.
    pub mq: bool,
    /// There is a control queue.
    pub ctrl_vq: bool,
    /// The control queue filters VLANs.
    pub ctrl_vlan: bool,
    /// The driver announces itself when asked.
    pub announce: bool,
    /// What the driver may ask of us when it sends.
    pub sends: Offloads,
    /// What the driver takes when it receives.
    pub takes: Offloads,
}

impl Negotiated {
    /// Reads the features that the driver has accepted. Those that need others without having them do not count.
    pub fn new(acked: u64) -> Self {
        // QEMU serves the control queue itself and so leaves CTRL_VQ out of what it passes on, but not MQ.
        let mq = acked & MQ != 0;
        let acked = without_dangling(acked);
        let has = |bit: u64| acked & bit != 0;
        Self {
            header_len: if has(VERSION_1) || has(MRG_RXBUF) { 12 } else { 10 },
            mergeable: has(MRG_RXBUF),
            event_idx: has(EVENT_IDX),
            indirect: has(INDIRECT_DESC),
            mq,
            ctrl_vq: has(CTRL_VQ),
            ctrl_vlan: has(CTRL_VLAN),
            announce: has(GUEST_ANNOUNCE),
            sends: Offloads {
                checksum: has(CSUM),
                tso4: has(HOST_TSO4),
                tso6: has(HOST_TSO6),
                ecn: has(HOST_ECN),
                uso4: has(HOST_USO),
                uso6: has(HOST_USO),
            },
            takes: Offloads {
                checksum: has(GUEST_CSUM),
                tso4: has(GUEST_TSO4),
                tso6: has(GUEST_TSO6),
                ecn: has(GUEST_ECN),
                uso4: has(GUEST_USO4),
                uso6: has(GUEST_USO6),
            },
        }
    }
}

/// The number of the control queue's ring (virtio 1.3, 5.1.2): with MQ behind the pairs that the driver was told of,
/// else behind one.
pub fn control_ring_index(negotiated: &Negotiated, pairs_told: u16) -> Option<usize> {
    match (negotiated.ctrl_vq, negotiated.mq) {
        (false, _) => None,
        (true, false) => Some(2),
        (true, true) => Some(2 * usize::from(pairs_told)),
    }
}
