//! Recording: a relay between a real frontend and a real guestwire that writes a script.
#![allow(clippy::unwrap_used, reason = "a tool of the tests: a failure is a panic")]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;

use guestwire::vhost::channel;

use script::{Line, Said};

#[allow(dead_code, reason = "the recorder writes scripts and does not read them")]
mod script;

/// Relays one connection from `GUESTWIRE_RECORD_SOCKET` to `GUESTWIRE_RECORD_BACKEND` and writes what was said to
/// `GUESTWIRE_RECORD_FILE`. See `fixtures/README.md`.
fn main() {
    let variable = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("set {name}"));
    let listener = UnixListener::bind(variable("GUESTWIRE_RECORD_SOCKET")).expect("a socket");
    let (frontend, _) = listener.accept().expect("a frontend");
    let backend = UnixStream::connect(variable("GUESTWIRE_RECORD_BACKEND")).expect("guestwire");
    let file = Mutex::new(File::create(variable("GUESTWIRE_RECORD_FILE")).expect("a file"));
    std::thread::scope(|scope| {
        scope.spawn(|| relay(&frontend, &backend, &file, Line::Request));
        scope.spawn(|| relay(&backend, &frontend, &file, Line::Answer));
    });
}

fn relay(from: &UnixStream, to: &UnixStream, file: &Mutex<File>, line: fn(Said) -> Line) {
    while let Ok(message) = channel::receive(from.as_fd(), None) {
        // Written before it is passed on, so that an answer never stands before its request.
        writeln!(file.lock().expect("not poisoned"), "{}", line(Said::of(&message))).expect("the file");
        if channel::send(to.as_fd(), &message).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
