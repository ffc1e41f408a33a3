//! Frames on their way to the kernel, in pieces.

use std::os::unix::net::UnixDatagram;

use super::super::copy::HEAD_PLAIN;
use super::super::memory::Span;
use super::*;
use crate::sys::uio::write_gather;

fn sent(gather: &mut Gather, header: &[u8], bytes: &Bytes<'_>) -> std::io::Result<Vec<u8>> {
    let (one, other) = UnixDatagram::pair().unwrap();
    let pieces = gather.collect(header, bytes);
    assert_eq!(write_gather(&one, &pieces)?, pieces.len());
    let mut message = vec![0; 100_000];
    let len = other.recv(&mut message).unwrap();
    message.truncate(len);
    Ok(message)
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no datagram sockets")]
fn a_frame_goes_out_as_it_was_judged() {
    let (mut driver, mut ring) = transmit(ALL_OPTIONS);
    let frame = pattern(300);
    let mem = driver.mem.clone();
    mem.write_slice(&frame, GuestAddress(BUFFERS + 12)).unwrap();
    // The header, and the frame in three pieces, the second of which crosses from one region into the next.
    let (first, middle) = (12 + 100, 0x4000 - 50);
    mem.write_slice(&frame[100..200], GuestAddress(middle)).unwrap();
    driver.describe(0, (BUFFERS, first, NEXT, 1));
    driver.describe(1, (middle, 100, NEXT, 2));
    driver.describe(2, (BUFFERS + 12 + 200, 100, 0, 0));
    driver.post(0);
    let mut burst = Burst::default();
    ring.take(&mut burst).unwrap();
    let mut gather = Gather::default();
    for _ in 0..2 {
        let message = sent(&mut gather, &[7; 12], &burst.bytes(0)).unwrap();
        assert_eq!((&message[..12], &message[12..]), (&[7; 12][..], &frame[..]));
    }
    // The guest changes its mind: what was judged goes out as it was.
    for (addr, len) in [(BUFFERS, 12 + 300), (middle, 100)] {
        mem.write_slice(&vec![0xee; len], GuestAddress(addr)).unwrap();
    }
    let message = sent(&mut gather, &[7; 12], &burst.bytes(0)).unwrap();
    let judged = burst.head(0).len();
    assert!(judged >= HEAD_PLAIN);
    assert_eq!(message[12..12 + judged], frame[..judged]);
    assert!(message[12 + judged..].iter().all(|byte| *byte == 0xee));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no datagram sockets")]
fn a_frame_in_more_pieces_than_the_kernel_takes_is_joined() {
    let mut memory = pattern(3 * PIECES_MAX);
    let frame = memory.clone();
    let (head, rest) = memory.split_at_mut(64);
    let mut gather = Gather::default();
    // Two pieces are the header and the head.
    for count in [PIECES_MAX - 2, PIECES_MAX - 1, PIECES_MAX + 9] {
        let spans: Vec<_> = rest[..count].iter_mut().map(|byte| Span { ptr: byte, len: 1 }).collect();
        let bytes = Bytes::guest(head, Span::EMPTY, &spans, 64 + count);
        assert_eq!(gather.collect(&[1; 10], &bytes).as_iovecs().len() == 2, count > PIECES_MAX - 2);
        let message = sent(&mut gather, &[1; 10], &bytes).unwrap();
        assert_eq!(message[10..], frame[..64 + count]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no mmap")]
fn memory_that_went_away_costs_one_frame() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let region = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([(GuestAddress(0), 8192, Some(region))]).unwrap();
    let ptr = memory.get_host_address(GuestAddress(0)).unwrap();
    let spans = [Span { ptr, len: 100 }];
    let mut gather = Gather::default();
    assert_eq!(sent(&mut gather, &[1; 12], &Bytes::guest(&[2; 64], spans[0], &[], 164)).unwrap().len(), 176);
    file.set_len(0).unwrap();
    let error = sent(&mut gather, &[1; 12], &Bytes::guest(&[2; 64], Span::EMPTY, &spans, 164)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    assert_eq!(sent(&mut gather, &[1; 12], &Bytes::private(&[3; 60])).unwrap().len(), 72);
}
