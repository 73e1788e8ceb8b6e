//! From what was seen to numbers.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{RunArgs, Samples};

/// Width of a bin of the chart, in ms.
const BIN: u64 = 500;

/// What was seen; times are unix ms.
pub struct Found {
    pub began: u64,
    pub failed_at: u64,
    pub recovered_at: u64,
    pub looked_until: u64,
    /// As the service lists them.
    pub requests: String,
    pub accepted: String,
    /// As the producer lists them.
    pub produced: String,
    pub samples: Samples,
}

pub fn line(args: &RunArgs, found: &Found, expected: u64) -> anyhow::Result<Value> {
    let mut requests: Vec<(u64, bool)> = Vec::new();
    for line in found.requests.lines() {
        let request: Value = serde_json::from_str(line)?;
        requests.push((request["at"].as_u64().unwrap_or(0), request["accepted"].as_bool().unwrap_or(false)));
    }
    requests.sort_unstable();
    let between = |from: u64, to: u64| requests.iter().filter(move |request| (from..to).contains(&request.0));
    let Found { began, failed_at, recovered_at, looked_until, .. } = *found;
    let attempts_at = |at: u64| found.samples.iter().take_while(|sample| sample.0 <= at).last().map_or(0.0, |sample| sample.2);
    // A service that is not there lists nothing; the daemon counts.
    let useless = if args.kind == "refused" {
        attempts_at(recovered_at) - attempts_at(failed_at)
    } else {
        between(failed_at, recovered_at).count() as f64
    };
    let after: Vec<(u64, bool)> = between(recovered_at, looked_until).copied().collect();
    let first = after.iter().find(|request| request.1).map_or(looked_until, |request| request.0);
    let used = after.iter().filter(|request| request.1 && request.0 < first + 60_000).count() as f64;
    let refused = after.iter().filter(|request| !request.1).count() as f64;
    let delays = delays(found)?;
    let drained = delays.iter().filter(|(_, delay)| *delay > 1000).map(|(at, _)| *at).max().unwrap_or(recovered_at);
    let accepted = found.accepted.lines().count() as u64;
    let dead = found.samples.last().map_or(0.0, |sample| sample.3);
    let bins = |of: &[(u64, bool)]| {
        let mut bins = vec![0_u64; ((looked_until - began) / BIN + 1) as usize];
        of.iter().for_each(|request| {
            if let Some(bin) = bins.get_mut((request.0.saturating_sub(began) / BIN) as usize) {
                *bin += 1;
            }
        });
        bins
    };
    let rates: Vec<(u64, Option<f64>)> = found
        .samples
        .iter()
        .filter(|sample| (began..looked_until).contains(&sample.0))
        .map(|sample| (sample.0 - began, Some(sample.1).filter(|rate| rate.is_finite())))
        .collect();
    Ok(json!({
        "name": args.name, "kind": args.kind, "plain": args.plain, "latency_ms": args.latency_ms, "capacity": args.capacity,
        "outage_s": args.outage.as_secs(), "workers": args.workers,
        "useless": useless,
        "resumed_s": (first - recovered_at) as f64 / 1000.0,
        "peak": most_in_a_second(&after) as f64 / args.capacity.max(1.0),
        "refused": refused, "refused_share": refused / (after.len() as f64).max(1.0),
        "used": used / (args.capacity.max(1.0) * 60.0),
        "drained_s": drained.saturating_sub(recovered_at) as f64 / 1000.0,
        "per_second": middle(&requests),
        "dead": dead, "lost": expected as f64 - accepted as f64 - dead,
        "bin_ms": BIN, "failed_ms": failed_at - began, "recovered_ms": recovered_at - began,
        "arrivals": bins(&requests), "rates": rates,
    }))
}

/// When each was accepted, and how long after it was due, in ms.
fn delays(found: &Found) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut due = HashMap::new();
    for line in found.produced.lines() {
        let record: Value = serde_json::from_str(line)?;
        due.insert(record["id"].as_str().unwrap_or_default().to_owned(), record["at"].as_u64().unwrap_or(0));
    }
    let delay = |line: &str| {
        let mut fields = line.split('\t');
        let (id, at) = (fields.next()?, fields.nth(1)?.parse::<u64>().ok()?);
        let due = due.get(&crate::shared::percent_decode(id))?;
        Some((at, at.saturating_sub(*due)))
    };
    Ok(found.accepted.lines().filter_map(delay).collect())
}

/// In any second, wherever it begins.
fn most_in_a_second(requests: &[(u64, bool)]) -> usize {
    let (mut from, mut most) = (0, 0);
    for (to, request) in requests.iter().enumerate() {
        while requests[from].0 + 1000 <= request.0 {
            from += 1;
        }
        most = most.max(to - from + 1);
    }
    most
}

/// Accepted per second, between the tenth and the ninetieth part of them.
fn middle(requests: &[(u64, bool)]) -> f64 {
    let accepted: Vec<u64> = requests.iter().filter(|request| request.1).map(|request| request.0).collect();
    let at = |share: f64| crate::shared::quantile(&accepted, share);
    accepted.len() as f64 * 800.0 / (at(0.9).saturating_sub(at(0.1))).max(1) as f64
}

/// In Markdown: a row for each run, and whether it reached its goals.
pub fn table(text: &str) -> anyhow::Result<()> {
    let runs: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let (poison, outages): (Vec<_>, Vec<_>) = runs.iter().partition(|run| name(run).starts_with("poison"));
    let mut missed = Vec::new();
    if !outages.is_empty() {
        missed.extend(outages_table(&outages));
    }
    if !poison.is_empty() {
        missed.extend(poison_table(&poison));
    }
    anyhow::ensure!(missed.is_empty(), "goals that were missed: {}", missed.join("; "));
    println!("\nall goals are reached");
    Ok(())
}

fn name(run: &Value) -> &str {
    run["name"].as_str().unwrap_or_default()
}

fn number(run: &Value, name: &str) -> f64 {
    run[name].as_f64().unwrap_or(f64::NAN)
}

/// Returns the goals that were missed.
fn outages_table(runs: &[&Value]) -> Vec<String> {
    println!(
        "| service | requests while down | first accepted after | most in a second, of its capacity | refused afterwards | capacity used in the first minute | drained after | dead | lost |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    for run in runs {
        let (name, n) = (name(run), |name: &str| number(run, name));
        println!(
            "| {name}: {}, then {:.0}/s at {:.0} ms | {:.0} | {:.1} s | {:.2} | {:.0} ({:.2} %) | {:.1} % | {:.1} s | {:.0} | {:.0} |",
            run["kind"].as_str().unwrap_or_default(),
            n("capacity"),
            n("latency_ms"),
            n("useless"),
            n("resumed_s"),
            n("peak"),
            n("refused"),
            n("refused_share") * 100.0,
            n("used") * 100.0,
            n("drained_s"),
            n("dead"),
            n("lost")
        );
        if run["plain"] == true {
            continue;
        }
        let probes = (n("outage_s") / 4.0).ceil() + 1.0;
        let is_steady = name.starts_with("steady");
        let goals = [
            ("requests while down", n("useless") <= if is_steady { 60.0 } else { 20.0 + n("workers") + probes }),
            ("peak", n("peak") <= 1.25),
            ("refused", is_steady || n("refused_share") <= 0.02),
            ("used", is_steady || n("used") >= 0.85),
            ("drained", !is_steady || n("drained_s") <= 10.0),
            ("dead", n("dead") == 0.0),
            ("lost", n("lost") == 0.0),
        ];
        missed.extend(goals.into_iter().filter(|goal| !goal.1).map(|goal| format!("{name}: {}", goal.0)));
    }
    missed
}

/// `poison-KIND-LATENCY-N`: what the good ones lose beside each kind, in the middle of its runs, against those of the same latency
/// without any. Returns the goals that were missed.
fn poison_table(runs: &[&Value]) -> Vec<String> {
    let mut of: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
    for run in runs {
        let mut words = name(run).split('-').skip(1);
        let (kind, latency) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        of.entry((latency, kind)).or_default().push(run);
    }
    let sum = |runs: &[&Value], what: &str| runs.iter().map(|run| number(run, what)).sum::<f64>();
    let paces = |runs: &[&Value]| {
        let mut paces: Vec<f64> = runs.iter().map(|run| number(run, "per_second")).collect();
        paces.sort_by(f64::total_cmp);
        paces
    };
    let middle = |paces: &[f64]| (paces[(paces.len() - 1) / 2] + paces[paces.len() / 2]) / 2.0;
    println!("\n| poison | service | runs | good ones per second | of those without poison | dead | lost |");
    println!("|---|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    for ((latency, kind), runs) in &of {
        let without = of.get(&(*latency, "none")).map_or(f64::NAN, |runs| middle(&paces(runs)));
        let (paces, lost) = (paces(runs), sum(runs, "lost"));
        let share = middle(&paces) / without;
        println!(
            "| {kind} | {latency} ms | {} | {:.0} ({:.0} - {:.0}) | {:.1} % | {:.0} | {lost:.0} |",
            runs.len(),
            middle(&paces),
            paces[0],
            paces[paces.len() - 1],
            share * 100.0,
            sum(runs, "dead")
        );
        let goals = [("throughput", share >= 0.95), ("lost", lost == 0.0)];
        missed.extend(goals.into_iter().filter(|goal| !goal.1).map(|goal| format!("poison {kind}: {}", goal.0)));
    }
    missed
}
