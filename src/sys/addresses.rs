//! The host's own IP addresses.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// Those of all interfaces: a host answers for each of them on any. Not those that never leave it.
///
/// # Errors
/// When the process is out of descriptors or memory.
pub fn of_host() -> io::Result<Vec<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.filter(|address| !address.is_loopback()).collect())
}
