//! One connection: reads requests, has the rules decide, writes the book and the answers.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::book::Request;
use super::rule::{self, Action, Behaviour};
use super::{Service, State};
use crate::shared;

const HEAD_MAX: usize = 64 * 1024;
const BODY_MAX: usize = 64 * 1024 * 1024;

struct Incoming {
    method: String,
    path: String,
    keep_alive: bool,
    key: String,
    attempt: u32,
    source: String,
    body: Vec<u8>,
}

/// Until the client ends the connection, or a rule does.
pub fn serve(service: &Service, mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(4096);
    while let Ok(Some(request)) = read_request(&mut stream, &mut buffer) {
        let keep_alive = request.keep_alive;
        let done = if request.path.starts_with("/_/") {
            let (status, body) = control(service, &request);
            write_answer(&mut stream, status, None, &body, keep_alive)
        } else if request.method == "POST" || request.method == "PUT" {
            let now = service.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
            let done = deliver(service, &mut stream, request, now);
            service.in_flight.fetch_sub(1, Ordering::Relaxed);
            done
        } else {
            write_answer(&mut stream, 405, None, "only POST and PUT deliver\n", keep_alive)
        };
        if done.is_err() || !keep_alive {
            return;
        }
    }
}

/// An error ends the connection.
fn deliver(service: &Service, stream: &mut TcpStream, request: Incoming, in_flight: u64) -> io::Result<()> {
    let hash = shared::hash(&request.body);
    let mut state = service.state();
    let version = state.rules_version;
    let State { book, rules, .. } = &mut *state;
    let behaviour = rule::decide(rules, &request.key);
    book.max_in_flight = book.max_in_flight.max(in_flight);
    let success = (200..300).contains(&behaviour.status);
    let (answer, accepted) = match behaviour.action {
        Action::Answer => (behaviour.status.to_string(), success),
        Action::DropBody => (format!("{} drop_body", behaviour.status), success),
        Action::ResetBefore => ("reset_before".into(), false),
        Action::ResetAfter => ("reset_after".into(), true),
        Action::Hang => ("hang".into(), false),
    };
    // A request that is reset before it is taken has never been here.
    if behaviour.action != Action::ResetBefore {
        book.add(Request {
            id: request.key,
            hash,
            bytes: request.body.len() as u64,
            attempt: request.attempt,
            at: shared::now_ms(),
            answer,
            accepted,
            source: request.source,
        });
    }
    drop(state);
    if !behaviour.delay.is_zero() {
        std::thread::sleep(behaviour.delay);
    }
    let Behaviour { status, retry_after, body, .. } = &behaviour;
    match behaviour.action {
        Action::Answer => write_answer(stream, *status, retry_after.as_deref(), body, request.keep_alive),
        Action::DropBody => {
            let head = format!("HTTP/1.1 {status} {}\r\nContent-Length: 1000\r\n\r\nonly the beg", reason(*status));
            stream.write_all(head.as_bytes())?;
            Err(ErrorKind::ConnectionAborted.into())
        }
        Action::ResetBefore | Action::ResetAfter => reset(stream),
        Action::Hang => hang(service, stream, version),
    }
}

/// Until the client gives up or the rules change.
fn hang(service: &Service, stream: &mut TcpStream, version: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let began = Instant::now();
    while service.state().rules_version == version && began.elapsed() < Duration::from_secs(3600) {
        match stream.peek(&mut [0]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => std::thread::sleep(Duration::from_millis(100)), // it sends on; not our concern
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
    }
    reset(stream)
}

/// Closes with a reset instead of an end: what a crashed process or a firewall does.
fn reset(stream: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    Err(ErrorKind::ConnectionReset.into())
}

fn control(service: &Service, request: &Incoming) -> (u16, String) {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let mut state = service.state();
    match (request.method.as_str(), path) {
        ("PUT" | "POST", "/_/behave") => match rule::parse(&request.body) {
            Ok(mut rules) => {
                if request.method == "POST" {
                    rules.append(&mut state.rules);
                }
                state.rules = rules;
                state.rules_version += 1;
                (200, "ok\n".into())
            }
            Err(error) => (400, format!("{error:#}\n")),
        },
        ("GET", "/_/behave") => (200, state.rules.iter().map(|r| r.describe() + "\n").collect()),
        ("DELETE", "/_/behave") => {
            state.rules.clear();
            state.rules_version += 1;
            (200, "ok\n".into())
        }
        ("GET", "/_/summary") => {
            let mut summary = state.book.summary();
            summary["in_flight"] = Value::from(service.in_flight.load(Ordering::Relaxed));
            summary["connections"] = Value::from(service.connections.load(Ordering::Relaxed));
            summary["connections_open"] = Value::from(service.open.load(Ordering::Relaxed));
            (200, format!("{summary}\n"))
        }
        ("GET", "/_/requests") => (200, state.book.requests(query.strip_prefix("id=").map(shared::percent_decode).as_deref())),
        ("GET", "/_/accepted") => (200, state.book.accepted()),
        ("POST", "/_/reset") => {
            state.book.reset();
            (200, "ok\n".into())
        }
        _ => (404, format!("no {} {path} here\n", request.method)),
    }
}

/// `None` at the end of the connection. Bytes of a following request stay in `buffer`.
fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Incoming>> {
    let bad = |text| io::Error::new(ErrorKind::InvalidData, text);
    let mut searched = 0;
    let end = loop {
        if let Some(at) = buffer[searched..].windows(4).position(|w| w == b"\r\n\r\n") {
            break searched + at + 4;
        }
        searched = buffer.len().saturating_sub(3);
        if buffer.len() > HEAD_MAX {
            let _ = write_answer(stream, 431, None, "", false);
            return Err(bad("head too long"));
        }
        if fill(stream, buffer)? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some(version)) = (first.next(), first.next(), first.next()) else {
        let _ = write_answer(stream, 400, None, "", false);
        return Err(bad("no request line"));
    };
    let mut request = Incoming {
        method: method.to_owned(),
        path: path.to_owned(),
        keep_alive: version != "HTTP/1.0",
        key: String::new(),
        attempt: 0,
        source: String::new(),
        body: Vec::new(),
    };
    let (mut length, mut chunked, mut expects) = (0, false, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().map_err(|_| bad("content-length"))?,
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "expect" => expects = true,
            "connection" => request.keep_alive &= !value.eq_ignore_ascii_case("close"),
            "idempotency-key" => request.key = decode_key(value),
            "txrelay-attempt" => request.attempt = value.parse().unwrap_or(0),
            "txrelay-source" => request.source = value.to_owned(),
            _ => {}
        }
    }
    if expects {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if length > BODY_MAX {
        let _ = write_answer(stream, 413, None, "", false);
        return Err(bad("body too long"));
    }
    if chunked {
        loop {
            let line = read_line(stream, buffer)?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16).map_err(|_| bad("chunk"))?;
            if size > BODY_MAX || request.body.len() + size > BODY_MAX {
                return Err(bad("body too long"));
            }
            let chunk = take(stream, buffer, size)?;
            request.body.extend(chunk);
            if size == 0 {
                while !read_line(stream, buffer)?.is_empty() {} // trailers, then the empty line
                break;
            }
            take(stream, buffer, 2)?;
        }
    } else {
        request.body = take(stream, buffer, length)?;
    }
    Ok(Some(request))
}

/// Percent-encoded, with quotes around it in the other format.
fn decode_key(value: &str) -> String {
    let plain = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
    shared::percent_decode(plain)
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut chunk = [0; 16 * 1024];
    let n = stream.read(&mut chunk)?;
    buffer.extend_from_slice(&chunk[..n]);
    Ok(n)
}

fn take(stream: &mut TcpStream, buffer: &mut Vec<u8>, n: usize) -> io::Result<Vec<u8>> {
    while buffer.len() < n {
        if fill(stream, buffer)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    let rest = buffer.split_off(n);
    Ok(std::mem::replace(buffer, rest))
}

fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(at) = buffer.windows(2).position(|w| w == b"\r\n") {
            let line = take(stream, buffer, at + 2)?;
            return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
        }
        if buffer.len() > HEAD_MAX || fill(stream, buffer)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

fn write_answer(stream: &mut TcpStream, status: u16, retry_after: Option<&str>, body: &str, keep_alive: bool) -> io::Result<()> {
    let bodiless = status == 204 || status == 304 || status < 200;
    let body = if bodiless { "" } else { body };
    let mut out = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    if !bodiless {
        out.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    if (300..400).contains(&status) {
        out.push_str("Location: /elsewhere\r\n");
    }
    if let Some(value) = retry_after {
        out.push_str(&format!("Retry-After: {value}\r\n"));
    }
    if !keep_alive {
        out.push_str("Connection: close\r\n");
    }
    out.push_str("\r\n");
    out.push_str(body);
    stream.write_all(out.as_bytes())
}

fn reason(status: u16) -> &'static str {
    ureq::http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Unassigned")
}
