//! A TCP proxy that fails on command.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};

use super::{Killed, postgres_url};

/// A TCP proxy that fails on command.
pub struct Proxy {
    _child: Killed,
    commands: ChildStdin,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Proxy {
    /// In front of the test PostgreSQL; returns it with the DSN that goes through it.
    pub fn postgres() -> (Self, String) {
        Self::before(&postgres_url())
    }

    /// In front of the server of `dsn`.
    pub fn before(dsn: &str) -> (Self, String) {
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
