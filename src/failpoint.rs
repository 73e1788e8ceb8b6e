//! Places where tests make a thread fail, hang, or the whole process die. Builds for use have none.

use std::time::Duration;

/// Each step of a transaction's way at which a test kills the process as kill -9 does, and what is done by then.
/// (`thread-NAME` are the others: one a thread, in its loop.)
pub const STEPS: [(&str, &str); 26] = [
    ("step-owned", "partitions are taken over: their epochs are raised"),
    ("step-began", "the first positions of a topic are written"),
    ("step-move-commit", "a lost position and its gap are written, not committed"),
    ("step-moved", "a lost position is moved"),
    ("step-fetched", "a batch was read, nothing is written"),
    ("step-ingest-commit", "a batch is written, not committed"),
    ("step-ingested", "a batch is committed, nothing is handed over"),
    ("step-handed-over", "its rows are handed over, its offsets not marked for Kafka"),
    ("step-claim-commit", "rows are claimed, not committed"),
    ("step-claimed", "a claim is committed, nothing is handed over"),
    ("step-send", "a worker has a delivery in hand, nothing is sent"),
    ("step-answered", "its answer has come, and is not with the settler yet"),
    ("step-settle", "outcomes are in the settler's hand, nothing is written"),
    ("step-settle-commit", "outcomes are written, not committed"),
    ("step-settled", "outcomes are committed"),
    ("step-give-back", "rows that did not fit into memory are not given back yet"),
    ("step-given-back", "rows that did not fit into memory are given back"),
    ("step-give-back-commit", "rows that were not sent are given back with other outcomes, not committed"),
    ("step-give-back-lease", "a claim whose commit is in doubt is given back"),
    ("step-sweep", "a dead predecessor is known, its leases are not free"),
    ("step-swept", "some leases of a dead predecessor are free"),
    ("step-expire", "leases that ran out are about to be looked for"),
    ("step-expired", "some leases that ran out are free"),
    ("step-retain-commit", "a step of retention has deleted, not committed"),
    ("step-retained", "a step of retention is committed"),
    ("step-goodbye", "all threads but upkeep and the exporter have ended"),
];

/// A step at which a test lets something happen, named by `FAILPOINTS` in the process's environment
/// (`name=panic`, `name=sleep(1000)`, `name=5*off->return(kill)`): `return(kill)` ends the process as kill -9 does, after
/// as many passes as are `off` before it. Nothing without the feature `failpoints`.
#[inline]
pub fn failpoint(name: &str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |action| {
        assert_eq!(action.as_deref(), Some("kill"), "fail point {name}: the only thing to return is kill");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// How long something waits: `usual`, or what a test says in milliseconds (`name=return(500)`).
#[inline]
pub fn time(name: &str, usual: Duration) -> Duration {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |ms| ms.and_then(|ms| ms.parse().ok()).map_or(usual, Duration::from_millis));
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
    usual
}
