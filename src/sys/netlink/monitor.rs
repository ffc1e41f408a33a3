//! Interfaces that come, go and change.
//!
//! Theory of operation. A socket hears of every change to a link. The monitor keeps what it knew of each, so that it
//! can say what is new. When so much happens that the kernel's queue overflows, the kernel says so, and the monitor
//! throws away what is left in the queue, asks for all links and compares: nothing is missed but what came and went
//! meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Link, Netlink, read};

/// The group of those who hear of links (RTMGRP_LINK of rtnetlink(7)).
const LINK_GROUP: u32 = 1;

/// Something happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The interface's number.
    pub index: u32,
    /// Its name, after the change.
    pub name: String,
    /// What happened.
    pub change: Change,
}

/// What happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new, or new in this namespace.
    Appeared,
    /// It is gone.
    Vanished,
    /// It was called so before.
    Renamed(String),
    /// It was brought up.
    Up,
    /// It was brought down.
    Down,
    /// Its longest packet is now so long, in bytes without the Ethernet header.
    Mtu(u32),
    /// It has another MAC address.
    Mac(Option<[u8; 6]>),
}

/// Hears of the interfaces of the namespace in which it was made.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    /// For asking again: made in the same namespace, whichever thread reads.
    netlink: Netlink,
    known: BTreeMap<u32, Link>,
}

impl Monitor {
    /// Begins to listen. The interfaces that there are now are known, and no event.
    ///
    /// # Errors
    /// When the process is out of descriptors, or may have no such socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, LINK_GROUP))?;
        socket.set_non_blocking(true)?;
        let mut netlink = Netlink::open()?;
        let known = netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        Ok(Self { socket, netlink, known })
    }

    /// Readable when there is something to hear.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The interfaces as they are known now.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.known.values()
    }

    /// Everything that happened since the last time, in order. Does not wait.
    ///
    /// # Errors
    /// Those of the kernel that asking again does not mend.
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut overflowed = false;
        loop {
            let Self { socket, known, .. } = self;
            let heard = read(socket, &mut |_, payload| {
                // After an overflow what is left in the queue is older than what we shall be told when we ask.
                if let (NetlinkPayload::InnerMessage(message), false) = (payload, overflowed) {
                    note(known, message, &mut events);
                }
            });
            match heard.as_ref().err().and_then(io::Error::raw_os_error) {
                Some(libc::EAGAIN) if overflowed => {
                    overflowed = false;
                    self.ask_again(&mut events)?;
                }
                Some(libc::EAGAIN) => return Ok(events),
                Some(libc::ENOBUFS) => overflowed = true,
                _ => heard?,
            }
        }
    }

    fn ask_again(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let links: BTreeMap<u32, Link> = self.netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        let gone: Vec<u32> = self.known.keys().filter(|index| !links.contains_key(index)).copied().collect();
        for index in gone {
            forget(&mut self.known, index, events);
        }
        for link in links.into_values() {
            compare(&mut self.known, link, events);
        }
        Ok(())
    }
}

fn note(known: &mut BTreeMap<u32, Link>, message: RouteNetlinkMessage, events: &mut Vec<Event>) {
    match message {
        // A bridge tells of its ports with links of its own family.
        RouteNetlinkMessage::NewLink(message) if message.header.interface_family == AddressFamily::Unspec => {
            compare(known, Link::parse(&message), events);
        }
        RouteNetlinkMessage::DelLink(message) if message.header.interface_family == AddressFamily::Unspec => {
            forget(known, message.header.index, events);
        }
        _ => {}
    }
}

fn forget(known: &mut BTreeMap<u32, Link>, index: u32, events: &mut Vec<Event>) {
    if let Some(link) = known.remove(&index) {
        events.push(Event { index, name: link.name, change: Change::Vanished });
    }
}

/// Says what is new about an interface, and remembers it.
fn compare(known: &mut BTreeMap<u32, Link>, link: Link, events: &mut Vec<Event>) {
    let mut tell = |change| events.push(Event { index: link.index, name: link.name.clone(), change });
    let before = known.get(&link.index);
    if before.is_none() {
        tell(Change::Appeared);
    }
    if let Some(before) = before.filter(|before| before.name != link.name) {
        tell(Change::Renamed(before.name.clone()));
    }
    if before.is_some_and(|before| before.mac != link.mac) {
        tell(Change::Mac(link.mac));
    }
    if before.is_some_and(|before| before.mtu != link.mtu) {
        tell(Change::Mtu(link.mtu));
    }
    match (before.is_some_and(|before| before.up), link.up) {
        (false, true) => tell(Change::Up),
        (true, false) => tell(Change::Down),
        _ => {}
    }
    known.insert(link.index, link);
}
