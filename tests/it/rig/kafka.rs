//! Topics, and what is written to them.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{LIMIT, bed, bootstrap, unique};

/// A topic of its own, and a producer.
pub struct Topic {
    pub name: String,
    producer: BaseProducer,
}

impl Topic {
    pub fn new(partitions: i32) -> Self {
        let name = unique("it");
        bed(&["topic", "--brokers", &bootstrap(), "--create", &name, "--partitions", &partitions.to_string()]);
        Self::existing(&name)
    }

    /// One that is there.
    pub fn existing(name: &str) -> Self {
        let producer =
            ClientConfig::new().set("bootstrap.servers", bootstrap()).set("linger.ms", "5").create().expect("a producer");
        Self { name: name.to_owned(), producer }
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

    /// As retention does: what lies before `offset` is gone.
    pub fn delete_before(&self, partition: i32, offset: i64) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", bootstrap()).create().expect("an admin client");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(offset)).expect("an offset");
        crate::source::block_on(admin.delete_records(&list, &AdminOptions::new())).expect("Kafka answers");
    }

    /// Writes transactions with these ids.
    pub fn transactions(&self, ids: impl IntoIterator<Item = String>) {
        let values: Vec<Vec<u8>> = ids.into_iter().map(|id| transaction(&id)).collect();
        self.produce(values.iter().map(Vec::as_slice));
    }
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
        const TICK: Duration = Duration::from_millis(50);
        let topic = Topic::existing(topic);
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
