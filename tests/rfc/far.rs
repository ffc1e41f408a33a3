//! Somebody beyond the host whose packets are written by hand: a tap of the host's, of which the test is the wire.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use guestwire::sys::tap;

use crate::daemon::PATIENCE;
use crate::heard::Heard;
use crate::space::Space;
use crate::station::segment;

/// The host's address there, that of the one beyond, and that of a router in between.
pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Bytes of the longest packet there.
pub(crate) const MTU: usize = 1280;

pub(crate) fn v4(address: IpAddr) -> Ipv4Addr {
    if let IpAddr::V4(address) = address { address } else { Ipv4Addr::UNSPECIFIED }
}

pub(crate) struct Far {
    file: File,
    mac: [u8; 6],
}

impl Far {
    pub(crate) fn new(host: &Space) -> Self {
        let fd = host.run(|| {
            let fd = tap::open().unwrap();
            tap::attach(&fd, "far", tap::IFF_TAP | tap::IFF_NO_PI).unwrap();
            fd
        });
        host.ip(&format!("address add {NEAR}/24 dev far"));
        host.ip(&format!("link set far up mtu {MTU}"));
        for address in [FAR, ROUTER] {
            host.ip(&format!("neigh add {address} lladdr 02:00:00:00:00:09 dev far"));
        }
        // What comes may come from anywhere.
        ["all", "far"].iter().for_each(|name| host.set(&format!("ipv4/conf/{name}/rp_filter"), "0"));
        Self { file: File::from(fd), mac: host.mac("far") }
    }

    /// The headers of a packet to the host.
    pub(crate) fn from(&self, from: Ipv4Addr) -> PacketBuilderStep<IpHeaders> {
        PacketBuilder::ethernet2(MAC, self.mac).ipv4(from.octets(), NEAR.octets(), 64)
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        assert_eq!(self.file.write(frame).unwrap(), frame.len());
    }

    /// Sends a segment from port 9 with these flags: S, F, R.
    pub(crate) fn tcp(&mut self, to: u16, numbers: (u32, Option<u32>), flags: &str, payload: &[u8]) {
        self.send(&segment(self.from(FAR), (9, to), numbers, flags, payload));
    }

    /// Sends an ICMP message of `from` to the host.
    pub(crate) fn icmp(&mut self, from: Ipv4Addr, (kind, code): (u8, u8), rest: u32, payload: &[u8]) {
        let mut frame = Vec::new();
        self.from(from).icmpv4_raw(kind, code, rest.to_be_bytes()).write(&mut frame, payload).unwrap();
        self.send(&frame);
    }

    /// A frame that the host has sent.
    pub(crate) fn poll(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        let len = self.file.read(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    /// The next packet within this time of which `is_it` is true.
    pub(crate) fn hear_within(&mut self, time: Duration, is_it: impl Fn(&Heard) -> bool) -> Option<Heard> {
        let end = Instant::now() + time;
        loop {
            let heard = self.poll().and_then(|frame| Heard::parse(&frame));
            match heard {
                Some(heard) if [FAR, ROUTER].contains(&v4(heard.to.ip())) && is_it(&heard) => return Some(heard),
                Some(_) => {}
                None if Instant::now() >= end => return None,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    #[track_caller]
    pub(crate) fn hear(&mut self, what: &str, is_it: impl Fn(&Heard) -> bool) -> Heard {
        self.hear_within(PATIENCE, is_it).unwrap_or_else(|| panic!("not heard beyond the host: {what}"))
    }
}
