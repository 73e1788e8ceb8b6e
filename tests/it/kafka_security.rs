//! TLS and SASL to real brokers: each case works, or is told by the exact line. One broker of each version with a port per case.

use std::path::PathBuf;
use std::sync::OnceLock;

use openssl::x509::X509;
use txrelay::config::{self, ClientCertificate, KafkaClient, KafkaSasl, KafkaTls, Password, SaslMechanism};
use txrelay::core::tls::unix_seconds;
use txrelay::source::preflight;

use crate::rig::{Authority, Broker, LIMIT, Ledger, On, Relay, Right, To, Topic, eventually, ids, unique, write_private};

const USER: &str = "relay";
const PASSWORD: &str = "s3cret";

/// A broker with many doors. Certificates are in `folder`.
struct Secured {
    broker: Broker,
    folder: PathBuf,
}

impl Secured {
    fn start(version: &str) -> Self {
        let folder = std::env::temp_dir().join(unique("txrelay-certificates"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (ca, rogue) = (Authority::new("test CA"), Authority::new("rogue CA"));
        ca.write(&folder.join("ca.crt"));
        rogue.write(&folder.join("rogue-ca.crt"));
        for (stem, host, expired) in
            [("server", "localhost", false), ("expired", "localhost", true), ("other", "other.invalid", false)]
        {
            let issued = ca.issue(host, expired, &folder, stem);
            // Kafka takes key and chain out of one file.
            let pem =
                [issued.key, issued.certificate, folder.join("ca.crt")].map(|file| std::fs::read(file).expect("PEM")).concat();
            write_private(&folder.join(format!("{stem}.pem")), &pem);
        }
        ca.issue("relay", false, &folder, "client");
        ca.issue_until("relay", 12 * 3600, &folder, "client-short");
        ca.issue("relay", true, &folder, "client-expired");
        rogue.issue("relay", false, &folder, "client-rogue");
        write_private(&folder.join("password"), PASSWORD.as_bytes());
        write_private(&folder.join("wrong"), b"wrong");
        let mut options = vec!["--version".to_owned(), version.to_owned(), "--user".to_owned(), format!("{USER}={PASSWORD}")];
        // Everything is everybody's until somebody is given a right on it.
        for setting in [
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS",
            "allow.everyone.if.no.acl.found=true",
        ] {
            options.extend(["--set".to_owned(), setting.to_owned()]);
        }
        for (name, protocol, keystore, client) in [
            ("GOOD", "SSL", "server", "none"),
            ("EXPIRED", "SSL", "expired", "none"),
            ("OTHER", "SSL", "other", "none"),
            ("MUTUAL", "SSL", "server", "required"),
            ("LOGIN", "SASL_SSL", "server", "none"),
            ("BARE", "SASL_PLAINTEXT", "", ""),
        ] {
            options.extend(["--listener".to_owned(), format!("{name}:{protocol}")]);
            if protocol != "SASL_PLAINTEXT" {
                let (prefix, at) = (format!("listener.name.{}.ssl", name.to_lowercase()), folder.display());
                for setting in [
                    format!("{prefix}.keystore.type=PEM"),
                    format!("{prefix}.keystore.location={at}/{keystore}.pem"),
                    format!("{prefix}.truststore.type=PEM"),
                    format!("{prefix}.truststore.location={at}/ca.crt"),
                    format!("{prefix}.client.auth={client}"),
                ] {
                    options.extend(["--set".to_owned(), setting]);
                }
            }
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Self { broker: Broker::with(&options), folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `name` is PLAIN, GOOD and so on.
    fn kafka(&self, client: KafkaClient, name: &str, topic: &str) -> config::Kafka {
        let address = if name == "PLAIN" { self.broker.address.clone() } else { self.broker.listener(name) };
        config::Kafka { client, ..config::Kafka::plain(&[&address], &[topic], "group") }
    }

    fn tls(&self, ca: &str) -> Option<KafkaTls> {
        Some(KafkaTls { ca: Some(self.file(ca)), client: None })
    }

    fn tls_as(&self, stem: &str) -> Option<KafkaTls> {
        let client = ClientCertificate { chain: self.file(&format!("{stem}.crt")), key: self.file(&format!("{stem}.key")) };
        Some(KafkaTls { client: Some(client), ..self.tls("ca.crt").expect("TLS") })
    }

    fn sasl(&self, mechanism: SaslMechanism, user: &str, password: &str) -> Option<KafkaSasl> {
        let password = Password::File(self.file(password).display().to_string());
        Some(KafkaSasl { mechanism, username: user.to_owned(), password })
    }
}

fn newest() -> &'static Secured {
    static BROKER: OnceLock<Secured> = OnceLock::new();
    BROKER.get_or_init(|| Secured::start("4.3.1"))
}

fn kafka_3_9() -> &'static Secured {
    static BROKER: OnceLock<Secured> = OnceLock::new();
    BROKER.get_or_init(|| Secured::start("3.9.2"))
}

/// What preflight says: nothing, or the sentence behind the broker's name.
#[track_caller]
fn says(kafka: &config::Kafka, expected: &str) {
    let said = match preflight::check(kafka, LIMIT / 4) {
        Ok(found) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        Err(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    };
    let said = said.strip_prefix(&kafka.brokers[0]).unwrap_or(&said);
    if expected.is_empty() { assert_eq!(said, "") } else { assert!(said.contains(expected), "{said}") }
}

fn every_case_is_told(at: &Secured, client: KafkaClient) {
    let topic = Topic::on(&at.broker.address, 1, &[]);
    topic.write(0, ids("a", 0..3));
    let kafka = |name| at.kafka(client, name, &topic.name);
    let with = |name, tls| config::Kafka { tls, ..kafka(name) };
    says(&kafka("PLAIN"), "");
    says(&with("GOOD", at.tls("ca.crt")), "");
    says(&with("MUTUAL", at.tls_as("client")), "");
    says(
        &with("GOOD", at.tls("rogue-ca.crt")),
        ": no CA that is trusted here has signed the broker's certificate: does kafka.tls.ca_file",
    );
    says(&with("GOOD", Some(KafkaTls::default())), ": no CA that is trusted here");
    says(&with("EXPIRED", at.tls("ca.crt")), ": the broker's certificate has expired");
    says(&with("OTHER", at.tls("ca.crt")), ": the broker's certificate is for another host name");
    says(&with("MUTUAL", at.tls("ca.crt")), "client certificate");
    says(&with("MUTUAL", at.tls_as("client-rogue")), "does not accept the client certificate");
    says(&with("MUTUAL", at.tls_as("client-expired")), "does not accept the client certificate");
    says(&kafka("GOOD"), " speaks TLS, and none is configured: write a table [kafka.tls]");
    says(&with("PLAIN", at.tls("ca.crt")), " speaks no TLS, and [kafka.tls] asks for it");
    says(&config::Kafka { topics: vec![unique("none")], ..kafka("PLAIN") }, "does not exist: create it, or correct kafka.topics");
    says(&kafka("BARE"), " asks for a log-in (it offers ");
    says(&with("LOGIN", at.tls("ca.crt")), "and none is configured: write a table [kafka.sasl]");
    if client == KafkaClient::Kafka {
        return;
    }
    let log_in =
        |name, tls, mechanism, user, password| config::Kafka { sasl: at.sasl(mechanism, user, password), ..with(name, tls) };
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256, SaslMechanism::ScramSha512] {
        says(&log_in("LOGIN", at.tls("ca.crt"), mechanism, USER, "password"), "");
        says(&log_in("BARE", None, mechanism, USER, "password"), "");
        let refused = " does not let this user in (";
        says(&log_in("LOGIN", at.tls("ca.crt"), mechanism, USER, "wrong"), refused);
        says(&log_in("BARE", None, mechanism, "nobody", "password"), refused);
    }
    let scram = SaslMechanism::ScramSha512;
    says(&log_in("PLAIN", None, scram, USER, "password"), " has no log-in on this port, and [kafka.sasl] asks for one");
    says(&log_in("LOGIN", None, scram, USER, "password"), " speaks TLS, and none is configured");
    says(&log_in("BARE", at.tls("ca.crt"), scram, USER, "password"), " speaks no TLS, and [kafka.tls] asks for it");
    says(&log_in("LOGIN", at.tls("ca.crt"), scram, USER, "missing"), "cannot be read");
}

#[test]
fn every_way_not_to_get_in_has_its_own_sentence_on_kafka_4() {
    every_case_is_told(newest(), KafkaClient::Librdkafka);
    let mut kafka = newest().kafka(KafkaClient::Kafka, "PLAIN", "t");
    says(&kafka, ", the kafka client only 0: set kafka.client = \"librdkafka\"");
    kafka.client = KafkaClient::Librdkafka;
    kafka.librdkafka.insert("group.protocol".into(), "consumer".into());
    says(&kafka, "topic t does not exist");
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn every_way_not_to_get_in_has_its_own_sentence_on_kafka_3_9() {
    every_case_is_told(kafka_3_9(), KafkaClient::Librdkafka);
    every_case_is_told(kafka_3_9(), KafkaClient::Kafka);
    let mut kafka = kafka_3_9().kafka(KafkaClient::Librdkafka, "PLAIN", "t");
    kafka.librdkafka.insert("group.protocol".into(), "consumer".into());
    says(&kafka, " does not have the group protocol \"consumer\"");
}

/// A pipeline through one of the doors.
fn relay(at: &Secured, name: &str, topic: &Topic, ledger: &Ledger, more: &[String]) -> Relay {
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let address = if name == "PLAIN" { at.broker.address.clone() } else { at.broker.listener(name) };
    relay.set(&format!("kafka.brokers={address}"));
    more.iter().for_each(|set| relay.set(set));
    relay
}

fn tls_sets(at: &Secured, client: Option<&str>) -> Vec<String> {
    let mut sets = vec![format!("kafka.tls.ca_file={}", at.file("ca.crt").display())];
    if let Some(stem) = client {
        for (key, suffix) in [("cert_file", "crt"), ("key_file", "key")] {
            sets.push(format!("kafka.tls.{key}={}", at.file(&format!("{stem}.{suffix}")).display()));
        }
    }
    sets
}

fn sasl_sets(at: &Secured, mechanism: &str, password: &str) -> Vec<String> {
    vec![
        format!("kafka.sasl.mechanism={mechanism}"),
        format!("kafka.sasl.username={USER}"),
        format!("kafka.sasl.password_file={}", at.file(password).display()),
    ]
}

#[track_caller]
fn delivers(at: &Secured, name: &str, more: &[String]) {
    let (topic, ledger) = (Topic::on(&at.broker.address, 2, &[]), Ledger::start());
    let mut all = topic.write(0, ids("a", 0..20));
    all.extend(topic.write_gzip(1, ids("b", 0..20)));
    let mut relay = relay(at, name, &topic, &ledger, more);
    relay.start();
    eventually("everything is delivered", || ledger.count("accepted") == 40);
    ledger.has_exactly(&all);
    let out = relay.command(&["check-config", "--connect"]).output().expect("it runs");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.contains("10 of the newest 10 records give an id"), "{text}");
    eventually("everything is settled", || relay.count("select count(*) from delivery") == 0);
    let out = relay.command(&["reconcile"]).output().expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "reconcile asks the same brokers: {said}");
}

#[test]
fn transactions_come_through_tls_with_a_log_in() {
    let at = newest();
    delivers(at, "LOGIN", &[tls_sets(at, None), sasl_sets(at, "SCRAM-SHA-512", "password")].concat());
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn transactions_come_through_every_door() {
    for at in [newest(), kafka_3_9()] {
        delivers(at, "GOOD", &tls_sets(at, None));
        delivers(at, "MUTUAL", &tls_sets(at, Some("client")));
        delivers(at, "BARE", &sasl_sets(at, "SCRAM-SHA-256", "password"));
        delivers(at, "LOGIN", &[tls_sets(at, None), sasl_sets(at, "PLAIN", "password")].concat());
    }
    let (at, client) = (kafka_3_9(), vec!["kafka.client=kafka".to_owned()]);
    delivers(at, "PLAIN", &client);
    delivers(at, "GOOD", &[tls_sets(at, None), client.clone()].concat());
    delivers(at, "MUTUAL", &[tls_sets(at, Some("client")), client].concat());
}

#[test]
fn a_wrong_password_is_told_and_the_right_one_heals_it_without_a_restart() {
    let at = newest();
    let (topic, ledger) = (Topic::on(&at.broker.address, 1, &[]), Ledger::start());
    let all = topic.write(0, ids("a", 0..5));
    let file = format!("{}-password", topic.name);
    write_private(&at.file(&file), b"wrong");
    let mut relay = relay(at, "LOGIN", &topic, &ledger, &[tls_sets(at, None), sasl_sets(at, "SCRAM-SHA-512", &file)].concat());
    relay.start();
    eventually("the sentence", || relay.log().contains("does not let this user in"));
    assert_eq!(relay.metric("stalled{reason=\"kafka\"}"), Some(1.0));
    let out = relay.command(&["check-config", "--connect"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && said.contains("does not let this user in") && !said.contains("wrong\n"), "{said}");
    write_private(&at.file(&file), PASSWORD.as_bytes());
    eventually("everything is delivered", || ledger.count("accepted") == 5);
    ledger.has_exactly(&all);
    assert!(relay.is_running());
    eventually("nothing is waited for", || relay.metric("stalled{reason=\"kafka\"}") == Some(0.0));
}

#[test]
fn a_renewed_client_certificate_is_used_after_a_reload() {
    let at = newest();
    let (topic, ledger) = (Topic::on(&at.broker.address, 1, &[]), Ledger::start());
    topic.write(0, ids("a", 0..5));
    for suffix in ["crt", "key"] {
        let copy = at.file(&format!("{}.{suffix}", topic.name));
        write_private(&copy, &std::fs::read(at.file(&format!("client.{suffix}"))).expect("PEM"));
    }
    let mut relay = relay(at, "MUTUAL", &topic, &ledger, &tls_sets(at, Some(&topic.name)));
    relay.start();
    eventually("the first", || ledger.count("accepted") == 5);
    relay.signal("HUP");
    eventually("the reload", || relay.log().contains("configuration reloaded"));
    topic.write(0, ids("b", 0..5));
    eventually("the next", || ledger.count("accepted") == 10);
    assert!(!relay.log().contains("has new content"), "nothing is new");
    // Another one, of the same CA.
    let chain = [std::fs::read(at.file("client.crt")).expect("PEM"), std::fs::read(at.file("ca.crt")).expect("PEM")].concat();
    write_private(&at.file(&format!("{}.crt", topic.name)), &chain);
    relay.signal("HUP");
    eventually("the new one", || relay.log().contains("a file of [kafka.tls] or [kafka.sasl] has new content"));
    topic.write(0, ids("c", 0..5));
    eventually("the last", || ledger.count("accepted") == 15);
    assert_eq!(ledger.count("requests"), 15, "each once");
}

/// Of the broker at this door and of ours; one that has been renewed after the reload.
#[test]
fn the_first_certificate_that_ends_is_shown_and_a_renewed_one_after_a_reload() {
    const SERIES: &str = "certificate_expiry_timestamp_seconds{role=\"kafka\"}";
    let at = newest();
    let (topic, ledger) = (Topic::on(&at.broker.address, 1, &[]), Ledger::start());
    let renew = |stem: &str| {
        for suffix in ["crt", "key"] {
            let new = std::fs::read(at.file(&format!("{stem}.{suffix}"))).expect("PEM");
            write_private(&at.file(&format!("{}.{suffix}", topic.name)), &new);
        }
    };
    // The first that ends of those in these files.
    let first_end = |files: &[&str]| {
        let certificates = files.iter().flat_map(|name| {
            let pem = std::fs::read(at.file(name)).expect("PEM");
            X509::stack_from_pem(&pem).expect("certificates")
        });
        certificates.map(|one| unix_seconds(one.not_after()).expect("a time")).min().expect("one at least") as f64
    };
    renew("client-short");
    let mut relay = relay(at, "MUTUAL", &topic, &ledger, &tls_sets(at, Some(&topic.name)));
    relay.start();
    let ours = first_end(&["client-short.crt"]);
    assert!(ours < first_end(&["server.pem"]));
    eventually("ours, which ends first", || relay.metric(SERIES) == Some(ours));
    eventually("it is warned of", || relay.log().contains("a certificate of the connection to kafka expires within a day"));
    renew("client");
    relay.signal("HUP");
    let first = first_end(&["client.crt", "server.pem"]);
    eventually("the first of all", || relay.metric(SERIES) == Some(first));
    assert!(relay.stop().success());
    // That nothing can be read for it is no reason not to show it.
    relay.set(&format!("kafka.brokers={}", at.broker.listener("EXPIRED")));
    relay.start();
    let ended = first_end(&["expired.pem"]);
    assert!(ended < first);
    eventually("the broker's, which has ended", || relay.metric(SERIES) == Some(ended));
    assert!(relay.stop().success());
}

/// Each right that is missing has its sentence, in the command and in the daemon, which goes on by itself once it is given. Nobody
/// may use a topic or a group any more when somebody else is given a right on it.
#[track_caller]
fn each_missing_right_is_named_and_used_once_it_is_given(at: &Secured, client: &str) {
    let (topic, ledger) = (Topic::on(&at.broker.address, 2, &[]), Ledger::start());
    let mut sent = topic.write(0, ids("a", 0..20));
    let client_is = vec![format!("kafka.client={client}")];
    let mut relay = relay(at, "MUTUAL", &topic, &ledger, &[tls_sets(at, Some("client")), client_is].concat());
    relay.env("FAILPOINTS", "rights=return(500)");
    let (topic_name, group) = (topic.name.clone(), format!("txrelay-{}", relay.name));
    let (on_topic, on_group) = (On::Topic(&topic_name), On::Group(&group));
    for on in [on_topic, on_group] {
        at.broker.grant(&Right { user: "User:somebody-else", on, to: To::Read });
    }
    let right = |on, to| Right { user: "User:CN=relay", on, to };
    let command_says = |relay: &Relay, words: &str| {
        eventually(words, || {
            let out = relay.command(&["check-config", "--connect"]).output().expect("it runs");
            out.status.code() == Some(77) && String::from_utf8_lossy(&out.stderr).contains(words)
        });
    };
    let daemon_says = |relay: &Relay, words: &str| {
        eventually(words, || relay.http("/readyz").is_some_and(|text| text.contains(words)));
        assert!(relay.log().contains(words), "{}", relay.log());
        assert_eq!(relay.metric("stalled{reason=\"kafka\"}"), Some(1.0));
    };
    relay.start();
    let unseen = format!("this user has no rights on topic {topic_name} (or it does not exist): grant READ and DESCRIBE on it");
    let unread = format!("this user may not read topic {topic_name}: grant READ on it");
    let unjoined = format!("this user may not use group {group}: grant READ on it, or change kafka.group");
    let mut steps = vec![(&unseen, right(on_topic, To::Describe)), (&unread, right(on_topic, To::Read))];
    if client == "librdkafka" {
        // Whoever may describe a group may ask where it stands, and not join it.
        steps.extend([(&unjoined, right(on_group, To::Describe)), (&unjoined, right(on_group, To::Read))]);
    }
    for (words, missing) in steps {
        command_says(&relay, words);
        daemon_says(&relay, words);
        assert_eq!(ledger.count("requests"), 0);
        at.broker.grant(&missing);
    }
    let began = std::time::Instant::now();
    eventually("all are delivered", || ledger.count("accepted") == 20);
    println!("{client}: delivered {:.1} s after the last right was given", began.elapsed().as_secs_f64());
    if client == "kafka" {
        // It needs the group for its numbers alone: said, and waited for by nobody.
        command_says(&relay, &unjoined);
        at.broker.grant(&right(on_group, To::Read));
    }
    eventually("nothing is waited for", || relay.metric("stalled{reason=\"kafka\"}") == Some(0.0));
    assert!(relay.command(&["check-config", "--connect"]).output().expect("it runs").status.success());

    // Taken away from under it, once and again.
    for round in ["b", "c"] {
        at.broker.revoke(&right(on_topic, To::Read));
        daemon_says(&relay, &unread);
        sent.extend(topic.write(1, ids(round, 0..20)));
        assert!(ledger.count("accepted") < sent.len() as u64);
        at.broker.grant(&right(on_topic, To::Read));
        eventually("all are delivered", || ledger.count("accepted") == sent.len() as u64);
        eventually("nothing is waited for", || relay.metric("stalled{reason=\"kafka\"}") == Some(0.0));
    }
    ledger.has_exactly(&sent);
    assert_eq!(ledger.count("requests"), 60, "each once");
    assert!(relay.is_running());
    relay.balanced();
}

#[test]
fn a_missing_right_is_named_and_used_once_it_is_given() {
    each_missing_right_is_named_and_used_once_it_is_given(newest(), "librdkafka");
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_missing_right_is_named_on_kafka_3_9_with_both_clients() {
    for client in ["librdkafka", "kafka"] {
        each_missing_right_is_named_and_used_once_it_is_given(kafka_3_9(), client);
    }
}
