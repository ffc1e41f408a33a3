//! What is aimed at.

use std::fmt;

use crate::hostile;
use crate::network;
use crate::ratios::{Figures, Row, percentile};

/// What is aimed at.
pub(crate) struct Target {
    load: &'static str,
    case: &'static str,
    peer: &'static str,
    metric: &'static str,
    of: Of,
    bound: Bound,
}

/// What must keep to the bound: the median of guestwire's own figures, or that of guestwire divided by the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Ours,
    Ratio,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

const fn target(
    load: &'static str,
    case: &'static str,
    peer: &'static str,
    metric: &'static str,
    bound: Bound,
) -> Target {
    Target { load, case, peer, metric, of: Of::Ratio, bound }
}

const fn own(load: &'static str, case: &'static str, peer: &'static str, metric: &'static str, bound: Bound) -> Target {
    Target { load, case, peer, metric, of: Of::Ours, bound }
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
    target("guests", "tcp-4", "bridge", "received", Bound::AtLeast(1.3)),
    target("guests", "tcp-4", "ovs-tso", "received", Bound::AtLeast(1.5)),
    target("guests", "tcp-4", "ovs", "received", Bound::AtLeast(3.0)),
    target("guests", "tcp-8", "bridge", "received", Bound::AtLeast(1.3)),
    target("guests", "tcp-8", "ovs-tso", "received", Bound::AtLeast(1.5)),
    target("guests", "tcp-8", "ovs", "received", Bound::AtLeast(3.0)),
    target("guests", "round-trips", "bridge", "p50", Bound::AtMost(1.0)),
    target("guests", "round-trips", "bridge", "p99", Bound::Below(1.0)),
    target("guests", "round-trips", "ovs-tso", "p50", Bound::AtMost(1.0)),
    target("guests", "round-trips", "ovs-tso", "p99", Bound::Below(1.0)),
    target("guests", "round-trips", "ovs", "p50", Bound::AtMost(1.0)),
    target("guests", "round-trips", "ovs", "p99", Bound::Below(1.0)),
    target("lan", "to-lan", "bridge", "received", Bound::AtLeast(1.2)),
    target("lan", "to-lan", "bridge", "cpu-per-gb", Bound::AtMost(1.0)),
    target("nat", "to-host-1500-1", "passt", "received", Bound::AtLeast(3.0)),
    target("nat", "to-host-1500-1", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "to-host-1500-8", "passt", "received", Bound::AtLeast(3.0)),
    target("nat", "to-host-1500-8", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "to-host-1500-64", "passt", "received", Bound::AtLeast(3.0)),
    target("nat", "to-host-1500-64", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "from-host-1500-1", "passt", "received", Bound::AtLeast(2.0)),
    target("nat", "from-host-1500-1", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "from-host-1500-8", "passt", "received", Bound::AtLeast(2.0)),
    target("nat", "from-host-1500-8", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "from-host-1500-64", "passt", "received", Bound::AtLeast(2.0)),
    target("nat", "from-host-1500-64", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "to-host-65520-1", "passt", "received", Bound::AtLeast(1.2)),
    target("nat", "to-host-65520-1", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "to-host-65520-8", "passt", "received", Bound::AtLeast(1.2)),
    target("nat", "to-host-65520-8", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "to-host-65520-64", "passt", "received", Bound::AtLeast(1.2)),
    target("nat", "to-host-65520-64", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "from-host-65520-1", "passt", "received", Bound::AtLeast(1.2)),
    target("nat", "from-host-65520-1", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "from-host-65520-8", "passt", "received", Bound::AtLeast(1.2)),
    target("nat", "from-host-65520-8", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "from-host-65520-64", "passt", "received", Bound::AtLeast(1.2)),
    target("nat", "from-host-65520-64", "passt", "switch-cpu-per-gb", Bound::Below(1.0)),
    target("nat", "connects", "passt", "rate", Bound::AtLeast(1.2)),
    target("nat", "round-trips", "passt", "p50", Bound::AtMost(1.0)),
    target("nat", "round-trips", "passt", "p99", Bound::AtMost(1.0)),
    own("idle", "ports-256", "ovs", "cpu", Bound::AtMost(0.1)),
    own("idle", "ports-256", "ovs", "wakes", Bound::AtMost(0.0)),
    own("idle", "ports-256", "ovs", "memory-per-port", Bound::AtMost(300.0)),
    target("growth", "idle-255", "alone", "rate", Bound::AtLeast(0.97)),
    target("growth", "addresses-60000", "1-address", "rate", Bound::AtLeast(0.9)),
    target("growth", "spread-60000", "15-addresses", "rate", Bound::AtLeast(0.9)),
    target("workers", "2-pairs-64", "one-worker", "rate", Bound::AtLeast(1.8)),
    target("workers", "2-pairs-1500", "one-worker", "rate", Bound::AtLeast(1.8)),
    target("receivers", "slow", "both-quick", "rate", Bound::AtLeast(0.95)),
    target("receivers", "stuck", "both-quick", "rate", Bound::AtLeast(0.95)),
];

/// What a guest is to get of what the host gets over the same network: in all of the load's many cases, and in those
/// where much is lost far away.
const FAR: Target = target("network", "", "host", "", Bound::AtLeast(0.8));
const FAR_AND_LOST: Target = target("network", "", "host", "", Bound::AtLeast(0.6));

/// What three guests are to keep beside a fourth, whatever that does, together and each; and how much memory guestwire
/// may need then, in MiB.
const BESIDE_HOSTILE: Target = target(hostile::LOAD, "", "", "", Bound::AtLeast(0.9));
const MEMORY_BESIDE_HOSTILE: Target = own(hostile::LOAD, "", "", "memory", Bound::AtMost(64.0));

/// The target of a row of the summary, if it has one.
pub(crate) fn target_of(row: &Row) -> Option<&'static Target> {
    if row.load == FAR.load {
        let is_aimed_at = matches!(row.metric.as_str(), "to-server" | "from-server");
        return is_aimed_at.then_some(if network::is_hard(&row.case) { &FAR_AND_LOST } else { &FAR });
    }
    if row.load == hostile::LOAD {
        return match row.metric.as_str() {
            "received" | "worst" => Some(&BESIDE_HOSTILE),
            "memory" => Some(&MEMORY_BESIDE_HOSTILE),
            _ => None,
        };
    }
    let of_row = (row.load.as_str(), row.case.as_str(), row.peer.as_str(), row.metric.as_str());
    TARGETS.iter().find(|target| (target.load, target.case, target.peer, target.metric) == of_row)
}

impl Target {
    /// The ratio that is aimed at, if it is a ratio.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let (Bound::AtLeast(value) | Bound::AtMost(value) | Bound::Below(value)) = self.bound;
        (self.of == Of::Ratio).then_some(value)
    }

    /// Whether these figures meet it. `None` if there are none.
    pub(crate) fn is_met(&self, figures: &Figures) -> Option<bool> {
        let values = if self.of == Of::Ours { &figures.ours } else { &figures.ratios };
        let median = percentile(values, 0.5)?;
        Some(match self.bound {
            Bound::AtLeast(bound) => median >= bound,
            Bound::AtMost(bound) => median <= bound,
            Bound::Below(bound) => median < bound,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if self.of == Of::Ours { "guestwire " } else { "" };
        match self.bound {
            Bound::AtLeast(bound) => write!(f, "{of}≥ {bound}"),
            Bound::AtMost(bound) => write!(f, "{of}≤ {bound}"),
            Bound::Below(bound) => write!(f, "{of}< {bound}"),
        }
    }
}
