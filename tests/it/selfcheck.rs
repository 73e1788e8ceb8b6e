//! F33: a schema that somebody altered by hand is not written to.

use crate::rig::{Ledger, Relay, Topic, eventually, ids};
use crate::store::Store;

#[test]
fn what_is_missing_from_the_schema_or_altered_is_named() {
    let mut store = Store::new();
    assert_eq!(store.session.schema_faults().expect("looked"), [""; 0], "as it was made");
    for (alter, sentence) in [
        ("alter table tx drop constraint tx_transaction_id_uk", "table tx has no valid unique index on (transaction_id)"),
        // Not for all rows; and not on the id as it is.
        (
            "alter table tx drop constraint tx_transaction_id_uk; create unique index on tx (transaction_id) where partition = 0; \
             create unique index on tx (lower(transaction_id)); create unique index on tx (transaction_id, id)",
            "table tx has no valid unique index on (transaction_id)",
        ),
        (
            "alter table tx drop constraint tx_transaction_id_uk; alter table tx add unique (transaction_id) deferrable",
            "table tx has no valid unique index on (transaction_id)",
        ),
        (
            "update pg_index set indisvalid = false where indexrelid = 'tx_transaction_id_uk'::regclass",
            "table tx has no valid unique index on (transaction_id)",
        ),
        (
            "alter table rejected drop constraint rejected_place_uk",
            "table rejected has no valid unique index on (topic, partition, incarnation, kafka_offset)",
        ),
        (
            "alter table rejected rename constraint rejected_place_uk to other",
            "table rejected has no constraint rejected_place_uk",
        ),
        ("alter table duplicate drop constraint duplicate_pkey", "table duplicate has no valid unique index on"),
        ("alter table delivery drop constraint delivery_pkey", "table delivery has no valid unique index on (id)"),
        ("alter table dead drop constraint dead_pkey", "table dead has no valid unique index on (id)"),
        ("alter table resolved drop constraint resolved_pkey", "table resolved has no valid unique index on (id)"),
        ("alter table consumer_position drop constraint consumer_position_pkey", "no valid unique index on (topic, partition)"),
        ("alter table counter drop constraint counter_pkey", "table counter has no valid unique index on (slot, name)"),
        (
            "alter table rejected alter payload type text using 'x'",
            "table rejected has no column payload of type bytea: it is text",
        ),
        ("alter table duplicate drop column tx_id", "table duplicate has no column tx_id"),
        ("alter table delivery rename due_at to due", "table delivery has no column due_at"),
        ("alter table known_gap alter from_offset type int", "from_offset of type bigint: it is integer"),
        (
            "drop view attempt_history, transaction_status; alter table tx alter transaction_id type varchar(20) collate \"C\"",
            "transaction_id of type text in byte order: it is character varying(20) in byte order",
        ),
        // Two ids that differ by case would be one.
        (
            "create collation no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
             drop view attempt_history, transaction_status; alter table tx alter transaction_id type text collate no_case",
            "transaction_id of type text in byte order: it is text in order of no_case",
        ),
        ("alter table tx set unlogged", "table tx is unlogged: a crash would empty it"),
        ("alter sequence batch_seq increment by 1", "sequence batch_seq does not count in steps of 1024"),
        ("drop table skipped", "table skipped has no column"),
    ] {
        store.session.client().batch_execute(&format!("begin; {alter}")).unwrap_or_else(|error| panic!("{alter}: {error}"));
        let faults = store.session.schema_faults().expect("looked");
        assert!(faults.iter().any(|fault| fault.contains(sentence)), "{alter}: {faults:?}");
        store.session.client().batch_execute("rollback").expect("undone");
    }
    assert_eq!(store.session.schema_faults().expect("looked"), [""; 0]);
}

/// F33: the unique index that every promise about duplicates rests on, and a payload that is no longer bytes.
#[test]
fn a_schema_altered_by_hand_is_waited_for_and_named() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 4");
    relay.start();
    topic.transactions(ids("a", 0..20));
    eventually("delivered and settled", || ledger.count("accepted") == 20 && relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    for (name, alter, mend, words) in [
        (
            "index",
            "alter table tx drop constraint tx_transaction_id_uk",
            "alter table tx add constraint tx_transaction_id_uk unique (transaction_id)",
            "table tx has no valid unique index on (transaction_id)",
        ),
        (
            "payload",
            "drop view transaction_status; alter table tx alter payload type text using convert_from(payload, 'UTF8')",
            "alter table tx alter payload type bytea using convert_to(payload, 'UTF8')",
            "table tx has no column payload of type bytea: it is text",
        ),
    ] {
        relay.sql().batch_execute(alter).expect("altered");
        let (stored, accepted) = (relay.count("select count(*) from tx"), ledger.count("accepted"));
        relay.start();
        topic.transactions(ids(name, 0..20));
        eventually("it waits", || relay.metric("stalled{reason=\"schema\"}") == Some(1.0));
        eventually("and says why", || relay.http("/readyz").is_some_and(|ready| ready.contains(words)));
        assert!(relay.log().contains(words), "{}", relay.log());
        let status = relay.command(&["status"]).output().expect("runs");
        let said = format!("{}{}", String::from_utf8_lossy(&status.stdout), String::from_utf8_lossy(&status.stderr));
        assert!(!status.status.success() && said.contains(words), "{said}");
        assert_eq!(relay.count("select count(*) from tx"), stored, "nothing is written");
        relay.sql().batch_execute(mend).expect("mended");
        // The same process, by itself.
        topic.transactions(ids(name, 20..40));
        eventually("it goes on", || ledger.count("accepted") == accepted + 40);
        assert_eq!(relay.metric("stalled{reason=\"schema\"}"), Some(0.0));
        assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    }
}
