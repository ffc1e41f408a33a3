//! What the user is told: statistics and the log.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{Problem, file_path, problem};

/// The longest time between two lines of statistics, in seconds: a day.
pub const STATS_INTERVAL_SECONDS_MAX: f64 = 86_400.0;
/// The shortest time between two lines of statistics, in seconds.
pub const STATS_INTERVAL_SECONDS_MIN: f64 = 0.01;

/// Where statistics go and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Where.
    pub target: StatsTarget,
    /// The time between two lines.
    pub interval: StatsInterval,
}

/// Where statistics go.
#[derive(Clone, Debug, PartialEq)]
pub enum StatsTarget {
    /// The standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// The time between two lines of statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsInterval(Duration);

impl StatsInterval {
    /// One second: the default.
    pub const SECOND: StatsInterval = StatsInterval(Duration::from_secs(1));

    /// The time.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl Default for StatsInterval {
    fn default() -> Self {
        Self::SECOND
    }
}

impl FromStr for StatsInterval {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse::<f64>() {
            Ok(s) if (STATS_INTERVAL_SECONDS_MIN..=STATS_INTERVAL_SECONDS_MAX).contains(&s) => {
                Ok(Self(Duration::from_secs_f64(s)))
            }
            _ => problem(format!(
                "not a number of seconds from {STATS_INTERVAL_SECONDS_MIN} to {STATS_INTERVAL_SECONDS_MAX}"
            )),
        }
    }
}

impl StatsTarget {
    /// `-` is the standard output, all else a file.
    ///
    /// # Errors
    /// When no file can have that name.
    pub fn new(text: OsString) -> Result<Self, Problem> {
        if text == "-" { Ok(Self::Stdout) } else { file_path(text).map(Self::File) }
    }
}

/// How much to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// Ports that come and go, too.
    Normal,
    /// What sessions negotiate, too.
    Debug,
    /// Everything.
    Trace,
}

impl Verbosity {
    /// All words for it.
    pub const WORDS: &'static [&'static str] = &["quiet", "normal", "debug", "trace"];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Verbosity::Quiet => "quiet",
            Verbosity::Normal => "normal",
            Verbosity::Debug => "debug",
            Verbosity::Trace => "trace",
        }
    }
}

impl FromStr for Verbosity {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text {
            "quiet" => Ok(Verbosity::Quiet),
            "normal" => Ok(Verbosity::Normal),
            "debug" => Ok(Verbosity::Debug),
            "trace" => Ok(Verbosity::Trace),
            _ => problem("not a level of the log: quiet, normal, debug or trace"),
        }
    }
}
