//! A PostgreSQL cluster of the test's own, to be stopped, frozen, killed, replicated and filled: `tests/bed/pg.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;

use postgres::{Client, NoTls};

use super::{env, unique};

/// Small, because several run at once; durable, because that is what is tested.
const SMALL: [&str; 8] =
    ["--set", "shared_buffers=16MB", "--set", "max_connections=60", "--set", "fsync=on", "--set", "autovacuum_naptime=10s"];

/// It ends, and its data go, with this value.
pub struct Pg {
    directory: PathBuf,
    dsn: String,
}

impl Pg {
    #[track_caller]
    pub fn start() -> Self {
        Self::new("up", &[])
    }

    /// With more of the options of `pg.sh up`.
    #[track_caller]
    pub fn with(options: &[&str]) -> Self {
        Self::new("up", options)
    }

    /// A streaming standby, for which this one waits at every COMMIT.
    #[track_caller]
    pub fn standby(&self) -> Self {
        Self::new("standby", &[self.directory.to_str().expect("text"), "--sync"])
    }

    /// A streaming standby, for which this one does not wait.
    #[track_caller]
    pub fn replica(&self) -> Self {
        Self::new("standby", &[self.directory.to_str().expect("text")])
    }

    /// A replica that hears no more of its primary.
    #[track_caller]
    pub fn cut_off(&self) {
        let mut sql = self.sql();
        sql.batch_execute("alter system set primary_conninfo = ''").expect("set");
        sql.batch_execute("select pg_reload_conf()").expect("reloaded");
        super::eventually("nothing is received any more", || {
            sql.query_one("select count(*) from pg_stat_wal_receiver", &[]).expect("answers").get::<_, i64>(0) == 0
        });
    }

    #[track_caller]
    fn new(command: &str, options: &[&str]) -> Self {
        // In the folder of with-bed.sh, which drops what is left there when a run is broken off.
        let directory = Path::new(&env("TXRELAY_TEST_DIR")).join(unique("pg"));
        let mut cluster = Self { directory, dsn: String::new() };
        let options: Vec<&str> = options.iter().copied().chain(SMALL).collect();
        cluster.dsn = cluster.tell(command, &options).trim().to_owned();
        cluster
    }

    #[track_caller]
    fn tell(&self, command: &str, options: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/pg.sh");
        let out = Command::new(script).arg(command).arg(&self.directory).args(options).output().expect("pg.sh runs");
        assert!(out.status.success(), "pg.sh {command} {options:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }

    /// Of a superuser.
    pub fn dsn(&self) -> &str {
        &self.dsn
    }

    /// `127.0.0.1:port`
    pub fn host(&self) -> &str {
        self.dsn.split(['@', '/']).nth(3).expect("host:port in the DSN")
    }

    /// As another role.
    pub fn dsn_of(&self, role: &str) -> String {
        self.dsn.replacen("postgres@", &format!("{role}@"), 1)
    }

    #[track_caller]
    pub fn sql(&self) -> Client {
        Client::connect(&self.dsn, NoTls).expect("the cluster answers")
    }

    /// `mode`: fast, smart or immediate (a crash).
    #[track_caller]
    pub fn stop(&self, mode: &str) {
        self.tell("down", &["-m", mode]);
    }

    /// Again, on the same port; nothing if it runs.
    #[track_caller]
    pub fn up(&self) {
        self.tell("up", &[]);
    }

    #[track_caller]
    pub fn freeze(&self) {
        self.tell("signal", &["STOP"]);
    }

    #[track_caller]
    pub fn thaw(&self) {
        self.tell("signal", &["CONT"]);
    }

    /// As when its host dies.
    #[track_caller]
    pub fn kill_9(&self) {
        self.tell("kill9", &[]);
    }

    /// A standby becomes a primary.
    #[track_caller]
    pub fn promote(&self) {
        self.tell("promote", &[]);
    }

    /// Its data directory as this process can reach it; with `--tmpfs` it is in a mount namespace of the server's.
    pub fn data(&self) -> PathBuf {
        let first = |file: &str| {
            let text = std::fs::read_to_string(self.directory.join(file)).ok()?;
            Some(text.split_whitespace().next()?.to_owned())
        };
        let root = first("mount.pid").map_or_else(PathBuf::new, |pid| PathBuf::from(format!("/proc/{pid}/root")));
        let inside = self.directory.join("data");
        if root.as_os_str().is_empty() { inside } else { root.join(inside.strip_prefix("/").expect("absolute")) }
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        // It may not have come to be.
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/pg.sh");
        let _ = Command::new(script).arg("drop").arg(&self.directory).output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
