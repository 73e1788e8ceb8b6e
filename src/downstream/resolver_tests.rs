//! Addresses come from memory, and what a look-up does never reaches a request.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const TEN_TIMES: Duration = Duration::from_secs(10);

fn addresses(lookup: impl Fn() -> io::Result<Vec<SocketAddr>> + Send + 'static) -> Addresses {
    Addresses::with_lookup(
        &Uri::from_static("https://ledger.internal/x"),
        Box::new(move |host, port| {
            assert_eq!((host, port), ("ledger.internal", 443));
            lookup()
        }),
    )
    .expect("the thread starts")
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 443))
}

#[test]
fn a_literal_address_needs_no_lookup() {
    for (url, expected) in
        [("http://127.0.0.1:8080/x", "127.0.0.1:8080"), ("http://127.0.0.1/", "127.0.0.1:80"), ("https://[::1]/", "[::1]:443")]
    {
        let a = Addresses::with_lookup(&url.parse().expect("a URL"), Box::new(|_, _| panic!("looked up"))).expect("made");
        assert_eq!(a.wait(Duration::ZERO).expect("known"), [expected.parse().expect("an address")]);
    }
}

#[test]
fn a_thousand_requests_make_one_lookup() {
    let n = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&n);
    let a = addresses(move || {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(vec![at(1), at(2)])
    });
    for _ in 0..1000 {
        assert_eq!(a.wait(TEN_TIMES).expect("resolves"), [at(1), at(2)]);
    }
    assert_eq!(n.load(Ordering::SeqCst), 1);
}

#[test]
fn a_lookup_that_hangs_holds_nobody_longer_than_its_timeout() {
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    let a = addresses(move || {
        let _ = never.recv();
        Ok(vec![at(1)])
    });
    let start = Instant::now();
    assert!(matches!(a.wait(Duration::from_millis(50)), Err(ureq::Error::Timeout(ureq::Timeout::Resolve))));
    assert!(start.elapsed() >= Duration::from_millis(50) && start.elapsed() < TEN_TIMES);
}

#[test]
fn a_name_that_does_not_resolve_says_so_without_a_flood_of_lookups() {
    let n = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&n);
    let a = addresses(move || {
        count.fetch_add(1, Ordering::SeqCst);
        Err(io::Error::other("no such host"))
    });
    for _ in 0..100 {
        assert!(matches!(a.wait(TEN_TIMES), Err(ureq::Error::HostNotFound)));
    }
    assert_eq!(a.last_error().as_deref(), Some("no such host"));
    assert!(n.load(Ordering::SeqCst) <= 2);
}

#[test]
fn old_addresses_stay_while_a_refresh_fails_and_a_gone_one_ends_its_connections() {
    let known = Known { is_loopback: false, state: Mutex::default(), changed: Condvar::new() };
    known.learn(Ok(vec![at(1), at(2)]));
    known.learn(Err(io::Error::other("timed out")));
    known.learn(Ok(vec![]));
    let now = || {
        let state = known.lock();
        (state.addresses.clone(), state.generation)
    };
    assert_eq!(now(), (vec![at(1), at(2)], 0));
    known.learn(Ok(vec![at(2), at(1), at(3)]));
    assert_eq!(now(), (vec![at(2), at(1), at(3)], 0), "nothing has gone");
    known.learn(Ok(vec![at(3), at(1)]));
    assert_eq!(now(), (vec![at(3), at(1)], 1));
    known.learn(Ok((0..40).map(at).collect()));
    assert_eq!(now().0.len(), ADDRESSES_MAX);
}

#[test]
fn nothing_is_sent_to_a_metadata_service_whatever_name_leads_there() {
    let metadata = SocketAddr::from(([169, 254, 169, 254], 443));
    let a = addresses(move || Ok(vec![metadata]));
    assert!(matches!(a.wait(TEN_TIMES), Err(ureq::Error::BadUri(_))));
    assert!(a.last_error().is_some_and(|why| why.contains("169.254.169.254: link-local")), "{:?}", a.last_error());
    let mapped = "[::ffff:169.254.169.254]:443".parse().expect("an address");
    let a = addresses(move || Ok(vec![metadata, at(1), mapped]));
    assert_eq!(a.wait(TEN_TIMES).expect("one is left"), [at(1)]);
    // And not to a literal one either, should one get here.
    let a = Addresses::of(&Uri::from_static("http://[fe80::1]/")).expect("made");
    assert!(matches!(a.wait(Duration::ZERO), Err(ureq::Error::BadUri(_))));
}

#[test]
fn a_name_that_is_rebound_to_a_forbidden_address_keeps_its_old_one() {
    let known = Known { is_loopback: false, state: Mutex::default(), changed: Condvar::new() };
    known.learn(Ok(vec![at(1)]));
    known.learn(Ok(vec![SocketAddr::from(([0, 0, 0, 0], 443))]));
    assert_eq!(known.lock().addresses, [at(1)]);
}

#[test]
fn a_url_that_names_this_machine_leads_nowhere_else() {
    let url = Uri::from_static("http://localhost:80/");
    let a = Addresses::with_lookup(&url, Box::new(|_, _| Ok(vec![at(1)]))).expect("made");
    assert!(matches!(a.wait(TEN_TIMES), Err(ureq::Error::BadUri(_))));
}

#[test]
fn a_failed_connect_asks_for_new_addresses() {
    let n = Arc::new(AtomicUsize::new(0));
    let a = addresses(move || Ok(vec![at(u8::try_from(n.fetch_add(1, Ordering::SeqCst)).expect("few"))]));
    assert_eq!(a.wait(TEN_TIMES).expect("resolves"), [at(0)]);
    a.refresh();
    let state = a.known.lock();
    let (state, wait) = a.known.changed.wait_timeout_while(state, TEN_TIMES, |s| s.addresses != [at(1)]).expect("not poisoned");
    assert!(!wait.timed_out());
    assert_eq!(state.generation, 1);
}

#[test]
fn the_thread_ends_with_its_last_user() {
    let (alive, ended) = crossbeam_channel::bounded::<()>(0);
    let a = addresses(move || {
        let _ = &alive;
        Ok(vec![at(1)])
    });
    let b = a.clone();
    a.wait(TEN_TIMES).expect("resolves");
    drop(a);
    assert_eq!(ended.recv_timeout(Duration::from_millis(50)), Err(RecvTimeoutError::Timeout));
    drop(b);
    assert_eq!(ended.recv_timeout(TEN_TIMES), Err(RecvTimeoutError::Disconnected));
}
