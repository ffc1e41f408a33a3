//! guestwire beside the programs that people would use otherwise, in pairs: `benches/compare/run.sh --help`.
#![allow(clippy::unwrap_used, reason = "what cannot be measured ends the run")]

mod extras;
mod filter;
mod growth;
mod guests;
mod hostile;
mod huge_pages;
mod idle;
mod lan;
mod machine;
mod nat;
mod network;
mod ovs;
mod packets;
mod pairs;
mod plot;
mod port;
mod process;
mod ratios;
mod recorder;
mod report;
mod streams;
mod switches;
mod targets;
mod testpmd;
mod vm;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use huge_pages::HugePages;
use machine::Machine;
use recorder::{Recorder, folder_of_today};

/// Measures guestwire beside its peers, one and the other in turn, and writes all of it down
///
/// Of each pair one side is measured after the other: guestwire, and in every other pair the peer, first.
///
/// The readings, the commands, the machine and a summary go to benches/runs/DATE-COMMIT. Readings are added to those
/// that are there, never taken out.
#[derive(Parser)]
#[command(name = "benches/compare/run.sh")]
struct Arguments {
    /// What to measure; all of it if nothing is said
    loads: Vec<Load>,
    /// Pairs of each case [default: 7 for guests, qemu, lan and nat, 5 for hostile, 3 for idle, 2 for network,
    /// 15 for others]
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Seconds of each case [default: 2 for packets, 5 for guests, qemu, lan and nat, 3 for hostile, 60 for idle, 1.5
    /// to 7 for network by its round trip, 1 for others]
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
    /// Sizes of frames for packets, in bytes
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64,256,1500,9000")]
    sizes: Vec<usize>,
    /// Only these peers: testpmd and ovs for packets; bridge, ovs-tso and ovs for guests
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// Numbers of ports for idle
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2,64,256")]
    ports: Vec<usize>,
    /// Only these cases of guests and qemu: tcp-1, tcp-4, tcp-8, udp, udp-64, round-trips; of lan: to-lan, from-lan,
    /// qemu-to-lan, qemu-from-lan; of nat: to-host-MTU-STREAMS and from-host-MTU-STREAMS (1500 or 65520;
    /// 1, 8 or 64), udp-to-host, udp-from-host, connects, round-trips; of network: RTT-LOSS-MTU and
    /// RTT-LOSS-reorder-MTU (0.1ms, 10ms, 100ms or 500ms; 0%, 0.1% or 1%; 1500 or 9000); of hostile: harmless,
    /// refused, unanswered, half-open, zero-window, never-acks, destinations, endpoints, fragments, questions, echoes,
    /// malformed, lies
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cases: Option<Vec<String>>,
    /// For guests and qemu: both guests on core 0 and the switch on core 1 alone
    #[arg(long)]
    apart: bool,
    /// Where to write
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Cargo's own.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    /// A driver that only passes frames on: testpmd, Open vSwitch with DPDK
    Packets,
    /// The same driver with packed rings on testpmd: testpmd with split ones
    Packed,
    /// User Mode Linux guests: the kernel's bridge, Open vSwitch with DPDK
    Guests,
    /// The same with QEMU guests on emulated processors
    Qemu,
    /// User Mode Linux and QEMU guests on a LAN beyond the host: a tap in the kernel's bridge
    Lan,
    /// A User Mode Linux guest that reaches beyond the host through its sockets: passt
    Nat,
    /// The same over a network that is far across and bad: the host's own TCP
    Network,
    /// Three User Mode Linux guests behind NAT beside a fourth that is hostile: one that is silent
    Hostile,
    /// Ports that say nothing: Open vSwitch with DPDK
    Idle,
    /// One busy pair beside idle ports, busy ports, many addresses, a flooder: guestwire itself
    Growth,
    /// Two busy pairs with two workers: guestwire with one
    Workers,
    /// A sender with a receiver that is slow, or stuck, and one that is quick: guestwire with two that are quick
    Receivers,
    /// Nothing: only the summary is written anew
    Report,
}

impl Load {
    /// They are the whole machine's: memory that nobody else has meanwhile.
    fn wants_huge_pages(self) -> bool {
        !matches!(self, Self::Lan | Self::Nat | Self::Network | Self::Hostile)
    }
}

impl Arguments {
    fn run(&self, load: Load, recorder: &mut Recorder) {
        let number = |pairs: usize| self.pairs.unwrap_or(pairs);
        let time = |seconds: u32| self.seconds.unwrap_or(seconds);
        let peers = |all: &[&str]| match &self.peers {
            Some(peers) => peers.clone(),
            None => all.iter().map(|&peer| peer.to_owned()).collect(),
        };
        let cases = || pairs::Cases(self.cases.clone());
        let of_cases = |pairs, seconds| pairs::Options { pairs: number(pairs), seconds: time(seconds), cases: cases() };
        let guests = || guests::Options {
            pairs: number(7),
            seconds: time(5),
            peers: peers(if load == Load::Qemu { &["bridge", "ovs"] } else { &["bridge", "ovs-tso", "ovs"] }),
            cases: cases(),
            apart: self.apart,
        };
        match load {
            Load::Packets | Load::Packed => {
                let (pairs, seconds, sizes) = (number(15), time(2), self.sizes.clone());
                let options = packets::Options { pairs, seconds, sizes, peers: peers(&["testpmd", "ovs"]) };
                let run = if load == Load::Packed { packets::run_packed } else { packets::run };
                run(&options, recorder);
            }
            Load::Guests => guests::run_uml(&guests(), recorder),
            Load::Qemu => guests::run_qemu(&guests(), recorder),
            Load::Lan => lan::run(&of_cases(7, 5), recorder),
            Load::Nat => nat::run(&of_cases(7, 5), recorder),
            Load::Network => {
                let options = network::Options { pairs: number(2), seconds: self.seconds, cases: cases() };
                network::run(&options, recorder);
            }
            Load::Hostile => hostile::run(&of_cases(5, 3), recorder),
            Load::Idle => {
                let options = idle::Options { pairs: number(3), seconds: time(60), ports: self.ports.clone() };
                idle::run(&options, recorder);
            }
            Load::Growth | Load::Workers | Load::Receivers => {
                let options = growth::Options { pairs: number(15), seconds: time(1) };
                match load {
                    Load::Growth => growth::run(&options, recorder),
                    Load::Workers => growth::run_workers(&options, recorder),
                    _ => growth::run_receivers(&options, recorder),
                }
            }
            Load::Report => {}
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    let folder = arguments.out.clone().unwrap_or_else(folder_of_today);
    let all = Load::value_variants().iter().copied().filter(|&load| load != Load::Report).collect::<Vec<_>>();
    let loads = if arguments.loads.is_empty() { &all } else { &arguments.loads };
    if *loads != [Load::Report] {
        let mut recorder = Recorder::new(&folder);
        let _pages = loads.iter().any(|load| load.wants_huge_pages()).then(HugePages::take);
        let _machine = Machine::begin(&folder);
        let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
        recorder.command("begun with", &format!("benches/compare/run.sh {}", words.join(" ")));
        for &load in loads {
            arguments.run(load, &mut recorder);
        }
    }
    report::write(&folder);
}
