//! The way of a log line to its sink: a bounded queue, and one thread that owns the sink.
//!
//! Whoever logs never waits: a full disk, a pipe that nobody reads and a journal that hangs hold up that one thread, and
//! the lines that find no place meanwhile are counted. The first line that can be written again is followed by one that
//! says how many were lost, and why.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use log::{Level, Log, Record};
use simplelog::TermLogger;
use systemd_journal_logger::JournalLog;

/// Lines that wait, of about 200 bytes each: seconds of a busy log at debug, and never much memory.
const WAITING: usize = 1024;
/// For what still waits when the process ends.
const FLUSH: Duration = Duration::from_secs(1);

/// One line on its way.
pub(super) enum Line {
    /// As it is written, with its newline.
    Bytes(Vec<u8>),
    /// For a sink that takes records.
    Record(Box<Owned>),
    /// Everything before it has been written, or lost.
    Flush(Sender<()>),
}

/// A record that outlives the call that logged it; its texts are clean.
pub(super) struct Owned {
    pub level: Level,
    pub target: String,
    pub module: Option<&'static str>,
    pub file: Option<&'static str>,
    pub line: Option<u32>,
    pub message: String,
    pub fields: Vec<(String, String)>,
}

impl Owned {
    fn with_record<T>(&self, level: Level, give: impl FnOnce(&Record<'_>) -> T) -> T {
        let mut record = Record::builder();
        record.level(level).target(&self.target).module_path_static(self.module).file_static(self.file).line(self.line);
        give(&record.key_values(&self.fields).args(format_args!("{}", self.message)).build())
    }
}

/// Where lines end up.
pub(super) enum Sink {
    Stderr(File),
    Terminal(Box<TermLogger>),
    Journal(JournalLog),
}

impl Sink {
    /// A handle of its own: who is held up in a write must not hold the lock of `std::io::stderr`.
    pub fn stderr() -> std::io::Result<Self> {
        Ok(Self::Stderr(File::from(std::io::stderr().as_fd().try_clone_to_owned()?)))
    }

    fn write(&mut self, line: &Line) -> std::io::Result<()> {
        match (self, line) {
            (Self::Stderr(file), Line::Bytes(bytes)) => write_all(file, bytes),
            (Self::Terminal(terminal), Line::Record(owned)) => {
                owned.with_record(owned.level, |record| terminal.log(record));
                Ok(())
            }
            (Self::Journal(journal), Line::Record(owned)) => {
                // The crate writes info as 5 (notice) and debug as 6 (info).
                let level = match owned.level {
                    Level::Info => Level::Debug,
                    Level::Debug => Level::Trace,
                    level => level,
                };
                owned.with_record(level, |record| journal.journal_send(record))
            }
            (_, Line::Flush(_)) | (Self::Stderr(_), Line::Record(_)) | (_, Line::Bytes(_)) => Ok(()),
        }
    }
}

/// Also to a pipe that somebody has made non-blocking: a part of a line is worse than a wait of this thread.
fn write_all(file: &mut File, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::park_timeout(Duration::from_millis(20)),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// How many lines were lost since it was last said, and the last reason.
#[derive(Default)]
struct Lost(Mutex<(u64, String)>);

impl Lost {
    fn add(&self, n: u64, why: &str) {
        let mut lost = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lost.0 += n;
        if lost.1 != why {
            why.clone_into(&mut lost.1);
        }
    }

    fn take(&self) -> Option<(u64, String)> {
        let mut lost = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (lost.0 > 0).then(|| std::mem::take(&mut *lost))
    }
}

/// The end that logs.
#[derive(Clone)]
pub(super) struct Queue {
    lines: Sender<Line>,
    lost: Arc<Lost>,
}

impl Queue {
    /// Starts the thread `log`, which lives as long as the process. `note` makes the line about lost ones.
    pub fn start(sink: Sink, note: impl Fn(u64, &str) -> Line + Send + 'static) -> std::io::Result<Self> {
        let (lines, waiting) = bounded(WAITING);
        let lost = Arc::new(Lost::default());
        let queue = Self { lines, lost: lost.clone() };
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&waiting, sink, &lost, &note))?;
        Ok(queue)
    }

    /// Never waits.
    pub fn push(&self, line: Line) {
        match self.lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.lost.add(1, "they came faster than they were read"),
            Err(TrySendError::Disconnected(_)) => self.lost.add(1, "the log's thread has ended"),
        }
    }

    /// Waits until what was logged is written, for a second at most: nobody may read it any more.
    pub fn flush(&self) {
        let until = Instant::now() + FLUSH;
        let (done, flushed) = bounded(1);
        if self.lines.send_deadline(Line::Flush(done), until).is_ok() {
            // In vain: then the rest of the log is lost with the process.
            let _ = flushed.recv_deadline(until);
        }
    }
}

fn write(lines: &Receiver<Line>, mut sink: Sink, lost: &Lost, note: &dyn Fn(u64, &str) -> Line) {
    for line in lines {
        let failed = |e: &std::io::Error| e.to_string().split(" (os error").next().unwrap_or_default().to_owned();
        if let Err(e) = sink.write(&line) {
            lost.add(1, &failed(&e));
            continue;
        }
        if let Some((n, why)) = lost.take()
            && sink.write(&note(n, &why)).is_err()
        {
            lost.add(n, &why);
        }
        if let Line::Flush(done) = line {
            // Nobody waits any more when it took too long.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn line(text: &str) -> Line {
        Line::Bytes(format!("{text}\n").into_bytes())
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted_and_hold_nobody_up() {
        let full = Sink::Stderr(File::options().write(true).open("/dev/full").expect("there"));
        let queue = Queue::start(full, |n, why| line(&format!("{n} {why}"))).expect("starts");
        (0..10 * WAITING).for_each(|n| queue.push(line(&n.to_string())));
        queue.flush();
        let (n, _) = queue.lost.take().expect("counted");
        assert_eq!(n, 10 * WAITING as u64, "each once, also those about the count");
    }

    #[test]
    fn what_a_full_pipe_held_back_is_said_once_it_is_read() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let queue = Queue::start(Sink::Stderr(File::from(std::os::fd::OwnedFd::from(writer))), |n, _| line(&format!("lost {n}")));
        let queue = queue.expect("starts");
        let text = "x".repeat(199);
        let all = 5000;
        (0..all).for_each(|_| queue.push(line(&text)));
        let reading = std::thread::spawn(move || {
            let mut read = String::new();
            let mut buffer = [0; 4096];
            while !read.contains("the end") {
                let n = reader.read(&mut buffer).expect("reads");
                read.push_str(std::str::from_utf8(&buffer[..n]).expect("text"));
            }
            read
        });
        queue.flush();
        queue.push(line("the end"));
        let read = reading.join().expect("no panic");
        let lost: usize = read.lines().filter_map(|line| line.strip_prefix("lost ")?.parse::<usize>().ok()).sum();
        assert!(lost > 0);
        assert_eq!(read.lines().filter(|line| **line == text).count() + lost, all, "each is written or counted");
    }
}
