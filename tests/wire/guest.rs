//! A guest with a virtio-net driver of its own.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use guestwire::vhost::features as f;
use std::os::fd::AsRawFd;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::daemon::PATIENCE;
use crate::memory::{BASE, Memory};
use crate::ring::{AVAIL, Buffer, RING_SPACE, Ring, USED};

/// Room for one frame of any length with its header.
const SLOT: usize = 72 * 1024;
/// Frames that a pair may have in flight, each way.
const SLOTS: usize = 64;
const SMALL_BUFFER: usize = 2048;
/// Room at the end of memory for one command and its answer.
const COMMAND_SPACE: usize = 8192;
const PAIR_SPACE: usize = 2 * RING_SPACE + 2 * SLOTS * SLOT;

/// How a guest is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// The features that its driver knows.
    pub(crate) features: u64,
    pub(crate) pairs: usize,
    pub(crate) size: u16,
    /// Bytes of a receive buffer where buffers are merged.
    pub(crate) buffer: usize,
    /// Give memory by ADD_MEM_REG instead of SET_MEM_TABLE.
    pub(crate) by_region: bool,
    /// Adjoining regions that the memory is told as. Their borders are in the middle of buffers.
    pub(crate) regions: usize,
    /// Last byte of its address.
    pub(crate) number: u8,
    /// The index at which its receive rings begin: a guest in mid-life, whose device is another than before.
    pub(crate) base: u16,
}

/// Everything but what changes the shape of a test.
pub(crate) const USUAL: u64 = f::VERSION_1
    | f::MRG_RXBUF
    | f::CSUM
    | f::GUEST_CSUM
    | f::HOST_TSO4
    | f::HOST_TSO6
    | f::GUEST_TSO4
    | f::GUEST_TSO6
    | f::HOST_USO
    | f::GUEST_USO4
    | f::GUEST_USO6
    | f::HOST_ECN
    | f::GUEST_ECN
    | f::EVENT_IDX
    | f::INDIRECT_DESC
    | f::PROTOCOL_FEATURES;

impl Config {
    pub(crate) fn usual(number: u8) -> Self {
        let (features, size, buffer) = (USUAL, 256, SMALL_BUFFER);
        Self { features, pairs: 1, size, buffer, by_region: false, regions: 1, number, base: 0 }
    }

    pub(crate) fn with(self, features: u64) -> Self {
        Self { features: self.features | features, ..self }
    }

    pub(crate) fn without(self, features: u64) -> Self {
        Self { features: self.features & !features, ..self }
    }
}

pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    pub(crate) memory: Rc<Memory>,
    pub(crate) config: Config,
    pub(crate) features: u64,
    pub(crate) receive: Vec<Ring>,
    pub(crate) transmit: Vec<Ring>,
    pub(crate) control: Option<Ring>,
    /// Where each chain's buffer is, by ring and head.
    receive_at: Vec<Vec<(usize, usize)>>,
    transmit_slots: Vec<Vec<usize>>,
    transmit_at: Vec<Vec<usize>>,
}

/// A frame as it was received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) header: [u8; 12],
    pub(crate) frame: Vec<u8>,
}

impl Received {
    pub(crate) fn needs_checksum(&self) -> bool {
        self.header[0] & 1 != 0
    }

    pub(crate) fn gso_type(&self) -> u8 {
        self.header[1]
    }

    pub(crate) fn gso_size(&self) -> u16 {
        u16::from_le_bytes([self.header[4], self.header[5]])
    }
}

pub(crate) fn mac(number: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number]
}

impl Guest {
    pub(crate) fn attach(socket: &Path, config: Config) -> Self {
        let mut guest = Self::prepare(socket, config);
        guest.start();
        guest
    }

    /// Connects and negotiates; no ring runs yet.
    pub(crate) fn prepare(socket: &Path, config: Config) -> Self {
        let rings = 2 * config.pairs as u64 + 1;
        let mut frontend = Frontend::connect(socket, rings.max(33)).expect("a connection");
        frontend.set_owner().expect("SET_OWNER");
        let offered = frontend.get_features().expect("GET_FEATURES");
        let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        frontend.set_protocol_features(protocol & known).expect("SET_PROTOCOL_FEATURES");
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        let features = offered & config.features;
        frontend.set_features(features).expect("SET_FEATURES");
        let memory =
            Rc::new(Memory::new((config.pairs * PAIR_SPACE + RING_SPACE + COMMAND_SPACE).next_multiple_of(4096)));
        let regions = regions(&memory, config.regions);
        if config.by_region {
            for region in &regions {
                frontend.add_mem_region(region).expect("ADD_MEM_REG");
            }
        } else {
            frontend.set_mem_table(&regions).expect("SET_MEM_TABLE");
        }
        Self {
            frontend,
            memory,
            config,
            features,
            receive: Vec::new(),
            transmit: Vec::new(),
            control: None,
            receive_at: Vec::new(),
            transmit_slots: Vec::new(),
            transmit_at: Vec::new(),
        }
    }

    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn ring(&self, at: usize) -> Ring {
        let (event_idx, indirect) = (self.has(f::EVENT_IDX), self.has(f::INDIRECT_DESC));
        let ring = Ring::new(self.memory.clone(), at, self.config.size, event_idx, indirect);
        if self.has(f::IN_ORDER) { ring.in_order() } else { ring }
    }

    /// Starts every ring and enables it, and fills the receive rings.
    pub(crate) fn start(&mut self) {
        for pair in 0..self.config.pairs {
            let at = pair * PAIR_SPACE;
            let (receive, transmit) = (self.ring(at).resumed_at(self.config.base), self.ring(at + RING_SPACE));
            let slots = at + 2 * RING_SPACE;
            self.receive.push(receive);
            self.transmit.push(transmit);
            self.receive_at.push(vec![(0, 0); usize::from(self.config.size)]);
            self.transmit_at.push(vec![0; usize::from(self.config.size)]);
            self.transmit_slots.push((0..SLOTS).map(|i| slots + i * SLOT).collect());
            self.fill(pair, slots + SLOTS * SLOT);
            self.start_ring(2 * pair, &self.receive[pair]);
            self.start_ring(2 * pair + 1, &self.transmit[pair]);
        }
        if self.has(f::CTRL_VQ) {
            let control = self.ring(self.config.pairs * PAIR_SPACE);
            let told = u16::from_le_bytes(self.read_config(8, 2).try_into().expect("two bytes"));
            let index = if self.has(f::MQ) { 2 * usize::from(told) } else { 2 };
            self.start_ring(index, &control);
            self.enable(index, true);
            self.control = Some(control);
        }
        for index in 0..2 * self.config.pairs {
            self.enable(index, true);
        }
    }

    /// The same guest with rings made anew, after a reset.
    pub(crate) fn restarted(mut self) -> Self {
        self.receive_at.clear();
        self.transmit_at.clear();
        self.transmit_slots.clear();
        self.start();
        self
    }

    /// Makes every receive buffer available.
    fn fill(&mut self, pair: usize, from: usize) {
        let (len, count) = if self.has(f::MRG_RXBUF) {
            (self.config.buffer, (SLOTS * SLOT / self.config.buffer).min(usize::from(self.config.size)))
        } else if self.takes_super_frames() {
            (SLOT, SLOTS.min(usize::from(self.config.size)))
        } else {
            (SMALL_BUFFER, usize::from(self.config.size))
        };
        for i in 0..count {
            let place = (from + i * len, len);
            if let Some(head) = self.receive[pair].push(&[(place.0, place.1, true)]) {
                self.receive_at[pair][usize::from(head)] = place;
            }
        }
        self.receive[pair].publish();
    }

    fn takes_super_frames(&self) -> bool {
        self.has(f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_USO4 | f::GUEST_USO6)
    }

    pub(crate) fn start_ring(&self, index: usize, ring: &Ring) {
        let address = |offset: usize| self.memory.user_address() + (ring.at + offset) as u64;
        self.frontend.set_vring_num(index, ring.size).expect("SET_VRING_NUM");
        self.frontend
            .set_vring_addr(
                index,
                &VringConfigData {
                    queue_max_size: ring.size,
                    queue_size: ring.size,
                    flags: 0,
                    desc_table_addr: address(0),
                    used_ring_addr: address(USED),
                    avail_ring_addr: address(AVAIL),
                    log_addr: None,
                },
            )
            .expect("SET_VRING_ADDR");
        self.frontend.set_vring_base(index, ring.used).expect("SET_VRING_BASE");
        self.frontend.set_vring_call(index, &ring.call).expect("SET_VRING_CALL");
        self.frontend.set_vring_kick(index, &ring.kick).expect("SET_VRING_KICK");
    }

    pub(crate) fn enable(&mut self, index: usize, on: bool) {
        self.frontend.set_vring_enable(index, on).expect("SET_VRING_ENABLE");
    }

    pub(crate) fn header_len(&self) -> usize {
        if self.has(f::VERSION_1) || self.has(f::MRG_RXBUF) { 12 } else { 10 }
    }

    /// Pushes a frame onto pair `pair`, split as `split` says (what is left is the last part), without telling the
    /// device. Returns false when there is no room.
    pub(crate) fn push(&mut self, pair: usize, header: &[u8; 12], frame: &[u8], split: &[usize]) -> bool {
        let mut left = self.header_len() + frame.len();
        let mut pieces = Vec::new();
        for &len in split.iter().chain([&usize::MAX]) {
            let len = len.min(left);
            if len > 0 {
                pieces.push(len);
                left -= len;
            }
        }
        self.push_pieces(pair, header, frame, &pieces).is_some()
    }

    /// Pushes a frame over descriptors of exactly these lengths; some may be zero. Returns the chain's head, or nothing
    /// when there is no room.
    fn push_pieces(&mut self, pair: usize, header: &[u8; 12], frame: &[u8], pieces: &[usize]) -> Option<u16> {
        self.reap(pair);
        let slot = *self.transmit_slots[pair].last()?;
        let header_len = self.header_len();
        self.memory.write(slot, &header[..header_len]);
        self.memory.write(slot + header_len, frame);
        let mut at = slot;
        let piece = |&len: &usize| {
            at += len;
            (at - len, len, false)
        };
        let buffers: Vec<Buffer> = pieces.iter().map(piece).collect();
        let head = self.transmit[pair].push(&buffers)?;
        self.transmit_slots[pair].pop();
        self.transmit_at[pair][usize::from(head)] = slot;
        Some(head)
    }

    fn reap(&mut self, pair: usize) {
        while let Some((head, _)) = self.transmit[pair].pop() {
            self.transmit_slots[pair].push(self.transmit_at[pair][usize::from(head)]);
        }
    }

    /// Whether the device has given back every frame.
    pub(crate) fn all_sent(&mut self, pair: usize) -> bool {
        self.reap(pair);
        self.transmit_slots[pair].len() == SLOTS
    }

    /// Sends one frame in one piece on the first pair.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.send_with(&[0; 12], frame, &[]);
    }

    /// Sends frames at once: the device sees none of them before it sees all.
    pub(crate) fn send_together(&mut self, frames: &[Vec<u8>]) {
        assert!(frames.iter().all(|frame| self.push(0, &[0; 12], frame, &[])), "there is no room");
        self.transmit[0].publish();
    }

    pub(crate) fn send_with(&mut self, header: &[u8; 12], frame: &[u8], split: &[usize]) {
        self.insist(|guest| guest.push(0, header, frame, split).then_some(()));
    }

    /// Sends one frame over descriptors of exactly these lengths and returns how many the device finds.
    pub(crate) fn send_in_pieces(&mut self, header: &[u8; 12], frame: &[u8], pieces: &[usize]) -> usize {
        let head = self.insist(|guest| guest.push_pieces(0, header, frame, pieces));
        self.transmit[0].chain_len(head)
    }

    /// Pushes until there is room.
    fn insist<T>(&mut self, mut push: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let pushed = loop {
            if let Some(pushed) = push(self) {
                break pushed;
            }
            assert!(Instant::now() < deadline, "the device takes no frames");
            std::thread::yield_now();
        };
        self.transmit[0].publish();
        pushed
    }

    /// A frame from pair `pair`, if one is there.
    pub(crate) fn poll(&mut self, pair: usize) -> Option<Received> {
        let (head, len) = self.receive[pair].pop()?;
        let mut header = [0; 12];
        let header_len = self.header_len();
        let place = self.receive_at[pair][usize::from(head)];
        let mut frame = vec![0; len as usize - header_len];
        self.memory.read(place.0, &mut header[..header_len]);
        self.memory.read(place.0 + header_len, &mut frame);
        let mut places = vec![place];
        let buffers = if self.has(f::MRG_RXBUF) { u16::from_le_bytes([header[10], header[11]]) } else { 1 };
        for _ in 1..buffers {
            // The device shows all of a frame's buffers at once.
            let (head, len) = self.receive[pair].pop().expect("the rest of the frame");
            let place = self.receive_at[pair][usize::from(head)];
            let at = frame.len();
            frame.resize(at + len as usize, 0);
            self.memory.read(place.0, &mut frame[at..]);
            places.push(place);
        }
        for place in places {
            let head = self.receive[pair].push(&[(place.0, place.1, true)]).expect("it was just taken");
            self.receive_at[pair][usize::from(head)] = place;
        }
        self.receive[pair].publish();
        Some(Received { header, frame })
    }

    /// The next frame from any pair.
    pub(crate) fn receive_within(&mut self, time: Duration) -> Option<Received> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(received) = (0..self.config.pairs).find_map(|pair| self.poll(pair)) {
                return Some(received);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::yield_now();
        }
    }

    #[track_caller]
    pub(crate) fn receive(&mut self) -> Received {
        self.receive_within(PATIENCE).expect("a frame")
    }

    /// Asserts that nothing comes: a frame sent to it by `other` afterwards is the next one that it gets.
    #[track_caller]
    pub(crate) fn assert_gets_only_what_follows(&mut self, other: &mut Guest) {
        let marker = plain(mac(self.config.number), mac(other.config.number), b"marker");
        other.send(&marker);
        assert_eq!(self.receive().frame, marker);
    }

    /// Whether these bytes are anywhere in its memory.
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        let mut all = vec![0; self.memory.len()];
        self.memory.read(0, &mut all);
        all.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Sends a command on the control queue and returns the answer.
    pub(crate) fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let at = self.memory.len() - COMMAND_SPACE;
        self.memory.write(at, &[class, command]);
        self.memory.write(at + 2, data);
        self.memory.write(at + 8000, &[0xee]);
        let control = self.control.as_mut().expect("a control queue");
        let buffers = [(at, 2, false), (at + 2, data.len().max(1), false), (at + 8000, 1, true)];
        let buffers = if data.is_empty() { &[buffers[0], buffers[2]][..] } else { &buffers[..] };
        control.push(buffers).expect("room");
        control.publish();
        let deadline = Instant::now() + PATIENCE;
        while control.pop().is_none() {
            assert!(Instant::now() < deadline, "no answer on the control queue");
            std::thread::yield_now();
        }
        let mut ack = [0];
        self.memory.read(at + 8000, &mut ack);
        ack[0]
    }

    pub(crate) fn read_config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        self.frontend.get_config(offset, len, flags, &vec![0; len as usize]).expect("GET_CONFIG").1
    }
}

/// Memory told as `count` regions, the first of which holds the first pair's rings.
fn regions(memory: &Memory, count: usize) -> Vec<VhostUserMemoryRegionInfo> {
    let page = 4096;
    let (first, len) = (2 * RING_SPACE + page, memory.len());
    let border = |i: usize| if i == 0 { 0 } else { first + ((len - first) * (i - 1) / count).next_multiple_of(page) };
    let borders: Vec<usize> = (0..count).map(border).chain([len]).collect();
    let region = |ends: &[usize]| VhostUserMemoryRegionInfo {
        guest_phys_addr: BASE + ends[0] as u64,
        memory_size: (ends[1] - ends[0]) as u64,
        userspace_addr: memory.user_address() + ends[0] as u64,
        mmap_offset: ends[0] as u64,
        mmap_handle: memory.fd.as_raw_fd(),
    };
    borders.windows(2).map(region).collect()
}

/// A frame of the experimental EtherType 0x88b5.
pub(crate) fn plain(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xb5], payload].concat()
}

/// Both learn where the other is.
pub(crate) fn introduce(a: &mut Guest, b: &mut Guest) {
    let (from, to) = (mac(a.config.number), mac(b.config.number));
    a.send(&plain([0xff; 6], from, b"hello"));
    assert_eq!(b.receive().frame, plain([0xff; 6], from, b"hello"));
    b.send(&plain(from, to, b"hello yourself"));
    assert_eq!(a.receive().frame, plain(from, to, b"hello yourself"));
}
