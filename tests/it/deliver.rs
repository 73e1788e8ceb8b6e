//! What claimer and settler promise, with a real PostgreSQL and no clock to help it.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use txrelay::config;
use txrelay::core::gate::Settings;
use txrelay::core::outcome::{Outcome, Sent};
use txrelay::deliver::{Claimer, Flow, Permits, PutOff, Settler};
use txrelay::ops::health::Health;
use txrelay::ops::metrics::{Identity, Metrics};
use txrelay::ops::stop::{Stopper, group};
use txrelay::ops::throttle::Throttle;
use txrelay::store::{LeaseTime, Leased, Link, Role, Room, Session, Settled, Settlement, Timelines, Tried, migrate};

use crate::rig::{LIMIT, Proxy, eventually, postgres_url, throughout, unique};

/// A migrated schema of its own with this many open deliveries, leased as 7, ids 1 and up.
fn schema_with(config: &config::Postgres, open: i64) -> Session {
    let role = || Role { pipeline: "it".to_owned(), role: "test" };
    migrate(&mut Session::connect(config, &role()).unwrap(), &config.schema).unwrap();
    let mut session = Session::connect(config, &role()).unwrap();
    let rows = format!(
        "insert into pipeline (name) values ('it'); insert into topic (name) values ('t'); \
         insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
         select i, 's' || i, 'x', 0, i, 1, 0 from generate_series(1, {open}) i; \
         insert into delivery (id, due_at, lease, leased_by, attempt) \
         select i, now() + interval '1 minute', 7, 1, 1 from generate_series(1, {open}) i"
    );
    session.client().batch_execute(&rows).unwrap();
    session
}

/// After an outage longer than a lease, the rows of kept outcomes are due again: a claim that comes before their settle sends
/// them twice. It came when the first batch was written and others still waited.
#[test]
fn nothing_is_claimed_before_every_kept_outcome_is_written() {
    let schema = unique("it_settler");
    let (mut proxy, through) = Proxy::postgres();
    let lease = Duration::from_secs(60);
    let at = |url: &str| config::Postgres::plain(url.parse().unwrap(), &schema, lease);
    let mut session = schema_with(&at(&postgres_url()), 601);
    let identity =
        Identity { pipeline: "it", schema: &schema, client: "none", topics: &[], kafka_errors: &[], postgres_errors: &[] };
    let metrics = Metrics::new(identity);
    let (stopper, stop) = group(&Arc::default());
    let flow = Flow::new();
    let unsettled = flow.unsettled.clone();
    let settler = Settler {
        link: Link::new(&at(&through), "it", "settler", &Timelines::default()),
        unsettled: flow.unsettled,
        health: Health::new(metrics.clone()),
        metrics,
        stop,
        put_off: PutOff::new(flow.brake.clone()),
        throttle: Throttle::per_minute(),
    };
    let (to_settler, process) = bounded(1);
    let (to_outcomes, outcomes) = flow.outcomes;
    let thread = std::thread::spawn(move || settler.run(&process, &outcomes));
    to_settler.send(1).unwrap();
    let outcome = |id: i64| Settlement {
        id,
        lease: 7,
        attempt: 1,
        received_at: SystemTime::UNIX_EPOCH,
        what: Settled::Delivered(Tried {
            outcome: Outcome::Delivered,
            status: Some(200),
            sent: Sent::Yes,
            latency: Duration::from_millis(1),
            error: None,
        }),
    };
    proxy.tell("refuse");
    to_outcomes.send(outcome(1)).unwrap();
    eventually("the first cannot be written", || unsettled.load(Ordering::Acquire));
    (2..=601).for_each(|id| to_outcomes.send(outcome(id)).unwrap());
    // The rest cannot be written either, for as long as this row is held.
    let mut holder = postgres::Client::connect(&postgres_url(), postgres::NoTls).unwrap();
    holder.batch_execute(&format!("begin; select from \"{schema}\".delivery where id > 1 for update")).unwrap();
    proxy.tell("pass");
    let mut open = || session.client().query_one("select count(*) from delivery", &[]).unwrap().get::<_, i64>(0);
    eventually("the first is written", || open() == 600);
    throughout(Duration::from_secs(1), "claims wait for the others", || unsettled.load(Ordering::Acquire));
    holder.batch_execute("rollback").unwrap();
    eventually("claims go on", || !unsettled.load(Ordering::Acquire));
    assert_eq!(open(), 0, "all were written before that");
    drop((to_outcomes, stopper));
    thread.join().unwrap().unwrap();
    session.client().batch_execute(&format!("drop schema \"{schema}\" cascade")).unwrap();
}

/// A claimer on its own thread, on a schema of its own with deliveries 1 and up, which are due.
struct Claiming {
    schema: String,
    session: Session,
    room: Arc<Room>,
    wake: Sender<()>,
    leased: Receiver<Leased>,
    stopper: Stopper,
    thread: JoinHandle<anyhow::Result<()>>,
    /// Those of failed ones, of which there are none.
    _suspects: Receiver<Leased>,
}

impl Claiming {
    /// With room for as many rows as 64 workers are given whose requests take so long.
    fn begin(due: i64, request: Duration) -> Self {
        let schema = unique("it_claimer");
        let lease = Duration::from_secs(60);
        let config = config::Postgres::plain(postgres_url().parse().unwrap(), &schema, lease);
        let mut session = schema_with(&config, due);
        session
            .client()
            .batch_execute("update delivery set due_at = now(), lease = null, leased_by = null, attempt = 0")
            .unwrap();
        let identity =
            Identity { pipeline: "it", schema: &schema, client: "none", topics: &[], kafka_errors: &[], postgres_errors: &[] };
        let metrics = Metrics::new(identity);
        let time = LeaseTime { lease, timeout: Duration::from_secs(15) };
        let (stopper, stop) = group(&Arc::default());
        let flow = Flow::new();
        let (room, health) = (Room::new(64, time), Health::new(metrics.clone()));
        (0..1000).for_each(|_| room.observe(request));
        let (settings, file) = (Settings::default(), Path::new("it.toml"));
        let permits = Permits::new(settings, file, room.clone(), metrics.clone(), health, Arc::default(), Arc::default());
        let claimer = Claimer {
            link: Link::new(&config, "it", "claimer", &Timelines::default()),
            room: room.clone(),
            permits,
            suspects: flow.suspects.0,
            put_off: Duration::from_secs(30),
            time,
            poll: Duration::from_secs(3600),
            fitting: 500,
            in_doubt: None,
            empty_since: None,
            unsettled: flow.unsettled.clone(),
            brake: flow.brake.clone(),
            throttle: Throttle::per_minute(),
            health: Health::new(metrics.clone()),
            metrics,
            stop,
        };
        let (to_claimer, process) = bounded(1);
        let ((handoff, leased), (wake, woken)) = (flow.handoff, flow.wake);
        let thread = std::thread::spawn(move || claimer.run(&process, &woken, &handoff));
        to_claimer.send(1).unwrap();
        Self { schema, session, room, wake, leased, stopper, thread, _suspects: flow.suspects.1 }
    }

    fn next(&self) -> Leased {
        self.leased.recv_timeout(LIMIT).expect("the next delivery is claimed")
    }

    fn end(mut self) {
        drop(self.stopper);
        self.thread.join().unwrap().unwrap();
        self.session.client().batch_execute(&format!("drop schema \"{}\" cascade", self.schema)).unwrap();
    }
}

#[test]
fn a_wake_up_is_enough_even_if_nobody_polls_for_an_hour() {
    let mut claiming = Claiming::begin(0, Duration::from_millis(1));
    for i in 1..=20 {
        let insert = format!(
            "insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
             values ({i}, 'w{i}', 'x', 0, {i}, 1, 0); insert into delivery (id, due_at) values ({i}, now())"
        );
        claiming.session.client().batch_execute(&insert).unwrap();
        // As the consumer does it, after COMMIT.
        let _ = claiming.wake.try_send(());
        assert_eq!(claiming.next().transaction_id, format!("w{i}"));
    }
    claiming.end();
}

/// Room comes back row by row. A claim for each few of them was a transaction for each few deliveries.
#[test]
fn a_backlog_is_claimed_in_few_large_batches_and_workers_never_run_dry() {
    for (due, request, room, claims) in [(4000, Duration::from_millis(1), 1024, 10), (300, Duration::from_secs(15), 64, 32)] {
        let claiming = Claiming::begin(due, request);
        let mut leases = HashSet::new();
        for n in 1..=due {
            leases.insert(claiming.next().lease);
            // As workers take them: far slower than they are claimed.
            std::thread::sleep(Duration::from_micros(200));
            // As long as there is more than the room holds, half of it waits for the workers, but for the moment of a claim.
            if n > 1 && n < due - room {
                eventually("there is work in hand", || claiming.room.held().0 as i64 >= room / 2 - 1);
            }
        }
        assert_eq!(claiming.room.held().2 as i64, room);
        assert!(leases.len() <= claims, "{due} rows in {} claims, with room for {room}", leases.len());
        claiming.end();
    }
}
