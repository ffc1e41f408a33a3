//! Log lines: to the standard error, in colour when a person reads them.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::Verbosity;

/// The variable that says in detail what to log, and overrules the flags.
pub const FILTER_VARIABLE: &str = "GUESTWIRE_LOG";

/// Starts logging.
///
/// # Errors
/// When [`FILTER_VARIABLE`] makes no sense; the message says why.
pub fn start(verbosity: Verbosity) -> Result<(), String> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => EnvFilter::try_new(text).map_err(|e| format!("error: {FILTER_VARIABLE} is not a filter: {e}"))?,
        Err(_) => EnvFilter::new(match verbosity {
            Verbosity::Quiet => "warn",
            Verbosity::Normal => "info",
            Verbosity::Debug => "debug",
            Verbosity::Trace => "trace",
        }),
    };
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
    Ok(())
}
