//! Arrivals over time as an SVG, on a logarithmic scale: with the gate and its rate, and by plain backoff.

use std::fmt::Write;

use anyhow::Context;
use serde_json::Value;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 45.0;
/// Decades shown: 1 to 10,000 a second.
const DECADES: f64 = 4.0;

/// Of the first run with a gate, and the first without, in `text`.
pub fn chart(text: &str) -> anyhow::Result<String> {
    let runs: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let find = |plain: bool| {
        runs.iter().find(|run| run["plain"] == plain && run["name"].as_str().is_some_and(|n| n.starts_with("herd")))
    };
    let gate = find(false).context("no run with a gate")?;
    let n = |run: &Value, name: &str| run[name].as_f64().unwrap_or(0.0);
    let bin = n(gate, "bin_ms");
    let end = gate["arrivals"].as_array().map_or(1.0, |bins| bins.len() as f64 * bin);
    let x = |ms: f64| LEFT + (ms / end).clamp(0.0, 1.0) * (WIDTH - LEFT - 20.0);
    let y = |rate: f64| {
        let up = (rate.max(1.0).log10() / DECADES).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let (from, to) = (x(n(gate, "failed_ms")), x(n(gate, "recovered_ms")));
    writeln!(
        svg,
        "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#eee\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">the service is down</text>",
        to - from,
        HEIGHT - TOP - BOTTOM,
        (from + to) / 2.0,
        TOP + 16.0
    )?;
    for decade in 0..=DECADES as u32 {
        let rate = 10f64.powi(decade as i32);
        let at = y(rate);
        writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{rate}</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            at + 4.0
        )?;
    }
    for seconds in (0..=(end / 1000.0) as u32).step_by(20) {
        let at = x(f64::from(seconds) * 1000.0);
        writeln!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{seconds} s</text>", HEIGHT - BOTTOM + 18.0)?;
    }
    let capacity = y(n(gate, "capacity"));
    writeln!(
        svg,
        "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{capacity:.1}\" y2=\"{capacity:.1}\" stroke=\"#2a2\" stroke-dasharray=\"6 4\"/>",
        WIDTH - 20.0
    )?;
    let arrivals = |run: &Value| {
        let bins = run["arrivals"].as_array().cloned().unwrap_or_default();
        let points = bins
            .iter()
            .enumerate()
            .map(|(at, count)| (x((at as f64 + 0.5) * bin), y(count.as_f64().unwrap_or(0.0) * 1000.0 / bin)));
        points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
    };
    if let Some(plain) = find(true) {
        writeln!(svg, "<polyline fill=\"none\" stroke=\"#c33\" stroke-width=\"1\" points=\"{}\"/>", arrivals(plain))?;
    }
    writeln!(svg, "<polyline fill=\"none\" stroke=\"#26c\" stroke-width=\"1.6\" points=\"{}\"/>", arrivals(gate))?;
    // A sample a second is enough for a line; where nothing limits there is none.
    let rates = gate["rates"].as_array().cloned().unwrap_or_default();
    let points = rates.iter().step_by(3).filter_map(|rate| Some((x(rate[0].as_f64()?), y(rate[1].as_f64()?))));
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    writeln!(svg, "<polyline fill=\"none\" stroke=\"#e80\" stroke-width=\"1\" points=\"{}\"/>", points.join(" "))?;
    let legend = [
        ("#26c", "requests per second"),
        ("#e80", "the gate's rate"),
        ("#2a2", "what the service bears"),
        ("#c33", "plain backoff"),
    ];
    for (i, (colour, words)) in legend.into_iter().enumerate() {
        let at = LEFT + i as f64 * 190.0;
        writeln!(
            svg,
            "<line x1=\"{at}\" x2=\"{:.1}\" y1=\"24\" y2=\"24\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{:.1}\" y=\"28\">{words}</text>",
            at + 24.0,
            at + 30.0
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
