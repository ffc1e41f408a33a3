use crate::frame::offload::Offloads;
use crate::vhost::features::*;

#[test]
fn everything_offered_is_what_the_specification_lets_go_together() {
    assert_eq!(without_dangling(OFFERED), OFFERED);
    assert_eq!(Offer::new(0, None).features & MTU, 0);
    assert_ne!(Offer::new(0, Some(1500)).features & MTU, 0);
}

#[test]
fn what_is_masked_takes_along_what_needs_it() {
    let offer = Offer::new(CSUM, None).features;
    assert_eq!(offer & (CSUM | HOST_TSO4 | HOST_TSO6 | HOST_USO | HOST_ECN), 0);
    assert_ne!(offer & GUEST_TSO4, 0);
    let offer = Offer::new(GUEST_CSUM, None).features;
    assert_eq!(offer & (GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6 | GUEST_ECN), 0);
    let offer = Offer::new(CTRL_VQ, None).features;
    assert_eq!(offer & (CTRL_RX | CTRL_VLAN | CTRL_MAC_ADDR | MQ | GUEST_ANNOUNCE | CTRL_RX_EXTRA), 0);
}

#[test]
fn a_driver_that_accepts_tso_without_a_checksum_has_neither() {
    let negotiated = Negotiated::new(HOST_TSO4 | HOST_ECN | GUEST_TSO6 | GUEST_ECN | HOST_USO);
    assert_eq!(negotiated.sends, Offloads::default());
    assert_eq!(negotiated.takes, Offloads::default());
    let negotiated = Negotiated::new(CSUM | HOST_ECN);
    assert_eq!(negotiated.sends, Offloads { checksum: true, ..Offloads::default() });
}

#[test]
fn the_header_is_short_for_a_legacy_driver_that_merges_nothing() {
    assert_eq!(Negotiated::new(0).header_len, 10);
    assert_eq!(Negotiated::new(MRG_RXBUF).header_len, 12);
    assert_eq!(Negotiated::new(VERSION_1).header_len, 12);
}

#[test]
fn the_control_ring_is_behind_the_pairs() {
    assert_eq!(control_ring_index(&Negotiated::new(VERSION_1), 16), None);
    assert_eq!(control_ring_index(&Negotiated::new(CTRL_VQ), 16), Some(2));
    assert_eq!(control_ring_index(&Negotiated::new(CTRL_VQ | MQ), 1), Some(2));
    assert_eq!(control_ring_index(&Negotiated::new(CTRL_VQ | MQ), 16), Some(RINGS_MAX - 1));
    // QEMU serves the queue itself and passes MQ alone.
    let qemu = Negotiated::new(MQ);
    assert!(qemu.mq);
    assert_eq!(control_ring_index(&qemu, 16), None);
}

#[test]
fn features_are_named_for_people() {
    assert_eq!(names(CSUM | VERSION_1), "CSUM VERSION_1");
    assert_eq!(names(1 << 34), "unknown 0x400000000");
}
