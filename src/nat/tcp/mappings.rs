//! Which of the host's ports guests' connections are made from.
//!
//! Theory of operation. All connections that a guest makes from one address and port are made from one port of the
//! host's, whomever they go to (endpoint-independent mapping: RFC 5382, REQ-1), and nobody else's are (REQ-7): the same
//! port as the guest's if nobody on the host has it, or else one like it. The mapping lives as long as any of them.
//!
//! Where that cannot be, the kernel chooses, as for any program: beyond the bounds, and if it still knows a connection
//! between the same ends, which has ended a moment ago.
//!
//! Bounds: [`PER_MAPPING_MAX`] connections of a mapping, and [`PER_GUEST_MAX`] mappings of a guest; of all guests of
//! the process as many as [`Sockets::take_port`] says, since a port that stands for a guest is one that no program of
//! the host's can connect from.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::super::sockets::{PortTicket, Sockets};
use crate::switch::PortId;
use crate::sys::net::{self, LocalPort};

/// Connections of one mapping. For each the kernel looks through all that it has of the port, about 15 of them in a
/// microsecond.
const PER_MAPPING_MAX: usize = 1024;
/// Mappings of one guest.
const PER_GUEST_MAX: usize = 4096;

#[derive(Debug)]
struct Mapping {
    /// Whose it is.
    guest: PortId,
    /// The host's.
    port: u16,
    connections: usize,
    _ticket: PortTicket,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    /// By the guest's address and port.
    mappings: HashMap<SocketAddr, Mapping>,
    /// How many each guest has.
    counts: HashMap<PortId, usize>,
}

impl Mappings {
    /// Begins a connection that a guest makes from its address and port `from` to `target`. Returns also whether it
    /// belongs to the mapping: then its end is to be told to [`Self::end`].
    ///
    /// # Errors
    /// Those of [`net::begin_connection`].
    pub(super) fn begin(
        &mut self,
        (guest, from): (PortId, SocketAddr),
        (target, hop_limit): (&SocketAddr, u8),
        sockets: &Arc<Sockets>,
    ) -> io::Result<(OwnedFd, bool)> {
        let connect = |port| net::begin_connection(target, Some(hop_limit), port);
        let Some(mapping) = self.mappings.get_mut(&from) else {
            let count = self.counts.get(&guest).copied().unwrap_or_default();
            let Some(_ticket) = sockets.take_port().filter(|_| count < PER_GUEST_MAX) else {
                return Ok((connect(LocalPort::Any)?.0, false));
            };
            let (fd, port) = connect(LocalPort::Like(from.port()))?;
            self.mappings.insert(from, Mapping { guest, port, connections: 1, _ticket });
            self.counts.insert(guest, count + 1);
            return Ok((fd, true));
        };
        if mapping.connections < PER_MAPPING_MAX {
            match connect(LocalPort::Shared(mapping.port)) {
                Ok((fd, _)) => {
                    mapping.connections += 1;
                    return Ok((fd, true));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(error) => return Err(error),
            }
        }
        Ok((connect(LocalPort::Any)?.0, false))
    }

    /// A connection that belonged to the mapping of this address and port of a guest's has ended.
    pub(super) fn end(&mut self, from: &SocketAddr) {
        let Some(mapping) = self.mappings.get_mut(from) else { return };
        mapping.connections -= 1;
        if mapping.connections > 0 {
            return;
        }
        if let Some(count) = self.counts.get_mut(&mapping.guest) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&mapping.guest);
            }
        }
        self.mappings.remove(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const GUEST: PortId = PortId(1);

    fn port(fd: &OwnedFd) -> u16 {
        SocketAddr::try_from(rustix::net::getsockname(fd).unwrap()).unwrap().port()
    }

    #[test]
    fn a_mapping_lives_as_long_as_its_connections_and_bounds_leave_it_to_the_kernel() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [one, other] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let (mut mappings, sockets) = (Mappings::default(), Sockets::new(10));
        let from: SocketAddr = "10.0.2.7:5000".parse().unwrap();
        let begin = |mappings: &mut Mappings, from, to| mappings.begin((GUEST, from), (to, 64), &sockets).unwrap();
        let (first, is_mapped) = begin(&mut mappings, from, &one);
        let (second, is_too) = begin(&mut mappings, from, &other);
        assert!(is_mapped && is_too && port(&first) == port(&second));
        // The same ends again.
        let (third, is_mapped) = begin(&mut mappings, from, &one);
        assert!(!is_mapped && port(&third) != port(&first));
        // One ends, and the mapping stays.
        mappings.end(&from);
        drop(first);
        assert_eq!((mappings.mappings.len(), mappings.counts[&GUEST]), (1, 1));
        // As many as a mapping has, and as a guest has.
        mappings.mappings.get_mut(&from).unwrap().connections = PER_MAPPING_MAX;
        assert!(!begin(&mut mappings, from, &one).1);
        mappings.mappings.get_mut(&from).unwrap().connections = 1;
        let another: SocketAddr = "10.0.2.7:5001".parse().unwrap();
        mappings.counts.insert(GUEST, PER_GUEST_MAX);
        assert!(!begin(&mut mappings, another, &one).1);
        mappings.counts.insert(GUEST, 1);
        assert!(begin(&mut mappings, another, &one).1);
        [from, another].iter().for_each(|from| mappings.end(from));
        assert!(mappings.mappings.is_empty() && mappings.counts.is_empty());
    }
}
