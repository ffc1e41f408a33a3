//! NAT with a guest in process: as many connections and endpoints as a guest may have, and what hostile guests send.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, SlicedPacket, TcpHeaderSlice, TcpOptionElement, TransportSlice};
use nix::sys::resource::{Resource, getrlimit};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, listen, send, socket_with};

use crate::attacks::BEHIND;
use crate::daemon::{Daemon, PATIENCE, until};
use crate::dhcp::lease;
use crate::guest::{Config, Guest, mac};
use crate::space::Space;

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
pub(crate) const UPLINK: u64 = 0;

/// What a TCP segment from the gateway says.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) remote: (Ipv4Addr, u16),
    pub(crate) to_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// As it stands in the header, and the scale of those that follow, if the segment says one.
    pub(crate) window: u16,
    pub(crate) scale: Option<u8>,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) payload: Vec<u8>,
}

/// A guest with an address, who knows the gateway.
pub(crate) struct Talker {
    pub(crate) guest: Guest,
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway: [u8; 6],
}

impl Talker {
    pub(crate) fn new(daemon: &Daemon, number: u8) -> Self {
        let mut guest = Guest::attach(&daemon.socket(), Config { size: 1024, ..Config::usual(number) });
        let address = lease(&mut guest);
        let own = mac(number);
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &own, &address.octets(), &[0; 6], &GATEWAY.octets()].concat();
        guest.send(&[&[0xff; 6][..], &own, &[8, 6], &arp, &[0; 18]].concat());
        let answer = loop {
            let frame = guest.receive().frame;
            if frame[12..14] == [8, 6] {
                break frame;
            }
        };
        Self { guest, address, gateway: answer[6..12].try_into().unwrap() }
    }

    pub(crate) fn ip(&self, to: Ipv4Addr) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let own = mac(self.guest.config.number);
        PacketBuilder::ethernet2(own, self.gateway).ipv4(self.address.octets(), to.octets(), 64)
    }

    /// Sends a segment. `change` makes of its header what it is to be.
    pub(crate) fn tcp(
        &mut self,
        from: u16,
        (to, port): (Ipv4Addr, u16),
        (seq, ack): (u32, Option<u32>),
        flags: &str,
        payload: &[u8],
    ) {
        let mut packet = self.ip(to).tcp(from, port, seq, 65_000);
        if let Some(ack) = ack {
            packet = packet.ack(ack);
        }
        for flag in flags.chars() {
            packet = match flag {
                'S' => packet.syn(),
                'F' => packet.fin(),
                'R' => packet.rst(),
                'U' => packet.urg(0xffff),
                _ => panic!("{flag}"),
            };
        }
        let mut frame = Vec::new();
        packet.write(&mut frame, payload).unwrap();
        self.guest.send(&frame);
    }

    pub(crate) fn udp(&mut self, from: u16, (to, port): (Ipv4Addr, u16), payload: &[u8]) {
        let mut frame = Vec::new();
        self.ip(to).udp(from, port).write(&mut frame, payload).unwrap();
        self.guest.send(&frame);
    }

    /// The next segment that has come.
    pub(crate) fn poll_tcp(&mut self) -> Option<Heard> {
        while let Some(received) = self.guest.poll(0) {
            let frame = received.frame;
            let Ok(packet) = SlicedPacket::from_ethernet(&frame) else { continue };
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { continue };
            let header = TcpHeaderSlice::from_slice(tcp.slice()).unwrap();
            let from: [u8; 4] = frame[26..30].try_into().unwrap();
            return Some(Heard {
                remote: (from.into(), header.source_port()),
                to_port: header.destination_port(),
                seq: header.sequence_number(),
                ack: header.acknowledgment_number(),
                window: header.window_size(),
                scale: header.options_iterator().find_map(|option| match option {
                    Ok(TcpOptionElement::WindowScale(scale)) => Some(scale),
                    _ => None,
                }),
                syn: header.syn(),
                fin: header.fin(),
                rst: header.rst(),
                payload: tcp.payload().to_vec(),
            });
        }
        None
    }

    #[track_caller]
    pub(crate) fn hear(&mut self) -> Heard {
        let mut heard = None;
        until("a segment", || {
            heard = self.poll_tcp();
            heard.is_some()
        });
        heard.unwrap()
    }
}

/// The host, the daemon on it, and a machine beyond, with several addresses.
pub(crate) fn world(options: &[&str]) -> (Daemon, Space, Space) {
    let [host, machine] = [Space::new(), Space::new()];
    host.cable("eth0", &machine, "eth0");
    host.ip("addr add 10.7.0.1/24 dev eth0");
    for number in 2..6 {
        machine.ip(&format!("addr add 10.7.0.{number}/24 dev eth0"));
    }
    let rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let daemon = Daemon::in_space_by(&host, &rights, "nat", options);
    (daemon, host, machine)
}

/// As many as `wanted`, or as one guest may have here: of a process's descriptors all guests may have three quarters,
/// and one of them three quarters of those. Fewer than wanted are told of, and many they must be.
fn at_most(wanted: u64) -> u64 {
    // Twice as many as may be half open.
    const LEAST: u64 = 2048;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let count = wanted.min(most / 4 * 3 / 4 * 3);
    if count < wanted {
        // Not by `eprintln`, of which nothing is shown when the test passes.
        let line = format!("{count} sockets of a guest instead of {wanted}: the hard limit of descriptors is {most}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    assert!(count >= LEAST, "{count} sockets of a guest are too few: the hard limit of descriptors is {most}");
    count
}

/// How many of something the gateway has open.
pub(crate) fn open(daemon: &Daemon, what: &str) -> u64 {
    let counters = daemon.counters(UPLINK);
    counters[&format!("{what}_opened")] - counters[&format!("{what}_closed")]
}

/// How many sockets of a kind are in use, as the kernel says (`/proc/net/sockstat`).
fn in_use(space: &Space, kind: &str) -> u64 {
    let text = space.run(|| std::fs::read_to_string("/proc/thread-self/net/sockstat")).unwrap();
    let line = text.lines().find(|line| line.starts_with(kind)).unwrap();
    line.split(' ').nth(2).unwrap().parse().unwrap()
}

/// Has the machine answer whoever connects, on all of its addresses, and close.
pub(crate) fn serve(machine: &Space, answer: &'static [u8]) {
    let listener = machine.run(|| TcpListener::bind("0.0.0.0:4000").unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut asked = [0; 4];
            if stream.read_exact(&mut asked).is_ok() {
                let _ = stream.write_all(answer);
            }
        }
    });
}

#[test]
fn ten_thousand_short_connections_come_and_go() {
    const COUNT: usize = 10_000;
    const AT_ONCE: usize = 64;
    let (mut daemon, host, machine) = world(&[]);
    serve(&machine, b"answer");
    let mut talker = Talker::new(&daemon, 1);
    let (mut begun, mut done) = (0, 0);
    // By the guest's port: what it has had.
    let mut open_now: HashMap<u16, Vec<u8>> = HashMap::new();
    let deadline = Instant::now() + 3 * PATIENCE;
    while done < COUNT {
        assert!(Instant::now() < deadline, "{begun} have begun and {done} are done; {open_now:?}");
        while begun < COUNT && open_now.len() < AT_ONCE {
            let (port, to) = (10_000 + (begun % 40_000) as u16, Ipv4Addr::new(10, 7, 0, 2 + (begun % 4) as u8));
            talker.tcp(port, (to, 4000), (7, None), "S", b"");
            open_now.insert(port, Vec::new());
            begun += 1;
        }
        let Some(heard) = talker.poll_tcp() else { continue };
        assert!(!heard.rst, "{heard:?}");
        // The last acknowledgement of one that is done is no more than that.
        let Some(had) = open_now.get_mut(&heard.to_port) else { continue };
        had.extend(&heard.payload);
        let next = heard.seq + heard.payload.len() as u32 + u32::from(heard.syn) + u32::from(heard.fin);
        if heard.syn {
            talker.tcp(heard.to_port, heard.remote, (8, Some(next)), "", b"ask!");
        } else if heard.fin {
            assert_eq!(open_now.remove(&heard.to_port).unwrap(), b"answer");
            talker.tcp(heard.to_port, heard.remote, (12, Some(next)), "F", b"");
            done += 1;
        } else if !heard.payload.is_empty() {
            talker.tcp(heard.to_port, heard.remote, (12, Some(next)), "", b"");
        }
    }
    until("all have ended", || open(&daemon, "tcp") == 0);
    assert_eq!(daemon.counters(UPLINK)["tcp_opened"], COUNT as u64);
    until("no socket is left", || in_use(&host, "TCP:") == 0);
    daemon.assert_alive();
}

#[test]
fn who_is_silent_hears_at_once_that_the_other_side_has_ended() {
    let (mut daemon, _host, machine) = world(&[]);
    let listener = machine.run(|| TcpListener::bind("10.7.0.2:4000").unwrap());
    let mut talker = Talker::new(&daemon, 1);
    talker.tcp(1000, (Ipv4Addr::new(10, 7, 0, 2), 4000), (7, None), "S", b"");
    let heard = talker.hear();
    talker.tcp(1000, heard.remote, (8, Some(heard.seq + 1)), "", b"");
    let (stream, _) = listener.accept().unwrap();
    talker.tcp(1000, heard.remote, (8, Some(heard.seq + 1)), "F", b"");
    // Until nobody polls any more for what the guest might say, and nothing is due.
    std::thread::sleep(Duration::from_millis(1500));
    while let Some(heard) = talker.poll_tcp() {
        assert!(!heard.fin, "{heard:?}");
    }
    drop(stream);
    let fin = talker.hear();
    assert!(fin.fin, "{fin:?}");
    daemon.assert_alive();
}

#[test]
fn what_is_urgent_is_a_part_of_what_the_peer_says() {
    let (mut daemon, _host, machine) = world(&[]);
    let to = (Ipv4Addr::new(10, 7, 0, 2), 4000);
    let listener = machine.run(|| TcpListener::bind(to).unwrap());
    let mut talker = Talker::new(&daemon, 1);
    for (port, closes) in [(1000, false), (1001, true)] {
        // The one before may still have something to say.
        let hear = |talker: &mut Talker| std::iter::repeat_with(|| talker.hear()).find(|heard| heard.to_port == port);
        talker.tcp(port, to, (7, None), "S", b"");
        let syn = hear(&mut talker).unwrap();
        // All of it has come before the first read, which ends before what is urgent.
        let (stream, _) = listener.accept().unwrap();
        for (text, flags) in [("abc", SendFlags::empty()), ("d", SendFlags::OOB), ("efg", SendFlags::empty())] {
            send(&stream, text.as_bytes(), flags).unwrap();
        }
        let stream = (!closes).then_some(stream);
        std::thread::sleep(Duration::from_millis(50));
        let (mut next, mut text, mut has_ended) = (syn.seq + 1, Vec::new(), false);
        while text.len() < 7 || closes && !has_ended {
            talker.tcp(port, to, (8, Some(next)), "", b"");
            let heard = hear(&mut talker).unwrap();
            assert_eq!((heard.seq, heard.rst), (next, false), "after {text:?}");
            next += heard.payload.len() as u32 + u32::from(heard.fin);
            text.extend(heard.payload);
            has_ended = heard.fin;
        }
        assert_eq!((text.as_slice(), has_ended), (&b"abcdefg"[..], closes));
        drop(stream);
    }
    daemon.assert_alive();
}

#[test]
fn a_question_is_acknowledged_with_its_answer_or_a_moment_later() {
    const TRIES: u16 = 50;
    let (mut daemon, _host, machine) = world(&[]);
    serve(&machine, b"answer");
    let mute = machine.run(|| TcpListener::bind("0.0.0.0:4001").unwrap());
    let mut talker = Talker::new(&daemon, 1);
    let mut ask = |from, port| {
        let to = (Ipv4Addr::new(10, 7, 0, 2), port);
        talker.tcp(from, to, (7, None), "S", b"");
        // Those before have not acknowledged what they heard, and may hear it again.
        let hear = |talker: &mut Talker| std::iter::repeat_with(|| talker.hear()).find(|heard| heard.to_port == from);
        let syn = hear(&mut talker).unwrap();
        talker.tcp(from, to, (8, Some(syn.seq + 1)), "", b"ask!");
        let asked = Instant::now();
        (hear(&mut talker).unwrap().payload, asked.elapsed())
    };
    // A machine that is busy takes its time for the answer.
    assert!((0..TRIES).any(|n| ask(1000 + n, 4000).0 == b"answer"), "each was acknowledged before");
    // Who says nothing has no answer for it to go with.
    let waits: Vec<_> = (0..5).map(|n| ask(2000 + n, 4001)).collect();
    assert!(waits.iter().all(|(payload, _)| payload.is_empty()));
    let shortest = waits.iter().map(|(_, time)| *time).min();
    assert!(shortest < Some(Duration::from_millis(100)), "{waits:?}");
    drop(mute);
    daemon.assert_alive();
}

#[test]
fn twenty_thousand_idle_connections_are_there_and_cost_nothing() {
    let count = at_most(20_000);
    let (mut daemon, host, machine) = world(&[]);
    // Nobody accepts: the kernel answers.
    let listeners: Vec<_> = (0..8_u16)
        .map(|n| {
            machine.run(|| {
                std::fs::write("/proc/sys/net/core/somaxconn", "65535").unwrap();
                // What other tests start meanwhile must not have it.
                let flags = SocketFlags::CLOEXEC;
                let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
                bind(&socket, &SocketAddr::from(([0; 4], 4000 + n))).unwrap();
                listen(&socket, 30_000).unwrap();
                socket
            })
        })
        .collect();
    let mut talker = Talker::new(&daemon, 1);
    // By whose they are. When the guest is late, as on a busy machine, it has been answered twice.
    let (mut begun, mut done) = (0, HashSet::new());
    while (done.len() as u64) < count {
        while begun < count && begun - (done.len() as u64) < 256 {
            let to = Ipv4Addr::new(10, 7, 0, 2 + (begun % 4) as u8);
            let port = 4000 + (begun / 4 % listeners.len() as u64) as u16;
            talker.tcp(10_000 + (begun / 32 % 50_000) as u16, (to, port), (7, None), "S", b"");
            begun += 1;
        }
        let heard = talker.hear();
        assert!(heard.syn && !heard.rst, "{heard:?}");
        talker.tcp(heard.to_port, heard.remote, (8, Some(heard.seq + 1)), "", b"");
        done.insert((heard.to_port, heard.remote));
    }
    assert_eq!((open(&daemon, "tcp"), in_use(&host, "TCP:")), (count, count));
    // When each began, it was noted that it might have to be answered again.
    std::thread::sleep(Duration::from_millis(1500));
    let (before, facts) = (daemon.cpu_ticks("worker-0"), daemon.facts());
    std::thread::sleep(Duration::from_secs(1));
    let spent = daemon.cpu_ticks("worker-0") - before;
    assert!(spent <= 2, "{spent} ticks in a second");
    assert!(facts.rss_anon_kib < 64 * 1024, "{facts:?}");
    drop(talker);
    until("all are gone with their guest", || in_use(&host, "TCP:") == 0);
    daemon.assert_alive();
}

#[test]
fn twenty_five_thousand_endpoints_are_one_each_for_all_they_talk_to() {
    let count = at_most(25_000) as u16;
    let (mut daemon, host, machine) = world(&[]);
    let socket = machine.run(|| UdpSocket::bind("0.0.0.0:4000").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut talker = Talker::new(&daemon, 1);
    let mut seen = HashMap::new();
    for n in 0..count {
        talker.udp(20_000 + n, (Ipv4Addr::new(10, 7, 0, 2), 4000), &n.to_be_bytes());
        let mut bytes = [0; 8];
        let (len, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!(bytes[..len], n.to_be_bytes());
        assert!(seen.insert(from, n).is_none(), "{from} is two endpoints");
    }
    assert_eq!((open(&daemon, "udp"), in_use(&host, "UDP:")), (count.into(), count.into()));
    // To another address each is the same.
    for n in [0, 7, count - 1] {
        talker.udp(20_000 + n, (Ipv4Addr::new(10, 7, 0, 5), 4000), b"again");
        let (_, from) = socket.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(seen[&from], n);
        // And whoever knows of it may answer.
        let other = machine.run(|| UdpSocket::bind("10.7.0.3:0").unwrap());
        other.send_to(b"hello", from).unwrap();
        let frame = std::iter::repeat_with(|| talker.guest.receive().frame)
            .find(|frame| frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == (20_000 + n).to_be_bytes())
            .unwrap();
        assert_eq!((&frame[26..30], &frame[42..47]), (&[10, 7, 0, 3][..], &b"hello"[..]));
    }
    daemon.assert_alive();
}

/// What has been dropped of what guests have sent, by reason: by the gateway, and by the first guest's port.
fn dropped(daemon: &Daemon) -> HashMap<String, u64> {
    let of = |port, prefix| daemon.counters(port).into_iter().filter(move |(name, _)| name.starts_with(prefix));
    of(UPLINK, "drop_rx_").chain(of(1, "drop_tx_")).collect()
}

#[test]
fn nonsense_is_counted_and_nobody_else_notices() {
    let (mut daemon, host, machine) = world(&[]);
    host.ip(&format!("route add {BEHIND} via 10.7.0.2"));
    serve(&machine, b"answer");
    let [mut hostile, mut other] = [1, 2].map(|number| Talker::new(&daemon, number));
    let to = (Ipv4Addr::new(10, 7, 0, 2), 4000);
    let before = dropped(&daemon);
    // Whoever has no connection is told so.
    hostile.tcp(5, to, (9, Some(77)), "", b"data");
    let heard = hostile.hear();
    assert!(heard.rst && heard.seq == 77, "{heard:?}");
    // Connections that never get further, with all kinds of flags: three of eight ask for one.
    for n in 0..3000_u16 {
        let flags = ["S", "SF", "SR", "SU", "F", "R", "U", "SFRU"][usize::from(n) % 8];
        hostile.tcp(10_000 + n, (Ipv4Addr::new(10, 8, 0, 9), n | 1), (n.into(), None), flags, b"x");
    }
    for to in
        [[127, 0, 0, 1], [169, 254, 169, 254], [0, 0, 0, 0], [255; 4], [224, 0, 0, 1], [10, 0, 2, 77], [240, 0, 0, 1]]
    {
        hostile.tcp(5, (to.into(), 80), (1, None), "S", b"");
        hostile.udp(5, (to.into(), 80), b"x");
    }
    let mut frame = Vec::new();
    hostile.ip(to.0).tcp(9, 9, 9, 9).syn().write(&mut frame, b"").unwrap();
    // Headers that contradict themselves: how long they are, and the packet.
    for (at, value) in [(14, 0x44), (14, 0x4f), (16, 0xff), (17, 10), (46, 0x10), (46, 0xf0)] {
        let mut wrong = frame.clone();
        wrong[at] = value;
        hostile.guest.send(&wrong);
    }
    // Meanwhile the other has its connection.
    other.tcp(1000, to, (7, None), "S", b"");
    let heard = other.hear();
    other.tcp(1000, to, (8, Some(heard.seq + 1)), "", b"ask!");
    let answer = std::iter::repeat_with(|| other.hear()).find(|heard| !heard.payload.is_empty()).unwrap();
    assert_eq!(answer.payload, b"answer");
    // Those beyond what may be half open, TCP and UDP to each place where nobody may go, and the last ones.
    let expected = [
        ("drop_rx_flow_limit", 3000 / 8 * 3 - 1024),
        ("drop_rx_forbidden", 7 * 2),
        ("drop_rx_bad_packet", 4),
        ("drop_tx_bad_packet", 2),
    ];
    let drops = || {
        let now = dropped(&daemon).into_iter().map(|(name, count)| (name.clone(), count - before[&name]));
        now.filter(|(_, count)| *count > 0).collect::<HashMap<_, _>>()
    };
    let expected: HashMap<_, _> = expected.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    until(&format!("{expected:?}: {:?}", drops()), || drops() == expected);
    assert_eq!(open(&daemon, "tcp"), 1024 + 1);
    drop(hostile);
    until("what it had is gone", || open(&daemon, "tcp") == 1);
    daemon.assert_alive();
}
