//! The network's services at work: frames that are answered here.
//!
//! Theory of operation. All workers of a network share one [`Services`] under a lock, which is taken for a frame that
//! is a request, and to ask whether an address that a guest has begun to use is its own; each port has a budget of
//! either. The gateway asks it for the names of guests. Whether a frame is a request is said without the lock. No
//! worker waits for it with the switch in hand.
//!
//! Leases are kept on disk by the supervisor. It is told once, through a descriptor, that they have changed, takes a
//! copy of them when it likes, and writes that while nobody waits.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::frame::ethernet::MacAddr;
use crate::nat::{Directory, Lease, Names};
use crate::service::{Binding, Checksums, Leases, Outcome, Reservation, Services, Settings, State};
use crate::switch::PortId;

/// See the module's theory of operation.
#[derive(Debug)]
pub struct Desk {
    /// What frames are judged by. Of addresses that are kept for clients, only `services` knows the present ones.
    settings: Settings,
    services: Mutex<Services>,
    /// The leases' generation when they were last taken.
    taken: AtomicU64,
    changed: EventFd,
}

impl Desk {
    /// Puts services to work.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(services: Services) -> std::io::Result<Self> {
        let changed = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let taken = AtomicU64::new(generation(&services));
        Ok(Self { settings: services.settings().clone(), services: Mutex::new(services), taken, changed })
    }

    /// What is served.
    #[inline]
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    fn lock(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when leases have changed for the first time since [`Self::take_changed_leases`], until [`Self::quiet`].
    pub fn changed_fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Says no more of leases that have changed, until they have been taken and others change.
    pub fn quiet(&self) {
        // Can only fail when it was quiet.
        let _ = self.changed.read();
    }

    /// The leases as text, if they have changed since they were last taken.
    pub fn take_changed_leases(&self) -> Option<String> {
        let services = self.lock();
        let now = generation(&services);
        let has_changed = self.taken.swap(now, Ordering::Relaxed) != now;
        let leases = services.leases().filter(|_| has_changed).cloned();
        drop(services);
        leases.as_ref().map(Leases::to_text)
    }

    /// Keeps these addresses for clients from now on, and no others.
    pub fn set_reservations(&self, reservations: Vec<Reservation>) {
        let mut services = self.lock();
        let before = generation(&services);
        services.set_reservations(reservations);
        self.tell_of_change(before, &services);
    }

    /// Tells the supervisor of leases whose generation was `before`, if they are others now and it has not been told.
    fn tell_of_change(&self, before: u64, services: &Services) {
        if generation(services) != before && before == self.taken.load(Ordering::Relaxed) {
            // Can only fail when the counter is full, and then the supervisor is being told already.
            let _ = self.changed.write(1);
        }
    }

    /// Serves a request.
    pub(super) fn serve(
        &self,
        port: PortId,
        frame: &[u8],
        checksums: Checksums,
        answers: &mut Vec<Vec<u8>>,
    ) -> Outcome {
        let now = now_s();
        let mut services = self.lock();
        let before = generation(&services);
        let outcome = services.handle(port, frame, checksums, now, answers);
        self.tell_of_change(before, &services);
        outcome
    }

    /// Whether a guest on a port, with this MAC address, has this address from us, or is about to. After a
    /// restart we know it by its MAC address alone, until it renews its lease.
    pub(super) fn has_given(&self, port: PortId, mac: MacAddr, address: Ipv4Addr) -> bool {
        self.lock().leases().is_some_and(|leases| leases.is_for(port, mac, address))
    }

    /// A port has gone; its place may be another's.
    pub(super) fn port_ended(&self, port: PortId) {
        self.lock().port_ended(port);
    }
}

impl Directory for Desk {
    fn leases(&self, known: Option<u64>) -> Option<(u64, Vec<Lease>)> {
        let services = self.lock();
        let leases = services.leases().filter(|leases| known != Some(leases.generation()))?;
        let given = leases.iter().filter(|(_, binding)| binding.state == State::Leased);
        let lease = |(address, binding): (Ipv4Addr, &Binding)| Lease { address, mac: binding.mac, port: binding.port };
        Some((leases.generation(), given.map(lease).collect()))
    }
}

impl Names for Desk {
    fn host(&self, name: &str) -> Option<(Ipv4Addr, Option<MacAddr>)> {
        self.lock().host(name, now_s())
    }

    fn name_at(&self, address: Ipv4Addr) -> Option<String> {
        self.lock().name_at(address, now_s()).map(str::to_owned)
    }

    fn name_of(&self, port: PortId, mac: MacAddr) -> Option<String> {
        self.lock().name_of(port, mac, now_s()).map(str::to_owned)
    }
}

/// Wall-clock time in seconds: leases outlive the process.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn generation(services: &Services) -> u64 {
    services.leases().map_or(0, Leases::generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{LeaseTime, Subnet, V4};

    #[test]
    fn time_takes_no_lease_from_its_holder() {
        let (holder, other) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let address = Ipv4Addr::new(10, 0, 0, 7);
        let subnet = Subnet::new(Ipv4Addr::new(10, 0, 0, 1), 24).unwrap();
        let v4 = V4 {
            subnet,
            pools: vec![subnet.hosts()],
            router: None,
            routes: Vec::new(),
            dns: Vec::new(),
            domain: None,
            search: Vec::new(),
            mtu: None,
            lease: LeaseTime::HOUR,
            reservations: Vec::new(),
        };
        let settings = Settings { server_mac: other, answers_for_gateway: false, v4: Some(v4), v6: None };
        // It ended a second after the beginning of the clock.
        let text = r#"{"version":1,"leases":[{"address":"10.0.0.7","client":"mac MAC","mac":"MAC","expires":1}]}"#;
        let leases = Leases::from_text(&text.replace("MAC", "02:00:00:00:00:01")).unwrap();
        let desk = Desk::new(Services::new(settings, leases)).unwrap();
        let given = [(holder, address), (other, address), (holder, Ipv4Addr::new(10, 0, 0, 8))];
        let given = given.map(|(mac, address)| desk.has_given(PortId(1), mac, address));
        assert_eq!(given, [true, false, false]);
    }
}
