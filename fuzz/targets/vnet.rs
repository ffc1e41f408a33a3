//! Any virtio-net header before any frame: judged, forwarded to receivers that take anything or nothing, completed,
//! segmented. What comes out must be judged good again, lie inside its bounds and hold the payload, each byte once.
#![no_main]

use guestwire::frame::ethernet::MacAddr;
use guestwire::frame::offload::{self, Fit, Gso, Offload, Offloads};
use guestwire::frame::vnet::{VNET_HEADER_LEN_LEGACY, VnetHeader};
use guestwire::frame::{FRAME_HEAD_MAX, checksum, flow, ip, segment};
use guestwire_fuzz::{Input, canary};
use libfuzzer_sys::fuzz_target;

const EVERYTHING: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso4: true, uso6: true };

fn offloads(bits: u8) -> Offloads {
    let bit = |n: u8| bits >> n & 1 != 0;
    Offloads { checksum: bit(0), tso4: bit(1), tso6: bit(2), ecn: bit(3), uso4: bit(4), uso6: bit(5) }
}

fuzz_target!(|data: &[u8]| {
    if canary(data) {
        return;
    }
    let mut input = Input::new(data);
    let (sends, takes, repeat) = (offloads(!input.u8()), offloads(input.u8()), usize::from(input.u8()));
    let mut header = [0; VNET_HEADER_LEN_LEGACY];
    let bytes = input.bytes(header.len());
    header[..bytes.len()].copy_from_slice(bytes);
    let mut frame = input.rest().to_vec();
    // Long frames from short inputs.
    frame.resize(frame.len() + repeat * 250, 0x5a);

    let head = &frame[..frame.len().min(FRAME_HEAD_MAX)];
    let _ = (ip::layers(head), flow::flow_hash(head), MacAddr::source_of(head));
    let header = VnetHeader::parse(&header);
    if let Ok(offload) = offload::validate(&header, head, frame.len(), sends) {
        again(&offload, head, frame.len());
        deliver(&frame, &offload, takes);
        deliver(&frame, &offload, Offloads::default());
    }
});

/// The header of our own that a receiver gets must be as good as the one that was judged.
fn again(offload: &Offload, head: &[u8], len: usize) {
    let emitted = offload.header().emit(1);
    let header = VnetHeader::parse(emitted.first_chunk().expect("longer"));
    assert_eq!(offload::validate(&header, head, len, EVERYTHING).as_ref(), Ok(offload));
}

fn deliver(frame: &[u8], offload: &Offload, takes: Offloads) {
    match (offload.fit(takes), offload) {
        (Fit::Whole, _) => {}
        (Fit::Complete, Offload::Checksum(at)) => {
            let mut completed = frame.to_vec();
            checksum::complete(&mut completed, *at);
            assert_eq!(completed.len(), frame.len());
        }
        (Fit::Segment { partial }, Offload::Segment(gso)) => pieces(frame, gso, partial),
        (fit, offload) => panic!("{fit:?} for {offload:?}"),
    }
}

fn pieces(frame: &[u8], gso: &Gso, partial: bool) {
    let headers = usize::from(gso.payload);
    let mut payload = Vec::new();
    let mut count = 0;
    segment::segment(frame, gso, partial, &mut segment::Scratch::default(), &mut |piece, offload| {
        assert!(piece.len() >= headers && piece.len() <= headers + usize::from(gso.size));
        match offload {
            Offload::Checksum(at) => {
                assert!(partial && usize::from(at.start) + usize::from(at.offset) + 2 <= piece.len());
            }
            Offload::None => assert!(!partial),
            Offload::Segment(_) => panic!("a segment to be segmented"),
        }
        payload.extend_from_slice(&piece[headers..]);
        count += 1;
    });
    assert!(payload == frame[headers..], "the payload, each byte once");
    assert!(count >= 1);
    assert!(usize::from(gso.size) >= offload::SEGMENT_SIZE_MIN || count <= offload::SMALL_SEGMENTS_MAX);
}
