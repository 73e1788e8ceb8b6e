//! Delivering: the claimer takes what is due, the workers send it, the settler writes what came of it.
//!
//! May use `store`, `downstream`, `ops`, `config`, `core`. Never: Kafka. No transaction is open during a request, and a
//! worker holds no connection.

mod acceptances;
mod brake;
mod claimer;
mod flow;
mod notices;
mod permits;
mod put_off;
mod settler;
mod worker;

pub use acceptances::Acceptances;
pub use brake::Brake;
pub use claimer::Claimer;
pub use flow::{Fill, Flow};
pub use permits::{Permits, Plan};
pub use put_off::PutOff;
pub use settler::Settler;
pub use worker::Worker;
