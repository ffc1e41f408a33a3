use crate::frame::ethernet::MacAddr;
use crate::vhost::control_queue::{ControlQueue, Effect, MULTICAST_MAX, UNICAST_MAX};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 9];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL: [u8; 6] = [0xff; 6];

fn queue(filters_vlans: bool) -> ControlQueue {
    ControlQueue::started(MacAddr(OWN), filters_vlans, 16)
}

fn frame(to: [u8; 6], vlan: Option<u16>) -> Vec<u8> {
    let mut bytes = to.to_vec();
    bytes.extend_from_slice(&OTHER);
    if let Some(id) = vlan {
        bytes.extend_from_slice(&[0x81, 0x00]);
        bytes.extend_from_slice(&id.to_be_bytes());
    }
    bytes.extend_from_slice(&[8, 0]);
    bytes
}

#[track_caller]
fn done(queue: &mut ControlQueue, command: &[u8]) {
    assert_eq!(queue.serve(command, &mut Effect::None), 0, "{command:?}");
}

#[track_caller]
fn failed(queue: &mut ControlQueue, command: &[u8]) {
    assert_eq!(queue.serve(command, &mut Effect::None), 1, "{command:?}");
}

fn accepts(queue: &ControlQueue, to: [u8; 6]) -> bool {
    queue.filter().accepts(&frame(to, None))
}

fn table(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let mut command = vec![1, 0];
    for list in [unicast, multicast] {
        command.extend_from_slice(&(list.len() as u32).to_le_bytes());
        command.extend_from_slice(&list.concat());
    }
    command
}

#[test]
fn a_guest_that_says_nothing_gets_everything() {
    let queue = queue(false);
    assert!([OWN, OTHER, GROUP, ALL].into_iter().all(|to| accepts(&queue, to)));
}

#[test]
fn out_of_promiscuous_mode_a_guest_gets_what_is_its_own() {
    let mut queue = queue(false);
    done(&mut queue, &[0, 0, 0]);
    assert!(accepts(&queue, OWN) && accepts(&queue, ALL));
    assert!(!accepts(&queue, OTHER) && !accepts(&queue, GROUP));
    done(&mut queue, &[0, 1, 1]);
    assert!(accepts(&queue, GROUP) && !accepts(&queue, OTHER));
    done(&mut queue, &[0, 2, 1]);
    assert!(accepts(&queue, OTHER));
    done(&mut queue, &[0, 5, 1]);
    assert!(!accepts(&queue, ALL));
    done(&mut queue, &[0, 3, 1]);
    assert!(!accepts(&queue, GROUP));
    done(&mut queue, &[0, 4, 1]);
    assert!(!accepts(&queue, OWN));
}

#[test]
fn the_address_table_is_exact_until_it_is_full() {
    let mut queue = queue(false);
    done(&mut queue, &[0, 0, 0]);
    done(&mut queue, &table(&[OTHER], &[GROUP]));
    assert!(accepts(&queue, OTHER) && accepts(&queue, GROUP) && accepts(&queue, OWN));
    done(&mut queue, &table(&[], &[]));
    assert!(!accepts(&queue, OTHER) && !accepts(&queue, GROUP));
    let many: Vec<_> = (0..=UNICAST_MAX as u16).map(|i| [2, 1, 0, 0, (i >> 8) as u8, i as u8]).collect();
    done(&mut queue, &table(&many, &[]));
    assert!(accepts(&queue, OTHER), "more than fit: all unicast");
    assert!(!accepts(&queue, GROUP));
    let groups: Vec<_> = (0..=MULTICAST_MAX as u16).map(|i| [1, 1, 0, 0, (i >> 8) as u8, i as u8]).collect();
    done(&mut queue, &table(&[], &groups));
    assert!(accepts(&queue, GROUP) && !accepts(&queue, OTHER));
}

#[test]
fn the_guest_may_change_its_address() {
    let mut queue = queue(false);
    done(&mut queue, &[0, 0, 0]);
    done(&mut queue, &[&[1, 1], OTHER.as_slice()].concat());
    assert!(accepts(&queue, OTHER) && !accepts(&queue, OWN));
    failed(&mut queue, &[&[1, 1], GROUP.as_slice()].concat());
    assert!(accepts(&queue, OTHER), "nothing has changed");
}

#[test]
fn vlans_pass_when_the_guest_has_added_them() {
    let mut queue = queue(true);
    let passes = |queue: &ControlQueue, id| queue.filter().accepts(&frame(OWN, Some(id)));
    assert!(passes(&queue, 100), "a promiscuous guest gets everything");
    done(&mut queue, &[0, 0, 0]);
    assert!(accepts(&queue, OWN), "untagged");
    assert!(passes(&queue, 0), "a priority tag is no VLAN");
    assert!(!passes(&queue, 100));
    done(&mut queue, &[2, 0, 100, 0]);
    assert!(passes(&queue, 100) && !passes(&queue, 101));
    done(&mut queue, &[2, 1, 100, 0]);
    assert!(!passes(&queue, 100));
    failed(&mut queue, &[2, 0, 0, 0x10]);
    failed(&mut queue, &[2, 2, 1, 0]);
    let mut unfiltered = self::queue(false);
    failed(&mut unfiltered, &[2, 0, 100, 0]);
    assert!(passes(&unfiltered, 100), "the filter was not negotiated");
}

#[test]
fn pairs_are_within_bounds() {
    let mut queue = queue(false);
    assert_eq!(queue.pairs(), 1);
    done(&mut queue, &[4, 0, 16, 0]);
    assert_eq!(queue.pairs(), 16);
    for bad in [[0, 0], [17, 0], [0, 0x80]] {
        failed(&mut queue, &[[4, 0], bad].concat());
    }
    assert_eq!(queue.pairs(), 16);
}

#[test]
fn an_announcement_is_an_effect() {
    let (mut queue, mut effect) = (queue(false), Effect::None);
    assert_eq!(queue.serve(&[3, 0], &mut effect), 0);
    assert_eq!(effect, Effect::Announced);
}

#[test]
fn nonsense_is_refused() {
    let mut queue = queue(true);
    for command in [&[][..], &[0], &[0, 0], &[0, 0, 2], &[0, 6, 1], &[9, 9, 9], &[1, 0, 1, 0, 0, 0], &[4, 0, 1]] {
        failed(&mut queue, command);
    }
    failed(&mut queue, &[1, 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    let mut long = table(&[OWN], &[]);
    long.push(0);
    failed(&mut queue, &long);
}
