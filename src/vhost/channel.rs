//! Whole messages over a Unix socket, with their descriptors, under a deadline.
//!
//! Theory of operation. The first byte of a message may take for ever: that is an idle frontend. From then on the rest
//! must come within [`MESSAGE_TIMEOUT`], and what we send must be taken within it, so a frontend that stalls holds up
//! its own session and nothing else. Descriptors are owned from the moment they arrive, so every way out closes them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::message::{BODY_LEN_MAX, FDS_MAX, FLAG_VERSION, FLAG_VERSION_MASK, HEADER_LEN, Message};

/// The most descriptors that the kernel passes at once (SCM_MAX_FD). With room for them all, descriptors are lost only
/// when this process can have no more.
const FDS_PASSED_MAX: usize = 253;

/// How long a message that has begun may take, either way.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no message came.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer has closed the connection between two messages: the ordinary end.
    #[error("the connection was closed")]
    Closed,
    /// The peer has closed the connection inside a message.
    #[error("the connection was closed in the middle of a message")]
    Cut,
    /// The peer has not sent or taken the whole of a message in time.
    #[error("a message was not finished within {} seconds", MESSAGE_TIMEOUT.as_secs())]
    Stalled,
    /// The header is not one of this protocol.
    #[error("{0}")]
    Header(String),
    /// More descriptors came with the message than with any of this protocol.
    #[error("a message with more than {FDS_MAX} descriptors")]
    TooManyDescriptors,
    /// Some of the message's descriptors could not be taken.
    #[error("descriptors of a message were lost: this process is out of file descriptors (raise `ulimit -n`)")]
    DescriptorsLost,
    /// The daemon behind the gate, or the worker, has failed.
    #[error("{0}")]
    Behind(String),
    /// The system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Receives one message, whose first byte may take as long as `patience` says: for ever with `None`. With an error the
/// connection is of no more use.
pub fn receive(socket: BorrowedFd<'_>, patience: Option<Duration>) -> Result<Message, ChannelError> {
    let mut fds = Vec::new();
    let mut header = [0; HEADER_LEN];
    // By poll: the socket may be shared and is never blocked on.
    wait(socket, PollFlags::IN, patience.map(|patience| Instant::now() + patience))?;
    let deadline = Instant::now() + MESSAGE_TIMEOUT;
    if fill(socket, &mut header, &mut fds, deadline, true)? == 0 {
        return Err(ChannelError::Closed);
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (request, flags, size) = (word(0), word(4), word(8) as usize);
    if flags & FLAG_VERSION_MASK != FLAG_VERSION {
        let version = flags & FLAG_VERSION_MASK;
        return Err(ChannelError::Header(format!("a message of protocol version {version}, which is not 1")));
    }
    if size > BODY_LEN_MAX {
        return Err(ChannelError::Header(format!("a message of {size} bytes; the longest is {BODY_LEN_MAX}")));
    }
    let mut body = vec![0; size];
    fill(socket, &mut body, &mut fds, deadline, false)?;
    Ok(Message { request, flags, body, fds })
}

/// Reads until `out` is full. Returns 0 when the connection was closed before the first byte and that is `allowed`.
fn fill(
    socket: BorrowedFd<'_>,
    out: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    deadline: Instant,
    may_close: bool,
) -> Result<usize, ChannelError> {
    let mut at = 0;
    while at < out.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PASSED_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut out[at..])];
        let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        match received {
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => return Err(ChannelError::DescriptorsLost),
            Ok(message) if message.bytes == 0 && at == 0 && may_close => return Ok(0),
            Ok(message) if message.bytes == 0 => return Err(ChannelError::Cut),
            Ok(message) => at += message.bytes,
            Err(rustix::io::Errno::AGAIN) => wait(socket, PollFlags::IN, Some(deadline))?,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) if at == 0 && may_close => return Ok(0),
            Err(error) => return Err(ChannelError::Io(error.into())),
        }
        if fds.len() > FDS_MAX {
            return Err(ChannelError::TooManyDescriptors);
        }
    }
    Ok(at)
}

/// Sends one message with its descriptors.
pub fn send(socket: BorrowedFd<'_>, message: &Message) -> Result<(), ChannelError> {
    let bytes = message.encode();
    let fds: Vec<BorrowedFd<'_>> = message.fds.iter().map(AsFd::as_fd).collect();
    let deadline = Instant::now() + MESSAGE_TIMEOUT;
    let mut at = 0;
    while at < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if at == 0 && !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(ChannelError::TooManyDescriptors);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(&bytes[at..])], &mut ancillary, flags) {
            Ok(sent) => at += sent,
            Err(rustix::io::Errno::AGAIN) => wait(socket, PollFlags::OUT, Some(deadline))?,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Err(ChannelError::Closed),
            Err(error) => return Err(ChannelError::Io(error.into())),
        }
    }
    Ok(())
}

/// Waits until the socket is ready, or closed, or the deadline has passed.
fn wait(socket: BorrowedFd<'_>, flags: PollFlags, deadline: Option<Instant>) -> Result<(), ChannelError> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        match poll(&mut [PollFd::from_borrowed_fd(socket, flags)], timeout.as_ref()) {
            Ok(0) => return Err(ChannelError::Stalled),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ChannelError::Io(error.into())),
        }
    }
}
