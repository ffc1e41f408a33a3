//! The program by which the kernel chooses the frames that a packet socket hears: those for our ports, and those for
//! groups.
//!
//! Classic BPF (Linux's `Documentation/networking/filter.rst`): an accumulator, comparisons with constants, jumps
//! forward. Addresses are grouped by their first two bytes, which those of one VMM's guests have in common: then each
//! costs one comparison, of its last four bytes. What a program may take of the kernel's memory is bounded
//! (`net.core.optmem_max`), and the kernel's own form of it is longer.

use crate::frame::ethernet::MacAddr;
use crate::sys::packet::Instruction;

/// Addresses that the program looks for. With more of them, all unicast frames but the host's own are heard.
pub(super) const ADDRESSES_MAX: usize = 256;
/// Addresses of one group: a comparison can jump over 255 instructions.
const GROUP_MAX: usize = 128;

/// Takes the whole frame, however long.
const ACCEPT: u32 = u32::MAX;
const REFUSE: u32 = 0;

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn step(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

/// Goes on if the comparison holds, else skips `skip` instructions.
const fn unless(code: u16, k: u32, skip: u8) -> Instruction {
    Instruction { code, jt: 0, jf: skip, k }
}

/// Hears nothing.
pub(super) fn nothing() -> Vec<Instruction> {
    vec![step(RETURN, REFUSE)]
}

/// Hears groups and these addresses, which are in order.
pub(super) fn only(addresses: &[MacAddr]) -> Vec<Instruction> {
    program(addresses, ACCEPT, REFUSE)
}

/// Hears groups and all but the interface's own address.
pub(super) fn all_but(own: MacAddr) -> Vec<Instruction> {
    program(&[own], REFUSE, ACCEPT)
}

/// Accepts groups, does `then` with frames for `listed` addresses, and `otherwise` with others.
fn program(listed: &[MacAddr], then: u32, otherwise: u32) -> Vec<Instruction> {
    let mut program = vec![step(LOAD_BYTE, 0), unless(JUMP_ANY_BIT, 1, 1), step(RETURN, ACCEPT)];
    for alike in listed.chunk_by(|one, other| one.0[..2] == other.0[..2]) {
        for group in alike.chunks(GROUP_MAX) {
            append_group(&mut program, group, then);
        }
    }
    program.push(step(RETURN, otherwise));
    program
}

/// Addresses that begin with the same two bytes.
fn append_group(program: &mut Vec<Instruction>, group: &[MacAddr], then: u32) {
    let Some(MacAddr([a, b, ..])) = group.first() else { return };
    let count = group.len() as u8;
    let prefix = u32::from(u16::from_be_bytes([*a, *b]));
    program.extend([step(LOAD_HALF, 0), unless(JUMP_EQUAL, prefix, count + 3), step(LOAD_WORD, 2)]);
    for (MacAddr([_, _, c, d, e, f]), left) in group.iter().zip((1..=count).rev()) {
        program.push(Instruction { code: JUMP_EQUAL, jt: left, jf: 0, k: u32::from_be_bytes([*c, *d, *e, *f]) });
    }
    program.extend([step(JUMP, 1), step(RETURN, then)]);
}

const _: () = assert!(GROUP_MAX + 3 <= u8::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a program as the kernel does. None: it reads beyond the frame, and the kernel would refuse the frame.
    fn run(program: &[Instruction], frame: &[u8]) -> Option<u32> {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let offset = k as usize;
            match code {
                LOAD_BYTE => accumulator = u32::from(*frame.get(offset)?),
                LOAD_HALF => accumulator = u32::from(u16::from_be_bytes(*frame.get(offset..)?.first_chunk()?)),
                LOAD_WORD => accumulator = u32::from_be_bytes(*frame.get(offset..)?.first_chunk()?),
                JUMP => at += offset,
                JUMP_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                JUMP_ANY_BIT => at += usize::from(if accumulator & k != 0 { jt } else { jf }),
                RETURN => return Some(k),
                other => panic!("{other}"),
            }
        }
    }

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xff]);

    fn is_heard(program: &[Instruction], destination: [u8; 6]) -> bool {
        assert!(program.len() <= 4096, "more than BPF_MAXINSNS");
        run(program, &destination) != Some(REFUSE)
    }

    fn many(count: usize) -> Vec<MacAddr> {
        (0..count).map(|n| MacAddr([2, 0x11, 0, 0, (n >> 8) as u8, n as u8])).collect()
    }

    #[test]
    fn an_address_costs_little_where_all_begin_alike() {
        let addresses = many(ADDRESSES_MAX);
        let program = only(&addresses);
        assert!(program.len() < ADDRESSES_MAX + 20, "{}", program.len());
        assert!(addresses.iter().all(|address| is_heard(&program, address.0)));
        assert!(!is_heard(&program, [2, 0x11, 0, 0, 1, 0]) && !is_heard(&program, [2, 0x12, 0, 0, 0, 0]));
    }

    #[test]
    fn all_but_the_hosts_own_can_be_heard() {
        let program = all_but(OWN);
        assert!(is_heard(&program, [2, 0x11, 0, 0, 0, 0]) && is_heard(&program, [0xff; 6]));
        assert!(!is_heard(&program, OWN.0));
    }

    proptest! {
        #[test]
        fn groups_and_our_addresses_are_heard_and_no_others(
            // Few different bytes, so that addresses resemble each other.
            addresses in prop::collection::btree_set(prop::array::uniform6(0u8..3), 0..300),
            destination in prop::array::uniform6(0u8..3),
        ) {
            let expected = destination[0] & 1 != 0 || addresses.contains(&destination);
            let addresses: Vec<_> = addresses.into_iter().map(MacAddr).collect();
            prop_assert_eq!(is_heard(&only(&addresses), destination), expected);
        }
    }
}
