//! Whether the cluster can be read as configured, asked before reading, and one sentence for each reason why not.
//!
//! librdkafka keeps trying and says little: an expired certificate, a wrong name and an unknown CA are one text there, and a
//! wrong port or a missing log-in is a closed connection without any. Here each is looked at by itself.

mod finding;

use std::time::{Duration, Instant};

pub use finding::Finding;

use super::broker::{self, Cluster, Door, Refusal, Topic, Versions};
use super::tls::TlsFault;
use super::wire::{Fault, Wire};
use crate::config::{self, KafkaClient};

/// What is wrong at one broker, or with one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `host:port` that was asked.
    pub broker: String,
    /// What was found.
    pub finding: Finding,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.finding.sentence(&self.broker))
    }
}

/// Asks the configured brokers in their order. Fails only if none of them can be read from: with what is wrong at each.
/// Otherwise it returns what is wrong with topics and group, asked of the first that is well.
pub fn check(kafka: &config::Kafka, timeout: Duration) -> Result<Vec<Problem>, Vec<Problem>> {
    let (broker, findings) = ask_each(kafka, Patience { each: timeout, by: None }, examine)?;
    Ok(problems(&broker, findings))
}

/// Why it is not known which rights are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// No broker answers now.
    Unanswered,
    /// Brokers of this age tell nobody's rights: they do since Kafka 2.8.
    Untold,
}

/// The rights that this user lacks for reading, asked of the first broker that answers, `within` this time for all of them and all
/// questions. To resolve names may take longer.
///
/// # Errors
/// Nobody can tell.
pub fn denials(kafka: &config::Kafka, within: Duration) -> Result<Vec<Problem>, Unknown> {
    // One that is silent leaves time for others, and has enough of it where it is far away.
    let each = within / u32::try_from(kafka.brokers.len()).unwrap_or(u32::MAX).clamp(1, 3);
    let patience = Patience { each, by: Some(Instant::now() + within) };
    let (broker, findings) = ask_each(kafka, patience, missing_rights).map_err(|_| Unknown::Unanswered)?;
    findings.map(|findings| problems(&broker, findings)).ok_or(Unknown::Untold)
}

fn problems(broker: &str, findings: Vec<Finding>) -> Vec<Problem> {
    findings.into_iter().map(|finding| Problem { broker: broker.to_owned(), finding }).collect()
}

/// How long brokers are waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// At one question.
    each: Duration,
    /// At all questions to all brokers; `None`: where several brokers are silent, others are asked no more.
    by: Option<Instant>,
}

impl Patience {
    /// For the next question.
    fn next(self) -> Duration {
        self.by.map_or(self.each, |by| self.each.min(by.saturating_duration_since(Instant::now())))
    }
}

/// The first broker that can be read from, and what `ask` says of it.
fn ask_each<T>(
    kafka: &config::Kafka,
    patience: Patience,
    ask: impl Fn(&config::Kafka, &str, Patience) -> Result<T, Finding>,
) -> Result<(String, T), Vec<Problem>> {
    let by = patience.by.unwrap_or_else(|| Instant::now() + patience.each * 3);
    let mut problems: Vec<Problem> = Vec::new();
    for address in &kafka.brokers {
        // Several that are silent add up, and a stop may be waiting.
        if Instant::now() >= by {
            let finding = Finding::Unreachable("not asked any more".to_owned());
            problems.push(Problem { broker: address.clone(), finding });
            continue;
        }
        match ask(kafka, address, patience) {
            Ok(found) => return Ok((address.clone(), found)),
            Err(finding) => problems.push(Problem { broker: address.clone(), finding }),
        }
    }
    Err(problems)
}

/// The one sentence why this configuration cannot work with this cluster, whatever its brokers do next; `None`: it may, or
/// nobody answered, which the client mends by itself.
pub fn refusal(kafka: &config::Kafka, timeout: Duration) -> Option<String> {
    let problems = match check(kafka, timeout) {
        Ok(_) => return None,
        Err(problems) => problems,
    };
    // One that is merely away may be the one that works.
    let lasting = problems.iter().all(|problem| !problem.finding.is_absence());
    lasting.then(|| problems.first().map(ToString::to_string)).flatten()
}

/// A broker that has let us in, and what it says of the topics.
struct Inside {
    door: Door,
    wire: Wire,
    versions: Versions,
    cluster: Cluster,
}

/// `Err` is why this broker cannot be read from at all.
fn enter(kafka: &config::Kafka, address: &str, patience: Patience) -> Result<Inside, Finding> {
    let door = Door::of(kafka).map_err(Finding::Tls)?;
    let (mut wire, versions) =
        door.enter(address, patience.next()).map_err(|refusal| explain(kafka, address, patience, refusal))?;
    fits(kafka, &versions)?;
    match broker::metadata(wire.until(patience.next()), &versions, &kafka.topics) {
        Ok(cluster) => Ok(Inside { door, wire, versions, cluster }),
        Err(fault) => Err(refused_after_versions(kafka, address, patience, &door, fault)),
    }
}

/// What is wrong with topics and group.
fn examine(kafka: &config::Kafka, address: &str, patience: Patience) -> Result<Vec<Finding>, Finding> {
    let mut inside = enter(kafka, address, patience)?;
    let mut findings: Vec<Finding> = inside.cluster.topics.iter().filter_map(of_topic).collect();
    if is_group_denied(&mut inside, &kafka.group, patience) == Some(true) {
        findings.push(Finding::GroupDenied(kafka.group.clone()));
    }
    if kafka.client == KafkaClient::Kafka {
        for topic in inside.cluster.topics.iter().filter(|topic| topic.error == 0 && !topic.rights.lacks_read()) {
            findings.extend(unreadable(&inside.door, &inside.cluster, topic, patience));
        }
    }
    Ok(findings)
}

/// Only the rights; `None`: this broker does not tell them.
fn missing_rights(kafka: &config::Kafka, address: &str, patience: Patience) -> Result<Option<Vec<Finding>>, Finding> {
    let mut inside = enter(kafka, address, patience)?;
    if !inside.versions.has(broker::METADATA, 10) || !inside.versions.has(broker::DESCRIBE_GROUPS, 3) {
        return Ok(None);
    }
    let mut findings: Vec<Finding> = inside.cluster.topics.iter().filter_map(of_topic).filter(Finding::is_denial).collect();
    // To the pure-Rust client the group is but a place for numbers that tools show.
    if kafka.client == KafkaClient::Librdkafka {
        match is_group_denied(&mut inside, &kafka.group, patience) {
            Some(true) => findings.push(Finding::GroupDenied(kafka.group.clone())),
            Some(false) => {}
            // The coordinator does not answer.
            None => return Err(Finding::Silent),
        }
    }
    Ok(Some(findings))
}

/// Whether client and broker have versions in common.
fn fits(kafka: &config::Kafka, versions: &Versions) -> Result<(), Finding> {
    if kafka.client == KafkaClient::Kafka {
        for (key, name, version) in [
            (broker::FETCH, "Fetch", 0),
            (broker::LIST_OFFSETS, "ListOffsets", 1),
            (broker::METADATA, "Metadata", 0),
            (broker::METADATA, "Metadata", 4),
            (broker::FIND_COORDINATOR, "FindCoordinator", 0),
            (broker::OFFSET_COMMIT, "OffsetCommit", 1),
            (broker::OFFSET_FETCH, "OffsetFetch", 1),
        ] {
            if !versions.has(key, version) {
                return Err(Finding::Versions { request: name, offered: versions.range(key), needed: version });
            }
        }
        return Ok(());
    }
    if !versions.has(broker::FETCH, 4) {
        return Err(Finding::TooOld { offered: versions.range(broker::FETCH) });
    }
    if kafka.wants_new_group_protocol() && versions.range(broker::CONSUMER_GROUP_HEARTBEAT).is_none_or(|(_, high)| high < 1) {
        return Err(Finding::NoNewGroupProtocol);
    }
    Ok(())
}

/// What a failure to get in means: with the other kind of connection one can tell.
fn explain(kafka: &config::Kafka, address: &str, patience: Patience, refusal: Refusal) -> Finding {
    let fault = match refusal {
        Refusal::Mechanism(offered) => {
            let asked = kafka.sasl.as_ref().map_or("", |sasl| sasl.mechanism.name());
            return Finding::Mechanism { asked, offered };
        }
        Refusal::NoSasl => return Finding::NoSaslThere,
        Refusal::Credentials(words) => return Finding::Credentials(words),
        Refusal::Password(words) => return Finding::PasswordFile(words),
        Refusal::Fault(fault) => fault,
    };
    match fault {
        Fault::Dns(words) => Finding::Dns(words),
        Fault::Refused => Finding::Refused,
        Fault::Unreachable(words) => Finding::Unreachable(words),
        Fault::Tls(TlsFault::NotTls | TlsFault::Broken(_)) if answers_plainly(address, patience) => Finding::PlainPort,
        Fault::Tls(fault) => Finding::Tls(fault),
        Fault::Closed | Fault::Silent | Fault::Garbage(_) if kafka.tls.is_none() && speaks_tls(address, patience) => {
            Finding::TlsPort
        }
        Fault::Garbage(begin) => Finding::NotKafka(begin),
        Fault::Closed => Finding::ClosedAtOnce,
        Fault::Silent => Finding::Silent,
    }
}

/// A port that asks for a log-in closes the connection at the first request that needs one.
fn refused_after_versions(kafka: &config::Kafka, address: &str, patience: Patience, door: &Door, fault: Fault) -> Finding {
    if kafka.sasl.is_none()
        && let Ok((mut wire, _)) = door.knock(address, patience.next())
        && let Ok(Some(offered)) = broker::mechanisms(&mut wire)
    {
        return Finding::SaslRequired { offered };
    }
    explain(kafka, address, patience, fault.into())
}

fn answers_plainly(address: &str, patience: Patience) -> bool {
    Door::plain().knock(address, patience.next()).is_ok()
}

/// Whatever the certificate: it shook hands.
fn speaks_tls(address: &str, patience: Patience) -> bool {
    let Ok(connector) = super::tls::connector(&config::KafkaTls::default()) else { return false };
    match Wire::connect(address, Some(&connector), patience.next()) {
        Ok(_) => true,
        Err(Fault::Tls(fault)) => !matches!(fault, TlsFault::NotTls | TlsFault::Broken(_) | TlsFault::Files(_)),
        Err(_) => false,
    }
}

fn of_topic(topic: &Topic) -> Option<Finding> {
    let name = topic.name.clone();
    match topic.error {
        0 | 5 if topic.rights.lacks_read() => Some(Finding::TopicUnreadable(name)),
        0 | 5 => None,
        3 => Some(Finding::TopicMissing(name)),
        29 => Some(Finding::TopicDenied(name)),
        code => Some(Finding::Topic { topic: name, code }),
    }
}

/// Whether this user may not join the group; `None`: nobody tells now, and what it is the client finds out.
fn is_group_denied(inside: &mut Inside, group: &str, patience: Patience) -> Option<bool> {
    const DENIED: i16 = 30;
    let address = match broker::coordinator(inside.wire.until(patience.next()), group).ok()? {
        Ok(address) => address,
        Err(code) => return (code == DENIED).then_some(true),
    };
    let (mut wire, versions) = inside.door.enter(&address, patience.next()).ok()?;
    // Whoever may describe a group is given its offsets, and may all the same not join it.
    if versions.has(broker::DESCRIBE_GROUPS, 3) {
        return match broker::group_rights(&mut wire, group).ok()? {
            Ok(rights) => Some(rights.lacks_read()),
            Err(code) => (code == DENIED).then_some(true),
        };
    }
    match broker::committed(&mut wire, group, "txrelay", 0).ok()? {
        Ok(_) => Some(false),
        Err(code) => Some(code == DENIED),
    }
}

/// Reads the first batch of each partition's log as the pure-Rust client would.
fn unreadable(door: &Door, cluster: &Cluster, topic: &Topic, patience: Patience) -> Option<Finding> {
    for (partition, leader) in &topic.partitions {
        let address = cluster.brokers.get(leader)?;
        let (mut wire, _) = door.enter(address, patience.next()).ok()?;
        let low = broker::offsets(&mut wire, &topic.name, &[*partition], broker::EARLIEST).ok()?.remove(partition)?.ok()?;
        let name = topic.name.clone();
        match broker::first_batch(wire.until(patience.next()), &topic.name, *partition, low).ok()? {
            // A zstd batch, to a client that asks as this one does; old brokers call it unknown.
            Err(76) => return Some(Finding::Codec { topic: name, codec: "zstd" }),
            Err(35) => return Some(Finding::NoDownConversion(name)),
            Ok(Some((0, attributes))) if attributes & 7 == 3 => return Some(Finding::Codec { topic: name, codec: "lz4" }),
            Ok(Some((0, _)) | None) | Err(_) => {}
            Ok(Some(_)) => return Some(Finding::NoDownConversion(name)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Fetch, ListOffsets, Metadata, OffsetCommit, OffsetFetch, FindCoordinator, ConsumerGroupHeartbeat as listed by real
    /// brokers.
    const KAFKA_3_9: [(i16, i16, i16); 7] = [(1, 0, 17), (2, 0, 9), (3, 0, 12), (8, 0, 9), (9, 0, 9), (10, 0, 6), (68, 0, 0)];
    const KAFKA_4_3: [(i16, i16, i16); 7] = [(1, 4, 18), (2, 1, 11), (3, 0, 13), (8, 2, 10), (9, 1, 10), (10, 0, 6), (68, 0, 1)];
    const REDPANDA: [(i16, i16, i16); 6] = [(1, 4, 11), (2, 0, 4), (3, 0, 8), (8, 0, 7), (9, 0, 7), (10, 0, 3)];
    const KAFKA_0_10: [(i16, i16, i16); 6] = [(1, 0, 3), (2, 0, 1), (3, 0, 2), (8, 0, 2), (9, 0, 2), (10, 0, 0)];

    fn kafka(client: KafkaClient) -> config::Kafka {
        config::Kafka { client, ..config::Kafka::plain(&["k:1"], &["t"], "g") }
    }

    #[test]
    fn each_client_is_offered_only_what_it_can_read() {
        let said = |client, versions: &[(i16, i16, i16)]| {
            fits(&kafka(client), &Versions::new(versions)).err().map(|finding| finding.sentence("k:1"))
        };
        let newer = |words: &str| Some(format!("k:1 speaks {words}: set kafka.client = \"librdkafka\""));
        assert_eq!(said(KafkaClient::Kafka, &KAFKA_3_9), None);
        assert_eq!(said(KafkaClient::Kafka, &KAFKA_4_3), newer("Fetch 4-18, the kafka client only 0"));
        assert_eq!(said(KafkaClient::Kafka, &REDPANDA), newer("Fetch 4-11, the kafka client only 0"));
        assert_eq!(said(KafkaClient::Kafka, &KAFKA_0_10), newer("Metadata 0-2, the kafka client only 4"));
        for versions in [&KAFKA_3_9[..], &KAFKA_4_3, &REDPANDA] {
            assert_eq!(said(KafkaClient::Librdkafka, versions), None);
        }
        assert!(said(KafkaClient::Librdkafka, &KAFKA_0_10).is_some_and(|words| words.contains("Fetch 0-3")));
    }

    #[test]
    fn the_newer_group_protocol_is_offered_only_where_the_broker_has_it() {
        let mut wanted = kafka(KafkaClient::Librdkafka);
        wanted.librdkafka.insert("group.protocol".into(), "consumer".into());
        // It lists the request in version 0, and then answers nothing.
        for versions in [&KAFKA_3_9[..], &REDPANDA] {
            assert_eq!(fits(&wanted, &Versions::new(versions)), Err(Finding::NoNewGroupProtocol));
        }
        assert_eq!(fits(&wanted, &Versions::new(&KAFKA_4_3)), Ok(()));
    }

    /// Something that listens and does this with every connection.
    fn listener(act: impl Fn(&mut TcpStream) + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its number").to_string();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                act(&mut connection.expect("a connection"));
            }
        });
        address
    }

    #[track_caller]
    fn finds(address: &str, expected: &Finding) {
        let mut kafka = kafka(KafkaClient::Librdkafka);
        kafka.brokers = vec![address.to_owned()];
        let found = check(&kafka, Duration::from_millis(500)).expect_err("nothing that can be read");
        assert_eq!(&found[0].finding, expected);
        assert_eq!(refusal(&kafka, Duration::from_millis(500)).is_none(), expected.is_absence());
    }

    #[test]
    fn what_is_no_broker_is_told_apart() {
        finds("127.0.0.1:1", &Finding::Refused);
        finds(&listener(|_| ()), &Finding::ClosedAtOnce);
        finds(&listener(|_| std::thread::sleep(Duration::from_secs(2))), &Finding::Silent);
        let http = listener(|connection| {
            let _ = connection.read(&mut [0; 64]);
            let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        });
        finds(&http, &Finding::NotKafka(*b"HTTP"));
        // An answer with the number of another request.
        let late = listener(|connection| {
            let _ = connection.read(&mut [0; 64]);
            let _ = connection.write_all(&[0, 0, 0, 10, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0]);
        });
        finds(&late, &Finding::NotKafka([0, 0, 0, 10]));
        let mut kafka = kafka(KafkaClient::Librdkafka);
        kafka.brokers = vec!["no-such-host.invalid:9092".into()];
        let found = check(&kafka, Duration::from_millis(500)).expect_err("no such name");
        assert!(matches!(found[0].finding, Finding::Dns(_)), "{found:?}");
    }

    /// Whoever asks for rights reads nothing meanwhile: a coordinator, or a broker that takes its time, must not hold it up for long.
    #[test]
    fn rights_are_asked_for_within_one_time_for_all_questions() {
        const WITHIN: Duration = Duration::from_millis(600);
        // API versions: Metadata 0-12 and DescribeGroups 0-5 among them.
        let mut versions = vec![0, 0, 0, 0, 0, 3];
        for (key, high) in [(1_i16, 17_i16), (3, 12), (15, 5)] {
            versions.extend([key.to_be_bytes(), [0; 2], high.to_be_bytes()].concat());
        }
        // Metadata 10: no tags, no throttling, no brokers, no cluster id, no controller, no topics.
        let metadata = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        let (asked, says) = std::sync::mpsc::channel();
        let slow = listener(move |connection| {
            let mut head = [0; 12];
            while connection.read_exact(&mut head).is_ok() {
                let mut rest = vec![0; i32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize - 8];
                connection.read_exact(&mut rest).expect("a whole request");
                let key = i16::from_be_bytes([head[4], head[5]]);
                let _ = asked.send(key);
                let body = if key == broker::METADATA { &metadata } else { &versions };
                std::thread::sleep(WITHIN * 2 / 3);
                let size = (body.len() as i32 + 4).to_be_bytes();
                let _ = connection.write_all(&[&size[..], &head[8..12], body].concat());
            }
        });
        let mut kafka = kafka(KafkaClient::Librdkafka);
        kafka.brokers = vec![slow];
        assert_eq!(denials(&kafka, WITHIN), Err(Unknown::Unanswered));
        let asked: Vec<i16> = says.try_iter().collect();
        assert!(!asked.contains(&broker::FIND_COORDINATOR), "the time was over before that: {asked:?}");
        // With time enough it comes as far as that.
        let _ = denials(&kafka, WITHIN * 20);
        assert!(says.try_iter().any(|key| key == broker::FIND_COORDINATOR));
    }

    #[test]
    fn a_broker_that_is_away_does_not_make_another_ones_fault_final() {
        let wrong = listener(|connection| {
            let _ = connection.read(&mut [0; 64]);
            let _ = connection.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        });
        let mut kafka = kafka(KafkaClient::Librdkafka);
        kafka.brokers = vec![wrong, "127.0.0.1:1".into()];
        assert_eq!(refusal(&kafka, Duration::from_millis(500)), None, "the second may come back, and be the right one");
    }
}
