//! Places where tests make a thread fail, hang, or the whole process die. Builds for use have none.

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
