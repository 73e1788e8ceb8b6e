//! The few requests that are asked of a broker by hand: what preflight wants to know, and what the pure-Rust client cannot
//! ask. One connection, one request at a time, a deadline on everything, and an answer is taken only for its own request.
//!
//! Formats: Kafka's protocol guide; each request is pinned to one version.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use openssl::ssl::{SslConnector, SslStream};

use super::tls::{self, TlsFault};

/// Larger is no answer to what is asked here.
const LARGEST: i32 = 16 << 20;

/// Why a broker gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The name does not resolve.
    #[error("the name does not resolve: {0}")]
    Dns(String),
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// No connection.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The TLS handshake, or an alert that came later.
    #[error("TLS: {0:?}")]
    Tls(TlsFault),
    /// It closed the connection in place of an answer.
    #[error("it closed the connection")]
    Closed,
    /// It has not answered in time.
    #[error("no answer in time")]
    Silent,
    /// What came is no answer in Kafka's protocol; how it begins.
    #[error("what came is no answer of Kafka's")]
    Garbage([u8; 4]),
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref(),
        }
    }
}

/// A connection to one broker.
pub(super) struct Wire {
    stream: Stream,
    by: Instant,
    correlation: i32,
}

impl Wire {
    /// Connects within `timeout`, and with TLS where there is a connector; everything after it has until then, too, unless
    /// [`until`](Self::until) says otherwise.
    pub(super) fn connect(address: &str, tls: Option<&SslConnector>, timeout: Duration) -> Result<Self, Fault> {
        let by = Instant::now() + timeout;
        let socket = connect(address, by)?;
        let stream = match tls {
            None => Stream::Plain(socket),
            Some(connector) => Stream::Tls(Box::new(tls::handshake(connector, host_of(address), socket).map_err(Fault::Tls)?)),
        };
        Ok(Self { stream, by, correlation: 0 })
    }

    /// The next request has this long.
    pub(super) fn until(&mut self, timeout: Duration) -> &mut Self {
        self.by = Instant::now() + timeout;
        self
    }

    /// Asks and returns the answer behind its header. After a fault the connection is not to be used again.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Vec<u8>, Fault> {
        self.correlation += 1;
        let mut frame = Out::default();
        frame.i16(request.key).i16(request.version).i32(self.correlation).string("txrelay");
        if request.is_flexible {
            frame.0.push(0);
        }
        frame.0.extend_from_slice(&request.body.0);
        let size = u32::try_from(frame.0.len()).expect("requests are small");
        let mut bytes = size.to_be_bytes().to_vec();
        bytes.extend(frame.0);
        self.write(&bytes)?;
        let mut head = [0; 4];
        self.read(&mut head)?;
        let size = i32::from_be_bytes(head);
        if !(4..=LARGEST).contains(&size) {
            return Err(Fault::Garbage(head));
        }
        let mut answer = vec![0; size.unsigned_abs() as usize];
        self.read(&mut answer)?;
        // An answer to another request must never be taken for this one's.
        if answer[..4] != self.correlation.to_be_bytes() {
            return Err(Fault::Garbage(head));
        }
        let behind = 4 + usize::from(request.is_flexible);
        if answer.len() < behind { Err(Fault::Garbage(head)) } else { Ok(answer.split_off(behind)) }
    }

    fn wait(&self) -> Result<(), Fault> {
        let left = self.by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault::Silent);
        }
        let socket = self.stream.socket();
        socket.set_read_timeout(Some(left)).and_then(|()| socket.set_write_timeout(Some(left))).map_err(|e| fault(&e))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.wait()?;
        match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(bytes).map_err(|e| fault(&e)),
            Stream::Tls(stream) => stream.write_all(bytes).map_err(|e| fault(&e)),
        }
    }

    fn read(&mut self, mut into: &mut [u8]) -> Result<(), Fault> {
        while !into.is_empty() {
            self.wait()?;
            let n = match &mut self.stream {
                Stream::Plain(socket) => socket.read(into),
                Stream::Tls(stream) => stream.read(into),
            };
            match n {
                Ok(0) => return Err(Fault::Closed),
                Ok(n) => into = &mut into[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(fault(&e)),
            }
        }
        Ok(())
    }
}

/// The name that a broker's certificate must have.
pub(super) fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

pub(super) fn connect(address: &str, by: Instant) -> Result<TcpStream, Fault> {
    let late = || Fault::Unreachable("no answer in time".to_owned());
    // To resolve a name may take long by itself.
    if Instant::now() >= by {
        return Err(late());
    }
    let addresses = address.to_socket_addrs().map_err(|e| Fault::Dns(words(&e)))?;
    let mut last = Fault::Dns("there is no address".to_owned());
    for address in addresses {
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => {
                let _ = socket.set_nodelay(true);
                // A handshake follows; none at all would be no bound.
                let left = by.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                let _ = socket.set_read_timeout(Some(left));
                let _ = socket.set_write_timeout(Some(left));
                return Ok(socket);
            }
            Err(e) => {
                last = match e.kind() {
                    io::ErrorKind::ConnectionRefused => Fault::Refused,
                    io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => late(),
                    _ => Fault::Unreachable(words(&e)),
                };
            }
        }
    }
    Err(last)
}

/// What the operating system says, without its number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn fault(error: &io::Error) -> Fault {
    // After the handshake a broker may still say that it does not take our certificate.
    if let Some(reason @ 1000..1256) = error.get_ref().and_then(|inner| inner.downcast_ref()).and_then(tls::alert) {
        return Fault::Tls(TlsFault::Alert(reason - 1000));
    }
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Fault::Silent,
        _ => Fault::Closed,
    }
}

/// One request.
pub(super) struct Request {
    key: i16,
    version: i16,
    is_flexible: bool,
    body: Out,
}

impl Request {
    pub(super) fn new(key: i16, version: i16, body: Out) -> Self {
        Self { key, version, is_flexible: false, body }
    }

    /// With a tagged header, as newer versions have it.
    pub(super) fn flexible(key: i16, version: i16, body: Out) -> Self {
        Self { key, version, is_flexible: true, body }
    }
}

/// Encodes.
#[derive(Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn i8(&mut self, n: i8) -> &mut Self {
        self.0.extend(n.to_be_bytes());
        self
    }
    pub(super) fn i16(&mut self, n: i16) -> &mut Self {
        self.0.extend(n.to_be_bytes());
        self
    }
    pub(super) fn i32(&mut self, n: i32) -> &mut Self {
        self.0.extend(n.to_be_bytes());
        self
    }
    pub(super) fn i64(&mut self, n: i64) -> &mut Self {
        self.0.extend(n.to_be_bytes());
        self
    }
    pub(super) fn len(&mut self, n: usize) -> &mut Self {
        self.i32(i32::try_from(n).expect("lists of ours are short"))
    }
    pub(super) fn string(&mut self, text: &str) -> &mut Self {
        self.i16(i16::try_from(text.len()).expect("names are short"));
        self.0.extend(text.as_bytes());
        self
    }
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.len(bytes.len());
        self.0.extend(bytes);
        self
    }
    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }
    /// Of the flexible versions; also the length of a compact list or text, which is one more.
    pub(super) fn varint(&mut self, mut n: usize) -> &mut Self {
        while n >= 0x80 {
            self.0.push((n as u8) | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
        self
    }
    pub(super) fn compact(&mut self, text: &str) -> &mut Self {
        self.varint(text.len() + 1);
        self.0.extend(text.as_bytes());
        self
    }
    pub(super) fn done(&mut self) -> Self {
        Self(std::mem::take(&mut self.0))
    }
}

/// Decodes; whatever does not fit is garbage.
pub(super) struct In<'a>(&'a [u8]);

type Decoded<T> = Result<T, Fault>;

impl<'a> In<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take(&mut self, n: usize) -> Decoded<&'a [u8]> {
        let Some((head, rest)) = self.0.split_at_checked(n) else { return Err(garbage()) };
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many as were asked for"))
    }
    pub(super) fn i8(&mut self) -> Decoded<i8> {
        Ok(i8::from_be_bytes(self.array()?))
    }
    pub(super) fn i16(&mut self) -> Decoded<i16> {
        Ok(i16::from_be_bytes(self.array()?))
    }
    pub(super) fn i32(&mut self) -> Decoded<i32> {
        Ok(i32::from_be_bytes(self.array()?))
    }
    pub(super) fn i64(&mut self) -> Decoded<i64> {
        Ok(i64::from_be_bytes(self.array()?))
    }
    /// Null and empty alike.
    pub(super) fn string(&mut self) -> Decoded<String> {
        let n = self.i16()?;
        self.text(usize::try_from(n).unwrap_or(0))
    }
    pub(super) fn bytes(&mut self) -> Decoded<&'a [u8]> {
        let n = self.i32()?;
        self.take(usize::try_from(n).unwrap_or(0))
    }
    fn text(&mut self, n: usize) -> Decoded<String> {
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }
    pub(super) fn varint(&mut self) -> Decoded<usize> {
        let mut n = 0;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array()?;
            n |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(garbage())
    }
    pub(super) fn compact(&mut self) -> Decoded<String> {
        let n = self.varint()?;
        self.text(n.saturating_sub(1))
    }
    pub(super) fn uuid(&mut self) -> Decoded<uuid::Uuid> {
        Ok(uuid::Uuid::from_bytes(self.array()?))
    }
    /// Tagged fields that nobody here knows.
    pub(super) fn tags(&mut self) -> Decoded<()> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let n = self.varint()?;
            self.take(n)?;
        }
        Ok(())
    }
    pub(super) fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Decoded<T>) -> Decoded<Vec<T>> {
        let n = self.i32()?;
        (0..n.max(0)).map(|_| one(self)).collect()
    }
    pub(super) fn compact_list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Decoded<T>) -> Decoded<Vec<T>> {
        let n = self.varint()?.saturating_sub(1);
        (0..n).map(|_| one(self)).collect()
    }
}

fn garbage() -> Fault {
    Fault::Garbage([0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let out = Out::default().i16(-3).string("topic").varint(300).compact("name").bytes(b"xy").i64(1 << 40).done();
        let mut read = In::new(&out.0);
        assert_eq!((read.i16(), read.string(), read.varint()), (Ok(-3), Ok("topic".to_owned()), Ok(300)));
        assert_eq!((read.compact(), read.bytes(), read.i64()), (Ok("name".to_owned()), Ok(&b"xy"[..]), Ok(1 << 40)));
        assert!(read.i8().is_err(), "nothing is left");
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let mut read = In::new(&bytes);
            let _ = read.list(|r| r.string());
            let _ = read.compact_list(|r| r.compact());
            let _ = read.tags();
        }
    }
}
