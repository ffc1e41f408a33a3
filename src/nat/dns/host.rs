//! What the host knows of names: its resolvers, and what is nobody else's business.
//!
//! Theory of operation. The host's files are looked at when somebody asks something, once a second at most, and read
//! again when they are others than before. Text is read line by line; what makes no sense in it is passed over, as the
//! host's own programs do. Whether an address is one of the host's interfaces', the kernel says with the address from
//! which it would send to it: its own. Whether it can be bound says nothing: with `ip_nonlocal_bind` (ip(7)) all can.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use hickory_proto::rr::Name;
use nix::net::if_::if_nametoindex;

use super::PORT;
use super::message::absolute;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/proc/sys/kernel/hostname";
/// The most of a file that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// How often it is looked for changes, in nanoseconds.
const LOOK_NS: u64 = 1_000_000_000;
/// Resolvers that are asked: the first of those that are named (resolv.conf(5), MAXNS).
const RESOLVERS_MAX: usize = 3;
/// Domains that are searched: more than any resolver looks at.
const SEARCH_MAX: usize = 32;

/// What tells a file from what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

/// Names that are the host's own.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Private {
    /// Domains in which the host looks names up.
    pub(super) search: Vec<Name>,
    /// What the host calls itself.
    pub(super) own: Option<Name>,
    /// Names and addresses in the host's own table.
    pub(super) names: HashSet<Name>,
    pub(super) addresses: HashSet<IpAddr>,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Host {
    looked_at: Option<u64>,
    stamps: [Option<Stamp>; 2],
    resolvers: Arc<[SocketAddr]>,
    private: Private,
}

impl Host {
    /// Follows what has changed.
    pub(super) fn follow(&mut self, now: u64) {
        if self.looked_at.is_some_and(|then| now.saturating_sub(then) < LOOK_NS) {
            return;
        }
        let is_first = self.looked_at.replace(now).is_none();
        self.private.own = fs::read_to_string(HOSTNAME).ok().and_then(|name| absolute(name.trim()));
        let stamps = [RESOLV_CONF, HOSTS].map(|path| stamp(Path::new(path)));
        if is_first || stamps[0] != self.stamps[0] {
            let (resolvers, search) = resolv_conf(&text(Path::new(RESOLV_CONF)));
            tracing::debug!("guests' questions go to {resolvers:?}");
            (self.resolvers, self.private.search) = (resolvers.into(), search);
        }
        if is_first || stamps[1] != self.stamps[1] {
            (self.private.names, self.private.addresses) = hosts(&text(Path::new(HOSTS)));
        }
        self.stamps = stamps;
    }

    /// A host with these files.
    #[cfg(test)]
    pub(super) fn with(conf: &str, table: &str, own: &str) -> Self {
        let ((resolvers, search), (names, addresses)) = (resolv_conf(conf), hosts(table));
        let private = Private { search, own: absolute(own), names, addresses };
        Self { resolvers: resolvers.into(), private, ..Self::default() }
    }

    /// Who is asked, one after the other.
    pub(super) fn resolvers(&self) -> Arc<[SocketAddr]> {
        self.resolvers.clone()
    }

    pub(super) fn private(&self) -> &Private {
        &self.private
    }
}

impl Private {
    /// Whether an address is one of the host's.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses.contains(&address) || is_own(address)
    }
}

/// Whether an interface of the host's has this address. Nothing is sent.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let sends_from = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, PORT))?;
        socket.local_addr()
    };
    sends_from().is_ok_and(|from| from.ip() == address)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    let changed = (file.mtime(), file.mtime_nsec());
    Some(Stamp { device: file.dev(), inode: file.ino(), len: file.len(), changed })
}

/// What a file says; nothing, if there is none.
fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What could be read of it is what there is.
        let _ = file.take(FILE_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Resolvers, and domains that are searched (resolv.conf(5)).
fn resolv_conf(text: &str) -> (Vec<SocketAddr>, Vec<Name>) {
    let (mut resolvers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") if resolvers.len() < RESOLVERS_MAX => {
                resolvers.extend(words.next().and_then(resolver));
            }
            // The last of these lines is the one that counts.
            Some("domain" | "search") => search = words.take(SEARCH_MAX).filter_map(absolute).collect(),
            _ => {}
        }
    }
    if resolvers.is_empty() {
        resolvers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    (resolvers, search)
}

/// An address, behind which there may be the interface that it is to be reached by.
fn resolver(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let index = interface.parse().ok().or_else(|| if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, index).into())
}

/// Names and addresses of a table of hosts (hosts(5)).
fn hosts(text: &str) -> (HashSet<Name>, HashSet<IpAddr>) {
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        if let Some(address) = words.next().and_then(|word| word.parse().ok()) {
            addresses.insert(address);
            names.extend(words.filter_map(absolute));
        }
    }
    (names, addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_those_that_the_file_names() {
        let (resolvers, search) = resolv_conf(
            "# nameserver 1.1.1.1\n; nameserver 1.1.1.1\nnameserver 127.0.0.53\nnameserver nonsense\nnameserver\n\
             search old.example\nnameserver fe80::1%lo\nnameserver fd00::2 # more\nnameserver 9.9.9.9\n\
             options edns0 trust-ad\nsearch corp.example Contoso.LOCAL. bad..name\n",
        );
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, if_nametoindex("lo").unwrap());
        let expected = ["127.0.0.53:53".parse().unwrap(), scoped.into(), "[fd00::2]:53".parse().unwrap()];
        assert_eq!(resolvers, expected);
        assert_eq!(search, ["corp.example", "contoso.local"].map(|name| absolute(name).unwrap()));
        assert_eq!(resolv_conf(""), (vec!["127.0.0.1:53".parse().unwrap()], vec![]));
        assert_eq!(resolv_conf("nameserver fe80::1%nowhere\n").0, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_table_of_hosts_has_names_and_addresses() {
        let (names, addresses) = hosts(
            "127.0.0.1 localhost\n127.0.1.1\tBox.corp.example box # this one\n# 10.0.0.1 no\n\nnonsense other\n\
             fd00::9 db.corp.example\n",
        );
        let expected = ["localhost", "box.corp.example", "box", "db.corp.example"].map(|name| absolute(name).unwrap());
        assert_eq!(names, expected.into());
        assert_eq!(addresses, ["127.0.0.1", "127.0.1.1", "fd00::9"].map(|address| address.parse().unwrap()).into());
    }

    #[test]
    fn the_host_knows_its_own_addresses() {
        let mut host = Host::default();
        host.follow(0);
        host.private.addresses.insert("240.0.0.1".parse().unwrap());
        let has = |address: &str| host.private().has_address(address.parse().unwrap());
        assert!(has("127.0.0.1") && has("::ffff:127.0.0.1") && has("240.0.0.1") && !has("240.0.0.2"));
    }

    #[test]
    fn files_that_have_changed_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!((stamp(&path), text(&path)), (None, String::new()));
        fs::write(&path, "a").unwrap();
        let first = stamp(&path);
        assert_eq!((first, text(&path).as_str()), (stamp(&path), "a"));
        fs::write(&path, "ab").unwrap();
        assert_ne!(first, stamp(&path));
    }
}
