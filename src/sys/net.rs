//! Sockets of the host that carry guests' connections: calls and options that no crate has safely.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};
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

/// Room for control messages: of what is sent two numbers and an address, of what comes as many, or an error and an
/// address.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

const CONTROL_LEN: usize = 128;

impl Control {
    /// Adds a message behind those that the room holds so far, and has `message` name them all.
    fn add<T: Copy>(&mut self, message: &mut libc::msghdr, (level, kind): (libc::c_int, libc::c_int), value: T) {
        let at = message.msg_controllen;
        // SAFETY: these two compute lengths, and touch nothing.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size_of::<T>() as u32), libc::CMSG_LEN(size_of::<T>() as u32)) };
        let room = &mut self.0[at..at + space as usize];
        let header = room.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: a header and the value behind it lie within `room`, which nobody else has, and which is aligned for a
        // header: the whole is, and the spaces of all messages before are multiples of that.
        unsafe {
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as usize;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = at + space as usize;
    }
}

/// How datagrams are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    /// How long each is, but for the last, where there are several.
    pub segment: Option<u16>,
    /// From which of the host's addresses; none: the host chooses.
    pub from: Option<IpAddr>,
    /// Their hop limit, which is not zero; none: the host's own.
    pub hop_limit: Option<u8>,
}

/// Sends one datagram, or as many as the bytes make, to `to`.
///
/// # Errors
/// Those of sendmsg(2). EFAULT when the guest's memory under the frame has gone away.
pub fn send_datagrams(fd: impl AsFd, pieces: &Pieces<'_>, to: &SocketAddr, how: Sending) -> io::Result<()> {
    let (iovecs, address, mut control) = (pieces.as_iovecs(), SockaddrStorage::from(*to), Control([0; CONTROL_LEN]));
    // SAFETY: all zero is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    if let Some(segment) = how.segment {
        control.add(&mut message, (libc::SOL_UDP, libc::UDP_SEGMENT), segment);
    }
    match how.from {
        Some(IpAddr::V4(from)) => {
            let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
            control.add(&mut message, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
        }
        Some(IpAddr::V6(from)) => {
            let ipi6_addr = libc::in6_addr { s6_addr: from.octets() };
            let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
            control.add(&mut message, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
        }
        None => {}
    }
    if let Some(hop_limit) = how.hop_limit {
        let option =
            if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_TTL) } else { (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) };
        control.add(&mut message, option, libc::c_int::from(hop_limit));
    }
    // SAFETY: the pieces are mapped as long as they are borrowed, and the kernel only reads them, the address and the
    // control messages, which are there.
    let sent = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const message, SEND_FLAGS) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Datagrams that have arrived in one go.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes of all of them.
    pub len: usize,
    /// Whose they are.
    pub from: SocketAddr,
    /// How long each is, but for the last, where there are several.
    pub segment: Option<u16>,
    /// To which of the host's addresses they have come, if the socket tells.
    pub to: Option<IpAddr>,
}

/// Takes datagrams that have arrived, all of one sender, into `room`.
///
/// # Errors
/// Those of recvmsg(2): also what became of a datagram that was sent before. `InvalidData` for more than there is room
/// for.
pub fn receive_datagrams(fd: impl AsFd, room: &mut [u8]) -> io::Result<Received> {
    let (len, from, told) =
        receive(fd.as_fd(), room, 0, |message| (message.msg_flags & libc::MSG_TRUNC == 0).then(|| told(message)))?;
    let (segment, to) = told.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Received { len, from, segment, to })
}

/// Takes a message out of one of a socket's queues, which `flags` say, into `room`. Returns how many bytes there are,
/// the address that belongs to them, and what `read` makes of the header, which names the kernel's control messages.
pub(super) fn receive<T>(
    fd: BorrowedFd<'_>,
    room: &mut [u8],
    flags: libc::c_int,
    read: impl FnOnce(&libc::msghdr) -> T,
) -> io::Result<(usize, SocketAddr, T)> {
    // SAFETY: all zero is an address of no family.
    let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut control = Control([0; CONTROL_LEN]);
    let mut iovec = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: all zero is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of_val(&address) as libc::socklen_t;
    (message.msg_iov, message.msg_iovlen) = (&raw mut iovec, 1);
    (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), CONTROL_LEN);
    // SAFETY: the kernel writes no more than there is room for in each of the three.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags | libc::MSG_DONTWAIT) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written an address of the length that it says.
    let address = unsafe { SockaddrStorage::from_raw((&raw const address).cast(), Some(message.msg_namelen)) };
    let address = address.as_ref().and_then(to_std).ok_or(io::ErrorKind::InvalidData)?;
    Ok((len, address, read(&message)))
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

/// What the kernel says beside: how long each datagram is, and to which address they have come.
fn told(message: &libc::msghdr) -> (Option<u16>, Option<IpAddr>) {
    let (mut segment, mut to) = (None, None);
    // SAFETY: the kernel has written control messages into the room that the message names, each with its length, and
    // with the value that belongs to its level and type.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            let data = libc::CMSG_DATA(header);
            match (found.cmsg_level, found.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = u16::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    to = Some(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    (segment, to)
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

const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

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
    use std::net::TcpListener;

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
