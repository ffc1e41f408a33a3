//! What the loads have in common: pairs of sides, one measured after the other, and the cases that are wanted.

/// What a run of a load is made of that has cases to choose from, and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) pairs: usize,
    /// Of each reading.
    pub(crate) seconds: u32,
    pub(crate) cases: Cases,
}

/// Cases by name; all that there are if nothing is said.
#[derive(Clone, Debug)]
pub(crate) struct Cases(pub(crate) Option<Vec<String>>);

impl Cases {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|wanted| wanted == name))
    }
}

/// Both sides of a pair in the order in which they are measured: every other pair, the second comes first. A machine
/// that becomes slower, or quicker, all the time is then no side's advantage.
pub(crate) fn in_turn<T>(pair: usize, [first, second]: [T; 2]) -> [T; 2] {
    if pair.is_multiple_of(2) { [first, second] } else { [second, first] }
}
