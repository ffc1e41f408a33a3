//! Host-only: nothing a guest sends leaves the subnet, and nothing with a foreign source enters.
//!
//! The host's kernel is on the other side of the network's tap, and may route. What it may do with a frame is therefore
//! decided here, whatever its `ip_forward`, its firewall and its routes say. [`SubnetFilter::check_guest`] is asked for
//! what guests send towards the host, [`SubnetFilter::check_host`] for what the host sends into the network.
//!
//! What a guest sends passes when no router could take it further:
//!
//! * unicast to an address of the subnet, and to one of the host's own if the frame is for the host, which may have a
//!   route to a part of the subnet; the subnet's broadcast and 255.255.255.255;
//! * multicast to groups that stay on their link whatever their TTL: 224.0.0.0/24 (RFC 5771, 4), ff01::/16 and
//!   ff02::/16 (RFC 4291, 2.7). Other groups, 239.0.0.0/8 among them, are for multicast routers to pass on, except with
//!   a TTL of one, which is what most programs send with: a router that took such a packet would have to drop it.
//! * never with a source route (LSRR, SSRR) or a routing header: there the destination is only the next stop.
//!
//! Sources are of the subnet too, or link-local (IPv6 alone: Linux routes 169.254.0.0/16), or unspecified where that is
//! how addresses are sought: with 0.0.0.0 for DHCP and IGMP, with `::` to groups that stay. ARP asks and tells of the
//! subnet alone. The host's own addresses, the first of each subnet, are no guest's: neither as a source nor as what a
//! guest says that it has, whatever else it is held to. There is nothing but ARP and IP, and no VLAN, so that no other
//! protocol that the host may speak is reached.
//!
//! No state; a verdict depends on the frame alone. Packets inside of packets (tunnels) are not looked into: the host
//! would have to be the tunnel's end.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::config::{Subnet4, Subnet6};
use crate::frame::arp::Arp;
use crate::frame::dhcp;
use crate::frame::ethernet::{self, MacAddr, TYPE_ARP, TYPE_IPV4, TYPE_IPV6};
use crate::frame::ip::{self, Chain, HEADER_V4_LEN, HeaderV4, HeaderV6, ICMPV6};
use crate::frame::ndp;
use crate::metrics::Counter;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

/// The filter of one network.
#[derive(Clone, Debug)]
pub struct SubnetFilter {
    v4: Subnet4,
    v6: Vec<Subnet6>,
    /// The host's MAC address.
    host: MacAddr,
}

/// A packet or ARP message that is whole enough to be judged.
enum Packet {
    Arp(Arp),
    V4(HeaderV4, usize),
    V6(HeaderV6, usize),
}

impl SubnetFilter {
    /// A filter for a network of these addresses, on which the host has the MAC address `host`.
    pub fn new(v4: Subnet4, v6: Vec<Subnet6>, host: MacAddr) -> Self {
        Self { v4, v6, host }
    }

    /// Judges what a guest sends, by a private copy of its first bytes: as many as for
    /// [`Guard::check`](super::guard::Guard::check).
    ///
    /// # Errors
    /// The counter of the reason why the frame must be dropped.
    pub fn check_guest(&self, head: &[u8]) -> Result<(), Counter> {
        match packet(head)? {
            Packet::Arp(arp) if self.is_own_v4(arp.sender) => Err(Counter::DropTxSpoofedNeighbour),
            Packet::Arp(arp) => self.check_arp(&arp),
            Packet::V4(header, _) if self.is_own_v4(header.source) => Err(Counter::DropTxSpoofedIp),
            Packet::V6(header, _) if self.is_own_v6(header.source) => Err(Counter::DropTxSpoofedIp),
            Packet::V4(header, at) => {
                check_options_v4(&head[at + HEADER_V4_LEN..header.transport])?;
                self.check_source_v4(head, &header)?;
                self.check_destination_v4(head, &header)
            }
            Packet::V6(header, at) => {
                let chain = ip::chain_v6(head, at).filter(|chain| !chain.is_routed);
                let chain = chain.ok_or(Counter::DropTxBadPacket)?;
                if advertised(head, &header, &chain).is_some_and(|target| self.is_own_v6(target)) {
                    return Err(Counter::DropTxSpoofedNeighbour);
                }
                self.check_source_v6(&header)?;
                self.check_destination_v6(head, &header)
            }
        }
    }

    /// Judges what the host sends into the network: by its source alone, which is foreign when the host routes.
    ///
    /// # Errors
    /// The counter of the reason why the frame must be dropped.
    pub fn check_host(&self, head: &[u8]) -> Result<(), Counter> {
        match packet(head)? {
            Packet::Arp(arp) => self.check_arp(&arp),
            Packet::V4(header, _) => self.check_source_v4(head, &header),
            Packet::V6(header, _) => self.check_source_v6(&header),
        }
    }

    fn is_own_v4(&self, address: Ipv4Addr) -> bool {
        address == self.v4.own()
    }

    fn is_own_v6(&self, address: Ipv6Addr) -> bool {
        self.v6.iter().any(|prefix| prefix.own() == address)
    }

    /// The sender of a probe is unspecified (RFC 5227).
    fn check_arp(&self, arp: &Arp) -> Result<(), Counter> {
        if !arp.sender.is_unspecified() && !self.v4.contains(arp.sender) {
            return Err(Counter::DropTxForeignSource);
        }
        if !self.v4.contains(arp.target) {
            return Err(Counter::DropTxOutsideSubnet);
        }
        Ok(())
    }

    fn check_source_v4(&self, head: &[u8], header: &HeaderV4) -> Result<(), Counter> {
        if self.v4.contains(header.source) || header.source.is_unspecified() && dhcp::may_lack_address(head, header) {
            Ok(())
        } else {
            Err(Counter::DropTxForeignSource)
        }
    }

    fn is_for_host(&self, head: &[u8]) -> bool {
        MacAddr::destination_of(head) == Some(self.host)
    }

    fn check_destination_v4(&self, head: &[u8], header: &HeaderV4) -> Result<(), Counter> {
        let to = header.destination;
        let is_inside =
            self.v4.contains(to) && (!self.is_for_host(head) || self.is_own_v4(to) || to == self.v4.broadcast());
        let stays = is_inside
            || to == Ipv4Addr::BROADCAST
            || match to.octets() {
                [224, 0, 0, _] => true,
                _ => to.is_multicast() && header.ttl <= 1,
            };
        if stays { Ok(()) } else { Err(Counter::DropTxOutsideSubnet) }
    }

    fn check_source_v6(&self, header: &HeaderV6) -> Result<(), Counter> {
        let from = header.source;
        if self.is_inside_v6(from) || from.is_unspecified() && is_to_link_group(header) {
            Ok(())
        } else {
            Err(Counter::DropTxForeignSource)
        }
    }

    fn check_destination_v6(&self, head: &[u8], header: &HeaderV6) -> Result<(), Counter> {
        let to = header.destination;
        let may_be_hosts = to.is_unicast_link_local() || self.is_own_v6(to);
        let is_inside = self.is_inside_v6(to) && (!self.is_for_host(head) || may_be_hosts);
        let stays = is_inside || is_to_link_group(header);
        if stays { Ok(()) } else { Err(Counter::DropTxOutsideSubnet) }
    }

    fn is_inside_v6(&self, address: Ipv6Addr) -> bool {
        address.is_unicast_link_local() || self.v6.iter().any(|prefix| prefix.contains(address))
    }
}

/// The address that a neighbour advertisement speaks for. In fragments hosts ignore it (RFC 6980).
fn advertised(head: &[u8], header: &HeaderV6, chain: &Chain) -> Option<Ipv6Addr> {
    let message = head.get(chain.transport..header.end.min(head.len()))?;
    let is_advertisement = chain.protocol == ICMPV6 && message.first() == Some(&ndp::NEIGHBOUR_ADVERTISEMENT);
    if is_advertisement { ndp::target(message) } else { None }
}

/// Whether it goes to a group that no router passes it on to: one of the interface or the link, whatever the flags
/// between prefix and scope say; or any, when it may not pass a router.
fn is_to_link_group(header: &HeaderV6) -> bool {
    let is_of_link = matches!(header.destination.segments()[0] & 0xf, 1 | 2);
    header.destination.is_multicast() && (is_of_link || header.hop_limit <= 1)
}

fn packet(head: &[u8]) -> Result<Packet, Counter> {
    if head.len() < ethernet::HEADER_LEN {
        return Err(Counter::DropTxRunt);
    }
    if ethernet::is_tagged(head) {
        return Err(Counter::DropTxTagged);
    }
    match ethernet::network(head) {
        Some((TYPE_ARP, at)) => Arp::parse(head, at).map(Packet::Arp).ok_or(Counter::DropTxBadPacket),
        Some((TYPE_IPV4, at)) => {
            let header = HeaderV4::parse(head, at).ok_or(Counter::DropTxBadPacket)?;
            let is_whole = usize::from(header.total_len) >= header.transport - at;
            if is_whole { Ok(Packet::V4(header, at)) } else { Err(Counter::DropTxBadPacket) }
        }
        Some((TYPE_IPV6, at)) => {
            HeaderV6::parse(head, at).map(|header| Packet::V6(header, at)).ok_or(Counter::DropTxBadPacket)
        }
        _ => Err(Counter::DropTxNotIp),
    }
}

/// Refuses source routes, and options that go on beyond the header: who knows what the host makes of them.
fn check_options_v4(mut options: &[u8]) -> Result<(), Counter> {
    // Each round takes a byte at least.
    while let [kind, rest @ ..] = options {
        options = match (*kind, rest.first()) {
            (OPTION_END, _) => return Ok(()),
            (OPTION_NOP, _) => rest,
            (OPTION_LOOSE_SOURCE_ROUTE | OPTION_STRICT_SOURCE_ROUTE, _) | (_, None | Some(0 | 1)) => {
                return Err(Counter::DropTxBadPacket);
            }
            (_, Some(&len)) => options.get(usize::from(len)..).ok_or(Counter::DropTxBadPacket)?,
        };
    }
    Ok(())
}
