//! One connection of a guest that says what it is told to, and a socket that remembers.

use std::io;
use std::ops::Range;

use super::super::mirror::{Fate, HostSocket, Mirror, Timer, Wanted};
use super::super::segment::{ACK, FIN, Header, SYN, Segment};
use super::{MILLI, SECOND, Seq};
use crate::ring::Bytes;

/// Our first number, and the guest's.
pub(super) const OURS: u32 = 5000;
pub(super) const ISS: u32 = 1000;
pub(super) const HOUR: u64 = 3600 * SECOND;
pub(super) const ROOM: u32 = 10_000;

/// A socket that remembers.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) taken: Vec<u8>,
    pub(super) room: u32,
    /// How often it was asked for that.
    pub(super) asked: u32,
    pub(super) consumed: u32,
    pub(super) is_ended: bool,
}

impl HostSocket for Kernel {
    fn send(&mut self, bytes: &Bytes<'_>, part: Range<usize>) -> io::Result<usize> {
        self.send_kept(&bytes.head()[part])
    }

    fn send_kept(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.room as usize);
        self.taken.extend_from_slice(&bytes[..len]);
        self.room -= len as u32;
        if len == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(len) }
    }

    fn room(&mut self) -> u32 {
        self.asked += 1;
        self.room
    }

    fn consume(&mut self, len: u32) {
        self.consumed += len;
    }

    fn end(&mut self) {
        assert!(!std::mem::replace(&mut self.is_ended, true));
    }
}

pub(super) struct Case {
    pub(super) mirror: Mirror,
    pub(super) kernel: Kernel,
    pub(super) now: u64,
    /// What the guest's segments say of its room.
    pub(super) window: u16,
}

pub(super) fn segment(seq: u32, ack: Option<u32>, flags: u8, window: u16, len: usize) -> Segment {
    Segment {
        from_port: 1,
        to_port: 2,
        seq: Seq(seq),
        ack: ack.map(Seq),
        flags: flags | if ack.is_some() { ACK } else { 0 },
        window,
        payload: 0..len,
        mss: (flags & SYN != 0).then_some(1000),
        scale: None,
    }
}

impl Case {
    /// A guest has asked, and the kernel is at it.
    pub(super) fn connecting() -> Self {
        let kernel = Kernel { taken: Vec::new(), room: ROOM, asked: 0, consumed: 0, is_ended: false };
        let syn = segment(ISS, None, SYN, 8000, 0);
        Self { mirror: Mirror::asked_for(&syn, Seq(OURS), 0), kernel, now: 0, window: 8000 }
    }

    pub(super) fn answered() -> (Self, Header) {
        let mut case = Self::connecting();
        let header = case.mirror.connected(1460, &mut case.kernel, 0);
        (case, header)
    }

    pub(super) fn open() -> Self {
        let (mut case, _) = Self::answered();
        assert_eq!(case.says(1, 1, ""), Fate::Lives);
        assert!(!case.mirror.is_half_open());
        case
    }

    pub(super) fn asked() -> Self {
        let mut case = Self { mirror: Mirror::to_guest(Seq(OURS), 0), ..Self::connecting() };
        let header = case.mirror.syn(1460, &mut case.kernel);
        assert_eq!((header.seq, header.flags, header.mss), (Seq(OURS), SYN, Some(1460)));
        case
    }

    pub(super) fn take(&mut self, segment: &Segment, text: &str) -> Fate {
        self.mirror.segment(segment, &Bytes::private(text.as_bytes()), &mut self.kernel, self.now)
    }

    /// A segment whose numbers count from the beginnings.
    pub(super) fn flags(&mut self, seq: u32, ack: u32, flags: u8, text: &str) -> Fate {
        let seq = ISS.wrapping_add(seq);
        self.take(&segment(seq, Some(OURS.wrapping_add(ack)), flags, self.window, text.len()), text)
    }

    pub(super) fn says(&mut self, seq: u32, ack: u32, text: &str) -> Fate {
        self.flags(seq, ack, 0, text)
    }

    pub(super) fn wanted(&self) -> Option<(u32, u32)> {
        self.mirror.wanted().map(|Wanted { skip, len }| (skip, len))
    }

    /// Sends so many bytes of the peer's. Returns the number of the first.
    pub(super) fn sends(&mut self, len: u32) -> u32 {
        self.mirror.sends(len, false, &mut self.kernel, self.now).seq.since(Seq(OURS))
    }

    pub(super) fn ends(&mut self) -> u32 {
        let header = self.mirror.ends(&mut self.kernel, self.now);
        assert_eq!(header.flags, ACK | FIN);
        header.seq.since(Seq(OURS))
    }

    /// What the guest hears when it is owed an acknowledgement: what that acknowledges, and the window.
    pub(super) fn answer(&mut self) -> Option<(u32, u32)> {
        let scale = if self.mirror.inside().is_scaled { 8 } else { 0 };
        self.mirror.owes_ack.then(|| {
            let header = self.mirror.acknowledge(&mut self.kernel);
            assert_eq!(header.flags, ACK);
            (header.ack.since(Seq(ISS)), u32::from(header.window) << scale)
        })
    }

    pub(super) fn waits(&mut self, time: u64) -> Timer {
        self.now += time;
        self.mirror.timer(self.now)
    }

    /// How long it takes until something is due, in milliseconds, and what that is.
    pub(super) fn next_due(&mut self) -> (u64, Timer) {
        let wait = self.mirror.due() - self.now;
        (wait / MILLI, self.waits(wait))
    }
}
