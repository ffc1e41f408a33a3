//! A hostile guest: it writes anything into its rings between our calls and, in some inputs, from a second thread
//! during them. Its frames are taken and delivered to its own receive ring or to another guest's, and frames of an
//! uplink are read straight into that ring's buffers. Nothing may panic, loop, or touch a byte outside of the guests'
//! memory, which lies between pages that nobody may touch.
#![no_main]

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread::Thread;

use guestwire::ring::mailbox::RingSetup;
use guestwire::ring::{
    BURST_FRAMES_MAX, Burst, ControlRing, FRAME_LEN_MAX, HEAD_MAX, InPlace, Refusal, RingError, RingOptions, RxRing,
    TxRing, VNET_HEADER_READ, VNET_HEADER_WRITTEN,
};
use guestwire::sys::uio::read_in_place;
use guestwire_fuzz::memory::GuardedMemory;
use guestwire_fuzz::{Input, canary};
use libfuzzer_sys::fuzz_target;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// What a guest does in one input.
const STEPS_MAX: usize = 128;

/// The sender and the receiver.
static GUESTS: LazyLock<[GuardedMemory; 2]> = LazyLock::new(Default::default);
static EVENT: LazyLock<EventFd> = LazyLock::new(|| {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    EventFd::from_flags(flags).expect("an eventfd")
});

/// The uplink, and its other end.
static UPLINK: LazyLock<[UnixDatagram; 2]> = LazyLock::new(|| {
    let (ours, other) = UnixDatagram::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    [ours, other]
});
/// What comes from the uplink: a virtio-net header, and the longest frame of bytes that no two neighbours share.
static ARRIVING: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..VNET_HEADER_WRITTEN + FRAME_LEN_MAX + 1).map(|i| (i % 251) as u8).collect());

/// Where a ring of `size` entries lies: descriptor table, available ring, used ring.
fn areas(base: u64, size: u16) -> [u64; 3] {
    let size = u64::from(size);
    let avail = base + 16 * size;
    [base, avail, (avail + 6 + 2 * size).next_multiple_of(4)]
}

/// One ring, as the guest's side of it is written.
#[derive(Clone, Copy)]
struct Place {
    guest: usize,
    size: u16,
    areas: [u64; 3],
}

impl Place {
    fn setup(&self, start: (u16, u16)) -> RingSetup {
        let event = || -> OwnedFd {
            use std::os::fd::AsFd;
            EVENT.as_fd().try_clone_to_owned().expect("a descriptor")
        };
        let [desc, avail, used] = self.areas;
        let (next_avail, next_used) = start;
        RingSetup {
            size: self.size,
            desc,
            avail,
            used,
            next_avail,
            next_used,
            kick: event(),
            call: Some(event()),
            err: None,
        }
    }

    /// Writes descriptor `index` of the table at `table`.
    fn describe(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        GUESTS[self.guest].write(table.wrapping_add(16 * u64::from(index)), &bytes);
    }

    /// Makes the chain at `head` available.
    fn post(&self, head: u16) {
        let [_, avail, _] = self.areas;
        let idx = GUESTS[self.guest].u16(avail.wrapping_add(2));
        let slot = u64::from(idx & self.size.wrapping_sub(1));
        GUESTS[self.guest].write(avail.wrapping_add(4 + 2 * slot), &head.to_le_bytes());
        GUESTS[self.guest].write(avail.wrapping_add(2), &idx.wrapping_add(1).to_le_bytes());
    }
}

/// A guest address that is likely to mean something: 16 bits, with the high region in the last page of them.
fn address(raw: u16) -> u64 {
    match raw >> 12 {
        0..8 => u64::from(raw),
        8..12 => 0x1_0000 + u64::from(raw & 0x3fff),
        _ => 0xffff_ffff_ffff_e000 + u64::from(raw & 0x1fff),
    }
}

fuzz_target!(|data: &[u8]| {
    if canary(data) {
        return;
    }
    let mut input = Input::new(data);
    for guest in GUESTS.iter() {
        guest.clear();
    }
    let flags = input.u8();
    let racing = flags & 0xe0 == 0xe0;
    if let Some(mut world) = World::new(flags, &mut input) {
        let writes = usize::from(input.u8()) % WRITES_MAX;
        let race = racing.then(|| Race::begin((0..writes).map(|_| (address(input.u16()), input.u16())).collect()));
        for _ in 0..STEPS_MAX {
            if input.is_empty() || world.step(&mut input).is_err() {
                break;
            }
        }
        drop(race);
    }
});

struct World {
    rings: [Place; 2],
    tx: TxRing,
    rx: RxRing,
    control: ControlRing,
    burst: Burst,
    in_place: InPlace,
}

impl World {
    fn new(flags: u8, input: &mut Input) -> Option<Self> {
        let options = RingOptions { event_idx: flags & 1 != 0, indirect: flags & 2 != 0 };
        let (mergeable, read_header) = (flags & 4 != 0, flags & 8 != 0);
        let other = usize::from(flags >> 4 & 1);
        let sizes = input.u8();
        let header_len = if sizes & 0x80 == 0 { 12 } else { 10 };
        let (tx_size, rx_size) = (1 << (sizes & 7), 1 << (sizes >> 3 & 7));
        let mut rings = [
            Place { guest: 0, size: tx_size, areas: areas(0, tx_size) },
            Place { guest: other, size: rx_size, areas: areas(0x2000, rx_size) },
        ];
        if sizes & 0x40 != 0 {
            rings[0].size = input.u16();
            rings[0].areas = [input.u16(), input.u16(), input.u16()].map(address);
        }
        let start = (input.u16(), input.u16());
        let mem = |place: &Place| GUESTS[place.guest].snapshot.clone();
        for place in &rings {
            // The driver starts where we do.
            GUESTS[place.guest].write(place.areas[1].wrapping_add(2), &start.0.to_le_bytes());
        }
        let tx = TxRing::new(mem(&rings[0]), &mut rings[0].setup(start), options, header_len, read_header).ok()?;
        let rx = RxRing::new(mem(&rings[1]), &mut rings[1].setup(start), options, header_len, mergeable).ok()?;
        let control = ControlRing::new(mem(&rings[0]), &mut rings[0].setup(start), options).ok()?;
        Some(Self { rings, tx, rx, control, burst: Burst::default(), in_place: InPlace::default() })
    }

    /// One thing that the guest or we do. An error stops the ring, as the worker does.
    fn step(&mut self, input: &mut Input) -> Result<(), RingError> {
        let op = input.u8();
        let place = self.rings[usize::from(op >> 7)];
        match op & 0x0f {
            0 => GUESTS[place.guest].write(address(input.u16()), &input.u8().to_le_bytes()),
            1 => GUESTS[place.guest].write(address(input.u16()), &input.u16().to_le_bytes()),
            2 => GUESTS[place.guest].write(address(input.u16()), &input.u64().to_le_bytes()),
            3 => {
                let len = usize::from(input.u8() & 0x3f);
                GUESTS[place.guest].write(address(input.u16()), input.bytes(len));
            }
            4 => place.post(u16::from(input.u8())),
            5 | 6 => self.describe(&place, op & 0x0f == 6, input),
            7 => GUESTS[place.guest].write(place.areas[1].wrapping_add(2), &input.u16().to_le_bytes()),
            8 => self.forward()?,
            9 => self.read_in_place(usize::from(input.u16()), input.u8())?,
            10 => {
                self.rx.flush();
            }
            11 => {
                self.tx.arm()?;
            }
            12 => self.tx.quiet(),
            13 => self.tx.rebase(GUESTS[0].snapshot.clone())?,
            14 => self.rx.rebase(GUESTS[self.rings[1].guest].snapshot.clone())?,
            _ => self.control()?,
        }
        Ok(())
    }

    /// Writes a descriptor of the ring's table, or of an indirect one.
    fn describe(&self, place: &Place, wide: bool, input: &mut Input) {
        let index = input.u8();
        let addr = address(input.u16());
        let (len, flags, next) = match wide {
            true => (input.u32(), input.u16(), input.u16()),
            false => (u32::from(input.u16()), u16::from(index >> 5), u16::from(input.u8())),
        };
        let table = if index & 0x10 == 0 { place.areas[0] } else { 0x1_0000 };
        place.describe(table, u16::from(index & 0x0f), addr, len, flags, next);
    }

    /// Takes a burst and delivers each of its frames.
    fn forward(&mut self) -> Result<(), RingError> {
        let before = self.tx.next_avail();
        self.tx.take(&mut self.burst)?;
        let count = self.burst.len();
        assert!(count <= BURST_FRAMES_MAX);
        assert_eq!(self.tx.next_avail().wrapping_sub(before), count as u16);
        let mut copy = Vec::new();
        for i in 0..count {
            let (head, bytes, len) = (self.burst.head(i), self.burst.bytes(i), self.burst.frame_len(i));
            assert!(head.len() <= HEAD_MAX && head.len() <= len);
            assert_eq!(bytes.len(), if len > FRAME_LEN_MAX { 0 } else { len });
            bytes.copy_out(&mut copy);
            assert_eq!(copy.len(), bytes.len());
            // Whatever the guest has rewritten since: what was judged is what is sent.
            assert!(len > FRAME_LEN_MAX || copy.starts_with(head));
            if len > FRAME_LEN_MAX {
                continue;
            }
            let next = self.rx.next_avail();
            match self.rx.deliver([0xaa; VNET_HEADER_WRITTEN], &bytes) {
                Ok(()) => assert_ne!(self.rx.next_avail(), next),
                Err(Refusal::NoBuffer | Refusal::TooBig) => assert_eq!(self.rx.next_avail(), next),
                Err(Refusal::Ring(error)) => return Err(error),
            }
        }
        self.tx.complete(&self.burst);
        self.rx.flush();
        Ok(())
    }

    /// Reads a frame of `len` bytes into the receive ring's next buffers and delivers it, or drops it.
    fn read_in_place(&mut self, len: usize, fate: u8) -> Result<(), RingError> {
        let next = self.rx.next_avail();
        if self.in_place.lend(&mut self.rx, FRAME_LEN_MAX) < FRAME_LEN_MAX {
            return Ok(());
        }
        let frame = &ARRIVING[VNET_HEADER_WRITTEN..][..len.min(FRAME_LEN_MAX)];
        let [ours, other] = &*UPLINK;
        other.send(&ARRIVING[..VNET_HEADER_WRITTEN + frame.len()]).expect("there is room");
        assert_eq!(read_in_place(ours, &mut self.in_place).expect("a frame"), VNET_HEADER_WRITTEN + frame.len());
        assert_eq!(self.in_place.head(frame.len()), &frame[..frame.len().min(HEAD_MAX)]);
        let burst = self.in_place.frame([0; VNET_HEADER_READ], frame.len());
        assert_eq!((burst.len(), burst.frame_len(0), burst.bytes(0).len()), (1, frame.len(), frame.len()));
        let delivered =
            if fate & 1 == 0 { self.rx.deliver([0xaa; VNET_HEADER_WRITTEN], &burst.bytes(0)) } else { Ok(()) };
        self.in_place.release();
        match delivered {
            Ok(()) => assert_eq!(self.rx.next_avail() == next, fate & 1 != 0, "what is dropped takes no buffer"),
            Err(Refusal::NoBuffer | Refusal::TooBig) => assert_eq!(self.rx.next_avail(), next),
            Err(Refusal::Ring(error)) => return Err(error),
        }
        self.rx.flush();
        Ok(())
    }

    fn control(&mut self) -> Result<(), RingError> {
        let mut seen = 0;
        while seen < 64 && self.control.serve_one(|command| command.first().copied().unwrap_or(1))? {
            seen += 1;
        }
        self.control.flush();
        self.control.arm()?;
        Ok(())
    }
}

/// Writes that the guest's second processor makes.
const WRITES_MAX: usize = 16;
/// How often it looks for work before it goes to sleep.
const IDLE_YIELDS: u32 = 1000;

const IDLE: u8 = 0;
const ASKED: u8 = 1;
const RUNNING: u8 = 2;
const STOPPING: u8 = 3;

/// What the guest's second processor is doing.
static STATE: AtomicU8 = AtomicU8::new(IDLE);
static WRITES: Mutex<Vec<(u64, u16)>> = Mutex::new(Vec::new());
static PROCESSOR: LazyLock<Thread> =
    LazyLock::new(|| std::thread::Builder::new().spawn(second_processor).expect("a thread").thread().clone());

/// The guest's second processor at work, until this is dropped. It may begin late or, on a busy machine, not at all.
struct Race;

impl Race {
    fn begin(writes: Vec<(u64, u16)>) -> Self {
        *WRITES.lock().expect("no panic") = writes;
        STATE.store(ASKED, Ordering::SeqCst);
        PROCESSOR.unpark();
        Self
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        if STATE.compare_exchange(ASKED, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            return;
        }
        let _ = STATE.compare_exchange(RUNNING, STOPPING, Ordering::SeqCst, Ordering::SeqCst);
        while STATE.load(Ordering::SeqCst) != IDLE {
            std::thread::yield_now();
        }
    }
}

/// Writes what it was asked to, again and again, into the sender's memory.
fn second_processor() {
    let mut idle = 0;
    loop {
        if STATE.compare_exchange(ASKED, RUNNING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            // Awake for a while: waking up takes longer than an input does.
            idle += 1;
            if idle < IDLE_YIELDS {
                std::thread::yield_now()
            } else {
                std::thread::park()
            }
            continue;
        }
        idle = 0;
        let writes = WRITES.lock().expect("no panic").clone();
        let mut again = false;
        while STATE.load(Ordering::SeqCst) == RUNNING {
            for (addr, value) in &writes {
                // Each value in turn with zero, so that a field changes and changes back.
                GUESTS[0].write(*addr, &(if again { *value } else { 0 }).to_le_bytes());
            }
            again = !again;
        }
        STATE.store(IDLE, Ordering::SeqCst);
    }
}
