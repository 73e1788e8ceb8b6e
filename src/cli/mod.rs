//! The command line: which file, which command, which exit code. One file per command group.
//!
//! Data goes to stdout, everything else to stderr. May use every room; no room uses it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand};

use self::file::{file, load, load_to_ask_kafka, load_to_connect, with_own_password};
use crate::config::{Config, visible};
use crate::core::times::rough;
use crate::ops::{REVISION, VERSION};
use crate::store::{Role, SchemaState, Session, StoreError, schema_state};

mod act;
mod check_config;
mod connect;
#[cfg(test)]
mod documented;
mod erase;
mod explain;
mod file;
mod json;
mod list;
mod login;
mod migrate;
mod pages;
mod pause;
mod reconcile;
mod rejected;
mod rejected_act;
mod run;
mod show;
mod show_config;
mod stats;
mod status;
mod table;
mod tail;
mod when;

/// Where the pipelines' files are.
const ETC: &str = "/etc/txrelay";

/// How a command ended; the numbers are those of `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done, and nothing is wrong.
    Done = 0,
    /// It failed, or a check found something.
    Failed = 1,
    /// The command line cannot be understood.
    Usage = 2,
    /// A dependency cannot be reached.
    Unreachable = 69,
    /// Not permitted.
    NotPermitted = 77,
    /// The configuration is wrong, or another process runs under this name.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Entry of the `txrelay` command.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Also help and version, which are no errors and go to stdout. A closed pipe is nobody's fault.
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    if let Command::Completions { shell } = args.command {
        return pages::completions(shell).into();
    }
    if let Command::Man { page } = args.command {
        return pages::man(page).into();
    }
    let file = match file(args.config.as_deref(), args.instance.as_deref(), Path::new(ETC)) {
        Ok(file) => file,
        Err((exit, problem)) => {
            complain(&format!("txrelay: {problem}"));
            return exit.into();
        }
    };
    match args.command.carry_out(&file, &args.set) {
        Exit::Done if UNWRITTEN.load(Ordering::Relaxed) => Exit::Failed.into(),
        exit => exit.into(),
    }
}

impl Command {
    fn carry_out(&self, file: &Path, sets: &[String]) -> Exit {
        match self {
            Self::Run => run::run(file, sets),
            Self::CheckConfig { connect: true, .. } => match load(file, &with_own_password(sets)) {
                Ok(config) => connect::check(&config),
                Err(exit) => exit,
            },
            Self::CheckConfig { print_outcomes, json, connect: false } => {
                let print = match (print_outcomes, json) {
                    (false, _) => check_config::Print::Summary,
                    (true, false) => check_config::Print::Outcomes,
                    (true, true) => check_config::Print::OutcomesAsJson,
                };
                check_config::check_config(file, sets, print)
            }
            Self::ShowConfig(args) => show_config::show_config(file, sets, args),
            Self::Migrate { print_sql } => migrate::migrate(file, sets, *print_sql),
            Self::Status { json } => status::status(file, sets, *json),
            Self::List(args) => list::list(file, sets, args),
            Self::Show(args) => show::show(file, sets, args),
            Self::Explain(args) => explain::explain(file, sets, args),
            Self::Retry(args) => act::retry(file, sets, args),
            Self::Resolve(args) => act::resolve(file, sets, args),
            Self::Erase(args) => erase::erase(file, sets, args),
            Self::Rejected { command } => rejected::rejected(file, sets, command),
            Self::Reconcile(args) => reconcile::reconcile(file, sets, args),
            Self::Pause(args) => pause::pause(file, sets, args),
            Self::Resume => pause::resume(file, sets),
            Self::Tail(args) => tail::tail(file, sets, args),
            Self::Stats(args) => stats::stats(file, sets, args),
            Self::Completions { .. } | Self::Man { .. } => unreachable!("they need no file"),
        }
    }
}

static VERSION_LINE: LazyLock<String> = LazyLock::new(|| format!("{VERSION} ({REVISION})"));

/// Relays transactions from Kafka through PostgreSQL to an HTTP service that must not miss one.
///
/// Every record is in PostgreSQL before its Kafka offset is committed, and is sent until the service has accepted it:
/// at least once, with the same idempotency key on every attempt. One file is one pipeline.
#[derive(Debug, Parser)]
#[command(name = "txrelay", version = VERSION_LINE.as_str(), after_help = SHORT_AFTER, after_long_help = AFTER, max_term_width = 100)]
struct Args {
    /// The pipeline's file
    #[arg(short, long, value_name = "FILE", global = true, conflicts_with = "instance")]
    config: Option<PathBuf>,

    /// The pipeline's name: /etc/txrelay/NAME.toml
    #[arg(short, long, value_name = "NAME", global = true)]
    instance: Option<String>,

    /// Replaces one value of the file; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    set: Vec<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon in the foreground
    Run,
    /// Says everything that is wrong with the file, and what it will do
    ///
    /// Looks at files only, unless it is told to connect.
    CheckConfig {
        /// Also look whether Kafka, PostgreSQL and the service are there: the newest 10 records of each topic are read without
        /// joining the group, nothing is written, and nothing is sent to the service
        #[arg(long, conflicts_with = "print_outcomes")]
        connect: bool,
        /// Print what each status and each failure means, why, and which ones the file overrides
        #[arg(long)]
        print_outcomes: bool,
        /// That table as one JSON object
        #[arg(long, requires = "print_outcomes")]
        json: bool,
    },
    /// Shows what every key comes to, and who said so
    ///
    /// Paths of URLs, values of headers and whatever may be secret are masked.
    ShowConfig(show_config::ShowConfigArgs),
    /// Brings the schema up to date
    Migrate {
        /// Print everything that a DBA needs on an empty database, and change nothing
        #[arg(long)]
        print_sql: bool,
    },
    /// Says how the pipeline stands: states, positions, and what holds it up
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Lists transactions, newest first
    ///
    /// On a terminal as a table; elsewhere tab-separated, without a header, in the same columns.
    List(list::ListArgs),
    /// Shows everything about one transaction
    Show(show::ShowArgs),
    /// Says in one sentence why a transaction is where it is
    ///
    /// Exit status 1 where somebody has to do something: it is dead, rejected, unknown, lost or unaccounted, or no
    /// process runs.
    Explain(explain::ExplainArgs),
    /// Makes dead or waiting transactions due now, with a fresh budget
    ///
    /// What is in flight, resolved or delivered is left alone. Anything that touches more than one asks first.
    Retry(act::RetryArgs),
    /// Closes dead or waiting transactions without sending them
    ///
    /// Refused while in flight. The reason is kept with each.
    Resolve(act::NamedArgs),
    /// Takes the content out of delivered or resolved transactions: for personal data
    ///
    /// Payload, key, headers and errors become null; id, SHA-256, places and times stay. Refused while open. For the
    /// schema's owner and members of the role SCHEMA_eraser.
    Erase(act::NamedArgs),
    /// What could not become a transaction
    Rejected {
        #[command(subcommand)]
        command: rejected::RejectedCommand,
    },
    /// Holds every offset that was read against PostgreSQL and Kafka, and names what is wrong
    ///
    /// Exit status 0 only if each offset is in one place and each transaction in one state. Reads only; the daemon may run.
    Reconcile(reconcile::ReconcileArgs),
    /// Stops delivering; reading from Kafka goes on
    Pause(pause::PauseArgs),
    /// Goes on delivering
    Resume,
    /// Shows attempts as they happen
    Tail(tail::TailArgs),
    /// Counts per hour: received, attempts by outcome, p50 and p99 of their time
    Stats(stats::StatsArgs),
    /// Prints what a shell completes
    #[command(hide = true)]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Prints a manual page
    #[command(hide = true)]
    Man {
        /// Which one
        page: pages::Page,
    },
}

const SHORT_AFTER: &str = "--help says more: examples, files, exit status.";

const AFTER: &str = "\
Without -c and -i, the one file in /etc/txrelay is meant.

Examples:
  txrelay -i payments check-config          is /etc/txrelay/payments.toml right?
  txrelay -i payments migrate --print-sql   roles, schema and grants for a DBA, on an empty database
  systemctl enable --now txrelay@payments   start it now and at every boot
  txrelay -i payments status                how does it stand, and why?
  txrelay -i payments explain p-4711        where is this one, and why?
  txrelay -i payments list --state dead --since 2h
  txrelay -i payments retry --state dead --status 400 --dry-run
  txrelay -c ./try.toml --set log.level=debug run

Files:
  /etc/txrelay/NAME.toml                    one pipeline (0640 root:txrelay)
  PREFIX/share/doc/txrelay/txrelay.toml     every key, its default, and why one would change it
  /var/lib/txrelay/NAME/                    which process this is; survives restarts

Environment:
  PGUSER, PGPASSFILE                        role and password file, in place of the pipeline file's

Exit status:
   0  done                                 69  PostgreSQL, Kafka or the service cannot be reached
   1  failed, or a check found something   77  not permitted
   2  the command line is wrong            78  wrong configuration, or the name is in use

Signals to run: TERM and INT stop it in order, a second one at once; HUP reads the file again;
USR1 writes to the log what each thread does.";

/// A session of a command on the pipeline's schema.
fn connect(config: &Config, role: &'static str) -> Result<Session, StoreError> {
    let postgres = login::as_environment_says(&config.postgres).map_err(StoreError::NotPermitted)?;
    Session::connect(&postgres, &Role { pipeline: config.name.clone(), role })
}

/// A command that only looks: also on a standby, which is said, and as a role that can only select. `work` gets the server's
/// clock.
fn look(
    file: &Path,
    sets: &[String],
    role: &'static str,
    work: impl FnOnce(&Config, &mut Session, SystemTime) -> Result<Exit, StoreError>,
) -> Exit {
    let config = match load_to_connect(file, sets) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let connected = login::as_environment_says(&config.postgres)
        .map_err(StoreError::NotPermitted)
        .and_then(|postgres| Session::connect_to_look(&postgres, &Role { pipeline: config.name.clone(), role }));
    let done = connected.and_then(|mut session| {
        ready(&config, &mut session)?;
        let clock = session.server_clock()?;
        if let Some(behind) = clock.standby {
            let behind = rough(Duration::try_from_secs_f64(behind.max(0.0)).unwrap_or_default());
            complain(&format!("this is a standby: what it shows was replicated up to {behind} ago"));
        }
        work(&config, &mut session, clock.now)
    });
    done.unwrap_or_else(|error| store_failed(&error))
}

/// The schema is there and this version's.
fn ready(config: &Config, session: &mut Session) -> Result<(), StoreError> {
    let schema = &config.postgres.schema;
    match schema_state(session)? {
        SchemaState::Ready => Ok(()),
        SchemaState::Behind { .. } => {
            Err(StoreError::Other(format!("schema {schema} is not there or not up to date: run `txrelay migrate`")))
        }
        SchemaState::TooNew { have } => {
            Err(StoreError::Unusable(format!("schema {schema} has version {have}, of a later release: use that one's txrelay")))
        }
    }
}

/// Why a transaction that somebody asked for is not there.
fn unknown(id: &str) -> String {
    format!(
        "{}: not known: it was never read, was rejected, or retention has deleted it (txrelay explain says more)",
        visible(id)
    )
}

/// How printing ended: a closed pipe is nobody's fault.
fn printed(done: std::io::Result<()>) -> Exit {
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(&format!("txrelay: the output cannot be written: {error}"));
            Exit::Failed
        }
        _ => Exit::Done,
    }
}

/// Says what failed in PostgreSQL, and which exit code that is.
fn store_failed(error: &StoreError) -> Exit {
    complain(&format!("txrelay: PostgreSQL: {error}"));
    match error {
        StoreError::Connection(_) => Exit::Unreachable,
        StoreError::Unusable(_) => Exit::Config,
        StoreError::NotPermitted(_) => Exit::NotPermitted,
        _ => Exit::Failed,
    }
}

/// Whether data could not be written: a full disk. It is said once, and no such command ends as done.
static UNWRITTEN: AtomicBool = AtomicBool::new(false);

/// Data, for stdout. A closed pipe (`| head`) is no failure of ours.
fn say(text: &str) {
    let done = writeln!(std::io::stdout(), "{text}");
    if !UNWRITTEN.load(Ordering::Relaxed) && printed(done) == Exit::Failed {
        UNWRITTEN.store(true, Ordering::Relaxed);
    }
}

/// An id on the command line.
fn non_empty() -> clap::builder::NonEmptyStringValueParser {
    clap::builder::NonEmptyStringValueParser::new()
}

/// Everything else, for stderr.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["txrelay", "run", "-c", "x.toml", "--set", "a=1", "--set", "b=2"]).expect("parses");
        assert_eq!((args.config, args.set), (Some("x.toml".into()), vec!["a=1".into(), "b=2".into()]));
        for wrong in [vec!["txrelay"], vec!["txrelay", "-c", "x", "-i", "y", "run"], vec!["txrelay", "rnu"]] {
            assert_eq!(Args::try_parse_from(wrong).expect_err("refused").exit_code(), 2);
        }
    }

    #[test]
    fn the_help_fits_a_terminal_and_names_every_exit_code() {
        let help = Args::command().term_width(100).render_long_help().to_string();
        assert!(help.lines().all(|l| l.chars().count() <= 100), "{help}");
        for exit in [Exit::Done, Exit::Failed, Exit::Usage, Exit::Unreachable, Exit::NotPermitted, Exit::Config] {
            assert!(help.contains(&format!(" {}  ", exit as u8)), "{exit:?}");
        }
    }
}
