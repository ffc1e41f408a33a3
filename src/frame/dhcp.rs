//! DHCPv4 messages (RFC 2131): what of them concerns MAC addresses, and who answers.

use std::net::Ipv4Addr;

use super::ethernet::{MacAddr, be16};
use super::ip::{self, Fragment, HeaderV4, IGMP, UDP};

/// UDP port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;
/// UDP port of DHCPv6 servers and relays (RFC 8415, 7.2).
pub const SERVER_PORT_V6: u16 = 547;
/// UDP port of DHCPv6 clients.
pub const CLIENT_PORT_V6: u16 = 546;
/// Where the flags are, in bytes from the start of the message.
pub const FLAGS: usize = 10;
/// The flag that asks for answers by broadcast.
pub const BROADCAST: u16 = 0x8000;

/// `htype` and `hlen` of Ethernet.
pub const ETHERNET: [u8; 2] = [1, 6];
/// What stands before the options (RFC 2131, 3).
pub const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Where the options start, in bytes from the start of the message.
pub const OPTIONS: usize = 240;
const OPTION_PAD: u8 = 0;
const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_END: u8 = 255;
const ACK: u8 = 5;

/// The fixed fields of a message, as its sender wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dhcp {
    /// From a client (BOOTREQUEST), not from a server.
    pub is_request: bool,
    /// [`BROADCAST`], and bits that mean nothing.
    pub flags: u16,
    /// The address that the server gives.
    pub your: Ipv4Addr,
    /// The client's hardware address.
    pub client: MacAddr,
}

impl Dhcp {
    /// Reads a message, the payload of a UDP datagram. `None` when the fields are not there, or the hardware address is
    /// not Ethernet's.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let fixed: &[u8; 34] = message.first_chunk()?;
        (fixed[1..3] == ETHERNET && matches!(fixed[0], 1 | 2)).then(|| Self {
            is_request: fixed[0] == 1,
            flags: u16::from_be_bytes([fixed[FLAGS], fixed[FLAGS + 1]]),
            your: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
            client: MacAddr(std::array::from_fn(|i| fixed[28 + i])),
        })
    }
}

/// Whether a packet whose header is `header` may come from the unspecified address: a DHCP client's to a server, or one
/// that joins or leaves groups (RFC 3376, 4.2.13).
pub fn may_lack_address(head: &[u8], header: &HeaderV4) -> bool {
    let is_dhcp = || ip::ports(head, header.transport) == Some((CLIENT_PORT, SERVER_PORT));
    match header.protocol {
        IGMP => true,
        UDP => header.fragment != Fragment::Later && is_dhcp(),
        _ => false,
    }
}

/// Whether `message` is a server's DHCPACK.
pub fn is_ack(message: &[u8]) -> bool {
    if message.first() != Some(&2) || message.get(OPTIONS - COOKIE.len()..OPTIONS) != Some(&COOKIE) {
        return false;
    }
    let mut at = OPTIONS;
    // Each round goes forward.
    while let Some(&code) = message.get(at) {
        match (code, message.get(at + 1)) {
            (OPTION_PAD, _) => at += 1,
            (OPTION_END, _) | (_, None) => return false,
            (OPTION_MESSAGE_TYPE, _) => return be16(message, at + 1) == Some(0x0100 | u16::from(ACK)),
            (_, Some(&len)) => at += 2 + usize::from(len),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(operation: u8, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 236];
        bytes[..3].copy_from_slice(&[operation, 1, 6]);
        bytes[16..20].copy_from_slice(&[10, 0, 0, 7]);
        bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        [&bytes[..], &COOKIE, options].concat()
    }

    #[test]
    fn the_fixed_fields_are_read() {
        let mut bytes = message(1, &[]);
        bytes[FLAGS] = 0x80;
        let expected = Dhcp {
            is_request: true,
            flags: BROADCAST,
            your: Ipv4Addr::new(10, 0, 0, 7),
            client: MacAddr([2, 0, 0, 0, 0, 1]),
        };
        assert_eq!(Dhcp::parse(&bytes), Some(expected));
        assert_eq!(Dhcp::parse(&bytes[..33]), None);
        for (at, value) in [(0, 0), (0, 3), (1, 6), (2, 16)] {
            let mut lie = bytes.clone();
            lie[at] = value;
            assert_eq!(Dhcp::parse(&lie), None, "byte {at} is {value}");
        }
    }

    #[test]
    fn an_ack_says_so_in_its_options() {
        assert!(is_ack(&message(2, &[53, 1, 5, 255])));
        assert!(is_ack(&message(2, &[0, 0, 51, 4, 0, 0, 0, 60, 53, 1, 5])));
        for options in
            [&[53, 1, 2, 255][..], &[53, 1], &[53], &[53, 2, 5, 5], &[255, 53, 1, 5], &[51, 200, 53, 1, 5], &[]]
        {
            assert!(!is_ack(&message(2, options)), "{options:?}");
        }
        assert!(!is_ack(&message(1, &[53, 1, 5, 255])), "a client acknowledges nothing");
        assert!(!is_ack(&message(2, &[53, 1, 5])[..239]));
    }
}
