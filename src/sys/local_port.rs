//! Ports of the host that stand for ports of guests.

use std::io;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::net::sockopt;

/// The two ranges that a port stays in (RFC 4787, REQ-3 a). Each begins with an even number and has an even length.
const WELL_KNOWN: Range<u32> = 0..1024;
const OTHERS: Range<u32> = 1024..65_536;
/// Ports of one range that are tried.
const TRIES: u32 = 16;
/// From one of them to the next: even, so that all of them are even or all are odd, and so far that a guest's next
/// ports are left to it.
const STEP: u32 = 1234;

/// The ports that are tried to stand for `port`: itself, others of its range that are even or odd as it is (RFC 4787,
/// REQ-4), and if its range is the one that is kept for those with a right to it, such of the other range.
fn like(port: u16) -> impl Iterator<Item = u16> {
    let port = u32::from(port);
    let of =
        move |range: Range<u32>| (1..=TRIES).map(move |n| range.start + (port + n * STEP) % (range.end - range.start));
    let (own, other) = if WELL_KNOWN.contains(&port) { (WELL_KNOWN, Some(OTHERS)) } else { (OTHERS, None) };
    let all = iter::once(port).chain(of(own)).chain(other.into_iter().flat_map(of));
    // 0 stands for any.
    all.filter(|port| *port > 0).filter_map(|port| u16::try_from(port).ok())
}

/// All addresses of the host of this family.
fn any(like: &SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Binds a socket of the same family to this port of all of the host's addresses. IPv6 has nothing of IPv4's.
pub(super) fn bind(fd: impl AsFd, port: &SocketAddr) -> io::Result<()> {
    if port.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    Ok(rustix::net::bind(&fd, &SocketAddr::new(any(port), port.port()))?)
}

/// Binds a socket, likewise, to a port that stands for that of `guest`, or if there is none, to any.
pub(super) fn bind_like(fd: impl AsFd, guest: &SocketAddr) -> io::Result<()> {
    if like(guest.port()).any(|port| bind(&fd, &SocketAddr::new(guest.ip(), port)).is_ok()) {
        return Ok(());
    }
    bind(&fd, &SocketAddr::new(guest.ip(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parity_is_kept_and_the_range_is_left_only_for_want_of_rights(port in 1_u16..) {
            let all: Vec<u16> = like(port).collect();
            prop_assert_eq!(all[0], port);
            prop_assert!(all.iter().all(|other| *other > 0 && other % 2 == port % 2));
            let is_own = |other: &u16| (*other < 1024) == (port < 1024);
            let own = all.iter().take_while(|other| is_own(other)).count();
            prop_assert!(own > TRIES as usize / 2);
            prop_assert_eq!(own == all.len(), port >= 1024);
            let mut different = all.clone();
            different.sort_unstable();
            different.dedup();
            prop_assert_eq!(different.len(), all.len());
        }
    }
}
