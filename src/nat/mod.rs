//! NAT: guests' packets carried over the host's own sockets.

use ipnet::IpNet;

use crate::config::{DomainName, Forward, Subnet4, Subnet6};
use crate::frame::ethernet::MacAddr;

mod carrier;
mod dns;
mod echo;
mod efforts;
mod endpoints;
mod engine;
mod forward;
mod fragments;
mod headers;
mod icmp;
mod id;
mod out;
mod packet;
mod policy;
mod seq;
mod sockets;
mod tcp;
mod udp;

pub use dns::{Names, trial as trial_of_dns};
pub use engine::{Engine, Gone, Offer, Supply, Turnover};
pub use forward::{Directory, Doors, ForwardError, Forwards, Lease};
#[cfg(any(test, feature = "trials"))]
pub use fragments::trial::trial as trial_of_fragments;
pub use out::Frame;
pub use sockets::Sockets;
#[cfg(any(test, feature = "trials"))]
pub use tcp::trial::trial as trial_of_tcp;

/// How long that waits which the host had too little of something for, until it is tried again, in nanoseconds.
const SHORTAGE_NS: u64 = 100_000_000;

/// What one network's NAT is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The MAC address of the gateway, which guests send to what is to go out.
    pub gateway_mac: MacAddr,
    /// The subnet of IPv4, in which the gateway is [`Subnet4::own`].
    pub subnet: Subnet4,
    /// The subnet of IPv6, likewise; none: guests have no way out by IPv6.
    pub subnet6: Option<Subnet6>,
    /// The domain that guests are in.
    pub domain: Option<DomainName>,
    /// The longest packet that guests take, in bytes.
    pub mtu: u16,
    /// A frame that tells all guests of the gateway, which they forget if it is not sent now and then.
    pub advertisement: Option<Vec<u8>>,
    /// Ports of the host that lead to guests. A declared port that one names is there.
    pub forwards: Vec<Forward>,
    /// Whether guests reach the host's loopback and link-local addresses.
    pub host_loopback: bool,
    /// What guests reach; none: everything. Of all ranges here and in `deny` that a destination is in, the smallest
    /// says whether it is reached, and of two that are equal the one in `deny`.
    pub allow: Vec<IpNet>,
    /// What guests do not reach.
    pub deny: Vec<IpNet>,
    /// Whether to use `SO_PEEK_OFF` where the kernel has it. Without it, what a guest has not acknowledged yet is read
    /// again each time, and bounded.
    pub peek_offset: bool,
}
