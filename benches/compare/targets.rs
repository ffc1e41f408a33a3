//! What is aimed at.

use std::fmt;

use crate::ratios::Row;

/// What is aimed at, for the median of guestwire divided by the peer.
pub(crate) struct Target {
    load: &'static str,
    case: &'static str,
    peer: &'static str,
    metric: &'static str,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

const fn target(
    load: &'static str,
    case: &'static str,
    peer: &'static str,
    metric: &'static str,
    bound: Bound,
) -> Target {
    Target { load, case, peer, metric, bound }
}

const TARGETS: &[Target] = &[
    target("packets", "64", "testpmd", "rate", Bound::AtLeast(1.2)),
    target("packets", "64", "testpmd", "busy", Bound::AtMost(0.5)),
    target("packets", "1500", "testpmd", "rate", Bound::AtLeast(3.0)),
    target("packets", "64", "ovs", "rate", Bound::AtLeast(1.5)),
    target("packets", "1500", "ovs", "rate", Bound::AtLeast(2.5)),
    target("guests", "tcp-1", "bridge", "received", Bound::AtLeast(1.3)),
    target("guests", "tcp-1", "ovs-tso", "received", Bound::AtLeast(1.5)),
    target("guests", "tcp-1", "ovs", "received", Bound::AtLeast(3.0)),
    target("guests", "round-trips", "bridge", "p50", Bound::AtMost(1.0)),
    target("guests", "round-trips", "bridge", "p99", Bound::AtMost(1.0)),
    target("guests", "round-trips", "ovs-tso", "p50", Bound::AtMost(1.0)),
    target("guests", "round-trips", "ovs-tso", "p99", Bound::AtMost(1.0)),
    target("guests", "round-trips", "ovs", "p50", Bound::AtMost(1.0)),
    target("guests", "round-trips", "ovs", "p99", Bound::AtMost(1.0)),
];

/// The target of a row of the summary, if it has one.
pub(crate) fn target_of(row: &Row) -> Option<&'static Target> {
    let of_row = (row.load.as_str(), row.case.as_str(), row.peer.as_str(), row.metric.as_str());
    TARGETS.iter().find(|target| (target.load, target.case, target.peer, target.metric) == of_row)
}

impl Target {
    /// The ratio that is aimed at.
    pub(crate) fn value(&self) -> f64 {
        let (Bound::AtLeast(value) | Bound::AtMost(value)) = self.bound;
        value
    }

    pub(crate) fn is_met(&self, median: f64) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => median >= bound,
            Bound::AtMost(bound) => median <= bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bound {
            Bound::AtLeast(bound) => write!(f, "≥ {bound}"),
            Bound::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}
