//! Every promise of the loader to whoever writes a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

#[path = "../../../tests/it/rig/certificates.rs"]
pub(crate) mod certificates;
mod kafka_security;
mod reload;
mod security;
mod values;

use super::{Config, keys, load};
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
postgres.url = "postgresql://txrelay@db/txrelay?sslmode=verify-full"
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
    let forwarded: &[&str] = if cfg!(feature = "librdkafka") { &["traceparent", "tracestate"] } else { &[] };
    assert_eq!(config.downstream.forward_headers, forwarded);
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
        "downstream.auth.bearer_file=hunter2",
        "downstream.outcomes.409=hunter2",
        "downstream.signing.secret_files=hunter2",
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

const SHIPPED: &str = include_str!("../../../etc/txrelay.toml");

#[test]
#[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
fn the_shipped_reference_is_the_table_of_keys() {
    if std::env::var_os("TXRELAY_WRITE_REFERENCE").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/txrelay.toml");
        std::fs::write(file, keys::reference()).expect("etc/txrelay.toml is written");
    } else {
        assert_eq!(SHIPPED, keys::reference(), "run this test with TXRELAY_WRITE_REFERENCE=1 and look at the difference");
    }
}

#[test]
#[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
fn the_shipped_reference_loads_as_it_is_and_with_everything_in_it() {
    read(&keys::reference(), &[]).unwrap_or_else(|p| panic!("{}", p.join("\n")));
    // Tables whose being there means something stay out: `#[kafka.tls]`.
    let mut switched_off = false;
    let all: String = keys::reference()
        .lines()
        .map(|l| match l.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) && !switched_off => format!("{setting}\n"),
            Some(table) if table.starts_with('[') => {
                switched_off = true;
                format!("{l}\n")
            }
            _ => {
                switched_off &= !l.starts_with('[');
                format!("{l}\n")
            }
        })
        .collect();
    let bare = read(FIVE_LINES, &[]).expect("loads");
    let full = read(&all, &[]).unwrap_or_else(|p| panic!("{}", p.join("\n")));
    // Every key written at its default means what leaving it out means.
    let text = |c: &Config| {
        let mut c = c.clone();
        c.file = PathBuf::new();
        c.view = super::View::default();
        c.kafka.start = None;
        format!("{c:?}")
    };
    assert_eq!(text(&full), text(&bare));
    let optional = |key: &&&keys::Key| !matches!(key.given, keys::Given::Required(_));
    let differing: Vec<&str> = full.view.differing(&bare.view).iter().filter(optional).map(|key| key.path).collect();
    assert_eq!(differing, ["kafka.start"], "the one key whose example is not its default");
    for key in keys::KEYS {
        let name = key.path.rsplit('.').next().expect("a name");
        let lines = all.lines().filter(|l| l.trim_start_matches('#').starts_with(&format!("{name} = "))).count();
        assert!(lines > 0, "{}", key.path);
        assert!(!key.doc.is_empty(), "{} says no why", key.path);
        assert!(key.doc.lines().all(|l| l.len() <= 125), "{} has a long line", key.path);
    }
}

proptest::proptest! {
    /// Whatever stands in a file or on the command line ends in a configuration or in lines that say what is wrong.
    #[test]
    fn nothing_written_makes_it_panic(text in "[ \\t\n\"'=.,\\[\\]{}#:/@%\\\\a-cé0-9~-]{0,60}", key in 0..keys::KEYS.len(), bare: bool) {
        let key = keys::KEYS[key].path;
        let value = if bare { text.clone() } else { format!("{text:?}") };
        let _ = read(&format!("{FIVE_LINES}{key} = {value}\n{text}"), &[]);
        let _ = read(FIVE_LINES, &[&format!("{key}={text}"), &text]);
    }

    #[test]
    fn no_connection_string_gives_its_password_away(before in "[a-z:/@?=&' %,]{0,12}", after in "[a-z:/@?=&' %,]{0,12}") {
        for start in ["postgresql://", "postgresql://u:", "host=db password=", ""] {
            let url = format!("{start}{before}HUNTER2{after}");
            if let Err(problems) = read(FIVE_LINES, &[&format!("postgres.url={url}")]) {
                assert!(!problems.join("\n").contains("HUNTER2"), "{url}: {problems:?}");
            }
        }
    }
}
