//! The audit: small steps beside everything else, in one process of a pipeline at a time. It goes over each new transaction
//! once, and over everything once a day, or at once where an equation of the ledger stays off. What it suspects it looks at a
//! second time before it says it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Rounds, Upkeep};
use crate::core::audit::{Audit, LifeId, Problem};
use crate::core::ledger::Imbalances;
use crate::store::{Finding, Gauges, Moment, ProcessId, Session, StoreError, Turn};

/// Between two looks for new transactions.
const LOOK: Duration = Duration::from_secs(2);
/// The same once [`CALM`] looks in a row had nothing to do and no count has changed; less than the minute after which another
/// process goes on with it.
const QUIET: Duration = Duration::from_secs(30);
const CALM: u32 = 5;
/// After a step that failed, or while another process is at it.
const AGAIN: Duration = Duration::from_secs(15);
/// How much of a round the steps may take, for new transactions and for everything.
const BUDGET: Duration = Duration::from_millis(250);
/// A step that is slower than this is followed by smaller ones, a fast one by larger ones.
const SLOW: Duration = Duration::from_millis(100);
/// Transactions that one step reads.
const ROWS: (i64, i64) = (200, 20_000);
/// What an earlier audit has read is read again so far back: a row may have been committed late.
const BACK: i64 = 20_000;
/// A server transaction of ours does not last as long as this, whatever others do on that server.
const LONGEST: Duration = Duration::from_secs(600);
/// So many problems of a round are looked at again and kept; the others are found by the next audit.
const MOST: usize = 1000;
/// What was found wrong is looked at again after this, and after 50 times what the audit over everything took.
const RECHECK: Duration = Duration::from_secs(60);

/// How the audit stands.
#[derive(Debug)]
pub(super) struct Auditing {
    look_at: Instant,
    rows: i64,
    /// Of new transactions; `None`: not this process's turn.
    new: Option<New>,
    whole: Option<Whole>,
    /// Looks in a row that had nothing to do, since a count last changed.
    calm: u32,
    /// As the last two counts found them.
    off: [Imbalances; 2],
    /// With these the last audit over everything began.
    whole_with: Imbalances,
    whole_ended: Option<(Instant, Duration)>,
    findings: bool,
}

/// The audit of new transactions.
#[derive(Debug)]
struct New {
    audit: Audit,
    /// As noted in PostgreSQL.
    audited_id: i64,
    settled: HashMap<LifeId, i64>,
    /// Up to where it may go: everything up to here was committed at this moment.
    mark: Option<(Moment, Instant)>,
    /// Whether it is on its way there.
    is_going: bool,
    /// Whether a transaction of before the mark is still under way.
    is_waiting: bool,
}

/// An audit over everything.
#[derive(Debug)]
struct Whole {
    audit: Audit,
    began: Instant,
    /// What retention had deleted when it began.
    purged: HashMap<LifeId, i64>,
}

impl Auditing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            look_at: now,
            rows: ROWS.1 / 4,
            new: None,
            whole: None,
            calm: 0,
            off: [Imbalances::default(); 2],
            whole_with: Imbalances::default(),
            whole_ended: None,
            findings: false,
        }
    }

    /// Learns from a count how the equations stand, and whether there is anything new.
    pub(super) fn learn(&mut self, gauges: &Gauges, is_new: bool) {
        self.off = [self.off[1], gauges.ledger().imbalances()];
        self.findings = gauges.offsets_wrong + gauges.transactions_wrong > 0;
        if self.calm > 0 && (is_new || self.wants_whole(false)) {
            self.calm = 0;
            self.look_at = self.look_at.min(Instant::now() + LOOK);
        }
    }

    /// Why everything is to be gone over now.
    fn wants_whole(&self, is_due: bool) -> bool {
        let is_off = self.off[0] == self.off[1] && self.off[1] != Imbalances::default() && self.off[1] != self.whole_with;
        let rested = |(ended, took): (Instant, Duration)| ended.elapsed() > RECHECK.max(took * 50);
        is_due || is_off || (self.findings && self.whole_ended.is_none_or(rested))
    }

    fn adapt(&mut self, took: Duration) {
        if took > SLOW {
            self.rows = (self.rows / 2).max(ROWS.0);
        } else if took < SLOW / 3 {
            self.rows = (self.rows * 2).min(ROWS.1);
        }
    }

    /// Steps until everything up to `upto` is settled, or the budget is spent.
    fn go(&mut self, session: &mut Session, audit: &mut Audit, upto: i64) -> Result<Vec<Problem>, StoreError> {
        let began = Instant::now();
        let mut suspects = Vec::new();
        while !audit.is_finished() && began.elapsed() < BUDGET && suspects.len() < MOST {
            let step = Instant::now();
            suspects.extend(session.audit_step(audit, upto, self.rows).inspect_err(|_| self.adapt(SLOW * 2))?);
            self.adapt(step.elapsed());
        }
        suspects.extend(audit.missing());
        suspects.truncate(MOST);
        Ok(suspects)
    }
}

impl Upkeep {
    /// This round's share. A role that may not read, or a disk that is full, is the audit's affair: the process does all of its
    /// other work.
    pub(super) fn audit(&mut self, session: &mut Session, process: ProcessId, rounds: &mut Rounds) -> Result<(), StoreError> {
        match self.audit_share(session, process, &mut rounds.auditing) {
            Err(error) if !matches!(error, StoreError::Connection(_)) => {
                rounds.auditing.look_at = Instant::now() + AGAIN;
                rounds.auditing.calm = 0;
                rounds.session_failed = true;
                (rounds.auditing.new, rounds.auditing.whole) = (None, None);
                self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
                if let Some(note) = self.throttle.admit("audit failed", Instant::now()) {
                    log::warn!("the audit failed, will try again: {error}{note}");
                }
                Ok(())
            }
            result => result,
        }
    }

    fn audit_share(&mut self, session: &mut Session, process: ProcessId, auditing: &mut Auditing) -> Result<(), StoreError> {
        if Instant::now() < auditing.look_at {
            return Ok(());
        }
        let Some(turn) = session.audit_turn(process)? else {
            (auditing.new, auditing.whole) = (None, None);
            auditing.calm = 0;
            auditing.look_at = Instant::now() + AGAIN;
            return Ok(());
        };
        session.pin_ranges()?;
        let result = self.audit_steps(session, process, auditing, turn);
        // Also after a step that failed: the session goes back to all others. One whose connection is lost goes to nobody.
        result.and(session.unpin_ranges())
    }

    fn audit_steps(
        &mut self,
        session: &mut Session,
        process: ProcessId,
        auditing: &mut Auditing,
        turn: Turn,
    ) -> Result<(), StoreError> {
        let mut new = match auditing.new.take() {
            Some(new) if new.audited_id == turn.audited_id => new,
            // Another process has gone on with it, or the database has gone back in time.
            _ => {
                auditing.whole = None;
                let after = session.audit_back(turn.audited_id, BACK)?;
                let audit = Audit::from(after, turn.audited_id);
                New {
                    audit,
                    audited_id: turn.audited_id,
                    settled: HashMap::new(),
                    mark: None,
                    is_going: false,
                    is_waiting: false,
                }
            }
        };
        let moment = session.moment(None)?;
        let lives = moment.lives.len();
        let begins = auditing.whole.is_none() && !turn.retaining && auditing.wants_whole(turn.whole_due);
        if begins {
            auditing.whole_with = auditing.off[1];
            let mut audit = Audit::whole();
            audit.learn(&moment.lives);
            let purged = moment.lives.iter().map(|life| (life.id.clone(), life.purged.offsets)).collect();
            auditing.whole = Some(Whole { audit, began: Instant::now(), purged });
        }
        if !self.new_ones(session, auditing, &mut new, moment)? {
            return Ok(());
        }
        let whole = self.everything(session, process, auditing)?;
        let settled: Vec<(LifeId, i64)> =
            new.audit.settled().into_iter().filter(|(life, at)| new.settled.get(life) != Some(at)).collect();
        let audited_id = new.audit.after().max(new.audited_id);
        if audited_id != new.audited_id || !settled.is_empty() || begins || whole.is_some() {
            if !session.audit_note(process, audited_id, whole, begins, &settled)? {
                return Ok(());
            }
            new.audited_id = audited_id;
            new.settled.extend(settled);
        }
        let is_busy = new.is_going || auditing.whole.is_some();
        auditing.calm = if is_busy || new.is_waiting { 0 } else { auditing.calm + 1 };
        let rest = if auditing.calm > CALM { QUIET } else { LOOK };
        // With thousands of partitions also this is rarer.
        auditing.look_at = Instant::now() + if is_busy { Duration::ZERO } else { rest.max(Duration::from_millis(lives as u64)) };
        auditing.new = Some(new);
        Ok(())
    }

    /// Goes on to the mark; there, the next mark is now. False: what is known is worth nothing, the next round begins anew.
    fn new_ones(
        &mut self,
        session: &mut Session,
        auditing: &mut Auditing,
        new: &mut New,
        now: Moment,
    ) -> Result<bool, StoreError> {
        if let Some((mark, at)) = &new.mark {
            // What was under way at the mark has ended: it is stored by now, with an id below, or never will be.
            if !new.is_going && (now.xmin >= mark.xmax || at.elapsed() > LONGEST) {
                new.is_going = true;
                if !new.audit.learn(&mark.lives) {
                    return Ok(false);
                }
            }
            if new.is_going {
                let upto = mark.last_id;
                let suspects = auditing.go(session, &mut new.audit, upto)?;
                self.second_look(session, &mut new.audit, suspects)?;
                if !new.audit.is_finished() {
                    return Ok(true);
                }
                new.is_going = false;
                new.mark = None;
            }
        }
        new.is_waiting = new.mark.is_some();
        if new.mark.is_none() {
            new.mark = Some((now, Instant::now()));
        }
        Ok(true)
    }

    /// Goes on over everything; returns where it stands.
    fn everything(
        &mut self,
        session: &mut Session,
        process: ProcessId,
        auditing: &mut Auditing,
    ) -> Result<Option<i64>, StoreError> {
        let Some(mut whole) = auditing.whole.take() else { return Ok(None) };
        let mut suspects = auditing.go(session, &mut whole.audit, i64::MAX)?;
        let is_finished = whole.audit.is_finished();
        if is_finished {
            suspects.extend(whole.audit.purged(&whole.purged));
            // Rows may be newer than the positions that were learned: it asks for those of now.
            suspects.extend(session.audit_outside(&whole.audit)?);
        }
        self.second_look(session, &mut whole.audit, suspects)?;
        if !is_finished {
            let at = whole.audit.after();
            auditing.whole = Some(whole);
            return Ok(Some(at));
        }
        let healed = session.audit_whole_end(process)? + session.audit_heal()? as i64;
        auditing.whole_ended = Some((Instant::now(), whole.began.elapsed()));
        let (rows, took) = (whole.audit.rows(), whole.began.elapsed());
        if healed > 0 {
            log::info!(rows = rows; "an audit of {rows} transactions found {healed} findings right again");
        } else {
            log::debug!("an audit of {rows} transactions took {took:.1?}");
        }
        Ok(None)
    }

    /// Only what is still so is kept and said.
    fn second_look(&mut self, session: &mut Session, audit: &mut Audit, suspects: Vec<Problem>) -> Result<(), StoreError> {
        if suspects.is_empty() {
            return Ok(());
        }
        let certain = session.audit_confirm(audit, &suspects)?;
        audit.forget_missing();
        if session.audit_keep(&certain)? > 0 {
            self.complain(&session.findings(10)?);
        }
        Ok(())
    }

    /// At each count, as long as there is something: the oldest by name, once a minute.
    pub(super) fn say_findings(&mut self, session: &mut Session, gauges: &Gauges) -> Result<(), StoreError> {
        if gauges.offsets_wrong + gauges.transactions_wrong > 0 {
            session.audit_heal()?;
            self.complain(&session.findings(10)?);
        }
        Ok(())
    }

    fn complain(&mut self, findings: &[Finding]) {
        for finding in findings {
            let words = finding.words();
            if let Some(note) = self.throttle.admit(&words, Instant::now()) {
                log::error!(kind = finding.kind.as_str(); "the audit: {words}; `txrelay reconcile` tells more{note}");
            }
        }
    }
}
