//! ICMP errors for guests: what became of their packets.
//!
//! Theory of operation. A guest hears of a packet of its own that went no further: from the gateway if we, or the host,
//! did not send it, and from the router that said so if it was lost on its way. The message quotes the packet as the
//! guest knows it: its own address and port, and not the host's. Nothing is said of errors, of fragments but a packet's
//! first, and of what was for many (RFC 1122, 3.2.2; RFC 4443, 2.4 e).
//!
//! Bounds: [`PER_SECOND_MAX`] messages a second for a guest. What is more is not sent.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use super::headers::{Ends, HOP_LIMIT, NETWORK_MAX};
use super::out::Guest;
use super::packet::Packet;
use super::tcp::Surroundings;
use crate::frame::checksum;
use crate::frame::ethernet::{self, MacAddr};
use crate::frame::ip::{ICMP, ICMPV6};
use crate::frame::vnet::VnetHeader;
use crate::switch::PortId;
use crate::sys::errqueue::Lost;

/// Bytes of the header of an error, and of an echo.
pub(super) const HEADER_LEN: usize = 8;
/// Messages for one guest in a second.
const PER_SECOND_MAX: u32 = 100;
const SECOND: u64 = 1_000_000_000;
/// Bytes of a packet that are quoted: so many that the message is no longer than every host takes (RFC 1812, 4.3.2.3;
/// RFC 4443, 2.4 c).
const QUOTE_V4_MAX: usize = 576 - 20 - HEADER_LEN;
const QUOTE_V6_MAX: usize = 1280 - 40 - HEADER_LEN;
/// The longer of the two.
pub(super) const QUOTE_MAX: usize = QUOTE_V6_MAX;

/// Types of ICMP.
const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
/// Of the codes of `UNREACHABLE`: too long, and not to be cut.
const TOO_LONG: u8 = 4;
/// Those that tell of errors: source quench, redirect and parameter problem are the others.
const ERRORS: [u8; 5] = [UNREACHABLE, 4, 5, TIME_EXCEEDED, 12];
/// Types of ICMPv6. Those below 128 tell of errors.
const UNREACHABLE_V6: u8 = 1;
const TOO_BIG_V6: u8 = 2;
const TIME_EXCEEDED_V6: u8 = 3;
const INFORMATION_V6: u8 = 128;

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The host has no way there.
    NoRoute,
    /// Nobody answers there.
    HostUnreachable,
    /// Nobody listens on that port.
    PortUnreachable,
    /// It is forbidden.
    Prohibited,
    /// It has passed as many routers as it may.
    HopLimit,
    /// Pieces of it did not come in time.
    ReassemblyTime,
    /// It is longer than this, which is all that the path takes.
    TooBig(u32),
    /// Somebody else's words: type, code, and what follows the checksum.
    Said(u8, u8, u32),
}

impl Reason {
    /// Why a call has failed, if that is something to tell a guest by ICMP. `mtu` is the path's, where it is known.
    pub(super) fn of(error: &io::Error, mtu: Option<u32>) -> Option<Self> {
        match error.raw_os_error()? {
            libc::ENETUNREACH => Some(Self::NoRoute),
            libc::EHOSTUNREACH | libc::ETIMEDOUT | libc::EHOSTDOWN => Some(Self::HostUnreachable),
            libc::EACCES | libc::EPERM => Some(Self::Prohibited),
            libc::EMSGSIZE => mtu.map(Self::TooBig),
            _ => None,
        }
    }

    /// What was said of a packet, if it is something to tell a guest.
    pub(super) fn said(lost: &Lost) -> Option<Self> {
        let message = lost.message?;
        let (kind, code) = (message.kind, message.code);
        let is_too_big = if lost.to.is_ipv4() { (kind, code) == (UNREACHABLE, TOO_LONG) } else { kind == TOO_BIG_V6 };
        let is_told = match lost.to.is_ipv4() {
            true => matches!(kind, UNREACHABLE | TIME_EXCEEDED),
            false => matches!(kind, UNREACHABLE_V6 | TOO_BIG_V6 | TIME_EXCEEDED_V6),
        };
        is_told.then_some(Self::Said(kind, code, if is_too_big { lost.mtu } else { 0 }))
    }

    /// Type, code, and what follows the checksum.
    fn words(self, is_v4: bool) -> (u8, u8, u32) {
        match (self, is_v4) {
            (Self::NoRoute, true) => (UNREACHABLE, 0, 0),
            (Self::HostUnreachable, true) => (UNREACHABLE, 1, 0),
            (Self::PortUnreachable, true) => (UNREACHABLE, 3, 0),
            (Self::Prohibited, true) => (UNREACHABLE, 13, 0),
            (Self::HopLimit, true) => (TIME_EXCEEDED, 0, 0),
            (Self::ReassemblyTime, true) => (TIME_EXCEEDED, 1, 0),
            // There are 16 bits for it (RFC 1191, 4).
            (Self::TooBig(mtu), true) => (UNREACHABLE, TOO_LONG, mtu.min(u16::MAX.into())),
            (Self::NoRoute, false) => (UNREACHABLE_V6, 0, 0),
            (Self::HostUnreachable, false) => (UNREACHABLE_V6, 3, 0),
            (Self::PortUnreachable, false) => (UNREACHABLE_V6, 4, 0),
            (Self::Prohibited, false) => (UNREACHABLE_V6, 1, 0),
            (Self::HopLimit, false) => (TIME_EXCEEDED_V6, 0, 0),
            (Self::ReassemblyTime, false) => (TIME_EXCEEDED_V6, 1, 0),
            (Self::TooBig(mtu), false) => (TOO_BIG_V6, 0, mtu),
            (Self::Said(kind, code, rest), _) => (kind, code, rest),
        }
    }
}

/// How many messages guests have been sent lately.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// By port: in which second, and how many.
    sent: HashMap<PortId, (u64, u32)>,
}

impl Limits {
    /// Whether a guest may be sent one more now, which it then is.
    fn has_room(&mut self, port: PortId, now: u64) -> bool {
        let (second, count) = self.sent.entry(port).or_default();
        if *second != now / SECOND {
            (*second, *count) = (now / SECOND, 0);
        }
        *count += u32::from(*count <= PER_SECOND_MAX);
        *count <= PER_SECOND_MAX
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.sent.remove(&port);
    }
}

impl Surroundings<'_> {
    /// Tells a guest, who has the address `to`, what became of a packet of its own, which begins with `packet`. `by` is
    /// who said so; the gateway says it if nobody did, or nobody whom guests may know of.
    pub(super) fn report(&mut self, guest: Guest, to: IpAddr, by: Option<IpAddr>, reason: Reason, packet: &[u8]) {
        let Some(gateway) = self.policy.gateway(to) else { return };
        if !self.limits.has_room(guest.port, self.now) {
            return;
        }
        let is_known = |by: &IpAddr| by.is_ipv4() == to.is_ipv4() && self.policy.is_elsewhere(*by);
        let from = by.filter(is_known).unwrap_or(gateway);
        let ends = Ends { mac: self.gateway_mac, to_mac: guest.mac, from, to };
        let mut frame = self.out.buffer();
        write(&ends, reason, packet, &mut frame);
        self.out.push(VnetHeader::default(), frame);
    }

    /// Tells a guest why its packet, which came in a frame that begins with `head`, goes no further, if anything is to
    /// be said of such.
    pub(super) fn refuse(&mut self, guest: Guest, packet: &Packet, head: &[u8], reason: Reason) {
        let is_single = !self.policy.is_for_many(packet.to) && !self.policy.is_for_many(packet.from);
        if is_single && !is_error(packet, head) && !packet.is_fragment {
            let quoted = head.get(packet.network..packet.end.min(head.len())).unwrap_or_default();
            self.report(guest, packet.from, None, reason, quoted);
        }
    }
}

/// Whether a packet is an ICMP error, or may be one.
fn is_error(packet: &Packet, head: &[u8]) -> bool {
    let kind = head.get(packet.transport);
    match packet.protocol {
        ICMP => kind.is_none_or(|kind| ERRORS.contains(kind)),
        ICMPV6 => kind.is_none_or(|kind| *kind < INFORMATION_V6),
        _ => false,
    }
}

/// Writes the frame of an error about a packet.
fn write(ends: &Ends, reason: Reason, packet: &[u8], frame: &mut Vec<u8>) {
    let is_v4 = ends.to.is_ipv4();
    let (protocol, quote_max) = if is_v4 { (ICMP, QUOTE_V4_MAX) } else { (ICMPV6, QUOTE_V6_MAX) };
    let quoted = &packet[..packet.len().min(quote_max)];
    let (kind, code, rest) = reason.words(is_v4);
    frame.clear();
    frame.resize(ends.len(), 0);
    ends.emit(protocol, HOP_LIMIT, HEADER_LEN + quoted.len(), frame);
    frame.extend_from_slice(&[kind, code, 0, 0]);
    frame.extend_from_slice(&rest.to_be_bytes());
    frame.extend_from_slice(quoted);
    put_checksum(ends, &mut frame[ends.len()..]);
}

/// Completes the checksum of an ICMP message between these ends, whose own place for it is zero.
pub(super) fn put_checksum(ends: &Ends, message: &mut [u8]) {
    let initial = if ends.to.is_ipv4() { 0 } else { ends.pseudo_sum(ICMPV6, message.len()) };
    let sum = !checksum::sum(message, initial);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// What a packet of a guest's began with, of which only what follows the IP header is known. It is as one that has
/// passed as many routers as it may, and as long as what is known: the kernel keeps the header that a router has quoted
/// to itself, so a packet of which the router has quoted a part only seems shorter than it was.
pub(super) fn rebuild(from: IpAddr, to: IpAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    // Only the IP header is used.
    let ends = Ends { mac: MacAddr([0; 6]), to_mac: MacAddr([0; 6]), from, to };
    let mut head = [0; NETWORK_MAX];
    ends.emit(protocol, 1, transport.len(), &mut head);
    [&head[ethernet::HEADER_LEN..ends.len()], transport].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ip::{TCP, UDP};
    use crate::frame::offload::Offload;
    use crate::sys::errqueue::Message;
    use etherparse::{Icmpv4Slice, Icmpv6Slice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    const REASONS: [Reason; 8] = [
        Reason::NoRoute,
        Reason::HostUnreachable,
        Reason::PortUnreachable,
        Reason::Prohibited,
        Reason::HopLimit,
        Reason::ReassemblyTime,
        Reason::TooBig(1400),
        Reason::Said(3, 1, 0),
    ];

    fn ends(is_v4: bool) -> Ends {
        let (from, to) = if is_v4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
        let [from, to] = [from, to].map(|address| address.parse().unwrap());
        Ends { mac: MacAddr([2; 6]), to_mac: MacAddr([4; 6]), from, to }
    }

    fn message(is_v4: bool, reason: Reason, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![1, 2, 3];
        write(&ends(is_v4), reason, packet, &mut frame);
        frame
    }

    #[test]
    fn another_program_reads_what_is_meant() {
        let remote = |is_v4| -> IpAddr { if is_v4 { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap() };
        for is_v4 in [true, false] {
            let quoted = rebuild(ends(is_v4).to, remote(is_v4), UDP, &[0x12, 0x34, 0, 53, 0, 9, 0, 0, 7]);
            for reason in REASONS {
                let frame = message(is_v4, reason, &quoted);
                let packet = SlicedPacket::from_ethernet(&frame).unwrap();
                let said = match packet.transport.unwrap() {
                    TransportSlice::Icmpv4(icmp) => {
                        assert_eq!(checksum::sum(icmp.slice(), 0), 0xffff);
                        let inner = SlicedPacket::from_ip(icmp.payload()).unwrap();
                        let Some(TransportSlice::Udp(udp)) = inner.transport else { panic!("{inner:?}") };
                        assert_eq!((udp.source_port(), udp.destination_port()), (0x1234, 53));
                        format!("{:?}", icmp.icmp_type())
                    }
                    TransportSlice::Icmpv6(icmp) => {
                        let sum = checksum::sum(icmp.slice(), ends(false).pseudo_sum(ICMPV6, icmp.slice().len()));
                        assert_eq!(sum, 0xffff);
                        format!("{:?}", icmp.icmp_type())
                    }
                    other => panic!("{other:?}"),
                };
                let expected = match (reason, is_v4) {
                    (Reason::NoRoute, true) => "Network)",
                    (Reason::HostUnreachable | Reason::Said(..), true) => "Host)",
                    (Reason::PortUnreachable, true) => "Port)",
                    (Reason::Prohibited, true) => "FilterProhibited)",
                    (Reason::HopLimit, true) => "TimeExceeded(TtlExceededInTransit)",
                    (Reason::ReassemblyTime, true) => "TimeExceeded(FragmentReassemblyTimeExceeded)",
                    (Reason::TooBig(_), true) => "FragmentationNeeded { next_hop_mtu: 1400 })",
                    (Reason::NoRoute, false) => "NoRoute)",
                    (Reason::HostUnreachable, false) => "Address)",
                    (Reason::PortUnreachable, false) => "Port)",
                    (Reason::Prohibited, false) => "Prohibited)",
                    (Reason::HopLimit, false) => "TimeExceeded(HopLimitExceeded)",
                    (Reason::TooBig(_), false) => "PacketTooBig { mtu: 1400 }",
                    (Reason::ReassemblyTime | Reason::Said(..), false) => "FragmentReassemblyTimeExceeded)",
                };
                assert!(said.ends_with(expected), "{reason:?}: {said}");
            }
        }
    }

    #[test]
    fn what_fails_is_told_as_what_it_is() {
        let of = |errno| Reason::of(&io::Error::from_raw_os_error(errno), Some(1400));
        assert_eq!(of(libc::ENETUNREACH), Some(Reason::NoRoute));
        assert_eq!(of(libc::ETIMEDOUT), Some(Reason::HostUnreachable));
        assert_eq!(of(libc::EPERM), Some(Reason::Prohibited));
        assert_eq!(of(libc::EMSGSIZE), Some(Reason::TooBig(1400)));
        assert_eq!(Reason::of(&io::Error::from_raw_os_error(libc::EMSGSIZE), None), None);
        // There are other ways to tell of these.
        assert_eq!([libc::ECONNREFUSED, libc::ECONNRESET, libc::EINVAL].map(of), [None; 3]);
        let said = |to: &str, kind, code, mtu| {
            let to = std::net::SocketAddr::new(to.parse().unwrap(), 0);
            Reason::said(&Lost { message: Some(Message { kind, code, by: None }), mtu, to, len: 0 })
        };
        assert_eq!(said("1.2.3.4", 11, 0, 7), Some(Reason::Said(11, 0, 0)));
        assert_eq!(said("1.2.3.4", 3, 4, 1400), Some(Reason::Said(3, 4, 1400)));
        assert_eq!(said("fd00::1", 2, 0, 1400), Some(Reason::Said(2, 0, 1400)));
        assert_eq!(said("fd00::1", 3, 0, 1400), Some(Reason::Said(3, 0, 0)));
        assert_eq!([said("1.2.3.4", 5, 0, 0), said("1.2.3.4", 4, 0, 0), said("fd00::1", 4, 0, 0)], [None; 3]);
    }

    #[test]
    fn a_guest_is_told_of_a_hundred_a_second() {
        let mut limits = Limits::default();
        let sent = |limits: &mut Limits, port, now| (0..1000).filter(|_| limits.has_room(PortId(port), now)).count();
        assert_eq!(sent(&mut limits, 1, 5), 100);
        assert_eq!(sent(&mut limits, 2, 5), 100, "another has its own");
        assert_eq!(sent(&mut limits, 1, SECOND - 1), 0);
        assert_eq!(sent(&mut limits, 1, SECOND), 100);
        limits.port_ended(PortId(1));
        assert!(!limits.sent.contains_key(&PortId(1)));
    }

    #[test]
    fn nothing_is_said_of_errors() {
        let is_error = |is_v4, kind: u8| {
            let ends = ends(is_v4);
            let mut frame = vec![0; ends.len()];
            ends.emit(if is_v4 { ICMP } else { ICMPV6 }, 64, 8, &mut frame);
            frame.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
            let packet = Packet::parse(&frame, frame.len(), &Offload::None).unwrap();
            is_error(&packet, &frame)
        };
        assert_eq!(
            [0, 3, 4, 5, 8, 11, 12, 13].map(|kind| is_error(true, kind)),
            [false, true, true, true, false, true, true, false]
        );
        assert_eq!(
            [1, 2, 3, 4, 100, 127, 128, 129, 255].map(|kind| is_error(false, kind)),
            [true, true, true, true, true, true, false, false, false]
        );
    }

    proptest! {
        #[test]
        fn every_quote_fits_and_has_a_right_checksum(
            is_v4: bool,
            packet in prop::collection::vec(any::<u8>(), 0..3000),
            words in any::<(u8, u8, u32)>(),
        ) {
            let frame = message(is_v4, Reason::Said(words.0, words.1, words.2), &packet);
            let ends = ends(is_v4);
            let icmp = &frame[ends.len()..];
            let most = if is_v4 { 576 } else { 1280 };
            prop_assert!(frame.len() - 14 <= most);
            prop_assert!(packet.starts_with(&icmp[HEADER_LEN..]));
            prop_assert!(icmp.len() - HEADER_LEN == packet.len() || frame.len() - 14 == most);
            let initial = if is_v4 { 0 } else { ends.pseudo_sum(ICMPV6, icmp.len()) };
            prop_assert_eq!(checksum::sum(icmp, initial), 0xffff);
            if is_v4 {
                prop_assert!(Icmpv4Slice::from_slice(icmp).is_ok());
            } else {
                prop_assert!(Icmpv6Slice::from_slice(icmp).is_ok());
            }
        }

        #[test]
        fn what_is_rebuilt_is_a_packet(is_v4: bool, transport in prop::collection::vec(any::<u8>(), 8..100)) {
            let ends = ends(is_v4);
            let frame = [&[0; 12][..], if is_v4 { &[8, 0] } else { &[0x86, 0xdd] },
                &rebuild(ends.to, ends.from, TCP, &transport)].concat();
            let packet = Packet::parse(&frame, frame.len(), &Offload::None).unwrap();
            prop_assert_eq!((packet.from, packet.to, packet.protocol), (ends.to, ends.from, TCP));
            prop_assert_eq!(&frame[packet.transport..], &transport[..]);
            prop_assert_eq!(packet.hop_limit, 1);
        }
    }
}
