//! TCP for ureq. Its own makes a dozen calls of the system for each request: it asks twice whether the connection is still open,
//! with three calls each, and sets a time-out anew before each read and write. This one asks once with one call, and sets what is far from right.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};
use ureq::{Error, Timeout};

/// The least that an address is given, however many others there are.
const TRY_AT_LEAST: Duration = Duration::from_millis(10);

/// Opens connections, without a proxy.
#[derive(Debug)]
pub(super) struct Tcp;

impl Connector<()> for Tcp {
    type Out = Socket;

    /// Tries the addresses in their order, each for its share of the time that is left.
    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Socket>, Error> {
        let until = details.timeout.not_zero().map(|left| Instant::now() + *left);
        let mut failed = Error::ConnectionFailed;
        for (n, address) in details.addrs.iter().enumerate() {
            let share = until.map(|until| {
                let others = u32::try_from(details.addrs.len() - n).unwrap_or(u32::MAX);
                (until.saturating_duration_since(Instant::now()) / others).max(TRY_AT_LEAST)
            });
            match connect(address, share) {
                Ok(stream) => {
                    let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
                    return Ok(Some(Socket { stream, buffers, read: None, write: None, answered: false }));
                }
                Err(error) => failed = told(error, Timeout::Connect),
            }
        }
        Err(failed)
    }
}

fn connect(address: &SocketAddr, share: Option<Duration>) -> io::Result<TcpStream> {
    let stream = match share {
        Some(share) => TcpStream::connect_timeout(address, share)?,
        None => TcpStream::connect(address)?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn told(error: io::Error, reason: Timeout) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Error::Timeout(reason),
        _ => Error::Io(error),
    }
}

/// A connection.
pub(super) struct Socket {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// How long a read waits, as the socket has been told.
    read: Option<Duration>,
    /// How long a write waits.
    write: Option<Duration>,
    /// Something has been read since it was last asked whether this is open.
    answered: bool,
}

/// The wait to tell a socket, where the one that it has been told is not at least as long and a little longer at most: what is left of a
/// request's time is less at each call, and telling is a call too. Longer by a thirty-second part and by half a second at most: a
/// lease leaves 5 s.
fn retold(told: Option<Duration>, left: Duration) -> Option<Duration> {
    let grain = (left / 64).clamp(Duration::from_millis(1), Duration::from_millis(250));
    let enough = left..=left.saturating_add(2 * grain);
    (!told.is_some_and(|told| enough.contains(&told))).then(|| left.saturating_add(grain))
}

/// The time of one call of ureq, which may take several of the system: a write that its socket's wait cut short, or a read that a
/// signal broke off, gets what is left and not all of it again.
struct Within {
    timeout: NextTimeout,
    began: Instant,
}

impl Within {
    fn new(timeout: NextTimeout) -> Self {
        Self { timeout, began: Instant::now() }
    }

    /// An error where nothing is left.
    fn left(&self) -> Result<Duration, Error> {
        let left = self.timeout.after.saturating_sub(self.began.elapsed());
        if left.is_zero() { Err(Error::Timeout(self.timeout.reason)) } else { Ok(left) }
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let within = Within::new(timeout.for_write());
        let mut rest = &self.buffers.output()[..amount];
        while !rest.is_empty() {
            if let Some(wait) = retold(self.write, within.left()?) {
                self.stream.set_write_timeout(Some(wait))?;
                self.write = Some(wait);
            }
            match (&self.stream).write(rest) {
                Ok(0) => return Err(Error::Io(io::ErrorKind::WriteZero.into())),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(told(error, within.timeout.reason)),
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let within = Within::new(timeout.for_read());
        let amount = loop {
            if let Some(wait) = retold(self.read, within.left()?) {
                self.stream.set_read_timeout(Some(wait))?;
                self.read = Some(wait);
            }
            match (&self.stream).read(self.buffers.input_append_buf()) {
                Ok(amount) => break amount,
                // Linux does not go on with a read that has a time-out.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(told(error, within.timeout.reason)),
            }
        };
        self.buffers.input_appended(amount);
        self.answered |= amount > 0;
        Ok(amount > 0)
    }

    /// ureq asks when it puts a connection away, and again before it uses it. The first time is of no use: what matters is what has
    /// happened until the second.
    fn is_open(&mut self) -> bool {
        if std::mem::take(&mut self.answered) {
            return true;
        }
        // What the service says unasked, its end too, makes it unusable.
        let peeked = rustix::net::recv(&self.stream, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(Errno::AGAIN))
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("peer", &self.stream.peer_addr().ok()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_socket_is_told_once_for_requests_that_are_answered_soon() {
        let s = Duration::from_secs;
        let told = retold(None, s(15)).expect("it has not been told yet");
        for gone in [0, 1, 20, 200] {
            assert_eq!(retold(Some(told), s(15) - Duration::from_millis(gone)), None, "{gone} ms of it are gone");
        }
        assert!(retold(Some(told), s(7)).is_some_and(|wait| wait < s(8)));
        assert!(retold(Some(told), s(16)).is_some_and(|wait| wait >= s(16)));
    }

    /// A service that reads a little now and then does not get its time anew with each byte.
    #[test]
    fn a_write_ends_in_time_however_slowly_it_is_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("its address")).expect("connected");
        let (mut service, _) = listener.accept().expect("a connection");
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let slow = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(20)) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                let _ = service.read(&mut [0; 200_000]);
            }
        });
        let buffers = LazyBuffers::new(1024, 64 << 20);
        let mut socket = Socket { stream, buffers, read: None, write: None, answered: false };
        let timeout = NextTimeout { after: Duration::from_millis(300).into(), ..NextTimeout::default() };
        let began = Instant::now();
        let written = socket.transmit_output(64 << 20, timeout);
        assert!(matches!(written, Err(Error::Timeout(_))), "{written:?}");
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
        drop((stop, socket));
        slow.join().expect("it read");
    }

    proptest! {
        #[test]
        fn a_wait_is_never_shorter_than_what_is_left_and_hardly_longer(told in prop::option::of(0..4_000_000u64), left in 1..4_000_000u64) {
            let (told, left) = (told.map(Duration::from_millis), Duration::from_millis(left));
            let wait = retold(told, left).or(told).expect("told before, or now");
            let more = (left / 32 + Duration::from_millis(2)).min(Duration::from_millis(500));
            prop_assert!(wait >= left && wait <= left + more, "{wait:?} for {left:?}");
        }
    }
}
