//! MAC-NAT: many guests behind the one MAC address that a Wi-Fi access point lets a NIC have.
//!
//! Theory of operation. Every frame that leaves through the NIC has the NIC's address as its source, and every unicast
//! frame that comes has it as its destination. Which guest such a frame is for is told by its IP destination, so
//! [`MacNat::outgoing`] learns which guest has which IP address, from whatever guests send: ARP, IP sources, neighbour
//! advertisements; and [`MacNat::incoming`] also from the DHCPACKs that servers send them. `owners.rs` keeps that
//! within bounds, so that no guest pushes out what is known of another.
//!
//! Outgoing, the guest's MAC address is replaced wherever a neighbour would take it from: the Ethernet source, ARP's
//! sender and target, neighbour discovery's link-layer address options. Checksums follow (RFC 1624). A DHCP request
//! keeps `chaddr`, by which servers tell guests apart, and gets the broadcast flag, so that the answer comes by
//! broadcast instead of to a MAC address that the access point does not know (RFC 2131, 4.1).
//!
//! Incoming, broadcast and multicast pass as they are. A unicast frame gets its guest's address as its destination, and
//! so does the target of an ARP message. A DHCP answer that is unicast nevertheless goes by `chaddr`. What is for no
//! guest is the host's own ([`Destination::NotOurs`]); so is everything for an address that the host has
//! ([`MacNat::set_host_addresses`]), which no guest can claim. Nor can a guest claim an address that is not on the link
//! with the host's: what comes for such a one is on its way through the host to somebody else. Unless a DHCP server
//! gave it, or the host has no prefix of its family there, so that nothing is known of the link. Two frames are given
//! back the group address that they lost on their way: the answer to an ARP probe (RFC 5227), which names no address
//! that could be looked up, goes to all, since it warns of a conflict; and so does a packet for a group, which some
//! access points send as unicast.
//!
//! Duplicate addresses. Guests find each other's on the network itself, where nothing is rewritten. A guest that uses
//! an address that another has used within 30 seconds is not let out with it ([`Counter::DropTxAddressTaken`]): the
//! first keeps its traffic. Seeking an address, that is an ARP probe or a neighbour solicitation from the unspecified
//! address, claims nothing and always passes.
//!
//! Limits. ARP, IPv4 and IPv6 alone can be told apart by address, so nothing else leaves; above all no EAPOL, which
//! would end the NIC's own association. VLANs and DHCP relays are refused, and so are redirects, which would name a
//! neighbour by an address that this does not know. Protocols that carry MAC addresses deeper inside (DHCPv6's DUID
//! among them) are left alone; there it is a name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::PortId;
use super::owners::{Claim, Owner, Owners};
use crate::frame::arp::{self, Arp};
use crate::frame::checksum::{self, PartialChecksum, UDP_CHECKSUM};
use crate::frame::dhcp::{self, Dhcp};
use crate::frame::ethernet::{self, MacAddr, TYPE_ARP, TYPE_IPV4, TYPE_IPV6};
use crate::frame::ip::{self, Chain, Fragment, HeaderV4, HeaderV6, ICMPV6, UDP};
use crate::frame::ndp;
use crate::metrics::Counter;

/// IP addresses that are remembered of one port.
pub const ADDRESSES_PER_PORT_MAX: usize = 32;
/// MAC addresses that are remembered of one port.
pub const STATIONS_PER_PORT_MAX: usize = 16;

const SOURCE: usize = 6;
const UDP_HEADER_LEN: usize = 8;
/// Where the checksum is in an ICMPv6 header.
const ICMPV6_CHECKSUM: u16 = 2;

/// Where a frame that came from the NIC belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To this port; the frame's destination is now a guest's address.
    Guest(PortId),
    /// To all guests; the frame's destination is a group.
    Group,
    /// To the host, or to nobody here. The frame is as it was.
    NotOurs,
}

/// The addresses that the host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAddresses {
    /// All of them. No guest may use them.
    pub own: Vec<IpAddr>,
    /// Those on the NIC, with the prefix of those that are on its link with them.
    pub on_link: Vec<IpNet>,
}

/// The translation of one NIC. See the module's theory of operation.
#[derive(Debug)]
pub struct MacNat {
    own: MacAddr,
    host: HostAddresses,
    addresses: Owners<IpAddr>,
    /// Which port a MAC address is behind.
    stations: Owners<MacAddr>,
}

/// Where a checksum is in the frame, unless it is left to be completed or there is none.
type ChecksumAt = Option<usize>;

impl MacNat {
    /// A translation for the NIC with the address `own`.
    pub fn new(own: MacAddr) -> Self {
        Self {
            own,
            host: HostAddresses::default(),
            addresses: Owners::new(ADDRESSES_PER_PORT_MAX),
            stations: Owners::new(STATIONS_PER_PORT_MAX),
        }
    }

    /// The NIC has this address from now on. What guests are known by stays.
    pub fn set_own(&mut self, own: MacAddr) {
        self.own = own;
    }

    /// The host's addresses, instead of those before.
    pub fn set_host_addresses(&mut self, addresses: HostAddresses) {
        self.host = addresses;
    }

    /// Forgets a port that has left.
    pub fn remove_port(&mut self, port: PortId) {
        self.addresses.remove_port(port);
        self.stations.remove_port(port);
    }

    /// Rewrites a frame that port `from` sends out through the NIC. `partial` is the checksum that is left to be
    /// completed, if the frame has one; `now_s` is a monotonic clock in seconds.
    ///
    /// # Errors
    /// The counter of the reason why the frame must be dropped; it may be half rewritten then.
    pub fn outgoing(
        &mut self,
        frame: &mut [u8],
        from: PortId,
        partial: Option<PartialChecksum>,
        now_s: u32,
    ) -> Result<(), Counter> {
        let source = MacAddr::source_of(frame).filter(|_| frame.len() >= ethernet::HEADER_LEN);
        let source = source.ok_or(Counter::DropTxRunt)?;
        if !source.is_station() {
            return Err(Counter::DropTxBadSource);
        }
        if source == self.own {
            return Err(Counter::DropTxSpoofedMac);
        }
        if ethernet::is_tagged(frame) {
            return Err(Counter::DropTxTagged);
        }
        let sender = Owner { port: from, mac: source, seen_s: now_s, is_given: false };
        match ethernet::network(frame) {
            Some((TYPE_ARP, at)) => self.outgoing_arp(frame, at, sender)?,
            Some((TYPE_IPV4, at)) => self.outgoing_v4(frame, at, sender, partial)?,
            Some((TYPE_IPV6, at)) => self.outgoing_v6(frame, at, sender, partial)?,
            _ => return Err(Counter::DropTxNotIp),
        }
        // As in the switch, a MAC address is behind the port that used it last.
        self.stations.claim(source, sender, Claim::Given);
        put(frame, SOURCE, &self.own.0);
        Ok(())
    }

    fn outgoing_arp(&mut self, frame: &mut [u8], at: usize, sender: Owner) -> Result<(), Counter> {
        let arp = Arp::parse(frame, at).ok_or(Counter::DropTxBadPacket)?;
        if !arp.sender.is_unspecified() {
            self.claim(arp.sender.into(), sender)?;
        }
        put(frame, at + arp::SENDER_MAC, &self.own.0);
        // An announcement may name its sender as the target as well.
        let target = arp.target_mac;
        let is_guest = target == arp.sender_mac || target == sender.mac;
        if is_guest || self.stations.find(target, sender.seen_s).is_some() {
            put(frame, at + arp::TARGET_MAC, &self.own.0);
        }
        Ok(())
    }

    fn outgoing_v4(
        &mut self,
        frame: &mut [u8],
        at: usize,
        sender: Owner,
        partial: Option<PartialChecksum>,
    ) -> Result<(), Counter> {
        let header = HeaderV4::parse(frame, at).ok_or(Counter::DropTxBadPacket)?;
        if !header.source.is_unspecified() {
            self.claim(header.source.into(), sender)?;
        }
        if header.protocol != UDP || header.fragment == Fragment::Later {
            return Ok(());
        }
        let (_, destination) = ip::ports(frame, header.transport).ok_or(Counter::DropTxBadPacket)?;
        if destination == dhcp::SERVER_PORT {
            ask_for_broadcast(frame, header.transport, sender.mac, partial)?;
        }
        Ok(())
    }

    fn outgoing_v6(
        &mut self,
        frame: &mut [u8],
        at: usize,
        sender: Owner,
        partial: Option<PartialChecksum>,
    ) -> Result<(), Counter> {
        let header = HeaderV6::parse(frame, at).ok_or(Counter::DropTxBadPacket)?;
        let chain = ip::chain_v6(frame, at).ok_or(Counter::DropTxBadPacket)?;
        if !header.source.is_unspecified() {
            self.claim(header.source.into(), sender)?;
        }
        if chain.protocol != ICMPV6 || chain.fragment == Fragment::Later {
            return Ok(());
        }
        let kind = *frame.get(chain.transport).ok_or(Counter::DropTxBadPacket)?;
        match ndp::options_start(kind) {
            None => Ok(()),
            Some(_) if kind == ndp::REDIRECT => Err(Counter::DropTxRogueServer),
            Some(_) if chain.fragment != Fragment::None => Err(Counter::DropTxBadPacket),
            Some(options) => self.outgoing_discovery(frame, &header, &chain, options, sender, partial),
        }
    }

    fn outgoing_discovery(
        &mut self,
        frame: &mut [u8],
        header: &HeaderV6,
        chain: &Chain,
        options: usize,
        sender: Owner,
        partial: Option<PartialChecksum>,
    ) -> Result<(), Counter> {
        let (start, mut at) = (chain.transport, options);
        let kind = frame[start];
        let message = frame.get_mut(start..header.end).ok_or(Counter::DropTxBadPacket)?;
        let checksum = checksum_at(start, ICMPV6_CHECKSUM, partial).map(|at| at - start);
        while let Some(address) = ndp::link_layer_address(message, at).map_err(|_| Counter::DropTxBadPacket)? {
            put_summed(message, address, &self.own.0, checksum);
            at = address + self.own.0.len();
        }
        match ndp::target(message) {
            Some(target) if kind == ndp::NEIGHBOUR_ADVERTISEMENT => self.claim(target.into(), sender),
            _ => Ok(()),
        }
    }

    fn claim(&mut self, address: IpAddr, sender: Owner) -> Result<(), Counter> {
        if address.is_multicast() || address.is_loopback() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(Counter::DropTxBadPacket);
        }
        if !self.is_on_link(address) && !self.was_given(address, sender) {
            return Err(Counter::DropTxForeignSource);
        }
        let is_free = !self.is_hosts(address) && self.addresses.claim(address, sender, Claim::Used);
        if is_free { Ok(()) } else { Err(Counter::DropTxAddressTaken) }
    }

    fn is_hosts(&self, address: IpAddr) -> bool {
        self.host.own.contains(&address)
    }

    /// Whether neighbours on the NIC's link may have an address, as far as the host's own tell: one that came without a
    /// prefix says nothing, and then any may.
    fn is_on_link(&self, address: IpAddr) -> bool {
        let is_of_family = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4() && !is_link_local(net.addr());
        let known = || self.host.on_link.iter().filter(is_of_family);
        let is_known = known().next().is_some() && known().all(|net| net.prefix_len() < net.max_prefix_len());
        !is_known || is_link_local(address) || known().any(|net| net.contains(&address))
    }

    /// Whether a server gave an address to this very guest.
    fn was_given(&self, address: IpAddr, guest: Owner) -> bool {
        let owner = self.addresses.find(address, guest.seen_s).filter(|owner| owner.is_given);
        owner.is_some_and(|owner| owner.port == guest.port && owner.mac == guest.mac)
    }

    /// Rewrites a frame that came from the NIC, and says where it belongs. `now_s` is a monotonic clock in seconds. Not
    /// for frames that the host itself sends: what has the NIC's address as its source has come back from the air.
    ///
    /// # Errors
    /// The counter of the reason why the frame must be dropped.
    pub fn incoming(&mut self, frame: &mut [u8], now_s: u32) -> Result<Destination, Counter> {
        let destination = MacAddr::destination_of(frame).filter(|_| frame.len() >= ethernet::HEADER_LEN);
        let destination = destination.ok_or(Counter::DropTxRunt)?;
        if ethernet::is_tagged(frame) {
            return Err(Counter::DropTxTagged);
        }
        let is_reflected = MacAddr::source_of(frame) == Some(self.own);
        if is_reflected || !destination.is_group() && destination != self.own {
            return Ok(Destination::NotOurs);
        }
        let network = ethernet::network(frame);
        let client = match network {
            Some((TYPE_IPV4, at)) => self.client_of_answer(frame, at, now_s),
            _ => None,
        };
        if destination.is_group() {
            return Ok(Destination::Group);
        }
        let found = match network {
            Some((TYPE_ARP, at)) => self.incoming_arp(frame, at, now_s),
            Some((TYPE_IPV4, _)) if client.is_some() => client.map(Receiver::Guest),
            Some((TYPE_IPV4, at)) => HeaderV4::parse(frame, at).and_then(|header| match group_v4(header.destination) {
                Some(group) => Some(Receiver::Group(group)),
                None => self.owner(header.destination.into(), now_s).map(Receiver::Guest),
            }),
            Some((TYPE_IPV6, at)) => HeaderV6::parse(frame, at).and_then(|header| match group_v6(header.destination) {
                Some(group) => Some(Receiver::Group(group)),
                None => self.owner(header.destination.into(), now_s).map(Receiver::Guest),
            }),
            _ => None,
        };
        Ok(match found {
            Some(Receiver::Guest(owner)) => {
                put(frame, 0, &owner.mac.0);
                Destination::Guest(owner.port)
            }
            Some(Receiver::Group(group)) => {
                put(frame, 0, &group.0);
                Destination::Group
            }
            None => Destination::NotOurs,
        })
    }

    /// The guest that has an address: what the host has may have changed after a guest used it.
    fn owner(&self, address: IpAddr, now_s: u32) -> Option<Owner> {
        let owner = self.addresses.find(address, now_s).filter(|_| !self.is_hosts(address));
        owner.filter(|owner| owner.is_given || self.is_on_link(address))
    }

    fn incoming_arp(&self, frame: &mut [u8], at: usize, now_s: u32) -> Option<Receiver> {
        let arp = Arp::parse(frame, at)?;
        if arp.target.is_unspecified() && arp.operation == arp::REPLY {
            return Some(Receiver::Group(MacAddr::BROADCAST));
        }
        let owner = self.owner(arp.target.into(), now_s)?;
        if arp.target_mac == self.own {
            put(frame, at + arp::TARGET_MAC, &owner.mac.0);
        }
        Some(Receiver::Guest(owner))
    }

    /// The guest that a DHCP server answers, whose lease is learned.
    fn client_of_answer(&mut self, frame: &[u8], at: usize, now_s: u32) -> Option<Owner> {
        let header = HeaderV4::parse(frame, at)?;
        let is_datagram = header.protocol == UDP && header.fragment == Fragment::None;
        let is_answer = is_datagram && ip::ports(frame, header.transport)?.1 == dhcp::CLIENT_PORT;
        if !is_answer {
            return None;
        }
        let message = frame.get(header.transport + UDP_HEADER_LEN..)?;
        let answer = Dhcp::parse(message).filter(|message| !message.is_request)?;
        let client = Owner { seen_s: now_s, ..self.stations.find(answer.client, now_s)? };
        let address = IpAddr::V4(answer.your);
        if dhcp::is_ack(message) && !address.is_unspecified() && !self.is_hosts(address) {
            self.addresses.claim(address, client, Claim::Given);
        }
        Some(client)
    }
}

/// Addresses that are on every link.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// For whom a unicast frame is.
enum Receiver {
    Guest(Owner),
    Group(MacAddr),
}

/// The Ethernet group of an IPv4 group (RFC 1112, 6.4).
fn group_v4(address: Ipv4Addr) -> Option<MacAddr> {
    let [_, b, c, d] = address.octets();
    match address {
        Ipv4Addr::BROADCAST => Some(MacAddr::BROADCAST),
        _ if address.is_multicast() => Some(MacAddr([0x01, 0x00, 0x5e, b & 0x7f, c, d])),
        _ => None,
    }
}

/// The Ethernet group of an IPv6 group (RFC 2464, 7).
fn group_v6(address: Ipv6Addr) -> Option<MacAddr> {
    let [.., a, b, c, d] = address.octets();
    address.is_multicast().then_some(MacAddr([0x33, 0x33, a, b, c, d]))
}

/// Sets the broadcast flag of the DHCP request in the datagram at `transport`. A client asks for itself: with another's
/// hardware address, an answer would be taken for that one's lease.
fn ask_for_broadcast(
    frame: &mut [u8],
    transport: usize,
    client: MacAddr,
    partial: Option<PartialChecksum>,
) -> Result<(), Counter> {
    let start = transport + UDP_HEADER_LEN;
    let message = frame.get(start..).and_then(Dhcp::parse).ok_or(Counter::DropTxBadPacket)?;
    if !message.is_request {
        return Ok(());
    }
    if message.client != client {
        return Err(Counter::DropTxBadPacket);
    }
    let checksum = checksum_at(transport, UDP_CHECKSUM, partial);
    let is_none = |at: &usize| frame.get(*at..*at + 2) == Some(&[0, 0]);
    let checksum = checksum.filter(|at| !is_none(at));
    put_summed(frame, start + dhcp::FLAGS, &(message.flags | dhcp::BROADCAST).to_be_bytes(), checksum);
    // A sum of zero would mean that there is none (RFC 768).
    if let Some(field) = checksum.and_then(|at| frame.get_mut(at..at + 2))
        && field == [0, 0]
    {
        field.copy_from_slice(&[0xff, 0xff]);
    }
    Ok(())
}

/// Where the checksum of the transport header at `start` is; nowhere if it is left to be completed: what it holds then
/// does not cover the payload yet.
fn checksum_at(start: usize, offset: u16, partial: Option<PartialChecksum>) -> ChecksumAt {
    let is_left = partial.is_some_and(|left| usize::from(left.start) == start && left.offset == offset);
    (!is_left).then_some(start + usize::from(offset))
}

/// Replaces bytes. Does nothing when they do not lie inside the frame.
fn put(frame: &mut [u8], at: usize, new: &[u8]) {
    if let Some(bytes) = frame.get_mut(at..at + new.len()) {
        bytes.copy_from_slice(new);
    }
}

/// Replaces bytes that a checksum covers.
fn put_summed(frame: &mut [u8], at: usize, new: &[u8], checksum: ChecksumAt) {
    let Some(old) = frame.get(at..at + new.len()) else { return };
    if let Some(at) = checksum
        && let Some(field) = ethernet::be16(frame, at)
    {
        let updated = checksum::update(field, old, new).to_be_bytes();
        put(frame, at, &updated);
    }
    put(frame, at, new);
}
