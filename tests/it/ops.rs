//! What operators and systemd see: signals, reload, the watchdog, and threads that die or hang. With the real binary.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::rig::{Ledger, Relay, Topic, eventually, ids, unique};

const NOBODY: &str = "http://127.0.0.1:1/";

/// What systemd would hear. Read all the time, as systemd does: a full socket would hold up the daemon.
struct Notify(Arc<Mutex<Vec<String>>>);

impl Notify {
    fn of(relay: &mut Relay, watchdog: Duration) -> Self {
        let path = relay.directory.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        relay.env("NOTIFY_SOCKET", path.to_str().expect("text"));
        relay.env("WATCHDOG_USEC", &watchdog.as_micros().to_string());
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let hears = Arc::downgrade(&heard);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with the test, at the latest with its process.
            while let (Ok(n), Some(heard)) = (socket.recv(&mut buffer), hears.upgrade()) {
                let mut heard = heard.lock().expect("no panic");
                heard.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned));
            }
        });
        Self(heard)
    }

    /// Everything so far, a line each.
    fn heard(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }

    fn count(&self, line: &str) -> usize {
        self.heard().iter().filter(|heard| heard.starts_with(line)).count()
    }
}

#[test]
fn systemd_hears_that_it_is_ready_alive_and_stopping() {
    let mut relay = Relay::with("t", NOBODY, "postgresql://x@127.0.0.1:1/x", "");
    let notify = Notify::of(&mut relay, Duration::from_millis(300));
    relay.start();
    // It is ready and alive while PostgreSQL is away, and says what it waits for.
    eventually("it is ready", || notify.count("READY=1") == 1);
    eventually("it is alive", || notify.count("WATCHDOG=1") >= 5);
    eventually("it says what is missing", || {
        notify.count("STATUS=waiting: ") >= 1 && relay.log().contains("waiting for PostgreSQL")
    });
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    let heard = notify.heard();
    let place =
        |line: &str| heard.iter().position(|heard| heard.starts_with(line)).unwrap_or_else(|| panic!("{line}: {heard:?}"));
    assert!(place("READY=1") < place("WATCHDOG=1") && place("WATCHDOG=1") < place("STOPPING=1"), "{heard:?}");
    let more = heard.iter().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")?.parse::<u64>().ok());
    assert!(more.is_some_and(|more| more >= 30_000_000), "at least shutdown.timeout: {heard:?}");
}

#[test]
fn the_status_words_follow_what_it_waits_for() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let notify = Notify::of(&mut relay, Duration::from_secs(3));
    relay.start();
    eventually("it relays", || notify.count("STATUS=relaying") == 1);
    assert!(notify.count("STATUS=waiting: ") >= 1, "{:?}", notify.heard());
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn a_dump_says_what_every_thread_and_queue_does() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    ledger.behave(&json!({ "action": "hang" }));
    topic.transactions(ids("d", 0..30));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 3\ntimeout = \"120s\"\n[shutdown]\ntimeout = \"130s\"");
    relay.start();
    eventually("all workers send", || relay.metric("requests_in_flight") == Some(3.0));
    eventually("all is read", || relay.count("select coalesce(sum(next_offset), 0)::bigint from consumer_position") == 30);
    relay.signal("USR1");
    eventually("it is written", || relay.log().contains("state: positions: "));
    let log = relay.log();
    for part in [
        "state: relaying; 3 requests in flight",
        "state: consumer: ",
        "state: claimer: waiting until something is due for ",
        "state: settler: waiting for outcomes for ",
        "state: upkeep: ",
        "state: exporter: serving for ",
        "state: 3 workers: 3 sending (longest ",
        "state: queues: handoff ",
        " of 1024, outcomes 0 of 1024, wake ",
        "room: ",
        &format!("{}/0 at ", topic.name),
        &format!("{}/1 at ", topic.name),
    ] {
        assert!(log.contains(part), "{part} is missing in:\n{log}");
    }
    relay.kill_9();
}

/// Waits for the line that a reload ends with.
#[track_caller]
fn reload(relay: &Relay, line: &str) {
    relay.signal("HUP");
    eventually(&format!("the log says {line:?}"), || relay.log().contains(line));
}

#[test]
fn a_reload_is_taken_whole_or_not_at_all() {
    let mut relay = Relay::new(&unique("nothing"), NOBODY, "");
    let notify = Notify::of(&mut relay, Duration::from_secs(3));
    relay.start();
    eventually("it serves", || relay.metric("config_last_reload_successful") == Some(1.0));
    let loaded = relay.metric("config_last_reload_success_timestamp_seconds").expect("a time");
    reload(&relay, "configuration reloaded: nothing has changed");
    eventually("systemd hears of it", || notify.count("READY=1") == 2 && notify.count("MONOTONIC_USEC=") == 1);
    assert_eq!(notify.count("RELOADING=1"), 1);
    assert!(relay.metric("config_last_reload_success_timestamp_seconds") > Some(loaded));

    // Half of it needs a restart.
    let good = relay.command(&["check-config"]).output().map(|_| std::fs::read_to_string(relay.config_file()).unwrap()).unwrap();
    relay.edit(|config| format!("{}\nworkers = 5\n[retry]\ncap = \"1s\"", config.trim_end()));
    reload(&relay, "only a restart can change downstream.workers; also changed: retry.cap");
    assert_eq!(relay.metric("config_last_reload_successful"), Some(0.0));

    // Broken: each problem is a line, at error.
    relay.edit(|_| format!("{good}\n[retry]\ncap = \"soon\"\nbse = \"1s\"\n"));
    reload(&relay, "configuration not reloaded, the old one stays: 2 problems");
    let log = relay.log();
    let problems: Vec<&str> = log.lines().filter(|line| line.contains("relay.toml:") && line.contains("[ERROR]")).collect();
    assert!(problems.len() == 2 && problems[0].contains("retry.cap"), "{problems:#?}");

    // Gone.
    std::fs::remove_file(relay.config_file()).unwrap();
    reload(&relay, "cannot be read");
    assert_eq!(relay.metric("config_last_reload_successful"), Some(0.0));

    relay.edit(|_| format!("{good}\n[retry]\ncap = \"1m\"\n"));
    reload(&relay, "configuration reloaded: changed retry.cap");
    assert_eq!(relay.metric("config_last_reload_successful"), Some(1.0));
    assert!(!relay.log().contains("\"1m\""), "never a value");
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn what_is_reloaded_takes_effect_without_a_restart() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "status": 503 }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "[gate]\nprobe_cap = \"1h\"\n[retry]\nbase = \"1h\"\ncap = \"2h\"\n");
    relay.start();
    topic.transactions(ids("slow", 0..1));
    eventually("it waits for an hour", || relay.count("select count(*) from delivery where lease is null and attempt = 1") == 1);
    relay
        .edit(|config| config.replace("probe_cap = \"1h\"", "probe_cap = \"100ms\"").replace("base = \"1h\"", "base = \"50ms\""));
    reload(&relay, "configuration reloaded: changed retry.base, gate.probe_cap");
    topic.transactions(ids("fast", 0..1));
    eventually("the new waits hold", || ledger.requests("fast-0").len() > 5);
    assert_eq!(ledger.requests("slow-0").len(), 1);

    assert!(!relay.log().contains("[DEBUG]"));
    relay.edit(|config| config.replace("[log]\n", "[log]\nlevel = \"debug\"\n"));
    reload(&relay, "configuration reloaded: changed log.level");
    eventually("each attempt is logged", || relay.log().contains("[DEBUG] attempt of fast-0"));

    relay.edit(|config| config.replace("[kafka]\n", "[kafka]\nrecord_max = \"200 B\"\n"));
    reload(&relay, "configuration reloaded: changed kafka.record_max");
    let large = format!(r#"{{"transaction_id":"large","note":"{}"}}"#, "x".repeat(300));
    topic.produce([large.as_bytes()]);
    eventually("it is too large now", || relay.count("select count(*) from rejected where reason = 'too_large'") == 1);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn a_burst_of_reloads_drops_nothing() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 2 }));
    let sent = ids("hup", 0..2000);
    topic.transactions(sent.clone());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    relay.start();
    eventually("under way", || ledger.count("accepted") > 100);
    let reloads = |relay: &Relay| relay.log().matches("configuration reloaded: ").count();
    for n in 0..100 {
        let cap = format!("\n[retry]\ncap = \"{}s\"\n", 100 + n);
        relay.edit(|config| format!("{}{cap}", config.split("\n[retry]").next().expect("all of it")));
        relay.signal("HUP");
    }
    eventually("some were taken", || reloads(&relay) > 1);
    eventually("all delivered", || ledger.count("accepted") == 2000);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("requests"), 2000, "each was sent once");
    assert!(!relay.log().contains("not reloaded"), "{}", relay.log());
    relay.balanced();
}

#[cfg(feature = "failpoints")]
mod failing {
    use std::time::Instant;

    use super::*;
    use crate::rig::LIMIT;

    /// Makes a thread panic in its third turn, and expects the process to end.
    #[track_caller]
    fn panics(thread: &str, name: &str) {
        let (topic, ledger) = (Topic::new(1), Ledger::start());
        let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 2");
        relay.env("FAILPOINTS", &format!("thread-{thread}=2*off->panic(boom)"));
        relay.start();
        // Some work, in several batches, until it has happened.
        let mut n = 0;
        eventually("a thread panics", || {
            topic.transactions(ids("x", n..n + 2));
            n += 2;
            relay.log().contains("boom")
        });
        let status = relay.wait();
        assert_eq!(status.code(), Some(1), "{}", relay.log());
        let log = relay.log();
        let line = log.lines().find(|line| line.contains("[ERROR] thread") && line.contains("has ended"));
        let line = line.unwrap_or_else(|| panic!("no thread is named:\n{log}"));
        assert!(line.contains(&format!("thread {name}")) && line.contains("panicked: ") && line.contains("boom"), "{line}");
    }

    #[test]
    fn a_panic_of_the_consumer_ends_the_process() {
        panics("consumer", "consumer");
    }

    #[test]
    fn a_panic_of_the_claimer_ends_the_process() {
        panics("claimer", "claimer");
    }

    #[test]
    fn a_panic_of_a_worker_ends_the_process() {
        panics("worker", "worker-");
    }

    #[test]
    fn a_panic_of_the_settler_ends_the_process() {
        panics("settler", "settler");
    }

    #[test]
    fn a_panic_of_upkeep_ends_the_process() {
        panics("upkeep", "upkeep");
    }

    #[test]
    fn a_panic_of_the_exporter_ends_the_process() {
        panics("exporter", "exporter");
    }

    #[test]
    fn a_thread_that_hangs_is_named_and_the_watchdog_is_no_longer_fed() {
        let (topic, ledger) = (Topic::new(1), Ledger::start());
        let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 2\ntimeout = \"1s\"\nconnect_timeout = \"1s\"");
        let notify = Notify::of(&mut relay, Duration::from_millis(300));
        relay.env("FAILPOINTS", "thread-worker=3*off->1*pause->off");
        relay.start();
        topic.transactions(ids("w", 0..3));
        eventually("three are delivered", || ledger.count("accepted") == 3);
        eventually("it is alive", || notify.count("WATCHDOG=1") > 0);
        assert_eq!(relay.http("/livez").as_deref(), Some("[+]threads ok\n"));
        topic.transactions(ids("hung", 0..1));
        eventually("it says who hangs", || relay.log().contains("[ERROR] a thread hangs: worker-"));
        let (fed, since) = (notify.count("WATCHDOG=1"), Instant::now());
        let livez = relay.http("/livez").expect("it serves");
        assert!(livez.starts_with("[-]thread worker-") && livez.contains(": sending for "), "{livez}");
        // Ten of its ticks: others still work, and yet nothing is fed.
        topic.transactions(ids("other", 0..1));
        eventually("the other worker delivers", || {
            ledger.accepted().contains(&"other-0".to_owned()) || since.elapsed() > LIMIT / 4
        });
        eventually("a while", || since.elapsed() > Duration::from_secs(1));
        assert_eq!(notify.count("WATCHDOG=1"), fed);
        relay.kill_9();
    }
}
