//! A pipeline: its configuration, and the daemon while it runs.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::resources::Resources;
use super::truth::wrong_offsets;
use super::{Killed, LIMIT, bootstrap, eventually, free_address, http, postgres_url, unique};

/// A pipeline: its configuration, and the daemon while it runs.
pub struct Relay {
    pub name: String,
    pub directory: PathBuf,
    pub schema: String,
    /// DSN of a superuser of the database that holds the schema.
    database: String,
    metrics: String,
    config: String,
    sets: Vec<String>,
    envs: Vec<(String, String)>,
    child: Option<Killed>,
    runs: usize,
    /// Whose schema goes when this one goes.
    owns_schema: bool,
}

impl Relay {
    /// `--set` for every run from now on.
    pub fn set(&mut self, key_value: &str) {
        self.sets.push(key_value.to_owned());
    }

    /// In the environment of every run from now on.
    pub fn env(&mut self, name: &str, value: &str) {
        self.envs.push((name.to_owned(), value.to_owned()));
    }

    /// Not in the environment of the next runs.
    pub fn unset_env(&mut self, name: &str) {
        self.envs.retain(|(known, _)| known != name);
    }

    /// Changes the file, also under a daemon that runs.
    pub fn edit(&mut self, change: impl FnOnce(&str) -> String) {
        self.config = change(&self.config);
        // As editors do it: never half a file.
        let new = self.directory.join("relay.toml.new");
        std::fs::write(&new, &self.config).expect("the configuration is written");
        std::fs::rename(new, self.config_file()).expect("renamed");
    }

    /// Takes `kafka.start` out of the file.
    pub fn unset_start(&mut self) {
        self.config = self.config.replace("start = \"earliest\"\n", "");
    }

    /// From `topic` to `ledger`. `more` is TOML that is added: whole tables, or keys of `[downstream]` first.
    pub fn new(topic: &str, ledger: &str, more: &str) -> Self {
        Self::with(topic, ledger, &postgres_url(), more)
    }

    pub fn with(topic: &str, ledger: &str, postgres: &str, more: &str) -> Self {
        let name = unique("p");
        let directory = std::env::temp_dir().join(format!("txrelay-{name}"));
        std::fs::create_dir_all(directory.join("state")).expect("a folder");
        let free = free_address();
        let schema = format!("txrelay_{}", name.replace('-', "_"));
        let config = format!(
            "name = \"{name}\"\n[kafka]\nbrokers = [\"{}\"]\ntopics = [\"{topic}\"]\nstart = \"earliest\"\n[postgres]\nurl = \
             \"{postgres}\"\n[metrics]\nlisten = \"{free}\"\n[log]\nformat = \"text\"\n[downstream]\nurl = \"{ledger}\"\n{more}\n",
            bootstrap()
        );
        Self {
            name,
            directory,
            schema,
            database: postgres_url(),
            metrics: free,
            config,
            sets: Vec::new(),
            envs: Vec::new(),
            child: None,
            runs: 0,
            owns_schema: true,
        }
    }

    /// With its schema in a cluster of the test's own, which goes with all that is in it. `url` may name a role, a proxy or
    /// several hosts; `superuser` is for the test's own questions.
    pub fn on(topic: &str, ledger: &str, url: &str, superuser: &str, more: &str) -> Self {
        let mut relay = Self::with(topic, ledger, url, more);
        relay.ask(superuser);
        relay.owns_schema = false;
        relay
    }

    /// Where the test asks its questions from now on: another server has taken over.
    pub fn ask(&mut self, superuser: &str) {
        superuser.clone_into(&mut self.database);
    }

    /// A second process of the same pipeline, as on another host: a state directory and a metrics port of its own.
    pub fn twin(&self) -> Self {
        let directory = self.directory.with_extension(unique("twin"));
        std::fs::create_dir_all(directory.join("state")).expect("a folder");
        let metrics = free_address();
        Self {
            name: self.name.clone(),
            schema: self.schema.clone(),
            database: self.database.clone(),
            config: self.config.replace(&self.metrics, &metrics),
            sets: self.sets.clone(),
            envs: self.envs.clone(),
            directory,
            metrics,
            child: None,
            runs: 0,
            owns_schema: false,
        }
    }

    /// As on a machine that was cloned: another process of the pipeline with a copy of the state directory.
    pub fn cloned(&self) -> Self {
        let clone = self.twin();
        std::fs::copy(self.state_file(), clone.state_file()).expect("it has a state file");
        clone
    }

    pub fn state_file(&self) -> PathBuf {
        self.directory.join("state/instance")
    }

    /// Its number in table `process`; 0 while it has none.
    pub fn process(&self) -> i64 {
        self.count(&format!("select coalesce(max(id), 0) from process where pid = {}", self.pid()))
    }

    pub fn config_file(&self) -> PathBuf {
        self.directory.join("relay.toml")
    }

    /// A command of `txrelay` on this pipeline's file.
    pub fn command(&self, args: &[&str]) -> Command {
        std::fs::write(self.config_file(), &self.config).expect("the configuration is written");
        // Another build's, with fewer features: `make test-clients`.
        let binary = std::env::var("TXRELAY_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_txrelay").to_owned());
        let mut command = Command::new(binary);
        command.arg("-c").arg(self.config_file()).args(args);
        for set in &self.sets {
            command.args(["--set", set]);
        }
        command.env("STATE_DIRECTORY", self.directory.join("state")).stdin(Stdio::null());
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn start(&mut self) -> &mut Self {
        self.runs += 1;
        let log = std::fs::File::create(self.log_file()).expect("a log file");
        self.start_with(log)
    }

    /// With its log going there.
    pub fn start_with(&mut self, stderr: impl Into<Stdio>) -> &mut Self {
        assert!(self.child.is_none(), "one daemon at a time");
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(stderr).spawn().expect("the daemon starts");
        self.child = Some(Killed(child));
        self
    }

    /// As the command that `wrap` makes of it.
    pub fn start_through(&mut self, wrap: impl FnOnce(Command) -> Command) -> &mut Self {
        assert!(self.child.is_none(), "one daemon at a time");
        self.child = Some(Killed(wrap(self.command(&["run"])).spawn().expect("the daemon starts")));
        self
    }

    /// A number of `/proc/PID/status`, such as `VmRSS` in kB or `Threads`.
    pub fn proc_status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("the field");
        line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join(format!("log.{}", self.runs))
    }

    /// What the present run has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").0.id()
    }

    /// Whether the process that was started still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.0.try_wait().expect("its status").is_none())
    }

    /// What it uses now.
    pub fn resources(&self) -> Resources {
        Resources::of(self.pid()).expect("the daemon runs")
    }

    /// CPU that it has used since its start.
    pub fn cpu(&self) -> Duration {
        super::cpu(self.pid())
    }

    /// Address of its metrics port.
    pub fn address(&self) -> &str {
        &self.metrics
    }

    /// How its sessions are named in pg_stat_activity, as a pattern for LIKE.
    pub fn sessions(&self) -> String {
        format!("txrelay/{}/%", self.name)
    }

    pub fn kill_9(&mut self) {
        drop(self.child.take().expect("running"));
    }

    /// Waits until it has killed itself at a fail point.
    #[track_caller]
    pub fn dies_at(&mut self, step: &str) {
        use std::os::unix::process::ExitStatusExt;
        eventually(&format!("it dies at {step}"), || !self.is_running());
        let ended = self.wait();
        assert_eq!(ended.signal(), Some(9), "{step}: it ended otherwise ({ended}):\n{}", self.log());
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.pid().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = child.0.try_wait().expect("its status") {
                return status;
            }
            assert!(Instant::now() < until, "the daemon does not end:\n{}", self.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    pub fn http(&self, path: &str) -> Option<String> {
        http(&self.metrics, path)
    }

    /// A bare connection to its metrics port.
    pub fn connect(&self) -> std::net::TcpStream {
        std::net::TcpStream::connect(&self.metrics).expect("it listens")
    }

    /// The value of a series, by its name and labels without the prefix; `None` while there is no daemon.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let wanted = format!("txrelay_{series} ");
        self.http("/metrics")?.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok())
    }

    /// How many partitions it reads now.
    pub fn partitions(&self) -> usize {
        let metrics = self.http("/metrics").unwrap_or_default();
        metrics.lines().filter(|line| line.starts_with("txrelay_kafka_position{")).count()
    }

    /// A connection to its schema.
    pub fn sql(&self) -> postgres::Client {
        let mut client = postgres::Client::connect(&self.database, postgres::NoTls).expect("PostgreSQL answers");
        client.batch_execute(&format!("set search_path = \"{}\"", self.schema)).expect("a path");
        client
    }

    /// A number out of its schema; 0 while there is no schema yet.
    pub fn count(&self, query: &str) -> i64 {
        self.sql().query_one(query, &[]).map_or(0, |row| row.get(0))
    }

    /// Deliveries that are leased, once PostgreSQL has carried out what a process had sent it before it was stopped or killed.
    #[track_caller]
    pub fn held(&self) -> u64 {
        let now: String = self.sql().query_one("select clock_timestamp()::text", &[]).expect("answers").get(0);
        let active = format!(
            "select count(*) from pg_stat_activity \
             where application_name like 'txrelay/{}/%' and state = 'active' and query_start <= '{now}'",
            self.name
        );
        eventually("PostgreSQL has done what it was told", || self.count(&active) == 0);
        self.count("select count(*) from delivery where lease is not null") as u64
    }

    /// Each equation of the ledger holds, and each transaction is where its state says.
    #[track_caller]
    pub fn balanced(&self) {
        let off = "select count(*) from transaction_status where state = 'unaccounted'";
        assert_eq!(self.count(off), 0, "unaccounted transactions");
        let read = "select coalesce(sum(n) filter (where name = 1), 0) - coalesce(sum(n) filter (where name in (2, 3, 4)), 0) from counter";
        assert_eq!(self.count(&format!("select ({read})::bigint")), 0, "read = ingested + duplicates + rejected");
        let ingested = "select coalesce(sum(n) filter (where name in (2, 8)), 0) - coalesce(sum(n) filter (where name in (5, 6, 7)), 0) \
             - (select count(*) from delivery) from counter";
        assert_eq!(self.count(&format!("select ({ingested})::bigint")), 0, "ingested = delivered + died + open");
        assert_eq!(wrong_offsets(&mut self.sql()), "", "every offset is in one place");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child = None;
        if std::thread::panicking() {
            eprintln!("the daemon's log ({}):\n{}", self.name, tail(&self.log(), 60));
        }
        if self.owns_schema
            && let Ok(mut client) = postgres::Client::connect(&self.database, postgres::NoTls)
        {
            let _ = client.batch_execute(&format!("drop schema if exists \"{}\" cascade", self.schema));
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
