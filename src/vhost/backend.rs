//! Our side of `vhost-user-backend`'s daemon: what it asks of a device, told to the worker.

use std::io;
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use vm_memory::{
    Bytes, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};
use vmm_sys_util::epoll::EventSet;

use crate::ring::mailbox::{Message, PortMailbox};
use crate::ring::{GuestMem, QUEUE_SIZE_MAX};

use super::features::RINGS_MAX;
use super::memory_table::NOT_SHARED;
use super::vring::{Memory, Vring};

/// What is behind a session's daemon: the worker, and the first thing that went wrong. The crate has no way to tell us
/// that a ring could not be set up; the session asks here after each message.
pub(super) struct Behind {
    mailbox: PortMailbox,
    trouble: OnceLock<String>,
    /// Done when the first ring starts.
    probe: Once,
}

impl Behind {
    pub(super) fn new(mailbox: PortMailbox) -> Self {
        Self { mailbox, trouble: OnceLock::new(), probe: Once::new() }
    }

    /// Posts a message and returns the answer; none when the worker has ended, which is trouble.
    pub(super) fn post(&self, message: Message) -> Option<u16> {
        self.mailbox.post(message).map_err(|gone| self.fail(gone.to_string())).ok()
    }

    /// Something went wrong that the session cannot survive.
    pub(super) fn fail(&self, why: String) {
        // The first reason counts.
        let _ = self.trouble.set(why);
    }

    /// A ring starts in this memory. The first time, says so if it does not look like a running guest's.
    pub(super) fn probe(&self, memory: &Memory) {
        self.probe.call_once(|| {
            if looks_untouched(&memory.memory()) {
                let port = self.mailbox.port();
                tracing::warn!(port, "a driver has started, and there is nothing in the guest's memory: {NOT_SHARED}");
            }
        });
    }

    /// What went wrong, if anything did.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.get().map(String::as_str)
    }
}

/// Bytes of a guest's memory that are looked at for any content: those with the lowest addresses, where firmware and
/// kernels leave traces on every machine.
const PROBE_LEN: u64 = 16 << 20;

/// Whether a guest whose driver starts a ring seems to have written nothing at all to its memory. A VMM can pass on its
/// memory's file and still keep what the guest writes to itself: QEMU 7.2 does so with `share=off`.
fn looks_untouched(memory: &GuestMemoryMmap) -> bool {
    let Some(region) = memory.iter().min_by_key(|region| region.start_addr()) else { return false };
    let mut page = [0; 4096];
    let mut at = 0;
    while at < region.len().min(PROBE_LEN) {
        match region.read(&mut page, MemoryRegionAddress(at)) {
            Ok(read @ 1..) if page[..read].iter().all(|&byte| byte == 0) => at += read as u64,
            _ => return false,
        }
    }
    true
}

/// What the daemon calls.
pub(super) struct PortBackend {
    features: u64,
    behind: Arc<Behind>,
    rings: Mutex<Vec<Vring>>,
    /// The memory in force. The crate itself reads from it, in the session's thread and whether or not the worker has
    /// given the port up, so it is guarded for as long as it is mapped.
    memory: Mutex<Option<Arc<GuestMem>>>,
}

impl PortBackend {
    pub(super) fn new(features: u64, behind: Arc<Behind>) -> Self {
        Self { features, behind, rings: Mutex::default(), memory: Mutex::default() }
    }

    /// The rings, which exist only after the daemon that needs this backend was made.
    pub(super) fn set_rings(&self, rings: Vec<Vring>) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) = rings;
    }
}

impl VhostUserBackend for PortBackend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        RINGS_MAX
    }

    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_SIZE_MAX)
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn acked_features(&self, features: u64) {
        self.behind.post(Message::Features(features));
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        for ring in &*self.rings.lock().unwrap_or_else(PoisonError::into_inner) {
            ring.reset();
        }
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, mem: Memory) -> io::Result<()> {
        let memory = Arc::new(GuestMem::new(mem.memory().into_inner())?);
        self.behind.post(Message::Memory(Some(memory.clone())));
        // Only now, when the worker has the new memory, may the old one go.
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    /// One thread of the crate's would wait for kicks; ours does, so there is none.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn handle_event(&self, _event: u16, _set: EventSet, _rings: &[Vring], _thread: usize) -> io::Result<()> {
        Ok(())
    }
}
