//! An uplink for tests: its other end is a socket in the test's hand.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use super::{FrameBuffer, Gone, Received, Sent, Uplink, not_received, not_sent};
use crate::frame::ethernet::MacAddr;
use crate::frame::offload::Offloads;
use crate::frame::vnet::{VNET_HEADER_LEN, VnetHeader};
use crate::ring::{Bytes, Gather};
use crate::switch::HostAddresses;
use crate::sys::uio;

/// Each message on the other end is a virtio-net header and a frame.
#[derive(Debug)]
pub(crate) struct Loopback {
    socket: UnixDatagram,
    offloads: Offloads,
    gather: Gather,
    host: Option<(MacAddr, HostAddresses)>,
    /// Further queues, for who asks for them.
    pub(crate) queues: Vec<Loopback>,
}

impl Loopback {
    /// An uplink that takes and sends `offloads`, and its other end. Neither blocks.
    pub(crate) fn pair(offloads: Offloads) -> (Self, UnixDatagram) {
        let (socket, other) = UnixDatagram::pair().unwrap();
        for end in [&socket, &other] {
            end.set_nonblocking(true).unwrap();
        }
        (Self { socket, offloads, gather: Gather::default(), host: None, queues: Vec::new() }, other)
    }

    /// The same, with a host that has these addresses on it.
    pub(crate) fn with_host(self, mac: MacAddr, addresses: HostAddresses) -> Self {
        Self { host: Some((mac, addresses)), ..self }
    }
}

impl Uplink for Loopback {
    fn name(&self) -> String {
        "loopback".into()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn takes(&self) -> Offloads {
        self.offloads
    }

    fn sends(&self) -> Offloads {
        self.offloads
    }

    fn add_queue(&mut self) -> io::Result<Option<Box<dyn Uplink>>> {
        Ok(self.queues.pop().map(|queue| Box::new(queue) as Box<dyn Uplink>))
    }

    fn host_mac(&self) -> Option<MacAddr> {
        self.host.as_ref().map(|(mac, _)| *mac)
    }

    fn host_addresses(&self) -> io::Result<HostAddresses> {
        Ok(self.host.as_ref().map(|(_, addresses)| addresses.clone()).unwrap_or_default())
    }

    fn receive(&mut self, buffer: &mut FrameBuffer) -> Received {
        let (header, frame) = buffer.room(VNET_HEADER_LEN);
        match uio::read_scatter(&self.socket, header, frame) {
            Ok(0) => Received::Gone(Gone::Deleted),
            Ok(len) => buffer.filled(VNET_HEADER_LEN, len),
            Err(error) => not_received(error),
        }
    }

    fn send(&mut self, header: &VnetHeader, bytes: &Bytes<'_>) -> Sent {
        let header = header.emit(0);
        match uio::write_gather(&self.socket, &self.gather.collect(&header, bytes)) {
            Ok(_) => Sent::Whole,
            Err(error) => not_sent(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counter;

    #[test]
    fn frames_go_and_come_with_their_headers() {
        let (mut uplink, other) = Loopback::pair(Offloads::default());
        let header = VnetHeader { flags: 1, csum_start: 34, csum_offset: 16, ..VnetHeader::default() };
        let frame: Vec<u8> = (0..100).collect();
        assert!(matches!(uplink.send(&header, &Bytes::private(&frame)), Sent::Whole));
        let mut message = [0; 200];
        assert_eq!(other.recv(&mut message).unwrap(), 112);
        assert_eq!((&message[..12], &message[12..112]), (&header.emit(0)[..], &frame[..]));
        let mut buffer = FrameBuffer::default();
        assert!(matches!(uplink.receive(&mut buffer), Received::Nothing));
        other.send(&message[..112]).unwrap();
        assert!(matches!(uplink.receive(&mut buffer), Received::Frame(h) if h == header));
        assert_eq!(buffer.frame(), frame);
        // A message that has no whole header, and one that is longer than any frame.
        other.send(&message[..11]).unwrap();
        assert!(matches!(uplink.receive(&mut buffer), Received::Dropped(Counter::DropTxTruncated)));
        other.send(&vec![0; VNET_HEADER_LEN + crate::ring::FRAME_LEN_MAX + 2]).unwrap();
        assert!(matches!(uplink.receive(&mut buffer), Received::Dropped(Counter::DropTxTruncated)));
        assert!(matches!(uplink.receive(&mut buffer), Received::Nothing));
    }
}
