//! `check-config`: everything that is wrong, or what the file will do.

use std::fmt::Write as _;
use std::path::Path;

use super::{Exit, load_to_connect, say};
use crate::config::value::show_duration;
use crate::config::{Config, Method, OnLostPosition, Start, visible};
use crate::core::identify::IdRule;

/// Every problem on stderr, or `FILE: ok` and a summary on stdout.
pub(super) fn check_config(file: &Path, sets: &[String]) -> Exit {
    match load_to_connect(file, sets) {
        Ok(config) => {
            say(&format!("{}: ok\n{}", visible(&file.display().to_string()), summary(&config)));
            Exit::Done
        }
        Err(exit) => exit,
    }
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
        ] {
            assert!(summary.contains(part), "{summary}");
        }
        assert!(summary.lines().count() < 12, "{summary}");
    }
}
