//! What is done for whom, when nobody has just asked for it: what has become of what guests have sent takes more time
//! than to send it, and the guest whose it was is to answer for that.

use std::collections::HashMap;

use crate::switch::PortId;

/// Things done, by port: calls to the kernel, nearly all of them, that take about the same time.
#[derive(Debug, Default)]
pub(super) struct Efforts {
    by_port: HashMap<PortId, u32>,
    /// Whether sockets were made, or asked for, since the burst began.
    pub(super) is_dear: bool,
}

impl Efforts {
    /// One thing was done for a port.
    pub(super) fn note(&mut self, port: PortId) {
        *self.by_port.entry(port).or_default() += 1;
    }

    /// Tells what part of all that was each port's, and forgets it.
    pub(super) fn take(&mut self, mut each: impl FnMut(PortId, f64)) {
        let all: u32 = self.by_port.values().sum();
        self.by_port.drain().for_each(|(port, its)| each(port, f64::from(its) / f64::from(all)));
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.by_port.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_once() {
        let mut efforts = Efforts::default();
        [1, 2, 2, 2, 3].into_iter().for_each(|port| efforts.note(PortId(port)));
        efforts.port_ended(PortId(3));
        let mut told = Vec::new();
        efforts.take(|port, part| told.push((port.0, part)));
        told.sort_by_key(|(port, _)| *port);
        assert_eq!(told, [(1, 0.25), (2, 0.75)]);
        efforts.take(|port, part| panic!("{port:?} {part}"));
    }
}
