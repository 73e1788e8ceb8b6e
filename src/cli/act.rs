//! `retry` and `resolve`: what people do to transactions. More than one row is counted and asked about first, and every
//! action leaves its line in `audit_log`.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Exit, complain, connect, load_to_connect, non_empty, ready, say, store_failed, unknown, when};
use crate::config::{Config, visible};
use crate::core::times::{both, rough};
use crate::store::{DeadFilter, Found, Session, Standing, StoreError, Trace};

/// Rows of one transaction.
const BATCH: usize = 500;

/// What both commands take.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RetryArgs {
    /// Transactions by their ids
    #[arg(value_name = "ID", required_unless_present = "state", conflicts_with = "state", value_parser = non_empty())]
    ids: Vec<String>,
    /// All that are in this state
    #[arg(long, value_parser = ["dead"])]
    state: Option<String>,
    /// Of those, what died at or after this: 2h, today, or RFC 3339
    #[arg(long, value_name = "T", value_parser = when::parse, requires = "state")]
    since: Option<SystemTime>,
    /// Of those, what died before this
    #[arg(long, value_name = "T", value_parser = when::parse, requires = "state")]
    until: Option<SystemTime>,
    /// Of those, what died of this HTTP status
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u16).range(100..1000), requires = "state")]
    status: Option<u16>,
    /// At most so many
    #[arg(long, value_name = "N", requires = "state", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Also what the service has accepted: it is posted a second time
    #[arg(long, conflicts_with = "state")]
    even_delivered: bool,
    #[command(flatten)]
    common: Common,
}

// Named transactions, and why. (A doc comment would take the place of the command's own.)
#[derive(Debug, clap::Args)]
pub(super) struct NamedArgs {
    /// Transactions by their ids
    #[arg(value_name = "ID", required = true, value_parser = non_empty())]
    pub(super) ids: Vec<String>,
    /// Why; kept with each
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    pub(super) common: Common,
}

impl NamedArgs {
    /// It must say something.
    pub(super) fn reason(&self) -> Result<&str, Exit> {
        let reason = self.reason.trim();
        if reason.is_empty() {
            complain("txrelay: --reason says why, for whoever asks later: it is empty");
            return Err(Exit::Usage);
        }
        Ok(reason)
    }
}

/// Makes transactions due now, with a fresh budget.
pub(super) fn retry(file: &Path, sets: &[String], args: &RetryArgs) -> Exit {
    run(
        file,
        sets,
        "retry",
        |config, session| {
            if args.state.is_some() { retry_dead(config, session, args) } else { retry_ids(session, args) }
        },
    )
}

/// Closes dead or waiting transactions without sending them.
pub(super) fn resolve(file: &Path, sets: &[String], args: &NamedArgs) -> Exit {
    let reason = match args.reason() {
        Ok(reason) => reason,
        Err(exit) => return exit,
    };
    run(file, sets, "resolve", |_, session| {
        let who = who();
        let plan = Plan::of(
            session,
            &args.ids,
            |standing| matches!(standing, Standing::Dead | Standing::Waiting),
            |standing| match standing {
                Standing::InFlight => "in flight: wait until its request has ended",
                Standing::Resolved => "resolved already",
                Standing::Delivered | Standing::Erased => "delivered: there is nothing to close",
                _ => LOST,
            },
        )?;
        plan.carry_out(session, &args.common, "Close", "resolved", |session, found, trace| match found.standing {
            Standing::Dead => session.resolve_dead(&[found.id], &who, reason, trace),
            _ => session.resolve_waiting(&[found.id], &who, reason, trace),
        })
    })
}

/// No command may guess whether the service has it.
const LOST: &str = "stored, and its state was lost: whether the service has accepted it is not known here, so nothing is done; \
    ask the service for it by its id";

pub(super) fn run(
    file: &Path,
    sets: &[String],
    role: &'static str,
    work: impl FnOnce(&Config, &mut Session) -> Result<Exit, StoreError>,
) -> Exit {
    let config = match load_to_connect(file, sets) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let done = connect(&config, role).and_then(|mut session| {
        ready(&config, &mut session)?;
        work(&config, &mut session)
    });
    done.unwrap_or_else(|error| store_failed(&error))
}

fn retry_ids(session: &mut Session, args: &RetryArgs) -> Result<Exit, StoreError> {
    let may = |standing| match standing {
        Standing::Dead | Standing::Waiting => true,
        Standing::Delivered => args.even_delivered,
        _ => false,
    };
    let plan = Plan::of(session, &args.ids, may, |standing| match standing {
        Standing::InFlight => "in flight: it is being sent",
        Standing::Resolved => "resolved: a person closed it",
        Standing::Delivered => {
            "delivered: the service has accepted it and would get it twice; --even-delivered does it all the same"
        }
        Standing::Erased => "erased: there is nothing left to send",
        _ => LOST,
    })?;
    plan.carry_out(session, &args.common, "Retry", "due now", |session, found, trace| match found.standing {
        Standing::Dead => session.retry_dead(&[found.id], trace),
        Standing::Delivered => session.retry_delivered(&[found.id], trace),
        _ => session.retry_waiting(&[found.id], trace),
    })
}

/// What is to be done with transactions that were named.
pub(super) struct Plan {
    pub(super) allowed: Vec<Found>,
    /// Some were not found, or may not be touched; it has been said.
    pub(super) refused: bool,
}

impl Plan {
    pub(super) fn of(
        session: &mut Session,
        ids: &[String],
        may: impl Fn(Standing) -> bool,
        why_not: impl Fn(Standing) -> &'static str,
    ) -> Result<Self, StoreError> {
        let mut wanted: Vec<&str> = ids.iter().map(String::as_str).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let found = session.find(&wanted)?;
        let mut refused = false;
        for id in wanted.iter().filter(|id| !found.iter().any(|found| found.transaction_id == **id)) {
            refused = true;
            complain(&unknown(id));
        }
        let (allowed, others): (Vec<Found>, Vec<Found>) = found.into_iter().partition(|found| may(found.standing));
        for found in others {
            refused = true;
            complain(&format!("{}: {}", visible(&found.transaction_id), why_not(found.standing)));
        }
        Ok(Self { allowed, refused })
    }

    /// Does `act` to each, after asking where there are several.
    pub(super) fn carry_out(
        self,
        session: &mut Session,
        common: &Common,
        verb: &str,
        done: &str,
        act: impl Fn(&mut Session, &Found, &Trace) -> Result<Vec<i64>, StoreError>,
    ) -> Result<Exit, StoreError> {
        let mut refused = self.refused;
        let count = self.allowed.len();
        if count > 1 {
            let times = || self.allowed.iter().map(|found| found.received_at);
            complain(&described("transactions, received", count as i64, (times().min(), times().max()), session)?);
            if !common.dry_run && !confirmed(&format!("{verb} {count} transactions?"), common) {
                return Ok(Exit::Failed);
            }
        }
        let trace = trace();
        for found in &self.allowed {
            let id = visible(&found.transaction_id);
            if common.dry_run {
                say(&format!("{id}: would be {done}"));
            } else if act(session, found, &trace)?.is_empty() {
                refused = true;
                complain(&format!("{id}: has moved on meanwhile; nothing was done"));
            } else {
                say(&format!("{id}: {done}"));
            }
        }
        Ok(if refused { Exit::Failed } else { Exit::Done })
    }
}

fn retry_dead(config: &Config, session: &mut Session, args: &RetryArgs) -> Result<Exit, StoreError> {
    let filter = DeadFilter { since: args.since, until: args.until, status: args.status };
    let found = session.dead_summary(&filter)?;
    let count = args.limit.map_or(found.count, |limit| found.count.min(i64::try_from(limit).unwrap_or(i64::MAX)));
    if count == 0 {
        say("none is dead by that description");
        return Ok(Exit::Done);
    }
    complain(&described("dead transactions, died", count, (found.oldest, found.newest), session)?);
    if args.common.dry_run {
        say(&format!("{count} would be due now"));
        return Ok(Exit::Done);
    }
    if count > 1 && !confirmed(&format!("Retry {count} dead transactions of {}?", config.name), &args.common) {
        return Ok(Exit::Failed);
    }
    let (trace, mut done, mut after) = (trace(), 0, i64::MIN);
    while done < count {
        let rows = BATCH.min(usize::try_from(count - done).unwrap_or(BATCH));
        let ids = session.dead_batch(&filter, after, rows)?;
        let Some(last) = ids.last() else { break };
        after = *last;
        done += session.retry_dead(&ids, &trace)?.len() as i64;
        if count > BATCH as i64 {
            complain(&format!("{done} of {count}"));
        }
    }
    say(&format!("{done} due now"));
    Ok(Exit::Done)
}

/// How many, how old, and how long they take at the rate of this moment.
pub(super) fn described(
    what: &str,
    count: i64,
    (oldest, newest): (Option<SystemTime>, Option<SystemTime>),
    session: &mut Session,
) -> Result<String, StoreError> {
    let now = session.server_clock()?.now;
    let time = |time: Option<SystemTime>| time.map_or_else(|| "-".to_owned(), |time| both(time, now));
    let mut text = format!("{count} {what} from {} to {}", time(oldest), time(newest));
    let before = session.gauges()?.ledger().delivered();
    std::thread::park_timeout(Duration::from_secs(1));
    let rate = session.gauges()?.ledger().delivered() - before;
    if rate > 0 {
        text.push_str(&format!(
            "; at the present {rate} deliveries a second they take about {}",
            rough(Duration::from_secs((count / rate).max(1).unsigned_abs()))
        ));
    } else {
        text.push_str("; nothing is being delivered at this moment, so how long they take cannot be said");
    }
    Ok(text)
}

/// Asks on the terminal. Without one, `--yes` has to say it.
pub(super) fn confirmed(question: &str, common: &Common) -> bool {
    if common.yes {
        return true;
    }
    if !std::io::stdin().is_terminal() {
        complain(&format!("{question} Nobody can be asked here: say --yes"));
        return false;
    }
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    // Nothing is a no.
    let _ = std::io::stdin().lock().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

pub(super) fn trace() -> Trace {
    Trace {
        uid: Some(rustix::process::getuid().as_raw()),
        sudo_user: std::env::var("SUDO_USER").ok(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
    }
}

/// A person, as far as the machine knows.
pub(super) fn who() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    user.unwrap_or_else(|_| format!("uid {}", rustix::process::getuid().as_raw()))
}
