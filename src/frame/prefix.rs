//! IP prefixes: addresses with the same first bits (RFC 4632, RFC 4291).

use std::net::{Ipv4Addr, Ipv6Addr};

/// An IPv4 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix4 {
    network: u32,
    mask: u32,
}

impl Prefix4 {
    /// The addresses whose first `len` bits are those of `address`. `None` when `len` is above 32.
    pub fn new(address: Ipv4Addr, len: u8) -> Option<Self> {
        let bits = 32u32.checked_sub(u32::from(len))?;
        let mask = u32::MAX.checked_shl(bits).unwrap_or(0);
        Some(Self { network: address.to_bits() & mask, mask })
    }

    /// Whether `address` is one of them.
    #[inline]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask == self.network
    }
}

/// An IPv6 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix6 {
    network: u128,
    mask: u128,
}

impl Prefix6 {
    /// The addresses whose first `len` bits are those of `address`. `None` when `len` is above 128.
    pub fn new(address: Ipv6Addr, len: u8) -> Option<Self> {
        let bits = 128u32.checked_sub(u32::from(len))?;
        let mask = u128::MAX.checked_shl(bits).unwrap_or(0);
        Some(Self { network: address.to_bits() & mask, mask })
    }

    /// Whether `address` is one of them.
    #[inline]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.to_bits() & self.mask == self.network
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_the_addresses_that_begin_with_it() {
        let at = |text: &str, len| Prefix4::new(text.parse().unwrap(), len);
        let in4 = |prefix: Option<Prefix4>, text: &str| prefix.unwrap().contains(text.parse().unwrap());
        let lan = at("192.168.56.77", 24);
        assert!(in4(lan, "192.168.56.0") && in4(lan, "192.168.56.255"));
        assert!(!in4(lan, "192.168.57.0") && !in4(lan, "192.168.55.255"));
        assert!(in4(at("10.0.0.1", 32), "10.0.0.1") && !in4(at("10.0.0.1", 32), "10.0.0.0"));
        assert!(in4(at("10.0.0.1", 0), "255.255.255.255") && at("10.0.0.1", 33).is_none());
        let at = |text: &str, len| Prefix6::new(text.parse().unwrap(), len);
        let in6 = |prefix: Option<Prefix6>, text: &str| prefix.unwrap().contains(text.parse().unwrap());
        assert!(in6(at("fd00::9", 64), "fd00::1:2:3:4") && !in6(at("fd00::9", 64), "fd00:0:0:1::"));
        assert!(in6(at("fd00::9", 128), "fd00::9") && !in6(at("fd00::9", 128), "fd00::8"));
        assert!(in6(at("fd00::9", 0), "::") && at("fd00::9", 129).is_none());
    }
}
