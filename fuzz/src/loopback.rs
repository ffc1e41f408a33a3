//! A host of nothing but its loopback interface, and what listens there.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// Addresses of the host's that are no loopback addresses.
pub const HOST: [&str; 2] = ["10.7.0.2", "fd07::2"];
/// Where it listens for connections, and for datagrams.
pub const STREAMS: u16 = 4000;
/// See above.
pub const DATAGRAMS: u16 = 4001;
/// Bytes that are read or written at once.
const CHUNK: usize = 16 * 1024;
/// Datagrams that are answered in one go.
const DATAGRAMS_MAX: usize = 64;

/// Makes this thread's network, and that of those it starts, one of a loopback interface alone, which pings.
///
/// # Panics
/// When the host does not allow it.
pub fn isolate() {
    let (user, group) = (getuid(), getgid());
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let write = |name: &str, text: String| std::fs::write(format!("/proc/self/{name}"), text).expect("a user");
        write("setgroups", "deny".to_owned());
        write("uid_map", format!("0 {user} 1"));
        write("gid_map", format!("0 {group} 1"));
    }
    let addresses = HOST.map(|address| format!("addr add {address} dev lo"));
    for line in ["link set lo up".to_owned()].iter().chain(&addresses) {
        let status = Command::new("ip").args(line.split(' ')).status().expect("ip, of iproute2");
        assert!(status.success(), "ip {line}: {status}");
    }
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("pings");
}

/// The byte at this place of every stream.
pub fn byte(at: u32) -> u8 {
    (at ^ at >> 8).wrapping_mul(7) as u8
}

/// Bytes of every stream from `at` on.
pub fn stream(at: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| byte(at.wrapping_add(n))).collect()
}

/// What the host listens with.
pub struct Listeners {
    streams: TcpListener,
    datagrams: UdpSocket,
}

impl Listeners {
    /// Listens at all addresses.
    ///
    /// # Panics
    /// When somebody else does.
    pub fn open() -> Self {
        let streams = TcpListener::bind(("::", STREAMS)).expect("a port");
        let datagrams = UdpSocket::bind(("::", DATAGRAMS)).expect("a port");
        streams.set_nonblocking(true).expect("a socket");
        datagrams.set_nonblocking(true).expect("a socket");
        Self { streams, datagrams }
    }

    /// Whoever has connected since the last time.
    pub fn accept(&self) -> Option<Stream> {
        self.streams.accept().ok().map(|(socket, _)| Stream::new(socket))
    }

    /// Sends back what has come; `each` sees it.
    pub fn answer(&self, mut each: impl FnMut(&[u8])) {
        let mut room = [0; 65_536];
        for _ in 0..DATAGRAMS_MAX {
            match self.datagrams.recv_from(&mut room) {
                Ok((len, from)) => {
                    each(&room[..len]);
                    // There may be nobody any more.
                    let _ = self.datagrams.send_to(&room[..len], from);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // What became of an answer.
                Err(_) => {}
            }
        }
    }

    /// Forgets all that has come.
    pub fn clear(&self) {
        while self.accept().is_some() {}
        let mut room = [0; 1];
        while !matches!(self.datagrams.recv_from(&mut room), Err(error) if error.kind() == ErrorKind::WouldBlock) {}
    }
}

/// The host's end of a connection. What is said either way is the same for all ([`byte`]).
pub struct Stream {
    socket: TcpStream,
    read: u32,
    written: u32,
}

impl Stream {
    fn new(socket: TcpStream) -> Self {
        socket.set_nonblocking(true).expect("a socket");
        Self { socket, read: 0, written: 0 }
    }

    /// Connects to a port of the host's own, which must be there.
    pub fn connect(to: (IpAddr, u16)) -> Option<Self> {
        TcpStream::connect(SocketAddr::from(to)).ok().map(Self::new)
    }

    /// Says so many bytes, or as many as there is room for.
    pub fn write(&mut self, len: usize) {
        if let Ok(n) = self.socket.write(&stream(self.written, len.min(CHUNK))) {
            self.written += n as u32;
        }
    }

    /// Reads some of what has come. Returns whether it is what must be said.
    pub fn read(&mut self) -> bool {
        let mut room = [0; CHUNK];
        let Ok(n) = self.socket.read(&mut room) else { return true };
        let is_right = room[..n] == stream(self.read, n);
        self.read += n as u32;
        is_right
    }

    /// Says that no more comes.
    pub fn end(&self) {
        // It may have been broken off.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}
