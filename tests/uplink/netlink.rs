//! Interfaces, routes, and news of them.

use std::time::{Duration, Instant};

use guestwire::sys::netlink::{Change, Event, Monitor, Netlink};
use guestwire::uplink::subnet::{conflicting_route, suggest_free_subnet};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frames::PATIENCE;
use crate::space::Space;

/// Reads until as many events came; more must not follow at once.
fn events(monitor: &mut Monitor, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let end = Instant::now() + PATIENCE;
    while events.len() < count {
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{events:?}");
        poll(&mut [PollFd::new(monitor.fd(), PollFlags::POLLIN)], PollTimeout::try_from(left).unwrap()).unwrap();
        events.extend(monitor.read().unwrap());
    }
    std::thread::sleep(Duration::from_millis(20));
    events.extend(monitor.read().unwrap());
    events
}

fn changes(monitor: &mut Monitor, count: usize) -> Vec<(String, Change)> {
    events(monitor, count).into_iter().map(|event| (event.name, event.change)).collect()
}

#[test]
fn interfaces_are_seen_and_changed() {
    let space = Space::new();
    space.ip("link add br0 type bridge");
    space.ip("tuntap add t0 mode tap");
    space.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let (bridge, tap) = (netlink.link("br0").unwrap().unwrap(), netlink.link("t0").unwrap().unwrap());
        assert!(bridge.bridge && !bridge.tun && !bridge.up && bridge.controller.is_none());
        assert!(tap.tun && !tap.bridge && !tap.loopback && tap.mtu == 1500);
        assert_eq!(netlink.link("gone").unwrap(), None);
        let lo = netlink.link("lo").unwrap().unwrap();
        assert!(lo.loopback && lo.up && lo.mac.is_none());
        netlink.set_up(tap.index, true).unwrap();
        netlink.set_mtu(tap.index, 9000).unwrap();
        netlink.set_mac(tap.index, [2, 0, 0, 0, 0, 9]).unwrap();
        netlink.set_bridge(tap.index, Some(bridge.index)).unwrap();
        let now = netlink.link("t0").unwrap().unwrap();
        assert_eq!((now.up, now.mtu, now.mac), (true, 9000, Some([2, 0, 0, 0, 0, 9])));
        assert_eq!(now.controller, Some(bridge.index));
        netlink.set_bridge(tap.index, None).unwrap();
        netlink.set_up(tap.index, false).unwrap();
        let now = netlink.links().unwrap().into_iter().find(|link| link.name == "t0").unwrap();
        assert_eq!((now.up, now.controller), (false, None));
        // Errors come with the kernel's reason, and the connection goes on.
        assert_eq!(netlink.set_up(9999, true).unwrap_err().raw_os_error(), Some(19));
        assert!(netlink.link("br0").unwrap().is_some());
    });
}

#[test]
fn addresses_make_routes_and_those_collide() {
    let space = Space::new();
    space.ip("tuntap add t0 mode tap");
    space.ip("link set t0 up");
    let (routes, index) = space.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("t0").unwrap().unwrap().index;
        for _ in 0..2 {
            netlink.add_address(index, "192.168.56.1".parse().unwrap(), 24).unwrap();
            netlink.add_address(index, "fd12::1".parse().unwrap(), 64).unwrap();
        }
        (netlink.routes().unwrap(), index)
    });
    let shown = space.ip("addr show dev t0");
    assert!(shown.contains("192.168.56.1/24 brd 192.168.56.255"), "{shown}");
    assert!(shown.contains("fd12::1/64") && !shown.contains("tentative"), "{shown}");
    let texts: Vec<String> = routes.iter().map(ToString::to_string).collect();
    assert!(texts.contains(&"192.168.56.0/24 dev t0".to_owned()), "{texts:?}");
    assert!(texts.contains(&"fd12::/64 dev t0".to_owned()), "{texts:?}");
    assert!(!texts.iter().any(|text| text.contains("127.0.0") || text.contains("dev lo")), "{texts:?}");
    let subnet = "192.168.56.0".parse().unwrap();
    let route = conflicting_route(&routes, subnet, 24, None).unwrap();
    assert_eq!(route.interface, "t0");
    assert_eq!(conflicting_route(&routes, subnet, 24, Some(index)), None);
    assert_eq!(suggest_free_subnet(&routes, 24), Some("192.168.57.0".parse().unwrap()));
    space.ip("route add default via 192.168.56.9");
    let routes = space.run(|| Netlink::open().unwrap().routes().unwrap());
    assert!(routes.iter().any(|route| route.to_string() == "0.0.0.0/0 via 192.168.56.9 dev t0"));
    assert_eq!(conflicting_route(&routes, "10.0.0.0".parse().unwrap(), 8, None), None);
}

#[test]
fn interfaces_that_come_go_and_change_are_told() {
    let space = Space::new();
    space.ip("link add br0 type bridge");
    let mut monitor = space.run(|| Monitor::open().unwrap());
    assert_eq!(monitor.read().unwrap(), []);
    assert!(monitor.links().any(|link| link.name == "br0"));
    let event = |name: &str, change| (name.to_owned(), change);
    space.ip("link add v0 type veth peer name v1");
    let mut both = changes(&mut monitor, 2);
    both.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(both, [event("v0", Change::Appeared), event("v1", Change::Appeared)]);
    space.ip("link set v0 up");
    assert_eq!(changes(&mut monitor, 1), [event("v0", Change::Up)]);
    space.ip("link set v0 mtu 9000");
    assert_eq!(changes(&mut monitor, 1), [event("v0", Change::Mtu(9000))]);
    space.ip("link set v0 master br0");
    space.ip("link set v0 nomaster");
    // The bridge takes the MAC and the MTU of its first port, perhaps; the port itself does not go away.
    let told = changes(&mut monitor, 1);
    assert!(told.iter().all(|(name, _)| name == "br0"), "{told:?}");
    space.ip("link set v0 down");
    space.ip("link set v0 name w0");
    assert_eq!(changes(&mut monitor, 2), [event("v0", Change::Down), event("w0", Change::Renamed("v0".into()))]);
    space.ip("link set w0 address 02:00:00:00:00:07");
    assert_eq!(changes(&mut monitor, 1), [event("w0", Change::Mac(Some([2, 0, 0, 0, 0, 7])))]);
    space.ip("link del w0");
    let mut both = changes(&mut monitor, 2);
    both.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(both, [event("v1", Change::Vanished), event("w0", Change::Vanished)]);
    assert!(!monitor.links().any(|link| link.name == "w0"));
}

#[test]
fn news_that_overflow_the_queue_are_not_lost() {
    let space = Space::new();
    let mut monitor = space.run(|| Monitor::open().unwrap());
    space.ip("link add v0 type veth peer name v1");
    for round in 0..400 {
        space.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("v0").unwrap().unwrap().index;
            netlink.set_mtu(index, 1400 + round).unwrap();
        });
    }
    space.ip("link add last type bridge");
    let events = events(&mut monitor, 3);
    assert!(events.iter().any(|event| event.name == "last" && event.change == Change::Appeared));
    assert_eq!(monitor.links().find(|link| link.name == "v0").unwrap().mtu, 1799);
}
