//! A child process's output, collected by threads, and awaited with deadlines.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Text that grows as its writer writes it.
#[derive(Clone, Default)]
pub(crate) struct Console(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    text: String,
    writers: usize,
}

impl Console {
    /// Collects everything that comes out of `output` until it ends.
    pub(crate) fn collect(&self, mut output: impl Read + Send + 'static) {
        self.lock().writers += 1;
        let console = self.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut chunk) {
                console.lock().text.push_str(&String::from_utf8_lossy(&chunk[..length]).replace('\r', ""));
                console.0.changed.notify_all();
            }
            console.lock().writers -= 1;
            console.0.changed.notify_all();
        });
    }

    /// How much has come so far, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.lock().text.len()
    }

    /// Waits until `find` finds what it looks for in the text from byte `from` on. `None` when it has not come within
    /// `within` or when the writer has ended without it.
    pub(crate) fn wait_for<T>(&self, from: usize, within: Duration, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + within;
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&state.text[from..]) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.writers == 0 {
                return None;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the writers have ended; whether they have.
    pub(crate) fn ended(&self, within: Duration) -> bool {
        self.wait_for(0, within, |_| None::<()>);
        self.lock().writers == 0
    }

    /// The last `lines` lines.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let state = self.lock();
        let all: Vec<&str> = state.text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
