//! How the service misbehaves: rules, the first that matches decides.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Answer with `status`.
    Answer,
    /// Reset the connection; the request is not taken.
    ResetBefore,
    /// Take the request, then reset the connection without an answer.
    ResetAfter,
    /// Never answer.
    Hang,
    /// Answer with `status`, and end the connection within the body.
    DropBody,
}

#[derive(Debug, Clone)]
pub struct Behaviour {
    pub action: Action,
    pub status: u16,
    pub delay: Duration,
    pub retry_after: Option<String>,
    pub body: String,
}

pub struct Rule {
    behaviour: Behaviour,
    ids: Option<HashSet<String>>,
    share: f64,
    /// The share is one of ids, which then always fail, instead of one of requests.
    sticky: bool,
    until: Option<Instant>,
    times: Option<u64>,
    /// Only to what comes above so many requests a second.
    capacity: Option<Capacity>,
    matched: u64,
    asked: u64,
}

/// What a healthy service does.
pub fn good() -> Behaviour {
    Behaviour { action: Action::Answer, status: 200, delay: Duration::ZERO, retry_after: None, body: "ok\n".into() }
}

/// The behaviour towards a delivery of `id`.
pub fn decide(rules: &mut [Rule], id: &str) -> Behaviour {
    let now = Instant::now();
    rules.iter_mut().find_map(|rule| rule.applies(id, now).then(|| rule.behaviour.clone())).unwrap_or_else(good)
}

/// One rule or a list of rules.
pub fn parse(text: &[u8]) -> anyhow::Result<Vec<Rule>> {
    match serde_json::from_slice(text).context("not JSON")? {
        Value::Array(rules) => rules.iter().map(Rule::parse).collect(),
        rule => Ok(vec![Rule::parse(&rule)?]),
    }
}

/// What a service bears: so many requests a second, and a twentieth of that at once.
struct Capacity {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Capacity {
    fn new(per_second: f64) -> Self {
        Self { per_second, tokens: 1.0, at: Instant::now() }
    }

    fn bears_one(&mut self, now: Instant) -> bool {
        let gathered = self.per_second * now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + gathered).min((self.per_second * 0.05).max(1.0));
        self.at = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

impl Rule {
    fn parse(value: &Value) -> anyhow::Result<Self> {
        const KEYS: [&str; 12] = [
            "action",
            "status",
            "delay_ms",
            "retry_after",
            "body",
            "ids",
            "id",
            "share",
            "sticky",
            "for_ms",
            "times",
            "capacity",
        ];
        let fields = value.as_object().context("a rule is an object")?;
        if let Some(unknown) = fields.keys().find(|key| !KEYS.contains(&key.as_str())) {
            bail!("unknown key `{unknown}`; known are {}", KEYS.join(", "));
        }
        let mut behaviour = good();
        behaviour.action = match value["action"].as_str().unwrap_or("answer") {
            "answer" => Action::Answer,
            "reset_before" => Action::ResetBefore,
            "reset_after" => Action::ResetAfter,
            "hang" => Action::Hang,
            "drop_body" => Action::DropBody,
            other => bail!("unknown action `{other}`"),
        };
        if let Some(status) = value["status"].as_u64() {
            behaviour.status = status as u16;
        }
        behaviour.delay = Duration::from_millis(value["delay_ms"].as_u64().unwrap_or(0));
        behaviour.retry_after = match &value["retry_after"] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        if let Some(body) = value["body"].as_str() {
            behaviour.body = body.to_owned();
        }
        let strings = |v: &Value| v.as_array().map(|a| a.iter().filter_map(|i| i.as_str().map(str::to_owned)).collect());
        Ok(Self {
            behaviour,
            ids: strings(&value["ids"]).or_else(|| value["id"].as_str().map(|id| HashSet::from([id.to_owned()]))),
            share: value["share"].as_f64().unwrap_or(1.0),
            sticky: value["sticky"].as_bool().unwrap_or(false),
            until: value["for_ms"].as_u64().map(|ms| Instant::now() + Duration::from_millis(ms)),
            times: value["times"].as_u64(),
            capacity: value["capacity"].as_f64().map(Capacity::new),
            matched: 0,
            asked: 0,
        })
    }

    fn applies(&mut self, id: &str, now: Instant) -> bool {
        if self.until.is_some_and(|until| now >= until)
            || self.times.is_some_and(|times| self.matched >= times)
            || self.ids.as_ref().is_some_and(|ids| !ids.contains(id))
        {
            return false;
        }
        self.asked += 1;
        // Of a hash, so that a run can be repeated: of the id alone when sticky, else of how often the rule was asked.
        let drawn = crate::shared::hash(if self.sticky { id.to_owned() } else { self.asked.to_string() }.as_bytes());
        if self.share < 1.0 && (drawn >> 11) as f64 / (1_u64 << 53) as f64 >= self.share {
            return false;
        }
        if self.capacity.as_mut().is_some_and(|capacity| capacity.bears_one(now)) {
            return false;
        }
        self.matched += 1;
        true
    }

    /// For `GET /_/behave`.
    pub fn describe(&self) -> String {
        let b = &self.behaviour;
        format!("{:?} {} share {} matched {} of {}", b.action, b.status, self.share, self.matched, self.asked)
    }
}
