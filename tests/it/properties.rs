//! Random lives of transactions on a real PostgreSQL, beside a model in memory: after each step tables, states, counters and
//! equations are the model's. Time is a parameter: it moves on by moving back what is stored.

mod model;

use std::cell::RefCell;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use txrelay::core::ledger::Counter;
use txrelay::core::outcome::{Outcome, Sent};
use txrelay::store::{Claimant, OffsetPlace, Settled, Settlement, Trace, Tried};

use crate::store::{LEASE, Store, TIME};
use model::{KEEP_SECONDS, Lives};

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    Delivered,
    /// Due again after so many seconds; so many are spent.
    Failed(i64, i64),
    Died,
    GivenBack,
}

#[derive(Clone, Debug)]
enum Step {
    /// Ids and values of records, and whether they are born leased.
    Ingest(Vec<(u8, u8)>, bool),
    /// The last batch once more: somebody set the position back.
    Repeat,
    /// All that is due, by one of two processes.
    Claim(i64),
    /// Outcomes of some that were ever leased; also of leases that others have since.
    Settle(Vec<(Index, Ending)>),
    GiveBackLease(Index),
    Expire,
    Sweep(i64),
    RetryDead(Index),
    RetryWaiting(Index),
    RetryDelivered(Index),
    ResolveDead(Index),
    ResolveWaiting(Index),
    Purge,
    Forward(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![
        3 => Just(Ending::Delivered),
        3 => (prop::sample::select(vec![0i64, 10, 100]), prop::sample::select(vec![0i64, 10])).prop_map(|(d, s)| Ending::Failed(d, s)),
        2 => Just(Ending::Died),
        1 => Just(Ending::GivenBack),
    ];
    let step = prop_oneof![
        6 => (prop::collection::vec((0..8u8, 0..2u8), 1..5), any::<bool>()).prop_map(|(records, leased)| Step::Ingest(records, leased)),
        1 => Just(Step::Repeat),
        6 => (1..3i64).prop_map(Step::Claim),
        8 => prop::collection::vec((any::<Index>(), ending), 1..4).prop_map(Step::Settle),
        1 => any::<Index>().prop_map(Step::GiveBackLease),
        2 => Just(Step::Expire),
        1 => (1..3i64).prop_map(Step::Sweep),
        2 => any::<Index>().prop_map(Step::RetryDead),
        1 => any::<Index>().prop_map(Step::RetryWaiting),
        2 => any::<Index>().prop_map(Step::RetryDelivered),
        1 => any::<Index>().prop_map(Step::ResolveDead),
        1 => any::<Index>().prop_map(Step::ResolveWaiting),
        2 => Just(Step::Purge),
        4 => prop::sample::select(vec![10i64, 30, 60, 70, 120]).prop_map(Step::Forward),
        1 => Just(Step::Forward(KEEP_SECONDS + 10)),
    ];
    prop::collection::vec(step, 1..40)
}

/// The store and its model.
struct Pair {
    store: Store,
    lives: Lives,
    next_lease: i64,
    last: Option<(Vec<(u8, u8)>, i64)>,
}

const VALUES: [&str; 2] = ["{}", "[]"];

fn id(n: u8) -> String {
    format!("id-{n}")
}

impl Pair {
    fn new() -> Self {
        Self { store: Store::new(), lives: Lives::default(), next_lease: 0, last: None }
    }

    /// Nothing is stored.
    fn reset(&mut self) {
        self.store.reset();
        (self.lives, self.next_lease, self.last) = (Lives::default(), 0, None);
    }

    fn lease(&mut self) -> i64 {
        self.next_lease += 1;
        self.next_lease
    }

    fn ingest(&mut self, records: &[(u8, u8)], lease: Option<i64>) -> Vec<(usize, i64)> {
        let names: Vec<String> = records.iter().map(|(n, _)| id(*n)).collect();
        let values: Vec<(&str, &str)> =
            names.iter().zip(records).map(|(name, (_, value))| (name.as_str(), VALUES[*value as usize])).collect();
        self.store.store(&values, lease).new.into_iter().map(|(place, id, _)| (place, id)).collect()
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Ingest(records, leased) => {
                let lease = leased.then(|| self.lease());
                let new = self.ingest(records, lease);
                self.lives.ingest(records, lease, &new);
                let last = records.len() as i64;
                self.last = Some((records.clone(), last));
            }
            Step::Repeat => {
                let Some((records, n)) = self.last.clone() else { return };
                self.store.set_back(n);
                let new = self.ingest(&records, None);
                assert!(new.is_empty(), "it is known: {new:?}");
            }
            Step::Claim(process) => {
                let lease = self.lease();
                let room = self.store.room.reserve_rows(500).expect("room");
                let who = Claimant { process: *process, lease, time: TIME };
                let rows = self.store.session.claim(500, who, None, room).expect("claimed").0.rows;
                let mut claimed: Vec<(i64, i32)> = rows.iter().map(|row| (row.id, row.attempt)).collect();
                claimed.sort_unstable();
                assert_eq!(claimed, self.lives.claim(*process, lease), "what is due, and which attempt it is");
            }
            Step::Settle(endings) => {
                let mut batch: Vec<(i64, i64, i32, Ending)> = Vec::new();
                for (index, ending) in endings {
                    let Some((id, lease, attempt)) = self.lives.granted(index) else { continue };
                    // One outcome comes once.
                    if !batch.iter().any(|known| (known.0, known.1) == (id, lease)) {
                        batch.push((id, lease, attempt, *ending));
                    }
                }
                let settlements: Vec<Settlement> = batch
                    .iter()
                    .map(|(id, lease, attempt, ending)| Settlement {
                        id: *id,
                        lease: *lease,
                        attempt: *attempt,
                        received_at: self.store.received_at(*id),
                        what: settled(*ending),
                    })
                    .collect();
                let stale = self.store.session.settle(1, &settlements).expect("settled");
                let expected: usize =
                    batch.into_iter().map(|(id, lease, attempt, ending)| self.lives.settle(id, lease, attempt, ending)).sum();
                assert_eq!(stale, expected, "how many were stale");
            }
            Step::GiveBackLease(index) => {
                let Some((_, lease, _)) = self.lives.granted(index) else { return };
                let n = self.store.session.give_back_lease(lease, LEASE).expect("given back");
                assert_eq!(n, self.lives.give_back_lease(lease));
            }
            Step::Expire => {
                let (n, _) = self.store.session.expire(None, LEASE).expect("looked");
                assert_eq!(n, self.lives.expire());
            }
            Step::Sweep(process) => {
                // It has died just now: all that it holds was taken before.
                let died = "insert into process (id, host, pid, version, lease_ms, ended_at) overriding system value \
                     values ($1, 'it', 1, 'it', $2, now()) on conflict (id) do update set ended_at = now()";
                let lease_ms = LEASE.as_millis() as i64;
                self.store.session.client().execute(died, &[process, &lease_ms]).expect("buried");
                let n = self.store.session.sweep(&[*process], LEASE).expect("swept");
                assert_eq!(n, self.lives.sweep(*process));
            }
            Step::RetryDead(index) => self.act(index, |store, ids| store.session.retry_dead(ids, &trace()), Lives::retry_dead),
            Step::RetryWaiting(index) => {
                self.act(index, |store, ids| store.session.retry_waiting(ids, &trace()), Lives::retry_waiting)
            }
            Step::RetryDelivered(index) => {
                self.act(index, |store, ids| store.session.retry_delivered(ids, &trace()), Lives::retry_delivered);
            }
            Step::ResolveDead(index) => {
                self.act(index, |store, ids| store.session.resolve_dead(ids, "me", "because", &trace()), Lives::resolve_dead);
            }
            Step::ResolveWaiting(index) => {
                self.act(
                    index,
                    |store, ids| store.session.resolve_waiting(ids, "me", "because", &trace()),
                    Lives::resolve_waiting,
                );
            }
            Step::Purge => {
                self.purge();
                self.lives.purge();
                // What it repeats may be gone.
                self.last = None;
            }
            Step::Forward(seconds) => {
                self.store.forward(*seconds);
                self.lives.now += seconds;
            }
        }
    }

    fn act(
        &mut self,
        index: &Index,
        really: impl FnOnce(&mut Store, &[i64]) -> Result<Vec<i64>, txrelay::store::StoreError>,
        modelled: impl FnOnce(&mut Lives, i64) -> bool,
    ) {
        let Some(id) = self.lives.any(index) else { return };
        let done = really(&mut self.store, &[id]).expect("done");
        assert_eq!(done, if modelled(&mut self.lives, id) { vec![id] } else { Vec::new() });
    }

    fn purge(&mut self) {
        let keep = Duration::from_secs(KEEP_SECONDS as u64);
        let session = &mut self.store.session;
        let _ = session.purge_delivered(1, i64::MIN, 1000, keep).expect("a step").expect("our turn");
        let _ = session.purge_resolved(1, i64::MIN, 1000, keep).expect("a step").expect("our turn");
        let first: OffsetPlace = (String::new(), i32::MIN, i16::MIN, i64::MIN);
        let _ = session.purge_duplicates(1, &first, 1000, keep).expect("a step").expect("our turn");
    }

    /// Everything that is stored is what the model holds.
    fn agree(&mut self) {
        let client = self.store.session.client();
        let found =
            client.query("select transaction_id, state, attempts from transaction_status order by 1", &[]).expect("states");
        let found: Vec<(String, String, i32)> = found.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        assert_eq!(found, self.lives.states(), "the view");
        let query = "select tx_id, n, outcome, stale, count(*) from attempt where tx_id in (select id from tx) group by 1, 2, 3, 4 order by 1, 2, 3, 4";
        let found: Vec<(i64, i32, i16, bool, i64)> = client
            .query(query, &[])
            .expect("attempts")
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)))
            .collect();
        assert_eq!(found, self.lives.attempts(), "attempts");
        let query = "select id, (round(extract(epoch from due_at - now()) / 10) * 10)::bigint, lease, leased_by, attempt, spent_ms from delivery order by 1";
        let found: Vec<model::Open> = client.query(query, &[]).expect("deliveries").iter().map(model::Open::read).collect();
        assert_eq!(found, self.lives.open(), "deliveries: id, due in, lease, whose, attempt, spent");
        let row = client.query_one(
            "select (select count(*) from tx), (select count(*) from duplicate), (select count(*) from rejected), \
               (select next_offset from consumer_position)",
            &[],
        );
        let row = row.expect("counted");
        let found: [i64; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
        assert_eq!(found, self.lives.places(), "tx, duplicate, rejected, position");
        let gauges = self.store.session.gauges().expect("counted");
        for counter in Counter::ALL {
            let found = gauges.counters.get(&counter.code()).copied().unwrap_or(0);
            assert_eq!(found, self.lives.counted(counter), "{}", counter.label());
        }
        assert_eq!(gauges.ledger().imbalances(), txrelay::core::ledger::Imbalances::default());
        let states = self.lives.states();
        for (state, n) in gauges.states() {
            assert_eq!(n, states.iter().filter(|known| known.1 == state).count() as i64, "{state}");
        }
    }
}

fn trace() -> Trace {
    Trace { uid: None, sudo_user: None, host: "it".to_owned(), command: "test".to_owned() }
}

fn settled(ending: Ending) -> Settled {
    let tried = |outcome, status| Tried { outcome, status: Some(status), sent: Sent::Yes, latency: Duration::ZERO, error: None };
    let seconds = |s: i64| Duration::from_secs(s as u64);
    match ending {
        Ending::Delivered => Settled::Delivered(tried(Outcome::Delivered, 200)),
        Ending::Failed(delay, spend) => {
            Settled::Failed { tried: tried(Outcome::Retry, 500), delay: seconds(delay), spend: seconds(spend) }
        }
        Ending::Died => Settled::Died { tried: tried(Outcome::Refused, 400), reason: "refused" },
        Ending::GivenBack => Settled::GivenBack,
    }
}

fn random_lives(cases: u32) {
    let pair = RefCell::new(Pair::new());
    let config = Config { cases, max_shrink_iters: 300, failure_persistence: None, ..Config::default() };
    let lived = TestRunner::new(config).run(&steps(), |steps| {
        let mut pair = pair.borrow_mut();
        pair.reset();
        for step in &steps {
            pair.run(step);
            pair.agree();
        }
        Ok(())
    });
    lived.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn tables_states_and_counters_are_what_a_model_says_after_any_sequence_of_steps() {
    random_lives(40);
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn tables_states_and_counters_are_what_a_model_says_after_a_thousand_sequences() {
    random_lives(1000);
}

/// A comparison that passes whatever is stored would prove nothing.
#[test]
fn the_comparison_notices_every_hand_in_the_tables() {
    let mut pair = Pair::new();
    let begin = |pair: &mut Pair| {
        pair.reset();
        for step in [
            Step::Ingest(vec![(0, 0), (1, 0), (2, 0), (0, 0), (1, 1)], true),
            Step::Ingest(vec![(3, 0), (4, 0)], false),
            Step::Claim(1),
        ] {
            pair.run(&step);
        }
        let (id, lease, attempt) = pair.lives.first_granted().expect("some were leased");
        pair.store.settle(id, lease, attempt, settled(Ending::Delivered));
        pair.lives.settle(id, lease, attempt, Ending::Delivered);
        pair.agree();
    };
    for hand in [
        "update delivery set spent_ms = 1",
        "update delivery set attempt = attempt + 1",
        "update delivery set due_at = due_at + interval '10 seconds'",
        "update delivery set lease = 999",
        "delete from delivery where id = (select max(id) from delivery)",
        "delete from attempt",
        "update attempt set stale = true",
        "delete from tx where id = (select max(id) from tx)",
        "delete from duplicate",
        "delete from rejected",
        "update counter set n = n + 1 where name = 3",
        "insert into dead (id, attempts, reason) select max(id), 1, 'refused' from tx",
        "update consumer_position set next_offset = next_offset + 1",
    ] {
        begin(&mut pair);
        pair.store.session.client().batch_execute(hand).expect("done by hand");
        let agreed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pair.agree()));
        assert!(agreed.is_err(), "not noticed: {hand}");
    }
}
