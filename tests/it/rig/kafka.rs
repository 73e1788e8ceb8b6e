//! Topics, and what is written to them.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::{Admin, LIMIT, bed, bootstrap, eventually, unique};

/// A topic of its own, and a producer.
pub struct Topic {
    pub name: String,
    brokers: String,
    producer: BaseProducer,
}

/// A record as somebody may write it: any of its parts may be null, empty, or nonsense.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// In ms; `None`: when it is written.
    pub timestamp: Option<i64>,
}

impl Raw {
    /// With this value, in partition 0.
    pub fn value(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }
}

/// The largest record that a producer of the rig writes; a topic takes 1 MB without `max.message.bytes`.
pub const LARGEST: &str = "12000000";

impl Topic {
    pub fn new(partitions: i32) -> Self {
        Self::on(&bootstrap(), partitions, &[])
    }

    /// On these brokers, with settings (`key=value`).
    #[track_caller]
    pub fn on(brokers: &str, partitions: i32, settings: &[&str]) -> Self {
        let topic = Self::at(brokers, &unique("it"));
        topic.create(partitions, settings);
        topic
    }

    /// One that is there.
    pub fn existing(name: &str) -> Self {
        Self::at(&bootstrap(), name)
    }

    /// The same as it is now: a producer that was there before knows no partition that was added.
    pub fn grown(&self) -> Self {
        Self::at(&self.brokers, &self.name)
    }

    /// With a copy on so many brokers.
    #[track_caller]
    pub fn replicated(brokers: &str, partitions: i32, replicas: i32) -> Self {
        let topic = Self::at(brokers, &unique("it"));
        let (partitions, replicas) = (partitions.to_string(), replicas.to_string());
        let name = ["--create", &topic.name, "--partitions", &partitions, "--replicas", &replicas];
        bed(&[&["topic", "--brokers", brokers][..], &name].concat());
        topic
    }

    fn at(brokers: &str, name: &str) -> Self {
        let producer = producer(brokers, &[]);
        Self { name: name.to_owned(), brokers: brokers.to_owned(), producer }
    }

    /// One of the same name on other brokers.
    #[track_caller]
    pub fn twin(&self, brokers: &str) -> Self {
        let topic = Self::at(brokers, &self.name);
        topic.create(1, &[]);
        topic
    }

    /// It is created, perhaps again.
    #[track_caller]
    pub fn create(&self, partitions: i32, settings: &[&str]) {
        let partitions = partitions.to_string();
        let mut args = vec!["topic", "--brokers", &self.brokers, "--create", &self.name, "--partitions", &partitions];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        bed(&args);
    }

    #[track_caller]
    pub fn delete(&self) {
        bed(&["topic", "--brokers", &self.brokers, "--delete", &self.name]);
    }

    /// Writes transactions with these ids to one partition, as one batch each call; returns the ids.
    #[track_caller]
    pub fn write(&self, partition: i32, ids: Vec<String>) -> Vec<String> {
        self.write_with(&self.producer, partition, &ids);
        ids
    }

    /// Compressed.
    #[track_caller]
    pub fn write_gzip(&self, partition: i32, ids: Vec<String>) -> Vec<String> {
        self.write_as("gzip", partition, ids)
    }

    /// One transaction of some `bytes`.
    #[track_caller]
    pub fn write_large(&self, partition: i32, id: &str, bytes: usize) {
        let value = format!(r#"{{"transaction_id":"{id}","note":"{}"}}"#, "x".repeat(bytes));
        let producer = producer(&self.brokers, &[("message.max.bytes", "4000000")]);
        let record = BaseRecord::to(&self.name).partition(partition).key(id).payload(&value);
        producer.send(record).map_err(|(e, _)| e).expect("queued");
        producer.flush(LIMIT).expect("Kafka takes the record");
    }

    /// Compressed with this codec.
    #[track_caller]
    pub fn write_as(&self, codec: &str, partition: i32, ids: Vec<String>) -> Vec<String> {
        self.write_with(&producer(&self.brokers, &[("compression.type", codec)]), partition, &ids);
        ids
    }

    /// In a Kafka transaction, which is committed or aborted.
    #[track_caller]
    pub fn write_in_transaction(&self, partition: i32, ids: Vec<String>, commit: bool) -> Vec<String> {
        let producer = producer(&self.brokers, &[("transactional.id", &unique("tx"))]);
        producer.init_transactions(LIMIT).expect("transactions");
        let behind = end(&producer, &self.name, partition) + ids.len() as i64 + 1;
        producer.begin_transaction().expect("a transaction");
        self.write_with(&producer, partition, &ids);
        end_transaction(&producer, commit, &self.name, partition, behind);
        ids
    }

    fn write_with(&self, producer: &BaseProducer, partition: i32, ids: &[String]) {
        for id in ids {
            let value = transaction(id);
            let record = BaseRecord::to(&self.name).partition(partition).key(id).payload(&value);
            producer.send(record).map_err(|(e, _)| e).expect("queued");
        }
        producer.flush(LIMIT).expect("Kafka takes the records");
    }

    /// Writes values in order, spread over partitions by `i`, and waits until Kafka has them.
    pub fn produce<'a>(&self, values: impl IntoIterator<Item = &'a [u8]>) {
        for (i, value) in values.into_iter().enumerate() {
            let key = i.to_string();
            let record = BaseRecord::to(&self.name).key(&key).payload(value);
            self.producer.send(record).map_err(|(e, _)| e).expect("queued");
            self.producer.poll(Duration::ZERO);
        }
        self.producer.flush(LIMIT).expect("Kafka takes the records");
    }

    /// Writes one value with these headers.
    pub fn produce_with_headers(&self, value: &[u8], headers: &[(&str, &[u8])]) {
        let mut all = OwnedHeaders::new();
        for (key, value) in headers {
            all = all.insert(Header { key, value: Some(*value) });
        }
        let record = BaseRecord::<(), [u8]>::to(&self.name).payload(value).headers(all);
        self.producer.send(record).map_err(|(e, _)| e).expect("queued");
        self.producer.flush(LIMIT).expect("Kafka takes the record");
    }

    /// Writes transactions with these ids to one partition.
    pub fn transactions_to(&self, partition: i32, ids: impl IntoIterator<Item = String>) {
        for id in ids {
            let value = transaction(&id);
            let record = BaseRecord::<(), [u8]>::to(&self.name).partition(partition).payload(&value);
            self.producer.send(record).map_err(|(e, _)| e).expect("queued");
            self.producer.poll(Duration::ZERO);
        }
        self.producer.flush(LIMIT).expect("Kafka takes the records");
    }

    /// Writes these records in order, and waits until Kafka has them.
    pub fn raw<'a>(&self, records: impl IntoIterator<Item = &'a Raw>) {
        for raw in records {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.name).partition(raw.partition);
            (record.key, record.payload, record.timestamp) = (raw.key.as_deref(), raw.value.as_deref(), raw.timestamp);
            if !raw.headers.is_empty() {
                let add = |headers: OwnedHeaders, (name, value): &(String, Option<Vec<u8>>)| {
                    headers.insert(Header { key: name, value: value.as_deref() })
                };
                record = record.headers(raw.headers.iter().fold(OwnedHeaders::new(), add));
            }
            self.producer.send(record).map_err(|(e, _)| e).expect("queued");
            self.producer.poll(Duration::ZERO);
        }
        self.producer.flush(LIMIT).expect("Kafka takes the records");
    }

    /// As retention does: what lies before `offset` is gone.
    pub fn delete_before(&self, partition: i32, offset: i64) {
        Admin::of(&bootstrap()).delete_records(&self.name, partition, offset);
    }

    /// Writes transactions with these ids.
    pub fn transactions(&self, ids: impl IntoIterator<Item = String>) {
        let values: Vec<Vec<u8>> = ids.into_iter().map(|id| transaction(&id)).collect();
        self.produce(values.iter().map(Vec::as_slice));
    }
}

/// The linger is long enough that what one call writes is one batch.
fn producer(brokers: &str, settings: &[(&str, &str)]) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("linger.ms", "5").set("message.max.bytes", LARGEST);
    for (key, value) in settings {
        config.set(*key, *value);
    }
    config.create().expect("a producer")
}

/// The value of a transaction.
pub fn transaction(id: &str) -> Vec<u8> {
    format!(r#"{{"transaction_id":"{id}","amount":"12.34","currency":"EUR"}}"#).into_bytes()
}

pub fn ids(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("{prefix}-{i}")).collect()
}

/// Steady load on a topic, from a thread of its own, until it is finished.
pub struct Load {
    stop: Sender<()>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    /// Some `per_second` transactions, named `prefix-0` and so on.
    pub fn start(topic: &str, prefix: &str, per_second: usize) -> Self {
        Self::on(&bootstrap(), topic, prefix, per_second)
    }

    /// On these brokers. Each record stands in the log once, also when a broker dies before it has answered.
    pub fn on(brokers: &str, topic: &str, prefix: &str, per_second: usize) -> Self {
        const TICK: Duration = Duration::from_millis(50);
        let producer = producer(brokers, &[("enable.idempotence", "true")]);
        let topic = Topic { name: topic.to_owned(), brokers: brokers.to_owned(), producer };
        let prefix = prefix.to_owned();
        let (stop, stopped) = bounded(0);
        let thread = std::thread::spawn(move || {
            let (began, mut sent) = (Instant::now(), Vec::new());
            while stopped.recv_timeout(TICK).is_err_and(|error| error.is_timeout()) {
                // What is due by now: a flush takes its time, and the rate is the rate.
                let due = (began.elapsed().as_millis() as usize * per_second / 1000).max(sent.len());
                let new = super::ids(&prefix, sent.len()..due);
                topic.transactions(new.clone());
                sent.extend(new);
            }
            sent
        });
        Self { stop, thread }
    }

    /// Ends it and returns all ids, which Kafka has.
    #[track_caller]
    pub fn finish(self) -> Vec<String> {
        drop(self.stop);
        self.thread.join().expect("Kafka takes the records")
    }
}

/// Ends the transaction and waits until its marker is in the log: Kafka answers as soon as the end is decided, and what
/// is written to the partition meanwhile comes before the marker.
pub fn end_transaction(producer: &BaseProducer, commit: bool, topic: &str, partition: i32, behind_the_marker: i64) {
    if commit { producer.commit_transaction(LIMIT) } else { producer.abort_transaction(LIMIT) }.expect("an end");
    eventually("the marker is written", || end(producer, topic, partition) >= behind_the_marker);
}

fn end(producer: &BaseProducer, topic: &str, partition: i32) -> i64 {
    producer.client().fetch_watermarks(topic, partition, LIMIT).expect("watermarks").1
}
