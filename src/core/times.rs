//! Times as people read them.

use std::time::{Duration, SystemTime};

/// RFC 3339 in UTC, whole seconds.
pub fn absolute(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "-".to_owned(), |time| format!("{time:.0}"))
}

/// RFC 3339 in UTC with milliseconds: for programs.
pub fn precise(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "-".to_owned(), |time| format!("{time:.3}"))
}

/// `3 min 2 s ago`, or `in 3 min 2 s`.
pub fn relative(time: SystemTime, now: SystemTime) -> String {
    match now.duration_since(time) {
        Ok(ago) => format!("{} ago", rough(ago)),
        Err(ahead) => format!("in {}", rough(ahead.duration())),
    }
}

/// `2026-01-31T08:00:00Z (3 min 2 s ago)`
pub fn both(time: SystemTime, now: SystemTime) -> String {
    format!("{} ({})", absolute(time), relative(time, now))
}

/// Two units at most: `0 s`, `1 min 1 s`, `1 h 1 min`, `1 d 1 h`.
pub fn rough(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_and_relative_with_two_units_at_most() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(90_000);
        let shown = [0, 61, 3_660, 90_000].map(|s| rough(Duration::from_secs(s)));
        assert_eq!(shown, ["0 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!(both(now - Duration::from_secs(60), now), "1970-01-02T00:59:00Z (1 min 0 s ago)");
        assert_eq!(relative(now + Duration::from_secs(5), now), "in 5 s");
        assert_eq!(precise(now), "1970-01-02T01:00:00.000Z");
    }
}
