//! Times as people give them on the command line.

use std::time::{Duration, SystemTime};

use crate::config::value::parse_duration;

/// `2h` (so long ago), `today` (since midnight UTC), or RFC 3339; for clap.
pub(super) fn parse(text: &str) -> Result<SystemTime, String> {
    at(text, SystemTime::now())
}

fn at(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    if text == "today" {
        let since_midnight = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() % 86_400);
        return Ok(now - Duration::from_secs(since_midnight));
    }
    if let Some(ago) = parse_duration(text) {
        return now.checked_sub(ago).ok_or_else(|| format!("{text} ago is before all time"));
    }
    let wrong = "a time is 2h (so long ago), today, or RFC 3339 as 2026-01-31T08:00:00Z";
    let parsed = text.parse::<jiff::Timestamp>().map_err(|_| wrong.to_owned())?;
    // PostgreSQL's times are whole microseconds, and none here is before 1970.
    let since = u64::try_from(parsed.as_microsecond()).map_err(|_| format!("{text} is before 1970"))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_micros(since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::times::absolute;

    #[test]
    fn times_are_ago_today_or_rfc_3339() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100 * 86_400 + 7_200);
        let seconds = |text| at(text, now).map(absolute);
        assert_eq!(seconds("2h").as_deref(), Ok("1970-04-11T00:00:00Z"));
        assert_eq!(seconds("today").as_deref(), Ok("1970-04-11T00:00:00Z"));
        assert_eq!(seconds("2026-01-31T09:00:00+01:00").as_deref(), Ok("2026-01-31T08:00:00Z"));
        for wrong in ["", "yesterday", "2026-01-31", "12:00", "-2h"] {
            assert!(at(wrong, now).is_err(), "{wrong}");
        }
    }
}
