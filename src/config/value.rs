//! Times and sizes with their units, as written in the file.

use std::time::Duration;

/// `"250ms"`, `"15s"`, `"2m"`, `"72h"`, `"30d"`: a whole number and its unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(unit_ms)?))
}

/// `"500 B"`, `"1 kB"`, `"64 KiB"`, `"1 MiB"` in bytes; `"0"` needs no unit.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit_bytes: u64 = match unit {
        "" if number == 0 => 1,
        "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit_bytes)
}

/// The shortest way to write a time: `"60s"`, `"72h"`, `"250ms"`.
pub fn show_duration(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        _ if !ms.is_multiple_of(1000) => format!("{ms}ms"),
        _ if ms >= 48 * 3_600_000 && ms.is_multiple_of(86_400_000) => format!("{}d", ms / 86_400_000),
        _ if ms >= 3_600_000 && ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms > 60_000 && ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ => format!("{}s", ms / 1000),
    }
}

/// The shortest way to write a size in binary units.
pub fn show_size(bytes: u64) -> String {
    match bytes {
        0 => "0".into(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_a_unit() {
        let all = [("250ms", 250), ("15s", 15_000), ("2m", 120_000), ("72h", 259_200_000), ("30d", 2_592_000_000), ("0s", 0)];
        for (text, ms) in all {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "15", "s", "1.5s", "-1s", "1h30m", "15 sec", "99999999999999999999s", "18446744073709551615d", "１s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_need_a_unit_except_zero() {
        for (text, bytes) in
            [("64 KiB", 65_536), ("1 MiB", 1 << 20), ("500 B", 500), ("1 kB", 1000), ("0", 0), ("2MB", 2_000_000)]
        {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "1", "1 KB", "1 kib", "KiB", "-1 B", "1.5 MiB", "99999999999 GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_means_what_was_meant() {
        for text in ["250ms", "15s", "60s", "2m", "90s", "1h", "72h", "3d", "1500ms"] {
            let time = parse_duration(text).expect("a time");
            assert_eq!(parse_duration(&show_duration(time)), Some(time), "{text}");
        }
        for bytes in [0, 1, 500, 1024, 1 << 20, 1_000_000] {
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }
    }
}
