//! What is asked of a broker by hand, typed: versions, metadata, offsets, the log-in.

use std::collections::HashMap;
use std::time::Duration;

use openssl::ssl::SslConnector;
use uuid::Uuid;

use super::sasl;
use super::tls::{self, TlsFault};
use super::wire::{Fault, In, Out, Request, Wire};
#[cfg(feature = "kafka")]
use super::{TopicInfo, Watermarks};
use crate::config;

pub(super) const FETCH: i16 = 1;
pub(super) const LIST_OFFSETS: i16 = 2;
pub(super) const METADATA: i16 = 3;
pub(super) const OFFSET_COMMIT: i16 = 8;
pub(super) const OFFSET_FETCH: i16 = 9;
pub(super) const FIND_COORDINATOR: i16 = 10;
pub(super) const DESCRIBE_GROUPS: i16 = 15;
const SASL_HANDSHAKE: i16 = 17;
const API_VERSIONS: i16 = 18;
const SASL_AUTHENTICATE: i16 = 36;
#[cfg(feature = "kafka")]
const DESCRIBE_CONFIGS: i16 = 32;
pub(super) const CONSUMER_GROUP_HEARTBEAT: i16 = 68;

/// The versions of each request that a broker takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions(Vec<(i16, i16, i16)>);

impl Versions {
    /// Key, lowest, highest.
    #[cfg(test)]
    pub(super) fn new(versions: &[(i16, i16, i16)]) -> Self {
        Self(versions.to_vec())
    }

    /// Lowest and highest of one request; `None`: not taken at all.
    pub fn range(&self, key: i16) -> Option<(i16, i16)> {
        self.0.iter().find(|(k, ..)| *k == key).map(|(_, low, high)| (*low, *high))
    }

    pub(super) fn has(&self, key: i16, version: i16) -> bool {
        self.range(key).is_some_and(|(low, high)| (low..=high).contains(&version))
    }
}

/// What metadata say.
#[derive(Debug, Clone, Default)]
#[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "preflight needs less of it"))]
pub(super) struct Cluster {
    pub(super) id: Option<String>,
    /// Addresses by number.
    pub(super) brokers: HashMap<i32, String>,
    pub(super) topics: Vec<Topic>,
}

#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "preflight needs less of it"))]
pub(super) struct Topic {
    pub(super) name: String,
    /// Kafka's error code; 0: none.
    pub(super) error: i16,
    pub(super) id: Option<Uuid>,
    /// Number and leader; -1: no leader.
    pub(super) partitions: Vec<(i32, i32)>,
    pub(super) rights: Rights,
}

/// What this user may do with a topic or group, as Kafka tells it: a bit for each operation (KIP-430). Brokers without an
/// authorizer name all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights(i32);

impl Rights {
    /// Asked of a broker that does not tell.
    pub(super) const UNKNOWN: Self = Self(i32::MIN);
    const READ: i32 = 1 << 3;

    /// Known to lack it. Nothing at all is no answer: whoever may not even describe it is told so by an error.
    pub(super) fn lacks_read(self) -> bool {
        self.0 > 0 && self.0 & Self::READ == 0
    }
}

#[cfg(feature = "kafka")]
impl Topic {
    /// `None` where it is not known whether there is such a topic.
    pub(super) fn info(&self, topic: std::sync::Arc<str>) -> Option<TopicInfo> {
        match self.error {
            // Leader not available: the topic is there.
            0 | 5 => {
                let leaderless =
                    self.partitions.iter().filter(|(_, leader)| *leader < 0).map(|(partition, _)| *partition).collect();
                Some(TopicInfo { topic, id: self.id, partitions: i32::try_from(self.partitions.len()).ok(), leaderless })
            }
            3 => Some(TopicInfo { topic, id: None, partitions: None, leaderless: Vec::new() }),
            _ => None,
        }
    }
}

/// How brokers of this cluster are reached.
#[derive(Clone)]
pub(super) struct Door {
    connector: Option<SslConnector>,
    sasl: Option<config::KafkaSasl>,
}

/// Why a broker that was reached does not let us in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    Fault(Fault),
    /// The mechanism is not among these.
    Mechanism(Vec<String>),
    /// There is no SASL on this port.
    NoSasl,
    /// Its own words.
    Credentials(String),
    /// The password file, in words.
    Password(String),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Door {
    /// With the present content of all files.
    pub(super) fn of(kafka: &config::Kafka) -> Result<Self, TlsFault> {
        let connector = kafka.tls.as_ref().map(tls::connector).transpose()?;
        Ok(Self { connector, sasl: kafka.sasl.clone() })
    }

    /// Without TLS and log-in: to find out what a port is.
    pub(super) fn plain() -> Self {
        Self { connector: None, sasl: None }
    }

    #[cfg(feature = "kafka")]
    pub(super) fn connector(&self) -> Option<SslConnector> {
        self.connector.clone()
    }

    /// Connects and asks for versions; nobody has logged in yet.
    pub(super) fn knock(&self, address: &str, timeout: Duration) -> Result<(Wire, Versions), Fault> {
        let mut wire = Wire::connect(address, self.connector.as_ref(), timeout)?;
        let versions = versions(&mut wire)?;
        Ok((wire, versions))
    }

    /// Connects and logs in.
    pub(super) fn enter(&self, address: &str, timeout: Duration) -> Result<(Wire, Versions), Refusal> {
        let (mut wire, versions) = self.knock(address, timeout)?;
        if let Some(sasl) = &self.sasl {
            log_in(&mut wire, sasl)?;
        }
        Ok((wire, versions))
    }
}

fn versions(wire: &mut Wire) -> Result<Versions, Fault> {
    let answer = wire.ask(&Request::new(API_VERSIONS, 0, Out::default()))?;
    let mut read = In::new(&answer);
    let _error = read.i16()?;
    Ok(Versions(read.list(|r| Ok((r.i16()?, r.i16()?, r.i16()?)))?))
}

/// The mechanisms of a port that asks for SASL; `None`: it does not. The connection is of no use afterwards.
pub(super) fn mechanisms(wire: &mut Wire) -> Result<Option<Vec<String>>, Fault> {
    let (error, offered) = handshake(wire, "?")?;
    Ok((error != ILLEGAL_SASL_STATE).then_some(offered))
}

const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const ILLEGAL_SASL_STATE: i16 = 34;

fn handshake(wire: &mut Wire, mechanism: &str) -> Result<(i16, Vec<String>), Fault> {
    let answer = wire.ask(&Request::new(SASL_HANDSHAKE, 1, Out::default().string(mechanism).done()))?;
    let mut read = In::new(&answer);
    Ok((read.i16()?, read.list(|r| r.string())?))
}

fn log_in(wire: &mut Wire, with: &config::KafkaSasl) -> Result<(), Refusal> {
    let password = with.read_password().map_err(Refusal::Password)?;
    match handshake(wire, with.mechanism.name())? {
        (0, _) => {}
        (UNSUPPORTED_SASL_MECHANISM, offered) => return Err(Refusal::Mechanism(offered)),
        _ => return Err(Refusal::NoSasl),
    }
    let mut dialogue = sasl::Dialogue::new(with.mechanism, &with.username, &password);
    let mut message = dialogue.first();
    loop {
        let answer = wire.ask(&Request::new(SASL_AUTHENTICATE, 0, Out::default().bytes(&message).done()))?;
        let mut read = In::new(&answer);
        let (error, words) = (read.i16()?, read.string()?);
        if error != 0 {
            return Err(Refusal::Credentials(words));
        }
        match dialogue.next(read.bytes()?) {
            Ok(Some(next)) => message = next,
            Ok(None) => return Ok(()),
            Err(words) => return Err(Refusal::Credentials(words)),
        }
    }
}

/// Never creates a topic.
pub(super) fn metadata(wire: &mut Wire, versions: &Versions, topics: &[String]) -> Result<Cluster, Fault> {
    if versions.has(METADATA, 10) {
        let mut body = Out::default();
        body.varint(topics.len() + 1);
        for topic in topics {
            body.raw(&[0; 16]).compact(topic).varint(0);
        }
        // No topic is created; this user's rights on topics are asked for, those on the cluster are not; no tags.
        let answer = wire.ask(&Request::flexible(METADATA, 10, body.i8(0).i8(0).i8(1).varint(0).done()))?;
        return tagged_cluster(&mut In::new(&answer));
    }
    let mut body = Out::default();
    body.len(topics.len());
    for topic in topics {
        body.string(topic);
    }
    let answer = wire.ask(&Request::new(METADATA, 4, body.i8(0).done()))?;
    plain_cluster(&mut In::new(&answer))
}

fn tagged_cluster(read: &mut In<'_>) -> Result<Cluster, Fault> {
    read.i32()?;
    let brokers = read.compact_list(|r| {
        let (number, host, port) = (r.i32()?, r.compact()?, r.i32()?);
        r.compact()?;
        r.tags()?;
        Ok((number, address(&host, port)))
    })?;
    let id = read.compact()?;
    read.i32()?;
    let topics = read.compact_list(|r| {
        let (error, name, id) = (r.i16()?, r.compact()?, r.uuid()?);
        r.i8()?;
        let partitions = r.compact_list(|r| {
            let (_, number, leader) = (r.i16()?, r.i32()?, r.i32()?);
            r.i32()?;
            for _ in 0..3 {
                r.compact_list(In::i32)?;
            }
            r.tags()?;
            Ok((number, leader))
        })?;
        let rights = Rights(r.i32()?);
        r.tags()?;
        Ok(Topic { name, error, id: Some(id).filter(|id| !id.is_nil()), partitions, rights })
    })?;
    Ok(Cluster { id: Some(id).filter(|id| !id.is_empty()), brokers: brokers.into_iter().collect(), topics })
}

fn plain_cluster(read: &mut In<'_>) -> Result<Cluster, Fault> {
    read.i32()?;
    let brokers = read.list(|r| {
        let (number, host, port) = (r.i32()?, r.string()?, r.i32()?);
        r.string()?;
        Ok((number, address(&host, port)))
    })?;
    let id = read.string()?;
    read.i32()?;
    let topics = read.list(|r| {
        let (error, name) = (r.i16()?, r.string()?);
        r.i8()?;
        let partitions = r.list(|r| {
            let (_, number, leader) = (r.i16()?, r.i32()?, r.i32()?);
            r.list(In::i32)?;
            r.list(In::i32)?;
            Ok((number, leader))
        })?;
        Ok(Topic { name, error, id: None, partitions, rights: Rights::UNKNOWN })
    })?;
    Ok(Cluster { id: Some(id).filter(|id| !id.is_empty()), brokers: brokers.into_iter().collect(), topics })
}

fn address(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// ListOffsets' words for the ends of a log.
pub(super) const EARLIEST: i64 = -2;
#[cfg(feature = "kafka")]
pub(super) const LATEST: i64 = -1;

/// One offset for each partition of one topic, or Kafka's error code: the first record at or after a time, or an end of the
/// log; -1: no record is that late.
pub(super) fn offsets(
    wire: &mut Wire,
    topic: &str,
    partitions: &[i32],
    time: i64,
) -> Result<HashMap<i32, Result<i64, i16>>, Fault> {
    let mut body = Out::default();
    body.i32(-1).i32(1).string(topic).len(partitions.len());
    for partition in partitions {
        body.i32(*partition).i64(time);
    }
    let answer = wire.ask(&Request::new(LIST_OFFSETS, 1, body.done()))?;
    let topics = In::new(&answer).list(|r| {
        r.string()?;
        r.list(|r| {
            let (number, error, _time, offset) = (r.i32()?, r.i16()?, r.i64()?, r.i64()?);
            Ok((number, if error == 0 { Ok(offset) } else { Err(error) }))
        })
    })?;
    Ok(topics.into_iter().flatten().collect())
}

/// First and next offset of each partition of one topic, or Kafka's error code.
#[cfg(feature = "kafka")]
pub(super) fn watermarks(
    wire: &mut Wire,
    topic: &str,
    partitions: &[i32],
) -> Result<HashMap<i32, Result<Watermarks, i16>>, Fault> {
    let low = offsets(wire, topic, partitions, EARLIEST)?;
    let high = offsets(wire, topic, partitions, LATEST)?;
    let both = low.into_iter().filter_map(|(partition, low)| {
        let high = *high.get(&partition)?;
        Some((partition, low.and_then(|low| Ok(Watermarks { low, high: high? }))))
    });
    Ok(both.collect())
}

/// A topic's settings by name, or Kafka's error code.
#[cfg(feature = "kafka")]
pub(super) fn settings(wire: &mut Wire, topic: &str) -> Result<Result<HashMap<String, String>, i16>, Fault> {
    const TOPIC: i8 = 2;
    let body = Out::default().i32(1).i8(TOPIC).string(topic).i32(-1).i8(0).done();
    let answer = wire.ask(&Request::new(DESCRIBE_CONFIGS, 1, body))?;
    let mut read = In::new(&answer);
    read.i32()?;
    let found = read.list(|r| {
        let error = r.i16()?;
        r.string()?;
        r.i8()?;
        r.string()?;
        let settings = r.list(|r| {
            let (name, value) = (r.string()?, r.string()?);
            r.take(3)?;
            r.list(|r| Ok((r.string()?, r.string()?, r.i8()?)))?;
            Ok((name, value))
        })?;
        Ok(if error == 0 { Ok(settings.into_iter().collect()) } else { Err(error) })
    })?;
    found.into_iter().next().ok_or(Fault::Garbage([0; 4]))
}

/// Where a group's offsets are kept, or Kafka's error code.
pub(super) fn coordinator(wire: &mut Wire, group: &str) -> Result<Result<String, i16>, Fault> {
    let answer = wire.ask(&Request::new(FIND_COORDINATOR, 0, Out::default().string(group).done()))?;
    let mut read = In::new(&answer);
    let error = read.i16()?;
    read.i32()?;
    let (host, port) = (read.string()?, read.i32()?);
    Ok(if error == 0 { Ok(address(&host, port)) } else { Err(error) })
}

/// What this user may do with a group, or Kafka's error code. Asked of the coordinator.
pub(super) fn group_rights(wire: &mut Wire, group: &str) -> Result<Result<Rights, i16>, Fault> {
    let answer = wire.ask(&Request::new(DESCRIBE_GROUPS, 3, Out::default().i32(1).string(group).i8(1).done()))?;
    let mut read = In::new(&answer);
    read.i32()?;
    let found = read.list(|r| {
        let error = r.i16()?;
        // Group, state, type of protocol, protocol.
        for _ in 0..4 {
            r.string()?;
        }
        // Member, client, host, subscription, assignment.
        r.list(|r| {
            for _ in 0..3 {
                r.string()?;
            }
            r.bytes()?;
            r.bytes().map(drop)
        })?;
        let rights = Rights(r.i32()?);
        Ok(if error == 0 { Ok(rights) } else { Err(error) })
    })?;
    found.into_iter().next().ok_or(Fault::Garbage([0; 4]))
}

/// A group's committed offset of one partition (-1: none), or Kafka's error code. Asked of the coordinator.
pub(super) fn committed(wire: &mut Wire, group: &str, topic: &str, partition: i32) -> Result<Result<i64, i16>, Fault> {
    let body = Out::default().string(group).i32(1).string(topic).i32(1).i32(partition).done();
    let answer = wire.ask(&Request::new(OFFSET_FETCH, 1, body))?;
    let found = In::new(&answer).list(|r| {
        r.string()?;
        r.list(|r| {
            let (_, offset) = (r.i32()?, r.i64()?);
            r.string()?;
            let error = r.i16()?;
            Ok(if error == 0 { Ok(offset) } else { Err(error) })
        })
    })?;
    found.into_iter().flatten().next().ok_or(Fault::Garbage([0; 4]))
}

/// What a fetch in the oldest version brings from one place: Kafka's error code, or magic and attributes of the first batch.
pub(super) fn first_batch(
    wire: &mut Wire,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<Result<Option<(i8, i8)>, i16>, Fault> {
    let body = Out::default().i32(-1).i32(0).i32(0).i32(1).string(topic).i32(1).i32(partition).i64(offset).i32(1 << 20).done();
    let answer = wire.ask(&Request::new(FETCH, 0, body))?;
    let found = In::new(&answer).list(|r| {
        r.string()?;
        r.list(|r| {
            let (_, error, _high) = (r.i32()?, r.i16()?, r.i64()?);
            let records = r.bytes()?;
            // offset 8, size 4, checksum 4, magic, attributes
            let batch = records.get(16).zip(records.get(17)).map(|(magic, attributes)| (*magic as i8, *attributes as i8));
            Ok(if error == 0 { Ok(batch) } else { Err(error) })
        })
    })?;
    found.into_iter().flatten().next().ok_or(Fault::Garbage([0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_broker_that_tells_rights_can_say_that_one_is_missing() {
        let (read, describe) = (1 << 3, 1 << 8);
        assert!(Rights(describe).lacks_read());
        for enough in [Rights(read | describe), Rights::UNKNOWN, Rights(0)] {
            assert!(!enough.lacks_read(), "{enough:?}");
        }
    }
}
