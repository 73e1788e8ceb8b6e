//! CPU time and memory out of /proc, so that they are exact to 10 ms whatever else the machine does.

use std::collections::HashMap;

use anyhow::Context;
use postgres::Client;

use super::Target;

/// What has been used so far.
pub struct Snapshot {
    pub daemon_us: u64,
    pub postgres_us: u64,
    pub commits: i64,
    pub wal_bytes: i64,
}

impl Snapshot {
    pub fn take(target: &Target, client: &mut Client) -> anyhow::Result<Self> {
        let row = client.query_one(
            "select xact_commit, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint from pg_stat_database
             where datname = current_database()",
            &[],
        )?;
        let all = Process::all()?;
        let daemon_us = target
            .daemon
            .iter()
            .map(|pid| tree_us(&all, *pid).with_context(|| format!("process {pid} is gone")))
            .sum::<Result<_, _>>()?;
        let postgres_us = tree_us(&all, target.postgres).context("PostgreSQL is gone")?;
        Ok(Self { daemon_us, postgres_us, commits: row.get(0), wal_bytes: row.get(1) })
    }
}

struct Process {
    parent: u32,
    own_us: u64,
    /// Of children that have ended.
    reaped_us: u64,
}

impl Process {
    fn all() -> anyhow::Result<HashMap<u32, Self>> {
        let pids = std::fs::read_dir("/proc")?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        Ok(pids.filter_map(|pid| Some((pid, Self::read(pid)?))).collect())
    }

    fn read(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<u64> = stat.rsplit_once(") ")?.1.split(' ').skip(1).map(|f| f.parse().unwrap_or(0)).collect();
        // USER_HZ is 100 on every Linux. Fields 14 to 17 of proc(5); the first here is field 4.
        let us = |from: usize| Some((fields.get(from)? + fields.get(from + 1)?) * 10_000);
        Some(Self { parent: *fields.first()? as u32, own_us: us(10)?, reaped_us: us(12)? })
    }
}

/// CPU time of a process, of those that it has started, and of what these have reaped. A child that ended has left its time with
/// its parent.
fn tree_us(all: &HashMap<u32, Process>, pid: u32) -> Option<u64> {
    let process = all.get(&pid)?;
    let children = all.iter().filter(|(_, child)| child.parent == pid).filter_map(|(child, _)| tree_us(all, *child));
    Some(process.own_us + process.reaped_us + children.sum::<u64>())
}

/// Of all together.
pub fn rss_peak_mb(pids: &[u32]) -> f64 {
    let peak = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok()
    };
    pids.iter().filter_map(peak).sum::<f64>() / 1024.0
}
