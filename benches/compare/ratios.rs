//! From readings to ratios: pure, and tested by `tests/ratios.rs`.

use std::collections::{BTreeMap, HashMap};

/// What one row of the summary is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) load: String,
    pub(crate) case: String,
    pub(crate) peer: String,
    pub(crate) metric: String,
    pub(crate) unit: String,
}

/// The figures of one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) ours: Vec<f64>,
    pub(crate) theirs: Vec<f64>,
    /// guestwire divided by the peer, pair by pair; pairs of which both sides are there and the peer's is not zero.
    pub(crate) ratios: Vec<f64>,
}

/// Where a machine that is itself virtual had the two cores while a pair was measured: that may change at any moment,
/// and with it how long a cache line takes from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cores {
    Near,
    /// On one side of the pair near, on the other far.
    Mixed,
    Far,
}

/// How many times as long as a short way of a run is a way between cores that are far from each other.
const FAR: f64 = 2.0;
/// The part of a run's ways that are no longer than a short one: few may be shorter for a moment, as of two threads of
/// one core.
const SHORT: f64 = 0.1;
/// What the metrics that tell the way are called.
const WAYS: &str = "bounce";
/// Metrics of which a ratio says nothing, since they are zero, or nearly, where all is well.
const WITHOUT_RATIO: [&str; 3] = ["retransmits", "lost", "hung"];

/// What `readings.csv` has, by row.
pub(crate) type Rows = BTreeMap<Row, Figures>;

/// Reads `readings.csv`. A line that is not a reading, or is one a second time, is an error that names it.
pub(crate) fn read(csv: &str) -> Result<Rows, String> {
    Ok(rows(pairs(csv)?.into_values().flatten()))
}

/// The same apart by where the cores were. Empty if that is not known, or all pairs are of one kind.
pub(crate) fn read_by_cores(csv: &str) -> Result<BTreeMap<Cores, Rows>, String> {
    let pairs = pairs(csv)?;
    let ways = |sides: &[Sides]| -> Vec<f64> {
        let of_pair = sides.iter().filter(|sides| sides.row.metric.starts_with(WAYS));
        of_pair.flat_map(|sides| [sides.ours, sides.theirs]).flatten().collect()
    };
    let all: Vec<f64> = pairs.values().flat_map(|sides| ways(sides)).collect();
    let short = percentile(&all, SHORT).unwrap_or_default();
    let cores = |sides: &[Sides]| {
        let (ways, far) = (ways(sides), |way: &f64| *way > FAR * short);
        match ways.iter().filter(|way| far(way)).count() {
            _ if ways.is_empty() => None,
            0 => Some(Cores::Near),
            count if count == ways.len() => Some(Cores::Far),
            _ => Some(Cores::Mixed),
        }
    };
    let mut kinds: BTreeMap<Cores, Vec<Sides>> = BTreeMap::new();
    for sides in pairs.into_values() {
        if let Some(cores) = cores(&sides) {
            kinds.entry(cores).or_default().extend(sides);
        }
    }
    if kinds.len() == 1 {
        kinds.clear();
    }
    Ok(kinds.into_iter().map(|(cores, sides)| (cores, rows(sides.into_iter()))).collect())
}

/// How many pairs of each load, case and peer `readings.csv` has, whole or not. What is no reading does not count.
pub(crate) fn pairs_done(csv: &str) -> HashMap<[String; 3], usize> {
    let mut done = HashMap::new();
    for line in csv.lines().skip(1) {
        let mut words = line.split(',');
        let [load, case, peer] = std::array::from_fn(|_| words.next().unwrap_or_default().to_owned());
        let pair: Option<usize> = words.next().and_then(|pair| pair.parse().ok());
        let known: &mut usize = done.entry([load, case, peer]).or_default();
        *known = pair.map_or(*known, |pair| (pair + 1).max(*known));
    }
    done
}

/// One metric of the two sides of a pair.
#[derive(Debug)]
struct Sides {
    row: Row,
    ours: Option<f64>,
    theirs: Option<f64>,
}

/// Metrics by load, case and peer, and the pair's number.
type Pairs = BTreeMap<([String; 3], usize), Vec<Sides>>;

/// All pairs, each with its metrics.
fn pairs(csv: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    for (number, line) in csv.lines().enumerate().skip(1) {
        let bad = || format!("line {}: {line}", number + 1);
        let [load, case, peer, pair, side, metric, unit, value] =
            line.split(',').collect::<Vec<_>>().try_into().map_err(|_| bad())?;
        let own = |text: &str| text.to_owned();
        let row = Row { load: own(load), case: own(case), peer: own(peer), metric: own(metric), unit: own(unit) };
        let pair = pair.parse::<usize>().map_err(|_| bad())?;
        let sides = pairs.entry(([load, case, peer].map(own), pair)).or_default();
        let at = sides.iter().position(|sides| sides.row == row).unwrap_or_else(|| {
            sides.push(Sides { row, ours: None, theirs: None });
            sides.len() - 1
        });
        let of_side = if side == peer { &mut sides[at].theirs } else { &mut sides[at].ours };
        if of_side.replace(value.parse().map_err(|_| bad())?).is_some() {
            return Err(format!("{}: a second time", bad()));
        }
    }
    Ok(pairs)
}

fn rows(sides: impl Iterator<Item = Sides>) -> Rows {
    let mut rows = Rows::new();
    for Sides { row, ours, theirs } in sides {
        let has_ratio = !WITHOUT_RATIO.contains(&row.metric.as_str());
        let figures = rows.entry(row).or_default();
        figures.ours.extend(ours);
        figures.theirs.extend(theirs);
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && has_ratio
            && theirs != 0.0
        {
            figures.ratios.push(ours / theirs);
        }
    }
    rows
}

/// The rows in an order for people: numbers at the end of a case's name are compared as numbers.
pub(crate) fn in_order(rows: &Rows) -> Vec<(&Row, &Figures)> {
    let mut sorted: Vec<_> = rows.iter().collect();
    sorted.sort_by_key(|(row, _)| {
        let name = row.case.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: u64 = row.case[name.len()..].parse().unwrap_or(0);
        (&row.load, name, number, &row.peer, &row.metric)
    });
    sorted
}

/// The value below which this part of the values lies, between two of them if need be. `None` of nothing.
pub(crate) fn percentile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = part * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(below + (above - below) * at.fract())
}
