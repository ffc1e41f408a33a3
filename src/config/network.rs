//! A network and the ports that are declared on it.

use std::net::Ipv4Addr;

use super::{
    Attachment, Holder, MacAddr, Mode, Mtu, Name, OffloadMask, QueuePairs, Reservation, Security, Services, WorkerCount,
};

/// One Ethernet segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The name that log lines and statistics use.
    pub name: Name,
    /// What the network is connected to.
    pub mode: Mode,
    /// How VMs come in for which no port is declared: no two the same.
    pub attachments: Vec<Attachment>,
    /// Ports that are declared. They and `attachments` have at least one way in.
    pub ports: Vec<DeclaredPort>,
    /// What guests without a declared port are held to.
    pub security: Security,
    /// The MTU that guests are told; none: they are told nothing and use their own.
    pub mtu: Option<Mtu>,
    /// The offloads that guests are offered.
    pub offload: OffloadMask,
    /// Queue pairs that guests are told of.
    pub queue_pairs: QueuePairs,
    /// Threads that forward frames.
    pub workers: WorkerCount,
}

/// A port that the user described before its VM comes: one VM at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclaredPort {
    /// The name that log lines use.
    pub name: Name,
    /// Its ways in: at least one.
    pub attachments: Vec<Attachment>,
    /// The address of the guest's network device, if it is fixed.
    pub mac: Option<MacAddr>,
    /// The address that our DHCP server gives the guest. Only with `mac`, by which the server knows it.
    pub ip: Option<Ipv4Addr>,
    /// What the guest is held to.
    pub security: Security,
}

impl Network {
    /// What we serve to guests ourselves, if anything.
    pub fn services(&self) -> Option<&Services> {
        self.mode.services()
    }

    /// All addresses that are kept for somebody: those of the DHCP server's section, then those of declared ports.
    pub fn reservations(&self) -> Vec<Reservation> {
        let dhcp = self.services().and_then(|services| services.dhcp.as_ref());
        let of_port = |port: &DeclaredPort| {
            let holder = Holder::Mac(port.mac?);
            Some(Reservation { holder, ip: port.ip?, name: None })
        };
        let declared = self.ports.iter().filter_map(of_port);
        dhcp.into_iter().flat_map(|dhcp| dhcp.reservations.iter().cloned()).chain(declared).collect()
    }
}
