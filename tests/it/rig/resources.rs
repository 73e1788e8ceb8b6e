//! What a process uses, from /proc.

use std::time::Duration;

/// At one moment, but for the peak.
#[derive(Debug, Clone, Copy)]
pub struct Resources {
    pub rss_mb: f64,
    /// Since its start.
    pub rss_peak_mb: f64,
    pub threads: usize,
    pub descriptors: usize,
}

impl Resources {
    /// `None`: no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self {
            rss_mb: number("VmRSS")? / 1024.0,
            rss_peak_mb: number("VmHWM")? / 1024.0,
            threads: number("Threads")? as usize,
            descriptors,
        })
    }

    /// The larger of each.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            rss_mb: self.rss_mb.max(other.rss_mb),
            rss_peak_mb: self.rss_peak_mb.max(other.rss_peak_mb),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

/// CPU that a process has used since its start, its own and the kernel's for it.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // Behind the name, which may hold blanks: state is the third field, utime and stime, in hundredths, are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name").split(' ').collect();
    let ticks = |n: usize| fields[n].parse::<u64>().expect("a number");
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// No fault makes the process larger than 150 MB, or lets threads or descriptors grow. `before` was taken under the same
/// load, `after` is the most of what was seen since. Slack: upkeep renews its pool during an outage, and the three threads of
/// the old one end a moment after those of the new one have begun; sockets of requests and scrapes begin while others end.
#[track_caller]
pub fn within_bounds(before: Resources, after: Resources) {
    assert!(after.rss_peak_mb < 150.0, "memory: {before:?}, then {after:?}");
    assert!(after.threads <= before.threads + 4, "threads: {before:?}, then {after:?}");
    assert!(after.descriptors <= before.descriptors + 24, "descriptors: {before:?}, then {after:?}");
}
