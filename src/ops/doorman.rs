//! Bounds the connections to the metrics port, for tiny_http does not: it has a thread for each, and no time-outs.
//!
//! It cannot be asked for its sockets. They are found among the process's own descriptors and duplicated with
//! `pidfd_getfd`, which is safe where adopting somebody else's descriptor by its number is not.

use std::collections::{HashMap, HashSet};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::{Errno, ioctl_fionread};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::pulse;
use super::stop::Stop;
use super::throttle::Throttle;

/// Most connections at once: many times what scrapers and people need, and so many threads at most.
const OPEN_MAX: usize = 64;
const UNREAD_MAX: u64 = 16 << 10;
const LOOK: Duration = Duration::from_secs(1);
/// While there is a crowd: what its threads and requests hold in memory grows with the time until it is sent away.
const LOOK_AT_CROWD: Duration = Duration::from_millis(50);

/// Looks once a second until told to stop.
pub fn run(listening: SocketAddr, stop: &Stop) -> anyhow::Result<()> {
    let mut doorman = Doorman { listening, seen: HashMap::new(), others: HashSet::new() };
    let mut throttle = Throttle::per_minute();
    loop {
        pulse::at("minding the metrics port", pulse::PROMPT);
        let looked = doorman.look(Instant::now());
        if let Err(error) = &looked
            && let Some(note) = throttle.admit("unbounded", Instant::now())
        {
            log::warn!("connections to the metrics port are not bounded: {error}{note}");
        }
        let is_crowd = looked.is_ok_and(|sent_away| sent_away > 0);
        if stop.wait(if is_crowd { LOOK_AT_CROWD } else { LOOK }) {
            return Ok(());
        }
    }
}

/// Shuts the connection from `client`; whether it was found.
pub fn shut(listening: SocketAddr, client: SocketAddr) -> bool {
    let Ok(process) = pidfd_open(getpid(), PidfdFlags::empty()) else { return false };
    let open = sockets().unwrap_or_default();
    let found = open.into_iter().filter_map(|socket| connection(&process, socket, listening).ok().flatten());
    found
        .filter(|stream| stream.peer_addr().is_ok_and(|peer| peer == client))
        .any(|stream| stream.shutdown(Shutdown::Both).is_ok())
}

/// A socket of this process: descriptor and inode.
type Socket = (RawFd, u64);

fn sockets() -> std::io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // It may be closed by now.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let descriptor = entry.file_name().to_str().and_then(|text| text.parse().ok());
        sockets.extend(descriptor.zip(inode));
    }
    Ok(sockets)
}

/// A duplicate of the socket, if it is a connection that was accepted at `listening`.
fn connection(process: &OwnedFd, (descriptor, inode): Socket, listening: SocketAddr) -> Result<Option<TcpStream>, Errno> {
    let duplicate = match pidfd_getfd(process, descriptor, PidfdGetfdFlags::empty()) {
        Ok(duplicate) => duplicate,
        // Closed by now.
        Err(Errno::BADF) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The number may have been given to another socket since.
    if fstat(&duplicate).map(|stat| stat.st_ino) != Ok(inode) {
        return Ok(None);
    }
    let stream = TcpStream::from(duplicate);
    let is_ours =
        |local: SocketAddr| local.port() == listening.port() && (listening.ip().is_unspecified() || local.ip() == listening.ip());
    // Not even the listener has a peer.
    Ok((stream.local_addr().is_ok_and(is_ours) && stream.peer_addr().is_ok()).then_some(stream))
}

struct Doorman {
    listening: SocketAddr,
    /// Connections by inode: since when, and whether its client behaved badly at the last look.
    seen: HashMap<u64, (Instant, bool)>,
    /// Sockets that are something else, so that they are not duplicated each second.
    others: HashSet<u64>,
}

impl Doorman {
    /// Shuts the oldest connections beyond the bound, and those whose clients behave badly at two looks in a row. Returns how many
    /// were beyond it.
    fn look(&mut self, now: Instant) -> std::io::Result<usize> {
        let process = pidfd_open(getpid(), PidfdFlags::empty())?;
        let sockets = sockets()?;
        let (mut open, mut others, mut seen) = (Vec::new(), HashSet::new(), HashMap::new());
        for socket in sockets {
            if self.others.contains(&socket.1) {
                others.insert(socket.1);
                continue;
            }
            let Some(stream) = connection(&process, socket, self.listening)? else {
                others.insert(socket.1);
                continue;
            };
            let (since, was_bad) = self.seen.get(&socket.1).copied().unwrap_or((now, false));
            let is_bad = !is_writable(&stream) || is_flooding(&stream);
            if was_bad && is_bad {
                // It may have been closed in the meantime.
                let _ = stream.shutdown(Shutdown::Both);
                continue;
            }
            // tiny_http has two descriptors for one connection.
            if seen.insert(socket.1, (since, is_bad)).is_none() {
                open.push(((since, socket.1), stream));
            }
        }
        // Those that came since the last look: inodes are counted upwards.
        open.sort_by_key(|(age, _)| *age);
        let too_many = open.len().saturating_sub(OPEN_MAX);
        for (_, stream) in open.drain(..too_many) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        (self.seen, self.others) = (seen, others);
        Ok(too_many)
    }
}

/// tiny_http takes what comes at once, into memory, for there may always be one more byte of a request line. Only who sends
/// faster than it can read leaves so much behind: a request that only waits for a thread is far smaller.
fn is_flooding(stream: &TcpStream) -> bool {
    ioctl_fionread(stream).is_ok_and(|unread| unread > UNREAD_MAX)
}

/// Not, while answers pile up that the client does not read.
fn is_writable(stream: &TcpStream) -> bool {
    let mut look = [PollFd::new(stream, PollFlags::OUT)];
    // An error is left to tiny_http.
    poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_err() || !look[0].revents().is_empty()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A port with `n` clients, and what was accepted, in order.
    struct Port {
        listener: TcpListener,
        clients: Vec<TcpStream>,
        accepted: Vec<TcpStream>,
    }

    impl Port {
        fn with(n: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let mut port = Self { listener, clients: Vec::new(), accepted: Vec::new() };
            port.more(n);
            port
        }

        fn address(&self) -> SocketAddr {
            self.listener.local_addr().expect("its number")
        }

        fn more(&mut self, n: usize) {
            for _ in 0..n {
                let client = TcpStream::connect(self.address()).expect("connects");
                client.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
                self.clients.push(client);
                self.accepted.push(self.listener.accept().expect("accepted").0);
            }
        }

        fn doorman(&self) -> Doorman {
            Doorman { listening: self.address(), seen: HashMap::new(), others: HashSet::new() }
        }
    }

    fn is_shut(client: &mut TcpStream) -> bool {
        client.set_nonblocking(true).expect("possible");
        matches!(client.read(&mut [0]), Ok(0))
    }

    #[test]
    fn the_oldest_beyond_the_bound_are_shut_and_the_newest_never() {
        let mut port = Port::with(10);
        let mut doorman = port.doorman();
        let start = Instant::now();
        doorman.look(start).expect("permitted");
        port.more(OPEN_MAX - 10);
        doorman.look(start + LOOK).expect("permitted");
        assert!(port.clients.iter_mut().all(|client| !is_shut(client)), "64 are not too many");
        port.more(10);
        doorman.look(start + 2 * LOOK).expect("permitted");
        let shut: Vec<usize> = (0..port.clients.len()).filter(|n| is_shut(&mut port.clients[*n])).collect();
        assert_eq!(shut, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn one_connection_is_found_by_its_client() {
        let port = Port::with(3);
        let (listening, mut clients) = (port.address(), port.clients);
        let wanted = clients[1].local_addr().expect("its address");
        assert!(shut(listening, wanted));
        assert!(matches!(clients[1].read(&mut [0]), Ok(0)), "it is shut");
        assert!(!is_shut(&mut clients[0]) && !is_shut(&mut clients[2]), "the others are not");
        let elsewhere = SocketAddr::new(listening.ip(), 1);
        assert!(!shut(elsewhere, clients[0].local_addr().expect("its address")), "it came in at another port");
    }

    #[test]
    fn who_sends_more_than_is_read_is_shut_at_the_second_look() {
        let mut port = Port::with(2);
        let mut doorman = port.doorman();
        port.clients[0].set_nonblocking(true).expect("possible");
        while !is_flooding(&port.accepted[0]) {
            // It takes no more for a moment.
            let _ = port.clients[0].write(&[b'x'; 4096]);
        }
        port.clients[1].write_all(b"GET /").expect("sent");
        doorman.look(Instant::now()).expect("permitted");
        assert!(!is_shut(&mut port.clients[0]), "a moment is forgiven");
        doorman.look(Instant::now()).expect("permitted");
        let Port { mut clients, .. } = port;
        assert!(is_shut(&mut clients[0]) && !is_shut(&mut clients[1]));
    }

    #[test]
    fn who_does_not_read_is_shut_at_the_second_look() {
        let port = Port::with(2);
        let mut doorman = port.doorman();
        let (mut clients, mut accepted) = (port.clients, port.accepted);
        accepted[0].set_nonblocking(true).expect("possible");
        while accepted[0].write(&[0; 65536]).is_ok() {}
        doorman.look(Instant::now()).expect("permitted");
        assert!(accepted[0].peer_addr().is_ok(), "a moment of slowness is forgiven");
        doorman.look(Instant::now()).expect("permitted");
        let mut rest = Vec::new();
        clients[0].read_to_end(&mut rest).expect("what was sent, and then the end");
        assert!(!is_shut(&mut clients[1]));
    }
}
