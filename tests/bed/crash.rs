//! `bed crash`: kills a daemon under full load with SIGKILL, starts it again, and measures on one monotonic clock, from the
//! start of the new process,
//!
//! - until the service receives the first delivery,
//! - until no row is leased by the dead process any more: all that it held moves,
//! - until the position of every partition has moved: each is read again, while records keep coming.
//!
//! Prints a Markdown table of medians and ranges. An error when something was lost.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use postgres::{Client, NoTls};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::{Value, json};

use crate::{http, measure, produce, shared};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    #[arg(long)]
    ledger_url: String,
    #[arg(long)]
    dsn: String,
    /// Of the pipeline
    #[arg(long)]
    schema: String,
    /// How often it is killed
    #[arg(long, default_value_t = 5)]
    kills: u64,
    /// Records that keep coming, a second
    #[arg(long, default_value_t = 2000)]
    rate: u64,
    /// Records on top before each kill, so that it dies while it delivers as fast as it can
    #[arg(long, default_value_t = 20_000)]
    burst: u64,
    #[arg(long, default_value_t = 1000)]
    bytes: usize,
    /// What the daemon prints
    #[arg(long)]
    log: PathBuf,
    /// The daemon and its arguments; its environment is this process's
    #[arg(last = true, required = true)]
    daemon: Vec<String>,
}

const COLUMNS: [measure::Column; 5] = [
    ("first_delivery_s", "restart -> first delivery, s", 2),
    ("rows_moving_s", "restart -> nothing leased by the dead process, s", 2),
    ("partitions_read_s", "restart -> every partition read again, s", 2),
    ("held", "rows that the dead process held", 0),
    ("repeated", "accepted a second time", 0),
];
/// Of everything that is waited for.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks: what a time is exact to.
const LOOK: Duration = Duration::from_millis(10);

/// Kills its process, by its own pid, however the run ends.
struct Daemon(Child);

impl Daemon {
    fn start(args: &Args) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(&args.log).context("failed to open the log")?;
        let (program, rest) = args.daemon.split_first().context("which daemon?")?;
        let mut command = Command::new(program);
        command.args(rest).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().with_context(|| format!("failed to start {program}"))?))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Either may fail because it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes to the topic from a thread of its own: `rate` a second, and what `owed` says on top.
struct Producing {
    stop: Arc<AtomicBool>,
    owed: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<anyhow::Result<u64>>,
}

impl Producing {
    fn start(args: &Args) -> anyhow::Result<Self> {
        let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", &args.brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("queue.buffering.max.messages", "20000")
            .create()?;
        let (stop, owed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (topic, rate, bytes) = (args.topic.clone(), args.rate, args.bytes);
        let thread = {
            let (stop, owed) = (stop.clone(), owed.clone());
            std::thread::spawn(move || {
                let mut random = SmallRng::seed_from_u64(1);
                let (began, mut sent, mut extra) = (Instant::now(), 0, 0);
                while !stop.load(Ordering::Relaxed) {
                    extra += owed.swap(0, Ordering::Relaxed);
                    let due = (began.elapsed().as_secs_f64() * rate as f64) as u64 + extra;
                    while sent < due {
                        let id = format!("crash-{sent:08}");
                        let value = produce::value(&id, &mut random, shared::now_ms(), bytes);
                        let mut record = BaseRecord::to(&topic).key(&id).payload(&value);
                        while let Err((error, back)) = producer.send(record) {
                            ensure!(
                                error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull),
                                "failed to produce: {error}"
                            );
                            record = back;
                            std::thread::sleep(Duration::from_millis(2));
                        }
                        sent += 1;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                producer.flush(LIMIT).context("failed to flush")?;
                Ok(sent)
            })
        };
        Ok(Self { stop, owed, thread })
    }

    fn finish(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the producer panicked"))?
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut client = Client::connect(&args.dsn, NoTls).context("failed to connect to PostgreSQL")?;
    let producing = Producing::start(args)?;
    let mut daemon = Daemon::start(args)?;
    let mut lines = String::new();
    for n in 1..=args.kills {
        let full = accepted(args)? + args.burst / 4;
        producing.owed.fetch_add(args.burst, Ordering::Relaxed);
        wait("full load", || Ok(accepted(args)? >= full))?;
        let line = kill_and_measure(args, &mut client, &mut daemon)?;
        eprintln!("kill {n} of {}: {line}", args.kills);
        lines.push_str(&format!("{line}\n"));
        // The next one dies at full load too, not while it catches up.
        wait("the backlog is delivered", || {
            Ok(number(&mut client, &format!("select count(*) from {}", table(args, "delivery")))? < 2000)
        })?;
    }
    let sent = producing.finish()?;
    wait("all delivered", || Ok(accepted(args)? >= sent)).context("something was lost")?;
    measure::table(&lines, &COLUMNS)
}

fn kill_and_measure(args: &Args, client: &mut Client, daemon: &mut Daemon) -> anyhow::Result<Value> {
    let dead = number(client, &format!("select max(id) from {}", table(args, "process")))?;
    let before = summary(args, "accepted_twice")?;
    daemon.0.kill().context("failed to kill")?;
    daemon.0.wait()?;
    let mut last = 0;
    wait("the dead process's requests are over", || {
        let now = summary(args, "requests")?;
        Ok(summary(args, "in_flight")? == 0 && std::mem::replace(&mut last, now) == now)
    })?;
    let held_by_it = format!("select count(*) from {} where leased_by = {dead}", table(args, "delivery"));
    let held = number(client, &held_by_it)?;
    let partitions = format!("select partition, next_offset from {} order by 1", table(args, "consumer_position"));
    let positions = |client: &mut Client| -> anyhow::Result<Vec<i64>> {
        Ok(client.query(&partitions, &[])?.iter().map(|row| row.get(1)).collect())
    };
    let left_at = positions(client)?;
    ensure!(!left_at.is_empty(), "nothing was read");
    let requests = summary(args, "requests")?;

    let began = Instant::now();
    *daemon = Daemon::start(args)?;
    let (mut first, mut moving, mut read) = (None, None, None);
    while first.is_none() || moving.is_none() || read.is_none() {
        if first.is_none() && summary(args, "requests")? > requests {
            first = Some(began.elapsed());
        }
        if read.is_none() && positions(client)?.iter().zip(&left_at).all(|(now, then)| now > then) {
            read = Some(began.elapsed());
        }
        if moving.is_none() && number(client, &held_by_it)? == 0 {
            moving = Some(began.elapsed());
        }
        ensure!(
            began.elapsed() < LIMIT,
            "after {LIMIT:?}: first delivery {first:?}, rows moving {moving:?}, partitions read {read:?}"
        );
        std::thread::sleep(LOOK);
    }
    let repeated = || -> anyhow::Result<u64> { Ok(summary(args, "accepted_twice")? - before) };
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    // What it repeats it repeats first.
    wait("something fresh is delivered", || Ok(summary(args, "requests")? > requests + held as u64 + 2000))?;
    Ok(json!({
        "first_delivery_s": seconds(first),
        "rows_moving_s": seconds(moving),
        "partitions_read_s": seconds(read),
        "held": held,
        "repeated": repeated()?,
    }))
}

fn wait(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !holds()? {
        if began.elapsed() > LIMIT {
            bail!("after {LIMIT:?} still not: {what}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn table(args: &Args, name: &str) -> String {
    format!("\"{}\".{name}", args.schema)
}

fn number(client: &mut Client, query: &str) -> anyhow::Result<i64> {
    Ok(client.query_one(query, &[])?.get(0))
}

fn summary(args: &Args, what: &str) -> anyhow::Result<u64> {
    let summary: Value = serde_json::from_str(&http::get(&format!("{}/_/summary", args.ledger_url))?)?;
    summary[what].as_u64().with_context(|| format!("no {what} in the summary"))
}

fn accepted(args: &Args) -> anyhow::Result<u64> {
    summary(args, "accepted")
}
