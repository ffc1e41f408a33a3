//! What the readings of a run amount to: `summary.md`, and a picture for each load.

use std::fmt::Write as _;
use std::path::Path;

use crate::machine::WATCHED;
use crate::plot;
use crate::ratios::{Cores, Figures, Row, in_order, percentile, read, read_by_cores};
use crate::targets::target_of;

/// Writes the summary of the run in `folder`, and its pictures.
pub(crate) fn write(folder: &Path) {
    let csv = std::fs::read_to_string(folder.join("readings.csv")).expect("a run has readings");
    let read = read(&csv).and_then(|rows| Ok((rows, read_by_cores(&csv)?)));
    let (rows, by_cores) = read.unwrap_or_else(|problem| panic!("readings.csv, {problem}"));
    let mut text = String::from(
        "# What the readings amount to\n\n\
         Made from `readings.csv` by `benches/compare/run.sh report`. Medians of each side; guestwire (in the load\n\
         packed, packed rings) divided by the peer pair by pair: its median, 10th and 90th percentile. The machine is\n\
         in `machine.txt`, and how far its cores were from each other beside each reading in `readings.csv`; the\n\
         commands are in `commands.txt`.\n\n\
         | load | case | peer | metric | guestwire | peer | ratio | 10 % | 90 % | pairs | target |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    // How the machine was beside each reading is for who asks why one is far from the others.
    for (row, figures) in in_order(&rows).into_iter().filter(|(row, _)| !WATCHED.contains(&row.metric.as_str())) {
        line(&mut text, row, figures);
    }
    if !by_cores.is_empty() {
        text += "\n## Near cores and far ones\n\n\
                 The machine's two cores were not always as far from each other: in some pairs a cache line took more\n\
                 than twice as long from one to the other (far), or before or after one of the sides only (mixed).\n\
                 The same ratios, apart.\n\n\
                 | load | case | peer | metric | cores | guestwire | peer | ratio | 10 % | 90 % | pairs |\n\
                 |---|---|---|---|---|---|---|---|---|---|---|\n";
        for (row, _) in in_order(&rows).into_iter().filter(|(row, _)| !WATCHED.contains(&row.metric.as_str())) {
            for (cores, rows) in &by_cores {
                let figures = rows.get(row).filter(|figures| !figures.ratios.is_empty());
                figures.into_iter().for_each(|figures| line_of_cores(&mut text, row, *cores, figures));
            }
        }
    }
    let path = folder.join("summary.md");
    std::fs::write(&path, &text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    plot::draw_all(folder, &rows).unwrap_or_else(|error| panic!("a picture in {}: {error}", folder.display()));
    eprintln!("{}", path.display());
}

fn line(text: &mut String, row: &Row, figures: &Figures) {
    let Row { load, case, peer, metric, unit } = row;
    let (figures_shown, verdict) = (shown(figures, unit), verdict(row, figures));
    writeln!(text, "| {load} | {case} | {peer} | {metric} | {figures_shown} | {verdict} |").unwrap();
}

fn line_of_cores(text: &mut String, row: &Row, cores: Cores, figures: &Figures) {
    let Row { load, case, peer, metric, unit } = row;
    let cores = match cores {
        Cores::Near => "near",
        Cores::Mixed => "mixed",
        Cores::Far => "far",
    };
    writeln!(text, "| {load} | {case} | {peer} | {metric} | {cores} | {} |", shown(figures, unit)).unwrap();
}

/// Medians of both sides, the ratio's median and percentiles, and the number of pairs.
fn shown(figures: &Figures, unit: &str) -> String {
    let show = |values: &[f64], part: f64, unit: &str| match percentile(values, part) {
        Some(value) => format!("{value:.3}{unit}"),
        None => "-".to_owned(),
    };
    let unit = format!(" {unit}");
    let (ours, theirs) = (show(&figures.ours, 0.5, &unit), show(&figures.theirs, 0.5, &unit));
    let [median, low, high] = [0.5, 0.1, 0.9].map(|part| show(&figures.ratios, part, ""));
    format!("{ours} | {theirs} | {median} | {low} | {high} | {}", figures.ratios.len())
}

/// Whether the target, if there is one, is met.
fn verdict(row: &Row, figures: &Figures) -> String {
    let verdict = target_of(row).and_then(|target| Some((target, target.is_met(figures)?)));
    verdict.map_or(String::new(), |(target, met)| format!("{target}: {}", if met { "met" } else { "missed" }))
}
