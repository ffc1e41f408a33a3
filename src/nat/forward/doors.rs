//! The sockets of the host that forwards are bound to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

use super::super::Settings;
use crate::config::{Forward, Guest, Protocol};
use crate::sys::holder::holder;
use crate::sys::listen;

/// Why a forward has not got a port.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ForwardError(String);

/// One socket of a forward.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) fd: OwnedFd,
    pub(super) protocol: Protocol,
    pub(super) is_ipv4: bool,
    /// Whether anything that a guest sends may leave by it: it is bound to no address and to no interface.
    pub(super) is_wide: bool,
    pub(super) guest: Guest,
    pub(super) guest_port: u16,
    /// As the user writes it.
    pub(super) forward: String,
    /// Whether it was told that it leads nowhere, since it last led somewhere.
    pub(super) is_told: AtomicBool,
}

/// The sockets of a network's forwards: nobody else can have their ports now.
#[derive(Debug, Default)]
pub struct Doors(pub(super) Vec<Door>);

impl Doors {
    /// Binds them all.
    ///
    /// # Errors
    /// When one cannot be. The text says why, and what helps.
    pub fn open(settings: &Settings) -> Result<Self, ForwardError> {
        let mut doors = Vec::new();
        for forward in &settings.forwards {
            // Guests without IPv6 are nobody's whose address is of it.
            let addresses = || forward.listens_at().filter(|at| at.is_ipv4() || settings.subnet6.is_some());
            // Only where nobody asked for it may a family be missing.
            let has_choice = addresses().count() > 1;
            for address in addresses() {
                for (port, guest_port) in forward.ports().zip(forward.guest_port()..=u16::MAX) {
                    let at = SocketAddr::new(address, port);
                    match open(forward, &at) {
                        Ok(fd) => doors.push(door(forward, fd, address, guest_port)),
                        Err(error) if has_choice && is_without_family(&error) => {}
                        Err(error) => return Err(failure(forward, at, &error)),
                    }
                }
            }
        }
        Ok(Self(doors))
    }
}

fn door(forward: &Forward, fd: OwnedFd, address: IpAddr, guest_port: u16) -> Door {
    Door {
        fd,
        protocol: forward.protocol(),
        is_ipv4: address.is_ipv4(),
        is_wide: address.is_unspecified() && forward.interface().is_none(),
        guest: forward.guest().clone(),
        guest_port,
        forward: forward.to_string(),
        is_told: AtomicBool::new(false),
    }
}

fn open(forward: &Forward, at: &SocketAddr) -> io::Result<OwnedFd> {
    let interface = forward.interface().map(|name| name.as_str());
    match forward.protocol() {
        Protocol::Tcp => listen::stream_listener(at, interface),
        Protocol::Udp => listen::datagram_listener(at, interface),
    }
}

/// Whether the host has no addresses of that family.
fn is_without_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn failure(forward: &Forward, at: SocketAddr, error: &io::Error) -> ForwardError {
    let why = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => in_use(forward.protocol(), &at),
        Some(libc::EACCES | libc::EPERM) => "ports so low are kept for root: choose a higher one, or allow it with \
                                             `sysctl net.ipv4.ip_unprivileged_port_start`"
            .to_owned(),
        Some(libc::EADDRNOTAVAIL) => format!("{} is none of the host's addresses, see `ip address`", at.ip()),
        Some(libc::ENODEV) => "there is no such interface, see `ip link`".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => {
            format!("{error}; name fewer ports, or allow more descriptors with `ulimit -n`")
        }
        _ => error.to_string(),
    };
    let by = forward.interface().map(|name| format!(" of {}", name.as_str())).unwrap_or_default();
    ForwardError(format!("the forward {forward} cannot have {at}{by}: {why}"))
}

fn in_use(protocol: Protocol, at: &SocketAddr) -> String {
    let flag = if protocol == Protocol::Tcp { 't' } else { 'u' };
    let who = match holder(&protocol.to_string(), at) {
        Some(holder) if holder.pid == std::process::id() => "guestwire itself has it".to_owned(),
        Some(holder) => format!("{holder} has it; end that"),
        None => format!("another program has it, which `ss -{flag}lnp` names to root; end that"),
    };
    format!("{who}, or choose another port of the host, or one address to listen at")
}
