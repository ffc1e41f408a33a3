//! What callgrind counts: bursts of 64-byte frames from one guest to another, in the one thread there is.
//!
//! `benches/instructions.sh` runs it, has only the worker's turns counted, and divides by the frames.
#![allow(clippy::unwrap_used)]

use guestwire::vhost::features as f;

#[path = "bed/mod.rs"]
mod bed;

use bed::{Bed, mac};

fn main() {
    let bursts: u16 = std::env::var("BURSTS").ok().map_or(200, |n| n.parse().unwrap());
    let features = f::VERSION_1 | f::MRG_RXBUF;
    let mut bed = Bed::new(&[features; 2]);
    let mut frame = [&mac(1)[..], &mac(0), &[0x88, 0xb5]].concat();
    frame.resize(64, 0x5a);
    bed.load(0, &[0; 12], &frame);
    bed.poll_only();
    bed.send(0, 32);
    for _ in 1..bursts {
        bed.send_on(0, 32);
    }
    assert_eq!(bed.received(1), 1u16.wrapping_add(bursts.wrapping_mul(32)), "all arrive");
}
