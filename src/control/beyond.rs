//! What a network is made of beside its ports, as the supervisor keeps it: its uplink, and the file of its leases.
//!
//! Theory of operation. A worker that uses an uplink says when its device has gone. It is then opened again: as soon
//! as the interface that the user named is there, or at once if it is a tap of our own. If that fails, or if what was
//! opened does not last, it is tried again after pauses that grow, and when something happens to the interface that the
//! user named; nothing else counts, since an attempt itself makes interfaces come and go. A tap that was left to us as
//! an open descriptor cannot be opened again. Leases are written a moment after they have changed, so that a guest that
//! makes them change all the time costs a file now and then and no more.

use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::backoff::{Backoff, WORKED_MIN};
use super::leases::LeaseFile;
use super::ports::Common;
use super::source::{NetworkId, Source};
use crate::config::{IfName, Mode, Network, Subnet6, TapSource, Via, lease_file};
use crate::frame::ethernet::MacAddr;
use crate::metrics::export::PortReport;
use crate::mode::{self, Made, ModeError};
use crate::nat::{Directory, Forwards};
use crate::ring::mailbox::PortShared;
use crate::service::{Leases, Services};
use crate::switch::SubnetFilter;
use crate::sys::netlink::{Change, Event, Netlink};
use crate::sys::poller::{Poller, Trigger};
use crate::uplink::Gone;
use crate::worker::{Desk, NatHalf, Parts, UplinkHalf};

/// How long leases that have changed wait to be written.
pub(super) const LEASES_WAIT: Duration = Duration::from_secs(1);

/// Attempts to open an uplink again.
#[derive(Debug)]
struct Attempts {
    backoff: Backoff,
    /// Whether it is known that the device is gone.
    is_missed: bool,
    /// When the next one is due; none: not before something happens to the interface.
    due: Option<Instant>,
    /// When one was successful.
    opened: Option<Instant>,
    /// Why the last one failed, so that it is told once.
    error: Option<String>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { backoff: Backoff::of_uplink(), is_missed: false, due: None, opened: None, error: None }
    }
}

impl Attempts {
    /// The device has gone. The first attempt is due at once, unless what was opened last did not last.
    fn miss(&mut self, now: Instant) {
        self.is_missed = true;
        let has_worked = self.opened.is_none_or(|opened| now.saturating_duration_since(opened) >= WORKED_MIN);
        if has_worked {
            self.backoff.restart();
        }
        self.due = Some(if has_worked { now } else { now + self.backoff.failed() });
    }

    /// Something that may help has happened to the interface.
    fn encourage(&mut self, now: Instant) {
        self.backoff.restart();
        self.due = Some(now);
    }

    /// Whether one is to be made now.
    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// There is nothing to open.
    fn rest(&mut self) {
        (self.due, self.error) = (None, None);
    }

    /// One was successful.
    fn succeed(&mut self, now: Instant) {
        self.rest();
        (self.is_missed, self.opened) = (false, Some(now));
    }

    /// One has failed. Returns whether it is news that it did so for this reason.
    fn fail(&mut self, now: Instant, error: String) -> bool {
        self.due = Some(now + self.backoff.failed());
        let is_news = self.error.as_ref() != Some(&error);
        self.error = Some(error);
        is_news
    }
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Beyond {
    uplink: Option<Arc<UplinkHalf>>,
    nat: Option<Arc<NatHalf>>,
    desk: Option<Arc<Desk>>,
    file: Option<LeaseFile>,
    filter: Option<SubnetFilter>,
    prefixes: Vec<Subnet6>,
    reserved: Vec<Ipv6Addr>,
    /// The MAC address of the host's interface, which guests know, where services answer in its name.
    server_mac: Option<MacAddr>,
    attempts: Attempts,
}

impl Beyond {
    /// Puts together what a network was made of.
    pub(super) fn new(network: &Network, made: Made, common: &mut Common) -> io::Result<Self> {
        let Made { uplink, services, filter, prefixes, reserved, shared_mac, nat, doors } = made;
        let server_mac = services.as_ref().map(|settings| settings.server_mac);
        let mut beyond = Self { filter, prefixes, reserved, server_mac, ..Self::default() };
        // One for each worker.
        let shared = |number| -> io::Result<Vec<PortShared>> {
            (0..network.workers.get()).map(|_| PortShared::new(number, network.name.to_string(), [0; 6])).collect()
        };
        if let Some(device) = uplink {
            let shared = shared(common.uplink_number())?;
            let half = UplinkHalf::new(shared, shared_mac)?;
            half.connect(device);
            beyond.uplink = Some(half);
        }
        if let Some(settings) = services {
            let file = settings.v4.is_some().then(|| open_lease_file(network)).flatten();
            let leases = file.as_ref().map_or_else(Leases::default, LeaseFile::load);
            beyond.desk = Some(Arc::new(Desk::new(Services::new(settings, leases))?));
            beyond.file = file;
        }
        if let (Some(settings), Some(desk)) = (nat, beyond.desk.clone()) {
            let shared = shared(common.uplink_number())?;
            let directory: Arc<dyn Directory> = desk.clone();
            let forwards = Forwards::new(doors, network.name.to_string(), shared.len(), Some(directory))?;
            beyond.nat = Some(NatHalf::new(&settings, (forwards, desk), shared, common.nat_sockets())?);
        }
        Ok(beyond)
    }

    /// For the network's workers.
    pub(super) fn parts(&self) -> Parts {
        let (filter, prefixes, reserved) = (self.filter.clone(), self.prefixes.clone(), self.reserved.clone());
        let (uplink, nat, services) = (self.uplink.clone(), self.nat.clone(), self.desk.clone());
        Parts { uplink, nat, services, filter, prefixes, reserved }
    }

    /// Whether there is an uplink.
    pub(super) fn has_uplink(&self) -> bool {
        self.uplink.is_some()
    }

    /// When to try to open the uplink again, if it is to be tried.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        self.attempts.due
    }

    /// The uplink's figures now.
    pub(super) fn report(&self) -> Option<PortReport> {
        let uplink = self.uplink.as_ref().map(|half| half.shared().collect::<Vec<_>>());
        let shared = uplink.or_else(|| self.nat.as_ref().map(|half| half.shared().collect()))?;
        let name = if self.nat.is_some() { "gateway" } else { "uplink" };
        let counters = shared.iter().map(|shared| &shared.counters);
        Some(PortReport::new(shared.first()?.number, Some(name.into()), false, counters))
    }

    /// Has what it hears from watched.
    pub(super) fn watch(&self, id: NetworkId, poller: &Poller) -> io::Result<()> {
        if let Some(half) = &self.uplink {
            poller.add(half.gone_fd(), Trigger::Level, Source::UplinkGone(id).token())?;
        }
        match &self.desk {
            Some(desk) if self.file.is_some() => {
                poller.add(desk.changed_fd(), Trigger::Level, Source::LeasesChanged(id).token())
            }
            _ => Ok(()),
        }
    }

    /// Ceases to have it watched.
    pub(super) fn ignore(&self, poller: &Poller) {
        self.uplink.iter().for_each(|half| poller.remove(half.gone_fd()));
        self.desk.iter().for_each(|desk| poller.remove(desk.changed_fd()));
    }

    /// Keeps the addresses for guests that the network says now.
    pub(super) fn reserve(&self, network: &Network) -> Result<(), ModeError> {
        let Some(desk) = &self.desk else { return Ok(()) };
        desk.set_reservations(mode::reservations(network)?);
        Ok(())
    }

    /// Takes note that leases have changed: they are quiet until they are written.
    pub(super) fn hear_of_leases(&self) {
        self.desk.iter().for_each(|desk| desk.quiet());
    }

    /// Writes the leases if they have changed since they were written.
    pub(super) fn write_leases(&mut self) {
        if let (Some(desk), Some(file)) = (&self.desk, &mut self.file)
            && let Some(text) = desk.take_changed_leases()
        {
            file.save(&text);
        }
    }

    /// Looks at what has happened to the host's interfaces, and at whether the uplink is there. Returns whether it has
    /// come back, so that the workers have to look.
    pub(super) fn follow(&mut self, network: &Network, events: &[Event], now: Instant) -> bool {
        let Some(half) = &self.uplink else { return false };
        let needed = needed_interface(network);
        let is_needed = |event: &&Event| Some(event.name.as_str()) == needed.as_ref().map(IfName::as_str);
        if events.iter().filter(is_needed).any(|event| parts_us(network, &event.change)) {
            half.disconnect(&Gone::Deleted);
        }
        half.hear_of_gone();
        events.iter().filter(|event| half.is_on(&event.name)).for_each(|event| heed(network, event));
        if !half.is_gone() {
            return false;
        }
        if !self.attempts.is_missed {
            self.attempts.miss(now);
            tell_missed(network);
        }
        if network.mode.inherited_tap().is_some() {
            self.attempts.rest();
            return false;
        }
        if events.iter().filter(is_needed).any(|event| may_help(network, &event.change)) {
            self.attempts.encourage(now);
        }
        if self.attempts.is_due(now) && needed.as_ref().is_some_and(is_absent) {
            self.attempts.rest();
        }
        self.attempts.is_due(now) && self.reopen(network, now)
    }

    /// Tries to open the uplink again, and says whether it is there.
    fn reopen(&mut self, network: &Network, now: Instant) -> bool {
        let name = network.name.as_str();
        match (mode::reopen(network, self.server_mac), &self.uplink) {
            (Ok(Some(device)), Some(half)) => {
                tracing::info!(network = name, "the uplink is back: {}", device.name());
                half.connect(device);
                self.attempts.succeed(now);
                true
            }
            (Ok(_), _) => {
                self.attempts.rest();
                false
            }
            (Err(error), _) => {
                let text = error.to_string();
                if self.attempts.fail(now, text.clone()) {
                    tracing::warn!(
                        network = name,
                        "the uplink cannot be opened again: {text}; it is tried now and then"
                    );
                }
                false
            }
        }
    }
}

/// Tells what becomes of a network whose uplink has gone.
fn tell_missed(network: &Network) {
    let name = network.name.as_str();
    match network.mode.inherited_tap() {
        Some(fd) => tracing::warn!(
            network = name,
            "descriptor {} cannot be opened again, and VMs are among themselves: start guestwire again with another, \
             or name a tap with --tap, which is waited for",
            fd.number()
        ),
        None => tracing::info!(network = name, "VMs are among themselves until there is one again"),
    }
}

/// Whether an uplink that could not be opened may be opened after a change of the interface that it needs. What an
/// attempt changes itself must not count: a bridge has another MAC address when our tap joins it.
fn may_help(network: &Network, change: &Change) -> bool {
    match change {
        Change::Appeared | Change::Renamed(_) | Change::Up => true,
        Change::Mac(_) => matches!(network.mode, Mode::HostOnly(_)),
        Change::Vanished | Change::Down | Change::Mtu(_) => false,
    }
}

/// Tells what has happened to the interface that is the uplink, and mends what that undid.
fn heed(network: &Network, event: &Event) {
    let (name, interface) = (network.name.as_str(), &event.name);
    match &event.change {
        Change::Down => {
            tracing::warn!(network = name, "the uplink is down: {interface}; nothing passes until it is up")
        }
        Change::Up => {
            tracing::info!(network = name, "the uplink is up: {interface}");
            if let Err(error) = mode::restore(network, interface) {
                tracing::warn!(network = name, "{error}");
            }
        }
        Change::Renamed(before) => {
            tracing::info!(network = name, "the uplink was renamed: {before} is {interface} now")
        }
        Change::Appeared | Change::Vanished | Change::Mtu(_) | Change::Mac(_) => {}
    }
}

/// Whether there is surely no interface of this name now. A worker hears of a device's end before its monitor does, and
/// a tap that is not there would be made.
fn is_absent(name: &IfName) -> bool {
    Netlink::open().and_then(|mut netlink| netlink.link(name.as_str())).is_ok_and(|link| link.is_none())
}

/// The interface without which there is no uplink; none: we make our own.
fn needed_interface(network: &Network) -> Option<IfName> {
    match &network.mode {
        Mode::Internal(_) | Mode::Nat(_) => None,
        Mode::HostOnly(host_only) => named(&host_only.tap),
        Mode::Bridged(bridged) => match &bridged.via {
            Via::Nic(name) | Via::Bridge(name) => Some(name.clone()),
            Via::Tap(source) => named(source),
        },
    }
}

fn named(source: &TapSource) -> Option<IfName> {
    if let TapSource::Name(name) = source { Some(name.clone()) } else { None }
}

/// Whether a change of the interface that is needed leaves us with a device of no use, though that is still there.
fn parts_us(network: &Network, change: &Change) -> bool {
    let Mode::Bridged(bridged) = &network.mode else { return false };
    match &bridged.via {
        Via::Nic(_) => matches!(change, Change::Vanished | Change::Mac(_)),
        // Our tap stays behind, in no bridge. A bridge of the same name is another.
        Via::Bridge(_) => matches!(change, Change::Vanished),
        Via::Tap(_) => false,
    }
}

/// The file that keeps a network's leases, in a folder that is made if need be.
fn open_lease_file(network: &Network) -> Option<LeaseFile> {
    let chosen = network.services().and_then(|services| services.dhcp.as_ref()?.leases.clone());
    let is_root = nix::unistd::geteuid().is_root();
    let path = chosen.or_else(|| lease_file(&network.name, is_root, |name| std::env::var_os(name)));
    let Some(path) = path else {
        tracing::warn!(network = network.name.as_str(), "leases are not kept: set HOME, or name a file for them");
        return None;
    };
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new(""))
        && let Err(error) = fs::create_dir_all(folder)
    {
        tracing::warn!(network = network.name.as_str(), "the folder {} cannot be made: {error}", folder.display());
    }
    LeaseFile::new(path)
}
