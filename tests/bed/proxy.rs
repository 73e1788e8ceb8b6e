//! `bed proxy`: a TCP proxy that fails when told to. Commands are lines on stdin, each answered by a line on stdout; it ends
//! with its stdin, so it never outlives the test that holds the pipe.
//!
//! - `pass` forward (again); `hold` keep the connections and forward nothing; `refuse` reset all and do not listen
//! - `cut` reset every connection, new ones are served
//! - `cut-before TEXT` once: when a client's message holds TEXT, reset without forwarding it
//! - `drop-answer-after TEXT` once: forward that message, and reset before its answer comes back. With "COMMIT" this is the
//!   commit that was done and whose client cannot know it
//! - `aim TEXT` from now on only a connection whose start-up message holds TEXT is hit by the two above (PostgreSQL's holds
//!   user, database and application_name); without TEXT any is
//! - `status` mode, open connections, connections in all, whether a rule is armed, how often one fired
//!
//! With --postgres, client messages are PostgreSQL's and are matched and forwarded whole; without TLS only. Otherwise what
//! one read returned is taken for a message.

use std::collections::HashMap;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long)]
    to: String,
    /// Client messages are PostgreSQL's
    #[arg(long)]
    postgres: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Hold,
    Refuse,
}

#[derive(Debug, Clone)]
enum Fault {
    CutBefore(Vec<u8>),
    DropAnswerAfter(Vec<u8>),
}

struct Proxy {
    to: String,
    postgres: bool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mode: Mode,
    fault: Option<Fault>,
    aim: Vec<u8>,
    fired: u64,
    pairs: HashMap<u64, (TcpStream, TcpStream)>,
    connections: u64,
}

impl Proxy {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when bytes may flow.
    fn wait_for_pass(&self) {
        let state = self.state();
        drop(self.changed.wait_while(state, |s| s.mode == Mode::Hold));
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).with_context(|| format!("failed to listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let state = State { mode: Mode::Pass, fault: None, aim: Vec::new(), fired: 0, pairs: HashMap::new(), connections: 0 };
    let proxy =
        Arc::new(Proxy { to: args.to.clone(), postgres: args.postgres, state: Mutex::new(state), changed: Condvar::new() });
    say(&format!("listening on {address}"))?;
    {
        let proxy = Arc::clone(&proxy);
        std::thread::spawn(move || listen(&proxy, address, Some(listener)));
    }
    for line in io::stdin().lock().lines() {
        say(&command(&proxy, line?.trim(), address))?;
    }
    Ok(())
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

fn command(proxy: &Proxy, line: &str, address: SocketAddr) -> String {
    let (word, text) = line.split_once(' ').unwrap_or((line, ""));
    let text = text.trim().trim_matches('"').as_bytes().to_vec();
    let mut state = proxy.state();
    match word {
        "pass" => state.mode = Mode::Pass,
        "hold" => state.mode = Mode::Hold,
        "refuse" => {
            state.mode = Mode::Refuse;
            cut_all(&mut state);
        }
        "cut" => cut_all(&mut state),
        "cut-before" if !text.is_empty() => state.fault = Some(Fault::CutBefore(text)),
        "drop-answer-after" if !text.is_empty() => state.fault = Some(Fault::DropAnswerAfter(text)),
        "aim" => state.aim = text,
        "status" => {}
        _ => return format!("error: unknown command `{line}`"),
    }
    proxy.changed.notify_all();
    let State { mode, fault, fired, pairs, connections, .. } = &*state;
    let text = format!("ok {mode:?} open {} of {connections} armed {} fired {fired}", pairs.len(), fault.is_some());
    let (wanted, refused) = (*mode != Mode::Refuse, *mode == Mode::Refuse);
    drop(state);
    // The answer to `refuse` and `pass` comes when the port is closed or open.
    let limit = Instant::now() + Duration::from_secs(5);
    while (word == "refuse" && refused || word == "pass" && wanted) && Instant::now() < limit {
        if TcpStream::connect(address).is_ok() == wanted {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    text
}

fn cut_all(state: &mut State) {
    for (client, server) in state.pairs.drain().map(|(_, pair)| pair) {
        cut(&client);
        let _ = server.shutdown(Shutdown::Both);
    }
}

/// A reset, and the thread that reads from it wakes up: with no linger, `shutdown` alone would end it politely.
fn cut(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Read);
}

fn listen(proxy: &Arc<Proxy>, address: SocketAddr, first: Option<TcpListener>) {
    let mut listener = first;
    loop {
        if proxy.state().mode == Mode::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).ok();
        }
        let accepted = listener.as_ref().and_then(|l| l.set_nonblocking(true).and_then(|()| l.accept()).ok());
        match accepted {
            Some((client, _)) => {
                let proxy = Arc::clone(proxy);
                std::thread::spawn(move || {
                    let _ = connect(&proxy, client);
                });
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn connect(proxy: &Arc<Proxy>, client: TcpStream) -> io::Result<()> {
    client.set_nonblocking(false)?;
    proxy.wait_for_pass();
    let Ok(server) = TcpStream::connect(&proxy.to) else {
        cut(&client);
        return Ok(());
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let id = {
        let mut state = proxy.state();
        state.connections += 1;
        let id = state.connections;
        state.pairs.insert(id, (client.try_clone()?, server.try_clone()?));
        id
    };
    let drop_answer = Arc::new(AtomicBool::new(false));
    let answers = {
        let (proxy, drop_answer) = (Arc::clone(proxy), Arc::clone(&drop_answer));
        let (client, server) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || {
            let _ = forward_answers(&proxy, server, &client, &drop_answer);
            let _ = client.shutdown(Shutdown::Both);
        })
    };
    let _ = forward_requests(proxy, &client, &server, &drop_answer);
    if !drop_answer.load(Ordering::SeqCst) {
        let _ = server.shutdown(Shutdown::Both); // otherwise the other thread ends it, when the answer is there
    }
    let _ = answers.join();
    // The last copies of the sockets: with no linger set, their end is the reset.
    proxy.state().pairs.remove(&id);
    Ok(())
}

fn forward_requests(proxy: &Proxy, client: &TcpStream, mut server: &TcpStream, drop_answer: &AtomicBool) -> io::Result<()> {
    let mut messages = Messages { postgres: proxy.postgres, started: false, buffer: Vec::new() };
    let mut start_up = None;
    loop {
        if !messages.fill(client)? {
            return Ok(());
        }
        proxy.wait_for_pass();
        while let Some(message) = messages.next() {
            if messages.started && start_up.is_none() {
                start_up = Some(message.clone());
            }
            let fault = {
                let mut state = proxy.state();
                let aimed_at = state.aim.is_empty() || start_up.as_deref().is_some_and(|start_up| holds(start_up, &state.aim));
                let hit = match &state.fault {
                    _ if !aimed_at => false,
                    Some(Fault::CutBefore(text) | Fault::DropAnswerAfter(text)) => holds(&message, text),
                    None => false,
                };
                state.fired += u64::from(hit);
                if hit { state.fault.take() } else { None }
            };
            match fault {
                Some(Fault::CutBefore(_)) => {
                    cut(client);
                    return Ok(());
                }
                Some(Fault::DropAnswerAfter(_)) => {
                    drop_answer.store(true, Ordering::SeqCst);
                    server.write_all(&message)?;
                    return Ok(());
                }
                None => server.write_all(&message)?,
            }
        }
    }
}

fn forward_answers(proxy: &Proxy, mut server: TcpStream, mut client: &TcpStream, drop_answer: &AtomicBool) -> io::Result<()> {
    let mut chunk = [0; 64 * 1024];
    let mut dropped_at = None;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    let began = |at: &Option<Instant>| at.is_some_and(|at| at.elapsed() > Duration::from_millis(300));
    loop {
        let n = match server.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // Silent for a while after the first dropped bytes: that was the answer.
                if began(&dropped_at) {
                    break;
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        if drop_answer.load(Ordering::SeqCst) {
            dropped_at = Some(Instant::now());
            if proxy.postgres && chunk[..n].ends_with(b"Z\0\0\0\x05I") {
                break; // ReadyForQuery, no transaction open: it is done
            }
            continue;
        }
        proxy.wait_for_pass();
        client.write_all(&chunk[..n])?;
    }
    if drop_answer.load(Ordering::SeqCst) {
        cut(client);
        let _ = server.shutdown(Shutdown::Both);
    }
    Ok(())
}

fn holds(message: &[u8], text: &[u8]) -> bool {
    message.windows(text.len()).any(|window| window == text)
}

/// Cuts a client's bytes into messages.
struct Messages {
    postgres: bool,
    /// The start-up packet has no type byte, and an SSL or GSS request may come before it.
    started: bool,
    buffer: Vec<u8>,
}

impl Messages {
    fn fill(&mut self, mut client: &TcpStream) -> io::Result<bool> {
        let mut chunk = [0; 64 * 1024];
        let n = client.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        if !self.postgres {
            self.started = true;
            return (!self.buffer.is_empty()).then(|| std::mem::take(&mut self.buffer));
        }
        let at = usize::from(self.started);
        let number = |from: usize| self.buffer.get(from..from + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
        let length = at + number(at)? as usize;
        if self.buffer.len() < length {
            return None;
        }
        const SSL_REQUEST: u32 = 80_877_103;
        const GSS_REQUEST: u32 = 80_877_104;
        if !self.started && !matches!(number(4), Some(SSL_REQUEST | GSS_REQUEST)) {
            self.started = true;
        }
        let rest = self.buffer.split_off(length);
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}
