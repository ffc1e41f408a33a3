//! Who has a port of the host.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// The process that has a socket at this address, or at one that stands for it and others, as far as `/proc` says it to
/// this process: that of others' processes it tells to root only. `kind` is `tcp`, of which only sockets that listen
/// count, or `udp`.
pub fn holder(kind: &str, at: &SocketAddr) -> Option<Holder> {
    let table = |name: String| fs::read_to_string(Path::new("/proc/thread-self/net").join(name)).unwrap_or_default();
    let tables = [table(kind.to_owned()), table(format!("{kind}6"))];
    let inodes: Vec<u64> = tables.iter().flat_map(|table| inodes(table, kind == "tcp", at)).collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = numbers.find(|pid| has_any(*pid, &links))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Holder { pid, name: name.trim().to_owned() })
}

/// Whether a process has a descriptor of one of these links.
fn has_any(pid: u32, links: &[String]) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|link| links.iter().any(|l| link == *Path::new(l)))
}

/// The inodes of a table's sockets (`/proc/net/tcp` and its like, proc(5)) that are in the way of one at `at`.
fn inodes(table: &str, only_listening: bool, at: &SocketAddr) -> Vec<u64> {
    const LISTENS: &str = "0A";
    let inode = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = words[..] else { return None };
        let (address, port) = local.split_once(':')?;
        let is_in_the_way = u16::from_str_radix(port, 16).ok()? == at.port()
            && (!only_listening || state == LISTENS)
            && overlap(parse_address(address)?, at.ip());
        if is_in_the_way { inode.parse().ok() } else { None }
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// Whether no two sockets can be bound to both addresses. One of IPv6 that stands for all may have those of IPv4 too.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified() && one.is_ipv4() == other.is_ipv4()
}

/// An address as the kernel writes it: words of 32 bits, each as the number that this machine takes it for.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
        timeout inode\n   \
        0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0\n   \
        1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0\n   \
        2: 0100007F:0051 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0\n";

    #[cfg(target_endian = "little")]
    #[test]
    fn sockets_in_the_way_are_found_in_the_kernels_tables() {
        for (at, only_listening, found) in [
            ("127.0.0.1:8080", true, vec![4711]),
            ("0.0.0.0:8080", true, vec![4711]),
            ("127.0.0.2:8080", true, vec![]),
            ("10.0.0.1:80", true, vec![4712]),
            ("127.0.0.1:81", true, vec![]),
            ("127.0.0.1:81", false, vec![4713]),
            ("[::]:8080", true, vec![]),
        ] {
            assert_eq!(inodes(TABLE, only_listening, &at.parse().unwrap()), found, "{at}");
        }
        let v6 = |text| parse_address(text).map(|address| address.to_string());
        assert_eq!(v6("B80D0120000000000000000001000000").as_deref(), Some("2001:db8::1"));
        assert_eq!(v6("0000000000000000FFFF00000100007F").as_deref(), Some("127.0.0.1"));
        assert_eq!(v6("0100"), None);
    }

    #[test]
    fn a_socket_of_our_own_has_us_for_its_holder() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for (kind, at) in [("tcp", listener.local_addr().unwrap()), ("udp", socket.local_addr().unwrap())] {
            assert_eq!(holder(kind, &at).map(|holder| holder.pid), Some(std::process::id()), "{kind}");
        }
    }
}
