//! The whole of guestwire with a virtio-net driver in process: a test is two guests and a daemon in one second.
//!
//! The daemon is the real binary. The driver (`guest`, `ring`, `memory`) speaks vhost-user through the `vhost` crate's
//! front-end and drives split rings of its own over a memfd, so it is an implementation independent of the one it
//! tests; a hostile guest or frontend (`hostile_rings`, `hostile_frontends`) writes what it likes.

mod announce;
mod churn;
mod daemon;
mod dependent;
mod features;
mod guest;
mod hostile_frontends;
mod hostile_rings;
mod kinds;
mod lengths;
mod memory;
mod networks;
mod offloads;
mod order;
mod packet;
mod quiet;
mod ring;
mod segments;
mod switching;
mod waits;
mod wakes;
