//! Sockets of the host that others come to: those that listen for connections, and those that wait for datagrams.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{BindToDevice, Ipv4PacketInfo, Ipv6RecvPacketInfo};
use rustix::net::{SocketFlags, SocketType, sockopt};

use super::net::{as_mirror, family, wish_for_rows};

/// Connections that wait to be accepted, unless the system allows fewer.
const BACKLOG: i32 = 4096;

/// A socket that listens for connections at an address, and only for those that come by `interface` if one is named.
/// IPv6 has nothing of IPv4's.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2). ENODEV: there is no such interface.
pub fn stream_listener(at: &SocketAddr, interface: Option<&str>) -> io::Result<OwnedFd> {
    let fd = unbound(at, SocketType::STREAM, interface)?;
    // Connections of before that are ending must not keep us from it.
    sockopt::set_socket_reuseaddr(&fd, true)?;
    rustix::net::bind(&fd, at)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// A socket for datagrams that come to an address, likewise. Where that stands for many, it tells to which of them each
/// has come.
///
/// # Errors
/// Those of socket(2) and bind(2). ENODEV: there is no such interface.
pub fn datagram_listener(at: &SocketAddr, interface: Option<&str>) -> io::Result<OwnedFd> {
    let fd = unbound(at, SocketType::DGRAM, interface)?;
    match at {
        SocketAddr::V4(_) => setsockopt(&fd, Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(&fd, Ipv6RecvPacketInfo, &true)?,
    }
    rustix::net::bind(&fd, at)?;
    wish_for_rows(fd.as_fd());
    Ok(fd)
}

fn unbound(at: &SocketAddr, kind: SocketType, interface: Option<&str>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family(at), kind, flags, None)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    if let Some(interface) = interface {
        // Nobody needs a privilege for it who is on no interface yet (Linux 5.7).
        setsockopt(&fd, BindToDevice, &OsString::from(interface))?;
    }
    Ok(fd)
}

/// Takes the next connection that somebody has made, with its peer's address. It is set up like those that we make.
///
/// # Errors
/// Those of accept(2).
pub fn accept(fd: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, from) = rustix::net::acceptfrom_with(fd, flags)?;
    let from = from.and_then(|from| SocketAddr::try_from(from).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
    as_mirror(fd.as_fd())?;
    Ok((fd, from))
}
