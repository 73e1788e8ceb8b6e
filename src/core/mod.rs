//! Pure decisions: records, identification, outcomes, whose fault a failure is, backoff, the gate, room, clocks, the ledger's equations.
//!
//! Nothing here does I/O, reads a clock, draws a random number or logs: `now` and jitter are arguments. Every room may
//! use this one, and it uses none.

pub mod address;
pub mod audit;
pub mod backlog;
pub mod backoff;
pub mod clock;
pub mod coverage;
pub mod explain;
pub mod fault;
pub mod gate;
pub mod headers;
pub mod hole;
pub mod idempotency;
pub mod identify;
pub mod ledger;
pub mod offsets;
pub mod outcome;
pub mod pace;
pub mod percentile;
pub mod record;
pub mod room;
pub mod text;
pub mod times;
pub mod tls;
