//! The host's own IP addresses.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// Those of all interfaces: a host answers for each of them on any. Not those that never leave it. Those of `interface`
/// come with the prefix of the addresses that are on the link with them, the others with one that has no more in it.
///
/// # Errors
/// When the process is out of descriptors or memory.
pub fn of_host(interface: &str) -> io::Result<Vec<IpNet>> {
    let addresses = getifaddrs()?.filter_map(|entry| {
        let address = ip(entry.address.as_ref()?)?;
        let netmask = ip(entry.netmask.as_ref()?).filter(|_| entry.interface_name == interface);
        let on_link = netmask.and_then(|netmask| IpNet::with_netmask(address, netmask).ok());
        Some(on_link.unwrap_or_else(|| IpNet::from(address)))
    });
    Ok(addresses.filter(|address| !address.addr().is_loopback()).collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}
