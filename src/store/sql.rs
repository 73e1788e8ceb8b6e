//! Every statement, one file each in `sql/statements/`, compiled in. A test prepares them all.

/// A statement and the name of its file.
#[derive(Debug, Clone, Copy)]
pub struct Sql {
    /// Name of the file without `.sql`; key of the prepared statement.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
    /// Replaces `{limit}`: limits are literal, so that the plan is pinned to them.
    pub limit: Option<usize>,
}

macro_rules! statements {
    ($($constant:ident = $file:literal),* $(,)?) => {
        $(pub(super) const $constant: Sql = Sql {
            name: $file, text: include_str!(concat!("../../sql/statements/", $file, ".sql")), limit: None,
        };)*
        /// All statements; `claim` once for each of its limits.
        pub fn all() -> Vec<Sql> {
            let mut all = vec![$($constant),*];
            all.retain(|sql| sql.name != CLAIM.name);
            all.extend(CLAIM_LIMITS.map(claim));
            all
        }
    };
}

statements! {
    ADVANCE = "advance",
    ALL_POSITIONS = "all_positions",
    AUDIT = "audit",
    AUDIT_BACK = "audit_back",
    AUDIT_FINDINGS = "audit_findings",
    AUDIT_FOUND = "audit_found",
    AUDIT_HEALED = "audit_healed",
    AUDIT_LIVES = "audit_lives",
    AUDIT_NOTE = "audit_note",
    AUDIT_PLACES = "audit_places",
    AUDIT_POSITIONS = "audit_positions",
    AUDIT_ROWS = "audit_rows",
    AUDIT_STATES = "audit_states",
    AUDIT_TOPICS = "audit_topics",
    AUDIT_TURN = "audit_turn",
    AUDIT_UNPAIRED = "audit_unpaired",
    AUDIT_WHOLE_END = "audit_whole_end",
    BEGIN_POSITIONS = "begin_positions",
    BURY = "bury",
    CLAIM = "claim",
    CLAIM_ONE = "claim_one",
    CLAIM_PROBE = "claim_probe",
    CLOCK = "clock",
    CLOCK_AHEAD = "clock_ahead",
    CLOCK_BACK = "clock_back",
    CLOCK_JOB = "clock_job",
    CLOCK_MOVED = "clock_moved",
    CLOCK_REPAIR = "clock_repair",
    DEAD_BATCH = "dead_batch",
    DEAD_SUMMARY = "dead_summary",
    ERASE = "erase",
    ERASE_LOCK = "erase_lock",
    ERASE_STANDING = "erase_standing",
    EXPIRE = "expire",
    EXPLAIN_ATTEMPTS = "explain_attempts",
    EXPLAIN_CLAIMS = "explain_claims",
    EXPLAIN_MENTIONS = "explain_mentions",
    EXPLAIN_PIPELINE = "explain_pipeline",
    EXPLAIN_PLACE = "explain_place",
    EXPLAIN_TX = "explain_tx",
    FIND = "find",
    FIND_ID = "find_id",
    GAUGES = "gauges",
    GIVE_BACK = "give_back",
    GIVE_BACK_LEASE = "give_back_lease",
    GOODBYE = "goodbye",
    HEARTBEAT = "heartbeat",
    INGEST = "ingest",
    INGEST_WHOLE = "ingest_whole",
    INSERT_DUPLICATES = "insert_duplicates",
    INSERT_GAP = "insert_gap",
    INSERT_REJECTED = "insert_rejected",
    INSERT_SKIPPED = "insert_skipped",
    LEASED_ROWS = "leased_rows",
    LIST_ALL = "list_all",
    LIST_DEAD = "list_dead",
    LIST_OPEN = "list_open",
    LIST_RESOLVED = "list_resolved",
    LIST_ROWS = "list_rows",
    LIST_UNKNOWN = "list_unknown",
    MOVE_POSITION = "move_position",
    NAMED = "named",
    NEW_TOPIC = "new_topic",
    NEWEST_ID = "newest_id",
    NEXT_DUE = "next_due",
    OWN = "own",
    PAUSE = "pause",
    PAYLOADS = "payloads",
    POSITIONS = "positions",
    PREDECESSORS = "predecessors",
    PROCESSES = "processes",
    PULL_IN = "pull_in",
    PUT_OFF = "put_off",
    PURGE_DELIVERED = "purge_delivered",
    PURGE_DUPLICATES = "purge_duplicates",
    PURGE_PROCESSES = "purge_processes",
    PURGE_REJECTED = "purge_rejected",
    PURGE_RESOLVED = "purge_resolved",
    PURGE_SKIPPED = "purge_skipped",
    READER_HOLDS = "reader_holds",
    READER_LOCK = "reader_lock",
    READER_SILENT = "reader_silent",
    REGISTER = "register",
    REINJECT = "reinject",
    REJECTED_BATCH = "rejected_batch",
    REJECTED_COMPARE = "rejected_compare",
    REJECTED_FIND = "rejected_find",
    REJECTED_RESOLVE = "rejected_resolve",
    REJECTED_ROWS = "rejected_rows",
    REJECTED_SUMMARY = "rejected_summary",
    REJECTED_TAKE = "rejected_take",
    REJECTED_LIST = "rejected_list",
    REJECTED_REASONS = "rejected_reasons",
    REJECTED_SHOW = "rejected_show",
    RESOLVE_DEAD = "resolve_dead",
    RESOLVE_WAITING = "resolve_waiting",
    RESUME = "resume",
    RETENTION_FLUSH = "retention_flush",
    RETENTION_LOCK = "retention_lock",
    RETENTION_SHARE = "retention_share",
    RETENTION_STEP = "retention_step",
    RETENTION_TURN = "retention_turn",
    RETRY_DEAD = "retry_dead",
    RETRY_DELIVERED = "retry_delivered",
    RETRY_WAITING = "retry_waiting",
    SCHEMA_FAULTS = "schema_faults",
    SEEN = "seen",
    SETTLE_DELIVERED = "settle_delivered",
    SETTLE_DIED = "settle_died",
    SETTLE_FAILED = "settle_failed",
    SETTLE_STALE = "settle_stale",
    SHOW_ATTEMPTS = "show_attempts",
    SHOW_CONTENT = "show_content",
    SHOW_DUPLICATES = "show_duplicates",
    SHOW_REJECTED = "show_rejected",
    STATS_HOUR = "stats_hour",
    STATS_RECEIVED = "stats_received",
    SWEEP = "sweep",
    TAIL = "tail",
    TIMELINE = "timeline",
    TOPIC_ID = "topic_id",
    TOPIC_POSITIONS = "topic_positions",
    TX_AT = "tx_at",
}

/// The limits that `claim` is prepared with, ascending.
pub const CLAIM_LIMITS: [usize; 4] = [1, 8, 64, 500];

/// `claim` with one of [`CLAIM_LIMITS`].
pub(super) fn claim(limit: usize) -> Sql {
    let name = match limit {
        1 => "claim_1",
        8 => "claim_8",
        64 => "claim_64",
        _ => "claim_500",
    };
    Sql { name, limit: Some(limit), ..CLAIM }
}

impl Sql {
    /// The text that the server sees.
    pub fn render(&self) -> String {
        match self.limit {
            Some(limit) => self.text.replace("{limit}", &limit.to_string()),
            None => self.text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch is stored in the same way whether all of it is new or not.
    #[test]
    fn the_whole_statement_inserts_as_the_step_does() {
        let (begin, end) = ("with b as materialized", "), c as (");
        let step = &INGEST.text[INGEST.text.find(begin).expect("its beginning")..INGEST.text.find(end).expect("its counter")];
        assert!(INGEST_WHOLE.text.contains(step));
    }
}
