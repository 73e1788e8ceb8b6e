//! The shipped rules, alerts and dashboard: promtool takes them, each alert fires when it should, what they name exists, and each
//! alert has its page.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::rig::{Ledger, Relay, Topic, eventually, unique, unpacked};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// promtool's words, when it has an objection.
#[track_caller]
fn promtool(args: &[&str], folder: &Path) {
    let promtool = unpacked("prometheus").join("usr/bin/promtool");
    let out = Command::new(promtool).args(args).current_dir(folder).output().expect("promtool runs");
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "promtool {args:?}: {said}");
}

/// Expressions of the dashboard, with what Grafana fills in.
fn of_the_dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&text("mixin/dashboards/txrelay.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expression = |target: &Value| {
        target["expr"].as_str().expect("an expression").replace("$__rate_interval", "5m").replace("$job", "txrelay-payments")
    };
    let expressions: Vec<String> = targets.map(expression).collect();
    assert!(expressions.len() > 20, "only {} expressions found", expressions.len());
    expressions
}

/// Values of a key of the rules: they stand on one line each.
fn values(path: &str, key: &str) -> Vec<String> {
    let key = format!("{key}: ");
    text(path).lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(&key).map(str::to_owned)).collect()
}

#[test]
fn promtool_takes_rules_alerts_and_dashboard_and_each_alert_fires_when_it_should() {
    promtool(&["check", "rules", "rules.yml", "alerts.yml"], &file("mixin"));
    promtool(&["test", "rules", "tests.yml"], &file("mixin"));
    let folder = std::env::temp_dir().join(unique("txrelay-mixin"));
    std::fs::create_dir(&folder).expect("a folder");
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (n, expression) in of_the_dashboard().iter().enumerate() {
        rules.push_str(&format!("      - record: dashboard:panel:{n}\n        expr: {}\n", serde_json::json!(expression)));
    }
    std::fs::write(folder.join("dashboard.yml"), rules).expect("written");
    promtool(&["check", "rules", "dashboard.yml"], &folder);
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// Names of series in an expression: words that are followed by a selector, a range, or nothing that makes them a function.
fn names(expression: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !is_name(c));
    words.filter(|word| word.starts_with("txrelay_") || word.starts_with("process_")).map(str::to_owned).collect()
}

#[test]
fn every_series_that_alerts_and_dashboard_name_is_at_the_live_endpoint() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    // The last to be there: it is known once Kafka has said where the log ends.
    eventually("the lag is known", || relay.http("/metrics").is_some_and(|text| text.contains("txrelay_kafka_lag_records{")));
    let metrics = relay.http("/metrics").expect("answers");
    let live: BTreeSet<&str> = metrics.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let recorded = values("mixin/rules.yml", "record");
    let mut expressions = of_the_dashboard();
    expressions.extend(values("mixin/rules.yml", "expr"));
    expressions.extend(values("mixin/alerts.yml", "expr"));
    let named: BTreeSet<String> = expressions.iter().flat_map(|expression| names(expression)).collect();
    assert!(named.len() > 25, "only {named:?}");
    let missing: Vec<&String> = named.iter().filter(|name| !live.contains(name.as_str()) && !recorded.contains(name)).collect();
    // A gauge that has no series until something was lost would be no use in an alert, so there are no exceptions.
    assert!(missing.is_empty(), "named and not there: {missing:?}");
}

#[test]
fn each_alert_has_its_page_with_the_five_parts_and_each_page_its_alert() {
    const PARTS: [&str; 5] = [
        "## What it means for customers",
        "## One command that shows the cause",
        "## Likely causes, in order",
        "## The safe action, and its undo",
        "## When to wake somebody else",
    ];
    let alerts: BTreeSet<String> = values("mixin/alerts.yml", "alert").into_iter().collect();
    let urls = values("mixin/alerts.yml", "runbook_url");
    assert!(alerts.len() > 15 && urls.len() == alerts.len(), "{alerts:?}");
    let pages = std::fs::read_dir(file("docs/runbook")).expect("docs/runbook").map(|entry| entry.expect("a page").file_name());
    let pages: BTreeSet<String> = pages.filter_map(|name| name.to_str()?.strip_suffix(".md").map(str::to_owned)).collect();
    assert_eq!(alerts, pages);
    for alert in &alerts {
        assert!(urls.iter().any(|url| url.ends_with(&format!("/runbook/{alert}.md"))), "{alert} names its page");
        let page = text(&format!("docs/runbook/{alert}.md"));
        let parts: Vec<&str> = page.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(parts, PARTS, "{alert}");
    }
}
