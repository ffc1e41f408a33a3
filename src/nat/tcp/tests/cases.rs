//! Single cases, by name.

use std::io;
use std::ops::Range;

use super::super::mirror::{Fate, HostSocket, Mirror, Timer};
use super::super::segment::{ACK, FIN, PSH, RST, SYN, Segment};
use super::case::{Case, HOUR, ISS, OURS, ROOM, segment};
use super::{MILLI, SECOND, Seq};
use crate::ring::Bytes;

#[test]
fn a_refused_connection_is_refused() {
    let case = Case::connecting();
    let header = case.mirror.reset_header();
    assert_eq!((header.seq, header.ack, header.flags), (Seq(OURS), Seq(ISS + 1), RST | ACK));
}

#[test]
fn a_guest_gives_up_what_is_not_there_yet() {
    let mut case = Case::connecting();
    assert_eq!(case.take(&segment(ISS + 7, None, RST, 0, 0), ""), Fate::Lives);
    assert_eq!(case.take(&segment(ISS + 1, None, RST, 0, 0), ""), Fate::Broken);
}

#[test]
fn a_syn_that_comes_again_gets_the_same_answer() {
    let mut case = Case::connecting();
    // While the kernel is at it there is nothing to answer.
    assert_eq!((case.take(&segment(ISS, None, SYN, 8000, 0), ""), case.mirror.owes_ack), (Fate::Lives, false));
    let first = case.mirror.connected(1460, &mut case.kernel, 0);
    assert_eq!((first.seq, first.ack, first.flags), (Seq(OURS), Seq(ISS + 1), SYN | ACK));
    assert_eq!((first.window, first.mss, first.scale), (ROOM as u16, Some(1460), None));
    assert!(case.mirror.is_same_syn(&segment(ISS, None, SYN, 8000, 0)));
    // What was told is not taken back.
    case.kernel.room = 10;
    assert_eq!(case.mirror.syn(1460, &mut case.kernel), first);
    // The answer may be lost: again after 1, 2, 4, ... seconds.
    for wait in [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
        assert_eq!(case.next_due(), (wait, Timer::Syn));
    }
    assert_eq!(case.next_due(), (60_000, Timer::GiveUp));
}

#[test]
fn a_guest_that_begins_anew_before_it_was_answered_is_answered_anew() {
    let mut case = Case::connecting();
    assert_eq!(case.take(&segment(7_000_000, None, SYN, 100, 0), ""), Fate::Lives);
    let header = case.mirror.connected(1460, &mut case.kernel, 0);
    assert_eq!(header.ack, Seq(7_000_001));
}

#[test]
fn an_answer_to_something_else_is_refused() {
    let (mut case, _) = Case::answered();
    assert_eq!(case.says(1, 77, ""), Fate::Stray);
    assert_eq!(case.says(1, 0, ""), Fate::Stray);
    assert_eq!(case.says(1, 1, ""), Fate::Lives);
}

#[test]
fn a_guest_that_is_asked_accepts_or_refuses_or_thinks_of_another() {
    let mut case = Case::asked();
    assert_eq!((case.says(50, 1, ""), case.flags(50, 77, SYN, "")), (Fate::Lives, Fate::Stray));
    assert_eq!((case.says(50, 77, ""), case.flags(50, 77, RST, "")), (Fate::Stray, Fate::Lives));
    assert_eq!(case.flags(0, 1, RST, ""), Fate::Broken);

    let mut case = Case::asked();
    assert_eq!(case.next_due(), (1000, Timer::Syn));
    case.kernel.room = 5;
    assert_eq!(case.flags(0, 1, SYN, ""), Fate::Lives);
    assert!(!case.mirror.is_half_open());
    // The room that our SYN told of stays.
    assert_eq!((case.answer(), case.wanted()), (Some((1, ROOM)), Some((0, 8000))));
    // That may be lost, and its answer come again.
    assert_eq!(case.flags(0, 1, SYN, ""), Fate::Lives);
    assert_eq!(case.answer(), Some((1, ROOM)));

    let mut case = Case::asked();
    for wait in [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
        assert_eq!(case.next_due(), (wait, Timer::Syn));
    }
    assert_eq!(case.next_due(), (60_000, Timer::GiveUp));
    let header = case.mirror.reset_header();
    assert_eq!((header.seq, header.flags), (Seq(OURS + 1), RST));
}

#[test]
fn the_guest_ends_first() {
    let mut case = Case::open();
    assert_eq!(case.flags(1, 1, FIN, "bye"), Fate::Lives);
    assert_eq!((case.kernel.taken.as_slice(), case.kernel.is_ended), (b"bye".as_slice(), true));
    assert_eq!(case.answer().map(|(ack, _)| ack), Some(5));
    // The peer goes on, and the guest hears it.
    assert_eq!((case.sends(100), case.says(5, 101, "")), (1, Fate::Lives));
    assert_eq!(case.kernel.consumed, 100);
    assert_eq!((case.ends(), case.says(5, 102, "")), (101, Fate::Done));
    assert!(case.mirror.is_done());
    assert_eq!(case.kernel.consumed, 100);
}

#[test]
fn the_peer_ends_first() {
    let mut case = Case::open();
    assert_eq!((case.sends(100), case.ends()), (1, 101));
    assert_eq!((case.says(1, 102, ""), case.wanted()), (Fate::Lives, None));
    // The guest goes on, and the peer hears it.
    assert_eq!(case.says(1, 102, "more"), Fate::Lives);
    assert_eq!(case.flags(5, 102, FIN, ""), Fate::Done);
    // Not before it has heard that this has come.
    assert!(!case.mirror.is_done());
    assert_eq!(case.answer().map(|(ack, _)| ack), Some(6));
    assert!(case.mirror.is_done() && case.kernel.is_ended);
}

#[test]
fn both_end_at_once() {
    let mut case = Case::open();
    assert_eq!((case.ends(), case.flags(1, 1, FIN, "")), (1, Fate::Lives));
    assert_eq!(case.answer().map(|(ack, _)| ack), Some(2));
    assert!(case.mirror.is_ending() && !case.mirror.is_done());
    assert_eq!(case.says(2, 2, ""), Fate::Done);
    assert!(case.mirror.is_done());
}

#[test]
fn a_lost_fin_is_sent_again() {
    let mut case = Case::open();
    assert_eq!((case.sends(10), case.ends()), (1, 11));
    assert_eq!(case.says(1, 11, ""), Fate::Lives);
    assert!(!case.mirror.ends_again());
    assert_eq!(case.waits(SECOND / 5), Timer::Again);
    assert!(case.mirror.ends_again() && case.mirror.is_readable);
    assert_eq!((case.ends(), case.mirror.ends_again()), (11, false));
}

#[test]
fn a_reset_must_be_exact() {
    let mut case = Case::open();
    // Inside the window, and at its very end: is that what it means?
    for seq in [2, ROOM, 1 + ROOM] {
        assert_eq!(case.flags(seq, 1, RST, ""), Fate::Lives);
        assert_eq!(case.answer(), Some((1, ROOM)));
    }
    // Outside it is nothing.
    for seq in [0, 2 + ROOM, u32::MAX - 5000] {
        assert_eq!((case.flags(seq, 1, RST, ""), case.answer()), (Fate::Lives, None));
    }
    assert_eq!(case.flags(1, 1, RST, ""), Fate::Broken);
}

#[test]
fn a_syn_in_the_middle_is_asked_about() {
    let mut case = Case::open();
    assert_eq!((case.flags(1, 1, SYN, ""), case.answer()), (Fate::Lives, Some((1, ROOM))));
}

#[test]
fn a_window_opens_after_it_was_zero() {
    let mut case = Case::open();
    assert_eq!(case.sends(8000), 1);
    assert_eq!(case.wanted(), None);
    case.window = 0;
    assert_eq!(case.says(1, 8001, ""), Fate::Lives);
    case.mirror.is_readable = true;
    case.mirror.waits_for_window(case.now);
    assert_eq!((case.wanted(), case.next_due()), (None, (1000, Timer::Probe)));
    // Whatever is from before what was known last says nothing of room.
    case.window = 500;
    assert_eq!((case.says(0, 8001, ""), case.wanted()), (Fate::Lives, None));
    assert_eq!((case.says(1, 8001, ""), case.wanted()), (Fate::Lives, Some((0, 500))));
    // Nothing is due but whether it is there.
    assert_eq!(case.mirror.due(), case.now + 2 * HOUR);
}

#[test]
fn zero_windows_cost_a_question_a_minute() {
    let mut case = Case::open();
    case.window = 0;
    assert_eq!(case.says(1, 1, ""), Fate::Lives);
    case.mirror.is_readable = true;
    case.mirror.waits_for_window(case.now);
    for wait in [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000] {
        assert_eq!(case.next_due(), (wait, Timer::Probe));
        let header = case.mirror.probe(&mut case.kernel);
        assert_eq!((header.seq, header.flags), (Seq(OURS), ACK));
        assert_eq!(case.says(1, 1, ""), Fate::Lives);
    }
    // A lost answer or two are no silence, but eleven minutes are.
    for _ in 0..10 {
        assert_eq!(case.next_due(), (60_000, Timer::Probe));
    }
    assert_eq!(case.next_due(), (60_000, Timer::GiveUp));
}

#[test]
fn a_guest_that_takes_its_room_back_is_asked_and_then_sent_again() {
    let mut case = Case::open();
    assert_eq!(case.sends(4000), 1);
    case.window = 0;
    assert_eq!(case.says(1, 1001, ""), Fate::Lives);
    for _ in 0..20 {
        let (_, what) = case.next_due();
        assert_eq!(what, Timer::Probe);
        assert_eq!(case.says(1, 1001, ""), Fate::Lives);
        // It would not look at what is beyond its room.
        assert_eq!(case.mirror.acknowledge(&mut case.kernel).seq, Seq(OURS + 1001));
    }
    case.window = 5000;
    assert_eq!((case.says(1, 1001, ""), case.wanted()), (Fate::Lives, Some((0, 5000))));
    assert_eq!(case.mirror.due(), case.now + SECOND / 5);
}

#[test]
fn three_equal_acknowledgements_mean_a_loss() {
    let mut case = Case::open();
    assert_eq!((case.sends(3000), case.sends(1000)), (1, 3001));
    assert_eq!(case.says(1, 1001, ""), Fate::Lives);
    // What brings something, or another window, is not one.
    assert_eq!(case.says(1, 1001, "x"), Fate::Lives);
    case.window = 7000;
    for _ in 0..3 {
        assert_eq!((case.says(2, 1001, ""), case.wanted()), (Fate::Lives, Some((3000, 4000))));
    }
    assert_eq!((case.says(2, 1001, ""), case.wanted()), (Fate::Lives, Some((0, 7000))));
    assert_eq!(case.sends(3000), 1001);
    // More of them say nothing new, and neither do those that it answers what it had already with.
    for _ in 0..5 {
        assert_eq!((case.says(2, 1001, ""), case.wanted()), (Fate::Lives, Some((3000, 4000))));
    }
    assert_eq!((case.says(2, 4001, ""), case.sends(2000)), (Fate::Lives, 4001));
    for _ in 0..5 {
        assert_eq!((case.says(2, 4001, ""), case.wanted()), (Fate::Lives, Some((2000, 5000))));
    }
    // Once it is over that, they count again.
    assert_eq!(case.says(2, 5001, ""), Fate::Lives);
    for _ in 0..3 {
        assert_eq!(case.says(2, 5001, ""), Fate::Lives);
    }
    assert_eq!(case.wanted(), Some((0, 7000)));
    assert_eq!(case.kernel.consumed, 5000);
}

#[test]
fn what_is_not_acknowledged_is_sent_again_ever_later_until_the_guest_is_given_up() {
    let mut case = Case::open();
    assert_eq!(case.sends(1000), 1);
    for wait in [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000] {
        assert_eq!(case.wanted(), Some((1000, 7000)));
        assert_eq!((case.next_due(), case.wanted()), ((wait, Timer::Again), Some((0, 8000))));
        assert_eq!(case.sends(1000), 1);
    }
    assert_eq!(case.next_due(), (60_000, Timer::GiveUp));
    // What is acknowledged ends that.
    let mut case = Case::open();
    assert_eq!((case.sends(1000), case.next_due().0, case.next_due().0), (1, 200, 400));
    assert_eq!(case.says(1, 501, ""), Fate::Lives);
    assert_eq!((case.next_due(), case.says(1, 1001, "")), ((200, Timer::Again), Fate::Lives));
    assert_eq!((case.wanted(), case.mirror.due()), (Some((0, 8000)), case.now + 2 * HOUR));
}

#[test]
fn a_silent_guest_is_asked_after_two_hours() {
    let mut case = Case::open();
    assert_eq!(case.waits(2 * HOUR - 1), Timer::Nothing);
    assert_eq!(case.waits(1), Timer::Probe);
    for _ in 0..5 {
        assert_eq!(case.next_due(), (30_000, Timer::Probe));
    }
    // It is there.
    assert_eq!(case.says(1, 1, ""), Fate::Lives);
    assert_eq!(case.next_due(), (7_200_000, Timer::Probe));
    // What is sent meanwhile is sent again in its own time.
    assert_eq!(case.sends(10), 1);
    assert_eq!(case.next_due(), (200, Timer::Again));
    assert_eq!(case.says(1, 11, ""), Fate::Lives);
    assert_eq!(case.next_due(), (7_200_000, Timer::Probe));
    for _ in 0..7 {
        assert_eq!(case.next_due(), (30_000, Timer::Probe));
    }
    assert_eq!(case.next_due(), (30_000, Timer::GiveUp));
}

#[test]
fn a_guest_that_asks_whether_we_are_there_hears_so() {
    let mut case = Case::open();
    assert_eq!((case.says(0, 1, ""), case.answer()), (Fate::Lives, Some((1, ROOM))));
    assert_eq!((case.says(0, 1, "?"), case.answer()), (Fate::Lives, Some((1, ROOM))));
    // That may be no question, but its answer to our answer, and so on for ever: it is answered now and then.
    assert_eq!((case.says(0, 1, ""), case.says(0, 1, ""), case.answer()), (Fate::Lives, Fate::Lives, None));
    case.now += SECOND / 2;
    assert_eq!((case.says(0, 1, ""), case.answer()), (Fate::Lives, Some((1, ROOM))));
    // What is further on is no question: what is missing is on its way.
    assert_eq!((case.says(1, 1, ""), case.says(100, 1, ""), case.answer()), (Fate::Lives, Fate::Lives, None));
    assert_eq!(case.kernel.taken, b"");
}

#[test]
fn nothing_is_taken_beyond_the_window() {
    let mut case = Case::open();
    let sent = case.sends(100);
    case.window = 77;
    // What begins beyond it is nothing of this connection at all.
    for flags in [0, FIN] {
        assert_eq!(case.flags(3 + ROOM, sent + 100, flags, "beyond"), Fate::Lives);
        assert_eq!(case.flags(1_000_000, sent + 100, flags, ""), Fate::Lives);
        assert_eq!(case.answer(), Some((1, ROOM)));
        case.now += SECOND;
    }
    assert_eq!((case.kernel.consumed, case.wanted()), (0, Some((100, 7900))));
    // What goes beyond it is cut off, and its end is not there.
    case.window = 8000;
    assert_eq!(case.flags(ROOM - 1, 1, FIN, "abcdef"), Fate::Lives);
    let text = "-".repeat(ROOM as usize - 2);
    assert_eq!(case.says(1, 1, &text), Fate::Lives);
    assert_eq!(case.kernel.taken, (text + "ab").as_bytes());
    assert!(!case.kernel.is_ended);
    assert_eq!(case.answer(), Some((1 + ROOM, 0)));
    // It asks whether there is room again, and goes on behind that.
    assert_eq!((case.says(1 + ROOM, 1, "c"), case.answer()), (Fate::Lives, Some((1 + ROOM, 0))));
    assert_eq!((case.says(2 + ROOM, 101, ""), case.kernel.consumed), (Fate::Lives, 100));
    case.kernel.room = 5000;
    assert_eq!(case.mirror.has_room(&mut case.kernel, case.now), Fate::Lives);
    assert_eq!(case.answer(), Some((1 + ROOM, 5000)));
}

#[test]
fn room_is_told_in_no_crumbs_and_not_taken_back() {
    let mut case = Case::open();
    case.kernel.room = 0;
    assert_eq!((case.says(1, 1, "kept"), case.answer()), (Fate::Lives, Some((1, ROOM))));
    case.kernel.room = 1004;
    assert_eq!(case.mirror.has_room(&mut case.kernel, case.now), Fate::Lives);
    assert_eq!((case.answer(), case.kernel.taken.as_slice()), (Some((5, ROOM - 4)), b"kept".as_slice()));
    // Its segments are 1000 bytes.
    case.kernel.room = ROOM - 4 + 999;
    assert_eq!((case.says(0, 1, ""), case.answer()), (Fate::Lives, Some((5, ROOM - 4))));
    case.now += SECOND;
    case.kernel.room = ROOM - 4 + 1000;
    assert_eq!((case.says(0, 1, ""), case.answer()), (Fate::Lives, Some((5, ROOM + 996))));
}

#[test]
fn data_tells_of_room_that_the_guest_waits_for_and_does_not_ask_for_it_else() {
    let mut case = Case::open();
    assert_eq!((case.says(1, 1, &"-".repeat(ROOM as usize)), case.answer()), (Fate::Lives, Some((1 + ROOM, 0))));
    let asked = case.kernel.asked;
    for _ in 0..10 {
        assert_eq!(case.mirror.sends(10, false, &mut case.kernel, 0).window, 0);
    }
    assert_eq!(case.kernel.asked, asked);
    case.kernel.room = 3 * ROOM;
    assert_eq!(case.mirror.has_room(&mut case.kernel, case.now), Fate::Lives);
    let header = case.mirror.sends(10, false, &mut case.kernel, 0);
    assert_eq!((header.ack.since(Seq(ISS)), u32::from(header.window)), (1 + ROOM, 3 * ROOM));
    assert_eq!(case.answer(), None);
}

#[test]
fn the_first_small_segment_may_wait_for_its_acknowledgement() {
    let mut case = Case::open();
    let may_wait = |case: &Case| (case.mirror.owes_ack, case.mirror.ack_waits_since.is_some());
    assert_eq!((case.says(1, 1, "a"), may_wait(&case)), (Fate::Lives, (true, true)));
    // Not the second.
    assert_eq!((case.says(2, 1, "b"), may_wait(&case)), (Fate::Lives, (true, false)));
    case.sends(10);
    assert_eq!((case.says(3, 1, "c"), may_wait(&case)), (Fate::Lives, (true, true)));
    case.sends(10);
    // Nor what is long, has come before, leaves a gap, fills one, or finds no room.
    assert_eq!((case.says(4, 1, &"-".repeat(1025)), may_wait(&case)), (Fate::Lives, (true, false)));
    assert!(case.answer().is_some());
    for (seq, text) in [(1000, "-"), (1030, "-"), (1029, "-")] {
        assert_eq!((case.says(seq, 1, text), may_wait(&case)), (Fate::Lives, (true, false)), "{seq}");
        assert!(case.answer().is_some());
    }
    case.kernel.room = 0;
    assert_eq!((case.says(1031, 1, "-"), may_wait(&case)), (Fate::Lives, (true, false)));
    case.kernel.room = ROOM;
    assert_eq!(case.mirror.has_room(&mut case.kernel, case.now), Fate::Lives);
    assert!(case.answer().is_some());
    assert_eq!((case.flags(1032, 1, FIN, "-"), may_wait(&case)), (Fate::Lives, (true, true)));
}

#[test]
fn the_last_bytes_say_that_they_are_the_last() {
    let mut case = Case::open();
    let header = case.mirror.sends(10, true, &mut case.kernel, 0);
    assert_eq!((header.seq, header.flags), (Seq(OURS + 1), ACK | PSH | FIN));
    assert_eq!((case.wanted(), case.mirror.inside().nxt), (None, Seq(OURS + 12)));
    // They are lost: all of it comes again, in one or apart.
    for _ in 0..3 {
        assert_eq!(case.says(1, 1, ""), Fate::Lives);
    }
    assert_eq!(case.wanted(), Some((0, 8000)));
    assert_eq!((case.sends(10), case.mirror.ends_again(), case.ends()), (1, true, 11));
    assert_eq!((case.says(1, 12, ""), case.kernel.consumed), (Fate::Lives, 10));
    assert!(case.mirror.inside().fin_is_acknowledged);
}

#[test]
fn segments_may_overlap() {
    let mut case = Case::open();
    assert_eq!(case.says(4, 1, "defg"), Fate::Lives);
    assert_eq!(case.answer(), Some((1, ROOM)));
    assert_eq!(case.says(10, 1, "jkl"), Fate::Lives);
    // What came first is what holds.
    assert_eq!(case.says(6, 1, "--hi---mn"), Fate::Lives);
    assert_eq!(case.kernel.taken, b"");
    assert_eq!(case.says(1, 1, "abc---"), Fate::Lives);
    assert_eq!(case.kernel.taken, b"abcdefghijklmn");
    assert_eq!(case.answer().map(|(ack, _)| ack), Some(15));
    assert_eq!(case.says(10, 1, "jklmnop"), Fate::Lives);
    assert_eq!(case.kernel.taken, b"abcdefghijklmnop");
}

#[test]
fn a_gap_is_filled_however_much_is_kept() {
    let mut case = Case::open();
    // As many pieces as are kept at most, and more.
    for i in 0..200 {
        assert_eq!(case.says(3 + 2 * i, 1, "x"), Fate::Lives);
    }
    assert_eq!((case.mirror.inside().pieces.len(), case.kernel.taken.len()), (128, 0));
    assert_eq!(case.says(1, 1, "__"), Fate::Lives);
    assert_eq!(case.kernel.taken, b"__x");
    assert_eq!(case.says(4, 1, "_x_"), Fate::Lives);
    assert_eq!(case.kernel.taken, b"__x_x_x");
}

#[test]
fn an_end_that_comes_too_early_waits() {
    let mut case = Case::open();
    assert_eq!(case.flags(4, 1, FIN, "def"), Fate::Lives);
    assert!(!case.kernel.is_ended);
    assert_eq!(case.says(1, 1, "ab"), Fate::Lives);
    assert!(!case.kernel.is_ended);
    assert_eq!(case.says(3, 1, "c"), Fate::Lives);
    assert_eq!((case.kernel.taken.as_slice(), case.kernel.is_ended), (b"abcdef".as_slice(), true));
    assert_eq!(case.answer().map(|(ack, _)| ack), Some(8));
    // Nothing comes after it.
    assert_eq!((case.says(7, 1, "gh"), case.says(8, 1, "h")), (Fate::Lives, Fate::Lives));
    assert_eq!((case.kernel.taken.len(), case.answer().map(|(ack, _)| ack)), (6, Some(8)));
}

#[test]
fn an_end_before_what_was_said_is_none() {
    let mut case = Case::open();
    assert_eq!(case.says(4, 1, "def"), Fate::Lives);
    assert_eq!(case.flags(1, 1, FIN, "abc"), Fate::Lives);
    assert_eq!((case.kernel.taken.as_slice(), case.kernel.is_ended), (b"abcdef".as_slice(), false));
    // An end is where it was first, and what goes beyond it is cut off.
    let mut case = Case::open();
    assert_eq!(case.flags(4, 1, FIN, ""), Fate::Lives);
    assert_eq!(case.flags(1, 1, FIN, "abcdef"), Fate::Lives);
    assert_eq!((case.kernel.taken.as_slice(), case.kernel.is_ended), (b"abc".as_slice(), true));
}

#[test]
fn an_end_right_behind_the_window_leaves_no_window() {
    let mut case = Case::open();
    let text = "-".repeat(ROOM as usize);
    assert_eq!(case.flags(1, 1, FIN, &text), Fate::Lives);
    assert!(case.kernel.is_ended);
    assert_eq!(case.answer(), Some((2 + ROOM, 0)));
}

#[test]
fn what_was_never_sent_is_not_acknowledged() {
    let mut case = Case::open();
    assert_eq!(case.sends(100), 1);
    assert_eq!((case.says(1, 102, "text"), case.kernel.consumed), (Fate::Lives, 0));
    assert_eq!((case.answer(), case.kernel.taken.as_slice()), (Some((1, ROOM)), b"".as_slice()));
}

#[test]
fn what_acknowledges_more_tells_of_the_window_though_it_comes_again() {
    let mut case = Case::open();
    assert_eq!(case.sends(1000), 1);
    // Sent later, arrives earlier.
    assert_eq!(case.says(5, 1, ""), Fate::Lives);
    case.window = 100;
    assert_eq!((case.says(1, 1001, "text"), case.wanted()), (Fate::Lives, Some((0, 100))));
}

#[test]
fn no_crumbs_follow_what_is_on_its_way() {
    let mut case = Case::open();
    assert_eq!(case.sends(7001), 1);
    assert_eq!(case.wanted(), None);
    assert_eq!((case.says(1, 2, ""), case.wanted()), (Fate::Lives, Some((7000, 1000))));
}

#[test]
fn a_socket_that_fails_ends_it() {
    struct Broken;
    impl HostSocket for Broken {
        fn send(&mut self, _: &Bytes<'_>, _: Range<usize>) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::EPIPE))
        }
        fn send_kept(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::ENOBUFS))
        }
        fn room(&mut self) -> u32 {
            0
        }
        fn consume(&mut self, _: u32) {}
        fn end(&mut self) {}
    }
    let mut case = Case::open();
    let text = segment(ISS + 1, Some(OURS + 1), 0, 8000, 4);
    assert_eq!(case.mirror.segment(&text, &Bytes::private(b"text"), &mut Broken, 0), Fate::Failed);
    // A shortage is none.
    let mut case = Case::open();
    case.kernel.room = 0;
    assert_eq!(case.says(1, 1, "text"), Fate::Lives);
    assert_eq!((case.mirror.has_room(&mut Broken, case.now), case.mirror.inside().pieces.len()), (Fate::Lives, 1));
}

#[test]
fn what_there_was_no_memory_for_is_tried_again_a_moment_later_and_not_before() {
    let mut case = Case::open();
    case.kernel.room = 0;
    assert_eq!((case.says(1, 1, "text"), case.answer()), (Fate::Lives, Some((1, ROOM))));
    // It says that it has room, and takes nothing: it may say so for ever.
    for _ in 0..3 {
        assert_eq!(case.mirror.has_room(&mut case.kernel, case.now), Fate::Lives);
    }
    case.kernel.room = ROOM;
    assert_eq!(case.mirror.has_room(&mut case.kernel, case.now), Fate::Lives);
    assert_eq!((case.waits(99 * MILLI), case.kernel.taken.len()), (Timer::Nothing, 0));
    assert_eq!(case.waits(MILLI), Timer::PassOn);
    assert_eq!(case.mirror.pass_on(&mut case.kernel, case.now), Fate::Lives);
    assert_eq!((case.answer(), case.kernel.taken.as_slice()), (Some((5, ROOM - 4)), b"text".as_slice()));
    // What the peer has said is offered to the guest again when it may be read.
    case.mirror.is_readable = true;
    assert_eq!(case.wanted(), Some((0, 8000)));
    case.mirror.reads_later(case.now);
    assert_eq!((case.wanted(), case.waits(100 * MILLI), case.wanted()), (None, Timer::PassOn, Some((0, 8000))));
}

#[test]
fn a_syn_that_is_sent_again_takes_no_room_back() {
    let syn = Segment { scale: Some(7), ..segment(ISS, None, SYN, 8000, 0) };
    let mut case = Case { mirror: Mirror::asked_for(&syn, Seq(OURS), 0), ..Case::connecting() };
    case.kernel.room = 1 << 20;
    case.mirror.connected(1460, &mut case.kernel, 0);
    // What fits nowhere is answered, with all the room that there is.
    assert_eq!(case.take(&segment(ISS + 9, Some(OURS), SYN, 8000, 0), ""), Fate::Lives);
    let header = case.mirror.acknowledge(&mut case.kernel);
    assert_eq!(u32::from(header.window) << 8, 1 << 20);
    case.mirror.syn(1460, &mut case.kernel);
    assert_eq!(case.mirror.inside().edge, Seq(ISS + 1 + (1 << 20)));
}
