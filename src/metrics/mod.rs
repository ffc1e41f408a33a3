//! Counters: one for every way in which a frame can end.
//!
//! Theory of operation. Each port has one [`PortCounters`], in two halves: one is written by the worker that owns the
//! port, the other by whichever worker gives it frames at the moment. So each has one writer at a time, readers
//! (statistics, tests) may look whenever they like, every counter is a relaxed atomic, and an increment is a plain load
//! and store: no locked instruction on the path of a frame. A reader may see one counter before another of the same
//! frame; sums agree once the traffic has stopped.
//!
//! Directions are the guest's: `tx_` is what the guest sent, `rx_` what it was given. A frame that a guest sends is
//! counted once in `tx_frames` and then ends in exactly one of the sender's `drop_tx_` counters, or in `tx_served`, or
//! is passed to one or more receivers, where each copy ends in `rx_frames` or in exactly one of the receiver's
//! `drop_rx_` counters. A super-frame (TSO, USO) is one frame to its sender; a receiver that takes none counts its
//! segments.

pub mod export;

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// What is counted for a port. The name in statistics is [`Counter::name`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// Every counter, in the order in which statistics print them.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)+];

            /// The counter's name in statistics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Counter::$variant => $name,)+
                }
            }

            /// What the counter counts, one line.
            pub const fn help(self) -> &'static str {
                match self {
                    $(Counter::$variant => concat!($($doc),+),)+
                }
            }
        }
    };
}

counters! {
    /// Frames the guest sent, whatever became of them.
    TxFrames => "tx_frames",
    /// Bytes of those frames, without the virtio-net header.
    TxBytes => "tx_bytes",
    /// Frames sent that were super-frames (TSO or USO).
    TxGsoFrames => "tx_gso_frames",
    /// Frames sent that a service took in: most of them are answered.
    TxServed => "tx_served",
    /// Times a burst of the guest's waited for its receiver to have room.
    TxWaits => "tx_waits",
    /// Frames given to the guest.
    RxFrames => "rx_frames",
    /// Bytes of those frames, without the virtio-net header.
    RxBytes => "rx_bytes",
    /// Frames given that were super-frames, passed whole.
    RxGsoFrames => "rx_gso_frames",
    /// Super-frames that we segmented in software for this guest.
    RxSegmented => "rx_segmented",
    /// Frames whose checksum we completed in software for this guest.
    RxChecksummed => "rx_checksummed",

    /// Sent frames dropped: shorter than an Ethernet header.
    DropTxRunt => "drop_tx_runt",
    /// Sent frames dropped: longer than the largest super-frame.
    DropTxTooLong => "drop_tx_too_long",
    /// Sent frames dropped: the virtio-net header contradicts itself, the frame, or what was negotiated.
    DropTxBadHeader => "drop_tx_bad_header",
    /// Sent frames dropped: the source address is a group address or zero.
    DropTxBadSource => "drop_tx_bad_source",
    /// Sent frames dropped: the destination is a link-local group that bridges do not forward (IEEE 802.1Q 8.6.3).
    DropTxReserved => "drop_tx_reserved",
    /// Sent frames dropped: the destination is behind the port the frame came from.
    DropTxHairpin => "drop_tx_hairpin",
    /// Sent frames dropped: the guest floods more than one burst, or one second, may.
    DropTxFloodLimit => "drop_tx_flood_limit",
    /// Sent frames dropped: no other port is on the network.
    DropTxAlone => "drop_tx_alone",
    /// Sent frames dropped: the ring they were sent on is disabled, or the port is on its way out.
    DropTxDisabled => "drop_tx_disabled",
    /// Frames from the uplink dropped: the kernel had more of them than fits, or than it could express.
    DropTxTruncated => "drop_tx_truncated",
    /// Sent frames dropped: only a server or router sends such (DHCP, router advertisement, redirect).
    DropTxRogueServer => "drop_tx_rogue_server",
    /// Sent frames dropped: they claim an address of the network's server.
    DropTxSpoofedServer => "drop_tx_spoofed_server",
    /// Sent frames dropped: a request to a service that contradicts itself, or asks what the guest may not ask.
    DropTxBadRequest => "drop_tx_bad_request",
    /// Sent frames dropped: a request for an address by a port that has all it may have.
    DropTxLeaseShare => "drop_tx_lease_share",
    /// Sent frames dropped: a request for an address when none is left.
    DropTxPoolEmpty => "drop_tx_pool_empty",
    /// Frames from the uplink dropped: the kernel's queue towards us was full.
    DropTxQueueFull => "drop_tx_queue_full",
    /// Frames from the uplink dropped: their source is one of our guests', so they have come back.
    DropTxReflected => "drop_tx_reflected",
    /// Sent frames dropped: the guest asks services more often than it may.
    DropTxRequestLimit => "drop_tx_request_limit",
    /// Sent frames dropped: they are for the network's server, which does nothing with such.
    DropTxNotServed => "drop_tx_not_served",
    /// Sent frames dropped: the source MAC address is not the guest's own.
    DropTxSpoofedMac => "drop_tx_spoofed_mac",
    /// Sent frames dropped: the source IP address is not the guest's own.
    DropTxSpoofedIp => "drop_tx_spoofed_ip",
    /// Sent frames dropped: ARP or neighbour discovery that speaks for addresses that are not the guest's own.
    DropTxSpoofedNeighbour => "drop_tx_spoofed_neighbour",
    /// Sent frames dropped: headers that contradict themselves, or hide from a filter what it must see.
    DropTxBadPacket => "drop_tx_bad_packet",
    /// Sent frames dropped: for an address outside of the subnet.
    DropTxOutsideSubnet => "drop_tx_outside_subnet",
    /// Sent frames dropped: from an address outside of the subnet, or of the link of the NIC that guests share.
    DropTxForeignSource => "drop_tx_foreign_source",
    /// Sent frames dropped: neither IP nor ARP, and the network carries nothing else.
    DropTxNotIp => "drop_tx_not_ip",
    /// Sent frames dropped: they have a VLAN tag, and the network carries none.
    DropTxTagged => "drop_tx_tagged",
    /// Sent frames dropped: the source IP address is one that the host or another guest uses.
    DropTxAddressTaken => "drop_tx_address_taken",

    /// Frames for the guest dropped: it has no receive queue that is running and enabled.
    DropRxNotReady => "drop_rx_not_ready",
    /// Frames for the guest dropped: it has not made enough receive buffers available.
    DropRxNoBuffer => "drop_rx_no_buffer",
    /// Frames for the guest dropped: longer than its receive buffer, and it does not merge buffers.
    DropRxTooBig => "drop_rx_too_big",
    /// Frames for the guest dropped: the guest's receive mode, MAC table or VLAN table refuses them.
    DropRxFiltered => "drop_rx_filtered",
    /// Frames for the guest dropped: memory or a ring failed while they were being copied, its own or the sender's.
    DropRxFault => "drop_rx_fault",
    /// Frames for the uplink dropped: the kernel's queue was full, or it had no memory.
    DropRxQueueFull => "drop_rx_queue_full",
    /// Frames for the uplink dropped: the device was down or away.
    DropRxDown => "drop_rx_down",
    /// Frames for the uplink dropped: the kernel refused them, most often since the device's MTU is smaller.
    DropRxRefused => "drop_rx_refused",
    /// Frames for the uplink dropped: they are for the host itself, to which no way leads from its NIC.
    DropRxNoHost => "drop_rx_no_host",
    /// Frames for the gateway dropped: no packets that it knows, or packets that contradict themselves.
    DropRxBadPacket => "drop_rx_bad_packet",
    /// Frames for the gateway dropped: to where guests may not go, or from addresses that are none of theirs.
    DropRxForbidden => "drop_rx_forbidden",
    /// Frames for the gateway dropped: the guest, or all of them, have as many connections as may be.
    DropRxFlowLimit => "drop_rx_flow_limit",
    /// Frames for the gateway dropped: they have passed as many routers as they may.
    DropRxHopLimit => "drop_rx_hop_limit",
    /// Frames for the gateway dropped: of a protocol that it does not carry.
    DropRxNotCarried => "drop_rx_not_carried",

    /// TCP connections that guests have been given by the gateway, and how many of them have ended.
    TcpOpened => "tcp_opened",
    /// See `tcp_opened`.
    TcpClosed => "tcp_closed",
    /// UDP endpoints that guests have been given by the gateway, and how many of them have ended.
    UdpOpened => "udp_opened",
    /// See `udp_opened`.
    UdpClosed => "udp_closed",

    /// Rings stopped because the guest broke the rules of the ring.
    RingErrors => "ring_errors",
    /// Ports stopped because the memory behind them went away (SIGBUS).
    MemoryFaults => "memory_faults",
    /// Times the guest kicked us.
    Kicks => "kicks",
    /// Times we interrupted the guest.
    Calls => "calls",
    /// Commands served on the control queue.
    ControlCommands => "control_commands",
    /// Addresses of this port given up early because the port's share of the table was full.
    AddressesEvicted => "addresses_evicted",
    /// Addresses that this port took over from another: a migration, or two guests that use one address.
    AddressesMoved => "addresses_moved",
}

/// Counters with one writer at a time. Aligned so that two writers share no cache line, nor a pair of them that is
/// fetched together.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    values: [AtomicU64; Counter::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self { values: [const { AtomicU64::new(0) }; Counter::ALL.len()] }
    }
}

impl Counters {
    /// Adds `n`. Only the present writer calls this: it is a load and a store, not a locked add.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        let value = &self.values[counter as usize];
        value.store(value.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds `n`, which is most often zero: the counter's cache line is left alone then.
    #[inline]
    pub fn add_any(&self, counter: Counter, n: u64) {
        if n > 0 {
            self.add(counter, n);
        }
    }

    /// Adds one.
    #[inline]
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }
}

/// One port's counters. Two writers, any number of readers.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Written by the worker that owns the port.
    pub owner: Counters,
    /// Written by the worker that gives the port frames, under the lock of its receiving half.
    pub giver: Counters,
}

impl PortCounters {
    /// The present value: what both writers have counted.
    pub fn get(&self, counter: Counter) -> u64 {
        let read = |counters: &Counters| counters.values[counter as usize].load(Ordering::Relaxed);
        read(&self.owner).wrapping_add(read(&self.giver))
    }
}

/// What one worker has done. One writer, any number of readers. Times in nanoseconds.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Time in turns that found something to do.
    pub busy_ns: AtomicU64,
    /// Time in turns that polled and found nothing.
    pub idle_ns: AtomicU64,
    /// Frames taken from transmit rings.
    pub packets: AtomicU64,
    /// Bursts they came in.
    pub batches: AtomicU64,
    /// Times it slept and was woken.
    pub wakeups: AtomicU64,
}

impl WorkerCounters {
    /// Adds `n`: for the one writer.
    #[inline]
    pub fn add(value: &AtomicU64, n: u64) {
        value.store(value.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}
