//! Certificates that end soon: a line a day, early enough for a person to order new ones.

use std::time::{Duration, Instant};

use super::metrics::{Metrics, unix_seconds};
use super::throttle::Throttle;

const DAY: f64 = 86_400.0;
/// Days before the end from which on it is said.
const SOON: f64 = 14.0;

/// What was said lately.
pub struct Certificates(Throttle<&'static str>);

impl Certificates {
    /// Nothing was said yet.
    #[expect(clippy::new_without_default, reason = "one way to make one is enough")]
    pub fn new() -> Self {
        Self(Throttle::every(Duration::from_secs(24 * 3600)))
    }

    /// Looks at the gauges of `certificate_expiry_timestamp_seconds`.
    pub fn look(&mut self, metrics: &Metrics, now: Instant) {
        for role in ["downstream", "kafka", "postgres"] {
            let ends = metrics.certificate_expiry_timestamp_seconds.with_label_values(&[role]).get();
            let Some(words) = words(ends, unix_seconds()) else {
                // A new one that ends soon is news again.
                self.0.over(&role);
                continue;
            };
            if self.0.ask(role, now).is_some() {
                log::warn!(role = role; "a certificate of the connection to {role} {words}: put a new one in its place");
            }
        }
    }
}

/// Both in seconds since the epoch; `None`: there is none, or it is valid for long enough.
fn words(ends: f64, now: f64) -> Option<String> {
    let days = (ends - now) / DAY;
    match days {
        _ if ends == 0.0 || days > SOON => None,
        d if d < 0.0 => Some("has expired".into()),
        d if d < 1.0 => Some("expires within a day".into()),
        d => Some(format!("expires in {} days", d.floor())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_fourteen_days_are_worth_a_word() {
        let at = |days: f64| words(1e9 + days * DAY, 1e9);
        assert_eq!(words(0.0, 1e9), None);
        assert_eq!(at(14.1), None);
        assert_eq!(at(13.9).as_deref(), Some("expires in 13 days"));
        assert_eq!(at(0.5).as_deref(), Some("expires within a day"));
        assert_eq!(at(-0.5).as_deref(), Some("has expired"));
    }
}
