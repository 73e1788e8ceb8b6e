//! When the certificates of the connections to the brokers end. Neither client tells, so each broker is shaken hands with.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::broker::{self, Door, Refusal};
use super::{tls, wire};
use crate::config;

/// For all brokers together; who is not asked any more keeps what was last seen.
const ROUND: Duration = Duration::from_secs(60);

/// What was last seen of each broker, by its address.
#[derive(Debug, Default)]
pub struct Certificates {
    ends: BTreeMap<String, i64>,
}

impl Certificates {
    /// Shakes hands with each broker, for up to `timeout`, until `is_over`. Whether all of them showed a certificate.
    pub fn look(&mut self, kafka: &config::Kafka, timeout: Duration, is_over: impl Fn() -> bool) -> bool {
        let Some(connector) = kafka.tls.as_ref().and_then(|tls| tls::connector(tls).ok()) else { return false };
        let by = Instant::now() + ROUND;
        let brokers = brokers(kafka, timeout, &is_over);
        self.ends.retain(|address, _| brokers.contains(address));
        let mut shown = 0;
        for address in &brokers {
            if is_over() || Instant::now() >= by {
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

/// Those that are configured, and those that they name.
fn brokers(kafka: &config::Kafka, timeout: Duration, is_over: impl Fn() -> bool) -> Vec<String> {
    let mut all = kafka.brokers.clone();
    let Ok(door) = Door::of(kafka) else { return all };
    for address in &kafka.brokers {
        if is_over() {
            break;
        }
        match door.enter(address, timeout) {
            Ok((mut wire, versions)) => {
                let cluster = broker::metadata(wire.until(timeout), &versions, &[]);
                all.extend(cluster.unwrap_or_default().brokers.into_values());
                break;
            }
            // Another one may be well.
            Err(Refusal::Fault(_)) => {}
            // A log-in that is refused is not tried at each.
            Err(_) => break,
        }
    }
    all.sort();
    all.dedup();
    all
}
