//! The way out of a network: a device of the host that takes frames and gives them.
//!
//! Theory of operation. Whoever has an [`Uplink`] moves frames with it, one with each call, whole, with its virtio-net
//! header: a super-frame stays one. It is one queue of a device, which may have more, one for each worker
//! ([`Uplink::add_queue`]): each frame that comes is in one of them, and all of a flow are in the same. Nothing blocks.
//! A frame that cannot be moved ends in a counter; a device that is gone is told as [`Gone`], after which the uplink is
//! of no use and another has to be opened when the device is back.
//!
//! The network sees an uplink as a port, and counts so: `tx_` is what comes from the uplink, `rx_` what it is given.

use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::ethernet::MacAddr;
use crate::frame::offload::Offloads;
use crate::frame::vnet::{F_NEEDS_CSUM, VNET_HEADER_LEN, VnetHeader};
use crate::metrics::Counter;
use crate::ring::{Bytes, FRAME_LEN_MAX, InPlace};
use crate::switch::HostAddresses;

mod echo;
mod filter;
mod host_leg;
#[cfg(test)]
pub(crate) mod loopback;
mod raw_nic;
pub mod subnet;
mod tap;

pub use host_leg::NoHostLeg;
pub use raw_nic::{Opened, RawNic, RawNicError};
pub use tap::{Tap, TapError};

/// Bytes before a frame in a [`FrameBuffer`]: its virtio-net header, and room for a VLAN tag that is put back.
const HEADROOM: usize = VNET_HEADER_LEN + VLAN_TAG_LEN;
const VLAN_TAG_LEN: usize = 4;

/// A way out of a network.
pub trait Uplink: Send + std::fmt::Debug {
    /// What it is, for the log: "tap gw0", "nic eth0".
    fn name(&self) -> String;

    /// Readable when a frame may be there.
    fn fd(&self) -> BorrowedFd<'_>;

    /// What it takes whole, as a receiver.
    fn takes(&self) -> Offloads;

    /// What it may ask of us, as a sender: received frames' headers are to be validated with this.
    fn sends(&self) -> Offloads;

    /// Takes one frame.
    fn receive(&mut self, buffer: &mut FrameBuffer) -> Received;

    /// Takes one frame, into the room that was lent. Returns its length too; none, if the uplink may have to refuse or
    /// change what comes, and so never does this.
    fn receive_in_place(&mut self, _frame: &mut InPlace) -> Option<(Received, usize)> {
        None
    }

    /// Gives one frame to the kernel, whole. `header` must ask for no more than [`Self::takes`] has, as
    /// `frame::offload` says it.
    fn send(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent;

    /// One more queue of the same device, in the same state; none, if the device cannot have more.
    ///
    /// # Errors
    /// When the process is out of descriptors, or may not.
    fn add_queue(&mut self) -> io::Result<Option<Box<dyn Uplink>>> {
        Ok(None)
    }

    /// From now on takes unicast frames for these stations of ours, which are in order. An uplink to which the kernel
    /// gives only what is for us needs no such list.
    ///
    /// # Errors
    /// When the kernel is out of memory: what was heard before is heard on.
    fn set_stations(&mut self, _stations: &[MacAddr]) -> io::Result<()> {
        Ok(())
    }

    /// The host's own MAC address on it, which no guest may have, if frames for that end here.
    fn host_mac(&self) -> Option<MacAddr> {
        None
    }

    /// The host's own IP addresses, which no guest may use that shares [`Self::host_mac`].
    ///
    /// # Errors
    /// When the process is out of descriptors or memory.
    fn host_addresses(&self) -> io::Result<HostAddresses> {
        Ok(HostAddresses::default())
    }

    /// How many frames the kernel threw away since the last time because we did not take them soon enough: to be
    /// counted so. To be asked when somebody wants to know.
    fn lost(&mut self) -> (Counter, u64) {
        (Counter::DropTxQueueFull, 0)
    }
}

/// What came of [`Uplink::receive`].
#[derive(Debug)]
pub enum Received {
    /// The frame is in the buffer. Its header is the kernel's word, not validated.
    Frame(VnetHeader),
    /// Nothing is there now.
    Nothing,
    /// A frame was there and is lost.
    Dropped(Counter),
    /// A frame was there that is for none of us.
    NotOurs,
    /// Nothing will come any more. The descriptor may be readable for ever: it is to be watched no longer.
    Gone(Gone),
}

/// What came of [`Uplink::send`].
#[derive(Debug)]
pub enum Sent {
    /// The kernel has it.
    Whole,
    /// It is lost.
    Dropped(Counter),
    /// It is lost, and so would be all others.
    Gone(Gone),
}

/// Why an uplink is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    /// The device was deleted or unplugged.
    #[error("its device is gone")]
    Deleted,
    /// The descriptor does not work any more.
    #[error("it failed: {0}")]
    Failed(#[from] io::Error),
}

/// What a failed write means for its frame, and for the uplink.
#[cold]
fn not_sent(error: io::Error) -> Sent {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Sent::Dropped(Counter::DropRxQueueFull),
        // The guest's memory went away: the port it belongs to is stopped as soon as we touch it ourselves.
        Some(libc::EFAULT) => Sent::Dropped(Counter::DropRxFault),
        // A tap says EIO when it is down.
        Some(libc::EIO | libc::ENETDOWN) => Sent::Dropped(Counter::DropRxDown),
        // A tap says EBADFD after it was deleted; a packet socket ENXIO, or ENODEV to who reads.
        Some(libc::EBADFD | libc::ENXIO | libc::ENODEV) => Sent::Gone(Gone::Deleted),
        Some(libc::EBADF | libc::ENOTCONN | libc::ECONNREFUSED | libc::ECONNRESET) => Sent::Gone(Gone::Failed(error)),
        // Whatever else there is about a frame (EINVAL, EMSGSIZE) must not end its uplink.
        _ => Sent::Dropped(Counter::DropRxRefused),
    }
}

/// What a failed read means.
#[cold]
fn not_received(error: io::Error) -> Received {
    match error.raw_os_error() {
        // A packet socket says ENETDOWN once, when its device goes down.
        Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Received::Nothing,
        // A packet socket's frame that the virtio-net header cannot express.
        Some(libc::EINVAL | libc::ENOBUFS | libc::ENOMEM) => Received::Dropped(Counter::DropTxTruncated),
        // The guest's memory that it was read into has gone away.
        Some(libc::EFAULT) => Received::Dropped(Counter::DropTxTruncated),
        Some(libc::EBADFD | libc::ENXIO | libc::ENODEV) => Received::Gone(Gone::Deleted),
        _ => Received::Gone(Gone::Failed(error)),
    }
}

/// Room for one frame from an uplink. It belongs to a worker and is filled again and again.
#[derive(Debug)]
pub struct FrameBuffer {
    /// The headroom, the longest frame, and one byte that shows that a frame was longer.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for FrameBuffer {
    fn default() -> Self {
        Self { bytes: vec![0; HEADROOM + FRAME_LEN_MAX + 1].into(), start: HEADROOM, end: HEADROOM }
    }
}

impl FrameBuffer {
    /// The frame that was received last.
    #[inline]
    pub fn frame(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The same, to be changed: to complete its checksum, for one.
    #[inline]
    pub fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Room for a header of `header_len` bytes, at most [`VNET_HEADER_LEN`], and for what follows it.
    #[inline]
    fn room(&mut self, header_len: usize) -> (&mut [u8], &mut [u8]) {
        let (front, frame) = self.bytes.split_at_mut(HEADROOM);
        (&mut front[..header_len.min(VNET_HEADER_LEN)], frame)
    }

    /// Reads the header and remembers the frame's place, after `len` bytes were written to [`Self::room`].
    #[inline]
    fn filled(&mut self, header_len: usize, len: usize) -> Received {
        let Some(frame_len) = len.checked_sub(header_len) else { return Received::Dropped(Counter::DropTxTruncated) };
        let header = match self.bytes.first_chunk() {
            Some(bytes) if frame_len <= FRAME_LEN_MAX => VnetHeader::parse(bytes),
            _ => return Received::Dropped(Counter::DropTxTruncated),
        };
        (self.start, self.end) = (HEADROOM, HEADROOM + frame_len);
        Received::Frame(header)
    }

    /// Puts a VLAN tag between the addresses and the type, after [`Self::filled`] had `header` to tell.
    fn put_tag_back(&mut self, mut header: VnetHeader, tag: [u8; VLAN_TAG_LEN]) -> Received {
        const ADDRESSES: usize = 12;
        let len = self.end - self.start + VLAN_TAG_LEN;
        if !(ADDRESSES + VLAN_TAG_LEN..=FRAME_LEN_MAX).contains(&len) {
            return Received::Dropped(Counter::DropTxTruncated);
        }
        self.bytes.copy_within(self.start..self.start + ADDRESSES, self.start - VLAN_TAG_LEN);
        self.start -= VLAN_TAG_LEN;
        let at = self.start + ADDRESSES;
        self.bytes[at..at + VLAN_TAG_LEN].copy_from_slice(&tag);
        if header.flags & F_NEEDS_CSUM != 0 {
            header.csum_start = header.csum_start.saturating_add(VLAN_TAG_LEN as u16);
        }
        if header.hdr_len > 0 {
            header.hdr_len = header.hdr_len.saturating_add(VLAN_TAG_LEN as u16);
        }
        Received::Frame(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tag_is_put_back_where_it_was_and_nothing_else_moves(
            frame in prop::collection::vec(any::<u8>(), 0..200),
            header in prop::array::uniform12(any::<u8>()),
            header_len in prop::sample::select(vec![10, 12]),
            tag in prop::array::uniform4(any::<u8>()),
        ) {
            let mut buffer = FrameBuffer::default();
            let (to_header, to_frame) = buffer.room(header_len);
            to_header.copy_from_slice(&header[..header_len]);
            to_frame[..frame.len()].copy_from_slice(&frame);
            let expected = VnetHeader::parse(header.first_chunk().unwrap());
            let Received::Frame(given) = buffer.filled(header_len, header_len + frame.len()) else { panic!() };
            prop_assert_eq!(given, expected);
            prop_assert_eq!(buffer.frame(), &frame[..]);
            match buffer.put_tag_back(given, tag) {
                Received::Frame(tagged) => {
                    prop_assert_eq!(buffer.frame(), [&frame[..12], &tag, &frame[12..]].concat());
                    let moved = |at: u16, is_there: bool| if is_there { at.saturating_add(4) } else { at };
                    prop_assert_eq!(tagged.csum_start, moved(given.csum_start, given.flags & F_NEEDS_CSUM != 0));
                    prop_assert_eq!(tagged.hdr_len, moved(given.hdr_len, given.hdr_len != 0));
                }
                dropped => {
                    prop_assert!(frame.len() < 12);
                    prop_assert!(matches!(dropped, Received::Dropped(Counter::DropTxTruncated)));
                }
            }
        }
    }

    #[test]
    fn the_longest_frame_fits_and_a_longer_one_is_seen_to_be() {
        let mut buffer = FrameBuffer::default();
        let longest = VNET_HEADER_LEN + FRAME_LEN_MAX;
        assert!(matches!(buffer.filled(VNET_HEADER_LEN, longest), Received::Frame(_)));
        assert_eq!(buffer.frame().len(), FRAME_LEN_MAX);
        let header = VnetHeader::default();
        assert!(matches!(buffer.put_tag_back(header, [0; 4]), Received::Dropped(Counter::DropTxTruncated)));
        let room = buffer.room(VNET_HEADER_LEN);
        assert!(room.0.len() + room.1.len() > longest);
        assert!(matches!(buffer.filled(VNET_HEADER_LEN, longest + 1), Received::Dropped(Counter::DropTxTruncated)));
        assert!(matches!(buffer.filled(VNET_HEADER_LEN, 11), Received::Dropped(Counter::DropTxTruncated)));
    }

    #[test]
    fn no_error_of_one_frame_ends_the_uplink() {
        let sent = |errno| not_sent(io::Error::from_raw_os_error(errno));
        for errno in [libc::EINVAL, libc::EMSGSIZE, libc::EFAULT, libc::ENOBUFS, libc::EAGAIN, libc::EPERM, libc::EIO] {
            assert!(matches!(sent(errno), Sent::Dropped(_)), "{errno}");
        }
        for errno in [libc::EBADFD, libc::ENXIO, libc::ENODEV] {
            assert!(matches!(sent(errno), Sent::Gone(Gone::Deleted)), "{errno}");
        }
        let received = |errno| not_received(io::Error::from_raw_os_error(errno));
        assert!(matches!(received(libc::EINVAL), Received::Dropped(Counter::DropTxTruncated)));
        assert!(matches!(received(libc::EAGAIN), Received::Nothing));
        assert!(matches!(received(libc::EBADFD), Received::Gone(Gone::Deleted)));
    }
}
