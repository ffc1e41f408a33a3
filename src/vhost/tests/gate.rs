use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::ring::mailbox::{PortShared, STATUS_LINK_UP};
use crate::vhost::features::{MQ, Offer, PROTOCOL_FEATURES, RINGS_MAX, VERSION_1};
use crate::vhost::gate::{Gate, PROTOCOL_OFFERED, Verdict};
use crate::vhost::memory_table::MEMORY_BYTES_MAX;
use crate::vhost::message::*;

const MIB: u64 = 1 << 20;
/// Where [`ready`] puts the guest's memory in the frontend's.
const AT: u64 = 0x7000_0000;

fn gate() -> Gate {
    let port = PortShared::new(0, "lab".into(), [2, 0, 0, 0, 0, 9]).unwrap();
    Gate::new(Offer::new(0, Some(9000)), Arc::new(port))
}

/// A gate whose frontend has come as far as ring 0 needs before it starts.
fn placed() -> Gate {
    let mut gate = ready();
    forwarded(gate.admit(address(0, AT, AT + 0x2000, AT + 0x1000)));
    gate
}

/// A gate whose frontend has come as far as the addresses of ring 0 need.
fn ready() -> Gate {
    let mut gate = gate();
    forwarded(gate.admit(u64_message(SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES)));
    forwarded(gate.admit(table(&[(0, 2 * MIB, AT, 0)], 2 * MIB)));
    forwarded(gate.admit(pair(SET_VRING_NUM, 0, 256)));
    gate
}

fn u64_message(request: u32, value: u64) -> Message {
    Message::new(request, value.to_le_bytes().to_vec())
}

fn pair(request: u32, index: u32, value: u32) -> Message {
    Message::new(request, [index.to_le_bytes(), value.to_le_bytes()].concat())
}

fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    File::from(fd.try_clone().unwrap()).set_len(len).unwrap();
    fd
}

/// SET_MEM_TABLE with regions of (guest, size, user, offset), each over a new file of `file_len` bytes.
fn table(regions: &[(u64, u64, u64, u64)], file_len: u64) -> Message {
    let mut body = [(regions.len() as u32).to_le_bytes(), [0; 4]].concat();
    for (guest, size, user, offset) in regions {
        [guest, size, user, offset].iter().for_each(|word| body.extend_from_slice(&word.to_le_bytes()));
    }
    let fds = regions.iter().map(|_| memfd(file_len)).collect();
    Message { fds, ..Message::new(SET_MEM_TABLE, body) }
}

fn address(index: u32, desc: u64, used: u64, avail: u64) -> Message {
    let mut body = [index.to_le_bytes(), [0; 4]].concat();
    [desc, used, avail, 0].iter().for_each(|word| body.extend_from_slice(&word.to_le_bytes()));
    Message::new(SET_VRING_ADDR, body)
}

fn with_fd(request: u32, body: u64, fd: impl Into<OwnedFd>) -> Message {
    Message { fds: vec![fd.into()], ..u64_message(request, body) }
}

fn event() -> OwnedFd {
    EventFd::new().unwrap().into()
}

fn forwarded(verdict: Verdict) -> Vec<Message> {
    match verdict {
        Verdict::Forward(messages) => messages,
        other => panic!("not forwarded: {other:?}"),
    }
}

fn answered(verdict: Verdict) -> Vec<u8> {
    match verdict {
        Verdict::Answer(body) => body,
        other => panic!("not answered: {other:?}"),
    }
}

#[track_caller]
fn ends(verdict: Verdict, why: &str) {
    match verdict {
        Verdict::End(reason) => assert!(reason.contains(why), "{reason:?} does not say {why:?}"),
        other => panic!("the connection lives: {other:?}"),
    }
}

#[track_caller]
fn refused(verdict: Verdict) {
    assert!(matches!(verdict, Verdict::Refuse(_)), "{verdict:?}");
}

fn names(messages: &[Message]) -> Vec<&'static str> {
    messages.iter().map(Message::name).collect()
}

#[test]
fn an_enable_before_the_features_is_held_and_follows_them() {
    let mut gate = gate();
    assert!(matches!(gate.admit(u64_message(SET_PROTOCOL_FEATURES, PROTOCOL_OFFERED)), Verdict::Done));
    assert!(matches!(gate.admit(pair(SET_VRING_ENABLE, 0, 1)), Verdict::Done));
    assert!(matches!(gate.admit(pair(SET_VRING_ENABLE, 1, 1)), Verdict::Done));
    assert!(matches!(gate.admit(pair(SET_VRING_ENABLE, 1, 0)), Verdict::Done));
    // QEMU before 7.2 leaves the bit out.
    let sent = forwarded(gate.admit(u64_message(SET_FEATURES, VERSION_1)));
    assert_eq!(names(&sent), ["SET_FEATURES", "SET_VRING_ENABLE", "SET_VRING_ENABLE"]);
    assert_eq!(sent[0].u64_at(0), VERSION_1 | PROTOCOL_FEATURES);
    assert_eq!((sent[1].u32_at(0), sent[1].u32_at(4)), (0, 1));
    assert_eq!((sent[2].u32_at(0), sent[2].u32_at(4)), (1, 0), "the last word counts");
    assert_eq!(names(&forwarded(gate.admit(pair(SET_VRING_ENABLE, 1, 1)))), ["SET_VRING_ENABLE"]);
}

#[test]
fn after_a_reset_an_enable_is_held_again() {
    let mut gate = ready();
    forwarded(gate.admit(Message::new(RESET_DEVICE, Vec::new())));
    assert!(matches!(gate.admit(pair(SET_VRING_ENABLE, 0, 1)), Verdict::Done));
    let sent = forwarded(gate.admit(u64_message(SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES)));
    assert_eq!(names(&sent), ["SET_FEATURES", "SET_VRING_ENABLE"]);
}

#[test]
fn without_protocol_features_rings_start_enabled() {
    let sent = forwarded(gate().admit(u64_message(SET_FEATURES, VERSION_1)));
    assert_eq!(sent.len(), 1 + RINGS_MAX);
    assert!(sent[1..].iter().all(|m| m.request == SET_VRING_ENABLE && m.u32_at(4) == 1));
}

#[test]
fn what_was_not_offered_cannot_be_accepted() {
    ends(gate().admit(u64_message(SET_FEATURES, 1 << 34)), "0x400000000");
    ends(gate().admit(u64_message(SET_PROTOCOL_FEATURES, 1 << 12)), "0x1000");
    let mut gate = gate();
    assert_eq!(answered(gate.admit(Message::new(GET_FEATURES, vec![]))).len(), 8);
    let protocol = answered(gate.admit(Message::new(GET_PROTOCOL_FEATURES, vec![])));
    assert_eq!(u64::from_le_bytes(protocol.try_into().unwrap()), PROTOCOL_OFFERED);
}

#[test]
fn an_acknowledgement_is_sent_once_it_was_negotiated() {
    let mut gate = gate();
    assert!(!gate.acknowledges());
    gate.admit(u64_message(SET_PROTOCOL_FEATURES, PROTOCOL_OFFERED));
    assert!(gate.acknowledges());
}

#[test]
fn bodies_of_another_length_end_the_connection() {
    for request in
        [SET_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE]
    {
        for len in [0, 7, 9, 4000] {
            ends(gate().admit(Message::new(request, vec![0; len])), "bytes");
        }
    }
    ends(ready().admit(Message::new(SET_VRING_ADDR, vec![0; 39])), "39 bytes");
    ends(gate().admit(Message::new(ADD_MEM_REG, vec![0; 39])), "39 bytes");
    ends(gate().admit(Message::new(GET_CONFIG, vec![0; 11])), "11 bytes");
    ends(gate().admit(Message::new(GET_FEATURES, vec![0; 8])), "8 bytes");
}

#[test]
fn descriptors_where_none_belong_end_the_connection() {
    ends(gate().admit(with_fd(SET_FEATURES, VERSION_1, event())), "1 descriptors");
    let mut message = u64_message(SET_VRING_CALL, 0);
    message.fds = vec![event(), event()];
    ends(gate().admit(message), "2 descriptors");
}

#[test]
fn memory_that_is_not_shared_is_said_to_be_so() {
    ends(gate().admit(table(&[], MIB)), "share=on");
    let mut without = table(&[(0, MIB, 0, 0)], MIB);
    without.fds.clear();
    ends(gate().admit(without), "memory-backend-memfd");
}

#[test]
fn a_region_must_be_in_its_file() {
    ends(gate().admit(table(&[(0, 64 * MIB, 0, 0)], 4096)), "of a file that has 0x1000");
    ends(gate().admit(table(&[(0, MIB, 0, 4096)], MIB)), "of a file");
    ends(gate().admit(table(&[(0, MIB, 0, u64::MAX - 4095)], MIB)), "wraps");
    ends(gate().admit(table(&[(u64::MAX - 4095, MIB, 0, 0)], MIB)), "wraps");
    ends(gate().admit(table(&[(0, MIB, u64::MAX - 4095, 0)], MIB)), "wraps");
    ends(gate().admit(table(&[(0, 0, 0, 0)], MIB)), "zero");
    ends(gate().admit(table(&[(0, 4096, 0, 100)], MIB)), "not whole pages");
    forwarded(gate().admit(table(&[(0, MIB - 100, 0, 0)], MIB - 100)));
}

#[test]
fn a_region_of_huge_pages_has_whole_ones() {
    // Making the file takes no page of the pool, and no huge page is touched.
    let Ok(huge) = memfd_create(c"test", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB) else { return };
    File::from(huge.try_clone().unwrap()).set_len(4 * MIB).unwrap();
    let region = |size, offset| {
        let mut message = table(&[(0, size, 0, offset)], 0);
        message.fds = vec![huge.try_clone().unwrap()];
        message
    };
    forwarded(gate().admit(region(2 * MIB, 2 * MIB)));
    ends(gate().admit(region(2 * MIB, MIB)), "not whole pages of 0x200000");
    ends(gate().admit(region(MIB, 0)), "not whole pages of 0x200000");
}

#[test]
fn memory_is_bounded() {
    let half = MEMORY_BYTES_MAX / 2;
    forwarded(gate().admit(table(&[(0, half, 0, 0), (half, half, half, 0)], half)));
    ends(gate().admit(table(&[(0, half, 0, 0), (half, half, half, 0), (2 * half, 4096, 2 * half, 0)], half)), "a port");
}

#[test]
fn a_file_that_is_sealed_against_writing_cannot_be_shared() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let file = memfd_create(c"test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    File::from(file.try_clone().unwrap()).set_len(MIB).unwrap();
    let region = || {
        let mut message = table(&[(0, MIB, 0, 0)], 0);
        message.fds = vec![file.try_clone().unwrap()];
        message
    };
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)).unwrap();
    forwarded(gate().admit(region()));
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    ends(gate().admit(region()), "sealed against writing");
}

#[test]
fn regions_must_not_overlap() {
    ends(gate().admit(table(&[(0, MIB, 0, 0), (MIB - 4096, MIB, 4 * MIB, 0)], MIB)), "overlap");
    ends(gate().admit(table(&[(0, MIB, 0, 0), (MIB, MIB, MIB - 4096, 0)], MIB)), "overlap");
    forwarded(gate().admit(table(&[(0, MIB, 0, 0), (MIB, MIB, MIB, 0)], MIB)));
}

#[test]
fn a_region_must_be_a_file_for_reading_and_writing() {
    let mut pipe = table(&[(0, 4096, 0, 0)], MIB);
    pipe.fds = vec![nix::unistd::pipe().unwrap().0];
    ends(gate().admit(pipe), "not a file that can be mapped");
    let mut folder = table(&[(0, 4096, 0, 0)], MIB);
    folder.fds = vec![File::open("/").unwrap().into()];
    ends(gate().admit(folder), "not a file that can be mapped");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0; 8192]).unwrap();
    let mut read_only = table(&[(0, 4096, 0, 0)], MIB);
    read_only.fds = vec![File::open(file.path()).unwrap().into()];
    ends(gate().admit(read_only), "not open for reading and writing");
}

#[test]
fn a_table_of_fixed_length_is_trimmed() {
    // User Mode Linux 6.1: room for two regions, whatever their number.
    let mut message = table(&[(0, MIB, 0, 0)], MIB);
    message.body.resize(72, 0xee);
    let sent = forwarded(gate().admit(message));
    assert_eq!(sent[0].body.len(), 40);
    let mut short = table(&[(0, MIB, 0, 0)], MIB);
    short.body.truncate(39);
    ends(gate().admit(short), "39 bytes");
    let mut many = table(&[(0, MIB, 0, 0)], MIB);
    many.body[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    ends(gate().admit(many), "regions");
    let mut fewer = table(&[(0, MIB, 0, 0), (MIB, MIB, MIB, 0)], MIB);
    fewer.fds.pop();
    ends(gate().admit(fewer), "2 memory regions with 1 descriptors");
}

#[test]
fn regions_come_and_go_one_by_one() {
    let mut gate = ready();
    let region = |at: u64| {
        let mut body = vec![0; 8];
        [at, MIB, 0x1_0000_0000 + at, 0].iter().for_each(|word: &u64| body.extend_from_slice(&word.to_le_bytes()));
        body
    };
    let add = |at| Message { fds: vec![memfd(MIB)], ..Message::new(ADD_MEM_REG, region(at)) };
    forwarded(gate.admit(add(4 * MIB)));
    forwarded(gate.admit(Message::new(REM_MEM_REG, region(4 * MIB))));
    ends(gate.admit(Message::new(REM_MEM_REG, region(4 * MIB))), "there is no memory region");
    ends(gate.admit(add(MIB)), "overlap");
    ends(gate.admit(Message::new(ADD_MEM_REG, region(8 * MIB))), "share=on");
}

#[test]
fn a_region_that_is_added_for_each_pair_is_added_once_and_goes_with_the_last() {
    let mut gate = ready();
    let region = [&[0; 8], [8 * MIB, MIB, 1 << 32, 0].map(u64::to_le_bytes).as_flattened()].concat();
    let add = || Message { fds: vec![memfd(MIB)], ..Message::new(ADD_MEM_REG, region.clone()) };
    forwarded(gate.admit(add()));
    assert!(matches!(gate.admit(add()), Verdict::Done));
    assert!(matches!(gate.admit(Message::new(REM_MEM_REG, region.clone())), Verdict::Done));
    forwarded(gate.admit(Message::new(REM_MEM_REG, region.clone())));
    ends(gate.admit(Message::new(REM_MEM_REG, region.clone())), "there is no memory region");
}

#[test]
fn a_ring_has_a_size_that_is_a_power_of_two() {
    for size in [0, 3, 100, 2048, 65_536, u32::MAX] {
        ends(gate().admit(pair(SET_VRING_NUM, 0, size)), "power of two");
    }
    for size in [1, 2, 256, 1024] {
        forwarded(gate().admit(pair(SET_VRING_NUM, 0, size)));
    }
}

#[test]
fn a_ring_that_does_not_exist_ends_the_connection() {
    for index in [RINGS_MAX as u32, 255, 0x1_0000, u32::MAX] {
        ends(gate().admit(pair(SET_VRING_NUM, index, 256)), "does not exist");
        ends(gate().admit(pair(SET_VRING_ENABLE, index, 1)), "does not exist");
        ends(ready().admit(address(index, 0x7000_0000, 0x7000_2000, 0x7000_1000)), "does not exist");
    }
    ends(gate().admit(with_fd(SET_VRING_KICK, 33, event())), "does not exist");
}

#[test]
fn a_rings_areas_lie_aligned_inside_memory() {
    let at = 0x7000_0000;
    forwarded(ready().admit(address(0, at, at + 0x2000, at + 0x1000)));
    ends(ready().admit(address(0, at + 8, at + 0x2000, at + 0x1000)), "aligned to 16");
    ends(ready().admit(address(0, at, at + 0x2002, at + 0x1000)), "aligned to 4");
    ends(ready().admit(address(0, at, at + 0x2000, at + 0x1001)), "aligned to 2");
    ends(ready().admit(address(0, 0, at + 0x2000, at + 0x1000)), "descriptor table of ring 0 is not inside");
    ends(ready().admit(address(0, at + 2 * MIB - 4080, at + 0x2000, at + 0x1000)), "descriptor table");
    ends(ready().admit(address(0, at, at + 2 * MIB - 2048, at + 0x1000)), "used ring");
    ends(ready().admit(address(0, at, at + 0x2000, at + 2 * MIB - 512)), "available ring");
    ends(ready().admit(address(1, at, at + 0x2000, at + 0x1000)), "has no size");
    ends(gate().admit(address(0, at, at + 0x2000, at + 0x1000)), "before the guest's memory");
}

#[test]
fn a_kick_is_an_eventfd_or_a_pipe_and_never_blocks() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let event = event();
    forwarded(placed().admit(with_fd(SET_VRING_KICK, 0, event.try_clone().unwrap())));
    let flags = OFlag::from_bits_retain(fcntl(&event, FcntlArg::F_GETFL).unwrap());
    assert!(flags.contains(OFlag::O_NONBLOCK));
    forwarded(ready().admit(with_fd(SET_VRING_CALL, 0, nix::unistd::pipe().unwrap().1)));
    forwarded(placed().admit(with_fd(SET_VRING_KICK, 0, nix::unistd::pipe().unwrap().0)));
    ends(placed().admit(with_fd(SET_VRING_KICK, 0, nix::unistd::pipe().unwrap().1)), "not open for reading");
    ends(ready().admit(with_fd(SET_VRING_CALL, 0, nix::unistd::pipe().unwrap().0)), "not open for writing");
    ends(ready().admit(with_fd(SET_VRING_CALL, 0x200, event.try_clone().unwrap())), "0x200");
    ends(ready().admit(with_fd(SET_VRING_CALL, 0, memfd(4096))), "neither an eventfd nor a pipe");
    ends(ready().admit(with_fd(SET_VRING_KICK, 0, File::open("/").unwrap())), "neither an eventfd nor a pipe");
    ends(ready().admit(with_fd(SET_VRING_CALL, 0x100, event)), "should have none");
    ends(ready().admit(u64_message(SET_VRING_CALL, 0)), "no descriptor");
    forwarded(ready().admit(u64_message(SET_VRING_CALL, 0x100)));
    refused(ready().admit(u64_message(SET_VRING_KICK, 0x100)));
}

#[test]
fn a_running_ring_keeps_what_describes_it() {
    let mut gate = placed();
    forwarded(gate.admit(pair(SET_VRING_BASE, 0, 65_535)));
    ends(ready().admit(pair(SET_VRING_BASE, 0, 65_536)), "above 65535");
    forwarded(gate.admit(with_fd(SET_VRING_KICK, 0, event())));
    ends(gate.admit(pair(SET_VRING_NUM, 0, 128)), "while it runs");
    ends(gate.admit(pair(SET_VRING_BASE, 0, 1)), "while it runs");
    assert!(matches!(gate.admit(address(0, AT, AT + 0x2000, AT + 0x1000)), Verdict::Done), "nothing new");
    ends(gate.admit(address(0, AT, AT + 0x3000, AT + 0x1000)), "while it runs");
    forwarded(gate.admit(pair(SET_VRING_ENABLE, 0, 1)));
    ends(gate.admit(u64_message(SET_FEATURES, VERSION_1 | MQ)), "while ring 0 runs: MQ");
    forwarded(gate.admit(u64_message(SET_FEATURES, VERSION_1)));
    forwarded(gate.admit(with_fd(SET_VRING_KICK, 0, event())));
    forwarded(gate.admit(pair(GET_VRING_BASE, 0, 0)));
    forwarded(gate.admit(pair(SET_VRING_NUM, 0, 128)));
}

#[test]
fn a_ring_starts_when_it_is_described_whole() {
    ends(ready().admit(with_fd(SET_VRING_KICK, 0, event())), "before its addresses");
    let mut gate = placed();
    forwarded(gate.admit(Message::new(RESET_DEVICE, Vec::new())));
    ends(gate.admit(with_fd(SET_VRING_KICK, 0, event())), "before the features");
    // The size has grown since the addresses were checked: the ring would leave its region.
    let mut gate = ready();
    forwarded(gate.admit(address(0, AT + 2 * MIB - 4096, AT, AT + 0x1000)));
    forwarded(gate.admit(pair(SET_VRING_NUM, 0, 512)));
    ends(gate.admit(with_fd(SET_VRING_KICK, 0, event())), "not inside");
    // The memory has moved since.
    let mut gate = placed();
    forwarded(gate.admit(table(&[(4 * MIB, 2 * MIB, AT, 0)], 2 * MIB)));
    ends(gate.admit(with_fd(SET_VRING_KICK, 0, event())), "elsewhere");
}

#[test]
fn a_new_table_stops_rings_that_were_all_disabled() {
    let mut gate = placed();
    forwarded(gate.admit(pair(SET_VRING_NUM, 1, 256)));
    forwarded(gate.admit(address(1, AT, AT + 0x2000, AT + 0x1000)));
    let new = || table(&[(0, 2 * MIB, AT, 0)], 2 * MIB);
    for index in [0, 1] {
        forwarded(gate.admit(with_fd(SET_VRING_KICK, u64::from(index), event())));
        forwarded(gate.admit(pair(SET_VRING_ENABLE, index, 1)));
    }
    assert_eq!(names(&forwarded(gate.admit(new()))), ["SET_MEM_TABLE"], "they run");
    forwarded(gate.admit(pair(SET_VRING_ENABLE, 0, 0)));
    assert_eq!(names(&forwarded(gate.admit(new()))), ["SET_MEM_TABLE"], "one of them runs");
    forwarded(gate.admit(pair(SET_VRING_ENABLE, 1, 0)));
    let sent = forwarded(gate.admit(new()));
    assert_eq!(names(&sent), ["GET_VRING_BASE", "GET_VRING_BASE", "SET_MEM_TABLE"]);
    assert_eq!((sent[0].u32_at(0), sent[1].u32_at(0)), (0, 1));
    forwarded(gate.admit(pair(SET_VRING_NUM, 0, 128)));
    assert_eq!(names(&forwarded(gate.admit(new()))), ["SET_MEM_TABLE"], "they are stopped");
}

#[test]
fn other_features_stop_rings_that_were_all_disabled() {
    let mut gate = placed();
    forwarded(gate.admit(with_fd(SET_VRING_KICK, 0, event())));
    let sent = forwarded(gate.admit(u64_message(SET_FEATURES, VERSION_1 | MQ | PROTOCOL_FEATURES)));
    assert_eq!(names(&sent), ["GET_VRING_BASE", "SET_FEATURES"]);
}

#[test]
fn the_configuration_is_read_within_bounds() {
    let read = |offset: u32, size: u32, tail: usize| {
        let mut body = [offset.to_le_bytes(), size.to_le_bytes(), [0; 4]].concat();
        body.resize(12 + tail, 0);
        answered(gate().admit(Message::new(GET_CONFIG, body)))
    };
    let all = read(0, 12, 12);
    assert_eq!(all[12..], [2, 0, 0, 0, 0, 9, STATUS_LINK_UP as u8, 0, 1, 0, 0x28, 0x23]);
    assert_eq!(read(10, 2, 2)[12..], [0x28, 0x23]);
    for (offset, size) in [(0, 257), (250, 7), (u32::MAX, 1), (1, u32::MAX)] {
        assert_eq!(read(offset, size, 4)[4..], [0; 8], "{offset} {size}: a size of zero");
    }
    refused(gate().admit(Message::new(SET_CONFIG, vec![0; 18])));
}

#[test]
fn requests_that_were_not_offered_are_refused() {
    for request in (0..=45).chain([1000, u32::MAX]) {
        let offered = matches!(request, GET_FEATURES..=SET_MEM_TABLE | SET_VRING_NUM..=SET_VRING_ENABLE)
            || matches!(request, SET_BACKEND_REQ_FD | GET_CONFIG | RESET_DEVICE | GET_MAX_MEM_SLOTS..=REM_MEM_REG);
        if !offered {
            refused(gate().admit(u64_message(request, 1)));
        }
    }
    assert_eq!(nothing(GET_INFLIGHT_FD).len(), 24);
    assert_ne!(nothing(CHECK_DEVICE_STATE), [0; 8], "zero would say that all is well");
    let reply = Message { flags: FLAG_VERSION | FLAG_REPLY, ..u64_message(SET_FEATURES, MQ) };
    ends(gate().admit(reply), "reply");
}

#[test]
fn the_backend_channel_is_a_socket() {
    let mut gate = gate();
    ends(gate.admit(with_fd(SET_BACKEND_REQ_FD, 0, event())), "no Unix socket");
    ends(
        gate.admit(with_fd(SET_BACKEND_REQ_FD, 0, std::net::TcpListener::bind("127.0.0.1:0").unwrap())),
        "no Unix socket",
    );
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(gate.admit(with_fd(SET_BACKEND_REQ_FD, 0, ours)), Verdict::Done));
    assert!(gate.backend_channel().is_some());
}
