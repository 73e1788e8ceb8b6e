//! `erase`: takes personal data out of finished transactions.

use std::path::Path;

use super::act::{NamedArgs, Plan, run, who};
use super::{Exit, complain};
use crate::config::visible;
use crate::store::Standing;

pub(super) fn erase(file: &Path, sets: &[String], args: &NamedArgs) -> Exit {
    let reason = match args.reason() {
        Ok(reason) => reason,
        Err(exit) => return exit,
    };
    run(file, sets, "erase", |_, session| {
        let who = who();
        let may = |standing| matches!(standing, Standing::Delivered | Standing::Resolved);
        let mut plan = Plan::of(session, &args.ids, may, |standing| match standing {
            Standing::InFlight | Standing::Waiting => "open: it has not been delivered yet",
            Standing::Dead => "dead: it may still have to be sent; resolve it first",
            Standing::Erased => "erased already",
            _ => "stored, and in no state: run `txrelay reconcile`",
        })?;
        let ids: Vec<i64> = plan.allowed.iter().map(|found| found.id).collect();
        for standing in session.erase_standing(&ids)? {
            let why = match (standing.erased, standing.claimed_by) {
                (true, _) => "erased already".to_owned(),
                (false, Some(id)) => format!("rejected record {id} claims its id with other bytes: resolve that first"),
                _ => continue,
            };
            plan.refuse(standing.id, &why);
        }
        plan.carry_out(session, &args.common, "Erase the content of", "erased", |session, found, trace| {
            session.erase(&[found.id], &who, reason, trace)
        })
        .inspect_err(|error| {
            if matches!(error, crate::store::StoreError::NotPermitted(_)) {
                complain(
                    "erase is for the schema's owner, and for members of the role SCHEMA_eraser (docs/operating.md): set PGUSER",
                );
            }
        })
    })
}

impl Plan {
    fn refuse(&mut self, id: i64, why: &str) {
        self.allowed.retain(|found| {
            if found.id == id {
                complain(&format!("{}: {why}", visible(&found.transaction_id)));
            }
            found.id != id
        });
        self.refused = true;
    }
}
