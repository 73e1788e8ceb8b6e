use super::*;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn at(hours: u64) -> SystemTime {
    NOW + Duration::from_secs(hours * 3600)
}

/// Noon of the first day.
fn facts() -> Facts {
    Facts {
        now: at(12),
        asked: "p-1".to_owned(),
        transaction: None,
        place: None,
        mentions: Vec::new(),
        read_to: vec![Reached { partition: "payments/0".to_owned(), next_offset: 100, age: 3.0 }],
        pause: None,
        gate: None,
        processes: 1,
        last_heard: Some(at(11)),
        give_up_after: Duration::from_secs(72 * 3600),
        kept: Some(Duration::from_secs(90 * 86_400)),
    }
}

fn stored() -> Transaction {
    Transaction {
        id: "p-1".to_owned(),
        received_at: at(10),
        open: None,
        dead: None,
        resolved: None,
        erased: None,
        delivered: None,
        late: None,
        last: None,
        attempts: 0,
        unknown: 0,
        duplicates: 0,
        conflicts: (0, None),
    }
}

fn waits(due_at: SystemTime) -> Open {
    Open { due_at, leased: false, holder: None, attempt: 1, spent: Duration::ZERO }
}

fn failed(outcome: &'static str, http_status: Option<i16>) -> Option<Attempt> {
    Some(Attempt { n: 1, at: at(11), outcome, http_status, error: Some("busy".to_owned()) })
}

fn holder(seen_at: SystemTime, ended: bool) -> Option<Holder> {
    Some(Holder { id: 7, host: "vm-1".to_owned(), pid: 42, seen_at, ended })
}

fn person() -> Option<Act> {
    Some(Act { at: at(11), who: "ann".to_owned(), reason: "booked by hand".to_owned() })
}

fn rejected() -> Rejected {
    Rejected {
        id: 5,
        place: "payments/0/9".to_owned(),
        reason: "id_missing".to_owned(),
        detail: "nothing at /id".to_owned(),
        received_at: at(11),
        resolved: false,
    }
}

/// What is said of a transaction changed so.
#[track_caller]
fn of(change: impl FnOnce(&mut Facts, &mut Transaction)) -> (Reason, String) {
    let (mut facts, mut transaction) = (facts(), stored());
    change(&mut facts, &mut transaction);
    facts.transaction = Some(transaction);
    explain(&facts)
}

/// Reason, the beginning of the sentence, and what it must name.
#[track_caller]
fn check((reason, said): (Reason, String), expected: Reason, parts: &[&str]) {
    assert_eq!(reason, expected, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.starts_with("p-1 ") && !said.contains('\n') && !said.ends_with('.'), "one sentence: {said}");
}

#[test]
fn what_waits_says_until_when_and_whose_fault_it_is() {
    let service = of(|_, t| (t.open, t.last) = (Some(waits(at(13))), failed("down", Some(503))));
    check(
        service,
        Reason::Waiting,
        &["waits until 1970-01-01T13:00:00Z (in 1 h 0 min) for attempt 2", "HTTP 503", "\"busy\"", "the service's fault"],
    );
    let own = of(|_, t| {
        let spent = Duration::from_secs(3600);
        (t.open, t.last) = (Some(Open { spent, ..waits(at(13)) }), failed("retry", Some(500)));
    });
    check(own, Reason::Waiting, &["its own failures have taken 1 h 0 min of 3 d 0 h"]);
    let lost = of(|_, t| (t.open, t.last) = (Some(waits(at(13))), failed("lost", None)));
    check(lost, Reason::Waiting, &["nobody knows whether it was sent"]);
    let late = of(|_, t| {
        (t.open, t.last, t.late) = (Some(waits(at(13))), failed("lost", None), Some((at(11), 1)));
    });
    check(late, Reason::Waiting, &["the service accepted attempt 1 at 1970-01-01T11:00:00Z, too late to count"]);
    let due = of(|_, t| t.open = Some(waits(at(11))));
    check(due, Reason::Due, &["is due since 1970-01-01T11:00:00Z (1 h 0 min ago)"]);
}

#[test]
fn what_holds_everything_up_comes_before_what_holds_one_up() {
    let open = |t: &mut Transaction| t.open = Some(waits(at(13)));
    let pause = |until| Some(Pause { since: at(11), until, by: Some("ann".to_owned()), reason: Some("deploy".to_owned()) });
    let gate =
        || Some(Gate { since: Some(at(11)), why: "20 failures in a row, HTTP 503".to_owned(), next_probe_at: Some(at(13)) });
    let paused = of(|f, t| {
        (f.pause, f.gate, f.processes) = (pause(Some(at(14))), gate(), 0);
        open(t);
    });
    check(
        paused,
        Reason::Paused,
        &["since 1970-01-01T11:00:00Z", "by ann (deploy)", "until 1970-01-01T14:00:00Z (in 2 h 0 min)"],
    );
    let for_ever = of(|f, t| {
        f.pause = pause(None);
        open(t);
    });
    check(for_ever, Reason::Paused, &["until somebody says `txrelay resume`"]);
    let shut = of(|f, t| {
        f.gate = gate();
        open(t);
    });
    check(
        shut,
        Reason::GateShut,
        &["shut since 1970-01-01T11:00:00Z", "20 failures in a row, HTTP 503", "next probe is sent in 1 h"],
    );
    let nobody = of(|f, t| {
        f.processes = 0;
        open(t);
    });
    check(nobody, Reason::NoProcess, &["no txrelay process runs", "last heard of 1970-01-01T11:00:00Z"]);
}

#[test]
fn what_is_in_hand_says_in_whose() {
    let leased = |holder| Open { leased: true, holder, ..waits(at(13)) };
    let alive = of(|_, t| t.open = Some(leased(holder(at(12), false))));
    check(alive, Reason::InFlight, &["process 7 on vm-1 (pid 42) for attempt 1, until 1970-01-01T13:00:00Z"]);
    for (seen, ended) in [(at(11), false), (at(12), true)] {
        let dead = of(|_, t| t.open = Some(leased(holder(seen, ended))));
        check(dead, Reason::LeaseLapsing, &["process 7 on vm-1", "last heard of", "its lease ends 1970-01-01T13:00:00Z"]);
    }
    check(of(|_, t| t.open = Some(leased(None))), Reason::LeaseLapsing, &["nothing is known"]);
    let lapsed = of(|_, t| t.open = Some(Open { due_at: at(11), ..leased(holder(at(11), true)) }));
    check(lapsed, Reason::Due, &["its lease ran out before its outcome was written"]);
}

#[test]
fn what_is_finished_says_how() {
    let delivered = of(|_, t| t.delivered = Some((at(11), 1)));
    check(
        delivered,
        Reason::Delivered,
        &["was delivered 1970-01-01T11:00:00Z (1 h 0 min ago), 1 h 0 min after", "first attempt"],
    );
    let later = of(|_, t| (t.delivered, t.duplicates) = (Some((at(11), 4)), 2));
    check(later, Reason::Delivered, &["on attempt 4", "it came 2 times more, byte for byte"]);
    let twice = of(|_, t| (t.delivered, t.late) = (Some((at(11), 2)), Some((at(12), 1))));
    check(twice, Reason::DeliveredTwice, &["attempt 1 had been accepted too", "too late to count"]);
    let resolved = of(|_, t| (t.resolved, t.unknown) = (person(), 1));
    check(
        resolved,
        Reason::Resolved,
        &["closed by ann 1970-01-01T11:00:00Z", "(booked by hand)", "may have reached the service"],
    );
    let erased = of(|_, t| (t.delivered, t.erased) = (Some((at(11), 1)), person()));
    check(erased, Reason::Erased, &["was delivered", "its content was erased by ann"]);
    let dead = |reason: &str| {
        let (reason, error) = (reason.to_owned(), Some("no such account".to_owned()));
        of(|_, t| t.dead = Some(Dead { at: at(11), reason, http_status: Some(400), attempts: 1, error }))
    };
    check(dead("refused"), Reason::Dead, &["the service refused it with HTTP 400, \"no such account\"", "`txrelay retry p-1`"]);
    check(dead("gave_up"), Reason::Dead, &["its own failures have lasted 3 d 0 h", "`txrelay resolve --reason TEXT p-1`"]);
    // An id that is no plain word comes as one, for whoever copies the command.
    let odd = of(|_, t| {
        t.id = "x; reboot".to_owned();
        t.dead = Some(Dead { at: at(11), reason: "refused".to_owned(), http_status: Some(400), attempts: 1, error: None });
    });
    check(odd, Reason::Dead, &["`txrelay retry 'x; reboot'`"]);
    check(of(|_, _| {}), Reason::Unaccounted, &["neither open nor finished", "`txrelay reconcile`"]);
}

#[test]
fn a_conflict_is_said_whatever_became_of_the_transaction() {
    let conflict = of(|_, t| (t.delivered, t.conflicts) = (Some((at(11), 1)), (1, Some(5))));
    check(conflict, Reason::Delivered, &["CONFLICT: its id was given to another record", "`txrelay rejected show 5`"]);
    let resolved = of(|_, t| (t.delivered, t.conflicts) = (Some((at(11), 1)), (1, None)));
    check(resolved, Reason::Delivered, &["which a person has resolved"]);
}

#[test]
fn what_is_not_stored_says_what_is_known() {
    let at_place = |place| explain(&Facts { place: Some(place), ..facts() });
    check(explain(&facts()), Reason::NotSeen, &["has not been read", "payments/0 to offset 100 (3 s ago)", "90 d 0 h", "--at"]);
    let forever = explain(&Facts { kept: None, read_to: Vec::new(), ..facts() });
    check(forever, Reason::NotSeen, &["nothing is ever deleted", "nothing has been read so far"]);
    let mentioned = explain(&Facts { mentions: vec![rejected()], ..facts() });
    check(
        mentioned,
        Reason::Rejected,
        &["stands in rejected record 5 (payments/0/9)", "id_missing, nothing at /id", "rejected retry 5"],
    );
    check(at_place(Place::Unknown), Reason::NotSeen, &["a partition that was never read"]);
    check(at_place(Place::NotYet(100)), Reason::NotReadYet, &["has been read up to offset 100"]);
    check(at_place(Place::BeforeStart(50)), Reason::BeforeStart, &["began to read this partition at offset 50"]);
    check(at_place(Place::Rejected(rejected())), Reason::Rejected, &["is rejected record 5"]);
    check(at_place(Place::Gap("retention".to_owned())), Reason::LostInKafka, &["lost in Kafka", "retention"]);
    check(at_place(Place::Skipped), Reason::NoRecord, &["marker"]);
    check(at_place(Place::Purged), Reason::Purged, &["deleted by retention"]);
    check(at_place(Place::Duplicate(None)), Reason::Purged, &["deleted by retention"]);
    check(
        at_place(Place::Duplicate(Some("p-0".to_owned()))),
        Reason::Duplicate,
        &["repeats p-0 byte for byte", "`txrelay explain p-0`"],
    );
    check(at_place(Place::Nowhere), Reason::Unaccounted, &["is nowhere", "`txrelay reconcile`"]);
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let labels: std::collections::HashSet<&str> = Reason::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), Reason::ALL.len());
}
