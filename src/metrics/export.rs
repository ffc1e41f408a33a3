//! Statistics as lines of JSON.
//!
//! Theory of operation. A line is one [`Report`]: the counters of every port at one moment. Whoever reads them may be
//! slow, gone, or a full disk, and none of that may hold up the process: a thread of its own writes, lines wait for it
//! in a short queue, and a line that finds the queue full is left out. Each kind of trouble is logged when it begins,
//! not once per line. The thread exists only where statistics are wanted, and sleeps between two lines.
//!
//! Limits: [`LINES_WAITING_MAX`] lines in the queue, [`FLUSH_MAX`] for the reader to take them at the end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::{Counter, PortCounters, WorkerCounters};

/// Lines, each with those of all networks at the same moment, that wait while the reader is slow.
pub const LINES_WAITING_MAX: usize = 8;
/// How long the end of the process waits for the reader.
pub const FLUSH_MAX: Duration = Duration::from_millis(30);

/// One line: a network at one moment.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Seconds since 1970-01-01 00:00 UTC, to the millisecond.
    pub time: f64,
    /// The network's name.
    pub network: &'a str,
    /// Its workers.
    pub workers: Vec<WorkerReport>,
    /// Its ports, in the order of their numbers; one that has ended is listed one last time.
    pub ports: Vec<PortReport>,
}

/// What one worker has done by one moment. What is in neither of its times it has slept.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerReport {
    /// Its number, which its thread's name has too.
    pub worker: usize,
    /// Nanoseconds in turns that found something to do.
    pub busy_ns: u64,
    /// Nanoseconds in turns that polled and found nothing.
    pub idle_ns: u64,
    /// Frames taken from transmit rings.
    pub packets: u64,
    /// Bursts that they came in.
    pub batches: u64,
    /// Times that it slept and was woken.
    pub wakeups: u64,
}

impl WorkerReport {
    /// Reads the counters of the worker with this number.
    pub fn new(worker: usize, counters: &WorkerCounters) -> Self {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Self {
            worker,
            busy_ns: read(&counters.busy_ns),
            idle_ns: read(&counters.idle_ns),
            packets: read(&counters.packets),
            batches: read(&counters.batches),
            wakeups: read(&counters.wakeups),
        }
    }
}

/// One port's counters at one moment.
#[derive(Clone, Debug)]
pub struct PortReport {
    /// The port's number.
    pub port: u32,
    /// The name under which it was declared, if it was.
    pub name: Option<String>,
    /// Whether it has ended, so that these are its last figures.
    pub ended: bool,
    values: [u64; Counter::ALL.len()],
}

impl PortReport {
    /// Reads the counters of the port with this number, of all of its queues that have some of their own.
    pub fn new<'a>(
        port: u32,
        name: Option<String>,
        ended: bool,
        queues: impl IntoIterator<Item = &'a PortCounters>,
    ) -> Self {
        let mut values = [0_u64; Counter::ALL.len()];
        for counters in queues {
            for (value, &counter) in values.iter_mut().zip(Counter::ALL) {
                *value = value.wrapping_add(counters.get(counter));
            }
        }
        Self { port, name, ended, values }
    }
}

impl Serialize for PortReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("port", &self.port)?;
        if let Some(name) = &self.name {
            map.serialize_entry("name", name)?;
        }
        if self.ended {
            map.serialize_entry("ended", &true)?;
        }
        for (counter, value) in Counter::ALL.iter().zip(self.values) {
            map.serialize_entry(counter.name(), &value)?;
        }
        map.end()
    }
}

/// A time as [`Report::time`] has it.
pub fn seconds(time: SystemTime) -> f64 {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u32::try_from(millis % 1000).map(f64::from).unwrap_or(0.0) / 1000.0
        + Duration::from_secs(u64::try_from(millis / 1000).unwrap_or(0)).as_secs_f64()
}

/// Writes lines, in a thread of its own.
#[derive(Debug)]
pub struct Exporter {
    lines: SyncSender<String>,
    done: Receiver<()>,
    behind: bool,
}

impl Exporter {
    /// Starts the thread. `name` says in log lines where the lines go.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(name: String, sink: File) -> io::Result<Self> {
        let (lines, queue) = sync_channel::<String>(LINES_WAITING_MAX);
        let (finished, done) = channel();
        thread::Builder::new().name("stats".into()).spawn(move || {
            let mut writer = LineWriter { name, sink, cut: false, failing: false };
            queue.iter().for_each(|line| writer.write(line));
            // Nobody may be waiting any more.
            let _ = finished.send(());
        })?;
        Ok(Self { lines, done, behind: false })
    }

    /// Hands lines to the thread, all or none. Never waits.
    pub fn write(&mut self, reports: &[Report<'_>]) {
        let mut lines = String::new();
        for report in reports {
            match serde_json::to_string(report) {
                Ok(line) => lines.push_str(&line),
                Err(error) => return tracing::error!(%error, "statistics cannot be written as JSON"),
            }
            lines.push('\n');
        }
        match self.lines.try_send(lines) {
            Ok(()) => self.behind = false,
            Err(TrySendError::Full(_)) if !self.behind => {
                self.behind = true;
                tracing::warn!("statistics: the reader is slow; lines are left out until it has caught up");
            }
            Err(_) => {}
        }
    }

    /// Waits a moment until the lines are written.
    pub fn finish(self) {
        drop(self.lines);
        // Time is up or the thread has ended: either way we do not wait longer.
        let _ = self.done.recv_timeout(FLUSH_MAX);
    }
}

/// The standard output as a file of our own, so that writing to it takes no lock that others wait for.
///
/// # Errors
/// When it is closed.
pub fn stdout_file() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

struct LineWriter {
    name: String,
    sink: File,
    /// The line before was written in part only.
    cut: bool,
    /// The line before was not written, and that was logged.
    failing: bool,
}

impl LineWriter {
    fn write(&mut self, mut line: String) {
        if self.cut {
            line.insert(0, '\n');
        }
        match write_whole(&mut self.sink, line.as_bytes()) {
            Ok(()) => (self.cut, self.failing) = (false, false),
            Err((written, error)) => {
                self.cut |= written > 0;
                if !self.failing {
                    self.failing = true;
                    tracing::warn!(to = %self.name, %error, "statistics cannot be written; going on without");
                }
            }
        }
    }
}

/// Like `write_all`, and tells how much was written before an error.
fn write_whole(sink: &mut File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((written, e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};

    fn report(port: u32) -> Report<'static> {
        let counters = PortCounters::default();
        counters.owner.add(Counter::TxFrames, 3);
        counters.giver.add(Counter::TxFrames, 4);
        let worker = WorkerCounters::default();
        WorkerCounters::add(&worker.busy_ns, 250);
        let workers = vec![WorkerReport::new(1, &worker)];
        Report { time: 1.5, network: "lab", workers, ports: vec![PortReport::new(port, None, true, [&counters])] }
    }

    fn pipe() -> (File, File) {
        let (read, write) = nix::unistd::pipe().unwrap();
        (File::from(read), File::from(write))
    }

    #[test]
    fn a_line_is_one_object_with_every_counter() {
        let (read, write) = pipe();
        let mut exporter = Exporter::start("pipe".into(), write).unwrap();
        exporter.write(&[report(3)]);
        exporter.finish();
        let mut text = String::new();
        BufReader::new(read).read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["time"], 1.5);
        assert_eq!(value["network"], "lab");
        let worker = &value["workers"][0];
        assert_eq!((&worker["worker"], &worker["busy_ns"], &worker["packets"]), (&1.into(), &250.into(), &0.into()));
        let port = &value["ports"][0];
        assert_eq!((&port["port"], &port["ended"]), (&3.into(), &true.into()));
        for counter in Counter::ALL {
            let expected = if *counter == Counter::TxFrames { 7 } else { 0 };
            assert_eq!(port[counter.name()], expected, "{}", counter.name());
        }
        assert_eq!(port.as_object().unwrap().len(), Counter::ALL.len() + 2);
    }

    #[test]
    fn a_full_disk_is_survived() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut exporter = Exporter::start("full".into(), full).unwrap();
        for port in 0..100 {
            exporter.write(&[report(port)]);
        }
        exporter.finish();
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up() {
        let (read, write) = pipe();
        let mut exporter = Exporter::start("pipe".into(), write).unwrap();
        // Far more than a pipe and the queue hold: the writer thread is stuck, and we are not.
        let was_behind = (0..1000).fold(false, |behind, port| {
            exporter.write(&[report(port)]);
            behind || exporter.behind
        });
        assert!(was_behind);
        exporter.finish();
        let lines = BufReader::new(read).lines().map(|line| line.unwrap());
        lines.for_each(|line| assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{line}"));
    }

    #[test]
    fn a_line_after_a_cut_one_starts_anew() {
        let (read, write) = pipe();
        let mut writer = LineWriter { name: "pipe".into(), sink: write, cut: true, failing: true };
        writer.write("{}\n".into());
        assert!(!writer.cut && !writer.failing);
        drop(writer);
        let mut text = String::new();
        BufReader::new(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "\n{}\n");
    }

    #[test]
    fn times_have_milliseconds() {
        assert_eq!(seconds(UNIX_EPOCH + Duration::from_millis(1_700_000_000_250)), 1_700_000_000.25);
        assert_eq!(seconds(UNIX_EPOCH - Duration::from_secs(1)), 0.0);
    }
}
