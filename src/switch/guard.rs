//! Port security: a guest sends from its own addresses only, and plays no server.
//!
//! Theory of operation. Each port has a [`Guard`], which is asked for every frame of the port before the switch is, so
//! that a refused frame teaches nothing. It keeps what the port may use: its MAC address, the IPv4 addresses that it
//! was told with [`Guard::set_addresses`] and [`Guard::allow`], and the IPv6 addresses that the port claimed. What is
//! checked is up to the [`Settings`]:
//!
//! * `lock_mac`: the frame's source is the declared address or, without one, the first that the guest used and that is
//!   no other port's: neither declared for one nor the one that it is locked to.
//! * `lock_ip`: an IPv4 source is one of the port's addresses, or unspecified where it must be (DHCP, IGMP). An IPv6
//!   source is link-local or in a prefix of the network, and no other port's; unspecified only where an address is
//!   sought or groups are joined. ARP and neighbour discovery speak for the port's own addresses only, and say that
//!   they are at the MAC address that the frame comes from. So does ARP that probes whether an address is free
//!   (RFC 5227): echoed by a neighbour, it would say that it is not.
//! * `refuse_servers`: no DHCP answer, router advertisement or redirect, of either IP version.
//!
//! An IPv6 address belongs to the port that used it first, until the port leaves or claims so many others that it gives
//! up this one, which it has used least lately, or has only asked for. Asking whether anybody has it (duplicate address
//! detection, RFC 4862, 5.4) is using it, as RFC 6620 has it. As long as the port does no more than ask, nobody else
//! may ask or answer, for either would take the address from it; once it has said that it has the address, others'
//! questions pass, so that it can defend it. With `lock_mac`, an address that is made of a MAC address (EUI-64) is for
//! the port with that MAC address only. [`Claims`] is the set of all that are taken, shared by the ports of a network,
//! so two guards never allow the same address at the same time. It is locked when a port uses an address in a new way
//! or one that is not among its last [`CLAIMS_PER_PORT_MAX`], and when one is refused, not otherwise. Addresses of the
//! network's own routers are reserved in it, and so are declared MAC addresses.
//!
//! Limits. Up to two VLAN tags are looked through; more, and IP behind LLC and SNAP, are refused with `lock_ip` or
//! `refuse_servers`, since some receivers would see through them. VLANs are not told apart: an address is a port's in
//! all of them. A packet's headers must lie within the bytes that are seen, and with them a whole message of neighbour
//! discovery; a first fragment must hold all headers (RFC 7112), and neighbour discovery in fragments is refused, since
//! hosts ignore it (RFC 6980). An address that is made of no MAC address goes to whoever uses it first: a guest that
//! knows one which its neighbour will want can take it before, [`CLAIMS_PER_PORT_MAX`] of them. Nobody defends an
//! address that a port has asked for and not used since. Without `lock_ip`, any guest can answer for any other. MAC
//! addresses beyond an uplink are not known here: a guest may be locked to one, unless it was reserved. Those of ports
//! without `lock_mac` are not known either. `lock_mac` alone does not look into ARP: a verdict then depends on the
//! Ethernet header alone ([`Guard::looks_beyond_ethernet`]).

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Subnet6;
use crate::frame::arp::Arp;
use crate::frame::ethernet::{self, MacAddr, TYPE_ARP, TYPE_IPV4, TYPE_IPV6};
use crate::frame::ip::{self, Chain, Fragment, HeaderV4, HeaderV6, ICMP, ICMPV6, UDP};
use crate::frame::{dhcp, ndp};
use crate::metrics::Counter;

/// IPv4 addresses that one port may use at the same time.
pub const ADDRESSES_PER_PORT_MAX: usize = 16;
/// IPv6 addresses that one port holds at the same time: more than temporary addresses (RFC 8981) need.
pub const CLAIMS_PER_PORT_MAX: usize = 16;

/// ICMP type of a redirect.
const ICMP_REDIRECT: u8 = 5;
/// ICMP type of a router advertisement (RFC 1256).
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;

/// What a guard refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The port's MAC address, where it was declared.
    pub mac: Option<MacAddr>,
    /// Refuse other sources than the port's MAC address.
    pub lock_mac: bool,
    /// Refuse other sources than the port's IP addresses.
    pub lock_ip: bool,
    /// Refuse what only servers and routers send.
    pub refuse_servers: bool,
}

/// What the holder of an IPv6 address has done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// It has asked whether anybody else has it.
    Sought,
    /// It has said that it has it.
    Used,
}

/// The MAC and IPv6 addresses of one network that somebody has. Shared by the guards of its ports.
#[derive(Debug, Default)]
pub struct Claims(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// Those of declared ports, whether or not their guests are there.
    declared: HashSet<MacAddr>,
    /// Those that ports are locked to, and the server's.
    macs: HashSet<MacAddr>,
    addresses: HashMap<Ipv6Addr, Hold>,
}

impl Claims {
    /// Takes an address for the network's own router or server. `false` if somebody has it.
    pub fn reserve(&self, address: Ipv6Addr) -> bool {
        self.claim(address, Hold::Used)
    }

    /// From now on these are the addresses that are declared for ports: no other port is locked to one of them.
    pub fn set_declared(&self, macs: impl IntoIterator<Item = MacAddr>) {
        self.taken().declared = macs.into_iter().collect();
    }

    /// Takes a MAC address for a port, or for the network's own server. `false` if somebody has it.
    pub fn reserve_mac(&self, mac: MacAddr) -> bool {
        let mut taken = self.taken();
        !taken.declared.contains(&mac) && taken.macs.insert(mac)
    }

    fn release_mac(&self, mac: MacAddr) {
        self.taken().macs.remove(&mac);
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, address: Ipv6Addr, hold: Hold) -> bool {
        let mut taken = self.taken();
        let is_free = !taken.addresses.contains_key(&address);
        if is_free {
            taken.addresses.insert(address, hold);
        }
        is_free
    }

    /// Changes how an address is held that the caller has.
    fn change(&self, address: Ipv6Addr, hold: Hold) {
        self.taken().addresses.insert(address, hold);
    }

    fn is_declared(&self, mac: MacAddr) -> bool {
        self.taken().declared.contains(&mac)
    }

    fn is_used(&self, address: Ipv6Addr) -> bool {
        self.taken().addresses.get(&address) == Some(&Hold::Used)
    }

    fn remove(&self, address: &Ipv6Addr) {
        self.taken().addresses.remove(address);
    }
}

/// One port's guard. See the module's theory of operation.
#[derive(Debug)]
pub struct Guard {
    settings: Settings,
    mac: Option<MacAddr>,
    addresses: Vec<Ipv4Addr>,
    prefixes: Vec<Subnet6>,
    /// What this port has in `claims`; what it was met with last is the last.
    own: Vec<(Ipv6Addr, Hold)>,
    claims: Arc<Claims>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.own.iter().for_each(|(address, _)| self.claims.remove(address));
        // One that was declared is the port's also when its guest is away.
        if let (None, Some(mac)) = (self.settings.mac, self.mac) {
            self.claims.release_mac(mac);
        }
    }
}

impl Guard {
    /// A guard for a port that has just attached, and was told no addresses yet.
    pub fn new(settings: Settings, claims: Arc<Claims>) -> Self {
        Self { mac: settings.mac, settings, addresses: Vec::new(), prefixes: Vec::new(), own: Vec::new(), claims }
    }

    /// The address that the port is locked to, once that is known. If it is not known after a frame was refused with
    /// [`Counter::DropTxSpoofedMac`], the guest has another port's.
    pub fn mac(&self) -> Option<MacAddr> {
        self.mac.filter(|_| self.settings.lock_mac)
    }

    /// Lets go of the address that the port is locked to, if it was declared for another since: to be asked after
    /// [`Claims::set_declared`]. Returns whether it did.
    pub fn follow_declared(&mut self) -> bool {
        let taken = self.mac.filter(|mac| self.settings.mac.is_none() && self.claims.is_declared(*mac));
        if let Some(mac) = taken {
            self.claims.release_mac(mac);
            self.mac = None;
        }
        taken.is_some()
    }

    /// Whether two frames with the same Ethernet header may have different verdicts.
    pub fn looks_beyond_ethernet(&self) -> bool {
        self.settings.lock_ip || self.settings.refuse_servers
    }

    /// Lets the port use an IPv4 address besides those that it may use already. `false` if these are as many as may be.
    pub fn allow(&mut self, address: Ipv4Addr) -> bool {
        let is_known = self.addresses.contains(&address);
        if !is_known && self.addresses.len() < ADDRESSES_PER_PORT_MAX {
            self.addresses.push(address);
            return true;
        }
        is_known
    }

    /// Lets the port use these IPv4 addresses and no others; the first [`ADDRESSES_PER_PORT_MAX`] of them.
    pub fn set_addresses(&mut self, addresses: &[Ipv4Addr]) {
        self.addresses.clear();
        self.addresses.extend(addresses.iter().take(ADDRESSES_PER_PORT_MAX));
    }

    /// Lets the port use IPv6 addresses of these prefixes, and link-local ones. Gives up those of earlier prefixes.
    pub fn set_prefixes(&mut self, prefixes: &[Subnet6]) {
        self.prefixes = prefixes.to_vec();
        let (kept, left): (Vec<_>, Vec<_>) = self.own.iter().copied().partition(|own| self.is_in_network(own.0));
        self.own = kept;
        left.iter().for_each(|(address, _)| self.claims.remove(address));
    }

    /// Judges a frame by a private copy of its first bytes: all, or [`crate::frame::FRAME_HEAD_MAX`] of them. What was
    /// judged must be what is delivered: bytes that are read from the guest's memory again may have changed.
    ///
    /// # Errors
    /// The counter of the reason why the frame must be dropped. With [`Counter::DropTxSpoofedIp`] and
    /// [`Counter::DropTxSpoofedNeighbour`] the caller may know that the IPv4 address was given to the port meanwhile,
    /// [`Self::allow`] it and ask again.
    #[inline]
    pub fn check(&mut self, head: &[u8]) -> Result<(), Counter> {
        if head.len() < ethernet::HEADER_LEN {
            return Err(Counter::DropTxRunt);
        }
        let source = MacAddr::source_of(head).filter(|source| source.is_station()).ok_or(Counter::DropTxBadSource)?;
        if self.settings.lock_mac && self.mac != Some(source) && !self.lock(source) {
            return Err(Counter::DropTxSpoofedMac);
        }
        if !self.looks_beyond_ethernet() {
            return Ok(());
        }
        match ethernet::network(head).ok_or(Counter::DropTxBadPacket)? {
            (TYPE_IPV4, at) => self.check_v4(head, at),
            (TYPE_IPV6, at) => self.check_v6(head, at, source),
            (TYPE_ARP, at) if self.settings.lock_ip => self.check_arp(head, at, source),
            (ethertype, at) if ethernet::is_snap(head, ethertype, at) => Err(Counter::DropTxBadPacket),
            _ => Ok(()),
        }
    }

    /// Locks the port to the first address that it uses, if nobody else has it.
    #[cold]
    fn lock(&mut self, source: MacAddr) -> bool {
        let is_first = self.mac.is_none() && self.claims.reserve_mac(source);
        if is_first {
            self.mac = Some(source);
        }
        is_first
    }

    fn check_v4(&self, head: &[u8], at: usize) -> Result<(), Counter> {
        let header = HeaderV4::parse(head, at).ok_or(Counter::DropTxBadPacket)?;
        let may_use = |source: Ipv4Addr| {
            self.addresses.contains(&source) || source.is_unspecified() && dhcp::may_lack_address(head, &header)
        };
        if self.settings.lock_ip && !may_use(header.source) {
            return Err(Counter::DropTxSpoofedIp);
        }
        if self.settings.refuse_servers && header.fragment != Fragment::Later {
            match header.protocol {
                UDP => {
                    let ports = ip::ports(head, header.transport).ok_or(Counter::DropTxBadPacket)?;
                    refuse_server(ports, dhcp::SERVER_PORT, dhcp::CLIENT_PORT)?;
                }
                ICMP => match head.get(header.transport).ok_or(Counter::DropTxBadPacket)? {
                    &ICMP_REDIRECT | &ICMP_ROUTER_ADVERTISEMENT => return Err(Counter::DropTxRogueServer),
                    _ => {}
                },
                _ => {}
            }
        }
        Ok(())
    }

    fn check_v6(&mut self, head: &[u8], at: usize, mac: MacAddr) -> Result<(), Counter> {
        let header = HeaderV6::parse(head, at).ok_or(Counter::DropTxBadPacket)?;
        let chain = ip::chain_v6(head, at).ok_or(Counter::DropTxBadPacket)?;
        let icmp = match (chain.protocol, chain.fragment) {
            (ICMPV6, Fragment::None | Fragment::First) => {
                Some(*head.get(chain.transport).ok_or(Counter::DropTxBadPacket)?)
            }
            _ => None,
        };
        if self.settings.refuse_servers {
            refuse_server_v6(head, &chain, icmp)?;
        }
        if !self.settings.lock_ip {
            return Ok(());
        }
        let is_own = match header.source.is_unspecified() {
            true => may_be_unspecified(&header, &chain, icmp),
            false => self.may_use(header.source, mac),
        };
        if !is_own {
            return Err(Counter::DropTxSpoofedIp);
        }
        match icmp {
            Some(kind) => self.check_discovery(head, &header, &chain, kind, mac),
            None => Ok(()),
        }
    }

    /// The addresses in neighbour discovery. A redirect's link-layer address is another's by its nature.
    fn check_discovery(
        &mut self,
        head: &[u8],
        header: &HeaderV6,
        chain: &Chain,
        kind: u8,
        mac: MacAddr,
    ) -> Result<(), Counter> {
        let Some(mut at) = ndp::options_start(kind).filter(|_| kind != ndp::REDIRECT) else { return Ok(()) };
        if chain.fragment != Fragment::None {
            return Err(Counter::DropTxBadPacket);
        }
        let message = head.get(chain.transport..header.end).ok_or(Counter::DropTxBadPacket)?;
        while let Some(address) = ndp::link_layer_address(message, at).map_err(|_| Counter::DropTxBadPacket)? {
            at = address + 6;
            if message[address..at] != mac.0 {
                return Err(Counter::DropTxSpoofedNeighbour);
            }
        }
        let target = ndp::target(message);
        let is_own = match (kind, target) {
            (ndp::NEIGHBOUR_ADVERTISEMENT, Some(target)) => self.may_use(target, mac),
            (ndp::NEIGHBOUR_SOLICITATION, Some(target)) if header.source.is_unspecified() => self.may_seek(target, mac),
            _ => true,
        };
        if is_own { Ok(()) } else { Err(Counter::DropTxSpoofedNeighbour) }
    }

    fn check_arp(&self, head: &[u8], at: usize, mac: MacAddr) -> Result<(), Counter> {
        let arp = Arp::parse(head, at).ok_or(Counter::DropTxBadPacket)?;
        if arp.sender_mac == mac && self.addresses.contains(&arp.claimed()) {
            Ok(())
        } else {
            Err(Counter::DropTxSpoofedNeighbour)
        }
    }

    /// Whether the port has this address, or can have it now.
    #[inline]
    fn may_use(&mut self, address: Ipv6Addr, mac: MacAddr) -> bool {
        self.own.last() == Some(&(address, Hold::Used)) || self.hold(address, Hold::Used, mac)
    }

    /// Whether the port may ask if anybody has this address: if it can have it, or somebody is there to say no.
    fn may_seek(&mut self, address: Ipv6Addr, mac: MacAddr) -> bool {
        self.hold(address, Hold::Sought, mac) || self.claims.is_used(address)
    }

    /// Takes an address, if nobody else has it.
    fn hold(&mut self, address: Ipv6Addr, hold: Hold, mac: MacAddr) -> bool {
        if let Some(at) = self.own.iter().position(|own| own.0 == address) {
            let (_, before) = self.own.remove(at);
            self.own.push((address, hold));
            if before != hold {
                self.claims.change(address, hold);
            }
            return true;
        }
        let is_for_it = self.is_in_network(address) && !(self.settings.lock_mac && is_of_another(address, mac));
        if !is_for_it || !self.claims.claim(address, hold) {
            return false;
        }
        if self.own.len() == CLAIMS_PER_PORT_MAX {
            // What was only asked for is in nobody's use yet.
            let sought = self.own.iter().position(|(_, hold)| *hold == Hold::Sought);
            self.claims.remove(&self.own.remove(sought.unwrap_or(0)).0);
        }
        self.own.push((address, hold));
        true
    }

    fn is_in_network(&self, address: Ipv6Addr) -> bool {
        address.is_unicast_link_local() || self.prefixes.iter().any(|prefix| prefix.contains(address))
    }
}

/// Whether an address is made of a MAC address (RFC 4291, appendix A), and of another than `mac`.
fn is_of_another(address: Ipv6Addr, mac: MacAddr) -> bool {
    let [.., a, b, c, d, e, f, g, h] = address.octets();
    [d, e] == [0xff, 0xfe] && [a, b, c, d, e, f, g, h] != ndp::interface_id(mac)
}

/// An answer is known by either port: clients look at theirs and seldom at the server's.
#[inline]
fn refuse_server((source, destination): (u16, u16), server: u16, client: u16) -> Result<(), Counter> {
    if source == server || destination == client { Err(Counter::DropTxRogueServer) } else { Ok(()) }
}

fn refuse_server_v6(head: &[u8], chain: &Chain, icmp: Option<u8>) -> Result<(), Counter> {
    match icmp {
        Some(ndp::ROUTER_ADVERTISEMENT | ndp::REDIRECT) => return Err(Counter::DropTxRogueServer),
        Some(_) => return Ok(()),
        None => {}
    }
    if chain.protocol != UDP || chain.fragment == Fragment::Later {
        return Ok(());
    }
    let ports = ip::ports(head, chain.transport).ok_or(Counter::DropTxBadPacket)?;
    refuse_server(ports, dhcp::SERVER_PORT_V6, dhcp::CLIENT_PORT_V6)
}

/// Whether a packet may come from the unspecified address: it seeks an address or a router, or joins or leaves groups
/// (RFC 4862 5.4.2, RFC 4861 4.1, RFC 3590), and goes to a group.
fn may_be_unspecified(header: &HeaderV6, chain: &Chain, icmp: Option<u8>) -> bool {
    let is_kind = matches!(
        icmp,
        Some(
            ndp::NEIGHBOUR_SOLICITATION | ndp::ROUTER_SOLICITATION | ndp::LISTENER_QUERY
                ..=ndp::LISTENER_DONE | ndp::LISTENER_REPORT_2
        )
    );
    is_kind && chain.fragment == Fragment::None && header.destination.is_multicast()
}
