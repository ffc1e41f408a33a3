//! Lines of statistics: when they are due and where they go.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::running::Running;
use super::timer::Timer;
use crate::config::{Stats, StatsTarget};
use crate::metrics::export::{Exporter, Report, stdout_file};

/// Ended ports of a network whose last figures wait for the next line; when there are as many, it is written early.
pub(super) const ENDED_PORTS_MAX: usize = 256;

/// Statistics of all networks: a line for each.
#[derive(Debug)]
pub(super) struct Statistics {
    exporter: Exporter,
    timer: Timer,
}

impl Statistics {
    /// Opens the target and starts the timer.
    pub(super) fn start(stats: &Stats) -> io::Result<Self> {
        let (name, sink) = match &stats.target {
            StatsTarget::Stdout => ("the standard output".to_owned(), stdout_file()?),
            StatsTarget::File(path) => {
                (path.display().to_string(), std::fs::OpenOptions::new().append(true).create(true).open(path)?)
            }
        };
        let timer = Timer::new()?;
        timer.every(stats.interval.duration())?;
        Ok(Self { exporter: Exporter::start(name, sink)?, timer })
    }

    /// The timer, to wait for.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Takes note of the timer's having gone off.
    pub(super) fn take_timer(&self) -> io::Result<()> {
        self.timer.take()
    }

    /// Writes one line for each of the networks.
    pub(super) fn write<'a>(&mut self, networks: impl Iterator<Item = &'a mut Running>) {
        let reports: Vec<Report<'_>> = networks.map(Running::report).collect();
        self.exporter.write(&reports);
    }

    /// Waits a moment until the last line is out.
    pub(super) fn finish(self) {
        self.exporter.finish();
    }
}
