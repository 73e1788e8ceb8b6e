//! What the service manager is told (sd_notify). Without `NOTIFY_SOCKET` nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::config::visible;

/// Configuration is loaded, sockets are bound, threads run.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for `systemctl status`: what is missing, or how it goes.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(&visible(text))]);
}

/// A reload has begun; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(e) => log::debug!("no monotonic clock for the service manager: {e}"),
    }
}

/// How often, at least, the service manager wants to hear [`alive`]; `None`: it did not ask.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Every thread moves.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// An ordered stop has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Asks for at least this much more time, from now, before the unit's own time-out for start or stop applies.
pub fn extend_timeout(time: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
}

fn tell(state: &[NotifyState<'_>]) {
    // Nothing depends on it but what systemd shows, and systemd itself says when it heard nothing in time.
    if let Err(e) = sd_notify::notify(state) {
        log::debug!("failed to tell the service manager: {e}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;
    use crate::config::tests::Folder;

    /// Run by the other test in a process of its own, where NOTIFY_SOCKET is set from outside.
    #[test]
    #[ignore = "a part of the_service_manager_hears_everything"]
    fn says_everything() {
        ready();
        status("waiting for postgres\nREADY=1");
        extend_timeout(Duration::from_secs(20));
        extend_timeout(Duration::from_secs(1_000_000));
        stopping();
    }

    #[test]
    fn the_service_manager_hears_everything() {
        let folder = Folder::new();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        let test = std::env::current_exe().expect("this test's program");
        let args = ["ops::systemd::tests::says_everything", "--exact", "--ignored"];
        let done = Command::new(test).args(args).env("NOTIFY_SOCKET", &path).output().expect("runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        let hear = || {
            let mut buffer = [0; 256];
            let n = socket.recv(&mut buffer).expect("a message");
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        assert_eq!(hear(), "READY=1\n");
        assert_eq!(hear(), "STATUS=waiting for postgres\\nREADY=1\n");
        assert_eq!(hear(), "EXTEND_TIMEOUT_USEC=20000000\n");
        assert_eq!(hear(), "EXTEND_TIMEOUT_USEC=4294967295\n");
        assert_eq!(hear(), "STOPPING=1\n");
    }
}
