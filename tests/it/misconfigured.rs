//! What a user sees of a file that is wrong: the whole of stderr, word for word, from the real binary.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{Authority, unique, write_private};

const BASE: [&str; 4] = [
    r#"kafka.brokers = ["kafka-1:9092"]"#,
    r#"kafka.topics = ["payments"]"#,
    r#"postgres.url = "postgresql://txrelay@db/txrelay""#,
    r#"downstream.url = "https://ledger.internal/transactions""#,
];

/// The folder of the pipeline's file and of every file that it may name. It goes away with the value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    /// With files that are wrong in one way each, beside some that are right.
    fn new() -> Self {
        let folder = Self(std::env::temp_dir().join(unique("txrelay-misconfigured")));
        std::fs::create_dir(&folder.0).expect("a folder");
        for (name, mode, content) in [
            ("good", 0o600, "hunter2\n"),
            ("for-all", 0o644, "hunter2\n"),
            ("for-group", 0o660, "hunter2\n"),
            ("empty", 0o600, "\n"),
            ("two-lines", 0o600, "hunter2\nX-Evil: 1\n"),
            ("short", 0o600, "whsec_aHVudGVyMg==\n"),
            ("no-pem", 0o600, "hunter2\n"),
        ] {
            write_private(&folder.0.join(name), content.as_bytes());
            std::fs::set_permissions(folder.0.join(name), std::fs::Permissions::from_mode(mode)).expect("chmod");
        }
        let authority = Authority::new("CA");
        authority.write(&folder.0.join("ca.crt"));
        for stem in ["relay", "other"] {
            authority.issue("relay", false, &folder.0, stem);
        }
        folder
    }

    /// The four lines that must be there, with these in their places or after them; `#` takes the line of a key away.
    fn write(&self, lines: &[&str]) -> PathBuf {
        let file = self.0.join("payments.toml");
        let mut text: Vec<String> = BASE.iter().map(|line| (*line).to_owned()).collect();
        let key = |line: &str| line.trim_start_matches('#').split(" =").next().map(str::to_owned);
        for line in lines {
            let line = line.replace("HERE", self.0.to_str().expect("text"));
            // In the place of the line that gives the same key.
            match BASE.iter().position(|base| key(base) == key(&line)) {
                Some(n) => text[n] = line,
                None => text.push(line),
            }
        }
        std::fs::write(&file, text.join("\n") + "\n").expect("written");
        file
    }

    /// What stands on stderr, with short names for the file and its folder, and the exit status.
    fn says(&self, file: &Path, args: &[&str]) -> (Option<i32>, Vec<String>) {
        let out = Command::new(env!("CARGO_BIN_EXE_txrelay")).arg("-c").arg(file).args(args).output().expect("it runs");
        assert!(out.stdout.is_empty(), "a file that is wrong gives no data: {}", String::from_utf8_lossy(&out.stdout));
        let said = String::from_utf8(out.stderr).expect("text");
        let said = said.replace(file.to_str().expect("text"), "F").replace(self.0.to_str().expect("text"), "HERE");
        (out.status.code(), said.lines().map(str::to_owned).collect())
    }
}

/// A line or lines of the file, and what is said of it.
type Row = (&'static [&'static str], &'static str);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Keys.
    (&[r#"downstream.tiemout = "5s""#], "F:5:12: downstream.tiemout: unknown key, did you mean downstream.timeout?"),
    (&[r#"kafak.group = "a""#], "F:5:1: kafak: unknown key, did you mean [kafka]?"),
    (&[r#"downstream.group = "a""#], "F:5:12: downstream.group: unknown key, did you mean kafka.group?"),
    (&["xyzzy = 1"], "F:5:1: xyzzy: unknown key, see the reference file for those that there are"),
    (&["log.level = info"], "F:5:13: a value must stand after the =, text in quotes: key = \"text\""),
    (&["log.level = \"info"], "F:5:18: text that is not closed by its quote, or holds what must be escaped; in '...' nothing is"),
    (&["log.level = \"info\"", "log.level = \"warn\""], "F:6:5: this key or table is already given further up, keep one of them"),
    (&["#kafka.topics = "], "F:1:1: kafka.topics: is missing: write a line such as kafka.topics = [\"payments\"]"),
    (&["#downstream.url = "], "F:1:1: downstream.url: is missing: write under [downstream] a line such as url = \"https://ledger.internal/transactions\""),
    (&["log = 1"], "F:5:1: log: this is a table: write [log] on a line of its own"),
    (&["log level"], "F:5:5: this is not TOML, which is lines of key = value under [table] headers"),
    // Values of the wrong kind, or out of their range.
    (&["downstream.timeout = 15"], "F:5:22: downstream.timeout: must be a time with its unit in quotes, such as \"250ms\", \"15s\", \"2m\", \"72h\", \"30d\", from 10ms to 1h"),
    (&[r#"downstream.timeout = "15""#], "F:5:22: downstream.timeout: must be a time with its unit in quotes, such as \"250ms\", \"15s\", \"2m\", \"72h\", \"30d\", from 10ms to 1h"),
    (&[r#"kafka.record_max = "1 Mb""#], "F:5:20: kafka.record_max: must be a size with its unit in quotes, such as \"500 B\", \"1 kB\", \"64 KiB\", \"1 MiB\", from 1 B to 16 MiB"),
    (&[r#"downstream.workers = "32""#], "F:5:22: downstream.workers: must be a whole number from 1 to 1024, without quotes"),
    (&["downstream.workers = 0"], "F:5:22: downstream.workers: must be a whole number from 1 to 1024, without quotes"),
    (&[r#"postgres.migrate = "no""#], "F:5:20: postgres.migrate: must be true or false, without quotes"),
    (&[r#"downstream.method = "PATCH""#], "F:5:21: downstream.method: must be one of \"POST\", \"PUT\""),
    (&[r#"retention.delivered = "never""#], "F:5:23: retention.delivered: must be \"forever\", or a time with its unit in quotes, such as \"72h\", \"30d\", from 1h to 36500d"),
    (&[r#"kafka.topics = "payments""#], "F:2:16: kafka.topics: must be a list of texts: [\"one\", \"two\"]"),
    (&[r#"metrics.listen = "localhost:19470""#], "F:5:18: metrics.listen: must be an address and a port, such as \"127.0.0.1:19470\" or \"[::]:19470\""),
    // The pipeline and Kafka.
    (&[r#"name = "Payments!""#], "F:5:8: name: must be 1 to 41 of a-z, 0-9, - and _, beginning with a letter or digit"),
    (&[r#"kafka.brokers = ["kafka-1"]"#], "F:1:18: kafka.brokers: must be host:port, such as \"kafka-1:9092\""),
    (&[r#"kafka.topics = []"#], "F:2:16: kafka.topics: must name at least one"),
    (&[r#"kafka.topics = ["a", "a"]"#], "F:2:22: kafka.topics: stands in the list twice"),
    (&[r#"kafka.topics = ["^pay.*"]"#], "F:2:17: kafka.topics: must be a topic's name: letters, digits, . _ and -, at most 249 (patterns are not supported)"),
    (&[r#"kafka.start = "yesterday""#], "F:5:15: kafka.start: must be \"earliest\", \"latest\", \"committed\" or a time such as \"2026-11-01T00:00:00Z\""),
    (&[r#"kafka.librdkafka = { "group.id" = "x" }"#], "F:5:35: kafka.librdkafka.group.id: txrelay sets this property itself (use kafka.group): take it out"),
    (&[r#"kafka.librdkafka = { "enable.auto.commit" = "true" }"#], "F:5:45: kafka.librdkafka.enable.auto.commit: txrelay sets this property itself (offsets are committed only after PostgreSQL has the records): take it out"),
    (&[r#"kafka.librdkafka = { "sasl.password" = "hunter2" }"#], "F:5:40: kafka.librdkafka.sasl.password: txrelay sets these properties itself (use [kafka.sasl]): take it out"),
    (&[r#"transaction.id = "id""#], "F:5:18: transaction.id: must be \"value:/path/to/id\" (a JSON pointer), \"key\" or \"header:NAME\""),
    (&[r#"transaction.id = "value:id""#], "F:5:18: transaction.id: a JSON pointer begins with /: \"value:/transaction_id\""),
    (&["[kafka.tls]", r#"ca_file = "HERE/no-pem""#], "F:6:11: kafka.tls.ca_file: HERE/no-pem holds no certificate in PEM form"),
    (&["[kafka.tls]", r#"cert_file = "HERE/relay.crt""#], "F:6:13: kafka.tls.cert_file: stands without kafka.tls.key_file: its private key is needed too"),
    (&["[kafka.tls]", r#"cert_file = "HERE/relay.crt""#, r#"key_file = "HERE/other.key""#], "F:6:13: kafka.tls.key_file: HERE/other.key is not the key of the certificate in HERE/relay.crt"),
    (&["[kafka.sasl]", r#"password_file = "HERE/good""#], "F:5:8: kafka.sasl.username: is missing: [kafka.sasl] says that somebody logs in"),
    (&["[kafka.sasl]", r#"username = "u""#, r#"password_file = "HERE/for-all""#], "F:7:17: kafka.sasl.password_file: HERE/for-all is open to every user of this machine: chmod 0640 (or 0600) it"),
    (&["[kafka.sasl]", r#"mechanism = "PLAIN""#, r#"username = "u""#, r#"password_file = "HERE/good""#], "F:5:8: kafka.sasl.mechanism: PLAIN sends the password as it is: it needs TLS, so write a table [kafka.tls] too, or use SCRAM-SHA-512"),
    // PostgreSQL.
    (&[r#"postgres.url = "postgresql://u:hunter2@db/x""#], "F:3:16: postgres.url: holds a password, which goes into a file that postgres.password_file names: take it out"),
    (&[r#"postgres.url = "mysql://db/x""#], "F:3:16: postgres.url: must be a connection URL such as \"postgresql://user@host:5432/database\", or \"host=... user=... dbname=...\""),
    (&[r#"postgres.url = "postgresql:///x""#], "F:3:16: postgres.url: names no host: postgresql://user@host/database, or host=/run/postgresql for this machine's socket"),
    (&[r#"postgres.url = "host=db sslmode=sometimes""#], "F:3:16: postgres.url: holds an sslmode that is none: disable, prefer, require, verify-ca or verify-full"),
    (&[r#"postgres.url = "host=db sslrootcert=HERE/no-pem""#], "F:3:16: postgres.url: sslrootcert: HERE/no-pem holds no certificate in PEM form"),
    (&[r#"postgres.url = "host=db target_session_attrs=any""#], "F:3:16: postgres.url: holds target_session_attrs, which txrelay sets itself: take it out"),
    (&[r#"postgres.password_file = "HERE/none""#], "F:5:26: postgres.password_file: HERE/none cannot be read: No such file or directory"),
    (&[r#"postgres.password_file = "HERE/for-all""#], "F:5:26: postgres.password_file: HERE/for-all is open to every user of this machine: chmod 0640 (or 0600) it"),
    (&[r#"postgres.password_file = "HERE/for-group""#], "F:5:26: postgres.password_file: HERE/for-group can be written by its group: chmod 0640 (or 0600) it"),
    (&[r#"postgres.password_file = "HERE/empty""#], "F:5:26: postgres.password_file: HERE/empty is empty: write the secret into it"),
    (&[r#"postgres.password_file = "HERE""#], "F:5:26: postgres.password_file: HERE is not a file"),
    (&[r#"postgres.password_file = "password""#], "F:5:26: postgres.password_file: must be an absolute path"),
    (&[r#"postgres.password_file = "${HOME}/password""#], "F:5:26: postgres.password_file: only ${CREDENTIALS_DIRECTORY} is replaced in a path"),
    (&[r#"postgres.password_file = "${CREDENTIALS_DIRECTORY}/postgres""#], "F:5:26: postgres.password_file: ${CREDENTIALS_DIRECTORY} is not set: it is inside a unit with LoadCredential=, not in a shell"),
    (&[r#"postgres.schema = "pg_payments""#], "F:5:19: postgres.schema: is a schema of PostgreSQL's own, choose another"),
    (&[r#"postgres.lease = "20s""#], "F:5:18: postgres.lease: must be more than downstream.timeout + 10s, here more than \"25s\", better \"60s\": another process would send what this one is still sending"),
    // The service.
    (&[r#"downstream.url = "http://ledger.internal/""#], "F:4:18: downstream.url: sends transactions in the clear to another machine: use https://, or set downstream.allow_plain_http = true"),
    (&[r#"downstream.url = "https://u:hunter2@ledger.internal/""#], "F:4:18: downstream.url: holds a user or password: take everything before the @ out, [downstream.auth] is their place"),
    (&[r#"downstream.url = "ledger.internal/x""#], "F:4:18: downstream.url: must be an absolute URL, such as \"https://ledger.internal/transactions\""),
    (&[r#"downstream.url = "https://169.254.169.254/x""#], "F:4:18: downstream.url: leads to link-local, where clouds have their metadata service: nothing is ever sent there"),
    (&[r#"downstream.connect_timeout = "20s""#], "F:5:30: downstream.connect_timeout: downstream.connect_timeout (\"20s\") must not be longer than downstream.timeout (\"15s\"), which it is a part of"),
    (&[r#"downstream.headers = { Authorization = "hunter2" }"#], "F:5:40: downstream.headers.Authorization: names a header that carries a secret: [downstream.auth] reads it from a file"),
    (&[r#"downstream.headers = { Host = "x" }"#], "F:5:31: downstream.headers.Host: names a header that txrelay sets itself: choose another"),
    (&[r#"downstream.idempotency_header = "X Id""#], "F:5:33: downstream.idempotency_header: must be a header's name: letters, digits and -"),
    (&[r#"downstream.auth.bearer_file = "HERE/none""#], "F:5:31: downstream.auth.bearer_file: HERE/none cannot be read: No such file or directory"),
    (&[r#"downstream.auth.bearer_file = "HERE/for-all""#], "F:5:31: downstream.auth.bearer_file: HERE/for-all is open to every user of this machine: chmod 0640 (or 0600) it"),
    (&[r#"downstream.auth.bearer_file = "HERE/empty""#], "F:5:31: downstream.auth.bearer_file: HERE/empty is empty: write the secret into it"),
    (&[r#"downstream.auth.bearer_file = "HERE/two-lines""#], "F:5:31: downstream.auth.bearer_file: HERE/two-lines holds a character that cannot stand there: a second line, a blank, or one outside of ASCII"),
    (&[r#"downstream.auth.basic_user = "u""#], "F:5:30: downstream.auth.basic_user: needs downstream.auth.basic_password_file beside it"),
    (&[r#"downstream.auth.bearer_file = "HERE/good""#, r#"downstream.auth.header_name = "X-Key""#, r#"downstream.auth.header_value_file = "HERE/good""#], "F:6:31: downstream.auth.header_name: stands beside downstream.auth.bearer_file: there is one way to authenticate at most"),
    (&[r#"downstream.url = "http://ledger.internal/""#, "downstream.allow_plain_http = true", r#"downstream.auth.bearer_file = "HERE/good""#], "F:6:31: downstream.auth.bearer_file: is a secret, and is never sent over http:// to another machine: use https:// in downstream.url"),
    (&[r#"downstream.tls.ca_file = "HERE/no-pem""#], "F:5:26: downstream.tls.ca_file: HERE/no-pem holds no certificate in PEM form"),
    (&[r#"downstream.tls.cert_file = "HERE/relay.crt""#], "F:5:28: downstream.tls.cert_file: needs downstream.tls.key_file beside it"),
    (&[r#"downstream.tls.cert_file = "HERE/relay.crt""#, r#"downstream.tls.key_file = "HERE/other.key""#], "F:6:27: downstream.tls.key_file: HERE/other.key is not the key of the certificate in HERE/relay.crt"),
    (&[r#"downstream.tls.cert_file = "HERE/relay.crt""#, r#"downstream.tls.key_file = "HERE/no-pem""#], "F:6:27: downstream.tls.key_file: HERE/no-pem holds no private key in PEM form without a passphrase"),
    (&[r#"downstream.signing.secret_files = ["HERE/good"]"#], "F:5:36: downstream.signing.secret_files: HERE/good holds no secret of Standard Webhooks: \"whsec_\" and base64 in one line"),
    (&[r#"downstream.signing.secret_files = ["HERE/short"]"#], "F:5:36: downstream.signing.secret_files: HERE/short holds a secret that is not 24 to 64 bytes long, as Standard Webhooks has it"),
    (&[r#"downstream.outcomes = { 409 = "ok" }"#], "F:5:31: downstream.outcomes.409: is no class: delivered, retry, throttled, down, misconfigured or refused"),
    (&[r#"downstream.outcomes = { 4xx = "retry" }"#], "F:5:31: downstream.outcomes.4xx: must be a status from 200 to 999, or a range such as \"520-530\""),
    // What contradicts another key.
    (&[r#"retry.base = "1h""#], "F:5:14: retry.base: retry.base (\"1h\") must not be longer than retry.cap (\"15m\")"),
    (&[r#"gate.probe_every = "31s""#], "F:5:20: gate.probe_every: gate.probe_every (\"31s\") must not be longer than gate.probe_cap (\"30s\")"),
    (&[r#"shutdown.timeout = "10s""#], "F:5:20: shutdown.timeout: must be at least downstream.timeout + 5s, here \"20s\": a request in hand must be able to end"),
];

#[test]
fn each_misconfiguration_is_one_line_that_says_where_what_and_what_would_be_right() {
    let folder = Folder::new();
    let mut wrong = Vec::new();
    for (lines, expected) in TABLE {
        let (code, said) = folder.says(&folder.write(lines), &["check-config"]);
        if code != Some(78) || said != [*expected] {
            wrong.push(format!("{lines:?}: {code:?}\n     got {}\nexpected {expected}", said.join("\n         ")));
        }
        assert!(!said.join("\n").contains("hunter2"), "a secret was shown: {said:?}");
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), TABLE.len(), wrong.join("\n"));
    assert!(TABLE.len() >= 40);
}

#[test]
fn a_file_with_ten_mistakes_prints_ten_lines_in_their_order_for_every_command() {
    let folder = Folder::new();
    let file = folder.0.join("payments.toml");
    let text = r#"name = "Payments!"
[kafka]
brokers = ["kafka-1"]
topics = ["payments", "payments"]
recordmax = "1 MiB"
[postgres]
url = "postgresql://u:hunter2@db/x"
lease = "20s"
[downstream]
url = "http://ledger.internal/x"
workers = 0
timeout = 15
[downstream.outcomes]
409 = "ok"
[log]
level = "loud"
"#;
    std::fs::write(&file, text).expect("written");
    let expected = [
        "F:1:8: name: must be 1 to 41 of a-z, 0-9, - and _, beginning with a letter or digit",
        "F:3:12: kafka.brokers: must be host:port, such as \"kafka-1:9092\"",
        "F:4:23: kafka.topics: stands in the list twice",
        "F:5:1: kafka.recordmax: unknown key, did you mean kafka.record_max?",
        "F:7:7: postgres.url: holds a password, which goes into a file that postgres.password_file names: take it out",
        "F:10:7: downstream.url: sends transactions in the clear to another machine: use https://, or set downstream.allow_plain_http = true",
        "F:11:11: downstream.workers: must be a whole number from 1 to 1024, without quotes",
        "F:12:11: downstream.timeout: must be a time with its unit in quotes, such as \"250ms\", \"15s\", \"2m\", \"72h\", \"30d\", from 10ms to 1h",
        "F:14:7: downstream.outcomes.409: is no class: delivered, retry, throttled, down, misconfigured or refused",
        "F:16:9: log.level: must be one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
    ];
    for command in [
        &["check-config"][..],
        &["check-config", "--connect"],
        &["show-config"],
        &["run"],
        &["status"],
        &["list"],
        &["explain", "x"],
    ] {
        assert_eq!(folder.says(&file, command), (Some(78), expected.map(str::to_owned).to_vec()), "{command:?}");
    }
}

#[test]
fn what_is_no_file_of_text_is_one_line_too() {
    let folder = Folder::new();
    let file = folder.0.join("payments.toml");
    assert_eq!(folder.says(&file, &["run"]), (Some(78), vec!["F: cannot be read: No such file or directory".to_owned()]));
    std::fs::write(&file, b"name = \"\xff\"\n").expect("written");
    assert_eq!(folder.says(&file, &["run"]), (Some(78), vec!["F: is not UTF-8 text".to_owned()]));
    let it = folder.0.clone();
    assert_eq!(folder.says(&it, &["run"]), (Some(78), vec!["F: cannot be read: Is a directory".to_owned()]));
}

#[test]
fn what_stands_on_the_command_line_is_held_to_the_same() {
    let folder = Folder::new();
    let file = folder.write(&[]);
    for (set, expected) in [
        ("log.level", "--set: must be key=value, for instance --set log.level=debug"),
        ("log.levle=debug", "--set: log.levle: unknown key, did you mean log.level?"),
        ("kafka=1", "--set: kafka: this is a table: name a key in it"),
        ("downstream.workers=many", "--set: downstream.workers: must be a whole number from 1 to 1024, without quotes"),
    ] {
        assert_eq!(folder.says(&file, &["--set", set, "run"]), (Some(78), vec![expected.to_owned()]));
    }
}

/// Root may read everything, so it is somebody else who asks.
#[test]
fn a_secret_that_the_daemons_user_may_not_read_is_named_with_the_remedy() {
    let folder = Folder::new();
    let file = folder.write(&[r#"downstream.auth.bearer_file = "HERE/good""#, r#"downstream.tls.ca_file = "HERE/ca.crt""#]);
    for (name, mode) in [("payments.toml", 0o644), ("ca.crt", 0o600)] {
        std::fs::set_permissions(folder.0.join(name), std::fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let is_root = rustix::process::getuid().is_root();
    let binary = env!("CARGO_BIN_EXE_txrelay");
    let mut command = Command::new(if is_root { "setpriv" } else { binary });
    if is_root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", binary]);
    } else {
        for name in ["good", "ca.crt"] {
            std::fs::set_permissions(folder.0.join(name), std::fs::Permissions::from_mode(0o000)).expect("chmod");
        }
    }
    let out = command.arg("-c").arg(&file).arg("check-config").output().expect("it runs");
    let said = String::from_utf8(out.stderr).expect("text").replace(folder.0.to_str().expect("text"), "HERE");
    assert_eq!(out.status.code(), Some(78), "{said}");
    let secret = "HERE/payments.toml:5:31: downstream.auth.bearer_file: HERE/good cannot be read by this user: chown root:txrelay and chmod 0640 it";
    let ca = "HERE/payments.toml:6:26: downstream.tls.ca_file: HERE/ca.crt cannot be read: Permission denied";
    assert_eq!(said.lines().collect::<Vec<_>>(), [secret, ca]);
}
