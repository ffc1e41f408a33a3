//! Raw NICs: one end of a pair of interfaces is the NIC, the other the LAN.

use std::time::{Duration, Instant};

use guestwire::frame::ethernet::MacAddr;
use guestwire::frame::vnet::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHeader};
use guestwire::metrics::Counter;
use guestwire::sys::netlink::{Change, Monitor};
use guestwire::uplink::{FrameBuffer, Gone, RawNic, Received, Tap, Uplink};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::frames::{Frame, PATIENCE, expect, is_udp_to, next, send, udp, wait};
use crate::space::Space;
use crate::tap::{address, assert_whole, is_without_capabilities, socket, stream, without_capabilities};
use crate::wire::join;

const SOON: Duration = Duration::from_millis(100);
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 3];
const ALL: [u8; 6] = [0xff; 6];

/// A host with a NIC (address 1), and the LAN that it is on (address 2).
fn host_and_lan() -> (Space, Space) {
    let (host, lan) = (Space::new(), Space::new());
    host.cable("eth0", &lan, "lan0");
    address(&host, "eth0", 1);
    address(&lan, "lan0", 2);
    (host, lan)
}

/// Opens the NIC, with the way to the host.
fn open(host: &Space, addresses: &[[u8; 6]]) -> RawNic {
    let opened = host.run(|| RawNic::open("eth0").unwrap());
    assert!(opened.no_host_leg.is_none(), "{:?}", opened.no_host_leg);
    let mut nic = opened.nic;
    set(&mut nic, addresses);
    nic
}

fn set(nic: &mut RawNic, addresses: &[[u8; 6]]) {
    let mut addresses: Vec<_> = addresses.iter().map(|mac| MacAddr(*mac)).collect();
    addresses.sort_unstable();
    nic.set_stations(&addresses).unwrap();
}

/// A guest (address 3), as a tap with a kernel's stack behind it.
fn guest() -> (Space, Tap) {
    let space = Space::new();
    let tap = space.run(|| Tap::open("eth0").unwrap());
    space.ip("link set eth0 address 02:00:00:00:00:03");
    address(&space, "eth0", 3);
    (space, tap)
}

fn frame_to(destination: [u8; 6], source: [u8; 6], port: u16) -> Frame {
    udp(destination, source, [10, 1, 0, 3], [10, 1, 0, 2], port, b"some data that is long enough for a frame")
}

#[test]
fn super_frames_pass_whole_between_a_guest_and_the_lan() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[GUEST]);
    assert_eq!(nic.name(), "nic eth0");
    let (guest, mut tap) = guest();
    for (kind, a, b) in [(GSO_TCPV4, "10.1.0.2", "10.1.0.3"), (GSO_TCPV6, "fd01::2", "fd01::3")] {
        let ((), [seen, _]) = join(&mut nic, &mut tap, || stream(&lan, &guest, b, 20_000_000));
        assert_whole(&seen, kind);
        let ((), [_, seen]) = join(&mut nic, &mut tap, || stream(&guest, &lan, a, 20_000_000));
        assert_whole(&seen, kind);
    }
    assert_eq!(nic.lost(), (Counter::DropTxQueueFull, 0));
    let (sender, receiver) = (socket(&lan, "10.1.0.2:9000"), socket(&guest, "10.1.0.3:9001"));
    setsockopt(&sender, sockopt::UdpGsoSegment, &1000).unwrap();
    let ((), [seen, _]) = join(&mut nic, &mut tap, || {
        sender.send_to(&[7; 20_500], "10.1.0.3:9001").unwrap();
        let lens: Vec<_> = (0..21).map(|_| receiver.recv(&mut [0; 2000]).unwrap()).collect();
        assert_eq!((lens[0], lens[20]), (1000, 500));
    });
    assert_eq!(seen.super_frames.get(&GSO_UDP_L4), Some(&1), "{seen:?}");
}

#[test]
fn the_host_and_a_guest_reach_each_other() {
    for rp_filter in ["0", "1"] {
        let (host, lan) = host_and_lan();
        host.run(|| {
            for interface in ["all", "default", "eth0"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), rp_filter).unwrap();
            }
        });
        let mut nic = open(&host, &[GUEST]);
        let (guest, mut tap) = guest();
        for (kind, a, b) in [(GSO_TCPV4, "10.1.0.1", "10.1.0.3"), (GSO_TCPV6, "fd01::1", "fd01::3")] {
            let ((), [seen, _]) = join(&mut nic, &mut tap, || stream(&host, &guest, b, 20_000_000));
            assert_whole(&seen, kind);
            let ((), [_, seen]) = join(&mut nic, &mut tap, || stream(&guest, &host, a, 20_000_000));
            assert_whole(&seen, kind);
        }
        join(&mut nic, &mut tap, || stream(&guest, &lan, "10.1.0.2", 1_000_000));
        // The host knows its guest as a neighbour on the NIC; and the tap has no address of its own.
        let neighbours = host.ip("neigh show dev eth0");
        assert!(neighbours.contains("10.1.0.3 lladdr 02:00:00:00:00:03"), "{neighbours}");
        let ours = host.ip("addr show dev gwhost0");
        assert!(!ours.contains("inet"), "{ours}");
        drop(nic);
        host.wait_until_gone("gwhost0");
    }
}

#[test]
fn only_frames_for_our_addresses_and_for_groups_are_heard() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[]);
    let mut peer = lan.run(|| RawNic::open("lan0").unwrap()).nic;
    let other = [2, 0, 0, 0, 0, 4];
    let lan_mac = lan.mac("lan0");
    let mut heard = |nic: &mut RawNic, destination: [u8; 6]| {
        send(&mut peer, &frame_to(destination, lan_mac, 7000)).unwrap();
        next(nic, SOON, |frame| is_udp_to(frame, 7000)).is_some()
    };
    assert!(heard(&mut nic, ALL) && heard(&mut nic, [1, 0, 0x5e, 0, 0, 1]));
    assert!(!heard(&mut nic, GUEST));
    set(&mut nic, &[GUEST]);
    assert!(heard(&mut nic, GUEST));
    assert!(!heard(&mut nic, other) && !heard(&mut nic, host.mac("eth0")));
    let many: Vec<[u8; 6]> = (0..400).map(|n: u16| [2, 1, 0, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]).collect();
    set(&mut nic, &many[..256]);
    assert!(heard(&mut nic, many[255]) && !heard(&mut nic, GUEST));
    set(&mut nic, &many);
    assert!(heard(&mut nic, many[399]) && !heard(&mut nic, GUEST) && !heard(&mut nic, host.mac("eth0")));
}

#[test]
fn each_frame_is_in_one_of_a_nics_queues_and_a_flow_stays_in_one() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[]);
    let mut other = host.run(|| nic.add_queue().unwrap().unwrap());
    let mut third = host.run(|| nic.add_queue().unwrap().unwrap());
    let mut queues: [&mut dyn Uplink; 3] = [&mut nic, other.as_mut(), third.as_mut()];
    for queue in &mut queues {
        queue.set_stations(&[MacAddr(GUEST)]).unwrap();
    }
    let senders: Vec<_> = (0..64).map(|n| socket(&lan, &format!("10.1.0.2:{}", 8000 + n))).collect();
    lan.ip("neigh add 10.1.0.3 lladdr 02:00:00:00:00:03 dev lan0");
    host.ip("neigh add 10.1.0.3 lladdr 02:00:00:00:00:03 dev eth0");
    for sender in senders.iter().chain(&senders) {
        sender.send_to(b"x", "10.1.0.3:7000").unwrap();
    }
    let mut heard = |port| {
        queues.each_mut().map(|queue| {
            let frames = std::iter::from_fn(|| next(&mut **queue, SOON, |frame| is_udp_to(frame, port)));
            frames.map(|frame| frame.bytes[35]).collect::<Vec<u8>>()
        })
    };
    let ports = heard(7000);
    assert_eq!(ports.iter().map(Vec::len).sum::<usize>(), 128, "{ports:?}");
    assert!(ports.iter().all(|ports| !ports.is_empty()), "{ports:?}");
    for port in 0..64 {
        let in_queues = ports.iter().filter(|ports| ports.contains(&(64 + port))).count();
        assert_eq!(in_queues, 1, "flow {port}: {ports:?}");
    }
    // What the host sends to a guest is heard once too, and what one of them sends by none.
    socket(&host, "10.1.0.1:8000").send_to(b"x", "10.1.0.3:7001").unwrap();
    assert_eq!(heard(7001).iter().map(Vec::len).sum::<usize>(), 1);
    let sent_by = |queue: &mut dyn Uplink| send(queue, &frame_to(ALL, GUEST, 7002)).unwrap();
    sent_by(&mut *queues[0]);
    sent_by(&mut *queues[2]);
    let mut buffer = FrameBuffer::default();
    let mut reflected = 0;
    for queue in queues {
        while wait(queue, SOON) {
            match queue.receive(&mut buffer) {
                Received::Dropped(Counter::DropTxReflected) => reflected += 1,
                Received::Frame(_) => assert_ne!(buffer.frame()[6..12], GUEST),
                Received::Nothing => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(reflected, 2, "from the host's own path, each once, whichever of them hears it");
}

#[test]
fn our_own_frames_are_not_heard_and_those_that_come_back_are_dropped() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[GUEST]);
    let mut peer = lan.run(|| RawNic::open("lan0").unwrap()).nic;
    // To all: the wire, and the host, from where it comes back to us.
    let mine = frame_to(ALL, GUEST, 7000);
    send(&mut nic, &mine).unwrap();
    let came = expect(&mut peer, |frame| is_udp_to(frame, 7000));
    assert_eq!(came.bytes, mine.bytes);
    let mut buffer = FrameBuffer::default();
    let mut reflected = 0;
    while wait(&nic, SOON) {
        match nic.receive(&mut buffer) {
            Received::Dropped(Counter::DropTxReflected) => reflected += 1,
            Received::Frame(_) => assert_ne!(buffer.frame()[6..12], GUEST),
            Received::Nothing => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(reflected, 1);
    // From a loop in the LAN: an address proves nothing to the socket.
    send(&mut peer, &mine).unwrap();
    assert!(wait(&nic, PATIENCE) && matches!(nic.receive(&mut buffer), Received::Frame(_)));
}

#[test]
fn a_guest_that_sends_from_the_address_of_a_station_of_the_lan_cuts_nobody_from_it() {
    let (host, lan) = host_and_lan();
    let router = lan.mac("lan0");
    let mut nic = open(&host, &[GUEST, router]);
    let mut peer = lan.run(|| RawNic::open("lan0").unwrap()).nic;
    for round in 0..3 {
        send(&mut nic, &frame_to(ALL, router, 7000)).unwrap();
        let mut buffer = FrameBuffer::default();
        let mut ports = Vec::new();
        send(&mut peer, &frame_to(ALL, router, 7001)).unwrap();
        send(&mut peer, &frame_to(GUEST, router, 7002)).unwrap();
        while wait(&nic, SOON) {
            if let Received::Frame(_) = nic.receive(&mut buffer) {
                let frame = Frame::plain(buffer.frame().to_vec());
                ports.extend((7000..7003).filter(|port| is_udp_to(&frame, *port)));
            }
        }
        assert_eq!(ports, [7001, 7002], "round {round}: the router's, and the guest's own not once more");
    }
}

#[test]
fn what_comes_back_from_the_host_is_known_whatever_it_is() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[]);
    let to = [1, 0, 0x5e, 0, 0, 1];
    let mut tagged = frame_to(ALL, GUEST, 7000).completed();
    tagged.bytes.splice(12..12, [0x81, 0, 0, 100]);
    let frames = [
        frame_to(ALL, GUEST, 7000),
        frame_to(to, GUEST, 7000).completed(),
        tagged,
        tcp_super_frame(to, GUEST),
        Frame::plain([&ALL[..], &GUEST, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[7; 20]].concat()),
    ];
    for (n, frame) in frames.iter().enumerate() {
        // Twice the same, which come back twice.
        send(&mut nic, frame).unwrap();
        send(&mut nic, frame).unwrap();
        let (mut buffer, mut reflected) = (FrameBuffer::default(), 0);
        while wait(&nic, SOON) {
            match nic.receive(&mut buffer) {
                Received::Dropped(Counter::DropTxReflected) => reflected += 1,
                Received::Frame(_) => assert_ne!(buffer.frame()[6..12], GUEST, "frame {n}"),
                _ => {}
            }
        }
        assert_eq!(reflected, 2, "frame {n}");
    }
    drop(lan);
}

#[test]
fn where_guests_share_the_address_nothing_leads_to_the_host() {
    let (host, lan) = host_and_lan();
    // Addresses may have labels other than the interface's name.
    host.ip("addr add 10.3.0.1/16 dev eth0 label eth0:1");
    host.ip("link add dummy0 type bridge");
    host.ip("addr add 10.4.0.1/24 dev dummy0");
    let nic = host.run(|| RawNic::open_shared("eth0").unwrap());
    let own = host.mac("eth0");
    assert_eq!(nic.host_mac(), Some(MacAddr(own)));
    let (mut nic, addresses) = host.run(move || {
        let addresses = nic.host_addresses().unwrap();
        (nic, addresses)
    });
    for (address, prefix) in [("10.1.0.1", 24), ("fd01::1", 64), ("10.3.0.1", 16)] {
        let on_link = format!("{address}/{prefix}").parse().unwrap();
        assert!(addresses.own.contains(&address.parse().unwrap()), "{addresses:?}");
        assert!(addresses.on_link.contains(&on_link), "{address}: {addresses:?}");
    }
    assert!(addresses.own.contains(&"10.4.0.1".parse().unwrap()), "on another interface: {addresses:?}");
    assert!(addresses.on_link.iter().all(|net| net.addr().to_string() != "10.4.0.1"), "{addresses:?}");
    nic.set_stations(&[MacAddr(GUEST)]).unwrap();
    let links = host.ip("link");
    assert!(!links.contains("gwhost"), "{links}");
    let mut peer = lan.run(|| RawNic::open_shared("lan0").unwrap());
    // What is for the address that all share is heard; what the host says is not, nor is it said to the host.
    let talker = socket(&host, "10.1.0.1:6000");
    talker.set_broadcast(true).unwrap();
    talker.send_to(b"from the host", "10.1.0.255:7001").unwrap();
    send(&mut peer, &frame_to(own, lan.mac("lan0"), 7000)).unwrap();
    expect(&mut nic, |frame| {
        assert!(!is_udp_to(frame, 7001), "the host was heard");
        is_udp_to(frame, 7000)
    });
    assert_eq!(send(&mut nic, &frame_to(own, own, 7000)), Err(Some(Counter::DropRxNoHost)));
    send(&mut nic, &frame_to(ALL, own, 7002)).unwrap();
    expect(&mut peer, |frame| is_udp_to(frame, 7002));
    assert!(next(&mut nic, SOON, |frame| is_udp_to(frame, 7002)).is_none());
}

#[test]
fn a_guest_with_the_address_of_the_nic_does_not_hear_the_host() {
    let (host, lan) = host_and_lan();
    let own = host.mac("eth0");
    let mut nic = open(&host, &[GUEST, own]);
    let mut peer = lan.run(|| RawNic::open("lan0").unwrap()).nic;
    send(&mut peer, &frame_to(own, lan.mac("lan0"), 7000)).unwrap();
    send(&mut peer, &frame_to(GUEST, lan.mac("lan0"), 7001)).unwrap();
    expect(&mut nic, |frame| {
        assert!(!is_udp_to(frame, 7000), "the host's frame");
        is_udp_to(frame, 7001)
    });
}

#[test]
fn many_addresses_are_heard_and_no_others_though_the_kernel_has_no_room_for_the_filter() {
    let (host, lan) = host_and_lan();
    // Where it is the host's as a whole (before Linux 6.7), it is left as it is.
    host.run(|| drop(std::fs::write("/proc/sys/net/core/optmem_max", "8192")));
    let mut nic = open(&host, &[]);
    let mut peer = lan.run(|| RawNic::open("lan0").unwrap()).nic;
    // 64 of one maker, as VMMs give them, and as many as differ from their first byte on.
    let alike = |n: u8| [0x52, 0x54, 0, 0x12, 0x34, n];
    let unlike = |n: u8| [n << 2 | 2, n, 1, 2, 3, n];
    let makers: [&dyn Fn(u8) -> [u8; 6]; 2] = [&alike, &unlike];
    for of in makers {
        let addresses: Vec<_> = (0..64).map(of).collect();
        set(&mut nic, &addresses);
        for (n, address) in addresses.iter().enumerate() {
            send(&mut peer, &frame_to(*address, lan.mac("lan0"), 7000 + n as u16)).unwrap();
        }
        send(&mut peer, &frame_to(GUEST, lan.mac("lan0"), 8000)).unwrap();
        send(&mut peer, &frame_to(ALL, lan.mac("lan0"), 8001)).unwrap();
        for n in 0..64 {
            expect(&mut nic, |frame| is_udp_to(frame, 7000 + n));
        }
        expect(&mut nic, |frame| {
            assert!(!is_udp_to(frame, 8000), "for nobody here");
            is_udp_to(frame, 8001)
        });
    }
}

#[test]
fn vlan_tags_are_put_back() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[GUEST]);
    let mut peer = lan.run(|| RawNic::open_shared("lan0").unwrap());
    let tagged = |mut frame: Frame, tag: [u8; 4]| {
        frame.bytes.splice(12..12, tag);
        if frame.header.flags & F_NEEDS_CSUM != 0 {
            frame.header.csum_start += 4;
        }
        frame
    };
    let is_ours = |frame: &Frame| matches!(frame.bytes.get(12..14), Some([0x81, 0] | [0x88, 0xa8]));
    for tag in [[0x81, 0, 0, 100], [0x81, 0, 0xe0, 0], [0x88, 0xa8, 0x6f, 0xff]] {
        let partial = tagged(frame_to(GUEST, lan.mac("lan0"), 7000), tag);
        let plain = tagged(frame_to(GUEST, lan.mac("lan0"), 7000).completed(), tag);
        for frame in [&partial, &plain] {
            send(&mut peer, frame).unwrap();
            let came = expect(&mut nic, is_ours);
            assert_eq!(came.bytes, frame.bytes);
            assert_eq!(came.header.flags & F_NEEDS_CSUM, frame.header.flags);
            assert_eq!(
                (came.header.csum_start, came.header.csum_offset),
                (frame.header.csum_start, frame.header.csum_offset)
            );
        }
        // And the other way, two tags too.
        let out = tagged(tagged(frame_to(lan.mac("lan0"), GUEST, 7000), [0x81, 0, 0, 5]), tag);
        send(&mut nic, &out).unwrap();
        assert_eq!(expect(&mut peer, is_ours).bytes, out.bytes);
    }
    let long = tagged(tcp_super_frame(GUEST, lan.mac("lan0")), [0x81, 0, 0, 100]);
    send(&mut peer, &long).unwrap();
    let came = expect(&mut nic, is_ours);
    assert!(came.bytes == long.bytes, "{} and {} bytes", came.bytes.len(), long.bytes.len());
    assert_eq!((came.header.gso_type, came.header.gso_size), (GSO_TCPV4, 1400));
    assert_eq!((came.header.csum_start, came.header.hdr_len), (38, 14 + 4 + 40));
    let head = &came.bytes[..guestwire::frame::FRAME_HEAD_MAX];
    guestwire::frame::offload::validate(&came.header, head, came.bytes.len(), nic.sends()).unwrap();
}

/// A segment of 20,000 bytes, to be cut.
fn tcp_super_frame(to: [u8; 6], from: [u8; 6]) -> Frame {
    let mut frame = frame_to(to, from, 7000);
    frame.bytes.truncate(34);
    let len = 20 + 20 + 20_000u16;
    frame.bytes[16..18].copy_from_slice(&len.to_be_bytes());
    frame.bytes[23] = 6;
    frame.bytes[24..26].fill(0);
    let sum = !guestwire::frame::checksum::sum(&frame.bytes[14..34], 0);
    frame.bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    // Ports, numbers, a header of 20 bytes, ACK and PSH, a window.
    frame.bytes.extend([0x13, 0x88, 0x1b, 0x58, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
    frame.bytes.extend((0..20_000u32).map(|i| (i / 50) as u8));
    frame.header = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1400,
        csum_start: 34,
        csum_offset: 16,
    };
    frame
}

#[test]
fn jumbo_frames_pass_and_longer_ones_are_refused() {
    let (host, lan) = host_and_lan();
    for (space, name) in [(&host, "eth0"), (&lan, "lan0")] {
        space.ip(&format!("link set {name} mtu 9000"));
    }
    let mut nic = open(&host, &[GUEST]);
    let peer = socket(&lan, "10.1.0.2:7000");
    let to = lan.mac("lan0");
    let jumbo = |len| udp(to, GUEST, [10, 1, 0, 3], [10, 1, 0, 2], 7000, &vec![0x5a; len]);
    send(&mut nic, &jumbo(8972)).unwrap();
    assert_eq!(peer.recv(&mut [0; 10_000]).unwrap(), 8972);
    let bad = VnetHeader { flags: F_NEEDS_CSUM, csum_start: 60_000, csum_offset: 2, ..VnetHeader::default() };
    let unfit = VnetHeader { gso_type: 77, ..bad };
    for frame in [jumbo(9100), Frame { header: bad, ..jumbo(10) }, Frame { header: unfit, ..jumbo(10) }] {
        assert_eq!(send(&mut nic, &frame), Err(Some(Counter::DropRxRefused)));
    }
    send(&mut nic, &jumbo(10)).unwrap();
    assert_eq!(peer.recv(&mut [0; 10_000]).unwrap(), 10);
    socket(&lan, "10.1.0.2:7001");
}

#[test]
fn a_nic_that_is_down_drops_and_comes_back() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[GUEST]);
    let mut peer = lan.run(|| RawNic::open_shared("lan0").unwrap());
    let out = frame_to(lan.mac("lan0"), GUEST, 7000);
    host.ip("link set eth0 down");
    for _ in 0..3 {
        assert_eq!(send(&mut nic, &out), Err(Some(Counter::DropRxDown)));
    }
    // No wake-up is left over that would be one for nothing, for ever.
    assert!(next(&mut nic, SOON, |_| false).is_none() && !wait(&nic, Duration::ZERO));
    host.ip("link set eth0 up");
    send(&mut nic, &out).unwrap();
    expect(&mut peer, |frame| is_udp_to(frame, 7000));
    send(&mut peer, &frame_to(GUEST, lan.mac("lan0"), 7001)).unwrap();
    expect(&mut nic, |frame| is_udp_to(frame, 7001));
    // And one that is down at first.
    host.ip("link set eth0 down");
    let mut nic = open(&host, &[GUEST]);
    host.ip("link set eth0 up");
    send(&mut nic, &out).unwrap();
    expect(&mut peer, |frame| is_udp_to(frame, 7000));
}

#[test]
fn a_nic_that_is_unplugged_is_gone_and_its_return_is_heard() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[GUEST]);
    let mut monitor = host.run(|| Monitor::open().unwrap());
    let mut events = Vec::new();
    let mut until = |name: &str, change: &Change| {
        let end = Instant::now() + PATIENCE;
        loop {
            events.extend(monitor.read().unwrap());
            if let Some(at) = events.iter().position(|event| event.name == name && event.change == *change) {
                return events.drain(..=at).next_back().unwrap().index;
            }
            assert!(Instant::now() < end);
            poll(&mut [PollFd::new(monitor.fd(), PollFlags::POLLIN)], PollTimeout::from(1000u16)).unwrap();
        }
    };
    host.ip("link del eth0");
    assert_eq!(until("eth0", &Change::Vanished), nic.link().index);
    assert_eq!(send(&mut nic, &frame_to(ALL, GUEST, 7000)), Err(None));
    let mut buffer = FrameBuffer::default();
    // What was there before is still to be had, and then nobody is woken for nothing.
    for _ in 0..100 {
        if wait(&nic, Duration::ZERO) {
            let received = nic.receive(&mut buffer);
            assert!(!matches!(received, Received::Gone(Gone::Failed(_))), "{received:?}");
        }
    }
    assert!(!wait(&nic, SOON), "woken for nothing");
    host.cable("eth0", &lan, "lan0");
    until("eth0", &Change::Appeared);
    let mut again = open(&host, &[GUEST]);
    until("eth0", &Change::Up);
    let mut peer = lan.run(|| RawNic::open("lan0").unwrap()).nic;
    send(&mut again, &frame_to(ALL, GUEST, 7000)).unwrap();
    expect(&mut peer, |frame| is_udp_to(frame, 7000));
}

#[test]
fn a_nic_that_is_renamed_goes_on() {
    let (host, lan) = host_and_lan();
    let mut nic = open(&host, &[GUEST]);
    let mut peer = lan.run(|| RawNic::open("lan0").unwrap()).nic;
    host.ip("link set eth0 name wan0");
    send(&mut nic, &frame_to(ALL, GUEST, 7000)).unwrap();
    expect(&mut peer, |frame| is_udp_to(frame, 7000));
    assert_eq!(nic.name(), "nic wan0");
}

#[test]
fn errors_say_what_helps() {
    let (host, _lan) = host_and_lan();
    host.ip("tuntap add ip0 mode tun");
    let error = |name: &str| host.run(|| RawNic::open(name).unwrap_err().to_string());
    assert_eq!(error("eth9"), "there is no interface eth9; there are: eth0, ip0");
    assert!(error("lo").contains("not an Ethernet interface") && error("ip0").contains("not an Ethernet interface"));
    host.ip("link add br0 type bridge");
    host.ip("link set eth0 master br0");
    assert_eq!(error("eth0"), "eth0 is a port of the bridge br0: use --bridge br0");
    // What was begun is undone.
    let links = host.ip("link");
    assert!(!links.contains("gwhost"), "{links}");
}

#[test]
fn without_any_capability_the_error_says_so() {
    if is_without_capabilities() {
        let error = RawNic::open("eth0").unwrap_err().to_string();
        assert!(error.contains("CAP_NET_RAW") && error.contains("setcap cap_net_raw,cap_net_admin+ep"), "{error}");
        return;
    }
    without_capabilities(&host_and_lan().0, "", "raw_nic::without_any_capability_the_error_says_so");
}

#[test]
fn without_the_right_to_configure_the_lan_is_reached_and_the_host_is_not() {
    if !is_without_capabilities() {
        let test = "raw_nic::without_the_right_to_configure_the_lan_is_reached_and_the_host_is_not";
        let (host, lan) = host_and_lan();
        // What the host says is not heard. The LAN says something from time to time.
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut peer = lan.run(|| RawNic::open("lan0").unwrap()).nic;
                let talker = socket(&host, "10.1.0.1:6000");
                talker.set_broadcast(true).unwrap();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    talker.send_to(b"from the host", "10.1.0.255:7001").unwrap();
                    send(&mut peer, &frame_to(GUEST, lan.mac("lan0"), 7000)).unwrap();
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let run = || without_capabilities(&host, ",+net_raw", test);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            result.unwrap();
        });
        return;
    }
    let opened = RawNic::open("eth0").unwrap();
    let text = opened.no_host_leg.unwrap().to_string();
    assert!(text.contains("eth0") && text.contains("CAP_NET_ADMIN"), "{text}");
    let mut nic = opened.nic;
    set(&mut nic, &[GUEST]);
    let own = nic.link().mac.unwrap();
    assert_eq!(send(&mut nic, &frame_to(own, GUEST, 7000)), Err(Some(Counter::DropRxNoHost)));
    send(&mut nic, &frame_to(ALL, GUEST, 7000)).unwrap();
    for _ in 0..20 {
        expect(&mut nic, |frame| {
            assert!(!is_udp_to(frame, 7001), "the host was heard");
            is_udp_to(frame, 7000)
        });
    }
}
