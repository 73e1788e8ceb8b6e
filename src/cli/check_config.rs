//! `check-config`: everything that is wrong, or what the file will do; and what each answer of the service will mean.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::{Exit, load, say, with_own_password};
use crate::config::value::show_duration;
use crate::config::{Auth, Config, Method, OnLostPosition, Security, Start, visible};
use crate::core::identify::IdRule;
use crate::core::outcome::{FailureKind, Line, Overrides, classify_failure};

/// What to print when nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Print {
    /// `FILE: ok` and a summary.
    Summary,
    /// The effective table of outcomes.
    Outcomes,
    /// The same as JSON.
    OutcomesAsJson,
}

/// Every problem on stderr, or on stdout what is asked for.
pub(super) fn check_config(file: &Path, sets: &[String], print: Print) -> Exit {
    match load(file, &with_own_password(sets)) {
        Ok(config) => {
            let outcomes = &config.downstream.outcomes;
            say(&match print {
                Print::Summary => format!("{}: ok\n{}", visible(&file.display().to_string()), summary(&config)),
                Print::Outcomes => outcome_table(outcomes),
                Print::OutcomesAsJson => outcomes_as_json(outcomes).to_string(),
            });
            Exit::Done
        }
        Err(exit) => exit,
    }
}

fn statuses(line: &Line) -> String {
    let rule = line.rule;
    let after = if line.with_retry_after { " + Retry-After" } else { "" };
    if rule.from == rule.to { format!("{}{after}", rule.from) } else { format!("{}-{}{after}", rule.from, rule.to) }
}

/// Every status and every failure without an answer: class and reason; what the file overrides is marked.
fn outcome_table(outcomes: &Overrides) -> String {
    let mut out = String::new();
    let mut row = |mark, what: &str, class: &str, reason: &str| {
        let _ = writeln!(out, "{mark} {what:<22} {class:<14} {reason}");
    };
    for line in outcomes.table() {
        let (mark, reason) = match line.instead_of {
            Some(default) => ('*', format!("downstream.outcomes, instead of {}", default.label())),
            None => (' ', line.rule.reason.to_owned()),
        };
        row(mark, &statuses(&line), line.rule.outcome.label(), &reason);
    }
    for kind in FailureKind::ALL {
        let (what, reason) = kind.words();
        row(' ', what, classify_failure(kind).label(), reason);
    }
    out.push_str(
        "\nWhat follows: delivered ends it, refused makes it dead. The others are tried again; throttled, down and misconfigured\n\
         are the service's fault and spend none of a transaction's budget, unless others are accepted meanwhile.",
    );
    out
}

fn outcomes_as_json(outcomes: &Overrides) -> Value {
    let status = |line: Line| {
        let reason = line.instead_of.is_none().then_some(line.rule.reason);
        json!({
            "from": line.rule.from, "to": line.rule.to, "with_retry_after": line.with_retry_after,
            "outcome": line.rule.outcome.label(), "reason": reason,
            "overridden": line.instead_of.is_some(), "default": line.instead_of.map(|o| o.label()),
        })
    };
    let failure = |kind: FailureKind| {
        let (what, reason) = kind.words();
        json!({ "failure": what, "outcome": classify_failure(kind).label(), "reason": reason })
    };
    let statuses: Vec<Value> = outcomes.table().into_iter().map(status).collect();
    json!({ "statuses": statuses, "failures": FailureKind::ALL.map(failure) })
}

/// How the request is guarded; names of keys, no secret and no file.
fn guards(security: &Security, https: bool) -> String {
    let mut words = vec![match (https, &security.tls.ca) {
        (false, _) => "no TLS".to_owned(),
        (true, None) => "TLS, the system's trust store".to_owned(),
        (true, Some(_)) => "TLS, downstream.tls.ca_file only".to_owned(),
    }];
    words.extend(security.tls.client.as_ref().map(|_| "a client certificate".to_owned()));
    words.extend(match &security.auth {
        Auth::None => None,
        Auth::Bearer(_) => Some("a bearer token".to_owned()),
        Auth::Basic(..) => Some("user and password".to_owned()),
        Auth::Header(name, _) => Some(format!("header {name}")),
    });
    let n = security.signing.len();
    words.extend((n > 0).then(|| format!("signed with {n} secret{}", if n == 1 { "" } else { "s" })));
    words.join(", ")
}

/// What the file will do, without anything that may be secret: no user, no path or query of the URL, no header values.
fn summary(config: &Config) -> String {
    let Config { kafka, postgres, downstream, retry, .. } = config;
    let time = show_duration;
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<11} {text}");
    };
    line("pipeline", config.name.clone());
    line("reads", format!("{} from {}, as group {}", kafka.topics.join(", "), kafka.brokers.join(", "), kafka.group));
    let start = match kafka.start {
        None => "not said: kafka.start is asked for if a topic already holds records".into(),
        Some(Start::Earliest) => "the first record there is".into(),
        Some(Start::Latest) => "what comes from then on".into(),
        Some(Start::Committed) => format!("where group {} stands", kafka.group),
        Some(Start::Time(ms)) => match jiff::Timestamp::from_millisecond(ms) {
            Ok(time) => format!("the first record of {time}"),
            Err(_) => format!("{ms} ms after 1970"),
        },
    };
    line("first start", start);
    if kafka.on_lost_position == OnLostPosition::Stop {
        line("lost offsets", "stop that partition".into());
    }
    line("id", id(&config.transaction_id));
    let role = if postgres.migrate { "may change it" } else { "never changes it" };
    line("stores in", format!("{}, schema {}, {role}", postgres.place(), postgres.schema));
    let method = match downstream.method {
        Method::Post => "POST",
        Method::Put => "PUT",
    };
    line(
        "sends to",
        format!("{method} {}, {} at once, {} each", downstream.origin(), downstream.workers, time(downstream.timeout)),
    );
    line("guarded by", guards(&downstream.security, downstream.url.starts_with("https://")));
    let (base, cap) = (time(retry.base), time(retry.cap));
    line("retries", format!("after {base}, up to {cap} apart, {} of own failures at most", time(retry.give_up_after)));
    line("metrics", format!("http://{}/metrics", config.metrics_listen));
    out.trim_end().to_string()
}

fn id(rule: &IdRule) -> String {
    match rule {
        IdRule::Key => "the record's key".into(),
        IdRule::Header(name) => format!("header {name}"),
        IdRule::Value(tokens) if tokens.is_empty() => "the whole value".into(),
        IdRule::Value(tokens) => {
            let escaped = tokens.iter().map(|t| t.replace('~', "~0").replace('/', "~1"));
            format!("the value at /{}", escaped.collect::<Vec<_>>().join("/"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::config::tests::Folder;

    #[test]
    fn the_summary_says_what_will_happen_and_no_secret() {
        let folder = Folder::new();
        let file = folder.write(
            "payments.toml",
            r#"
kafka.brokers = ["kafka-1:9092"]
kafka.topics = ["payments", "refunds"]
postgres.url = "postgresql://txrelay@a,b:5433/db"
downstream.url = "https://ledger.internal/hunter2?token=hunter2"
downstream.headers = { "X-Source" = "hunter2" }
"#,
        );
        let summary = summary(&config::load(&file, &[]).expect("loads"));
        assert!(!summary.contains("hunter2"), "{summary}");
        for part in [
            "payments, refunds from kafka-1:9092",
            "a:5432, b:5433 database db, schema txrelay_payments",
            "POST https://ledger.internal,",
            "TLS, the system's trust store",
        ] {
            assert!(summary.contains(part), "{summary}");
        }
        assert!(summary.lines().count() < 13, "{summary}");
    }

    #[test]
    fn the_table_of_outcomes_says_what_holds_why_and_what_was_overridden() {
        let mut outcomes = Overrides::default();
        outcomes.add("409", "delivered").expect("legal");
        let table = outcome_table(&outcomes);
        for row in [
            "* 409                    delivered      downstream.outcomes, instead of retry",
            "  200-299                delivered      accepted,",
            "  503                    down           ",
            "  503 + Retry-After      throttled      ",
            "  no answer in time      down           sent or not is unknown",
        ] {
            assert!(table.lines().any(|line| line.starts_with(row)), "{row}\n{table}");
        }
        assert_eq!(table.lines().filter(|line| line.starts_with('*')).count(), 1);
        let json = outcomes_as_json(&outcomes);
        let of_409 = json["statuses"].as_array().expect("a list").iter().find(|row| row["from"] == 409).expect("there");
        assert_eq!(
            (&of_409["outcome"], &of_409["overridden"], &of_409["default"]),
            (&"delivered".into(), &true.into(), &"retry".into())
        );
        assert_eq!(json["failures"].as_array().map(Vec::len), Some(7));
    }
}
