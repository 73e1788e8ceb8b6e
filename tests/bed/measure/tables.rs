//! Medians and ranges, in Markdown.

use serde_json::Value;

/// Name in the JSON line, text of the table, decimals.
pub type Column = (&'static str, &'static str, usize);

pub const COLUMNS: [Column; 10] = [
    ("deliveries_per_second", "deliveries/s (between 10 % and 90 % of arrivals)", 0),
    ("daemon_us", "CPU us per delivery, txrelay", 1),
    ("postgres_us", "CPU us per delivery, PostgreSQL", 1),
    ("sum_us", "CPU us per delivery, both", 1),
    ("commits", "commits per message", 4),
    ("wal_bytes", "WAL bytes per message", 0),
    ("rss_peak_mb", "RSS peak of txrelay, MB", 1),
    ("p50_ms", "p50 produced -> received, ms", 0),
    ("p99_ms", "p99 produced -> received, ms", 0),
    ("sent_twice", "sent twice", 0),
];

/// Medians and ranges of the runs in `text`, a JSON line each.
pub fn table(text: &str, columns: &[Column]) -> anyhow::Result<()> {
    let runs: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    println!("| {} runs | median | range |", runs.len());
    println!("|---|---|---|");
    for &(name, title, decimals) in columns {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run[name].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        let (Some(first), Some(last)) = (values.first(), values.last()) else { continue };
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        println!("| {title} | {median:.decimals$} | {first:.decimals$} - {last:.decimals$} |");
    }
    Ok(())
}

/// A table for each scenario, a row for each contender and value of what was varied, in the order of appearance. One that has
/// lost something has its numbers in brackets.
pub fn contest(text: &str) -> anyhow::Result<()> {
    let runs: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let has_lost =
        |contender: &str| runs.iter().any(|run| word(run, "contender") == contender && run["lost"].as_i64().unwrap_or(0) > 0);
    for scenario in distinct(runs.iter().map(|run| word(run, "scenario"))) {
        let of_scenario: Vec<&Value> = runs.iter().filter(|run| word(run, "scenario") == scenario).collect();
        let all: &[Column] = if scenario == "kill" { &KILLED } else { &CONTEST };
        let is_there = |column: &&Column| of_scenario.iter().any(|run| run[column.0].is_number());
        let columns: Vec<&Column> = all.iter().filter(is_there).collect();
        println!("\n{scenario}\n\n| | runs | {} |", columns.iter().map(|c| c.1).collect::<Vec<_>>().join(" | "));
        println!("|---|---|{}", "---|".repeat(columns.len()));
        for row in distinct(of_scenario.iter().map(|run| label(run))) {
            let runs: Vec<&Value> = of_scenario.iter().copied().filter(|run| label(run) == row).collect();
            let bracketed = scenario != "kill" && has_lost(word(runs[0], "contender"));
            let shown = |column: &&Column| match cell(&runs, column) {
                cell if bracketed => format!("[{cell}]"),
                cell => cell,
            };
            println!("| {row} | {} | {} |", runs.len(), columns.iter().map(shown).collect::<Vec<_>>().join(" | "));
        }
    }
    Ok(())
}

fn word<'a>(run: &'a Value, name: &str) -> &'a str {
    run[name].as_str().unwrap_or_default()
}

/// Who, and what was varied.
fn label(run: &Value) -> String {
    match run["x"].as_f64() {
        Some(x) => format!("{} {x}", word(run, "contender")),
        None => word(run, "contender").to_owned(),
    }
}

/// Each once, in the order of appearance.
fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

const CONTEST: [Column; 14] = [
    ("deliveries_per_second", "deliveries/s", 0),
    ("rows_per_second", "rows stored/s", 0),
    ("core_percent", "% of a core", 2),
    ("daemon_us", "CPU us, contender", 0),
    ("postgres_us", "CPU us, PostgreSQL", 0),
    ("sum_us", "CPU us per delivery", 0),
    ("commits", "commits per message", 3),
    ("wal_bytes", "WAL bytes per message", 0),
    ("rss_peak_mb", "RSS peak, MB", 0),
    ("p50_ms", "p50, ms", 0),
    ("p99_ms", "p99, ms", 0),
    ("claim_ms", "a claim, ms", 1),
    ("scrape_ms", "/metrics, ms", 1),
    ("sent_twice", "sent twice", 0),
];

const KILLED: [Column; 4] = [
    ("lost", "not delivered", 0),
    ("sent_twice", "sent twice", 0),
    ("first_s", "first delivery after the restart, s", 1),
    ("last_s", "last delivery, s", 1),
];

/// Median, and the range where there are several.
fn cell(runs: &[&Value], column: &Column) -> String {
    let (name, _, decimals) = *column;
    let mut values: Vec<f64> = runs.iter().filter_map(|run| run[name].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return "-".to_owned() };
    let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
    if first == last {
        format!("{median:.decimals$}")
    } else {
        format!("{median:.decimals$} ({first:.decimals$} - {last:.decimals$})")
    }
}
