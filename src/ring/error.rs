//! The ways in which a ring can lie.

/// Why a ring was stopped. The guest (or its frontend) broke a rule of the split virtqueue (virtio 1.3, 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size is zero, not a power of two, or above [`super::QUEUE_SIZE_MAX`].
    #[error("the ring has {0} entries, which is not a power of two up to {max}", max = super::QUEUE_SIZE_MAX)]
    Size(u16),
    /// One of the ring's three areas is not wholly inside one region of the guest's memory.
    #[error("the {area} at guest address {addr:#x} is not inside the guest's memory")]
    AreaOutside {
        /// Which of the three areas.
        area: &'static str,
        /// Guest physical address.
        addr: u64,
    },
    /// One of the ring's three areas is not aligned as 2.7 demands.
    #[error("the {area} at guest address {addr:#x} is not aligned to {align} bytes")]
    AreaUnaligned {
        /// Which of the three areas.
        area: &'static str,
        /// Guest physical address.
        addr: u64,
        /// The alignment that 2.7 demands, in bytes.
        align: u64,
    },
    /// The guest has no memory (yet).
    #[error("the ring was started before the guest's memory was known")]
    NoMemory,
    /// More buffers are available than the ring has entries.
    #[error("the available index {idx} is more than {size} entries ahead of {next}")]
    AvailIndex {
        /// The index that the guest wrote.
        idx: u16,
        /// The next entry that we would take.
        next: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A chain starts or goes on at a descriptor that does not exist.
    #[error("descriptor {index} does not exist in a table of {size}")]
    DescriptorIndex {
        /// The descriptor that was asked for.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A chain has more descriptors than the ring has entries: it is a loop, or as bad as one.
    #[error("a chain has more than {0} descriptors")]
    ChainTooLong(u16),
    /// A descriptor points outside of the guest's memory.
    #[error("a buffer of {len} bytes at guest address {addr:#x} is not inside the guest's memory")]
    BufferOutside {
        /// Guest physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A buffer that we should read is for writing, or the reverse.
    #[error("a buffer of the wrong direction: the device {0}")]
    Direction(&'static str),
    /// An indirect descriptor without VIRTIO_F_INDIRECT_DESC.
    #[error("an indirect descriptor, but the feature was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor that also has NEXT, or that stands in an indirect table.
    #[error("an indirect descriptor {0}")]
    IndirectMisplaced(&'static str),
    /// The length of an indirect table is zero, no multiple of 16, or above the ring's size.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    /// A receive buffer cannot even hold the virtio-net header.
    #[error("a receive buffer of {0} bytes is shorter than the virtio-net header")]
    ReceiveBufferRunt(u64),
    /// The receive buffers are so small that one frame would need more than [`super::rx::FRAME_DESCRIPTORS_MAX`] of
    /// them.
    #[error("a frame would need more than {max} receive descriptors", max = super::rx::FRAME_DESCRIPTORS_MAX)]
    ReceiveBuffersTiny,
    /// A control queue chain without room for the answer, or with more data than any command has.
    #[error("a control command {0}")]
    ControlShape(&'static str),
}
