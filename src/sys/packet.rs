//! Packet sockets, packet(7): frames as an interface has them.

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::net::sockopt;

/// One instruction of a classic BPF program (Linux's `Documentation/networking/filter.rst`).
pub use libc::sock_filter as Instruction;

/// Bytes of the virtio-net header where the kernel lets us choose (Linux 6.6), and where it does not.
const HEADER_LENS: [c_int; 2] = [12, 10];
/// Room for one control message with `struct tpacket_auxdata`.
const CONTROL_LEN: usize = 64;

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Bytes of the header and the frame together, as far as there was room.
    pub len: usize,
    /// Whether there was more than room for.
    pub truncated: bool,
    /// Whether the host sent it through the interface, rather than the interface received it.
    pub outgoing: bool,
    /// The VLAN tag that was taken out of the frame, as it stood there.
    pub tag: Option<[u8; 4]>,
}

/// A packet socket that hears nothing yet. It does not block.
///
/// # Errors
/// EPERM without CAP_NET_RAW.
pub fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the arguments are numbers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor is new, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Begins to hear all frames of the interface with the number `index`, and to send through it.
///
/// # Errors
/// ENODEV when there is none; ENETDOWN when it is down: then the socket is bound and hears when it comes up.
pub fn bind(fd: impl AsFd, index: u32) -> io::Result<()> {
    let mut address = no_address();
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads one sockaddr_ll.
    check(unsafe { libc::bind(fd.as_fd().as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(())
}

/// Whether the interface that a socket is bound to still exists.
pub fn has_interface(fd: impl AsFd) -> bool {
    let mut address = no_address();
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes one sockaddr_ll, and its length.
    let result = unsafe { libc::getsockname(fd.as_fd().as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    result == 0 && address.sll_ifindex > 0
}

/// Puts a virtio-net header before each frame, in the machine's byte order. Returns its length in bytes.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_vnet_header(fd: impl AsFd) -> io::Result<usize> {
    let [long, short] = HEADER_LENS;
    if set_option(&fd, libc::PACKET_VNET_HDR_SZ, &long).is_ok() {
        return Ok(long as usize);
    }
    set_option(&fd, libc::PACKET_VNET_HDR, &1)?;
    Ok(short as usize)
}

/// Tells of the VLAN tag of each frame.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_auxdata(fd: impl AsFd) -> io::Result<()> {
    set_option(fd, libc::PACKET_AUXDATA, &1)
}

/// Leaves out what the host sends through the interface.
///
/// # Errors
/// Those of setsockopt(2).
pub fn ignore_outgoing(fd: impl AsFd) -> io::Result<()> {
    set_option(fd, libc::PACKET_IGNORE_OUTGOING, &1)
}

/// Sockets that share what an interface brings: each frame goes to one of them, those of a flow to the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(c_int);

/// By a hash of the flow (`PACKET_FANOUT_HASH`).
const GROUP_KIND: c_int = libc::PACKET_FANOUT_HASH.cast_signed() << 16;
/// The kernel finds a number that nobody uses.
const GROUP_UNIQUE: c_int = libc::PACKET_FANOUT_FLAG_UNIQUEID.cast_signed() << 16;
/// What [`ignore_outgoing`] is for a group (Linux 6.2). Older kernels take it and do nothing.
const GROUP_IGNORES_OUTGOING: c_int = libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING.cast_signed() << 16;

/// Makes a group with a bound socket in it. With `ignore_outgoing` it hears nothing that the host sends, if the kernel
/// knows how.
///
/// # Errors
/// EINVAL when the interface is down, for kernels before Linux 6.13.
pub fn found_group(fd: impl AsFd, ignore_outgoing: bool) -> io::Result<Group> {
    let kind = GROUP_KIND | if ignore_outgoing { GROUP_IGNORES_OUTGOING } else { 0 };
    set_option(&fd, libc::PACKET_FANOUT, &(kind | GROUP_UNIQUE))?;
    let number = get_option::<c_int>(&fd, libc::PACKET_FANOUT)? & 0xffff;
    Ok(Group(kind | number))
}

/// Has a socket that is bound to the same interface join a group.
///
/// # Errors
/// EINVAL when the interface is down, for kernels before Linux 6.13; ENOSPC when the group is full.
pub fn join_group(fd: impl AsFd, group: Group) -> io::Result<()> {
    set_option(fd, libc::PACKET_FANOUT, &group.0)
}

/// Lets the interface take frames for anybody as long as the socket is open.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_promiscuous(fd: impl AsFd, index: u32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(fd, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// How many frames the kernel has thrown away since the last time, since the socket's queue was full.
///
/// # Errors
/// Those of getsockopt(2).
pub fn lost(fd: impl AsFd) -> io::Result<u32> {
    let [_packets, drops] = get_option::<[u32; 2]>(fd, libc::PACKET_STATISTICS)?;
    Ok(drops)
}

/// Hears only the frames for which `program` does not return zero.
///
/// # Errors
/// EINVAL for a program that is none; ENOMEM for one that is too long.
pub fn set_filter(fd: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel reads one sock_fprog and the instructions that it points to, whose number is `len`.
    check(unsafe {
        let fd = fd.as_fd().as_raw_fd();
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const program).cast(), size)
    })?;
    Ok(())
}

/// Lets the socket's queues grow to so many bytes; as far as the host lets us, without CAP_NET_ADMIN.
pub fn set_queue_bytes(fd: impl AsFd, receive: usize, send: usize) {
    let fd = fd.as_fd();
    if sockopt::set_socket_recv_buffer_size_force(fd, receive).is_err() {
        // Cut down to what is allowed, without an error.
        let _ = sockopt::set_socket_recv_buffer_size(fd, receive);
    }
    if sockopt::set_socket_send_buffer_size_force(fd, send).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(fd, send);
    }
}

#[repr(align(8))]
struct Control([u8; CONTROL_LEN]);

/// Takes one frame: its virtio-net header into `header`, what follows into `frame`.
///
/// # Errors
/// EAGAIN when there is none; EINVAL when there was one that the header cannot express; ENETDOWN once when the
/// interface goes down.
#[inline]
pub fn receive(fd: impl AsFd, header: &mut [u8], frame: &mut [u8]) -> io::Result<Message> {
    let mut parts = [header, frame].map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
    let mut control = Control([0; CONTROL_LEN]);
    let mut address = no_address();
    // SAFETY: all fields are numbers or pointers, and null is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    (message.msg_iov, message.msg_iovlen) = (parts.as_mut_ptr(), parts.len());
    (message.msg_control, message.msg_controllen) = (control.0.as_mut_ptr().cast(), CONTROL_LEN);
    // SAFETY: the message points to an address, two parts and a control buffer that are ours, each with its length.
    let len = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, 0) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    Ok(Message {
        len,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
        outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
        tag: auxdata(&message).and_then(|auxdata| tag(&auxdata)),
    })
}

/// What the kernel told beside a frame.
fn auxdata(message: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: the message is as the kernel left it: its control buffer holds `msg_controllen` bytes of whole control
    // messages. The first is looked at if it is there, and read, at any alignment, if it is as long as it must be.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(message);
        let wanted = libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) as usize;
        if first.is_null()
            || ((*first).cmsg_level, (*first).cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA)
            || (*first).cmsg_len < wanted
        {
            return None;
        }
        Some(libc::CMSG_DATA(first).cast::<libc::tpacket_auxdata>().read_unaligned())
    }
}

fn tag(auxdata: &libc::tpacket_auxdata) -> Option<[u8; 4]> {
    if auxdata.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let has_protocol = auxdata.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let protocol = if has_protocol { auxdata.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 };
    let ([a, b], [c, d]) = (protocol.to_be_bytes(), auxdata.tp_vlan_tci.to_be_bytes());
    Some([a, b, c, d])
}

fn no_address() -> libc::sockaddr_ll {
    // SAFETY: all fields are numbers.
    unsafe { std::mem::zeroed() }
}

fn set_option<T: Copy>(fd: impl AsFd, name: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads one `T`.
    check(unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), libc::SOL_PACKET, name, value, len) })?;
    Ok(())
}

fn get_option<T: Copy + Default>(fd: impl AsFd, name: c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: the kernel writes at most one `T`, which is made of numbers (see the callers).
    check(unsafe { libc::getsockopt(fd.as_fd().as_raw_fd(), libc::SOL_PACKET, name, at, &raw mut len) })?;
    Ok(value)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
