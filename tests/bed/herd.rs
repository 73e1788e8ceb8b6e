//! `bed herd run`: a service that fails and comes back, and what a running txrelay sends it. `bed herd table` and `bed herd chart`
//! make a Markdown table and an SVG of several runs. Goals: no more useless requests than it takes to notice, arrivals of any
//! second after the recovery within 1.25 of the capacity, nothing dead, nothing lost.

mod chart;
mod judge;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{http, produce, shared};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    Run(Box<RunArgs>),
    Table { file: PathBuf },
    Chart { file: PathBuf, svg: PathBuf },
}

#[derive(clap::Args)]
pub struct RunArgs {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    dsn: String,
    /// The daemon's program
    #[arg(long)]
    txrelay: PathBuf,
    /// For its files
    #[arg(long)]
    dir: PathBuf,
    /// Of the run: topic, schema and files are named after it
    #[arg(long)]
    name: String,
    /// How the service fails: 503, 500, 401, 429, hang, refused; or none
    #[arg(long)]
    kind: String,
    /// Due at the start
    #[arg(long, default_value_t = 20_000)]
    count: u64,
    /// And coming per second
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    #[arg(long, value_parser = shared::duration, default_value = "60s")]
    outage: Duration,
    /// How long it works before that
    #[arg(long, value_parser = shared::duration, default_value = "0s")]
    before: Duration,
    /// How long it is looked at afterwards
    #[arg(long, value_parser = shared::duration, default_value = "65s")]
    after: Duration,
    /// Requests a second that it then bears; above that it says 503 at once
    #[arg(long, default_value_t = 500.0)]
    capacity: f64,
    #[arg(long, default_value_t = 20)]
    latency_ms: u64,
    #[arg(long, default_value_t = 64)]
    workers: u64,
    /// Without a gate: every delivery by its own backoff
    #[arg(long)]
    plain: bool,
    /// Rules of the service beside all that, as JSON: poison
    #[arg(long)]
    rules: Option<String>,
    /// Append the result as a JSON line
    #[arg(long)]
    out: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Task::Run(args) => one_run(args),
        Task::Table { file } => judge::table(&std::fs::read_to_string(file)?),
        Task::Chart { file, svg } => Ok(std::fs::write(svg, chart::chart(&std::fs::read_to_string(file)?)?)?),
    }
}

/// Killed, by its own pid, when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What /metrics said, all the while: (unix ms, rate of the gate, attempts, dead).
type Samples = Vec<(u64, f64, f64, f64)>;

fn one_run(args: &RunArgs) -> anyhow::Result<()> {
    let service = free_address()?;
    let ledger = format!("http://{service}");
    let mut running = None;
    if args.kind != "refused" {
        running = Some(start_service(&service)?);
        behave(&ledger, &outage_rules(args)?)?;
    }
    let topic = format!("herd-{}", args.name);
    crate::topic::create(&args.brokers, &topic, (6, 1), &[])?;
    let metrics = free_address()?;
    let _daemon = start_daemon(args, &topic, &ledger, &metrics)?;
    let (samples, stop) = (Arc::new(Mutex::new(Samples::new())), Arc::new(AtomicBool::new(false)));
    let sampler = sample(&metrics, samples.clone(), stop.clone());

    let produced = args.dir.join(format!("{topic}.produced"));
    let load = |count: u64, rate: Option<f64>, prefix: &str| produce::Args {
        brokers: args.brokers.clone(),
        topic: topic.clone(),
        count,
        bytes: 1000,
        rate,
        duplicates: 0.0,
        conflicts: 0.0,
        unreadable: 0.0,
        seed: 1,
        ledger: Some(produced.with_extension(prefix)),
        prefix: prefix.to_owned(),
        sets: Vec::new(),
    };
    let began = shared::now_ms();
    if args.count > 0 {
        produce::produce(&load(args.count, None, "due"))?;
    }
    let total = args.before + args.outage + args.after;
    let coming = (args.rate * total.as_secs_f64()) as u64;
    let steady = load(coming, Some(args.rate), "new");
    let producer = std::thread::spawn(move || if coming > 0 { produce::produce(&steady).map(drop) } else { Ok(()) });

    let start = Instant::now();
    let until = |at: Duration| std::thread::sleep(at.saturating_sub(start.elapsed()));
    let mut failed_at = began;
    if !args.before.is_zero() {
        behave(&ledger, &json!([{ "delay_ms": args.latency_ms }]))?;
        until(args.before);
        failed_at = shared::now_ms();
        behave(&ledger, &outage_rules(args)?)?;
    }
    until(args.before + args.outage);
    let recovered_at = shared::now_ms();
    if args.kind == "refused" {
        running = Some(start_service(&service)?);
    }
    behave(&ledger, &healthy_rules(args)?)?;
    until(total);
    let looked_until = shared::now_ms();
    producer.join().map_err(|_| anyhow::anyhow!("the producer panicked"))??;
    // What is left goes as fast as it can: whether anything is lost is another question than how it is met.
    behave(&ledger, &json!([]))?;
    let expected = args.count + coming;
    wait_until_accepted(&ledger, &metrics, expected)?;
    stop.store(true, Ordering::Relaxed);
    sampler.join().map_err(|_| anyhow::anyhow!("the sampler panicked"))?;
    let found = judge::Found {
        began,
        failed_at,
        recovered_at,
        looked_until,
        requests: http::get(&format!("{ledger}/_/requests"))?,
        accepted: http::get(&format!("{ledger}/_/accepted"))?,
        produced: ["due", "new"].iter().filter_map(|p| std::fs::read_to_string(produced.with_extension(p)).ok()).collect(),
        samples: std::mem::take(&mut *samples.lock().unwrap_or_else(PoisonError::into_inner)),
    };
    drop(running);
    let line = judge::line(args, &found, expected)?;
    let mut out = std::fs::OpenOptions::new().create(true).append(true).open(&args.out)?;
    writeln!(out, "{line}")?;
    let mut shown = line;
    if let Some(fields) = shown.as_object_mut() {
        fields.retain(|_, value| !value.is_array());
    }
    println!("{shown}");
    Ok(())
}

fn outage_rules(args: &RunArgs) -> anyhow::Result<Value> {
    Ok(match args.kind.as_str() {
        "none" => healthy_rules(args)?,
        "hang" => json!([{ "action": "hang" }]),
        "429" => json!([{ "status": 429, "retry_after": "5" }]),
        status => json!([{ "status": status.parse::<u16>().context("a status, hang, refused or none")? }]),
    })
}

fn healthy_rules(args: &RunArgs) -> anyhow::Result<Value> {
    let mut rules: Vec<Value> = serde_json::from_str(args.rules.as_deref().unwrap_or("[]")).context("rules are JSON")?;
    if args.capacity > 0.0 {
        rules.push(json!({ "status": 503, "capacity": args.capacity }));
    }
    rules.push(json!({ "delay_ms": args.latency_ms }));
    Ok(Value::Array(rules))
}

fn behave(ledger: &str, rules: &Value) -> anyhow::Result<()> {
    http::request("PUT", &format!("{ledger}/_/behave"), Some(&rules.to_string())).map(drop)
}

fn free_address() -> anyhow::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn start_service(address: &str) -> anyhow::Result<Killed> {
    let mut command = Command::new(std::env::current_exe()?);
    let child =
        command.args(["ledger", "--listen", address]).stdout(Stdio::null()).spawn().context("failed to start the service")?;
    let (child, began) = (Killed(child), Instant::now());
    while http::get(&format!("http://{address}/_/summary")).is_err() {
        if began.elapsed() > Duration::from_secs(10) {
            bail!("the service does not listen on {address}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(child)
}

fn start_daemon(args: &RunArgs, topic: &str, ledger: &str, metrics: &str) -> anyhow::Result<Killed> {
    use std::os::unix::fs::PermissionsExt;
    let (file, state) = (args.dir.join(format!("{topic}.toml")), args.dir.join(format!("{topic}.state")));
    // A hung request must not outlast the outage by much: the default timeout of 15 s would.
    let text = format!(
        "[kafka]\nbrokers = [\"{}\"]\ntopics = [\"{topic}\"]\nstart = \"earliest\"\n[postgres]\nurl = \"{}?sslmode=disable\"\n\
         [downstream]\nurl = \"{ledger}/transactions\"\nworkers = {}\ntimeout = \"2s\"\nconnect_timeout = \"1s\"\n\
         [metrics]\nlisten = \"{metrics}\"\n",
        args.brokers, args.dsn, args.workers
    );
    std::fs::write(&file, text)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640))?;
    std::fs::create_dir_all(&state)?;
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700))?;
    let log = std::fs::File::create(args.dir.join(format!("{topic}.log")))?;
    let mut command = Command::new(&args.txrelay);
    command.arg("-c").arg(&file).arg("run").env("STATE_DIRECTORY", &state).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    if args.plain {
        command.env("TXRELAY_BENCH_PLAIN_BACKOFF", "1");
    }
    let (child, began) = (Killed(command.spawn().context("failed to start txrelay")?), Instant::now());
    while http::get(&format!("http://{metrics}/metrics")).is_err() {
        if began.elapsed() > Duration::from_secs(30) {
            bail!("txrelay does not answer on {metrics}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}

fn sample(metrics: &str, samples: Arc<Mutex<Samples>>, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let url = format!("http://{metrics}/metrics");
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if let Ok(text) = http::get(&url) {
                let sum = |name: &str| -> f64 {
                    let values = text.lines().filter(|line| line.starts_with(name));
                    values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
                };
                let now =
                    (shared::now_ms(), sum("txrelay_gate_rate "), sum("txrelay_attempts_total{"), sum("txrelay_dead_total{"));
                samples.lock().unwrap_or_else(PoisonError::into_inner).push(now);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    })
}

/// All of them, or as many as can be: what is dead is not accepted.
fn wait_until_accepted(ledger: &str, metrics: &str, n: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(120) {
        let summary: Value = serde_json::from_str(&http::get(&format!("{ledger}/_/summary"))?)?;
        let text = http::get(&format!("http://{metrics}/metrics"))?;
        let dead = text.lines().filter(|line| line.starts_with("txrelay_dead_total{"));
        let dead: f64 = dead.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
        if summary["accepted"].as_u64().unwrap_or(0) + dead as u64 >= n {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    // What is missing is said by the numbers.
    Ok(())
}
