//! The control ring: one command at a time, answered with one byte (virtio 1.3, 5.1.6.5).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::copy::{Bytes, scatter};
use super::error::RingError;
use super::mailbox::RingSetup;
use super::memory::{GuestMem, Span};
use super::notify::{signal, take_call};
use super::split::{RingOptions, SplitRing};

/// The longest command in bytes: a MAC table of several thousand addresses.
pub const COMMAND_LEN_MAX: usize = 64 * 1024;

/// A guest's control ring.
#[derive(Debug)]
pub struct ControlRing {
    ring: SplitRing,
    call: Option<OwnedFd>,
}

impl ControlRing {
    /// Starts a ring; takes the call descriptor out of `setup` and interrupts the guest once.
    ///
    /// # Errors
    /// When an area of the ring is not where it may be.
    pub fn new(mem: Arc<GuestMem>, setup: &mut RingSetup, options: RingOptions) -> Result<Self, RingError> {
        Ok(Self { ring: SplitRing::new(mem, setup, options)?, call: take_call(setup) })
    }

    /// Serves the next command: `serve` gets its bytes and returns the answer, which is written to the guest. Returns
    /// false when there was none.
    ///
    /// # Errors
    /// When the ring lies, or the command has no room for the answer or is too long.
    pub fn serve_one(&mut self, serve: impl FnOnce(&[u8]) -> u8) -> Result<bool, RingError> {
        if self.ring.available()? == 0 {
            return Ok(false);
        }
        let (mut readable, mut writable): (Vec<Span>, Vec<Span>) = (Vec::new(), Vec::new());
        self.ring.reset_effort();
        let head = self.ring.head(0);
        let chain = self.ring.open(head)?;
        self.ring.walk_both(chain, &mut readable, &mut writable)?;
        let len = readable.iter().map(|s| s.len).sum();
        if len > COMMAND_LEN_MAX {
            return Err(RingError::ControlShape("of more than 64 KiB"));
        }
        if writable.is_empty() {
            return Err(RingError::ControlShape("without room for the answer"));
        }
        let mut command = Vec::new();
        Bytes::guest(&[], Span::EMPTY, &readable, len).copy_out(&mut command);
        let ack = serve(&command);
        scatter(&[ack], &Bytes::private(&[]), &writable);
        self.ring.push_used(head, 1);
        self.ring.advance(1);
        Ok(true)
    }

    /// Shows the guest the answers. Returns whether it was interrupted.
    pub fn flush(&mut self) -> bool {
        self.ring.publish() && signal(self.call.as_ref())
    }

    /// Asks for a kick. With `true` there is a command already, and there may be no kick for it.
    ///
    /// # Errors
    /// When the guest's index lies.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.ring.arm()
    }

    /// Moves the ring to a new snapshot of the guest's memory.
    ///
    /// # Errors
    /// When an area of the ring is not in the new memory.
    pub fn rebase(&mut self, mem: Arc<GuestMem>) -> Result<(), RingError> {
        self.ring.rebase(mem)
    }

    /// Replaces the call descriptor.
    pub fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        // What was answered while there was none would otherwise never be told.
        signal(self.call.as_ref());
    }

    /// The next available entry to take.
    pub fn next_avail(&self) -> u16 {
        self.ring.next_avail()
    }
}
