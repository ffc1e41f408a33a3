//! What a hostile driver may write, and what comes of it: an error that stops its ring, or a frame, never more.

use super::*;

/// What the ring says when `lie` has written it. It must say the same when it is asked again, and take nothing.
fn refusal(options: RingOptions, lie: impl FnOnce(&mut DriverRing)) -> RingError {
    let (mut driver, mut ring) = transmit(options);
    lie(&mut driver);
    let mut burst = Burst::default();
    let error = ring.take(&mut burst).unwrap_err();
    assert!(burst.is_empty());
    assert_eq!(ring.take(&mut burst), Err(error));
    assert_eq!(ring.next_avail(), 0);
    assert_eq!(driver.used_idx(), 0);
    error
}

fn refused(lie: impl FnOnce(&mut DriverRing)) -> RingError {
    refusal(ALL_OPTIONS, lie)
}

/// What the ring makes of one chain that is strange but allowed: the frame's length.
fn taken(write: impl FnOnce(&mut DriverRing)) -> usize {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    write(&mut driver);
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    assert_eq!(burst.len(), 1);
    ring.complete(&burst);
    assert_eq!(driver.used_idx(), 1);
    burst.frame_len(0)
}

#[test]
fn a_loop_of_descriptors_ends() {
    let error = refused(|driver| {
        driver.describe(0, (BUFFERS, 10, NEXT, 1));
        driver.describe(1, (BUFFERS, 10, NEXT, 0));
        driver.post(0);
    });
    assert_eq!(error, RingError::ChainTooLong(8));
}

#[test]
fn a_loop_in_an_indirect_table_ends() {
    let error = refused(|driver| {
        driver.describe(0, (0x4000, 64, INDIRECT, 0));
        for i in 0..4 {
            driver.describe_in(0x4000, i, (BUFFERS, 10, NEXT, 3 - i));
        }
        driver.post(0);
    });
    assert_eq!(error, RingError::ChainTooLong(4));
}

#[test]
fn a_chain_may_be_as_long_as_the_ring_and_no_longer() {
    let chain = |driver: &mut DriverRing, indirect: u16| {
        for i in 0..7 {
            driver.describe(i, (BUFFERS, 10, NEXT, i + 1));
        }
        driver.describe(7, (0x4000, 16 * u32::from(indirect), INDIRECT, 0));
        for i in 0..indirect {
            driver.describe_in(0x4000, i, (BUFFERS, 10, if i + 1 < indirect { NEXT } else { 0 }, i + 1));
        }
        driver.post(0);
    };
    assert_eq!(taken(|driver| chain(driver, 1)), 80 - 12);
    assert_eq!(refused(|driver| chain(driver, 2)), RingError::ChainTooLong(1));
}

#[test]
#[cfg_attr(miri, ignore = "4 GiB")]
fn a_frame_of_more_than_4_gib_is_too_long_and_has_no_bytes() {
    let mem = memory_of(&[(0, 0x1_0000), (0x1_0000, 1 << 30)]);
    let mut driver = DriverRing::new(&mem, 0, 8, 0);
    let mut ring = TxRing::new(snapshot(&mem), &mut driver.setup(), ALL_OPTIONS, 12, false).unwrap();
    for i in 0..8 {
        driver.describe(i, (BUFFERS, 1 << 30, if i < 7 { NEXT } else { 0 }, i + 1));
    }
    driver.post(0);
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    assert_eq!(burst.frame_len(0), u32::MAX as usize);
    assert!(burst.bytes(0).is_empty());
    ring.complete(&burst);
    assert_eq!(driver.used_idx(), 1);
}

#[test]
fn a_frame_that_is_too_long_shows_nothing_of_the_frame_before() {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    let mut burst = Burst::default();
    driver.mem.write_slice(&[0x5e; 64], GuestAddress(BUFFERS + 12)).unwrap();
    driver.describe(0, (BUFFERS, 76, 0, 0));
    driver.post(0);
    ring.take(&mut burst).unwrap();
    assert_eq!(burst.head(0), [0x5e; 64]);
    ring.complete(&burst);
    for i in 0..6 {
        driver.describe(i, (BUFFERS, 0x4000, if i < 5 { NEXT } else { 0 }, i + 1));
    }
    driver.post(0);
    ring.take(&mut burst).unwrap();
    assert!(burst.frame_len(0) > FRAME_LEN_MAX);
    assert!(burst.head(0).is_empty());
}

#[test]
fn a_head_or_next_beyond_the_table_is_refused() {
    for index in [8, 9, 0x7fff, 0xffff] {
        let error = RingError::DescriptorIndex { index, size: 8 };
        assert_eq!(refused(|driver| driver.post(index)), error);
        let next = |driver: &mut DriverRing| {
            driver.describe(0, (BUFFERS, 10, NEXT, index));
            driver.post(0);
        };
        assert_eq!(refused(next), error);
        let indirect = |driver: &mut DriverRing| {
            driver.describe(0, (0x4000, 64, INDIRECT, 0));
            driver.describe_in(0x4000, 0, (BUFFERS, 10, NEXT, index));
            driver.post(0);
        };
        assert_eq!(refused(indirect), RingError::DescriptorIndex { index, size: 4 });
    }
}

#[test]
fn a_buffer_outside_of_the_memory_is_refused_wherever_it_is() {
    let last = BUFFERS + 0x8000;
    let buffers = [
        (last, 1),
        (last - 1, 2),
        (0x6000, 1),
        (0x5fff, 2),
        (0xffff, 1),
        (0xffff, 2),
        (BUFFERS, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 0xffff, u32::MAX),
        (1 << 63, 16),
    ];
    for (addr, len) in buffers {
        let error = refused(|driver| {
            driver.describe(0, (addr, len, 0, 0));
            driver.post(0);
        });
        // Of a buffer that is longer than any frame, no more is looked for.
        let len = len.min((FRAME_LEN_MAX + 12) as u32);
        assert_eq!(error, RingError::BufferOutside { addr, len });
    }
}

#[test]
fn a_buffer_of_no_bytes_may_be_anywhere() {
    for addr in [0, 0x6000, u64::MAX] {
        let len = taken(|driver| {
            driver.describe(0, (addr, 0, NEXT, 1));
            driver.describe(1, (BUFFERS, 40, 0, 0));
            driver.post(0);
        });
        assert_eq!(len, 28);
    }
}

#[test]
fn a_chain_without_bytes_or_shorter_than_the_header_is_a_frame_of_no_length() {
    for len in [0, 1, 9, 10, 11, 12] {
        let len = taken(|driver| {
            driver.describe(0, (BUFFERS, len, 0, 0));
            driver.post(0);
        });
        assert_eq!(len, 0);
    }
}

#[test]
fn a_frame_may_lie_across_two_regions_that_adjoin_in_the_guest() {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    let data = pattern(200);
    driver.mem.write_slice(&data, GuestAddress(0x4000 - 100)).unwrap();
    driver.describe(0, (0x4000 - 100, 200, 0, 0));
    driver.post(0);
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    assert_eq!(bytes_of(&burst, 0), data[12..]);
}

#[test]
fn a_frame_may_lie_in_the_ring_itself() {
    for area in [0, 0x80, 0x94] {
        let len = taken(|driver| {
            driver.describe(0, (area, 64, 0, 0));
            driver.post(0);
        });
        assert_eq!(len, 52);
    }
}

#[test]
fn an_available_index_that_leaps_or_goes_back_is_refused() {
    for (start, idx) in [(0, 9), (0, 0x8000), (0, 0xffff), (10, 9), (0xfffc, 5), (0xfffc, 0xfffb)] {
        let (driver, mut ring) = transmit_from(ALL_OPTIONS, start);
        driver.write(driver.avail + 2, idx);
        let error = RingError::AvailIndex { idx, next: start, size: 8 };
        assert_eq!(ring.take(&mut Burst::default()), Err(error));
        assert_eq!(ring.arm(), Err(error));
    }
}

#[test]
fn indexes_wrap_around() {
    let (mut driver, mut ring) = transmit_from(ALL_OPTIONS, 0xfffd);
    driver.describe(3, (BUFFERS, 40, 0, 0));
    (0..8).for_each(|_| driver.post(3));
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    assert_eq!((burst.len(), ring.next_avail()), (8, 5));
    ring.complete(&burst);
    assert_eq!(driver.used_idx(), 5);
}

#[test]
fn a_chain_that_is_available_twice_is_two_frames() {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    driver.describe(5, (BUFFERS, 40, 0, 0));
    driver.post(5);
    driver.post(5);
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    assert_eq!(burst.len(), 2);
    ring.complete(&burst);
    assert_eq!(driver.used_idx(), 2);
}

#[test]
fn chains_before_a_bad_one_are_taken_and_it_is_refused_the_next_time() {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    driver.describe(0, (BUFFERS, 40, 0, 0));
    driver.post(0);
    driver.post(0);
    driver.post(8);
    driver.post(0);
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    assert_eq!(burst.len(), 2);
    ring.complete(&burst);
    assert_eq!(ring.take(&mut burst), Err(RingError::DescriptorIndex { index: 8, size: 8 }));
    assert!(burst.is_empty());
}

#[test]
fn an_indirect_table_must_be_one_that_was_negotiated() {
    let table = |driver: &mut DriverRing| {
        driver.describe(0, (0x4000, 16, INDIRECT, 0));
        driver.describe_in(0x4000, 0, (BUFFERS, 40, 0, 0));
        driver.post(0);
    };
    assert_eq!(taken(table), 28);
    assert_eq!(refusal(RingOptions::default(), table), RingError::IndirectNotNegotiated);
}

#[test]
fn an_indirect_table_inside_another_is_refused() {
    let error = refused(|driver| {
        driver.describe(0, (0x4000, 32, INDIRECT, 0));
        driver.describe_in(0x4000, 0, (0x4000, 32, INDIRECT, 0));
        driver.post(0);
    });
    assert_eq!(error, RingError::IndirectMisplaced("inside an indirect table"));
}

#[test]
fn an_indirect_descriptor_that_goes_on_is_refused() {
    let error = refused(|driver| {
        driver.describe(0, (0x4000, 16, INDIRECT | NEXT, 1));
        driver.describe(1, (BUFFERS, 40, 0, 0));
        driver.describe_in(0x4000, 0, (BUFFERS, 40, 0, 0));
        driver.post(0);
    });
    assert_eq!(error, RingError::IndirectMisplaced("goes on with another descriptor"));
}

#[test]
fn the_direction_of_an_indirect_descriptor_means_nothing() {
    let len = taken(|driver| {
        driver.describe(0, (0x4000, 16, INDIRECT | WRITE, 0));
        driver.describe_in(0x4000, 0, (BUFFERS, 40, 0, 0));
        driver.post(0);
    });
    assert_eq!(len, 28);
}

#[test]
fn an_indirect_table_of_a_wrong_length_is_refused() {
    for len in [0, 1, 15, 17, 9 * 16, 0x10000, 0xfff0, u32::MAX, u32::MAX - 15] {
        let error = refused(|driver| {
            driver.describe(0, (0x4000, len, INDIRECT, 0));
            driver.post(0);
        });
        assert_eq!(error, RingError::IndirectLength(len));
    }
}

#[test]
fn an_indirect_table_outside_of_the_memory_is_refused() {
    for addr in [0x6000, 0x5ff8, BUFFERS + 0x7ff1, u64::MAX - 15, u64::MAX] {
        let error = refused(|driver| {
            driver.describe(0, (addr, 16, INDIRECT, 0));
            driver.post(0);
        });
        assert_eq!(error, RingError::BufferOutside { addr, len: 16 });
    }
}

#[test]
fn an_indirect_table_may_lie_at_any_byte() {
    for at in 0..8 {
        let len = taken(|driver| {
            driver.describe(0, (0x4001 + at, 32, INDIRECT, 0));
            driver.describe_in(0x4001 + at, 0, (BUFFERS, 40, NEXT, 1));
            driver.describe_in(0x4001 + at, 1, (BUFFERS, 0x1234, 0, 0));
            driver.post(0);
        });
        assert_eq!(len, 0x1234 + 28);
    }
}

#[test]
fn a_buffer_of_the_wrong_direction_is_refused() {
    let writable = |driver: &mut DriverRing| {
        driver.describe(0, (BUFFERS, 40, NEXT, 1));
        driver.describe(1, (BUFFERS, 40, WRITE, 0));
        driver.post(0);
    };
    assert!(matches!(refused(writable), RingError::Direction(_)));
    for first in [0, WRITE] {
        let (mut driver, mut ring) = receive(true);
        driver.describe(0, (BUFFERS, 12, first | NEXT, 1));
        driver.describe(1, (BUFFERS, 2000, WRITE ^ first, 0));
        driver.post(0);
        let refusal = ring.deliver([0; 12], &Bytes::private(&[1; 60])).unwrap_err();
        assert!(matches!(refusal, Refusal::Ring(RingError::Direction(_))));
    }
}

#[test]
fn what_the_guest_writes_into_the_used_ring_is_not_believed() {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    driver.describe(0, (BUFFERS, 40, 0, 0));
    let mut burst = Burst::default();
    for round in 1..=20 {
        driver.mem.write_slice(&[0xff; 70], GuestAddress(driver.used)).unwrap();
        driver.post(0);
        ring.take(&mut burst).unwrap();
        assert_eq!(burst.len(), 1);
        ring.complete(&burst);
        assert_eq!(driver.used_idx(), round);
    }
}

#[test]
fn a_poisoned_used_event_costs_at_most_one_interrupt_for_each_time_we_tell() {
    let (mut driver, mut ring) = transmit(RingOptions { event_idx: true, indirect: false });
    driver.describe(0, (BUFFERS, 40, 0, 0));
    let (mut burst, mut calls) = (Burst::default(), 0);
    for event in 0..=u16::MAX {
        driver.write(driver.avail + 4 + 16, event.wrapping_mul(0x9e37));
        driver.post(0);
        ring.take(&mut burst).unwrap();
        calls += u32::from(ring.complete(&burst));
        assert!(!ring.complete(&Burst::default()), "nothing to tell");
        if cfg!(miri) && event == 50 {
            break;
        }
    }
    assert!(calls < 100, "{calls} interrupts, though the guest asked for one entry in 65,536");
}

#[test]
fn what_is_judged_is_what_is_sent_though_the_guest_rewrites_it() {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    let data = pattern(300);
    driver.mem.write_slice(&data, GuestAddress(BUFFERS)).unwrap();
    driver.describe(0, (BUFFERS, 300, 0, 0));
    driver.post(0);
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    let head = burst.head(0).to_vec();
    driver.mem.write_slice(&[0xee; 300], GuestAddress(BUFFERS)).unwrap();
    let sent = bytes_of(&burst, 0);
    assert_eq!(sent[..head.len()], data[12..12 + head.len()]);
    assert_eq!(sent[head.len()..], vec![0xee; 288 - head.len()]);
    assert_eq!(burst.vnet(0)[..], data[..10]);
}

#[test]
fn a_ring_of_a_wrong_size_or_place_is_refused() {
    let mem = memory();
    let start = |change: &dyn Fn(&mut RingSetup)| {
        let mut setup = DriverRing::new(&mem, 0, 8, 0).setup();
        change(&mut setup);
        TxRing::new(snapshot(&mem), &mut setup, ALL_OPTIONS, 12, true).map(|_| ()).unwrap_err()
    };
    for size in [0, 3, 1023, 2048, 0x8000, 0xffff] {
        assert_eq!(start(&|setup| setup.size = size), RingError::Size(size));
    }
    for addr in [0x3ff0, 0x6000, !15] {
        let outside = |area| RingError::AreaOutside { area, addr };
        assert_eq!(start(&|setup| setup.desc = addr), outside("descriptor table"));
        assert_eq!(start(&|setup| setup.avail = addr), outside("available ring"));
        assert_eq!(start(&|setup| setup.used = addr), outside("used ring"));
    }
    let unaligned = |area, addr, align| RingError::AreaUnaligned { area, addr, align };
    assert_eq!(start(&|setup| setup.desc = 8), unaligned("descriptor table", 8, 16));
    assert_eq!(start(&|setup| setup.avail = 0x101), unaligned("available ring", 0x101, 2));
    assert_eq!(start(&|setup| setup.used = 0x202), unaligned("used ring", 0x202, 4));
}

#[test]
fn a_ring_that_is_not_in_the_new_memory_is_refused_and_the_old_stays_valid() {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    let elsewhere = memory_of(&[(0x10_0000, 0x1000)]);
    assert!(matches!(ring.rebase(snapshot(&elsewhere)), Err(RingError::AreaOutside { .. })));
    driver.describe(0, (BUFFERS, 40, 0, 0));
    driver.post(0);
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    assert_eq!(burst.len(), 1);
}
