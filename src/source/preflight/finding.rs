//! What may be found, and the sentence for it: what is the matter, and which setting to change. Pure.

use crate::source::tls::TlsFault;

/// Why a cluster cannot be read as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The name does not resolve.
    Dns(String),
    /// Nobody listens.
    Refused,
    /// No connection.
    Unreachable(String),
    /// Connected, and no answer.
    Silent,
    /// Closed at the first request.
    ClosedAtOnce,
    /// The answer is not Kafka's; how it begins.
    NotKafka([u8; 4]),
    /// TLS is not configured, and the port speaks it.
    TlsPort,
    /// TLS is configured, and the port does not speak it.
    PlainPort,
    /// TLS fails.
    Tls(TlsFault),
    /// The port asks for a log-in, and none is configured.
    SaslRequired {
        /// Its mechanisms.
        offered: Vec<String>,
    },
    /// A log-in is configured, and the port has none.
    NoSaslThere,
    /// Another mechanism.
    Mechanism {
        /// The configured one.
        asked: &'static str,
        /// The port's.
        offered: Vec<String>,
    },
    /// User or password, in the broker's words.
    Credentials(String),
    /// The password file cannot be used now.
    PasswordFile(String),
    /// The pure-Rust client speaks another version than the broker.
    Versions {
        /// Of which request.
        request: &'static str,
        /// The broker's.
        offered: Option<(i16, i16)>,
        /// The client's only one.
        needed: i16,
    },
    /// The broker is older than librdkafka reads.
    TooOld {
        /// Its versions of Fetch.
        offered: Option<(i16, i16)>,
    },
    /// KIP-848 is asked for, and the broker does not have it.
    NoNewGroupProtocol,
    /// No such topic.
    TopicMissing(String),
    /// No rights on a topic.
    TopicDenied(String),
    /// It may be seen, and not be read.
    TopicUnreadable(String),
    /// Another error of a topic.
    Topic {
        /// Its name.
        topic: String,
        /// Kafka's error code.
        code: i16,
    },
    /// The group may not be read as.
    GroupDenied(String),
    /// A codec that the pure-Rust client cannot read.
    Codec {
        /// Topic that holds it.
        topic: String,
        /// Its name.
        codec: &'static str,
    },
    /// The broker does not convert this topic's records to the old format.
    NoDownConversion(String),
}

const LIBRDKAFKA: &str = "set kafka.client = \"librdkafka\"";

impl Finding {
    /// Whether nobody was there to say anything: a broker that is starting closes connections, too.
    pub fn is_absence(&self) -> bool {
        use Finding::{ClosedAtOnce, Dns, Refused, Silent, Tls, Unreachable};
        matches!(self, Dns(_) | Refused | Unreachable(_) | Silent | ClosedAtOnce | Tls(TlsFault::Broken(_)))
    }

    /// Whether it is a right that is missing: somebody may grant it at any time.
    pub fn is_denial(&self) -> bool {
        matches!(self, Self::TopicDenied(_) | Self::TopicUnreadable(_) | Self::GroupDenied(_))
    }

    /// One sentence.
    pub fn sentence(&self, broker: &str) -> String {
        let versions = |offered: &Option<(i16, i16)>| match offered {
            Some((low, high)) if low == high => low.to_string(),
            Some((low, high)) => format!("{low}-{high}"),
            None => "in no version".to_owned(),
        };
        match self {
            Self::Dns(words) => format!("{broker}: the name does not resolve ({words}): is kafka.brokers right?"),
            Self::Refused => format!("{broker}: connection refused: is the broker up, and kafka.brokers right?"),
            Self::Unreachable(words) => {
                format!("{broker}: no connection ({words}): is the broker up, kafka.brokers right, and no firewall between?")
            }
            Self::Silent => {
                format!("{broker} takes connections and does not answer: is it a Kafka broker (0.11 or later), and is it well?")
            }
            Self::ClosedAtOnce => {
                format!("{broker} closes the connection at the first request: is it a Kafka broker (0.11 or later)?")
            }
            Self::NotKafka(begin) => {
                let begin: String = begin.iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '.' }).collect();
                format!(
                    "{broker} does not speak Kafka's protocol (its answer begins with \"{begin}\"): is the port in kafka.brokers right?"
                )
            }
            Self::TlsPort => format!(
                "{broker} speaks TLS, and none is configured: write a table [kafka.tls], or name a plain port in kafka.brokers"
            ),
            Self::PlainPort => format!(
                "{broker} speaks no TLS, and [kafka.tls] asks for it: name the TLS port in kafka.brokers, or take [kafka.tls] out"
            ),
            Self::Tls(fault) => tls_sentence(broker, fault),
            Self::SaslRequired { offered } => {
                format!(
                    "{broker} asks for a log-in (it offers {}), and none is configured: write a table [kafka.sasl]",
                    list(offered)
                )
            }
            Self::NoSaslThere => format!(
                "{broker} has no log-in on this port, and [kafka.sasl] asks for one: name the SASL port in kafka.brokers, or take [kafka.sasl] out"
            ),
            Self::Mechanism { asked, offered } => {
                format!("{broker} does not offer {asked} but {}: set kafka.sasl.mechanism", list(offered))
            }
            Self::Credentials(words) => {
                let words = if words.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", crate::core::text::clean_text(words.as_bytes(), 200))
                };
                format!(
                    "{broker} does not let this user in{words}: are kafka.sasl.username and the content of kafka.sasl.password_file right?"
                )
            }
            Self::PasswordFile(words) => format!("nobody can log in to {broker}: {words}"),
            Self::Versions { request, offered, needed } => {
                format!("{broker} speaks {request} {}, the kafka client only {needed}: {LIBRDKAFKA}", versions(offered))
            }
            Self::TooOld { offered } => {
                format!(
                    "{broker} speaks Fetch {}, and librdkafka needs 4: brokers before Kafka 0.11 cannot be read",
                    versions(offered)
                )
            }
            Self::NoNewGroupProtocol => format!(
                "{broker} does not have the group protocol \"consumer\" (it does not list request 68 in version 1, Kafka 4.0 does): take \"group.protocol\" \
                 out of [kafka.librdkafka]"
            ),
            Self::TopicMissing(topic) => format!("topic {topic} does not exist: create it, or correct kafka.topics"),
            Self::TopicDenied(topic) => {
                format!("this user has no rights on topic {topic} (or it does not exist): grant READ and DESCRIBE on it")
            }
            Self::Topic { topic, code } => format!("topic {topic} cannot be read: Kafka's error {code}"),
            Self::TopicUnreadable(topic) => format!("this user may not read topic {topic}: grant READ on it"),
            Self::GroupDenied(group) => format!("this user may not use group {group}: grant READ on it, or change kafka.group"),
            Self::Codec { topic, codec } => {
                format!("topic {topic} holds records compressed with {codec}, which the kafka client cannot read: {LIBRDKAFKA}")
            }
            Self::NoDownConversion(topic) => format!(
                "the broker does not convert topic {topic} to the format that the kafka client reads (message.downconversion.enable): {LIBRDKAFKA}"
            ),
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn tls_sentence(broker: &str, fault: &TlsFault) -> String {
    match fault {
        TlsFault::Expired => {
            format!("{broker}: the broker's certificate has expired: renew it there (or is this machine's clock wrong?)")
        }
        TlsFault::NotYetValid => format!("{broker}: the broker's certificate is not valid yet: is one of the clocks wrong?"),
        TlsFault::UnknownIssuer => format!(
            "{broker}: no CA that is trusted here has signed the broker's certificate: does kafka.tls.ca_file name the right one?"
        ),
        TlsFault::WrongHost => format!(
            "{broker}: the broker's certificate is for another host name: use the name in it in kafka.brokers (and in the broker's advertised.listeners)"
        ),
        TlsFault::Refused(words) => format!("{broker}: the broker's certificate is not accepted ({words})"),
        TlsFault::Alert(116) => {
            format!("{broker} asks for a client certificate: name one with kafka.tls.cert_file and kafka.tls.key_file")
        }
        TlsFault::Alert(45) => format!("{broker} does not accept the client certificate (kafka.tls.cert_file): it has expired"),
        TlsFault::Alert(42 | 43 | 44 | 46 | 48) => format!(
            "{broker} does not accept the client certificate, or asks for one: is kafka.tls.cert_file set, valid, and of a CA that the broker trusts?"
        ),
        TlsFault::Alert(70) => format!("{broker} speaks none of the TLS versions that OpenSSL allows here"),
        TlsFault::Alert(n) => format!("{broker} breaks the TLS handshake off (alert {n})"),
        TlsFault::NotTls => format!("{broker} speaks neither TLS nor Kafka's protocol: is the port in kafka.brokers right?"),
        TlsFault::Files(words) => format!("TLS to Kafka: {words}"),
        TlsFault::Broken(words) => {
            format!(
                "{broker}: the TLS handshake failed ({}): is it a TLS port?",
                crate::core::text::clean_text(words.as_bytes(), 200)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason of preflight with its sentence: a new one has to be added here.
    #[test]
    fn every_reason_names_the_setting_to_change() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let table: Vec<(Finding, &str)> = vec![
            (
                Finding::Dns("Name or service not known".into()),
                "k:1: the name does not resolve (Name or service not known): is kafka.brokers right?",
            ),
            (Finding::Refused, "k:1: connection refused: is the broker up, and kafka.brokers right?"),
            (
                Finding::Unreachable("no answer in time".into()),
                "k:1: no connection (no answer in time): is the broker up, kafka.brokers right, and no firewall between?",
            ),
            (Finding::Silent, "k:1 takes connections and does not answer: is it a Kafka broker (0.11 or later), and is it well?"),
            (Finding::ClosedAtOnce, "k:1 closes the connection at the first request: is it a Kafka broker (0.11 or later)?"),
            (
                Finding::NotKafka(*b"HTTP"),
                "k:1 does not speak Kafka's protocol (its answer begins with \"HTTP\"): is the port in kafka.brokers right?",
            ),
            (
                Finding::NotKafka([0x15, 3, 1, b'"']),
                "k:1 does not speak Kafka's protocol (its answer begins with \"...\"\"): is the port in kafka.brokers right?",
            ),
            (
                Finding::TlsPort,
                "k:1 speaks TLS, and none is configured: write a table [kafka.tls], or name a plain port in kafka.brokers",
            ),
            (
                Finding::PlainPort,
                "k:1 speaks no TLS, and [kafka.tls] asks for it: name the TLS port in kafka.brokers, or take [kafka.tls] out",
            ),
            (
                Finding::Tls(TlsFault::Expired),
                "k:1: the broker's certificate has expired: renew it there (or is this machine's clock wrong?)",
            ),
            (Finding::Tls(TlsFault::NotYetValid), "k:1: the broker's certificate is not valid yet: is one of the clocks wrong?"),
            (
                Finding::Tls(TlsFault::UnknownIssuer),
                "k:1: no CA that is trusted here has signed the broker's certificate: does kafka.tls.ca_file name the right one?",
            ),
            (
                Finding::Tls(TlsFault::WrongHost),
                "k:1: the broker's certificate is for another host name: use the name in it in kafka.brokers (and in the broker's advertised.listeners)",
            ),
            (Finding::Tls(TlsFault::Refused("x".into())), "k:1: the broker's certificate is not accepted (x)"),
            (
                Finding::Tls(TlsFault::Alert(116)),
                "k:1 asks for a client certificate: name one with kafka.tls.cert_file and kafka.tls.key_file",
            ),
            (
                Finding::Tls(TlsFault::Alert(45)),
                "k:1 does not accept the client certificate (kafka.tls.cert_file): it has expired",
            ),
            (
                Finding::Tls(TlsFault::Alert(42)),
                "k:1 does not accept the client certificate, or asks for one: is kafka.tls.cert_file set, valid, and of a CA that the broker trusts?",
            ),
            (Finding::Tls(TlsFault::Alert(70)), "k:1 speaks none of the TLS versions that OpenSSL allows here"),
            (Finding::Tls(TlsFault::Alert(80)), "k:1 breaks the TLS handshake off (alert 80)"),
            (Finding::Tls(TlsFault::NotTls), "k:1 speaks neither TLS nor Kafka's protocol: is the port in kafka.brokers right?"),
            (Finding::Tls(TlsFault::Files("/ca cannot be read".into())), "TLS to Kafka: /ca cannot be read"),
            (Finding::Tls(TlsFault::Broken("eof".into())), "k:1: the TLS handshake failed (eof): is it a TLS port?"),
            (
                Finding::SaslRequired { offered: names(&["PLAIN", "SCRAM-SHA-512"]) },
                "k:1 asks for a log-in (it offers PLAIN, SCRAM-SHA-512), and none is configured: write a table [kafka.sasl]",
            ),
            (
                Finding::NoSaslThere,
                "k:1 has no log-in on this port, and [kafka.sasl] asks for one: name the SASL port in kafka.brokers, or take [kafka.sasl] out",
            ),
            (
                Finding::Mechanism { asked: "SCRAM-SHA-256", offered: names(&["PLAIN"]) },
                "k:1 does not offer SCRAM-SHA-256 but PLAIN: set kafka.sasl.mechanism",
            ),
            (
                Finding::Credentials("invalid credentials".into()),
                "k:1 does not let this user in (invalid credentials): are kafka.sasl.username and the content of kafka.sasl.password_file right?",
            ),
            (Finding::PasswordFile("/p is empty".into()), "nobody can log in to k:1: /p is empty"),
            (
                Finding::Versions { request: "Fetch", offered: Some((4, 18)), needed: 0 },
                "k:1 speaks Fetch 4-18, the kafka client only 0: set kafka.client = \"librdkafka\"",
            ),
            (
                Finding::Versions { request: "Metadata", offered: None, needed: 4 },
                "k:1 speaks Metadata in no version, the kafka client only 4: set kafka.client = \"librdkafka\"",
            ),
            (
                Finding::TooOld { offered: Some((0, 3)) },
                "k:1 speaks Fetch 0-3, and librdkafka needs 4: brokers before Kafka 0.11 cannot be read",
            ),
            (
                Finding::NoNewGroupProtocol,
                "k:1 does not have the group protocol \"consumer\" (it does not list request 68 in version 1, Kafka 4.0 does): take \"group.protocol\" out of [kafka.librdkafka]",
            ),
            (Finding::TopicMissing("t".into()), "topic t does not exist: create it, or correct kafka.topics"),
            (
                Finding::TopicDenied("t".into()),
                "this user has no rights on topic t (or it does not exist): grant READ and DESCRIBE on it",
            ),
            (Finding::Topic { topic: "t".into(), code: 17 }, "topic t cannot be read: Kafka's error 17"),
            (Finding::TopicUnreadable("t".into()), "this user may not read topic t: grant READ on it"),
            (Finding::GroupDenied("g".into()), "this user may not use group g: grant READ on it, or change kafka.group"),
            (
                Finding::Codec { topic: "t".into(), codec: "zstd" },
                "topic t holds records compressed with zstd, which the kafka client cannot read: set kafka.client = \"librdkafka\"",
            ),
            (
                Finding::NoDownConversion("t".into()),
                "the broker does not convert topic t to the format that the kafka client reads (message.downconversion.enable): set kafka.client = \"librdkafka\"",
            ),
        ];
        for (finding, sentence) in table {
            assert_eq!(finding.sentence("k:1"), sentence, "{finding:?}");
        }
    }

    #[test]
    fn only_who_is_away_may_come_back_by_himself() {
        assert!(Finding::Refused.is_absence() && Finding::Silent.is_absence() && Finding::ClosedAtOnce.is_absence());
        assert!(!Finding::TlsPort.is_absence() && !Finding::Tls(TlsFault::Expired).is_absence());
    }
}
