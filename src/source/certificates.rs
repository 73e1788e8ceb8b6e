//! When the certificates of the connections to the brokers end. Neither client tells, so each broker is shaken hands with.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::broker::{self, Door, Refusal};
use super::{tls, wire};
use crate::config;

/// For all brokers together; who is not asked any more keeps what was last seen.
const ROUND: Duration = Duration::from_secs(60);

/// What was last seen of each broker, by its address.
#[derive(Debug, Default)]
pub struct Certificates {
    configured: Vec<String>,
    ends: BTreeMap<String, i64>,
}

impl Certificates {
    /// Shakes hands with each broker, for up to `timeout`; `goes_on` is asked before each, and names may take long to resolve.
    /// Returns whether all of them showed a certificate.
    pub fn look(&mut self, kafka: &config::Kafka, timeout: Duration, goes_on: impl Fn() -> bool) -> bool {
        let Some(connector) = kafka.tls.as_ref().and_then(|tls| tls::connector(tls).ok()) else { return false };
        if self.configured != kafka.brokers {
            // Those of another cluster are none of ours.
            self.configured.clone_from(&kafka.brokers);
            self.ends.clear();
        }
        let by = Instant::now() + ROUND;
        let mut brokers: BTreeSet<String> = kafka.brokers.iter().cloned().collect();
        match named(kafka, timeout, by, &goes_on) {
            Some(named) => {
                brokers.extend(named);
                self.ends.retain(|address, _| brokers.contains(address));
            }
            // Those that were there are there for all that is known, and a certificate that ends soon must not be forgotten.
            None => brokers.extend(self.ends.keys().cloned()),
        }
        let mut shown = 0;
        for address in &brokers {
            if Instant::now() >= by || !goes_on() {
                break;
            }
            if let Ok(socket) = wire::connect(address, Instant::now() + timeout)
                && let (Some(at), _) = tls::look(&connector, wire::host_of(address), socket)
            {
                self.ends.insert(address.clone(), at);
                shown += 1;
            }
        }
        shown == brokers.len()
    }

    /// When the first of them ends, ours included, in seconds since the epoch.
    pub fn first_end(&self, kafka: &config::Kafka) -> Option<i64> {
        self.ends.values().copied().chain(kafka.tls.as_ref().and_then(tls::own_end)).min()
    }
}

/// The brokers that there are, as one of the configured ones says; `None`: none of them says it now.
fn named(kafka: &config::Kafka, timeout: Duration, by: Instant, goes_on: impl Fn() -> bool) -> Option<Vec<String>> {
    let door = Door::of(kafka).ok()?;
    for address in &kafka.brokers {
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() || !goes_on() {
            break;
        }
        match door.enter(address, timeout.min(left)) {
            Ok((mut wire, versions)) => match broker::metadata(wire.until(timeout), &versions, &[]) {
                Ok(cluster) if !cluster.brokers.is_empty() => return Some(cluster.brokers.into_values().collect()),
                // Another one may be well.
                _ => {}
            },
            Err(Refusal::Fault(_)) => {}
            // A log-in that is refused is not tried at each.
            Err(_) => break,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Nobody listens at any of these.
    fn kafka() -> config::Kafka {
        let tls = Some(config::KafkaTls::default());
        config::Kafka { tls, ..config::Kafka::plain(&["127.0.0.1:1", "127.0.0.1:2"], &["t"], "g") }
    }

    fn seen() -> Certificates {
        Certificates { configured: kafka().brokers, ends: BTreeMap::from([("127.0.0.1:3".to_owned(), 7)]) }
    }

    #[test]
    fn a_broker_that_is_known_counts_while_nobody_says_which_there_are() {
        let (mut certificates, before_each) = (seen(), Cell::new(0));
        let goes_on = || {
            before_each.set(before_each.get() + 1);
            true
        };
        assert!(!certificates.look(&kafka(), Duration::from_secs(1), goes_on));
        assert_eq!(certificates.first_end(&kafka()), Some(7));
        assert_eq!(before_each.get(), 2 + 3, "the configured ones for the names, then all");
        let elsewhere = config::Kafka { brokers: vec!["127.0.0.1:4".to_owned()], ..kafka() };
        certificates.look(&elsewhere, Duration::from_secs(1), || true);
        assert_eq!(certificates.first_end(&elsewhere), None, "the configuration leads to another cluster");
    }

    #[test]
    fn a_look_that_is_not_to_go_on_asks_nobody() {
        let (mut certificates, before_each) = (seen(), Cell::new(0));
        certificates.look(&kafka(), Duration::from_secs(1), || {
            before_each.set(before_each.get() + 1);
            false
        });
        assert_eq!((before_each.get(), certificates.first_end(&kafka())), (2, Some(7)));
    }
}
