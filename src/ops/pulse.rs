//! What each thread does and since when, so that a thread that hangs is noticed: the watchdog is fed only while all move.
//!
//! A thread says what it begins, and the longest time that it may take. Waiting for others has no bound: to be without work,
//! without PostgreSQL or without room is healthy, and `health` says it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// For a wait that ends by itself within about a second. Long enough for a machine that stands still for a moment.
pub const PROMPT: Option<Duration> = Some(Duration::from_secs(20));
/// For work on PostgreSQL or Kafka: many times what all time-outs of one such step come to.
pub const REMOTE: Option<Duration> = Some(Duration::from_secs(300));

/// The pulses of all threads that run; a thread that has ended is no longer in it.
#[derive(Debug, Clone, Default)]
pub struct Pulses(Arc<Mutex<Vec<Weak<Pulse>>>>);

#[derive(Debug)]
struct Pulse {
    thread: String,
    doing: Mutex<Doing>,
}

#[derive(Debug, Clone, Copy)]
struct Doing {
    what: &'static str,
    since: Instant,
    bound: Option<Duration>,
}

thread_local! {
    static MINE: RefCell<Option<Arc<Pulse>>> = const { RefCell::new(None) };
}

/// This thread begins `what`, which may take as long as `bound` (`None`: it waits for others). Costs nothing to speak of;
/// in a thread that is not watched, nothing happens.
pub fn at(what: &'static str, bound: Option<Duration>) {
    MINE.with_borrow(|mine| {
        if let Some(pulse) = mine {
            *lock(&pulse.doing) = Doing { what, since: Instant::now(), bound };
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pulses {
    /// Watches the calling thread from now on, until it ends.
    pub fn watch(&self, thread: &str) {
        let doing = Doing { what: "starting", since: Instant::now(), bound: REMOTE };
        let pulse = Arc::new(Pulse { thread: thread.to_owned(), doing: Mutex::new(doing) });
        let mut all = lock(&self.0);
        all.retain(|pulse| pulse.strong_count() > 0);
        all.push(Arc::downgrade(&pulse));
        MINE.set(Some(pulse));
    }

    fn alive(&self) -> Vec<(String, Doing)> {
        let pulses: Vec<Arc<Pulse>> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        pulses.iter().map(|pulse| (pulse.thread.clone(), *lock(&pulse.doing))).collect()
    }

    /// Threads that take longer than they may, in words.
    pub fn stalled(&self, now: Instant) -> Vec<String> {
        let late = |(thread, doing): (String, Doing)| {
            let time = now.saturating_duration_since(doing.since);
            doing.bound.is_some_and(|bound| time > bound).then(|| format!("{thread}: {} for {} s", doing.what, time.as_secs()))
        };
        self.alive().into_iter().filter_map(late).collect()
    }

    /// What every thread does: `claimer: claiming for 0.2 s`; many of one kind (`worker-0`, `worker-1`) are summed up, as
    /// `32 workers: 30 waiting for a delivery (longest 8.0 s), 2 sending (longest 1.2 s)`.
    pub fn report(&self, now: Instant) -> Vec<String> {
        let mut single = Vec::new();
        let mut kinds: BTreeMap<String, BTreeMap<&'static str, (usize, Duration)>> = BTreeMap::new();
        for (thread, doing) in self.alive() {
            let time = now.saturating_duration_since(doing.since);
            match thread.rsplit_once('-') {
                None => single.push(format!("{thread}: {} for {:.1} s", doing.what, time.as_secs_f64())),
                Some((kind, _)) => {
                    let (n, longest) = kinds.entry(kind.to_owned()).or_default().entry(doing.what).or_default();
                    *n += 1;
                    *longest = time.max(*longest);
                }
            }
        }
        for (kind, doings) in kinds {
            let all: usize = doings.values().map(|(n, _)| n).sum();
            let parts: Vec<String> = doings
                .iter()
                .map(|(what, (n, longest))| format!("{n} {what} (longest {:.1} s)", longest.as_secs_f64()))
                .collect();
            single.push(format!("{all} {kind}s: {}", parts.join(", ")));
        }
        single
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says `what`, then lives until the sender is dropped.
    fn thread(pulses: &Pulses, name: &'static str, what: &'static str, bound: Option<Duration>) -> impl FnOnce() {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let (said, says) = crossbeam_channel::bounded(0);
        let pulses = pulses.clone();
        let handle = std::thread::spawn(move || {
            pulses.watch(name);
            at(what, bound);
            said.send(()).expect("the test waits");
            let _ = stopped.recv();
        });
        says.recv().expect("it says so");
        move || {
            drop(stop);
            handle.join().expect("no panic");
        }
    }

    #[test]
    fn only_who_takes_longer_than_it_may_is_stalled() {
        let pulses = Pulses::default();
        let idle = thread(&pulses, "settler", "waiting for outcomes", None);
        let busy = thread(&pulses, "claimer", "claiming", REMOTE);
        let now = Instant::now();
        assert!(pulses.stalled(now + Duration::from_secs(299)).is_empty());
        assert_eq!(pulses.stalled(now + Duration::from_secs(312)), ["claimer: claiming for 312 s"]);
        busy();
        assert!(pulses.stalled(now + Duration::from_secs(3600)).is_empty(), "who has ended is reported by its exit");
        idle();
    }

    #[test]
    fn workers_are_summed_up_by_what_they_do() {
        let pulses = Pulses::default();
        let ends =
            [("worker-0", "sending"), ("worker-1", "waiting for a delivery"), ("worker-2", "sending"), ("upkeep", "counting")]
                .map(|(name, what)| thread(&pulses, name, what, None));
        let report = pulses.report(Instant::now() + Duration::from_secs(10));
        assert_eq!(report.len(), 2, "{report:?}");
        assert!(report[0].starts_with("upkeep: counting for 10."), "{report:?}");
        assert!(report[1].starts_with("3 workers: 2 sending (longest 10."), "{report:?}");
        assert!(report[1].contains(", 1 waiting for a delivery (longest 10."), "{report:?}");
        ends.into_iter().for_each(|end| end());
        assert!(pulses.report(Instant::now()).is_empty());
    }

    #[test]
    fn a_thread_that_nobody_watches_may_say_what_it_does() {
        at("testing", PROMPT);
    }
}
