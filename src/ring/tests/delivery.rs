//! Frames for a guest: buffers of every shape, and drivers that lie about them.

use super::*;

const HEADER: [u8; 12] = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0xff, 0xff];

/// Makes one buffer of `len` bytes available, at the same place for the same `index`.
fn give(driver: &mut DriverRing, index: u16, len: u32) -> u64 {
    let addr = BUFFERS + 0x1000 * u64::from(index);
    driver.describe(index, (addr, len, WRITE, 0));
    driver.post(index);
    addr
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let (mut driver, mut ring) = receive(true);
    let places: Vec<u64> = (0..4).map(|i| give(&mut driver, i, 100)).collect();
    let frame = pattern(250);
    ring.deliver(HEADER, &Bytes::private(&frame)).unwrap();
    assert_eq!(driver.used_idx(), 0, "not before it is told");
    assert_eq!(ring.flush(), 1);
    assert_eq!((driver.used_idx(), ring.next_avail()), (3, 3));
    let mut got = Vec::new();
    for (i, len) in [100, 100, 62].into_iter().enumerate() {
        let element = read(&driver.mem, driver.used + 4 + 8 * i as u64, 8);
        assert_eq!(element, [i as u8, 0, 0, 0, len, 0, 0, 0]);
        got.extend(read(&driver.mem, places[i], usize::from(len)));
    }
    assert_eq!(got[..10], HEADER[..10]);
    assert_eq!(got[10..12], [3, 0], "num_buffers");
    assert_eq!(got[12..], frame);
    assert_eq!(read(&driver.mem, places[2] + 62, 38), [0; 38], "behind the frame");
}

#[test]
fn a_guest_that_is_held_back_sees_frames_and_is_told_of_them_once() {
    let (mut driver, mut ring) = receive(true);
    // Together they are more than what is told of before a burst ends.
    for n in 1..=8 {
        driver.describe(n - 1, (BUFFERS, 0x4000, WRITE, 0));
        driver.post(n - 1);
        ring.deliver(HEADER, &Bytes::private(&pattern(0x3f00))).unwrap();
        ring.show();
        assert_eq!(driver.used_idx(), n);
    }
    assert_eq!((ring.flush(), ring.flush()), (1, 0));
}

#[test]
fn a_frame_that_does_not_fit_leaves_the_buffers_as_they_are() {
    for (mergeable, refusal) in [(true, Refusal::NoBuffer), (false, Refusal::TooBig)] {
        let (mut driver, mut ring) = receive(mergeable);
        let places = [give(&mut driver, 0, 100), give(&mut driver, 1, 100)];
        for _ in 0..3 {
            assert_eq!(ring.deliver(HEADER, &Bytes::private(&pattern(189))), Err(refusal));
        }
        assert_eq!((ring.flush(), driver.used_idx(), ring.next_avail()), (0, 0, 0));
        assert!(places.iter().all(|&place| read(&driver.mem, place, 100) == [0; 100]));
        ring.deliver(HEADER, &Bytes::private(&pattern(88))).unwrap();
        assert_eq!((ring.flush(), driver.used_idx()), (1, 1));
    }
}

#[test]
fn a_frame_that_was_refused_is_taken_once_there_are_more_buffers() {
    let (mut driver, mut ring) = receive(true);
    let frame = pattern(300);
    for i in 0..4 {
        give(&mut driver, i, 100);
        let result = ring.deliver(HEADER, &Bytes::private(&frame));
        assert_eq!(result, if i < 3 { Err(Refusal::NoBuffer) } else { Ok(()) });
    }
}

#[test]
fn a_small_frame_is_taken_where_a_large_one_was_refused() {
    let (mut driver, mut ring) = receive(true);
    give(&mut driver, 0, 100);
    assert_eq!(ring.deliver(HEADER, &Bytes::private(&pattern(200))), Err(Refusal::NoBuffer));
    assert_eq!(ring.deliver(HEADER, &Bytes::private(&pattern(150))), Err(Refusal::NoBuffer));
    assert_eq!(ring.deliver(HEADER, &Bytes::private(&pattern(60))), Ok(()));
}

#[test]
fn a_buffer_that_cannot_hold_the_header_is_a_lie() {
    for len in [0, 1, 11] {
        for mergeable in [true, false] {
            let (mut driver, mut ring) = receive(mergeable);
            give(&mut driver, 0, len);
            let error = RingError::ReceiveBufferRunt(u64::from(len));
            assert_eq!(ring.deliver(HEADER, &Bytes::private(&[])), Err(Refusal::Ring(error)));
        }
    }
}

#[test]
fn buffers_of_no_bytes_do_not_make_us_spin() {
    let (mut driver, mut ring) = receive(true);
    give(&mut driver, 0, 12);
    give(&mut driver, 1, 0);
    let error = RingError::ReceiveBufferRunt(0);
    assert_eq!(ring.deliver(HEADER, &Bytes::private(&[1; 60])), Err(Refusal::Ring(error)));
}

#[test]
fn a_header_without_num_buffers_is_ten_bytes() {
    let mut driver = DriverRing::new(&memory(), 0, 8, 0);
    let mut ring = RxRing::new(snapshot(&driver.mem), &mut driver.setup(), ALL_OPTIONS, 10, false).unwrap();
    let place = give(&mut driver, 0, 100);
    ring.deliver(HEADER, &Bytes::private(&[0x33; 60])).unwrap();
    ring.flush();
    let got = read(&driver.mem, place, 71);
    assert_eq!((&got[..10], &got[10..70], got[70]), (&HEADER[..10], &[0x33; 60][..], 0));
}

#[test]
fn an_available_index_that_goes_back_between_two_frames_is_not_passed() {
    let (mut driver, mut ring) = receive(true);
    (0..6).for_each(|i| {
        give(&mut driver, i, 100);
    });
    ring.deliver(HEADER, &Bytes::private(&[1; 60])).unwrap();
    // Six were seen, one is taken. Now there are two, and the entry behind the five that were seen was never made
    // available.
    driver.write(driver.avail + 2, 3);
    assert_eq!(ring.deliver(HEADER, &Bytes::private(&pattern(550))), Err(Refusal::NoBuffer));
    assert_eq!(ring.next_avail(), 1);
}

#[test]
fn receive_buffers_of_one_byte_are_bounded_work() {
    let mem = memory_of(&[(0, 0x1_0000), (0x1_0000, 0x8000)]);
    let mut driver = DriverRing::new(&mem, 0, 1024, 0);
    let mut ring = RxRing::new(snapshot(&mem), &mut driver.setup(), ALL_OPTIONS, 12, true).unwrap();
    for i in 0..1024 {
        driver.describe(i, (0x8000 + 4096, 16 * 1000, INDIRECT, 0));
        driver.post(i);
    }
    for i in 0..1000 {
        let (len, flags) = if i == 999 { (12, WRITE) } else { (0, WRITE | NEXT) };
        driver.describe_in(0x9000, i, (BUFFERS, len, flags, i + 1));
    }
    let refusal = ring.deliver(HEADER, &Bytes::private(&pattern(1500))).unwrap_err();
    assert_eq!(refusal, Refusal::Ring(RingError::ReceiveBuffersTiny));
}

#[test]
fn the_guest_is_told_in_the_middle_of_a_long_burst() {
    let mem = memory_of(&[(0, 0x4000), (0x1_0000, 0x2_0000)]);
    let mut driver = DriverRing::new(&mem, 0, 8, 0);
    let mut ring = RxRing::new(snapshot(&mem), &mut driver.setup(), ALL_OPTIONS, 12, true).unwrap();
    for i in 0..3 {
        driver.describe(i, (BUFFERS, 0x1_0000, WRITE, 0));
        driver.post(i);
    }
    let frame = pattern(40_000);
    ring.deliver(HEADER, &Bytes::private(&frame)).unwrap();
    assert_eq!(driver.used_idx(), 0);
    ring.deliver(HEADER, &Bytes::private(&frame)).unwrap();
    assert_eq!(driver.used_idx(), 2, "80,000 bytes are enough to begin with");
    ring.deliver(HEADER, &Bytes::private(&frame)).unwrap();
    assert_eq!((ring.flush(), driver.used_idx()), (2, 3));
}

#[test]
fn a_frame_of_a_guest_to_itself_may_overlap() {
    let mem = memory();
    let mut sender = DriverRing::new(&mem, 0, 8, 0);
    let mut receiver = DriverRing::new(&mem, 0x1000, 8, 0);
    let mut tx = TxRing::new(snapshot(&mem), &mut sender.setup(), ALL_OPTIONS, 12, false).unwrap();
    let mut rx = RxRing::new(snapshot(&mem), &mut receiver.setup(), ALL_OPTIONS, 12, true).unwrap();
    let data = pattern(1012);
    mem.write_slice(&data, GuestAddress(BUFFERS)).unwrap();
    sender.describe(0, (BUFFERS, 1012, 0, 0));
    sender.post(0);
    receiver.describe(0, (BUFFERS + 100, 1012, WRITE, 0));
    receiver.post(0);
    let mut burst = Burst::default();
    tx.take(&mut burst).unwrap();
    let head = burst.head(0).to_vec();
    rx.deliver(HEADER, &burst.bytes(0)).unwrap();
    // Only the guest can be surprised by the rest: it gave us the same bytes to read and to write.
    assert_eq!(read(&mem, BUFFERS + 112, head.len()), data[12..12 + head.len()]);
}

#[test]
fn a_guest_is_called_when_its_ring_starts() {
    // A guest whose last interrupt was lost with whoever served it before would otherwise wait for ever.
    let driver = DriverRing::new(&memory(), 0, 8, 7);
    let called = |start: &dyn Fn(Arc<GuestMem>, &mut RingSetup)| {
        let mut setup = driver.setup();
        let call = setup.call.as_ref().unwrap().try_clone().unwrap();
        start(snapshot(&driver.mem), &mut setup);
        let mut count = [0; 8];
        nix::unistd::read(&call, &mut count).is_ok()
    };
    assert!(called(&|mem, setup| drop(TxRing::new(mem, setup, ALL_OPTIONS, 12, true).unwrap())), "transmit");
    assert!(called(&|mem, setup| drop(RxRing::new(mem, setup, ALL_OPTIONS, 12, true).unwrap())), "receive");
    assert!(called(&|mem, setup| drop(ControlRing::new(mem, setup, ALL_OPTIONS).unwrap())), "control");
}

#[test]
fn a_control_command_is_answered_in_its_first_writable_byte() {
    let mut driver = DriverRing::new(&memory(), 0, 8, 0);
    let mut ring = ControlRing::new(snapshot(&driver.mem), &mut driver.setup(), ALL_OPTIONS).unwrap();
    driver.mem.write_slice(&[1, 2, 3], GuestAddress(BUFFERS)).unwrap();
    driver.mem.write_slice(&[0xff; 4], GuestAddress(BUFFERS + 64)).unwrap();
    driver.describe(0, (BUFFERS, 2, NEXT, 1));
    driver.describe(1, (BUFFERS + 2, 1, NEXT, 2));
    driver.describe(2, (BUFFERS + 64, 4, WRITE, 0));
    assert_eq!(ring.serve_one(|_| panic!("no command")), Ok(false));
    driver.post(0);
    assert_eq!(ring.serve_one(|command| command.iter().sum()), Ok(true));
    assert_eq!(read(&driver.mem, BUFFERS + 64, 4), [6, 0xff, 0xff, 0xff]);
    assert!(ring.flush());
    assert_eq!(driver.used_idx(), 1);
}

#[test]
fn a_control_command_without_room_for_the_answer_or_with_it_in_front_is_a_lie() {
    for (first, second) in [(0, 0), (WRITE, 0)] {
        let mut driver = DriverRing::new(&memory(), 0, 8, 0);
        let mut ring = ControlRing::new(snapshot(&driver.mem), &mut driver.setup(), ALL_OPTIONS).unwrap();
        driver.describe(0, (BUFFERS, 2, first | NEXT, 1));
        driver.describe(1, (BUFFERS + 64, 2, second, 0));
        driver.post(0);
        let error = ring.serve_one(|_| panic!("a command")).unwrap_err();
        assert!(matches!(error, RingError::ControlShape(_) | RingError::Direction(_)));
    }
}

#[test]
fn a_control_command_of_more_than_64_kib_is_a_lie() {
    let mut driver = DriverRing::new(&memory(), 0, 8, 0);
    let mut ring = ControlRing::new(snapshot(&driver.mem), &mut driver.setup(), ALL_OPTIONS).unwrap();
    (0..3).for_each(|i| driver.describe(i, (BUFFERS, 0x8000, NEXT, i + 1)));
    driver.describe(3, (BUFFERS, 1, WRITE, 0));
    driver.post(0);
    let error = ring.serve_one(|_| panic!("a command")).unwrap_err();
    assert!(matches!(error, RingError::ControlShape(_)));
}
