//! The switch's table: what a verdict costs with 1, 1,000 and 60,000 known addresses on 16 ports.
//!
//! Each figure has a yardstick: the same work on the standard library's `HashMap`. The two run in turn within every
//! sample, so that a machine whose speed moves shifts both. Times are for one frame.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guestwire::switch::{ADDRESSES_PER_PORT_MAX, AGE_MAX_S, PortId, Switch, Verdict};

const PORTS: u16 = 16;

/// Frames that one variant forwards before it is the other's turn.
const CHUNK: usize = 4096;

/// A frame's first bytes, and the port it comes from.
type Sent = (u16, [u8; 14]);

/// What is measured: something that learns from a frame and says where it goes.
trait Variant {
    fn begin(&mut self, now_s: u32);
    fn forward(&mut self, from: u16, head: &[u8; 14]) -> Option<u16>;
}

struct Ours(Switch);

impl Ours {
    fn new() -> Self {
        let mut switch = Switch::new(0x5eed);
        for port in 0..PORTS {
            switch.add_port(PortId(port));
        }
        Self(switch)
    }
}

impl Variant for Ours {
    fn begin(&mut self, now_s: u32) {
        self.0.begin_burst(now_s);
    }

    #[inline]
    fn forward(&mut self, from: u16, head: &[u8; 14]) -> Option<u16> {
        match self.0.forward(PortId(from), head) {
            Verdict::Forward(to) => Some(to.0),
            Verdict::Flood | Verdict::Drop(_) => None,
        }
    }
}

/// The yardstick. It has no bound, so it can not be used.
#[derive(Default)]
struct Yardstick {
    stations: HashMap<u64, (u16, u32)>,
    now_s: u32,
}

impl Variant for Yardstick {
    fn begin(&mut self, now_s: u32) {
        self.now_s = now_s;
    }

    #[inline]
    fn forward(&mut self, from: u16, head: &[u8; 14]) -> Option<u16> {
        let address = |at: usize| head[at..at + 6].iter().fold(0_u64, |address, &byte| address << 8 | u64::from(byte));
        let (destination, source) = (address(0), address(6));
        if destination >> 40 & 1 != 0 || source >> 40 & 1 != 0 {
            return None;
        }
        let seen = self.stations.entry(source).or_default();
        if *seen != (from, self.now_s) {
            *seen = (from, self.now_s);
        }
        let &(to, stamp_s) = self.stations.get(&destination)?;
        (to != from && self.now_s - stamp_s <= AGE_MAX_S).then_some(to)
    }
}

fn address(n: u64) -> [u8; 6] {
    let [.., a, b, c, d, e, f] = (0x0200_0000_0000 + n).to_be_bytes();
    [a, b, c, d, e, f]
}

fn head(destination: u64, source: u64) -> [u8; 14] {
    let mut head = [0; 14];
    head[..6].copy_from_slice(&address(destination));
    head[6..12].copy_from_slice(&address(source));
    head[12..].copy_from_slice(&[0x08, 0x00]);
    head
}

/// One frame from each of `stations` stations to another one on another port, in an order without a pattern.
fn conversations(stations: u64) -> Vec<Sent> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let port = |station: u64| (station % u64::from(PORTS)) as u16;
    let mut sources: Vec<u64> = (0..stations).collect();
    for i in (1..sources.len()).rev() {
        sources.swap(i, (random() % (i as u64 + 1)) as usize);
    }
    let mut frames: Vec<Sent> = Vec::new();
    for source in sources {
        let destination = loop {
            let candidate = random() % stations.max(2);
            if port(candidate) != port(source) {
                break candidate;
            }
        };
        frames.push((port(source), head(destination, source)));
    }
    if stations == 1 {
        // Nobody else is there to talk to, so this one is.
        frames.push((1, head(0, 1)));
    }
    frames
}

/// One variant at work on a list of frames, over and over.
struct Runner<V> {
    variant: V,
    at: usize,
    now_s: u32,
}

impl<V: Variant> Runner<V> {
    /// A variant that has met every station.
    fn new(variant: V, frames: &[Sent]) -> Self {
        let mut runner = Self { variant, at: 0, now_s: 1 };
        runner.run(frames, frames.len(), false);
        runner.variant.begin(1);
        runner
    }

    /// The time that the next `count` frames take. With `seconds_pass`, each pass over the list is in a second of its
    /// own.
    fn run(&mut self, frames: &[Sent], count: usize, seconds_pass: bool) -> Duration {
        let start = Instant::now();
        for _ in 0..count {
            let (from, head) = &frames[self.at];
            black_box(self.variant.forward(*from, black_box(head)));
            self.at += 1;
            if self.at == frames.len() {
                self.at = 0;
                if seconds_pass {
                    self.now_s += 1;
                    self.variant.begin(self.now_s);
                }
            }
        }
        start.elapsed()
    }
}

/// Every station is known, and sends again within the second, or in the next one.
fn known(c: &mut Criterion) {
    for (name, seconds_pass) in [("known", false), ("known_next_second", true)] {
        let mut group = c.benchmark_group(name);
        for stations in [1, 1_000, 60_000] {
            let frames = conversations(stations);
            let mut ours = Runner::new(Ours::new(), &frames);
            let mut yardstick = Runner::new(Yardstick::default(), &frames);
            for variant in ["switch", "yardstick"] {
                group.bench_function(BenchmarkId::new(variant, stations), |bencher| {
                    bencher.iter_custom(|iterations| {
                        let (mut left, mut times) = (iterations as usize, [Duration::ZERO; 2]);
                        while left > 0 {
                            let count = left.min(CHUNK);
                            times[0] += ours.run(&frames, count, seconds_pass);
                            times[1] += yardstick.run(&frames, count, seconds_pass);
                            left -= count;
                        }
                        times[usize::from(variant == "yardstick")]
                    });
                });
            }
        }
        group.finish();
    }
}

/// A guest sends from an address never seen before with each frame: first while its share fills, then for ever.
fn new_addresses(c: &mut Criterion) {
    let mut group = c.benchmark_group("new_addresses");
    for others in [0, 60_000] {
        group.bench_function(BenchmarkId::new("evicting_own", others), |bencher| {
            let mut ours = Ours::new();
            for (from, head) in conversations(others) {
                ours.forward(from % (PORTS - 1), &head);
            }
            let mut next = 1 << 32;
            let mut fresh = |count: usize| -> Vec<[u8; 14]> {
                next += count as u64;
                (next - count as u64..next).map(|source| head(0, source)).collect()
            };
            for head in fresh(ADDRESSES_PER_PORT_MAX) {
                ours.forward(PORTS - 1, &head);
            }
            bencher.iter_custom(|iterations| {
                let (mut left, mut time) = (iterations as usize, Duration::ZERO);
                while left > 0 {
                    let heads = fresh(left.min(CHUNK));
                    let start = Instant::now();
                    for head in &heads {
                        black_box(ours.forward(PORTS - 1, black_box(head)));
                    }
                    time += start.elapsed();
                    left -= heads.len();
                }
                time
            });
        });
    }
    group.finish();
}

/// The whole of a share: every address is learned, then the port goes.
fn port_lifetime(c: &mut Criterion) {
    let heads: Vec<[u8; 14]> = (0..ADDRESSES_PER_PORT_MAX as u64).map(|source| head(0, source)).collect();
    let mut group = c.benchmark_group("port_lifetime");
    group.throughput(Throughput::Elements(heads.len() as u64));
    for part in ["learn", "remove"] {
        group.bench_function(part, |bencher| {
            let mut switch = Ours::new();
            bencher.iter_custom(|iterations| {
                let mut times = [Duration::ZERO; 2];
                for _ in 0..iterations {
                    switch.0.add_port(PortId(0));
                    let start = Instant::now();
                    for head in &heads {
                        black_box(switch.forward(0, head));
                    }
                    times[0] += start.elapsed();
                    let start = Instant::now();
                    switch.0.remove_port(PortId(0));
                    times[1] += start.elapsed();
                }
                times[usize::from(part == "remove")]
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = known, new_addresses, port_lifetime
}
criterion_main!(benches);
