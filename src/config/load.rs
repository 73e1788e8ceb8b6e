//! From what was written to what it means: the checks that take more than one value's type and range.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::problems::{At, Problem, Problems};
use super::raw::{Value, Written};
use super::value::show_duration;
use super::{Config, Downstream, Gate, IdempotencyFormat, Kafka, Log, LogFormat, Method, OnLostPosition, Postgres, Retry, Start};
use super::{http, postgres_url, secret};
use crate::core::identify::IdRule;

/// Reads and checks `file`, with `sets` (`key=value`, the command line's) over it and the defaults under it.
///
/// # Errors
/// Everything that is wrong at once, also when the file cannot be read. No line of it holds a secret.
pub fn load(file: &Path, sets: &[String]) -> Result<Config, Problems> {
    let alone = |text: String| Problems::new(file, vec![Problem { at: At::File, key: String::new(), text }]);
    let bytes = std::fs::read(file).map_err(|e| alone(format!("cannot be read: {}", super::io_text(&e))))?;
    let text = String::from_utf8(bytes).map_err(|_| alone("is not UTF-8 text".into()))?;
    let mut written = Written::read(&text, sets);
    let config = whole(file, &mut written);
    match config {
        Some(config) if written.problems.is_empty() => Ok(config),
        _ => Err(Problems::new(file, written.problems)),
    }
}

/// `None` only together with a problem. Everything is looked at before anything is given up.
fn whole(file: &Path, w: &mut Written) -> Option<Config> {
    let name = name(file, w);
    let kafka = kafka(w, name.as_deref());
    let transaction_id = transaction_id(w);
    let downstream = downstream(w);
    let timeout = w.period("downstream.timeout").map(|(d, _)| d);
    let postgres = postgres(w, name.as_deref(), timeout);
    let retry = retry(w);
    let probe_cap = w.period("gate.probe_cap");
    let metrics_listen = w.parsed("metrics.listen", |text| {
        text.parse::<SocketAddr>()
            .map_err(|_| "must be an address and a port, such as \"127.0.0.1:19470\" or \"[::]:19470\"".to_string())
    });
    let log = log(w);
    let shutdown_timeout = w.period("shutdown.timeout");
    if let (Some((stop, at)), Some(timeout)) = (shutdown_timeout, timeout)
        && stop < timeout + Duration::from_secs(5)
    {
        let right = show_duration(timeout + Duration::from_secs(5));
        w.refuse(
            "shutdown.timeout",
            at,
            format!("must be at least downstream.timeout + 5s, here \"{right}\": a request in hand must be able to end"),
        );
    }
    Some(Config {
        file: file.to_path_buf(),
        name: name?,
        kafka: kafka?,
        transaction_id: transaction_id?,
        postgres: postgres?,
        downstream: downstream?,
        retry: retry?,
        gate: Gate { probe_cap: probe_cap?.0 },
        metrics_listen: metrics_listen?,
        log: log?,
        shutdown_timeout: shutdown_timeout?.0,
    })
}

fn name(file: &Path, w: &mut Written) -> Option<String> {
    let written = w.is_written("name");
    let (name, at) = if written {
        w.text("name")?
    } else {
        (file.file_stem().unwrap_or_default().to_string_lossy().into_owned(), At::Line(1, 1))
    };
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.len() <= 41 && name.chars().all(fits) && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        return Some(name);
    }
    let rule = "1 to 41 of a-z, 0-9, - and _, beginning with a letter or digit";
    let text = if written {
        format!("must be {rule}")
    } else {
        format!("the file's own name does not make a pipeline's name ({rule}): write one, name = \"...\"")
    };
    w.refuse("name", at, text);
    None
}

fn kafka(w: &mut Written, name: Option<&str>) -> Option<Kafka> {
    let brokers =
        w.list("kafka.brokers", |b, _| is_host_port(b).then_some(()).ok_or("must be host:port, such as \"kafka-1:9092\""));
    let topics = w.list("kafka.topics", |topic, before| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !(1..=249).contains(&topic.len()) || !topic.chars().all(fits) || matches!(topic, "." | "..") {
            Err("must be a topic's name: letters, digits, . _ and -, at most 249 (patterns are not supported)")
        } else if before.iter().any(|b| b == topic) {
            Err("stands in the list twice")
        } else {
            Ok(())
        }
    });
    let group = w.computed("kafka.group", name.map(|n| format!("txrelay-{n}")), |g| {
        let fits = (1..=255).contains(&g.len()) && !g.chars().any(char::is_control);
        if fits { Ok(g.to_string()) } else { Err("must be 1 to 255 characters".into()) }
    });
    let start = if w.is_written("kafka.start") { w.parsed("kafka.start", start).map(Some) } else { Some(None) };
    let on_lost_position = w.parsed("kafka.on_lost_position", |word| match word {
        "stop" => Ok(OnLostPosition::Stop),
        _ => Ok(OnLostPosition::Continue),
    });
    let record_max = w.size("kafka.record_max");
    w.get("kafka.client");
    let librdkafka = w.table("kafka.librdkafka", |name, value, _| refused_property(name, value));
    Some(Kafka {
        brokers: brokers?,
        topics: topics?,
        group: group?,
        start: start?,
        on_lost_position: on_lost_position?,
        record_max: record_max?,
        librdkafka: BTreeMap::from_iter(librdkafka?),
    })
}

fn is_host_port(broker: &str) -> bool {
    let Some((host, port)) = broker.rsplit_once(':') else { return false };
    let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
    };
    host_fits && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0)
}

fn start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        "committed" => Ok(Start::Committed),
        time => match time.parse::<jiff::Timestamp>().map(|t| t.as_millisecond()) {
            Ok(ms) if ms >= 0 => Ok(Start::Time(ms)),
            _ => Err("must be \"earliest\", \"latest\", \"committed\" or a time such as \"2026-11-01T00:00:00Z\"".into()),
        },
    }
}

/// Properties that txrelay sets itself, with what to use instead where there is something.
const OWNED: &[(&str, &str)] = &[
    ("bootstrap.servers", "use kafka.brokers"),
    ("metadata.broker.list", "use kafka.brokers"),
    ("group.id", "use kafka.group"),
    ("group.instance.id", "it must differ between processes"),
    ("group.protocol", "it decides how partitions are handed over"),
    ("client.id", "it names the process"),
    ("enable.auto.commit", "offsets are committed only after PostgreSQL has the records"),
    ("auto.commit.enable", "offsets are committed only after PostgreSQL has the records"),
    ("enable.auto.offset.store", "offsets are committed only after PostgreSQL has the records"),
    ("auto.offset.reset", "use kafka.start and kafka.on_lost_position"),
    ("offset.store.method", "offsets are kept in PostgreSQL"),
    ("offset.store.path", "offsets are kept in PostgreSQL"),
    ("check.crcs", "without it damaged records would be delivered"),
    ("isolation.level", "aborted records must not be delivered"),
    ("enable.partition.eof", "txrelay needs it as it is"),
    ("partition.assignment.strategy", "it decides how partitions are handed over"),
    ("max.poll.interval.ms", "waits on PostgreSQL are fitted to it"),
    ("statistics.interval.ms", "metrics depend on it"),
    ("allow.auto.create.topics", "a misspelled topic must not be created"),
    ("log.queue", "txrelay reads the log"),
    ("plugin.library.paths", "no code is loaded from a configuration"),
];

fn refused_property(name: &str, value: &str) -> Result<(), String> {
    if let Some((_, why)) = OWNED.iter().find(|(owned, _)| *owned == name) {
        return Err(format!("txrelay sets this property itself ({why}): take it out"));
    }
    if name == "security.protocol"
        || ["ssl.", "sasl.", "https."].iter().any(|p| name.starts_with(p))
        || name.contains(".ssl.")
        || name.contains(".sasl.")
    {
        return Err("this version does not have TLS and SASL to Kafka yet: take it out".into());
    }
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return Err("is not a property".into());
    }
    Ok(())
}

fn transaction_id(w: &mut Written) -> Option<IdRule> {
    w.parsed("transaction.id", |text| {
        if text == "key" {
            return Ok(IdRule::Key);
        }
        match text.split_once(':') {
            Some(("value", pointer)) => Ok(IdRule::Value(pointer_tokens(pointer)?)),
            Some(("header", name)) if !name.is_empty() => Ok(IdRule::Header(name.into())),
            _ => Err("must be \"value:/path/to/id\" (a JSON pointer), \"key\" or \"header:NAME\"".into()),
        }
    })
}

/// The reference tokens of a JSON pointer, unescaped (RFC 6901 sections 3 and 4).
fn pointer_tokens(pointer: &str) -> Result<Vec<String>, String> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = pointer.strip_prefix('/') else {
        return Err("a JSON pointer begins with /: \"value:/transaction_id\"".into());
    };
    let unescape = |token: &str| {
        let valid = token.split('~').skip(1).all(|part| part.starts_with(['0', '1']));
        // ~1 first: "~01" means "~1" (RFC 6901 section 4).
        valid
            .then(|| token.replace("~1", "/").replace("~0", "~"))
            .ok_or("in a JSON pointer ~ must be written ~0, and / inside a name ~1".to_string())
    };
    rest.split('/').map(unescape).collect()
}

fn postgres(w: &mut Written, name: Option<&str>, timeout: Option<Duration>) -> Option<Postgres> {
    let client = w.parsed("postgres.url", postgres_url::parse);
    let password = w.parsed("postgres.password_file", |file| {
        if file.is_empty() { Ok(None) } else { secret::read(file, |v| std::env::var_os(v)).map(Some) }
    });
    let schema = w.computed("postgres.schema", name.map(|n| format!("txrelay_{}", n.replace('-', "_"))), |schema| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let good =
            (1..=63).contains(&schema.len()) && schema.chars().all(fits) && !schema.starts_with(|c: char| c.is_ascii_digit());
        if !good {
            Err("must be 1 to 63 of a-z, 0-9 and _, not beginning with a digit".into())
        } else if schema.starts_with("pg_") || schema == "information_schema" {
            Err("is a schema of PostgreSQL's own, choose another".into())
        } else {
            Ok(schema.to_string())
        }
    });
    let migrate = w.switch("postgres.migrate");
    let lease = if w.is_written("postgres.lease") {
        w.period("postgres.lease")
    } else {
        timeout.map(|t| (t + Duration::from_secs(45), At::File))
    };
    if let (Some((lease, at)), Some(timeout)) = (lease, timeout)
        && lease <= timeout + Duration::from_secs(10)
    {
        let (low, right) = (show_duration(timeout + Duration::from_secs(10)), show_duration(timeout + Duration::from_secs(45)));
        w.refuse("postgres.lease", at, format!("must be more than downstream.timeout + 10s, here more than \"{low}\", better \"{right}\": another process would send what this one is still sending"));
    }
    let pool_size = w.count("postgres.pool_size");
    let mut client = client?;
    if let Some(password) = password? {
        client.password(password);
    }
    Some(Postgres { client, schema: schema?, migrate: migrate?, lease: lease?.0, pool_size: pool_size? })
}

fn downstream(w: &mut Written) -> Option<Downstream> {
    let allow_plain_http = w.switch("downstream.allow_plain_http").unwrap_or(false);
    let url = w.parsed("downstream.url", |url| http::check_url(url, allow_plain_http).map(|()| url.to_string()));
    let method = w.parsed("downstream.method", |m| Ok(if m == "PUT" { Method::Put } else { Method::Post }));
    let (timeout, connect_timeout, idle_timeout) =
        (w.period("downstream.timeout"), w.period("downstream.connect_timeout"), w.period("downstream.idle_timeout"));
    if let (Some((timeout, timeout_at)), Some((connect, at))) = (timeout, connect_timeout)
        && connect > timeout
    {
        // A timeout below the default of connect_timeout is the line that was written.
        let (path, at) = if w.is_written("downstream.connect_timeout") {
            ("downstream.connect_timeout", at)
        } else {
            ("downstream.timeout", timeout_at)
        };
        let (connect, timeout) = (show_duration(connect), show_duration(timeout));
        w.report(at, path, format!("downstream.connect_timeout (\"{connect}\") must not be longer than downstream.timeout (\"{timeout}\"), which it is a part of"));
    }
    let workers = w.count("downstream.workers");
    let content_type = w.parsed("downstream.content_type", |v| http::check_value(v).map(|()| v.to_string()));
    let idempotency_header = w.parsed("downstream.idempotency_header", |n| http::check_name(n).map(|()| n.to_string()));
    let key_header = idempotency_header.clone().unwrap_or_default();
    let idempotency_format = w.parsed("downstream.idempotency_format", |f| {
        Ok(if f == "quoted" { IdempotencyFormat::Quoted } else { IdempotencyFormat::Plain })
    });
    let forward_headers = w.list("downstream.forward_headers", |name, before: &[String]| {
        http::check_extra_name(name, &key_header)?;
        if before.iter().any(|b| b.eq_ignore_ascii_case(name)) { Err("stands in the list twice".to_string()) } else { Ok(()) }
    });
    let forwarded = forward_headers.clone().unwrap_or_default();
    let headers = w.table("downstream.headers", |name, value, before| {
        http::check_fixed(name, value, &key_header)?;
        if before.iter().any(|b| b.eq_ignore_ascii_case(name)) {
            return Err("stands in the table twice".to_string());
        }
        if forwarded.iter().any(|f| f.eq_ignore_ascii_case(name)) {
            return Err("stands in downstream.forward_headers too: keep one of them".into());
        }
        Ok(())
    });
    let keep_answer = w.size("downstream.keep_answer");
    Some(Downstream {
        url: url?,
        method: method?,
        timeout: timeout?.0,
        connect_timeout: connect_timeout?.0,
        idle_timeout: idle_timeout?.0,
        workers: workers? as usize,
        content_type: content_type?,
        idempotency_header: idempotency_header?,
        idempotency_format: idempotency_format?,
        forward_headers: forward_headers?,
        headers: headers?,
        keep_answer: keep_answer?,
    })
}

fn retry(w: &mut Written) -> Option<Retry> {
    let (base, cap, give_up_after) = (w.period("retry.base"), w.period("retry.cap"), w.period("retry.give_up_after"));
    let mut in_order = |low: (&'static str, Option<(Duration, At)>), high: (&'static str, Option<(Duration, At)>)| {
        if let (Some((low_is, low_at)), Some((high_is, high_at))) = (low.1, high.1)
            && low_is > high_is
        {
            let (path, at) = if w.is_written(high.0) { (high.0, high_at) } else { (low.0, low_at) };
            let (low_is, high_is) = (show_duration(low_is), show_duration(high_is));
            w.report(at, path, format!("{} (\"{low_is}\") must not be longer than {} (\"{high_is}\")", low.0, high.0));
        }
    };
    in_order(("retry.base", base), ("retry.cap", cap));
    in_order(("retry.cap", cap), ("retry.give_up_after", give_up_after));
    Some(Retry { base: base?.0, cap: cap?.0, give_up_after: give_up_after?.0 })
}

fn log(w: &mut Written) -> Option<Log> {
    let level = w.parsed("log.level", |level| level.parse().map_err(|_| "is not a level".to_string()));
    let format = w.parsed("log.format", |format| {
        Ok(match format {
            "journal" => LogFormat::Journal,
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => LogFormat::Auto,
        })
    });
    Some(Log { level: level?, format: format? })
}

/// Typed access; each is `None` where the value is unusable, and then that is already a problem.
impl Written {
    fn text(&mut self, path: &'static str) -> Option<(String, At)> {
        match self.get(path)? {
            (Value::Text(text), at) => Some((text, at)),
            other => unreachable!("{path} is not a text in the table of keys: {other:?}"),
        }
    }

    fn parsed<T>(&mut self, path: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let (text, at) = self.text(path)?;
        parse(&text).map_err(|problem| self.refuse(path, at, problem)).ok()
    }

    fn computed(
        &mut self,
        path: &'static str,
        default: Option<String>,
        parse: impl FnOnce(&str) -> Result<String, String>,
    ) -> Option<String> {
        if self.is_written(path) { self.parsed(path, parse) } else { default }
    }

    fn period(&mut self, path: &'static str) -> Option<(Duration, At)> {
        match self.get(path)? {
            (Value::Period(time), at) => Some((time, at)),
            other => unreachable!("{path} is not a time in the table of keys: {other:?}"),
        }
    }

    fn size(&mut self, path: &'static str) -> Option<usize> {
        match self.get(path)? {
            (Value::Size(bytes), _) => Some(usize::try_from(bytes).expect("sizes are bounded by the table of keys")),
            other => unreachable!("{path} is not a size in the table of keys: {other:?}"),
        }
    }

    fn count(&mut self, path: &'static str) -> Option<u32> {
        match self.get(path)? {
            (Value::Count(n), _) => Some(n),
            other => unreachable!("{path} is not a number in the table of keys: {other:?}"),
        }
    }

    fn switch(&mut self, path: &'static str) -> Option<bool> {
        match self.get(path)? {
            (Value::Bool(on), _) => Some(on),
            other => unreachable!("{path} is not a switch in the table of keys: {other:?}"),
        }
    }

    /// `check` gets each entry and those before it. A list that must be written must not be empty.
    fn list<E: Into<String>>(
        &mut self,
        path: &'static str,
        check: impl Fn(&str, &[String]) -> Result<(), E>,
    ) -> Option<Vec<String>> {
        let (Value::List(items), at) = self.get(path)? else { unreachable!("{path} is not a list in the table of keys") };
        if items.is_empty() && path.starts_with("kafka.") {
            self.refuse(path, at, "must name at least one");
        }
        let mut list: Vec<String> = Vec::new();
        for (item, at) in items {
            if let Err(problem) = check(&item, &list) {
                self.refuse(path, at, problem);
            }
            list.push(item);
        }
        self.is_good(path).then_some(list)
    }

    /// `check` gets name, value and the names before.
    fn table(
        &mut self,
        path: &'static str,
        check: impl Fn(&str, &str, &[String]) -> Result<(), String>,
    ) -> Option<Vec<(String, String)>> {
        let (Value::Table(entries), _) = self.get(path)? else { unreachable!("{path} is not a table in the table of keys") };
        let (mut names, mut list) = (Vec::new(), Vec::new());
        for (name, value, at) in entries {
            if let Err(problem) = check(&name, &value, &names) {
                self.refuse_in(path, &name, at, problem);
            }
            names.push(name.clone());
            list.push((name, value));
        }
        self.is_good(path).then_some(list)
    }
}
