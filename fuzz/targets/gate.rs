//! Any stream of vhost-user messages with any descriptors, over a real socket. What the gate forwards must be what
//! `vhost-user-backend` can bear, and no descriptor may be lost.
#![no_main]

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};

use guestwire::ring::QUEUE_SIZE_MAX;
use guestwire::ring::mailbox::PortShared;
use guestwire::vhost::channel;
use guestwire::vhost::features::{Offer, PROTOCOL_FEATURES, RINGS_MAX};
use guestwire::vhost::gate::{Gate, Verdict};
use guestwire::vhost::memory_table::REGIONS_MAX;
use guestwire::vhost::message::*;
use guestwire_fuzz::{Input, canary};
use libfuzzer_sys::fuzz_target;
use nix::fcntl::{OFlag, open};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg, shutdown};
use nix::sys::stat::Mode;
use nix::unistd::{ftruncate, pipe};

const MESSAGES_MAX: usize = 32;
/// Length in bytes of the files that are offered as memory.
const FILE_LEN: u64 = 0x1_0000;

/// One descriptor of every kind that a frontend might send.
static KINDS: LazyLock<Vec<OwnedFd>> = LazyLock::new(|| {
    let memory = || {
        let fd = memfd_create(c"memory", MFdFlags::empty()).expect("a memfd");
        ftruncate(&fd, FILE_LEN.cast_signed()).expect("a length");
        fd
    };
    let (reader, writer) = pipe().expect("a pipe");
    let (socket, _) = UnixStream::pair().expect("a socket");
    let path = |path: &str, flags| open(path, flags, Mode::empty()).expect("it exists");
    vec![
        memory(),
        memory(),
        EventFd::new().expect("an eventfd").into(),
        EventFd::new().expect("an eventfd").into(),
        writer,
        reader,
        socket.into(),
        path("/dev/null", OFlag::O_RDWR),
        path("/", OFlag::O_RDONLY),
        path("/proc/self/exe", OFlag::O_RDONLY),
        path("/", OFlag::O_PATH),
    ]
});

fuzz_target!(|data: &[u8]| {
    if canary(data) {
        return;
    }
    LazyLock::force(&KINDS);
    // Counting takes longer than most inputs do: only where there was something to lose.
    static BEFORE: LazyLock<usize> = LazyLock::new(descriptors);
    LazyLock::force(&BEFORE);
    if run(&mut Input::new(data)) {
        assert_eq!(descriptors(), *BEFORE, "descriptors of this process");
    }
});

/// Returns whether there were descriptors.
fn run(input: &mut Input) -> bool {
    let (ours, theirs) = UnixStream::pair().expect("a socket");
    let mut descriptors = 0;
    for _ in 0..MESSAGES_MAX {
        // A message that the socket does not take whole would stay unread: the gate's peer is gone by then.
        if input.is_empty() || send(&theirs, input, &mut descriptors).is_err() {
            break;
        }
    }
    shutdown(theirs.as_raw_fd(), Shutdown::Write).expect("a socket");

    let port = PortShared::new(0, "fuzz".to_owned(), [2, 0, 0, 0, 0, 1]).expect("an eventfd");
    let mut gate = Gate::new(Offer::new(0, None), Arc::new(port));
    let mut daemon = Daemon::default();
    while let Ok(message) = channel::receive(ours.as_fd(), None) {
        match gate.admit(message) {
            Verdict::Forward(messages) => daemon.take(&messages),
            Verdict::Answer(body) => assert!(body.len() <= BODY_LEN_MAX),
            Verdict::Done => {}
            Verdict::Refuse(why) => assert!(!why.is_empty()),
            Verdict::End(why) => {
                assert!(!why.is_empty());
                break;
            }
        }
        let _ = (gate.acknowledges(), gate.backend_channel());
    }
    descriptors > 0
}

/// Sends one message: mostly what the input says, in places a lie about its own length.
fn send(socket: &UnixStream, input: &mut Input, descriptors: &mut usize) -> nix::Result<()> {
    let (request, shape, count) = (u32::from(input.u8()), input.u8(), usize::from(input.u8()));
    let flags = if shape & 0x80 == 0 { FLAG_VERSION | u32::from(shape & 0x08) } else { input.u32() };
    let body = match shape & 0x03 {
        0 => input.bytes(8),
        1 => input.bytes(count >> 2),
        2 => input.bytes(40),
        _ => input.bytes(16 + 32 * (count >> 4)),
    };
    let size = if shape & 0x40 == 0 { body.len() as u32 } else { input.u32() };
    let kinds = KINDS.len();
    let fds: Vec<RawFd> = match shape & 0x30 {
        0 => Vec::new(),
        0x10 => vec![KINDS[count % kinds].as_raw_fd()],
        0x20 => (0..count % 40).map(|_| KINDS[usize::from(input.u8()) % kinds].as_raw_fd()).collect(),
        _ => vec![KINDS[0].as_raw_fd(); count >> 4],
    };
    *descriptors += fds.len();
    let mut bytes = Vec::new();
    for word in [request, flags, size] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(body);
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(nix::Error::EAGAIN) }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// What the daemon behind the gate relies on.
#[derive(Default)]
struct Daemon {
    features: bool,
    regions: usize,
}

impl Daemon {
    fn take(&mut self, messages: &[Message]) {
        assert!(messages.len() <= 1 + RINGS_MAX);
        for message in messages {
            self.take_one(message);
        }
    }

    fn take_one(&mut self, message: &Message) {
        let ring = message.u32_at(0) as usize;
        match message.request {
            SET_FEATURES => {
                assert_ne!(message.u64_at(0) & PROTOCOL_FEATURES, 0);
                self.features = true;
            }
            RESET_DEVICE => self.features = false,
            SET_VRING_ENABLE => assert!(self.features && ring < RINGS_MAX && message.u32_at(4) <= 1),
            SET_MEM_TABLE => {
                self.regions = message.fds.len();
                assert!(self.regions > 0 && message.body.len() == 8 + 32 * self.regions);
                (0..self.regions).for_each(|i| region(message, 8 + 32 * i));
            }
            ADD_MEM_REG => {
                self.regions += 1;
                assert_eq!(message.fds.len(), 1);
                region(message, 8);
            }
            REM_MEM_REG => self.regions -= 1,
            SET_VRING_NUM => {
                let size = message.u32_at(4);
                assert!(ring < RINGS_MAX && size.is_power_of_two() && size <= u32::from(QUEUE_SIZE_MAX));
            }
            SET_VRING_ADDR => assert!(ring < RINGS_MAX && self.regions > 0),
            SET_VRING_BASE => assert!(ring < RINGS_MAX && message.u32_at(4) <= u32::from(u16::MAX)),
            GET_VRING_BASE => assert!(ring < RINGS_MAX),
            SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => assert!(ring & 0xff < RINGS_MAX),
            _ => panic!("{} forwarded", message.name()),
        }
        assert!(self.regions <= REGIONS_MAX);
    }
}

/// A region of guest memory that is forwarded lies inside its file: address, size, user address, offset.
fn region(message: &Message, at: usize) {
    let (size, offset) = (message.u64_at(at + 8), message.u64_at(at + 24));
    assert!(size > 0 && offset.checked_add(size).is_some_and(|end| end <= FILE_LEN));
}
