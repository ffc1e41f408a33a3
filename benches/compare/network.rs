//! The load "network": TCP of a guest's through NAT and the host's own, by the same program, over a network that is far
//! across and loses and reorders packets. What the host gets in the same weather is the measure of the guest.
//!
//! Host and server are network namespaces, between them a User Mode Linux that routes (`tests/guests/router.rs`). The
//! guest runs on core 0 with all of its VMM's threads, and so does the program when the host runs it; the router and
//! the server's end on core 1; guestwire's threads may run on both. The MTU in a case's name is that of all interfaces.
//!
//! Each byte is checked where it arrives, and one that is wrong ends the run. What counts is what has arrived in a time
//! that begins with the connection, so how soon a stream gets fast is a part of it. Where chance loses or reorders
//! packets there are several streams at once, which seldom have the same luck. Connections know nothing of earlier ones
//! (`tcp_no_metrics_save`).

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::extras::{compile, initrd_with};
use crate::guests::{Figure, json};
use crate::pairs::{Cases, in_turn};
use crate::process::{run as run_program, within};
use crate::recorder::{At, Recorder};
use crate::streams;
use crate::vm::daemon::Daemon;
use crate::vm::guest::{COMMAND_WITHIN, Guest, Plan, Vmm};
use crate::vm::lab::Lab;
use crate::vm::router::{Router, Weather};
use crate::vm::space::Space;

const PEER: &str = "host";
const RTTS_US: [u32; 4] = [100, 10_000, 100_000, 500_000];
/// In thousandths of the packets, each way.
const LOST: [u32; 3] = [0, 1, 10];
const MTUS: [u32; 2] = [1500, 9000];
/// Streams at once where chance has a say.
const STREAMS: usize = 8;
/// Longer than a connection takes to come, some of whose packets were lost.
const COMES_WITHIN: Duration = Duration::from_secs(30);
/// For host and server, whatever this machine has been set to. The congestion control is one that any namespace may
/// have, and that does not pace, as Linux's own choice (CUBIC) does not; the buffers are Linux's own.
const SETTINGS: [(&str, &str); 4] = [
    ("ipv4/tcp_congestion_control", "reno"),
    ("ipv4/tcp_no_metrics_save", "1"),
    ("ipv4/tcp_rmem", "4096 131072 6291456"),
    ("ipv4/tcp_wmem", "4096 16384 4194304"),
];

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) pairs: usize,
    /// Of each way of each case; if nothing is said, as many as its round trips ask for.
    pub(crate) seconds: Option<u32>,
    pub(crate) cases: Cases,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    weather: Weather,
    mtu: u32,
}

impl Case {
    fn all(mtu: u32) -> impl Iterator<Item = Self> {
        let weathers = RTTS_US.into_iter().flat_map(|rtt_us| {
            LOST.into_iter().flat_map(move |lost| [false, true].map(|reorders| Weather { rtt_us, lost, reorders }))
        });
        weathers.map(move |weather| Self { weather, mtu })
    }

    fn name(self) -> String {
        format!("{}-{}", self.weather, self.mtu)
    }

    fn streams(self) -> usize {
        if self.weather.lost > 0 || self.weather.reorders { STREAMS } else { 1 }
    }

    /// Long enough for streams to get as fast as they may, or nearly.
    fn time(self) -> Duration {
        Duration::from_millis(match self.weather.rtt_us {
            ..100_000 => 1500,
            100_000..500_000 => 3000,
            _ => 7000,
        })
    }
}

/// Whether a case of this name is one of those where much is lost far away.
pub(crate) fn is_hard(case: &str) -> bool {
    Case::all(MTUS[0])
        .chain(Case::all(MTUS[1]))
        .any(|known| known.name() == case && known.weather.lost >= LOST[2] && known.weather.rtt_us >= RTTS_US[2])
}

/// Each case by the guest and by the host in turn.
pub(crate) fn run(options: &Options, recorder: &mut Recorder) {
    let (lab, folder) = (Lab::prepared_for("bench"), TempDir::with_prefix("guestwire-compare-").unwrap());
    let program = compile("streams", folder.path(), recorder);
    let initrd = initrd_with(Path::new(lab.get("UML_NEW_INITRD")), &program, folder.path());
    let wanted = |case: &Case| options.cases.has(&case.name());
    for pair in 0..options.pairs {
        for mtu in MTUS {
            let cases: Vec<Case> = Case::all(mtu).filter(wanted).collect();
            if cases.is_empty() {
                continue;
            }
            let mut world = World::new(&lab, (&program, &initrd), mtu, recorder);
            for case in cases {
                recorder.command("router", &world.router.set(case.weather));
                let time = options.seconds.map_or(case.time(), |seconds| Duration::from_secs(seconds.into()));
                for side in in_turn(pair, ["guestwire", PEER]) {
                    let at = At { load: "network", case: &case.name(), peer: PEER, pair, side };
                    recorder.measure(at, |recorder| world.measure(side, case.streams(), time, recorder));
                }
            }
        }
    }
}

/// The host, its guest, the server, and the network between them.
struct World {
    // In this order, so that guests end before what they are plugged into.
    guest: Guest,
    router: Router,
    _daemon: Daemon,
    host: Space,
    server: Space,
    program: PathBuf,
    _folder: TempDir,
}

impl World {
    fn new(lab: &Lab, (program, initrd): (&Path, &Path), mtu: u32, recorder: &mut Recorder) -> Self {
        let (host, server) = (Space::new(), Space::new());
        let folder = TempDir::with_prefix("guestwire-compare-").unwrap();
        let router = Router::between(lab, [&host, &server], mtu, &["taskset", "-c", "1"], folder.path());
        recorder.command("router", router.command_line());
        for (file, value) in SETTINGS {
            recorder.command("host and server", &format!("sysctl net/{file}=\"{value}\""));
            [&host, &server].into_iter().for_each(|space| space.set(file, value));
        }
        let mtu = mtu.to_string();
        recorder.command("guestwire, by nobody", &format!("guestwire nat --socket-path net.sock --mtu {mtu}"));
        let daemon = Daemon::run_as_nobody(&host.enter(), "nat", &["--mtu", &mtu]);
        let plan = Plan::new(Vmm::UmlNew, 1).without_addresses().initrd(initrd).under(&["taskset", "-c", "0"]);
        let guest = plan.start(lab, &daemon);
        recorder.command("network on guestwire", guest.command_line());
        let mut guest = guest.booted();
        let command = format!("net-up && /bin/ip link set eth0 mtu {mtu} && dhcp-up");
        recorder.command("guest", &command);
        guest.ok(&command);
        let program = program.to_owned();
        Self { guest, router, _daemon: daemon, host, server, program, _folder: folder }
    }

    /// Both ways, one after the other.
    fn measure(&mut self, side: &str, streams: usize, time: Duration, recorder: &mut Recorder) -> Vec<Figure> {
        let arrived = |bytes: u64| bytes as f64 * 8e-6 / time.as_secs_f64();
        let (sent, answer) = self.send(side, streams, time, recorder);
        let connected = figure(&answer, "connected_us");
        let (_, answer) = self.receive(side, streams, time, recorder);
        vec![
            ("to-server", "Mb/s", arrived(sent)),
            ("from-server", "Mb/s", arrived(figure(&answer, "bytes") as u64)),
            ("connect", "ms", connected.min(figure(&answer, "connected_us")) / 1000.0),
        ]
    }

    /// What the server takes of what the guest or the host sends in so much time.
    fn send(&mut self, side: &str, streams: usize, time: Duration, recorder: &mut Recorder) -> (u64, String) {
        let work = |stream: &TcpStream| streams::receive(stream, streams::seed_of(stream)?, time);
        self.exchange(side, ("send", streams, None), work, recorder)
    }

    /// What the guest or the host takes of what the server sends.
    fn receive(&mut self, side: &str, streams: usize, time: Duration, recorder: &mut Recorder) -> (u64, String) {
        let work = |stream: &TcpStream| streams::send(stream, streams::seed_of(stream)?).map(|()| 0);
        self.exchange(side, ("receive", streams, Some(time)), work, recorder)
    }

    /// Has the program make connections to the server, which does its part with each. Returns what that makes, and what
    /// the program says.
    fn exchange(
        &mut self,
        side: &str,
        (verb, streams, time): (&str, usize, Option<Duration>),
        work: impl Fn(&TcpStream) -> std::io::Result<u64> + Sync,
        recorder: &mut Recorder,
    ) -> (u64, String) {
        let address = Router::address(1);
        let listener = self.server.run(|| TcpListener::bind((address.as_str(), 0)).unwrap());
        let time = time.map_or(String::new(), |time| format!(" {}", time.as_millis()));
        let words = |port: &str| format!("streams {verb} {address} {port} {streams}{time}");
        recorder.command(side, &words("PORT"));
        let command = words(&listener.local_addr().unwrap().port().to_string());
        let (guest, host, program, work) = (&mut self.guest, &self.host, &self.program, &work);
        std::thread::scope(|scope| {
            let client = scope.spawn(move || {
                if side != PEER {
                    let outcome = guest.run(&command, COMMAND_WITHIN + COMES_WITHIN);
                    assert_eq!(outcome.code, 0, "{command}: {}", outcome.output);
                    return outcome.output;
                }
                let program = command.replace("streams ", &format!("{} ", program.display()));
                let entering = host.enter();
                let words: Vec<&str> = entering.iter().map(String::as_str).chain(["taskset", "-c", "0"]).collect();
                run_program(&words.into_iter().chain(program.split(' ')).collect::<Vec<_>>(), &[])
            });
            listener.set_nonblocking(true).unwrap();
            let served = (0..streams).map(|_| {
                let stream = within(COMES_WITHIN, || listener.accept().ok()).expect("a connection comes").0;
                stream.set_nonblocking(false).unwrap();
                scope.spawn(move || {
                    run_on_core_1();
                    work(&stream)
                })
            });
            let served: Vec<_> = served.collect();
            let bytes = served.into_iter().map(|thread| thread.join().unwrap().unwrap_or_else(|e| panic!("{e}"))).sum();
            (bytes, client.join().unwrap())
        })
    }
}

pub(crate) fn run_on_core_1() {
    let mut set = CpuSet::new();
    set.set(1).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

/// A number of what the program says.
fn figure(answer: &str, name: &str) -> f64 {
    let number = json(answer).and_then(|json| json.get(name)?.as_f64());
    number.unwrap_or_else(|| panic!("no {name}: {answer}"))
}
