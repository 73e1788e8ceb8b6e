//! A Kafka broker of the test's own, to be stopped, frozen, killed and edited (`tests/bed/kafka.sh`), and administration.

use std::path::{Path, PathBuf};
use std::process::Command;

use pollster::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::{Metadata, MetadataPartition};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{LIMIT, env, unique};

/// It ends, and its data go, with this value.
pub struct Broker {
    directory: PathBuf,
    pub address: String,
}

impl Broker {
    #[track_caller]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more of the options of `kafka.sh up`.
    #[track_caller]
    pub fn with(options: &[&str]) -> Self {
        // In the folder of with-bed.sh, which ends what is left there when a run is broken off.
        let directory = Path::new(&env("TXRELAY_TEST_DIR")).join(unique("kafka"));
        let mut broker = Self { directory, address: String::new() };
        broker.address = broker.tell("up", options).trim().to_owned();
        broker
    }

    /// Another broker of the same cluster.
    #[track_caller]
    pub fn joined_by(&self) -> Self {
        Self::with(&["--join", self.directory.to_str().expect("text")])
    }

    #[track_caller]
    fn tell(&self, command: &str, options: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/kafka.sh");
        let out = Command::new(script).arg(command).arg(&self.directory).args(options).output().expect("kafka.sh runs");
        assert!(out.status.success(), "kafka.sh {command} {options:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }

    /// Address of one more port, by its name: `--listener NAME:PROTOCOL`.
    #[track_caller]
    pub fn listener(&self, name: &str) -> String {
        let (env, wanted) = (self.tell("env", &[]), format!("LISTENER_{name}="));
        env.lines().find_map(|line| line.strip_prefix(&wanted)).expect("a listener of that name").to_owned()
    }

    #[track_caller]
    pub fn stop(&self) {
        self.tell("down", &[]);
    }

    /// Again, on the same port, with the same data.
    #[track_caller]
    pub fn up(&self) {
        self.tell("start", &[]);
    }

    #[track_caller]
    pub fn kill_9(&self) {
        self.tell("kill9", &[]);
    }

    #[track_caller]
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    #[track_caller]
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    #[track_caller]
    fn signal(&self, signal: &str) {
        let env = self.tell("env", &[]);
        let pid = env.lines().find_map(|line| line.strip_prefix("KAFKA_PID=")).expect("a pid");
        assert!(Command::new("kill").args([&format!("-{signal}"), pid]).status().expect("kill runs").success());
    }

    /// The segments of a partition's log, oldest first.
    #[track_caller]
    pub fn segments(&self, topic: &str, partition: i32) -> Vec<PathBuf> {
        let log = self.directory.join("data").join(format!("{topic}-{partition}"));
        let files = std::fs::read_dir(log).expect("the partition's folder").map(|entry| entry.expect("an entry").path());
        let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
        files.sort();
        files
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may be frozen, stopped, or not have come to be.
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/kafka.sh");
        let _ = Command::new(script).arg("kill9").arg(&self.directory).output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What an administrator does to a topic.
pub struct Admin {
    brokers: String,
    client: AdminClient<DefaultClientContext>,
}

impl Admin {
    pub fn of(brokers: &str) -> Self {
        let client = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("an admin client");
        Self { brokers: brokers.to_owned(), client }
    }

    /// Everything of a partition below an offset.
    #[track_caller]
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset");
        block_on(self.client.delete_records(&list, &options())).expect("Kafka answers");
        super::eventually("the records are gone", || self.ends(topic, partition).0 >= before);
    }

    /// As soon as its last member has left it.
    #[track_caller]
    pub fn delete_group(&self, group: &str) {
        super::eventually("the group is deleted", || {
            block_on(self.client.delete_groups(&[group], &options())).expect("Kafka answers")[0].is_ok()
        });
    }

    /// Whether a group has members or committed offsets.
    pub fn knows_group(&self, group: &str) -> bool {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("a consumer");
        let known = consumer.fetch_group_list(Some(group), LIMIT).expect("groups");
        known.groups().iter().any(|found| found.state() != "Dead")
    }

    /// So many partitions from now on.
    #[track_caller]
    pub fn add_partitions(&self, topic: &str, partitions: usize) {
        self.add(topic, partitions, NewPartitions::new(topic, partitions));
    }

    /// One more partition, which only this broker has.
    #[track_caller]
    pub fn add_partition_on(&self, topic: &str, partitions: usize, broker: i32) {
        self.add(topic, partitions, NewPartitions::new(topic, partitions).assign(&[&[broker]]));
    }

    #[track_caller]
    fn add(&self, topic: &str, partitions: usize, wanted: NewPartitions<'_>) {
        let done = block_on(self.client.create_partitions(&[wanted], &options())).expect("Kafka answers");
        done[0].as_ref().expect("partitions are added");
        super::eventually("they are known", || {
            self.leaders(topic).into_iter().filter(|leader| *leader >= 0).count() == partitions
        });
    }

    /// All of its settings that are not the defaults: others go.
    #[track_caller]
    pub fn settings(&self, topic: &str, settings: &[(&str, &str)]) {
        let mut config = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (key, value) in settings {
            config = config.set(key, value);
        }
        let done = block_on(self.client.alter_configs([&config], &options())).expect("Kafka answers");
        done[0].as_ref().expect("the settings are taken");
    }

    fn metadata(&self, topic: &str) -> Metadata {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("a consumer");
        consumer.fetch_metadata(Some(topic), LIMIT).expect("metadata")
    }

    /// Of each partition.
    pub fn leaders(&self, topic: &str) -> Vec<i32> {
        self.metadata(topic).topics()[0].partitions().iter().map(MetadataPartition::leader).collect()
    }

    /// Of all partitions together.
    pub fn copies_in_step(&self, topic: &str) -> usize {
        self.metadata(topic).topics()[0].partitions().iter().map(|partition| partition.isr().len()).sum()
    }

    /// First offset and high watermark.
    #[track_caller]
    pub fn ends(&self, topic: &str, partition: i32) -> (i64, i64) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("isolation.level", "read_uncommitted");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        consumer.fetch_watermarks(topic, partition, LIMIT).expect("watermarks")
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(LIMIT)).request_timeout(Some(LIMIT))
}
