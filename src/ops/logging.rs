//! Where log lines go and what they look like. Three sinks carry the same: the journal (structured fields, right
//! priorities), text for people (simplelog), and JSON, one object a line.
//!
//! No text of the other side can forge a line: control characters are escaped in every message and value. Fields
//! (`log`'s key-values) are appended to the message as ` key=value`, because simplelog drops them and `journalctl` shows
//! only the message; the journal and JSON have them as fields too.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use log::kv::{self, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{ColorChoice, ConfigBuilder, TermLogger, TerminalMode, WriteLogger};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use super::log_queue::{Line, Owned, Queue, Sink};
use crate::config::{self, LogFormat, visible};
use crate::ops::throttle::Throttle;

/// The process's log while `run` runs.
pub struct Logging(Queue);

impl Logging {
    /// Waits until what was logged is written, for a second at most. The last thing that a process does.
    pub fn flush(&self) {
        self.0.flush();
    }
}

/// Sets the process's log up, with the thread that writes it; a panic becomes a line of it too (std's own hook would wait
/// for whoever reads stderr). The first call of a process counts.
pub fn start(log: config::Log) -> std::io::Result<Logging> {
    let journal = match log.format {
        LogFormat::Journal => true,
        LogFormat::Auto => connected_to_journal(),
        LogFormat::Text | LogFormat::Json => false,
    };
    let mut trouble = None;
    let (sink, format) = match log.format {
        LogFormat::Json => (Sink::stderr()?, Format::Json),
        _ if journal => match JournalLog::new() {
            Ok(log) => (Sink::Journal(log), Format::Record),
            Err(e) => {
                trouble = Some(e);
                text()?
            }
        },
        _ => text()?,
    };
    let format = Arc::new(format);
    let noted = format.clone();
    let queue = Queue::start(sink, move |n, why| {
        let words = if n == 1 { "line was" } else { "lines were" };
        let mut record = Record::builder();
        record.level(Level::Warn).target("txrelay::ops::logging").module_path_static(Some("txrelay::ops::logging"));
        noted.line(&record.args(format_args!("{n} {words} not written: {why}")).build(), &Fields(Vec::new()))
    })?;
    if log::set_boxed_logger(Box::new(Logger::new(format, queue.clone()))).is_ok() {
        set_level(log.level);
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let words = panic.payload_as_str().unwrap_or("no message");
        log::error!("thread {} panicked at {place}: {words}", thread.name().unwrap_or("without a name"));
    }));
    if let Some(e) = trouble {
        log::warn!("failed to connect to the journal, writing text to stderr: {e}");
    }
    Ok(Logging(queue))
}

/// From now on lines of this level and above are written.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// simplelog, coloured on a terminal.
fn text() -> std::io::Result<(Sink, Format)> {
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .build();
    if std::io::stderr().is_terminal() {
        // https://no-color.org: any value but the empty one.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let color = if no_color { ColorChoice::Never } else { ColorChoice::Auto };
        let terminal = TermLogger::new(LevelFilter::Trace, config, TerminalMode::Stderr, color);
        return Ok((Sink::Terminal(terminal), Format::Record));
    }
    let buffer = Buffer::default();
    let writer = WriteLogger::new(LevelFilter::Trace, config, buffer.clone());
    Ok((Sink::stderr()?, Format::Text(Mutex::new((writer, buffer)))))
}

/// What simplelog has written of one line.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a line looks; made by the thread that logs it, so that its time is right however long it waits to be written.
enum Format {
    Json,
    Text(Mutex<(Box<WriteLogger<Buffer>>, Buffer)>),
    /// The sink decides.
    Record,
}

impl Format {
    fn line(&self, record: &Record<'_>, fields: &Fields) -> Line {
        match self {
            Self::Json => Line::Bytes(json_line(&format!("{:.3}", jiff::Timestamp::now()), record, fields).into_bytes()),
            Self::Text(writer) => {
                let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                let mut clean = Record::builder();
                clean.metadata(record.metadata().clone());
                writer.0.log(&clean.args(format_args!("{}", text_message(record, fields))).build());
                Line::Bytes(std::mem::take(&mut *writer.1.0.lock().unwrap_or_else(PoisonError::into_inner)))
            }
            Self::Record => Line::Record(Box::new(Owned {
                level: record.level(),
                target: record.target().to_owned(),
                module: record.module_path_static(),
                file: record.file_static(),
                line: record.line(),
                message: text_message(record, fields),
                fields: fields.texts(),
            })),
        }
    }
}

struct Logger {
    format: Arc<Format>,
    queue: Queue,
    /// What libraries say, by target and level: they know no limit of their own while something is down.
    foreign: Mutex<Throttle<(String, Level)>>,
}

impl Logger {
    fn new(format: Arc<Format>, queue: Queue) -> Self {
        Self { format, queue, foreign: Mutex::new(Throttle::per_minute()) }
    }
}

fn is_own(target: &str) -> bool {
    target == "txrelay" || target.starts_with("txrelay::")
}

/// Libraries log requests, headers and statement parameters at debug: payloads and secrets, to us.
fn is_wanted(level: LevelFilter, metadata: &Metadata<'_>) -> bool {
    let limit = if is_own(metadata.target()) { level } else { level.min(LevelFilter::Warn) };
    metadata.level() <= limit
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_wanted(log::max_level(), metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut fields = Fields::of(record);
        if !is_own(record.target()) {
            let key = (record.target().to_string(), record.level());
            match self.foreign.lock().unwrap_or_else(PoisonError::into_inner).ask(key, Instant::now()) {
                None => return,
                Some(0) => {}
                Some(n) => fields.0.push(("held_back".into(), serde_json::Value::from(n))),
            }
        }
        self.queue.push(self.format.line(record, &fields));
    }

    fn flush(&self) {
        self.queue.flush();
    }
}

/// The key-values of a record, in order.
struct Fields(Vec<(String, serde_json::Value)>);

impl Fields {
    fn of(record: &Record<'_>) -> Self {
        let mut fields = Self(Vec::new());
        // The visitor never fails.
        let _ = record.key_values().visit(&mut fields);
        fields
    }

    /// Names and values without control characters.
    fn texts(&self) -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => visible(text),
            other => other.to_string(),
        };
        self.0.iter().map(|(name, value)| (visible(name), text(value))).collect()
    }
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let number = value.to_i64().map(serde_json::Value::from);
        let json = number
            .or_else(|| value.to_u64().map(Into::into))
            .or_else(|| value.to_bool().map(Into::into))
            .or_else(|| value.to_f64().filter(|f| f.is_finite()).map(Into::into))
            .unwrap_or_else(|| value.to_string().into());
        self.0.push((key.as_str().to_string(), json));
        Ok(())
    }
}

/// The message with its fields behind it. A value with a blank or a quote in it stands in quotes, so that it cannot look
/// like several.
fn text_message(record: &Record<'_>, fields: &Fields) -> String {
    let mut message = visible(&record.args().to_string());
    for (name, value) in fields.texts() {
        if value.is_empty() || value.contains([' ', '"', '=']) {
            let _ = write!(message, " {name}=\"{}\"", value.replace('"', "\\\""));
        } else {
            let _ = write!(message, " {name}={value}");
        }
    }
    message
}

/// `{"ts":...,"level":...,"target":...,"msg":...,FIELDS}` and a newline.
fn json_line(ts: &str, record: &Record<'_>, fields: &Fields) -> String {
    const OWN: [&str; 4] = ["ts", "level", "target", "msg"];
    let level = record.level().as_str().to_ascii_lowercase();
    let own = OWN.into_iter().zip([ts, &level, record.target(), &record.args().to_string()].map(serde_json::Value::from));
    let mut line = String::from("{");
    let rest = fields.0.iter().map(|(name, value)| {
        let name = if OWN.contains(&name.as_str()) { format!("field_{name}") } else { name.clone() };
        (name, value.clone())
    });
    for (n, (name, value)) in own.map(|(name, value)| (name.to_string(), value)).chain(rest).enumerate() {
        let comma = if n > 0 { "," } else { "" };
        let _ = write!(line, "{comma}{}:{value}", serde_json::Value::from(name));
    }
    line.push('}');
    // JSON leaves DEL and the C1 controls as they are, and terminals obey them.
    let mut safe = String::with_capacity(line.len() + 1);
    for c in line.chars() {
        if c.is_control() {
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe.push('\n');
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORGED: &str = "no\n<3>2026-01-01 ERROR forged\u{1b}[2J\u{9b}31m";

    fn with_record(level: Level, target: &str, check: impl FnOnce(&Record<'_>)) {
        let kvs: [(&str, Value<'_>); 4] = [
            ("topic", Value::from("pay ments")),
            ("offset", Value::from(42)),
            ("msg", Value::from("x\ny")),
            ("late", Value::from(true)),
        ];
        check(
            &Record::builder()
                .level(level)
                .target(target)
                .key_values(&kvs)
                .args(format_args!("the service said {FORGED}"))
                .build(),
        );
    }

    #[test]
    fn a_text_line_is_one_line_with_its_fields() {
        with_record(Level::Info, "txrelay::deliver", |record| {
            let message = text_message(record, &Fields::of(record));
            let end = " topic=\"pay ments\" offset=42 msg=x\\ny late=true";
            assert!(message.ends_with(end), "{message}");
            assert!(!message.chars().any(char::is_control), "{message:?}");
        });
    }

    #[test]
    fn a_json_line_is_one_object_with_its_fields() {
        with_record(Level::Warn, "txrelay::deliver", |record| {
            let line = json_line("2026-11-23T00:00:00.000Z", record, &Fields::of(record));
            assert_eq!(line.chars().filter(|c| c.is_control()).count(), 1, "{line:?}");
            let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!(json["msg"], format!("the service said {FORGED}"));
            assert_eq!((&json["level"], &json["target"]), (&"warn".into(), &"txrelay::deliver".into()));
            assert_eq!((&json["offset"], &json["late"], &json["field_msg"]), (&42.into(), &true.into(), &"x\ny".into()));
            assert!(line.starts_with("{\"ts\":\"2026-11-23T00:00:00.000Z\",\"level\":\"warn\",\"target\":"), "{line}");
        });
    }

    #[test]
    fn libraries_cannot_log_payloads() {
        let enabled = |level, target| is_wanted(LevelFilter::Trace, &Metadata::builder().level(level).target(target).build());
        assert!(enabled(Level::Trace, "txrelay::store"));
        assert!(enabled(Level::Warn, "tokio_postgres::query"));
        assert!(!enabled(Level::Debug, "tokio_postgres::query"));
        assert!(!enabled(Level::Info, "txrelayed"));
        assert!(!is_wanted(LevelFilter::Error, &Metadata::builder().level(Level::Warn).target("ureq").build()));
    }

    /// Run by the other tests in a process of its own, which sets its log up and writes it.
    #[test]
    #[ignore = "a part of the tests below"]
    fn writes_some_lines() {
        // Among others in one process (--include-ignored) it would take their log away.
        if std::env::var_os("TEST_PART").is_none() {
            return;
        }
        let format = if std::env::var_os("TEST_JSON").is_some() { LogFormat::Json } else { LogFormat::Text };
        let logging = start(config::Log { level: LevelFilter::Info, format }).expect("starts");
        log::info!(topic = "payments", n_rows = 3; "stored {FORGED}");
        log::debug!("not at this level");
        for _ in 0..3 {
            log::warn!(target: "library", "broken");
        }
        logging.flush();
    }

    fn lines(env: &[(&str, &str)]) -> Vec<String> {
        let test = std::env::current_exe().expect("this test's program");
        let args = ["ops::logging::tests::writes_some_lines", "--exact", "--ignored", "--nocapture"];
        let done =
            std::process::Command::new(test).args(args).env("TEST_PART", "1").envs(env.iter().copied()).output().expect("runs");
        assert!(done.status.success());
        String::from_utf8(done.stderr).expect("UTF-8").lines().map(str::to_string).collect()
    }

    #[test]
    fn text_on_stderr_has_time_level_and_fields_and_no_colour() {
        let lines = lines(&[]);
        assert_eq!(lines.len(), 2, "libraries repeat themselves once a minute: {lines:#?}");
        let (time, rest) = lines[0].split_once(' ').expect("a time");
        assert!(time.parse::<jiff::Timestamp>().is_ok() && time.ends_with('Z'), "{time}");
        assert!(rest.starts_with("[INFO] stored no\\n<3>2026-01-01") && rest.ends_with(" topic=payments n_rows=3"), "{rest}");
        assert!(lines[1].ends_with("[WARN] broken"), "{lines:?}");
    }

    #[test]
    fn json_on_stderr_is_one_object_a_line() {
        let lines = lines(&[("TEST_JSON", "1")]);
        let objects: Vec<serde_json::Value> = lines.iter().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        assert_eq!(objects.len(), 2, "{lines:#?}");
        assert_eq!((&objects[0]["topic"], &objects[0]["n_rows"]), (&"payments".into(), &3.into()));
        assert_eq!(objects[1]["target"], "library");
    }
}
