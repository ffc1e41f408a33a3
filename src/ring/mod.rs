//! A guest's rings, as raw memory that nobody trusts: one of the two rooms with `unsafe`.
//!
//! What leaves this room is safe to use: a [`Burst`] of frames whose first bytes are a private copy, a [`RxRing`] that
//! takes frames, a [`Gather`] for frames that go to the kernel, an [`InPlace`] for those that come from it, and a
//! [`RingError`] that says how a guest broke the rules. How rings reach a worker is in [`mailbox`].
#![allow(unsafe_code)]

mod control;
mod copy;
mod error;
mod gather;
mod in_place;
pub mod mailbox;
mod memory;
mod notify;
mod rx;
mod split;
mod tx;

pub use control::{COMMAND_LEN_MAX, ControlRing};
pub use copy::Bytes;
pub use error::RingError;
pub use gather::{Gather, PIECES_MAX, Pieces, Row};
pub use in_place::InPlace;
pub use memory::GuestMem;
pub use notify::signal;
pub use rx::{FRAME_DESCRIPTORS_MAX, Refusal, RxRing, VNET_HEADER_WRITTEN};
pub use split::{QUEUE_SIZE_MAX, RingOptions};
pub use tx::{
    BURST_BYTES_MAX, BURST_DESCRIPTORS_MAX, BURST_FRAMES_MAX, Burst, FRAME_LEN_MAX, HEAD_MAX, PrivateBurst, TxRing,
    VNET_HEADER_READ,
};

#[cfg(test)]
mod tests;
