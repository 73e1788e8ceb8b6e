//! `bed topic` and `bed offsets`: administration through librdkafka, so that no JVM has to start for it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use pollster::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;

const LIMIT: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    brokers: String,
    #[command(flatten)]
    what: What,
    #[arg(long, default_value_t = 1)]
    partitions: i32,
    #[arg(long, default_value_t = 1)]
    replicas: i32,
    /// Settings of a topic to create, key=value
    #[arg(long = "set")]
    sets: Vec<String>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    #[arg(long)]
    create: Option<String>,
    #[arg(long)]
    delete: Option<String>,
    #[arg(long)]
    describe: Option<String>,
}

#[derive(clap::Args)]
pub struct OffsetsArgs {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(name) = &args.what.create {
        create(&args.brokers, name, (args.partitions, args.replicas), &args.sets)
    } else if let Some(name) = &args.what.delete {
        delete(&args.brokers, name)
    } else {
        let name = args.what.describe.as_deref().unwrap_or_default();
        let consumer = client(&args.brokers)?;
        for (partition, leader) in partitions(&consumer, name)? {
            println!("{name} {partition} leader {leader}");
        }
        Ok(())
    }
}

/// Creates the topic and returns when every partition has a leader.
pub fn create(brokers: &str, name: &str, (n_partitions, replicas): (i32, i32), sets: &[String]) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(brokers).create()?;
    let mut topic = NewTopic::new(name, n_partitions, TopicReplication::Fixed(replicas));
    for set in sets {
        let (key, value) = set.split_once('=').with_context(|| format!("`{set}` is not key=value"))?;
        topic = topic.set(key, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(LIMIT)).request_timeout(Some(LIMIT));
    for result in block_on(admin.create_topics([&topic], &options))? {
        result.map_err(|(name, code)| anyhow::anyhow!("failed to create {name}: {code}"))?;
    }
    let consumer = client(brokers)?;
    let began = Instant::now();
    loop {
        match partitions(&consumer, name) {
            Ok(found) if found.len() == n_partitions as usize && found.iter().all(|p| p.1 >= 0) => return Ok(()),
            result if began.elapsed() > LIMIT => bail!("{name} was created and is not ready: {result:?}"),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Deletes the topic and returns when the broker no longer knows it.
fn delete(brokers: &str, name: &str) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(brokers).create()?;
    for result in block_on(admin.delete_topics(&[name], &AdminOptions::new().operation_timeout(Some(LIMIT))))? {
        result.map_err(|(name, code)| anyhow::anyhow!("failed to delete {name}: {code}"))?;
    }
    let began = Instant::now();
    while partitions(&client(brokers)?, name).is_ok() {
        if began.elapsed() > LIMIT {
            bail!("{name} is still there after its deletion");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

pub fn offsets(args: &OffsetsArgs) -> anyhow::Result<()> {
    let consumer = client(&args.brokers)?;
    for (partition, _) in partitions(&consumer, &args.topic)? {
        let (first, next) = consumer.fetch_watermarks(&args.topic, partition, LIMIT)?;
        println!("{} {partition} {first} {next}", args.topic);
    }
    Ok(())
}

/// Partition and leader (-1 = none).
fn partitions(consumer: &BaseConsumer, name: &str) -> anyhow::Result<Vec<(i32, i32)>> {
    let metadata = consumer.fetch_metadata(Some(name), LIMIT).context("failed to get metadata")?;
    let topic = metadata.topics().first().context("no such topic")?;
    if let Some(error) = topic.error() {
        bail!("{name}: {}", RDKafkaErrorCode::from(error));
    }
    Ok(topic.partitions().iter().map(|p| (p.id(), p.leader())).collect())
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("topic.metadata.propagation.max.ms", "0");
    config
}

fn client(brokers: &str) -> anyhow::Result<BaseConsumer> {
    Ok(config(brokers).create()?)
}
