//! Small requests and their answers over TCP, one at a time, and how long each takes. Runs inside a guest.
//!
//! `round_trips serve PORT` answers for ever; `round_trips ask ADDRESS PORT SECONDS` asks and prints percentiles as
//! JSON. `serve-once` and `connect` do the same with a connection for each request, which the server closes: the side
//! that closes first keeps the pair of ports for a minute, and only the server has no use for them. `benches/compare`
//! compiles it with rustc alone, linked statically: a guest has next to no libraries.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Bytes of a request and of an answer.
const LEN: usize = 64;
/// A driver and a TCP that have just begun are slower than they will be.
const WARM_UP: Duration = Duration::from_millis(500);
/// Longer than an answer takes that comes at all.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["serve", port] => serve(port, usize::MAX),
        ["serve-once", port] => serve(port, 1),
        ["ask", address, port, seconds] => ask(address, port, seconds),
        ["connect", address, port, seconds] => connect(address, port, seconds),
        _ => Err(Error::other("usage: round_trips serve|serve-once PORT | ask|connect ADDRESS PORT SECONDS")),
    };
    if let Err(error) = result {
        eprintln!("round_trips: {error}");
        std::process::exit(1);
    }
}

/// Answers so many requests of each connection, one connection after the other.
fn serve(port: &str, requests: usize) -> Result<()> {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; LEN];
        let mut answer = || stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok();
        (0..requests).all(|_| answer());
    }
}

fn ask(address: &str, port: &str, seconds: &str) -> Result<()> {
    let mut stream = begin(address, port)?;
    let mut bytes = [0x5a; LEN];
    repeat(seconds, || {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)
    })
}

/// From a connection's first packet to the end of what comes over it.
fn connect(address: &str, port: &str, seconds: &str) -> Result<()> {
    let mut bytes = [0x5a; LEN];
    repeat(seconds, || {
        let mut stream = begin(address, port)?;
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        if stream.read(&mut [0])? == 0 { Ok(()) } else { Err(Error::other("more than was asked for")) }
    })
}

fn begin(address: &str, port: &str) -> Result<TcpStream> {
    let address: SocketAddr = format!("{address}:{port}").parse().map_err(Error::other)?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Does something again and again for so long, and prints how often in a second, and how long it took.
fn repeat(seconds: &str, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let seconds: u64 = seconds.parse().map_err(Error::other)?;
    let mut nanoseconds = Vec::with_capacity(1 << 20);
    let begin = Instant::now();
    loop {
        let before = Instant::now();
        work()?;
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
        return Err(Error::other("no answer"));
    };
    let at = |thousandths: usize| nanoseconds[last * thousandths / 1000] as f64 / 1000.0;
    // Nothing else is done meanwhile.
    let all = nanoseconds.iter().sum::<u64>() as f64 / 1e9;
    println!(
        r#"{{"count": {}, "per_second": {:.1}, "p50_us": {:.1}, "p99_us": {:.1}, "p999_us": {:.1}, "max_us": {:.1}}}"#,
        nanoseconds.len(),
        nanoseconds.len() as f64 / all,
        at(500),
        at(990),
        at(999),
        at(1000)
    );
    Ok(())
}
