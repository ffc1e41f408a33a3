//! Any frames from two guests and from a NIC: through port security, the subnet filter and MAC-NAT. Nothing panics or
//! grows, nothing that passes shows what it must not, and a guest's frames change nothing for its neighbour.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::Arc;

use guestwire::config::Subnet6;
use guestwire::frame::FRAME_HEAD_MAX;
use guestwire::frame::checksum::PartialChecksum;
use guestwire::frame::ethernet::MacAddr;
use guestwire::switch::PortId;
use guestwire::switch::SubnetFilter;
use guestwire::switch::guard::{Claims, Guard, Settings};
use guestwire::switch::mac_nat::{Destination, HostAddresses, MacNat};
use guestwire_fuzz::{Input, canary};
use ipnet::Ipv4Net;
use libfuzzer_sys::fuzz_target;

const NIC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
const NEIGHBOUR: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// The neighbour's IPv4 packet: from it, or to it.
const PACKET: [u8; 34] =
    [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 10, 0, 0, 2, 10, 0, 0, 2];

fuzz_target!(|data: &[u8]| {
    if canary(data) {
        return;
    }
    let mut input = Input::new(data);
    let bits = input.u8();
    let bit = |n: u8| bits >> n & 1 != 0;
    let prefixes = ["fd00::/64".parse::<Subnet6>().expect("a subnet")];
    let mac = bit(0).then_some(MacAddr([2, 0, 0, 0, 0, 1]));
    let settings = Settings { mac, lock_mac: bit(1), lock_ip: bit(2), refuse_servers: bit(3) };
    let mut guard = Guard::new(settings, Arc::new(Claims::default()));
    guard.set_addresses(&[Ipv4Addr::new(10, 0, 0, 1)]);
    guard.set_prefixes(&prefixes);
    let filter = SubnetFilter::new("10.0.0.0/24".parse().expect("a subnet"), prefixes.to_vec(), NIC);
    let mut nat = MacNat::new(NIC);
    let own = Ipv4Addr::new(10, 0, 0, 9);
    let on_link = vec![Ipv4Net::new(own, 24).expect("a subnet").into()];
    nat.set_host_addresses(HostAddresses { own: vec![own.into()], on_link });

    let mut now_s = 0;
    while !input.is_empty() {
        let (how, len) = (input.u8(), usize::from(input.u8()) * 2);
        now_s += u32::from(how >> 4);
        let partial = (how & 4 != 0).then(|| PartialChecksum { start: input.u16(), offset: input.u16() });
        let mut frame = input.bytes(len).to_vec();
        let head = &frame[..frame.len().min(FRAME_HEAD_MAX)];
        if guard.check(head).is_ok() && settings.lock_mac {
            assert_eq!(guard.mac(), MacAddr::source_of(head));
        }
        let _ = (filter.check_guest(head), filter.check_host(head));
        if how & 1 == 0 {
            // Unless a server gave the address to the other guest.
            let is_let_out = nat.outgoing(&mut PACKET.clone(), PortId(2), None, now_s).is_ok();
            let is_stranger = MacAddr::source_of(&frame) != Some(NEIGHBOUR);
            if nat.outgoing(&mut frame, PortId(1), partial, now_s).is_ok() {
                assert_eq!(MacAddr::source_of(&frame), Some(NIC));
            }
            if is_let_out && is_stranger {
                neighbour_is_found(&mut nat, now_s);
            }
        } else if let Ok(Destination::Guest(port)) = nat.incoming(&mut frame, now_s) {
            assert!(port == PortId(1) || port == PortId(2));
            assert_ne!(MacAddr::destination_of(&frame), Some(NIC));
        }
    }
});

fn neighbour_is_found(nat: &mut MacNat, now_s: u32) {
    let mut packet = PACKET;
    packet[6] = 0;
    assert_eq!(nat.incoming(&mut packet, now_s), Ok(Destination::Guest(PortId(2))));
    assert_eq!(packet[..6], NEIGHBOUR.0);
}
