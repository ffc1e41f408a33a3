//! A network interface of the host, shared with its guests: a raw packet socket beside the host's own stack.
//!
//! Theory of operation. The interface takes frames for anybody (promiscuous) as long as the socket is open, and a BPF
//! program lets through those for the addresses of our ports ([`Uplink::set_addresses`]) and for groups. Frames that we
//! send are not heard by us; those of the host are, if there is a way back to it ([`NoHostLeg`] says why not). What
//! guests send to the host's address goes there and not to the wire, and what they send to groups goes to both.
//!
//! A frame that comes with one of our own addresses as its source, and that the host has not sent, is one of ours that
//! has come back, from the way to the host or from a loop in the LAN: it is dropped, lest the switch believe that the
//! guest has moved.
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

use super::filter;
use super::host_leg::{self, NoHostLeg};
use super::tap::Tap;
use super::{FrameBuffer, Gone, Received, Sent, Uplink, not_received, not_sent};
use crate::frame::ethernet::MacAddr;
use crate::frame::offload::Offloads;
use crate::frame::vnet::{VNET_HEADER_LEN, VnetHeader};
use crate::metrics::Counter;
use crate::ring::{Bytes, Gather};
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

/// One socket on an interface.
#[derive(Debug)]
pub struct RawNic {
    socket: OwnedFd,
    link: Link,
    own: MacAddr,
    header_len: usize,
    /// Our ports', in order.
    addresses: Vec<[u8; 6]>,
    host: Option<Tap>,
    gather: Gather,
}

/// An interface, opened.
#[derive(Debug)]
pub struct Opened {
    /// One for each worker: each hears its share of the flows.
    pub queues: Vec<RawNic>,
    /// Why guests and the host do not reach each other, if they do not.
    pub no_host_leg: Option<NoHostLeg>,
}

impl RawNic {
    /// Opens `queues` sockets on the interface `name`. No unicast frame is heard before [`Uplink::set_addresses`].
    ///
    /// # Errors
    /// See [`RawNicError`]: the text says what helps.
    pub fn open(name: &str, queues: usize) -> Result<Opened, RawNicError> {
        let other = |error| RawNicError::Other(name.to_owned(), error);
        let link = find(name)?;
        let Some(own) = link.mac.map(MacAddr) else { return Err(RawNicError::NotEthernet(name.to_owned())) };
        let (hosts, no_host_leg) = match host_leg::open(&link, queues) {
            Ok(taps) => (taps.into_iter().map(Some).collect(), None),
            Err(error) => ((0..queues).map(|_| None).collect::<Vec<_>>(), Some(error)),
        };
        let mut group = None;
        let mut nics = Vec::with_capacity(queues);
        for host in hosts {
            let (socket, header_len) = socket(&link, host.is_some()).map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => RawNicError::NotPermitted(name.to_owned()),
                _ => RawNicError::Other(name.to_owned(), error),
            })?;
            if queues > 1 {
                group = Some(packet::join_group(&socket, group).map_err(other)?);
            }
            let (link, addresses, gather) = (link.clone(), Vec::new(), Gather::default());
            nics.push(Self { socket, link, own, header_len, addresses, host, gather });
        }
        Ok(Opened { queues: nics, no_host_leg })
    }

    /// The interface, as it was when it was opened.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Whether the frame that was just received is one of ours that has come back.
    fn is_reflected(&self, buffer: &FrameBuffer) -> bool {
        let source = MacAddr::source_of(buffer.frame());
        source.is_some_and(|source| self.addresses.binary_search(&source.0).is_ok())
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

    /// To the host: a way to it that is gone is a frame lost, since the wire is still there.
    fn give_host(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent {
        match self.host.as_mut().map(|host| host.send(header, bytes)) {
            Some(Sent::Gone(_)) | None => Sent::Dropped(Counter::DropRxNoHost),
            Some(sent) => sent,
        }
    }
}

/// The interface of that name, if it can be shared.
fn find(name: &str) -> Result<Link, RawNicError> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links());
    let links = links.map_err(|error| RawNicError::Other(name.to_owned(), error))?;
    let Some(link) = links.iter().find(|link| link.name == name) else {
        let others = links.iter().filter(|link| !link.loopback).map(|link| link.name.as_str()).collect::<Vec<_>>();
        return Err(RawNicError::NoInterface { name: name.to_owned(), others: others.join(", ") });
    };
    let controller = links.iter().find(|other| link.controller == Some(other.index));
    match controller.filter(|controller| controller.bridge) {
        Some(bridge) => Err(RawNicError::InABridge { name: name.to_owned(), bridge: bridge.name.clone() }),
        None => Ok(link.clone()),
    }
}

/// A socket that hears groups only, and the length of its virtio-net header.
fn socket(link: &Link, with_host: bool) -> io::Result<(OwnedFd, usize)> {
    let socket = packet::open()?;
    let header_len = packet::set_vnet_header(&socket)?;
    packet::set_auxdata(&socket)?;
    packet::set_queue_bytes(&socket, RECEIVE_QUEUE_BYTES, SEND_QUEUE_BYTES);
    packet::set_filter(&socket, &filter::program(&[], link.mac.unwrap_or_default()))?;
    if !with_host {
        // Guests could not answer. Older kernels than 4.20 do not know it; then they hear the host.
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
        if matches!(received, Received::Frame(_)) && !message.outgoing && self.is_reflected(buffer) {
            return Received::Dropped(Counter::DropTxReflected);
        }
        received
    }

    #[inline]
    fn send(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent {
        let destination = MacAddr::destination_of(bytes.head());
        if destination == Some(self.own) {
            return self.give_host(header, bytes);
        }
        let sent = self.give_wire(header, bytes);
        if self.host.is_some() && destination.is_some_and(MacAddr::is_group) {
            // Counted once, as what became of it on the wire.
            self.give_host(header, bytes);
        }
        sent
    }

    /// Hears unicast frames for these addresses and no others; above [`filter::ADDRESSES_MAX`] all but the host's own.
    fn set_addresses(&mut self, addresses: &[MacAddr]) -> io::Result<()> {
        let mut addresses: Vec<[u8; 6]> = addresses.iter().map(|address| address.0).collect();
        addresses.sort_unstable();
        addresses.dedup();
        packet::set_filter(&self.socket, &filter::program(&addresses, self.own.0))?;
        self.addresses = addresses;
        Ok(())
    }

    fn lost(&mut self) -> (Counter, u64) {
        (Counter::DropTxQueueFull, packet::lost(&self.socket).map_or(0, u64::from))
    }
}
