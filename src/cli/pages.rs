//! Manual pages and shell completions, out of the command line's own description and the table of keys.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Args, Exit, printed};
use crate::config::keys::{Change, Given, KEYS, Key, Kind};
use crate::config::value::show_duration;

/// Which manual page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Page {
    /// txrelay(1), the command
    #[value(name = "txrelay.1")]
    Command,
    /// txrelay.toml(5), the pipeline's file
    #[value(name = "txrelay.toml.5")]
    File,
}

pub(super) fn completions(shell: Shell) -> Exit {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "txrelay", &mut text);
    printed(std::io::stdout().write_all(&text))
}

pub(super) fn man(page: Page) -> Exit {
    printed(std::io::stdout().write_all(text(page).as_bytes()))
}

pub(super) fn text(page: Page) -> String {
    match page {
        Page::Command => command(),
        Page::File => file(),
    }
}

/// One page for all commands: whoever looks for a word searches in one place.
fn command() -> String {
    let man = clap_mangen::Man::new(Args::command());
    let mut page = title("txrelay", 1);
    page.push_str(&section(|out| man.render_name_section(out)));
    page.push_str(".SH SYNOPSIS\n\\fBtxrelay\\fR [\\fB\\-c\\fR \\fIFILE\\fR | \\fB\\-i\\fR \\fINAME\\fR] \\fICOMMAND\\fR ...\n");
    page.push_str(&section(|out| man.render_description_section(out)));
    page.push_str(&section(|out| man.render_options_section(out)));
    page.push_str(".SH COMMANDS\n");
    for subcommand in Args::command().get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        about(subcommand, "", &mut page);
    }
    page.push_str(&preformatted(super::AFTER));
    page.push_str(".SH SEE ALSO\n\\fBtxrelay.toml\\fR(5)\n");
    page
}

/// A command and those below it.
fn about(command: &clap::Command, above: &str, page: &mut String) {
    let name = format!("{above}{}", command.get_name());
    if command.has_subcommands() {
        for below in command.get_subcommands() {
            about(below, &format!("{name} "), page);
        }
        return;
    }
    let command = command.clone().disable_help_flag(true);
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim_start_matches(command.get_name()).replace('\n', " ");
    let usage = usage.split_whitespace().collect::<Vec<_>>().join(" ");
    page.push_str(&format!(".SS {} {}\n", escaped(&name), escaped(&usage)));
    let text = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    page.push_str(&paragraphs(&text));
    let options = section(|out| clap_mangen::Man::new(command.clone()).render_options_section(out));
    for line in options.lines().filter(|line| !line.starts_with(".SH")) {
        page.push_str(line);
        page.push('\n');
    }
}

/// The pipeline's file, out of the table of keys.
fn file() -> String {
    let mut page = title("txrelay.toml", 5);
    page.push_str(
        ".SH NAME\ntxrelay.toml \\- a pipeline of \\fBtxrelay\\fR(1)\n.SH SYNOPSIS\n\
         \\fI/etc/txrelay/NAME.toml\\fR\n.SH DESCRIPTION\n",
    );
    page.push_str(&paragraphs(
        "One file is one pipeline, in TOML. Only kafka.brokers, kafka.topics, postgres.url and downstream.url must be given; what \
         is not written has its default. Times are \"250ms\", \"15s\", \"2m\", \"72h\" or \"30d\", sizes \"500 B\" or \"64 KiB\". Secrets are \
         never values: a key that ends in _file names a file that others can neither read nor write. Unknown keys are errors; \
         `txrelay check-config` says everything that is wrong at once, and `txrelay show-config` what every key comes to.\n\n\
         A change takes effect with SIGHUP (systemctl reload) where it says reload, else with a restart.",
    ));
    page.push_str(".SH KEYS\n");
    let mut table = None;
    for key in KEYS {
        let (in_table, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if table != Some(in_table) {
            table = Some(in_table);
            let shown = if in_table.is_empty() { "above all tables".to_owned() } else { format!("[{in_table}]") };
            page.push_str(&format!(".SS {}\n", escaped(&shown)));
        }
        page.push_str(&format!(".TP\n\\fB{}\\fR = {}\n", escaped(name), escaped(&value(key))));
        page.push_str(&paragraphs(&format!("{} {}", key.doc, change(key))).replacen(".PP\n", "", 1));
    }
    page.push_str(".SH SEE ALSO\n\\fBtxrelay\\fR(1)\n");
    page
}

fn value(key: &Key) -> String {
    let kind = match key.kind {
        Kind::Text => "text".to_owned(),
        Kind::Choice(words) => words.join(" | "),
        Kind::Bool => "true | false".to_owned(),
        Kind::Count(from, to) => format!("{from} to {to}"),
        Kind::Period(from, to) => format!("{} to {}", show_duration(from), show_duration(to)),
        Kind::Term(from, to) => format!("{} to {}, or \"forever\"", show_duration(from), show_duration(to)),
        Kind::Size(from, to) => format!("{from} B to {to} B"),
        Kind::List => "list of texts".to_owned(),
        Kind::Table => "table of texts".to_owned(),
    };
    match key.given {
        Given::Required(example) => format!("{kind}; required, such as {example}"),
        Given::Default(text) => format!("{kind}; default {text}"),
        Given::Computed(text) => format!("{kind}; default by other keys, such as {text}"),
        Given::Unset(example) => format!("{kind}; not given, such as {example}"),
    }
}

fn change(key: &Key) -> &'static str {
    match key.change {
        Change::Reload => "(reload)",
        Change::Restart => "(restart)",
    }
}

/// What clap_mangen's apostrophes need.
const PREAMBLE: [&str; 2] = [r".ie \n(.g .ds Aq \(aq", r".el .ds Aq '"];

fn title(name: &str, part: u8) -> String {
    let version = crate::ops::VERSION;
    format!("{}\n.TH {} {part} \"\" \"txrelay {version}\" txrelay\n", PREAMBLE.join("\n"), escaped(&name.to_uppercase()))
}

fn section(render: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    render(&mut text).expect("writing to memory does not fail");
    let text = String::from_utf8(text).expect("it is made of texts");
    // Each section brings the preamble of `title` along.
    text.lines().filter(|line| !PREAMBLE.contains(line)).map(|line| format!("{line}\n")).collect()
}

/// The help's last part: headings with a colon, and lines that keep their shape.
fn preformatted(text: &str) -> String {
    let mut page = String::new();
    let mut open = false;
    for line in text.lines() {
        match line.strip_suffix(':').filter(|heading| !heading.starts_with(' ')) {
            Some(heading) => {
                page.push_str(&format!("{}.SH {}\n.nf\n", if open { ".fi\n" } else { "" }, escaped(&heading.to_uppercase())));
                open = true;
            }
            None if line.is_empty() => {}
            None => page.push_str(&format!("{}\n", escaped(line))),
        }
    }
    format!("{page}{}", if open { ".fi\n" } else { "" })
}

fn paragraphs(text: &str) -> String {
    let paragraph = |text: &str| format!(".PP\n{}\n", escaped(&text.split_whitespace().collect::<Vec<_>>().join(" ")));
    text.split("\n\n").map(paragraph).collect()
}

/// Text that roff takes as it is.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('"', "\\(dq").replace('\'', "\\(aq").replace('`', "\\(ga");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use clap::ValueEnum;

    use super::*;

    fn file_of(page: Page) -> String {
        let name = page.to_possible_value().expect("it has a name").get_name().to_owned();
        format!("{}/man/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    // They name the default client, which is another where librdkafka is not built in.
    #[test]
    #[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
    fn the_shipped_manual_pages_are_those_of_the_command_line_and_the_keys() {
        for page in Page::value_variants() {
            let (file, text) = (file_of(*page), text(*page));
            if std::env::var_os("TXRELAY_WRITE_REFERENCE").is_some() {
                std::fs::write(&file, &text).expect("written");
            }
            let shipped = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(shipped == text, "{file} is out of date: run the tests once with TXRELAY_WRITE_REFERENCE=1 and commit");
        }
    }

    #[test]
    fn man_finds_nothing_to_warn_of() {
        for page in Page::value_variants() {
            // Through a pipe: `man` may not be permitted to read everybody's files.
            let mut man = Command::new("man")
                .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-"])
                .env("MANWIDTH", "80")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("man is there (apt-get install man-db groff-base)");
            man.stdin.take().expect("piped").write_all(text(*page).as_bytes()).expect("written");
            let out = man.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && said.trim().is_empty(), "{page:?}: {said}");
            assert!(out.stdout.len() > 5_000, "{page:?} has a text");
        }
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "txrelay", &mut text);
            let text = String::from_utf8(text).expect("text");
            for command in ["list", "explain", "retry", "rejected", "pause"] {
                assert!(text.contains(command), "{shell}: {command}");
            }
        }
    }
}
