//! A log that nobody takes: full, blocked or closed. Deliveries go on, memory stays, and what was lost is counted.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::rig::{Ledger, Relay, Topic, eventually, ids};

/// More lines at debug than the pipe and the queue hold.
const MANY: usize = 4000;

fn relay(topic: &Topic, ledger: &Ledger) -> Relay {
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    relay.set("log.level=debug");
    relay
}

/// All are delivered, within little memory, and it stops in time.
#[track_caller]
fn goes_on(relay: &mut Relay, ledger: &Ledger) {
    eventually("all delivered", || ledger.count("accepted") == MANY as u64);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert!(relay.metric("attempts_total{outcome=\"delivered\"}") == Some(MANY as f64), "/metrics answers");
    let rss = relay.proc_status("VmRSS");
    assert!(rss < 150 << 10, "{rss} kB");
    relay.balanced();
}

#[test]
fn a_full_disk_under_the_log_holds_nothing_up() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    topic.transactions(ids("full", 0..MANY));
    let mut relay = relay(&topic, &ledger);
    relay.start_with(std::fs::File::options().write(true).open("/dev/full").unwrap());
    goes_on(&mut relay, &ledger);
    assert_eq!(relay.stop().code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up_and_says_later_what_was_lost() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    topic.transactions(ids("pipe", 0..MANY));
    let mut relay = relay(&topic, &ledger);
    let (mut reader, writer) = std::io::pipe().unwrap();
    relay.start_with(writer);
    goes_on(&mut relay, &ledger);
    // Now somebody reads, up to the end.
    let reading = std::thread::spawn(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).expect("text");
        log
    });
    assert_eq!(relay.stop().code(), Some(0));
    let log = reading.join().unwrap();
    let lost = log.lines().filter_map(|line| line.split_once("[WARN] ")?.1.split_once(" lines were not written: "));
    let lost: usize = lost.map(|(n, _)| n.parse::<usize>().expect("a count")).sum();
    let written = log.matches("[DEBUG] attempt of pipe-").count();
    assert!(lost > 0 && written < MANY && written + lost >= MANY, "{written} written, {lost} lost");
    assert!(log.contains("stopped: "), "what came after is there");
}

#[test]
fn a_log_that_nobody_will_ever_read_does_not_hold_up_the_end() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    topic.transactions(ids("never", 0..MANY));
    let mut relay = relay(&topic, &ledger);
    let (reader, writer) = std::io::pipe().unwrap();
    relay.start_with(writer);
    goes_on(&mut relay, &ledger);
    assert_eq!(relay.stop().code(), Some(0));
    drop(reader);
}

#[test]
fn a_log_whose_reader_has_gone_holds_nothing_up() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let mut relay = relay(&topic, &ledger);
    let (reader, writer) = std::io::pipe().unwrap();
    relay.start_with(writer);
    eventually("it runs", || relay.http("/livez").is_some());
    drop(reader);
    topic.transactions(ids("gone", 0..MANY));
    goes_on(&mut relay, &ledger);
    assert_eq!(relay.stop().code(), Some(0));
}

#[test]
fn a_closed_stderr_holds_nothing_up() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    topic.transactions(ids("closed", 0..MANY));
    let mut relay = relay(&topic, &ledger);
    relay.start_through(|command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" 2>&-"]).arg(command.get_program()).args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.stdin(Stdio::null()).stdout(Stdio::null()).arg0("sh");
        shell
    });
    goes_on(&mut relay, &ledger);
    assert_eq!(relay.stop().code(), Some(0));
}

#[test]
fn a_failure_at_the_start_is_in_the_log_as_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut relay = Relay::new("t", "http://127.0.0.1:1/", "");
    relay.set(&format!("metrics.listen=\"{}\"", taken.local_addr().unwrap()));
    relay.set("log.format=json");
    relay.start();
    assert_eq!(relay.wait().code(), Some(1));
    let log = relay.log();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["level"], "error", "{log}");
    assert!(last["msg"].as_str().is_some_and(|text| text.contains("metrics.listen")), "{log}");
}
