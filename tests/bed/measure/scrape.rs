//! What a monitor sees of the daemon while it is measured: how long `/metrics` takes, and what it says of claims.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{http, shared};

/// More often than a monitor does, so that a run of seconds gives a median.
const EVERY: Duration = Duration::from_millis(200);

/// Asks from its start to its end.
pub struct Scrapes {
    stop: Sender<()>,
    thread: JoinHandle<anyhow::Result<Seen>>,
}

struct Seen {
    durations_us: Vec<u64>,
    first: Claims,
    last: Claims,
}

/// Claims so far, and how long they took together.
#[derive(Clone, Copy, Default)]
struct Claims {
    seconds: f64,
    count: f64,
}

impl Scrapes {
    pub fn start(url: &str) -> Self {
        let (stop, stopped) = channel();
        let url = url.to_owned();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen { durations_us: Vec::new(), first: claims(&url)?, last: Claims::default() };
            while stopped.recv_timeout(EVERY).is_err() {
                let began = Instant::now();
                seen.last = claims(&url)?;
                seen.durations_us.push(began.elapsed().as_micros() as u64);
            }
            seen.durations_us.sort_unstable();
            Ok(seen)
        });
        Self { stop, thread }
    }

    /// Medians and means, in ms.
    pub fn end(self) -> anyhow::Result<Value> {
        let _ = self.stop.send(()); // it may have failed, which is what `join` says
        let seen = self.thread.join().expect("the scraping thread does not panic")?;
        let claims = (seen.last.count - seen.first.count).max(1.0);
        Ok(json!({
            "scrape_ms": shared::quantile(&seen.durations_us, 0.5) as f64 / 1000.0,
            "claim_ms": (seen.last.seconds - seen.first.seconds) * 1000.0 / claims,
        }))
    }
}

fn claims(url: &str) -> anyhow::Result<Claims> {
    let text = http::request("GET", url, None)?;
    let of = |name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(&format!("txrelay_commit_duration_seconds_{name}{{op=\"claim\"}} ")));
        line.and_then(|n| n.parse().ok()).unwrap_or(0.0)
    };
    Ok(Claims { seconds: of("sum"), count: of("count") })
}
