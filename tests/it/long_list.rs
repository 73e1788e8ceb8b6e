//! `list` over as many rows as a pipeline keeps.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::commands::run;
use crate::rig::Relay;

/// The stored transactions that DESIGN's sizing speaks of; TXRELAY_LIST_ROWS for a smaller machine.
const ROWS: i64 = 5_000_000;

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_list_of_five_million_begins_at_once_and_stays_small() {
    let rows: i64 = std::env::var("TXRELAY_LIST_ROWS").map_or(ROWS, |rows| rows.parse().expect("a number"));
    let relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    assert_eq!(run(&relay, &["migrate"], &[]).0, Some(0));
    let fill = format!(
        "insert into topic (name) values ('payments');
         insert into consumer_position (topic, partition, next_offset, owner, epoch) values ('payments', 0, {rows} + 1, 1, 1);
         insert into life (topic, partition, incarnation, first_offset) values ('payments', 0, 0, 1);
         insert into tx (id, transaction_id, topic_id, partition, incarnation, kafka_offset, received_at, payload)
         select n, 'p-' || n, 1, 0, 0, n, now() - interval '1 day' + n * interval '50000 seconds' / {rows}, 'x' from generate_series(1, {rows}) n;
         insert into attempt (tx_id, n, outcome, http_status, sent) select n, 1, 1, 200, 1 from generate_series(1, {rows} - 1) n;
         insert into delivery (id, due_at) values ({rows}, now());
         analyze tx; analyze attempt;"
    );
    relay.sql().batch_execute(&fill).expect("filled");
    let began = Instant::now();
    let mut child = relay.command(&["list"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    let to_first = began.elapsed();
    assert!(to_first < Duration::from_secs(10), "the first line came after {to_first:?}");
    assert!(first.starts_with(&format!("p-{rows}\tpending\t")), "{first}");
    let peak = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let (mut n, mut most) = (1, 0);
    for line in &mut lines {
        line.expect("text");
        n += 1;
        if n % (rows / 10) == 0 {
            most = peak().max(most);
        }
    }
    assert_eq!(n, rows, "every transaction once");
    assert!(most > 0 && most < 60_000, "it takes {most} kB");
    assert!(child.wait().expect("it ends").success());
    let to_last = began.elapsed();
    // What is rare is found, and what is recent does not cost a look at everything.
    let began = Instant::now();
    assert_eq!(run(&relay, &["list", "--state", "pending"], &[]).1.lines().count(), 1);
    let since = run(&relay, &["list", "--since", "12h"], &[]).1.lines().count() as i64;
    assert!((10_000..rows / 2).contains(&since), "{since}");
    let (code, said, _) = run(&relay, &["explain", "--at", &format!("payments/0/{}", rows / 4)], &[]);
    assert!(
        code == Some(0) && said.contains("was delivered"),
        "an offset is found without an index over offsets: {code:?} {said}"
    );
    eprintln!(
        "list of {rows}: first line after {to_first:?}, last after {to_last:?}, peak {most} kB; what is rare and recent in {:?}",
        began.elapsed()
    );
}
