//! A service that misbehaves on purpose, down to the bytes: what it does to a request, or to a connection, is the test's to say.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openssl::ssl::{Ssl, SslAcceptor, SslStream};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// The idempotency key as sent.
    pub id: String,
    pub attempt: u32,
    /// The request line and headers, as sent.
    pub head: String,
    /// Empty where the service did not read it.
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &'_ str| line.split_once(": ").is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(|line| named(line)).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    }
}

/// What becomes of a connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Keep,
    Close,
    /// With RST instead of FIN.
    Reset,
}

/// What a connection begins with.
pub enum Opening {
    /// TLS, as this acceptor does it.
    Tls(SslAcceptor),
    /// TLS, and at the end the connection is cut without a farewell.
    TlsCutOff(SslAcceptor),
    /// Nothing: the client's first bytes are answered with these, and the connection is closed.
    Says(&'static [u8]),
    /// Silence until the client gives up.
    Stalls,
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// The client, seen from the service, with the head of a request read and its body not.
pub struct Peer {
    wire: Box<dyn Wire>,
    length: usize,
}

impl Peer {
    /// Reads the body.
    pub fn body(&mut self) -> Vec<u8> {
        let mut body = vec![0; std::mem::take(&mut self.length)];
        self.wire.read_exact(&mut body).map(|()| body).unwrap_or_default()
    }

    /// Whether the client is still there to hear it.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.write_all(bytes.as_ref()).and_then(|()| self.wire.flush()).is_ok()
    }

    /// Until the client closes.
    pub fn hang(&mut self) {
        let mut buffer = [0; 4096];
        while self.wire.read(&mut buffer).is_ok_and(|n| n > 0) {}
    }

    /// The same bytes again and again, until the client closes; `pause` between them.
    pub fn repeat(&mut self, bytes: &[u8], pause: Duration) {
        while self.say(bytes) {
            std::thread::park_timeout(pause);
        }
    }

    pub fn answer(&mut self, status: u16, body: &str) -> Then {
        self.body();
        let text = format!("HTTP/1.1 {status:03} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if self.say(text) { Then::Keep } else { Then::Close }
    }
}

/// Decides what is done to a request; the body is recorded if it was read by then.
pub type Behaviour = dyn Fn(&Request, &mut Peer) -> Then + Send + Sync;

#[derive(Default)]
struct State {
    requests: Mutex<Vec<Request>>,
    openings: Mutex<VecDeque<Opening>>,
    connections: AtomicUsize,
}

/// The service.
pub struct Rogue {
    pub address: String,
    state: Arc<State>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Rogue {
    pub fn start(behave: impl Fn(&Request, &mut Peer) -> Then + Send + Sync + 'static) -> Self {
        Self::listen(None, behave)
    }

    /// With TLS, but for connections that [`Self::next`] says something else about.
    pub fn tls(acceptor: SslAcceptor, behave: impl Fn(&Request, &mut Peer) -> Then + Send + Sync + 'static) -> Self {
        Self::listen(Some(acceptor), behave)
    }

    fn listen(acceptor: Option<SslAcceptor>, behave: impl Fn(&Request, &mut Peer) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its number").to_string();
        let (state, behave): (_, Arc<Behaviour>) = (Arc::new(State::default()), Arc::new(behave));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let (state, behave, acceptor) = (Arc::clone(&shared), Arc::clone(&behave), acceptor.clone());
                let opening = lock(&state.openings).pop_front().or(acceptor.map(Opening::Tls));
                state.connections.fetch_add(1, Ordering::SeqCst);
                // They end with their clients.
                std::thread::spawn(move || connected(&state, &*behave, stream, opening));
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}/transactions", self.address)
    }

    /// By the name that its certificates are made for.
    pub fn https_url(&self) -> String {
        format!("https://{}/transactions", self.address.replace("127.0.0.1", "localhost"))
    }

    /// The next connections begin like this, one after the other.
    pub fn next(&self, opening: Opening) {
        lock(&self.state.openings).push_back(opening);
    }

    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state.requests).clone()
    }

    /// Those of one transaction.
    pub fn requests_of(&self, id: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.id == id).collect()
    }

    /// How many there were.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

fn connected(state: &State, behave: &Behaviour, tcp: TcpStream, opening: Option<Opening>) {
    let Ok(raw) = tcp.try_clone() else { return };
    let _ = tcp.set_nodelay(true);
    let mut cut_off = false;
    let wire: Box<dyn Wire> = match opening {
        None => Box::new(tcp),
        Some(Opening::Tls(acceptor)) => match shake_hands(&acceptor, tcp) {
            Some(stream) => Box::new(stream),
            None => return,
        },
        Some(Opening::TlsCutOff(acceptor)) => match shake_hands(&acceptor, tcp) {
            Some(stream) => {
                cut_off = true;
                Box::new(stream)
            }
            None => return,
        },
        Some(Opening::Says(bytes)) => {
            let mut tcp = tcp;
            let _ = tcp.read(&mut [0; 4096]);
            let _ = tcp.write_all(bytes);
            return;
        }
        Some(Opening::Stalls) => {
            let mut tcp = tcp;
            while tcp.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
            return;
        }
    };
    let mut peer = Peer { wire, length: 0 };
    let then = serve(state, behave, &mut peer);
    if then == Then::Reset {
        let _ = rustix::net::sockopt::set_socket_linger(&raw, Some(Duration::ZERO));
    } else if cut_off {
        let _ = raw.shutdown(std::net::Shutdown::Both);
    }
}

fn shake_hands(acceptor: &SslAcceptor, tcp: TcpStream) -> Option<SslStream<TcpStream>> {
    let mut stream = SslStream::new(Ssl::new(acceptor.context()).ok()?, tcp).ok()?;
    stream.accept().ok()?;
    Some(stream)
}

fn serve(state: &State, behave: &Behaviour, peer: &mut Peer) -> Then {
    loop {
        let Ok(Some(head)) = head(&mut *peer.wire) else { return Then::Close };
        let mut request = Request { id: String::new(), attempt: 0, head, body: Vec::new() };
        request.id = request.header("idempotency-key").unwrap_or_default().to_owned();
        request.attempt = request.header("txrelay-attempt").and_then(|n| n.parse().ok()).unwrap_or(0);
        peer.length = request.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        let place = {
            let mut requests = lock(&state.requests);
            requests.push(request.clone());
            requests.len() - 1
        };
        // Small bodies are read at once, so that a test can look at them; of large ones the behaviour decides.
        if peer.length < 64 * 1024 {
            request.body = peer.body();
            lock(&state.requests)[place].body = request.body.clone();
        }
        match behave(&request, peer) {
            Then::Keep => {}
            then => return then,
        }
    }
}

/// `None`: the client has closed.
fn head(wire: &mut dyn Wire) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if wire.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}
