//! A simulated socket of the host's, with the peer behind it.

use std::io;
use std::ops::Range;

use super::super::mirror::HostSocket;
use super::{Rng, Stream};
use crate::ring::Bytes;

/// The least that a kernel has room for.
pub(super) const CAPACITY_MIN: u32 = 4608;

#[derive(Debug)]
pub(super) struct Socket {
    pub(super) rng: Rng,
    /// Whether it takes less than it has room for now and then, and has no memory at all, of which it does not tell
    /// when it has some again.
    pub(super) is_moody: bool,
    /// What the guest says.
    pub(super) from_guest: Stream,
    /// Bytes of it that were taken, and that the peer has read.
    pub(super) taken: u32,
    pub(super) read: u32,
    pub(super) capacity: u32,
    /// Whether somebody is to be told when there is room.
    pub(super) wants_room: bool,
    pub(super) is_ended: bool,
    /// What the peer says.
    pub(super) from_peer: Stream,
    /// Bytes of it that have come, and that were taken away.
    pub(super) come: u32,
    pub(super) consumed: u32,
    pub(super) peer_ended: bool,
    /// The peer has broken it off.
    pub(super) is_broken: bool,
}

impl Socket {
    pub(super) fn new(rng: Rng, from_guest: Stream, from_peer: Stream, capacity: u32) -> Self {
        Self {
            rng,
            is_moody: false,
            from_guest,
            taken: 0,
            read: 0,
            capacity,
            wants_room: false,
            is_ended: false,
            from_peer,
            come: 0,
            consumed: 0,
            peer_ended: false,
            is_broken: false,
        }
    }

    fn used(&self) -> u32 {
        self.taken - self.read
    }

    /// Whether the kernel calls it writable, and somebody waits for that.
    pub(super) fn tells_room(&mut self) -> bool {
        let is_writable = self.used() * 3 <= self.capacity * 2;
        is_writable && std::mem::take(&mut self.wants_room)
    }

    /// What can be sent to the guest after `skip` bytes that are there. None: it is the end.
    pub(super) fn peek(&self, skip: u32, most: u32) -> io::Result<Option<&[u8]>> {
        if self.is_broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let at = self.consumed + skip;
        assert!(at <= self.come, "{at} is beyond what has come");
        match (self.come - at).min(most) {
            0 if self.peer_ended => Ok(None),
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(Some(self.from_peer.part(at, len))),
        }
    }
}

impl HostSocket for Socket {
    fn send(&mut self, bytes: &Bytes<'_>, part: Range<usize>) -> io::Result<usize> {
        self.send_kept(&bytes.head()[part])
    }

    fn send_kept(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty() && !self.is_ended);
        if self.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut room = self.capacity.saturating_sub(self.used());
        if self.is_moody && self.rng.happens(50) {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        if self.is_moody && self.rng.happens(100) {
            room = self.rng.range(0, room);
        }
        let len = room.min(bytes.len() as u32);
        assert_eq!(&bytes[..len as usize], self.from_guest.part(self.taken, len), "what the guest said");
        self.taken += len;
        self.wants_room |= len < bytes.len() as u32;
        match len {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len as usize),
        }
    }

    fn room(&mut self) -> u32 {
        self.wants_room |= self.used() * 3 > self.capacity * 2;
        self.capacity.saturating_sub(self.used())
    }

    fn consume(&mut self, len: u32) {
        assert!(len > 0);
        self.consumed += len;
        assert!(self.consumed <= self.come);
    }

    fn end(&mut self) {
        assert!(!std::mem::replace(&mut self.is_ended, true), "ended twice");
    }
}
