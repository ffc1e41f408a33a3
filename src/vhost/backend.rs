//! Our side of `vhost-user-backend`'s daemon: what it asks of a device, told to the worker.

use std::io;
use std::sync::{Mutex, PoisonError};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use crate::ring::QUEUE_SIZE_MAX;
use crate::ring::mailbox::{Message, PortMailbox};

use super::features::RINGS_MAX;
use super::vring::{Memory, Vring};

/// What the daemon calls.
pub(super) struct PortBackend {
    features: u64,
    mailbox: PortMailbox,
    rings: Mutex<Vec<Vring>>,
}

impl PortBackend {
    pub(super) fn new(features: u64, mailbox: PortMailbox) -> Self {
        Self { features, mailbox, rings: Mutex::new(Vec::new()) }
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
        let _ = self.mailbox.post(Message::Features(features));
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
        let snapshot = mem.memory().into_inner();
        self.mailbox.post(Message::Memory(Some(snapshot))).map_err(io::Error::other)?;
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
