//! A tap device: the host's own network stack, or a bridge of the host, is at its other end.
//!
//! Theory of operation. Frames go and come through one descriptor for each queue, with a virtio-net header of 12 bytes
//! before each, so that super-frames and checksums that are left to be completed pass whole. With several queues the
//! kernel chooses a flow's by what it has seen on them.
//!
//! A device that we made ends with its last queue. One that existed before (persistent, `ip tuntap add`) stays, and one
//! that comes as an open descriptor belongs to whoever opened it; both need no capability of ours.
//!
//! A device that is down keeps its queues: what is sent meanwhile is dropped and counted. Renaming changes nothing but
//! what [`Uplink::name`] says. After a device was deleted its queues are of no use ([`Gone::Deleted`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::{FrameBuffer, Received, Sent, Uplink, not_received, not_sent};
use crate::frame::offload::Offloads;
use crate::frame::vnet::{VNET_HEADER_LEN, VnetHeader};
use crate::ring::{Bytes, Gather};
use crate::sys::netlink::Netlink;
use crate::sys::{tap, uio};

/// What every kernel with virtio-net headers on taps has.
const OFFLOAD_TCP: u32 = tap::TUN_F_CSUM | tap::TUN_F_TSO4 | tap::TUN_F_TSO6 | tap::TUN_F_TSO_ECN;
/// Since Linux 6.2; only both together.
const OFFLOAD_UDP: u32 = tap::TUN_F_USO4 | tap::TUN_F_USO6;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The clone device does not exist, or the kernel knows no taps.
    #[error(
        "{device} cannot be opened ({0}): load the kernel's module with `modprobe tun`, or let the container have \
         the device",
        device = tap::CLONE_DEVICE
    )]
    NoTaps(io::Error),
    /// Not enough rights.
    #[error(
        "the tap {0} needs CAP_NET_ADMIN: run as root, or `setcap cap_net_admin+ep` the program, or have it made for \
         you with `ip tuntap add {0} mode tap user NAME`, or pass an open tap with --tap-fd N"
    )]
    NotPermitted(String),
    /// Somebody else has it.
    #[error("the tap {0} is in use by another program")]
    Busy(String),
    /// The name is that of another kind of device.
    #[error("{0} exists and is not a tap: choose another name")]
    NotATap(String),
    /// The device was made for one queue.
    #[error(
        "the tap {0} was made for one queue: use --workers 1, or make it with `ip tuntap add {0} mode tap multi_queue`"
    )]
    OneQueue(String),
    /// A name that no interface may have.
    #[error("{0:?} is no name of an interface: 1 to {max} bytes without spaces and slashes", max = tap::NAME_LEN_MAX)]
    Name(String),
    /// The descriptor is something else.
    #[error("the descriptor is not an open tap: {0}")]
    NotAQueue(&'static str),
    /// Something else.
    #[error("the tap {0} cannot be used: {1}")]
    Other(String, io::Error),
}

/// One queue of a tap device.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// What it was called at first.
    first_name: String,
    offloads: Offloads,
    gather: Gather,
}

impl Tap {
    /// Opens `queues` queues of the device `name`, which is made if it does not exist. It has to be brought up.
    ///
    /// # Errors
    /// See [`TapError`]: the text says what helps.
    pub fn open(name: &str, queues: usize) -> Result<Vec<Self>, TapError> {
        let bad = |c: char| c.is_whitespace() || matches!(c, '/' | ':' | '%');
        if name.is_empty() || name.len() > tap::NAME_LEN_MAX || name.contains(bad) || matches!(name, "." | "..") {
            return Err(TapError::Name(name.into()));
        }
        let flags = tap::IFF_TAP | tap::IFF_NO_PI | tap::IFF_VNET_HDR;
        let first = if queues > 1 { flags | tap::IFF_MULTI_QUEUE } else { flags };
        match open_queues(name, queues, first) {
            // A device that exists may have been made for many queues; one of them is enough.
            Err(TapError::NotATap(_)) if queues == 1 => open_queues(name, 1, flags | tap::IFF_MULTI_QUEUE),
            Err(TapError::NotATap(name)) if is_tap(&name) => Err(TapError::OneQueue(name)),
            result => result,
        }
    }

    /// Makes a device whose name ends in a number of the kernel's choice, in the place of `%d`.
    pub(super) fn open_numbered(name: &str, queues: usize) -> Result<Vec<Self>, TapError> {
        let flags = tap::IFF_TAP | tap::IFF_NO_PI | tap::IFF_VNET_HDR | tap::IFF_MULTI_QUEUE;
        let mut taps = open_queues(name, queues.min(1), flags)?;
        let name = taps.first().map(|tap| tap.first_name.clone()).unwrap_or_default();
        taps.extend(open_queues(&name, queues.saturating_sub(1), flags)?);
        Ok(taps)
    }

    /// Takes a queue that somebody else opened.
    ///
    /// # Errors
    /// When it is not one, or not as it must be: the text says what it should be.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TapError> {
        let (name, flags) = match tap::device(&fd) {
            Ok(device) => device,
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                return Err(TapError::NotAQueue("it was not attached to a device (TUNSETIFF), or that was deleted"));
            }
            Err(_) => return Err(TapError::NotAQueue("it is something else")),
        };
        if flags & tap::IFF_TAP == 0 {
            return Err(TapError::NotAQueue("it carries IP packets (IFF_TUN), not Ethernet frames (IFF_TAP)"));
        }
        if flags & tap::IFF_NO_PI == 0 || flags & tap::IFF_VNET_HDR == 0 {
            return Err(TapError::NotAQueue("it must be opened with IFF_NO_PI and IFF_VNET_HDR"));
        }
        let other = |error: rustix::io::Errno| TapError::Other(name.clone(), error.into());
        let status = fcntl_getfl(&fd).map_err(other)?;
        fcntl_setfl(&fd, status | OFlags::NONBLOCK).map_err(other)?;
        Self::set_up(fd, name)
    }

    fn set_up(fd: OwnedFd, name: String) -> Result<Self, TapError> {
        let other = |error| TapError::Other(name.clone(), error);
        tap::set_vnet_header(&fd, VNET_HEADER_LEN).map_err(other)?;
        let uso = tap::set_offload(&fd, OFFLOAD_TCP | OFFLOAD_UDP).is_ok();
        if !uso {
            tap::set_offload(&fd, OFFLOAD_TCP).map_err(other)?;
        }
        let offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso4: uso, uso6: uso };
        Ok(Self { fd, first_name: name, offloads, gather: Gather::default() })
    }

    /// The device's present name.
    pub fn interface(&self) -> String {
        tap::device(&self.fd).map_or_else(|_| self.first_name.clone(), |(name, _)| name)
    }
}

fn open_queues(name: &str, queues: usize, flags: i32) -> Result<Vec<Tap>, TapError> {
    let queue = || {
        let fd = tap::open().map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTaps(error),
            Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted(name.into()),
            _ => TapError::Other(name.into(), error),
        })?;
        let given = tap::attach(&fd, name, flags).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted(name.into()),
            Some(libc::EBUSY) => TapError::Busy(name.into()),
            Some(libc::EINVAL) => TapError::NotATap(name.into()),
            _ => TapError::Other(name.into(), error),
        })?;
        Tap::set_up(fd, given)
    };
    (0..queues).map(|_| queue()).collect()
}

/// Whether a device that exists is a tap.
fn is_tap(name: &str) -> bool {
    let link = Netlink::open().and_then(|mut netlink| netlink.link(name));
    // A tun device, which carries IP packets, has no MAC address.
    link.is_ok_and(|link| link.is_some_and(|link| link.tun && link.mac.is_some()))
}

impl Uplink for Tap {
    fn name(&self) -> String {
        format!("tap {}", self.interface())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn takes(&self) -> Offloads {
        self.offloads
    }

    fn sends(&self) -> Offloads {
        self.offloads
    }

    #[inline]
    fn receive(&mut self, buffer: &mut FrameBuffer) -> Received {
        let (header, frame) = buffer.room(VNET_HEADER_LEN);
        match uio::read_scatter(&self.fd, header, frame) {
            Ok(len) => buffer.filled(VNET_HEADER_LEN, len),
            Err(error) => not_received(error),
        }
    }

    #[inline]
    fn send(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent {
        let header = header.emit(0);
        match uio::write_gather(&self.fd, &self.gather.collect(&header, bytes)) {
            Ok(_) => Sent::Whole,
            Err(error) => not_sent(error),
        }
    }
}
