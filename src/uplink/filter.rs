//! The program by which the kernel chooses the frames that a packet socket hears: those for our ports, and those for
//! groups.
//!
//! Classic BPF (Linux's `Documentation/networking/filter.rst`): an accumulator, comparisons with constants, jumps
//! forward. A program reads the last four bytes of the destination once and compares them with each address in turn.

use crate::sys::packet::Instruction;

/// Addresses that the program looks for. With more of them, all unicast frames but the host's own are heard.
pub(super) const ADDRESSES_MAX: usize = 256;

/// Takes the whole frame, however long.
const ACCEPT: u32 = u32::MAX;
const REFUSE: u32 = 0;

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
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

/// The program for these addresses; `own` is the interface's.
pub(super) fn program(addresses: &[[u8; 6]], own: [u8; 6]) -> Vec<Instruction> {
    let mut program = vec![step(LOAD_BYTE, 0), unless(JUMP_ANY_BIT, 1, 1), step(RETURN, ACCEPT), step(LOAD_WORD, 2)];
    let is_short = addresses.len() <= ADDRESSES_MAX;
    let (listed, then, otherwise) = if is_short {
        (addresses, ACCEPT, REFUSE)
    } else {
        // One of ours may be the interface's own: guests that share it.
        let own = if addresses.contains(&own) { &[][..] } else { std::slice::from_ref(&own) };
        (own, REFUSE, ACCEPT)
    };
    for [a, b, c, d, e, f] in listed {
        program.extend([
            unless(JUMP_EQUAL, u32::from_be_bytes([*c, *d, *e, *f]), 4),
            step(LOAD_HALF, 0),
            unless(JUMP_EQUAL, u32::from(u16::from_be_bytes([*a, *b])), 1),
            step(RETURN, then),
            step(LOAD_WORD, 2),
        ]);
    }
    program.push(step(RETURN, otherwise));
    program
}

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
                JUMP_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                JUMP_ANY_BIT => at += usize::from(if accumulator & k != 0 { jt } else { jf }),
                RETURN => return Some(k),
                other => panic!("{other}"),
            }
        }
    }

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

    fn is_heard(addresses: &[[u8; 6]], destination: [u8; 6]) -> bool {
        let program = program(addresses, OWN);
        assert!(program.len() <= 4096, "more than BPF_MAXINSNS");
        run(&program, &destination) != Some(0)
    }

    fn many(count: usize) -> Vec<[u8; 6]> {
        (0..count).map(|n| [2, 0x11, 0, 0, (n >> 8) as u8, n as u8]).collect()
    }

    #[test]
    fn with_too_many_addresses_all_but_the_hosts_are_heard() {
        assert!(!is_heard(&many(ADDRESSES_MAX), [2, 0x12, 0, 0, 0, 0]));
        assert!(is_heard(&many(ADDRESSES_MAX + 1), [2, 0x12, 0, 0, 0, 0]));
        assert!(!is_heard(&many(ADDRESSES_MAX + 1), OWN));
        let shared = [many(ADDRESSES_MAX), vec![OWN]].concat();
        assert!(is_heard(&shared, OWN));
    }

    proptest! {
        #[test]
        fn groups_and_our_addresses_are_heard_and_no_others(
            // Few different bytes, so that addresses resemble each other.
            addresses in prop::collection::vec(prop::array::uniform6(0u8..3), 0..20),
            destination in prop::array::uniform6(0u8..3),
        ) {
            let expected = destination[0] & 1 != 0 || addresses.contains(&destination);
            prop_assert_eq!(is_heard(&addresses, destination), expected);
        }
    }
}
