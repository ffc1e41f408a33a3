//! When guests are asked who has an address.
//!
//! Theory of operation. A question is asked when a client comes for an address of which it is not known where it is. It
//! is asked again each second, [`TIMES`] times in all, as hosts ask (RFC 4861, 10). If nobody has answered a second
//! later, nobody has the address, for one more second: then the next client may have it asked anew.
//!
//! Bounds: there is no more than one question for each address that a forward names.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// How often it is asked.
const TIMES: u8 = 3;
/// The time between, in nanoseconds.
const PAUSE_NS: u64 = 1_000_000_000;

#[derive(Debug)]
struct Question {
    /// How often it was asked; more than [`TIMES`]: it was given up.
    asked: u8,
    again_at: u64,
}

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Questions(BTreeMap<IpAddr, Question>);

impl Questions {
    /// Somebody wants to know where an address is: has that asked by `ask` if it is time to. Returns until when the
    /// answer may come; none: nobody has the address.
    pub(super) fn ask<R>(&mut self, address: IpAddr, now: u64, ask: impl FnOnce() -> R) -> Option<u64> {
        let question = self.0.entry(address).or_insert(Question { asked: 0, again_at: now });
        if question.again_at <= now {
            question.asked = if question.asked > TIMES { 1 } else { question.asked + 1 };
            question.again_at = now + PAUSE_NS;
            if question.asked <= TIMES {
                ask();
            }
        }
        (question.asked <= TIMES).then_some(question.again_at)
    }

    /// It is known where an address is.
    pub(super) fn end(&mut self, address: &IpAddr) {
        self.0.remove(address);
    }

    /// Whether an answer is waited for.
    pub(super) fn are_open(&self) -> bool {
        self.0.values().any(|question| question.asked <= TIMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_asked_three_times_a_second_apart_and_then_not_for_a_second() {
        let (mut questions, [one, other]) = (Questions::default(), [1, 2].map(|n| IpAddr::from([10, 0, 2, n])));
        let mut asked = Vec::new();
        // Clients come ten times a second.
        for tenth in 0..50 {
            let now = tenth * PAUSE_NS / 10;
            let until = questions.ask(one, now, || asked.push(tenth));
            let expected = (!(30..40).contains(&tenth)).then_some((tenth / 10 + 1) * PAUSE_NS);
            assert_eq!((until, questions.are_open()), (expected, expected.is_some()), "{tenth}");
        }
        assert_eq!(asked, [0, 10, 20, 40]);
        // Another has its own, and one that is answered is asked at once when it is wanted again.
        assert_eq!(questions.ask(other, 4_900_000_000, || asked.push(0)), Some(5_900_000_000));
        questions.end(&one);
        assert_eq!(questions.ask(one, 4_900_000_000, || asked.push(1)), Some(5_900_000_000));
        assert_eq!(asked[4..], [0, 1]);
        [one, other].iter().for_each(|address| questions.end(address));
        assert!(!questions.are_open());
    }
}
