//! The path of a frame, whole: the worker's turn from a guest's transmit ring to the others' receive rings.
//!
//! Each group sets two cases side by side. They run in turn within every sample, a burst each, so that a machine whose
//! speed moves shifts both. Times are for one frame that was sent.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guestwire::frame::vnet::{F_NEEDS_CSUM, GSO_TCPV4, VnetHeader};
use guestwire::vhost::features as f;

#[path = "bed/mod.rs"]
mod bed;

use bed::{Bed, mac};

const PLAIN: u64 = f::VERSION_1 | f::MRG_RXBUF;
const SENDS: u64 = PLAIN | f::CSUM | f::HOST_TSO4;
const TAKES: u64 = SENDS | f::GUEST_CSUM | f::GUEST_TSO4;

/// What is sent, by guest 0 to guest 1.
struct Case {
    name: &'static str,
    bed: Bed,
    burst: u16,
    len: usize,
}

impl Case {
    /// `features` are those of the guests; `buffers` are the receive buffers that one frame takes.
    fn new(
        name: &'static str,
        features: &[u64],
        (header, frame): ([u8; 12], Vec<u8>),
        burst: u16,
        buffers: u16,
    ) -> Self {
        let mut bed = Bed::new(features);
        bed.load(0, &header, &frame);
        let before = bed.received(1);
        bed.send(0, burst);
        assert_eq!(bed.received(1).wrapping_sub(before), burst * buffers, "{name}: all arrive");
        Self { name, bed, burst, len: frame.len() }
    }
}

/// A frame without offloads to `destination`.
fn plain(destination: [u8; 6], len: usize) -> ([u8; 12], Vec<u8>) {
    let mut frame = [&destination[..], &mac(0), &[0x88, 0xb5]].concat();
    frame.resize(len, 0x5a);
    ([0; 12], frame)
}

/// TCP over IPv4 from guest 0 to guest 1, its checksum left open; with more than one segment, a super-frame.
fn tcp(payload: usize, segment: u16) -> ([u8; 12], Vec<u8>) {
    let mut frame = [&mac(1)[..], &mac(0), &[8, 0]].concat();
    let total = (40 + payload) as u16;
    frame.extend_from_slice(&[0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1]);
    frame.extend_from_slice(&[0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    frame.resize(54 + payload, 0x5a);
    let super_frame = payload > usize::from(segment);
    let header = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: if super_frame { GSO_TCPV4 } else { 0 },
        hdr_len: 54,
        gso_size: if super_frame { segment } else { 0 },
        csum_start: 34,
        csum_offset: 16,
    };
    (header.emit(0), frame)
}

fn side_by_side(c: &mut Criterion, group: &str, mut cases: [Case; 2]) {
    let mut group = c.benchmark_group(group);
    for measured in 0..cases.len() {
        group.throughput(Throughput::Bytes(cases[measured].len as u64));
        group.bench_function(BenchmarkId::from_parameter(cases[measured].name), |bencher| {
            bencher.iter_custom(|iterations| {
                let bursts = iterations.div_ceil(u64::from(cases[measured].burst));
                let mut times = [Duration::ZERO; 2];
                for _ in 0..bursts {
                    for (case, time) in cases.iter_mut().zip(&mut times) {
                        *time += case.bed.send(0, case.burst);
                    }
                }
                // For the frames that were asked for, of those that whole bursts have moved.
                let moved = bursts * u64::from(cases[measured].burst);
                times[measured].mul_f64(iterations as f64 / moved as f64)
            });
        });
    }
    group.finish();
}

fn forward(c: &mut Criterion) {
    let pair = |name, len| Case::new(name, &[PLAIN; 2], plain(mac(1), len), 32, 1);
    side_by_side(c, "one receiver", [pair("64 B", 64), pair("1500 B", 1500)]);
    let beside = |name, idle: usize| Case::new(name, &vec![PLAIN; 2 + idle], plain(mac(1), 64), 32, 1);
    side_by_side(c, "64 B beside idle guests", [beside("none", 0), beside("254", 254)]);
    let checksum = |name, takes| Case::new(name, &[SENDS, takes], tcp(1446, 1460), 32, 1);
    side_by_side(c, "open checksum", [checksum("passed whole", TAKES), checksum("completed", PLAIN)]);
    let bulk = |name, takes, buffers| Case::new(name, &[SENDS, takes], tcp(44 * 1460, 1460), 4, buffers);
    side_by_side(c, "super-frame", [bulk("passed whole", TAKES, 16), bulk("cut into 44", PLAIN, 44)]);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(3));
    targets = forward
}
criterion_main!(benches);
