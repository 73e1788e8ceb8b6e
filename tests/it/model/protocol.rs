//! The protocol as states and steps: two processes of one pipeline, one partition, Kafka, PostgreSQL and the service.
//!
//! What is left out is left out on the safe side: time does not exist, so that a lease may run out at any moment and a process
//! may stop at any step; a batch has one record; what a budget bounds are faults, never progress.

use stateright::{Model, Property};

/// A record's place: lives of the log times their length, plus the offset.
pub type Place = u8;
/// A random number: one that nobody else has at that moment.
type Token = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Kind {
    #[default]
    Absent,
    Waiting,
    Leased,
    Delivered,
    Dead,
}

/// A transaction with its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Row {
    pub kind: Kind,
    /// What the fence compares.
    lease: u8,
    /// Who really holds it: known to the model alone.
    holder: Token,
    by: (u8, u8),
    pub attempts: u8,
    /// How often it was inserted.
    pub places: u8,
}

/// What PostgreSQL holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pg {
    pub life: u8,
    pub position: u8,
    epoch: u8,
    pub rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
enum Consumer {
    #[default]
    Away,
    /// It has the partition: life, epoch, and where it expects the position to stand.
    Has(u8, u8, u8),
    /// And a record in hand.
    Read(u8, u8, u8),
    /// Nobody knows whether that record's COMMIT was done, under this lease (0: born due).
    InDoubt(u8, u8, u8, Token),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
enum Worker {
    #[default]
    Idle,
    /// A claim whose COMMIT is in doubt: of its rows nothing is sent.
    ClaimInDoubt(Token),
    Holds(Place, u8, Token),
    Sent(Place, u8, Token),
    /// With its outcome: accepted or not.
    Knows(Place, u8, Token, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Process {
    /// Starts so far; a new one sweeps what the one before held.
    starts: u8,
    consumer: Consumer,
    worker: Worker,
    /// Marked as stored for Kafka and not committed there yet: life and offset.
    mark: Option<(u8, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub pg: Pg,
    /// What a standby has, that may become the primary.
    replica: Option<Pg>,
    failed_over: bool,
    /// Kafka: the log's life, the group's member, its committed offset.
    pub log_life: u8,
    assigned: u8,
    /// Of which life it is Kafka does not know.
    pub committed: (u8, u8),
    processes: [Process; 2],
    /// Requests on their way; they outlive their senders.
    wire: Vec<(Place, u8, Token)>,
    /// How often the service has accepted each.
    pub hits: Vec<u8>,
    /// A worker changed a row that another held.
    pub stale_change: bool,
    budget: Budget,
}

/// How many faults of each kind there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    pub crashes: u8,
    /// Of PostgreSQL and of the service.
    pub lost_answers: u8,
    /// Leases that run out while their holder lives: it was stopped, or the service was too slow.
    pub early_expiries: u8,
    pub refusals: u8,
    pub given_back: u8,
    pub rebalances: u8,
    pub recreations: u8,
    pub failovers: u8,
}

/// What a wrong implementation would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A settle looks at the id only.
    NoFence,
    /// The lease is the number of the attempt instead of a random one.
    LeaseIsACounter,
    /// Leases never run out and nobody sweeps.
    NoExpiry,
    /// A position is moved by whoever expects it where it is, under whatever epoch.
    EpochUnchecked,
    /// A position is moved wherever it stands.
    ExpectedUnchecked,
    /// A COMMIT without an answer counts as done, without a look.
    SilenceIsSuccess,
    /// Nor is an id unique: what was inserted may be inserted again.
    IdNotUnique,
    /// A COMMIT without an answer counts as failed, without a look.
    SilenceIsFailure,
    /// The offset is marked for Kafka before COMMIT.
    MarkBeforeCommit,
    /// Reading begins at Kafka's committed offset.
    KafkaKnowsBest,
    /// A record is handed over before COMMIT.
    SendBeforeCommit,
    /// Positions are never read back.
    NoCheck,
}

pub struct Protocol {
    /// Records of each life.
    pub length: u8,
    pub attempts_max: u8,
    pub budget: Budget,
    pub mutants: &'static [Mutant],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Assign(u8),
    Read(u8),
    Commit(u8),
    /// PostgreSQL has done it, or has not; the process hears nothing.
    CommitUnanswered(u8, bool),
    Look(u8),
    Check(u8),
    NoticeNewLife(u8),
    KafkaCommit(u8),
    Claim(u8, Place),
    ClaimUnanswered(u8, Place),
    GiveBackClaim(u8),
    Send(u8),
    GiveBack(u8),
    Serve(u8, bool),
    TimeOut(u8),
    Settle(u8),
    SettleUnanswered(u8),
    Expire(Place),
    Sweep(u8),
    Crash(u8),
    Rebalance,
    Revoke(u8),
    Recreate,
    Replicate,
    FailOver,
}

impl Protocol {
    fn has(&self, mutant: Mutant) -> bool {
        self.mutants.contains(&mutant)
    }

    fn place(&self, life: u8, offset: u8) -> Place {
        life * self.length + offset
    }

    /// The transaction of a batch: the row, and the position from the expected value under this epoch. Whether it was done.
    fn commit(&self, s: &mut State, p: u8, (life, epoch, expected): (u8, u8, u8), lease: Token) -> bool {
        let epoch_fits = self.has(Mutant::EpochUnchecked) || s.pg.epoch == epoch;
        let expected_fits = self.has(Mutant::ExpectedUnchecked) || s.pg.position == expected;
        if !epoch_fits || !expected_fits {
            return false;
        }
        let starts = s.processes[p as usize].starts;
        let row = &mut s.pg.rows[self.place(life, expected) as usize];
        if row.kind == Kind::Absent {
            let kind = if lease == 0 { Kind::Waiting } else { Kind::Leased };
            let attempts = u8::from(lease != 0);
            let number = if self.has(Mutant::LeaseIsACounter) { attempts } else { lease };
            *row = Row { kind, lease: number, holder: lease, by: (p, starts), attempts, places: 1 };
        } else if self.has(Mutant::IdNotUnique) {
            row.places += 1;
        }
        s.pg.position = expected + 1;
        true
    }

    /// The row as its holder by this lease may change it; `None`: it is stale.
    fn held<'s>(&self, s: &'s mut State, place: Place, lease: u8, holder: Token) -> Option<&'s mut Row> {
        let row = &mut s.pg.rows[place as usize];
        let mine = row.kind == Kind::Leased && row.lease == lease;
        (mine || self.has(Mutant::NoFence) && row.kind != Kind::Absent).then_some(())?;
        s.stale_change |= row.holder != holder || row.kind != Kind::Leased;
        Some(row)
    }

    fn settle(&self, s: &mut State, (place, lease, holder, accepted): (Place, u8, Token, bool)) {
        let attempts_max = self.attempts_max;
        let Some(row) = self.held(s, place, lease, holder) else { return };
        row.kind = match accepted {
            true => Kind::Delivered,
            false if row.attempts >= attempts_max => Kind::Dead,
            false => Kind::Waiting,
        };
        (row.lease, row.holder) = (0, 0);
    }

    fn give_back(&self, s: &mut State, place: Place, lease: u8, holder: Token) {
        if let Some(row) = self.held(s, place, lease, holder) {
            (row.kind, row.lease, row.holder, row.attempts) = (Kind::Waiting, 0, 0, row.attempts - 1);
        }
    }

    fn claim(&self, s: &mut State, p: u8, place: Place) -> (u8, Token) {
        let holder = s.fresh_token();
        let starts = s.processes[p as usize].starts;
        let row = &mut s.pg.rows[place as usize];
        row.attempts += 1;
        row.lease = if self.has(Mutant::LeaseIsACounter) { row.attempts } else { holder };
        (row.kind, row.holder, row.by) = (Kind::Leased, holder, (p, starts));
        (row.lease, holder)
    }

    /// Where its consumer stands after the row at `offset` was committed; the row goes to its own worker where it was born leased.
    fn go_on(&self, s: &mut State, p: u8, (life, epoch, offset): (u8, u8, u8), lease: Token) {
        let place = self.place(life, offset);
        let row = s.pg.rows[place as usize];
        let process = &mut s.processes[p as usize];
        process.consumer = Consumer::Has(life, epoch, offset + 1);
        process.mark = Some((life, offset + 1));
        if lease != 0 && row.kind == Kind::Leased && row.holder == lease && process.worker == Worker::Idle {
            process.worker = Worker::Holds(place, row.lease, lease);
        }
    }
}

impl State {
    /// The smallest number that nobody has.
    fn fresh_token(&self) -> Token {
        let in_pg = |pg: &Pg, token| pg.rows.iter().any(|row| row.holder == token);
        let taken = |token: Token| {
            in_pg(&self.pg, token)
                || self.replica.as_ref().is_some_and(|replica| in_pg(replica, token))
                || self.wire.iter().any(|request| request.2 == token)
                || self.processes.iter().any(|process| process.holds(token))
        };
        (1..).find(|token| !taken(*token)).expect("there are enough numbers")
    }

    fn is_alive(&self, holder: Token) -> bool {
        self.processes.iter().any(|process| process.holds(holder))
    }

    fn forget(&mut self, p: u8) {
        let starts = self.processes[p as usize].starts + 1;
        self.processes[p as usize] = Process { starts, ..Process::default() };
    }
}

impl Process {
    fn holds(&self, token: Token) -> bool {
        let works = match self.worker {
            Worker::Idle => false,
            Worker::ClaimInDoubt(holder) => holder == token,
            Worker::Holds(.., holder) | Worker::Sent(.., holder) | Worker::Knows(.., holder, _) => holder == token,
        };
        works || matches!(self.consumer, Consumer::InDoubt(.., holder) if holder == token)
    }

    /// A slot of its room is free; a batch in doubt has one reserved.
    fn has_room(&self) -> bool {
        self.worker == Worker::Idle && !matches!(self.consumer, Consumer::InDoubt(.., lease) if lease != 0)
    }
}

fn spend(budget: &mut u8) -> Option<()> {
    *budget = budget.checked_sub(1)?;
    Some(())
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let places = (self.length * (1 + self.budget.recreations)) as usize;
        let pg = Pg { life: 0, position: 0, epoch: 0, rows: vec![Row::default(); places] };
        vec![State {
            pg,
            replica: None,
            failed_over: false,
            log_life: 0,
            assigned: 0,
            committed: (0, 0),
            processes: [Process::default(); 2],
            wire: Vec::new(),
            hits: vec![0; places],
            stale_change: false,
            budget: self.budget,
        }]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        for p in 0..2 {
            steps.extend([
                Step::Assign(p),
                Step::Read(p),
                Step::Commit(p),
                Step::CommitUnanswered(p, true),
                Step::CommitUnanswered(p, false),
                Step::Look(p),
                Step::Check(p),
                Step::NoticeNewLife(p),
                Step::KafkaCommit(p),
                Step::GiveBackClaim(p),
                Step::Send(p),
                Step::GiveBack(p),
                Step::TimeOut(p),
                Step::Settle(p),
                Step::SettleUnanswered(p),
                Step::Sweep(p),
                Step::Crash(p),
                Step::Revoke(p),
            ]);
            for place in 0..s.pg.rows.len() as Place {
                steps.extend([Step::Claim(p, place), Step::ClaimUnanswered(p, place)]);
            }
        }
        steps.extend((0..s.pg.rows.len() as Place).map(Step::Expire));
        for request in 0..s.wire.len() as u8 {
            steps.extend([Step::Serve(request, true), Step::Serve(request, false)]);
        }
        steps.extend([Step::Rebalance, Step::Recreate, Step::Replicate, Step::FailOver]);
    }

    /// `None`: this step cannot be taken now.
    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut s = last.clone();
        match step {
            // The group's, then PostgreSQL's: only here is an epoch raised, and reading begins at PostgreSQL's position.
            Step::Assign(p) => {
                (s.assigned == p && s.processes[p as usize].consumer == Consumer::Away).then_some(())?;
                s.pg.epoch += 1;
                let from = if self.has(Mutant::KafkaKnowsBest) { s.committed.1.max(s.pg.position) } else { s.pg.position };
                s.processes[p as usize].consumer = Consumer::Has(s.pg.life, s.pg.epoch, from);
            }
            Step::Read(p) => {
                let Consumer::Has(life, epoch, expected) = s.processes[p as usize].consumer else { return None };
                (life == s.log_life && expected < self.length).then_some(())?;
                s.processes[p as usize].consumer = Consumer::Read(life, epoch, expected);
                if self.has(Mutant::MarkBeforeCommit) {
                    s.processes[p as usize].mark = Some((life, expected + 1));
                }
                if self.has(Mutant::SendBeforeCommit) && s.processes[p as usize].has_room() {
                    let holder = s.fresh_token();
                    s.processes[p as usize].worker = Worker::Holds(self.place(life, expected), holder, holder);
                }
            }
            Step::Commit(p) => {
                let Consumer::Read(life, epoch, expected) = s.processes[p as usize].consumer else { return None };
                let lease = if s.processes[p as usize].has_room() { s.fresh_token() } else { 0 };
                if self.commit(&mut s, p, (life, epoch, expected), lease) {
                    self.go_on(&mut s, p, (life, epoch, expected), lease);
                } else {
                    // Fenced: it starts over from what PostgreSQL holds.
                    (s.processes[p as usize].consumer, s.processes[p as usize].mark) = (Consumer::Away, None);
                }
            }
            Step::CommitUnanswered(p, done) => {
                let Consumer::Read(life, epoch, expected) = s.processes[p as usize].consumer else { return None };
                spend(&mut s.budget.lost_answers)?;
                let lease = if s.processes[p as usize].has_room() { s.fresh_token() } else { 0 };
                // One that was refused is as good as not done: a look tells.
                let _ = done && self.commit(&mut s, p, (life, epoch, expected), lease);
                s.processes[p as usize].consumer = Consumer::InDoubt(life, epoch, expected, lease);
            }
            Step::Look(p) => {
                let Consumer::InDoubt(life, epoch, expected, lease) = s.processes[p as usize].consumer else { return None };
                s.processes[p as usize].consumer = Consumer::Away;
                let ours = s.pg.epoch == epoch && s.pg.life == life;
                let seen_done = ours && s.pg.position == expected + 1 && !self.has(Mutant::SilenceIsFailure);
                if self.has(Mutant::SilenceIsSuccess) || seen_done {
                    self.go_on(&mut s, p, (life, epoch, expected), lease);
                } else if self.has(Mutant::SilenceIsFailure) || ours && s.pg.position == expected {
                    s.processes[p as usize].consumer = Consumer::Read(life, epoch, expected);
                } else {
                    s.processes[p as usize].mark = None;
                }
            }
            // Positions are read back all the time: one that is not as this process left it means to start over.
            Step::Check(p) => {
                let Consumer::Has(life, epoch, expected) = s.processes[p as usize].consumer else { return None };
                let same = (s.pg.life, s.pg.epoch, s.pg.position) == (life, epoch, expected);
                (!same && !self.has(Mutant::NoCheck)).then_some(())?;
                (s.processes[p as usize].consumer, s.processes[p as usize].mark) = (Consumer::Away, None);
            }
            // By the topic's id. The position moves in one transaction, under the epoch.
            Step::NoticeNewLife(p) => {
                let Consumer::Has(life, epoch, expected) = s.processes[p as usize].consumer else { return None };
                (life < s.log_life).then_some(())?;
                if s.pg.epoch == epoch && s.pg.position == expected {
                    (s.pg.life, s.pg.position) = (s.log_life, 0);
                    s.processes[p as usize].consumer = Consumer::Has(s.log_life, epoch, 0);
                } else {
                    s.processes[p as usize].consumer = Consumer::Away;
                }
                s.processes[p as usize].mark = None;
            }
            // Whenever the client likes; only the group's member may.
            Step::KafkaCommit(p) => {
                (s.assigned == p).then_some(())?;
                s.committed = s.processes[p as usize].mark.take()?;
            }
            Step::Claim(p, place) => {
                (s.pg.rows[place as usize].kind == Kind::Waiting && s.processes[p as usize].has_room()).then_some(())?;
                let (lease, holder) = self.claim(&mut s, p, place);
                s.processes[p as usize].worker = Worker::Holds(place, lease, holder);
            }
            Step::ClaimUnanswered(p, place) => {
                (s.pg.rows[place as usize].kind == Kind::Waiting && s.processes[p as usize].has_room()).then_some(())?;
                spend(&mut s.budget.lost_answers)?;
                let (_, holder) = self.claim(&mut s, p, place);
                s.processes[p as usize].worker = Worker::ClaimInDoubt(holder);
            }
            Step::GiveBackClaim(p) => {
                let Worker::ClaimInDoubt(holder) = s.processes[p as usize].worker else { return None };
                s.processes[p as usize].worker = Worker::Idle;
                if let Some(place) = s.pg.rows.iter().position(|row| row.holder == holder) {
                    let lease = s.pg.rows[place].lease;
                    self.give_back(&mut s, place as Place, lease, holder);
                }
            }
            Step::Send(p) => {
                let Worker::Holds(place, lease, holder) = s.processes[p as usize].worker else { return None };
                s.wire.push((place, lease, holder));
                s.wire.sort_unstable();
                s.processes[p as usize].worker = Worker::Sent(place, lease, holder);
            }
            Step::GiveBack(p) => {
                let Worker::Holds(place, lease, holder) = s.processes[p as usize].worker else { return None };
                spend(&mut s.budget.given_back)?;
                s.processes[p as usize].worker = Worker::Idle;
                self.give_back(&mut s, place, lease, holder);
            }
            Step::Serve(request, accepted) => {
                let (place, lease, holder) = s.wire.remove(request as usize);
                if accepted {
                    s.hits[place as usize] += 1;
                } else {
                    spend(&mut s.budget.refusals)?;
                }
                for process in &mut s.processes {
                    if process.worker == Worker::Sent(place, lease, holder) {
                        process.worker = Worker::Knows(place, lease, holder, accepted);
                    }
                }
            }
            // No answer: it may still be accepted later.
            Step::TimeOut(p) => {
                let Worker::Sent(place, lease, holder) = s.processes[p as usize].worker else { return None };
                spend(&mut s.budget.lost_answers)?;
                s.processes[p as usize].worker = Worker::Knows(place, lease, holder, false);
            }
            Step::Settle(p) => {
                let Worker::Knows(place, lease, holder, accepted) = s.processes[p as usize].worker else { return None };
                s.processes[p as usize].worker = Worker::Idle;
                self.settle(&mut s, (place, lease, holder, accepted));
            }
            // Done without an answer: it is repeated.
            Step::SettleUnanswered(p) => {
                let Worker::Knows(place, lease, holder, accepted) = s.processes[p as usize].worker else { return None };
                spend(&mut s.budget.lost_answers)?;
                self.settle(&mut s, (place, lease, holder, accepted));
            }
            Step::Expire(place) => {
                let row = s.pg.rows[place as usize];
                (row.kind == Kind::Leased && !self.has(Mutant::NoExpiry)).then_some(())?;
                if s.is_alive(row.holder) {
                    spend(&mut s.budget.early_expiries)?;
                }
                s.pg.rows[place as usize] = Row { kind: Kind::Waiting, lease: 0, holder: 0, ..row };
            }
            // With the state file's lock in hand: what an earlier start of this process holds is nobody's.
            Step::Sweep(p) => {
                let starts = s.processes[p as usize].starts;
                let is_orphan = |row: &Row| row.kind == Kind::Leased && row.by.0 == p && row.by.1 < starts;
                (!self.has(Mutant::NoExpiry) && s.pg.rows.iter().any(is_orphan)).then_some(())?;
                for row in s.pg.rows.iter_mut().filter(|row| is_orphan(row)) {
                    (row.kind, row.lease, row.holder) = (Kind::Waiting, 0, 0);
                }
            }
            Step::Crash(p) => {
                spend(&mut s.budget.crashes)?;
                s.forget(p);
            }
            // The old member hears of it later, or never.
            Step::Rebalance => {
                spend(&mut s.budget.rebalances)?;
                s.assigned = 1 - s.assigned;
            }
            Step::Revoke(p) => {
                let process = &mut s.processes[p as usize];
                let busy = matches!(process.consumer, Consumer::InDoubt(..));
                (s.assigned != p && process.consumer != Consumer::Away && !busy).then_some(())?;
                (process.consumer, process.mark) = (Consumer::Away, None);
            }
            // The topic is deleted and created again. What is marked of the old log may still be committed, and says nothing.
            Step::Recreate => {
                spend(&mut s.budget.recreations)?;
                s.log_life += 1;
            }
            Step::Replicate => {
                (s.budget.failovers > 0 && s.replica.is_none()).then_some(())?;
                s.replica = Some(s.pg.clone());
            }
            Step::FailOver => {
                spend(&mut s.budget.failovers)?;
                s.pg = s.replica.take()?;
                s.failed_over = true;
            }
        }
        (s != *last).then_some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every offset below the position is stored", |m: &Self, s: &State| {
                (0..s.pg.position).all(|offset| s.pg.rows[m.place(s.pg.life, offset) as usize].kind != Kind::Absent)
            }),
            Property::always("each offset is stored once", |_, s: &State| s.pg.rows.iter().all(|row| row.places <= 1)),
            Property::always("delivered means accepted", |_, s: &State| {
                s.pg.rows.iter().zip(&s.hits).all(|(row, hits)| row.kind != Kind::Delivered || *hits > 0)
            }),
            Property::always("no more acceptances than claims", |_, s: &State| {
                s.failed_over || s.pg.rows.iter().zip(&s.hits).all(|(row, hits)| *hits <= row.attempts)
            }),
            Property::always("what was sent was stored before", |_, s: &State| {
                s.failed_over || s.pg.rows.iter().zip(&s.hits).all(|(row, hits)| *hits == 0 || row.kind != Kind::Absent)
            }),
            Property::always("a stale worker changes nothing", |_, s: &State| !s.stale_change),
            Property::always("Kafka's offset never leads the position", |_, s: &State| {
                s.failed_over || s.pg.life != s.committed.0 || s.committed.1 <= s.pg.position
            }),
            // When there are no more faults and nothing can be done, everything is done.
            Property::always("nothing is stuck", |m: &Self, s: &State| {
                let mut steps = Vec::new();
                let open = |row: &Row| matches!(row.kind, Kind::Waiting | Kind::Leased);
                let done = s.pg.life == s.log_life && s.pg.position == m.length && !s.pg.rows.iter().any(open);
                done || {
                    m.actions(s, &mut steps);
                    steps.into_iter().any(|step| m.next_state(s, step).is_some())
                }
            }),
            Property::sometimes("everything is delivered", |m: &Self, s: &State| {
                (0..m.length).all(|offset| s.pg.rows[m.place(s.log_life, offset) as usize].kind == Kind::Delivered)
            }),
            Property::sometimes("something is delivered twice", |_, s: &State| s.hits.iter().any(|hits| *hits > 1)),
        ]
    }
}
