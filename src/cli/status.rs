//! `status`: how the pipeline stands, out of PostgreSQL, so that it works while the daemon is down.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::{Exit, json as values, look, say};
use crate::config::visible;
use crate::core::explain::Pause;
use crate::core::ledger::Imbalances;
use crate::core::times::rough;
use crate::store::{ProcessRow, Status, status as read};

/// Everything is audited once a day; after this many seconds something hinders it.
const AUDIT_IS_OLD: f64 = 3.0 * 86_400.0;

/// One screen, or one JSON object. Exit status 1 when something stands still, is wrong, or a process is silent.
pub(super) fn status(file: &Path, sets: &[String], as_json: bool) -> Exit {
    look(file, sets, "status", |config, session, now| {
        let status = read(session)?;
        let pause = session.paused()?;
        let text = if as_json {
            in_json(&config.name, &status, pause.as_ref())
        } else {
            on_a_screen(&config.name, &status, pause.map(|pause| visible(&pause.words(now))))
        };
        say(text.trim_end());
        let all_well = status.schema_fault.is_none()
            && status.gauges.imbalances() == Imbalances::default()
            && !status.processes.is_empty()
            && status.processes.iter().all(|p| !p.is_silent() && p.stalled.is_empty());
        Ok(if all_well { Exit::Done } else { Exit::Failed })
    })
}

fn on_a_screen(name: &str, status: &Status, pause: Option<String>) -> String {
    let mut out = format!("pipeline {name}\n");
    let mut line = |what: &str, text: String| {
        let _ = writeln!(out, "  {what:<12} {text}");
    };
    for (state, n) in status.gauges.states() {
        line(state, format!("{n:>12}"));
    }
    line("rejected", format!("{:>12} unresolved", status.gauges.rejected_unresolved));
    if let Some(age) = status.gauges.oldest_open_age {
        line("oldest", format!("{} open", ago(age)));
    }
    if let Some(age) = status.gauges.oldest_due_age {
        line("", format!("{} due", ago(age)));
    }
    for (equation, off) in status.gauges.imbalances().labelled() {
        if off != 0 {
            line("WRONG", format!("the ledger's equation \"{equation}\" is off by {off}: txrelay reconcile names what is wrong"));
        }
    }
    for finding in &status.findings {
        line("WRONG", finding.words());
    }
    if let Some(age) = status.gauges.audit_whole_age.filter(|age| *age > AUDIT_IS_OLD) {
        line("audit", format!("everything was last audited {} ago, which should be once a day while the daemon runs", ago(age)));
    }
    if let Some(pause) = pause {
        line("paused", pause);
    }
    if let Some(fault) = &status.schema_fault {
        line("schema", fault.clone());
    }
    for process in &status.processes {
        line("process", describe(process));
        if !process.is_silent() {
            line("gate", gate(process));
        }
    }
    if status.processes.is_empty() {
        line("process", "none: txrelay does not run (systemctl status 'txrelay@*')".to_owned());
    }
    for p in &status.positions {
        let life = if p.incarnation == 0 { String::new() } else { format!(", life {}", p.incarnation + 1) };
        let skipped = if p.skipped == 0 { String::new() } else { format!(", {} skipped", p.skipped) };
        line("position", format!("{}/{} at {}{skipped}{life}, moved {} ago", p.topic, p.partition, p.next_offset, ago(p.age)));
    }
    out
}

fn describe(process: &ProcessRow) -> String {
    let ProcessRow { id, host, pid, version, silent, in_flight, status, .. } = process;
    if process.is_silent() {
        return format!(
            "{id} on {host} (pid {pid}, {version}) is silent since {}: it has died, or cannot reach PostgreSQL",
            ago(*silent)
        );
    }
    format!("{id} on {host} (pid {pid}, {version}), {in_flight} in flight: {status}")
}

fn gate(process: &ProcessRow) -> String {
    let since = process.gate_age.map_or(String::new(), |age| format!(" since {}", ago(age)));
    if process.gate_open {
        let rate = process.gate_rate.map_or(String::new(), |rate| format!(", {rate:.0} requests per second"));
        return format!("open{since}{rate}");
    }
    let next = process.next_probe.map_or(String::new(), |next| format!("; next probe in {}", ago(next)));
    format!("shut{since}{next}")
}

fn in_json(name: &str, status: &Status, pause: Option<&Pause>) -> String {
    let pause = pause
        .map(|p| json!({ "since": values::time(Some(p.since)), "until": values::time(p.until), "by": p.by, "reason": p.reason }));
    let states: serde_json::Map<String, serde_json::Value> =
        status.gauges.states().into_iter().map(|(state, n)| (state.to_owned(), n.into())).collect();
    let imbalances: serde_json::Map<String, serde_json::Value> =
        status.gauges.imbalances().labelled().into_iter().map(|(equation, off)| (equation.to_owned(), off.into())).collect();
    let process = |p: &ProcessRow| {
        json!({ "id": p.id, "host": p.host, "pid": p.pid, "version": p.version, "silent_seconds": p.silent,
            "in_flight": p.in_flight, "stalled": p.stalled, "status": p.status,
            "gate": { "open": p.gate_open, "rate": p.gate_rate, "why": p.gate_why, "since_seconds": p.gate_age,
                "next_probe_seconds": p.next_probe } })
    };
    let position = |p: &crate::store::PositionRow| {
        json!({ "topic": p.topic, "partition": p.partition, "incarnation": p.incarnation, "next_offset": p.next_offset,
            "skipped": p.skipped, "moved_seconds_ago": p.age })
    };
    json!({
        "pipeline": name,
        "transactions": states,
        "rejected_unresolved": status.gauges.rejected_unresolved,
        "oldest_open_age_seconds": status.gauges.oldest_open_age,
        "oldest_due_age_seconds": status.gauges.oldest_due_age,
        "paused": status.gauges.paused,
        "pause": pause,
        "ledger_imbalance": imbalances,
        "findings": status.findings.iter().map(crate::store::Finding::words).collect::<Vec<_>>(),
        "schema_fault": status.schema_fault,
        "processes": status.processes.iter().map(process).collect::<Vec<_>>(),
        "positions": status.positions.iter().map(position).collect::<Vec<_>>(),
    })
    .to_string()
}

/// Seconds for people: two units at most.
fn ago(seconds: f64) -> String {
    rough(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}
