//! An uplink as its network uses it; its other end is in the test's hand.

use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;

use super::*;
use crate::frame::offload::Offloads;
use crate::ring::mailbox::Mailbox;
use crate::ring::{PrivateBurst, VNET_HEADER_READ};
use crate::switch::{HostAddresses, Verdict};
use crate::uplink::loopback::Loopback;
use crate::worker::forward::Forwarder;
use crate::worker::network::{Network, Parts, Receiver};
use crate::worker::receiving::ReceivingHalf;
use crate::worker::sender::{Origin, Sender};

const ALL: [u8; 6] = [0xff; 6];
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

fn guest(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, n]
}

fn frame(to: [u8; 6], from: [u8; 6], kind: u16, rest: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), rest].concat()
}

/// An ARP request from an address.
fn arp(mac: [u8; 6], from: [u8; 4]) -> Vec<u8> {
    frame(ALL, mac, 0x0806, &[&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &from, &[0; 6], &[192, 0, 2, 1]].concat())
}

/// A network with an uplink, and what forwards on it.
struct Segment {
    half: Arc<UplinkHalf>,
    network: Arc<Network>,
    reader: Reader,
    poller: Poller,
    forwarder: Forwarder,
    guests: Vec<(usize, Sender)>,
    now_s: u32,
}

fn port(number: u32, declared: Option<[u8; 6]>) -> PortShared {
    let mut shared = PortShared::new(number, "net".into(), [0; 6]).unwrap();
    shared.declared_mac = declared;
    shared
}

impl Segment {
    fn new(shared_mac: Option<[u8; 6]>) -> Self {
        let half = UplinkHalf::new(vec![port(100, None)], shared_mac.map(MacAddr)).unwrap();
        let network = Network::with(Parts { uplink: Some(half.clone()), ..Parts::default() }, 1);
        let reader = network.reader(0).unwrap();
        let (forwarder, poller) = (Forwarder::new(network.clone(), 0), Poller::new().unwrap());
        Self { half, network, reader, poller, forwarder, guests: Vec::new(), now_s: 1 }
    }

    /// Puts a device in place, on which the host has this address.
    fn connect(&mut self, host: [u8; 6]) -> UnixDatagram {
        self.connect_with(host, &[])
    }

    /// The same, on which the host has these IP addresses too.
    fn connect_with(&mut self, host: [u8; 6], addresses: &[[u8; 4]]) -> UnixDatagram {
        let (device, other) = Loopback::pair(Offloads::default());
        let own = addresses.iter().copied().map(IpAddr::from).collect();
        let addresses = HostAddresses { own, ..HostAddresses::default() };
        self.half.connect(Box::new(device.with_host(MacAddr(host), addresses)));
        self.look();
        other
    }

    fn look(&self) {
        self.reader.watch(&self.poller, 7, &self.network);
    }

    fn add(&mut self, declared: Option<[u8; 6]>) -> usize {
        let shared = Arc::new(port(self.guests.len() as u32, declared));
        let half = Arc::new(ReceivingHalf::new(shared.clone(), Arc::new(Mailbox::new().unwrap())));
        let index = self.network.add_port(Receiver::Guest(half)).unwrap();
        self.guests.push((index, Sender::new(shared, Origin::Guest, None)));
        self.guests.len() - 1
    }

    /// A guest sends.
    fn send(&mut self, guest: usize, frame: &[u8]) {
        self.send_with(guest, [0; VNET_HEADER_READ], frame);
    }

    /// A guest sends a frame with this header.
    fn send_with(&mut self, guest: usize, vnet: [u8; VNET_HEADER_READ], frame: &[u8]) {
        let mut burst = PrivateBurst::default();
        let burst = burst.fill([(vnet, frame)].into_iter(), false);
        let (index, sender) = &mut self.guests[guest];
        self.forwarder.forward(*index, sender, None, burst, u64::from(self.now_s) * 1_000_000_000);
    }

    /// A frame comes in.
    fn receive(&mut self, other: &UnixDatagram, frame: &[u8]) {
        other.send(&[&[0; 12], frame].concat()).unwrap();
        assert_eq!(self.reader.turn(&mut self.forwarder, u64::from(self.now_s) * 1_000_000_000), 1);
    }

    /// Where a frame for this address would go, from the guest.
    fn way(&self, guest: usize, to: [u8; 6]) -> Verdict {
        let (index, _) = self.guests[guest];
        self.network.switch().forward(PortId(index as u16), &frame(to, [2, 9, 9, 9, 9, index as u8], 0x0800, &[0; 20]))
    }

    fn hears(&self) -> Vec<[u8; 6]> {
        self.half.queues[0].lock().stations.heard.iter().map(|mac| mac.0).collect()
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.half.shared().map(|shared| shared.counters.get(counter)).sum()
    }
}

fn came(other: &UnixDatagram) -> Option<Vec<u8>> {
    let mut message = [0; 2000];
    other.recv(&mut message).ok().map(|len| message[12..len].to_vec())
}

#[test]
fn the_uplink_hears_frames_for_all_stations_of_a_port_up_to_a_bound() {
    let mut segment = Segment::new(None);
    let _other = segment.connect(HOST);
    let first = segment.add(None);
    let second = segment.add(Some(guest(200)));
    assert_eq!(segment.hears(), [guest(200)], "what is declared is heard at once");
    segment.send(first, &frame(ALL, guest(1), 0x0800, &[0; 20]));
    segment.send(first, &frame(ALL, guest(2), 0x0800, &[0; 20]));
    segment.send(second, &frame(ALL, guest(200), 0x0800, &[0; 20]));
    assert_eq!(segment.hears(), [guest(1), guest(2), guest(200)]);
    segment.now_s = 2;
    for n in 0..100 {
        segment.send(first, &frame(ALL, guest(n), 0x0800, &[0; 20]));
    }
    segment.now_s = 3;
    segment.send(first, &frame(ALL, guest(101), 0x0800, &[0; 20]));
    assert_eq!(segment.hears().len(), 64 + 1, "the last ones of the first port");
    segment.network.remove_port(segment.guests[first].0);
    assert_eq!(segment.hears(), [guest(200)]);
}

#[test]
fn an_address_that_a_guest_took_from_the_lan_goes_back_with_the_stations_next_frame() {
    let mut segment = Segment::new(None);
    let other = segment.connect(HOST);
    let (thief, victim) = (segment.add(None), segment.add(None));
    segment.receive(&other, &frame(ALL, ROUTER, 0x0800, &[0; 20]));
    let to_uplink = segment.way(victim, ROUTER);
    segment.send(thief, &frame(ALL, ROUTER, 0x0800, &[0; 20]));
    assert_ne!(segment.way(victim, ROUTER), to_uplink);
    assert!(segment.hears().contains(&ROUTER));
    segment.receive(&other, &frame(ALL, ROUTER, 0x0800, &[0; 20]));
    assert_eq!(segment.way(victim, ROUTER), to_uplink);
    assert!(!segment.hears().contains(&ROUTER));
}

#[test]
fn nobody_beyond_has_a_declared_address_while_its_guest_is_there() {
    let mut segment = Segment::new(None);
    let other = segment.connect(HOST);
    let (holder, friend) = (segment.add(Some(guest(1))), segment.add(None));
    segment.send(holder, &frame(ALL, guest(1), 0x0800, &[0; 20]));
    let to_holder = segment.way(friend, guest(1));
    let spoof = [&[0; 12], frame(ALL, guest(1), 0x0800, &[0; 20]).as_slice()].concat();
    other.send(&spoof).unwrap();
    assert_eq!(segment.reader.turn(&mut segment.forwarder, u64::from(segment.now_s) * 1_000_000_000), 0);
    assert_eq!((segment.counted(Counter::TxFrames), segment.counted(Counter::DropTxReflected)), (1, 1));
    assert_eq!(segment.way(friend, guest(1)), to_holder);
    segment.network.remove_port(segment.guests[holder].0);
    segment.receive(&other, &frame(ALL, guest(1), 0x0800, &[0; 20]));
    assert_eq!(segment.way(friend, guest(1)), Verdict::Forward(PortId(segment.reader.index as u16)), "it has moved");
}

#[test]
fn no_guest_has_the_address_of_the_host_nor_the_one_it_gets_later() {
    let mut segment = Segment::new(None);
    let _first = segment.connect(HOST);
    let (thief, victim) = (segment.add(None), segment.add(None));
    for host in [HOST, [2, 0, 0, 0, 0, 0xab]] {
        if host != HOST {
            // Learned before it is the host's.
            segment.send(thief, &frame(ALL, host, 0x0800, &[0; 20]));
            segment.send(victim, &frame(host, guest(2), 0x0800, &[0; 20]));
            segment.connect(host);
        }
        let spoofed = segment.guests[thief].1.shared.counters.get(Counter::DropTxSpoofedMac);
        segment.send(thief, &frame(ALL, host, 0x0800, &[0; 20]));
        let after = segment.guests[thief].1.shared.counters.get(Counter::DropTxSpoofedMac);
        assert_eq!(after - spoofed, 1);
        assert_eq!(segment.way(victim, host), Verdict::Forward(PortId(segment.reader.index as u16)));
    }
}

#[test]
fn a_device_that_is_gone_is_watched_no_longer_though_somebody_else_has_it() {
    let mut segment = Segment::new(None);
    let (device, other) = Loopback::pair(Offloads::default());
    let _inherited = device.fd().try_clone_to_owned().unwrap();
    segment.half.connect(Box::new(device));
    segment.look();
    other.send(&[0; 12 + 60]).unwrap();
    let ready = |segment: &Segment| {
        let mut count = 0;
        segment.poller.wait(0, |_| count += 1).unwrap();
        count
    };
    assert_eq!(ready(&segment), 1);
    segment.half.disconnect(&Gone::Deleted);
    assert_eq!(ready(&segment), 0);
    // Another is watched.
    let other = segment.connect(HOST);
    other.send(&[0; 12 + 60]).unwrap();
    assert_eq!(ready(&segment), 1);
}

#[test]
fn where_guests_share_an_address_it_is_the_devices_present_one() {
    let mut segment = Segment::new(Some(HOST));
    let guest_port = segment.add(None);
    for host in [HOST, [2, 0, 0, 0, 0, 0xab]] {
        let other = segment.connect(host);
        segment.send(guest_port, &arp(guest(1), [192, 0, 2, 7]));
        let sent = came(&other).unwrap();
        assert_eq!((&sent[6..12], &sent[22..28]), (&host[..], &host[..]));
    }
}

#[test]
fn what_the_translation_refuses_is_counted_by_its_reason() {
    let mut segment = Segment::new(Some(HOST));
    let guest_port = segment.add(None);
    let other = segment.connect(HOST);
    segment.send(guest_port, &frame(ALL, guest(1), 0x8100, &[0, 5, 8, 0, 0x45, 0, 0, 0]));
    segment.send(guest_port, &frame(ALL, guest(1), 0x888e, &[0; 46]));
    assert_eq!((segment.counted(Counter::DropTxTagged), segment.counted(Counter::DropTxNotIp)), (1, 1));
    assert_eq!(segment.counted(Counter::DropRxRefused), 0);
    assert!(came(&other).is_none());
}

#[test]
fn no_checksum_is_written_into_what_was_translated() {
    let mut segment = Segment::new(Some(HOST));
    let guest_port = segment.add(None);
    segment.guests[guest_port].1.sends = Offloads { checksum: true, ..Offloads::default() };
    let other = segment.connect(HOST);
    let udp = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 7, 192, 0, 2, 1, 0, 9, 0, 9, 0, 8, 0, 0];
    let udp = frame(ROUTER, guest(1), 0x0800, &udp);
    let arp = arp(guest(1), [192, 0, 2, 7]);
    // The IP address of who asks; a port; UDP's own.
    for (frame, start, offset) in [(&arp, 14, 14), (&udp, 34, 0), (&udp, 34, 6)] {
        segment.send_with(guest_port, [1, 0, 0, 0, 0, 0, start, 0, offset, 0], frame);
    }
    assert_eq!(segment.counted(Counter::DropTxBadHeader), 2);
    assert_eq!(came(&other).unwrap()[12..14], [8, 0]);
    assert_eq!(came(&other), None);
}

#[test]
fn no_guest_that_shares_the_address_uses_an_ip_address_of_the_host() {
    let mut segment = Segment::new(Some(HOST));
    let guest_port = segment.add(None);
    let other = segment.connect_with(HOST, &[[192, 0, 2, 8]]);
    segment.send(guest_port, &arp(guest(1), [192, 0, 2, 8]));
    assert_eq!((came(&other), segment.counted(Counter::DropTxAddressTaken)), (None, 1));
    segment.send(guest_port, &arp(guest(1), [192, 0, 2, 9]));
    assert!(came(&other).is_some());
    // The host gets another one.
    let (device, other) = Loopback::pair(Offloads::default());
    let device =
        device.with_host(MacAddr(HOST), HostAddresses { own: vec![[192, 0, 2, 9].into()], ..HostAddresses::default() });
    segment.half.queues[0].lock().device = Some(Box::new(device));
    segment.now_s += HOST_AGE_S;
    segment.send(guest_port, &arp(guest(1), [192, 0, 2, 9]));
    assert_eq!((came(&other), segment.counted(Counter::DropTxAddressTaken)), (None, 2));
}

#[test]
fn one_who_floods_groups_leaves_the_lan_its_broadcasts() {
    let mut segment = Segment::new(None);
    let other = segment.connect(HOST);
    for _ in 0..3 {
        segment.add(None);
    }
    let counters = segment.half.queues[0].shared.clone();
    let limited = || counters.counters.get(Counter::DropTxFloodLimit);
    let long = frame([1, 0, 0x5e, 0, 0, 1], ROUTER, 0x0800, &[0; 60_000]);
    while limited() == 0 {
        segment.receive(&other, &long);
    }
    segment.receive(&other, &frame(ALL, ROUTER, 0x0800, &[0; 60_000]));
    assert_eq!(limited(), 1, "a broadcast passes");
    segment.receive(&other, &long);
    assert_eq!(limited(), 2);
}

#[test]
fn each_worker_has_a_queue_of_its_own_as_far_as_the_device_has_them() {
    let ports = (0..3).map(|_| port(100, None)).collect();
    let half = UplinkHalf::new(ports, None).unwrap();
    let network = Network::with(Parts { uplink: Some(half.clone()), ..Parts::default() }, 1);
    let (mut first, first_end) = Loopback::pair(Offloads::default());
    let (second, second_end) = Loopback::pair(Offloads::default());
    first.queues.push(second);
    half.connect(Box::new(first));
    let mut workers: Vec<_> = (0..3)
        .map(|n| (network.reader(n).unwrap(), Forwarder::new(network.clone(), n), Poller::new().unwrap()))
        .collect();
    assert!(network.reader(3).is_none());
    for (reader, _, poller) in &workers {
        reader.watch(poller, 7, &network);
    }
    // A worker without a queue gives to that of another.
    let guest_half = Arc::new(ReceivingHalf::new(Arc::new(port(0, None)), Arc::new(Mailbox::new().unwrap())));
    let index = network.add_port(Receiver::Guest(guest_half)).unwrap();
    let mut burst = PrivateBurst::default();
    for (n, (_, forwarder, _)) in workers.iter_mut().enumerate() {
        let mut sender = Sender::new(Arc::new(port(n as u32, None)), Origin::Guest, None);
        let frame = frame(ALL, guest(n as u8), 0x0800, &[0; 20]);
        let burst = burst.fill([([0; VNET_HEADER_READ], frame.as_slice())].into_iter(), false);
        forwarder.forward(index, &mut sender, None, burst, 1_000_000_000);
    }
    let came = |end| std::iter::from_fn(|| came(end)).map(|frame| frame[11]).collect::<Vec<_>>();
    assert_eq!((came(&first_end), came(&second_end)), (vec![0, 2], vec![1]));
    // Each reads its own.
    let mut message = vec![0; 12];
    message.extend(frame(ALL, ROUTER, 0x0800, &[0; 20]));
    second_end.send(&message).unwrap();
    let read: Vec<_> = workers.iter_mut().map(|(reader, forwarder, _)| reader.turn(forwarder, 1_000_000_000)).collect();
    assert_eq!(read, [0, 1, 0]);
    let counted = |counter| half.shared().map(|shared| shared.counters.get(counter)).collect::<Vec<_>>();
    assert_eq!((counted(Counter::RxFrames), counted(Counter::TxFrames)), (vec![2, 1, 0], vec![0, 1, 0]));
    // What one of them finds gone is gone for all.
    second_end.send(&[]).unwrap();
    let (reader, forwarder, _) = &mut workers[1];
    reader.turn(forwarder, 1_000_000_000);
    assert!(half.is_gone() && half.gone.read().is_ok());
    // And what it finds of a device that was replaced meanwhile says nothing of the new one.
    let (again, _end) = Loopback::pair(Offloads::default());
    half.connect(Box::new(again));
    half.lose(1, &Gone::Deleted);
    assert!(!half.is_gone());
}
