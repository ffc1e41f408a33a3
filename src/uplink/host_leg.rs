//! The way from guests on a raw NIC to the host itself. What is sent through the NIC goes to the wire, not to the host.
//!
//! Theory of operation. The host sends to a guest through the NIC, and the packet socket hears that as outgoing. To
//! the host leads a tap of ours, with the NIC's MAC address, so that the kernel takes frames for that as its own, and
//! with a filter that takes what arrives at the tap as if it had arrived at the NIC: neighbours, routes, `rp_filter`
//! and sockets that are bound to the NIC all see the NIC. The NIC is not touched, and the tap ends with its descriptor.

use std::io;

use super::tap::Tap;
use crate::sys::netlink::{Link, Netlink};

/// What the tap is called; the kernel puts a number in the place of `%d`.
const NAME: &str = "gwhost%d";

/// Why guests and the host do not reach each other.
#[derive(Debug, thiserror::Error)]
#[error(
    "guests on {nic} and this host itself do not reach each other ({reason}): \
     that needs CAP_NET_ADMIN, and a kernel with taps, clsact, u32 and mirred"
)]
pub struct NoHostLeg {
    nic: String,
    reason: io::Error,
}

/// Makes the way to the host that has the interface `nic`.
pub(super) fn open(nic: &Link) -> Result<Tap, NoHostLeg> {
    let make = || -> io::Result<Tap> {
        let tap = Tap::open_numbered(NAME).map_err(io::Error::other)?;
        let mut netlink = Netlink::open()?;
        let gone = || io::Error::from_raw_os_error(libc::ENODEV);
        let link = netlink.link(&tap.interface())?.ok_or_else(gone)?;
        netlink.set_mac(link.index, nic.mac.ok_or_else(gone)?)?;
        // A kernel without IPv6 has nothing to switch off.
        let _ = netlink.set_no_link_local(link.index);
        netlink.redirect_arriving(link.index, nic.index)?;
        netlink.set_up(link.index, true)?;
        Ok(tap)
    };
    make().map_err(|reason| NoHostLeg { nic: nic.name.clone(), reason })
}
