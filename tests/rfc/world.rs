//! The host, with the daemon on it, and who is beyond.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, PATIENCE};
use crate::far::Far;
use crate::space::Space;
use crate::station::Station;

/// The host's addresses, by family, and those of the machine that it is connected to, which has two of each.
pub(crate) const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub(crate) const PEER: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
pub(crate) const OTHER: [&str; 2] = ["192.0.2.3", "2001:db8::3"];
pub(crate) const GATEWAY: [&str; 2] = ["10.0.2.1", "fd00:77::1"];
const SUBNET6: &str = "fd00:77::/64";
/// Where the gateway's figures are.
pub(crate) const UPLINK: u64 = 0;

/// So long it is waited for what should not come.
pub(crate) const A_MOMENT: Duration = Duration::from_millis(200);

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

pub(crate) struct World {
    pub(crate) daemon: Daemon,
    pub(crate) host: Space,
    pub(crate) machine: Space,
    pub(crate) far: Far,
}

impl World {
    pub(crate) fn new(options: &[&str]) -> Self {
        Self::prepared(options, |_| {})
    }

    /// One on whose host something has been done before.
    pub(crate) fn prepared(options: &[&str], prepare: impl FnOnce(&Space)) -> Self {
        let rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
        Self::of(|host| {
            prepare(host);
            Daemon::in_space_by(host, &rights, "nat", &[&["--subnet6", SUBNET6], options].concat())
        })
    }

    /// One with two ports that have names, and forwards.
    pub(crate) fn of_two(forwards: &str) -> Self {
        let port = |name: &str| format!("[[network.port]]\nname = \"{name}\"\nsocket-path = \"DIR/{name}.sock\"\n");
        let text = format!(
            "[[network]]\nname = \"net\"\nmode = \"nat\"\nsubnet6 = \"{SUBNET6}\"\nforward = \"{forwards}\"\n\
             [network.dhcp]\nleases = \"DIR/leases\"\n{}{}",
            port("a"),
            port("b")
        );
        Self::of(|host| Daemon::of_file_in(host, std::process::Stdio::null(), &text, "b.sock"))
    }

    fn of(start: impl FnOnce(&Space) -> Daemon) -> Self {
        let [host, machine] = [Space::new(), Space::new()];
        host.cable("wan", &machine, "eth0");
        for (space, name, addresses) in [(&host, "wan", &[HOST][..]), (&machine, "eth0", &[PEER, OTHER])] {
            for [v4, v6] in addresses {
                space.ip(&format!("address add {v4}/24 dev {name}"));
                space.ip(&format!("address add {v6}/64 dev {name} nodad"));
            }
            // They say all that they have to say.
            space.set("ipv4/icmp_ratelimit", "0");
            space.set("ipv6/icmp/ratelimit", "0");
        }
        host.set("ipv4/ping_group_range", "0 2147483647");
        let far = Far::new(&host);
        let daemon = start(&host);
        Self { daemon, host, machine, far }
    }

    /// Guests, from number 1 on.
    pub(crate) fn stations<const N: usize>(&self) -> [Station; N] {
        std::array::from_fn(|n| Station::new(&self.daemon, "net.sock", n as u8 + 1))
    }

    /// A socket of the machine's.
    pub(crate) fn socket(&self, at: SocketAddr) -> UdpSocket {
        socket(&self.machine, at)
    }

    /// A listener of the machine's.
    pub(crate) fn listener(&self, at: SocketAddr) -> TcpListener {
        self.machine.run(|| TcpListener::bind(at).unwrap())
    }
}

/// A socket that waits long enough.
pub(crate) fn socket(space: &Space, at: SocketAddr) -> UdpSocket {
    let socket = space.run(|| UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What comes to a socket, and from where.
#[track_caller]
pub(crate) fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 65_536];
    let (len, from) = loop {
        match socket.recv_from(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => break received.unwrap(),
        }
    };
    bytes.truncate(len);
    (bytes, from)
}

/// Asserts that for a moment nothing comes to a socket, nor is it told of an error.
#[track_caller]
pub(crate) fn assert_silent(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let end = Instant::now() + A_MOMENT;
    while Instant::now() < end {
        assert_eq!(socket.recv(&mut [0; 9]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The external address and port of a guest's port, as a socket sees it.
#[track_caller]
pub(crate) fn external(station: &mut Station, port: u16, socket: &UdpSocket) -> SocketAddr {
    station.udp(port, socket.local_addr().unwrap(), b"who am I?");
    let (bytes, from) = receive(socket);
    assert_eq!(bytes, b"who am I?");
    from
}
