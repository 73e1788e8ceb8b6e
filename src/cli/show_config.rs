//! `show-config`: what every key comes to, and who said so.

use std::path::Path;

use serde_json::json;

use super::{Exit, load, say};
use crate::config::keys::KEYS;
use crate::config::{Config, Source, visible};

#[derive(Debug, clap::Args)]
pub(super) struct ShowConfigArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// What stands for a value that may be secret.
const MASK: &str = "\"***\"";

pub(super) fn show_config(file: &Path, sets: &[String], args: &ShowConfigArgs) -> Exit {
    // As `run` would read it: nothing is put in a key's place.
    match load(file, sets) {
        Ok(config) => {
            say(if args.json { in_json(&config) } else { in_toml(&config) }.trim_end());
            Exit::Done
        }
        Err(exit) => exit,
    }
}

/// Key, value and source of every key of this version, in the order of the reference file.
fn effective(config: &Config) -> impl Iterator<Item = (&'static str, Option<String>, Source)> + '_ {
    KEYS.iter().filter_map(|key| {
        let effective = config.view.get(key.path)?;
        Some((key.path, effective.value.as_ref().map(|value| masked(key.path, value)), effective.source))
    })
}

/// Values that may hold a secret are not shown: whatever is called so, headers, and a URL behind its host.
fn masked(path: &str, value: &str) -> String {
    let last = path.rsplit('.').next().unwrap_or(path);
    // A file's name is none.
    if last.ends_with("_file") || last.ends_with("_files") {
        return value.to_owned();
    }
    if last == "url" {
        return masked_url(value);
    }
    if matches!(path, "downstream.headers" | "kafka.librdkafka") {
        return masked_table(value);
    }
    let secret = ["password", "secret", "token"].iter().any(|word| last.contains(word));
    if secret { MASK.to_owned() } else { value.to_owned() }
}

/// Of a URL: scheme and host; PostgreSQL's whole URL, in which a password is refused.
fn masked_url(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    if !scheme.trim_start_matches('"').starts_with("http") {
        return value.to_owned();
    }
    match rest.find(['/', '?']) {
        Some(end) if rest[end..].trim_end_matches('"').len() > 1 => format!("{scheme}://{}/***\"", &rest[..end]),
        _ => value.to_owned(),
    }
}

/// The names of a table, without what stands under them.
fn masked_table(value: &str) -> String {
    let Ok(table) = format!("t = {value}").parse::<toml::Table>() else { return MASK.to_owned() };
    let names = table.get("t").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys);
    let entries: Vec<String> = names.map(|name| format!("{} = {MASK}", toml::Value::String(name.clone()))).collect();
    if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) }
}

fn in_toml(config: &Config) -> String {
    let mut out = format!("# {}\n", visible(&config.file.display().to_string()));
    let mut table = "";
    for (path, value, source) in effective(config) {
        let (in_table, name) = path.rsplit_once('.').unwrap_or(("", path));
        if in_table != table {
            table = in_table;
            out.push_str(&format!("\n{}[{table}]\n", if is_off(config, table) { "#" } else { "" }));
        }
        // Tables whose being there switches something on must not do so when this is read again.
        let name = if is_off(config, in_table) { format!("# {name}") } else { name.to_owned() };
        let said = match source {
            Source::Default => "default".to_owned(),
            Source::File(line) => format!("line {line}"),
            Source::Set => "--set".to_owned(),
        };
        match value {
            Some(value) => out.push_str(&format!("{:<52} # {said}\n", format!("{name} = {}", visible(&value)))),
            None => out.push_str(&format!("{:<52} # not given\n", format!("# {}", name.trim_start_matches("# ")))),
        }
    }
    out
}

fn is_off(config: &Config, table: &str) -> bool {
    match table {
        "kafka.tls" => config.kafka.tls.is_none(),
        "kafka.sasl" => config.kafka.sasl.is_none(),
        _ => false,
    }
}

fn in_json(config: &Config) -> String {
    let keys: serde_json::Map<String, serde_json::Value> = effective(config)
        .map(|(path, value, source)| {
            let (said, line) = match source {
                Source::Default => ("default", None),
                Source::File(line) => ("file", Some(line)),
                Source::Set => ("set", None),
            };
            (path.to_owned(), json!({ "toml": value, "source": said, "line": line }))
        })
        .collect();
    json!({ "file": config.file, "keys": keys }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::config::tests::Folder;

    fn file_with_tls(folder: &Folder) -> std::path::PathBuf {
        let text = "kafka.brokers = [\"kafka-1:9092\"]\nkafka.topics = [\"payments\"]\npostgres.url = \"postgresql://txrelay@a/db\"\n\
                    downstream.url = \"https://ledger.internal/\"\n[kafka.tls]\n";
        folder.write("secured.toml", text)
    }

    #[test]
    fn every_value_comes_with_its_source_and_no_secret() {
        let folder = Folder::new();
        let file = folder.write(
            "payments.toml",
            r#"
kafka.brokers = ["kafka-1:9092"]
kafka.topics = ["payments"]
postgres.url = "postgresql://txrelay@a/db"
downstream.url = "https://ledger.internal/hunter2?token=hunter2"
downstream.headers = { "X-Source" = "hunter2" }
"#,
        );
        let config = config::load(&file, &["retry.base=2s".to_owned()]).expect("loads");
        let text = in_toml(&config);
        assert!(!text.contains("hunter2"), "{text}");
        for (start, end) in [
            ("url = \"https://ledger.internal/***\"", "# line 5"),
            ("headers = { \"X-Source\" = \"***\" }", "# line 6"),
            ("url = \"postgresql://txrelay@a/db\"", "# line 4"),
            ("base = \"2s\"", "# --set"),
            ("schema = \"txrelay_payments\"", "# default"),
            ("workers = 32", "# default"),
        ] {
            assert!(text.lines().any(|line| line.starts_with(start) && line.ends_with(end)), "{start} ... {end}:\n{text}");
        }
        assert!(text.parse::<toml::Table>().is_ok(), "{text}");
        // What is shown can be read again, but for what is masked; also of a client that reads no headers.
        let clients = [("librdkafka", cfg!(feature = "librdkafka")), ("kafka", cfg!(feature = "kafka"))];
        for (client, _) in clients.iter().filter(|(_, is_built)| *is_built) {
            let text = in_toml(&config::load(&file, &[format!("kafka.client={client}")]).expect("loads"));
            let again = text.replace("https://ledger.internal/***", "https://ledger.internal/");
            let again = config::load(&folder.write("again.toml", &again), &[]).expect("loads");
            assert!(again.kafka.tls.is_none() && again.kafka.sasl.is_none(), "nothing is switched on by it: {text}");
        }
        let secured = config::load(&file_with_tls(&folder), &[]).expect("loads");
        assert!(in_toml(&secured).lines().any(|line| line == "[kafka.tls]"));
        let json: serde_json::Value = serde_json::from_str(&in_json(&config)).expect("JSON");
        assert_eq!(json["keys"]["downstream.url"]["line"], 5);
        assert!(!json.to_string().contains("hunter2"));
    }
}
