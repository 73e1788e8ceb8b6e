//! From what was written to what it means: the checks that take more than one value's type and range.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::problems::{At, Problem, Problems};
use super::raw::{Value, Written};
use super::value::show_duration;
use super::{Config, Downstream, Gate, IdempotencyFormat, Log, LogFormat, Method, Password, Postgres, Retention, Retry};
use super::{http, kafka, postgres_url, security};
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
    let config = whole(file, sets, &mut written);
    match config {
        Some(config) if written.problems.is_empty() => Ok(config),
        _ => Err(Problems::new(file, written.problems)),
    }
}

/// `None` only together with a problem. Everything is looked at before anything is given up.
fn whole(file: &Path, sets: &[String], w: &mut Written) -> Option<Config> {
    let name = name(file, w);
    let kafka = kafka::read(w, name.as_deref());
    let transaction_id = transaction_id(w);
    let downstream = downstream(w);
    let timeout = w.period("downstream.timeout").map(|(d, _)| d);
    let postgres = postgres(w, name.as_deref(), timeout);
    let retry = retry(w);
    let gate = gate(w);
    let metrics_listen = w.parsed("metrics.listen", |text| {
        text.parse::<SocketAddr>()
            .map_err(|_| "must be an address and a port, such as \"127.0.0.1:19470\" or \"[::]:19470\"".to_string())
    });
    let log = log(w);
    let (delivered, dead, rejected) = (w.term("retention.delivered"), w.term("retention.dead"), w.term("retention.rejected"));
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
    let (name, kafka, postgres) = (name?, kafka?, postgres?);
    let view = w.view(&[
        ("name", Value::Text(name.clone())),
        ("kafka.group", Value::Text(kafka.group.clone())),
        ("postgres.schema", Value::Text(postgres.schema.clone())),
        ("postgres.lease", Value::Period(postgres.lease)),
    ]);
    Some(Config {
        file: file.to_path_buf(),
        sets: sets.to_vec(),
        view,
        name,
        kafka,
        transaction_id: transaction_id?,
        postgres,
        downstream: downstream?,
        retry: retry?,
        gate: gate?,
        metrics_listen: metrics_listen?,
        log: log?,
        retention: Retention { delivered: delivered?, dead: dead?, rejected: rejected? },
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
        if file.is_empty() {
            return Ok(Password::None);
        }
        // Read once to find out now what is wrong with it.
        let password = Password::File(file.to_owned());
        password.read().map(|_| password)
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
    let (client, tls) = client?;
    Some(Postgres {
        client,
        tls,
        password: password?,
        schema: schema?,
        migrate: migrate?,
        lease: lease?.0,
        pool_size: pool_size?,
    })
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
    let rate_limit = w.count("downstream.rate_limit");
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
    let mut others = vec![key_header];
    others.extend(forwarded);
    others.extend(headers.iter().flatten().map(|(name, _)| name.clone()));
    let security = security::read(w, url.as_deref(), &others);
    let outcomes = security::outcomes(w);
    Some(Downstream {
        url: url?,
        method: method?,
        timeout: timeout?.0,
        connect_timeout: connect_timeout?.0,
        idle_timeout: idle_timeout?.0,
        workers: workers? as usize,
        rate_limit: std::num::NonZeroU32::new(rate_limit?),
        content_type: content_type?,
        idempotency_header: idempotency_header?,
        idempotency_format: idempotency_format?,
        forward_headers: forward_headers?,
        headers: headers?,
        keep_answer: keep_answer?,
        security: security?,
        outcomes: outcomes?,
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

fn gate(w: &mut Written) -> Option<Gate> {
    let shut_after = w.count("gate.shut_after");
    let (probe_every, probe_cap) = (w.period("gate.probe_every"), w.period("gate.probe_cap"));
    if let (Some((every, every_at)), Some((cap, at))) = (probe_every, probe_cap)
        && every > cap
        && w.is_written("gate.probe_every")
    {
        let (path, at) = if w.is_written("gate.probe_cap") { ("gate.probe_cap", at) } else { ("gate.probe_every", every_at) };
        let (every, cap) = (show_duration(every), show_duration(cap));
        w.report(at, path, format!("gate.probe_every (\"{every}\") must not be longer than gate.probe_cap (\"{cap}\")"));
    }
    Some(Gate { shut_after: shut_after? as usize, probe_every: probe_every?.0, probe_cap: probe_cap?.0 })
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
