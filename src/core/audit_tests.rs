//! One engine for audit and reconcile: what it names, and what it leaves alone.

use super::*;

fn life(position: i64) -> Life {
    let id = LifeId { topic: Arc::from("t"), partition: 0, incarnation: 0 };
    Life { id, number: Some(1), first: 0, position, audited: 0, purged: Purge::default() }
}

/// Transactions at these offsets, delivered; their ids come from `id` on.
fn chunk(id: i64, offsets: &[i64]) -> Chunk {
    let rows: Vec<Row> =
        (id..).zip(offsets).map(|(id, offset)| Row { id, topic: 1, partition: 0, incarnation: 0, offset: *offset }).collect();
    let upto = id + offsets.len() as i64 - 1;
    Chunk { upto, delivered: rows.iter().map(|row| row.id).collect(), rows, ..Chunk::default() }
}

/// Settles what can be, with nothing in the other tables.
fn settle(audit: &mut Audit) -> Vec<Problem> {
    let windows = audit.windows(10);
    windows.iter().flat_map(|window| audit.settle(window, &Holdings::default())).collect()
}

#[track_caller]
fn assert_missing(audit: &Audit, expected: &[Offsets]) {
    let missing: Vec<Offsets> = audit.missing().iter().filter_map(|problem| Some(problem.place()?.1)).collect();
    assert_eq!(missing, expected);
}

#[test]
fn a_row_of_a_second_round_fills_the_hole_that_it_left() {
    let mut audit = Audit::from(0, 0);
    assert!(audit.learn(&[life(6)]));
    assert_eq!(audit.take(chunk(1, &[0, 1, 3, 4])), []);
    assert_eq!(settle(&mut audit), []);
    assert_missing(&audit, &[2..3]);
    assert_eq!(audit.settled(), [(life(6).id, 2)]);
    assert_eq!(audit.take(chunk(5, &[2])), []);
    audit.done();
    assert_eq!(settle(&mut audit), []);
    assert_missing(&audit, &[5..6]);
    // The last one comes with an id of the time before.
    assert_eq!(audit.take(chunk(6, &[5])), []);
    assert_missing(&audit, &[]);
    assert!(audit.is_finished() && audit.learn(&[life(6)]) && !audit.learn(&[life(4)]), "a position went back");
}

#[test]
fn rows_come_before_what_is_known_of_their_life_and_of_its_topic() {
    let mut audit = Audit::from(0, 0);
    assert_eq!(audit.take(chunk(1, &[0, 1, 2])), []);
    audit.learn(&[Life { number: None, ..life(0) }]);
    audit.learn(&[life(3)]);
    audit.done();
    assert_eq!(settle(&mut audit), []);
    assert_missing(&audit, &[]);
    assert!(audit.is_finished());
}

#[test]
fn what_retention_deleted_is_only_counted() {
    let mut audit = Audit::whole();
    let purged = Purge { below: 4, offsets: 3 };
    audit.learn(&[Life { purged, ..life(6) }]);
    audit.take(chunk(1, &[2]));
    audit.done();
    let windows = audit.windows(10);
    assert_eq!(audit.settle(&windows[0], &Holdings { places: vec![(Place::Skipped, 5..9)], purged }), []);
    assert_missing(&audit, &[4..5]);
    let deleted = |n| HashMap::from([(life(6).id, n)]);
    assert_eq!(audit.purged(&deleted(3)), []);
    assert_eq!(audit.purged(&deleted(4)).len(), 1, "less is missing than was deleted");
    audit.learn(&[Life { purged: Purge { below: 4, offsets: 1 }, ..life(6) }]);
    let problems = audit.purged(&deleted(1));
    assert_eq!((problems[0].kind(), problems[0].place()), ("purged", Some((&life(6).id, 0..4))));
    let said = "3 of these offsets have no row, and retention has deleted 1 of them: 2 are missing, among 0-1, 3";
    assert_eq!(problems[0].words(), said);
    // Of these nobody but a person deletes the one and leaves the other.
    audit.take(Chunk { delivered: vec![7, 7, 9], ..chunk(8, &[]) });
    let said = format!("{said}; deleted by hand, for their attempts are still there: tx.id 7, 9");
    assert_eq!(audit.purged(&deleted(1))[0].words(), said);
}
