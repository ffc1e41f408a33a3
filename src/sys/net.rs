//! Sockets of the host that carry guests' connections: calls and options that no crate has safely.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::errqueue::keep_errors;
use super::local_port;
use crate::ring::{InPlace, PIECES_MAX, Pieces};

/// How often the kernel asks again for a connection: one that nobody answers to is given up after more than four
/// minutes (RFC 5382, REQ-5: the transitory timeout; RFC 9293, 3.8.3: more than three).
const SYN_RETRIES: libc::c_int = 7;
/// What the kernel is to have room for from the beginning, of what a connection's peer sends, in bytes. At an MTU of
/// 9000 it is enough for the kernel to give more by itself ([`set_receive_room`]).
pub const RECEIVE_ROOM: u32 = 256 * 1024;

/// What the kernel says of a connection's send buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendBuffer {
    /// Bytes that it may have, with what the kernel needs to keep them.
    pub size: u32,
    /// Bytes that it has.
    pub used: u32,
}

/// From which of the host's ports a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPort {
    /// As the kernel likes, which may give several connections the same one.
    Any,
    /// From one that nobody has: this one, or one like it ([`super::local_port`]).
    Like(u16),
    /// From this one, which stood for the same guest's before, whoever of ours has it.
    Shared(u16),
}

/// A socket for a connection to `remote`, which is being made: writable when it is there or has failed. What is urgent
/// stays where it is among the rest, nothing is held back to make longer segments, and a peer that is gone is noticed.
/// Returns also the port of the host's that it is made from.
/// There is room for 256 KiB of the peer's, and for more when the guest is quick.
///
/// With a hop limit, which its packets then have, what becomes of the first ones is kept ([`super::errqueue`]) until
/// [`connection_made`].
///
/// # Errors
/// Those of socket(2), bind(2) and connect(2); not that the connection is still being made. ECONNREFUSED: it would be
/// one with itself.
pub fn begin_connection(remote: &SocketAddr, hop_limit: Option<u8>, port: LocalPort) -> io::Result<(OwnedFd, u16)> {
    let fd = stream_socket(remote)?;
    set_number(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_SYNCNT, SYN_RETRIES)?;
    match hop_limit {
        // The kernel keeps of itself what it hears while it makes the connection.
        Some(hop_limit) if remote.is_ipv4() => sockopt::set_ip_ttl(&fd, hop_limit.into())?,
        Some(hop_limit) => {
            sockopt::set_ipv6_unicast_hops(&fd, Some(hop_limit))?;
            keep_errors(&fd, &remote.ip(), true)?;
        }
        None => {}
    }
    match port {
        LocalPort::Any => {}
        LocalPort::Like(port) => {
            // Without SO_REUSEADDR it shares with nobody, not even with a connection that has ended a moment ago.
            local_port::bind_like(&fd, &SocketAddr::new(remote.ip(), port))?;
            sockopt::set_socket_reuseaddr(&fd, true)?;
        }
        LocalPort::Shared(port) => {
            sockopt::set_socket_reuseaddr(&fd, true)?;
            local_port::bind(&fd, &SocketAddr::new(remote.ip(), port))?;
        }
    }
    match rustix::net::connect(&fd, remote) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let local = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
    if local == *remote {
        // The host's own address: TCP allows it (RFC 9293, 3.5), and nobody wants it.
        reset_at_close(&fd);
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok((fd, local.port()))
}

/// A connection that was begun is there: from now on an error that may pass does not end it.
pub fn connection_made(fd: impl AsFd, remote: &SocketAddr) {
    if remote.is_ipv6() {
        // Fails for nothing that is a socket of this family.
        let _ = keep_errors(fd, &remote.ip(), false);
    }
}

fn stream_socket(of: &SocketAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family(of), SocketType::STREAM, flags, None)?;
    as_mirror(fd.as_fd())?;
    Ok(fd)
}

pub(super) fn family(of: &SocketAddr) -> AddressFamily {
    if of.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Sets what [`begin_connection`] says.
pub(super) fn as_mirror(fd: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::set_socket_oobinline(fd, true)?;
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_socket_keepalive(fd, true)?;
    set_receive_room(fd, RECEIVE_ROOM)
}

/// Has the kernel have room for this many bytes of what a connection's peer sends, if that is more than it has, up to
/// half of the host's most (`net.ipv4.tcp_rmem`).
///
/// It gives a connection more room by itself when what a program has taken away in a round trip, less what is still
/// there, is more than ten segments, or the first window. What is peeked is still there until the guest has
/// acknowledged it: of long segments, or over a long way, that is too much, each time.
///
/// # Errors
/// When the descriptor is no socket.
pub fn set_receive_room(fd: impl AsFd, bytes: u32) -> io::Result<()> {
    // Who waits for this much is given room for it, and keeps that; SO_RCVBUF would fix it for good.
    for least in [libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX), 1] {
        set_number(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, least)?;
    }
    Ok(())
}

/// How long a connection's bytes are on their way to the peer and back, in nanoseconds; zero: the kernel does not know.
///
/// The kernel measures it twice, by what it sends (`tcpi_rtt`; the first time by the SYN) and by what it receives
/// (`tcpi_rcv_rtt`, zero if it has not). Each may be too long, never too short: the one counts what the peer waits with
/// acknowledgements, the other what it waits with data, in whole milliseconds. So the shorter one is taken.
///
/// # Errors
/// When the descriptor is no connection.
pub fn round_trip(fd: impl AsFd) -> io::Result<u64> {
    // SAFETY: all numbers, for which zero is one.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes no more than `len` bytes, which are there; an older one writes fewer.
    let result = unsafe {
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut len)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let microseconds = [info.tcpi_rtt, info.tcpi_rcv_rtt].into_iter().filter(|trip| *trip > 0).min();
    Ok(u64::from(microseconds.unwrap_or(0)) * 1000)
}

/// A socket for datagrams to anybody of this guest's address's family, bound to a port that stands for the guest's: the
/// same if that is free, or else one like it. What becomes of them is kept ([`super::errqueue`]).
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn datagram_socket(guest: &SocketAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family(guest), SocketType::DGRAM, flags, None)?;
    local_port::bind_like(&fd, guest)?;
    keep_errors(&fd, &guest.ip(), true)?;
    wish_for_rows(fd.as_fd());
    Ok(fd)
}

/// A socket for echo requests to anybody of this address's family, whose identifier the kernel chooses. What is sent
/// is an ICMP message, and so is what comes; its checksum is the kernel's. What becomes of requests is kept
/// ([`super::errqueue`]).
///
/// # Errors
/// Those of socket(2). EACCES when the host has our group make none (`net.ipv4.ping_group_range`).
pub fn ping_socket(like: &IpAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (family, protocol) =
        if like.is_ipv4() { (AddressFamily::INET, ipproto::ICMP) } else { (AddressFamily::INET6, ipproto::ICMPV6) };
    let fd = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
    keep_errors(&fd, like, true)?;
    Ok(fd)
}

/// Has rows of datagrams come in one go. Without it they come one by one: a kernel may not have it.
pub(super) fn wish_for_rows(fd: BorrowedFd<'_>) {
    let _ = set_number(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
}

pub(super) fn set_number(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option is a number, of which the kernel reads as many bytes as it has.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Why a connection has failed, if it has.
///
/// # Errors
/// When the descriptor is no socket.
pub fn failure(fd: impl AsFd) -> io::Result<Option<io::Error>> {
    Ok(sockopt::socket_error(fd)?.err().map(Into::into))
}

/// Has the connection end with a reset when its descriptor is closed.
pub fn reset_at_close(fd: impl AsFd) {
    // Fails for nothing that is a socket.
    let _ = sockopt::set_socket_linger(fd, Some(std::time::Duration::ZERO));
}

/// Whether a call has failed since the host has no memory for it, or no buffers, at the moment.
pub fn is_out_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

/// Says to the peer that nothing more comes.
///
/// # Errors
/// When there is no connection any more.
pub fn shut_down_sending(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(fd, rustix::net::Shutdown::Write)?)
}

/// Sends a part of a frame, as much as there is room for.
///
/// # Errors
/// Those of sendmsg(2). EFAULT when the guest's memory under the frame has gone away.
pub fn send_pieces(fd: impl AsFd, pieces: &Pieces<'_>) -> io::Result<usize> {
    let iovecs = pieces.as_iovecs();
    // SAFETY: all zero is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    // SAFETY: the pieces are mapped as long as they are borrowed, and the kernel only reads them.
    let sent = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const message, SEND_FLAGS) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

pub(super) const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Sends bytes, as many as there is room for.
///
/// # Errors
/// Those of send(2).
pub fn send(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(fd, bytes, rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL)?)
}

/// Reads up to `max` bytes of what has arrived, without taking them away, into a frame's room behind a header of
/// `header` bytes. With `skip` the first bytes of what has arrived are left out, as many as that says: they are read
/// into `scrap`, which must not be empty. Returns how many bytes were read, those that were left out among them; none:
/// the peer will send no more.
///
/// # Errors
/// Those of recvmsg(2). EFAULT when the guest's memory has gone away.
pub fn peek_in_place(
    fd: impl AsFd,
    frame: &mut InPlace,
    (scrap, skip): (&mut [u8], usize),
    header: usize,
    max: usize,
) -> io::Result<usize> {
    let iovecs = frame.payload_pieces((scrap, skip), header, max);
    // SAFETY: all zero is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len().min(PIECES_MAX);
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the pieces are mapped, writable and nobody else's as long as they are borrowed, but for a guest's memory,
    // which that guest may read and write meanwhile, and to which there are no references.
    let read = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Takes `len` bytes away that have arrived. Returns how many there were.
///
/// # Errors
/// Those of recv(2).
pub fn discard(fd: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: with MSG_TRUNC, TCP takes bytes away and writes none (tcp(7)), so there is no buffer.
    let taken = unsafe { libc::recv(fd.as_fd().as_raw_fd(), std::ptr::null_mut(), len, flags) };
    usize::try_from(taken).map_err(|_| io::Error::last_os_error())
}

/// How many bytes have come that were not taken away, whether or not they were peeked.
///
/// # Errors
/// When the descriptor is no connection.
pub fn unread(fd: impl AsFd) -> io::Result<usize> {
    Ok(usize::try_from(rustix::io::ioctl_fionread(fd)?).unwrap_or(usize::MAX))
}

/// Has [`peek_in_place`] begin so many bytes after those that were not taken away, and each further one after what was
/// peeked.
///
/// # Errors
/// When the kernel cannot (`SO_PEEK_OFF` came to TCP with Linux 6.9).
pub fn set_peek_offset(fd: impl AsFd, offset: u32) -> io::Result<()> {
    let offset = libc::c_int::try_from(offset).unwrap_or(libc::c_int::MAX);
    set_number(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
}

/// Whether [`set_peek_offset`] works for connections to addresses of this family.
///
/// # Errors
/// When there can be no such connection.
pub fn has_peek_offset(like: &SocketAddr) -> io::Result<bool> {
    let fd = stream_socket(like)?;
    Ok(set_peek_offset(&fd, 0).is_ok())
}

/// `SO_MEMINFO` (linux/sock_diag.h): the places of what is wanted, and how many there are.
const MEMINFO_SNDBUF: usize = 3;
const MEMINFO_WMEM_QUEUED: usize = 5;
const MEMINFO_VARS: usize = 9;

/// How full a connection's send buffer is.
///
/// # Errors
/// When the descriptor is no socket.
pub fn send_buffer(fd: impl AsFd) -> io::Result<SendBuffer> {
    let mut values = [0_u32; MEMINFO_VARS];
    let mut len = size_of_val(&values) as libc::socklen_t;
    // SAFETY: the kernel writes no more than `len` bytes, which are there.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(SendBuffer { size: values[MEMINFO_SNDBUF], used: values[MEMINFO_WMEM_QUEUED] })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn there_is_room_for_what_comes_from_far_away_and_a_byte_is_told_of() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (fd, _) = begin_connection(&listener.local_addr().unwrap(), None, LocalPort::Any).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        assert!(sockopt::socket_recv_buffer_size(&fd).unwrap() >= RECEIVE_ROOM as usize);
        peer.write_all(b"x").unwrap();
        let mut polled = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut polled, Some(&patience)).unwrap(), 1, "nobody is told");
    }

    #[test]
    fn the_kernel_says_how_long_the_way_is() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let begun = std::time::Instant::now();
        let (fd, _) = begin_connection(&listener.local_addr().unwrap(), None, LocalPort::Any).unwrap();
        let _peer = listener.accept().unwrap();
        let (trip, most) = (round_trip(&fd).unwrap(), begun.elapsed().as_nanos() as u64);
        // The kernel's clock has steps of a microsecond.
        assert!((1..=most + 1000).contains(&trip), "{trip} ns of {most} ns");
        assert!(round_trip(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn the_kernel_asks_for_a_connection_for_more_than_four_minutes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (fd, _) = begin_connection(&listener.local_addr().unwrap(), None, LocalPort::Any).unwrap();
        let mut retries: libc::c_int = 0;
        let mut len = size_of_val(&retries) as libc::socklen_t;
        // SAFETY: the kernel writes one number, which is there.
        let result = unsafe {
            let (level, name) = (libc::IPPROTO_TCP, libc::TCP_SYNCNT);
            libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut retries).cast(), &raw mut len)
        };
        assert_eq!(result, 0);
        // After a second, and then each time after twice as long (RFC 6298).
        let seconds: u32 = (0..=retries).map(|n| 1 << n).sum();
        assert!((240..300).contains(&seconds), "{seconds}");
    }
}
