//! Datagrams that come together, from a guest and to one: they are carried in few calls, and none is lost, changed or
//! out of turn, whatever becomes of the others.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use etherparse::{SlicedPacket, TransportSlice};

use crate::daemon::{PATIENCE, until};
use crate::nat::{Talker, UPLINK, open, world};

const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 7, 0, 2), 4000);
/// Where the host knows no way to.
const NOWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
const OWN: u16 = 7000;
const OTHER: u16 = 7001;

#[test]
fn datagrams_of_one_burst_arrive_in_order_and_each_failure_is_told() {
    let (daemon, _host, machine) = world(&[]);
    let mut talker = Talker::new(&daemon, 1);
    let server = machine.run(|| UdpSocket::bind(SocketAddr::from(SERVER)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    // More than go in one call, with some that the host cannot send, and one of another endpoint's between them.
    let lost = [0, 5, 6, 17, 23];
    let target = |n: u16| if lost.contains(&n) { NOWHERE } else { SERVER };
    let payload = |n: u16| vec![n as u8; 1 + 50 * usize::from(n)];
    let frames: Vec<Vec<u8>> = (0..24_u16)
        .map(|n| {
            let (to, port) = target(n);
            let (mut frame, from) = (Vec::new(), if n == 9 { OTHER } else { OWN });
            talker.ip(to).udp(from, port).write(&mut frame, &payload(n)).unwrap();
            frame
        })
        .collect();
    talker.guest.send_together(&frames);
    let mut room = [0; 2048];
    let mut senders = Vec::new();
    for n in (0..24).filter(|n| !lost.contains(n)) {
        let (len, from) = server.recv_from(&mut room).unwrap();
        assert_eq!(room[..len], payload(n), "in turn, {n}");
        senders.push((n, from.port()));
    }
    let own = senders[0].1;
    assert!(senders.iter().all(|(n, from)| (*from == own) == (*n != 9)), "{senders:?}");
    let mut told = Vec::new();
    while told.len() < lost.len() {
        let frame = talker.guest.receive().frame;
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else { continue };
        // Destination unreachable, network: with the first bytes of the packet, whose UDP length is in its place.
        assert_eq!((icmp.slice()[0], icmp.slice()[1]), (3, 0));
        let len = usize::from(u16::from_be_bytes(icmp.payload()[24..26].try_into().unwrap()));
        told.push(((len - 9) / 50) as u16);
    }
    assert_eq!(told, lost);
    let counters = daemon.counters(UPLINK);
    assert_eq!(counters["drop_rx_refused"], lost.len() as u64);
    assert_eq!(open(&daemon, "udp"), 2);
}

#[test]
fn datagrams_that_wait_at_a_socket_all_come_to_the_guest_in_order() {
    let (daemon, _host, machine) = world(&[]);
    let mut talker = Talker::new(&daemon, 1);
    let servers = [2, 3].map(|number| {
        let at = SocketAddr::from((Ipv4Addr::new(10, 7, 0, number), 4000));
        machine.run(|| UdpSocket::bind(at).unwrap())
    });
    talker.udp(OWN, SERVER, b"hello");
    let mut room = [0; 64];
    servers[0].set_read_timeout(Some(PATIENCE)).unwrap();
    let (_, guest) = servers[0].recv_from(&mut room).unwrap();
    // In turn from two, so that the kernel joins none, and more of them than are read in one call.
    let sent: Vec<(u8, Vec<u8>)> = (0..100_u8).map(|n| (n % 2 + 2, vec![n; 3 + usize::from(n)])).collect();
    for (number, payload) in &sent {
        servers[usize::from(*number) - 2].send_to(payload, guest).unwrap();
    }
    let mut came = Vec::new();
    until("all of them", || {
        while let Some(received) = talker.guest.poll(0) {
            let packet = SlicedPacket::from_ethernet(&received.frame).unwrap();
            if let Some(TransportSlice::Udp(udp)) = packet.transport {
                assert_eq!((udp.source_port(), udp.destination_port()), (4000, OWN));
                came.push((received.frame[29], udp.payload().to_vec()));
            }
        }
        came.len() >= sent.len()
    });
    assert_eq!(came, sent);
}
