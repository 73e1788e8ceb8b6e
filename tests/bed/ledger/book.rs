//! What the service has received and what it answered.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

/// One delivery. It was accepted when the answer was 2xx, or when it was taken and the connection reset afterwards.
pub struct Request {
    pub id: String,
    pub hash: u64,
    pub bytes: u64,
    pub attempt: u32,
    /// Unix ms of its last byte.
    pub at: u64,
    /// A status, or the action that stood in its place.
    pub answer: String,
    pub accepted: bool,
    pub source: String,
}

struct Accepted {
    times: u32,
    first_at: u64,
    hash: u64,
    /// Another acceptance had another body.
    altered: bool,
}

#[derive(Default)]
pub struct Book {
    requests: Vec<Request>,
    accepted: HashMap<String, Accepted>,
    by_answer: HashMap<String, u64>,
    accepted_twice: u64,
    without_id: u64,
    pub max_in_flight: u64,
    file: Option<File>,
}

impl Book {
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let mut book = Self::default();
        let Some(path) = path else { return Ok(book) };
        if let Ok(file) = File::open(path) {
            // The last line may be half written.
            for line in BufReader::new(file).lines().map_while(Result::ok) {
                if let Some(request) = serde_json::from_str(&line).ok().and_then(|v| Request::from_json(&v)) {
                    book.add(request);
                }
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.with_context(|| format!("failed to open {}", path.display()))?;
        file.write_all(b"\n")?; // ends a half-written line; an empty one is passed over
        book.file = Some(file);
        Ok(book)
    }

    pub fn add(&mut self, request: Request) {
        if let Some(file) = &mut self.file {
            // In one write, so that a kill leaves whole lines.
            let _ = file.write_all(format!("{}\n", request.to_json()).as_bytes());
        }
        self.without_id += u64::from(request.id.is_empty());
        *self.by_answer.entry(request.answer.clone()).or_default() += 1;
        if request.accepted {
            match self.accepted.get_mut(&request.id) {
                Some(known) => {
                    self.accepted_twice += u64::from(known.times == 1);
                    known.times += 1;
                    known.altered |= known.hash != request.hash;
                }
                None => {
                    let first = Accepted { times: 1, first_at: request.at, hash: request.hash, altered: false };
                    self.accepted.insert(request.id.clone(), first);
                }
            }
        }
        self.requests.push(request);
    }

    pub fn reset(&mut self) {
        let file = self.file.take();
        if let Some(file) = &file {
            let _ = file.set_len(0);
        }
        *self = Self { file, ..Self::default() };
    }

    pub fn summary(&self) -> Value {
        json!({
            "requests": self.requests.len(),
            "accepted": self.accepted.len(),
            "accepted_twice": self.accepted_twice,
            "without_id": self.without_id,
            "by_answer": self.by_answer,
            "first_ms": self.requests.first().map(|r| r.at),
            "last_ms": self.requests.last().map(|r| r.at),
            "max_in_flight": self.max_in_flight,
        })
    }

    /// JSON lines, in the order of arrival; of one id or of all.
    pub fn requests(&self, id: Option<&str>) -> String {
        let wanted = self.requests.iter().filter(|r| id.is_none_or(|id| id == r.id));
        wanted.map(|r| format!("{}\n", r.to_json())).collect()
    }

    /// A line per accepted id: id (percent-encoded), times accepted, first accepted (unix ms), hash, same or altered.
    pub fn accepted(&self) -> String {
        let mut out = String::with_capacity(self.accepted.len() * 80);
        for (id, a) in &self.accepted {
            let same = if a.altered { "altered" } else { "same" };
            let id = crate::shared::percent_encode(id);
            out.push_str(&format!("{id}\t{}\t{}\t{:016x}\t{same}\n", a.times, a.first_at, a.hash));
        }
        out
    }
}

impl Request {
    fn to_json(&self) -> Value {
        json!({"id": self.id, "hash": format!("{:016x}", self.hash), "bytes": self.bytes, "attempt": self.attempt, "at": self.at,
               "answer": self.answer, "accepted": self.accepted, "source": self.source})
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        Some(Self {
            id: text("id")?,
            hash: u64::from_str_radix(value["hash"].as_str()?, 16).ok()?,
            bytes: value["bytes"].as_u64()?,
            attempt: value["attempt"].as_u64()? as u32,
            at: value["at"].as_u64()?,
            answer: text("answer")?,
            accepted: value["accepted"].as_bool()?,
            source: text("source")?,
        })
    }
}
