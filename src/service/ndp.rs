//! Neighbour discovery (RFC 4861): router advertisements, and who has the server's addresses.

use std::net::Ipv6Addr;

use super::packet::{Ends, NDP_HOP_LIMIT};
use super::settings::{Domain, V6};
use crate::frame::ethernet::MacAddr;
use crate::frame::ndp::{self, NEIGHBOUR_ADVERTISEMENT, ROUTER_ADVERTISEMENT, SOURCE_LINK_LAYER, TARGET_LINK_LAYER};

/// Types of options (RFC 4861 4.6; 25 and 31: RFC 8106).
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const DNS_SERVERS: u8 = 25;
const DNS_SEARCH: u8 = 31;
/// A lifetime that never ends. Nothing here changes while the network is there, so nobody needs to be told again.
const FOREVER: [u8; 4] = [0xff; 4];
/// The hop limit that hosts are told to use.
const HOP_LIMIT: u8 = 64;
/// There is more to be asked of DHCPv6.
const OTHER_CONFIGURATION: u8 = 0x40;
/// On-link, and good for making addresses.
const PREFIX_FLAGS: u8 = 0xc0;
const PREFIX_LEN: u8 = 64;
/// Flags of a neighbour advertisement: router, solicited, override.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// All hosts on the link.
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Where frames to all hosts on the link go (RFC 2464 7).
pub(super) const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// A message of ICMPv6 whose checksum is right, and where it is from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) from_mac: MacAddr,
    pub(super) from: Ipv6Addr,
    pub(super) to: Ipv6Addr,
    pub(super) hop_limit: u8,
    /// From its type on.
    pub(super) bytes: &'a [u8],
}

impl Message<'_> {
    /// Whether it may be heard at all: it comes from the link, and its options are whole (RFC 4861 6.1.1, 7.1.1).
    fn is_valid(&self) -> bool {
        let &[kind, 0, ..] = self.bytes else { return false };
        let Some(mut at) = ndp::options_start(kind) else { return false };
        loop {
            match ndp::option(self.bytes, at) {
                // Who has no address yet is not to be found by one.
                Ok(Some(option)) if option[0] == SOURCE_LINK_LAYER && self.from.is_unspecified() => return false,
                Ok(Some(option)) => at += option.len(),
                Ok(None) => return self.hop_limit == NDP_HOP_LIMIT,
                Err(ndp::Malformed) => return false,
            }
        }
    }
}

/// What a router advertisement says, made once.
pub(super) fn advertisement_options(mac: MacAddr, v6: &V6) -> Vec<u8> {
    let mut options = link_layer_address(SOURCE_LINK_LAYER, mac).to_vec();
    if let Some(mtu) = v6.mtu {
        options.extend_from_slice(&[MTU, 1, 0, 0, 0, 0]);
        options.extend_from_slice(&mtu.to_be_bytes());
    }
    if let Some(prefix) = v6.prefix {
        options.extend_from_slice(&[PREFIX, 4, PREFIX_LEN, PREFIX_FLAGS]);
        // Valid, and preferred.
        options.extend_from_slice(&[FOREVER, FOREVER, [0; 4]].concat());
        // What is behind the prefix is ignored, and zero.
        options.extend_from_slice(&prefix.octets()[..8]);
        options.extend_from_slice(&[0; 8]);
    }
    let servers: Vec<u8> = v6.dns.iter().flat_map(Ipv6Addr::octets).collect();
    option_with_lifetime(&mut options, DNS_SERVERS, &servers);
    option_with_lifetime(&mut options, DNS_SEARCH, &v6.search.iter().flat_map(Domain::encoded).collect::<Vec<u8>>());
    options
}

/// Appends an option of RFC 8106, padded to units of 8 bytes, unless there is nothing in it or too much for one.
fn option_with_lifetime(options: &mut Vec<u8>, kind: u8, data: &[u8]) {
    let units = 1 + data.len().div_ceil(8);
    if let (Ok(units), false) = (u8::try_from(units), data.is_empty()) {
        let end = options.len() + usize::from(units) * 8;
        options.extend_from_slice(&[kind, units, 0, 0]);
        options.extend_from_slice(&FOREVER);
        options.extend_from_slice(data);
        options.resize(end, 0);
    }
}

fn link_layer_address(kind: u8, mac: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [kind, 1, a, b, c, d, e, f]
}

/// A router advertisement to one host, or to all.
fn advertisement(ends: &Ends<Ipv6Addr>, v6: &V6, has_more: bool, options: &[u8]) -> Option<Vec<u8>> {
    let [high, low] = v6.router_lifetime.to_be_bytes();
    let flags = if has_more { OTHER_CONFIGURATION } else { 0 };
    // Times of reachability and retransmission are not ours to say.
    let rest = [&[0; 8], options].concat();
    ends.icmp(ROUTER_ADVERTISEMENT, [HOP_LIMIT, flags, high, low], &rest)
}

/// What tells all hosts of us without having been asked (RFC 4861 6.2.4).
pub(super) fn advertisement_to_all(mac: MacAddr, v6: &V6, has_more: bool) -> Option<Vec<u8>> {
    let ends = Ends { mac, to_mac: ALL_NODES_MAC, ip: v6.link_local, to_ip: ALL_NODES };
    advertisement(&ends, v6, has_more, &advertisement_options(mac, v6))
}

/// The answer to a router solicitation (RFC 4861 6.2.6); `None` when it is not valid.
pub(super) fn answer_router_solicitation(
    message: &Message<'_>,
    mac: MacAddr,
    v6: &V6,
    has_more: bool,
    options: &[u8],
) -> Option<Vec<u8>> {
    if !message.is_valid() {
        return None;
    }
    let (to_mac, to_ip) = reply_to(message);
    advertisement(&Ends { mac, to_mac, ip: v6.link_local, to_ip }, v6, has_more, options)
}

/// The answer to the question who has one of the server's addresses (RFC 4861 7.2.4); `None` when the question is not
/// valid.
pub(super) fn answer_neighbour_solicitation(message: &Message<'_>, mac: MacAddr, v6: &V6) -> Option<Vec<u8>> {
    let ip = ndp::target(message.bytes)?;
    // Someone without an address is about to take one, and asks the group of those who may have it.
    let is_probe = message.from.is_unspecified();
    if !message.is_valid() || (is_probe && !message.to.is_multicast()) {
        return None;
    }
    let (to_mac, to_ip) = reply_to(message);
    let router = if v6.router_lifetime > 0 { ROUTER } else { 0 };
    let flags = router | OVERRIDE | if is_probe { 0 } else { SOLICITED };
    let rest = [ip.octets().as_slice(), &link_layer_address(TARGET_LINK_LAYER, mac)].concat();
    Ends { mac, to_mac, ip, to_ip }.icmp(NEIGHBOUR_ADVERTISEMENT, [flags, 0, 0, 0], &rest)
}

/// Whom to answer: everyone, when the sender has no address yet.
fn reply_to(message: &Message<'_>) -> (MacAddr, Ipv6Addr) {
    if message.from.is_unspecified() { (ALL_NODES_MAC, ALL_NODES) } else { (message.from_mac, message.from) }
}
