//! The load "hostile": three real guests with streams through NAT, beside a fourth that does all it can to disturb
//! them, and beside the same when it is silent.
//!
//! Host and server are network namespaces with a pair of interfaces between them; guestwire is run in the host's by a
//! user who owns nothing. Each guest has an iperf3 of its own on the server and sends and receives as fast as it can,
//! both at once. The fourth guest is a driver in this process. Every millisecond it sends [`BURST`] frames, or as many
//! as its ring has room for: a hundred thousand SYNs in a second, say, unless guestwire holds it back
//! (`tests/wire/attacks.rs` has all that it may do). A case is an attack, or "harmless", where each frame is a datagram
//! from one port of its to one of the server's: so what it takes to be a fourth guest is told apart from what it takes
//! to be a hostile one.
//!
//! Compared is what the three get, and the peer is "silent": the same driver, which wakes up as often and sends
//! nothing. What it takes of a core itself, all cases alike, is "driver": so what the three lose is what guestwire
//! does for the fourth, and what host and server do for its packets.
//!
//! The guests run on core 0 with all of their VMMs' threads, the server's programs and the driver on core 1, guestwire
//! on both. "received" is what the three have got together, both ways, "worst" what the one with the least has got.
//! "memory" is the most that guestwire had of its own, which leaves out the guests', and "descriptors" the most that
//! it had open; "frames" are those that it took from the fourth guest in a second.
//!
//! An attack begins before the streams and ends after them. A guest whose streams do not come to an end, a guestwire
//! that has ended, or one that has not given back all descriptors once the fourth guest has gone, ends the run. Both
//! sides of a pair are measured on the same guests, in every other pair the attack before the silence: so whoever an
//! attack was beside goes on.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType};
use dhcproto::{Decodable, Decoder, Encodable};
use etherparse::PacketBuilder;
use guestwire::vhost::features;
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::guests::{Figure, json};
use crate::nat::{CONGESTION_CONTROL, serve};
use crate::network::run_on_core_1;
use crate::pairs::{Options, in_turn};
use crate::port::{POLLING, Port};
use crate::process::{Process, cpu_seconds, within};
use crate::recorder::{At, Recorder};
use crate::vm::daemon::Daemon;
use crate::vm::guest::{COMMAND_WITHIN, Guest, Job, Plan, Vmm};
use crate::vm::lab::Lab;
use crate::vm::space::Space;
use attacks::{ATTACKS, Attack, Attacker, BEHIND, Ends, SPEAKS, WAITS, speak};

#[path = "../../tests/wire/attacks.rs"]
mod attacks;

pub(crate) const LOAD: &str = "hostile";
/// What all is compared with.
const PEER: &str = "silent";
/// The server's address.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
/// The gateway's.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const FOURTH_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 4];
/// What the first guest's iperf3 listens on.
const IPERF_PORT: u16 = 5201;
const GUESTS: u8 = 3;
/// Descriptors of the fourth guest's rings.
const RING: u16 = 256;
/// What its driver takes: that it may ask for checksums and segments, but nothing that would come in several buffers.
const FEATURES: u64 = POLLING | features::CSUM | features::HOST_TSO4 | features::HOST_TSO6 | features::HOST_USO;
/// How often it sends, and how much at once.
const TICK: Duration = Duration::from_millis(1);
const BURST: u16 = 100;
/// Seconds that streams have to come up to speed.
const WARM_UP: u32 = 1;
/// How often is looked how much guestwire has.
const LOOK: Duration = Duration::from_millis(20);
/// Longer than guestwire takes to answer, or to give back what a guest had.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the fourth guest does.
#[derive(Clone, Copy, Debug)]
enum Fourth {
    Silent,
    Harmless,
    Hostile(Attack),
}

impl Fourth {
    fn name(self) -> &'static str {
        match self {
            Self::Silent => PEER,
            Self::Harmless => "harmless",
            Self::Hostile(attack) => match attack {
                Attack::Refused => "refused",
                Attack::Unanswered => "unanswered",
                Attack::HalfOpen => "half-open",
                Attack::ZeroWindow => "zero-window",
                Attack::NeverAcks => "never-acks",
                Attack::Destinations => "destinations",
                Attack::Endpoints => "endpoints",
                Attack::Pieces => "fragments",
                Attack::Questions => "questions",
                Attack::Echoes => "echoes",
                Attack::Nonsense => "malformed",
                Attack::Lies => "lies",
            },
        }
    }
}

/// What a fourth guest may do, and silence, in turn.
pub(crate) fn run(options: &Options, recorder: &mut Recorder) {
    let lab = Lab::prepared_for("bench");
    let all = [Fourth::Harmless].into_iter().chain(ATTACKS.map(Fourth::Hostile));
    let cases: Vec<Fourth> = all.filter(|case| options.cases.has(case.name())).collect();
    for pair in 0..options.pairs {
        let mut world = World::new(&lab, recorder);
        for &case in &cases {
            for fourth in in_turn(pair, [case, Fourth::Silent]) {
                let at = At { load: LOAD, case: case.name(), peer: PEER, pair, side: fourth.name() };
                recorder.measure(at, |recorder| world.measure(fourth, options.seconds, recorder));
            }
        }
    }
}

/// The host, its guests, and the server.
struct World {
    // In this order, so that guests end before what switches for them.
    guests: Vec<Guest>,
    daemon: Daemon,
    /// What guestwire has open when nobody has a connection.
    descriptors: u64,
    _servers: Vec<Process>,
    _sink: (TcpListener, UdpSocket),
    _spaces: [Space; 2],
}

impl World {
    fn new(lab: &Lab, recorder: &mut Recorder) -> Self {
        let spaces = [Space::new(), Space::new()];
        let [host, server] = &spaces;
        host.cable("eth0", server, "eth0");
        let lines = [
            (host, "host", "addr add 10.7.0.1/24 dev eth0".to_owned()),
            (server, "server", format!("addr add {SERVER}/24 dev eth0")),
            (host, "host", format!("route add {BEHIND} via {SERVER}")),
        ];
        for (space, name, line) in lines {
            recorder.command(name, &format!("ip {line}"));
            space.ip(&line);
        }
        for (file, value) in [("ping_group_range", "0 2147483647"), ("tcp_congestion_control", CONGESTION_CONTROL)] {
            recorder.command("host and server", &format!("sysctl net.ipv4.{file}=\"{value}\""));
            spaces.iter().for_each(|space| space.set(&format!("ipv4/{file}"), value));
        }
        let sink = server.run(|| (listener(WAITS), UdpSocket::bind(("0.0.0.0", WAITS)).unwrap()));
        let speaks = server.run(|| listener(SPEAKS));
        // Until this process ends.
        thread::spawn(move || {
            run_on_core_1();
            speak(&speaks);
        });
        let iperf3 = format!("{}/iperf3 -s -p", lab.get("NET_BIN"));
        let ports = (0..u16::from(GUESTS)).map(|n| IPERF_PORT + n);
        let servers = ports.map(|port| serve(server, &format!("{iperf3} {port}"), port, recorder)).collect();
        recorder.command("guestwire, by nobody", "guestwire nat --socket-path net.sock");
        let daemon = Daemon::run_as_nobody(&host.enter(), "nat", &[]);
        let plan = |number| Plan::new(Vmm::UmlNew, number).without_addresses().under(&["taskset", "-c", "0"]);
        let guests: Vec<Guest> = (1..=GUESTS).map(|number| plan(number).start(lab, &daemon)).collect();
        recorder.command("hostile on guestwire", guests[0].command_line());
        let booted = |guest: Guest| {
            let mut guest = guest.booted();
            guest.ok("dhcp-up");
            guest
        };
        recorder.command("guest", "dhcp-up");
        let guests = guests.into_iter().map(booted).collect();
        let descriptors = descriptors(daemon.pid());
        Self { guests, daemon, descriptors, _servers: servers, _sink: sink, _spaces: spaces }
    }

    /// One side of a pair.
    fn measure(&mut self, fourth: Fourth, seconds: u32, recorder: &mut Recorder) -> Vec<Figure> {
        let (pid, socket) = (self.daemon.pid(), self.daemon.socket());
        let (guests, over) = (&mut self.guests, AtomicBool::new(false));
        let (begin, own) = (Instant::now(), cpu_seconds(pid));
        let (rates, driver, most) = thread::scope(|scope| {
            let driver = scope.spawn(|| drive(&socket, fourth, &over));
            let watcher = scope.spawn(|| watch(pid, &over));
            let end = End(&over);
            let rates = streams(guests, seconds, recorder);
            drop(end);
            (rates, driver.join().unwrap(), watcher.join().unwrap())
        });
        let (elapsed, own) = (begin.elapsed().as_secs_f64(), cpu_seconds(pid) - own);
        let is_given_back = || (descriptors(pid) <= self.descriptors).then_some(());
        within(PATIENCE, is_given_back).unwrap_or_else(|| panic!("{fourth:?}: {} descriptors", descriptors(pid)));
        self.daemon.assert_alive();
        vec![
            ("received", "Gb/s", rates.iter().sum()),
            ("worst", "Gb/s", rates.iter().copied().fold(f64::INFINITY, f64::min)),
            ("memory", "MiB", most.memory_mib),
            ("descriptors", "descriptors", most.descriptors as f64),
            ("frames", "kpps", driver.sent as f64 / elapsed / 1e3),
            ("driver", "cores", driver.busy.as_secs_f64() / elapsed),
            ("switch-cpu", "cores", own / elapsed),
        ]
    }
}

/// Says that a reading is over when it is dropped: also if that is because it has failed.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A socket on which more connections may wait than one guest may have half open.
fn listener(port: u16) -> TcpListener {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    // Said again, it holds from then on (listen(2)).
    rustix::net::listen(&listener, 2000).unwrap();
    listener
}

/// All guests' streams at once; what each has got, both ways, in Gb/s.
fn streams(guests: &mut [Guest], seconds: u32, recorder: &mut Recorder) -> Vec<f64> {
    let begin = |(guest, port): (&mut Guest, u16)| {
        let command = format!("iperf3 -c {SERVER} -p {port} -t {seconds} -O {WARM_UP} -i 0 -J --bidir");
        recorder.command("guest", &command);
        guest.begin(&command)
    };
    let jobs: Vec<Job> = guests.iter_mut().zip(IPERF_PORT..).map(begin).collect();
    let finish = |(guest, job): (&mut Guest, Job)| {
        let output = guest.finish(job, COMMAND_WITHIN + Duration::from_secs(seconds.into()));
        json(&output).as_ref().and_then(rate).unwrap_or_else(|| guest.fail(&format!("measured nothing:\n{output}")))
    };
    guests.iter_mut().zip(jobs).map(finish).collect()
}

/// What the receivers had, both ways, in Gb/s.
fn rate(json: &Value) -> Option<f64> {
    let of = |sum: &str| json.pointer(&format!("/end/{sum}/bits_per_second"))?.as_f64();
    Some((of("sum_received")? + of("sum_received_bidir_reverse")?) / 1e9)
}

/// Gets the fourth guest an address, as other guests get theirs: the address, and the gateway's MAC address.
fn lease(port: &mut Port) -> (Ipv4Addr, [u8; 6]) {
    let (offered, _) = ask(port, MessageType::Discover, None);
    ask(port, MessageType::Request, Some(offered))
}

/// Asks the gateway by DHCP. Returns the address that it says, and its own MAC address.
fn ask(port: &mut Port, kind: MessageType, address: Option<Ipv4Addr>) -> (Ipv4Addr, [u8; 6]) {
    let mut message = Message::default();
    message.set_chaddr(&FOURTH_MAC).set_flags(Flags::default().set_broadcast());
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(address) = address {
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    }
    let packet = PacketBuilder::ethernet2(FOURTH_MAC, [0xff; 6]).ipv4([0; 4], [255; 4], 64).udp(68, 67);
    let mut request = Vec::new();
    packet.write(&mut request, &message.to_vec().unwrap()).unwrap();
    port.send_new(1, || ([0; 12], request.clone()));
    let mut answer = None;
    let answered = within(PATIENCE, || {
        port.receive_and_see(|frame| {
            // UDP, to a client's port.
            if frame.len() > 42 && frame[23] == 17 && frame[36..38] == [0, 68] {
                let message = Message::decode(&mut Decoder::new(&frame[42..])).unwrap();
                answer = Some((message.yiaddr(), frame[6..12].try_into().unwrap()));
            }
        });
        answer
    });
    answered.unwrap_or_else(|| panic!("no answer to {kind:?}"))
}

/// What the fourth guest has done.
struct Driven {
    /// Frames that were taken from it.
    sent: u64,
    /// How long it has had a core.
    busy: Duration,
}

/// Is the fourth guest until all is over.
fn drive(socket: &Path, fourth: Fourth, over: &AtomicBool) -> Driven {
    run_on_core_1();
    let mut port = Port::attach(socket, RING, FEATURES).unwrap();
    let (address, gateway_mac) = lease(&mut port);
    port.forget();
    let ends = Ends { mac: FOURTH_MAC, address, gateway_mac, gateway: GATEWAY, machine: SERVER };
    let (mut attacker, mut answers, mut next) = (Attacker::new(&ends), VecDeque::new(), Instant::now());
    while !over.load(Ordering::Relaxed) {
        port.receive_and_see(|frame| {
            if let Fourth::Hostile(attack) = fourth {
                answers.extend(attacker.answer(attack, frame));
            }
        });
        match fourth {
            Fourth::Silent => {}
            Fourth::Harmless => port.send_new(BURST, || attacker.harmless()),
            Fourth::Hostile(attack) => {
                port.send_new(BURST, || answers.pop_front().unwrap_or_else(|| attacker.next(attack)));
            }
        }
        // Whoever was kept from it does not make up for that.
        next = (next + TICK).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Driven { sent: port.sent, busy: clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into() }
}

/// The most that guestwire had.
#[derive(Clone, Copy, Debug, Default)]
struct Most {
    memory_mib: f64,
    descriptors: u64,
}

/// Looks how much guestwire has until all is over.
fn watch(pid: u32, over: &AtomicBool) -> Most {
    let mut most = Most::default();
    while !over.load(Ordering::Relaxed) {
        most.memory_mib = most.memory_mib.max(memory_mib(pid));
        most.descriptors = most.descriptors.max(descriptors(pid));
        thread::sleep(LOOK);
    }
    most
}

/// What a process has open: the size of the folder, which tells it without a look at each (proc(5), since Linux 6.2).
fn descriptors(pid: u32) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/fd")).unwrap_or_else(|error| panic!("process {pid}: {error}")).len()
}

/// The memory that a process has and shares with nobody, in MiB.
fn memory_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map_or_else(|| panic!("process {pid} has no memory"), |kib: f64| kib / 1024.0)
}
