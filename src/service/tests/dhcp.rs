//! DHCPv4, exchange by exchange.

use super::*;
use crate::service::leases::{LEASES_PER_PORT_MAX, State};
use MessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};

fn refused(services: &mut Services, port: u16, client: &Client) -> Counter {
    match send(services, port, &client.frame()) {
        (Outcome::Drop(counter), None) => counter,
        other => panic!("{other:?}"),
    }
}

#[test]
fn discover_offer_request_ack_field_by_field() {
    let mut services = services();
    let offer = ask(&mut services, 1, &Client::new(7, Discover)).unwrap();
    assert_eq!(offer.kind(), Offer);
    let address = offer.address();
    assert!(address != SERVER && v4().subnet.is_host(address));
    assert_eq!((offer.to_mac, offer.to), (mac(7), address));
    assert_eq!(offer.message.chaddr(), mac(7).0);
    assert_eq!((offer.message.ciaddr(), offer.message.siaddr()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    assert_eq!(offer.codes(), [1, 28, 51, 53, 54, 58, 59]);
    assert_eq!(services.leases().unwrap().generation(), 0, "an offer is not kept");

    let ack = ask(&mut services, 1, &Client::new(7, Request).requested(address).server(SERVER)).unwrap();
    assert_eq!((ack.kind(), ack.address(), ack.to, ack.to_mac), (Ack, address, address, mac(7)));
    assert_eq!(ack.option(1), Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0))));
    assert_eq!(ack.option(28), Some(DhcpOption::BroadcastAddr(ip(255))));
    assert_eq!(ack.option(51), Some(DhcpOption::AddressLeaseTime(3600)));
    assert_eq!(ack.option(58), Some(DhcpOption::Renewal(1800)));
    assert_eq!(ack.option(59), Some(DhcpOption::Rebinding(3150)));
    let leases = services.leases().unwrap();
    assert_ne!(leases.generation(), 0);
    assert!(leases.is_for(PortId(1), mac(7), address) && !leases.is_for(PortId(2), mac(7), address));
}

#[test]
fn an_ack_byte_by_byte() {
    let mut settings = settings(v4());
    settings.v4.as_mut().unwrap().reservations =
        vec![Reservation { client: ClientId::Mac(mac(7)), address: ip(7), name: None }];
    let mut services = Services::new(settings, Leases::default());
    let client = Client::new(7, Discover).with(80, &[]).with(55, &[1]).with(61, &[9, 9]);
    let (_, frame) = send(&mut services, 1, &client.frame());
    let mut expected = vec![2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0];
    expected.extend([[0, 0, 0, 0], ip(7).octets(), [0; 4], [0; 4]].concat());
    expected.extend(mac(7).0);
    expected.resize(236, 0);
    expected.extend([99, 130, 83, 99, 1, 4, 255, 255, 255, 0, 51, 4, 0, 0, 14, 16, 53, 1, 5, 54, 4, 192, 168, 56, 1]);
    expected.extend([58, 4, 0, 0, 7, 8, 59, 4, 0, 0, 12, 78, 61, 2, 9, 9, 80, 0, 255]);
    expected.resize(300, 0);
    assert_eq!(&frame.unwrap()[14 + 20 + 8..], expected);
}

#[test]
fn all_that_is_configured_is_told_to_whom_it_concerns() {
    let route = Route::new(Ipv4Addr::new(10, 9, 0, 0), 16, ip(3)).unwrap();
    let v4 = V4 {
        router: Some(SERVER),
        routes: vec![route],
        dns: vec![SERVER, ip(2)],
        domain: Some("lab.example".parse().unwrap()),
        search: vec!["lab.example".parse().unwrap(), "example".parse().unwrap()],
        mtu: Some(9000),
        ..v4()
    };
    let mut services = Services::new(settings(v4), Leases::default());
    let ask_for = |services: &mut Services, wanted: Option<&[u8]>| {
        let client = Client::new(7, Discover).with(80, &[]).with(12, b"Web_1");
        ask(services, 1, &wanted.iter().fold(client, |client, wanted| client.with(55, wanted))).unwrap()
    };
    let told = ask_for(&mut services, None);
    assert_eq!(told.codes(), [1, 3, 6, 12, 15, 26, 28, 51, 53, 54, 58, 59, 80, 119, 121]);
    assert_eq!(told.option(3), Some(DhcpOption::Router(vec![SERVER])));
    assert_eq!(told.option(6), Some(DhcpOption::DomainNameServer(vec![SERVER, ip(2)])));
    assert_eq!(told.option(12), Some(DhcpOption::Hostname("web-1".into())));
    assert_eq!(told.option(15), Some(DhcpOption::DomainName("lab.example".into())));
    assert_eq!(told.option(26), Some(DhcpOption::InterfaceMtu(9000)));
    let names = ["lab.example.", "example."].map(|name| dhcproto::Name::from_ascii(name).unwrap());
    assert_eq!(told.option(119), Some(DhcpOption::DomainSearch(names.to_vec())));
    let nets = ["0.0.0.0/0", "10.9.0.0/16"].map(|net| net.parse().unwrap());
    assert_eq!(told.option(121), Some(DhcpOption::ClasslessStaticRoute(vec![(nets[0], SERVER), (nets[1], ip(3))])));
    assert_eq!(ask_for(&mut services, Some(&[3, 1])).codes(), [1, 3, 51, 53, 54, 58, 59, 80]);
}

#[test]
fn without_a_default_route_no_route_is_told() {
    let route = Route::new(Ipv4Addr::new(10, 9, 0, 0), 16, ip(3)).unwrap();
    let mut services = Services::new(settings(V4 { routes: vec![route], ..v4() }), Leases::default());
    for client in [Client::new(7, Discover), Client::new(7, Discover).with(55, &[3, 121, 33])] {
        let codes = ask(&mut services, 1, &client).unwrap().codes();
        assert!(!codes.contains(&3) && !codes.contains(&121), "{codes:?}");
    }
}

#[test]
fn a_client_with_little_room_is_told_less() {
    let domain = |n: usize| format!("{0}.{0}b.example", "a".repeat(n)).parse().unwrap();
    let search = (50..56).map(domain).collect();
    let mut services = Services::new(settings(V4 { search, domain: Some(domain(9)), ..v4() }), Leases::default());
    let (_, small) = send(&mut services, 1, &Client::new(7, Discover).frame());
    let (_, large) = send(&mut services, 1, &Client::new(7, Discover).with(57, &1500u16.to_be_bytes()).frame());
    let (small, large) = (small.unwrap(), large.unwrap());
    assert!(small.len() <= 14 + 576 && large.len() <= 14 + 1500);
    assert!(!Told::read(&small).codes().contains(&119) && Told::read(&small).codes().contains(&15));
    assert!(large.windows(6).any(|bytes| bytes == b"\x37aaaaa"), "the list is there");
}

#[test]
fn where_an_answer_goes() {
    let mut services = services();
    let mut client = Client::new(7, Discover);
    client.flags = 0x8000;
    let offer = ask(&mut services, 1, &client).unwrap();
    assert_eq!((offer.to, offer.to_mac), (Ipv4Addr::BROADCAST, BROADCAST_MAC));
    assert!(offer.message.flags().broadcast());
    let address = lease(&mut services, 1, 7).unwrap();
    // Renewal goes to the address in use, and NAK to all, whatever the flag.
    let mut renew = Client::new(7, Request).ciaddr(address).unicast();
    renew.flags = 0x8000;
    let ack = ask(&mut services, 1, &renew).unwrap();
    assert_eq!((ack.kind(), ack.to, ack.to_mac, ack.message.ciaddr()), (Ack, address, mac(7), address));
    let nak = ask(&mut services, 1, &Client::new(7, Request).ciaddr(ip(200)).unicast());
    let nak = nak.filter(|nak| nak.kind() == Nak).unwrap();
    assert_eq!((nak.to, nak.to_mac), (Ipv4Addr::BROADCAST, BROADCAST_MAC));
    assert_eq!((nak.address(), nak.message.ciaddr()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    assert_eq!(nak.codes(), [53, 54, 56]);
}

#[test]
fn relayed_requests_are_ignored() {
    let mut client = Client::new(7, Discover);
    client.giaddr = ip(9);
    assert_eq!(refused(&mut services(), 1, &client), Counter::DropTxBadRequest);
}

#[test]
fn renewing_and_rebinding_extend_the_lease() {
    let mut services = services();
    let address = lease(&mut services, 1, 7).unwrap();
    let expires = |services: &Services| services.leases().unwrap().get(address).unwrap().expires;
    assert_eq!(expires(&services), NOW + LEASE);
    let renew = Client::new(7, Request).ciaddr(address).unicast();
    assert_eq!(ask_at(&mut services, 1, &renew, NOW + 1800).unwrap().kind(), Ack);
    assert_eq!(expires(&services), NOW + 1800 + LEASE);
    let rebind = Client::new(7, Request).ciaddr(address);
    assert_eq!(ask_at(&mut services, 1, &rebind, NOW + 3000).unwrap().kind(), Ack);
    assert_eq!(expires(&services), NOW + 3000 + LEASE);
    let generation = services.leases().unwrap().generation();
    ask_at(&mut services, 1, &rebind, NOW + 3000).unwrap();
    assert_eq!(services.leases().unwrap().generation(), generation, "nothing has changed");
}

#[test]
fn a_client_that_was_restarted_keeps_its_address_or_is_told_that_it_cannot() {
    let mut services = services();
    let address = lease(&mut services, 1, 7).unwrap();
    let reboot = |n: u16, address| Client::new(n, Request).requested(address);
    assert_eq!(ask(&mut services, 1, &reboot(7, address)).unwrap().kind(), Ack);
    // Expired, and nobody else has it.
    assert_eq!(ask_at(&mut services, 1, &reboot(7, address), NOW + 9 * LEASE).unwrap().kind(), Ack);
    // Not its own, another's, another network's, the server's, nobody's.
    for wrong in [ip(200), Ipv4Addr::new(10, 0, 0, 9), SERVER, ip(255), ip(0)] {
        assert_eq!(ask(&mut services, 1, &reboot(7, wrong)).unwrap().kind(), Nak, "{wrong}");
    }
    assert_eq!(ask(&mut services, 2, &reboot(8, address)).unwrap().kind(), Nak);
    // What was lost with the file is mended.
    let ack = ask(&mut services, 2, &reboot(8, ip(123))).unwrap();
    assert_eq!((ack.kind(), ack.address()), (Ack, ip(123)));
}

#[test]
fn an_offer_that_was_not_taken_is_void() {
    let mut services = services();
    let offered = ask(&mut services, 1, &Client::new(7, Discover)).unwrap().address();
    let elsewhere = Client::new(7, Request).requested(ip(99)).server(ip(99));
    assert_eq!(send(&mut services, 1, &elsewhere.frame()), (Outcome::Answered, None));
    assert!(services.leases().unwrap().is_empty());
    // And after a minute somebody else may have it.
    ask(&mut services, 1, &Client::new(7, Discover)).unwrap();
    assert!(services.leases().unwrap().get(offered).unwrap().is_live(NOW + OFFER_SECONDS - 1));
    assert!(!services.leases().unwrap().get(offered).unwrap().is_live(NOW + OFFER_SECONDS));
}

#[test]
fn a_released_address_comes_back_to_its_client() {
    let mut services = services();
    let address = lease(&mut services, 1, 7).unwrap();
    let release = |n: u16| Client::new(n, Release).ciaddr(address).server(SERVER).unicast();
    assert_eq!(refused(&mut services, 2, &release(8)), Counter::DropTxBadRequest);
    // The same client on another port is another.
    assert_eq!(refused(&mut services, 2, &release(7)), Counter::DropTxBadRequest);
    assert!(services.leases().unwrap().is_for(PortId(1), mac(7), address));
    assert_eq!(send(&mut services, 1, &release(7).frame()), (Outcome::Answered, None));
    assert!(!services.leases().unwrap().is_for(PortId(1), mac(7), address));
    assert_eq!(lease(&mut services, 1, 7), Some(address));
}

#[test]
fn a_declined_address_rests() {
    let mut services = services();
    let address = lease(&mut services, 1, 7).unwrap();
    let decline = |n: u16| Client::new(n, Decline).requested(address).server(SERVER);
    assert_eq!(refused(&mut services, 2, &decline(7)), Counter::DropTxBadRequest);
    assert_eq!(send(&mut services, 1, &decline(7).frame()), (Outcome::Answered, None));
    let other = lease(&mut services, 1, 7).unwrap();
    assert_ne!(other, address);
    let reboot = Client::new(8, Request).requested(address);
    assert_eq!(ask(&mut services, 2, &reboot).unwrap().kind(), Nak);
    // It is a lease's worth of the port's share until then.
    assert_eq!(services.leases().unwrap().live_beside(PortId(1), mac(1), None, NOW), 2);
    assert_eq!(services.leases().unwrap().live_beside(PortId(1), mac(1), None, NOW + DECLINE_SECONDS), 1);
}

#[test]
fn inform_tells_and_binds_nothing() {
    let mut services = services();
    let ack = ask(&mut services, 1, &Client::new(7, Inform).ciaddr(ip(50))).unwrap();
    assert_eq!((ack.kind(), ack.address(), ack.to), (Ack, Ipv4Addr::UNSPECIFIED, ip(50)));
    assert_eq!(ack.codes(), [1, 28, 53, 54]);
    assert!(services.leases().unwrap().is_empty());
    assert_eq!(refused(&mut services, 1, &Client::new(7, Inform)), Counter::DropTxBadRequest);
}

#[test]
fn rapid_commit_leases_at_once() {
    let mut services = services();
    let ack = ask(&mut services, 1, &Client::new(7, Discover).with(80, &[])).unwrap();
    assert_eq!((ack.kind(), ack.option(80)), (Ack, Some(DhcpOption::RapidCommit)));
    assert!(services.leases().unwrap().is_for(PortId(1), mac(7), ack.address()));
}

#[test]
fn identifiers_are_told_back_and_tell_clients_apart() {
    let mut services = services();
    let with_id = |id: &[u8]| Client::new(7, Discover).with(61, id);
    let first = ask(&mut services, 1, &with_id(&[255, 1, 2, 3])).unwrap();
    assert_eq!(first.option(61), Some(DhcpOption::ClientIdentifier(vec![255, 1, 2, 3])));
    let second = ask(&mut services, 1, &with_id(&[255, 1, 2, 4])).unwrap();
    assert_ne!(first.address(), second.address());
    // One that is the hardware address is none.
    let plain = ask(&mut services, 1, &Client::new(7, Discover)).unwrap().address();
    let mac_id = [&[1][..], &mac(7).0].concat();
    assert_eq!(ask(&mut services, 1, &with_id(&mac_id)).unwrap().address(), plain);
}

#[test]
fn a_lease_that_is_left_is_its_holders_and_not_who_knows_its_identifier() {
    let mut services = services();
    let discover = |n: u16| Client::new(n, Discover).with(61, &[255, 9, 9, 9]).with(80, &[]);
    let left = ask(&mut services, 1, &discover(1)).unwrap().address();
    services.port_ended(PortId(1));
    let is_for = |services: &Services, n| services.leases().unwrap().is_for(PortId(5), mac(n), left);
    assert!(is_for(&services, 1) && !is_for(&services, 2));
    assert_ne!(ask(&mut services, 2, &discover(2)).unwrap().address(), left);
    assert!(is_for(&services, 1));
    assert_eq!(ask(&mut services, 5, &discover(1)).unwrap().address(), left);
    // Nobody waits for it any longer.
    services.port_ended(PortId(5));
    assert_eq!(ask_at(&mut services, 3, &discover(3), NOW + LEASE).unwrap().address(), left);
    assert!(!is_for(&services, 1));
}

#[test]
fn a_guest_that_comes_back_under_other_names_gets_no_more_than_its_share() {
    let mut services = services();
    let discover = |id: u8| Client::new(7, Discover).with(61, &[255, id]).with(80, &[]);
    for id in 1..=LEASES_PER_PORT_MAX as u8 {
        assert!(ask(&mut services, u16::from(id), &discover(id)).is_some());
        services.port_ended(PortId(u16::from(id)));
    }
    assert_eq!(refused(&mut services, 50, &discover(100)), Counter::DropTxLeaseShare);
    assert!(ask(&mut services, 50, &discover(1)).is_some(), "what waits for it is its own");
    assert!(lease(&mut services, 51, 8).is_some(), "and others' share is theirs");
    assert_eq!(services.leases().unwrap().inconsistency(), None);
}

#[test]
fn what_a_guest_declines_that_waited_for_it_counts_for_its_share() {
    let mut services = services();
    let address = lease(&mut services, 1, 7).unwrap();
    services.port_ended(PortId(1));
    assert!(send(&mut services, 2, &Client::new(7, Decline).requested(address).frame()).1.is_none());
    let binding = services.leases().unwrap().get(address).unwrap();
    assert_eq!((binding.port, binding.state), (Some(PortId(2)), State::Declined));
}

#[test]
fn an_identifier_that_has_a_reservation_takes_no_live_lease_from_another_machine() {
    let id = [255, 1, 2];
    let reservation = Reservation { client: ClientId::Identifier(id.to_vec()), address: ip(88), name: None };
    let mut services = Services::new(settings(V4 { reservations: vec![reservation], ..v4() }), Leases::default());
    let discover = |n: u16| Client::new(n, Discover).with(61, &id).with(80, &[]);
    assert_eq!(ask(&mut services, 1, &discover(7)).unwrap().address(), ip(88));
    services.port_ended(PortId(1));
    assert_ne!(ask(&mut services, 2, &discover(8)).unwrap().address(), ip(88));
    assert_eq!(ask(&mut services, 3, &discover(7)).unwrap().address(), ip(88));
}

#[test]
fn clones_on_two_ports_get_two_addresses_and_keep_them() {
    let mut services = services();
    let id = [255, 9, 9, 9];
    let discover = |n: u16| Client::new(n, Discover).with(61, &id).with(80, &[]);
    let one = ask(&mut services, 1, &discover(1)).unwrap().address();
    let two = ask(&mut services, 2, &discover(2)).unwrap().address();
    assert_ne!(one, two);
    let text = services.leases().unwrap().to_text();
    let mut again = Services::new(settings(v4()), Leases::from_text(&text).unwrap());
    assert_eq!(ask(&mut again, 5, &discover(2)).unwrap().address(), two);
    assert_eq!(ask(&mut again, 6, &discover(1)).unwrap().address(), one);
}

#[test]
fn leases_outlive_the_port_and_the_process() {
    let mut services = services();
    let address = lease(&mut services, 1, 7).unwrap();
    services.port_ended(PortId(1));
    let renew = Client::new(7, Request).ciaddr(address).unicast();
    assert_eq!(ask(&mut services, 3, &renew).unwrap().kind(), Ack);
    let text = services.leases().unwrap().to_text();
    let mut again = Services::new(settings(v4()), Leases::from_text(&text).unwrap());
    assert_eq!(ask(&mut again, 1, &renew).unwrap().kind(), Ack);
    assert_eq!(again.leases().unwrap().to_text(), text);
}

#[test]
fn reservations_are_kept_for_whom_they_are() {
    let reservation = |client, last, name: &str| Reservation { client, address: ip(last), name: name.parse().ok() };
    let id = vec![255, 1, 2];
    let reservations = vec![
        reservation(ClientId::Mac(mac(7)), 77, "seven"),
        reservation(ClientId::Identifier(id.clone()), 88, "eight"),
    ];
    let pools = vec![Pool::new(&v4().subnet, ip(70), ip(79)).unwrap()];
    let mut services = Services::new(settings(V4 { reservations, pools, ..v4() }), Leases::default());
    // By MAC, whatever the identifier; by identifier, whatever the MAC, and before it.
    let told =
        ask(&mut services, 1, &Client::new(7, Discover).with(61, &[255, 5]).with(80, &[]).with(12, b"x")).unwrap();
    assert_eq!((told.address(), told.option(12)), (ip(77), Some(DhcpOption::Hostname("seven".into()))));
    assert_eq!(ask(&mut services, 1, &Client::new(7, Discover).with(61, &id)).unwrap().address(), ip(88));
    // Nobody else gets either, nor the name: nine are left of ten.
    let named = Client::new(1, Discover).with(80, &[]).with(12, b"eight");
    assert_eq!(ask(&mut services, 100, &named).unwrap().option(12), Some(DhcpOption::Hostname("eight-2".into())));
    assert_eq!(ask(&mut services, 100, &Client::new(2, Request).requested(ip(88))).unwrap().kind(), Nak);
    let got: Vec<_> = (2..=9).filter_map(|n| lease(&mut services, 100 + n, n)).collect();
    assert!(got.len() == 8 && got.iter().all(|address| (70..80).contains(&address.octets()[3]) && *address != ip(77)));
    assert_eq!(refused(&mut services, 99, &Client::new(99, Discover)), Counter::DropTxPoolEmpty);
}

#[test]
fn a_router_that_is_a_guest_has_its_address_reserved_and_nobody_else_gets_it() {
    let reservation = Reservation { client: ClientId::Mac(mac(7)), address: ip(70), name: None };
    let pools = vec![Pool::new(&v4().subnet, ip(70), ip(72)).unwrap()];
    for reservations in [vec![reservation], Vec::new()] {
        let is_reserved = !reservations.is_empty();
        let settings = settings(V4 { router: Some(ip(70)), pools: pools.clone(), reservations, ..v4() });
        let mut services = Services::new(settings, Leases::default());
        let others: Vec<_> = (1..=2).filter_map(|n| lease(&mut services, n, n)).collect();
        assert!(others.len() == 2 && !others.contains(&ip(70)), "{others:?}");
        assert_eq!(lease(&mut services, 7, 7), is_reserved.then(|| ip(70)));
    }
}

#[test]
fn a_reservation_that_is_new_is_obeyed_at_the_next_renewal() {
    let mut services = services();
    let address = lease(&mut services, 1, 7).unwrap();
    let leases = Leases::from_text(&services.leases().unwrap().to_text()).unwrap();
    let reservations = vec![
        Reservation { client: ClientId::Mac(mac(7)), address: ip(200), name: None },
        Reservation { client: ClientId::Mac(mac(8)), address, name: None },
    ];
    let mut services = Services::new(settings(V4 { reservations, ..v4() }), leases);
    assert!(services.leases().unwrap().is_empty());
    let renew = Client::new(7, Request).ciaddr(address).unicast();
    assert_eq!(ask(&mut services, 1, &renew).unwrap().kind(), Nak);
    assert_eq!(lease(&mut services, 1, 7), Some(ip(200)));
    assert_eq!(lease(&mut services, 2, 8), Some(address));
}

#[test]
fn a_full_subnet_is_full_and_the_next_is_refused() {
    let mut services = services();
    let mut got: Vec<_> = (1..=253).map(|n| lease(&mut services, n, n).unwrap()).collect();
    got.sort_unstable();
    got.dedup();
    assert_eq!(got.len(), 253);
    assert!(!got.contains(&SERVER));
    assert_eq!(refused(&mut services, 254, &Client::new(254, Discover)), Counter::DropTxPoolEmpty);
    // Those who have one keep it, and one that is given back is there for the next.
    let first = services.leases().unwrap().iter().find(|(_, b)| b.mac == mac(1)).unwrap().0;
    assert_eq!(lease(&mut services, 1, 1), Some(first));
    send(&mut services, 1, &Client::new(1, Release).ciaddr(first).server(SERVER).unicast().frame());
    assert_eq!(lease(&mut services, 254, 254), Some(first));
}

#[test]
fn a_port_gets_its_share_and_no_more() {
    let mut services = services();
    let mut client = Client::new(1, Discover).with(80, &[]);
    let mut answered = 0;
    for n in 0..1000 {
        (client.mac, client.source) = (mac(n), mac(n));
        answered += usize::from(ask(&mut services, 1, &client).is_some());
    }
    assert_eq!((answered, services.leases().unwrap().len()), (LEASES_PER_PORT_MAX, LEASES_PER_PORT_MAX));
    assert_eq!(refused(&mut services, 1, &Client::new(2000, Discover)), Counter::DropTxLeaseShare);
    assert_eq!(refused(&mut services, 1, &Client::new(2000, Request).requested(ip(222))), Counter::DropTxLeaseShare);
    assert!(lease(&mut services, 2, 2000).is_some());
    // For days: what has expired is forgotten but for a share of it.
    for n in 0..500 {
        client.mac = mac(3000 + n);
        ask_at(&mut services, 1, &client, NOW + u64::from(n) * LEASE / 4);
    }
    assert!(services.leases().unwrap().len() <= 2 * LEASES_PER_PORT_MAX + 1);
}

#[test]
fn a_port_that_declines_everything_declines_its_share() {
    let mut services = services();
    for n in 0..300 {
        let client = Client::new(n, Discover).with(80, &[]);
        if let Some(told) = ask(&mut services, 1, &client) {
            ask(&mut services, 1, &Client::new(n, Decline).requested(told.address()).server(SERVER));
        }
    }
    assert_eq!(services.leases().unwrap().len(), LEASES_PER_PORT_MAX);
}

#[test]
fn a_clock_that_was_turned_back_keeps_no_address_for_years() {
    let mut services = services();
    let address = lease_at(&mut services, 1, 7, NOW + 1_000_000_000).unwrap();
    lease_at(&mut services, 2, 8, NOW).unwrap();
    assert_eq!(services.leases().unwrap().get(address).unwrap().expires, NOW + LEASE);
}

#[test]
fn names_are_cleaned_and_each_is_one_clients() {
    let mut services = services();
    let mut name = |port: u16, code: u8, value: &[u8]| {
        let client = Client::new(port, Discover).with(80, &[]).with(code, value);
        ask(&mut services, port, &client).unwrap().option(12)
    };
    let host = |name: &str| Some(DhcpOption::Hostname(name.into()));
    assert_eq!(name(1, 12, b"Web.example.org"), host("web"));
    assert_eq!(name(2, 12, b"web"), host("web-2"));
    assert_eq!(name(3, 12, b"WEB\n"), host("web-3"));
    assert_eq!(name(2, 12, b"web"), host("web-2"), "the same again");
    assert_eq!(name(4, 12, b"..\0"), None);
    assert_eq!(name(5, 81, b"\x00\x00\x00db.example"), host("db"));
    assert_eq!(name(6, 81, b"\x04\x00\x00\x05cache\x03lab\x00"), host("cache"));
    assert_eq!(name(7, 81, b"\x04\x00\x00\xc0\x00"), None);
    assert_eq!(name(1, 12, b"other"), host("other"));
    assert_eq!(name(8, 12, b"web"), host("web"), "given up by the first");
}

#[test]
fn a_full_name_is_answered_in_the_form_it_came_in() {
    let v4 = V4 { domain: Some("lab".parse().unwrap()), ..v4() };
    let mut services = Services::new(settings(v4), Leases::default());
    let mut fqdn = |value: &[u8]| {
        let client = Client::new(7, Discover).with(80, &[]).with(81, value).with(55, &[1]);
        let (_, frame) = send(&mut services, 1, &client.frame());
        let frame = frame.unwrap();
        let at = frame[282..].windows(1).enumerate().find(|(at, _)| frame[282 + at] == 81).unwrap().0 + 282;
        frame[at + 2..at + 2 + usize::from(frame[at + 1])].to_vec()
    };
    // The client wanted the server to update DNS; none does: N and O. Else N alone.
    assert_eq!(fqdn(b"\x05\x00\x00\x02db"), b"\x0e\xff\xff\x02db\x03lab\x00");
    assert_eq!(fqdn(b"\x00\x00\x00db.elsewhere"), b"\x08\xff\xffdb.lab");
}

#[test]
fn text_is_refused_whole_or_taken_whole() {
    let mut services = services();
    lease(&mut services, 1, 7).unwrap();
    ask(&mut services, 2, &Client::new(8, Discover).with(80, &[]).with(12, b"web").with(61, &[255, 1])).unwrap();
    let text = services.leases().unwrap().to_text();
    let leases = Leases::from_text(&text).unwrap();
    assert_eq!(leases.inconsistency(), None);
    assert_eq!((leases.len(), leases.to_text()), (2, text.clone()));
    for end in 0..text.trim_end().len() {
        assert!(Leases::from_text(&text[..end]).is_err(), "{end} bytes");
    }
    for (what, with) in [
        ("\"version\": 1", "\"version\": 2"),
        ("mac 52:54:00:00:00:07", "mac 52:54:00:00:00"),
        ("id ff01", "id ff0"),
        ("\"web\"", "\"we b\""),
        ("\"expires\"", "\"expired\""),
    ] {
        assert!(text.contains(what), "{what}");
        assert!(Leases::from_text(&text.replace(what, with)).is_err(), "{with}");
    }
    let twice = text.replacen("192.168.56.", "192.168.57.", 1);
    assert!(Leases::from_text(&twice).is_ok());
}
