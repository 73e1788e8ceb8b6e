use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Config, Start, keys, load};
use crate::core::identify::IdRule;

/// A folder of its own that goes away with the value.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("txrelay-test-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).expect("a temporary folder");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let file = self.0.join(name);
        std::fs::write(&file, content).expect("a temporary file");
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const FIVE_LINES: &str = r#"kafka.brokers = ["kafka-1:9092"]
kafka.topics = ["payments"]
postgres.url = "postgresql://txrelay@db/txrelay"
downstream.url = "https://ledger.internal/transactions"
log.level = "info"
"#;

/// The required keys, one a line, with `[downstream]` open at the end.
const BASE: &str = r#"[kafka]
brokers = ["kafka-1:9092"]
topics = ["payments"]
[postgres]
url = "postgresql://txrelay@db/txrelay"
[downstream]
url = "https://ledger.internal/transactions"
"#;

fn read(text: &str, sets: &[&str]) -> Result<Config, Vec<String>> {
    let folder = Folder::new();
    let file = folder.write("payments.toml", text);
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    load(&file, &sets).map_err(|problems| {
        let printed = problems.to_string().replace(&format!("{}", file.display()), "F");
        assert_eq!(printed.lines().count(), problems.count(), "one line each:\n{printed}");
        printed.lines().map(str::to_string).collect()
    })
}

/// The problems of a file, one line each; `...` at the end of an expected line stands for any rest.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    check_set(text, &[], expected);
}

#[track_caller]
fn check_set(text: &str, sets: &[&str], expected: &[&str]) {
    let got = read(text, sets).err().unwrap_or_default();
    let fits = |got: &str, want: &str| want.strip_suffix("...").map_or(got == want, |start| got.starts_with(start));
    let good = got.len() == expected.len() && got.iter().zip(expected).all(|(g, w)| fits(g, w));
    assert!(good, "got:\n{}\nexpected:\n{}", got.join("\n"), expected.join("\n"));
}

/// One problem of one value of `key`, at the value, with `part` in its text; the value is not repeated.
#[track_caller]
fn refuses(key: &str, value: &str, part: &str) {
    let set = format!("{key}={value}");
    let got = read(BASE, &[&set]).expect_err("refused");
    assert!(got.len() == 1 && got[0].starts_with("--set: ") && got[0].contains(key) && got[0].contains(part), "{got:#?}");
}

#[track_caller]
fn accepts(sets: &[&str]) -> Config {
    read(BASE, sets).unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
}

#[test]
fn five_lines_are_enough() {
    let config = read(FIVE_LINES, &[]).expect("loads");
    assert_eq!(FIVE_LINES.lines().count(), 5);
    assert_eq!(
        (config.name.as_str(), config.kafka.group.as_str(), config.postgres.schema.as_str()),
        ("payments", "txrelay-payments", "txrelay_payments")
    );
    assert_eq!(config.kafka.start, None);
    assert_eq!(config.kafka.record_max, 1 << 20);
    assert_eq!(config.transaction_id, IdRule::Value(vec!["transaction_id".into()]));
    assert_eq!((config.postgres.lease, config.downstream.timeout), (Duration::from_secs(60), Duration::from_secs(15)));
    assert_eq!((config.downstream.workers, config.downstream.keep_answer), (32, 1024));
    assert_eq!(config.downstream.forward_headers, ["traceparent", "tracestate"]);
    assert_eq!(config.retry.give_up_after, Duration::from_secs(72 * 3600));
    assert_eq!(config.metrics_listen, "127.0.0.1:19470".parse().expect("an address"));
    assert_eq!(config.postgres.client.get_target_session_attrs(), postgres::config::TargetSessionAttrs::ReadWrite);
    assert_eq!(config.postgres.client.get_password(), None);
}

#[test]
fn every_problem_is_reported_at_once_and_where_it_is() {
    check(
        r#"name = "Payments!"
[kafka]
brokers = ["kafka-1"]
topics = ["a", "b", "a"]
recordmax = "1 MiB"
[postgres]
lease = "20s"
pool_size = "four"
[downstream]
url = "http://ledger.internal/"
workers = 0
[shutdown]
timeout = "10s"
[kafak]
x = 1
"#,
        &[
            "F:1:8: name: must be 1 to 41 of a-z, 0-9, - and _, beginning with a letter or digit",
            "F:3:12: kafka.brokers: must be host:port, such as \"kafka-1:9092\"",
            "F:4:21: kafka.topics: stands in the list twice",
            "F:5:1: kafka.recordmax: unknown key, did you mean kafka.record_max?",
            "F:6:2: postgres.url: is missing: write a line such as url = ...",
            "F:7:9: postgres.lease: must be more than downstream.timeout + 10s, here more than \"25s\", better \"60s\"...",
            "F:8:13: postgres.pool_size: must be a whole number from 1 to 64, without quotes",
            "F:10:7: downstream.url: sends transactions in the clear to another machine...",
            "F:11:11: downstream.workers: must be a whole number from 1 to 1024, without quotes",
            "F:13:11: shutdown.timeout: must be at least downstream.timeout + 5s, here \"20s\"...",
            "F:14:2: kafak: unknown key, did you mean [kafka]?",
        ],
    );
}

#[test]
fn an_empty_file_names_what_must_be_in_it() {
    check(
        "",
        &[
            "F:1:1: kafka.brokers: is missing: write under [kafka] a line such as brokers = [\"kafka-1:9092\"]",
            "F:1:1: kafka.topics: is missing: ...",
            "F:1:1: postgres.url: is missing: ...",
            "F:1:1: downstream.url: is missing: ...",
        ],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_clear_line() {
    let problem = load(Path::new("/nonexistent/payments.toml"), &[]).expect_err("no file").to_string();
    assert_eq!(problem, "/nonexistent/payments.toml: cannot be read: No such file or directory");
}

#[test]
fn a_misspelled_key_gets_a_suggestion() {
    let base = |line: &str| format!("{BASE}{line}\n");
    check(&base("tiemout = \"5s\""), &["F:8:1: downstream.tiemout: unknown key, did you mean downstream.timeout?"]);
    check(&base("base = \"5s\""), &["F:8:1: downstream.base: unknown key, did you mean retry.base?"]);
    check(&base("xyzzy = 1"), &["F:8:1: downstream.xyzzy: unknown key, see the reference file for those that there are"]);
    check(&base("\"a\\nb\" = 1"), &["F:8:1: downstream.a\\nb: unknown key, see..."]);
    check_set(BASE, &["log.levle=debug"], &["--set: log.levle: unknown key, did you mean log.level?"]);
}

#[test]
fn broken_toml_is_said_once_and_in_our_own_words() {
    check(
        &format!("{BASE}method = hunter2 hunter3\nworkers = 0\n"),
        &["F:8:10: a value must stand after the =, text in quotes: key = \"text\"", "F:9:11: downstream.workers: must..."],
    );
    check(
        &format!("{BASE}[kafka]\nurl = \"x\"\n"),
        &["F:8:2: this key or table is already given further up, keep one of them", "F:9:1: kafka.url: unknown key..."],
    );
    check(&format!("{BASE}method = \"hunter2\n"), &["F:8:18: text that is not closed by its quote..."]);
    check(&format!("{BASE}method =\n"), &["F:8:9: a value must stand after the =..."]);
    check(&format!("{BASE}timeout = 2026-99-99\n"), &["F:8:11: this is not TOML..."]);
    check(&format!("{BASE}[downstream.url]\n"), &["F:8:13: this..."]);
}

#[test]
fn no_secret_is_printed() {
    let secrets = [
        "postgres.url=postgresql://txrelay:hunter2@db/txrelay",
        "postgres.url=postgresql://txrelay@db/txrelay?password=hunter2",
        "postgres.url=postgresql://txrelay@db/txrelay?%70assword=hunter2",
        "postgres.url=host=db password='hunter2 x' user=u",
        "postgres.url=host=db password = hunter2",
        "postgres.url=postgresql://txrelay:hunter2/x@db/txrelay",
        "postgres.url=postgresql://txrelay:hunter2?@db/txrelay",
        "postgres.url=postgresql://txrelay:hunter2",
        "postgres.url=host=db hunter2=1",
        "postgres.url=db hunter2",
        "postgres.url=http://u:hunter2@db",
        "downstream.url=https://user:hunter2@ledger/",
        "downstream.url=https://hunter2@ledger/",
        "downstream.url=https://us er:hunter2@ledger/",
        "downstream.headers={ \"Authorization\" = \"hunter2\" }",
        "downstream.headers={ \"X\" = \"hunter2\\n\" }",
        "downstream.headers=hunter2",
        "kafka.librdkafka={ \"sasl.password\" = \"hunter2\" }",
        "kafka.sasl={ password = \"hunter2\" }",
        "downstream.workers=hunter2",
        "log.level=hunter2",
        "retry.base=hunter2",
        "hunter2",
    ];
    for set in secrets {
        let problems = read(BASE, &[set]).expect_err(set);
        assert!(!problems.join("\n").replace("host=db", "").contains("hunter2"), "{set}: {problems:#?}");
        // The same in the file.
        if let Some((key, value)) = set.split_once('=') {
            let value = if value.starts_with('{') { value.to_string() } else { format!("\"{value}\"") };
            let without: String = BASE
                .lines()
                .filter(|l| !l.starts_with("url") && !l.starts_with('['))
                .fold(String::new(), |s, l| s + "kafka." + l + "\n");
            let problems = read(&format!("{without}{key} = {value}\n"), &[]).expect_err(set);
            assert!(!problems.join("\n").contains("hunter2"), "{set}: {problems:#?}");
        }
    }
    refuses("postgres.url", "postgresql://txrelay:hunter2@db/txrelay", "a file that postgres.password_file names");
}

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
    assert_eq!(config.postgres.client.get_password(), Some(b"hunter2".as_slice()));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn what_belongs_to_later_versions_is_refused_and_not_ignored() {
    for (line, key) in [
        ("kafka.client = \"kafka\"", "kafka.client"),
        ("kafka.backlog_max = 10", "kafka.backlog_max"),
        ("kafka.tls = {}", "kafka.tls"),
        ("kafka.sasl.username = \"u\"", "kafka.sasl"),
        ("downstream.rate_limit = 5", "downstream.rate_limit"),
        ("downstream.auth.bearer_file = \"/x\"", "downstream.auth"),
        ("downstream.tls.ca_file = \"/x\"", "downstream.tls"),
        ("downstream.signing.secret_files = []", "downstream.signing"),
        ("downstream.outcomes = { \"409\" = \"delivered\" }", "downstream.outcomes"),
        ("gate.shut_after = 20", "gate.shut_after"),
        ("gate.probe_every = \"5s\"", "gate.probe_every"),
        ("retention.dead = \"90d\"", "retention"),
    ] {
        let problems = read(&format!("{FIVE_LINES}{line}\n"), &[]).expect_err(line);
        assert!(problems.len() == 1 && problems[0].starts_with("F:6:"), "{problems:?}");
        assert!(problems[0].contains(&format!(": {key}: this version does not have ")), "{problems:?}");
    }
    check(&format!("{BASE}[downstream.tls]\nca_file = \"\"\n"), &["F:8:13: downstream.tls: this version does not have..."]);
    for mode in ["require", "verify-ca", "verify-full"] {
        refuses("postgres.url", &format!("postgresql://db/x?sslmode={mode}"), "does not have TLS to PostgreSQL yet");
    }
    for word in ["sslrootcert", "sslcert", "sslkey"] {
        refuses("postgres.url", &format!("host=db {word}=/x"), &format!("holds {word}, and this version does not have TLS"));
    }
    accepts(&["downstream.rate_limit=0"]);
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
    ] {
        refuses("postgres.url", url, part);
    }
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

#[test]
fn the_command_line_goes_before_the_file() {
    let text = format!("{BASE}workers = 0\n");
    assert_eq!(read(&text, &["downstream.workers=7"]).expect("replaced").downstream.workers, 7);
    let config = accepts(&[
        "postgres.migrate=false",
        "kafka.topics=[\"a\", \"b\"]",
        "log.level=\"debug\"",
        "downstream.timeout=3s",
        "downstream.timeout=4s",
    ]);
    assert!(!config.postgres.migrate);
    assert_eq!(config.kafka.topics, ["a", "b"]);
    assert_eq!(config.log.level, log::LevelFilter::Debug);
    assert_eq!(config.downstream.timeout, Duration::from_secs(4));
    let required = ["kafka.brokers=k:1", "kafka.topics=t", "postgres.url=host=db", "downstream.url=https://x/"];
    read("", &required).expect("everything may come from the command line");
    check_set(BASE, &["log.level", "kafka=1"], &["--set: must be key=value...", "--set: kafka: this is a table..."]);
}

const SHIPPED: &str = include_str!("../../etc/txrelay.toml");

#[test]
fn the_shipped_reference_is_the_table_of_keys() {
    if std::env::var_os("TXRELAY_WRITE_REFERENCE").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/txrelay.toml");
        std::fs::write(file, keys::reference()).expect("etc/txrelay.toml is written");
    } else {
        assert_eq!(SHIPPED, keys::reference(), "run this test with TXRELAY_WRITE_REFERENCE=1 and look at the difference");
    }
}

#[test]
fn the_shipped_reference_loads_as_it_is_and_with_everything_in_it() {
    read(&keys::reference(), &[]).unwrap_or_else(|p| panic!("{}", p.join("\n")));
    let all: String = keys::reference()
        .lines()
        .map(|l| match l.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{setting}\n"),
            _ => format!("{l}\n"),
        })
        .collect();
    let bare = read(FIVE_LINES, &[]).expect("loads");
    let full = read(&all, &[]).unwrap_or_else(|p| panic!("{}", p.join("\n")));
    // Every key written at its default means what leaving it out means.
    let text = |c: &Config| {
        let mut c = c.clone();
        c.file = PathBuf::new();
        c.kafka.start = None;
        format!("{c:?}")
    };
    assert_eq!(text(&full), text(&bare));
    for key in keys::KEYS {
        let name = key.path.rsplit('.').next().expect("a name");
        let lines = all.lines().filter(|l| l.starts_with(&format!("{name} = "))).count();
        assert_eq!(lines > 0, key.later.is_none(), "{}", key.path);
        assert!(key.later.is_some() || !key.doc.is_empty(), "{} says no why", key.path);
        assert!(key.doc.lines().all(|l| l.len() <= 125), "{} has a long line", key.path);
    }
}
