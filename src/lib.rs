//! guestwire: one process that connects virtual machines.
//!
//! A VM attaches over a vhost-user socket; guestwire maps its memory, walks its virtio-net rings in place and switches
//! its Ethernet frames. The path of a frame, and the rooms it passes through:
//!
//! ```text
//!  guest A TX ring ──ring──> burst ──switch──> verdict ─┬─> guest B RX ring   one copy, A's descriptors to B's
//!    (its own memory)  (unsafe)      (pure)             └─> drop(reason)      counted
//! ```
//!
//! The modules, in the order in which a frame meets them; ARCHITECTURE.md has the map and the invariants:
//!
//! * [`vhost`]: how a guest's memory and rings reach us: the gate, the session, what is offered and negotiated
//! * [`worker`]: the loop that polls rings and sleeps when there is nothing to do
//! * [`ring`]: a guest's rings as raw memory that nobody trusts (one of the two rooms with `unsafe`)
//! * [`frame`]: Ethernet, the virtio-net header, checksums, segmentation: views over bytes
//! * [`switch`]: where a frame goes: pure, without descriptors, clocks or sockets
//! * [`uplink`]: the way out of a network: a tap device, a raw NIC
//! * [`nat`]: the way out that is made of the host's own sockets
//! * [`service`]: frames that are answered here: DHCP, router advertisements, ARP: pure as well
//! * [`mode`]: what a network is made of
//! * [`metrics`]: one counter for every way in which a frame can end
//! * [`sys`]: thin wrappers of system calls (the other room with `unsafe`)
//! * [`control`]: how VMs come in and how the process ends
//! * [`config`] and [`cli`]: what the user asked for, checked

pub mod cli;
pub mod config;
pub mod control;
pub mod frame;
pub mod metrics;
pub mod mode;
pub mod nat;
pub mod ring;
pub mod service;
pub mod switch;
pub mod sys;
pub mod uplink;
pub mod vhost;
pub mod worker;
