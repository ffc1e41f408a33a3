//! A frame from one guest's transmit ring to another's receive ring: take, deliver, give back, tell. Our walker against
//! virtio-queue as its documentation has it used, on the same kind of rings in the same process.
//!
//! The two run in turn within every sample, a burst each, so that a machine whose speed moves shifts both; each
//! sample is one variant's share. Both guests' drivers are played by the benchmark outside of the time that is taken.
//! Times are for one frame.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guestwire::ring::mailbox::RingSetup;
use guestwire::ring::{BURST_FRAMES_MAX, Burst, GuestMem, RingOptions, RxRing, TxRing};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

#[path = "../src/ring/tests/driver.rs"]
mod driver;

use driver::{DriverRing, NEXT, WRITE};

const RING_SIZE: u16 = 256;
const HEADER_LEN: u64 = 12;
/// Bytes from one buffer to the next.
const STRIDE: u64 = 0x1_1000;
const BUFFERS: u64 = 0x10_0000;

/// One guest with one ring, each of whose descriptors has a buffer of its own.
fn guest(flags: u16, frame_len: u64) -> DriverRing {
    let len = (BUFFERS + STRIDE * u64::from(RING_SIZE)) as usize;
    let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap());
    let ring = DriverRing::new(&mem, 0, RING_SIZE, 0);
    for i in (0..RING_SIZE).step_by(2) {
        // As Linux sends: the header, and the frame behind it in a buffer of its own.
        let at = BUFFERS + STRIDE * u64::from(i);
        mem.write_slice(&[0; HEADER_LEN as usize], GuestAddress(at)).unwrap();
        mem.write_slice(&vec![0x5a; frame_len as usize], GuestAddress(at + HEADER_LEN)).unwrap();
        if flags == WRITE {
            ring.describe(i, (at, (HEADER_LEN + frame_len) as u32, WRITE, 0));
        } else {
            ring.describe(i, (at, HEADER_LEN as u32, NEXT, i + 1));
            ring.describe(i + 1, (at + HEADER_LEN, frame_len as u32, 0, 0));
        }
    }
    ring
}

/// A variant with its two guests.
trait Variant {
    /// Moves a burst of frames that is available; returns how many.
    fn forward(&mut self) -> usize;
    fn drivers(&mut self) -> [&mut DriverRing; 2];

    /// The time that one burst takes, after both drivers have made their chains available.
    fn burst(&mut self) -> Duration {
        for driver in self.drivers() {
            (0..BURST_FRAMES_MAX as u16).for_each(|i| driver.post(2 * i));
        }
        let start = Instant::now();
        let moved = black_box(self.forward());
        let time = start.elapsed();
        assert_eq!(moved, BURST_FRAMES_MAX);
        assert!(self.drivers().iter().all(|driver| driver.used_idx() == driver.idx), "both guests were told of all");
        time
    }
}

struct Ours {
    drivers: [DriverRing; 2],
    tx: TxRing,
    rx: RxRing,
    burst: Burst,
}

impl Ours {
    fn new(frame_len: u64) -> Self {
        let drivers = [guest(0, frame_len), guest(WRITE, frame_len)];
        let options = RingOptions { event_idx: true, indirect: true };
        let mem = |driver: &DriverRing| Arc::new(GuestMem::new(driver.mem.clone()).unwrap());
        let tx = TxRing::new(mem(&drivers[0]), &mut drivers[0].setup(), options, 12, true).unwrap();
        let rx = RxRing::new(mem(&drivers[1]), &mut drivers[1].setup(), options, 12, true).unwrap();
        Self { drivers, tx, rx, burst: Burst::default() }
    }
}

impl Variant for Ours {
    fn forward(&mut self) -> usize {
        let mut moved = 0;
        // A burst also ends after so many bytes.
        loop {
            self.tx.take(&mut self.burst).unwrap();
            if self.burst.is_empty() {
                return moved;
            }
            for i in 0..self.burst.len() {
                black_box(self.burst.head(i));
                self.rx.deliver([0; 12], &self.burst.bytes(i)).unwrap();
            }
            self.rx.flush();
            self.tx.complete(&self.burst);
            moved += self.burst.len();
        }
    }

    fn drivers(&mut self) -> [&mut DriverRing; 2] {
        self.drivers.each_mut()
    }
}

/// virtio-queue: chains popped one by one, read and written through the guest's memory, and given back one by one.
struct Idiomatic {
    drivers: [DriverRing; 2],
    queues: [Queue; 2],
    mems: [GuestMemoryAtomic<GuestMemoryMmap>; 2],
    calls: RingSetup,
    frame: Vec<u8>,
}

impl Idiomatic {
    fn new(frame_len: u64) -> Self {
        let drivers = [guest(0, frame_len), guest(WRITE, frame_len)];
        let queues = drivers.each_ref().map(|driver| {
            let mut queue = Queue::new(RING_SIZE).unwrap();
            queue.try_set_desc_table_address(GuestAddress(driver.desc)).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(driver.avail)).unwrap();
            queue.try_set_used_ring_address(GuestAddress(driver.used)).unwrap();
            queue.set_event_idx(true);
            queue.set_ready(true);
            queue
        });
        let mems = drivers.each_ref().map(|driver| GuestMemoryAtomic::from(driver.mem.clone()));
        let calls = drivers[0].setup();
        Self { drivers, queues, mems, calls, frame: Vec::new() }
    }
}

impl Variant for Idiomatic {
    fn forward(&mut self) -> usize {
        let Self { queues: [tx, rx], mems, frame, calls, .. } = self;
        let mut moved = 0;
        loop {
            let (from, to) = (mems[0].memory(), mems[1].memory());
            let Some(sent) = tx.pop_descriptor_chain(from.clone()) else { break };
            let head = sent.head_index();
            frame.clear();
            for descriptor in sent {
                let at = frame.len();
                frame.resize(at + descriptor.len() as usize, 0);
                from.read_slice(&mut frame[at..], descriptor.addr()).unwrap();
            }
            black_box(&frame[..14]);
            let received = rx.pop_descriptor_chain(to.clone()).unwrap();
            let (index, mut written) = (received.head_index(), 0);
            for descriptor in received {
                let n = (descriptor.len() as usize).min(frame.len() - written);
                to.write_slice(&frame[written..written + n], descriptor.addr()).unwrap();
                written += n;
            }
            rx.add_used(&*to, index, written as u32).unwrap();
            tx.add_used(&*from, head, 0).unwrap();
            moved += 1;
        }
        for (queue, mem) in [(tx, &mems[0]), (rx, &mems[1])] {
            if queue.needs_notification(&*mem.memory()).unwrap() {
                guestwire::ring::signal(calls.call.as_ref());
            }
        }
        moved
    }

    fn drivers(&mut self) -> [&mut DriverRing; 2] {
        self.drivers.each_mut()
    }
}

fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    for frame_len in [64, 1500, 65_536] {
        let mut variants: [Box<dyn Variant>; 2] = [Box::new(Ours::new(frame_len)), Box::new(Idiomatic::new(frame_len))];
        group.throughput(Throughput::Bytes(frame_len));
        for (measured, name) in ["ours", "virtio-queue"].into_iter().enumerate() {
            group.bench_function(BenchmarkId::new(name, frame_len), |bencher| {
                bencher.iter_custom(|iterations| {
                    let bursts = iterations.div_ceil(BURST_FRAMES_MAX as u64);
                    let mut times = [Duration::ZERO; 2];
                    for _ in 0..bursts {
                        for (variant, time) in variants.iter_mut().zip(&mut times) {
                            *time += variant.burst();
                        }
                    }
                    // For the frames that were asked for, of those that whole bursts have moved.
                    times[measured].mul_f64(iterations as f64 / (bursts * BURST_FRAMES_MAX as u64) as f64)
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(4));
    targets = forward
}
criterion_main!(benches);
