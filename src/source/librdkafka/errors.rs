//! What librdkafka's errors mean here, and one sentence each for people. Pure.
//!
//! What is *done* depends on codes only. Its words are looked at for the sentence and the metric's label: an expired
//! certificate, a wrong name and an unknown CA are one code and one text, and a missing SASL or TLS setting is a closed
//! connection without any (measured with librdkafka 2.12.1), so that the sentence has to name the candidates.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::source::{SourceError, Trouble, TroubleKind};

/// librdkafka's own words that go with an error.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// Of the error itself.
    pub(super) reason: String,
    /// The last thing said about a connection, and of which kind it was.
    pub(super) connection: Option<(TroubleKind, String)>,
}

/// What to do about an error.
#[derive(Debug)]
pub(super) enum Meaning {
    /// Some partition's position is outside of its log.
    PositionLost(String),
    /// librdkafka goes on trying.
    Trouble(Trouble),
    /// This client must not be polled again.
    Broken(SourceError),
}

/// `fatal` is the client's fatal error, where it has one.
pub(super) fn meaning(error: &KafkaError, fatal: Option<(Code, String)>, told: &Told, group: &str) -> Meaning {
    let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
    if let Some((code, text)) = fatal {
        return Meaning::Broken(fatal_error(code, &shortened(&text)));
    }
    match code {
        Code::AutoOffsetReset => Meaning::PositionLost(told.reason.clone()),
        Code::FencedInstanceId => Meaning::Broken(fatal_error(code, &told.reason)),
        // The reader may have lost its place in the answer and would go on behind records that it never delivered.
        Code::BadMessage | Code::BadCompression | Code::NotImplemented | Code::Underflow | Code::Partial | Code::Inconsistent => {
            Meaning::Broken(SourceError::Damaged(format!("a fetched batch could not be decoded: {}", told.reason)))
        }
        Code::Fatal => Meaning::Broken(fatal_error(code, &told.reason)),
        _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => Meaning::Broken(fatal_error(code, &told.reason)),
        _ => Meaning::Trouble(trouble(code, told, group)),
    }
}

fn fatal_error(code: Code, text: &str) -> SourceError {
    if code == Code::FencedInstanceId {
        SourceError::Fenced(format!(
            "another process has joined the consumer group under this one's name ({text}): is this pipeline running twice with \
             one state directory, or was this machine cloned?"
        ))
    } else {
        SourceError::Rebuild(format!("the Kafka client cannot go on: {text}"))
    }
}

fn trouble(code: Code, told: &Told, group: &str) -> Trouble {
    let mut kind = kind_of_code(code);
    let mut words = told.reason.as_str();
    if kind == TroubleKind::Connection {
        kind = kind_of_words(words);
        // "1/1 brokers are down": what was said before it says why.
        if let (Code::AllBrokersDown, Some((before, text))) = (code, &told.connection) {
            (kind, words) = (*before, text.as_str());
        }
    }
    let named = format!("{words} ({code})");
    Trouble { kind, text: sentence(kind, if kind == TroubleKind::Other { &named } else { words }, group) }
}

/// librdkafka's words, and what may be the matter.
pub(super) fn sentence(kind: TroubleKind, words: &str, group: &str) -> String {
    match kind {
        TroubleKind::Connection => format!(
            "no connection to a broker: {words}; is the broker up and kafka.brokers right, and does that port speak what is \
             configured here (plain, TLS, SASL)?"
        ),
        TroubleKind::Tls if words.contains(" alert ") => format!(
            "the broker refuses the TLS client certificate, or asks for one: {words}; is it configured, valid, and of a CA that \
             the broker trusts?"
        ),
        TroubleKind::Tls => format!(
            "TLS with a broker failed: {words}; either the CA is not the configured one, or the broker's certificate has expired \
             or is for another host name, or the port is not a TLS port"
        ),
        TroubleKind::Authentication => {
            format!("the broker refuses to authenticate: {words}; are SASL mechanism, user name and password right?")
        }
        TroubleKind::Authorization => {
            format!("not permitted: {words}; this user needs READ and DESCRIBE on the topics, and READ on the group {group}")
        }
        TroubleKind::UnknownTopic => format!("a topic or partition is not there: {words}; kafka.topics names it"),
        TroubleKind::Other => words.to_owned(),
    }
}

/// By code alone.
pub(super) fn kind_of_code(code: Code) -> TroubleKind {
    match code {
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::TimedOutQueue
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::WaitingForCoordinator
        | Code::CoordinatorNotAvailable => TroubleKind::Connection,
        Code::SSL => TroubleKind::Tls,
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism | Code::IllegalSASLState => {
            TroubleKind::Authentication
        }
        Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            TroubleKind::Authorization
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => TroubleKind::UnknownTopic,
        _ => TroubleKind::Other,
    }
}

/// Of something said about a connection: librdkafka has one code for refused, reset, and a TLS alert.
pub(super) fn kind_of_words(words: &str) -> TroubleKind {
    if words.contains("SSL") || words.contains("certificate") {
        TroubleKind::Tls
    } else if words.contains("SASL") && !words.contains("Disconnected") {
        TroubleKind::Authentication
    } else {
        TroubleKind::Connection
    }
}

/// One line of at most 300 characters.
pub(super) fn shortened(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(reason: &str) -> Told {
        Told { reason: reason.into(), connection: None }
    }

    #[track_caller]
    fn check_kind(code: Code, reason: &str, kind: TroubleKind) {
        match meaning(&KafkaError::MessageConsumption(code), None, &told(reason), "g") {
            Meaning::Trouble(t) => assert_eq!(t.kind, kind, "{}", t.text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_librdkafka_mends_by_itself_is_trouble_of_a_closed_set_of_kinds() {
        check_kind(
            Code::BrokerTransportFailure,
            "Connect to ipv4#127.0.0.1:1 failed: Connection refused",
            TroubleKind::Connection,
        );
        check_kind(Code::BrokerTransportFailure, "sslv3 alert bad certificate: SSL alert number 42", TroubleKind::Tls);
        check_kind(Code::SSL, "SSL handshake failed", TroubleKind::Tls);
        check_kind(Code::Authentication, "SASL authentication error", TroubleKind::Authentication);
        check_kind(Code::GroupAuthorizationFailed, "", TroubleKind::Authorization);
        check_kind(Code::UnknownTopicOrPartition, "Subscribed topic not available: x", TroubleKind::UnknownTopic);
        check_kind(Code::PollExceeded, "Application maximum poll interval exceeded", TroubleKind::Other);
    }

    #[test]
    fn all_brokers_down_says_what_was_said_before_it() {
        let told = Told { reason: "1/1 brokers are down".into(), connection: Some((TroubleKind::Tls, "verify failed".into())) };
        match meaning(&KafkaError::MessageConsumption(Code::AllBrokersDown), None, &told, "g") {
            Meaning::Trouble(t) => assert!(t.kind == TroubleKind::Tls && t.text.contains("verify failed"), "{t:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_that_cannot_be_decoded_is_never_polled_past() {
        for code in [Code::BadMessage, Code::BadCompression, Code::NotImplemented, Code::Underflow, Code::Partial] {
            let meaning = meaning(&KafkaError::MessageConsumption(code), None, &told("x"), "g");
            assert!(matches!(meaning, Meaning::Broken(SourceError::Damaged(_))), "{code:?} {meaning:?}");
        }
    }

    #[test]
    fn a_second_process_under_this_name_is_told_apart_from_other_fatal_errors() {
        let fatal = |code| meaning(&KafkaError::MessageConsumption(Code::Fatal), Some((code, "x".into())), &told("x"), "g");
        assert!(matches!(fatal(Code::FencedInstanceId), Meaning::Broken(SourceError::Fenced(_))));
        assert!(matches!(fatal(Code::InconsistentGroupProtocol), Meaning::Broken(SourceError::Rebuild(_))));
    }
}
