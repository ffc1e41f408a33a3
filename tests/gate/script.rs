//! A frontend's messages and the answers, as text, one line each; what the worker heard of it follows.
//!
//! ```text
//! # a comment
//! > SET_FEATURES flags=9 fds=- body=00000040
//! < SET_FEATURES flags=5 fds=- body=0000000000000000
//! = Features VERSION_1
//! ```

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use guestwire::vhost::message::{Message, request_name};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{SFlag, fstat};

/// What a descriptor was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file of so many bytes, and its seals.
    File(i64, i32),
    Event,
    Pipe,
    Socket,
    Other,
}

impl Kind {
    pub(crate) fn of(fd: &OwnedFd) -> Self {
        let stat = fstat(fd).expect("a descriptor");
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Self::File(stat.st_size, fcntl(fd, FcntlArg::F_GET_SEALS).unwrap_or(0)),
            SFlag::S_IFIFO => Self::Pipe,
            SFlag::S_IFSOCK => Self::Socket,
            _ => {
                let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("a link");
                if link.as_os_str() == "anon_inode:[eventfd]" { Self::Event } else { Self::Other }
            }
        }
    }

    /// A new descriptor of this kind. `far` gets the other end of what has two; a kick is read here, all else written.
    pub(crate) fn make(self, is_kick: bool, far: &mut Vec<OwnedFd>) -> OwnedFd {
        let (near, other) = match self {
            Self::File(len, seals) => {
                let file = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
                nix::unistd::ftruncate(&file, len).unwrap();
                fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(seals))).unwrap();
                return file;
            }
            Self::Event => return EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().into(),
            Self::Pipe => {
                let (read, write) = nix::unistd::pipe().unwrap();
                if is_kick { (read, write) } else { (write, read) }
            }
            Self::Socket => {
                let (near, other) = UnixStream::pair().unwrap();
                (near.into(), other.into())
            }
            Self::Other => panic!("no frontend sends such a descriptor"),
        };
        far.push(other);
        near
    }

    fn parse(text: &str) -> Self {
        let number = |text: &str| text.parse().expect("a number");
        match text.split(':').collect::<Vec<_>>()[..] {
            ["file", len, seals] => Self::File(number(len), i32::try_from(number(seals)).expect("seals")),
            ["event"] => Self::Event,
            ["pipe"] => Self::Pipe,
            ["socket"] => Self::Socket,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(len, seals) => write!(f, "file:{len}:{seals}"),
            Self::Event => f.write_str("event"),
            Self::Pipe => f.write_str("pipe"),
            Self::Socket => f.write_str("socket"),
            Self::Other => f.write_str("other"),
        }
    }
}

/// A message without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) fds: Vec<Kind>,
    pub(crate) body: Vec<u8>,
}

impl Said {
    pub(crate) fn of(message: &Message) -> Self {
        let fds = message.fds.iter().map(Kind::of).collect();
        Self { request: message.request, flags: message.flags, fds, body: message.body.clone() }
    }

    pub(crate) fn name(&self) -> &'static str {
        request_name(self.request)
    }

    /// The 32-bit number at byte `at` of the body.
    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        self.body[at..].first_chunk().copied().map_or(0, u32::from_le_bytes)
    }

    fn parse(line: &str) -> Self {
        let mut words = line.split(' ');
        let name = words.next().expect("a request");
        let number = |request: &u32| request_name(*request) == name || request.to_string() == name;
        let request = (0..=u32::from(u8::MAX)).find(number).unwrap_or_else(|| panic!("no request {name}"));
        let mut said = Self { request, flags: 0, fds: Vec::new(), body: Vec::new() };
        for word in words {
            match word.split_once('=').expect("name=value") {
                ("flags", flags) => said.flags = flags.parse().expect("flags"),
                ("fds", "-") | ("body", "-") => {}
                ("fds", fds) => said.fds = fds.split(',').map(Kind::parse).collect(),
                ("body", body) => said.body = unhex(body),
                other => panic!("what is {other:?}?"),
            }
        }
        said
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = request_name(self.request) != request_name(u32::MAX);
        let name = if known { self.name().to_owned() } else { self.request.to_string() };
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let fds = or_dash(self.fds.iter().map(Kind::to_string).collect::<Vec<_>>().join(","));
        let body = or_dash(self.body.iter().map(|byte| format!("{byte:02x}")).collect());
        write!(f, "{name} flags={} fds={fds} body={body}", self.flags)
    }
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
}

/// A line of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Comment(String),
    Request(Said),
    Answer(Said),
    /// What the worker hears, all of it, in order.
    Mail(String),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Comment(text) => write!(f, "#{text}"),
            Self::Request(said) => write!(f, "> {said}"),
            Self::Answer(said) => write!(f, "< {said}"),
            Self::Mail(text) => write!(f, "= {text}"),
        }
    }
}

/// Reads a script.
pub(crate) fn parse(text: &str) -> Vec<Line> {
    text.lines()
        .map(|line| match line.split_at_checked(2) {
            Some(("> ", rest)) => Line::Request(Said::parse(rest)),
            Some(("< ", rest)) => Line::Answer(Said::parse(rest)),
            Some(("= ", rest)) => Line::Mail(rest.to_owned()),
            _ => Line::Comment(line.strip_prefix('#').unwrap_or_else(|| panic!("{line:?}")).to_owned()),
        })
        .collect()
}
