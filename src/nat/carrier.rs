//! A socket that carries a guest's packets to anybody: datagrams, or echo requests.
//!
//! Theory of operation. Each packet goes on with the guest's hop limit less one, and is cut into fragments on its way
//! only if the guest allows that. What becomes of a packet is in the socket's queue of errors. The kernel tells of it
//! there and lets the next call fail, whatever that is for: so a packet that could not be sent is tried once more when
//! the queue has been read. One that the host has no memory for is lost, as it would be on the way.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::OwnedFd;

use super::endpoints::Endpoint;
use super::icmp::{QUOTE_MAX, Reason};
use super::out::Guest;
use super::packet::Packet;
use super::sockets::Ticket;
use super::tcp::Surroundings;
use crate::metrics::Counter;
use crate::ring::{Bytes, Gather};
use crate::sys::errqueue;
use crate::sys::net::{self, Sending};

/// What became of so many packets is read in one go; what is more is in the queue until something happens again.
const LOST_MAX: usize = 64;
/// How often a packet is tried.
const TRIES: usize = 2;

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) fd: OwnedFd,
    _ticket: Ticket,
    /// Whether the kernel cuts what is too long; none: as it likes.
    may_fragment: Option<bool>,
}

/// A packet, or a row of datagrams, to be carried.
pub(super) struct Load<'a, 'b> {
    pub(super) packet: &'a Packet,
    pub(super) bytes: &'a Bytes<'b>,
    /// What of the frame the socket is given.
    pub(super) part: Range<usize>,
    /// How long each datagram is, but for the last, where there are several.
    pub(super) segment: Option<u16>,
}

/// What of a guest's world a lost packet was: the address of whom it was for, and what followed the IP header.
pub(super) type Original = (IpAddr, u8, Vec<u8>);

impl Carrier {
    pub(super) fn new(fd: OwnedFd, ticket: Ticket) -> Self {
        Self { fd, _ticket: ticket, may_fragment: None }
    }

    /// Sends a guest's packet to `to` from an endpoint, whose this is. What has become of earlier ones is told to the
    /// guest.
    pub(super) fn send(
        &mut self,
        (guest, endpoint): (Guest, &impl Endpoint),
        (load, to): (&Load<'_, '_>, &SocketAddr),
        gather: &mut Gather,
        world: &mut Surroundings<'_>,
    ) -> Result<(), Counter> {
        let packet = load.packet;
        self.set_fragmenting(&to.ip(), !packet.is_to_stay_whole);
        let how = Sending { segment: load.segment, from: None, hop_limit: Some(packet.passed_on()) };
        for n in 1.. {
            let Err(error) = send(&self.fd, gather, (load.bytes, load.part.clone()), to, how) else { break };
            if is_full(&error) {
                return Err(counter(error));
            }
            let mtu = self.hear(guest, endpoint, world);
            // Of a row, some may have gone.
            if n < TRIES && mtu.is_none() && load.segment.is_none() {
                continue;
            }
            if let Some(reason) = Reason::of(&error, mtu) {
                world.refuse(guest, packet, load.bytes.head(), reason);
            }
            return Err(counter(error));
        }
        Ok(())
    }

    fn set_fragmenting(&mut self, like: &IpAddr, may_fragment: bool) {
        if self.may_fragment != Some(may_fragment) {
            // Fails for no socket of this family.
            let _ = errqueue::set_fragmenting(&self.fd, like, may_fragment);
            self.may_fragment = Some(may_fragment);
        }
    }

    /// Tells a guest what has become of the packets of an endpoint, whose this is. Returns the path's MTU, if the host
    /// has not sent one that was too long.
    pub(super) fn hear(&self, guest: Guest, endpoint: &impl Endpoint, world: &mut Surroundings<'_>) -> Option<u32> {
        let (mut mtu, mut room) = (None, [0; QUOTE_MAX]);
        for _ in 0..LOST_MAX {
            let lost = match errqueue::next(&self.fd, &mut room) {
                Ok(lost) => lost,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
                Err(_) => break,
            };
            let Some(message) = lost.message else {
                mtu = mtu.or((lost.mtu > 0).then_some(lost.mtu));
                continue;
            };
            if let Some(reason) = Reason::said(&lost)
                && let Some((to, protocol, transport)) =
                    endpoint.original(&lost, &room[..lost.len.min(QUOTE_MAX)], world.policy)
            {
                let address = endpoint.address();
                let packet = super::icmp::rebuild(address, to, protocol, &transport);
                world.report(guest, address, message.by, reason, &packet);
            }
        }
        mtu
    }
}

/// Sends a part of a frame. Returns the first error of all that there are.
pub(super) fn send(
    fd: &OwnedFd,
    gather: &mut Gather,
    (bytes, part): (&Bytes<'_>, Range<usize>),
    to: &SocketAddr,
    how: Sending,
) -> io::Result<()> {
    let sent = net::send_datagrams(fd, &gather.collect_part(bytes, part.start, part.len()), to, how);
    match (sent, how.segment) {
        (Err(error), Some(segment)) if !is_full(&error) => {
            // More of them than the kernel takes, or longer than go whole: one by one.
            let (mut sent, end, how) = (Ok(()), part.end, Sending { segment: None, ..how });
            for at in part.step_by(segment.into()) {
                let pieces = gather.collect_part(bytes, at, usize::from(segment).min(end - at));
                sent = sent.and(net::send_datagrams(fd, &pieces, to, how));
            }
            sent
        }
        (sent, _) => sent,
    }
}

/// What a packet that could not be sent is counted as.
pub(super) fn counter(error: io::Error) -> Counter {
    if is_full(&error) { Counter::DropRxQueueFull } else { Counter::DropRxRefused }
}

/// Whether the socket, or the host, has no room for more at the moment.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || net::is_out_of_memory(error)
}
