//! PostgreSQL as enterprises run it: TLS, passwords, roles, poolers.

use std::path::Path;
use std::process::Output;

use txrelay::config;
use txrelay::store::{Role, Session, ensure_own_session};

use crate::rig::{
    Authority, Issued, Ledger, Pg, Relay, Topic, eventually, free_address, ids, postgres_url, unique, unpacked, write_private,
};

/// Exit status and what a command said.
fn said(relay: &Relay, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = relay.command(args).envs(env.iter().copied()).output().expect("runs");
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

/// A server with TLS: its cluster, the authority that it and its clients trust, and a folder for files.
struct Secured {
    pg: Pg,
    authority: Authority,
    folder: std::path::PathBuf,
}

impl Secured {
    /// Over TCP it takes TLS only; `hba` is how it lets in.
    fn new(hba: &str) -> Self {
        let folder = std::env::temp_dir().join(unique("txrelay-tls"));
        std::fs::create_dir(&folder).expect("a folder");
        let secured = Self { pg: Pg::start(), authority: Authority::new("it CA"), folder };
        let mut sql = secured.pg.sql();
        sql.batch_execute("create role app login superuser password 'hunter2'").expect("a role");
        let hba = format!("hostssl all app 127.0.0.1/32 {hba}\nhost all postgres 127.0.0.1/32 trust\n");
        std::fs::write(secured.pg.data().join("pg_hba.conf"), hba).expect("written");
        secured.present(&secured.authority.issue("localhost", false, &secured.folder, "server"));
        secured.authority.write(&secured.pg.data().join("root.crt"));
        secured.set("ssl_ca_file", "root.crt");
        secured.set("ssl", "on");
        secured
    }

    /// From now on the server shows this certificate.
    fn present(&self, issued: &Issued) {
        let data = self.pg.data();
        for (from, name) in [(&issued.certificate, "server.crt"), (&issued.key, "server.key")] {
            let file = data.join(name);
            write_private(&file, &std::fs::read(from).expect("read"));
            let owner = std::fs::metadata(&data).expect("there");
            use std::os::unix::fs::MetadataExt;
            std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).expect("given to the server");
        }
        self.pg.sql().batch_execute("select pg_reload_conf()").expect("reloaded");
    }

    fn set(&self, name: &str, value: &str) {
        let mut sql = self.pg.sql();
        sql.batch_execute(&format!("alter system set {name} = '{value}'")).expect("set");
        sql.batch_execute("select pg_reload_conf()").expect("reloaded");
        eventually(&format!("{name} is {value}"), || {
            self.pg.sql().query_one(&format!("show {name}"), &[]).expect("shown").get::<_, String>(0) == value
        });
    }

    /// A pipeline that connects as `app` to `host` with these words.
    fn relay(&self, host: &str, words: &str) -> Relay {
        let port = self.pg.host().rsplit(':').next().expect("a port");
        Relay::with("t", "http://127.0.0.1:1/", &format!("postgresql://app@{host}:{port}/postgres?{words}"), "")
    }

    #[track_caller]
    fn connects(&self, host: &str, words: &str) {
        let (code, said) = said(&self.relay(host, words), &["migrate"], &[]);
        assert_eq!(code, Some(0), "{host} {words}: {said}");
    }

    /// One line that names the cause.
    #[track_caller]
    fn refuses(&self, host: &str, words: &str, cause: &str) {
        let (code, said) = said(&self.relay(host, words), &["migrate"], &[]);
        assert!(code == Some(69) && said.contains(cause), "{host} {words}: {code:?} {said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        assert!(said.contains(host), "which server it was: {said}");
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn root(file: &Path) -> String {
    format!("sslrootcert={}", file.display())
}

#[test]
fn tls_to_postgresql_connects_or_names_the_cause() {
    let server = Secured::new("trust");
    let ours = root(&server.authority.write(&server.folder.join("ca.crt")));
    let strangers = root(&Authority::new("it CA").write(&server.folder.join("other-ca.crt")));
    // The name in the certificate is localhost.
    for words in
        ["", "sslmode=prefer", "sslmode=require", &format!("sslmode=verify-ca&{ours}"), &format!("sslmode=require&{ours}")]
    {
        server.connects("127.0.0.1", words);
    }
    server.connects("localhost", &format!("sslmode=verify-full&{ours}"));
    server.refuses("127.0.0.1", &format!("sslmode=verify-full&{ours}"), "made for another host name");
    server.refuses("127.0.0.1", "sslmode=disable", "no encryption");
    for words in [&format!("sslmode=verify-ca&{strangers}"), &format!("sslmode=require&{strangers}")] {
        server.refuses("localhost", words, "does sslrootcert name the CA that signed it?");
    }
    // The system's trust store does not know our authority.
    server.refuses("localhost", "sslmode=verify-full", "its issuer is not trusted");
    server.refuses("localhost", "sslmode=verify-ca", "its issuer is not trusted");

    server.present(&server.authority.issue("localhost", true, &server.folder, "expired"));
    server.refuses("localhost", &format!("sslmode=verify-full&{ours}"), "it has expired");
    server.connects("localhost", "sslmode=require");

    server.set("ssl", "off");
    server.refuses("localhost", &format!("sslmode=verify-full&{ours}"), "the server offers no TLS");
}

#[test]
fn a_client_certificate_is_asked_for_and_accepted() {
    let server = Secured::new("cert");
    let ours = root(&server.authority.write(&server.folder.join("ca.crt")));
    let pair = |issued: &Issued| format!("sslcert={}&sslkey={}", issued.certificate.display(), issued.key.display());
    let good = server.authority.issue("app", false, &server.folder, "app");
    server.connects("localhost", &format!("sslmode=verify-full&{ours}&{}", pair(&good)));
    server.refuses("localhost", &format!("sslmode=verify-full&{ours}"), "client certificate");
    let other_name = server.authority.issue("somebody", false, &server.folder, "somebody");
    server.refuses(
        "localhost",
        &format!("sslmode=verify-full&{ours}&{}", pair(&other_name)),
        "certificate authentication failed",
    );
    let strange = Authority::new("stranger").issue("app", false, &server.folder, "strange");
    server.refuses(
        "localhost",
        &format!("sslmode=verify-full&{ours}&{}", pair(&strange)),
        "does not accept our certificate (sslcert)",
    );
    let expired = server.authority.issue("app", true, &server.folder, "old");
    server.refuses(
        "localhost",
        &format!("sslmode=verify-full&{ours}&{}", pair(&expired)),
        "does not accept our certificate (sslcert)",
    );

    // What files alone show is said before anything is connected to.
    let mixed = format!("sslcert={}&sslkey={}", good.certificate.display(), strange.key.display());
    let open = server.folder.join("open.key");
    std::fs::copy(&good.key, &open).expect("copied");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&open, mode).expect("chmod");
    let open = format!("sslcert={}&sslkey={}", good.certificate.display(), open.display());
    for (words, cause) in [(mixed, "is not the key of the certificate"), (open, "open to every user")] {
        let (code, said) = said(&server.relay("localhost", &words), &["check-config"], &[]);
        assert!(code == Some(78) && said.contains(cause), "{code:?} {said}");
    }
}

#[test]
fn it_relays_over_tls_with_scram_and_takes_a_new_password_without_a_restart() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let server = Secured::new("scram-sha-256");
    let ours = root(&server.authority.write(&server.folder.join("ca.crt")));
    let password = server.folder.join("password");
    write_private(&password, b"hunter2\n");
    let port = server.pg.host().rsplit(':').next().expect("a port").to_owned();
    // Channel binding: nobody in between could have relayed the login.
    let url = format!("postgresql://app@localhost:{port}/postgres?sslmode=verify-full&{ours}&channel_binding=require");
    let mut relay = Relay::with(&topic.name, &ledger.url(), &url, "");
    relay.set(&format!("postgres.password_file=\"{}\"", password.display()));
    relay.start();
    topic.transactions(ids("a", 0..20));
    eventually("delivered", || ledger.count("accepted") == 20);
    let expires = relay.metric("certificate_expiry_timestamp_seconds{role=\"postgres\"}").expect("a series");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((expires - now - 86_400.0).abs() < 600.0, "{expires} at {now}");

    // Renewed: it lives on for some seconds longer than the first.
    server.present(&server.authority.issue("localhost", false, &server.folder, "renewed"));
    let mut sql = server.pg.sql();
    sql.batch_execute("alter role app password 'hunter3'").expect("changed");
    sql.batch_execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'").expect("cut");
    eventually("it says what is wrong", || relay.log().contains("password authentication failed"));
    assert_eq!(relay.metric("stalled{reason=\"postgres\"}"), Some(1.0));
    write_private(&password, b"hunter3\n");
    topic.transactions(ids("b", 0..20));
    eventually("delivered", || ledger.count("accepted") == 40);
    eventually("it works again", || relay.metric("stalled{reason=\"postgres\"}") == Some(0.0));
    let series = "certificate_expiry_timestamp_seconds{role=\"postgres\"}";
    eventually("the new certificate's date is shown", || relay.metric(series) > Some(expires));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert!(!relay.log().contains("hunter"), "a password in the log");
}

#[test]
fn an_operator_brings_user_and_password_of_his_own() {
    let server = Secured::new("scram-sha-256");
    server.pg.sql().batch_execute("create role alice login superuser password 'secret of alice'").expect("a role");
    let hba = server.pg.data().join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).expect("read");
    std::fs::write(&hba, format!("host all alice 127.0.0.1/32 scram-sha-256\n{lines}")).expect("written");
    server.pg.sql().batch_execute("select pg_reload_conf()").expect("reloaded");
    let passfile = server.folder.join("pgpass");
    write_private(&passfile, b"# ours\n127.0.0.1:*:postgres:alice:secret of alice\n");
    let mut relay = server.relay("127.0.0.1", "sslmode=require");
    // The daemon's password, which alice cannot read.
    relay.set("postgres.password_file=\"/nonexistent/password\"");
    let env = [("PGUSER", "alice"), ("PGPASSFILE", passfile.to_str().expect("text"))];
    let (code, words) = said(&relay, &["migrate"], &env);
    assert_eq!(code, Some(0), "{words}");
    let owner = format!("select nspowner::regrole::text from pg_namespace where nspname = '{}'", relay.schema);
    assert_eq!(server.pg.sql().query_one(&owner, &[]).expect("there").get::<_, String>(0), "alice");
    assert!(words.contains("granted to app"), "the daemon's role is another: {words}");
    let (code, words) = said(&relay, &["migrate"], &[("PGUSER", "alice"), ("PGPASSFILE", "/nonexistent/pgpass")]);
    assert!(code == Some(77) && words.contains("PGPASSFILE"), "{code:?} {words}");
    let (code, words) = said(&relay, &["migrate"], &[("PGUSER", "alice")]);
    assert!(code == Some(78) && words.contains("password_file"), "{code:?} {words}");
}

/// A role with a random name on the shared cluster; gone with the value.
/// A role that can log in; it goes with this value.
pub struct Login(String);

impl Login {
    pub fn new(stem: &str, rights: &str) -> Self {
        let login = Self(unique(stem).replace('-', "_"));
        sql().batch_execute(&format!("create role {} login; {}", login.0, rights.replace("{role}", &login.0))).expect("a role");
        login
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn url(&self) -> String {
        postgres_url().replacen("postgres@", &format!("{}@", self.0), 1)
    }

    fn sql(&self, schema: &str) -> postgres::Client {
        let mut client = postgres::Client::connect(&self.url(), postgres::NoTls).expect("lets in");
        client.batch_execute(&format!("set search_path = {schema}")).expect("a path");
        client
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let _ = sql().batch_execute(&format!("drop owned by {0} cascade; drop role {0}", self.0));
    }
}

fn sql() -> postgres::Client {
    postgres::Client::connect(&postgres_url(), postgres::NoTls).expect("PostgreSQL answers")
}

#[test]
fn the_daemon_needs_no_ddl_and_readers_change_nothing() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let owner = Login::new("it_owner", "grant create on database postgres to {role}");
    let daemon = Login::new("it_daemon", "");
    let mut relay = Relay::with(&topic.name, &ledger.url(), &daemon.url(), "[retry]\nbase = \"100ms\"\ncap = \"200ms\"");
    relay.set("postgres.migrate=false");
    let reader = Login::new("it_reader", &format!("create role {}_reader nologin", relay.schema));
    sql().batch_execute(&format!("grant {}_reader to {}", relay.schema, reader.0)).expect("granted");
    relay.start();
    eventually("it waits and names the command", || relay.log().contains("txrelay migrate"));
    let (code, words) = said(&relay, &["migrate"], &[("PGUSER", &owner.0)]);
    assert!(code == Some(0) && words.contains(&format!("granted to {}, {}_reader", daemon.0, relay.schema)), "{code:?} {words}");

    // Each kind of statement that the daemon has: delivered, retried, dead, rejected, duplicates.
    ledger.behave(&serde_json::json!({ "status": 400, "ids": ["a-1"] }));
    topic.transactions(ids("a", 0..50));
    topic.transactions(ids("a", 0..5));
    topic.produce([b"no JSON".as_slice()]);
    eventually("delivered", || ledger.count("accepted") == 49);
    eventually("all read", || {
        relay.count("select count(*) from duplicate") == 5 && relay.count("select count(*) from rejected") == 1
    });
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    eventually("status is well", || said(&relay, &["status"], &[]).0 == Some(0));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert!(!relay.log().contains("permission denied"), "{}", relay.log());
    relay.balanced();

    let denied = |login: &Login, statement: &str| {
        let error = login.sql(&relay.schema).batch_execute(statement).expect_err(statement);
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{statement}: {error}");
    };
    for statement in [
        "update tx set payload = null",
        "create table mine (n int)",
        "alter table tx add mine int",
        "drop table attempt",
        "truncate tx",
        "select * from audit_log",
        "update audit_log set detail = 'x'",
        "delete from audit_log",
    ] {
        denied(&daemon, statement);
    }
    daemon.sql(&relay.schema).batch_execute("insert into audit_log (command) values ('test')").expect("it may add");
    let mut read = reader.sql(&relay.schema);
    for view in ["transaction_status", "attempt_history", "rejected", "duplicate", "known_gap", "consumer_position", "audit_log"]
    {
        read.batch_execute(&format!("select * from {view}")).unwrap_or_else(|e| panic!("{view}: {e}"));
    }
    for statement in
        ["update tx set payload = null", "insert into audit_log (command) values ('x')", "update rejected set detail = ''"]
    {
        denied(&reader, statement);
    }
    sql().batch_execute(&format!("drop owned by {0}_reader cascade; drop role {0}_reader", relay.schema)).expect("dropped");
}

/// pgbouncer in front of the shared cluster; ends with the value.
struct Pooler {
    child: std::process::Child,
    folder: std::path::PathBuf,
    port: u16,
}

impl Pooler {
    fn start(mode: &str) -> Self {
        let folder = std::env::temp_dir().join(unique("txrelay-pooler"));
        std::fs::create_dir(&folder).expect("a folder");
        let address = free_address();
        let port: u16 = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let url = postgres_url();
        let server_port = url.split(['@', '/']).nth(3).and_then(|host| host.rsplit(':').next()).expect("a port");
        let text = format!(
            "[databases]\npostgres = host=127.0.0.1 port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\nadmin_users = postgres\npool_mode = {mode}\ndefault_pool_size = 20\n\
             ignore_startup_parameters = extra_float_digits\n"
        )
        .replace("postgres = host=127.0.0.1", "postgres = user=postgres host=127.0.0.1");
        // It refuses to be root.
        let text = if rustix::process::geteuid().is_root() { format!("{text}user = nobody\n") } else { text };
        std::fs::write(folder.join("pgbouncer.ini"), text).expect("written");
        let root = unpacked("pgbouncer");
        let libraries = root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let mut command = std::process::Command::new(root.join("usr/sbin/pgbouncer"));
        command.arg(folder.join("pgbouncer.ini")).env("LD_LIBRARY_PATH", libraries);
        let log = std::fs::File::create(folder.join("log")).expect("a file");
        let child = command.stderr(log.try_clone().expect("a handle")).stdout(log).spawn().expect("pgbouncer starts");
        let pooler = Self { child, folder, port };
        eventually("the pooler listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        pooler
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_pooler_in_transaction_mode_is_refused_and_one_in_session_mode_is_fine() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    topic.transactions(ids("p", 0..20));
    for (mode, words) in [("transaction", "transaction mode"), ("session", "")] {
        let pooler = Pooler::start(mode);
        let url = format!("postgresql://postgres@127.0.0.1:{}/postgres", pooler.port);
        let mut relay = Relay::with(&topic.name, &ledger.url(), &url, "");
        relay.start();
        if words.is_empty() {
            eventually("delivered", || ledger.count("accepted") == 20);
        } else {
            eventually("it waits and says why", || {
                relay.metric("stalled{reason=\"postgres\"}") == Some(1.0) && relay.log().contains(words)
            });
            let (code, said) = said(&relay, &["migrate"], &[]);
            assert!(code == Some(69) && said.contains(words), "{code:?} {said}");
            assert_eq!(sql().query("select from pg_namespace where nspname = $1", &[&relay.schema]).expect("asked").len(), 0);
        }
        assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    }
}

/// What two who look at once hand to each other must not look like a session of one's own: it did once, and for as long as
/// the looks went on, because a pooler gives out first what came back last.
#[test]
fn a_pooler_in_transaction_mode_is_found_out_however_many_look_at_once() {
    let pooler = Pooler::start("transaction");
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres", pooler.port);
    let relay = Relay::with("t", "http://127.0.0.1:1/", &url, "");
    relay.command(&["check-config"]).output().expect("the file is written");
    let config = config::load(&relay.config_file(), &[]).expect("loads");
    let role = Role { pipeline: "it".to_owned(), role: "test" };
    let look = || {
        let mut session = Session::connect(&config.postgres, &role)?;
        ensure_own_session(&mut session, &config.postgres, &role)
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for n in 0..1000 {
                    let found = look();
                    assert!(found.as_ref().is_err_and(|e| e.to_string().contains("transaction mode")), "look {n}: {found:?}");
                }
            });
        }
    });
}

#[test]
fn a_server_that_is_none_is_said() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let _ = std::io::Write::write_all(&mut client.expect("a client"), b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let relay = Relay::with("t", "http://127.0.0.1:1/", &format!("postgresql://app@127.0.0.1:{port}/db"), "");
    let (code, said) = said(&relay, &["migrate"], &[]);
    assert!(code == Some(69) && said.contains("does not speak PostgreSQL's protocol"), "{code:?} {said}");
}

#[test]
fn tls_is_in_use_when_it_says_so() {
    let server = Secured::new("trust");
    let relay = server.relay("localhost", "sslmode=require");
    relay.command(&["check-config"]).output().expect("the file is written");
    let config = config::load(&relay.config_file(), &[]).expect("loads");
    let mut session = Session::connect(&config.postgres, &Role { pipeline: "it".to_owned(), role: "test" }).expect("connects");
    let ssl: bool =
        session.client().query_one("select ssl from pg_stat_ssl where pid = pg_backend_pid()", &[]).expect("asked").get(0);
    assert!(ssl);
}
