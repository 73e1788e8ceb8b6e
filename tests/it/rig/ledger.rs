//! The HTTP service that must not miss a transaction.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::Killed;

/// The HTTP service.
pub struct Ledger {
    _child: Killed,
    pub address: String,
}

impl Ledger {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    /// On this address.
    pub fn start_at(address: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bed"))
            .args(["ledger", "--listen", address])
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

    /// How many requests it has answered so: a status, or an action.
    pub fn answered(&self, answer: &str) -> u64 {
        self.summary()["by_answer"][answer].as_u64().unwrap_or(0)
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

    /// All requests, in order.
    pub fn all(&self) -> Vec<Value> {
        self.get("/_/requests").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// All of these were accepted, and nothing else.
    #[track_caller]
    pub fn has_exactly(&self, expected: &[String]) {
        let accepted: BTreeSet<String> = self.accepted().into_iter().collect();
        let missing: Vec<&String> = expected.iter().filter(|id| !accepted.contains(*id)).take(5).collect();
        assert!(missing.is_empty(), "not delivered: {missing:?}");
        assert_eq!(accepted.len(), expected.len(), "something was delivered that nobody sent");
    }
}
