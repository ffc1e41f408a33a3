//! Which frames are for a service, and which a guest may not send, from their first bytes.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::settings::Settings;
use crate::frame::arp::Arp;
use crate::frame::dhcp::{SERVER_PORT, SERVER_PORT_V6};
use crate::frame::ethernet::{self, HEADER_LEN, MacAddr, TYPE_ARP, TYPE_IPV4, TYPE_IPV6, be16};
use crate::frame::ip::{self, Fragment, HeaderV4, HeaderV6, ICMP, ICMPV6, UDP};
use crate::frame::ndp;
use crate::metrics::Counter;

pub(super) const ECHO_REQUEST: u8 = 8;
pub(super) const ECHO_REQUEST_V6: u8 = 128;
pub(super) const ECHO_REPLY_V6: u8 = 129;
/// Where clients of DHCPv6 look for servers, and hosts for routers: ff02::1:2 and ff02::2.
const ALL_DHCP6_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 1, 0, 2]);
const ALL_ROUTERS_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 2]);
/// IPv4's version, and a header without options.
const PLAIN_V4: u8 = 0x45;

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
                let arp = Arp::parse(head, HEADER_LEN)?;
                self.is_server_v4(Some(arp.target)).then_some(Ask::Arp)
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
            UDP if for_us || to.is_broadcast() => (be16(head, 36)? == SERVER_PORT).then_some(Ask::Dhcp),
            ICMP if for_us && self.answers_for_gateway && self.is_server_v4(ip4(head, 30)) => {
                (*head.get(34)? == ECHO_REQUEST).then_some(Ask::Echo)
            }
            _ => None,
        }
    }

    fn asks_v6(&self, head: &[u8], to: MacAddr) -> Option<Ask> {
        let for_us = to == self.server_mac;
        match (*head.get(20)?, *head.get(54)?) {
            (UDP, _) if for_us || to == ALL_DHCP6_MAC => (be16(head, 56)? == SERVER_PORT_V6).then_some(Ask::Dhcp6),
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

    /// The MAC address that is ours alone: what goes to it is for us, or for the gateway that we answer for.
    pub fn claims_mac(&self) -> Option<MacAddr> {
        self.answers_for_gateway.then_some(self.server_mac)
    }

    /// Whether the frame that begins with `head` is to be handed to [`Services::handle`](super::Services::handle).
    /// `head` is the first [`WANTS_HEAD`](super::WANTS_HEAD) bytes or more, or the whole frame.
    #[inline]
    pub fn wants(&self, head: &[u8]) -> bool {
        self.asks(head).is_some()
    }

    /// Whether the frame that begins with `head` is a DHCP client's, to our server. The same bytes are needed.
    pub fn is_dhcp(&self, head: &[u8]) -> bool {
        self.asks(head) == Some(Ask::Dhcp)
    }

    /// Why a guest may not send the frame that begins with `head`, if it may not: it speaks for the server. What other
    /// servers and routers would say is the business of the port's [`Guard`](crate::switch::guard::Guard). `head` is
    /// the first [`FRAME_HEAD_MAX`](crate::frame::FRAME_HEAD_MAX) bytes, or the whole frame. Not to be asked for frames
    /// that come from the host.
    pub fn offence(&self, head: &[u8]) -> Option<Counter> {
        if MacAddr::source_of(head)? == self.server_mac {
            return Some(Counter::DropTxSpoofedServer);
        }
        // A priority tag is no VLAN: a receiver takes the frame as if it had none (IEEE 802.1Q 9.6).
        if ethernet::vlan_id(head).is_some_and(|id| id != 0) {
            return None;
        }
        let is_spoofed = match ethernet::network(head)? {
            (TYPE_ARP, at) => self.is_server_v4(Arp::parse(head, at).map(|arp| arp.sender)),
            (TYPE_IPV4, at) => self.is_server_v4(HeaderV4::parse(head, at).map(|header| header.source)),
            (TYPE_IPV6, at) if self.v6.is_some() => {
                // A message that is hidden behind more headers than can be seen is not let through (RFC 7113 2).
                let Some(speaks_for) = speaks_for_v6(head, at) else { return Some(Counter::DropTxBadPacket) };
                speaks_for.into_iter().any(|address| self.is_server_v6(address))
            }
            _ => return None,
        };
        is_spoofed.then_some(Counter::DropTxSpoofedServer)
    }
}

/// The addresses that the sender of an IPv6 packet says it has: its source, and the target of an advertisement. `None`
/// when not all headers can be seen.
fn speaks_for_v6(head: &[u8], at: usize) -> Option<[Option<Ipv6Addr>; 2]> {
    let (header, chain) = (HeaderV6::parse(head, at)?, ip::chain_v6(head, at)?);
    if chain.protocol != ICMPV6 || chain.fragment == Fragment::Later {
        return Some([Some(header.source), None]);
    }
    let message = head.get(chain.transport..)?;
    let is_advertisement = *message.first()? == ndp::NEIGHBOUR_ADVERTISEMENT;
    Some([Some(header.source), if is_advertisement { Some(ndp::target(message)?) } else { None }])
}
