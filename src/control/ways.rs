//! A way in for VMs, and the port that it leads to.

use std::fmt;

use crate::config::{Attachment, DeclaredPort, Network};

/// A way in for VMs. Two that are equal are the same way in, before and after the configuration was read again.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WayIn {
    /// How VMs come.
    pub(super) attachment: Attachment,
    /// The declared port that it leads to; none: each VM that comes is a port of its own.
    pub(super) port: Option<DeclaredPort>,
}

impl WayIn {
    /// All ways into a network.
    pub(super) fn all(network: &Network) -> Vec<WayIn> {
        let mut ways: Vec<_> =
            network.attachments.iter().map(|a| WayIn { attachment: a.clone(), port: None }).collect();
        for port in &network.ports {
            let way = |a: &Attachment| WayIn { attachment: a.clone(), port: Some(port.clone()) };
            ways.extend(port.attachments.iter().map(way));
        }
        ways
    }
}

impl fmt::Display for WayIn {
    /// For the end of a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.attachment {
            Attachment::Listen(_) => {}
            Attachment::Connect(path) => write!(f, " at {}", path.as_path().display())?,
            Attachment::Inherit(fd) => write!(f, " on descriptor {}", fd.number())?,
        }
        match &self.port {
            Some(port) => write!(f, " as {}", port.name),
            None => Ok(()),
        }
    }
}
