//! The thread that owns a `KafkaClient`. The crate waits up to two minutes for an answer, and for ever for a connection, and it
//! may panic on what comes: so it works on a thread of its own, which is abandoned when it takes too long.
//!
//! After any error the client is dropped. It never compares the numbers of answers with those of requests, so that a late
//! answer would be taken for the next one's, and it keeps broken connections.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use kafka::client::{FetchPartition, KafkaClient, SecurityConfig};
use kafka::error::{Error, KafkaCode};
use openssl::ssl::SslConnector;

use super::hunt::{Hunt, run_length};
use crate::core::record::TopicPartition;
use crate::source::TroubleKind;

/// How long the broker waits for records to come.
const LINGER: Duration = Duration::from_millis(100);
/// Leaders are looked up again.
const METADATA: Duration = Duration::from_secs(60);

/// Records wanted from one partition.
#[derive(Debug, Clone)]
pub(super) struct Want {
    pub(super) at: TopicPartition,
    /// Which life of this partition here asks: another start makes the answer void.
    pub(super) life: u64,
    pub(super) offset: i64,
    pub(super) size: i32,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) want: Want,
    pub(super) high: i64,
    pub(super) what: What,
    /// A smaller answer than was asked for brought it; `want` says which.
    pub(super) shrunk: bool,
}

#[derive(Debug)]
pub(super) enum What {
    /// Offset, key, value: without a hole from the wanted offset on.
    Records(Vec<(i64, Vec<u8>, Vec<u8>)>),
    /// The answer was empty.
    Nothing,
    /// There is no record before this offset; looked for with every size.
    Gap(i64),
    /// The broker's error, or none knows a leader (`None`).
    Refused(Option<KafkaCode>),
}

/// Why there is nothing at all.
#[derive(Debug, Clone)]
pub(super) struct ReadFault {
    pub(super) kind: TroubleKind,
    pub(super) text: String,
    /// It may be the fault of one partition's records: each is to be asked for alone.
    pub(super) may_be_ones: bool,
}

pub(super) type Answer = Result<Vec<Got>, ReadFault>;

/// How a client is made.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) hosts: Vec<String>,
    pub(super) topics: Vec<String>,
    pub(super) connector: Option<SslConnector>,
}

impl Recipe {
    /// Connects and learns who leads. Only topics that are there may be named: some brokers would create them.
    pub(super) fn client(&self) -> Result<KafkaClient, Error> {
        let mut client = match &self.connector {
            None => KafkaClient::new(self.hosts.clone()),
            Some(connector) => KafkaClient::new_secure(self.hosts.clone(), SecurityConfig::new(connector.clone())),
        };
        client.set_client_id("txrelay".to_owned());
        client.set_fetch_min_bytes(1);
        client.load_metadata(&self.topics)?;
        Ok(client)
    }
}

/// A thread at work, from this side.
pub(super) struct Reader {
    asks: Sender<Vec<Want>>,
    answers: Receiver<Answer>,
    /// When the question in hand was asked, or last got on.
    pub(super) since: Option<Instant>,
    /// Counts each answer of a broker, also within one question.
    steps: Arc<AtomicUsize>,
    seen: usize,
}

impl Reader {
    /// `alive` counts threads that have not ended, abandoned ones too.
    pub(super) fn spawn(recipe: Recipe, alive: &Arc<AtomicUsize>) -> std::io::Result<Self> {
        // One question and one answer at a time.
        let (asks, questions) = bounded::<Vec<Want>>(1);
        let (answer, answers) = bounded(1);
        let (steps, count) = (Arc::new(AtomicUsize::new(0)), Alive::new(alive));
        let progress = Arc::clone(&steps);
        std::thread::Builder::new().name("kafka-fetch".into()).spawn(move || {
            let _count = count;
            let mut client = None;
            for wants in questions {
                let answered = catch_unwind(AssertUnwindSafe(|| work(&mut client, &recipe, &wants, &progress)));
                let answered = answered.unwrap_or_else(|_| {
                    Err(ReadFault { kind: TroubleKind::Other, text: "the kafka crate panicked".to_owned(), may_be_ones: true })
                });
                if answered.is_err() {
                    client = None;
                }
                // Nobody waits for it any more: abandoned.
                if answer.send(answered).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { asks, answers, since: None, steps, seen: 0 })
    }

    /// Only while nothing is asked.
    pub(super) fn ask(&mut self, wants: Vec<Want>) {
        self.since = Some(Instant::now());
        let _ = self.asks.try_send(wants);
    }

    /// `None`: not yet.
    pub(super) fn answer(&mut self, timeout: Duration) -> Option<Answer> {
        match self.answers.recv_timeout(timeout) {
            Ok(answer) => {
                self.since = None;
                Some(answer)
            }
            Err(error) if error.is_timeout() => {
                let steps = self.steps.load(Ordering::Relaxed);
                if steps != self.seen {
                    self.seen = steps;
                    self.since = self.since.map(|_| Instant::now());
                }
                None
            }
            Err(_) => {
                self.since = None;
                Some(Err(ReadFault {
                    kind: TroubleKind::Other,
                    text: "the reading thread has ended".to_owned(),
                    may_be_ones: false,
                }))
            }
        }
    }
}

/// Counted while it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client and when it learned who leads.
struct Client {
    kafka: KafkaClient,
    at: Instant,
}

fn work(client: &mut Option<Client>, recipe: &Recipe, wants: &[Want], steps: &AtomicUsize) -> Answer {
    if client.as_ref().is_none_or(|client| client.at.elapsed() >= METADATA) {
        *client = None;
        *client = Some(Client { kafka: recipe.client().map_err(fault)?, at: Instant::now() });
        steps.fetch_add(1, Ordering::Relaxed);
    }
    let kafka = &mut client.as_mut().expect("made above").kafka;
    let mut got = fetch(kafka, wants, LINGER)?;
    steps.fetch_add(1, Ordering::Relaxed);
    let mut leaders_moved = false;
    for one in &mut got {
        if let What::Gap(first) = one.what {
            look_closer(kafka, one, first, steps)?;
        }
        leaders_moved |= matches!(one.what, What::Refused(_));
    }
    if leaders_moved {
        // Asked anew with the next question.
        *client = None;
    }
    Ok(got)
}

/// One request to each leader. What begins behind the wanted offset comes as a gap, which is not to be believed yet.
fn fetch(kafka: &mut KafkaClient, wants: &[Want], linger: Duration) -> Answer {
    kafka.set_fetch_max_wait_time(linger).map_err(fault)?;
    let asked: Vec<FetchPartition<'_>> = wants
        .iter()
        .map(|want| FetchPartition::new(&want.at.topic, want.at.partition, want.offset).with_max_bytes(want.size))
        .collect();
    let responses = kafka.fetch_messages(&asked).map_err(fault)?;
    let mut got = Vec::with_capacity(wants.len());
    for want in wants {
        let found = responses.iter().flat_map(|response| response.topics()).filter(|topic| topic.topic() == &*want.at.topic);
        let found = found.flat_map(|topic| topic.partitions()).find(|partition| partition.partition() == want.at.partition);
        let (high, what) = match found.map(|partition| partition.data()) {
            // In no answer: nobody leads it, as far as is known.
            None => (-1, What::Refused(None)),
            Some(Err(error)) => (-1, What::Refused(code(&error))),
            Some(Ok(data)) => {
                let messages = data.messages();
                let n = run_length(want.offset, messages.iter().map(|message| message.offset));
                let what = match messages.first() {
                    None => What::Nothing,
                    Some(first) if n == 0 => What::Gap(first.offset),
                    Some(_) => {
                        What::Records(messages[..n].iter().map(|m| (m.offset, m.key.to_vec(), m.value.to_vec())).collect())
                    }
                };
                (data.highwatermark_offset(), what)
            }
        };
        got.push(Got { want: want.clone(), high, what, shrunk: false });
    }
    Ok(got)
}

/// Asks with other sizes for what seems to be missing.
fn look_closer(kafka: &mut KafkaClient, one: &mut Got, first: i64, steps: &AtomicUsize) -> Result<(), ReadFault> {
    let mut hunt = Hunt::new(one.want.offset, one.want.size, first);
    while let Some(size) = hunt.next() {
        let smaller = Want { size, ..one.want.clone() };
        let brought = fetch(kafka, &[smaller], Duration::ZERO)?.pop().map(|got| got.what);
        steps.fetch_add(1, Ordering::Relaxed);
        match brought {
            Some(What::Records(records)) => {
                one.what = What::Records(records);
                // What fits is known now: it spares the next search.
                one.want.size = size;
                one.shrunk = true;
                return Ok(());
            }
            Some(What::Gap(first)) => drop(hunt.note(size, Some(first))),
            Some(What::Nothing) => drop(hunt.note(size, None)),
            Some(What::Refused(code)) => {
                one.what = What::Refused(code);
                return Ok(());
            }
            None => return Ok(()),
        }
    }
    one.what = What::Gap(hunt.beyond());
    Ok(())
}

fn code(error: &Error) -> Option<KafkaCode> {
    match error {
        Error::Kafka(code) => Some(*code),
        Error::ArcSelf(inner) => code(inner),
        _ => Some(KafkaCode::Unknown),
    }
}

/// What the crate's error means here.
pub(super) fn fault(error: Error) -> ReadFault {
    let (kind, may_be_ones) = match &error {
        Error::NoHostReachable => (TroubleKind::Connection, false),
        Error::Ssl(_) => (TroubleKind::Tls, false),
        // A broker closes the connection when it cannot convert a damaged batch, and when it is stopped.
        Error::Io(e) => match e.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => {
                (TroubleKind::Connection, false)
            }
            _ => (TroubleKind::Connection, true),
        },
        _ => (TroubleKind::Other, true),
    };
    let text = match &error {
        Error::UnsupportedCompression => {
            "a batch is compressed with a codec that the kafka client cannot read (lz4?): set kafka.client = \"librdkafka\""
                .to_owned()
        }
        Error::NoHostReachable => "no broker can be reached".to_owned(),
        other => crate::core::text::clean_text(other.to_string().as_bytes(), 200),
    };
    ReadFault { kind, text, may_be_ones }
}
