//! `bed measure plot`: an SVG with a line for each contender: medians, and the range of each as a bar.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use plotters::prelude::*;
use serde_json::Value;

#[derive(clap::Args)]
pub struct Args {
    /// JSON lines
    file: PathBuf,
    #[arg(long)]
    scenario: String,
    /// Of the JSON lines: what goes up
    #[arg(long)]
    y: String,
    #[arg(long)]
    title: String,
    #[arg(long)]
    x_title: String,
    #[arg(long)]
    y_title: String,
    #[arg(long)]
    out: PathBuf,
}

/// Values by x, sorted.
type Line = BTreeMap<u64, Vec<f64>>;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    for line in std::fs::read_to_string(&args.file)?.lines() {
        let run: Value = serde_json::from_str(line)?;
        if run["scenario"] == args.scenario.as_str()
            && let (Some(x), Some(y)) = (run["x"].as_f64(), run[&args.y].as_f64())
        {
            let contender = run["contender"].as_str().unwrap_or("txrelay").to_owned();
            lines.entry(contender).or_default().entry(x as u64).or_default().push(y);
        }
    }
    ensure!(!lines.is_empty(), "no run of scenario {} has a {}", args.scenario, args.y);
    lines.values_mut().flat_map(BTreeMap::values_mut).for_each(|values| values.sort_by(f64::total_cmp));
    draw(args, &lines).map_err(|error| anyhow::anyhow!("{error}")).context("failed to draw")
}

fn draw(args: &Args, lines: &BTreeMap<String, Line>) -> Result<(), Box<dyn std::error::Error>> {
    let xs = || lines.values().flat_map(BTreeMap::keys).map(|x| *x as f64);
    let highest = lines.values().flat_map(BTreeMap::values).flatten().copied().fold(0.0, f64::max) * 1.1;
    let (from, to) = (xs().fold(f64::MAX, f64::min), xs().fold(0.0, f64::max));
    let root = SVGBackend::new(&args.out, (720, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(&args.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((from.max(1.0) * 0.9..to * 1.1).log_scale(), 0.0..highest)?;
    chart
        .configure_mesh()
        .x_desc(&args.x_title)
        .y_desc(&args.y_title)
        .x_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (n, (contender, line)) in lines.iter().enumerate() {
        let color = Palette99::pick(n).to_rgba();
        let medians: Vec<(f64, f64)> = line.iter().map(|(x, values)| (*x as f64, values[values.len() / 2])).collect();
        chart
            .draw_series(LineSeries::new(medians.clone(), color.stroke_width(2)))?
            .label(contender.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
        chart
            .draw_series(PointSeries::of_element(medians, 3, color.filled(), &|at, size, style| Circle::new(at, size, style)))?;
        let ranges = line.iter().map(|(x, values)| [(*x as f64, values[0]), (*x as f64, values[values.len() - 1])]);
        chart.draw_series(ranges.map(|range| PathElement::new(range, color)))?;
    }
    if lines.len() > 1 {
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    }
    root.present()?;
    Ok(())
}
