//! What was written: the file and `--set`, walked against the table of keys. Every value that comes out of here has its
//! key's type and lies in its range; what several keys mean together is decided in `load`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Given, Key, Kind};
use super::problems::{At, Problem};
use super::value::{parse_duration, parse_size, show_duration, show_size};
use super::view::{Effective, View};

/// A value of the type of its key.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Count(u32),
    Period(Duration),
    /// `None`: for ever.
    Term(Option<Duration>),
    Size(u64),
    List(Vec<(String, At)>),
    /// In the order of the file.
    Table(Vec<(String, String, At)>),
}

impl Value {
    /// As it would stand in the file.
    fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        match self {
            Self::Text(text) => quoted(text),
            Self::Bool(value) => value.to_string(),
            Self::Count(n) => n.to_string(),
            Self::Period(time) | Self::Term(Some(time)) => quoted(&show_duration(*time)),
            Self::Term(None) => quoted("forever"),
            Self::Size(bytes) => quoted(&show_size(*bytes)),
            Self::List(items) => format!("[{}]", items.iter().map(|(item, _)| quoted(item)).collect::<Vec<_>>().join(", ")),
            Self::Table(entries) => {
                let entries = entries.iter().map(|(name, value, _)| format!("{} = {}", quoted(name), quoted(value)));
                format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// All that was written, and all that is wrong with it so far.
#[derive(Debug, Default)]
pub(super) struct Written {
    values: BTreeMap<&'static str, (Value, At)>,
    /// Written, but not usable; said once, so nothing else is said about them.
    bad: BTreeSet<&'static str>,
    /// Where the tables' headers are, for keys that are missing.
    tables: BTreeMap<String, At>,
    /// Tables without a header: their keys are written with dots, `kafka.topics = ...`.
    dotted: BTreeSet<String>,
    pub problems: Vec<Problem>,
}

impl Written {
    /// Reads the file's text, then `--set` over it.
    pub fn read(text: &str, sets: &[String]) -> Self {
        let mut written = Self::default();
        let (document, errors) = DeTable::parse_recoverable(text);
        let lines = Lines(text);
        let mut broken = BTreeSet::new();
        for error in &errors {
            let start = error.span().map_or(text.len(), |s| s.start);
            let at = lines.at(start);
            // One slip makes several errors of the parser; the first one of a line says it.
            if broken.insert(line_of(at)) {
                written.report(at, "", if is_bare_word(text, start) { UNQUOTED } else { syntax(error.message()) });
            }
        }
        let n_syntax = written.problems.len();
        written.walk(document.get_ref(), "", &lines);
        // What the parser made of a broken line is nobody's intention.
        let mut n = 0;
        written.problems.retain(|p| {
            n += 1;
            n <= n_syntax || !broken.contains(&line_of(p.at))
        });
        for set in sets {
            written.set(set);
        }
        if errors.is_empty() {
            written.report_missing();
        }
        written
    }

    pub fn report(&mut self, at: At, key: &str, text: impl Into<String>) {
        self.problems.push(Problem { at, key: key.into(), text: text.into() });
    }

    /// Marks a key as said to be wrong, so that what depends on it is not.
    pub fn refuse(&mut self, path: &'static str, at: At, text: impl Into<String>) {
        self.bad.insert(path);
        self.report(at, path, text);
    }

    /// The same for one name in a table of the user's own names.
    pub fn refuse_in(&mut self, path: &'static str, name: &str, at: At, text: impl Into<String>) {
        self.bad.insert(path);
        self.report(at, &format!("{path}.{name}"), text);
    }

    /// Whether nothing has been said against a key.
    pub fn is_good(&self, path: &str) -> bool {
        !self.bad.contains(path)
    }

    /// What was written under a key or is its default, and where; `None` when it is unusable, missing or has no default.
    pub fn get(&mut self, path: &'static str) -> Option<(Value, At)> {
        if self.bad.contains(path) {
            return None;
        }
        if let Some(found) = self.values.get(path) {
            return Some(found.clone());
        }
        let key = keys::find(path).expect("only keys of the table are asked for");
        let Given::Default(text) = key.given else { return None };
        let value = DeValue::parse(text).expect("defaults are TOML, by test");
        Some((convert(key, value.get_ref(), At::File, &|_| At::File).expect("defaults fit their keys, by test"), At::File))
    }

    /// What every key comes to; `computed` are those that follow from others.
    pub fn view(&mut self, computed: &[(&'static str, Value)]) -> View {
        let mut values = BTreeMap::new();
        for key in keys::KEYS {
            let found = self.get(key.path);
            let source = found.as_ref().map_or(At::File, |(_, at)| *at).into();
            let computed = || computed.iter().find(|(path, _)| *path == key.path).map(|(_, value)| value.clone());
            let value = found.map(|(value, _)| value).or_else(computed);
            values.insert(key.path, Effective { value: value.as_ref().map(Value::to_toml), source });
        }
        View::new(values)
    }

    /// Another default than the table of keys has, where another key's value asks for it.
    pub fn default_to(&mut self, path: &'static str, value: Value) {
        if !self.is_written(path) {
            self.values.insert(path, (value, At::File));
        }
    }

    /// Whether the table's header, or a key of it, stands in the file or on the command line; nothing in quotes there is nothing.
    pub fn is_table_written(&self, table: &str) -> bool {
        let inside = |path: &str| path.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
        let says = |(value, at): &(Value, At)| *at != At::Set || !matches!(value, Value::Text(text) if text.is_empty());
        self.tables.contains_key(table)
            || self.values.iter().any(|(path, value)| inside(path) && says(value))
            || self.bad.iter().any(|path| inside(path))
    }

    /// Where a table begins, for what is wrong with it as a whole.
    pub fn table_at(&self, table: &str) -> At {
        self.tables.get(table).copied().unwrap_or(At::Set)
    }

    /// Whether the key stands in the file or on the command line.
    pub fn is_written(&self, path: &str) -> bool {
        self.values.contains_key(path) || self.bad.contains(path)
    }

    fn walk(&mut self, table: &DeTable<'_>, prefix: &str, lines: &Lines<'_>) {
        for (name, value) in table {
            let path = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let at = lines.at(name.span().start);
            match (keys::find(&path), value.get_ref()) {
                (Some(key), value_) => self.take(key, value_, lines.at(value.span().start), &|start| lines.at(start)),
                (None, DeValue::Table(inner)) if keys::is_table(&path) => {
                    self.tables.insert(path.clone(), at);
                    let before = lines.0.get(..name.span().start).unwrap_or_default();
                    if !before.trim_end().ends_with(['[', '.']) {
                        self.dotted.insert(path.clone());
                    }
                    self.walk(inner, &path, lines);
                }
                (None, _) if keys::is_table(&path) => {
                    self.report(at, &path, format!("this is a table: write [{path}] on a line of its own"))
                }
                (None, _) => self.report(at, &path, unknown(&path)),
            }
        }
    }

    /// One `--set key=value`.
    fn set(&mut self, set: &str) {
        let Some((path, text)) = set.split_once('=') else {
            return self.report(At::Set, "", "must be key=value, for instance --set log.level=debug");
        };
        let (path, text) = (path.trim(), text.trim());
        let Some(key) = keys::find(path) else {
            // A name inside a table of the user's own names.
            let owner = keys::KEYS.iter().find_map(|k| match k.kind {
                Kind::Table => Some((k, path.strip_prefix(k.path)?.strip_prefix('.')?)),
                _ => None,
            });
            return match owner {
                Some((key, name)) => {
                    let mut entries = match self.get(key.path) {
                        Some((Value::Table(entries), _)) => entries,
                        _ => Vec::new(),
                    };
                    entries.retain(|(n, ..)| n != name);
                    entries.push((name.into(), text.into(), At::Set));
                    self.values.insert(key.path, (Value::Table(entries), At::Set));
                }
                None if keys::is_table(path) => self.report(At::Set, path, "this is a table: name a key in it"),
                None => self.report(At::Set, path, unknown(path)),
            };
        };
        let quoted = text.starts_with(['"', '\'']);
        let parsed = match key.kind {
            Kind::Text | Kind::Choice(_) | Kind::Period(..) | Kind::Term(..) | Kind::Size(..) if !quoted => {
                DeValue::String(text.into())
            }
            Kind::List if !text.starts_with('[') => {
                let items = text.split(',').map(|item| Spanned::new(0..0, DeValue::String(item.trim().into())));
                DeValue::Array(items.collect())
            }
            _ => match DeValue::parse(text) {
                Ok(value) => value.into_inner(),
                Err(_) => return self.refuse(key.path, At::Set, expected(key.kind)),
            },
        };
        self.values.remove(key.path);
        self.bad.remove(key.path);
        // A value that the command line replaces cannot be wrong any more.
        self.problems.retain(|p| p.key != key.path || p.at == At::Set);
        self.take(key, &parsed, At::Set, &|_| At::Set);
    }

    fn take(&mut self, key: &'static Key, value: &DeValue<'_>, at: At, place: &dyn Fn(usize) -> At) {
        match convert(key, value, at, place) {
            Ok(value) => {
                self.values.insert(key.path, (value, at));
            }
            Err((at, text)) => self.refuse(key.path, at, text),
        }
    }

    fn report_missing(&mut self) {
        for key in keys::KEYS {
            let Given::Required(example) = key.given else { continue };
            if !self.is_written(key.path) {
                let (table, name) = key.path.split_once('.').expect("required keys stand in tables");
                let at = self.tables.get(table).copied().unwrap_or(At::Line(1, 1));
                let place = if self.tables.contains_key(table) { String::new() } else { format!(" under [{table}]") };
                let name = if self.dotted.contains(table) { key.path } else { name };
                self.refuse(key.path, at, format!("is missing: write{place} a line such as {name} = {example}"));
            }
        }
    }
}

/// Type and range of one value. The error never repeats it.
fn convert(key: &Key, value: &DeValue<'_>, at: At, place: &dyn Fn(usize) -> At) -> Result<Value, (At, String)> {
    let wrong = || (at, expected(key.kind));
    let text = || value.as_str().ok_or_else(wrong);
    Ok(match key.kind {
        Kind::Text => Value::Text(text()?.into()),
        Kind::Choice(words) => Value::Text(words.iter().find(|w| Some(**w) == value.as_str()).ok_or_else(wrong)?.to_string()),
        Kind::Bool => Value::Bool(value.as_bool().ok_or_else(wrong)?),
        Kind::Count(low, high) => {
            let number = value.as_integer().and_then(|i| u32::from_str_radix(i.as_str(), i.radix()).ok());
            Value::Count(number.filter(|n| (low..=high).contains(n)).ok_or_else(wrong)?)
        }
        Kind::Period(low, high) => Value::Period(parse_duration(text()?).filter(|d| (low..=high).contains(d)).ok_or_else(wrong)?),
        Kind::Term(low, high) => Value::Term(match text()? {
            "forever" => None,
            text => Some(parse_duration(text).filter(|d| (low..=high).contains(d)).ok_or_else(wrong)?),
        }),
        Kind::Size(low, high) => Value::Size(parse_size(text()?).filter(|n| (low..=high).contains(n)).ok_or_else(wrong)?),
        Kind::List => {
            let mut list = Vec::new();
            for item in value.as_array().ok_or_else(wrong)?.iter() {
                let at = place(item.span().start);
                list.push((
                    item.get_ref().as_str().ok_or_else(|| (at, "every entry must be text in quotes".to_string()))?.into(),
                    at,
                ));
            }
            Value::List(list)
        }
        Kind::Table => {
            let mut entries = Vec::new();
            for (name, value) in value.as_table().ok_or_else(wrong)? {
                let at = place(value.span().start);
                let Some(text) = value.get_ref().as_str() else {
                    // Unquoted, a.b = "x" is a table in a table.
                    let what = if value.get_ref().is_table() {
                        "put a name with dots in quotes"
                    } else {
                        "every value must be text in quotes"
                    };
                    return Err((at, what.into()));
                };
                entries.push((name.span().start, (name.get_ref().to_string(), text.to_string(), at)));
            }
            entries.sort_by_key(|(start, _)| *start);
            Value::Table(entries.into_iter().map(|(_, entry)| entry).collect())
        }
    })
}

fn expected(kind: Kind) -> String {
    match kind {
        Kind::Text => "must be text in quotes".into(),
        Kind::Choice(words) => match words {
            [one] => format!("must be \"{one}\""),
            _ => format!("must be one of \"{}\"", words.join("\", \"")),
        },
        Kind::Bool => "must be true or false, without quotes".into(),
        Kind::Count(low, high) => format!("must be a whole number from {low} to {high}, without quotes"),
        Kind::Period(low, high) => format!(
            "must be a time with its unit in quotes, such as \"250ms\", \"15s\", \"2m\", \"72h\", \"30d\", from {} to {}",
            show_duration(low),
            show_duration(high)
        ),
        Kind::Term(low, high) => format!(
            "must be \"forever\", or a time with its unit in quotes, such as \"72h\", \"30d\", from {} to {}",
            show_duration(low),
            show_duration(high)
        ),
        Kind::Size(low, high) => format!(
            "must be a size with its unit in quotes, such as \"500 B\", \"1 kB\", \"64 KiB\", \"1 MiB\", from {} to {}",
            show_size(low),
            show_size(high)
        ),
        Kind::List => "must be a list of texts: [\"one\", \"two\"]".into(),
        Kind::Table => "must be a table of texts: { \"name\" = \"value\" }".into(),
    }
}

fn unknown(path: &str) -> String {
    match keys::similar(path) {
        Some(known) if keys::is_table(known) => format!("unknown key, did you mean [{known}]?"),
        Some(known) => format!("unknown key, did you mean {known}?"),
        None => "unknown key, see the reference file for those that there are".into(),
    }
}

const UNQUOTED: &str = "a value must stand after the =, text in quotes: key = \"text\"";

/// Whether a word without quotes begins there, as a value. Of some the parser thinks that they want to be a number: `info` begins
/// as infinity does.
fn is_bare_word(text: &str, start: usize) -> bool {
    let (Some(before), Some(after)) = (text.get(..start), text.get(start..)) else { return false };
    before.trim_end_matches([' ', '\t']).ends_with('=') && after.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Our own words for what the TOML parser found: some of its messages repeat what stands in the file.
fn syntax(message: &str) -> &'static str {
    let found = |what: &str| message.starts_with(what);
    if found("duplicate key") {
        "this key or table is already given further up, keep one of them"
    } else if found("string values must be quoted") || found("missing opening quote") {
        UNQUOTED
    } else if found("invalid basic string") || found("invalid literal string") {
        "text that is not closed by its quote, or holds what must be escaped; in '...' nothing is"
    } else if found("missing comma") || found("unclosed array") {
        "entries of a list stand between [ and ] with commas between them"
    } else if found("invalid table header") || found("unclosed table") {
        "a table's header stands alone on its line: [name]"
    } else {
        "this is not TOML, which is lines of key = value under [table] headers"
    }
}

/// Finds lines and columns for byte offsets.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn at(&self, offset: usize) -> At {
        let mut offset = offset.min(self.0.len());
        while !self.0.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.0[..offset];
        let start = before.rfind('\n').map_or(0, |n| n + 1);
        At::Line(before.matches('\n').count() + 1, before[start..].chars().count() + 1)
    }
}

fn line_of(at: At) -> usize {
    match at {
        At::Line(line, _) => line,
        At::File | At::Set => 0,
    }
}
