//! A port as the worker that owns it sees it: the guest's memory, its rings, and what it has negotiated.
//!
//! Theory of operation. A session's messages change a port between two bursts (see [`crate::ring::mailbox`]). A ring is
//! started and enabled independently; frames go only to receive rings that are both, on pairs that the guest has
//! enabled. A ring that lies is `Broken`: nothing touches it until the guest resets it, that is until the session stops
//! or starts it anew. Receive rings are not in here but in the port's [`ReceivingHalf`], which other workers use too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::frame::ethernet::MacAddr;
use crate::metrics::Counter;
use crate::ring::mailbox::{PortShared, RingSetup, STATUS_ANNOUNCE, STATUS_LINK_UP};
use crate::ring::{ControlRing, GuestMem, RingError, RingOptions, RxRing, TxRing, signal};
use crate::vhost::control_queue::{ControlQueue, Effect};
use crate::vhost::features::{Negotiated, RINGS_MAX, control_ring_index};

use super::network::Network;
use super::patience::Patience;
use super::receiving::ReceivingHalf;
use super::sender::{Origin, Sender};
use super::turns::Account;
use super::waiting::{Company, Waiting};

/// What a ring is for, and whether it runs.
#[derive(Debug)]
pub(super) enum Ring {
    /// Not started. Remembers where it stopped.
    Stopped { next_avail: u16 },
    /// Stopped by us because the guest broke the rules.
    Broken { next_avail: u16 },
    /// Frames that the guest sends.
    Tx(TxRing),
    /// Frames for the guest: the ring is in the receiving half.
    Rx,
    /// Commands.
    Control(ControlRing),
}

/// One of the rings that the frontend may describe.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) ring: Ring,
    pub(super) enabled: bool,
    /// Watched by the worker while the ring runs, except for receive rings, whose kicks mean nothing to us.
    kick: Option<OwnedFd>,
    /// Written once when we stop the ring for an error.
    err: Option<OwnedFd>,
    /// Whether the worker polls the ring, so that it need not be kicked.
    pub(super) polled: bool,
    /// How long it is polled after it was last seen with work.
    pub(super) patience: Patience,
    /// To whom it has sent.
    pub(super) company: Company,
    /// A burst of its that waits for room. Nothing more is taken from the ring meanwhile.
    pub(super) waiting: Option<Box<Waiting>>,
}

impl Slot {
    fn new() -> Self {
        Self {
            ring: Ring::Stopped { next_avail: 0 },
            enabled: false,
            kick: None,
            err: None,
            polled: false,
            patience: Patience::default(),
            company: Company::default(),
            waiting: None,
        }
    }
}

/// A port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) shared: Arc<PortShared>,
    pub(super) negotiated: Negotiated,
    mem: Option<Arc<GuestMem>>,
    pub(super) slots: Vec<Slot>,
    pub(super) half: Arc<ReceivingHalf>,
    pub(super) sender: Sender,
    /// Whether frames are judged by more than their Ethernet headers.
    long_heads: bool,
    /// The worker's round in which it last had a burst.
    pub(super) served_in: u32,
    /// What its dear frames have had of the worker's time.
    pub(super) account: Account,
}

impl Port {
    pub(super) fn new(shared: Arc<PortShared>, half: Arc<ReceivingHalf>, network: &Network) -> Self {
        let sender = Sender::new(shared.clone(), Origin::Guest, network.guard(&shared));
        Self {
            long_heads: network.looks_into(&sender),
            sender,
            shared,
            negotiated: Negotiated::new(0),
            mem: None,
            slots: (0..RINGS_MAX).map(|_| Slot::new()).collect(),
            half,
            served_in: 0,
            account: Account::default(),
        }
    }

    pub(super) fn set_features(&mut self, features: u64) {
        self.negotiated = Negotiated::new(features);
        self.sender.sends = self.negotiated.sends;
        self.half.lock().takes = self.negotiated.takes;
    }

    /// Replaces the memory and moves every running ring to it. Rings that do not lie in the new memory break.
    pub(super) fn set_memory(&mut self, mem: Option<Arc<GuestMem>>) {
        self.mem = mem;
        for index in 0..self.slots.len() {
            let rebased = match (&mut self.slots[index].ring, self.mem.clone()) {
                (Ring::Stopped { .. } | Ring::Broken { .. }, _) => Ok(()),
                (_, None) => Err(RingError::NoMemory),
                (Ring::Tx(ring), Some(mem)) => ring.rebase(mem),
                (Ring::Rx, Some(mem)) => self.half.lock().rebase(index / 2, mem),
                (Ring::Control(ring), Some(mem)) => ring.rebase(mem),
            };
            if let Err(error) = rebased {
                self.break_ring(index, &error);
            }
        }
    }

    /// Starts ring `index`. The caller watches [`Self::kick`] afterwards.
    pub(super) fn start(&mut self, index: usize, mut setup: RingSetup) {
        let resumed = setup.next_avail != 0;
        let made = self.make_ring(index, &mut setup);
        let slot = &mut self.slots[index];
        slot.kick = Some(setup.kick);
        slot.err = setup.err;
        match made {
            Ok(ring) => {
                if matches!(ring, Ring::Control(_)) {
                    let own = MacAddr(self.shared.mac);
                    self.half.lock().control =
                        ControlQueue::started(own, self.negotiated.ctrl_vlan, self.shared.pairs_told);
                }
                slot.ring = ring;
                slot.polled = false;
                if !self.slots.iter().any(|slot| matches!(slot.ring, Ring::Broken { .. })) {
                    self.shared.change_status(STATUS_LINK_UP, 0);
                }
                if resumed && self.negotiated.announce {
                    // A guest in mid-life, with us new to it: nobody here knows its addresses yet.
                    self.shared.change_status(STATUS_ANNOUNCE, 0);
                }
            }
            Err(error) => self.break_ring(index, &error),
        }
        self.update_receivers();
    }

    fn control_ring_index(&self) -> Option<usize> {
        control_ring_index(&self.negotiated, self.shared.pairs_told)
    }

    fn make_ring(&self, index: usize, setup: &mut RingSetup) -> Result<Ring, RingError> {
        let mem = self.mem.clone().ok_or(RingError::NoMemory)?;
        let negotiated = &self.negotiated;
        let options = RingOptions { event_idx: negotiated.event_idx, indirect: negotiated.indirect };
        let header_len = negotiated.header_len;
        Ok(if self.control_ring_index() == Some(index) {
            Ring::Control(ControlRing::new(mem, setup, options)?)
        } else if index.is_multiple_of(2) {
            let ring = RxRing::new(mem, setup, options, header_len, negotiated.mergeable)?;
            self.half.lock().start(index / 2, ring);
            Ring::Rx
        } else {
            let ring = TxRing::new(mem, setup, options, header_len, negotiated.sends.any())?;
            Ring::Tx(ring.with_long_heads(self.long_heads))
        })
    }

    /// Stops ring `index` and returns its next available entry. The caller has ceased to watch its kick.
    pub(super) fn stop(&mut self, index: usize) -> u16 {
        let next_avail = self.halt(index);
        let slot = &mut self.slots[index];
        slot.ring = Ring::Stopped { next_avail };
        slot.kick = None;
        slot.err = None;
        slot.polled = false;
        if self.control_ring_index() == Some(index) {
            // The driver is gone, and with it what it wished for.
            self.half.lock().control = ControlQueue::default();
        }
        self.update_receivers();
        next_avail
    }

    /// Has ring `index` touched no more, and returns its next available entry.
    fn halt(&self, index: usize) -> u16 {
        match &self.slots[index].ring {
            Ring::Stopped { next_avail } | Ring::Broken { next_avail } => *next_avail,
            Ring::Tx(ring) => ring.next_avail(),
            Ring::Rx => {
                // Of what it was shown lately it may not have been told.
                self.half.tell();
                self.half.lock().stop(index / 2)
            }
            Ring::Control(ring) => ring.next_avail(),
        }
    }

    pub(super) fn enable(&mut self, index: usize, on: bool) {
        self.slots[index].enabled = on;
        self.update_receivers();
    }

    pub(super) fn set_call(&mut self, index: usize, call: Option<OwnedFd>) {
        match &mut self.slots[index].ring {
            Ring::Tx(ring) => ring.set_call(call),
            Ring::Rx => self.half.lock().set_call(index / 2, call),
            Ring::Control(ring) => ring.set_call(call),
            Ring::Stopped { .. } | Ring::Broken { .. } => {}
        }
    }

    /// The kick descriptor of ring `index`, if it has one.
    pub(super) fn kick(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.slots.get(index)?.kick.as_ref().map(AsFd::as_fd)
    }

    /// Stops ring `index` because the guest broke the rules: one log line, one count, the link down. The kick stays
    /// open until the session stops the ring; nobody listens to it.
    pub(super) fn break_ring(&mut self, index: usize, error: &RingError) {
        if self.memory_faulted() {
            // The ring does not lie: zeros stand where it was.
            return self.break_memory();
        }
        self.stop_all();
        signal(self.slots[index].err.as_ref());
        self.shared.counters.owner.count(Counter::RingErrors);
        self.shared.change_status(0, STATUS_LINK_UP);
        self.update_receivers();
        tracing::warn!(
            port = self.shared.number,
            network = self.shared.network,
            ring = index,
            "port stopped: {error}; it stays so until the guest resets its network device"
        );
    }

    /// Ends all waiting for room: what waits is dropped, and its buffers go back to the guest. To be called before a
    /// message changes the port: it may be about the memory or the ring that they are in.
    pub(super) fn end_waiting(&mut self) {
        for slot in &mut self.slots {
            let Some(waiting) = slot.waiting.take() else { continue };
            waiting.receiver.refuse(waiting.left.count_ones());
            if let Ring::Tx(tx) = &mut slot.ring {
                let called = tx.complete(&waiting.burst);
                self.shared.counters.owner.add_any(Counter::Calls, u64::from(called));
            }
        }
    }

    /// Stops every ring that runs, until the session stops it or starts it anew.
    fn stop_all(&mut self) {
        for index in 0..self.slots.len() {
            if !matches!(self.slots[index].ring, Ring::Stopped { .. }) {
                self.slots[index].ring = Ring::Broken { next_avail: self.halt(index) };
            }
            let slot = &mut self.slots[index];
            slot.polled = false;
            if let Some(waiting) = slot.waiting.take() {
                waiting.receiver.refuse(waiting.left.count_ones());
            }
        }
    }

    /// A worker has found out that receive ring `index` lies. It may have been stopped since.
    pub(super) fn hear_of_lie(&mut self, index: usize, error: &RingError) {
        if matches!(self.slots[index].ring, Ring::Rx) && self.half.lock().has_lied(index / 2) {
            self.break_ring(index, error);
        }
    }

    /// Whether the memory behind the port has gone away, and it has not been stopped for that yet.
    pub(super) fn memory_faulted(&self) -> bool {
        self.mem.as_ref().is_some_and(|mem| mem.faulted())
    }

    /// Stops everything because the memory behind the port has gone away.
    pub(super) fn break_memory(&mut self) {
        self.mem = None;
        self.stop_all();
        self.shared.counters.owner.count(Counter::MemoryFaults);
        self.shared.change_status(0, STATUS_LINK_UP);
        tracing::warn!(
            port = self.shared.number,
            network = self.shared.network,
            "port stopped: the file behind the guest's memory was truncated while in use; \
             use a sealed memfd (QEMU: memory-backend-memfd)"
        );
    }

    /// Serves the control queue until it is empty, or has had its turn: then there may be more, and `true` is returned.
    pub(super) fn serve_control(&mut self, index: usize) -> Result<bool, RingError> {
        let Ring::Control(ring) = &mut self.slots[index].ring else { return Ok(false) };
        let mut served = 0;
        loop {
            let (half, mut effect) = (&self.half, Effect::None);
            // Locked for one command at a time: frames for the guest do not wait for all of them.
            while served < CONTROL_COMMANDS_MAX
                && ring.serve_one(|command| half.lock().control.serve(command, &mut effect))?
            {
                served += 1;
            }
            match effect {
                Effect::Announced => self.shared.change_status(0, STATUS_ANNOUNCE),
                Effect::None => {}
            }
            if served == CONTROL_COMMANDS_MAX || !ring.arm()? {
                break;
            }
        }
        let calls = u64::from(ring.flush());
        self.shared.counters.owner.add(Counter::Calls, calls);
        self.shared.counters.owner.add(Counter::ControlCommands, served);
        self.update_receivers();
        Ok(served == CONTROL_COMMANDS_MAX)
    }

    fn update_receivers(&mut self) {
        let mut receiving = self.half.lock();
        // Pairs that the guest has asked for on its control queue, where that queue is ours to serve.
        let served_here =
            self.control_ring_index().is_some_and(|index| matches!(self.slots[index].ring, Ring::Control(_)));
        let limit = if served_here { usize::from(receiving.control.pairs()) } else { usize::MAX };
        let rings = self.slots.iter().enumerate().filter(|(_, slot)| slot.enabled && matches!(slot.ring, Ring::Rx));
        receiving.set_ready(rings.map(|(index, _)| index / 2).filter(|&pair| pair < limit));
    }
}

/// Commands served in one go: a guest that writes them without end lets the other ports have their turn.
const CONTROL_COMMANDS_MAX: u64 = 64;
