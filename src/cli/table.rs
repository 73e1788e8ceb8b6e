//! How rows are printed: aligned and coloured on a terminal, tab-separated without a header elsewhere, so that `cut` and `awk`
//! need no options. Text from outside has its control characters shown, never obeyed.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use crate::config::visible;

/// A value of a row.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    /// For eyes that look for it: something is wrong here.
    wrong: bool,
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: visible(text.as_ref()), wrong: false }
    }
}

impl Cell {
    pub(super) fn wrong_if(self, wrong: bool) -> Self {
        Self { wrong, ..self }
    }
}

/// What is printed where. A closed pipe (`| head`) ends a command without a word.
pub(super) struct Table {
    columns: &'static [&'static str],
    /// Of the first page; later rows that are wider move to the right.
    widths: Option<Vec<usize>>,
    page: Vec<Vec<Cell>>,
    terminal: bool,
    colours: bool,
    out: BufWriter<Stdout>,
}

impl Table {
    pub(super) fn new(columns: &'static [&'static str]) -> Self {
        let terminal = io::stdout().is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { columns, widths: None, page: Vec::new(), terminal, colours, out: BufWriter::new(io::stdout()) }
    }

    pub(super) fn is_on_a_terminal(&self) -> bool {
        self.terminal
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) -> io::Result<()> {
        if self.terminal {
            self.page.push(cells);
            return Ok(());
        }
        let texts: Vec<&str> = cells.iter().map(|cell| cell.text.as_str()).collect();
        writeln!(self.out, "{}", texts.join("\t"))
    }

    /// Prints what was gathered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let page = std::mem::take(&mut self.page);
        if page.is_empty() {
            return self.out.flush();
        }
        let widths = match self.widths.take() {
            Some(widths) => widths,
            None => {
                let widths = widths(self.columns, &page);
                let header = aligned(self.columns.iter().copied(), &widths);
                writeln!(self.out, "{}", if self.colours { format!("\x1b[1m{header}\x1b[0m") } else { header })?;
                widths
            }
        };
        for cells in &page {
            let line = aligned(cells.iter().map(|cell| cell.text.as_str()), &widths);
            let red = self.colours && cells.iter().any(|cell| cell.wrong);
            writeln!(self.out, "{}", if red { format!("\x1b[31m{line}\x1b[0m") } else { line })?;
        }
        self.widths = Some(widths);
        self.out.flush()
    }

    /// A line as it is: JSON.
    pub(super) fn plain(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }
}

fn widths(columns: &[&str], page: &[Vec<Cell>]) -> Vec<usize> {
    let of = |n: usize| page.iter().filter_map(move |cells| cells.get(n)).map(|cell| cell.text.chars().count());
    columns.iter().enumerate().map(|(n, name)| of(n).max().unwrap_or(0).max(name.chars().count())).collect()
}

fn aligned<'a>(texts: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let mut line = String::new();
    for (text, width) in texts.zip(widths) {
        line.push_str(&format!("{text:<width$}  "));
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_text() {
        let page = vec![vec![Cell::from("a"), Cell::from("dead")], vec![Cell::from("a\u{1b}[31m"), Cell::from("")]];
        let widths = widths(&["ID", "STATE"], &page);
        assert_eq!(widths, [11, 5], "an escape sequence is shown, not obeyed");
        assert_eq!(aligned(["a", "dead"].into_iter(), &widths), "a            dead");
    }
}
