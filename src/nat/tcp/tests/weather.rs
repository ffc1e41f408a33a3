//! What a simulated connection is met with: weather, and the habits of its guest.

use super::guest::Habits;
use super::{MICRO, MILLI, Rng, SECOND};

/// Steps of a connection after which nothing is lost any more, and all that could wait has happened.
const ROUGH_MAX: u32 = 400;
/// Within so many more steps, and so much more time, a connection must have ended.
pub(super) const CALM_STEPS_MAX: u32 = 6000;
pub(super) const CALM_MAX: u64 = 600 * SECOND;
/// Where somebody has gone without a word it may take as long as two unanswered questions take.
pub(super) const SILENT_MAX: u64 = 3 * 3600 * SECOND;

/// What the network, the host and the applications do to a connection; chances are in a thousand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) is_asked_for: bool,
    pub(super) is_refused: bool,
    pub(super) loses: u32,
    pub(super) doubles: u32,
    pub(super) delays: u32,
    pub(super) garbage: u32,
    /// How long applications do nothing at the most.
    pub(super) idle: u64,
    /// The most that they do at once.
    pub(super) gulp: u32,
    pub(super) aborts: u32,
    pub(super) breaks: u32,
    pub(super) vanishes: u32,
    /// Whether the guest takes several segments as one.
    pub(super) coalesces: bool,
    pub(super) rough: u32,
}

/// Some weather.
pub(super) fn weather(rng: &mut Rng) -> Weather {
    let is_fair = rng.happens(200);
    let mut chance = |choices: &[u32]| if is_fair { 0 } else { rng.one_of(choices) };
    let [loses, doubles, delays] = [chance(&[0, 10, 50, 300]), chance(&[0, 10, 100]), chance(&[0, 10, 300])];
    let [garbage, aborts, breaks] = [chance(&[0, 300]), chance(&[0, 0, 0, 0, 20]), chance(&[0, 0, 0, 0, 20])];
    let vanishes = chance(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 10]);
    Weather {
        is_asked_for: rng.happens(700),
        is_refused: rng.happens(20),
        loses,
        doubles,
        delays,
        garbage,
        idle: rng.one_of(&[MICRO, 100 * MICRO, 10 * MILLI, 10 * MILLI, SECOND, 100 * SECOND]),
        gulp: rng.one_of(&[1, 100, 2000, 2000, 30_000]),
        aborts,
        breaks,
        vanishes,
        coalesces: rng.happens(400),
        rough: rng.range(1, ROUGH_MAX),
    }
}

/// Some guest's habits.
pub(super) fn habits(rng: &mut Rng) -> Habits {
    Habits {
        mss: rng.one_of(&[None, Some(0), Some(88), Some(536), Some(1460), Some(1460), Some(8960), Some(65_483)]),
        scale: rng.one_of(&[None, Some(0), Some(2), Some(7), Some(7), Some(14), Some(9)]),
        shrinks: rng.happens(200),
        delays_acks: rng.happens(500),
        forgets: rng.happens(200),
        is_lenient: rng.happens(500),
        frame_max: rng.one_of(&[1, 100, 1460, 1460, 9000, 65_000]),
        fin_waits: rng.happens(500),
    }
}
