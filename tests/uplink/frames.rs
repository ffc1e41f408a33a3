//! Frames for tests, and uplinks as tests use them.

use std::time::{Duration, Instant};

use guestwire::frame::checksum;
use guestwire::frame::vnet::{F_NEEDS_CSUM, VnetHeader};
use guestwire::metrics::Counter;
use guestwire::ring::Bytes;
use guestwire::uplink::{FrameBuffer, Gone, Received, Sent, Uplink};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long anything may take that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A UDP datagram in an Ethernet frame; the checksum is left to be completed, as the header says.
pub(crate) fn udp(to: [u8; 6], from: [u8; 6], source: [u8; 4], destination: [u8; 4], port: u16, data: &[u8]) -> Frame {
    let len = u16::try_from(data.len()).unwrap() + 8;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + len).to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(source);
    ip.extend(destination);
    let sum = !checksum::sum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = checksum::add(checksum::sum(&ip[12..20], 0), checksum::add(17, len));
    let mut bytes = [to, from].concat();
    bytes.extend([8, 0]);
    bytes.extend(ip);
    for number in [5000, port, len, pseudo] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(data);
    let header = VnetHeader { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..VnetHeader::default() };
    Frame { header, bytes }
}

/// A frame and its virtio-net header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) header: VnetHeader,
    pub(crate) bytes: Vec<u8>,
}

impl Frame {
    /// A frame that leaves nothing to anybody.
    pub(crate) fn plain(bytes: Vec<u8>) -> Self {
        Self { header: VnetHeader::default(), bytes }
    }

    /// The same, if it did not leave its checksum to anybody.
    pub(crate) fn completed(mut self) -> Self {
        let at = checksum::PartialChecksum { start: self.header.csum_start, offset: self.header.csum_offset };
        checksum::complete(&mut self.bytes, at);
        Self::plain(self.bytes)
    }
}

/// What became of a frame that was sent.
pub(crate) fn send(uplink: &mut dyn Uplink, frame: &Frame) -> Result<(), Option<Counter>> {
    match uplink.send(&frame.header, &Bytes::private(&frame.bytes)) {
        Sent::Whole => Ok(()),
        Sent::Dropped(counter) => Err(Some(counter)),
        Sent::Gone(Gone::Deleted) => Err(None),
        Sent::Gone(gone) => panic!("{gone}"),
    }
}

/// Waits until the uplink may have something. `false` when it took too long.
pub(crate) fn wait(uplink: &dyn Uplink, patience: Duration) -> bool {
    let mut fds = [PollFd::new(uplink.fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(patience).unwrap()).unwrap() > 0
}

/// The next frame that is wanted; the host says much else.
pub(crate) fn expect(uplink: &mut dyn Uplink, wanted: impl Fn(&Frame) -> bool) -> Frame {
    next(uplink, PATIENCE, wanted).expect("the frame did not come")
}

/// The same, or nothing when it does not come in time.
pub(crate) fn next(uplink: &mut dyn Uplink, patience: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
    let mut buffer = FrameBuffer::default();
    let end = Instant::now() + patience;
    while wait(uplink, end.saturating_duration_since(Instant::now())) {
        match uplink.receive(&mut buffer) {
            Received::Frame(header) => {
                let frame = Frame { header, bytes: buffer.frame().to_vec() };
                if wanted(&frame) {
                    return Some(frame);
                }
            }
            Received::Nothing | Received::NotOurs => {}
            other => panic!("{other:?}"),
        }
    }
    None
}

/// Whether a frame is a UDP datagram over IPv4 to that port.
pub(crate) fn is_udp_to(frame: &Frame, port: u16) -> bool {
    let bytes = &frame.bytes;
    bytes.get(12..14) == Some(&[8, 0]) && bytes.get(23) == Some(&17) && bytes.get(36..38) == Some(&port.to_be_bytes())
}
