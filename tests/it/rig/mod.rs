//! The rig: one call per boundary. Real PostgreSQL and Kafka (from the environment; missing = failure), the real binary, the
//! bed's ledger service, all with a name of their own per test.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

/// Catches hangs only: ten times what anything here needs.
pub const LIMIT: Duration = Duration::from_secs(60);

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests through `make test`"))
}

/// DSN of a superuser.
pub fn postgres_url() -> String {
    env("TXRELAY_TEST_PG")
}

pub fn bootstrap() -> String {
    env("TXRELAY_TEST_KAFKA")
}

/// Polls until `what` holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < until, "after {LIMIT:?} still not: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub fn unique(stem: &str) -> String {
    format!("{stem}-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

/// Runs a subcommand of the bed to its end and returns its output.
#[track_caller]
pub fn bed(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_bed")).args(args).output().expect("bed runs");
    assert!(out.status.success(), "bed {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// A child that is killed, by its own pid, when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Either may fail because it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The HTTP service.
pub struct Ledger {
    _child: Killed,
    pub address: String,
}

impl Ledger {
    pub fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bed"))
            .args(["ledger", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the ledger starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
        let address = line.trim().strip_prefix("listening on ").expect("its address").to_owned();
        Self { _child: Killed(child), address }
    }

    pub fn url(&self) -> String {
        format!("http://{}/transactions", self.address)
    }

    /// One rule or a list; see `bed ledger`.
    pub fn behave(&self, rules: &Value) {
        ureq::put(format!("http://{}/_/behave", self.address)).send(rules.to_string()).expect("the ledger obeys");
    }

    pub fn behave_well(&self) {
        ureq::delete(format!("http://{}/_/behave", self.address)).call().expect("the ledger obeys");
    }

    fn get(&self, path: &str) -> String {
        let mut answer = ureq::get(format!("http://{}{path}", self.address)).call().expect("the ledger answers");
        answer.body_mut().with_config().limit(256 << 20).read_to_string().expect("text")
    }

    pub fn summary(&self) -> Value {
        serde_json::from_str(&self.get("/_/summary")).expect("JSON")
    }

    pub fn count(&self, what: &str) -> u64 {
        self.summary()[what].as_u64().unwrap_or_else(|| panic!("no {what} in the summary"))
    }

    /// Accepted ids.
    pub fn accepted(&self) -> Vec<String> {
        self.get("/_/accepted").lines().filter_map(|line| line.split('\t').next().map(str::to_owned)).collect()
    }

    /// All requests for `id`, in order.
    pub fn requests(&self, id: &str) -> Vec<Value> {
        self.get(&format!("/_/requests?id={id}")).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// A topic of its own, and a producer.
pub struct Topic {
    pub name: String,
    producer: BaseProducer,
}

impl Topic {
    pub fn new(partitions: i32) -> Self {
        let name = unique("it");
        bed(&["topic", "--brokers", &bootstrap(), "--create", &name, "--partitions", &partitions.to_string()]);
        let producer =
            ClientConfig::new().set("bootstrap.servers", bootstrap()).set("linger.ms", "5").create().expect("a producer");
        Self { name, producer }
    }

    /// Writes values in order, spread over partitions by `i`, and waits until Kafka has them.
    pub fn produce<'a>(&self, values: impl IntoIterator<Item = &'a [u8]>) {
        for (i, value) in values.into_iter().enumerate() {
            let key = i.to_string();
            let record = BaseRecord::to(&self.name).key(&key).payload(value);
            self.producer.send(record).map_err(|(e, _)| e).expect("queued");
            self.producer.poll(Duration::ZERO);
        }
        self.producer.flush(LIMIT).expect("Kafka takes the records");
    }

    /// Writes transactions with these ids.
    pub fn transactions(&self, ids: impl IntoIterator<Item = String>) {
        let values: Vec<Vec<u8>> = ids.into_iter().map(|id| transaction(&id)).collect();
        self.produce(values.iter().map(Vec::as_slice));
    }
}

/// The value of a transaction.
pub fn transaction(id: &str) -> Vec<u8> {
    format!(r#"{{"transaction_id":"{id}","amount":"12.34","currency":"EUR"}}"#).into_bytes()
}

pub fn ids(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("{prefix}-{i}")).collect()
}

/// A pipeline: its configuration, and the daemon while it runs.
pub struct Relay {
    pub name: String,
    pub directory: PathBuf,
    pub schema: String,
    metrics: String,
    config: String,
    sets: Vec<String>,
    envs: Vec<(String, String)>,
    /// Where the test itself looks, not through any proxy.
    database: String,
    child: Option<Killed>,
    runs: usize,
}

impl Relay {
    /// `--set` for every run from now on.
    pub fn set(&mut self, key_value: &str) {
        self.sets.push(key_value.to_owned());
    }

    /// An environment variable for every run from now on.
    pub fn env(&mut self, key: &str, value: &str) {
        self.envs.push((key.to_owned(), value.to_owned()));
    }

    /// On a database server of the test's own.
    pub fn on(topic: &str, ledger: &str, postgres: &str, more: &str) -> Self {
        let mut relay = Self::with(topic, ledger, postgres, more);
        relay.database = postgres.to_owned();
        relay
    }

    /// Another process of the same pipeline, as on another host: its own state directory and metrics. It must go first.
    pub fn twin(&self) -> Self {
        let directory = std::env::temp_dir().join(format!("txrelay-{}", unique(&self.name)));
        std::fs::create_dir_all(directory.join("state")).expect("a folder");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").to_string();
        Self {
            name: self.name.clone(),
            directory,
            schema: self.schema.clone(),
            config: self.config.replace(&self.metrics, &free),
            metrics: free,
            sets: self.sets.clone(),
            envs: self.envs.clone(),
            database: self.database.clone(),
            child: None,
            runs: 0,
        }
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
        // Bound and free again: nobody else here asks for a port with this number by chance.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number");
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
            metrics: free.to_string(),
            config,
            sets: Vec::new(),
            envs: Vec::new(),
            database: postgres_url(),
            child: None,
            runs: 0,
        }
    }

    pub fn config_file(&self) -> PathBuf {
        self.directory.join("relay.toml")
    }

    /// A command of `txrelay` on this pipeline's file.
    pub fn command(&self, args: &[&str]) -> Command {
        std::fs::write(self.config_file(), &self.config).expect("the configuration is written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_txrelay"));
        command.arg("-c").arg(self.config_file()).args(args);
        for set in &self.sets {
            command.args(["--set", set]);
        }
        command.env("STATE_DIRECTORY", self.directory.join("state")).envs(self.envs.iter().cloned()).stdin(Stdio::null());
        command
    }

    pub fn start(&mut self) -> &mut Self {
        assert!(self.child.is_none(), "one daemon at a time");
        self.runs += 1;
        let log = std::fs::File::create(self.log_file()).expect("a log file");
        let child =
            self.command(&["run"]).stdout(log.try_clone().expect("a handle")).stderr(log).spawn().expect("the daemon starts");
        self.child = Some(Killed(child));
        self
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

    pub fn kill_9(&mut self) {
        drop(self.child.take().expect("running"));
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
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(format!("http://{}{path}", self.metrics)).call().ok()?.body_mut().read_to_string().ok()
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
        let places = "select (select count(*) from tx) + (select count(*) from duplicate) + (select count(*) from rejected) \
             + (select sum(skipped) from consumer_position) - (select sum(next_offset) from consumer_position)";
        assert_eq!(self.count(&format!("select ({places})::bigint")), 0, "every offset is in one place");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child = None;
        if std::thread::panicking() {
            eprintln!("the daemon's log ({}):\n{}", self.name, tail(&self.log(), 60));
        }
        if let Ok(mut client) = postgres::Client::connect(&self.database, postgres::NoTls) {
            let _ = client.batch_execute(&format!("drop schema if exists \"{}\" cascade", self.schema));
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A TCP proxy that fails on command.
pub struct Proxy {
    _child: Killed,
    commands: ChildStdin,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Proxy {
    /// In front of the test PostgreSQL; returns it with the DSN that goes through it.
    pub fn postgres() -> (Self, String) {
        let dsn = postgres_url();
        let real = dsn.split('@').nth(1).and_then(|rest| rest.split('/').next()).expect("host:port in the DSN").to_owned();
        let mut child = Command::new(env!("CARGO_BIN_EXE_bed"))
            .args(["proxy", "--postgres", "--to", &real])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the proxy starts");
        let commands = child.stdin.take().expect("piped");
        let mut answers = BufReader::new(child.stdout.take().expect("piped")).lines();
        let first = answers.next().expect("its address").expect("its address");
        let address = first.trim().strip_prefix("listening on ").expect("its address").to_owned();
        let through = dsn.replace(&real, &address);
        (Self { _child: Killed(child), commands, answers }, through)
    }

    pub fn tell(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("the proxy listens");
        self.answers.next().expect("an answer").expect("an answer")
    }
}

/// Every `.rs` file below `directory`, with its path relative to it.
pub fn sources(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(directory).expect("below it").to_string_lossy().into_owned();
                found.push((name, std::fs::read_to_string(&path).expect("text")));
            }
        }
    }
    found.sort();
    found
}
