//! Typed access to what was written.

use std::time::Duration;

use super::problems::At;
use super::raw::{Value, Written};

/// Typed access; each is `None` where the value is unusable, and then that is already a problem.
impl Written {
    pub fn text(&mut self, path: &'static str) -> Option<(String, At)> {
        match self.get(path)? {
            (Value::Text(text), at) => Some((text, at)),
            other => unreachable!("{path} is not a text in the table of keys: {other:?}"),
        }
    }

    pub fn parsed<T>(&mut self, path: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let (text, at) = self.text(path)?;
        parse(&text).map_err(|problem| self.refuse(path, at, problem)).ok()
    }

    pub fn computed(
        &mut self,
        path: &'static str,
        default: Option<String>,
        parse: impl FnOnce(&str) -> Result<String, String>,
    ) -> Option<String> {
        if self.is_written(path) { self.parsed(path, parse) } else { default }
    }

    pub fn period(&mut self, path: &'static str) -> Option<(Duration, At)> {
        match self.get(path)? {
            (Value::Period(time), at) => Some((time, at)),
            other => unreachable!("{path} is not a time in the table of keys: {other:?}"),
        }
    }

    /// `Some(None)`: for ever.
    pub fn term(&mut self, path: &'static str) -> Option<Option<Duration>> {
        match self.get(path)? {
            (Value::Term(time), _) => Some(time),
            other => unreachable!("{path} is not a term in the table of keys: {other:?}"),
        }
    }

    pub fn size(&mut self, path: &'static str) -> Option<usize> {
        match self.get(path)? {
            (Value::Size(bytes), _) => Some(usize::try_from(bytes).expect("sizes are bounded by the table of keys")),
            other => unreachable!("{path} is not a size in the table of keys: {other:?}"),
        }
    }

    pub fn count(&mut self, path: &'static str) -> Option<u32> {
        match self.get(path)? {
            (Value::Count(n), _) => Some(n),
            other => unreachable!("{path} is not a number in the table of keys: {other:?}"),
        }
    }

    pub fn switch(&mut self, path: &'static str) -> Option<bool> {
        match self.get(path)? {
            (Value::Bool(on), _) => Some(on),
            other => unreachable!("{path} is not a switch in the table of keys: {other:?}"),
        }
    }

    /// `check` gets each entry and those before it. A list that must be written must not be empty.
    pub fn list<E: Into<String>>(
        &mut self,
        path: &'static str,
        check: impl Fn(&str, &[String]) -> Result<(), E>,
    ) -> Option<Vec<String>> {
        let (Value::List(items), at) = self.get(path)? else { unreachable!("{path} is not a list in the table of keys") };
        if items.is_empty() && path.starts_with("kafka.") {
            self.refuse(path, at, "must name at least one");
        }
        let mut list: Vec<String> = Vec::new();
        for (item, at) in items {
            if let Err(problem) = check(&item, &list) {
                self.refuse(path, at, problem);
            }
            list.push(item);
        }
        self.is_good(path).then_some(list)
    }

    /// `check` gets name, value and the names before.
    pub fn table(
        &mut self,
        path: &'static str,
        check: impl Fn(&str, &str, &[String]) -> Result<(), String>,
    ) -> Option<Vec<(String, String)>> {
        let (Value::Table(entries), _) = self.get(path)? else { unreachable!("{path} is not a table in the table of keys") };
        let (mut names, mut list) = (Vec::new(), Vec::new());
        for (name, value, at) in entries {
            if let Err(problem) = check(&name, &value, &names) {
                self.refuse_in(path, &name, at, problem);
            }
            names.push(name.clone());
            list.push((name, value));
        }
        self.is_good(path).then_some(list)
    }
}
