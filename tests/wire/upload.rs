//! What goes one way only: a guest's bytes to somebody beyond NAT who reads when it likes and says nothing. Whenever
//! the guest is out of room it must be told when there is some: nothing else goes to it that could tell so by the way,
//! and this guest never asks.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use etherparse::TcpOptionElement;

use crate::daemon::{PATIENCE, until};
use crate::nat::{Heard, Talker, open, world};

const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 7, 0, 2), 4000);
const PORT: u16 = 1000;
const BYTES: usize = 8 << 20;
const SEGMENT: usize = 1400;
/// Numbers pass zero on the way.
const SEQ: u32 = 0xfff0_0000;
/// In which nobody says anything, if nobody has anything to say.
const QUIET: Duration = Duration::from_millis(50);

/// The guest's side. Places are counted from the first byte.
struct Upload<'a> {
    talker: &'a mut Talker,
    bytes: &'a [u8],
    sent: usize,
    /// The end of the room that the guest was told.
    edge: usize,
    /// What windows are shifted by (RFC 7323).
    scale: u8,
    /// What comes next from the server, which sends nothing but the end.
    ack: u32,
}

impl<'a> Upload<'a> {
    /// Connects, and takes part in scaling or not.
    fn begin(talker: &'a mut Talker, bytes: &'a [u8], scale: Option<u8>) -> Self {
        let mut options = vec![TcpOptionElement::MaximumSegmentSize(1460)];
        options.extend(scale.map(TcpOptionElement::WindowScale));
        let syn = talker.ip(SERVER.0).tcp(PORT, SERVER.1, SEQ, 65_000).syn().options(&options).unwrap();
        let mut frame = Vec::new();
        syn.write(&mut frame, b"").unwrap();
        talker.guest.send(&frame);
        let heard = std::iter::repeat_with(|| talker.hear()).find(|heard| heard.syn).unwrap();
        let own = heard.scale;
        assert_eq!(own.is_some(), scale.is_some(), "{heard:?}");
        let mut upload =
            Self { talker, bytes, sent: 0, edge: heard.window.into(), scale: own.unwrap_or(0), ack: heard.seq + 1 };
        upload.segment(0..0, "");
        upload
    }

    fn segment(&mut self, part: Range<usize>, flags: &str) {
        let seq = SEQ.wrapping_add(1 + part.start as u32);
        self.talker.tcp(PORT, SERVER, (seq, Some(self.ack)), flags, &self.bytes[part]);
    }

    /// Sends all that there is room for, down to the last byte of it.
    fn fill(&mut self) {
        while self.sent < self.edge.min(self.bytes.len()) {
            let end = self.edge.min(self.sent + SEGMENT).min(self.bytes.len());
            self.segment(self.sent..end, "");
            self.sent = end;
        }
    }

    /// Hears what has come. Returns whether anything had.
    fn listen(&mut self) -> bool {
        let Some(heard) = self.talker.poll_tcp() else { return false };
        self.note(&heard);
        true
    }

    fn note(&mut self, heard: &Heard) {
        assert!(!heard.rst && heard.payload.is_empty(), "{heard:?}");
        let acked = heard.ack.wrapping_sub(SEQ).wrapping_sub(1) as usize;
        let edge = acked + (usize::from(heard.window) << self.scale);
        assert!(acked <= self.sent && edge >= self.edge, "room was taken back: {heard:?}");
        self.edge = edge;
    }

    /// Sends until there has been no room for a while, though there is more to send.
    #[track_caller]
    fn run_out_of_room(&mut self) {
        let (deadline, mut quiet_since) = (Instant::now() + PATIENCE, Instant::now());
        while quiet_since.elapsed() < QUIET {
            assert!(Instant::now() < deadline, "there is room without end");
            self.fill();
            if self.listen() {
                quiet_since = Instant::now();
            }
        }
        assert!(self.sent == self.edge && self.sent < self.bytes.len(), "{} of {}", self.sent, self.edge);
    }
}

/// Reads what is there, and no more than so much.
fn read(stream: &mut TcpStream, most: usize, got: &mut Vec<u8>) -> usize {
    let mut chunk = vec![0; most];
    match stream.read(&mut chunk) {
        Ok(len) => {
            got.extend(&chunk[..len]);
            len
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn who_only_sends_is_told_of_room_whenever_there_is_some() {
    let (mut daemon, host, machine) = world(&[]);
    // Buffers that fill soon, and often.
    host.set("ipv4/tcp_wmem", "4096 65536 131072");
    machine.set("ipv4/tcp_rmem", "4096 65536 131072");
    let listener = machine.run(|| TcpListener::bind(SERVER).unwrap());
    let bytes: Vec<u8> = (0..BYTES as u32).map(|place| (place.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let mut talker = Talker::new(&daemon, 1);
    for scale in [None, Some(7)] {
        let mut upload = Upload::begin(&mut talker, &bytes, scale);
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        for _ in 0..8 {
            upload.run_out_of_room();
            // A little now and then.
            for _ in 0..20 {
                read(&mut stream, 4096, &mut got);
                upload.listen();
                upload.fill();
                std::thread::sleep(Duration::from_millis(1));
            }
            upload.run_out_of_room();
            // All that there is.
            while read(&mut stream, BYTES, &mut got) > 0 {}
        }
        until(
            &format!("with {scale:?} all arrive, which are {BYTES}; {} have, and no more room is told", got.len()),
            || {
                while upload.listen() {}
                upload.fill();
                while read(&mut stream, BYTES, &mut got) > 0 {}
                got.len() == BYTES
            },
        );
        assert!(got == bytes, "they have changed");
        upload.segment(BYTES..BYTES, "F");
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        drop(stream);
        until("the end of the other side", || {
            let fin = upload.talker.poll_tcp().filter(|heard| heard.fin);
            fin.inspect(|heard| upload.ack = heard.seq.wrapping_add(1)).is_some()
        });
        upload.sent += 1;
        let last = SEQ.wrapping_add(2 + BYTES as u32);
        upload.talker.tcp(PORT, SERVER, (last, Some(upload.ack)), "", b"");
        until("it has ended", || open(&daemon, "tcp") == 0);
    }
    daemon.assert_alive();
}
