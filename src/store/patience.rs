//! How long a server may be silent while it owes an answer. The `postgres` crate waits for ever; a server that is frozen but
//! whose kernel still acknowledges (a stopped process, storage that hangs) would hold a thread for as long as it likes, and
//! nothing else would notice: keepalives and the TCP user time-out see a live peer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

/// How much silence is borne, and how much there is: shared by a thread's link and the connections that it makes one after the
/// other. Each connection keeps its own time; of several at once (a pool's) the silence that is shown is that of any.
#[derive(Debug, Clone)]
pub struct Patience(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    epoch: Instant,
    /// Milliseconds of silence that are borne; 0: any.
    bound_ms: AtomicU64,
    /// Since when an answer is owed and nothing was heard, in milliseconds since `epoch`, + 1; 0: none is owed.
    silent_since_ms: AtomicU64,
}

impl Patience {
    /// Bears `bound` of silence; `None`: any.
    pub fn new(bound: Option<Duration>) -> Self {
        let bound_ms = AtomicU64::new(bound.map_or(0, |bound| bound.as_millis().max(1) as u64));
        Self(Arc::new(Inner { epoch: Instant::now(), bound_ms, silent_since_ms: AtomicU64::new(0) }))
    }

    /// How long an answer has been owed without a byte of it; `None`: none is owed.
    pub fn silence(&self) -> Option<Duration> {
        let since = self.0.silent_since_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.0.epoch.elapsed().saturating_sub(Duration::from_millis(since)))
    }

    /// From now on any silence is borne: for a session whose statements may take as long as they like.
    pub(super) fn bear_all(&self) {
        self.0.bound_ms.store(0, Ordering::Relaxed);
    }

    fn owed(&self) {
        self.0.silent_since_ms.store(self.0.epoch.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn settled(&self) {
        self.0.silent_since_ms.store(0, Ordering::Relaxed);
    }

    fn bound(&self) -> Option<Duration> {
        let ms = self.0.bound_ms.load(Ordering::Relaxed);
        (ms > 0).then(|| Duration::from_millis(ms))
    }
}

/// The server was silent for longer than was borne.
#[derive(Debug, thiserror::Error)]
#[error("no answer for {0:?}: the server is frozen or its storage hangs; the connection is given up")]
struct Silent(Duration);

/// A connection whose reads and writes end in an error when the server owes an answer for too long.
///
/// An answer is owed from the first byte of a request to the server's ReadyForQuery, which ends every answer (PostgreSQL's
/// protocol, "Message Flow"): the last six bytes of what came. Bytes of a row that look like it, at the very end of a packet,
/// would only suspend the bound until the next packet.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    inner: S,
    patience: Patience,
    /// Since when an answer is owed and nothing was heard.
    owed_since: Option<Instant>,
    tail: [u8; 6],
    timer: Option<Pin<Box<Sleep>>>,
    /// The bound was found passed; once more is looked for an answer that has come and was not read yet.
    is_late: bool,
    gave_up: bool,
}

const READY_FOR_QUERY: [u8; 5] = [b'Z', 0, 0, 0, 5];

impl<S> Bounded<S> {
    pub(super) fn new(inner: S, patience: Patience) -> Self {
        patience.settled();
        Self { inner, patience, owed_since: None, tail: [0; 6], timer: None, is_late: false, gave_up: false }
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Pending until the server has been silent for too long, then an error; for ever from then on.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let (Some(bound), Some(since)) = (self.patience.bound(), self.owed_since) else { return Poll::Pending };
        let silence = since.elapsed();
        if self.gave_up || silence >= bound {
            // A connection that was idle after an error's answer has not read its end yet: the first poll says nothing.
            if !std::mem::replace(&mut self.is_late, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.gave_up = true;
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, Silent(bound)));
        }
        let until = tokio::time::Instant::now() + (bound - silence);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        timer.as_mut().reset(until);
        // Ready only by rounding: then it is asked again at once.
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn heard(&mut self, bytes: &[u8]) {
        if bytes.len() >= 6 {
            self.tail.copy_from_slice(&bytes[bytes.len() - 6..]);
        } else {
            self.tail.rotate_left(bytes.len());
            self.tail[6 - bytes.len()..].copy_from_slice(bytes);
        }
        if self.tail[..5] == READY_FOR_QUERY { self.settled() } else { self.owed() }
    }

    fn owed(&mut self) {
        (self.owed_since, self.is_late) = (Some(Instant::now()), false);
        self.patience.owed();
    }

    fn settled(&mut self) {
        (self.owed_since, self.is_late) = (None, false);
        self.patience.settled();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                self.heard(&buf.filled()[before..]);
                Poll::Ready(Ok(()))
            }
            Poll::Pending => self.poll_silence(cx).map(Err),
            ended => {
                self.settled();
                ended
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.inner).poll_write(cx, buf) {
            Poll::Ready(Ok(n)) => {
                self.owed();
                // Whoever reads has already been told to wait: from here on the timer wakes him.
                match self.poll_silence(cx) {
                    Poll::Ready(silent) => Poll::Ready(Err(silent)),
                    Poll::Pending => Poll::Ready(Ok(n)),
                }
            }
            Poll::Pending => self.poll_silence(cx).map(Err),
            failed => failed,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_flush(cx) {
            Poll::Pending => self.poll_silence(cx).map(Err),
            done => done,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.settled();
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S> Drop for Bounded<S> {
    fn drop(&mut self) {
        self.settled();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn with_server<T>(
        bound: Duration,
        work: impl AsyncFnOnce(&mut Bounded<DuplexStream>, &mut DuplexStream, Patience) -> T,
    ) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let (client, mut server) = duplex(64);
            let patience = Patience::new(Some(bound));
            work(&mut Bounded::new(client, patience.clone()), &mut server, patience).await
        })
    }

    #[test]
    fn a_server_that_owes_an_answer_is_given_up_and_an_idle_one_is_not() {
        with_server(Duration::from_millis(50), async |client, server, patience| {
            client.write_all(b"Q").await.expect("written");
            server.write_all(b"row Z\0\0").await.expect("written");
            server.write_all(b"\0\x05I").await.expect("written");
            let mut answer = [0; 10];
            client.read_exact(&mut answer).await.expect("read");
            assert_eq!(patience.silence(), None, "the answer was complete, in two pieces");
            tokio::time::sleep(Duration::from_millis(120)).await;
            client.write_all(b"Q").await.expect("an idle connection is not a silent one");
            server.write_all(b"row").await.expect("written");
            client.read_exact(&mut answer[..3]).await.expect("read");
            assert!(patience.silence().is_some());
            let error = client.read(&mut answer).await.expect_err("silent in the middle of an answer");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(error.to_string().contains("no answer for 50ms"), "{error}");
        });
    }

    #[test]
    fn an_answer_that_waits_to_be_read_is_not_missed_however_late() {
        with_server(Duration::from_millis(50), async |client, server, _| {
            client.write_all(b"Q").await.expect("written");
            server.write_all(b"error").await.expect("written");
            let mut answer = [0; 6];
            client.read_exact(&mut answer[..5]).await.expect("read");
            // Nobody polls, as between two uses of a connection.
            std::thread::sleep(Duration::from_millis(80));
            server.write_all(b"Z\0\0\0\x05I").await.expect("written");
            client.read_exact(&mut answer).await.expect("it has come");
        });
    }

    #[test]
    fn connections_that_share_their_patience_keep_times_of_their_own() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let patience = Patience::new(Some(Duration::from_millis(50)));
            let ((one, _kept), (two, _too)) = (duplex(64), duplex(64));
            let (mut one, mut two) = (Bounded::new(one, patience.clone()), Bounded::new(two, patience));
            one.write_all(b"Q").await.expect("written");
            two.write_all(b"Q").await.expect("written");
            let mut answer = [0; 1];
            one.read(&mut answer).await.expect_err("silent");
            drop(one);
            let error = two.read(&mut answer).await.expect_err("the end of another connection is no answer");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_server_that_takes_no_more_bytes_is_given_up() {
        with_server(Duration::from_millis(50), async |client, _server, _| {
            let error = client.write_all(&[0; 1000]).await.expect_err("nobody reads");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }
}
