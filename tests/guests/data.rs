//! Much data through a guest, which must not change on its way.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::guest::{COMMAND_WITHIN, Guest};
use crate::lan::until;
use crate::space::Space;

const CHUNK: usize = 1 << 20;

/// Sends data from `address`, which is a machine's, to a guest, which sends it back over the same connection at the
/// same time; it must be the same.
pub(crate) fn echo(machine: &Space, address: &str, guest: &mut Guest, megabytes: usize, within: Duration) {
    let mut job = None;
    echo_of(machine, address, megabytes * CHUNK, |command| job = Some(guest.begin(command)));
    guest.finish(job.expect("it was begun"), within);
}

/// The same with anybody who runs the command that `begin` is told. Returns how long it took from when the connection
/// was there.
pub(crate) fn echo_of(machine: &Space, address: &str, bytes: usize, begin: impl FnOnce(&str)) -> Duration {
    let listener = machine.run(|| TcpListener::bind((address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    // The connection is dd's input and output.
    begin(&format!("nc {address} {port} -e dd bs=256k"));
    let mut stream = accept(&listener);
    let start = Instant::now();
    let mut out = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let sent = write_random(&mut out, bytes);
        out.shutdown(Shutdown::Write).unwrap();
        sent
    });
    let received = sha256(&mut stream);
    assert_eq!(received, (sender.join().unwrap(), bytes), "data has changed on its way there and back");
    start.elapsed()
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let (stream, _) = until("a guest connects", || listener.accept());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(COMMAND_WITHIN)).unwrap();
    stream.set_write_timeout(Some(COMMAND_WITHIN)).unwrap();
    stream
}

/// Writes so many bytes that are the same each time and repeat nowhere near; their SHA-256.
pub(crate) fn write_random(out: &mut impl Write, bytes: usize) -> String {
    let (mut hash, mut state, mut chunk) = (Sha256::new(), 0x9e37_79b9_7f4a_7c15_u64, vec![0; CHUNK]);
    let mut left = bytes;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes());
        }
        let part = &chunk[..left.min(CHUNK)];
        hash.update(part);
        out.write_all(part).unwrap();
        left -= part.len();
    }
    hex(hash)
}

/// The SHA-256 of all that there is to read, and how many bytes that are.
pub(crate) fn sha256(input: &mut impl Read) -> (String, usize) {
    let (mut hash, mut len, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
    while let read @ 1.. = input.read(&mut chunk).unwrap() {
        hash.update(&chunk[..read]);
        len += read;
    }
    (hex(hash), len)
}

pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
