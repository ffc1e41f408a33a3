//! How a guest's memory and rings reach us: vhost-user.
//!
//! A connection is a [`session`]: the [`gate`] in front of `vhost-user-backend`'s daemon. What is offered and what
//! comes of it is in [`features`]; the commands of the control queue, where it reaches us, in [`control_queue`].

mod backend;
pub mod channel;
pub mod control_queue;
pub mod features;
pub mod gate;
pub mod memory_table;
pub mod message;
pub mod session;
mod vring;

#[cfg(test)]
mod tests;
