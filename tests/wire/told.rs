//! A guest that looks at its ring only when it is told to, as most do, while data streams to it: interrupts that are
//! held back must still come.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use etherparse::TcpOptionElement;

use crate::daemon::PATIENCE;
use crate::nat::{Talker, world};

const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 7, 0, 2), 4000);
const PORT: u16 = 1000;
const PARTS: [usize; 2] = [100_000, 3000];
const STREAMS: usize = 60;
/// Shorter than the time after which the gateway sends again, and long beside what is held back; a busy machine may
/// take longer now and then.
const SOON: Duration = Duration::from_millis(100);

#[test]
fn a_guest_that_waits_to_be_told_gets_all_of_a_stream() {
    let (mut daemon, _host, machine) = world(&[]);
    let listener = machine.run(|| TcpListener::bind(SERVER).unwrap());
    let mut talker = Talker::new(&daemon, 1);
    let options = [TcpOptionElement::MaximumSegmentSize(1460), TcpOptionElement::WindowScale(7)];
    let mut frame = Vec::new();
    let syn = talker.ip(SERVER.0).tcp(PORT, SERVER.1, 7, 65_000).syn().options(&options).unwrap();
    syn.write(&mut frame, b"").unwrap();
    talker.guest.send(&frame);
    let heard = std::iter::repeat_with(|| talker.hear()).find(|heard| heard.syn).unwrap();
    assert!(heard.scale.is_some());
    let mut next = heard.seq + 1;
    talker.tcp(PORT, SERVER, (8, Some(next)), "", b"");
    let (mut server, _) = listener.accept().unwrap();
    let mut late = 0;
    for stream in 0..STREAMS {
        while talker.poll_tcp().is_some() {}
        // A little more right behind what is a lot: it is held back.
        for len in PARTS {
            server.write_all(&vec![stream as u8; len]).unwrap();
            let end = next.wrapping_add(len as u32);
            while next != end {
                let begun = Instant::now();
                while talker.guest.receive[0].call.read().is_err() {
                    assert!(begun.elapsed() < PATIENCE, "stream {stream}: nobody tells of anything");
                }
                late += usize::from(begun.elapsed() > SOON);
                while let Some(heard) = talker.poll_tcp() {
                    // What it is not told of comes again.
                    if heard.seq == next {
                        next = next.wrapping_add(heard.payload.len() as u32);
                    }
                }
            }
        }
        talker.tcp(PORT, SERVER, (8, Some(next)), "", b"");
    }
    assert!(late <= STREAMS / 12, "it was told late {late} times");
    daemon.assert_alive();
}
