//! Every command's words on a schema that was prepared: its text, its JSON, its exit status, with no daemon, as a role that can
//! only select, and on a standby.

use std::collections::BTreeMap;
use std::process::Output;

use serde_json::Value;

use crate::postgresql::Login;
use crate::rig::{Pg, Relay, postgres_url};

pub fn run(relay: &Relay, args: &[&str], envs: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = relay.command(args).envs(envs.iter().copied()).output().expect("txrelay runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// With a schema as `commands.sql` says, and no daemon.
fn prepared(relay: &Relay) {
    assert_eq!(run(relay, &["migrate"], &[]).0, Some(0));
    let fixture = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/commands.sql")).expect("there");
    relay.sql().batch_execute(&fixture).expect("prepared");
}

/// Commands that only look, as a person would call them.
const LOOKS: &[&[&str]] = &[
    &["status"],
    &["status", "--json"],
    &["list"],
    &["list", "--state", "dead"],
    &["list", "--state", "dead", "--since", "2026-01-31T08:30:00Z"],
    &["list", "--state", "resolved", "--json"],
    &["list", "--state", "retrying"],
    &["list", "--state", "unaccounted"],
    &["list", "--unknown", "--json"],
    &["list", "--limit", "2"],
    &["list", "--since", "2026-02-01T00:00:00Z"],
    &["show", "delivered"],
    &["show", "delivered", "--json"],
    &["show", "late"],
    &["show", "erased"],
    &["show", "conflict"],
    &["show", "nobody"],
    &["show", "odd\u{1b}[31m id\n"],
    &["explain", "delivered"],
    &["explain", "delivered", "--json"],
    &["explain", "late"],
    &["explain", "resolved"],
    &["explain", "erased"],
    &["explain", "refused"],
    &["explain", "gave-up"],
    &["explain", "pending"],
    &["explain", "in-flight"],
    &["explain", "lapsing"],
    &["explain", "retrying"],
    &["explain", "spent"],
    &["explain", "lost"],
    &["explain", "due"],
    &["explain", "unaccounted"],
    &["explain", "conflict"],
    &["explain", "misnamed"],
    &["explain", "nobody"],
    &["explain", "odd\u{1b}[31m id\n"],
    &["explain", "--at", "payments/0/24"],
    &["explain", "--at", "payments/0/50"],
    &["explain", "--at", "payments/0/52"],
    &["explain", "--at", "payments/0/100"],
    &["explain", "--at", "payments/0/9"],
    &["explain", "--at", "payments/0/12"],
    &["explain", "--at", "payments/0/16"],
    &["explain", "--at", "payments/0/18"],
    &["explain", "--at", "payments/0/60"],
    &["explain", "--at", "payments/1/0"],
    &["tail", "--since", "2026-01-31T08:00:02Z", "--limit", "2"],
    &["tail", "--since", "2026-01-31T08:00:02Z", "--limit", "1", "--json"],
    &["stats", "--since", "2026-01-31T08:00:00Z", "--until", "2026-01-31T09:30:00Z"],
    &["stats", "--since", "2026-01-31T09:00:00Z", "--until", "2026-01-31T09:30:00Z", "--json"],
    &["rejected", "list"],
    &["rejected", "list", "--json", "--why", "unreadable"],
    &["rejected", "show", "1"],
    &["rejected", "show", "1", "--json"],
    &["rejected", "show", "2", "--json"],
    &["rejected", "show", "99"],
    &["rejected", "export", "--all"],
    &["rejected", "export", "--all", "--why", "id_missing"],
    &["rejected", "export", "2", "--raw"],
    &["rejected", "export", "99"],
];

/// Commands that would act, in an order that leaves something to do for the next.
const ACTS: &[&[&str]] = &[
    &["retry", "refused", "delivered", "in-flight", "resolved", "erased", "nobody", "--dry-run"],
    &["retry", "refused", "gave-up"],
    &["retry", "--state", "dead", "--dry-run"],
    &["retry", "--state", "dead", "--yes"],
    &["resolve", "pending", "--reason", "booked by hand"],
    &["resolve", "delivered", "--reason", "x"],
    &["erase", "delivered", "--reason", "request 18", "--dry-run"],
    &["erase", "delivered", "pending", "due", "conflict", "erased", "--reason", "request 18", "--yes"],
    &["show", "delivered"],
    &["retry", "delivered", "--even-delivered"],
    &["rejected", "retry", "--all", "--dry-run"],
    &["rejected", "retry", "1", "2", "3", "99", "--yes"],
    &["rejected", "resolve", "2", "--as-id", "misnamed", "--reason", "the field was renamed"],
    &["explain", "misnamed"],
    &["show", "misnamed"],
    &["explain", "--at", "payments/0/52"],
    &["rejected", "show", "2"],
    &["rejected", "resolve", "1", "3", "--reason", "a test", "--yes"],
    &["erase", "conflict", "--reason", "request 18"],
    &["rejected", "export", "1"],
    &["rejected", "resolve", "1", "--reason", "again"],
    &["pause", "--for", "2h", "--reason", "deploy"],
    &["explain", "due"],
    &["status"],
    &["resume"],
    &["resume"],
];

/// Ages, which change, and what is this run's own.
fn scrubbed(text: &str, relay: &Relay) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('(') {
        let (before, inside) = rest.split_at(open + 1);
        out.push_str(before);
        rest = inside;
        let Some(close) = inside.find(')') else { break };
        let age = &inside[..close];
        let is_age = (age.ends_with(" ago") || age.starts_with("in ")) && age.chars().any(|c| c.is_ascii_digit());
        if is_age {
            out.push_str("AGE");
            rest = &inside[close..];
        }
    }
    out.push_str(rest);
    let days = days_around_now();
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "uid 0".to_owned());
    out.replace(&relay.name, "NAME")
        .replace(&relay.schema, "SCHEMA")
        .replace(&format!("by {user}"), "by USER")
        .lines()
        .map(|line| replace_now(line, &days))
        .collect::<Vec<_>>()
        .join("\n")
        + if out.ends_with('\n') { "\n" } else { "" }
}

/// Yesterday, today and tomorrow in UTC, as times begin: what is two hours ahead may be tomorrow, and midnight may pass meanwhile.
fn days_around_now() -> Vec<String> {
    let mut sql = postgres::Client::connect(&postgres_url(), postgres::NoTls).expect("PostgreSQL answers");
    let days = "select to_char(now() at time zone 'UTC' + n * interval '1 day', 'YYYY-MM-DD\"T\"') from generate_series(-1, 1) n";
    sql.query(days, &[]).expect("answers").iter().map(|row| row.get(0)).collect()
}

/// Times of these days, and ages outside of brackets.
fn replace_now(line: &str, days: &[String]) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = days.iter().filter_map(|day| rest.find(day.as_str())).min() {
        out.push_str(&rest[..at]);
        let end = rest[at..].find('Z').map_or(rest.len(), |z| at + z + 1);
        out.push_str("NOW");
        rest = &rest[end..];
    }
    out.push_str(rest);
    let out = without_ages_in_json(&out);
    let out = match out.split_once(" moved ") {
        Some((before, _)) => format!("{before} moved AGE ago"),
        None => out,
    };
    match (out.trim_start().starts_with("oldest"), out.trim_start().ends_with(" due")) {
        (false, false) => out,
        _ => "  AGE".to_owned(),
    }
}

/// Numbers under names that end in `seconds` or `seconds_ago`.
fn without_ages_in_json(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = ["seconds\":", "seconds_ago\":"].iter().filter_map(|name| Some(rest.find(name)? + name.len())).min() {
        let (before, value) = rest.split_at(at);
        let end = value.find([',', '}']).unwrap_or(value.len());
        out.push_str(before);
        out.push_str(if &value[..end] == "null" { "null" } else { "\"AGE\"" });
        rest = &value[end..];
    }
    out + rest
}

fn book(relay: &Relay, commands: &[&[&str]]) -> String {
    let mut book = String::new();
    for args in commands {
        let (code, out, said) = run(relay, args, &[]);
        let shown: Vec<String> =
            args.iter().map(|arg| if arg.contains(' ') { format!("{arg:?}") } else { (*arg).to_owned() }).collect();
        let said: String = said.lines().map(|line| format!("! {line}\n")).collect();
        book.push_str(&format!("$ txrelay {}\n", shown.join(" ")));
        book.push_str(&scrubbed(&format!("{out}{said}"), relay));
        book.push_str(&format!("[exit {}]\n\n", code.expect("a status")));
    }
    book
}

#[test]
fn every_command_says_what_the_golden_file_says_while_no_daemon_runs() {
    let relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    prepared(&relay);
    let found = book(&relay, LOOKS) + &book(&relay, ACTS);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/commands.golden");
    if std::env::var_os("TXRELAY_WRITE_SNAPSHOT").is_some() {
        std::fs::write(file, &found).expect("written");
    }
    let expected = std::fs::read_to_string(file).unwrap_or_default();
    for (found, expected) in found.split("$ txrelay ").zip(expected.split("$ txrelay ")) {
        assert_eq!(found, expected, "if it should, run with TXRELAY_WRITE_SNAPSHOT=1 and commit");
    }
    assert_eq!(found.len(), expected.len());
    // Whoever acts is in the audit log.
    let acts = "select count(*) from audit_log where uid is not null and host <> '' and detail <> ''";
    assert_eq!(relay.count(acts), 9);
}

#[test]
fn explain_names_the_gate_that_is_shut_and_when_it_is_tried_next() {
    let relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    prepared(&relay);
    let shut = "update process set gate_open = false, gate_why = '20 failures in a row, HTTP 503', gate_since = '2026-01-31T08:00:00Z', \
         next_probe_at = now() + interval '5 minutes' where id = 7";
    relay.sql().batch_execute(shut).expect("shut");
    let (code, out, said) = run(&relay, &["explain", "due", "--json"], &[]);
    assert!(code == Some(0) && out.contains("\"reason\":\"gate_shut\""), "{out}{said}");
    for words in ["shut since 2026-01-31T08:00:00Z", "20 failures in a row, HTTP 503", "the next probe is sent in 4 min"] {
        assert!(out.contains(words), "{words}: {out}");
    }
    // Another process whose gate is open delivers it.
    let other = "insert into process (host, pid, version, lease_ms, started_at, seen_at) values ('vm-3', 1, '0.1.0', 60000, now(), now() + interval '10 minutes')";
    relay.sql().batch_execute(other).expect("another");
    assert!(run(&relay, &["explain", "due"], &[]).1.starts_with("due is due since"));
}

/// What docs/commands.md lists, with the exit status that it says, and nothing else.
#[test]
fn explain_gives_every_reason_that_is_documented() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md")).expect("docs/commands.md");
    let (_, table) = page.split_once("## `explain`: reasons").expect("the table");
    let row = |line: &str| -> Option<(String, i32)> {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        Some((cells.get(1)?.trim_matches('`').to_owned(), cells.get(3)?.parse().ok()?))
    };
    let documented: BTreeMap<String, i32> = table.lines().filter_map(row).collect();
    let relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    prepared(&relay);
    let mut found = BTreeMap::new();
    let mut ask = |args: &[&str]| {
        let (code, out, said) = run(&relay, &[&["explain", "--json"], args].concat(), &[]);
        let object: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out} {said}"));
        let reason = object["reason"].as_str().expect("a reason").to_owned();
        let before = found.insert(reason, code.expect("a status"));
        assert!(before.is_none_or(|before| Some(before) == code), "{args:?}: {before:?} and {code:?}");
    };
    for id in ["nobody", "misnamed", "delivered", "late", "resolved", "erased", "refused", "gave-up", "in-flight", "lapsing"] {
        ask(&[id]);
    }
    for id in ["retrying", "pending", "due", "unaccounted"] {
        ask(&[id]);
    }
    for offset in [9, 12, 16, 18, 24, 50, 52, 60, 100] {
        ask(&["--at", &format!("payments/0/{offset}")]);
    }
    relay
        .sql()
        .batch_execute("update process set gate_open = false, gate_why = 'x', gate_since = now() where id = 7")
        .expect("shut");
    ask(&["due"]);
    relay.sql().batch_execute("update process set ended_at = now(), seen_at = now() - interval '1 hour'").expect("stopped");
    ask(&["due"]);
    assert_eq!(run(&relay, &["pause"], &[]).0, Some(0));
    ask(&["due"]);
    assert_eq!(found, documented);
}

/// Every key of the JSON is in the list of docs/commands.md.
#[test]
fn the_names_of_the_json_are_documented() {
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md")).expect("docs/commands.md");
    let relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    prepared(&relay);
    for args in [
        &["status", "--json"][..],
        &["list", "--json"],
        &["show", "delivered", "--json"],
        &["show", "conflict", "--json"],
        &["explain", "refused", "--json"],
        &["tail", "--since", "2026-01-31T08:00:00Z", "--limit", "1", "--json"],
        &["stats", "--since", "2026-01-31T09:00:00Z", "--until", "2026-01-31T09:30:00Z", "--json"],
        &["rejected", "export", "--all"],
        &["rejected", "list", "--json"],
        &["rejected", "show", "1", "--json"],
        &["reconcile", "--json"],
    ] {
        let (_, out, said) = run(&relay, args, &[]);
        for line in out.lines() {
            let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{args:?}: {e}: {line} {said}"));
            for name in object.as_object().expect("an object").keys() {
                assert!(documented.contains(&format!("`{name}`")), "docs/commands.md does not name {name} of {args:?}");
            }
        }
        assert!(!out.is_empty(), "{args:?}: {said}");
    }
}

#[test]
fn what_only_looks_needs_no_more_than_the_right_to_select() {
    let mut relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    let reader = Login::new("it_reader", &format!("create role {}_reader nologin", relay.schema));
    let sql = || postgres::Client::connect(&postgres_url(), postgres::NoTls).expect("PostgreSQL answers");
    sql().batch_execute(&format!("grant {}_reader to {}", relay.schema, reader.name())).expect("granted");
    prepared(&relay);
    relay.env("PGUSER", reader.name());
    for args in LOOKS {
        let (code, _, said) = run(&relay, args, &[]);
        assert!(matches!(code, Some(0 | 1)) && !said.contains("permission"), "{args:?}: {code:?} {said}");
    }
    for args in [
        &["retry", "refused"][..],
        &["resolve", "pending", "--reason", "x"],
        &["erase", "delivered", "--reason", "x"],
        &["pause"],
        &["resume"],
        &["rejected", "resolve", "2", "--reason", "x"],
    ] {
        let (code, _, said) = run(&relay, args, &[]);
        assert!(code == Some(77) && said.contains("permission denied"), "{args:?}: {code:?} {said}");
    }
    sql().batch_execute(&format!("drop owned by {0}_reader cascade; drop role {0}_reader", relay.schema)).expect("dropped");
}

#[test]
fn who_may_erase_is_neither_the_daemon_nor_the_reader() {
    let mut relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    let eraser = Login::new("it_eraser", &format!("create role {}_eraser nologin", relay.schema));
    let sql = || postgres::Client::connect(&postgres_url(), postgres::NoTls).expect("PostgreSQL answers");
    sql().batch_execute(&format!("grant {}_eraser to {}", relay.schema, eraser.name())).expect("granted");
    prepared(&relay);
    relay.env("PGUSER", eraser.name());
    let (code, out, said) = run(&relay, &["erase", "delivered", "--reason", "request 18"], &[]);
    assert_eq!((code, out.as_str()), (Some(0), "delivered: erased\n"), "{said}");
    assert_eq!(relay.count("select count(*) from tx where transaction_id = 'delivered' and payload is null and key is null"), 1);
    assert_eq!(
        relay.count(
            "select count(*) from attempt a join tx t on t.id = a.tx_id where transaction_id = 'delivered' and error is not null"
        ),
        0
    );
    let proof = "select count(*) from erased e join tx t using (id) where transaction_id = 'delivered' \
         and payload_sha256 = sha256(convert_to('{\"transaction_id\":\"delivered\",\"amount\":\"12.34\"}', 'UTF8'))";
    assert_eq!(relay.count(proof), 1);
    assert_eq!(run(&relay, &["retry", "refused"], &[]).0, Some(77), "and nothing else");
    sql().batch_execute(&format!("drop owned by {0}_eraser cascade; drop role {0}_eraser", relay.schema)).expect("dropped");
}

#[test]
fn what_only_looks_works_on_a_standby_and_says_so() {
    let primary = Pg::start();
    let relay = Relay::on("payments", "http://127.0.0.1:1/", primary.dsn(), primary.dsn(), "");
    prepared(&relay);
    let standby = primary.standby();
    let mut on_standby = relay.twin();
    on_standby.edit(|config| config.replace(primary.dsn(), standby.dsn()));
    crate::rig::eventually("the standby has it all", || {
        let mut sql = standby.sql();
        let rows = sql.query_one(&format!("select count(*) from {}.rejected", relay.schema), &[]);
        rows.is_ok_and(|row| row.get::<_, i64>(0) == 3)
    });
    for args in LOOKS {
        let (code, _, said) = run(&on_standby, args, &[]);
        assert!(matches!(code, Some(0 | 1)) && said.contains("this is a standby"), "{args:?}: {code:?} {said}");
    }
    let (code, _, said) = run(&on_standby, &["retry", "refused"], &[]);
    assert_eq!(code, Some(69), "{said}");
    // With both named, the primary answers.
    let port = |pg: &Pg| pg.host().rsplit(':').next().expect("a port").to_owned();
    let both = format!("127.0.0.1:{},127.0.0.1:{}", port(&standby), port(&primary));
    on_standby.edit(|config| config.replace(standby.host(), &both));
    let (code, _, said) = run(&on_standby, &["explain", "delivered"], &[]);
    assert!(code == Some(0) && !said.contains("standby"), "{code:?} {said}");
    // And where the primary is away, the standby does.
    primary.stop("fast");
    let (code, _, said) = run(&on_standby, &["explain", "delivered"], &[]);
    assert!(code == Some(0) && said.contains("this is a standby"), "{code:?} {said}");
}

#[test]
fn bad_input_gets_a_clear_sentence_and_the_right_exit_status() {
    let relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    prepared(&relay);
    let long = "x".repeat(600);
    for (args, expected, words) in [
        (&["explain", "nobody"][..], 1, ""),
        (&["explain", ""], 2, "a value is required"),
        (&["show", ""], 2, "a value is required"),
        (&["retry", "refused", ""], 2, "a value is required"),
        (&["show", "nobody"], 1, "nobody: not known"),
        (&["show", "a\u{1b}[31mb\r\n"], 1, r"a\u{1b}[31mb\r\n: not known"),
        (&["retry", "a\u{1b}[31mb"], 1, r"a\u{1b}[31mb: not known"),
        (&["show", &long], 1, "not known"),
        (&["list", "--state", "lost"], 2, "possible values"),
        (&["list", "--since", "yesterday"], 2, "RFC 3339"),
        (&["list", "--limit", "0"], 2, "--limit"),
        (&["explain"], 2, "required"),
        (&["explain", "--at", "payments/0"], 2, "TOPIC/PARTITION/OFFSET"),
        (&["pause", "--for", "2"], 2, "30m, 2h"),
        (&["erase", "delivered"], 2, "--reason"),
        (&["erase", "delivered", "--reason", " "], 2, "it is empty"),
        (&["rejected", "resolve", "1", "2", "--as-id", "x", "--reason", "y"], 2, "for one record"),
        (&["rejected", "resolve", "1", "--as-id", "", "--reason", "y"], 2, "the id is empty"),
        (&["rejected", "resolve", "1", "--as-id", &long, "--reason", "y"], 2, "at most 512"),
        (&["rejected", "retry"], 2, "required"),
        (&["rejected", "export", "1", "2", "--raw"], 2, "for one record"),
    ] {
        let (code, _, said) = run(&relay, args, &[]);
        assert!(code == Some(expected) && said.contains(words), "{args:?}: {code:?} {said}");
        assert!(!said.contains('\u{1b}'), "{args:?}: {said:?}");
    }
    let (code, _, said) =
        run(&Relay::with("payments", "http://127.0.0.1:1/", "postgresql://a@127.0.0.1:1/b", ""), &["list"], &[]);
    assert!(code == Some(69) && said.contains("127.0.0.1:1"), "{code:?} {said}");
    let (code, _, said) = run(&Relay::new("payments", "http://127.0.0.1:1/", ""), &["list"], &[]);
    assert!(code == Some(1) && said.contains("txrelay migrate"), "without a schema: {code:?} {said}");
}

#[test]
fn who_may_not_read_the_file_is_told_which_group_may() {
    use std::os::unix::fs::PermissionsExt;
    let relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    let file = relay.config_file();
    drop(relay.command(&["list"]));
    let is_root = rustix::process::getuid().is_root();
    let said = |mode: u32| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let binary = env!("CARGO_BIN_EXE_txrelay");
        // Root may read everything, so it is somebody else who asks; the owner without a right is as good.
        let mut command = std::process::Command::new(if is_root { "setpriv" } else { binary });
        if is_root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", binary]);
        }
        let out = command.arg("-c").arg(&file).arg("list").output().expect("it runs");
        (out.status.code(), String::from_utf8(out.stderr).expect("text"))
    };
    // Root's own group is nobody's to join; another one only root can give it to.
    if is_root {
        let (code, said) = said(0o040);
        assert!(code == Some(77) && said.contains("only root may; use sudo, or give it to group txrelay"), "{code:?} {said}");
        std::os::unix::fs::chown(&file, None, Some(4711)).expect("given");
    }
    for (mode, words) in [(0o040, "members of group"), (0o000, "only its owner may; use sudo")] {
        let (code, said) = said(mode);
        assert!(code == Some(77) && said.contains(words) && said.trim().lines().count() == 1, "{code:?} {said}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_list_without_a_word() {
    let relay = Relay::new("payments", "http://127.0.0.1:1/", "");
    prepared(&relay);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let out = relay.command(&["list"]).stdout(writer).output().expect("it runs");
    assert_eq!((out.status.code(), out.stderr.as_slice()), (Some(0), &b""[..]));
    // A full disk is another matter: a script must not take half an answer for a whole one.
    for args in [&["list"][..], &["explain", "delivered"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
        let out = relay.command(args).stdout(full).output().expect("it runs");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && said.contains("the output cannot be written: No space left"), "{args:?}: {said}");
    }
}
