//! `bed measure run`: one burst through a running daemon, and what it cost. `bed measure table`: medians and ranges of
//! several, in Markdown. CPU is read from /proc, so it is exact to 10 ms whatever else the machine does.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use postgres::{Client, NoTls};
use serde_json::{Value, json};

use crate::{http, produce, shared};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Run(Box<RunArgs>),
    Table {
        file: PathBuf,
    },
    /// Medians and ranges by scenario and contender
    Contest {
        file: PathBuf,
    },
}

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    produce: produce::Args,
    /// Transactions sent and delivered before anything is measured
    #[arg(long, default_value_t = 2000)]
    warm_up: u64,
    #[arg(long)]
    ledger_url: String,
    #[arg(long)]
    dsn: String,
    /// Pids of what is measured; what they have started counts with them
    #[arg(long, required = true)]
    daemon: Vec<u32>,
    /// Who is measured, for a contest
    #[arg(long, default_value = "txrelay")]
    contender: String,
    /// How, for a contest
    #[arg(long, default_value = "burst")]
    scenario: String,
    /// Pid of PostgreSQL's first process
    #[arg(long)]
    postgres: u32,
    /// Until all is delivered
    #[arg(long, value_parser = shared::duration, default_value = "300s")]
    limit: Duration,
    /// Append the result as a JSON line
    #[arg(long)]
    out: PathBuf,
}

/// Name in the JSON line, text of the table, decimals.
pub type Column = (&'static str, &'static str, usize);

const COLUMNS: [Column; 10] = [
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

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Run(args) => measure(args),
        Command::Table { file } => table(&std::fs::read_to_string(file)?, &COLUMNS),
        Command::Contest { file } => contest(&std::fs::read_to_string(file)?),
    }
}

struct Snapshot {
    daemon_us: u64,
    postgres_us: u64,
    commits: i64,
    wal_bytes: i64,
}

fn measure(args: &RunArgs) -> anyhow::Result<()> {
    let mut client = Client::connect(&args.dsn, NoTls).context("failed to connect to PostgreSQL")?;
    let control = |method: &str, path: &str| http::request(method, &format!("{}/_/{path}", args.ledger_url), None);
    let warm_up = produce::Args {
        count: args.warm_up,
        rate: None,
        prefix: format!("{}-warm", args.produce.prefix),
        ..args.produce.clone()
    };
    control("POST", "reset")?;
    produce::produce(&warm_up)?;
    wait_for(args, args.warm_up)?;
    std::thread::sleep(Duration::from_secs(2));
    control("POST", "reset")?;

    let before = Snapshot::take(args, &mut client)?;
    let file = args.out.with_extension("produced");
    produce::produce(&produce::Args { ledger: Some(file.clone()), ..args.produce.clone() })?;
    wait_for(args, args.produce.count)?;
    // The last settle, and PostgreSQL's counters, which its sessions hand in about once a second.
    std::thread::sleep(Duration::from_secs(2));
    let after = Snapshot::take(args, &mut client)?;

    let produced = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    let (arrivals, latencies) = arrivals(&produced, &control("GET", "accepted")?)?;
    let summary: Value = serde_json::from_str(&control("GET", "summary")?)?;
    let n = arrivals.len() as f64;
    let middle = shared::quantile(&arrivals, 0.9).saturating_sub(shared::quantile(&arrivals, 0.1)).max(1);
    let per = |value: u64| value as f64 / n;
    let (daemon, postgres) = (per(after.daemon_us - before.daemon_us), per(after.postgres_us - before.postgres_us));
    let result = json!({
        "contender": args.contender,
        "scenario": args.scenario,
        "deliveries_per_second": n * 0.8 * 1000.0 / middle as f64,
        "daemon_us": daemon,
        "postgres_us": postgres,
        "sum_us": daemon + postgres,
        "commits": (after.commits - before.commits) as f64 / n,
        "wal_bytes": (after.wal_bytes - before.wal_bytes) as f64 / n,
        "rss_peak_mb": rss_peak_mb(&args.daemon),
        "p50_ms": shared::quantile(&latencies, 0.5),
        "p99_ms": shared::quantile(&latencies, 0.99),
        "sent_twice": summary["accepted_twice"],
    });
    let mut out = OpenOptions::new().create(true).append(true).open(&args.out)?;
    writeln!(out, "{result}")?;
    println!("{result}");
    Ok(())
}

fn wait_for(args: &RunArgs, n: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let summary: Value = serde_json::from_str(&http::get(&format!("{}/_/summary", args.ledger_url))?)?;
        let accepted = summary["accepted"].as_u64().unwrap_or(0);
        if accepted >= n {
            return Ok(());
        }
        if began.elapsed() > args.limit {
            bail!("{accepted} of {n} delivered after {} s", args.limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Arrivals in unix ms and latencies in ms, both sorted, of what was produced.
fn arrivals(produced: &str, accepted: &str) -> anyhow::Result<(Vec<u64>, Vec<u64>)> {
    let mut due = HashMap::new();
    for line in produced.lines() {
        let record: Value = serde_json::from_str(line)?;
        due.insert(record["id"].as_str().unwrap_or_default().to_owned(), record["at"].as_u64().unwrap_or(0));
    }
    let (mut arrivals, mut latencies) = (Vec::new(), Vec::new());
    for line in accepted.lines() {
        let mut fields = line.split('\t');
        let (Some(id), Some(at)) = (fields.next(), fields.nth(1)) else { bail!("bad line `{line}`") };
        let at: u64 = at.parse()?;
        if let Some(due) = due.get(&shared::percent_decode(id)) {
            arrivals.push(at);
            latencies.push(at.saturating_sub(*due));
        }
    }
    arrivals.sort_unstable();
    latencies.sort_unstable();
    Ok((arrivals, latencies))
}

impl Snapshot {
    fn take(args: &RunArgs, client: &mut Client) -> anyhow::Result<Self> {
        let row = client.query_one(
            "select xact_commit, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint from pg_stat_database
             where datname = current_database()",
            &[],
        )?;
        let all = Process::all()?;
        let daemon_us = args
            .daemon
            .iter()
            .map(|pid| tree_us(&all, *pid).with_context(|| format!("process {pid} is gone")))
            .sum::<Result<_, _>>()?;
        let postgres_us = tree_us(&all, args.postgres).context("PostgreSQL is gone")?;
        Ok(Self { daemon_us, postgres_us, commits: row.get(0), wal_bytes: row.get(1) })
    }
}

struct Process {
    parent: u32,
    own_us: u64,
    /// Of children that have ended.
    reaped_us: u64,
}

impl Process {
    fn all() -> anyhow::Result<HashMap<u32, Self>> {
        let pids = std::fs::read_dir("/proc")?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        Ok(pids.filter_map(|pid| Some((pid, Self::read(pid)?))).collect())
    }

    fn read(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<u64> = stat.rsplit_once(") ")?.1.split(' ').skip(1).map(|f| f.parse().unwrap_or(0)).collect();
        // USER_HZ is 100 on every Linux. Fields 14 to 17 of proc(5); the first here is field 4.
        let us = |from: usize| Some((fields.get(from)? + fields.get(from + 1)?) * 10_000);
        Some(Self { parent: *fields.first()? as u32, own_us: us(10)?, reaped_us: us(12)? })
    }
}

/// CPU time of a process, of those that it has started, and of what these have reaped. A child that ended has left its time with
/// its parent.
fn tree_us(all: &HashMap<u32, Process>, pid: u32) -> Option<u64> {
    let process = all.get(&pid)?;
    let children = all.iter().filter(|(_, child)| child.parent == pid).filter_map(|(child, _)| tree_us(all, *child));
    Some(process.own_us + process.reaped_us + children.sum::<u64>())
}

/// Of all together.
fn rss_peak_mb(pids: &[u32]) -> f64 {
    let peak = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok()
    };
    pids.iter().filter_map(peak).sum::<f64>() / 1024.0
}

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

/// A table for each scenario, a row for each contender in the order of appearance. One that has lost something has its numbers
/// in brackets.
fn contest(text: &str) -> anyhow::Result<()> {
    let runs: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let distinct = |name: &str| {
        let mut found: Vec<String> = Vec::new();
        for run in &runs {
            let value = run[name].as_str().unwrap_or_default().to_owned();
            if !found.contains(&value) {
                found.push(value);
            }
        }
        found
    };
    let has_lost =
        |contender: &str| runs.iter().any(|run| run["contender"] == contender && run["lost"].as_i64().unwrap_or(0) > 0);
    for scenario in distinct("scenario") {
        let columns: &[Column] = if scenario == "kill" { &KILLED } else { &CONTEST };
        println!("\n{scenario}\n\n| contender | runs | {} |", columns.iter().map(|c| c.1).collect::<Vec<_>>().join(" | "));
        println!("|---|---|{}", "---|".repeat(columns.len()));
        for contender in distinct("contender") {
            let of: Vec<&Value> = runs
                .iter()
                .filter(|run| run["scenario"] == scenario.as_str() && run["contender"] == contender.as_str())
                .collect();
            if of.is_empty() {
                continue;
            }
            let cells: Vec<String> = columns.iter().map(|column| cell(&of, column)).collect();
            let cells = if has_lost(&contender) && scenario != "kill" {
                cells.into_iter().map(|cell| format!("[{cell}]")).collect()
            } else {
                cells
            };
            println!("| {contender} | {} | {} |", of.len(), cells.join(" | "));
        }
    }
    Ok(())
}

const CONTEST: [Column; 10] = [
    ("deliveries_per_second", "deliveries/s", 0),
    ("daemon_us", "CPU us, contender", 0),
    ("postgres_us", "CPU us, PostgreSQL", 0),
    ("sum_us", "CPU us per delivery", 0),
    ("commits", "commits per message", 3),
    ("wal_bytes", "WAL bytes per message", 0),
    ("rss_peak_mb", "RSS peak, MB", 0),
    ("p50_ms", "p50, ms", 0),
    ("p99_ms", "p99, ms", 0),
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
