//! One TCP connection of a guest that says anything, through a socket that does anything: numbers do not go back, no
//! window shrinks, bytes stay what they were, and nothing grows or waits without end.
#![no_main]

use guestwire::nat::trial_of_tcp;
use guestwire_fuzz::canary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if !canary(data) {
        trial_of_tcp(data);
    }
});
