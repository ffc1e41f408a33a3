//! The host's interfaces, addresses and routes, over rtnetlink(7): asked, changed and watched, in the network namespace
//! of the calling thread.
//!
//! Each request is answered by the kernel at once, so nothing here waits for anybody.

mod link;
mod monitor;
mod route;
mod tc;

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use link::{Link, is_wireless};
pub use monitor::{Change, Event, Monitor};
pub use route::Route;

/// Bytes that one read takes at most: the kernel's own messages are no longer than 32 KiB.
const READ_LEN_MAX: usize = 64 * 1024;

/// A connection to the kernel for requests.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// When the process is out of descriptors, or may have no such socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for one thing, and hands what the kernel knows about it to `each`.
    fn get(&mut self, message: RouteNetlinkMessage, each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        self.request(message, NLM_F_ACK, each)
    }

    /// Asks for everything of a kind.
    fn dump(&mut self, message: RouteNetlinkMessage, each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        self.request(message, NLM_F_DUMP, each)
    }

    /// Changes something that exists.
    fn change(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK, |_| ())
    }

    /// Adds something, or puts it in the place of what is there.
    fn add(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, |_| ())
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (flags | NLM_F_REQUEST, self.sequence);
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let mut end = None;
            read(&self.socket, &mut |header, payload| {
                if header.sequence_number != self.sequence {
                    // What is left of an earlier request that ended in an error.
                    return;
                }
                match payload {
                    NetlinkPayload::Error(error) => end = Some(result(error.raw_code())),
                    NetlinkPayload::Done(done) => end = Some(result(done.code)),
                    NetlinkPayload::InnerMessage(message) => each(message),
                    _ => {}
                }
            })?;
            if let Some(result) = end {
                return result;
            }
        }
    }
}

/// A negative number of errno(3), or zero.
fn result(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.wrapping_neg())) }
}

/// Reads once, and hands each message of the kernel's to `each`. One that the parser does not understand is left out:
/// a newer kernel may have told something new.
fn read(socket: &Socket, each: &mut dyn FnMut(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(READ_LEN_MAX);
    let (_, from) = socket.recv_from(&mut bytes, 0)?;
    // The kernel is port zero; other programs may write to us too.
    if from.port_number() != 0 {
        return Ok(());
    }
    let mut rest = bytes.as_slice();
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        let len = message.length() as usize;
        if let Ok(message) = NetlinkMessage::deserialize(rest) {
            let (header, payload) = message.into_parts();
            each(header, payload);
        }
        // Each message begins at a multiple of four.
        rest = rest.get(len.next_multiple_of(4).max(16)..).unwrap_or(&[]);
    }
    Ok(())
}
