//! What sessions, and other workers, tell a worker about its ports.

use std::sync::Arc;

use super::network::Receiver;
use super::network::port_id;
use super::port::{Port, Ring};
use super::receiving::ReceivingHalf;
use super::{Source, Worker};
use crate::ring::mailbox::{Envelope, Message, PortShared, RingSetup};
use crate::switch::PORTS_MAX;
use crate::sys::poller::Trigger;

impl Worker {
    /// Applies what has come.
    pub(super) fn read_mail(&mut self) {
        // The quiescent point: after this line nothing of a guest's is in use.
        self.burst.release();
        for envelope in self.mailbox.take() {
            self.apply(envelope);
        }
        if let Some(reader) = &self.reader {
            // It may be back.
            reader.watch(&self.poller, Source::Uplink.token(), &self.network);
        }
        self.ports.iter_mut().flatten().for_each(|port| port.sender.follow_declared());
        // What is left of ports that have gone is held no longer.
        self.forwarder.follow();
        self.stop_faulted();
    }

    fn apply(&mut self, envelope: Envelope) {
        let (number, message, reply) = envelope.open();
        let mut next_avail = 0;
        if let Message::Attach(shared) = message {
            self.attach(shared);
        } else if let Some(&index) = self.by_number.get(&number) {
            next_avail = self.apply_to(index, message);
        }
        reply.send(next_avail);
    }

    /// Applies a message to a port that exists.
    fn apply_to(&mut self, index: usize, message: Message) -> u16 {
        let Some(port) = self.port_mut(index) else { return 0 };
        port.end_waiting();
        match message {
            Message::Attach(_) => {}
            Message::Features(features) => port.set_features(features),
            Message::Memory(mem) => port.set_memory(mem),
            Message::RingStart { index: ring, setup } => self.start_ring(index, ring, setup),
            Message::RingCall { index: ring, call } if ring < port.slots.len() => port.set_call(ring, call),
            Message::RingEnable { index: ring, on } if ring < port.slots.len() => port.enable(ring, on),
            Message::RingStop { index: ring } => return self.stop_ring(index, ring),
            Message::RingCall { .. } | Message::RingEnable { .. } => {}
            Message::RingLied { index: ring, error } => port.hear_of_lie(ring, &error),
            Message::Detach => self.detach(index),
        }
        0
    }

    fn attach(&mut self, shared: Arc<PortShared>) {
        let number = shared.number;
        let half = Arc::new(ReceivingHalf::new(shared.clone(), self.mailbox.clone()));
        let Some(index) = self.network.add_port(Receiver::Guest(half.clone())) else {
            tracing::warn!(port = number, "not attached: the network has {PORTS_MAX} ports already");
            return;
        };
        self.network.introduce(index, self.forwarder.worker(), &shared);
        if index >= self.ports.len() {
            self.ports.resize_with(index + 1, || None);
        }
        self.ports[index] = Some(Port::new(shared, half, &self.network));
        self.by_number.insert(number, index);
    }

    fn detach(&mut self, index: usize) {
        let rings = self.port_mut(index).map_or(0, |port| port.slots.len());
        for ring in 0..rings {
            self.stop_ring(index, ring);
        }
        // First what the port has, then its place: whoever gets that must not find anything in it.
        if let Some(desk) = self.network.services() {
            desk.port_ended(port_id(index));
        }
        self.network.remove_port(index);
        // So that the other workers forget it too, though they may be asleep.
        self.network.ring_bells();
        if let Some(port) = self.ports[index].take() {
            self.by_number.remove(&port.shared.number);
        }
    }

    fn start_ring(&mut self, index: usize, ring: usize, setup: RingSetup) {
        self.stop_ring(index, ring);
        let Some(Some(port)) = self.ports.get_mut(index) else { return };
        if ring >= port.slots.len() {
            return;
        }
        port.start(ring, setup);
        if !matches!(port.slots[ring].ring, Ring::Tx(_) | Ring::Control(_)) {
            return;
        }
        let Some(kick) = port.kick(ring) else { return };
        if let Err(error) = self.poller.add(kick, Trigger::Edge, Source::Kick { port: index, ring }.token()) {
            tracing::warn!(port = port.shared.number, ring, "the ring's kick cannot be watched: {error}");
        }
        // The guest may have made buffers available, and kicked, before we listened.
        self.look_at(index, ring);
    }

    fn stop_ring(&mut self, index: usize, ring: usize) -> u16 {
        self.ignore_kicks(index, ring);
        self.polled.retain(|polled| (polled.port, polled.ring) != (index, ring));
        let port = self.port_mut(index).filter(|port| ring < port.slots.len());
        port.map_or(0, |port| port.stop(ring))
    }
}
