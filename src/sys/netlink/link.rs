//! Interfaces and their addresses.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use netlink_packet_core::Nla;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Netlink;

/// An interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, which stays when it is renamed and is not used again soon.
    pub index: u32,
    /// Its present name.
    pub name: String,
    /// Its MAC address, if it is an Ethernet interface.
    pub mac: Option<[u8; 6]>,
    /// The longest packet without the Ethernet header, in bytes.
    pub mtu: u32,
    /// Whether somebody brought it up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether it is a Linux bridge.
    pub bridge: bool,
    /// Whether it is a tun or tap device.
    pub tun: bool,
    /// How many queues of it are open, by whomever, if it is one and the kernel tells.
    pub queues: u32,
    /// The bridge (or the like) that it is a port of, by number.
    pub controller: Option<u32>,
}

impl Link {
    pub(super) fn parse(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            bridge: false,
            tun: false,
            queues: 0,
            controller: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(mac) if is_ethernet => link.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|index| *index != 0),
                LinkAttribute::LinkInfo(infos) => {
                    link.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
                    link.queues = infos.iter().map(queues).sum();
                }
                _ => {}
            }
        }
        link
    }
}

/// The queues of a tap that are open, those that were detached for a while among them.
fn queues(info: &LinkInfo) -> u32 {
    // Linux's `if_link.h`; the crate has no names for them.
    const IFLA_TUN_NUM_QUEUES: u16 = 8;
    const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;
    let LinkInfo::Data(InfoData::Tun(attributes)) = info else { return 0 };
    let number = |attribute: &InfoTun| {
        let is_count = matches!(attribute.kind(), IFLA_TUN_NUM_QUEUES | IFLA_TUN_NUM_DISABLED_QUEUES);
        let mut value = [0; 4];
        if is_count && attribute.value_len() == value.len() {
            attribute.emit_value(&mut value);
        }
        u32::from_ne_bytes(value)
    };
    attributes.iter().map(number).sum()
}

/// Whether an interface is a radio's: an access point takes no frames of other senders from it.
pub fn is_wireless(name: &str) -> bool {
    let interface = Path::new("/sys/class/net").join(name);
    ["phy80211", "wireless"].iter().any(|entry| interface.join(entry).exists())
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                links.push(Link::parse(&message));
            }
        })?;
        Ok(links)
    }

    /// The interface of that name, if there is one.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut found = None;
        let asked = self.get(RouteNetlinkMessage::GetLink(message), |message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                found = Some(Link::parse(&message));
            }
        });
        match asked {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
            _ => Ok(found),
        }
    }

    /// Brings an interface up or down.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN; others of the kernel.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.change(RouteNetlinkMessage::SetLink(message))
    }

    /// Sets the longest packet of an interface, in bytes without the Ethernet header.
    ///
    /// # Errors
    /// EINVAL or ERANGE for what the device cannot do; EPERM without CAP_NET_ADMIN.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.set(index, LinkAttribute::Mtu(mtu))
    }

    /// Sets an interface's MAC address.
    ///
    /// # Errors
    /// EADDRNOTAVAIL for a group address; EPERM without CAP_NET_ADMIN.
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.set(index, LinkAttribute::Address(mac.to_vec()))
    }

    /// Makes an interface a port of the bridge with the number `bridge`, or of none.
    ///
    /// # Errors
    /// EBUSY, ELOOP or EINVAL for what cannot be; EPERM without CAP_NET_ADMIN.
    pub fn set_bridge(&mut self, index: u32, bridge: Option<u32>) -> io::Result<()> {
        self.set(index, LinkAttribute::Controller(bridge.unwrap_or(0)))
    }

    /// Lets an interface have no IPv6 address of its own making when it comes up.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN; others of the kernel, when it has no IPv6.
    pub fn set_no_link_local(&mut self, index: u32) -> io::Result<()> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        self.set(index, LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]))
    }

    fn set(&mut self, index: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(attribute);
        self.change(RouteNetlinkMessage::SetLink(message))
    }

    /// The addresses that an interface has, each with the length of its subnet's prefix in bits.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<(IpAddr, u8)>> {
        let all = self.all_addresses()?;
        Ok(all.into_iter().filter(|(of, ..)| *of == index).map(|(_, address, prefix)| (address, prefix)).collect())
    }

    /// The addresses that the host has, each with the number of its interface and the length of its subnet's prefix in
    /// bits.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn all_addresses(&mut self) -> io::Result<Vec<(u32, IpAddr, u8)>> {
        let mut addresses = Vec::new();
        self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
            if let RouteNetlinkMessage::NewAddress(message) = message {
                let (index, prefix_len) = (message.header.index, message.header.prefix_len);
                addresses.extend(own_address(&message).map(|address| (index, address, prefix_len)));
            }
        })?;
        Ok(addresses)
    }

    /// Gives an interface an address in a subnet of `prefix_len` bits; nothing happens if it has it. An IPv6 address
    /// may be used at once: nobody is asked whether it is taken.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN; others of the kernel.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        (message.header.index, message.header.prefix_len) = (index, prefix_len);
        message.attributes.push(AddressAttribute::Address(address));
        match address {
            IpAddr::V4(address) => {
                message.header.family = AddressFamily::Inet;
                message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
                if prefix_len < 31 {
                    let broadcast = u32::from(address) | u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
                    message.attributes.push(AddressAttribute::Broadcast(broadcast.into()));
                }
            }
            IpAddr::V6(_) => {
                message.header.family = AddressFamily::Inet6;
                message.header.flags = AddressHeaderFlags::Nodad;
            }
        }
        self.add(RouteNetlinkMessage::NewAddress(message))
    }
}

/// The interface's own address: where there is a peer, the other attribute is the peer's.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
