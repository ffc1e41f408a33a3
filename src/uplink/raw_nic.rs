//! A network interface of the host, shared with its guests: a raw packet socket beside the host's own stack.
//!
//! Theory of operation. The interface takes frames for anybody (promiscuous) as long as the socket is open, and a BPF
//! program lets through those for our stations ([`Uplink::set_stations`]) and for groups. Should the kernel not take
//! the program, all are let through and looked at here. Frames that we send are not heard by us; those of the host are,
//! if there is a way back to it ([`NoHostLeg`] says why not). What guests send to the host's address goes there and not
//! to the wire, and what they send to groups goes to both.
//!
//! Frames of ours that come back are dropped, lest the switch believe that a guest has moved: those that came from the
//! way to the host, which `echo.rs` knows. What has the NIC's own address as its source, and was not sent by the host,
//! is dropped too.
//!
//! Where guests share the NIC's own address ([`RawNic::open_shared`]), frames for that are heard, and the host is not:
//! nothing leads to it.
//!
//! There may be a socket for each worker ([`Uplink::add_queue`]): they are a group (fan-out), which takes each frame
//! once and none that one of them has sent. The way to the host, and the echoes of it, they have in common. Of an
//! interface that is down when it is opened, kernels before Linux 6.13 let us have one only.
//!
//! VLAN tags, which the kernel takes out of frames, are put back. Super-frames pass whole, those that the interface has
//! joined (GRO) too; one that the virtio-net header cannot express is a frame lost, and counted.
//!
//! An interface that is down drops what is sent, and goes on when it is up. One that is unplugged is gone
//! ([`Gone::Deleted`]) as soon as something is sent; whoever only receives hears of it from
//! [`crate::sys::netlink::Monitor`], and of its return. When its MAC address changes it is to be opened anew.
//!
//! Limits: in tunnels (VXLAN) the interface joins inner frames, whose headers do not check out against the outer ones;
//! they are dropped as bad headers. What the host sends to a guest also leaves through the wire. The header is in the
//! machine's byte order, which must be the little one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use super::echo::Echoes;
use super::filter;
use super::host_leg::{self, NoHostLeg};
use super::tap::Tap;
use super::{FrameBuffer, Gone, Received, Sent, Uplink, not_received, not_sent};
use crate::frame::ethernet::MacAddr;
use crate::frame::offload::Offloads;
use crate::frame::vnet::{VNET_HEADER_LEN, VnetHeader};
use crate::metrics::Counter;
use crate::ring::{Bytes, Gather};
use crate::switch::HostAddresses;
use crate::sys::netlink::{Link, Netlink};
use crate::sys::{packet, uio};

/// What may wait in the kernel for us, in bytes of its own accounting: about 80 super-frames.
const RECEIVE_QUEUE_BYTES: usize = 8 << 20;
/// What may wait in the kernel for the wire: 30 ms of 1 Gbit/s.
const SEND_QUEUE_BYTES: usize = 4 << 20;

/// Why there is no raw NIC.
#[derive(Debug, thiserror::Error)]
pub enum RawNicError {
    /// Not enough rights.
    #[error("a raw socket on {0} needs CAP_NET_RAW: run as root, or `setcap cap_net_raw,cap_net_admin+ep` the program")]
    NotPermitted(String),
    /// There is no such interface.
    #[error("there is no interface {name}; there are: {others}")]
    NoInterface {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        others: String,
    },
    /// Guests speak Ethernet.
    #[error("{0} is not an Ethernet interface")]
    NotEthernet(String),
    /// Its frames belong to a bridge of the host.
    #[error("{name} is a port of the bridge {bridge}: use --bridge {bridge}")]
    InABridge {
        /// The interface.
        name: String,
        /// The bridge.
        bridge: String,
    },
    /// Something else.
    #[error("{0} cannot be used: {1}")]
    Other(String, io::Error),
}

/// A socket on an interface.
#[derive(Debug)]
pub struct RawNic {
    socket: OwnedFd,
    link: Link,
    own: MacAddr,
    /// Whether that is the guests' too.
    is_shared: bool,
    header_len: usize,
    /// Those that the filter lets through, in order.
    stations: Vec<MacAddr>,
    /// Whether the filter lets others through too.
    hears_all: bool,
    host: Option<Arc<Mutex<Host>>>,
    /// Its sockets, once there are several.
    group: Option<packet::Group>,
    /// A frame for two receivers: kept for its capacity only.
    copy: Vec<u8>,
    gather: Gather,
}

/// The host itself.
#[derive(Debug)]
struct Host {
    tap: Tap,
    echoes: Echoes,
}

impl Host {
    /// A way that is gone is a frame lost, since the wire is still there.
    fn give(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent {
        match self.tap.send(header, bytes) {
            Sent::Gone(_) => Sent::Dropped(Counter::DropRxNoHost),
            sent => sent,
        }
    }
}

fn lock(host: &Mutex<Host>) -> MutexGuard<'_, Host> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An interface, opened.
#[derive(Debug)]
pub struct Opened {
    /// The uplink.
    pub nic: RawNic,
    /// Why guests and the host do not reach each other, if they do not.
    pub no_host_leg: Option<NoHostLeg>,
}

impl RawNic {
    /// Opens the interface `name`. No unicast frame is heard before [`Uplink::set_stations`].
    ///
    /// # Errors
    /// See [`RawNicError`]: the text says what helps.
    pub fn open(name: &str) -> Result<Opened, RawNicError> {
        let (link, own) = find(name)?;
        let (host, no_host_leg) = match host_leg::open(&link) {
            Ok(tap) => (Some(tap), None),
            Err(error) => (None, Some(error)),
        };
        let nic = Self::on(link, own, host, false)?;
        Ok(Opened { nic, no_host_leg })
    }

    /// Opens the interface `name`, whose own address guests share: frames for that are heard, and none that the host
    /// sends. There is no way to the host, whose frames from and to that address would be its own.
    ///
    /// # Errors
    /// See [`RawNicError`]: the text says what helps.
    pub fn open_shared(name: &str) -> Result<Self, RawNicError> {
        let (link, own) = find(name)?;
        Self::on(link, own, None, true)
    }

    fn on(link: Link, own: MacAddr, host: Option<Tap>, is_shared: bool) -> Result<Self, RawNicError> {
        let heard = filter::only(heard_at_first(is_shared, &own));
        let (socket, header_len) =
            socket(&link, host.is_some(), &heard).map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => RawNicError::NotPermitted(link.name.clone()),
                _ => RawNicError::Other(link.name.clone(), error),
            })?;
        let host = host.map(|tap| Arc::new(Mutex::new(Host { tap, echoes: Echoes::default() })));
        Ok(Self {
            socket,
            link,
            own,
            is_shared,
            header_len,
            stations: Vec::new(),
            hears_all: false,
            host,
            group: None,
            copy: Vec::new(),
            gather: Gather::default(),
        })
    }

    /// The interface, as it was when it was opened.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Whether a frame that the interface received is one of ours that has come back.
    fn is_reflected(&mut self, frame: &[u8]) -> bool {
        let is_own = MacAddr::source_of(frame) == Some(self.own);
        // Looked for in any case: it is expected no longer.
        let is_to_group = MacAddr::destination_of(frame).is_some_and(MacAddr::is_group);
        let echoes = self.host.as_ref().filter(|_| is_to_group);
        echoes.is_some_and(|host| lock(host).echoes.take(frame, Instant::now)) || is_own
    }

    /// Whether a frame is for one of ours: the filter's word, where that hears all.
    fn is_for_us(&self, frame: &[u8]) -> bool {
        let destination = MacAddr::destination_of(frame);
        destination
            .is_some_and(|destination| destination.is_group() || self.stations.binary_search(&destination).is_ok())
    }

    fn judge(&mut self, buffer: &FrameBuffer, header: VnetHeader, outgoing: bool) -> Received {
        if outgoing && self.host.is_none() {
            // Guests could not answer. Not every kernel leaves these out.
            return Received::NotOurs;
        }
        if !outgoing && self.is_reflected(buffer.frame()) {
            return Received::Dropped(Counter::DropTxReflected);
        }
        if self.hears_all && !self.is_for_us(buffer.frame()) {
            return Received::NotOurs;
        }
        Received::Frame(header)
    }

    /// Lets through what is for these addresses. Returns whether all else is let through too, for want of room.
    fn set_filter(&self, addresses: &[MacAddr]) -> io::Result<bool> {
        if addresses.len() <= filter::ADDRESSES_MAX {
            match packet::set_filter(&self.socket, &filter::only(addresses)) {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {}
                set => return set.map(|()| false),
            }
        }
        packet::set_filter(&self.socket, &filter::all_but(self.own)).map(|()| true)
    }

    fn give_wire(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent {
        let header = header.emit(0);
        let pieces = self.gather.collect(&header[..self.header_len], bytes);
        let written = match uio::write_gather(&self.socket, &pieces) {
            // Perhaps it was down, which is told once, and is up again.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => uio::write_gather(&self.socket, &pieces),
            written => written,
        };
        match written {
            Ok(_) => Sent::Whole,
            Err(error) => not_sent(error),
        }
    }

    /// A frame for a group: to the wire and to the host. Counted once, as what became of it on the wire.
    fn give_both(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent {
        // Both get the same, and the echo is known by it, whatever the guest makes of its memory meanwhile.
        let mut copy = std::mem::take(&mut self.copy);
        bytes.copy_out(&mut copy);
        let bytes = Bytes::private(&copy);
        let sent = self.give_wire(header, &bytes);
        if let Some(host) = &self.host {
            // Held over both: the kernel brings the echo back at once, and another worker may be reading.
            let mut host = lock(host);
            if matches!(host.give(header, &bytes), Sent::Whole) {
                host.echoes.expect(&copy, Instant::now());
            }
        }
        self.copy = copy;
        sent
    }
}

/// What a new socket hears beside groups.
fn heard_at_first(is_shared: bool, own: &MacAddr) -> &[MacAddr] {
    if is_shared { std::slice::from_ref(own) } else { &[] }
}

/// The interface of that name, if it can be shared, and its address.
fn find(name: &str) -> Result<(Link, MacAddr), RawNicError> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links());
    let links = links.map_err(|error| RawNicError::Other(name.to_owned(), error))?;
    let Some(link) = links.iter().find(|link| link.name == name) else {
        let others = links.iter().filter(|link| !link.loopback).map(|link| link.name.as_str()).collect::<Vec<_>>();
        return Err(RawNicError::NoInterface { name: name.to_owned(), others: others.join(", ") });
    };
    let controller = links.iter().find(|other| link.controller == Some(other.index));
    if let Some(bridge) = controller.filter(|controller| controller.bridge) {
        return Err(RawNicError::InABridge { name: name.to_owned(), bridge: bridge.name.clone() });
    }
    let own = link.mac.ok_or_else(|| RawNicError::NotEthernet(name.to_owned()))?;
    Ok((link.clone(), MacAddr(own)))
}

/// A socket that hears what `filter` lets through, and the length of its virtio-net header.
fn socket(link: &Link, with_host: bool, filter: &[packet::Instruction]) -> io::Result<(OwnedFd, usize)> {
    let socket = packet::open()?;
    let header_len = packet::set_vnet_header(&socket)?;
    packet::set_auxdata(&socket)?;
    packet::set_queue_bytes(&socket, RECEIVE_QUEUE_BYTES, SEND_QUEUE_BYTES);
    packet::set_filter(&socket, filter)?;
    if !with_host {
        // Older kernels than 4.20 do not know it; then each frame is looked at.
        let _ = packet::ignore_outgoing(&socket);
    }
    packet::set_promiscuous(&socket, link.index)?;
    match packet::bind(&socket, link.index) {
        // It is down, and may come up.
        Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
        bound => bound?,
    }
    Ok((socket, header_len))
}

impl Uplink for RawNic {
    fn name(&self) -> String {
        let name = rustix::net::netdevice::index_to_name(&self.socket, self.link.index);
        format!("nic {}", name.unwrap_or_else(|_| self.link.name.clone()))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn add_queue(&mut self) -> io::Result<Option<Box<dyn Uplink>>> {
        let with_host = self.host.is_some();
        // Deaf until it is one of the group: before, it would hear what others of the group hear too.
        let (socket, header_len) = socket(&self.link, with_host, &filter::nothing())?;
        let group = match self.group {
            Some(group) => group,
            None => packet::found_group(&self.socket, !with_host)?,
        };
        self.group = Some(group);
        packet::join_group(&socket, group)?;
        packet::set_filter(&socket, &filter::only(heard_at_first(self.is_shared, &self.own)))?;
        Ok(Some(Box::new(Self {
            socket,
            link: self.link.clone(),
            header_len,
            stations: Vec::new(),
            hears_all: false,
            host: self.host.clone(),
            copy: Vec::new(),
            gather: Gather::default(),
            ..*self
        })))
    }

    fn takes(&self) -> Offloads {
        // Kernels that let us choose the header's length know UDP super-frames, which are older.
        let uso = self.header_len == VNET_HEADER_LEN;
        Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso4: uso, uso6: uso }
    }

    fn sends(&self) -> Offloads {
        self.takes()
    }

    #[inline]
    fn receive(&mut self, buffer: &mut FrameBuffer) -> Received {
        let (header, frame) = buffer.room(self.header_len);
        let message = match packet::receive(&self.socket, header, frame) {
            Ok(message) if message.truncated => return Received::Dropped(Counter::DropTxTruncated),
            Ok(message) => message,
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) && !packet::has_interface(&self.socket) => {
                return Received::Gone(Gone::Deleted);
            }
            Err(error) => return not_received(error),
        };
        let received = match (buffer.filled(self.header_len, message.len), message.tag) {
            (Received::Frame(header), Some(tag)) => buffer.put_tag_back(header, tag),
            (received, _) => received,
        };
        match received {
            Received::Frame(header) => self.judge(buffer, header, message.outgoing),
            other => other,
        }
    }

    #[inline]
    fn send(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent {
        let destination = MacAddr::destination_of(bytes.head());
        if destination == Some(self.own) {
            let host = self.host.as_ref();
            return host.map_or(Sent::Dropped(Counter::DropRxNoHost), |host| lock(host).give(header, bytes));
        }
        if self.host.is_some() && destination.is_some_and(MacAddr::is_group) {
            return self.give_both(header, bytes);
        }
        self.give_wire(header, bytes)
    }

    /// Hears unicast frames for these stations and no others. The interface's own address is none of theirs.
    fn set_stations(&mut self, stations: &[MacAddr]) -> io::Result<()> {
        if self.is_shared {
            return Ok(());
        }
        let stations: Vec<_> = stations.iter().copied().filter(|station| *station != self.own).collect();
        let hears_all = self.set_filter(&stations)?;
        if hears_all && !self.hears_all {
            tracing::warn!(
                "{} hears the frames of all: the kernel's filter (net.core.optmem_max) has no room for {} addresses",
                self.name(),
                stations.len()
            );
        }
        (self.stations, self.hears_all) = (stations, hears_all);
        Ok(())
    }

    fn host_mac(&self) -> Option<MacAddr> {
        Some(self.own)
    }

    fn host_addresses(&self) -> io::Result<HostAddresses> {
        let mut addresses = HostAddresses::default();
        for (index, address, prefix_len) in Netlink::open()?.all_addresses()? {
            // A host answers for each of its addresses on any interface.
            addresses.own.push(address);
            if index == self.link.index {
                addresses.on_link.extend(IpNet::new(address, prefix_len));
            }
        }
        Ok(addresses)
    }

    fn lost(&mut self) -> (Counter, u64) {
        (Counter::DropTxQueueFull, packet::lost(&self.socket).map_or(0, u64::from))
    }
}
