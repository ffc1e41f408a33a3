//! The rings against virtio-queue: the same operations on two copies of a guest's memory must leave the same memory,
//! and
//! lead to the same frames, refusals and interrupts.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT, desc::split::Descriptor};

use super::*;

const HEADER_LEN: usize = 12;
/// Descriptors of tables lie here, one table for each slot of the ring.
const TABLES: u64 = 0x2000;

/// What the driver and we do.
#[derive(Clone, Debug)]
enum Op {
    /// A chain of buffers: where each begins (for some, across two regions), and its length.
    Post { buffers: Vec<(u16, u16)>, indirect_from: Option<usize> },
    /// The driver's wish: no interrupts, or one at an entry this far from the used index.
    Wish { distance: i8, none: bool },
    /// Take a burst and give it back; or deliver a frame of this length and tell.
    Move(u16),
    /// Say that no kick is needed.
    Quiet,
    /// Ask for a kick.
    Arm,
}

fn op() -> impl Strategy<Value = Op> {
    let buffer = (any::<u16>(), prop_oneof![3 => 0u16..300, 1 => 0u16..2000]);
    let indirect = prop_oneof![Just(None), (0usize..3).prop_map(Some)];
    prop_oneof![
        6 => (vec(buffer, 1..5), indirect).prop_map(|(buffers, indirect_from)| Op::Post { buffers, indirect_from }),
        2 => (any::<i8>(), any::<bool>()).prop_map(|(distance, none)| Op::Wish { distance, none }),
        5 => (0u16..1600).prop_map(Op::Move),
        1 => Just(Op::Quiet),
        1 => Just(Op::Arm),
    ]
}

/// Half of the buffers lie about the seam between two regions that adjoin.
fn place(raw: u16) -> u64 {
    if raw & 1 == 0 { 0x3c00 + u64::from(raw >> 1 & 0x7ff) } else { BUFFERS + u64::from(raw >> 3) }
}

/// The two sides: ours on one copy of the memory, the oracle on another.
struct Pair {
    drivers: [DriverRing; 2],
    oracle: Queue,
    event_idx: bool,
    /// Heads that the driver may use.
    free: Vec<u16>,
    /// Chains in the order in which they were made available.
    posted: Vec<u16>,
}

impl Pair {
    fn new(size: u16, start: u16, event_idx: bool) -> Self {
        let drivers = [memory(), memory()].map(|mem| {
            // What is sent, and what is behind a frame that is received.
            mem.write_slice(&pattern(0x1000), GuestAddress(0x3800)).unwrap();
            mem.write_slice(&pattern(0x8000), GuestAddress(BUFFERS)).unwrap();
            DriverRing::new(&mem, 0, size, start)
        });
        let mut oracle = Queue::new(size).unwrap();
        oracle.try_set_desc_table_address(GuestAddress(drivers[1].desc)).unwrap();
        oracle.try_set_avail_ring_address(GuestAddress(drivers[1].avail)).unwrap();
        oracle.try_set_used_ring_address(GuestAddress(drivers[1].used)).unwrap();
        oracle.set_event_idx(event_idx);
        oracle.set_next_avail(start);
        oracle.set_next_used(start);
        oracle.set_ready(true);
        Self { drivers, oracle, event_idx, free: (0..size).collect(), posted: Vec::new() }
    }

    fn options(&self) -> RingOptions {
        RingOptions { event_idx: self.event_idx, indirect: true }
    }

    /// Writes the same chain into both memories, if the driver has the descriptors for it.
    fn post(&mut self, buffers: &[(u16, u16)], indirect_from: Option<usize>, flags: u16) {
        let direct = indirect_from.map_or(buffers.len(), |from| from.min(buffers.len() - 1));
        let inner = buffers.len() - direct;
        let needed = direct + usize::from(inner > 0);
        let size = usize::from(self.drivers[0].size);
        if needed > self.free.len() || inner > size || direct + inner > size {
            return;
        }
        let chain = self.free.split_off(self.free.len() - needed);
        let table = TABLES + 64 * u64::from(chain[0]) + 3;
        for driver in &mut self.drivers {
            for (i, &(raw, len)) in buffers.iter().enumerate() {
                let more = if i + 1 < buffers.len() { NEXT } else { 0 };
                let descriptor = |next| (place(raw), u32::from(len), flags | more, next);
                if i < direct {
                    driver.describe(chain[i], descriptor(chain.get(i + 1).copied().unwrap_or(0)));
                } else {
                    driver.describe_in(table, (i - direct) as u16, descriptor((i - direct) as u16 + 1));
                }
            }
            if inner > 0 {
                driver.describe(chain[direct], (table, 16 * inner as u32, INDIRECT, 0));
            }
            driver.post(chain[0]);
        }
        self.posted.extend(&chain);
    }

    fn wish(&self, distance: i8, none: bool) {
        for driver in &self.drivers {
            driver.write(driver.avail, u16::from(none));
            let event = driver.used_idx().wrapping_add_signed(i16::from(distance));
            driver.write(driver.avail + 4 + 2 * u64::from(driver.size), event);
        }
    }

    /// Whether an interrupt is due, as the oracle sees it; it does not know the flag.
    fn interrupt(&mut self, something: bool) -> bool {
        let driver = &self.drivers[1];
        let oracle = self.oracle.needs_notification(&*driver.mem).unwrap();
        something && oracle && (self.event_idx || driver.read(driver.avail) & 1 == 0)
    }

    /// The oracle's next chains.
    fn chains(&mut self) -> Vec<(u16, Vec<Descriptor>)> {
        let mem = self.drivers[1].mem.clone();
        self.oracle.iter(&*mem).unwrap().map(|chain| (chain.head_index(), chain.collect())).collect()
    }

    /// Descriptors are free again once nothing is in flight.
    fn reuse(&mut self, next_avail: u16) {
        if next_avail == self.drivers[0].idx {
            self.free.append(&mut self.posted);
        }
    }

    fn same(&self) -> Result<(), TestCaseError> {
        for (start, len) in REGIONS {
            let [ours, theirs] = [0, 1].map(|i| read(&self.drivers[i].mem, start, len));
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            prop_assert_eq!(differs, None, "in the region at {:#x}", start);
        }
        Ok(())
    }

    fn quiet_and_arm(
        &mut self,
        op: &Op,
        quiet: impl FnOnce(),
        arm: impl FnOnce() -> bool,
    ) -> Result<(), TestCaseError> {
        let mem = self.drivers[1].mem.clone();
        match op {
            Op::Quiet => {
                quiet();
                self.oracle.disable_notification(&*mem).unwrap();
            }
            Op::Arm => prop_assert_eq!(arm(), self.oracle.enable_notification(&*mem).unwrap()),
            _ => {}
        }
        Ok(())
    }
}

fn content(mem: &GuestMemoryMmap, chain: &[Descriptor]) -> Vec<u8> {
    chain.iter().flat_map(|d| read(mem, d.addr().0, d.len() as usize)).collect()
}

fn transmit_as_the_oracle(size: u16, start: u16, event_idx: bool, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(size, start, event_idx);
    let (mem, mut setup) = (snapshot(&pair.drivers[0].mem), pair.drivers[0].setup());
    let mut ring = TxRing::new(mem, &mut setup, pair.options(), HEADER_LEN, true).unwrap();
    let mut burst = Burst::default();
    for op in ops {
        match op {
            Op::Post { buffers, indirect_from } => pair.post(buffers, *indirect_from, 0),
            Op::Wish { distance, none } => pair.wish(*distance, *none),
            Op::Move(_) => {
                ring.take(&mut burst).unwrap();
                let mut chains = pair.chains();
                // The oracle takes all there are. Bursts have a bound, and what was seen before is taken without a new
                // look.
                prop_assert!(burst.len() <= chains.len().min(BURST_FRAMES_MAX));
                prop_assert_eq!(burst.is_empty(), chains.is_empty());
                chains.truncate(burst.len());
                pair.oracle.set_next_avail(ring.next_avail());
                let theirs = pair.drivers[1].mem.clone();
                for (i, (head, chain)) in chains.iter().enumerate() {
                    let mut whole = content(&theirs, chain);
                    let header = whole.len().min(HEADER_LEN);
                    prop_assert_eq!(bytes_of(&burst, i), &whole[header..]);
                    whole.resize(whole.len().max(VNET_HEADER_READ), 0);
                    whole[header.min(VNET_HEADER_READ)..VNET_HEADER_READ].fill(0);
                    prop_assert_eq!(&burst.vnet(i)[..], &whole[..VNET_HEADER_READ]);
                    pair.oracle.add_used(&*theirs, *head, 0).unwrap();
                }
                let interrupt = pair.interrupt(!burst.is_empty());
                prop_assert_eq!(ring.complete(&burst), interrupt);
                pair.reuse(ring.next_avail());
            }
            Op::Quiet => pair.quiet_and_arm(op, || ring.quiet(), || false)?,
            Op::Arm => pair.quiet_and_arm(op, || {}, || ring.arm().unwrap())?,
        }
        pair.same()?;
    }
    Ok(())
}

/// What the oracle does with a frame: writes it, or says why not. Returns how many chains it filled.
fn deliver_by_the_oracle(pair: &mut Pair, header: [u8; 12], frame: &[u8], mergeable: bool) -> Result<usize, Refusal> {
    let next = pair.oracle.next_avail();
    let chains = pair.chains();
    let capacity = |chain: &[Descriptor]| chain.iter().map(|d| d.len() as usize).sum::<usize>();
    let need = HEADER_LEN + frame.len();
    let (mut used, mut room) = (0, 0);
    while room < need {
        let refusal = if used > 0 && !mergeable { Refusal::TooBig } else { Refusal::NoBuffer };
        if used == chains.len() || refusal == Refusal::TooBig {
            pair.oracle.set_next_avail(next);
            return Err(refusal);
        }
        room += capacity(&chains[used].1);
        used += 1;
    }
    pair.oracle.set_next_avail(next.wrapping_add(used as u16));
    let mut data = [&header[..10], &(used as u16).to_le_bytes(), frame].concat();
    let mem = pair.drivers[1].mem.clone();
    for (head, chain) in &chains[..used] {
        let mut written = 0;
        for d in chain {
            let rest = data.split_off(data.len().min(d.len() as usize));
            mem.write_slice(&data, d.addr()).unwrap();
            written += data.len();
            data = rest;
        }
        pair.oracle.add_used(&*mem, *head, written as u32).unwrap();
    }
    Ok(used)
}

fn receive_as_the_oracle(
    size: u16,
    start: u16,
    event_idx: bool,
    mergeable: bool,
    ops: &[Op],
) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(size, start, event_idx);
    let (mem, mut setup) = (snapshot(&pair.drivers[0].mem), pair.drivers[0].setup());
    let mut ring = RxRing::new(mem, &mut setup, pair.options(), HEADER_LEN, mergeable).unwrap();
    pair.quiet_and_arm(&Op::Quiet, || {}, || false)?;
    for (i, op) in ops.iter().enumerate() {
        match op {
            Op::Post { buffers, indirect_from } => {
                let mut buffers = buffers.clone();
                // Less than the header is a lie, and no buffer may be written twice by one frame.
                buffers[0].1 = buffers[0].1.max(12);
                for (k, buffer) in buffers.iter_mut().enumerate() {
                    *buffer = (((pair.posted.len() + k) as u16 * 0x800) | 1, buffer.1.min(0x100));
                }
                pair.post(&buffers, *indirect_from, WRITE);
            }
            Op::Wish { distance, none } => pair.wish(*distance, *none),
            Op::Move(len) => {
                let frame: Vec<u8> = pattern(usize::from(*len)).iter().map(|b| b ^ i as u8).collect();
                let ours = ring.deliver([0x77; 12], &Bytes::private(&frame));
                let theirs = deliver_by_the_oracle(&mut pair, [0x77; 12], &frame, mergeable);
                prop_assert_eq!(ours, theirs.map(|_| ()));
                let interrupt = pair.interrupt(ours.is_ok());
                prop_assert_eq!(ring.flush(), u64::from(interrupt));
                prop_assert_eq!(ring.next_avail(), pair.oracle.next_avail());
                pair.reuse(ring.next_avail());
            }
            Op::Quiet | Op::Arm => {}
        }
        pair.same()?;
    }
    Ok(())
}

/// A table of descriptors that may be anything, and a second one for it to refer to.
fn wild_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![
        4 => Just(TABLES),
        4 => (0u64..0x7000).prop_map(|at| BUFFERS + at),
        1 => Just(0x3ff0u64),
        1 => Just(0x5ff0u64),
        1 => Just(u64::MAX - 8),
    ];
    let len = prop_oneof![3 => (0u32..10).prop_map(|n| 16 * n), 2 => 0u32..100, 1 => Just(u32::MAX)];
    let flags = prop_oneof![4 => Just(0u16), 6 => Just(NEXT), 2 => Just(INDIRECT), 1 => 0u16..8];
    (addr, len, flags, 0u16..9)
}

/// Whether virtio-queue reaches the end of the chain and can read all of it.
fn complete(mem: &GuestMemoryMmap, chain: &[Descriptor]) -> bool {
    let readable = |d: &Descriptor| {
        let mut bytes = vec![0; (d.len() as usize).min(0x10_0000)];
        !d.is_write_only() && (bytes.is_empty() || mem.read_slice(&mut bytes, d.addr()).is_ok())
    };
    chain.last().is_some_and(|last| !last.has_next()) && chain.iter().all(readable)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 400 }, ..ProptestConfig::default() })]

    #[test]
    fn frames_are_taken_as_the_oracle_takes_them(
        size in 0u32..7, start: u16, event_idx: bool, ops in vec(op(), 1..80),
    ) {
        transmit_as_the_oracle(1 << size, start, event_idx, &ops)?;
    }

    #[test]
    fn frames_are_delivered_as_the_oracle_would(
        size in 0u32..5, start: u16, event_idx: bool, mergeable: bool, ops in vec(op(), 1..80),
    ) {
        receive_as_the_oracle(1 << size, start, event_idx, mergeable, &ops)?;
    }

    #[test]
    fn a_chain_is_refused_where_the_oracle_cannot_finish_it(
        direct in vec(wild_descriptor(), 8), table in vec(wild_descriptor(), 8), head in 0u16..9, indirect: bool,
    ) {
        let mut pair = Pair::new(8, 0, false);
        let (mem, mut setup) = (snapshot(&pair.drivers[0].mem), pair.drivers[0].setup());
        let options = RingOptions { event_idx: false, indirect };
        let mut ring = TxRing::new(mem, &mut setup, options, 0, false).unwrap();
        for driver in &mut pair.drivers {
            direct.iter().zip(0..).for_each(|(d, i)| driver.describe(i, *d));
            table.iter().zip(0..).for_each(|(d, i)| driver.describe_in(TABLES, i, *d));
            driver.post(head);
        }
        let mut burst = Burst::default();
        let (_, chain) = pair.chains().remove(0);
        let theirs = pair.drivers[1].mem.clone();
        match ring.take(&mut burst) {
            Ok(()) => {
                prop_assert!(complete(&theirs, &chain));
                if burst.frame_len(0) <= FRAME_LEN_MAX {
                    prop_assert_eq!(bytes_of(&burst, 0), content(&theirs, &chain));
                }
            }
            // What the oracle lets pass: it leaves these rules of 2.7.5.3 to the device.
            Err(RingError::IndirectNotNegotiated) => prop_assert!(!indirect),
            Err(RingError::IndirectMisplaced("goes on with another descriptor")) => {}
            Err(RingError::IndirectLength(len)) => prop_assert!(len % 16 != 0 || len == 0 || len > 8 * 16),
            Err(RingError::ChainTooLong(room)) if room < 8 => {}
            Err(RingError::BufferOutside { addr: 0x3ff0 | 0x5ff0, .. }) => {}
            Err(error) => prop_assert!(!complete(&theirs, &chain), "{}", error),
        }
    }
}
