//! One connection: its mirror, and the kernel's side of it.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;

use super::super::headers::{Ends, HOP_LIMIT};
use super::super::id::{Id, Kind};
use super::super::out::{Guest, Out};
use super::super::sockets::Ticket;
use super::mirror::{HostSocket, Mirror, Wanted};
use super::receive_room::ReceiveRoom;
use super::segment::{HEADER_LEN, Header, SYN_OPTIONS_MAX};
use super::supply::REREAD_MAX;
use crate::frame::checksum;
use crate::frame::ethernet::MacAddr;
use crate::frame::ip::TCP;
use crate::frame::vnet::VnetHeader;
use crate::ring::{Bytes, Gather};
use crate::sys::net;
use crate::sys::poller::Poller;

/// Where the checksum is in a TCP header.
pub(super) const CHECKSUM: u16 = 16;

/// Which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
}

#[derive(Debug)]
pub(in super::super) struct Connection {
    pub(super) key: Key,
    pub(super) guest: Guest,
    pub(super) fd: OwnedFd,
    pub(super) _ticket: Ticket,
    /// Whether it is made from the port that the guest's is mapped to.
    pub(super) is_mapped: bool,
    pub(super) mirror: Mirror,
    /// Whether the kernel leaves out what was peeked.
    pub(super) has_offset: bool,
    /// Where its next peek begins then, after what was not taken away.
    pub(super) peek_at: Option<u32>,
    /// Whether more has come than can be read before the guest has acknowledged what is before it: without peek
    /// offsets a read does not get beyond the place of something urgent.
    pub(super) reads_again: bool,
    /// How much the kernel is to have room for.
    pub(super) receive_room: ReceiveRoom,
    /// Whether the peer will send no more than what the kernel has.
    pub(super) is_last: bool,
    /// Whether it is to be told when the kernel has room again: it tells nobody who has not met with none.
    pub(super) asks_for_room: bool,
    /// Whether it is in line.
    pub(super) is_in_line: bool,
    /// Whether it is among those that owe their guest an acknowledgement.
    pub(super) owes: bool,
    /// Until when its acknowledgement may wait, while it is among those whose does ([`super::acks`]).
    pub(super) ack_due: Option<u64>,
    /// What it has kept, as far as that is counted.
    pub(super) kept: usize,
    /// Whether it counts as half open.
    pub(super) is_half_open: bool,
    /// When the set says that something is due.
    pub(super) due_in_set: u64,
    /// The frames' [`flow_hash`].
    pub(super) flow: u32,
}

/// The kernel's connection.
pub(super) struct Kernel<'a> {
    fd: &'a OwnedFd,
    gather: &'a mut Gather,
    peek_at: &'a mut Option<u32>,
    receive_room: &'a mut ReceiveRoom,
    asks_for_room: &'a mut bool,
}

impl HostSocket for Kernel<'_> {
    fn send(&mut self, bytes: &Bytes<'_>, part: Range<usize>) -> io::Result<usize> {
        net::send_pieces(self.fd, &self.gather.collect_part(bytes, part.start, part.len()))
    }

    fn send_kept(&mut self, bytes: &[u8]) -> io::Result<usize> {
        net::send(self.fd, bytes)
    }

    fn room(&mut self) -> u32 {
        // One that is not there any more has none.
        let buffer = net::send_buffer(self.fd).unwrap_or_default();
        // So full that the kernel does not call it writable, and would tell when it is again.
        *self.asks_for_room |= u64::from(buffer.used) * 3 > u64::from(buffer.size) * 2;
        buffer.size.saturating_sub(buffer.used)
    }

    fn consume(&mut self, len: u32) {
        let mut left = len as usize;
        while left > 0 {
            match net::discard(self.fd, left) {
                Ok(0) | Err(_) => break,
                Ok(taken) => left -= taken,
            }
        }
        self.receive_room.take(len);
        // The kernel moves its mark with what is taken away.
        *self.peek_at = self.peek_at.map(|at| at.saturating_sub(len));
    }

    fn end(&mut self) {
        // Fails when there is no connection any more, which is told otherwise.
        let _ = net::shut_down_sending(self.fd);
    }
}

impl Connection {
    /// The mirror, and the kernel's side of it.
    pub(super) fn split<'a>(&'a mut self, gather: &'a mut Gather) -> (&'a mut Mirror, Kernel<'a>) {
        let Self { fd, mirror, peek_at, receive_room, asks_for_room, .. } = self;
        (mirror, Kernel { fd, gather, peek_at, receive_room, asks_for_room })
    }

    /// Ends it: the peer hears of a reset.
    pub(in super::super) fn break_off(self) {
        net::reset_at_close(&self.fd);
    }

    pub(super) fn ends(&self, gateway_mac: MacAddr) -> Ends {
        Ends { mac: gateway_mac, to_mac: self.guest.mac, from: self.key.remote.ip(), to: self.key.guest.ip() }
    }

    /// Has the kernel tell when it has room again, if it has so little that the guest may wait for that.
    pub(super) fn ask_for_room(&mut self, id: Id, poller: &Poller) {
        if std::mem::take(&mut self.asks_for_room) {
            // Fails for nothing that is watched.
            let _ = poller.look_again(&self.fd, id.token(Kind::Tcp));
        }
    }

    /// What could be sent to the guest now.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        let wanted = self.mirror.wanted()?;
        (self.has_offset || wanted.skip <= REREAD_MAX).then_some(wanted)
    }

    /// The longest segment that fits the network.
    pub(super) fn own_mss(&self, mtu: u16) -> u16 {
        mtu.saturating_sub(if self.key.guest.is_ipv4() { 40 } else { 60 })
    }
}

/// A frame of a header alone.
pub(super) fn bare(key: &Key, ends: &Ends, header: &Header, out: &mut Out) {
    let mut tcp = [0; HEADER_LEN + SYN_OPTIONS_MAX];
    let len = header.emit(key.remote.port(), key.guest.port(), &mut tcp);
    let sum = !checksum::sum(&tcp[..len], ends.pseudo_sum(TCP, len));
    tcp[usize::from(CHECKSUM)..][..2].copy_from_slice(&sum.to_be_bytes());
    let mut frame = out.buffer();
    frame.resize(ends.len(), 0);
    ends.emit(TCP, HOP_LIMIT, len, &mut frame);
    frame.extend_from_slice(&tcp[..len]);
    out.push(VnetHeader::default(), frame);
}
