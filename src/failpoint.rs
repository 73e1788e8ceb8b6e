//! Places where tests make a thread fail, hang, or the whole process die. Builds for use have none.

use std::time::Duration;

/// A step at which a test lets something happen, named by `FAILPOINTS` in the process's environment
/// (`name=panic`, `name=sleep(1000)`, `name=5*off->return(kill)`): `return(kill)` ends the process as kill -9 does, after
/// as many passes as are `off` before it. Nothing without the feature `failpoints`.
#[inline]
pub fn failpoint(name: &str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |action| {
        assert_eq!(action.as_deref(), Some("kill"), "fail point {name}: the only thing to return is kill");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// How long something waits: `usual`, or what a test says in milliseconds (`name=return(500)`).
#[inline]
pub fn time(name: &str, usual: Duration) -> Duration {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |ms| ms.and_then(|ms| ms.parse().ok()).map_or(usual, Duration::from_millis));
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
    usual
}
