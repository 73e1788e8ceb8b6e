//! What the gate says of itself: one line when it changes, `stalled`, the gauges, and the board for the heartbeat.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::core::gate::{Change, Gate, Report};
use crate::core::outcome::Outcome;
use crate::ops::health::{Health, Reason};
use crate::ops::metrics::Metrics;
use crate::ops::throttle::Throttle;
use crate::store::{GateBoard, GateState, Tried};

/// Clocks are compared once a second, and `since` is cut to whole seconds.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// Held by `Permits` with the gate.
#[derive(Debug)]
pub(super) struct Notices {
    origin: Instant,
    metrics: Metrics,
    health: Health,
    board: Arc<GateBoard>,
    /// Deliveries that wait, as last counted.
    open: Arc<AtomicI64>,
    /// How `txrelay` is told which pipeline this is.
    select: String,
    throttle: Throttle,
    /// The last failure, in words.
    last: String,
    /// Deliveries that were refused and so are dead since the last acceptance; when the first was, by PostgreSQL's clock.
    refused: Option<(u32, SystemTime)>,
    /// What was last shown: why nothing starts, and the rest of it.
    shown: Option<Shown>,
}

#[derive(Debug, Clone, PartialEq)]
struct Shown {
    reason: Option<Reason>,
    rate: f64,
    next: Option<Duration>,
}

impl Notices {
    pub(super) fn new(
        file: &Path,
        origin: Instant,
        metrics: Metrics,
        health: Health,
        board: Arc<GateBoard>,
        open: Arc<AtomicI64>,
    ) -> Self {
        Self {
            origin,
            metrics,
            health,
            board,
            open,
            select: select(file),
            throttle: Throttle::per_minute(),
            last: String::new(),
            refused: None,
            shown: None,
        }
    }

    /// Before `changed`: remembers what the next line will have to say.
    pub(super) fn answered(&mut self, report: &Report, tried: &Tried, gate: &Gate) {
        if report.outcome == Outcome::Delivered {
            if !gate.is_shut() && !report.probe {
                self.refused = None;
            }
            return;
        }
        let what = match (tried.status, &tried.error) {
            (Some(status), _) => format!("status {status}"),
            (None, Some(error)) => error.clone(),
            (None, None) => "no answer".to_owned(),
        };
        self.last = format!("{what} ({})", tried.outcome.label());
        if report.outcome == Outcome::Refused && !gate.is_shut() {
            let first = self.board.postgres_now();
            self.refused.get_or_insert((0, first)).0 += 1;
        }
    }

    pub(super) fn changed(&mut self, change: &Change, gate: &Gate, now: Duration) {
        let open = self.open.load(Ordering::Relaxed).max(0);
        let waits = format!("{open} deliveries wait");
        match *change {
            Change::Shut { why, since } => {
                let (since, next) = (self.clock(since), gate.next_probe().map(|at| self.clock(at)).unwrap_or_default());
                let dead = self.dead();
                let line = format!(
                    "the gate is shut: deliveries have failed in a row since {since}, none accepted between, the last with {}; {waits}, and lose nothing; next probe at {next}{dead}",
                    self.last
                );
                // Somebody has to act only where the service's set-up, or ours, is wrong.
                let level = if reason_of(why) == "gate_misconfigured" { log::Level::Error } else { log::Level::Warn };
                log::log!(level, waiting = open, outcome = why.label(); "{line}");
            }
            Change::Opened { since } => {
                let dead = self.dead();
                self.refused = None;
                log::info!(waiting = open; "the gate is open: a probe was accepted, {} s after the first failure (at {}); {waits}; beginning with {:.0} requests per second{dead}",
                    now.saturating_sub(since).as_secs(), self.clock(since), gate.rate(now));
            }
            Change::Held { until } => {
                if let Some(note) = self.throttle.admit("held", Instant::now()) {
                    log::warn!(waiting = open; "the service asks for a pause ({}): nothing starts until {}; {waits}{note}", self.last, self.clock(until));
                }
            }
        }
    }

    /// What was refused before the gate shut is dead, and a deploy that refuses everything is no verdict on it.
    fn dead(&self) -> String {
        let Some((n, first)) = self.refused else { return String::new() };
        let first = time(first.checked_sub(CLOCK_SLACK).unwrap_or(first));
        format!(
            "; {n} were refused before, and are dead: bring them back with `txrelay {} retry --state dead --since {first}`",
            self.select
        )
    }

    /// A time of the gate, as a clock shows it.
    fn clock(&self, at: Duration) -> String {
        let (instant, now) = (self.origin + at, Instant::now());
        let shown = SystemTime::now();
        let shown = match now.checked_duration_since(instant) {
            Some(ago) => shown.checked_sub(ago).unwrap_or(shown),
            None => shown + (instant - now),
        };
        time(shown)
    }

    /// Gauges always; words, `stalled` and the board when something else is true.
    pub(super) fn show(&mut self, gate: &Gate, now: Duration) {
        let rate = gate.rate(now);
        let reason = match (gate.why(), gate.held_until(now)) {
            (Some(why), _) => Some(reason_of(why)),
            (None, Some(_)) => Some("throttled"),
            (None, None) => None,
        };
        let next = if gate.is_shut() { gate.next_probe() } else { gate.held_until(now) };
        let shown = Shown { reason, rate, next };
        let before = self.shown.replace(shown.clone());
        if before.as_ref() == Some(&shown) {
            return;
        }
        self.metrics.gate_open.set(i64::from(!gate.is_shut()));
        self.metrics.gate_rate.set(rate);
        let words = reason.map(|_| self.words(gate, next));
        let was = before.as_ref().and_then(|before| before.reason);
        if let Some(was) = was.filter(|was| Some(*was) != reason) {
            self.health.go("gate", was);
        }
        if let (Some(reason), Some(words)) = (reason, &words) {
            self.health.wait("gate", reason, words.clone());
        }
        let since = if was == reason { self.board.read().since } else { Some(Instant::now()) };
        let next = next.map(|at| self.origin + at);
        self.board.write(GateState { shut: words, rate: Some(rate).filter(|rate| rate.is_finite() && *rate > 0.0), since, next });
        self.say_limit(before.map(|before| before.rate), rate);
    }

    fn words(&self, gate: &Gate, next: Option<Duration>) -> String {
        let next = next.map(|at| self.clock(at)).unwrap_or_default();
        if gate.is_shut() {
            format!("the gate is shut: the service fails, the last time with {}; next probe at {next}", self.last)
        } else {
            format!("the service asks for a pause until {next} ({})", self.last)
        }
    }

    /// That the service has too much to do, and that it no longer has; the steps between are the gauge's.
    fn say_limit(&mut self, before: Option<f64>, rate: f64) {
        let Some(before) = before else { return };
        if before.is_infinite() && rate.is_finite() && rate > 0.0 {
            if let Some(note) = self.throttle.admit("limit", Instant::now()) {
                log::info!(
                    "the service is overloaded ({}): requests are limited to {rate:.0} per second for now{note}",
                    self.last
                );
            }
        } else if before.is_finite() && rate.is_infinite() {
            log::debug!("requests are no longer limited");
        }
    }
}

fn reason_of(why: Outcome) -> Reason {
    match why {
        Outcome::Misconfigured | Outcome::Refused => "gate_misconfigured",
        Outcome::Throttled => "throttled",
        Outcome::Delivered | Outcome::Retry | Outcome::Down | Outcome::Lost => "gate_down",
    }
}

/// RFC 3339, whole seconds, as `retry --since` takes it.
fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "?".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `-i NAME` where that names this file, else `-c FILE`.
fn select(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    if file == Path::new("/etc/txrelay").join(format!("{stem}.toml")) {
        format!("-i {stem}")
    } else {
        format!("-c {}", file.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_command_names_the_pipeline_as_the_command_line_does() {
        assert_eq!(select(Path::new("/etc/txrelay/payments.toml")), "-i payments");
        assert_eq!(select(Path::new("/srv/relay.toml")), "-c /srv/relay.toml");
        assert_eq!(time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_900)), "1970-01-01T00:00:01Z");
    }
}
