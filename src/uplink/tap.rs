//! A tap device: the host's own network stack, or a bridge of the host, is at its other end.
//!
//! Theory of operation. Frames go and come through one descriptor, a queue of the device, with a virtio-net header of
//! 12 bytes before each, so that super-frames and checksums that are left to be completed pass whole. A device that was
//! made for many queues ([`Tap::open_many`]) gives each flow's frames to the queue that the flow was last sent by.
//!
//! A device that we made ends with its last queue. One that existed before (persistent, `ip tuntap add`) stays, and one
//! that comes as an open descriptor belongs to whoever opened it; both need no capability of ours.
//!
//! A device that is down keeps its queue: what is sent meanwhile is dropped and counted. Renaming changes nothing but
//! what [`Uplink::name`] says. After a device was deleted its queue is of no use ([`Gone::Deleted`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::{FrameBuffer, Received, Sent, Uplink, not_received, not_sent};
use crate::frame::offload::Offloads;
use crate::frame::vnet::{VNET_HEADER_LEN, VnetHeader};
use crate::metrics::Counter;
use crate::ring::{Bytes, FRAME_LEN_MAX, Gather, InPlace};
use crate::sys::{tap, uio};

/// What every kernel with virtio-net headers on taps has.
const OFFLOAD_TCP: u32 = tap::TUN_F_CSUM | tap::TUN_F_TSO4 | tap::TUN_F_TSO6 | tap::TUN_F_TSO_ECN;
/// Since Linux 6.2; only both together.
const OFFLOAD_UDP: u32 = tap::TUN_F_USO4 | tap::TUN_F_USO6;

/// What a tap is attached with.
const FLAGS: i32 = tap::IFF_TAP | tap::IFF_NO_PI | tap::IFF_VNET_HDR;

/// What a queue of a tap that has many is attached with.
const FLAGS_MANY: i32 = FLAGS | tap::IFF_MULTI_QUEUE;

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
    /// Whether we may open others of the device.
    is_one_of_many: bool,
    gather: Gather,
}

impl Tap {
    /// Opens the device `name`, which is made if it does not exist. It has to be brought up.
    ///
    /// # Errors
    /// See [`TapError`]: the text says what helps.
    pub fn open(name: &str) -> Result<Self, TapError> {
        // One that exists may have been made for many queues.
        open_first(name, [FLAGS, FLAGS_MANY])
    }

    /// The same, for many queues if the device can have them: one that exists must have been made for them.
    ///
    /// # Errors
    /// See [`TapError`]: the text says what helps.
    pub fn open_many(name: &str) -> Result<Self, TapError> {
        open_first(name, [FLAGS_MANY, FLAGS])
    }

    /// Makes a device whose name ends in a number of the kernel's choice, in the place of `%d`.
    pub(super) fn open_numbered(name: &str) -> Result<Self, TapError> {
        open_queue(name, FLAGS)
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
        Ok(Self { fd, first_name: name, offloads, is_one_of_many: false, gather: Gather::default() })
    }

    /// The device's present name.
    pub fn interface(&self) -> String {
        tap::device(&self.fd).map_or_else(|_| self.first_name.clone(), |(name, _)| name)
    }
}

/// Opens a device of this name with the first flags that are its kind.
fn open_first(name: &str, [flags, others]: [i32; 2]) -> Result<Tap, TapError> {
    let bad = |c: char| c.is_whitespace() || matches!(c, '/' | ':' | '%');
    if name.is_empty() || name.len() > tap::NAME_LEN_MAX || name.contains(bad) || matches!(name, "." | "..") {
        return Err(TapError::Name(name.into()));
    }
    match open_queue(name, flags) {
        Err(TapError::NotATap(_)) => open_queue(name, others),
        result => result,
    }
}

fn open_queue(name: &str, flags: i32) -> Result<Tap, TapError> {
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
    Ok(Tap { is_one_of_many: flags == FLAGS_MANY, ..Tap::set_up(fd, given)? })
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

    fn add_queue(&mut self) -> io::Result<Option<Box<dyn Uplink>>> {
        if !self.is_one_of_many {
            return Ok(None);
        }
        let queue = open_queue(&self.interface(), FLAGS_MANY).map_err(io::Error::other)?;
        Ok(Some(Box::new(queue)))
    }

    #[inline]
    fn receive(&mut self, buffer: &mut FrameBuffer) -> Received {
        let (header, frame) = buffer.room(VNET_HEADER_LEN);
        match uio::read_scatter(&self.fd, header, frame) {
            Ok(len) => buffer.filled(VNET_HEADER_LEN, len),
            Err(error) => not_received(error),
        }
    }

    fn receive_in_place(&mut self, frame: &mut InPlace) -> Option<(Received, usize)> {
        let received = match uio::read_in_place(&self.fd, frame) {
            Ok(len) => match len.checked_sub(VNET_HEADER_LEN) {
                Some(len @ ..=FRAME_LEN_MAX) => {
                    let [header @ .., _, _] = frame.vnet();
                    return Some((Received::Frame(VnetHeader::parse(header)), len));
                }
                _ => Received::Dropped(Counter::DropTxTruncated),
            },
            Err(error) => not_received(error),
        };
        Some((received, 0))
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
