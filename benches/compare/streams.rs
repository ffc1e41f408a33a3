//! Streams of bytes over TCP, each byte of which is checked when it comes. `benches/compare` has one end of them
//! itself; this program is the other one, in a guest or on the host, compiled as `round_trips` is.
//!
//! `streams send ADDRESS PORT STREAMS` sends until the other end takes no more. `streams receive ADDRESS PORT STREAMS
//! MILLISECONDS` takes what comes in that time and prints how many bytes that was. Either prints how long it took until
//! a connection was there, of all the shortest time.
//!
//! Each connection begins with eight bytes of who makes it, a number from which follows all that is sent over it, one
//! way or the other: bytes of another stream, or from another place of the same, are found out.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are made, or checked, in one go.
const CHUNK: usize = 128 * 1024;
/// Longer than a connection or a byte takes to come where all is well, however far it is.
const PATIENCE: Duration = Duration::from_secs(30);

#[allow(dead_code, reason = "a part of benches/compare too")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["send", address, port, streams] => each(address, port, streams, |stream, seed| send(stream, seed).map(|()| 0)),
        ["receive", address, port, streams, milliseconds] => parsed(milliseconds).and_then(|milliseconds| {
            let time = Duration::from_millis(milliseconds);
            each(address, port, streams, move |stream, seed| receive(stream, seed, time))
        }),
        _ => Err(Error::other("usage: streams send ADDRESS PORT STREAMS | receive ADDRESS PORT STREAMS MILLISECONDS")),
    };
    if let Err(error) = result {
        eprintln!("streams: {error}");
        std::process::exit(1);
    }
}

fn parsed(text: &str) -> Result<u64> {
    text.parse().map_err(Error::other)
}

/// Makes so many connections at once, and does something with each.
fn each(
    address: &str,
    port: &str,
    streams: &str,
    work: impl Fn(&TcpStream, u64) -> Result<u64> + Copy + Send + 'static,
) -> Result<()> {
    let to: SocketAddr = format!("{address}:{port}").parse().map_err(Error::other)?;
    let made = (1..=parsed(streams)?).map(|seed| {
        thread::spawn(move || -> Result<(Duration, u64)> {
            let begin = Instant::now();
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            let connected = begin.elapsed();
            stream.write_all(&seed.to_be_bytes())?;
            Ok((connected, work(&stream, seed)?))
        })
    });
    let made: Vec<_> = made.collect();
    let done: Vec<(Duration, u64)> =
        made.into_iter().map(|thread| thread.join().expect("no thread panics")).collect::<Result<_>>()?;
    let connected = done.iter().map(|(connected, _)| *connected).min().unwrap_or_default();
    let bytes: u64 = done.iter().map(|(_, bytes)| bytes).sum();
    println!(r#"{{"bytes": {bytes}, "connected_us": {}}}"#, connected.as_micros());
    Ok(())
}

/// The number that the other end's connection begins with.
#[allow(dead_code, reason = "benches/compare has it")]
pub(crate) fn seed_of(mut stream: &TcpStream) -> Result<u64> {
    let mut bytes = [0; 8];
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// Sends what follows from the number until the other end takes no more.
pub(crate) fn send(mut stream: &TcpStream, seed: u64) -> Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut chunk = vec![0; CHUNK];
    for number in 0.. {
        fill(&mut chunk, seed, number);
        match stream.write_all(&chunk) {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            result => result?,
        }
    }
    Ok(())
}

/// Takes what comes in so much time. Returns how many bytes it was; what is not what was sent is an error.
pub(crate) fn receive(mut stream: &TcpStream, seed: u64, time: Duration) -> Result<u64> {
    let end = Instant::now() + time;
    let (mut chunk, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    for number in 0.. {
        fill(&mut right, seed, number);
        let mut at = 0;
        while at < CHUNK {
            let had = number * CHUNK as u64 + at as u64;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(had);
            }
            stream.set_read_timeout(Some(left))?;
            let read = match stream.read(&mut chunk[at..]) {
                Ok(0) => return Err(Error::other(format!("nothing more comes after {had} bytes"))),
                Ok(read) => read,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(had),
                Err(error) => return Err(error),
            };
            if chunk[at..at + read] != right[at..at + read] {
                return Err(Error::other(format!("of {read} bytes after {had}, some are not what was sent")));
            }
            at += read;
        }
    }
    Ok(0)
}

/// The chunk of this number (SplitMix64 of the numbers of its words).
fn fill(chunk: &mut [u8], seed: u64, number: u64) {
    let first = (seed << 48) + number * (CHUNK as u64 / 8);
    for (at, word) in (first..).zip(chunk.chunks_exact_mut(8)) {
        let mut mixed = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_ne_bytes());
    }
}
