//! Frames that are read straight into a guest's buffers. The kernel's part is a socket's.

use std::os::unix::net::UnixDatagram;

use super::*;
use crate::sys::uio::read_in_place;

const HEADER: [u8; 12] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0xff, 0xff];
const VNET: [u8; VNET_HEADER_READ] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0];
const SIZE: u16 = 64;
/// Of one buffer. The whole of them holds the longest frame.
const LEN: u32 = 1536;

/// A receive ring with `count` buffers of `len` bytes, and where they are.
fn receive_in(mergeable: bool, count: u16, len: u32) -> (DriverRing, RxRing, Vec<u64>) {
    let memory = memory_of(&[(0, 0x4000), (BUFFERS, 0x4_0000)]);
    let mut driver = DriverRing::new(&memory, 0, SIZE, 0);
    let ring = RxRing::new(snapshot(&driver.mem), &mut driver.setup(), ALL_OPTIONS, 12, mergeable).unwrap();
    let place = |index: u16| BUFFERS + u64::from(len) * u64::from(index);
    for index in 0..count {
        driver.describe(index, (place(index), len, WRITE, 0));
        driver.post(index);
    }
    (driver, ring, (0..count).map(place).collect())
}

/// Whether there is room for the longest frame.
fn lends_all(in_place: &mut InPlace, ring: &mut RxRing) -> bool {
    in_place.lend(ring, FRAME_LEN_MAX) == FRAME_LEN_MAX
}

/// A frame comes. Returns how long it was, the header included.
fn come(in_place: &mut InPlace, frame: &[u8]) -> usize {
    let (device, other) = UnixDatagram::pair().unwrap();
    other.send(&[&HEADER, frame].concat()).unwrap();
    read_in_place(&device, in_place).unwrap()
}

/// What the guest finds in its used buffers: the header, and the frame.
fn found(driver: &DriverRing, places: &[u64]) -> (Vec<u8>, usize) {
    let used = usize::from(driver.used_idx());
    let mut bytes = Vec::new();
    for (n, place) in places.iter().enumerate().take(used) {
        let element = read(&driver.mem, driver.used + 4 + 8 * n as u64, 8);
        let [chain, len] = [0, 4].map(|at| u32::from_le_bytes(element[at..at + 4].try_into().unwrap()));
        assert_eq!(chain, n as u32);
        bytes.extend(read(&driver.mem, *place, len as usize));
    }
    (bytes, used)
}

#[test]
fn frames_of_all_lengths_are_in_their_place_and_judged_by_a_private_head() {
    let mut in_place = InPlace::default();
    for len in [0, 13, 14, 60, 255, 256, 257, 1500, 1524, 1525, 40_000, FRAME_LEN_MAX] {
        for (mergeable, count, of) in [(true, SIZE, LEN), (false, 3, 0x1_1000)] {
            let (driver, mut ring, places) = receive_in(mergeable, count, of);
            assert!(lends_all(&mut in_place, &mut ring));
            let frame = pattern(len);
            assert_eq!((come(&mut in_place, &frame), in_place.vnet()), (12 + len, &HEADER));
            assert_eq!(in_place.head(len), &frame[..len.min(HEAD_MAX)]);
            let burst = in_place.frame(VNET, len);
            assert_eq!((burst.len(), burst.frame_len(0), burst.plain(), burst.vnet(0)), (1, len, 0, &VNET));
            assert_eq!(bytes_of(burst, 0), frame);
            ring.deliver(HEADER, &burst.bytes(0)).unwrap();
            ring.flush();
            let (found, used) = found(&driver, &places);
            assert_eq!((&found[..10], &found[12..]), (&HEADER[..10], &frame[..]), "{len} bytes");
            assert_eq!(usize::from(u16::from_le_bytes([found[10], found[11]])), used);
        }
    }
}

#[test]
fn a_frame_that_is_refused_leaves_the_buffers_to_the_next() {
    let (driver, mut ring, places) = receive_in(true, SIZE, LEN);
    let mut in_place = InPlace::default();
    for _ in 0..200 {
        assert!(lends_all(&mut in_place, &mut ring), "what is looked at is not taken");
        come(&mut in_place, &pattern(5000));
    }
    assert_eq!((driver.used_idx(), ring.next_avail()), (0, 0));
    ring.deliver(HEADER, &Bytes::private(&[7; 100])).unwrap();
    ring.flush();
    assert_eq!((found(&driver, &places[..1]).0[12..].to_vec(), driver.used_idx()), (vec![7; 100], 1));
}

#[test]
fn a_guest_with_too_little_room_is_lent_nothing_and_gets_short_frames_as_ever() {
    let mut in_place = InPlace::default();
    let room = (12 + FRAME_LEN_MAX).div_ceil(LEN as usize) as u16;
    for (mergeable, count, of) in [(true, room - 1, LEN), (false, 3, LEN)] {
        let (driver, mut ring, _) = receive_in(mergeable, count, of);
        assert!(!lends_all(&mut in_place, &mut ring) && !lends_all(&mut in_place, &mut ring));
        ring.deliver(HEADER, &Bytes::private(&pattern(100))).unwrap();
        ring.flush();
        assert_eq!(driver.used_idx(), 1);
    }
    assert!(lends_all(&mut in_place, &mut receive_in(true, room, LEN).1));
}

#[test]
fn a_frame_that_is_longer_than_any_may_be_shows_in_its_length() {
    let (_driver, mut ring, _) = receive_in(true, SIZE, LEN);
    let mut in_place = InPlace::default();
    assert!(lends_all(&mut in_place, &mut ring));
    assert_eq!(come(&mut in_place, &pattern(FRAME_LEN_MAX + 7)), 12 + FRAME_LEN_MAX + 1);
}

#[test]
fn a_guest_that_lies_about_its_buffers_is_lent_nothing() {
    let (driver, mut ring, _) = receive_in(true, SIZE, LEN);
    driver.describe(3, (0x5000, LEN, WRITE, 0));
    let mut in_place = InPlace::default();
    assert!(!lends_all(&mut in_place, &mut ring), "nothing is mapped there");
    // Frames that need it find out.
    let refused = ring.deliver(HEADER, &Bytes::private(&pattern(10_000)));
    assert!(matches!(refused, Err(Refusal::Ring(_))), "{refused:?}");
}
