//! Our `VringT`: the ring as `vhost-user-backend` sees it, which reports to the worker what happens to it.
//!
//! Theory of operation. The crate makes one vring for each ring in the thread that makes the daemon, in order, and says
//! neither which ring nor which port it is; a [`Context`] set for that thread does. The crate keeps addresses, size and
//! base in its own state; nothing of it is ever used to move a frame. A ring is made ready by the crate when its kick
//! descriptor arrives: then the worker is given everything at once and owns the ring until it is stopped.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::backend::Behind;
use crate::ring::mailbox::{Message, RingSetup};

/// The memory that the crate keeps for us.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

thread_local! {
    static CONTEXT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// What the vrings that are made in this thread belong to.
struct Context {
    behind: Arc<Behind>,
    rings: Vec<Vring>,
}

/// Runs `make`, which makes a port's vrings, and returns its result with those vrings in order.
pub(super) fn in_context<T>(behind: Arc<Behind>, make: impl FnOnce() -> T) -> (T, Vec<Vring>) {
    CONTEXT.with_borrow_mut(|context| *context = Some(Context { behind, rings: Vec::new() }));
    let made = make();
    let rings = CONTEXT.take().map_or_else(Vec::new, |context| context.rings);
    (made, rings)
}

/// Descriptors of a ring, and whether the worker has it.
#[derive(Debug, Default)]
struct State {
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    started: bool,
    /// What the worker was told last; it takes a ring for disabled until it hears otherwise.
    enabled: bool,
}

/// A ring as the crate sees it.
#[derive(Clone)]
pub(super) struct Vring {
    memory: Memory,
    inner: VringRwLock<Memory>,
    index: usize,
    behind: Arc<Behind>,
    state: Arc<Mutex<State>>,
}

impl Vring {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Back to how it was before the frontend said anything about it.
    pub(super) fn reset(&self) {
        self.set_queue_ready(false);
        self.inner.set_queue_next_avail(0);
        self.inner.set_queue_next_used(0);
        // What interrupts the guest and what tells of errors stays: QEMU sets the latter once in a connection's life.
        self.state().kick = None;
        self.inner.set_kick(None);
    }

    fn start(&self, state: &mut State) {
        // The kick is given away: when the ring starts again it has a new one.
        let Some(kick) = state.kick.take() else { return };
        self.behind.probe(&self.memory);
        let (call, err) = (self.copy(&state.call), self.copy(&state.err));
        let setup = {
            let inner = self.inner.get_ref();
            let queue = inner.get_queue();
            RingSetup {
                size: queue.size(),
                desc: queue.desc_table(),
                avail: queue.avail_ring(),
                used: queue.used_ring(),
                next_avail: queue.next_avail(),
                next_used: queue.next_used(),
                kick,
                call,
                err,
            }
        };
        state.started = self.behind.post(Message::RingStart { index: self.index, setup }).is_some();
    }

    /// A second descriptor, for the worker.
    fn copy(&self, fd: &Option<OwnedFd>) -> Option<OwnedFd> {
        let copy = fd.as_ref().map(OwnedFd::try_clone).transpose();
        copy.unwrap_or_else(|error| self.out_of_descriptors(&error))
    }

    /// A ring that lacks a descriptor would run without ever being heard: the session ends instead.
    fn out_of_descriptors<T>(&self, error: &io::Error) -> Option<T> {
        self.behind.fail(format!("ring {} cannot have its descriptors: {error} (raise `ulimit -n`)", self.index));
        None
    }

    fn stop(&self, state: &mut State) {
        if !state.started {
            return;
        }
        state.started = false;
        if let Some(next_avail) = self.behind.post(Message::RingStop { index: self.index }) {
            self.inner.set_queue_next_avail(next_avail);
            // What was taken has been given back, in order.
            if let Ok(next_used) = self.inner.queue_used_idx() {
                self.inner.set_queue_next_used(next_used);
            }
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = <VringRwLock<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = <VringRwLock<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Vring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let inner = VringRwLock::new(mem.clone(), max_queue_size)?;
        CONTEXT.with_borrow_mut(|context| {
            let context = context.as_mut().ok_or(QueueError::QueueNotReady)?;
            let state = Arc::new(Mutex::new(State::default()));
            let ring = Self { memory: mem, inner, index: context.rings.len(), behind: context.behind.clone(), state };
            context.rings.push(ring.clone());
            Ok(ring)
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
        let mut state = self.state();
        // QEMU says it up to five times, and a reset says it of every ring there could be.
        if state.enabled != enabled {
            state.enabled = enabled;
            self.behind.post(Message::RingEnable { index: self.index, on: enabled });
        }
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), QueueError> {
        self.inner.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.inner.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.inner.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
        let mut state = self.state();
        if ready {
            self.start(&mut state);
        } else {
            self.stop(&mut state);
        }
    }

    fn set_kick(&self, file: Option<File>) {
        let mut state = self.state();
        // The crate takes a ring with a kick for one that can start, so it keeps one; the worker gets the other.
        let copy = file.as_ref().map(File::try_clone).transpose();
        state.kick = copy.unwrap_or_else(|error| self.out_of_descriptors(&error)).map(OwnedFd::from);
        self.inner.set_kick(file);
        // A ready ring is given another descriptor: the crate does not make it ready again, so it starts anew here.
        if state.started {
            self.stop(&mut state);
            if state.kick.is_some() {
                self.start(&mut state);
            }
        }
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        let mut state = self.state();
        state.call = file.map(OwnedFd::from);
        if state.started {
            self.behind.post(Message::RingCall { index: self.index, call: self.copy(&state.call) });
        }
    }

    fn set_err(&self, file: Option<File>) {
        self.state().err = file.map(OwnedFd::from);
    }
}
