//! Real frontends' orders, said again to the real gate and daemon.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use guestwire::vhost::features::{Offer, RINGS_MAX};
use guestwire::vhost::gate::PROTOCOL_OFFERED;
use guestwire::vhost::memory_table::REGIONS_MAX;
use guestwire::vhost::message::*;

use crate::script::{Line, Said, parse};
use crate::session::{Frontend, MAC};
use crate::worker::STOPPED_AT;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gate/fixtures").join(name)
}

/// What the answers depend on: where each ring is.
#[derive(Default)]
struct Rings {
    base: HashMap<u32, u32>,
    started: HashMap<u32, bool>,
}

impl Rings {
    fn hear(&mut self, said: &Said) {
        match said.request {
            SET_VRING_BASE => {
                self.base.insert(said.u32_at(0), said.u32_at(4));
            }
            SET_VRING_KICK => {
                self.started.insert(said.u32_at(0) & 0xff, true);
            }
            RESET_DEVICE => *self = Self::default(),
            _ => {}
        }
    }

    /// The number in the answer to GET_VRING_BASE: where the worker says that the ring stopped, if it ran.
    fn stop(&mut self, ring: u32) -> u32 {
        if self.started.insert(ring, false) == Some(true) {
            self.base.insert(ring, u32::from(STOPPED_AT) + ring);
        }
        self.base.get(&ring).copied().unwrap_or(0)
    }
}

/// What the body of an answer must be. Where what we offer decides, that may change after a recording.
fn expected(recorded: &Said, rings: &mut Rings, offer: &Offer) -> Vec<u8> {
    match recorded.request {
        GET_FEATURES => offer.features.to_le_bytes().to_vec(),
        GET_PROTOCOL_FEATURES => PROTOCOL_OFFERED.to_le_bytes().to_vec(),
        GET_QUEUE_NUM => (RINGS_MAX as u64).to_le_bytes().to_vec(),
        GET_MAX_MEM_SLOTS => (REGIONS_MAX as u64).to_le_bytes().to_vec(),
        GET_VRING_BASE => {
            let ring = recorded.u32_at(0);
            [ring, rings.stop(ring)].map(u32::to_le_bytes).concat()
        }
        GET_CONFIG => {
            // The address is the port's own.
            let mut body = recorded.body.clone();
            let (offset, size) = (recorded.u32_at(0) as usize, recorded.u32_at(4) as usize);
            for at in offset..(offset + size).min(MAC.len()) {
                body[12 + at - offset] = MAC[at];
            }
            body
        }
        // An acknowledgement: done.
        _ => vec![0; 8],
    }
}

/// The queue pairs that the frontends were told of when they were recorded.
const RECORDED_PAIRS: u16 = 16;

/// Says everything in a script, checks every answer, and what the worker heard.
#[track_caller]
fn replay(name: &str) {
    let lines = parse(&std::fs::read_to_string(fixture(name)).expect("the script"));
    let offer = Offer { pairs_told: RECORDED_PAIRS, ..Offer::new(0, None) };
    let frontend = Frontend::connect(offer);
    let (mut rings, mut far, mut answers) = (Rings::default(), Vec::new(), 0);
    for line in &lines {
        match line {
            Line::Request(said) => {
                let is_kick = said.request == SET_VRING_KICK;
                let fds = said.fds.iter().map(|kind| kind.make(is_kick, &mut far)).collect();
                frontend.send(&Message { request: said.request, flags: said.flags, body: said.body.clone(), fds });
                rings.hear(said);
            }
            Line::Answer(said) => {
                let answer = Said::of(&frontend.receive());
                let body = expected(said, &mut rings, &offer);
                assert_eq!(answer, Said { body, ..said.clone() }, "{name}, in place of {said}");
                answers += 1;
            }
            Line::Comment(_) | Line::Mail(_) => {}
        }
    }
    let mail: Vec<_> = frontend.finish().into_iter().map(Line::Mail).collect();
    assert!(answers > 0 && mail.len() > 4, "a script that shows something");
    let (recorded, said): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| matches!(line, Line::Mail(_)));
    if std::env::var_os("GUESTWIRE_BLESS").is_some() {
        let text: String = said.iter().chain(&mail).map(|line| format!("{line}\n")).collect();
        std::fs::write(fixture(name), text).expect("the script");
        return;
    }
    for (i, (now, then)) in mail.iter().zip(&recorded).enumerate() {
        assert_eq!(now, then, "{name}: what the worker heard, number {i}");
    }
    assert_eq!(mail.len(), recorded.len(), "{name}: what the worker heard");
}

macro_rules! replays {
    ($($test:ident: $name:literal,)+) => {
        $(#[test] fn $test() { replay(concat!($name, ".script")); })+

        #[test]
        fn every_script_is_replayed() {
            let known = [$(concat!($name, ".script")),+];
            let folder = std::fs::read_dir(fixture("")).expect("the folder");
            for name in folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
                assert!(!name.ends_with(".script") || known.contains(&name.as_str()), "{name} is not replayed");
            }
        }
    };
}

replays! {
    qemu_7_2_with_one_pair: "qemu-7.2",
    qemu_7_2_with_four_pairs: "qemu-7.2-4-pairs",
    qemu_11_1_with_one_pair: "qemu-11.1",
    qemu_11_1_with_four_pairs: "qemu-11.1-4-pairs",
    cloud_hypervisor: "cloud-hypervisor",
    user_mode_linux_6_1: "uml-6.1",
    user_mode_linux_7_2: "uml-7.2",
    testpmd: "testpmd-22.11",
}
