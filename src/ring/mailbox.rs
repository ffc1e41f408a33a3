//! How a session and the worker that owns its port speak to each other.
//!
//! Theory of operation. A vhost-user session runs in threads of its own and may stall for as long as its frontend
//! likes; a worker must not. So a session never touches a ring: it posts a [`Message`] to the worker's [`Mailbox`] and
//! waits. The worker takes messages between two bursts, when it holds no pointer into any guest's memory, applies them
//! and answers. When [`PortMailbox::post`] returns, the worker has therefore passed a quiescent point: after `Memory`
//! it no longer uses the memory before, after `RingStop`, `RingEnable { on: false }` and `Detach` it no longer touches
//! the ring. That is what a session must know before it acknowledges the message that caused the change.
//!
//! Towards the session there is [`PortShared`]: counters and device status that both may read, and an eventfd that
//! tells the session's gate of a change that the frontend should hear of.
//!
//! Workers write to each other as well, but never wait: one that finds out that a port's receive ring lies reports it
//! to the worker that owns the port ([`Mailbox::report`]).
//!
//! Limits: a session posts one message at a time and a ring lies once until its session starts it anew, so the queue is
//! never longer than the number of sessions and of their rings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::{GuestMem, RingError};
use crate::config::{Name, Security};
use crate::metrics::PortCounters;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// virtio-net configuration status: the link is up (virtio 1.3, 5.1.4).
pub const STATUS_LINK_UP: u16 = 1;
/// virtio-net configuration status: the guest should announce itself (virtio 1.3, 5.1.6.5.4).
pub const STATUS_ANNOUNCE: u16 = 2;

/// Everything needed to start one ring, as the frontend described it and the gate checked it.
#[derive(Debug)]
pub struct RingSetup {
    /// Number of descriptors: a power of two, at most [`super::QUEUE_SIZE_MAX`].
    pub size: u16,
    /// Guest physical address of the descriptor table.
    pub desc: u64,
    /// Guest physical address of the driver area (the available ring).
    pub avail: u64,
    /// Guest physical address of the device area (the used ring).
    pub used: u64,
    /// Index of the next entry of the available ring to take.
    pub next_avail: u16,
    /// Index of the next entry of the used ring to fill.
    pub next_used: u16,
    /// Readable when the guest kicks. Non-blocking.
    pub kick: OwnedFd,
    /// Written to interrupt the guest; none while the guest polls. Non-blocking.
    pub call: Option<OwnedFd>,
    /// Written once when the ring is stopped for an error. Non-blocking.
    pub err: Option<OwnedFd>,
}

/// What a session tells the worker that owns its port.
#[derive(Debug)]
pub enum Message {
    /// A new port. The first message of a session.
    Attach(Arc<PortShared>),
    /// The virtio features the driver has accepted (bit 30 included or not).
    Features(u64),
    /// The guest's memory, whole; `None` when it has none.
    Memory(Option<Arc<GuestMem>>),
    /// A ring starts, or starts anew with another kick descriptor. Ring numbers are vhost-user's: 2i receives,
    /// 2i + 1 transmits, the control queue follows the last pair.
    RingStart {
        /// The ring's number.
        index: usize,
        /// The ring.
        setup: RingSetup,
    },
    /// A running ring's call descriptor changes (QEMU does so whenever the guest masks a vector).
    RingCall {
        /// The ring's number.
        index: usize,
        /// The new descriptor.
        call: Option<OwnedFd>,
    },
    /// A ring is enabled or disabled. Independent of started: a disabled ring may start, and the reverse.
    RingEnable {
        /// The ring's number.
        index: usize,
        /// Enabled or not.
        on: bool,
    },
    /// A ring stops. The answer is the index of the next available entry, for GET_VRING_BASE.
    RingStop {
        /// The ring's number.
        index: usize,
    },
    /// Not from a session but from another worker: a receive ring has lied to it.
    RingLied {
        /// The ring's number.
        index: usize,
        /// How.
        error: RingError,
    },
    /// The session ends. The last message of a session; the worker forgets the port.
    Detach,
}

/// A message on its way, with the port it concerns and the place for the answer.
#[derive(Debug)]
pub struct Envelope {
    /// [`PortShared::number`] of the port.
    pub port: u32,
    /// The message.
    pub message: Message,
    /// None when nobody waits.
    reply: Option<SyncSender<u16>>,
}

impl Envelope {
    /// Splits the envelope into the message and the means to answer it.
    pub fn open(self) -> (u32, Message, Reply) {
        (self.port, self.message, Reply(self.reply))
    }
}

/// The obligation to answer a message. Dropped without an answer, the session hears that the worker is gone.
#[derive(Debug)]
pub struct Reply(Option<SyncSender<u16>>);

impl Reply {
    /// Answers. `next_avail` has a meaning for [`Message::RingStop`] only, zero otherwise.
    pub fn send(self, next_avail: u16) {
        // The session may have been torn down meanwhile: nobody is left to tell.
        let _ = self.0.map(|reply| reply.send(next_avail));
    }
}

/// A worker's letter box.
#[derive(Debug)]
pub struct Mailbox {
    queue: Mutex<Vec<Envelope>>,
    closed: AtomicBool,
    wake: EventFd,
}

impl Mailbox {
    /// An empty mailbox.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { queue: Mutex::new(Vec::new()), closed: AtomicBool::new(false), wake })
    }

    /// Readable while there may be mail; [`Mailbox::take`] makes it quiet.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes what has come, in order.
    pub fn take(&self) -> Vec<Envelope> {
        // Quiet first, then look: mail that comes in between wakes us once more for nothing, never too rarely.
        let _ = self.wake.read();
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Wakes the worker without mail, for instance to let it see that it should end.
    pub fn ring_bell(&self) {
        // Can only fail when the counter is full, and then the worker is awake.
        let _ = self.wake.write(1);
    }

    /// The worker takes no more mail: what is in the box and what comes later is refused.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        drop(self.take());
    }

    /// Posts a message about the port numbered `port` without waiting for an answer: what one worker tells another.
    pub fn report(&self, port: u32, message: Message) {
        self.put(Envelope { port, message, reply: None });
    }

    fn put(&self, envelope: Envelope) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.closed.load(Ordering::SeqCst) {
            queue.push(envelope);
            drop(queue);
            self.ring_bell();
        }
    }
}

/// A session's way to its worker: messages about one port.
#[derive(Clone, Debug)]
pub struct PortMailbox {
    port: u32,
    mailbox: Arc<Mailbox>,
}

/// The worker has ended, and with it every port it owned.
#[derive(Debug, thiserror::Error)]
#[error("the worker has ended")]
pub struct WorkerGone;

impl PortMailbox {
    /// A way to `mailbox` for the port numbered `port`.
    pub fn new(port: u32, mailbox: Arc<Mailbox>) -> Self {
        Self { port, mailbox }
    }

    /// The number of the port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Posts a message and waits until the worker has applied it and answered (see the theory of operation).
    ///
    /// # Errors
    /// [`WorkerGone`] when there is no worker any more; nothing of the port is in use then.
    pub fn post(&self, message: Message) -> Result<u16, WorkerGone> {
        let (reply, answer) = sync_channel(1);
        self.mailbox.put(Envelope { port: self.port, message, reply: Some(reply) });
        answer.recv().map_err(|_| WorkerGone)
    }
}

/// What a session and the worker share about a port.
#[derive(Debug)]
pub struct PortShared {
    /// The port's number, unique in the process and never used again. Log lines and statistics name it.
    pub number: u32,
    /// The name of the network that the port is on.
    pub network: String,
    /// The name that the user declared it by.
    pub name: Option<Name>,
    /// The address that the port's configuration gives to a guest that reads it.
    pub mac: [u8; 6],
    /// The queue pairs that the port's configuration tells of: `max_virtqueue_pairs` (virtio 1.3, 5.1.4).
    pub pairs_told: u16,
    /// What the guest is held to.
    pub security: Security,
    /// The address of the guest's network device, if the user declared it.
    pub declared_mac: Option<[u8; 6]>,
    /// What has become of the port's frames.
    pub counters: PortCounters,
    status: AtomicU16,
    notice: EventFd,
}

impl PortShared {
    /// A port with its link up, whose configuration tells of one queue pair, and whose guest is held to nothing.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(number: u32, network: String, mac: [u8; 6]) -> std::io::Result<Self> {
        Ok(Self {
            number,
            network,
            name: None,
            mac,
            pairs_told: 1,
            security: Security::OFF,
            declared_mac: None,
            counters: PortCounters::default(),
            status: AtomicU16::new(STATUS_LINK_UP),
            notice: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })
    }

    /// The virtio-net configuration's `status` field (virtio 1.3, 5.1.4).
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::SeqCst)
    }

    /// Sets and clears bits of `status`; if that changes it, the gate is told to send CONFIG_CHANGE.
    pub fn change_status(&self, set: u16, clear: u16) {
        let before = self.status.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |s| Some((s & !clear) | set));
        if before.is_ok_and(|s| (s & !clear) | set != s) {
            // Can only fail when the counter is full, and then the gate is being told already.
            let _ = self.notice.write(1);
        }
    }

    /// Readable when `status` has changed since [`PortShared::take_notice`].
    pub fn notice_fd(&self) -> BorrowedFd<'_> {
        self.notice.as_fd()
    }

    /// Makes the notice quiet.
    pub fn take_notice(&self) {
        let _ = self.notice.read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn post_returns_after_the_worker_answered() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let port = PortMailbox::new(7, mailbox.clone());
        let session = std::thread::spawn(move || port.post(Message::RingStop { index: 3 }).unwrap());
        let mail = loop {
            let mail = mailbox.take();
            if !mail.is_empty() {
                break mail;
            }
            std::thread::yield_now();
        };
        for envelope in mail {
            let (number, message, reply) = envelope.open();
            assert_eq!(number, 7);
            assert!(matches!(message, Message::RingStop { index: 3 }));
            reply.send(42);
        }
        assert_eq!(session.join().unwrap(), 42);
    }

    #[test]
    fn a_closed_mailbox_refuses() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let port = PortMailbox::new(0, mailbox.clone());
        mailbox.close();
        assert!(port.post(Message::Detach).is_err());
    }

    #[test]
    fn a_status_change_is_noticed_once() {
        let port = PortShared::new(0, "lab".into(), [2, 0, 0, 0, 0, 1]).unwrap();
        port.change_status(STATUS_LINK_UP, 0);
        assert!(port.notice.read().is_err(), "nothing changed");
        port.change_status(STATUS_ANNOUNCE, STATUS_LINK_UP);
        assert_eq!(port.status(), STATUS_ANNOUNCE);
        assert_eq!(port.notice.read().unwrap(), 1);
    }
}
