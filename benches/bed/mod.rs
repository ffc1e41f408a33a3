//! A test bed: a real worker in the thread of the benchmark, and guests whose drivers the benchmark plays.
//!
//! Nothing stands in for anything: the rings lie in memory that is mapped, the messages go through the mailbox and the
//! worker takes its turns as in its own thread. Only the sessions that would have posted the messages are missing.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestwire::config::Security;
use guestwire::ring::GuestMem;
use guestwire::ring::mailbox::{Message, PortMailbox, PortShared, RingSetup};
use guestwire::worker::{Network, Worker};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[allow(dead_code, reason = "the driver's side is the tests', who use more of it")]
#[path = "../../src/ring/tests/driver.rs"]
mod driver;

use driver::{DriverRing, WRITE};

const RING_SIZE: u16 = 256;
/// The virtio-net header with `num_buffers`.
const HEADER_LEN: usize = 12;
/// A receive buffer, as Linux has them with merged buffers.
const RECEIVE_LEN: u64 = 4096;
const RECEIVE_BUFFERS: u64 = 0x10_0000;
const SEND_BUFFERS: u64 = 0x40_0000;
/// From one send buffer to the next.
const SEND_STRIDE: u64 = 0x1_1000;

/// A flag of the available ring.
const NO_INTERRUPT: u16 = 1;

/// A guest with one pair of queues.
struct Guest {
    port: PortMailbox,
    kick: File,
    transmit: DriverRing,
    receive: DriverRing,
    /// The used index up to which receive buffers were made available again.
    refilled: u16,
}

/// A worker with guests.
pub(crate) struct Bed {
    worker: Worker,
    guests: Vec<Guest>,
}

/// The address of guest `number`.
pub(crate) fn mac(number: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number as u8]
}

impl Bed {
    /// A network with one guest for each element of `features`: what its driver has negotiated.
    pub(crate) fn new(features: &[u64]) -> Self {
        let mut bed = Self { worker: Worker::new(Network::new(0x5eed)).unwrap(), guests: Vec::new() };
        for &features in features {
            bed.attach(features);
        }
        // All are known to the switch.
        for number in 0..features.len() {
            let mut frame = [0xff; 60];
            frame[6..12].copy_from_slice(&mac(number));
            bed.load(number, &[0; HEADER_LEN], &frame);
            bed.send(number, 1);
        }
        bed
    }

    fn attach(&mut self, features: u64) {
        let number = self.guests.len();
        let len = (SEND_BUFFERS + SEND_STRIDE * u64::from(RING_SIZE)) as usize;
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap());
        let transmit = DriverRing::new(&mem, 0, RING_SIZE, 0);
        let mut receive = DriverRing::new(&mem, 0x8000, RING_SIZE, 0);
        let (receive_setup, transmit_setup) = (receive.setup(), transmit.setup());
        for i in 0..RING_SIZE {
            receive.describe(i, (RECEIVE_BUFFERS + RECEIVE_LEN * u64::from(i), RECEIVE_LEN as u32, WRITE, 0));
            receive.post(i);
        }
        let port = PortMailbox::new(number as u32, self.worker.mailbox());
        let kick = File::from(transmit_setup.kick.try_clone().unwrap());
        let mut shared = PortShared::new(number as u32, "bench".into(), mac(number)).unwrap();
        // As ports of internal networks are.
        shared.security = Security::ON;
        self.post(&port, Message::Attach(Arc::new(shared)));
        self.post(&port, Message::Features(features));
        self.post(&port, Message::Memory(Some(Arc::new(GuestMem::new(mem).unwrap()))));
        for (index, setup) in [(0, receive_setup), (1, transmit_setup)] {
            self.post(&port, Message::RingStart { index, setup });
            self.post(&port, Message::RingEnable { index, on: true });
        }
        self.guests.push(Guest { port, kick, transmit, receive, refilled: 0 });
    }

    /// Posts a message as a session does, and lets the worker answer.
    fn post(&mut self, port: &PortMailbox, message: Message) {
        let (port, bell) = (port.clone(), self.worker.mailbox());
        let session = std::thread::spawn(move || port.post(message).unwrap());
        while !session.is_finished() {
            bell.ring_bell();
            self.worker.turn();
            // Setting up takes few turns then, and about as many each time: instructions are counted, too.
            std::thread::sleep(Duration::from_micros(50));
        }
        session.join().unwrap();
    }

    /// Puts one frame in all of a guest's send buffers.
    pub(crate) fn load(&mut self, from: usize, header: &[u8; HEADER_LEN], frame: &[u8]) {
        let ring = &self.guests[from].transmit;
        for i in 0..RING_SIZE {
            let at = SEND_BUFFERS + SEND_STRIDE * u64::from(i);
            ring.mem.write_slice(header, GuestAddress(at)).unwrap();
            ring.mem.write_slice(frame, GuestAddress(at + HEADER_LEN as u64)).unwrap();
            ring.describe(i, (at, (HEADER_LEN + frame.len()) as u32, 0, 0));
        }
    }

    /// The same while the worker polls the guest's ring: without a kick, and without a turn that finds nothing.
    #[allow(dead_code, reason = "not every benchmark does")]
    pub(crate) fn send_on(&mut self, from: usize, count: u16) {
        let sender = &mut self.guests[from];
        (0..count).for_each(|i| sender.transmit.post(i));
        while black_box(sender.transmit.used_idx()) != sender.transmit.idx {
            self.worker.turn();
        }
        self.guests.iter_mut().for_each(Guest::refill);
    }

    /// Has no guest want interrupts from now on, as drivers that poll do.
    #[allow(dead_code, reason = "not every benchmark does")]
    pub(crate) fn poll_only(&mut self) {
        for ring in self.guests.iter().flat_map(|guest| [&guest.transmit, &guest.receive]) {
            ring.write(ring.avail, NO_INTERRUPT);
        }
    }

    /// Has a guest send `count` times what it has loaded, and all guests take what they get. Returns how long the
    /// worker was busy with it, from the moment that the frames were available to it and it was polling.
    pub(crate) fn send(&mut self, from: usize, count: u16) -> Duration {
        let sender = &mut self.guests[from];
        sender.kick.write_all(&1u64.to_ne_bytes()).unwrap();
        self.worker.turn();
        (0..count).for_each(|i| sender.transmit.post(i));
        let start = Instant::now();
        while black_box(sender.transmit.used_idx()) != sender.transmit.idx {
            self.worker.turn();
        }
        let time = start.elapsed();
        self.guests.iter_mut().for_each(Guest::refill);
        time
    }

    /// Receive buffers that a guest has got back since it was made.
    pub(crate) fn received(&self, to: usize) -> u16 {
        self.guests[to].refilled
    }
}

impl Guest {
    fn refill(&mut self) {
        let used = self.receive.used_idx();
        while self.refilled != used {
            let slot = u64::from(self.refilled % RING_SIZE);
            let head = self.receive.read(self.receive.used + 4 + 8 * slot);
            self.receive.post(head);
            self.refilled = self.refilled.wrapping_add(1);
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for port in self.guests.iter().map(|guest| guest.port.clone()).collect::<Vec<_>>() {
            self.post(&port, Message::Detach);
        }
    }
}
