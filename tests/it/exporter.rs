//! The metrics port under clients that mean no good: deliveries go on and /metrics answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::rig::{Ledger, Relay, Topic, eventually, ids, unique};

/// So many, of each kind.
const CLIENTS: usize = 1000;

/// One crowd at a time: its sockets are this process's too.
static CROWD: Mutex<()> = Mutex::new(());

/// Lets `CLIENTS` clients of one kind connect while transactions are delivered, and holds them open.
#[track_caller]
fn survives(kind: &str, meet: impl Fn(&mut TcpStream)) {
    let _one = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    // The daemon inherits it, as it has it from its unit.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 2 }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    relay.start();
    topic.transactions(ids("before", 0..50));
    eventually("it delivers", || ledger.count("accepted") == 50);
    let descriptors = relay.descriptors();
    topic.transactions(ids(kind, 0..1000));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = relay.connect();
        client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        meet(&mut client);
        clients.push(client);
    }
    eventually("deliveries go on", || {
        // Who sends a byte at a time goes on as long as it is let.
        clients.iter_mut().filter(|_| kind == "drip").for_each(|client| drop(client.write(b"G")));
        ledger.count("accepted") == 1050
    });
    eventually("/metrics answers", || relay.metric("workers") == Some(8.0));
    // With all of them still there.
    eventually("threads are few again", || relay.proc_status("Threads") < 100);
    eventually("descriptors are few again", || relay.descriptors() < descriptors + 2 * 64 + 20);
    assert!(relay.http("/livez").is_some_and(|text| text == "[+]threads ok\n"));
    // Requests that are sent ahead wait in tiny_http's queue until their client is sent away: 138 to 218 MB were measured.
    let most = if kind == "deaf" { 350 } else { 150 };
    let peak = relay.proc_status("VmHWM");
    assert!(peak < most << 10, "{peak} kB at the most");
    drop(clients);
    eventually("descriptors are as before", || relay.descriptors() <= descriptors + 8);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    relay.balanced();
}

#[test]
fn a_thousand_clients_that_say_nothing_stop_nothing() {
    survives("silent", |_| ());
}

#[test]
fn a_thousand_clients_with_half_a_request_line_stop_nothing() {
    survives("half", |client| client.write_all(b"GET /met").unwrap());
}

#[test]
fn a_thousand_clients_that_send_a_byte_at_a_time_stop_nothing() {
    survives("drip", |client| client.write_all(b"G").unwrap());
}

#[test]
fn a_thousand_clients_that_never_read_their_answers_stop_nothing() {
    let requests = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
    // Shut in the middle of it: that is what should happen.
    survives("deaf", |client| drop(client.write_all(requests.as_bytes())));
}

#[test]
fn a_thousand_clients_that_announce_a_large_body_stop_nothing() {
    let head = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n";
    survives("body", |client| drop(client.write_all(head.as_bytes())));
}

#[test]
fn a_request_line_without_an_end_does_not_fill_the_memory() {
    let mut relay = Relay::new(&unique("nothing"), "http://127.0.0.1:1/", "");
    relay.start();
    eventually("it serves", || relay.http("/livez").is_some());
    let connections = |relay: &Relay| {
        let port = format!(":{:04X} ", relay.connect().peer_addr().unwrap().port());
        // Local address and port, the other end's, and 01: established.
        let open =
            |line: &&str| line.split_once(": ").is_some_and(|(_, rest)| rest[8..].starts_with(&port) && rest.contains(" 01 "));
        std::fs::read_to_string("/proc/net/tcp").unwrap().lines().filter(open).count()
    };
    let mut client = relay.connect();
    client.set_nonblocking(true).unwrap();
    let mut sent = 0_u64;
    eventually("it is shut", || {
        while let Ok(n) = client.write(&[b'x'; 65536]) {
            sent += n as u64;
            assert!(sent < 4 << 30, "it takes whatever comes");
        }
        sent > 100_000 && connections(&relay) <= 1
    });
    let rss = relay.proc_status("VmHWM");
    assert!(rss < 300 << 10, "{rss} kB after {sent} bytes");
    assert!(relay.http("/metrics").is_some());
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn a_scraper_that_keeps_its_connection_is_served_again_and_again() {
    let mut relay = Relay::new(&unique("nothing"), "http://127.0.0.1:1/", "");
    relay.start();
    eventually("it serves", || relay.http("/livez").is_some());
    let mut scraper = relay.connect();
    scraper.set_read_timeout(Some(crate::rig::LIMIT)).unwrap();
    for _ in 0..3 {
        scraper.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"[+]threads ok\n") {
            let mut buffer = [0; 512];
            let n = scraper.read(&mut buffer).unwrap();
            assert!(n > 0, "the connection was closed: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..n]);
        }
    }
    assert_eq!(relay.stop().code(), Some(0));
}

/// Descriptors run out: accept fails, and tiny_http would never accept again.
#[test]
fn a_port_that_ran_out_of_descriptors_serves_again_afterwards() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 2");
    relay.start();
    topic.transactions(ids("x", 0..5));
    // Now every thread has its connection: one that had to connect without a descriptor would end the process.
    eventually("it works", || relay.count("select count(*) from attempt") == 5);
    let limit = |n: usize| {
        let pid = relay.pid().to_string();
        let set = std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={n}:4096")]).status().unwrap();
        assert!(set.success());
    };
    limit(relay.descriptors() + 4);
    let clients: Vec<TcpStream> = (0..20).map(|_| relay.connect()).collect();
    eventually("it says so", || relay.log().contains("the server is built anew"));
    drop(clients);
    limit(4096);
    eventually("it serves again", || relay.http("/metrics").is_some());
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
