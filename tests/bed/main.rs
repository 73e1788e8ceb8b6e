//! The helper of demo, tests and benches: one binary, a subcommand per part of the bed. Never installed, and never a part
//! of the daemon: it knows txrelay only by its interface (Kafka, HTTP, SQL, /metrics).

mod crash;
mod herd;
mod http;
mod ledger;
mod measure;
mod produce;
mod proxy;
mod shared;
mod topic;
mod verdict;
mod watch;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bed", about = "Helper of txrelay's demo, tests and benches")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The HTTP service that must not miss a transaction, with faults on request
    Ledger(ledger::Args),
    /// Write transactions to Kafka and a file that says what was written
    Produce(produce::Args),
    /// Create, delete or describe a topic
    Topic(topic::Args),
    /// First and next offset of each partition
    Offsets(topic::OffsetsArgs),
    /// A TCP proxy that can be told to fail
    Proxy(proxy::Args),
    /// One HTTP request, repeated until it succeeds if so asked
    Http(http::Args),
    /// Show the daemon's progress from its /metrics
    Watch(watch::Args),
    /// Hold what was produced against what was delivered and stored; exit 0 only when nothing is lost
    Verdict(verdict::Args),
    /// One run of the bench, or the table of several
    Measure(measure::Args),
    /// A service that fails and comes back, and what it is sent
    Herd(herd::Args),
    /// kill -9 at full load, again and again: how soon the next process has taken up what the dead one left
    Crash(crash::Args),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Ledger(args) => ledger::run(args),
        Command::Produce(args) => produce::run(&args),
        Command::Topic(args) => topic::run(&args),
        Command::Offsets(args) => topic::offsets(&args),
        Command::Proxy(args) => proxy::run(&args),
        Command::Http(args) => http::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Verdict(args) => verdict::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Herd(args) => herd::run(&args),
        Command::Crash(args) => crash::run(&args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bed: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
