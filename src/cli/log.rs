//! Log lines: to the standard error, in colour when a person reads them.
//!
//! Theory of operation. Whoever reads the log may be slow, gone, or a full disk, and a worker that logs must neither
//! wait for that nor end of it. A thread of its own writes; lines wait for it in a queue, and one that finds the queue
//! full is left out and counted, and the count is written as soon as there is room. What cannot be written is lost. The
//! thread sleeps while nobody logs.
//!
//! Limits: [`LINES_WAITING_MAX`] lines in the queue, [`FLUSH_MAX`] for the reader to take them at the end.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::config::Verbosity;
use crate::sys::signals::with_none_for_new_threads;

/// Lines that wait while the reader is slow.
const LINES_WAITING_MAX: usize = 1024;
/// How long the end of the process waits for the reader.
pub const FLUSH_MAX: Duration = Duration::from_millis(20);

/// The variable that says in detail what to log, and overrules the flags.
pub const FILTER_VARIABLE: &str = "GUESTWIRE_LOG";

/// What the thread is told.
enum Message {
    Line(Vec<u8>),
    /// To answer once everything before is written.
    Flush(SyncSender<()>),
}

/// Takes lines to the thread. Never waits.
#[derive(Clone)]
struct Queue {
    messages: SyncSender<Message>,
    left_out: Arc<AtomicU64>,
}

impl Write for Queue {
    /// One event, whole: the subscriber writes each in one go.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.messages.try_send(Message::Line(line.to_vec())).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log. Lives as long as the process.
pub struct Log(Queue);

impl Log {
    /// Waits a moment until what was logged is written.
    pub fn finish(self) {
        let (done, written) = sync_channel(1);
        if self.0.messages.try_send(Message::Flush(done)).is_ok() {
            // Time is up or it is written: either way we do not wait longer.
            let _ = written.recv_timeout(FLUSH_MAX);
        }
    }
}

/// Writes to `sink` what comes through the queue, until its other end is gone.
fn write_all(queue: &Receiver<Message>, left_out: &AtomicU64, mut sink: impl Write) {
    for message in queue {
        let missing = left_out.swap(0, Ordering::Relaxed);
        // Nobody is left to tell that a line cannot be written.
        if missing > 0 {
            let _ = writeln!(sink, "{missing} lines of the log were left out: its reader was slow");
        }
        match message {
            Message::Line(line) => {
                let _ = sink.write_all(&line);
            }
            Message::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Starts logging.
///
/// # Errors
/// When [`FILTER_VARIABLE`] makes no sense, or there can be no thread; the message says why.
pub fn start(verbosity: Verbosity) -> Result<Log, String> {
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
    let (messages, waiting) = sync_channel(LINES_WAITING_MAX);
    let queue = Queue { messages, left_out: Arc::default() };
    let left_out = queue.left_out.clone();
    let write = move || write_all(&waiting, &left_out, io::stderr());
    let thread = thread::Builder::new().name("log".into());
    with_none_for_new_threads(|| thread.spawn(write)).map_err(|e| format!("error: no thread for the log: {e}"))?;
    let writer = queue.clone();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || writer.clone())
        .with_ansi(colour)
        .with_target(false)
        .init();
    Ok(Log(queue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_find_no_room_are_counted_and_the_count_is_told() {
        let (messages, waiting) = sync_channel(2);
        let mut queue = Queue { messages, left_out: Arc::default() };
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            assert_eq!(queue.write(line.as_bytes()).unwrap(), line.len());
        }
        let left_out = queue.left_out.clone();
        drop(queue);
        let mut text = Vec::new();
        write_all(&waiting, &left_out, &mut text);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "2 lines of the log were left out: its reader was slow\none\ntwo\n");
    }

    #[test]
    fn what_cannot_be_written_ends_nothing() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (messages, waiting) = sync_channel(8);
        let mut queue = Queue { messages, left_out: Arc::new(AtomicU64::new(3)) };
        queue.write_all(b"a line\n").unwrap();
        let left_out = queue.left_out.clone();
        let writer = thread::spawn(move || write_all(&waiting, &left_out, full));
        Log(queue).finish();
        writer.join().unwrap();
    }
}
