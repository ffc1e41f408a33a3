//! A guest that breaks the rules of its rings stops its own port, with one line in the log, and nobody else.

use std::time::Duration;

use guestwire::vhost::features as f;

use crate::daemon::{Daemon, until};
use crate::guest::{Config, Guest, introduce, mac, plain};
use crate::memory::BASE;
use crate::ring::{AVAIL, INDIRECT_FLAG, NEXT, Ring, USED, WRITE};

/// A daemon with a hostile guest on port 0 and two bystanders.
struct Bench {
    daemon: Daemon,
    hostile: Guest,
    a: Guest,
    b: Guest,
}

impl Bench {
    fn new() -> Self {
        Self::with(Config::usual(1))
    }

    fn with(config: Config) -> Self {
        let daemon = Daemon::start();
        let hostile = Guest::attach(&daemon.socket(), config);
        let (mut a, mut b) =
            (Guest::attach(&daemon.socket(), Config::usual(2)), Guest::attach(&daemon.socket(), Config::usual(3)));
        introduce(&mut a, &mut b);
        Self { daemon, hostile, a, b }
    }

    fn transmit(&mut self) -> &mut Ring {
        &mut self.hostile.transmit[0]
    }

    /// The bystanders' frames go through.
    #[track_caller]
    fn assert_others_live(&mut self) {
        // What the hostile one has flooded must not fill their rings.
        while self.a.poll(0).is_some() || self.b.poll(0).is_some() {}
        for i in 0..20u8 {
            self.a.send(&plain(mac(3), mac(2), &[i]));
            until("a bystander's frame", || self.b.receive().frame[14..] == [i]);
        }
        self.daemon.assert_alive();
    }

    /// The hostile port has stopped, for this reason, and that was said once.
    #[track_caller]
    fn assert_stopped(mut self, why: &str) {
        self.daemon.expect_counter(0, "ring_errors", 1);
        self.daemon.expect_warning(why);
        // More of the same changes nothing: the ring is not looked at again.
        for _ in 0..100 {
            self.hostile.transmit[0].kick_now();
            self.hostile.receive[0].kick_now();
        }
        self.assert_others_live();
        assert_eq!(self.daemon.counters(0)["ring_errors"], 1);
        let line = &self.daemon.warnings()[0];
        assert!(line.contains("port=0") && line.contains("ring="), "{line}");
        // Until the guest resets it.
        use vhost::VhostBackend;
        for index in 0..2 {
            self.hostile.frontend.get_vring_base(index).expect("GET_VRING_BASE");
        }
        self.hostile.receive.clear();
        self.hostile.transmit.clear();
        let mut again = self.hostile.restarted();
        introduce(&mut again, &mut self.a);
    }

    /// The hostile guest did something odd that is no lie: its port goes on.
    #[track_caller]
    fn assert_goes_on(mut self) {
        self.assert_others_live();
        while self.hostile.receive_within(Duration::from_millis(5)).is_some() {}
        introduce(&mut self.hostile, &mut self.a);
        assert_eq!(self.daemon.warnings(), Vec::<String>::new());
        assert_eq!(self.daemon.counters(0)["ring_errors"], 0);
    }

    /// Makes the descriptors available as a chain from descriptor 0 on: (address, length, flags, next).
    fn chain(&mut self, descriptors: &[(u64, u32, u16, u16)]) {
        let ring = self.transmit();
        for (i, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
            ring.write_descriptor(ring.at + 16 * i, addr, len, flags, next);
        }
        ring.push_head(0);
        ring.publish();
    }
}

/// Somewhere in the guest's memory where a frame may be.
const PLACE: u64 = BASE + 0xd0000;

#[test]
fn r1_a_descriptor_loop() {
    let mut bench = Bench::new();
    bench.chain(&[(PLACE, 100, NEXT, 1), (PLACE, 100, NEXT, 0)]);
    bench.assert_stopped("a chain has more than 256 descriptors");
}

#[test]
fn r1_a_descriptor_that_is_its_own_next() {
    let mut bench = Bench::new();
    bench.chain(&[(PLACE, 0, NEXT, 0)]);
    bench.assert_stopped("a chain has more than 256 descriptors");
}

#[test]
fn r1_a_chain_of_four_gigabytes_is_a_frame_too_long() {
    let mut bench = Bench::new();
    let memory = bench.hostile.memory.len() as u32;
    let all: Vec<_> = (0..255u16).map(|i| (BASE, memory, if i < 254 { NEXT } else { 0 }, i + 1)).collect();
    bench.chain(&all);
    bench.daemon.expect_counter(0, "drop_tx_too_long", 1);
    bench.assert_others_live();
}

#[test]
fn r2_a_head_that_does_not_exist() {
    let mut bench = Bench::new();
    bench.transmit().push_head(256);
    bench.transmit().publish();
    bench.assert_stopped("descriptor 256 does not exist in a table of 256");
}

#[test]
fn r2_a_next_that_does_not_exist() {
    let mut bench = Bench::new();
    bench.chain(&[(PLACE, 100, NEXT, 65_535)]);
    bench.assert_stopped("descriptor 65535 does not exist");
}

#[test]
fn r3_buffers_outside_of_memory() {
    for (addr, len) in [(0, 100), (BASE - 50, 100), (u64::MAX - 10, 100), (u64::MAX, 1), (BASE + (1 << 40), 1)] {
        let mut bench = Bench::new();
        bench.chain(&[(addr, len, 0, 0)]);
        bench.assert_stopped("is not inside the guest's memory");
    }
    let mut bench = Bench::new();
    let end = BASE + bench.hostile.memory.len() as u64;
    bench.chain(&[(end - 50, 100, 0, 0)]);
    bench.assert_stopped("is not inside the guest's memory");
}

#[test]
fn r3_a_buffer_that_is_the_ring_itself() {
    let mut bench = Bench::new();
    let at = BASE + bench.transmit().at as u64;
    bench.chain(&[(at, 2000, 0, 0)]);
    // It is memory of the guest like any other: whatever is in it is the frame.
    bench.daemon.expect_counter(0, "tx_frames", 1);
    bench.assert_others_live();
}

#[test]
fn r3_a_receive_buffer_that_is_a_ring_harms_its_owner_alone() {
    let mut bench = Bench::new();
    while bench.hostile.receive_within(Duration::from_millis(5)).is_some() {}
    let (receive, transmit) = (bench.hostile.receive[0].at, bench.hostile.transmit[0].at);
    for i in 0..256 {
        let at = if i % 2 == 0 { receive } else { transmit };
        bench.hostile.receive[0].write_descriptor(receive + 16 * i, BASE + at as u64, 2048, WRITE, 0);
    }
    for i in 0..50 {
        bench.a.send(&plain(mac(1), mac(2), &[i; 1000]));
    }
    bench.assert_others_live();
}

#[test]
fn r4_empty_and_tiny_buffers() {
    let mut bench = Bench::new();
    bench.chain(&[(0, 0, 0, 0)]);
    bench.daemon.expect_counter(0, "drop_tx_runt", 1);
    bench.chain(&[(PLACE, 1, 0, 0)]);
    bench.daemon.expect_counter(0, "drop_tx_runt", 2);
    bench.chain(&[(PLACE, 11, 0, 0)]);
    bench.daemon.expect_counter(0, "drop_tx_runt", 3);
    bench.assert_others_live();
}

#[test]
fn r4_a_buffer_of_four_gigabytes() {
    let mut bench = Bench::new();
    bench.chain(&[(BASE, u32::MAX, 0, 0)]);
    // No more of it is looked at than a frame can have.
    bench.daemon.expect_counter(0, "drop_tx_too_long", 1);
    bench.assert_others_live();
}

#[test]
fn r4_receive_buffers_shorter_than_the_header() {
    for len in [0, 1, 11] {
        let mut bench = Bench::new();
        while bench.hostile.receive_within(Duration::from_millis(5)).is_some() {}
        let ring = &bench.hostile.receive[0];
        for i in 0..256 {
            ring.write_descriptor(ring.at + 16 * i, PLACE, len, WRITE, 0);
        }
        bench.a.send(&plain(mac(1), mac(2), b"for the hostile one"));
        bench.daemon.expect_counter(0, "drop_rx_fault", 1);
        bench.assert_stopped("is shorter than the virtio-net header");
    }
}

#[test]
fn r4_receive_buffers_of_one_byte_are_bounded_work() {
    let mut bench = Bench::new();
    while bench.hostile.receive_within(Duration::from_millis(5)).is_some() {}
    let ring = &bench.hostile.receive[0];
    // A first buffer that will do, then chains of 250 empty descriptors and one byte.
    for i in 0..256u16 {
        let (len, flags) = if i == 255 { (1, WRITE) } else { (0, WRITE | NEXT) };
        ring.write_descriptor(ring.at + 16 * usize::from(i), PLACE, len, flags, i + 1);
    }
    ring.write_descriptor(ring.at, PLACE, 64, WRITE, 0);
    for slot in 0..256usize {
        let head: u16 = if slot == usize::from(ring.used % 256) { 0 } else { 1 };
        ring.memory.write(ring.at + AVAIL + 4 + 2 * slot, &head.to_le_bytes());
    }
    for i in 0..50 {
        bench.a.send(&plain(mac(1), mac(2), &[i; 1400]));
    }
    bench.daemon.expect_counter(0, "ring_errors", 1);
    bench.assert_others_live();
}

#[test]
fn r5_an_available_index_that_jumps() {
    for jump in [257u16, 1000, 32_768, 65_535, 65_000] {
        let mut bench = Bench::new();
        let ring = bench.transmit();
        ring.avail = ring.avail.wrapping_add(jump);
        ring.publish();
        ring.kick_now();
        bench.assert_stopped("ahead of");
    }
}

#[test]
fn r5_the_same_head_again_and_again_is_the_guests_own_frame_again() {
    let mut bench = Bench::new();
    bench.hostile.memory.write((PLACE - BASE) as usize, &[0; 12]);
    let frame = plain(mac(3), mac(1), b"again");
    bench.hostile.memory.write((PLACE - BASE) as usize + 12, &frame);
    let ring = bench.transmit();
    ring.write_descriptor(ring.at, PLACE, 12 + frame.len() as u32, 0, 0);
    for _ in 0..256 {
        ring.push_head(0);
    }
    ring.publish();
    bench.daemon.expect_counter(0, "tx_frames", 256);
    bench.assert_others_live();
}

#[test]
fn r6_indirect_tables_that_lie() {
    let table = BASE + 0xe0000;
    for (descriptor, inner, why) in [
        ((table, 16, INDIRECT_FLAG | NEXT, 1), (PLACE, 100, 0, 0), "goes on with another descriptor"),
        ((table, 0, INDIRECT_FLAG, 0), (PLACE, 100, 0, 0), "an indirect table of 0 bytes"),
        ((table, 24, INDIRECT_FLAG, 0), (PLACE, 100, 0, 0), "an indirect table of 24 bytes"),
        ((table, 16 * 257, INDIRECT_FLAG, 0), (PLACE, 100, 0, 0), "an indirect table of 4112 bytes"),
        ((table, 16, INDIRECT_FLAG, 0), (table, 16, INDIRECT_FLAG, 0), "inside an indirect table"),
        ((table, 16, INDIRECT_FLAG, 0), (PLACE, 100, NEXT, 1), "a chain has more than 1 descriptors"),
        ((table, 32, INDIRECT_FLAG, 0), (PLACE, 100, NEXT, 2), "descriptor 2 does not exist in a table of 2"),
        ((table, 32, INDIRECT_FLAG, 0), (PLACE, 100, NEXT, 0), "a chain has more than 2 descriptors"),
        ((0, 16, INDIRECT_FLAG, 0), (PLACE, 100, 0, 0), "is not inside the guest's memory"),
        ((u64::MAX - 4, 16, INDIRECT_FLAG, 0), (PLACE, 100, 0, 0), "is not inside the guest's memory"),
    ] {
        let mut bench = Bench::new();
        let (addr, len, flags, next) = inner;
        bench.transmit().write_descriptor((table - BASE) as usize, addr, len, flags, next);
        bench.chain(&[descriptor]);
        bench.assert_stopped(why);
    }
}

#[test]
fn r6_an_indirect_descriptor_that_was_not_negotiated() {
    let mut bench = Bench::with(Config::usual(1).without(f::INDIRECT_DESC));
    bench.chain(&[(PLACE, 16, INDIRECT_FLAG, 0)]);
    bench.assert_stopped("the feature was not negotiated");
}

#[test]
fn r7_buffers_of_the_wrong_direction() {
    let mut bench = Bench::new();
    bench.chain(&[(PLACE, 100, WRITE, 0)]);
    bench.assert_stopped("wrong direction");
    let mut bench = Bench::new();
    bench.chain(&[(PLACE, 50, NEXT, 1), (PLACE, 50, WRITE, 0)]);
    bench.assert_stopped("wrong direction");
    let mut bench = Bench::new();
    while bench.hostile.receive_within(Duration::from_millis(5)).is_some() {}
    let ring = &bench.hostile.receive[0];
    (0..256).for_each(|i| ring.write_descriptor(ring.at + 16 * i, PLACE, 2048, 0, 0));
    bench.a.send(&plain(mac(1), mac(2), b"for the hostile one"));
    bench.assert_stopped("wrong direction");
}

#[test]
fn r8_a_used_ring_and_event_fields_full_of_nonsense_change_nothing() {
    let mut bench = Bench::new();
    for round in 0..50u8 {
        for guest_ring in [&bench.hostile.transmit[0], &bench.hostile.receive[0]] {
            let noise = [round.wrapping_mul(37); 2 + 8 * 256];
            // Flags and elements, but not the index, by which the driver itself counts.
            guest_ring.memory.write(guest_ring.at + USED, &noise[..2]);
            guest_ring.memory.write(guest_ring.at + USED + 4, &noise[2..]);
            guest_ring
                .memory
                .u16(guest_ring.at + AVAIL + 4 + 512)
                .store(u16::from(round) * 997, std::sync::atomic::Ordering::SeqCst);
        }
        bench.a.send(&plain(mac(1), mac(2), &[round]));
        bench.hostile.transmit[0].kick_now();
    }
    bench.assert_others_live();
}

#[test]
fn r11_headers_that_change_while_they_are_read_are_judged_once() {
    let mut bench = Bench::new();
    let (memory, at) = (bench.hostile.memory.clone(), (PLACE - BASE) as usize);
    let good = [&crate::packet::header(true, true)[..], &crate::packet::tcp(1, 3, 0, &[5; 20_000], true)].concat();
    memory.write(at, &good);
    let ring = bench.transmit();
    ring.write_descriptor(ring.at, PLACE, good.len() as u32, 0, 0);
    for round in 0..2000u16 {
        let ring = &mut bench.hostile.transmit[0];
        let room = || ring.avail.wrapping_sub(ring.memory.load(ring.at + USED + 2)) < 200;
        until("room in the ring", room);
        ring.push_head(0);
        ring.publish();
        // While it is being forwarded: another header, other lengths, other types.
        for field in 0..10 {
            memory.write(at + field, &[round as u8 ^ field as u8]);
            memory.write(at + 12 + 12 + field, &[(round >> 3) as u8]);
        }
        memory.write(at, &good[..60]);
        while bench.b.poll(0).is_some() {}
    }
    bench.daemon.expect_counter(0, "tx_frames", 2000);
    bench.assert_others_live();
}

#[test]
fn r12_a_storm_of_kicks_on_an_empty_ring() {
    let bench = Bench::new();
    for _ in 0..200_000 {
        bench.hostile.transmit[0].kick.write(1).expect("a kick");
    }
    bench.assert_goes_on();
}

#[test]
fn p2_virtio_net_headers_that_lie_cost_the_frame_alone() {
    let mut bench = Bench::new();
    let frame = crate::packet::tcp(1, 3, 0, &[5; 4000], true);
    let good = crate::packet::header(true, true);
    let lies: [(usize, &[u8]); 8] = [
        (0, &[0]),          // a super-frame without a checksum to complete
        (1, &[3]),          // UFO
        (1, &[4]),          // IPv6
        (4, &[0, 0]),       // segments of nothing
        (4, &[1, 0]),       // four thousand segments
        (6, &[0xff, 0xff]), // a checksum outside of the frame
        (8, &[0xff, 0xff]), // the same
        (6, &[13, 0]),      // a checksum in the Ethernet header
    ];
    for (at, bytes) in lies {
        let mut header = good;
        header[at..at + bytes.len()].copy_from_slice(bytes);
        bench.hostile.send_with(&header, &frame, &[]);
    }
    bench.daemon.expect_counter(0, "drop_tx_bad_header", lies.len() as u64);
    bench.assert_goes_on();
}

#[test]
fn a_file_that_shrinks_under_the_memory_stops_that_port_alone() {
    let mut bench = Bench::new();
    nix::unistd::ftruncate(&bench.hostile.memory.fd, 0).expect("not sealed");
    // The bystander floods; the hostile port's rings are gone.
    bench.a.send(&plain([0xff; 6], mac(2), b"to all"));
    bench.assert_others_live();
    bench.daemon.expect_counter(0, "memory_faults", 1);
    bench.daemon.expect_warning("was truncated while in use");
    // The driver's own mapping would fault as well: it is not touched any more.
    std::mem::forget(bench.hostile);
}
