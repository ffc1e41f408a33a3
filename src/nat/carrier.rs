//! A socket that carries a guest's packets to anybody: datagrams, or echo requests.
//!
//! Theory of operation. Each packet goes on with the guest's hop limit less one, and is cut into fragments on its way
//! only if the guest allows that. What becomes of a packet is in the socket's queue of errors. The kernel tells of it
//! there and lets the next call fail, whatever that is for: so a packet that could not be sent is tried once more when
//! the queue has been read. One that the host has no memory for is lost, as it would be on the way.
//!
//! What a burst has for one carrier goes in rows, of as many packets as one call takes. If one of them fails, it is
//! tried alone, as any other, and the rest goes on behind it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::OwnedFd;

use super::endpoints::Endpoint;
use super::icmp::{QUOTE_MAX, Reason};
use super::id::Id;
use super::out::Guest;
use super::packet::Packet;
use super::sockets::Ticket;
use super::tcp::Surroundings;
use crate::frame::ethernet::be16;
use crate::frame::offload::Offload;
use crate::metrics::Counter;
use crate::ring::{Bytes, Gather};
use crate::sys::datagrams::{self, Sending};
use crate::sys::{errqueue, net};

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

/// A packet on its way: what is needed to send it but for its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    /// Which frame of the burst it is in.
    pub(super) frame: usize,
    pub(super) packet: Packet,
    pub(super) from_port: u16,
    /// What of the frame the socket is given.
    pub(super) part: (usize, usize),
    pub(super) to: SocketAddr,
}

impl Departure {
    fn part(&self) -> Range<usize> {
        self.part.0..self.part.1
    }
}

/// Packets of one endpoint's that follow one another, and go together.
#[derive(Debug, Default)]
pub(super) struct Row {
    of: Option<Id>,
    departures: Vec<Departure>,
}

impl Row {
    /// Whether a frame may be taken before what is here is sent: it is one datagram more of the same endpoint. What is
    /// sent at once must not overtake those before it, and who needs a new endpoint must not take theirs away.
    pub(super) fn may_wait_for(&self, offload: &Offload, bytes: &Bytes<'_>) -> bool {
        let Some(Departure { packet, from_port, .. }) = self.departures.first() else { return true };
        let head = bytes.head();
        !matches!(offload, Offload::Segment(_))
            && Packet::parse(head, bytes.len(), offload).is_some_and(|next| {
                let from = (next.from, next.protocol, next.is_fragment);
                from == (packet.from, packet.protocol, false) && be16(head, next.transport) == Some(*from_port)
            })
    }

    /// Whether one more of this endpoint's may go with those that there are.
    pub(super) fn takes(&self, id: Id, one: &Departure) -> bool {
        let is_alike = |other: &Departure| other.packet.is_to_stay_whole == one.packet.is_to_stay_whole;
        self.of.is_none_or(|of| of == id)
            && self.departures.len() < datagrams::DATAGRAMS_MAX
            && self.departures.first().is_none_or(is_alike)
    }

    pub(super) fn push(&mut self, id: Id, one: Departure) {
        self.of = Some(id);
        self.departures.push(one);
    }

    /// The endpoint, and what is to be sent from it.
    pub(super) fn all(&self) -> Option<(Id, &[Departure])> {
        self.of.map(|of| (of, self.departures.as_slice()))
    }

    pub(super) fn clear(&mut self) {
        self.of = None;
        self.departures.clear();
    }
}

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

    /// Sends what is in a row, whose frames' bytes `bytes` has. All in it are alike in whether they may be cut.
    pub(super) fn send_row<'a>(
        &mut self,
        (guest, endpoint): (Guest, &impl Endpoint),
        row: &[Departure],
        bytes: impl Fn(usize) -> Bytes<'a>,
        (gather, world): (&mut Gather, &mut Surroundings<'_>),
        mut ended: impl FnMut(usize, Result<(), Counter>),
    ) {
        let mut left = row;
        loop {
            if left.len() > 1 {
                match self.send_some(left, &bytes, gather) {
                    Ok(sent) => {
                        let (gone, others) = left.split_at(sent);
                        gone.iter().for_each(|departure| ended(departure.frame, Ok(())));
                        left = others;
                    }
                    Err(error) if is_full(&error) => {
                        return left.iter().for_each(|departure| ended(departure.frame, Err(Counter::DropRxQueueFull)));
                    }
                    Err(_) => {}
                }
            }
            let [first, rest @ ..] = left else { return };
            let bytes = bytes(first.frame);
            let load = Load { packet: &first.packet, bytes: &bytes, part: first.part(), segment: None };
            ended(first.frame, self.send((guest, endpoint), (&load, &first.to), gather, world));
            left = rest;
        }
    }

    /// Sends as many of a row as go in one call. Returns how many: the next one is to be sent alone.
    fn send_some<'a>(
        &mut self,
        row: &[Departure],
        bytes: &impl Fn(usize) -> Bytes<'a>,
        gather: &mut Gather,
    ) -> io::Result<usize> {
        self.set_fragmenting(&row[0].to.ip(), !row[0].packet.is_to_stay_whole);
        let target = |departure: &Departure| {
            let hop_limit = Some(departure.packet.passed_on());
            (departure.to, Sending { hop_limit, ..Sending::default() })
        };
        let pieces = gather.collect_row(row.iter().map(|departure| (bytes(departure.frame), departure.part())));
        datagrams::send_row(&self.fd, &pieces, row.iter().map(target))
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
    let sent = datagrams::send_datagrams(fd, &gather.collect_part(bytes, part.start, part.len()), to, how);
    match (sent, how.segment) {
        (Err(error), Some(segment)) if !is_full(&error) => {
            // More of them than the kernel takes, or longer than go whole: one by one.
            let (mut sent, end, how) = (Ok(()), part.end, Sending { segment: None, ..how });
            for at in part.step_by(segment.into()) {
                let pieces = gather.collect_part(bytes, at, usize::from(segment).min(end - at));
                sent = sent.and(datagrams::send_datagrams(fd, &pieces, to, how));
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
