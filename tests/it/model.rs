//! The protocol of claim, lease, fence and position, every interleaving of it, checked by stateright; and what a wrong
//! implementation would do, each found: a check that passes those proves nothing.

mod protocol;

use protocol::{Budget, Mutant, Protocol};
use stateright::{Checker, HasDiscoveries, Model};

const fn protocol(length: u8, budget: Budget, mutants: &'static [Mutant]) -> Protocol {
    Protocol { length, attempts_max: 2, budget, mutants }
}

const NO_FAULTS: Budget = Budget {
    crashes: 0,
    lost_answers: 0,
    early_expiries: 0,
    refusals: 0,
    given_back: 0,
    rebalances: 0,
    recreations: 0,
    failovers: 0,
};

/// Every state is looked at, and no promise is broken in any.
#[track_caller]
fn holds(what: &str, protocol: Protocol) {
    let began = std::time::Instant::now();
    let checker = protocol.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{what}: {} states, {:.1?}", checker.unique_state_count(), began.elapsed());
    let broken: Vec<&str> = checker.discoveries().keys().copied().filter(|name| !is_reachable(name)).collect();
    for name in &broken {
        eprintln!("{name}: {:?}", checker.discovery(name).expect("a path").into_actions());
    }
    assert!(broken.is_empty(), "{what}: {broken:?}");
    assert!(checker.discovery("everything is delivered").is_some(), "{what}: nothing is ever done");
}

/// Not a promise but a state that must be reachable, or the model shows nothing.
fn is_reachable(name: &str) -> bool {
    ["everything is delivered", "something is delivered twice"].contains(&name)
}

/// With this mutant, some sequence of steps breaks this promise.
#[track_caller]
fn breaks(promise: &'static str, length: u8, budget: Budget, mutants: &'static [Mutant]) {
    let checker = protocol(length, budget, mutants)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyOf([promise].into()))
        .spawn_bfs()
        .join();
    let found = checker.discovery(promise);
    println!(
        "{mutants:?}: {:?} steps, {} states",
        found.as_ref().map(|path| path.clone().into_actions().len()),
        checker.unique_state_count()
    );
    assert!(found.is_some(), "{mutants:?} does not break \"{promise}\"");
}

#[test]
fn crashes_lost_answers_and_late_workers_lose_nothing_and_change_nothing() {
    let budget = Budget { crashes: 1, lost_answers: 1, early_expiries: 1, refusals: 1, given_back: 1, ..NO_FAULTS };
    holds("workers", protocol(1, budget, &[]));
}

#[test]
fn partitions_that_move_between_two_processes_lose_nothing() {
    holds("positions", protocol(2, Budget { rebalances: 2, lost_answers: 1, ..NO_FAULTS }, &[]));
}

#[test]
fn a_topic_made_again_while_a_process_sleeps_loses_nothing() {
    holds("lives", protocol(1, Budget { rebalances: 1, recreations: 1, lost_answers: 1, ..NO_FAULTS }, &[]));
}

#[test]
fn a_failover_to_a_stale_replica_loses_nothing_and_lets_no_stale_worker_in() {
    holds("failover", protocol(1, Budget { failovers: 1, early_expiries: 1, lost_answers: 1, ..NO_FAULTS }, &[]));
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn the_protocol_holds_with_more_records_and_more_faults() {
    holds("two records", protocol(2, Budget { crashes: 1, early_expiries: 1, ..NO_FAULTS }, &[]));
    let more = Budget { crashes: 1, lost_answers: 2, early_expiries: 1, refusals: 1, given_back: 1, rebalances: 1, ..NO_FAULTS };
    holds("more faults", protocol(1, more, &[]));
    holds("two lives", protocol(2, Budget { rebalances: 1, recreations: 1, lost_answers: 1, ..NO_FAULTS }, &[]));
    holds("failover", protocol(1, Budget { failovers: 1, rebalances: 1, lost_answers: 1, early_expiries: 1, ..NO_FAULTS }, &[]));
}

#[test]
fn without_the_fence_a_late_worker_changes_what_another_holds() {
    breaks("a stale worker changes nothing", 1, Budget { early_expiries: 1, ..NO_FAULTS }, &[Mutant::NoFence]);
}

#[test]
fn with_a_counter_for_a_lease_a_failover_lets_a_stale_worker_in() {
    let budget = Budget { failovers: 1, ..NO_FAULTS };
    breaks("a stale worker changes nothing", 1, budget, &[Mutant::LeaseIsACounter]);
}

#[test]
fn without_expiry_a_crash_strands_what_it_held() {
    breaks("nothing is stuck", 1, Budget { crashes: 1, ..NO_FAULTS }, &[Mutant::NoExpiry]);
}

#[test]
fn without_the_epoch_an_old_owner_passes_over_a_record_of_a_new_log() {
    let budget = Budget { rebalances: 1, recreations: 1, ..NO_FAULTS };
    breaks("every offset below the position is stored", 1, budget, &[Mutant::EpochUnchecked]);
}

/// Either of the two would be enough to lose nothing; DESIGN has both.
#[test]
fn silence_taken_for_success_loses_a_record_unless_the_expected_offset_is_checked() {
    let budget = Budget { lost_answers: 1, ..NO_FAULTS };
    let promise = "every offset below the position is stored";
    breaks(promise, 2, budget, &[Mutant::SilenceIsSuccess, Mutant::ExpectedUnchecked]);
    holds("looked at", protocol(2, budget, &[Mutant::ExpectedUnchecked]));
    let checker = protocol(2, budget, &[Mutant::SilenceIsSuccess]).checker().spawn_bfs().join();
    assert!(checker.discovery(promise).is_none());
}

#[test]
fn a_repeat_without_a_look_stores_a_record_twice_unless_position_or_id_refuses_it() {
    let budget = Budget { lost_answers: 1, ..NO_FAULTS };
    let promise = "each offset is stored once";
    breaks(promise, 1, budget, &[Mutant::SilenceIsFailure, Mutant::ExpectedUnchecked, Mutant::IdNotUnique]);
    for mutants in [&[Mutant::SilenceIsFailure, Mutant::IdNotUnique], &[Mutant::SilenceIsFailure, Mutant::ExpectedUnchecked]] {
        let checker = protocol(1, budget, mutants).checker().spawn_bfs().join();
        assert!(checker.discovery(promise).is_none(), "{mutants:?}");
    }
}

#[test]
fn an_offset_marked_before_commit_leads_the_position_and_loses_a_record_where_kafka_is_believed() {
    let budget = Budget { crashes: 1, ..NO_FAULTS };
    breaks("Kafka's offset never leads the position", 1, budget, &[Mutant::MarkBeforeCommit]);
    breaks(
        "every offset below the position is stored",
        2,
        budget,
        &[Mutant::MarkBeforeCommit, Mutant::KafkaKnowsBest, Mutant::ExpectedUnchecked],
    );
}

#[test]
fn what_is_handed_over_before_commit_may_be_sent_and_never_stored() {
    breaks("what was sent was stored before", 1, NO_FAULTS, &[Mutant::SendBeforeCommit]);
}

#[test]
fn a_failover_goes_unnoticed_if_positions_are_not_read_back() {
    breaks("nothing is stuck", 1, Budget { failovers: 1, ..NO_FAULTS }, &[Mutant::NoCheck]);
}
