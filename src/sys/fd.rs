//! What a descriptor that somebody else sent us really is. Nothing here reads, writes or waits on it.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, OFlags, SealFlags, fcntl_get_seals, fcntl_getfl, fcntl_setfl, fstat, fstatfs};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// The file system of memfds and shared memory (TMPFS_MAGIC of statfs(2)).
const TMPFS: i64 = 0x0102_1994;
/// The file system of huge pages (HUGETLBFS_MAGIC of statfs(2)).
const HUGETLBFS: i64 = 0x9584_58f6;

/// A file that can be mapped shared, readable and writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shareable {
    /// Its length in bytes.
    pub len: u64,
    /// The size of its pages in bytes: a huge page's where it consists of those.
    pub page: u64,
    /// Whether it is sealed against becoming shorter.
    pub keeps_len: bool,
}

impl Shareable {
    /// Whether it consists of the system's ordinary pages, whose last one need not be whole.
    pub fn is_small(&self) -> bool {
        self.page == rustix::param::page_size() as u64
    }
}

/// Looks at a file that is to be mapped.
///
/// # Errors
/// Says what the descriptor is instead, or why it cannot be mapped.
pub fn shareable(fd: &OwnedFd) -> Result<Shareable, String> {
    let unreadable = |error: Errno| format!("its descriptor cannot be looked at: {error}");
    let stat = fstat(fd).map_err(unreadable)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("its descriptor is not a file that can be mapped (a memfd, or a file in tmpfs or hugetlbfs)".into());
    }
    let flags = fcntl_getfl(fd).map_err(unreadable)?;
    if flags & OFlags::RWMODE != OFlags::RDWR || flags.contains(OFlags::PATH) {
        return Err("its file is not open for reading and writing".into());
    }
    // Only files in memory have seals.
    let seals = fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
    if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err("its file is sealed against writing".into());
    }
    let system = fstatfs(fd).map_err(unreadable)?;
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "the types differ from machine to machine")]
    let (kind, block) = (system.f_type as i64, u64::try_from(system.f_bsize).unwrap_or(0));
    if kind != TMPFS && kind != HUGETLBFS {
        // A page of it may take as long to come as whoever serves the file likes, and all guests would wait.
        return Err("its file is not in memory: it must be a memfd, or a file in tmpfs or hugetlbfs".into());
    }
    let small = rustix::param::page_size() as u64;
    let len = u64::try_from(stat.st_size).map_err(|_| "its file has no size".to_owned())?;
    let page = if kind == HUGETLBFS { block.max(small) } else { small };
    Ok(Shareable { len, page, keeps_len: seals.contains(SealFlags::SHRINK) })
}

/// Which way an event travels, as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// We read it: a kick.
    In,
    /// We write it: an interrupt, an error.
    Out,
}

/// What is wrong with a descriptor that should tell events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEvent {
    /// It cannot be looked at or changed.
    Errno(Errno),
    /// It is something else.
    Kind,
    /// It is not open the way it must be.
    Way(Way),
}

impl fmt::Display for NoEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(error) => write!(f, "cannot be used: {error}"),
            Self::Kind => f.write_str("is neither an eventfd nor a pipe"),
            Self::Way(Way::In) => f.write_str("is not open for reading"),
            Self::Way(Way::Out) => f.write_str("is not open for writing"),
        }
    }
}

/// Makes sure that `fd` is something on which an event can be told, an eventfd, a pipe or (User Mode Linux) a socket,
/// and that telling or reading it never blocks.
///
/// # Errors
/// Says what is wrong with it.
pub fn make_event(fd: &OwnedFd, way: Way) -> Result<(), NoEvent> {
    let stat = fstat(fd).map_err(NoEvent::Errno)?;
    let is_pipe = matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket);
    if !is_pipe && !is_eventfd(fd) {
        return Err(NoEvent::Kind);
    }
    let flags = fcntl_getfl(fd).map_err(NoEvent::Errno)?;
    let other_way = if way == Way::In { OFlags::WRONLY } else { OFlags::RDONLY };
    if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE == other_way {
        return Err(NoEvent::Way(way));
    }
    fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(NoEvent::Errno)
}

/// Whether `fd` is a Unix socket on which bytes flow.
pub fn is_unix_stream(fd: &OwnedFd) -> bool {
    socket_domain(fd) == Ok(AddressFamily::UNIX) && socket_type(fd) == Ok(SocketType::STREAM)
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    std::fs::read_link(link).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, Mode, fcntl_add_seals, ftruncate, memfd_create, open};
    use rustix::pipe::pipe;
    use std::fs::File;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn memfd(len: u64) -> OwnedFd {
        let fd = memfd_create("memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, len).unwrap();
        fd
    }

    #[test]
    fn a_file_is_measured_and_its_seals_are_seen() {
        let small = rustix::param::page_size() as u64;
        let file = memfd(12345);
        assert_eq!(shareable(&file), Ok(Shareable { len: 12345, page: small, keeps_len: false }));
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        assert!(shareable(&file).unwrap().keeps_len);
        for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
            let sealed = memfd(4096);
            fcntl_add_seals(&sealed, seal).unwrap();
            assert!(shareable(&sealed).unwrap_err().contains("sealed"));
        }
        let path = tempfile::NamedTempFile::new().unwrap();
        let by_path = open(path.path(), OFlags::PATH, Mode::empty()).unwrap();
        assert!(shareable(&by_path).unwrap_err().contains("not open"));
    }

    #[test]
    fn a_file_on_a_disk_is_no_memory() {
        // The sources are on one.
        let on_disk = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let system = fstatfs(&on_disk).unwrap();
        if system.f_type != TMPFS {
            assert!(shareable(&on_disk.into_file().into()).unwrap_err().contains("not in memory"));
        }
    }

    #[test]
    fn a_file_of_huge_pages_has_huge_pages() {
        // Making the file takes no page of the pool.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let Ok(file) = memfd_create("huge", flags) else { return };
        assert_eq!(shareable(&file).unwrap().page, 2 << 20);
    }

    #[test]
    fn events_go_the_right_way() {
        let (read, write) = pipe().unwrap();
        assert_eq!(make_event(&read, Way::In), Ok(()));
        assert_eq!(make_event(&write, Way::Out), Ok(()));
        assert_eq!(make_event(&read, Way::Out), Err(NoEvent::Way(Way::Out)));
        assert_eq!(make_event(&write, Way::In), Err(NoEvent::Way(Way::In)));
        assert!(fcntl_getfl(&read).unwrap().contains(OFlags::NONBLOCK));
        let event: OwnedFd = nix::sys::eventfd::EventFd::new().unwrap().into();
        assert_eq!(make_event(&event, Way::In), Ok(()));
        assert_eq!(make_event(&event, Way::Out), Ok(()));
        for other in [File::open("/").unwrap(), File::open("/dev/null").unwrap(), File::from(memfd(1))] {
            assert_eq!(make_event(&other.into(), Way::In), Err(NoEvent::Kind));
        }
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        assert_eq!(make_event(&epoll, Way::In), Err(NoEvent::Kind));
    }

    #[test]
    fn only_a_unix_stream_is_one() {
        assert!(is_unix_stream(&UnixStream::pair().unwrap().0.into()));
        assert!(!is_unix_stream(&UnixDatagram::unbound().unwrap().into()));
        assert!(!is_unix_stream(&std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()));
        assert!(!is_unix_stream(&File::open("/dev/null").unwrap().into()));
    }
}
