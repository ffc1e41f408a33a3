//! Subnets that collide with what the host already reaches: pure functions over its routes.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::sys::netlink::Route;

/// Routes of so few bits stand for "everything else", alone or as two halves.
const DEFAULT_PREFIX_MAX: u8 = 1;
/// Private addresses (RFC 1918), in the order in which they are suggested: first, and how many of 256.
const PRIVATE: [(u32, u32); 4] =
    [(0xc0a8_3800, 0x100 - 0x38), (0xc0a8_0000, 0x38), (0xac10_0000, 0x1000), (0x0a00_0000, 0x1_0000)];

/// The route of the host that has addresses in common with the subnet `address`/`prefix_len`, if there is one: the most
/// specific. Default routes do not count, and neither do those of the interface with the number `own`.
pub fn conflicting_route(routes: &[Route], address: IpAddr, prefix_len: u8, own: Option<u32>) -> Option<&Route> {
    let conflicts = |route: &&Route| {
        route.prefix_len > DEFAULT_PREFIX_MAX
            && (own.is_none() || own != Some(route.index))
            && share_addresses((route.destination, route.prefix_len), (address, prefix_len))
    };
    routes.iter().filter(conflicts).max_by_key(|route| route.prefix_len)
}

/// A private IPv4 subnet of `prefix_len` bits with which no route of the host collides.
pub fn suggest_free_subnet(routes: &[Route], prefix_len: u8) -> Option<Ipv4Addr> {
    // In steps of 256 addresses, or of the subnet where that is larger.
    let size = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0).max(0xff);
    let starts = PRIVATE.iter().flat_map(|(first, count)| (0..*count).map(move |n| (first + (n << 8), *first, *count)));
    let fits = |(start, first, count): &(u32, u32, u32)| {
        start & size == 0 && start.checked_add(size).is_some_and(|last| last < first + (count << 8))
    };
    let is_free = |start: &u32| {
        let address = Ipv4Addr::from(*start);
        conflicting_route(routes, address.into(), prefix_len, None).is_none()
    };
    starts.filter(fits).map(|(start, ..)| start).find(is_free).map(Ipv4Addr::from)
}

/// Whether two ranges have an address in common: whether the one is in the other.
fn share_addresses(a: (IpAddr, u8), b: (IpAddr, u8)) -> bool {
    let [a, b] = [a, b].map(|(address, prefix_len)| IpNet::new(address, prefix_len));
    matches!((a, b), (Ok(a), Ok(b)) if a.contains(&b) || b.contains(&a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(destination: &str, prefix_len: u8, index: u32) -> Route {
        let interface = format!("if{index}");
        Route { destination: destination.parse().unwrap(), prefix_len, gateway: None, index, interface }
    }

    fn conflict(routes: &[Route], subnet: &str, prefix_len: u8) -> Option<String> {
        conflicting_route(routes, subnet.parse().unwrap(), prefix_len, None).map(ToString::to_string)
    }

    #[test]
    fn the_most_specific_route_that_overlaps_is_named() {
        let routes = [
            route("0.0.0.0", 0, 2),
            route("128.0.0.0", 1, 9),
            route("10.0.0.0", 8, 2),
            route("192.168.56.0", 24, 3),
            route("192.168.56.1", 32, 3),
            route("fd00::", 64, 4),
        ];
        assert_eq!(conflict(&routes, "192.168.56.0", 24).unwrap(), "192.168.56.1/32 dev if3");
        assert_eq!(conflict(&routes, "192.168.0.0", 16).unwrap(), "192.168.56.1/32 dev if3");
        assert_eq!(conflict(&routes, "10.9.8.0", 24).unwrap(), "10.0.0.0/8 dev if2");
        assert_eq!(conflict(&routes, "192.168.57.0", 24), None);
        assert_eq!(conflict(&routes, "fd00::", 48).unwrap(), "fd00::/64 dev if4");
        assert_eq!(conflict(&routes, "fd01::", 64), None);
        let ours = conflicting_route(&routes, "192.168.56.0".parse().unwrap(), 24, Some(3));
        assert_eq!(ours, None);
    }

    #[test]
    fn a_free_subnet_is_suggested() {
        let free = |routes: &[Route], prefix_len| suggest_free_subnet(routes, prefix_len).map(|a| a.to_string());
        assert_eq!(free(&[route("0.0.0.0", 0, 2)], 24).unwrap(), "192.168.56.0");
        assert_eq!(free(&[route("192.168.56.0", 24, 2)], 24).unwrap(), "192.168.57.0");
        assert_eq!(free(&[route("192.168.0.0", 16, 2)], 24).unwrap(), "172.16.0.0");
        assert_eq!(free(&[], 16).unwrap(), "172.16.0.0");
        assert_eq!(free(&[], 8).unwrap(), "10.0.0.0");
        assert_eq!(free(&[], 7), None);
        assert_eq!(free(&[], 0), None);
        assert_eq!(free(&[], 30).unwrap(), "192.168.56.0");
        let all = [route("192.168.0.0", 16, 2), route("172.16.0.0", 12, 2), route("10.0.0.0", 8, 2)];
        assert_eq!(free(&all, 24), None);
    }

    proptest! {
        #[test]
        fn ranges_share_addresses_as_their_ends_say(a: u32, b: u32, m in 0u8..=32, n in 0u8..=32) {
            let ends = |address: u32, prefix_len: u8| {
                let size = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
                (address & !size, address | size)
            };
            let ((a0, a1), (b0, b1)) = (ends(a, m), ends(b, n));
            let shared = share_addresses((Ipv4Addr::from(a).into(), m), (Ipv4Addr::from(b).into(), n));
            prop_assert_eq!(shared, a0 <= b1 && b0 <= a1);
        }

        #[test]
        fn what_is_suggested_is_free(
            ranges in prop::collection::vec((any::<u32>(), 4u8..=32), 0..40),
            prefix_len in 8u8..=30,
        ) {
            // All in 192.168.0.0/16, where suggestions begin.
            let place = |a: u32| Ipv4Addr::from(0xc0a8_0000 | a >> 16).to_string();
            let routes: Vec<_> = ranges.iter().map(|(a, n)| route(&place(*a), *n, 1)).collect();
            if let Some(free) = suggest_free_subnet(&routes, prefix_len) {
                prop_assert!(free.is_private());
                prop_assert!(conflicting_route(&routes, free.into(), prefix_len, None).is_none());
            }
        }
    }
}
