//! `bed verdict`: the closing ledger. What the producer knows it wrote, what the service knows it accepted and what
//! PostgreSQL holds must agree; three witnesses, none of which asks another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use postgres::{Client, NoTls};
use serde_json::Value;

use crate::{http, shared};

#[derive(clap::Args)]
pub struct Args {
    /// What `bed produce` wrote with --ledger; may be given several times
    #[arg(long, required = true)]
    produced: Vec<PathBuf>,
    #[arg(long)]
    ledger_url: String,
    #[arg(long)]
    dsn: String,
    #[arg(long)]
    schema: String,
    /// Look again until all is well, at most this long
    #[arg(long, value_parser = shared::duration, default_value = "0s")]
    wait: Duration,
}

/// What the producer wrote.
#[derive(Default)]
struct Produced {
    by_kind: BTreeMap<String, u64>,
    /// Of each transaction: hash, when it was due. In the order of the file.
    transactions: HashMap<String, (u64, u64)>,
    order: Vec<String>,
    unacknowledged: u64,
}

/// What PostgreSQL holds.
#[derive(Default)]
struct Stored {
    by_state: BTreeMap<String, i64>,
    rejected: BTreeMap<String, i64>,
    duplicates: i64,
    gaps: i64,
    /// State of those that the service has not accepted.
    missing: HashMap<String, String>,
}

#[derive(Default)]
struct Delivered {
    accepted: u64,
    twice: u64,
    altered: Vec<String>,
    unknown: u64,
    /// Milliseconds from due to first accepted, sorted.
    latencies: Vec<u64>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut produced = Produced::default();
    for path in &args.produced {
        produced.read(&std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?)?;
    }
    let mut client = Client::connect(&args.dsn, NoTls).context("failed to connect to PostgreSQL")?;
    let began = Instant::now();
    loop {
        let accepted = accepted(&http::get(&format!("{}/_/accepted", args.ledger_url))?)?;
        let delivered = Delivered::of(&produced, &accepted);
        let missing: Vec<&String> = produced.order.iter().filter(|id| !accepted.contains_key(*id)).collect();
        let stored = Stored::read(&mut client, &args.schema, &missing)?;
        let faults = faults(&produced, &delivered, &stored, &missing);
        if faults.is_empty() || began.elapsed() >= args.wait {
            print(&produced, &delivered, &stored, &missing, &faults);
            if faults.is_empty() {
                return Ok(());
            }
            bail!("{}", faults.join("; "));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

impl Produced {
    fn read(&mut self, text: &str) -> anyhow::Result<()> {
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).with_context(|| format!("bad line `{line}`"))?;
            if record["acknowledged"] != true {
                self.unacknowledged += 1;
                continue;
            }
            let kind = record["kind"].as_str().context("no kind")?;
            *self.by_kind.entry(kind.to_owned()).or_default() += 1;
            if kind == "transaction" {
                let id = record["id"].as_str().context("no id")?.to_owned();
                let hash = u64::from_str_radix(record["hash"].as_str().context("no hash")?, 16)?;
                self.transactions.insert(id.clone(), (hash, record["at"].as_u64().context("no time")?));
                self.order.push(id);
            }
        }
        Ok(())
    }

    fn n(&self, kind: &str) -> u64 {
        self.by_kind.get(kind).copied().unwrap_or(0)
    }

    fn total(&self) -> u64 {
        self.by_kind.values().sum()
    }
}

struct Accepted {
    times: u64,
    first_at: u64,
    hash: u64,
    altered: bool,
}

fn accepted(text: &str) -> anyhow::Result<HashMap<String, Accepted>> {
    let mut all = HashMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[id, times, first_at, hash, same] = fields.as_slice() else { bail!("bad line `{line}`") };
        let hash = u64::from_str_radix(hash, 16)?;
        let entry = Accepted { times: times.parse()?, first_at: first_at.parse()?, hash, altered: same == "altered" };
        all.insert(shared::percent_decode(id), entry);
    }
    Ok(all)
}

impl Delivered {
    fn of(produced: &Produced, accepted: &HashMap<String, Accepted>) -> Self {
        let mut delivered = Self::default();
        for (id, entry) in accepted {
            let Some((hash, due)) = produced.transactions.get(id) else {
                delivered.unknown += 1;
                continue;
            };
            delivered.accepted += 1;
            delivered.twice += u64::from(entry.times > 1);
            if entry.hash != *hash || entry.altered {
                delivered.altered.push(id.clone());
            }
            delivered.latencies.push(entry.first_at.saturating_sub(*due));
        }
        delivered.latencies.sort_unstable();
        delivered
    }
}

impl Stored {
    fn read(client: &mut Client, schema: &str, missing: &[&String]) -> anyhow::Result<Self> {
        let mut stored = Self::default();
        let schema = format!("\"{}\"", schema.replace('"', "\"\""));
        // One snapshot, so that a record cannot be seen in two places or in none.
        let mut transaction =
            client.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).read_only(true).start()?;
        let query = format!("select state::text, count(*) from {schema}.transaction_status group by 1");
        for row in transaction.query(&query, &[])? {
            stored.by_state.insert(row.get(0), row.get(1));
        }
        let query = format!("select reason::text, count(*) from {schema}.rejected group by 1");
        for row in transaction.query(&query, &[])? {
            stored.rejected.insert(row.get(0), row.get(1));
        }
        stored.duplicates = transaction.query_one(&format!("select count(*) from {schema}.duplicate"), &[])?.get(0);
        stored.gaps = transaction.query_one(&format!("select count(*) from {schema}.known_gap"), &[])?.get(0);
        let query =
            format!("select transaction_id::text, state::text from {schema}.transaction_status where transaction_id = any($1)");
        let asked: Vec<&str> = missing.iter().map(|id| id.as_str()).collect();
        for row in transaction.query(&query, &[&asked])? {
            stored.missing.insert(row.get(0), row.get(1));
        }
        Ok(stored)
    }

    fn transactions(&self) -> i64 {
        self.by_state.values().sum()
    }

    fn total(&self) -> i64 {
        self.transactions() + self.duplicates + self.rejected.values().sum::<i64>()
    }

    fn open(&self) -> i64 {
        ["pending", "in_flight", "retrying"].iter().filter_map(|s| self.by_state.get(*s)).sum()
    }
}

/// Not accepted by the service, and not known as open, dead or closed by a person.
fn lost<'a>(stored: &Stored, missing: &[&'a String]) -> Vec<&'a String> {
    let known: HashSet<&str> = ["pending", "in_flight", "retrying", "dead", "resolved"].into();
    let is_known = |id: &String| stored.missing.get(id).is_some_and(|state| known.contains(state.as_str()));
    missing.iter().filter(|id| !is_known(id)).copied().collect()
}

fn faults(produced: &Produced, delivered: &Delivered, stored: &Stored, missing: &[&String]) -> Vec<String> {
    let rejected: i64 = stored.rejected.values().sum();
    let checks = [
        (produced.unacknowledged, "not acknowledged by Kafka, so nobody can say what became of them"),
        (lost(stored, missing).len() as u64, "lost"),
        (delivered.altered.len() as u64, "altered on the way"),
        (delivered.unknown, "accepted by the service and never produced"),
        (stored.open() as u64, "still open"),
        (produced.n("transaction").abs_diff(stored.transactions() as u64), "transactions too many or too few in PostgreSQL"),
        (produced.n("duplicate").abs_diff(stored.duplicates as u64), "duplicates too many or too few in PostgreSQL"),
        (
            (produced.n("conflict") + produced.n("unreadable")).abs_diff(rejected as u64),
            "rejected records too many or too few in PostgreSQL",
        ),
    ];
    checks.iter().filter(|(n, _)| *n > 0).map(|(n, text)| format!("{n} {text}")).collect()
}

fn print(produced: &Produced, delivered: &Delivered, stored: &Stored, missing: &[&String], faults: &[String]) {
    let row = |label: &str, n: &dyn std::fmt::Display| println!("  {label:<34} {n:>9}");
    let lost = lost(stored, missing);
    println!();
    println!("produced to Kafka");
    for (label, kind) in [
        ("transactions", "transaction"),
        ("duplicates (same id, same bytes)", "duplicate"),
        ("conflicts (same id, other bytes)", "conflict"),
        ("unreadable", "unreadable"),
    ] {
        row(label, &produced.n(kind));
    }
    row("records in all", &produced.total());
    println!("stored in PostgreSQL");
    for (state, n) in &stored.by_state {
        row(&format!("transactions {state}"), n);
    }
    row("duplicates", &stored.duplicates);
    for (reason, n) in &stored.rejected {
        row(&format!("rejected: {reason}"), n);
    }
    row("records in all", &stored.total());
    if stored.gaps > 0 {
        row("gaps", &stored.gaps);
    }
    println!("accepted by the service");
    row("transactions", &delivered.accepted);
    row("of these sent twice or more", &delivered.twice);
    row("bodies altered", &delivered.altered.len());
    row("lost", &lost.len());
    println!("from produced to accepted");
    for (label, share) in [("p50", 0.5), ("p99", 0.99), ("longest", 1.0)] {
        row(label, &format!("{:.3} s", shared::quantile(&delivered.latencies, share) as f64 / 1000.0));
    }
    println!();
    for id in lost.iter().take(10) {
        println!("lost: {id} ({})", stored.missing.get(*id).map_or("not in PostgreSQL", String::as_str));
    }
    for id in delivered.altered.iter().take(10) {
        println!("altered: {id}");
    }
    match faults {
        [] => println!("Nothing is lost, and every record is accounted for."),
        _ => println!("NOT well: {}.", faults.join("; ")),
    }
}
