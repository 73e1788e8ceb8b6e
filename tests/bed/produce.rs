//! `bed produce`: writes transactions to Kafka, with the imperfections of a real producer if so asked, and knows afterwards
//! what it wrote: a JSON line per record with kind, id, hash of the value, partition, offset and the time it was due.
//!
//! A duplicate or conflict has the key of the record that it repeats, so it stands behind it in the same partition, and
//! which of the two is the transaction is never open.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};
use serde_json::json;

use crate::shared::{hash, now_ms};

#[derive(clap::Args, Clone)]
pub struct Args {
    #[arg(long)]
    pub brokers: String,
    #[arg(long)]
    pub topic: String,
    /// Transactions; duplicates, conflicts and unreadable records come on top
    #[arg(long)]
    pub count: u64,
    /// Of a transaction's value, about
    #[arg(long, default_value_t = 1000)]
    pub bytes: usize,
    /// Transactions per second, open loop: the time each was due is in the message; without it as fast as possible
    #[arg(long)]
    pub rate: Option<f64>,
    /// The same id again with the same bytes, per thousand transactions
    #[arg(long, default_value_t = 0.0)]
    pub duplicates: f64,
    /// The same id again with other bytes, per thousand transactions
    #[arg(long, default_value_t = 0.0)]
    pub conflicts: f64,
    /// Records that can never be a transaction, per thousand transactions
    #[arg(long, default_value_t = 0.0)]
    pub unreadable: f64,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where to write what was produced
    #[arg(long)]
    pub ledger: Option<PathBuf>,
    /// Ids begin with this
    #[arg(long, default_value = "tx")]
    pub prefix: String,
    /// librdkafka properties, key=value
    #[arg(long = "set")]
    pub sets: Vec<String>,
}

#[derive(Clone)]
struct Sent {
    kind: &'static str,
    id: String,
    hash: u64,
    bytes: usize,
    at: u64,
}

/// Writes the ledger as the broker acknowledges.
struct Acknowledged {
    file: Mutex<(Option<BufWriter<File>>, u64, u64)>,
}

impl ClientContext for Acknowledged {
    fn error(&self, error: KafkaError, reason: &str) {
        eprintln!("bed produce: {error}: {reason}");
    }
}

impl ProducerContext<NoCustomPartitioner> for Acknowledged {
    type DeliveryOpaque = Box<Sent>;
    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, acknowledged, failed) = &mut *guard;
        let (partition, offset) = match result {
            Ok(message) => {
                *acknowledged += 1;
                (message.partition(), message.offset())
            }
            Err(_) => {
                *failed += 1;
                (-1, -1)
            }
        };
        if let Some(file) = file {
            let line = json!({"kind": sent.kind, "id": sent.id, "hash": format!("{:016x}", sent.hash), "bytes": sent.bytes,
                "partition": partition, "offset": offset, "at": sent.at, "acknowledged": result.is_ok()});
            let _ = writeln!(file, "{line}");
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let (n, took) = produce(args)?;
    println!("produced {n} records in {:.1} s", took.as_secs_f64());
    Ok(())
}

/// How many records, and for how long. An error when one was not acknowledged.
pub fn produce(args: &Args) -> anyhow::Result<(u64, Duration)> {
    let file = match &args.ledger {
        Some(path) => Some(BufWriter::new(File::create(path).with_context(|| format!("failed to create {}", path.display()))?)),
        None => None,
    };
    let context = Acknowledged { file: Mutex::new((file, 0, 0)) };
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &args.brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", if args.rate.is_some() { "1" } else { "10" })
        .set("message.timeout.ms", "120000")
        .set("queue.buffering.max.messages", "20000");
    for set in &args.sets {
        let (key, value) = set.split_once('=').with_context(|| format!("`{set}` is not key=value"))?;
        config.set(key, value);
    }
    let producer: Arc<ThreadedProducer<Acknowledged>> = Arc::new(config.create_with_context(context)?);
    if args.rate.is_some() {
        // The clock starts when the producer can produce: connecting and getting its id takes most of a second, and would
        // stand in the first records' latencies as if it were the relay's.
        producer.client().fetch_metadata(Some(&args.topic), Duration::from_secs(30)).context("failed to reach Kafka")?;
        std::thread::sleep(Duration::from_millis(1500));
    }
    let began = Instant::now();
    let began_ms = now_ms();
    let mut random = SmallRng::seed_from_u64(args.seed);
    let mut recent: VecDeque<(String, Vec<u8>)> = VecDeque::with_capacity(1000);
    let mut n_records = 0;
    let mut send = |kind: &'static str, id: &str, key: &str, value: Option<&[u8]>, at: u64| -> anyhow::Result<()> {
        n_records += 1;
        let bytes = value.unwrap_or_default();
        let sent = Box::new(Sent { kind, id: id.to_owned(), hash: hash(bytes), bytes: bytes.len(), at });
        let mut record = BaseRecord::with_opaque_to(&args.topic, sent).key(key);
        record.payload = value;
        while let Err((error, back)) = producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                bail!("failed to produce: {error}");
            }
            record = back;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    };
    for i in 0..args.count {
        let mut at = now_ms();
        if let Some(rate) = args.rate {
            let due = Duration::from_secs_f64(i as f64 / rate);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            at = began_ms + due.as_millis() as u64;
        }
        let id = id(&args.prefix, i);
        let value = value(&id, &mut random, at, args.bytes);
        send("transaction", &id, &id, Some(&value), at)?;
        if recent.len() == 1000 {
            recent.pop_front();
        }
        recent.push_back((id, value));
        if random.random_bool(args.duplicates / 1000.0) {
            let (id, value) = &recent[random.random_range(0..recent.len())];
            send("duplicate", id, id, Some(value), at)?;
        }
        if random.random_bool(args.conflicts / 1000.0) {
            let (id, _) = &recent[random.random_range(0..recent.len())];
            let other = crate::produce::value(id, &mut random, at, args.bytes);
            send("conflict", id, id, Some(&other), at)?;
        }
        if random.random_bool(args.unreadable / 1000.0) {
            let id = format!("{}-bad-{i}", args.prefix);
            send("unreadable", &id, &id, unreadable(&id, random.next_u64()).as_deref(), at)?;
        }
    }
    producer.flush(Duration::from_secs(150)).context("failed to flush")?;
    // flush returns when the answers are in; the callbacks run on the producer's own thread.
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let mut guard = producer.context().file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, acknowledged, failed) = &mut *guard;
        if *acknowledged + *failed < n_records && Instant::now() < limit {
            drop(guard);
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        if let Some(file) = file {
            file.flush()?;
        }
        if *acknowledged < n_records {
            bail!("{} of {n_records} records were not acknowledged", n_records - *acknowledged);
        }
        return Ok((n_records, began.elapsed()));
    }
}

/// Every hundredth id has bytes in it that a header cannot carry as they are.
fn id(prefix: &str, i: u64) -> String {
    match i % 100 {
        99 => format!("{prefix}-{i:08} \"ü%41\\"),
        _ => format!("{prefix}-{i:08}"),
    }
}

/// A transaction's value of about so many bytes, due at a time (unix ms).
pub fn value(id: &str, random: &mut impl Rng, at: u64, bytes: usize) -> Vec<u8> {
    let cents: u32 = random.random_range(1..10_000_000);
    let currency = ["EUR", "USD", "GBP", "CHF"][random.random_range(0..4)];
    let mut text = format!(
        r#"{{"transaction_id":{},"amount":{}.{:02},"currency":"{currency}","scheduled_at_ms":{at},"debtor":"DE{:020}","padding":""#,
        json!(id),
        cents / 100,
        cents % 100,
        random.next_u64(),
    );
    while text.len() + 2 < bytes {
        let word = format!("{:016x}", random.next_u64());
        text.push_str(&word[..word.len().min(bytes - 2 - text.len())]);
    }
    text.push_str("\"}");
    text.into_bytes()
}

/// What an upstream team sends on a bad day. `None` is a null value (tombstone).
fn unreadable(id: &str, drawn: u64) -> Option<Vec<u8>> {
    Some(match drawn % 7 {
        0 => format!("this is not JSON: {id}").into_bytes(),
        1 => format!(r#"{{"id":"{id}","amount":1.00}}"#).into_bytes(), // JSON without the id
        2 => format!(r#"{{"transaction_id":"{id}\u0000","amount":1.00}}"#).into_bytes(), // a NUL in it
        3 => Vec::new(),
        4 => return None,
        5 => format!(r#"{{"transaction_id":"{id}","amount""#).into_bytes(), // cut off
        _ => [b"\xff\xfe\x00".as_slice(), id.as_bytes()].concat(),
    })
}
