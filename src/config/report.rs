//! What the user is told: statistics and the log.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{Problem, problem};

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
