//! Tap devices (Linux's `Documentation/networking/tuntap.rst`, tun(4)): the calls on `/dev/net/tun`.

use std::ffi::{c_int, c_short, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

pub use libc::{IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR};
pub use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};

/// The device that makes tap devices.
pub const CLONE_DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface's name at most.
pub const NAME_LEN_MAX: usize = libc::IFNAMSIZ - 1;

/// A queue that belongs to no device yet. It does not block.
///
/// # Errors
/// Those of open(2).
pub fn open() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(CLONE_DEVICE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes `fd` a queue of the device `name`, which is made if it does not exist; the kernel puts a number in place of
/// `%d`. `flags` are of `IFF_`. Returns the device's name.
///
/// # Errors
/// EINVAL for a name of more than [`NAME_LEN_MAX`] bytes; else those of TUNSETIFF.
pub fn attach(fd: impl AsFd, name: &str, flags: c_int) -> io::Result<String> {
    let mut request = request();
    if name.len() > NAME_LEN_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte.cast_signed();
    }
    // All of `IFF_` are bits of a short.
    request.ifr_ifru.ifru_flags = (flags as u16).cast_signed();
    // SAFETY: the kernel reads and writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(name_of(&request))
}

/// The device that `fd` is a queue of: its present name, and its flags.
///
/// # Errors
/// EBADFD when it has none, or none any more; ENOTTY, EINVAL or the like when `fd` is something else.
pub fn device(fd: impl AsFd) -> io::Result<(String, c_int)> {
    let mut request = request();
    // SAFETY: the kernel writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF fills in the flags; a short is valid whatever its bits.
    let flags: c_short = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name_of(&request), c_int::from(flags.cast_unsigned())))
}

/// Says how long the virtio-net header before each frame is, in bytes, and that it is little-endian.
///
/// # Errors
/// Those of TUNSETVNETHDRSZ and TUNSETVNETLE.
pub fn set_vnet_header(fd: impl AsFd, len: usize) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    let (len, little_endian) = (c_int::try_from(len).unwrap_or(0), 1);
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const len) })?;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(fd, libc::TUNSETVNETLE, &raw const little_endian) })
}

/// Says what the reader of the device takes (`TUN_F_`), and so what the kernel leaves to it.
///
/// # Errors
/// EINVAL for what the kernel does not know.
pub fn set_offload(fd: impl AsFd, offload: c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) })
}

fn request() -> libc::ifreq {
    // SAFETY: all fields are numbers, or pointers that nobody follows for these calls.
    unsafe { std::mem::zeroed() }
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
