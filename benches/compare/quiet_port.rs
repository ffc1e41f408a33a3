//! A vhost-user frontend that attaches as a guest's VMM does, with buffers to receive into, and then says nothing more.
//!
//! The rings are written through the file that is their memory, so that none of it is mapped here.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use guestwire::vhost::features as f;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// What a driver of Linux's takes of what it is offered, but for queues of commands.
const KNOWN: u64 = f::VERSION_1
    | f::MRG_RXBUF
    | f::CSUM
    | f::GUEST_CSUM
    | f::HOST_TSO4
    | f::HOST_TSO6
    | f::GUEST_TSO4
    | f::GUEST_TSO6
    | f::EVENT_IDX
    | f::INDIRECT_DESC
    | f::PROTOCOL_FEATURES;

/// Descriptors of a ring; QEMU's default.
const SIZE: u16 = 256;
const BUFFER: u32 = 2048;
/// Where a ring's parts begin (virtio 1.3, 2.7), from the ring's own begin.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const RING_SPACE: u64 = 0x4000;
const BUFFERS: u64 = 2 * RING_SPACE;
/// A multiple of the largest page that a backend may be mapping.
const MEMORY: u64 = 2 << 20;
/// Where the guest has its memory, and where its VMM would have it: both are only names here.
const GUEST_ADDRESS: u64 = 0x1000_0000;
const VMM_ADDRESS: u64 = 0x7e00_0000_0000;
/// The device may write here.
const WRITE: u64 = 2;

/// Detached when it is dropped.
pub(crate) struct QuietPort {
    _frontend: Frontend,
    _memory: File,
    _events: Vec<EventFd>,
}

impl QuietPort {
    /// Attaches to the backend that listens at `socket`, and starts both rings of one pair.
    pub(crate) fn attach(socket: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let mut frontend = Frontend::connect(socket, 2)?;
        frontend.set_owner()?;
        let features = frontend.get_features()? & KNOWN;
        let protocol = frontend.get_protocol_features()?;
        frontend
            .set_protocol_features(protocol & (VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK))?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_features(features)?;
        let memory = memory()?;
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_ADDRESS,
            memory_size: MEMORY,
            userspace_addr: VMM_ADDRESS,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        }])?;
        let mut events = Vec::new();
        for index in [0, 1] {
            let at = VMM_ADDRESS + index as u64 * RING_SPACE;
            frontend.set_vring_num(index, SIZE)?;
            frontend.set_vring_base(index, 0)?;
            frontend.set_vring_addr(
                index,
                &VringConfigData {
                    queue_max_size: SIZE,
                    queue_size: SIZE,
                    flags: 0,
                    desc_table_addr: at,
                    used_ring_addr: at + USED,
                    avail_ring_addr: at + AVAIL,
                    log_addr: None,
                },
            )?;
            let (call, kick) = (EventFd::new(0)?, EventFd::new(0)?);
            frontend.set_vring_call(index, &call)?;
            frontend.set_vring_kick(index, &kick)?;
            events.extend([call, kick]);
        }
        for index in [0, 1] {
            frontend.set_vring_enable(index, true)?;
        }
        Ok(Self { _frontend: frontend, _memory: memory, _events: events })
    }
}

/// The memory of a guest whose receive ring is full of buffers, and whose transmit ring is empty.
fn memory() -> Result<File, Box<dyn std::error::Error>> {
    let memory = File::from(memfd_create(c"quiet-port", MFdFlags::MFD_CLOEXEC)?);
    memory.set_len(MEMORY)?;
    let mut table = Vec::new();
    let mut heads = Vec::new();
    for head in 0..SIZE {
        let address = GUEST_ADDRESS + BUFFERS + u64::from(head) * u64::from(BUFFER);
        table.extend(address.to_le_bytes());
        table.extend((u64::from(BUFFER) | WRITE << 32).to_le_bytes());
        heads.extend(head.to_le_bytes());
    }
    memory.write_all_at(&table, 0)?;
    memory.write_all_at(&heads, AVAIL + 4)?;
    memory.write_all_at(&SIZE.to_le_bytes(), AVAIL + 2)?;
    Ok(memory)
}
