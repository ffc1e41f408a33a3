//! The switch as its caller sees it: frames in, verdicts out.

mod guard;
mod mac_nat;
mod model;
mod packets;
mod subnet_filter;

use super::*;
use crate::metrics::Counter::*;

const A: PortId = PortId(0);
const B: PortId = PortId(1);
const C: PortId = PortId(2);

const BROADCAST: [u8; 6] = [0xff; 6];

/// The address of station `n`: unicast, locally administered.
fn station(n: u64) -> [u8; 6] {
    let [.., a, b, c, d, e] = n.to_be_bytes();
    [0x02, a, b, c, d, e]
}

fn untagged(destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    [&destination[..], &source, &[0x08, 0x00, 0x45]].concat()
}

/// A frame with a tag of type `tag` and control information `control`.
fn tagged(destination: [u8; 6], source: [u8; 6], tag: u16, control: u16) -> Vec<u8> {
    [&destination[..], &source, &tag.to_be_bytes(), &control.to_be_bytes(), &[0x08, 0x00]].concat()
}

fn switch(ports: u16) -> Switch {
    let mut switch = Switch::new(0x5eed);
    assert!((0..ports).all(|port| switch.add_port(PortId(port))));
    switch.begin_burst(1000);
    switch
}

/// Station `n` is heard on `port`.
fn hear(switch: &mut Switch, port: PortId, n: u64) -> Verdict {
    switch.forward(port, &untagged(BROADCAST, station(n)))
}

#[test]
fn an_unknown_destination_is_flooded_and_a_known_one_is_forwarded() {
    let mut switch = switch(3);
    assert_eq!(switch.forward(A, &untagged(station(2), station(1))), Verdict::Flood);
    assert_eq!(switch.forward(B, &untagged(station(1), station(2))), Verdict::Forward(A));
    assert_eq!(switch.forward(A, &untagged(station(2), station(1))), Verdict::Forward(B));
    assert_eq!(switch.forward(C, &untagged(station(2), station(3))), Verdict::Forward(B));
    assert_eq!((switch.lookup(0, station(3)), switch.lookup(0, station(4))), (Some(C), None));
}

#[test]
fn groups_are_flooded_even_if_somebody_claims_them() {
    let mut switch = switch(3);
    let multicast = [0x01, 0x00, 0x5e, 0, 0, 1];
    assert_eq!(switch.forward(B, &untagged(station(1), multicast)), Verdict::Drop(DropTxBadSource));
    assert_eq!(switch.forward(A, &untagged(multicast, station(1))), Verdict::Flood);
    assert_eq!(switch.forward(A, &untagged(BROADCAST, station(1))), Verdict::Flood);
}

#[test]
fn a_frame_that_no_bridge_relays_is_dropped_and_teaches_nothing() {
    let mut switch = switch(2);
    let whole = untagged(station(2), station(1));
    for len in 0..14 {
        assert_eq!(switch.forward(A, &whole[..len]), Verdict::Drop(DropTxRunt), "{len} bytes");
    }
    let whole = tagged(station(2), station(1), 0x8100, 5);
    for len in 14..16 {
        assert_eq!(switch.forward(A, &whole[..len]), Verdict::Drop(DropTxRunt), "{len} bytes of a tagged frame");
    }
    for source in [BROADCAST, [0x01, 0, 0, 0, 0, 1], [0; 6]] {
        assert_eq!(switch.forward(A, &untagged(station(2), source)), Verdict::Drop(DropTxBadSource), "{source:?}");
    }
    for last in 0..16 {
        let reserved = [0x01, 0x80, 0xc2, 0, 0, last];
        assert_eq!(switch.forward(A, &untagged(reserved, station(1))), Verdict::Drop(DropTxReserved), "{last}");
    }
    assert_eq!(switch.address_count(A), 0);
    assert_eq!(switch.forward(A, &untagged([0x01, 0x80, 0xc2, 0, 0, 16], station(1))), Verdict::Flood);
    assert_eq!(switch.forward(A, &untagged([0; 6], station(1))), Verdict::Flood, "nobody is behind address zero");
}

#[test]
fn nothing_goes_back_to_the_port_it_came_from() {
    let mut switch = switch(2);
    hear(&mut switch, A, 1);
    assert_eq!(switch.forward(A, &untagged(station(1), station(2))), Verdict::Drop(DropTxHairpin));
    assert_eq!(switch.forward(A, &untagged(station(3), station(3))), Verdict::Drop(DropTxHairpin), "to oneself");
}

#[test]
fn a_port_without_others_is_alone() {
    let mut switch = switch(1);
    assert_eq!(hear(&mut switch, A, 1), Verdict::Drop(DropTxAlone));
    assert_eq!(switch.forward(A, &untagged(station(2), station(1))), Verdict::Drop(DropTxAlone));
    assert!(switch.add_port(B));
    assert_eq!(switch.forward(B, &untagged(station(1), station(2))), Verdict::Forward(A), "was learned all the same");
}

#[test]
fn vlans_are_learned_apart_and_a_priority_tag_is_no_vlan() {
    let mut switch = switch(3);
    switch.forward(A, &tagged(BROADCAST, station(1), 0x8100, 5));
    switch.forward(B, &tagged(BROADCAST, station(1), 0x8100, 6));
    switch.forward(C, &untagged(BROADCAST, station(1)));
    let to_1 = |switch: &mut Switch, control| switch.forward(A, &tagged(station(1), station(9), 0x8100, control));
    assert_eq!(to_1(&mut switch, 6), Verdict::Forward(B));
    assert_eq!(to_1(&mut switch, 0xf006), Verdict::Forward(B), "priority is not part of the VLAN id");
    assert_eq!(to_1(&mut switch, 5), Verdict::Drop(DropTxHairpin));
    assert_eq!(to_1(&mut switch, 7), Verdict::Flood);
    assert_eq!(
        to_1(&mut switch, 0xe000),
        Verdict::Forward(C),
        "priority-tagged frames are in the VLAN of untagged ones"
    );
    assert_eq!(switch.forward(A, &tagged(station(1), station(9), 0x88a8, 6)), Verdict::Forward(C), "service tag");
    assert_eq!([0, 5, 6, 7].map(|vlan| switch.lookup(vlan, station(1))), [Some(C), Some(A), Some(B), None]);
}

#[test]
fn an_address_that_moves_is_followed_at_once() {
    let mut switch = switch(3);
    for n in 1..=3 {
        hear(&mut switch, A, n);
    }
    hear(&mut switch, B, 2);
    assert_eq!(switch.forward(C, &untagged(station(2), station(9))), Verdict::Forward(B));
    assert_eq!(switch.forward(A, &untagged(station(2), station(1))), Verdict::Forward(B));
    assert_eq!((switch.address_count(A), switch.address_count(B)), (2, 1));
    for _ in 0..1000 {
        hear(&mut switch, A, 2);
        hear(&mut switch, B, 2);
        assert_eq!(switch.lookup(0, station(2)), Some(B));
    }
    assert_eq!((switch.take_moves(A), switch.take_moves(B), switch.take_moves(B)), (1000, 1001, 0));
    assert_eq!((switch.address_count(A), switch.address_count(B)), (2, 1), "a fight takes no room");
    assert_eq!([1, 3].map(|n| switch.lookup(0, station(n))), [Some(A); 2], "and touches no other address");
}

#[test]
fn an_address_counts_for_300_seconds_and_not_one_more() {
    let mut switch = switch(2);
    hear(&mut switch, A, 1);
    let mut verdict_at = |now_s| {
        switch.begin_burst(now_s);
        switch.forward(B, &untagged(station(1), station(2)))
    };
    assert_eq!(verdict_at(1300), Verdict::Forward(A));
    assert_eq!(verdict_at(1301), Verdict::Flood);
    assert_eq!(verdict_at(1300), Verdict::Flood, "time does not go back");
    assert_eq!(verdict_at(u32::MAX), Verdict::Flood);
    hear(&mut switch, A, 1);
    switch.begin_burst(0);
    assert_eq!(switch.forward(B, &untagged(station(1), station(2))), Verdict::Forward(A));
}

#[test]
fn being_seen_again_renews_an_address() {
    let mut switch = switch(2);
    for now_s in [1000, 1300, 1600, 1601, 1901] {
        switch.begin_burst(now_s);
        assert_eq!(switch.lookup(0, station(1)).is_some(), now_s > 1000, "{now_s}");
        hear(&mut switch, A, 1);
    }
    assert_eq!((switch.address_count(A), switch.take_moves(A), switch.take_evictions(A)), (1, 0, 0));
}

#[test]
fn an_expired_address_makes_room_and_is_neither_moved_nor_evicted() {
    let mut switch = switch(2);
    for n in 0..100 {
        hear(&mut switch, A, n);
    }
    switch.begin_burst(1301);
    hear(&mut switch, B, 7);
    assert_eq!((switch.take_moves(B), switch.address_count(A), switch.address_count(B)), (0, 99, 1));
    for n in 1000..1200 {
        hear(&mut switch, A, n);
    }
    assert_eq!((switch.address_count(A), switch.take_evictions(A)), (200, 0), "99 old ones went, then it grew");
    assert!((1000..1200).all(|n| switch.lookup(0, station(n)) == Some(A)));
}

#[test]
fn a_port_that_goes_takes_its_addresses_along() {
    let mut switch = switch(3);
    for n in 0..1000 {
        hear(&mut switch, A, n);
        hear(&mut switch, B, 1000 + n);
    }
    assert!(switch.remove_port(A) && !switch.remove_port(A));
    assert_eq!(switch.ports().collect::<Vec<_>>().len(), 2);
    assert!((0..1000).all(|n| switch.lookup(0, station(n)).is_none()));
    assert!((1000..2000).all(|n| switch.lookup(0, station(n)) == Some(B)));
    assert_eq!(hear(&mut switch, A, 5), Verdict::Drop(DropTxDisabled), "from a port that is not there");
    assert_eq!((switch.lookup(0, station(5)), switch.address_count(A)), (None, 0));
    assert!(switch.add_port(A) && !switch.add_port(A));
    assert_eq!((hear(&mut switch, A, 5), switch.address_count(A)), (Verdict::Flood, 1));
}

#[test]
fn a_switch_has_as_many_ports_as_it_says() {
    let mut switch = switch(PORTS_MAX as u16);
    assert!(!switch.add_port(PortId(PORTS_MAX as u16)) && !switch.add_port(PortId(u16::MAX)));
    assert_eq!(switch.ports().count(), PORTS_MAX);
    assert_eq!(hear(&mut switch, PortId(PORTS_MAX as u16), 1), Verdict::Drop(DropTxDisabled));
    assert!(!switch.remove_port(PortId(PORTS_MAX as u16)));
    assert_eq!(hear(&mut switch, PortId(PORTS_MAX as u16 - 1), 1), Verdict::Flood);
}

/// Frames of one burst of 32 from `port` that were flooded, the others having been refused for the limit.
fn flooded(switch: &mut Switch, port: PortId, now_s: u32) -> usize {
    switch.begin_burst(now_s);
    let verdicts: Vec<_> = (0..32).map(|n| hear(switch, port, 1000 * u64::from(port.0) + n)).collect();
    let passed = verdicts.iter().filter(|&&verdict| verdict == Verdict::Flood).count();
    assert!(verdicts[..passed].iter().all(|&verdict| verdict == Verdict::Flood), "the first frames pass");
    assert!(verdicts[passed..].iter().all(|&verdict| verdict == Verdict::Drop(DropTxFloodLimit)));
    passed
}

#[test]
fn a_burst_floods_as_much_as_the_network_can_bear() {
    assert_eq!([2, 16, 128, 255, 1024].map(|ports| flooded(&mut switch(ports), A, 1)), [32, 32, 32, 16, 4]);
}

#[test]
fn a_flooder_loses_its_own_floods_and_nothing_else() {
    let mut switch = switch(255);
    let frames: usize = (0..10_000).map(|_| flooded(&mut switch, A, 1000)).sum();
    assert_eq!(frames, 1036);
    assert_eq!(flooded(&mut switch, B, 1000), 16, "another port in the same second");
    switch.begin_burst(1000);
    assert_eq!(switch.forward(A, &untagged(station(1000), station(1))), Verdict::Forward(B), "what is known passes");
    assert_eq!(
        switch.forward(B, &untagged(station(31), station(1000))),
        Verdict::Forward(A),
        "was learned all the same"
    );
    assert_eq!(flooded(&mut switch, A, 1001), 16, "the next second");
}

#[test]
fn a_million_addresses_evict_only_their_own() {
    let mut switch = switch(3);
    let neighbours = 0..ADDRESSES_PER_PORT_MAX as u64;
    for n in neighbours.clone() {
        hear(&mut switch, B, n);
    }
    for n in 0..1_000_000 {
        let vlan = (n % 4096) as u16;
        switch.forward(A, &tagged(BROADCAST, station(1 << 32 | n >> 2), 0x8100, vlan));
        if n % 100_000 == 0 {
            switch.begin_burst(1000 + (n / 10_000) as u32);
            assert_eq!(hear(&mut switch, C, 1 << 33 | n), Verdict::Flood, "a third port still learns");
        }
    }
    assert!(neighbours.clone().all(|n| switch.lookup(0, station(n)) == Some(B)));
    assert_eq!([A, B, C].map(|port| switch.address_count(port)), [4096, 4096, 10]);
    assert_eq!([A, B, C].map(|port| switch.take_evictions(port)), [1_000_000 - 4096, 0, 0]);
    let last = 1_000_000 - 4096..1_000_000;
    assert!(last.clone().all(|n| switch.lookup((n % 4096) as u16, station(1 << 32 | n >> 2)) == Some(A)));
    assert!(switch.remove_port(A));
    assert!(neighbours.clone().all(|n| switch.lookup(0, station(n)) == Some(B)));
    assert_eq!(hear(&mut switch, B, 1 << 34), Verdict::Flood);
    assert_eq!((switch.lookup(0, station(0)), switch.lookup(0, station(1))), (None, Some(B)), "a share's own limit");
}

#[test]
fn every_share_can_be_full_at_the_same_time() {
    let mut switch = switch(64);
    let port = |n: u64| PortId((n % 64) as u16);
    let stations = 64 * ADDRESSES_PER_PORT_MAX as u64;
    for n in 0..stations {
        hear(&mut switch, port(n), n);
    }
    assert!((0..stations).all(|n| switch.lookup(0, station(n)) == Some(port(n))));
    assert!((0..64).all(|n| switch.take_evictions(PortId(n)) == 0));
}

#[test]
fn the_hosts_address_stays_where_it_is() {
    let mut switch = switch(3);
    hear(&mut switch, B, 7);
    switch.set_host(station(7), A);
    assert_eq!(hear(&mut switch, B, 7), Verdict::Drop(DropTxSpoofedMac));
    assert_eq!(switch.forward(B, &tagged(BROADCAST, station(7), 0x8100, 5)), Verdict::Drop(DropTxSpoofedMac));
    assert_eq!(switch.forward(C, &untagged(station(7), station(1))), Verdict::Forward(A));
    assert_eq!(hear(&mut switch, A, 7), Verdict::Flood);
    assert_eq!(switch.forward(A, &untagged(station(7), station(2))), Verdict::Drop(DropTxHairpin));
    switch.set_host(station(8), A);
    assert_eq!(hear(&mut switch, B, 7), Verdict::Flood);
    switch.check();
}

#[test]
fn the_broadcasts_of_a_crowd_count_apart() {
    let mut switch = switch(200);
    switch.set_crowd(A);
    let group = untagged([1, 0, 0x5e, 0, 0, 1], station(1));
    let flood = |switch: &mut Switch, port, frame: &[u8]| {
        switch.begin_burst(1000);
        switch.forward(port, frame)
    };
    for port in [A, B] {
        while flood(&mut switch, port, &group) == Verdict::Flood {}
    }
    let broadcast = untagged(BROADCAST, station(1));
    assert_eq!(flood(&mut switch, A, &broadcast), Verdict::Flood);
    while flood(&mut switch, A, &broadcast) == Verdict::Flood {}
    assert_eq!(flood(&mut switch, B, &broadcast), Verdict::Drop(DropTxFloodLimit));
}

#[test]
fn what_has_changed_of_a_port_is_told_with_its_latest_addresses() {
    let mut switch = switch(3);
    assert!(!switch.is_changed(A));
    for n in 1..=5 {
        hear(&mut switch, A, n);
    }
    switch.forward(A, &tagged(BROADCAST, station(5), 0x8100, 9));
    assert!(switch.is_changed(A) && !switch.is_changed(B));
    assert_eq!(switch.take_changed(A, 3), [5, 4, 3].map(station));
    hear(&mut switch, A, 5);
    assert!(!switch.is_changed(A));
    hear(&mut switch, B, 4);
    assert!(switch.is_changed(A) && switch.is_changed(B));
    assert_eq!(switch.take_changed(A, 9), [5, 3, 2, 1].map(station));
}
