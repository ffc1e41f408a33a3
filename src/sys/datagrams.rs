//! Datagrams: several in one call, with what the kernel says and is told of each.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use super::net::SEND_FLAGS;
use crate::ring::{Pieces, Row};

/// Datagrams that are sent or received in one call.
pub const DATAGRAMS_MAX: usize = 16;
/// The longest that may come in one go.
const RECEIVED_MAX: usize = 65_535;

/// Room for control messages: of what is sent two numbers and an address, of what comes as many, or an error and an
/// address.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

const CONTROL_LEN: usize = 128;

impl Control {
    const EMPTY: Self = Self([0; CONTROL_LEN]);

    /// Adds a message behind the `len` bytes that the room holds so far.
    fn add<T: Copy>(&mut self, len: &mut usize, (level, kind): (libc::c_int, libc::c_int), value: T) {
        let at = *len;
        // SAFETY: these two compute lengths, and touch nothing.
        let (space, whole) =
            unsafe { (libc::CMSG_SPACE(size_of::<T>() as u32), libc::CMSG_LEN(size_of::<T>() as u32)) };
        let room = &mut self.0[at..at + space as usize];
        let header = room.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: a header and the value behind it lie within `room`, which nobody else has, and which is aligned for a
        // header: the whole is, and the spaces of all messages before are multiples of that.
        unsafe {
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = whole as usize;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        *len = at + space as usize;
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

impl Control {
    /// What is said of datagrams to `to`.
    fn of(how: Sending, to: &SocketAddr) -> (Self, usize) {
        let mut control = Self::EMPTY;
        let mut len = 0;
        if let Some(segment) = how.segment {
            control.add(&mut len, (libc::SOL_UDP, libc::UDP_SEGMENT), segment);
        }
        match how.from {
            Some(IpAddr::V4(from)) => {
                let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
                control.add(&mut len, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
            }
            Some(IpAddr::V6(from)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: from.octets() };
                let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
                control.add(&mut len, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
            }
            None => {}
        }
        if let Some(hop_limit) = how.hop_limit {
            let option =
                if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_TTL) } else { (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) };
            control.add(&mut len, option, libc::c_int::from(hop_limit));
        }
        (control, len)
    }
}

/// Sends one datagram, or as many as the bytes make, to `to`.
///
/// # Errors
/// Those of sendmsg(2). EFAULT when the guest's memory under the frame has gone away.
pub fn send_datagrams(fd: impl AsFd, pieces: &Pieces<'_>, to: &SocketAddr, how: Sending) -> io::Result<()> {
    let (address, (mut control, control_len)) = (SockaddrStorage::from(*to), Control::of(how, to));
    let message = message_of(pieces.as_iovecs(), &address, (&mut control, control_len));
    // SAFETY: the pieces are mapped as long as they are borrowed, and the kernel only reads them, the address and the
    // control messages, which are there.
    let sent = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const message, SEND_FLAGS) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends the datagrams of a row, [`DATAGRAMS_MAX`] at most, each to its target. Returns how many were sent; what has
/// become of the next one says the next try.
///
/// # Errors
/// Those of sendmmsg(2), of the first one.
pub fn send_row(
    fd: impl AsFd,
    row: &Row<'_>,
    targets: impl Iterator<Item = (SocketAddr, Sending)>,
) -> io::Result<usize> {
    let mut addresses = [const { None::<SockaddrStorage> }; DATAGRAMS_MAX];
    let mut controls = [const { Control::EMPTY }; DATAGRAMS_MAX];
    // SAFETY: all zero is an empty message.
    let mut messages: [libc::mmsghdr; DATAGRAMS_MAX] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    let places = messages.iter_mut().zip(&mut addresses).zip(&mut controls);
    for (((message, address), control), ((to, how), iovecs)) in places.zip(targets.zip(row.as_iovecs())) {
        let control_len;
        (*control, control_len) = Control::of(how, &to);
        message.msg_hdr = message_of(iovecs, address.insert(SockaddrStorage::from(to)), (control, control_len));
        count += 1;
    }
    // SAFETY: as for one; `count` of them are filled in.
    let sent = unsafe { libc::sendmmsg(fd.as_fd().as_raw_fd(), messages.as_mut_ptr(), count, SEND_FLAGS) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A message for the kernel to read. It points to all three.
fn message_of(
    iovecs: &[libc::iovec],
    address: &SockaddrStorage,
    (control, control_len): (&mut Control, usize),
) -> libc::msghdr {
    // SAFETY: all zero is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    (message.msg_iov, message.msg_iovlen) = (iovecs.as_ptr().cast_mut(), iovecs.len());
    if control_len > 0 {
        (message.msg_control, message.msg_controllen) = ((&raw mut *control).cast(), control_len);
    }
    message
}

/// Datagrams that have arrived in one go.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Whose they are.
    pub from: SocketAddr,
    /// How long each is, but for the last, where there are several.
    pub segment: Option<u16>,
    /// To which of the host's addresses they have come, if the socket tells.
    pub to: Option<IpAddr>,
}

/// Room for datagrams that come in one call. It is filled again and again.
#[derive(Debug, Default)]
pub struct Inbox {
    room: Vec<u8>,
}

impl Inbox {
    /// Takes up to `most` messages that have arrived, at most [`DATAGRAMS_MAX`], each of one sender's datagrams, and
    /// hands them to `each`, with their bytes. Returns how many there were; those that there is no room for among them.
    ///
    /// # Errors
    /// Those of recvmmsg(2), if the first could not be taken: also what became of a datagram that was sent before.
    pub fn receive(
        &mut self,
        fd: impl AsFd,
        most: usize,
        mut each: impl FnMut(&Received, &mut [u8]),
    ) -> io::Result<usize> {
        let count = most.min(DATAGRAMS_MAX);
        // The kernel gives it zeroed, page by page as it is used.
        if self.room.is_empty() {
            self.room = vec![0; RECEIVED_MAX * DATAGRAMS_MAX];
        }
        // SAFETY: all zero is an address of no family, a piece of no bytes, and an empty message.
        let (mut addresses, mut iovecs, mut messages): (
            [libc::sockaddr_storage; DATAGRAMS_MAX],
            [libc::iovec; DATAGRAMS_MAX],
            [libc::mmsghdr; DATAGRAMS_MAX],
        ) = unsafe { std::mem::zeroed() };
        let mut controls = [const { Control::EMPTY }; DATAGRAMS_MAX];
        for (i, room) in self.room.chunks_exact_mut(RECEIVED_MAX).take(count).enumerate() {
            iovecs[i] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            let message = &mut messages[i].msg_hdr;
            message.msg_name = (&raw mut addresses[i]).cast();
            message.msg_namelen = size_of_val(&addresses[i]) as libc::socklen_t;
            (message.msg_iov, message.msg_iovlen) = (&raw mut iovecs[i], 1);
            (message.msg_control, message.msg_controllen) = ((&raw mut controls[i]).cast(), CONTROL_LEN);
        }
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: the kernel writes no more than there is room for in each part of each message, `count` of which are
        // filled in.
        let came = unsafe {
            let (fd, messages) = (fd.as_fd().as_raw_fd(), messages.as_mut_ptr());
            libc::recvmmsg(fd, messages, count as libc::c_uint, flags, std::ptr::null_mut())
        };
        let came = usize::try_from(came).map_err(|_| io::Error::last_os_error())?;
        let rooms = self.room.chunks_exact_mut(RECEIVED_MAX);
        for ((message, address), room) in messages.iter().zip(&addresses).zip(rooms).take(came) {
            let bytes = &mut room[..message.msg_len as usize];
            if message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0
                && let Some(from) = address_of(address, &message.msg_hdr)
            {
                let (segment, to) = told(&message.msg_hdr);
                each(&Received { from, segment, to }, bytes);
            }
        }
        Ok(came)
    }
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
    let mut control = Control::EMPTY;
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
    let address = address_of(&address, &message).ok_or(io::ErrorKind::InvalidData)?;
    Ok((len, address, read(&message)))
}

/// The address that the kernel has written for a message.
fn address_of(address: &libc::sockaddr_storage, message: &libc::msghdr) -> Option<SocketAddr> {
    // SAFETY: it is as long as the kernel says, and all of the rest is zero.
    let address = unsafe { SockaddrStorage::from_raw((&raw const *address).cast(), Some(message.msg_namelen)) }?;
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::ring::{Bytes, Gather};

    fn pair() -> (UdpSocket, UdpSocket, SocketAddr) {
        let [a, b] = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let to = b.local_addr().unwrap();
        (a, b, to)
    }

    #[test]
    fn many_come_in_one_call_each_with_its_sender() {
        let (a, b, to) = pair();
        let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sent: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![n; 100 * usize::from(n)]).collect();
        let senders = [&a, &other];
        for (n, bytes) in sent.iter().enumerate() {
            senders[n % 2].send_to(bytes, to).unwrap();
        }
        let (mut inbox, mut came) = (Inbox::default(), Vec::new());
        for most in [3, DATAGRAMS_MAX, 17] {
            let before = came.len();
            let got = inbox.receive(&b, most, |received, bytes| came.push((received.from, bytes.to_vec()))).unwrap();
            assert_eq!(got, came.len() - before);
            assert_eq!(got, most.min(DATAGRAMS_MAX).min(sent.len() - before));
        }
        let expected = (0..).zip(&sent).map(|(n, bytes)| (senders[n % 2].local_addr().unwrap(), bytes.clone()));
        assert_eq!(came, expected.collect::<Vec<_>>());
        let empty = inbox.receive(&b, 1, |received, _| panic!("{received:?}"));
        assert_eq!(empty.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_row_goes_up_to_the_first_that_cannot_be_sent() {
        let (a, b, to) = pair();
        let frames = [b"-one".as_slice(), b"--two", b"x", b"---four", b"-five"];
        let starts = [1, 2, 0, 3, 1];
        let elsewhere: SocketAddr = "[::1]:9".parse().unwrap();
        let targets = [to, to, elsewhere, to, to];
        let mut gather = Gather::default();
        let mut send = |from: usize| {
            let parts = (from..5).map(|i| (Bytes::private(frames[i]), starts[i]..frames[i].len()));
            let row = gather.collect_row(parts);
            send_row(&a, &row, targets[from..].iter().map(|to| (*to, Sending::default())))
        };
        assert_eq!(send(0).unwrap(), 2);
        assert_eq!(send(2).unwrap_err().raw_os_error(), Some(libc::EAFNOSUPPORT));
        assert_eq!(send(3).unwrap(), 2);
        let mut came = Vec::new();
        Inbox::default().receive(&b, 9, |_, bytes| came.push(bytes.to_vec())).unwrap();
        assert_eq!(came, [b"one".as_slice(), b"two", b"four", b"five"]);
    }
}
