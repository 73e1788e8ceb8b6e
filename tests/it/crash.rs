//! kill -9 at each step: of the real process, by itself (`failpoint::STEPS`), under load, and not at the first pass.
//!
//! Of each death the same is promised: the next life finds a state in which every record is in one place, delivers all of it,
//! and repeats no more than what the dead one held leased.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::json;
use txrelay::failpoint::STEPS;

use crate::rig::{Ledger, Load, Proxy, Relay, Topic, eventually, ids};

/// So short that a lease ends within a test.
const SHORT: &str = "timeout = \"1s\"\nconnect_timeout = \"1s\"\nworkers = 4";

/// How a step is come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Fresh records.
    Load,
    /// A second topic in the file.
    SecondTopic,
    /// Kafka deletes records while nobody reads.
    Deleted,
    /// Failures that are due again.
    Retries,
    /// More than memory may hold.
    Large,
    /// The answer to a claim's COMMIT is lost.
    LostClaim,
    /// SIGTERM with much in hand.
    Stop,
    /// The process before died with requests in flight.
    Predecessor,
    /// A process died with requests in flight, delivering is paused, and another host looks on.
    Paused,
    /// Something is old enough to go.
    Retention,
}

/// Step, passes before the one that kills, way.
const DEATHS: [(&str, u32, Way); 26] = [
    // The longest first.
    ("step-expired", 0, Way::Paused),
    ("step-expire", 3, Way::Paused),
    ("step-retain-commit", 1, Way::Retention),
    ("step-retained", 0, Way::Retention),
    ("step-owned", 0, Way::SecondTopic),
    ("step-began", 0, Way::SecondTopic),
    ("step-move-commit", 1, Way::Deleted),
    ("step-moved", 0, Way::Deleted),
    // F1.
    ("step-fetched", 9, Way::Load),
    // F2.
    ("step-ingest-commit", 7, Way::Load),
    // F3.
    ("step-ingested", 8, Way::Load),
    ("step-handed-over", 6, Way::Load),
    // F4.
    ("step-claim-commit", 3, Way::Retries),
    ("step-claimed", 4, Way::Retries),
    ("step-send", 50, Way::Load),
    // F6.
    ("step-answered", 60, Way::Load),
    ("step-settle", 5, Way::Load),
    // F7.
    ("step-settle-commit", 8, Way::Retries),
    ("step-settled", 6, Way::Load),
    ("step-give-back", 1, Way::Large),
    ("step-given-back", 0, Way::Large),
    ("step-give-back-commit", 0, Way::Stop),
    ("step-give-back-lease", 0, Way::LostClaim),
    ("step-sweep", 1, Way::Predecessor),
    ("step-swept", 0, Way::Predecessor),
    ("step-goodbye", 0, Way::Stop),
];

/// F1-F4, F6, F7 of the fault matrix, and the steps between them (F5 has a test of its own, below).
#[test]
fn kill_9_at_any_step_loses_nothing_and_repeats_only_what_was_leased() {
    let named: BTreeSet<&str> = STEPS.iter().map(|step| step.0).collect();
    let tried: BTreeSet<&str> = DEATHS.iter().map(|death| death.0).collect();
    assert_eq!(named, tried, "each step of the list is died at");
    let next = Mutex::new(DEATHS.iter());
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let Some(&(step, off, way)) = next.lock().expect("nobody panics with it").next() else { return };
                let began = std::time::Instant::now();
                die(step, off, way);
                eprintln!("{step}: {:.1} s", began.elapsed().as_secs_f64());
            }
        };
        let threads: Vec<_> = (0..5).map(|_| scope.spawn(work)).collect();
        // All of them, so that one failure does not hide another.
        let failed = threads.into_iter().filter_map(|thread| thread.join().err()).count();
        assert_eq!(failed, 0, "see above");
    });
}

/// A pipeline whose process dies at a step.
struct Dying {
    step: &'static str,
    topic: Topic,
    ledger: Ledger,
    relay: Relay,
    /// What must be delivered, beside the load.
    sent: Vec<String>,
    /// In Kafka's retention's hands before it was read.
    deleted: i64,
    may_repeat: u64,
}

fn die(step: &'static str, off: u32, way: Way) {
    let more = match way {
        Way::Retries | Way::LostClaim => {
            format!("{SHORT}\n[retry]\nbase = \"100ms\"\ncap = \"200ms\"\n[gate]\nprobe_cap = \"200ms\"")
        }
        // With the long lease below there is room for more rows than for their bytes, however slow all is.
        Way::Large => SHORT.replace("\"1s\"", "\"10s\""),
        _ => SHORT.to_owned(),
    };
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 2 }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), &more);
    relay.set(if way == Way::Large { "postgres.lease=\"600s\"" } else { "postgres.lease=\"12s\"" });
    let mut dying = Dying { step, topic, ledger, relay, sent: Vec::new(), deleted: 0, may_repeat: 0 };
    let load = dying.come_to(off, way);
    dying.relay.dies_at(step);
    dying.count_held();
    dying.relay.unset_env("FAILPOINTS");
    if way == Way::Paused {
        dying.relay.sql().batch_execute("update pipeline set paused_at = null").expect("resumed");
    }
    dying.ledger.behave(&json!({ "delay_ms": 2 }));
    dying.relay.start();
    dying.sent.extend(load.finish());
    dying.ends_well(way);
}

impl Dying {
    /// What the dead one held may be sent again.
    fn count_held(&mut self) {
        self.may_repeat += self.relay.held();
    }

    fn arm(&mut self, off: u32) {
        let action = if off == 0 { "return(kill)".to_owned() } else { format!("{off}*off->return(kill)") };
        self.relay.env("FAILPOINTS", &format!("{}={action}", self.step));
    }

    fn load(&self) -> Load {
        Load::start(&self.topic.name, "l", 100)
    }

    /// It runs, armed, under load, and will come to its step.
    fn come_to(&mut self, off: u32, way: Way) -> Load {
        match way {
            Way::Load | Way::LostClaim | Way::Retries => {
                if way != Way::Load {
                    self.ledger.behave(&json!([{ "status": 503, "share": 0.3 }, { "delay_ms": 2 }]));
                }
                if way == Way::LostClaim {
                    self.lose_a_claim(off)
                } else {
                    self.start_armed(off)
                }
                self.load()
            }
            Way::Retention => {
                // The first life has something delivered, so that there is something old.
                self.deliver_first();
                let age = "update attempt set finished_at = finished_at - interval '100 days'; \
                     update tx set received_at = received_at - interval '100 days'";
                self.relay.sql().batch_execute(age).expect("aged");
                self.start_armed(off);
                self.load()
            }
            Way::SecondTopic => self.with_a_second_topic(off),
            Way::Deleted => self.with_deleted_records(off),
            Way::Large => self.with_large_payloads(off),
            Way::Stop => {
                self.ledger.behave(&json!({ "delay_ms": 100 }));
                self.sent = ids("s", 0..200);
                self.topic.transactions(self.sent.clone());
                self.start_armed(off);
                eventually("much is in hand", || self.relay.held() > 20);
                let load = self.load();
                self.relay.signal("TERM");
                load
            }
            Way::Predecessor | Way::Paused => self.after_a_predecessor(off, way == Way::Paused),
        }
    }

    fn start_armed(&mut self, off: u32) {
        self.arm(off);
        self.relay.start();
    }

    fn deliver_first(&mut self) {
        self.sent = ids("first", 0..50);
        self.topic.transactions(self.sent.clone());
        self.relay.start();
        eventually("the first are delivered", || self.ledger.count("accepted") == 50);
        eventually("and settled", || self.relay.count("select count(*) from delivery") == 0);
        assert_eq!(self.relay.stop().code(), Some(0), "{}", self.relay.log());
    }

    fn lose_a_claim(&mut self, off: u32) {
        let (mut proxy, through) = Proxy::postgres();
        self.relay.set(&format!("postgres.url=\"{through}\""));
        self.start_armed(off);
        eventually("it runs", || self.relay.count("select count(*) from process") == 1);
        self.topic.transactions(ids("c", 0..100));
        self.sent = ids("c", 0..100);
        proxy.tell(&format!("aim {}claimer", self.relay.sessions().trim_end_matches('%')));
        // Empty claims commit too: again and again, until one has rows in it.
        while self.relay.is_running() {
            proxy.tell("drop-answer-after COMMIT");
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
        self.relay.set(&format!("postgres.url=\"{}\"", crate::rig::postgres_url()));
    }

    fn with_a_second_topic(&mut self, off: u32) -> Load {
        self.deliver_first();
        let second = Topic::new(2);
        second.transactions(ids("second", 0..50));
        self.sent.extend(ids("second", 0..50));
        let (old, both) = (format!("\"{}\"", self.topic.name), format!("\"{}\", \"{}\"", self.topic.name, second.name));
        self.relay.edit(|text| text.replace(&old, &both));
        self.start_armed(off);
        self.load()
    }

    fn with_deleted_records(&mut self, off: u32) -> Load {
        self.deliver_first();
        for partition in [0, 1] {
            let next = self.relay.count(&format!("select next_offset from consumer_position where partition = {partition}"));
            let all = ids(&format!("gone-{partition}"), 0..20);
            self.topic.transactions_to(partition, all.clone());
            self.topic.delete_before(partition, next + 10);
            self.deleted += 10;
            self.sent.extend_from_slice(&all[10..]);
        }
        self.start_armed(off);
        self.load()
    }

    fn with_large_payloads(&mut self, off: u32) -> Load {
        self.ledger.behave(&json!({ "delay_ms": 2000 }));
        let all = ids("large", 0..80);
        let value = |id: &String| format!(r#"{{"transaction_id":"{id}","padding":"{}"}}"#, "x".repeat(900_000)).into_bytes();
        let values: Vec<Vec<u8>> = all.iter().map(value).collect();
        self.topic.produce(values.iter().map(Vec::as_slice));
        self.sent = all;
        self.start_armed(off);
        self.load()
    }

    fn after_a_predecessor(&mut self, off: u32, paused: bool) -> Load {
        self.ledger.behave(&json!({ "action": "hang" }));
        self.sent = ids("h", 0..40);
        self.topic.transactions(self.sent.clone());
        self.relay.start();
        eventually("requests hang", || self.relay.metric("requests_in_flight") == Some(4.0));
        self.relay.kill_9();
        self.count_held();
        assert!(self.may_repeat >= 4);
        self.ledger.behave(&json!({ "delay_ms": 2 }));
        if paused {
            // Another state file: nothing proves that the first one is dead.
            std::fs::remove_file(self.relay.state_file()).expect("removed");
            self.relay.sql().batch_execute("update pipeline set paused_at = now()").expect("paused");
        }
        self.start_armed(off);
        self.load()
    }

    /// The ledgers of the producer, of the service and in the tables agree.
    #[track_caller]
    fn ends_well(mut self, way: Way) {
        let Self { step, ledger, relay, sent, deleted, may_repeat, .. } = &mut self;
        eventually(&format!("{step}: all delivered"), || ledger.count("accepted") >= sent.len() as u64);
        eventually(&format!("{step}: all settled"), || relay.count("select count(*) from delivery") == 0);
        ledger.has_exactly(sent);
        let twice = ledger.count("accepted_twice");
        assert!(twice <= *may_repeat, "{step}: {twice} repeated, {may_repeat} were leased");
        assert_eq!(relay.count("select count(*) from dead"), 0, "{step}");
        assert_eq!(relay.count("select coalesce(sum(to_offset - from_offset), 0)::bigint from known_gap"), *deleted, "{step}");
        if matches!(way, Way::Load | Way::Retries | Way::Large | Way::Stop | Way::Predecessor | Way::Paused) {
            relay.balanced();
        }
        // Also where retention or Kafka's has taken some: the rest of the ledger.
        let off = "select coalesce(sum(n) filter (where name = 2), 0)::bigint - coalesce(sum(n) filter (where name = 5), 0)::bigint from counter";
        assert_eq!(relay.count(off), 0, "{step}: ingested = delivered");
        let purged = "select (select coalesce(sum(n), 0) from counter where name = 2)::bigint \
             - (select coalesce(sum(n), 0) from counter where name = 12)::bigint - (select count(*) from tx)";
        assert_eq!(relay.count(purged), 0, "{step}: what was ingested is there, or was deleted as old");
        assert_eq!(relay.stop().code(), Some(0), "{step}: {}", relay.log());
    }
}

/// F5.
#[test]
fn kill_9_between_request_and_answer_repeats_no_more_than_was_in_flight() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    // The service takes it at once, and answers when nobody listens any more.
    ledger.behave(&json!({ "delay_ms": 2000 }));
    topic.transactions(ids("f", 0..40));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    relay.start();
    eventually("requests are in flight", || ledger.count("in_flight") == 8);
    relay.kill_9();
    ledger.behave_well();
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 40);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    ledger.has_exactly(&ids("f", 0..40));
    assert_eq!(ledger.count("accepted_twice"), 8, "one for each request in flight: {}", ledger.summary());
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

/// F8. The model of the lease protocol found it: whoever dies with a delivery's last attempt in hand must not strand it.
#[test]
fn kill_9_at_the_last_attempt_strands_nothing() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "status": 400, "id": "last-0", "body": "no such account" }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), SHORT);
    relay.set("postgres.lease=\"12s\"");
    topic.transactions(ids("last", 0..1));
    // A 400 is dead at the first attempt, and each life dies before that is committed: once at the settle, once with it.
    for step in ["step-answered", "step-settle-commit"] {
        relay.env("FAILPOINTS", &format!("{step}=return(kill)"));
        relay.start();
        relay.dies_at(step);
        relay.unset_env("FAILPOINTS");
        assert_eq!(relay.count("select count(*) from delivery"), 1, "{step}: open as before");
    }
    relay.start();
    eventually("it is dead", || relay.count("select count(*) from dead where reason = 'refused'") == 1);
    assert_eq!(ledger.requests("last-0").len(), 3, "one a life");
    let attempts = "select string_agg(outcome || ' ' || attempt, ', ' order by attempt, finished_at) from attempt_history";
    let history: String = relay.sql().query_one(attempts, &[]).expect("answers").get(0);
    assert_eq!(history, "lost 1, lost 2, refused 3");
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
