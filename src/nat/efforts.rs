//! What is done for whom, when nobody has just asked for it: what has become of what guests have sent takes more time
//! than to send it, and the guest whose it was is to answer for that.

use std::collections::HashMap;

use crate::switch::PortId;

/// Things done, by port, or for nobody's sake: calls to the kernel, nearly all of them, that take about the same time.
#[derive(Debug, Default)]
pub(super) struct Efforts {
    by_port: HashMap<PortId, u32>,
    nobodys: u32,
    /// Whether sockets were made, or asked for, since the burst began.
    pub(super) is_dear: bool,
}

impl Efforts {
    /// One thing was done for a port.
    pub(super) fn note(&mut self, port: PortId) {
        *self.by_port.entry(port).or_default() += 1;
    }

    /// One thing was done that no port is to answer for.
    pub(super) fn note_nobodys(&mut self) {
        self.nobodys += 1;
    }

    /// A burst has been taken, whose time is its sender's. Returns whether it was dear.
    pub(super) fn end_burst(&mut self) -> bool {
        self.by_port.clear();
        std::mem::take(&mut self.is_dear)
    }

    /// Tells what part of all that was each port's, and forgets it.
    pub(super) fn take(&mut self, mut each: impl FnMut(PortId, f64)) {
        let all = self.by_port.values().sum::<u32>() + std::mem::take(&mut self.nobodys);
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

    #[test]
    fn nobody_pays_for_what_is_nobodys() {
        let mut efforts = Efforts::default();
        let parts = |efforts: &mut Efforts| {
            let mut told = Vec::new();
            efforts.take(|port, part| told.push((port.0, part)));
            told
        };
        efforts.note(PortId(1));
        (0..3).for_each(|_| efforts.note_nobodys());
        assert_eq!(parts(&mut efforts), [(1, 0.25)]);
        efforts.note_nobodys();
        assert_eq!(parts(&mut efforts), []);
        efforts.note(PortId(1));
        assert_eq!(parts(&mut efforts), [(1, 1.0)]);
    }

    #[test]
    fn what_a_burst_took_is_not_charged_twice() {
        let mut efforts = Efforts { is_dear: true, ..Efforts::default() };
        efforts.note(PortId(1));
        assert!(efforts.end_burst() && !efforts.end_burst());
        efforts.take(|port, part| panic!("{port:?} {part}"));
    }
}
