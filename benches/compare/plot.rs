//! A picture for each load: every pair's ratio, what most of them are, and what is aimed at.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::ratios::{Figures, Row, in_order, percentile};
use crate::targets::{Target, target_of};

/// What a picture shows; the summary has the rest.
const METRICS: &[&str] = &[
    "rate",
    "busy",
    "received",
    "worst",
    "to-server",
    "from-server",
    "cpu-per-gb",
    "switch-cpu-per-gb",
    "p50",
    "p99",
    "memory-per-port",
];
/// In pixels.
const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 34;
const LABELS_WIDTH: u32 = 300;
const INK: RGBColor = RGBColor(40, 40, 40);
const DOT: RGBColor = RGBColor(70, 120, 180);
const AIM: RGBColor = RGBColor(190, 60, 40);

/// Draws `LOAD.svg` for each load that has ratios.
pub(crate) fn draw_all(folder: &Path, rows: &BTreeMap<Row, Figures>) -> Result<(), Box<dyn Error>> {
    let mut loads: BTreeMap<&str, Vec<(&Row, &Figures)>> = BTreeMap::new();
    for (row, figures) in in_order(rows) {
        if METRICS.contains(&row.metric.as_str()) && !figures.ratios.is_empty() {
            loads.entry(&row.load).or_default().push((row, figures));
        }
    }
    loads.iter().try_for_each(|(load, rows)| draw(&folder.join(format!("{load}.svg")), load, rows))
}

fn draw(path: &Path, load: &str, rows: &[(&Row, &Figures)]) -> Result<(), Box<dyn Error>> {
    let height = 110 + ROW_HEIGHT * u32::try_from(rows.len())?;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    // A ground of its own: what shows it may be light or dark.
    root.fill(&WHITE)?;
    let all = rows.iter().flat_map(|(_, figures)| &figures.ratios).copied();
    let aims = rows.iter().filter_map(|(row, _)| target_of(row)?.ratio());
    let (low, high) = all.chain(aims).chain([1.0]).fold((1.0_f64, 1.0_f64), |(low, high), x| (low.min(x), high.max(x)));
    let count = rows.len();
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{load}: guestwire / peer, pair by pair"), ("sans-serif", 20, &INK))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(LABELS_WIDTH)
        .build_cartesian_2d((low / 1.2..high * 1.2).log_scale(), -0.5..count as f64 - 0.5)?;
    let label = |at: &f64| {
        let place = at.round();
        // The first row is at the top.
        let row = (at - place).abs() < 1e-6 && (0.0..count as f64).contains(&place);
        let row = row.then(|| rows[count - 1 - place as usize].0);
        row.map_or(String::new(), |row| format!("{} beside {}: {}", row.case, row.peer, row.metric))
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(2 * count + 1)
        .y_label_formatter(&label)
        .x_label_formatter(&|x| format!("{x:.2}"))
        .x_desc("guestwire / peer (logarithmic; dashed red: the target; bar: 10th to 90th percentile; tick: median)")
        .label_style(("sans-serif", 13, &INK))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let line = |x: f64, from: f64, to: f64| vec![(x, from), (x, to)];
    chart.draw_series([PathElement::new(line(1.0, -0.5, count as f64 - 0.5), INK)])?;
    for (n, (row, figures)) in rows.iter().enumerate() {
        let y = (count - 1 - n) as f64;
        let part = |part| percentile(&figures.ratios, part).unwrap_or(1.0);
        let bar = Rectangle::new([(part(0.1), y - 0.16), (part(0.9), y + 0.16)], DOT.mix(0.25).filled());
        chart.draw_series([bar])?;
        chart.draw_series(figures.ratios.iter().map(|&x| Circle::new((x, y), 2, DOT.filled())))?;
        chart.draw_series([PathElement::new(line(part(0.5), y - 0.3, y + 0.3), INK.stroke_width(3))])?;
        if let Some(ratio) = target_of(row).and_then(Target::ratio) {
            let aim = line(ratio, y - 0.45, y + 0.45);
            chart.draw_series(DashedLineSeries::new(aim, 4, 3, AIM.stroke_width(2)))?;
        }
    }
    root.present()?;
    Ok(())
}
