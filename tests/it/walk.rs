//! The walk of docs/operating.md, "Payments come back as 400": repeated here, so that every line of output that stands there is
//! one that the program prints.

use serde_json::json;

use crate::commands::run;
use crate::rig::{Ledger, Relay, Topic, eventually, ids};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md");
const BEGIN: &str = "<!-- begin: held by tests/it/walk.rs -->\n";
const END: &str = "<!-- end -->\n";

/// A command as a person calls it, and what it prints, as it stands in the page.
fn step(relay: &Relay, topic: &Topic, args: &[&str]) -> String {
    let (_, out, said) = run(relay, args, &[]);
    let host = relay.sql().query_one("select host from process limit 1", &[]).expect("a process").get::<_, String>(0);
    let text = format!("{said}{out}").replace(&relay.name, "payments").replace(&topic.name, "payments").replace(&host, "relay-1");
    format!(
        "$ txrelay -i payments {}\n{}",
        args.join(" "),
        text.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>()
    )
}

/// What is the same in every run: neither times nor numbers of processes. What is counted stays.
fn lasting(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_inclusive(char::is_whitespace) {
        let bare = word.trim();
        let is_time = bare.contains("T") && bare.contains(':') && bare.starts_with("20");
        if is_time { out.push_str(&word.replace(bare, "TIME")) } else { out.push_str(word) }
    }
    // Ages and process numbers: whatever stands in brackets, and how long ago something was.
    let mut kept = String::new();
    let mut depth = 0;
    for c in out.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 => kept.push(c),
            _ => {}
        }
    }
    let numbers = |line: &str| line.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let ages = ["oldest", "position", "process", "was delivered", "! "];
    kept.lines()
        .map(|line| {
            if ages.iter().any(|age| line.contains(age)) || line.contains("transactions, died") {
                numbers(line)
            } else {
                line.to_owned()
            }
        })
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

#[test]
fn payments_that_a_wrong_deploy_refused_are_found_explained_and_sent_again_as_the_page_says() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    topic.transactions(ids("p", 0..20));
    eventually("all is well", || relay.count("select count(*) from attempt where outcome = 1") == 20);

    // The deploy: everything is refused.
    ledger.behave(&json!({ "status": 400, "body": "unknown field: currency" }));
    topic.transactions(ids("p", 20..32));
    eventually("twelve are dead", || relay.count("select count(*) from dead") == 12);
    let at_rest = || {
        let (_, out, _) = run(&relay, &["status"], &[]);
        out.contains(", 0 in flight: relaying")
    };
    eventually("nothing is in flight", at_rest);
    let mut steps = Vec::new();
    let mut next = |args: &[&str]| {
        let text = step(&relay, &topic, args);
        steps.push(text.clone());
        text
    };
    assert!(next(&["status"]).contains("dead                   12"));
    assert_eq!(next(&["list", "--state", "dead", "--since", "1h", "--limit", "3"]).lines().count(), 4);
    assert!(next(&["explain", "p-31"]).contains("refused it with HTTP 400"));

    // The deploy is rolled back.
    ledger.behave_well();
    assert!(next(&["retry", "--state", "dead", "--status", "400", "--since", "1h", "--dry-run"]).contains("12 would be due now"));
    assert!(next(&["retry", "--state", "dead", "--status", "400", "--since", "1h", "--yes"]).contains("12 due now"));
    eventually("all are delivered", || relay.count("select count(*) from attempt where outcome = 1") == 32);
    eventually("nothing is in flight", at_rest);
    assert!(next(&["status"]).contains("dead                    0"));
    assert!(next(&["explain", "p-31"]).contains("on attempt 2"));
    ledger.has_exactly(&ids("p", 0..32));
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();

    let page = std::fs::read_to_string(PAGE).expect("docs/operating.md");
    let (before, rest) = page.split_once(BEGIN).expect("the beginning of the walk");
    let (written, after) = rest.split_once(END).expect("its end");
    // What stands between the steps is the page's own.
    let prose: Vec<&str> = written.split("```").step_by(2).collect();
    assert_eq!(prose.len(), steps.len() + 1, "a step is missing");
    if std::env::var_os("TXRELAY_WRITE_SNAPSHOT").is_some() {
        let mut walk = prose[0].to_owned();
        for (step, prose) in steps.iter().zip(&prose[1..]) {
            walk.push_str(&format!("```\n{step}```{prose}"));
        }
        std::fs::write(PAGE, format!("{before}{BEGIN}{walk}{END}{after}")).expect("written");
        return;
    }
    for (step, written) in steps.iter().zip(written.split("```").skip(1).step_by(2)) {
        let written = written.trim_start_matches(['\n']);
        assert_eq!(lasting(step), lasting(written), "docs/operating.md: run with TXRELAY_WRITE_SNAPSHOT=1 and commit");
    }
}
