//! What librdkafka tells by callbacks. All of them run on the polling thread, inside `BaseConsumer::poll`: they only write
//! down, and never block.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::errors::{self, Told};
use crate::source::TroubleKind;

/// How long something said about a connection explains a later "all brokers are down".
const TELLING_FOR: Duration = Duration::from_secs(60);

/// A change of the assignment that is to be answered. Never empty: those are answered at once.
#[derive(Debug, Clone)]
pub(super) enum Rebalance {
    /// Given to us.
    Assigned(Vec<(String, i32)>),
    /// Taken from us.
    Revoked {
        /// Which.
        partitions: Vec<(String, i32)>,
        /// Not asked: others may read them already.
        lost: bool,
    },
}

#[derive(Default)]
struct Seen {
    rebalances: VecDeque<Rebalance>,
    closing: bool,
    reason: String,
    connection: Option<(Instant, TroubleKind, String)>,
    up: bool,
    high: HashMap<(String, i32), i64>,
}

/// Shared with the client.
#[derive(Default)]
pub(super) struct Context {
    seen: Mutex<Seen>,
}

impl Context {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every rebalance is answered by giving everything up.
    pub(super) fn close(&self) {
        self.seen().closing = true;
    }

    /// The oldest rebalance that was not yet taken.
    pub(super) fn take_rebalance(&self) -> Option<Rebalance> {
        self.seen().rebalances.pop_front()
    }

    /// The words for the error that `poll` just returned: each goes through `error` first.
    pub(super) fn told(&self) -> Told {
        let seen = self.seen();
        let connection = seen.connection.as_ref().filter(|(at, ..)| at.elapsed() < TELLING_FOR);
        Told { reason: seen.reason.clone(), connection: connection.map(|(_, kind, text)| (*kind, text.clone())) }
    }

    /// From the last statistics.
    pub(super) fn high_watermarks(&self) -> Vec<((String, i32), i64)> {
        self.seen().high.iter().map(|(at, high)| (at.clone(), *high)).collect()
    }

    /// A broker connection was up at the last statistics, and there was no "all brokers down" since.
    pub(super) fn is_up(&self) -> bool {
        self.seen().up
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Emerg, Error, Warning};
        let about_connection = facility == "FAIL" || matches!(level, Emerg | Alert | Critical | Error | Warning);
        if about_connection && !matches!(facility, "CONFWARN" | "COMMITFAIL" | "OFFSET" | "ASSIGN" | "MAXPOLL" | "FATAL") {
            // "[thrd:...]: " says nothing to people.
            let line =
                line.split_once("]: ").map_or(line, |(thread, rest)| if thread.starts_with("[thrd:") { rest } else { line });
            self.seen().connection = Some((Instant::now(), errors::kind_of_words(line), errors::shortened(line)));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut seen = self.seen();
        seen.reason = errors::shortened(reason);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => seen.up = false,
            Some(code) => {
                let kind = errors::kind_of_code(code);
                if matches!(kind, TroubleKind::Connection | TroubleKind::Tls | TroubleKind::Authentication) {
                    let kind = if kind == TroubleKind::Connection { errors::kind_of_words(reason) } else { kind };
                    seen.connection = Some((Instant::now(), kind, errors::shortened(reason)));
                }
            }
            None => {}
        }
    }

    fn stats(&self, statistics: Statistics) {
        let mut seen = self.seen();
        seen.up = statistics.brokers.values().any(|b| b.state == "UP");
        seen.high.clear();
        for (topic, stats) in statistics.topics {
            for (partition, stats) in stats.partitions {
                // -1 is the partition "unassigned", and a negative offset is "not known yet".
                if partition >= 0 && stats.hi_offset >= 0 {
                    seen.high.insert((topic.clone(), partition), stats.hi_offset);
                }
            }
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.seen().closing {
            // While it closes, librdkafka takes any answer as "everything".
            let _ = consumer.unassign();
            return;
        }
        let assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if assigned {
            self.seen().up = true;
        }
        if list.count() == 0 {
            // The cooperative protocol sends these at every rebalance, and waits for their answer, too.
            let _ = if assigned { consumer.incremental_assign(list) } else { consumer.incremental_unassign(list) };
            return;
        }
        let partitions = list.elements().iter().map(|e| (e.topic().to_owned(), e.partition())).collect();
        let rebalance = if assigned {
            Rebalance::Assigned(partitions)
        } else {
            Rebalance::Revoked { partitions, lost: consumer.assignment_lost() }
        };
        self.seen().rebalances.push_back(rebalance);
    }
}
