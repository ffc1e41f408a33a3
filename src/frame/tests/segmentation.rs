//! Segmentation against what the RFCs say a segment must be.

use proptest::prelude::*;

use super::packets::{Offsets, Packet, packet, pseudo_sum, slow_sum};
use crate::frame::FRAME_HEAD_MAX;
use crate::frame::checksum::{self, PartialChecksum};
use crate::frame::offload::{
    BadHeader, Fit, GsoKind, Offload, Offloads, SEGMENT_SIZE_MIN, SMALL_SEGMENTS_MAX, validate,
};
use crate::frame::segment::{Scratch, segment};
use crate::frame::vnet::VnetHeader;

const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso4: true, uso6: true };

fn head(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(FRAME_HEAD_MAX)]
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

/// What the segment at `index` of `count` must look like, made from scratch, checksum complete.
fn obvious(packet: &Packet, frame: &[u8], offsets: Offsets, index: usize, count: usize) -> Vec<u8> {
    let size = usize::from(packet.gso_size);
    let from = (index * size).min(packet.payload.len());
    let chunk = &packet.payload[from..(from + size).min(packet.payload.len())];
    let mut out = frame[..offsets.payload].to_vec();
    out.extend_from_slice(chunk);
    let Offsets { network, transport, .. } = offsets;
    if packet.is_v4() {
        let total = (out.len() - network) as u16;
        out[network + 2..network + 4].copy_from_slice(&total.to_be_bytes());
        out[network + 4..network + 6].copy_from_slice(&packet.id.wrapping_add(index as u16).to_be_bytes());
        out[network + 10..network + 12].fill(0);
        let sum = !slow_sum(&out[network..network + 20 + 4 * packet.ip_options]);
        out[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let len = (out.len() - network - 40) as u16;
        out[network + 4..network + 6].copy_from_slice(&len.to_be_bytes());
    }
    let field = if packet.is_tcp() {
        let sequence = packet.sequence.wrapping_add((index * size) as u32);
        out[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
        let last = if index + 1 == count { 0xff } else { !0x09 };
        let first = if index == 0 { 0xff } else { !0x80 };
        out[transport + 13] &= last & first;
        transport + 16
    } else {
        let len = (out.len() - transport) as u16;
        out[transport + 4..transport + 6].copy_from_slice(&len.to_be_bytes());
        transport + 6
    };
    out[field..field + 2].fill(0);
    let protocol = if packet.is_tcp() { 6 } else { 17 };
    let pseudo = pseudo_sum(&out, network, packet.is_v4(), protocol, out.len() - transport);
    let mut all = out[transport..].to_vec();
    if !all.len().is_multiple_of(2) {
        all.push(0);
    }
    all.extend_from_slice(&pseudo.to_be_bytes());
    let sum = match !slow_sum(&all) {
        0 if !packet.is_tcp() => 0xffff,
        sum => sum,
    };
    out[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn segments_are_what_the_rfcs_say(packet in packet(), partial: bool) {
        let (frame, offsets) = packet.build();
        let verdict = validate(&packet.vnet(offsets), head(&frame), frame.len(), ALL);
        let count = packet.payload.len().div_ceil(usize::from(packet.gso_size)).max(1);
        if usize::from(packet.gso_size) < SEGMENT_SIZE_MIN && count > SMALL_SEGMENTS_MAX {
            prop_assert_eq!(verdict, Err(BadHeader::SegmentSize));
            return Ok(());
        }
        let Ok(Offload::Segment(gso)) = verdict else { panic!("{verdict:?} for {packet:?}") };
        let mut index = 0;
        segment(&frame, &gso, partial, &mut Scratch::default(), &mut |piece, offload| {
            let mut piece = piece.to_vec();
            match offload {
                Offload::Checksum(at) if partial => checksum::complete(&mut piece, at),
                Offload::None if !partial => {}
                other => panic!("{other:?} with partial {partial}"),
            }
            assert_eq!(piece, obvious(&packet, &frame, offsets, index, count), "segment {index} of {count}");
            index += 1;
        });
        prop_assert_eq!(index, count);
    }

    #[test]
    fn no_bytes_panic_and_what_is_accepted_can_be_undone(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        flags in 0u8..4,
        gso_type: u8,
        gso_size: u16,
        csum_start in 0u16..500,
        csum_offset in 0u16..20,
    ) {
        let header = VnetHeader { flags, gso_type, hdr_len: gso_size, gso_size, csum_start, csum_offset };
        check_robust(&header, &bytes);
    }

    #[test]
    fn no_damage_to_a_good_frame_panics(packet in packet(), at in 0usize..120, byte: u8, cut in 0usize..200) {
        let (mut frame, offsets) = packet.build();
        if let Some(b) = frame.get_mut(at) { *b = byte; }
        check_robust(&packet.vnet(offsets), &frame);
        frame.truncate(cut);
        check_robust(&packet.vnet(offsets), &frame);
    }
}

fn check_robust(header: &VnetHeader, frame: &[u8]) {
    let Ok(offload) = validate(header, head(frame), frame.len(), ALL) else { return };
    let again = validate(&offload.header(), head(frame), frame.len(), ALL);
    assert_eq!(again, Ok(offload), "our own header says the same");
    match offload {
        Offload::None => {}
        Offload::Checksum(at) => checksum::complete(&mut frame.to_vec(), at),
        Offload::Segment(gso) => {
            let mut bytes = 0;
            segment(frame, &gso, false, &mut Scratch::default(), &mut |piece, _| {
                assert!(piece.len() - usize::from(gso.payload) <= usize::from(gso.size));
                bytes += piece.len() - usize::from(gso.payload);
            });
            assert_eq!(bytes, frame.len() - usize::from(gso.payload), "nothing is lost");
        }
    }
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let packet = Packet {
        kind: crate::frame::offload::GsoKind::Tcp4,
        tags: vec![],
        ip_options: 0,
        extensions: vec![],
        tcp_options: 3,
        tcp_flags: 0x18,
        sequence: 1,
        id: 1,
        payload: vec![7; 4000],
        gso_size: 1448,
        ecn: false,
    };
    let (frame, offsets) = packet.build();
    let good = packet.vnet(offsets);
    let check = |header: VnetHeader, negotiated| validate(&header, head(&frame), frame.len(), negotiated);
    assert!(matches!(check(good, ALL), Ok(Offload::Segment(_))));
    assert_eq!(check(good, Offloads { tso4: false, ..ALL }), Err(BadHeader::TypeNotNegotiated));
    assert_eq!(check(good, Offloads { checksum: false, ..ALL }), Err(BadHeader::ChecksumNotNegotiated));
    let with_ecn = VnetHeader { gso_type: good.gso_type | 0x80, ..good };
    assert_eq!(check(with_ecn, Offloads { ecn: false, ..ALL }), Err(BadHeader::TypeNotNegotiated));
    assert_eq!(check(VnetHeader { gso_type: 3, ..good }, ALL), Err(BadHeader::TypeNotNegotiated), "UFO");
    assert_eq!(check(VnetHeader { gso_type: 4, ..good }, ALL), Err(BadHeader::HeadersMismatch));
    assert_eq!(check(VnetHeader { flags: 0, ..good }, ALL), Err(BadHeader::SegmentWithoutChecksum));
    assert_eq!(check(VnetHeader { gso_size: 0, ..good }, ALL), Err(BadHeader::SegmentSize));
    assert_eq!(check(VnetHeader { gso_size: 1, ..good }, ALL), Err(BadHeader::SegmentSize));
    for start in [0, 13, 14, 26, 33] {
        assert_eq!(check(VnetHeader { csum_start: start, ..good }, ALL), Err(BadHeader::ChecksumOutside), "{start}");
        let plain = VnetHeader { gso_type: 0, csum_start: start, csum_offset: 0, ..good };
        assert_eq!(check(plain, ALL), Err(BadHeader::ChecksumOutside), "{start}: nothing judged is overwritten");
    }
    let longer = [&frame[..], &[0]].concat();
    assert_eq!(validate(&good, head(&longer), longer.len(), ALL), Err(BadHeader::HeadersMismatch), "padding");
    assert_eq!(check(VnetHeader { csum_offset: 65_000, ..good }, ALL), Err(BadHeader::ChecksumOutside));
    assert_eq!(check(VnetHeader { csum_offset: 6, ..good }, ALL), Err(BadHeader::HeadersMismatch));
    let plain = VnetHeader { gso_type: 0, ..good };
    assert!(matches!(check(plain, ALL), Ok(Offload::Checksum(_))));
    assert_eq!(word(&frame, 12), 0x0800);
}

#[test]
fn a_checksum_is_the_transports_own_or_it_is_not() {
    let udp = Packet {
        kind: GsoKind::Udp4,
        tags: vec![5],
        ip_options: 1,
        extensions: vec![],
        tcp_options: 0,
        tcp_flags: 0,
        sequence: 1,
        id: 1,
        payload: vec![7; 100],
        gso_size: 0,
        ecn: false,
    };
    for (kind, own, others) in
        [(GsoKind::Udp4, 6, 16), (GsoKind::Udp6, 6, 16), (GsoKind::Tcp4, 16, 6), (GsoKind::Tcp6, 16, 6)]
    {
        let (mut frame, at) = Packet { kind, ..udp.clone() }.build();
        let is_own = |frame: &[u8], start: usize, offset| {
            let start = start as u16;
            Offload::Checksum(PartialChecksum { start, offset }).is_transport_checksum(frame)
        };
        assert!(is_own(&frame, at.transport, own));
        for (start, offset) in [
            (at.transport, others),
            (at.transport, 0),
            (at.transport, own + 1),
            (at.transport + 1, own),
            (at.payload, own),
            (at.network, own),
            // The very field, summed from elsewhere.
            (at.transport - 2, own + 2),
        ] {
            assert!(!is_own(&frame, start, offset), "{kind:?} {start} {offset}");
        }
        assert!(!is_own(&frame[..at.network], at.transport, own), "nothing to be seen of it");
        if matches!(kind, GsoKind::Udp4 | GsoKind::Tcp4) {
            for flags in [[0x20, 0], [0, 1]] {
                frame[at.network + 6..at.network + 8].copy_from_slice(&flags);
                assert!(!is_own(&frame, at.transport, own), "a part of a packet");
            }
            frame[at.network + 6..at.network + 8].fill(0);
            frame[at.network + 9] = 1;
            assert!(!is_own(&frame, at.transport, own), "ICMP");
        }
    }
    assert!(Offload::None.is_transport_checksum(&[]));
}

#[test]
fn a_receiver_gets_what_it_takes() {
    let packet = Offload::Segment(crate::frame::offload::Gso {
        kind: crate::frame::offload::GsoKind::Tcp6,
        size: 1000,
        ecn: true,
        network: 14,
        transport: 54,
        payload: 74,
    });
    assert_eq!(packet.fit(ALL), Fit::Whole);
    assert_eq!(packet.fit(Offloads { ecn: false, ..ALL }), Fit::Segment { partial: true });
    assert_eq!(packet.fit(Offloads { tso6: false, ..ALL }), Fit::Segment { partial: true });
    assert_eq!(packet.fit(Offloads::default()), Fit::Segment { partial: false });
    let checksum = Offload::Checksum(crate::frame::checksum::PartialChecksum { start: 34, offset: 6 });
    assert_eq!(checksum.fit(ALL), Fit::Whole);
    assert_eq!(checksum.fit(Offloads::default()), Fit::Complete);
    assert_eq!(Offload::None.fit(Offloads::default()), Fit::Whole);
}
