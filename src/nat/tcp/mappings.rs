//! Which of the host's ports guests' connections are made from.
//!
//! Theory of operation. All connections that a guest makes from one address and port are made from one port of the
//! host's, whomever they go to (endpoint-independent mapping: RFC 5382, REQ-1), and nobody else's are (REQ-7): the same
//! port as the guest's if nobody on the host has it, or else one like it. The mapping lives as long as any of them.
//!
//! A connection gets a port of its own beside the mapping if the kernel still knows one with the same ends, which has
//! ended a moment ago: the guest could not have it otherwise.
//!
//! Bounds: [`PER_MAPPING_MAX`] connections of one mapping.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::sys::{local_port, net};

/// Connections of one mapping. The kernel looks through those that it knows of one port.
const PER_MAPPING_MAX: usize = 4096;

#[derive(Debug)]
struct Mapping {
    /// The host's.
    port: u16,
    connections: usize,
}

/// By the guest's address and port. See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Mappings(HashMap<SocketAddr, Mapping>);

impl Mappings {
    /// Begins a connection of a guest's to `target`. Returns also whether it belongs to the mapping: then the end of it
    /// is to be told to [`Self::end`].
    ///
    /// # Errors
    /// Those of [`net::begin_connection`].
    pub(super) fn begin(
        &mut self,
        guest: SocketAddr,
        target: &SocketAddr,
        hop_limit: u8,
    ) -> io::Result<(OwnedFd, bool)> {
        let connect = |port| net::begin_connection(target, Some(hop_limit), Some(port));
        let Some(mapping) = self.0.get_mut(&guest) else {
            let port = local_port::free_stream_port(&guest)?;
            let fd = connect(port)?;
            self.0.insert(guest, Mapping { port, connections: 1 });
            return Ok((fd, true));
        };
        if mapping.connections >= PER_MAPPING_MAX {
            return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
        }
        match connect(mapping.port) {
            Ok(fd) => {
                mapping.connections += 1;
                Ok((fd, true))
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                Ok((connect(local_port::free_stream_port(&guest)?)?, false))
            }
            Err(error) => Err(error),
        }
    }

    /// A connection that belonged to a guest's mapping has ended.
    pub(super) fn end(&mut self, guest: &SocketAddr) {
        let Some(mapping) = self.0.get_mut(guest) else { return };
        mapping.connections -= 1;
        if mapping.connections == 0 {
            self.0.remove(guest);
        }
    }
}
