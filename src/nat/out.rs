//! Frames on their way to guests that are wholly ours: acknowledgements, datagrams, errors.

use std::collections::VecDeque;

use crate::frame::vnet::VnetHeader;
use crate::ring::VNET_HEADER_READ;
use crate::switch::PortId;

/// Bytes of frames that may wait to be delivered; what is more is not made yet.
const BYTES_MAX: usize = 1 << 20;
/// Buffers that are kept to be used again.
const SPARE_MAX: usize = 64;

/// A frame for a guest.
#[derive(Debug, Default)]
pub struct Frame {
    pub(super) vnet: [u8; VNET_HEADER_READ],
    pub(super) bytes: Vec<u8>,
}

/// Frames in order.
#[derive(Debug, Default)]
pub(super) struct Out {
    frames: VecDeque<Frame>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
}

impl Out {
    /// Whether there is room for more of what can wait.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// An empty buffer for a frame's bytes.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// A frame that leaves to its receiver what `vnet` says.
    pub(super) fn push(&mut self, vnet: VnetHeader, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        let [vnet @ .., _, _] = vnet.emit(0);
        self.frames.push_back(Frame { vnet, bytes });
    }

    /// Takes up to so many frames.
    pub(super) fn take(&mut self, most: usize, into: &mut Vec<Frame>) {
        for _ in 0..most.min(self.frames.len()) {
            let Some(frame) = self.frames.pop_front() else { return };
            self.bytes -= frame.bytes.len();
            into.push(frame);
        }
    }

    /// Gives buffers back.
    pub(super) fn put_back(&mut self, frames: &mut Vec<Frame>) {
        for Frame { mut bytes, .. } in frames.drain(..) {
            if self.spare.len() < SPARE_MAX {
                bytes.clear();
                self.spare.push(bytes);
            }
        }
    }
}

/// Who a guest is, for what is done in its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    /// Where it is attached.
    pub(super) port: PortId,
    pub(super) mac: crate::frame::ethernet::MacAddr,
}
