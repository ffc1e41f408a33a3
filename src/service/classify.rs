//! Which frames are for a service, and which a guest may not send, from their first bytes.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::arp::{self, TYPE_ARP};
use super::ndp;
use super::packet::ICMPV6;
use super::settings::Settings;
use crate::frame::ethernet::{self, HEADER_LEN, MacAddr, TYPE_IPV4, TYPE_IPV6};
use crate::frame::ip::{self, Layers, UDP, Version};
use crate::metrics::Counter;

/// Ports of DHCP (RFC 2131 4.1) and DHCPv6 (RFC 8415 7.2).
pub(super) const DHCP_SERVER: u16 = 67;
pub(super) const DHCP_CLIENT: u16 = 68;
pub(super) const DHCP6_SERVER: u16 = 547;
pub(super) const DHCP6_CLIENT: u16 = 546;
pub(super) const ECHO_REQUEST: u8 = 8;
pub(super) const ECHO_REQUEST_V6: u8 = 128;
pub(super) const ECHO_REPLY_V6: u8 = 129;
const ICMP: u8 = 1;
/// A message of neighbour discovery that only routers send.
const REDIRECT: u8 = 137;
/// Where clients of DHCPv6 look for servers, and hosts for routers: ff02::1:2 and ff02::2.
const ALL_DHCP6_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 1, 0, 2]);
const ALL_ROUTERS_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 2]);
/// IPv4's version, and a header without options.
const PLAIN_V4: u8 = 0x45;
/// Headers of IPv6 that other headers follow.
const EXTENSIONS: [u8; 4] = [0, 43, 44, 60];

/// What a frame asks of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Arp,
    Dhcp,
    Echo,
    Dhcp6,
    Router,
    Neighbour,
    EchoV6,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn ip4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

fn ip6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}

impl Settings {
    fn is_server_v4(&self, address: Option<Ipv4Addr>) -> bool {
        self.v4.as_ref().is_some_and(|v4| address == Some(v4.subnet.server()))
    }

    fn is_server_v6(&self, address: Option<Ipv6Addr>) -> bool {
        let is_ours = |v6: &super::V6| address == Some(v6.link_local) || address == v6.address;
        address.is_some() && self.v6.as_ref().is_some_and(is_ours)
    }

    /// What the frame that begins with `head` asks of a service, as far as the headers say. Frames with a VLAN tag ask
    /// nothing, nor do fragments and packets with options or extension headers.
    pub(super) fn asks(&self, head: &[u8]) -> Option<Ask> {
        let to = MacAddr::destination_of(head)?;
        match be16(head, 12)? {
            TYPE_ARP if self.answers_for_gateway => {
                let packet = arp::Packet::parse(head, HEADER_LEN)?;
                self.is_server_v4(Some(packet.target)).then_some(Ask::Arp)
            }
            TYPE_IPV4 if self.v4.is_some() => self.asks_v4(head, to),
            TYPE_IPV6 if self.v6.is_some() => self.asks_v6(head, to),
            _ => None,
        }
    }

    fn asks_v4(&self, head: &[u8], to: MacAddr) -> Option<Ask> {
        // More fragments, or an offset.
        if *head.get(HEADER_LEN)? != PLAIN_V4 || be16(head, 20)? & 0x3fff != 0 {
            return None;
        }
        let for_us = to == self.server_mac;
        match *head.get(23)? {
            UDP if for_us || to.is_broadcast() => (be16(head, 36)? == DHCP_SERVER).then_some(Ask::Dhcp),
            ICMP if for_us && self.answers_for_gateway && self.is_server_v4(ip4(head, 30)) => {
                (*head.get(34)? == ECHO_REQUEST).then_some(Ask::Echo)
            }
            _ => None,
        }
    }

    fn asks_v6(&self, head: &[u8], to: MacAddr) -> Option<Ask> {
        let for_us = to == self.server_mac;
        match (*head.get(20)?, *head.get(54)?) {
            (UDP, _) if for_us || to == ALL_DHCP6_MAC => (be16(head, 56)? == DHCP6_SERVER).then_some(Ask::Dhcp6),
            (ICMPV6, ndp::ROUTER_SOLICITATION) if for_us || to == ALL_ROUTERS_MAC => Some(Ask::Router),
            (ICMPV6, ndp::NEIGHBOUR_SOLICITATION) if self.answers_for_gateway => {
                self.is_server_v6(ndp::target(head.get(54..)?)).then_some(Ask::Neighbour)
            }
            (ICMPV6, ECHO_REQUEST_V6) if for_us && self.answers_for_gateway => {
                self.is_server_v6(ip6(head, 38)).then_some(Ask::EchoV6)
            }
            _ => None,
        }
    }

    /// The MAC address that is ours alone: frames to it go to [`Services::handle`](super::Services::handle), and to no
    /// port whatever it says.
    pub fn claims_mac(&self) -> Option<MacAddr> {
        self.answers_for_gateway.then_some(self.server_mac)
    }

    /// Whether the frame that begins with `head` is to be handed to [`Services::handle`](super::Services::handle).
    /// `head` is the first [`WANTS_HEAD`](super::WANTS_HEAD) bytes or more, or the whole frame.
    #[inline]
    pub fn wants(&self, head: &[u8]) -> bool {
        let ours = self.answers_for_gateway && head.first_chunk() == Some(&self.server_mac.0);
        ours || self.asks(head).is_some()
    }

    /// Why a guest may not send the frame that begins with `head`, if it may not. `head` is the first
    /// [`FRAME_HEAD_MAX`](crate::frame::FRAME_HEAD_MAX) bytes, or the whole frame. Not to be asked for frames that come
    /// from the host.
    pub fn offence(&self, head: &[u8]) -> Option<Counter> {
        if MacAddr::source_of(head)? == self.server_mac {
            return Some(Counter::DropTxSpoofedServer);
        }
        // A priority tag is no VLAN: a receiver takes the frame as if it had none (IEEE 802.1Q 9.6).
        if ethernet::vlan_id(head).is_some_and(|id| id != 0) {
            return None;
        }
        match ethernet::network(head)? {
            (TYPE_ARP, at) => {
                let claims = arp::Packet::parse(head, at).is_some_and(|packet| self.is_server_v4(Some(packet.sender)));
                claims.then_some(Counter::DropTxSpoofedServer)
            }
            (TYPE_IPV4, at) if self.v4.is_some() => self.offence_v4(head, at),
            (TYPE_IPV6, at) if self.v6.is_some() => self.offence_v6(head, at),
            _ => None,
        }
    }

    fn offence_v4(&self, head: &[u8], at: usize) -> Option<Counter> {
        if self.is_server_v4(ip4(head, at + 12)) {
            return Some(Counter::DropTxSpoofedServer);
        }
        if *head.get(at + 9)? != UDP {
            return None;
        }
        let layers = ip::layers(head).filter(|layers| is_first(head, layers))?;
        (be16(head, layers.transport + 2)? == DHCP_CLIENT).then_some(Counter::DropTxRogueServer)
    }

    fn offence_v6(&self, head: &[u8], at: usize) -> Option<Counter> {
        if self.is_server_v6(ip6(head, at + 8)) {
            return Some(Counter::DropTxSpoofedServer);
        }
        // A message that is hidden behind more headers than can be seen is not let through (RFC 7113 2).
        let Some(layers) = ip::layers(head) else { return Some(Counter::DropTxRogueServer) };
        if !is_first(head, &layers) {
            return None;
        }
        let is_rogue = match layers.protocol {
            UDP => be16(head, layers.transport + 2)? == DHCP6_CLIENT,
            ICMPV6 => match *head.get(layers.transport)? {
                ndp::NEIGHBOUR_ADVERTISEMENT if self.is_server_v6(ndp::target(head.get(layers.transport..)?)) => {
                    return Some(Counter::DropTxSpoofedServer);
                }
                kind => matches!(kind, ndp::ROUTER_ADVERTISEMENT | REDIRECT),
            },
            protocol => layers.fragment && EXTENSIONS.contains(&protocol),
        };
        is_rogue.then_some(Counter::DropTxRogueServer)
    }
}

/// Whether the packet is none of a fragmented one's later parts, which have no header to be judged by.
fn is_first(head: &[u8], layers: &Layers) -> bool {
    let offset = match layers.version {
        Version::V4 => be16(head, layers.network + 6).map(|word| word & 0x1fff),
        // The header of the fragment ends where the transport's begins; its offset is in the third and fourth byte.
        Version::V6 => be16(head, layers.transport.saturating_sub(6)).map(|word| word >> 3),
    };
    !layers.fragment || offset == Some(0)
}
