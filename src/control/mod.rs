//! Control: how VMs come in, how they go, and how the process ends.
//!
//! Theory of operation. The main thread is the supervisor: an epoll loop whose [`source::Source`]s are all there is to
//! wait for. It accepts and makes connections, gives each a port and a session (`ports`), and hears when one has ended.
//! Any number of networks run side by side (`running`), each with workers of its own, and they come, go and change when
//! the configuration is read again (`reload`).
//! It never touches a ring and no frame passes through it, so whatever it does or waits for holds up no traffic; and
//! nothing it does may wait for a VMM, so a stalled one holds up neither the others nor the end of the process.
//!
//! Limits: a descriptor shortage pauses the listeners (`listeners`) until a port has ended or [`RESUME_AFTER`] has
//! passed, and never makes the loop spin. The end of the process waits for the worker, which is never long, for no
//! session, and [`FLUSH_MAX`](crate::metrics::export::FLUSH_MAX) for whoever reads statistics.

mod backoff;
mod beyond;
mod clients;
mod hints;
mod holdings;
pub mod leases;
mod listeners;
mod ports;
mod reload;
mod running;
mod source;
mod start;
mod statistics;
mod supervisor;
mod timer;
mod ways;

use std::time::Duration;

pub use hints::instructions;
pub use start::StartError;

use crate::config::Config;
use crate::sys::malloc::use_one_arena;

/// How long a listener that ran into a shortage of descriptors rests, unless a port ends earlier.
pub const RESUME_AFTER: Duration = Duration::from_secs(1);
/// Descriptors that one port holds, about: a connection or two, memory, and kick, call and error of its rings.
pub const FDS_PER_PORT: u64 = 15;
/// Descriptors that are kept free for the ports that exist: a frontend sends new ones whenever its guest pleases.
pub const FDS_SPARE: u64 = 16;

/// How long the process may take to end: what it waits for one after the other.
const END_MS: u128 = crate::worker::STOP_MAX_MS as u128 + crate::metrics::export::FLUSH_MAX.as_millis();

const _: () = assert!(END_MS < 70, "SIGTERM ends the process in under 100 ms, of which the log has 20");

/// Runs the networks until a signal ends it, or nothing is left that could bring a VM.
///
/// To be called first thing, while the process has one thread and no descriptors but those its parent left it.
///
/// # Errors
/// [`StartError`] when it cannot start, or when the loop itself fails.
pub fn run(config: &Config) -> Result<(), StartError> {
    use_one_arena();
    start::start(config)?.run()
}
