//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::ethernet::MacAddr;

/// Operation: who has the target's address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has it.
pub const REPLY: u16 = 2;
/// Where the sender's hardware address is, in bytes from the start of the message.
pub const SENDER_MAC: usize = 8;
/// Where the target's hardware address is, in bytes from the start of the message.
pub const TARGET_MAC: usize = 18;
const LEN: usize = 28;
/// Ethernet and IPv4, with addresses of 6 and 4 bytes: the only ones that mean anything here.
const KINDS: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// A message, as its sender wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// The sender's hardware address.
    pub sender_mac: MacAddr,
    /// The sender's protocol address; unspecified in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// The target's hardware address; means nothing in a request.
    pub target_mac: MacAddr,
    /// The target's protocol address.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads the message at `at`. `None` when it is not whole, not for IPv4 over Ethernet with addresses of the proper
    /// lengths, or neither a request nor a reply.
    pub fn parse(head: &[u8], at: usize) -> Option<Self> {
        let message: &[u8; LEN] = head.get(at..)?.first_chunk()?;
        let mac = |at: usize| MacAddr(std::array::from_fn(|i| message[at + i]));
        let address = |at: usize| Ipv4Addr::new(message[at], message[at + 1], message[at + 2], message[at + 3]);
        let operation = u16::from_be_bytes([message[6], message[7]]);
        (message[..6] == KINDS && matches!(operation, REQUEST | REPLY)).then(|| Self {
            operation,
            sender_mac: mac(SENDER_MAC),
            sender: address(14),
            target_mac: mac(TARGET_MAC),
            target: address(24),
        })
    }

    /// The address that the sender says it has, or is about to take: a probe names it as its target (RFC 5227, 2.1.1).
    #[inline]
    pub fn claimed(&self) -> Ipv4Addr {
        let is_probe = self.sender.is_unspecified() && self.operation == REQUEST;
        if is_probe { self.target } else { self.sender }
    }

    /// The message, as it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (sender, target) = (self.sender.octets(), self.target.octets());
        [&KINDS[..], &self.operation.to_be_bytes(), &self.sender_mac.0, &sender, &self.target_mac.0, &target].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_and_lies_are_not() {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 2];
        bytes.extend_from_slice(&[2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2]);
        let arp = Arp {
            operation: REPLY,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            sender: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            target: Ipv4Addr::new(10, 0, 0, 2),
        };
        assert_eq!(Arp::parse(&bytes, 0), Some(arp));
        assert_eq!(arp.to_bytes(), bytes);
        let unspecified = Ipv4Addr::UNSPECIFIED;
        let claimed = [
            arp,
            Arp { operation: REQUEST, ..arp },
            Arp { operation: REQUEST, sender: unspecified, ..arp },
            Arp { sender: unspecified, ..arp },
        ];
        assert_eq!(claimed.map(|arp| arp.claimed()), [arp.sender, arp.sender, arp.target, unspecified]);
        assert_eq!(Arp::parse(&bytes[..27], 0), None);
        assert_eq!(Arp::parse(&bytes, 1), None);
        for (at, value) in [(1, 6), (2, 9), (4, 8), (5, 16), (4, 0), (5, 0), (6, 1), (7, 0), (7, 3)] {
            let mut lie = bytes.clone();
            lie[at] = value;
            assert_eq!(Arp::parse(&lie, 0), None, "byte {at} is {value}");
        }
    }
}
