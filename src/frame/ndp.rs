//! IPv6 neighbour discovery (RFC 4861): what of it concerns MAC addresses.

use std::net::Ipv6Addr;

use super::ethernet::MacAddr;

/// ICMPv6 type of a router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6 type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// ICMPv6 type of a redirect.
pub const REDIRECT: u8 = 137;
/// ICMPv6 types of multicast listener discovery's query, report and done (RFC 2710).
pub const LISTENER_QUERY: u8 = 130;
/// See [`LISTENER_QUERY`].
pub const LISTENER_DONE: u8 = 132;
/// ICMPv6 type of the report of version 2 (RFC 3810).
pub const LISTENER_REPORT_2: u8 = 143;

/// Type of the option with the sender's link-layer address.
pub const SOURCE_LINK_LAYER: u8 = 1;
/// Type of the option with the target's link-layer address.
pub const TARGET_LINK_LAYER: u8 = 2;
/// Options are counted in units of so many bytes, and an Ethernet address takes one unit.
const UNIT: usize = 8;

/// A list of options that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The last 64 bits of the addresses that an interface with this MAC address makes of it (RFC 4291, appendix A).
pub fn interface_id(mac: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

/// Where the options of a message start, in bytes from its ICMPv6 header. `None` for what is not neighbour discovery.
pub fn options_start(kind: u8) -> Option<usize> {
    match kind {
        ROUTER_SOLICITATION => Some(8),
        ROUTER_ADVERTISEMENT => Some(16),
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => Some(24),
        REDIRECT => Some(40),
        _ => None,
    }
}

/// The target of a solicitation or advertisement of neighbours. `message` starts with its ICMPv6 header.
pub fn target(message: &[u8]) -> Option<Ipv6Addr> {
    message.get(8..24)?.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes))
}

/// The option at `at` of `message`, which is a whole message, with its type and its length. `None` at the end.
///
/// # Errors
/// When it has no length or goes on beyond the message.
pub fn option(message: &[u8], at: usize) -> Result<Option<&[u8]>, Malformed> {
    if at == message.len() {
        return Ok(None);
    }
    let rest = message.get(at..).ok_or(Malformed)?;
    let units = *rest.get(1).ok_or(Malformed)?;
    rest.get(..usize::from(units) * UNIT).filter(|option| !option.is_empty()).map(Some).ok_or(Malformed)
}

/// Where the address of the next source or target link-layer address option is, in bytes from the start of `message`,
/// which is a whole message. `at` is where options start, or goes on: the end of the address that was found before.
///
/// # Errors
/// When an option has no length or goes on beyond the message, or its address is not Ethernet's.
pub fn link_layer_address(message: &[u8], mut at: usize) -> Result<Option<usize>, Malformed> {
    // Each round goes forward by a unit at least.
    while let Some(option) = option(message, at)? {
        if matches!(option[0], SOURCE_LINK_LAYER | TARGET_LINK_LAYER) {
            return if option.len() == UNIT { Ok(Some(at + 2)) } else { Err(Malformed) };
        }
        at += option.len();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_one_after_the_other() {
        let solicitation = [0; 8];
        let options = [14, 1, 9, 9, 9, 9, 9, 9, 1, 1, 2, 0, 0, 0, 0, 1, 2, 1, 2, 0, 0, 0, 0, 2];
        let message = [&solicitation[..], &options].concat();
        assert_eq!(link_layer_address(&message, 8), Ok(Some(18)));
        assert_eq!(link_layer_address(&message, 24), Ok(Some(26)));
        assert_eq!(link_layer_address(&message, 32), Ok(None));
        assert_eq!(link_layer_address(&message[..8], 8), Ok(None));
        for len in [9, 12, 15] {
            assert_eq!(link_layer_address(&message[..len], 8), Err(Malformed), "{len} bytes");
        }
        assert_eq!(link_layer_address(&message[..4], 8), Err(Malformed), "the options would start beyond the end");
        for bad in [[1, 0], [1, 2], [7, 0], [7, 4]] {
            let message = [&solicitation[..], &bad, &[0; 14]].concat();
            assert_eq!(link_layer_address(&message, 8), Err(Malformed), "{bad:?}");
        }
    }
}
