//! Lines of statistics: when one is due and what is in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::SystemTime;

use super::ports::{EndedPort, Ports};
use super::timer::Timer;
use crate::config::{Stats, StatsTarget};
use crate::metrics::WorkerCounters;
use crate::metrics::export::{Exporter, PortReport, Report, WorkerReport, seconds, stdout_file};

/// Ended ports whose last figures wait for the next line; when there are as many, the line is written early.
pub(super) const ENDED_PORTS_MAX: usize = 256;

/// Statistics of one network.
#[derive(Debug)]
pub(super) struct Statistics {
    network: String,
    exporter: Exporter,
    timer: Timer,
    workers: Vec<Arc<WorkerCounters>>,
    ended: Vec<PortReport>,
}

impl Statistics {
    /// Opens the target and starts the timer.
    pub(super) fn start(network: String, stats: &Stats) -> io::Result<Self> {
        let (name, sink) = match &stats.target {
            StatsTarget::Stdout => ("the standard output".to_owned(), stdout_file()?),
            StatsTarget::File(path) => {
                (path.display().to_string(), std::fs::OpenOptions::new().append(true).create(true).open(path)?)
            }
        };
        let timer = Timer::new()?;
        timer.every(stats.interval.duration())?;
        Ok(Self { network, exporter: Exporter::start(name, sink)?, timer, workers: Vec::new(), ended: Vec::new() })
    }

    /// The workers whose figures are in each line from now on.
    pub(super) fn observe(&mut self, workers: Vec<Arc<WorkerCounters>>) {
        self.workers = workers;
    }

    /// The timer, to wait for.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Takes note of a port's last figures.
    pub(super) fn ended(&mut self, port: &EndedPort, ports: &Ports) {
        self.ended.push(port.report.clone());
        if self.ended.len() >= ENDED_PORTS_MAX {
            self.write(ports);
        }
    }

    /// Writes the line that is due.
    pub(super) fn due(&mut self, ports: &Ports) -> io::Result<()> {
        self.timer.take()?;
        self.write(ports);
        Ok(())
    }

    fn write(&mut self, ports: &Ports) {
        let mut reports = std::mem::take(&mut self.ended);
        reports.extend(ports.reports());
        reports.sort_by_key(|report| report.port);
        let workers = self.workers.iter().enumerate().map(|(number, counters)| WorkerReport::new(number, counters));
        self.exporter.write(&Report {
            time: seconds(SystemTime::now()),
            network: &self.network,
            workers: workers.collect(),
            ports: reports,
        });
    }

    /// Writes the last line and waits a moment until it is out.
    pub(super) fn finish(mut self, ports: &Ports) {
        self.write(ports);
        self.exporter.finish();
    }
}
