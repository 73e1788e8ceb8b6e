//! What the documents tell people to type is what the command line takes: at three in the morning nobody has the time to guess.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;

use super::Args;

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["docs", "docs/runbook"].map(|folder| fs::read_dir(root.join(folder)).expect("a folder"));
    let inside = folders.into_iter().flatten().map(|entry| entry.expect("an entry").path());
    let all = inside.chain(["README.md", "SECURITY.md"].map(|page| root.join(page)));
    all.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// Commands of a page: whole lines of its examples, and whatever stands between backticks.
fn commands(text: &str) -> Vec<&str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    ").or_else(|| line.strip_prefix("$ ")));
    let spans = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let until = |command: &str| command.find([';', '|', '>', '#']).unwrap_or(command.len());
    let plain = lines.chain(spans).map(|command| command[..until(command)].trim());
    plain.filter(|command| command.starts_with("txrelay ") || command.contains(" txrelay -i ")).collect()
}

/// With something of the right kind where a reader fills in.
fn filled(command: &str) -> Vec<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    // The last one: the user of `sudo -u` may have the same name.
    let begin = words.iter().rposition(|word| *word == "txrelay").unwrap_or(0);
    let words = words.into_iter().skip(begin);
    // `[--json]` may be given; a number stands for N, which is no number itself.
    words.map(|word| if word == "N" { "7" } else { word.trim_matches(['[', ']']) }.to_owned()).collect()
}

#[test]
fn every_command_that_the_documents_name_is_taken_as_it_stands() {
    let (mut seen, mut refused) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        // `txrelay COMMAND --help` is about all of them.
        for command in commands(&text).into_iter().filter(|command| !command.contains("--help") && !command.contains("--version"))
        {
            seen += 1;
            let words = filled(command);
            // The name of a command alone is its name, and no example.
            let is_name = words.len() == 2;
            if let Err(error) = Args::try_parse_from(words)
                && !(is_name && error.kind() == ErrorKind::MissingRequiredArgument)
            {
                refused.push(format!("{}: {command}: {}", page.display(), error.kind()));
            }
        }
    }
    assert!(seen > 50, "only {seen} were found");
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
