//! All SQL: what is written to PostgreSQL, in which transaction, and what that proves.
//!
//! May use `config` and `core`. Never: Kafka, HTTP, metrics, logging; it returns values, and the threads decide. Statements
//! stand in `sql/statements/`, one a file; the schema in `sql/migrations/`. PostgreSQL's clock decides what is due.

mod act;
mod audit;
mod claim;
mod clock;
mod connector;
mod erase;
mod error;
mod explain;
mod gate_board;
mod ingest;
mod inspect;
mod lease;
mod link;
mod look;
mod migrate;
mod patience;
mod pool;
mod positions;
mod privileges;
mod refusal;
mod reject_act;
mod rejected;
mod retention;
mod selfcheck;
mod session;
mod settle;
mod sql;
mod tail;
mod timeline;
mod turn;
mod upkeep;

pub use act::{DeadFilter, DeadSummary, Found, Standing, Trace};
pub use audit::{Finding, Moment, Turn};
pub use claim::{Claimant, Claimed, Claims, Floor};
pub use erase::{EraseStanding, Paused};
pub use error::{ERROR_KINDS, StoreError};
pub use explain::Coordinates;
pub use gate_board::{GateBoard, GateState};
pub use ingest::{Advance, Batch, Candidate, Ingested, Reject, Topics, Writer};
pub use inspect::{PositionRow, ProcessRow, Status, status};
pub use lease::{LeaseTime, Leased, Reservation, Room, Slot};
pub use link::Link;
pub use look::{AttemptRow, Content, Filter, ListRow, Page, RejectedRef, RepeatRow, ServerClock, Shown};
pub use migrate::{SchemaState, eraser_role, grant, migrate, print_sql, reader_role, schema_state};
pub use patience::Patience;
pub use pool::Pool;
pub use positions::{Gap, Position};
pub use privileges::{may_migrate, missing_privileges};
pub use reject_act::{Became, ExportedRow, RejectFilter, RejectSummary, Verdict};
pub use rejected::{RejectedFilter, RejectedRecord, RejectedRow, Stored};
pub use retention::{OffsetPlace, Purged};
pub use selfcheck::{altered, ensure_unaltered};
pub use session::{Role, Session, ensure_own_session};
pub use settle::{Settled, Settlement, Tried};
pub use sql::{CLAIM_LIMITS, Sql, all as statements};
pub use tail::{HourCounts, TailRow};
pub use timeline::Timelines;
pub use upkeep::{Gauges, Heartbeat, Predecessor, Pulse, Registered, Registration, ensure_pipeline, ensure_server};

/// Number of this process in table `process`; holder of leases and owner of partitions.
pub type ProcessId = i64;

/// Which rows of `counter` this process's role adds to: few enough to sum, many enough that processes rarely share one.
pub(crate) fn slot(process: ProcessId, role: i32) -> i32 {
    (process.rem_euclid(64)) as i32 * 4 + role
}
