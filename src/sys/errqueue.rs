//! What became of packets that a socket has sent: the kernel's queue of errors (`IP_RECVERR` in ip(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use super::datagrams::receive;
use super::net::set_number;

/// An ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Who sent it, if the kernel says so.
    pub by: Option<IpAddr>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// What somebody on the way said of it; none: the host itself did not send it.
    pub message: Option<Message>,
    /// The MTU on the way, if the packet was longer than that.
    pub mtu: u32,
    /// Where the packet was to go. The port of what the host itself did not send may be missing.
    pub to: SocketAddr,
    /// Bytes of the packet that have come back: what it began with, without the headers that the kernel wrote.
    pub len: usize,
}

/// Has the kernel keep what becomes of a socket's packets, or keep it no more. While it does, a call on the socket
/// fails once for each, and what may pass ends a connection.
///
/// # Errors
/// When the descriptor is no socket of this address's family.
pub fn keep_errors(fd: impl AsFd, like: &IpAddr, is_kept: bool) -> io::Result<()> {
    let (level, name) =
        if like.is_ipv4() { (libc::IPPROTO_IP, libc::IP_RECVERR) } else { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) };
    set_number(fd.as_fd(), level, name, is_kept.into())
}

/// Says whether packets that are longer than the path takes are cut into fragments; else they are not sent.
///
/// # Errors
/// When the descriptor is no socket of this address's family.
pub fn set_fragmenting(fd: impl AsFd, like: &IpAddr, may_fragment: bool) -> io::Result<()> {
    let (level, name, [never, always]) = if like.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, [libc::IP_PMTUDISC_DO, libc::IP_PMTUDISC_DONT])
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, [libc::IPV6_PMTUDISC_DO, libc::IPV6_PMTUDISC_DONT])
    };
    set_number(fd.as_fd(), level, name, if may_fragment { always } else { never })
}

/// Takes what is known of the next packet out of the queue, and as much of the packet as there is room for.
///
/// # Errors
/// Those of recvmsg(2): `WouldBlock` when there is nothing. `InvalidData` for what says nothing of a packet.
pub fn next(fd: impl AsFd, room: &mut [u8]) -> io::Result<Lost> {
    let (len, to, said) = receive(fd.as_fd(), room, libc::MSG_ERRQUEUE, said)?;
    let (said, mtu) = said.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Lost { message: said, mtu, to, len })
}

/// Reads what the kernel says of a packet: what it was told of it, and the MTU.
fn said(message: &libc::msghdr) -> Option<(Option<Message>, u32)> {
    // SAFETY: the kernel has written control messages into the room that the message names, each with its length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            let is_ours = matches!(
                (found.cmsg_level, found.cmsg_type),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            );
            let len = found.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            if is_ours {
                return read(std::slice::from_raw_parts(libc::CMSG_DATA(header), len));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

/// Reads a `sock_extended_err` (linux/errqueue.h) and the address behind it.
fn read(bytes: &[u8]) -> Option<(Option<Message>, u32)> {
    let &[_, _, _, _, origin, kind, code, _, a, b, c, d, _, _, _, _, ref offender @ ..] = bytes else { return None };
    let family = offender.first_chunk().map(|family| libc::c_int::from(u16::from_ne_bytes(*family)));
    let by = match family {
        Some(libc::AF_INET) => offender.get(4..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        Some(libc::AF_INET6) => offender.get(8..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => None,
    };
    let message = match origin {
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => Some(Message { kind, code, by }),
        libc::SO_EE_ORIGIN_LOCAL => None,
        _ => return None,
    };
    Some((message, u32::from_ne_bytes([a, b, c, d])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_port_that_nobody_has_is_told_of() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let closed = UdpSocket::bind(address).unwrap().local_addr().unwrap();
            let socket = UdpSocket::bind(address).unwrap();
            keep_errors(&socket, &closed.ip(), true).unwrap();
            let mut room = [0; 16];
            assert_eq!(next(&socket, &mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            socket.send_to(b"hello", closed).unwrap();
            let lost = next(&socket, &mut room).unwrap();
            let (kind, code) = if closed.is_ipv4() { (3, 3) } else { (1, 4) };
            let message = Some(Message { kind, code, by: Some(closed.ip()) });
            assert_eq!(lost, Lost { message, mtu: 0, to: closed, len: 5 });
            assert_eq!(&room[..5], b"hello");
        }
    }

    #[test]
    fn what_is_too_long_is_not_sent_and_the_mtu_is_told() {
        let to: SocketAddr = "[::1]:9".parse().unwrap();
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        keep_errors(&socket, &to.ip(), true).unwrap();
        set_fragmenting(&socket, &to.ip(), false).unwrap();
        // With its headers it is longer than any packet of this interface.
        let error = socket.send_to(&[0; 65_507], to).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        let lost = next(&socket, &mut []).unwrap();
        assert!(lost.message.is_none() && lost.mtu >= 1280 && lost.to.ip() == to.ip(), "{lost:?}");
    }
}
