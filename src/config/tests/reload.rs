//! What a reload takes, refuses, and says.

use std::path::PathBuf;

use super::{BASE, Folder};
use crate::config::keys::{Change, KEYS};
use crate::config::{Current, Refused, load};

/// Loads `text` with `sets`, then reloads what `then` makes of it. The result, and the configuration's words before and after.
fn reloaded(text: &str, sets: &[&str], then: impl FnOnce(PathBuf)) -> (Result<Vec<&'static str>, Refused>, String, String) {
    let folder = Folder::new();
    let file = folder.write("payments.toml", text);
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let current = Current::new(load(&file, &sets).expect("loads"));
    let before = format!("{:?}", current.get());
    then(file);
    let result = current.reload();
    (result, before, format!("{:?}", current.get()))
}

fn to(text: String) -> impl FnOnce(PathBuf) {
    move |file| std::fs::write(file, text).expect("written")
}

#[test]
fn keys_that_can_be_reloaded_are_taken_and_named() {
    let more = "[retry]\ncap = \"2m\"\n[log]\nlevel = \"debug\"\n[kafka.librdkafka]\n";
    let (result, ..) = reloaded(BASE, &[], to(format!("{BASE}{more}")));
    assert_eq!(result.expect("taken"), ["retry.cap", "log.level"]);
}

#[test]
fn the_same_meaning_in_other_words_is_no_change() {
    let same = "timeout = \"15000ms\"\n[shutdown]\ntimeout = \"30s\"\n[retry]\ncap = \"900s\"\n";
    let (result, ..) = reloaded(BASE, &[], to(format!("{BASE}{same}")));
    assert_eq!(result.expect("taken"), Vec::<&str>::new());
}

#[test]
fn what_the_command_line_says_stays() {
    let (result, _, after) = reloaded(BASE, &["retry.cap=5m"], to(format!("{BASE}[retry]\ncap = \"2m\"\n")));
    assert_eq!(result.expect("taken"), Vec::<&str>::new());
    assert!(after.contains("cap: 300s"), "{after}");
}

#[test]
fn a_key_that_needs_a_restart_holds_back_everything_and_all_are_named() {
    // A longer timeout makes the lease, which follows from it, longer too.
    let more = "timeout = \"20s\"\n[log]\nlevel = \"debug\"\n[metrics]\nlisten = \"127.0.0.1:1\"\n";
    let (result, before, after) = reloaded(BASE, &[], to(format!("{BASE}{more}")));
    let Err(Refused::Restart { restart, reload }) = result else { panic!("{result:?}") };
    assert_eq!(restart, ["postgres.lease", "downstream.timeout", "metrics.listen"]);
    assert_eq!(reload, ["log.level"]);
    assert_eq!(before, after);
}

#[test]
fn a_file_that_is_broken_or_gone_changes_nothing() {
    let (result, before, after) = reloaded(BASE, &[], to(format!("{BASE}[retry]\ncap = \"2 minutes\"\nbse = \"1s\"\n")));
    let Err(Refused::Problems(problems)) = result else { panic!("{result:?}") };
    assert_eq!(problems.count(), 2, "{problems}");
    assert_eq!(before, after);
    let (result, before, after) = reloaded(BASE, &[], |file| std::fs::remove_file(file).expect("removed"));
    assert!(matches!(result, Err(Refused::Problems(_))));
    assert_eq!(before, after);
}

proptest::proptest! {
    /// Whatever the new file says, a refusal leaves the old configuration untouched, and what is taken changes only keys
    /// that a reload may change.
    #[test]
    fn a_reload_is_whole_or_not_at_all(
        cap in proptest::option::of(1_u64..2000), timeout in proptest::option::of(10_u64..30), level in "info|debug|nonsense",
        stop in proptest::option::of(1_u64..60), topic in "payments|refunds|pay ments",
    ) {
        let line = |key: &str, seconds: Option<u64>| seconds.map_or(String::new(), |s| format!("{key} = \"{s}s\"\n"));
        let text = format!(
            "{}{}[retry]\n{}[log]\nlevel = \"{level}\"\n[shutdown]\n{}",
            BASE.replace("payments", &topic), line("timeout", timeout), line("cap", cap), line("timeout", stop)
        );
        let is_topic_changed = topic != "payments";
        let (result, before, after) = reloaded(BASE, &[], to(text));
        match result {
            Ok(changed) => {
                proptest::prop_assert!(!is_topic_changed && timeout.is_none_or(|s| s == 15) && level != "nonsense");
                let may = |path: &&str| KEYS.iter().any(|key| key.path == *path && key.change == Change::Reload);
                proptest::prop_assert!(changed.iter().all(may));
                proptest::prop_assert_eq!(changed.contains(&"retry.cap"), cap.is_some_and(|s| s != 900));
            }
            Err(_) => proptest::prop_assert_eq!(before, after),
        }
    }
}
