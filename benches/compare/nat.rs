//! The load "nat": a guest that reaches a machine beyond the host through the host's own sockets, by guestwire and by
//! passt, each run as a user who owns nothing.
//!
//! Host and server are network namespaces with a pair of interfaces between them. The server is not the host itself,
//! though "guest to host" is what such a thing is said to do: passt gives its guest the host's own address unless told
//! otherwise, and takes its gateway's for the host's loopback, so that what reaches the host is another way by each of
//! the two. What lies beyond is reached by both as any program of the host reaches it: by a connection of the kernel's
//! that goes out of an interface. Both guests get an address of the same subnet by DHCP. The MTU in a case's name is
//! that of the guest and of the interfaces, which take long frames whole as well (TSO), as those of most machines do:
//! with shorter packets behind it passt does worse at 65520.
//!
//! The guest runs on core 0 with all of its VMM's threads, the server's programs on core 1; guestwire's threads may run
//! on both, and so may passt's only one. "cpu-per-gb" is what all of them had of the processors, "switch-cpu-per-gb"
//! what guestwire or passt had, all threads, the kernel's work in their names with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::extras::{compile, initrd_with};
use crate::guests::{Figure, json, round_trips, tcp, udp};
use crate::pairs::{Options, in_turn};
use crate::process::{Process, busy_seconds, cpu_seconds, within};
use crate::recorder::{At, Recorder};
use crate::vm::daemon::Daemon;
use crate::vm::guest::{COMMAND_WITHIN, Guest, Plan, Vmm, Wire};
use crate::vm::lab::Lab;
use crate::vm::space::Space;

/// The server's address.
const SERVER: &str = "10.7.0.2";
/// Where the host sends what is for elsewhere. Nothing is, but passt looks for an interface that leads there.
const BEYOND: &str = "10.7.0.254";
const PEER: &str = "passt";
/// What iperf3 listens on.
const IPERF_PORT: u16 = 5201;
/// Where the program of ours answers one request after the other.
const ANSWERS_PORT: u16 = 7001;
/// Where it answers one of each connection.
const CONNECTS_PORT: u16 = 7002;
/// One that any namespace may have, and that does not pace, as Linux's own choice (CUBIC) does not: what the machine
/// has been set to would be a part of the figures.
pub(crate) const CONGESTION_CONTROL: &str = "reno";
/// Longer than a program takes to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
/// Seconds that a measurement may take longer than it should.
const ENDS_WITHIN: u32 = 15;
/// What a shell says of a program that was.
const KILLED: i32 = 128 + 9;
/// Times that a measurement is begun: with 64 streams to a guest beside passt a third of them came to no end.
const TRIES: u32 = 10;
/// A user and a group that own nothing; what passt becomes when root starts it.
const NOBODY: u32 = 65534;
/// Ethernet's own, and what passt would have its guest use.
const MTUS: [u32; 2] = [1500, 65520];

#[derive(Clone, Copy, Debug)]
enum Way {
    ToHost,
    FromHost,
}

#[derive(Clone, Copy, Debug)]
enum Case {
    /// So many streams at once, by a guest of this MTU.
    Tcp(Way, u32, u32),
    /// As fast as the sender can, in datagrams that fill a packet of Ethernet's, nearly.
    Udp(Way),
    /// A connection for each request.
    Connects,
    RoundTrips,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::ToHost => "to-host",
            Self::FromHost => "from-host",
        }
    }

    /// What iperf3 is told.
    fn option(self) -> &'static str {
        match self {
            Self::ToHost => "",
            Self::FromHost => "-R",
        }
    }
}

impl Case {
    /// All that a guest of this MTU takes part in.
    fn all(mtu: u32) -> Vec<Self> {
        let ways = [Way::ToHost, Way::FromHost];
        let streams = ways.into_iter().flat_map(|way| [1, 8, 64].map(|streams| Self::Tcp(way, mtu, streams)));
        let others = [Self::Udp(Way::ToHost), Self::Udp(Way::FromHost), Self::Connects, Self::RoundTrips];
        // Those are packets that are far shorter than either MTU, or as long as fits in the short one.
        streams.chain(others.into_iter().filter(|_| mtu == MTUS[0])).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Tcp(way, mtu, streams) => format!("{}-{mtu}-{streams}", way.name()),
            Self::Udp(way) => format!("udp-{}", way.name()),
            Self::Connects => "connects".to_owned(),
            Self::RoundTrips => "round-trips".to_owned(),
        }
    }

    /// What the guest runs.
    fn command(self, seconds: u32) -> String {
        match self {
            Self::Tcp(way, _, streams) => {
                format!("iperf3 -c {SERVER} -t {seconds} -i 0 -J -P {streams} {}", way.option())
            }
            Self::Udp(way) => format!("iperf3 -c {SERVER} -t {seconds} -i 0 -J -u -b 0 -l 1448 {}", way.option()),
            Self::Connects => format!("round_trips connect {SERVER} {CONNECTS_PORT} {seconds}"),
            Self::RoundTrips => format!("round_trips ask {SERVER} {ANSWERS_PORT} {seconds}"),
        }
    }

    /// What the guest's program has measured.
    fn figures(self, json: &Value) -> Option<Vec<Figure>> {
        match self {
            Self::Tcp(..) => tcp(json),
            Self::Udp(_) => udp(json),
            Self::Connects => {
                let rate = ("rate", "1/s", json.get("per_second")?.as_f64()?);
                Some([rate].into_iter().chain(round_trips(json)?).collect())
            }
            Self::RoundTrips => round_trips(json),
        }
    }

    /// What has arrived, if that is what the case is about.
    fn gigabytes(self, json: &Value) -> Option<f64> {
        let of = |name: &str| json.pointer(&format!("/end/{name}"))?.as_f64();
        match self {
            Self::Tcp(..) => Some(of("sum_received/bytes")? / 1e9),
            Self::Udp(_) => Some(of("sum/bytes")? * (1.0 - of("sum/lost_packets")? / of("sum/packets")?) / 1e9),
            Self::Connects | Self::RoundTrips => None,
        }
    }
}

/// Each MTU by guestwire and by passt in turn.
pub(crate) fn run(options: &Options, recorder: &mut Recorder) {
    let (lab, folder) = (Lab::prepared_for("bench"), TempDir::with_prefix("guestwire-compare-").unwrap());
    let program = compile("round_trips", folder.path(), recorder);
    let initrd = initrd_with(Path::new(lab.get("UML_NEW_INITRD")), &program, folder.path());
    let load = Load { lab, program, initrd, seconds: options.seconds };
    let wanted = |case: &Case| options.cases.has(&case.name());
    for pair in 0..options.pairs {
        for mtu in MTUS {
            let cases: Vec<Case> = Case::all(mtu).into_iter().filter(wanted).collect();
            for side in in_turn(pair, ["guestwire", PEER]).into_iter().filter(|_| !cases.is_empty()) {
                let mut running = Side::start(&load, side, mtu, recorder);
                for &case in &cases {
                    let at = At { load: "nat", case: &case.name(), peer: PEER, pair, side };
                    recorder.measure(at, |recorder| running.measure(case, recorder));
                }
            }
        }
    }
}

/// What all sides have.
struct Load {
    lab: Lab,
    /// The one of ours, for the server.
    program: PathBuf,
    /// The guest's, with that program.
    initrd: PathBuf,
    seconds: u32,
}

/// One side of a pair: a guest, what it reaches the host's sockets through, and where.
struct Side<'a> {
    // In this order, so that a guest ends before what switches for it.
    guest: Guest,
    switch: Switch,
    _world: World,
    load: &'a Load,
    name: &'a str,
    mtu: u32,
}

impl<'a> Side<'a> {
    fn start(load: &'a Load, name: &'a str, mtu: u32, recorder: &mut Recorder) -> Self {
        let world = World::new(load, mtu, recorder);
        let switch = Switch::start(name, mtu, &load.lab, &world.host, recorder);
        let plan = Plan::new(Vmm::UmlNew, 1).without_addresses().initrd(&load.initrd).under(&["taskset", "-c", "0"]);
        let guest = plan.start_on(&load.lab, &Wire::Socket(switch.socket()), world.folder.path());
        recorder.command(&format!("nat on {name}"), guest.command_line());
        let mut guest = guest.booted();
        let command = format!("net-up && /bin/ip link set eth0 mtu {mtu} && dhcp-up");
        recorder.command("guest", &command);
        guest.ok(&command);
        let now = guest.ok("cat /sys/class/net/eth0/mtu");
        assert_eq!(now.trim(), mtu.to_string(), "the guest's MTU");
        Self { guest, switch, _world: world, load, name, mtu }
    }

    /// Measures once. If the guest's program does not come to an end, all of it is begun anew, and how often that was
    /// so is a figure too.
    fn measure(&mut self, case: Case, recorder: &mut Recorder) -> Vec<Figure> {
        for hung in 0..TRIES {
            if let Some(mut figures) = self.try_to_measure(case, recorder) {
                figures.push(("hung", "times", f64::from(hung)));
                return figures;
            }
            eprintln!("{} on {} did not end", case.name(), self.name);
            *self = Self::start(self.load, self.name, self.mtu, recorder);
        }
        self.guest.fail(&format!("was started {TRIES} times, and {} never came to an end", case.name()));
    }

    /// `None` if that does not come to an end.
    fn try_to_measure(&mut self, case: Case, recorder: &mut Recorder) -> Option<Vec<Figure>> {
        let seconds = self.load.seconds;
        let command = case.command(seconds);
        recorder.command("guest", &command);
        let command = format!("timeout -s KILL {} {command}", seconds + ENDS_WITHIN);
        let (begin, all, own) = (Instant::now(), busy_seconds(), cpu_seconds(self.switch.pid()));
        let outcome = self.guest.run(&command, COMMAND_WITHIN + Duration::from_secs(seconds.into()));
        let (all, own) = (busy_seconds() - all, cpu_seconds(self.switch.pid()) - own);
        let elapsed = begin.elapsed().as_secs_f64();
        if outcome.code == KILLED {
            return None;
        }
        let json = json(&outcome.output);
        let Some(mut figures) = json.as_ref().and_then(|json| case.figures(json)) else {
            self.guest.fail(&format!("ran `{command}`, and that measured nothing:\n{}", outcome.output));
        };
        if let Some(gigabytes) = json.and_then(|json| case.gigabytes(&json)) {
            figures.push(("cpu-per-gb", "s", all / gigabytes));
            figures.push(("switch-cpu-per-gb", "s", own / gigabytes));
        }
        figures.push(("cpu", "cores", all / elapsed));
        figures.push(("switch-cpu", "cores", own / elapsed));
        Some(figures)
    }
}

/// The host, and the machine at the other end of its wire.
struct World {
    host: Space,
    _server: Space,
    _programs: [Process; 3],
    folder: TempDir,
}

impl World {
    fn new(load: &Load, mtu: u32, recorder: &mut Recorder) -> Self {
        let (host, server) = (Space::new(), Space::new());
        host.cable("eth0", &server, "eth0");
        let common = format!("link set eth0 mtu {mtu}");
        let on_host = ["addr add 10.7.0.1/24 dev eth0".to_owned(), format!("route add default via {BEYOND}")];
        let on_server = [SERVER, BEYOND].map(|address| format!("addr add {address}/24 dev eth0"));
        for (space, name, lines) in [(&host, "host", on_host), (&server, "server", on_server)] {
            recorder.command(name, &format!("sysctl net.ipv4.tcp_congestion_control={CONGESTION_CONTROL}"));
            space.set("ipv4/tcp_congestion_control", CONGESTION_CONTROL);
            for line in [&common].into_iter().chain(&lines) {
                recorder.command(name, &format!("ip {line}"));
                space.ip(line);
            }
        }
        let iperf3 = format!("{}/iperf3", load.lab.get("NET_BIN"));
        let round_trips = load.program.to_str().unwrap();
        let programs = [
            serve(&server, &format!("{iperf3} -s"), IPERF_PORT, recorder),
            serve(&server, &format!("{round_trips} serve {ANSWERS_PORT}"), ANSWERS_PORT, recorder),
            serve(&server, &format!("{round_trips} serve-once {CONNECTS_PORT}"), CONNECTS_PORT, recorder),
        ];
        let folder = TempDir::with_prefix("guestwire-compare-").unwrap();
        Self { host, _server: server, _programs: programs, folder }
    }
}

/// Starts a program in the server that listens on this port.
pub(crate) fn serve(server: &Space, line: &str, port: u16, recorder: &mut Recorder) -> Process {
    let line = format!("taskset -c 1 {line}");
    recorder.command("server", &line);
    let words = server.enter();
    let words: Vec<&str> = words.iter().map(String::as_str).chain(line.split(' ')).collect();
    let program = Process::start(&words, &[]);
    let listens = || {
        let sockets =
            ["tcp", "tcp6"].map(|file| std::fs::read_to_string(format!("/proc/{}/net/{file}", program.pid())));
        let listed = sockets.into_iter().flatten().any(|text| text.contains(&format!(":{port:04X} ")));
        listed.then_some(())
    };
    within(LISTENS_WITHIN, listens).unwrap_or_else(|| panic!("nobody listens on {port}:\n{}", program.tail()));
    program
}

/// What stands between a guest and the host's sockets.
enum Switch {
    Guestwire(Daemon),
    Passt { process: Process, folder: TempDir },
}

impl Switch {
    fn start(side: &str, mtu: u32, lab: &Lab, host: &Space, recorder: &mut Recorder) -> Self {
        if side == PEER {
            return Self::passt(mtu, lab, host, recorder);
        }
        // Guests have Ethernet's own MTU if they are told nothing.
        let mtu_told = mtu.to_string();
        let options: &[&str] = if mtu == MTUS[0] { &[] } else { &["--mtu", &mtu_told] };
        let line = ["guestwire nat --socket-path net.sock"].into_iter().chain(options.iter().copied());
        recorder.command("guestwire, by nobody", &line.collect::<Vec<_>>().join(" "));
        Self::Guestwire(Daemon::run_as_nobody(&host.enter(), "nat", options))
    }

    fn passt(mtu: u32, lab: &Lab, host: &Space, recorder: &mut Recorder) -> Self {
        let folder = TempDir::with_prefix("guestwire-passt-").unwrap();
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let socket = folder.path().join("net.sock");
        let line = format!(
            "{} --vhost-user --socket {} --foreground --one-off --address 10.0.2.15 --netmask 24 --gateway 10.0.2.1 \
             --mtu {mtu}",
            lab.get("PASST"),
            socket.display()
        );
        recorder.command("passt", &line);
        let words = host.enter();
        let words: Vec<&str> = words.iter().map(String::as_str).chain(line.split(' ')).collect();
        let process = Process::start(&words, &[]);
        within(LISTENS_WITHIN, || socket.exists().then_some(()))
            .unwrap_or_else(|| panic!("passt made no socket:\n{}", process.tail()));
        // Should it have stayed what it was begun as, it would be compared by what it is not.
        let user = within(LISTENS_WITHIN, || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).ok()?;
            status.contains(&format!("\nUid:\t{NOBODY}\t")).then_some(())
        });
        user.unwrap_or_else(|| panic!("passt is not nobody:\n{}", process.tail()));
        Self::Passt { process, folder }
    }

    fn socket(&self) -> PathBuf {
        match self {
            Self::Guestwire(daemon) => daemon.socket(),
            Self::Passt { folder, .. } => folder.path().join("net.sock"),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Guestwire(daemon) => daemon.pid(),
            Self::Passt { process, .. } => process.pid(),
        }
    }
}
