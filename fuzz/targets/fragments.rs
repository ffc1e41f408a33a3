//! Pieces of packets, which fit or do not: what is put together is what was sent, and what is kept is bounded.
#![no_main]

use guestwire::nat::trial_of_fragments;
use guestwire_fuzz::canary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if !canary(data) {
        trial_of_fragments(data);
    }
});
