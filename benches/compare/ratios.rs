//! From readings to ratios: pure, and tested by `tests/ratios.rs`.

use std::collections::BTreeMap;

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

/// Reads `readings.csv`. A line that is not a reading is an error that names it.
pub(crate) fn read(csv: &str) -> Result<BTreeMap<Row, Figures>, String> {
    let mut sides: BTreeMap<(Row, usize), (Option<f64>, Option<f64>)> = BTreeMap::new();
    for (number, line) in csv.lines().enumerate().skip(1) {
        let bad = || format!("line {}: {line}", number + 1);
        let [load, case, peer, pair, side, metric, unit, value] =
            line.split(',').collect::<Vec<_>>().try_into().map_err(|_| bad())?;
        let own = |text: &str| text.to_owned();
        let row = Row { load: own(load), case: own(case), peer: own(peer), metric: own(metric), unit: own(unit) };
        let value = value.parse().map_err(|_| bad())?;
        let both = sides.entry((row, pair.parse().map_err(|_| bad())?)).or_default();
        let of_side = if side == peer { &mut both.1 } else { &mut both.0 };
        *of_side = Some(value);
    }
    let mut rows: BTreeMap<Row, Figures> = BTreeMap::new();
    for ((row, _), (ours, theirs)) in sides {
        let figures = rows.entry(row).or_default();
        figures.ours.extend(ours);
        figures.theirs.extend(theirs);
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && theirs != 0.0
        {
            figures.ratios.push(ours / theirs);
        }
    }
    Ok(rows)
}

/// The rows in an order for people: numbers at the end of a case's name are compared as numbers.
pub(crate) fn in_order(rows: &BTreeMap<Row, Figures>) -> Vec<(&Row, &Figures)> {
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
