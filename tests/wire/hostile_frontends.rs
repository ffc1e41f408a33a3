//! A frontend that breaks the protocol loses its own connection, with one line in the log, and nobody else's.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guestwire::vhost::message::*;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use vhost::VhostBackend;

use crate::daemon::{Daemon, Facts, until};
use crate::guest::{Config, Guest, introduce, mac, plain};

struct Bench {
    daemon: Daemon,
    a: Guest,
    b: Guest,
    before: Facts,
}

impl Bench {
    fn new() -> Self {
        let daemon = Daemon::start();
        let (mut a, mut b) =
            (Guest::attach(&daemon.socket(), Config::usual(2)), Guest::attach(&daemon.socket(), Config::usual(3)));
        introduce(&mut a, &mut b);
        let before = daemon.facts();
        Self { daemon, a, b, before }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.daemon.socket()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        stream
    }

    fn others_live(&mut self) {
        for i in 0..20u8 {
            self.a.send(&plain(mac(3), mac(2), &[i]));
            until("a bystander's frame", || self.b.receive().frame[14..] == [i]);
        }
        self.daemon.assert_alive();
    }

    /// The connection is closed, the reason was logged once, the others have lost nothing and nothing of it is left.
    #[track_caller]
    fn assert_ended(mut self, mut stream: UnixStream, why: &str) {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut rest);
        drop(stream);
        self.daemon.expect_warning(why);
        self.others_live();
        let (daemon, before) = (&self.daemon, self.before);
        let same = |now: Facts| (now.threads, now.fds) == (before.threads, before.fds);
        until(&format!("what was before: {before:?}, now {:?}", daemon.facts()), || same(daemon.facts()));
    }
}

fn send(stream: &UnixStream, message: &Message) {
    let bytes = message.encode();
    let fds: Vec<_> = message.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None).expect("sent");
}

fn u64_message(request: u32, value: u64) -> Message {
    Message::new(request, value.to_le_bytes().to_vec())
}

fn event() -> OwnedFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd").into()
}

/// SET_MEM_TABLE of one region over `file`.
fn table(size: u64, file: OwnedFd) -> Message {
    let words = [1u64, 0, size, 0x7000_0000, 0];
    Message { fds: vec![file], ..Message::new(SET_MEM_TABLE, words.map(u64::to_le_bytes).concat()) }
}

fn file(len: u64) -> OwnedFd {
    let file = memfd_create(c"memory", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    nix::unistd::ftruncate(&file, i64::try_from(len).expect("fits")).expect("a length");
    file
}

/// Sends messages and expects the end for this reason.
#[track_caller]
fn ends(messages: &[Message], why: &str) {
    let bench = Bench::new();
    let stream = bench.connect();
    messages.iter().for_each(|message| send(&stream, message));
    bench.assert_ended(stream, why);
}

#[test]
fn f1_messages_out_of_order() {
    ends(&[Message::new(SET_VRING_ADDR, vec![0; 40])], "came before the guest's memory");
    ends(&[u64_message(SET_FEATURES, u64::MAX)], "was not offered");
    ends(&[Message { fds: vec![event()], ..u64_message(SET_VRING_KICK, 0) }], "before the features");
}

#[test]
fn f1_every_message_twice_and_before_its_time_ends_one_connection_at_most() {
    let mut bench = Bench::new();
    for request in 0..=46 {
        for body in [0, 4, 8, 12, 40, 72] {
            let stream = bench.connect();
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
            for _ in 0..2 {
                let bytes = Message { flags: 9, ..Message::new(request, vec![0; body]) }.encode();
                // It may have ended after the first.
                let _ = (&stream).write_all(&bytes);
            }
        }
    }
    bench.others_live();
    let (daemon, before) = (&bench.daemon, bench.before);
    until("nothing is left of them", || daemon.facts().fds == before.fds && daemon.facts().threads == before.threads);
}

#[test]
fn f1_a_request_that_nobody_knows_is_refused_and_the_connection_lives() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    send(&stream, &u64_message(SET_PROTOCOL_FEATURES, 1 << 3));
    send(&stream, &Message { flags: 9, ..u64_message(1000, 1) });
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).expect("a refusal");
    assert_eq!(reply[12..], 1u64.to_le_bytes());
    send(&stream, &Message::new(GET_FEATURES, Vec::new()));
    stream.read_exact(&mut reply).expect("an answer");
    assert_eq!(reply[0], 1);
    bench.others_live();
}

#[test]
fn f1_a_question_that_was_not_offered_is_answered_by_nothing() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    for _ in 0..100 {
        send(&stream, &Message::new(GET_INFLIGHT_FD, vec![0; 24]));
        let mut reply = [0; 12 + 24];
        stream.read_exact(&mut reply).expect("an answer");
        assert_eq!(reply[12..], [0; 24]);
    }
    bench.daemon.expect_warning("GET_INFLIGHT_FD (31) refused");
    bench.others_live();
}

#[test]
fn f2_a_message_of_another_version_or_of_four_gigabytes() {
    ends(&[Message { flags: 2, ..Message::new(GET_FEATURES, vec![]) }], "protocol version 2");
    let bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).expect("a header");
    bench.assert_ended(stream, "a message of 4294967295 bytes");
}

#[test]
fn f2_a_message_byte_by_byte_is_a_message() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    for byte in Message::new(GET_FEATURES, Vec::new()).encode() {
        stream.write_all(&[byte]).expect("a byte");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).expect("an answer");
    assert_eq!(reply[..4], [1, 0, 0, 0]);
}

#[test]
fn f2_a_frontend_that_stalls_in_a_message_holds_up_itself_alone() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(&[1, 0, 0]).expect("three bytes");
    let begun = Instant::now();
    // Others come and go meanwhile.
    bench.others_live();
    let mut other = Guest::attach(&bench.daemon.socket(), Config::usual(5));
    introduce(&mut other, &mut bench.a);
    drop(other);
    assert!(begun.elapsed() < Duration::from_secs(4), "before the stalled one was given up");
    bench.assert_ended(stream, "not finished within 5 seconds");
}

#[test]
fn f2_a_frontend_that_goes_in_the_middle_of_a_message() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(&[1, 0, 0, 0, 1]).expect("five bytes");
    stream.shutdown(std::net::Shutdown::Write).expect("half closed");
    bench.assert_ended(stream, "closed in the middle of a message");
}

#[test]
fn f2_a_frontend_that_never_reads_answers_is_given_up() {
    let bench = Bench::new();
    let stream = bench.connect();
    stream.set_nonblocking(true).expect("non-blocking");
    let question = Message::new(GET_FEATURES, Vec::new()).encode();
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut stuck = None;
    while Instant::now() < deadline && bench.daemon.warnings().is_empty() {
        match (&stream).write(&question) {
            Ok(n) if n == question.len() => stuck = None,
            Ok(_) => break,
            Err(_) => {
                stuck.get_or_insert_with(Instant::now);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    stream.set_nonblocking(false).expect("blocking");
    bench.assert_ended(stream, "not finished within 5 seconds");
}

#[test]
fn f3_descriptors_where_none_belong_and_none_where_one_does() {
    ends(&[Message { fds: vec![event()], ..Message::new(GET_FEATURES, vec![]) }], "1 descriptors came with it");
    ends(&[u64_message(SET_VRING_KICK, 0)], "no descriptor for ring 0");
    let many = (0..33).map(|_| event()).collect();
    ends(&[Message { fds: many, ..u64_message(SET_VRING_KICK, 0) }], "a message with more than 32 descriptors");
}

#[test]
fn f3_descriptors_of_another_kind() {
    let folder: OwnedFd = File::open("/").expect("a folder").into();
    let file: OwnedFd = file(4096);
    for fd in [folder, file] {
        ends(&[Message { fds: vec![fd], ..u64_message(SET_VRING_KICK, 0) }], "neither an eventfd nor a pipe");
    }
    let pipe = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe").0;
    ends(&[table(4096, pipe)], "not a file that can be mapped");
    ends(&[Message { fds: vec![event()], ..Message::new(SET_BACKEND_REQ_FD, vec![]) }], "no Unix socket came with it");
}

#[test]
fn f3_a_call_descriptor_that_is_full_and_blocks_holds_up_nobody() {
    let mut bench = Bench::new();
    let mut hostile = Guest::attach(&bench.daemon.socket(), Config::usual(1));
    introduce(&mut hostile, &mut bench.a);
    // Whether or not the last interrupt was taken already: nothing fits any more.
    let call = &hostile.receive[0].call;
    until("the counter is full", || {
        let _ = call.read();
        call.write(u64::MAX - 1).is_ok()
    });
    for i in 0..100u8 {
        bench.a.send(&plain(mac(1), mac(2), &[i]));
    }
    bench.others_live();
}

#[test]
fn f3_a_frontend_that_uses_up_all_descriptors_loses_its_own_connection() {
    let mut daemon = Daemon::with_descriptors(80);
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), Config::usual(1)), Guest::attach(&daemon.socket(), Config::usual(2)));
    introduce(&mut a, &mut b);
    for _ in 0..3 {
        let greedy = Guest::prepare(&daemon.socket(), Config::usual(3));
        let refused = (0..33).find(|&ring| greedy.frontend.set_vring_err(ring, &a.receive[0].call).is_err());
        assert!(refused.is_some(), "there is no room for 33 more");
        introduce(&mut a, &mut b);
        drop(greedy);
    }
    daemon.assert_alive();
    // Others may have been told to wait meanwhile, which is a line of its own.
    until(&format!("one line each: {:#?}", daemon.warnings()), || {
        daemon.warnings().iter().filter(|line| line.contains("raise `ulimit -n`")).count() == 3
    });
}

#[test]
fn f4_memory_tables_that_lie() {
    ends(&[Message::new(SET_MEM_TABLE, vec![0; 8])], "share=on");
    ends(&[table(64 << 20, file(4096))], "of a file that has 0x1000");
    ends(&[table(0, file(4096))], "a size of zero");
    ends(&[table(u64::MAX, file(4096))], "of 0xffffffffffffffff bytes");
    for count in [9, 509, u32::MAX] {
        let mut many = table(4096, file(4096));
        many.body[..4].copy_from_slice(&count.to_le_bytes());
        ends(&[many], &format!("{count} regions"));
    }
}

/// Memory that is gone, and used where the worker does not look any more, in the session's own thread.
#[test]
fn f4_memory_that_shrinks_twice_ends_nobody() {
    const SIZE: u64 = 1 << 20;
    const AT: u64 = 0x7000_0000;
    let mut bench = Bench::new();
    let stream = bench.connect();
    let files = [file(SIZE), file(SIZE)];
    // A guest that runs has left something in its memory.
    File::from(files[0].try_clone().expect("a copy")).write_all(b"firmware").expect("written");
    let regions: Vec<u64> = [[0, SIZE, AT, 0], [SIZE, SIZE, AT + SIZE, 0]].concat();
    let body = [&[2u64], regions.as_slice()].concat().into_iter().flat_map(u64::to_le_bytes).collect();
    let fds = files.iter().map(|file| file.try_clone().expect("a copy")).collect();
    send(&stream, &u64_message(SET_FEATURES, 1 << 32));
    send(&stream, &Message { fds, ..Message::new(SET_MEM_TABLE, body) });
    let place = |index: u64, at: u64| {
        send(&stream, &u64_message(SET_VRING_NUM, index | 256 << 32));
        let words = [index, at, at + 0x2000, at + 0x1000, 0];
        send(&stream, &Message::new(SET_VRING_ADDR, words.map(u64::to_le_bytes).concat()));
    };
    place(1, AT);
    let kick = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd");
    let fds = vec![kick.as_fd().try_clone_to_owned().expect("a copy")];
    send(&stream, &Message { fds, ..u64_message(SET_VRING_KICK, 1) });
    // An answer says that everything before it is done.
    let answered = || {
        send(&stream, &Message::new(GET_FEATURES, Vec::new()));
        (&stream).read_exact(&mut [0; 20]).expect("an answer");
    };
    answered();
    nix::unistd::ftruncate(&files[0], 0).expect("shorter");
    kick.write(1).expect("a kick");
    bench.daemon.expect_warning("truncated");
    nix::unistd::ftruncate(&files[1], 0).expect("shorter");
    place(3, AT + SIZE);
    answered();
    bench.others_live();
}

#[test]
fn f4_memory_that_the_guest_does_not_write_to_is_not_shared() {
    const AT: u64 = 0x7000_0000;
    let mut bench = Bench::new();
    let stream = bench.connect();
    send(&stream, &u64_message(SET_FEATURES, 1 << 32));
    send(&stream, &table(64 << 20, file(64 << 20)));
    for ring in [0, 1] {
        send(&stream, &u64_message(SET_VRING_NUM, ring | 256 << 32));
        let words = [ring, AT, AT + 0x2000, AT + 0x1000, 0];
        send(&stream, &Message::new(SET_VRING_ADDR, words.map(u64::to_le_bytes).concat()));
        send(&stream, &Message { fds: vec![event()], ..u64_message(SET_VRING_KICK, ring) });
    }
    bench.daemon.expect_warning("share=on");
    bench.others_live();
}

#[test]
fn f5_memory_that_is_replaced_under_load_loses_no_frame() {
    use vhost::VhostBackend;
    let mut bench = Bench::new();
    let mut guest = Guest::attach(&bench.daemon.socket(), Config::usual(1));
    introduce(&mut guest, &mut bench.a);
    let region = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: crate::memory::BASE,
        memory_size: guest.memory.len() as u64,
        userspace_addr: guest.memory.user_address(),
        mmap_offset: 0,
        mmap_handle: guest.memory.fd.as_raw_fd(),
    };
    for i in 0..200u32 {
        guest.send(&plain(mac(2), mac(1), &i.to_le_bytes()));
        guest.frontend.set_mem_table(&[region]).expect("SET_MEM_TABLE");
        assert_eq!(bench.a.receive().frame[14..], i.to_le_bytes());
        bench.a.send(&plain(mac(1), mac(2), &i.to_le_bytes()));
        assert_eq!(guest.receive().frame[14..], i.to_le_bytes());
    }
    bench.others_live();
    assert_eq!(bench.daemon.warnings(), Vec::<String>::new());
}

#[test]
fn f6_rings_that_do_not_exist_or_have_no_size() {
    ends(&[u64_message(SET_VRING_NUM, 33 | 256 << 32)], "ring 33 does not exist");
    ends(&[u64_message(SET_VRING_NUM, 0x1_0000 | 256 << 32)], "ring 65536 does not exist");
    ends(&[u64_message(SET_VRING_NUM, 100 << 32)], "ring 0 of 100 entries");
    ends(&[u64_message(SET_VRING_BASE, 65_536 << 32)], "the base 65536 of ring 0");
}

#[test]
fn f9_many_connections_at_once_are_served_and_gone() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        let all: Vec<_> = (0..50).map(|_| bench.connect()).collect();
        for stream in &all {
            send(stream, &Message::new(GET_FEATURES, Vec::new()));
        }
        for mut stream in all {
            stream.read_exact(&mut [0; 20]).expect("an answer");
        }
    }
    bench.others_live();
    let (daemon, before) = (&bench.daemon, bench.before);
    until("nothing is left of them", || daemon.facts().fds == before.fds && daemon.facts().threads == before.threads);
}
