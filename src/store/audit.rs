//! The audit's questions: what there is of a range of ids, which offsets the tables beside `tx` hold, and what was found wrong.
//! Each statement reads one moment; nothing here waits for anybody.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::rejected::Stored;
use super::sql::{
    AUDIT_BACK, AUDIT_FINDINGS, AUDIT_FOUND, AUDIT_HEALED, AUDIT_LIVES, AUDIT_NOTE, AUDIT_PLACES, AUDIT_POSITIONS, AUDIT_ROWS,
    AUDIT_STATES, AUDIT_TOPICS, AUDIT_TURN, AUDIT_UNPAIRED, AUDIT_WHOLE_END, NAMED, REJECTED_REASONS,
};
use super::{ProcessId, Session, StoreError};
use crate::core::audit::{Audit, Chunk, Evidence, Holdings, Lacks, Life, LifeId, Place, Problem, Purge, Row, confirmed};
use crate::core::coverage::Coverage;
use crate::core::offsets::Offsets;

/// Windows that one statement looks up.
const WINDOWS: usize = 200;
/// A second look reads so many transactions before and behind where a row is missing.
const LOOK: i64 = 100_000;

/// How the audit stands, told to the process whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Transactions up to this id are audited.
    pub audited_id: i64,
    /// Whether an audit over everything is due.
    pub whole_due: bool,
    /// Whether retention is in the middle of a pass.
    pub retaining: bool,
}

/// One moment.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// The highest id of a transaction.
    pub last_id: i64,
    /// Server transactions below this number had ended.
    pub xmin: i64,
    /// From this number on they had not begun.
    pub xmax: i64,
    /// Every life.
    pub lives: Vec<Life>,
    /// Transactions up to this id are audited.
    pub audited_id: i64,
    /// Beside each: the topic's id when it was read, and whether it is the one that is read.
    pub logs: Vec<(Option<Uuid>, bool)>,
}

impl Moment {
    /// Forgets all other lives.
    pub fn keep(&mut self, wanted: impl Fn(&LifeId) -> bool) {
        let mut keeps = self.lives.iter().map(|life| wanted(&life.id)).collect::<Vec<bool>>().into_iter();
        self.logs.retain(|_| keeps.next().unwrap_or(false));
        self.lives.retain(|life| wanted(&life.id));
    }
}

/// What upkeep has found wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// As in table `audit_finding`.
    pub kind: String,
    /// Topic, partition and incarnation, where it is about offsets.
    pub life: Option<LifeId>,
    /// Which offsets.
    pub offsets: Option<Offsets>,
    /// `tx.id`
    pub tx_id: Option<i64>,
    /// The transaction's id, where there is such a transaction.
    pub transaction_id: Option<String>,
    /// For people.
    pub detail: String,
    /// Seconds since it was found.
    pub age: f64,
}

impl Finding {
    /// In a sentence: where, since when it is known, and what.
    pub fn words(&self) -> String {
        let what = &self.detail;
        match (&self.life, &self.offsets, self.tx_id) {
            (Some(life), Some(offsets), _) => {
                let life_of = if life.incarnation == 0 { String::new() } else { format!(" (life {})", life.incarnation + 1) };
                let to = if offsets.end - offsets.start > 1 { format!("-{}", offsets.end - 1) } else { String::new() };
                format!("{}/{} offset {}{to}{life_of}: {what}", life.topic, life.partition, offsets.start)
            }
            (_, _, Some(id)) => match &self.transaction_id {
                Some(name) => format!("transaction {name} (row {id}): {what}"),
                None => format!("row {id}: {what}"),
            },
            _ => what.clone(),
        }
    }
}

impl Session {
    /// From here on a range of ids is read in their order, as far as it is wanted: on a table that nobody has analyzed the planner
    /// takes a range for a handful of rows, reads all of it and sorts (60,000 rows for 500).
    pub fn pin_ranges(&mut self) -> Result<(), StoreError> {
        Ok(self.client.batch_execute("set enable_bitmapscan = off")?)
    }

    /// Undoes it: the connection goes back to the pool.
    pub fn unpin_ranges(&mut self) -> Result<(), StoreError> {
        Ok(self.client.batch_execute("reset enable_bitmapscan")?)
    }

    /// `None`: another process is at it.
    pub fn audit_turn(&mut self, process: ProcessId) -> Result<Option<Turn>, StoreError> {
        let statement = self.prepare(&AUDIT_TURN)?;
        let row = self.client.query_opt(&statement, &[&process])?;
        Ok(row.map(|row| Turn { audited_id: row.get(0), whole_due: row.get(1), retaining: row.get(2) }))
    }

    /// How far everything is now; of one topic, or of all.
    pub fn moment(&mut self, topic: Option<&str>) -> Result<Moment, StoreError> {
        let statement = self.prepare(&AUDIT_LIVES)?;
        let rows = self.client.query(&statement, &[&topic])?;
        let mut moment = Moment::default();
        let mut names: HashMap<String, Arc<str>> = HashMap::new();
        for row in &rows {
            (moment.last_id, moment.xmin, moment.xmax) = (row.get(0), row.get(1), row.get(2));
            moment.audited_id = row.get::<_, Option<i64>>(14).unwrap_or(0);
            let Some(topic) = row.get::<_, Option<String>>(3) else { continue };
            let topic = names.entry(topic).or_insert_with_key(|name| Arc::from(name.as_str())).clone();
            moment.lives.push(Life {
                id: LifeId { topic, partition: row.get(5), incarnation: row.get(6) },
                number: row.get(4),
                first: row.get(7),
                position: row.get(8),
                audited: row.get(9),
                purged: Purge { below: row.get(10), offsets: row.get(11) },
            });
            moment.logs.push((row.get(12), row.get(13)));
        }
        Ok(moment)
    }

    /// The id `rows` transactions before `id`; the lowest possible where there are not so many.
    pub fn audit_back(&mut self, id: i64, rows: i64) -> Result<i64, StoreError> {
        let statement = self.prepare(&AUDIT_BACK)?;
        let row = self.client.query_opt(&statement, &[&id, &rows])?;
        Ok(row.map_or(i64::MIN, |row| row.get::<_, i64>(0).saturating_sub(1)))
    }

    /// Up to `most` transactions with ids above `after`, up to `upto`, and everything else with ids in that range.
    pub fn audit_rows(&mut self, after: i64, upto: i64, most: i64) -> Result<Chunk, StoreError> {
        let statement = self.prepare(&AUDIT_ROWS)?;
        let row = self.client.query_one(&statement, &[&after, &upto, &most])?;
        let (ids, topics): (Vec<i64>, Vec<i16>) = (row.get(1), row.get(2));
        let (partitions, incarnations): (Vec<i32>, Vec<i16>) = (row.get(3), row.get(4));
        let offsets: Vec<i64> = row.get(5);
        let of = |n: usize| Row {
            id: ids[n],
            topic: topics[n],
            partition: partitions[n],
            incarnation: incarnations[n],
            offset: offsets[n],
        };
        let mut rows: Vec<Row> = (0..ids.len()).map(of).collect();
        if !rows.is_sorted_by_key(|row| row.id) {
            rows.sort_unstable_by_key(|row| row.id);
        }
        Ok(Chunk { upto: row.get(0), rows, open: row.get(6), dead: row.get(7), resolved: row.get(8), delivered: row.get(9) })
    }

    /// What the tables beside `tx` hold of these offsets.
    pub fn audit_places(&mut self, windows: &[(LifeId, Offsets)]) -> Result<Vec<Holdings>, StoreError> {
        let statement = self.prepare(&AUDIT_PLACES)?;
        let topics: Vec<&str> = windows.iter().map(|w| &*w.0.topic).collect();
        let partitions: Vec<i32> = windows.iter().map(|w| w.0.partition).collect();
        let incarnations: Vec<i16> = windows.iter().map(|w| w.0.incarnation).collect();
        let from: Vec<i64> = windows.iter().map(|w| w.1.start).collect();
        let to: Vec<i64> = windows.iter().map(|w| w.1.end).collect();
        let mut holdings = vec![Holdings::default(); windows.len()];
        for held in &mut holdings {
            held.purged.below = i64::MIN;
        }
        for row in self.client.query(&statement, &[&topics, &partitions, &incarnations, &from, &to])? {
            let (n, place, start, end): (i64, i32, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
            let held = &mut holdings[n as usize - 1];
            let place = match place {
                0 => {
                    held.purged = Purge { below: start, offsets: end };
                    continue;
                }
                1 => Place::Duplicate,
                2 | 3 => Place::Rejected { closed: place == 3 },
                4 => Place::Skipped,
                5 => Place::Retention,
                _ => Place::Unexplained,
            };
            held.places.push((place, start..end));
        }
        Ok(holdings)
    }

    /// One step of an audit: settles what can be, otherwise reads on, `most` rows at once. What it returns must be looked at a
    /// second time where anything may have changed in between.
    pub fn audit_step(&mut self, audit: &mut Audit, upto: i64, most: i64) -> Result<Vec<Problem>, StoreError> {
        let windows = audit.windows(WINDOWS);
        if windows.is_empty() {
            let chunk = self.audit_rows(audit.after(), upto, most)?;
            let is_last = (chunk.rows.len() as i64) < most;
            let problems = audit.take(chunk);
            if is_last {
                audit.done();
            }
            return Ok(problems);
        }
        let asked: Vec<(LifeId, Offsets)> = windows.iter().map(|w| (w.life.clone(), w.offsets.clone())).collect();
        let holdings = self.audit_places(&asked)?;
        Ok(windows.iter().zip(&holdings).flat_map(|(window, held)| audit.settle(window, held)).collect())
    }

    /// At the end of an audit: transactions and positions in no life, lives without their position, and what is stored above a
    /// position, as of now.
    pub fn audit_outside(&mut self, audit: &Audit) -> Result<Vec<Problem>, StoreError> {
        let (topics, unpaired) = (self.prepare(&AUDIT_TOPICS)?, self.prepare(&AUDIT_UNPAIRED)?);
        let topics = self.client.query(&topics, &[])?;
        let topics = topics.iter().map(|row| (row.get(0), Arc::from(row.get::<_, &str>(1)))).collect();
        let mut problems = audit.outside(&self.moment(None)?.lives, &topics);
        for row in self.client.query(&unpaired, &[])? {
            let life = LifeId { topic: Arc::from(row.get::<_, &str>(0)), partition: row.get(1), incarnation: row.get(2) };
            let at: i64 = row.get(3);
            let lacks = if row.get(4) { Lacks::LifeOfPosition } else { Lacks::Position };
            problems.push(Problem::Outside { life, offsets: at..at, lacks });
        }
        Ok(problems)
    }

    /// The evidence for these transactions.
    pub fn audit_states(&mut self, ids: &[i64]) -> Result<Vec<(i64, Evidence)>, StoreError> {
        let statement = self.prepare(&AUDIT_STATES)?;
        let evidence = |row: &postgres::Row| Evidence {
            stored: row.get(1),
            open: row.get(2),
            dead: row.get(3),
            resolved: row.get(4),
            delivered: row.get(5),
        };
        Ok(self.client.query(&statement, &[&ids])?.iter().map(|row| (row.get(0), evidence(row))).collect())
    }

    /// A second look at what an audit that has come to `audit.after()` suspects: what still holds of it.
    pub fn audit_confirm(&mut self, audit: &Audit, suspects: &[Problem]) -> Result<Vec<Problem>, StoreError> {
        let mut certain = Vec::new();
        let ids: Vec<i64> = suspects.iter().filter_map(Problem::tx_id).collect();
        if !ids.is_empty() {
            let states = self.audit_states(&ids)?;
            certain.extend(states.into_iter().filter_map(|(id, evidence)| evidence.problem(id)));
        }
        // Held against what was so after all else was read.
        certain.extend(suspects.iter().filter(|p| matches!(p, Problem::Purged { .. } | Problem::Outside { .. })).cloned());
        let near = |problem: &Problem| match problem {
            Problem::Missing { near, .. } | Problem::Twice { near, .. } => Some(*near),
            _ => None,
        };
        let of_offsets: Vec<&Problem> = suspects.iter().filter(|problem| near(problem).is_some()).collect();
        let Some(lowest) = of_offsets.iter().filter_map(|problem| near(problem)).min() else { return Ok(certain) };
        let asked: Vec<(LifeId, Offsets)> =
            of_offsets.iter().filter_map(|p| p.place()).map(|(life, offsets)| (life.clone(), offsets)).collect();
        let rows = self.stored_near(audit, lowest, &asked)?;
        for (problems, asked) in of_offsets.chunks(WINDOWS).zip(asked.chunks(WINDOWS)) {
            let holdings = self.audit_places(asked)?;
            for ((problem, held), (life, offsets)) in problems.iter().zip(&holdings).zip(asked) {
                let (once, twice) = &rows[life];
                let stored_twice = twice.within(offsets).next().is_some();
                certain.extend(confirmed(problem, once, stored_twice, held));
            }
        }
        Ok(certain)
    }

    /// Which of these offsets transactions hold, and which of them two: looks at those near ids from `lowest` up to where the
    /// audit has come.
    fn stored_near(
        &mut self,
        audit: &Audit,
        lowest: i64,
        asked: &[(LifeId, Offsets)],
    ) -> Result<HashMap<LifeId, (Coverage, Coverage)>, StoreError> {
        let mut wanted: HashMap<LifeId, Coverage> = HashMap::new();
        for (life, offsets) in asked {
            wanted.entry(life.clone()).or_default().insert(offsets.clone());
        }
        let mut found: HashMap<LifeId, (Coverage, Coverage)> =
            wanted.keys().map(|life| (life.clone(), Default::default())).collect();
        let (mut after, mut behind) = (self.audit_back(lowest, LOOK)?, 0);
        while behind < LOOK {
            let chunk = self.audit_rows(after, i64::MAX, LOOK / 5)?;
            for row in &chunk.rows {
                let offsets = row.offset..row.offset + 1;
                if let Some(life) = audit.life(row)
                    && wanted.get(life).is_some_and(|wanted| wanted.within(&offsets).next().is_some())
                    && let Some((once, twice)) = found.get_mut(life)
                    && !once.insert(offsets.clone()).is_empty()
                {
                    twice.insert(offsets);
                }
                behind += i64::from(row.id > audit.after());
            }
            if (chunk.rows.len() as i64) < LOOK / 5 {
                break;
            }
            after = chunk.upto;
        }
        Ok(found)
    }

    /// Keeps what is certain; returns how much of it is new.
    pub fn audit_keep(&mut self, problems: &[Problem]) -> Result<usize, StoreError> {
        let statement = self.prepare(&AUDIT_FOUND)?;
        let mut new = 0;
        for problem in problems {
            let place = problem.place();
            let (topic, partition, incarnation) = match &place {
                Some((life, _)) => (Some(&*life.topic), Some(life.partition), Some(life.incarnation)),
                None => (None, None, None),
            };
            let (from, to) = (place.as_ref().map(|p| p.1.start), place.as_ref().map(|p| p.1.end));
            let row = self.client.query_one(
                &statement,
                &[&problem.kind(), &topic, &partition, &incarnation, &from, &to, &problem.tx_id(), &problem.words()],
            )?;
            new += row.get::<_, i64>(0) as usize;
        }
        Ok(new)
    }

    /// Looks again at findings about transactions; what is right by now goes.
    pub fn audit_heal(&mut self) -> Result<u64, StoreError> {
        let ids: Vec<i64> = self.findings(1000)?.into_iter().filter_map(|finding| finding.tx_id).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let states = self.audit_states(&ids)?;
        let healed: Vec<i64> =
            states.into_iter().filter(|(id, evidence)| evidence.problem(*id).is_none()).map(|(id, _)| id).collect();
        let statement = self.prepare(&AUDIT_HEALED)?;
        Ok(self.client.execute(&statement, &[&healed])?)
    }

    /// Notes how far it has come: new transactions up to `audited_id`, the audit over everything up to `whole`, and where each life
    /// is settled. False: it is no longer this process's turn, and nothing was noted.
    pub fn audit_note(
        &mut self,
        process: ProcessId,
        audited_id: i64,
        whole: Option<i64>,
        begins: bool,
        settled: &[(LifeId, i64)],
    ) -> Result<bool, StoreError> {
        let (note, positions) = (self.prepare(&AUDIT_NOTE)?, self.prepare(&AUDIT_POSITIONS)?);
        let mut transaction = self.client.transaction()?;
        if transaction.execute(&note, &[&process, &audited_id, &whole, &begins])? == 0 {
            return Ok(false);
        }
        if !settled.is_empty() {
            let topics: Vec<&str> = settled.iter().map(|s| &*s.0.topic).collect();
            let partitions: Vec<i32> = settled.iter().map(|s| s.0.partition).collect();
            let incarnations: Vec<i16> = settled.iter().map(|s| s.0.incarnation).collect();
            let offsets: Vec<i64> = settled.iter().map(|s| s.1).collect();
            transaction.execute(&positions, &[&topics, &partitions, &incarnations, &offsets])?;
        }
        transaction.commit()?;
        Ok(true)
    }

    /// The audit over everything has come to its end; returns how many findings were not found again.
    pub fn audit_whole_end(&mut self, process: ProcessId) -> Result<i64, StoreError> {
        let statement = self.prepare(&AUDIT_WHOLE_END)?;
        Ok(self.client.query_one(&statement, &[&process])?.get(0))
    }

    /// Who these transactions are, as far as they are stored.
    pub fn named(&mut self, ids: &[i64]) -> Result<HashMap<i64, Stored>, StoreError> {
        let statement = self.prepare(&NAMED)?;
        let rows = self.client.query(&statement, &[&ids])?;
        Ok(rows.iter().map(|row| (row.get(0), Stored::of(row, 1))).collect())
    }

    /// Rejected records by reason: topic, partition, incarnation, reason, how many.
    pub fn rejected_by_reason(&mut self, topic: Option<&str>) -> Result<Vec<(LifeId, String, i64)>, StoreError> {
        let statement = self.prepare(&REJECTED_REASONS)?;
        let of = |row: &postgres::Row| {
            let life = LifeId { topic: Arc::from(row.get::<_, &str>(0)), partition: row.get(1), incarnation: row.get(2) };
            (life, row.get(3), row.get(4))
        };
        Ok(self.client.query(&statement, &[&topic])?.iter().map(of).collect())
    }

    /// From here on this session sees one moment, until [`end_snapshot`](Self::end_snapshot).
    pub fn begin_snapshot(&mut self) -> Result<(), StoreError> {
        let begin = "set idle_in_transaction_session_timeout = 0; begin isolation level repeatable read read only";
        Ok(self.client.batch_execute(begin)?)
    }

    /// Ends it.
    pub fn end_snapshot(&mut self) -> Result<(), StoreError> {
        Ok(self.client.batch_execute("rollback")?)
    }

    /// What upkeep has found wrong, the oldest first.
    pub fn findings(&mut self, most: i64) -> Result<Vec<Finding>, StoreError> {
        let statement = self.prepare(&AUDIT_FINDINGS)?;
        let finding = |row: &postgres::Row| {
            let life = row.get::<_, Option<String>>(1).map(|topic| LifeId {
                topic: Arc::from(topic),
                partition: row.get::<_, Option<i32>>(2).unwrap_or_default(),
                incarnation: row.get::<_, Option<i16>>(3).unwrap_or_default(),
            });
            let ends: (Option<i64>, Option<i64>) = (row.get(4), row.get(5));
            Finding {
                kind: row.get(0),
                life,
                offsets: ends.0.zip(ends.1).map(|(from, to)| from..to),
                tx_id: row.get(6),
                detail: row.get(7),
                age: row.get(8),
                transaction_id: row.get(9),
            }
        };
        Ok(self.client.query(&statement, &[&most])?.iter().map(finding).collect())
    }
}
