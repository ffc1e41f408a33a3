//! Small requests and their answers over TCP, one at a time, and how long each takes. Runs inside a guest.
//!
//! `round_trips serve PORT` answers for ever; `round_trips ask ADDRESS PORT SECONDS` asks and prints percentiles as
//! JSON. The load "guests" compiles it with rustc alone, linked statically: a guest has next to no libraries.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Bytes of a request and of an answer.
const LEN: usize = 64;
/// A driver and a TCP that have just begun are slower than they will be.
const WARM_UP: Duration = Duration::from_millis(500);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["serve", port] => serve(port),
        ["ask", address, port, seconds] => ask(address, port, seconds),
        _ => Err(std::io::Error::other("usage: round_trips serve PORT | ask ADDRESS PORT SECONDS")),
    };
    if let Err(error) = result {
        eprintln!("round_trips: {error}");
        std::process::exit(1);
    }
}

fn serve(port: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; LEN];
        while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
    }
}

fn ask(address: &str, port: &str, seconds: &str) -> std::io::Result<()> {
    let seconds: u64 = seconds.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect(format!("{address}:{port}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut bytes = [0x5a; LEN];
    let mut nanoseconds = Vec::with_capacity(1 << 20);
    let begin = Instant::now();
    loop {
        let before = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        let now = Instant::now();
        if now - begin > WARM_UP + Duration::from_secs(seconds) {
            break;
        }
        if before - begin > WARM_UP {
            nanoseconds.push(u64::try_from((now - before).as_nanos()).unwrap_or(u64::MAX));
        }
    }
    nanoseconds.sort_unstable();
    let Some(last) = nanoseconds.len().checked_sub(1) else {
        return Err(std::io::Error::other("no answer"));
    };
    let at = |thousandths: usize| nanoseconds[last * thousandths / 1000] as f64 / 1000.0;
    println!(
        r#"{{"count": {}, "p50_us": {:.1}, "p99_us": {:.1}, "p999_us": {:.1}, "max_us": {:.1}}}"#,
        nanoseconds.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    );
    Ok(())
}
