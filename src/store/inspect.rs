//! What commands read.

use super::sql::{ALL_POSITIONS, PROCESSES};
use super::{Finding, Gauges, Session, StoreError, altered};

/// One screen's worth.
#[derive(Debug, Clone)]
pub struct Status {
    /// Counts by state.
    pub gauges: Gauges,
    /// Positions of all partitions.
    pub positions: Vec<PositionRow>,
    /// Processes that live, or went silent within a day.
    pub processes: Vec<ProcessRow>,
    /// What was altered in the schema by hand, in words.
    pub schema_fault: Option<String>,
    /// The first of what upkeep's audit has found wrong.
    pub findings: Vec<Finding>,
}

/// A partition's position.
#[derive(Debug, Clone)]
pub struct PositionRow {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Lives of the topic.
    pub incarnation: i16,
    /// Next offset to read.
    pub next_offset: i64,
    /// Offsets passed over by the client.
    pub skipped: i64,
    /// Seconds since it moved.
    pub age: f64,
}

/// A process as its last heartbeat described it.
#[derive(Debug, Clone)]
pub struct ProcessRow {
    /// Number.
    pub id: i64,
    /// Host name.
    pub host: String,
    /// Process id there.
    pub pid: i32,
    /// Version.
    pub version: String,
    /// Seconds since its last heartbeat.
    pub silent: f64,
    /// Requests in flight then.
    pub in_flight: i32,
    /// What stood still then.
    pub stalled: Vec<String>,
    /// In words.
    pub status: String,
    /// Whether its gate was open.
    pub gate_open: bool,
    /// Requests per second that it let through; `None`: as many as there were.
    pub gate_rate: Option<f64>,
    /// Why it was shut.
    pub gate_why: Option<String>,
    /// Seconds since it stood as it did.
    pub gate_age: Option<f64>,
    /// Seconds until its next probe.
    pub next_probe: Option<f64>,
}

impl ProcessRow {
    /// Heartbeats come every second; half a minute without one is no longer a slow database.
    pub fn is_silent(&self) -> bool {
        self.silent > 30.0
    }
}

/// Reads one screen's worth.
pub fn status(session: &mut Session) -> Result<Status, StoreError> {
    let faults = session.schema_faults()?;
    let schema_fault = (!faults.is_empty()).then(|| altered(&faults));
    // What was altered may be what is asked for.
    let gauges = session.gauges().map_err(|error| schema_fault.clone().map_or(error, StoreError::Other))?;
    let findings = session.findings(10)?;
    let (positions, processes) = (session.prepare(&ALL_POSITIONS)?, session.prepare(&PROCESSES)?);
    let position = |row: &postgres::Row| PositionRow {
        topic: row.get(0),
        partition: row.get(1),
        incarnation: row.get(2),
        next_offset: row.get(3),
        skipped: row.get(4),
        age: row.get(5),
    };
    let process = |row: &postgres::Row| ProcessRow {
        id: row.get(0),
        host: row.get(1),
        pid: row.get(2),
        version: row.get(3),
        silent: row.get(4),
        in_flight: row.get(5),
        stalled: row.get(6),
        status: row.get(7),
        gate_open: row.get(8),
        gate_rate: row.get(9),
        gate_why: row.get(10),
        gate_age: row.get(11),
        next_probe: row.get(12),
    };
    Ok(Status {
        schema_fault,
        gauges,
        findings,
        positions: session.client.query(&positions, &[])?.iter().map(position).collect(),
        processes: session.client.query(&processes, &[])?.iter().map(process).collect(),
    })
}
