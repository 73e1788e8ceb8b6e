//! What single keys accept and refuse.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{BASE, FIVE_LINES, Folder, accepts, check, check_set, read, refuses};
use crate::config::{Start, TlsMode, load};
use crate::core::identify::IdRule;

#[test]
fn a_password_comes_from_its_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let file = folder.write("password", "hunter2\n");
    let set = format!("postgres.password_file={}", file.display());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    check_set(BASE, &[&set], &["--set: postgres.password_file: /..."]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let config = accepts(&[&set]);
    assert_eq!(config.postgres.password.read(), Ok(Some(b"hunter2".to_vec())));
    folder.write("password", "hunter3");
    assert_eq!(config.postgres.password.read(), Ok(Some(b"hunter3".to_vec())), "a new password needs no restart");
    std::fs::remove_file(&file).expect("removed");
    assert!(config.postgres.password.read().expect_err("gone").contains("cannot be read"));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_gate_that_could_never_probe_or_shut_is_refused() {
    let config = accepts(&["downstream.rate_limit=0", "gate.probe_every=30s"]);
    assert_eq!((config.downstream.rate_limit, config.gate.probe_every), (None, Duration::from_secs(30)));
    let config = accepts(&["downstream.rate_limit=500", "gate.shut_after=1"]);
    assert_eq!((config.downstream.rate_limit.map(u32::from), config.gate.shut_after), (Some(500), 1));
    refuses("gate.shut_after", "0", "1");
    refuses("gate.probe_every", "31s", "must not be longer than gate.probe_cap");
    assert_eq!(accepts(&["gate.probe_cap=1s"]).gate.probe_cap, Duration::from_secs(1), "it caps the default, too");
    refuses("downstream.rate_limit", "-1", "0");
}

#[test]
fn what_is_kept_is_kept_for_a_time_or_for_ever() {
    let day = Duration::from_secs(86_400);
    let retention = accepts(&[]).retention;
    assert_eq!((retention.delivered, retention.dead, retention.rejected), (Some(90 * day), Some(90 * day), Some(90 * day)));
    let retention = accepts(&["retention.delivered=forever", "retention.dead=30d", "retention.rejected=\"1h\""]).retention;
    assert_eq!((retention.delivered, retention.dead, retention.rejected), (None, Some(30 * day), Some(day / 24)));
    for key in ["retention.delivered", "retention.dead", "retention.rejected"] {
        for value in ["0", "59m", "for ever", "never", "90", "\"\"", "36501d"] {
            refuses(key, value, "must be \"forever\", or a time");
        }
    }
}

#[test]
fn a_backlog_has_a_limit_unless_it_is_0() {
    assert_eq!(accepts(&[]).kafka.backlog_max, Some(10_000_000));
    assert_eq!(accepts(&["kafka.backlog_max=10_000"]).kafka.backlog_max, Some(10_000));
    assert_eq!(accepts(&["kafka.backlog_max=0"]).kafka.backlog_max, None);
    refuses("kafka.backlog_max", "-1", "must be a whole number");
    refuses("kafka.backlog_max", "\"10\"", "must be a whole number");
}

#[test]
fn connection_strings_of_both_forms_are_taken() {
    use postgres::config::Host;
    let hosts = |url: &str| accepts(&[&format!("postgres.url={url}")]).postgres.client.get_hosts().to_vec();
    let tcp = |names: &[&str]| names.iter().map(|n| Host::Tcp(n.to_string())).collect::<Vec<_>>();
    assert_eq!(hosts("postgresql://txrelay@a:5432,b:5433/db?connect_timeout=3"), tcp(&["a", "b"]));
    assert_eq!(hosts("postgres://txrelay@[::1]/db?sslmode=prefer"), tcp(&["::1"]));
    assert_eq!(hosts("host = a,b port = 5432 user='tx relay' sslmode=disable"), tcp(&["a", "b"]));
    assert_eq!(hosts("host=/run/postgresql dbname=db"), [Host::Unix("/run/postgresql".into())]);
    assert_eq!(hosts("postgresql://%2Frun%2Fpostgresql/db"), [Host::Unix("/run/postgresql".into())]);
    for (url, part) in [
        ("", "must be a connection URL"),
        ("mysql://db", "must be a connection URL"),
        ("postgresql:///db", "names no host"),
        ("user=u", "names no host"),
        ("host=a,b,c port=1,2", "one port"),
        ("host=a port=x", "must be a connection URL"),
        ("host=a target_session_attrs=any", "target_session_attrs, which txrelay sets itself"),
        ("postgresql://a/b?application_name=x", "application_name, which txrelay sets itself"),
        ("host=a options='-c x=y'", "options, which txrelay sets itself"),
        ("host=a service=x", "a word that is not supported"),
        ("host=a sslmode=sometimes", "holds an sslmode"),
        ("host=/run/postgresql,b", "sockets and hosts together"),
        ("host=/run/postgresql hostaddr=10.0.0.1", "a socket and an address"),
    ] {
        refuses("postgres.url", url, part);
    }
}

#[test]
fn tls_to_postgresql_is_what_libpqs_words_say() {
    let tls = |url: &str| accepts(&[&format!("postgres.url={url}")]).postgres.tls;
    for (words, mode) in [
        ("", TlsMode::Prefer),
        ("sslmode=disable", TlsMode::Disable),
        ("sslmode=prefer", TlsMode::Prefer),
        ("sslmode=require", TlsMode::Require),
        ("sslmode=verify-ca", TlsMode::VerifyCa),
        ("ssl%6Dode=verify-full", TlsMode::VerifyFull),
        ("sslrootcert=system", TlsMode::VerifyFull),
        ("sslrootcert=&sslcert=&sslkey=", TlsMode::Prefer),
    ] {
        assert_eq!(tls(&format!("postgresql://u@a,b/db?connect_timeout=3&{words}")).mode, mode, "{words}");
        if !words.contains(['%', '&']) {
            assert_eq!(tls(&format!("host=a user='it s' {words} dbname=db")).mode, mode, "{words}");
        }
    }
    let folder = Folder::new();
    let junk = folder.write("junk.pem", "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n");
    let junk = junk.display();
    for (words, part) in [
        ("sslmode=allow", "holds an sslmode that is none"),
        ("sslmode=verify-ca&sslrootcert=system", "goes with sslmode=verify-full"),
        ("sslrootcert=/nonexistent/ca.pem", "sslrootcert: /nonexistent/ca.pem cannot be read"),
        ("sslrootcert=ca.pem", "sslrootcert: must be an absolute path"),
        (&format!("sslrootcert={junk}"), "holds no certificate in PEM form"),
        ("sslcert=/c.pem", "sslcert without sslkey"),
        ("sslkey=/k.pem", "sslkey without sslcert"),
        (&format!("sslcert={junk}&sslkey={junk}"), "sslcert: "),
        ("sslcrl=/x", "holds sslcrl, which is not supported"),
    ] {
        refuses("postgres.url", &format!("postgresql://db/x?{words}"), part);
    }
    refuses("postgres.url", "host=/run/postgresql sslmode=require", "TLS over a socket");
}

#[test]
fn a_url_must_be_safe_to_send_transactions_to() {
    for url in [
        "https://ledger.internal/transactions?x=1",
        "https://ledger.internal:8443",
        "http://127.0.0.1:8080/",
        "http://127.9.9.9/",
        "http://[::1]:8080/",
        "http://LOCALHOST/",
    ] {
        accepts(&[&format!("downstream.url={url}")]);
    }
    accepts(&["downstream.url=http://ledger/", "downstream.allow_plain_http=true"]);
    for (url, part) in [
        ("http://ledger/", "in the clear"),
        ("http://127.0.0.1.evil.example/", "in the clear"),
        ("http://localhost.example/", "in the clear"),
        ("http://[::2]/", "in the clear"),
        ("https://u@ledger/", "user or password"),
        ("http://127.0.0.1@evil.example/", "user or password"),
        ("https://ledger/#top", "fragment"),
        ("ftp://ledger/", "must begin with https://"),
        ("/transactions", "absolute URL"),
        ("ledger.internal", "absolute URL"),
        ("https://", "absolute URL"),
        ("https://led ger/", "absolute URL"),
        ("https://ledger:99999/", ""),
        ("https://ledger:0/", "port"),
        ("https://ledger:/", "port"),
    ] {
        refuses("downstream.url", url, part);
    }
}

#[test]
#[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
fn headers_may_not_replace_what_txrelay_sets() {
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "Connection",
        "Idempotency-Key",
        "Txrelay-Attempt",
        "user-agent",
        "Content-Type",
    ] {
        refuses("downstream.forward_headers", name, "");
        refuses(&format!("downstream.headers.{name}"), "x", "");
    }
    refuses("downstream.headers.Authorization", "x", "carries a secret");
    refuses("downstream.headers.X y", "x", "must be a header's name");
    refuses("downstream.headers.X", "a\tb", "must be a header's value");
    refuses("downstream.headers.tracestate", "x", "stands in downstream.forward_headers too");
    refuses("downstream.headers", "{ A = \"1\", a = \"2\" }", "twice");
    refuses("downstream.forward_headers", "a,A", "twice");
    refuses("downstream.idempotency_header", "Content-Type", "txrelay sets itself");
    check_set(
        BASE,
        &["downstream.idempotency_header=X-Id", "downstream.headers.x-id=1"],
        &["--set: downstream.headers.x-id: is the idempotency header..."],
    );
    let config = accepts(&["downstream.headers={ \"X-Source\" = \"payments\", B = \"2\" }", "downstream.headers.A=1"]);
    assert_eq!(
        config.downstream.headers,
        [("X-Source".into(), "payments".into()), ("B".into(), "2".into()), ("A".into(), "1".into())]
    );
}

#[test]
fn headers_keep_the_order_of_the_file() {
    let config = read(&format!("{BASE}[downstream.headers]\nZ = \"1\"\nA = \"2\"\n"), &[]).expect("loads");
    assert_eq!(config.downstream.headers, [("Z".into(), "1".into()), ("A".into(), "2".into())]);
}

#[test]
#[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
fn properties_that_txrelay_owns_are_refused_by_name() {
    for name in [
        "bootstrap.servers",
        "group.id",
        "group.instance.id",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "auto.offset.reset",
        "check.crcs",
        "isolation.level",
        "enable.partition.eof",
        "partition.assignment.strategy",
        "statistics.interval.ms",
        "client.id",
        "security.protocol",
        "ssl.ca.location",
        "sasl.mechanism",
        "enable.ssl.certificate.verification",
    ] {
        refuses(&format!("kafka.librdkafka.{name}"), "x", "");
    }
    check(
        &format!("{FIVE_LINES}[kafka.librdkafka]\n\"group.id\" = \"x\"\n\"fetch.wait.max.ms\" = \"100\"\n"),
        &["F:7:14: kafka.librdkafka.group.id: txrelay sets this property itself (use kafka.group): take it out"],
    );
    check(
        &format!("{FIVE_LINES}[kafka.librdkafka]\nfetch.wait.max.ms = \"1\"\n"),
        &["F:7:1: kafka.librdkafka: put a name with dots in quotes"],
    );
    check(
        &format!("{FIVE_LINES}[kafka.librdkafka]\n\"fetch.wait.max.ms\" = 1\n"),
        &["F:7:23: kafka.librdkafka: every value must be text in quotes"],
    );
    let config = accepts(&["kafka.librdkafka.fetch.wait.max.ms=100"]);
    assert_eq!(config.kafka.librdkafka, BTreeMap::from([("fetch.wait.max.ms".to_string(), "100".to_string())]));
}

#[test]
#[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
fn an_id_can_be_in_the_value_the_key_or_a_header() {
    let rule = |text: &str| accepts(&[&format!("transaction.id={text}")]).transaction_id;
    let value = |tokens: &[&str]| IdRule::Value(tokens.iter().map(|t| t.to_string()).collect());
    assert_eq!(rule("key"), IdRule::Key);
    assert_eq!(rule("header:X-Id"), IdRule::Header("X-Id".into()));
    assert_eq!(rule("value:"), value(&[]));
    assert_eq!(rule("value:/"), value(&[""]));
    assert_eq!(rule("value:/a/0/b"), value(&["a", "0", "b"]));
    assert_eq!(rule("value:/a~1b/~01/m~0n"), value(&["a/b", "~1", "m~n"]));
    for (text, part) in [
        ("value:id", "begins with /"),
        ("value:/a~2", "~0"),
        ("value:/~", "~0"),
        ("header:", "must be"),
        ("id", "must be"),
        ("", "must be"),
    ] {
        refuses("transaction.id", text, part);
    }
}

#[test]
fn a_start_is_a_word_or_a_time() {
    let start = |text: &str| accepts(&[&format!("kafka.start={text}")]).kafka.start;
    assert_eq!(start("earliest"), Some(Start::Earliest));
    assert_eq!(start("latest"), Some(Start::Latest));
    assert_eq!(start("committed"), Some(Start::Committed));
    assert_eq!(start("2026-11-01T01:00:00+01:00"), Some(Start::Time(1_793_491_200_000)));
    refuses("kafka.start", "yesterday", "must be \"earliest\"");
    refuses("kafka.start", "2026-11-01", "must be \"earliest\"");
    refuses("kafka.start", "1900-01-01T00:00:00Z", "must be \"earliest\"");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    refuses("postgres.lease", "25s", "more than \"25s\"");
    refuses("downstream.connect_timeout", "16s", "must not be longer than downstream.timeout");
    refuses("retry.base", "1h", "must not be longer than retry.cap");
    refuses("retry.cap", "4d", "must not be longer than retry.give_up_after");
    refuses("shutdown.timeout", "19s", "here \"20s\"");
    refuses("kafka.record_max", "17 MiB", "to 16 MiB");
    refuses("kafka.record_max", "0", "from 1 B");
    refuses("downstream.workers", "1025", "from 1 to 1024");
    check_set(
        BASE,
        &["downstream.timeout=2s"],
        &[
            "--set: downstream.timeout: downstream.connect_timeout (\"3s\") must not be longer than downstream.timeout (\"2s\")...",
        ],
    );
    check_set(
        BASE,
        &["downstream.timeout=1m"],
        &["F: shutdown.timeout: must be at least downstream.timeout + 5s, here \"65s\"..."],
    );
    assert_eq!(accepts(&["downstream.timeout=20s"]).postgres.lease, Duration::from_secs(65));
    accepts(&["postgres.lease=26s", "shutdown.timeout=20s"]);
}

#[test]
fn names_and_topics_are_checked() {
    for name in ["", "-a", "A", "a b", "a.b", &"a".repeat(42)] {
        refuses("name", name, "must be 1 to 41");
    }
    assert_eq!(accepts(&["name=a-b_c"]).postgres.schema, "txrelay_a_b_c");
    for topic in ["^pay.*", "a b", "", "..", &"t".repeat(250)] {
        refuses("kafka.topics", topic, "must be a topic's name");
    }
    refuses("kafka.topics", "[]", "must name at least one");
    for broker in ["kafka", "kafka:", "kafka:0", "kafka:+1", "SSL://kafka:9092", "kafka:1:2", ":9092", "kafka:99999"] {
        refuses("kafka.brokers", broker, "must be host:port");
    }
    assert_eq!(accepts(&["kafka.brokers=a:1,[::1]:2"]).kafka.brokers, ["a:1", "[::1]:2"]);
    for schema in ["Txrelay", "pg_x", "1x", "a-b", "information_schema"] {
        refuses("postgres.schema", schema, "");
    }
    refuses("metrics.listen", "localhost:1", "an address and a port");
    let folder = Folder::new();
    let problem = load(&folder.write("My Pipeline.toml", FIVE_LINES), &[]).expect_err("no name").to_string();
    assert!(problem.contains(":1:1: name: the file's own name does not make"), "{problem}");
}
