//! A vhost-user proxy that takes features out of what a backend offers.
//!
//! OVS-DPDK offers a control queue, and leaves it to the VMM to serve it. QEMU does; User Mode Linux hands every
//! queue to the backend and waits for ever for an answer. It also tells the start of a packed ring as that of a split
//! one, at which neither side ever finds what the other has put there. With the bits gone, a guest negotiates the
//! rest as it would without us. Only messages pass here: rings, memory and eventfds are shared between the two sides
//! as they are without us, so that nothing is slower for it.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Packed rings, the control queue, all that is commanded on it, and all that is read in the configuration space
/// (virtio 1.3, 5.1.3):
/// DPDK has no such space to read, and a driver that finds a feature's fields empty takes them at their word.
pub(crate) const NOT_FOR_USER_MODE_LINUX: u64 = 1 << 2 // GUEST_CTRL_OFFLOADS
    | 1 << 3 // MTU
    | 1 << 5 // MAC
    | 1 << 16 // STATUS
    | 1 << 17 // CTRL_VQ
    | 1 << 18 // CTRL_RX
    | 1 << 19 // CTRL_VLAN
    | 1 << 21 // GUEST_ANNOUNCE
    | 1 << 22 // MQ
    | 1 << 23 // CTRL_MAC_ADDR
    | 1 << 34 // RING_PACKED
    | 1 << 57 // HASH_REPORT
    | 1 << 60 // RSS
    | 1 << 63; // SPEED_DUPLEX

/// Request, flags and size of the payload: 32 bits each.
const HEADER_LEN: usize = 12;
const GET_FEATURES: u32 = 1;
const REPLY: u32 = 1 << 2;
/// More than any message of the protocol has.
const PAYLOAD_MAX: usize = 4096;
/// More than any message of the protocol carries: a memory table has eight.
const FDS_MAX: usize = 32;

/// Two sockets on which it listens, and whoever is connected through it. Ends when it is dropped.
pub(crate) struct Filter {
    listeners: [UnixListener; 2],
    open: Arc<Mutex<Vec<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Filter {
    /// Joins each backend that connects to one path with the next frontend that connects to the other, without the
    /// features in `masked`.
    pub(crate) fn start(backend: &Path, frontend: &Path, masked: u64) -> io::Result<Self> {
        let listeners = [UnixListener::bind(backend)?, UnixListener::bind(frontend)?];
        let [backends, frontends] = [listeners[0].try_clone()?, listeners[1].try_clone()?];
        let open = Arc::<Mutex<Vec<UnixStream>>>::default();
        let connections = open.clone();
        let thread = std::thread::spawn(move || {
            while let (Ok((backend, _)), Ok((frontend, _))) = (backends.accept(), frontends.accept()) {
                connections
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend([&backend, &frontend].into_iter().filter_map(|stream| stream.try_clone().ok()));
                std::thread::scope(|scope| {
                    scope.spawn(|| relay(&frontend, &backend, 0));
                    relay(&backend, &frontend, masked);
                });
                connections.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        });
        Ok(Self { listeners, open, thread: Some(thread) })
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // On a listening socket this ends the accept that waits on it.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Passes messages on until one side ends, at which it ends the other.
fn relay(from: &UnixStream, to: &UnixStream, masked: u64) {
    while let Ok((mut message, fds)) = receive(from) {
        mask(&mut message, masked);
        if send(to, &message, &fds).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Takes bits out of the answer to GET_FEATURES; any other message stays.
fn mask(message: &mut [u8], masked: u64) {
    if word(message, 0) == GET_FEATURES && word(message, 4) & REPLY != 0 && message.len() == HEADER_LEN + 8 {
        let mut bits = [0; 8];
        bits.copy_from_slice(&message[HEADER_LEN..]);
        let left = u64::from_ne_bytes(bits) & !masked;
        message[HEADER_LEN..].copy_from_slice(&left.to_ne_bytes());
    }
}

fn word(message: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&message[at..at + 4]);
    u32::from_ne_bytes(word)
}

/// One whole message. Its descriptors come with its first byte.
fn receive(mut from: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; HEADER_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rights = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    from.read_exact(&mut message[got..])?;
    let size = usize::try_from(word(&message, 8)).map_err(io::Error::other)?;
    if size > PAYLOAD_MAX {
        return Err(io::Error::other(format!("a message of {size} bytes")));
    }
    message.resize(HEADER_LEN + size, 0);
    from.read_exact(&mut message[HEADER_LEN..])?;
    Ok((message, fds))
}

fn send(to: &UnixStream, message: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(to, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    // A message is smaller than any socket's buffer, so that it goes whole.
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
