//! Two uplinks joined, so that the kernel talks to itself through them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guestwire::frame::offload::{self, Fit, Offload};
use guestwire::metrics::Counter;
use guestwire::ring::Bytes;
use guestwire::uplink::{FrameBuffer, Received, Sent, Uplink};

use crate::frames::wait;

/// What was seen on the way from one uplink to the other.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// Super-frames, by the kind that the header has.
    pub(crate) super_frames: BTreeMap<u8, u64>,
    /// Frames whose checksum was left to be completed.
    pub(crate) partial: u64,
    pub(crate) longest: usize,
    pub(crate) dropped: Vec<Counter>,
}

/// Carries frames both ways while `job` runs. Every header is validated as the worker does it.
pub(crate) fn join<R>(one: &mut dyn Uplink, other: &mut dyn Uplink, job: impl FnOnce() -> R) -> (R, [Seen; 2]) {
    let done = AtomicBool::new(false);
    let mut seen = [Seen::default(), Seen::default()];
    let result = std::thread::scope(|scope| {
        let carrier = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let moved = carry(one, other, &mut seen[0]) | carry(other, one, &mut seen[1]);
                if !moved && !wait(one, Duration::ZERO) {
                    wait(other, Duration::from_millis(1));
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
        done.store(true, Ordering::Relaxed);
        carrier.join().unwrap();
        result
    });
    match result {
        Ok(result) => (result, seen),
        Err(panic) => {
            eprintln!("{seen:?}");
            std::panic::resume_unwind(panic)
        }
    }
}

fn carry(from: &mut dyn Uplink, to: &mut dyn Uplink, seen: &mut Seen) -> bool {
    let mut buffer = FrameBuffer::default();
    for n in 0..32 {
        let header = match from.receive(&mut buffer) {
            Received::Frame(header) => header,
            Received::Nothing => return n > 0,
            // Broadcasts that went to the host too, and came back from there.
            Received::Dropped(Counter::DropTxReflected) | Received::NotOurs => continue,
            Received::Dropped(counter) => {
                seen.dropped.push(counter);
                continue;
            }
            Received::Gone(gone) => panic!("{}: {gone}", from.name()),
        };
        let frame = buffer.frame();
        let head = &frame[..frame.len().min(guestwire::frame::FRAME_HEAD_MAX)];
        let offload = offload::validate(&header, head, frame.len(), from.sends());
        let offload = offload.unwrap_or_else(|error| panic!("{}: {error}: {header:?} {head:02x?}", from.name()));
        assert_eq!(offload.fit(to.takes()), Fit::Whole);
        seen.frames += 1;
        seen.bytes += frame.len() as u64;
        seen.longest = seen.longest.max(frame.len());
        seen.partial += u64::from(offload != Offload::None);
        if matches!(offload, Offload::Segment(_)) {
            *seen.super_frames.entry(header.gso_type).or_default() += 1;
        }
        match to.send(&offload.header(), &Bytes::private(frame)) {
            Sent::Whole => {}
            Sent::Dropped(counter) => seen.dropped.push(counter),
            Sent::Gone(gone) => panic!("{}: {gone}", to.name()),
        }
    }
    true
}
