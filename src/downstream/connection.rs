//! Connections that say what happened on them.
//!
//! ureq does not tell whether a request went over a pooled connection, whether any of it was sent, or whether any of the
//! answer came. Those three decide about `sent` and about the one resend, so the outermost layer of each connection
//! notes them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use super::credentials::Keyring;
use super::resolver::Addresses;

/// What has happened since the request in hand began. One per agent; an agent is used by one thread, so the order of
/// memory does not matter.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// A connection was asked for, not taken from the pool.
    pub(super) fresh: AtomicBool,
    /// Bytes of the request may have left.
    pub(super) wrote: AtomicBool,
    /// The connection broke while the request was being written.
    pub(super) cut: AtomicBool,
    /// Bytes of an answer have come.
    pub(super) read: AtomicBool,
    /// What the connection being made was made of; see [`Generation`].
    begun: AtomicU64,
}

impl Watch {
    /// For a new request.
    pub(super) fn reset(&self) {
        for flag in [&self.fresh, &self.wrote, &self.cut, &self.read] {
            flag.store(false, Relaxed);
        }
    }
}

/// What connections are made of: addresses and credentials. When either has changed, older connections are not used again.
#[derive(Clone)]
pub(super) struct Generation {
    pub(super) addresses: Addresses,
    pub(super) keyring: Arc<Keyring>,
}

impl Generation {
    /// Both only grow, so that the sum stays the same only while both do.
    fn now(&self) -> u64 {
        self.addresses.generation() + self.keyring.generation()
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generation({})", self.now())
    }
}

/// First link of the chain: it runs only when a new connection is made, and before anything is.
#[derive(Debug)]
pub(super) struct NoteFresh(pub(super) Arc<Watch>, pub(super) Generation);

impl Connector<()> for NoteFresh {
    type Out = ();

    fn connect(&self, _: &ConnectionDetails, _: Option<()>) -> Result<Option<()>, Error> {
        self.0.fresh.store(true, Relaxed);
        self.0.begun.store(self.1.now(), Relaxed);
        Ok(None)
    }
}

/// Last link of the chain.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) watch: Arc<Watch>,
    pub(super) generation: Generation,
}

impl<In: Transport> Connector<In> for Watching {
    type Out = Watched<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| Watched {
            inner,
            watch: Arc::clone(&self.watch),
            begun: self.watch.begun.load(Relaxed),
            generation: self.generation.clone(),
            cut: false,
            head: Vec::new(),
        }))
    }
}

/// A connection under watch.
pub(super) struct Watched<T> {
    inner: T,
    watch: Arc<Watch>,
    generation: Generation,
    begun: u64,
    cut: bool,
    /// The head of a request, which goes with the beginning of its body: one packet, and the service wakes once.
    head: Vec<u8>,
}

/// Longest head that waits for its body, in bytes.
const HEAD_HELD: usize = 8 * 1024;

impl<T: Transport> Watched<T> {
    /// Sends the first `amount` bytes of the output, behind the head that waits.
    fn flush(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.head.is_empty() {
            return self.write(amount, timeout);
        }
        let head = std::mem::take(&mut self.head);
        let output = self.inner.buffers().output();
        let together = head.len() + amount;
        if together <= output.len() {
            output.copy_within(..amount, head.len());
            output[..head.len()].copy_from_slice(&head);
            self.write(together, timeout)?;
        } else {
            let body = output[..amount].to_vec();
            output[..head.len()].copy_from_slice(&head);
            self.write(head.len(), timeout)?;
            self.inner.buffers().output()[..amount].copy_from_slice(&body);
            self.write(amount, timeout)?;
        }
        self.head = head;
        self.head.clear();
        Ok(())
    }

    /// A service may answer, 413 for one, and close before it has read the whole request. Then writing fails while the
    /// answer lies in the socket, so a broken write is only noted: what can be read decides.
    fn write(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.cut {
            return Ok(());
        }
        if amount > 0 {
            self.watch.wrote.store(true, Relaxed);
        }
        match self.inner.transmit_output(amount, timeout) {
            Err(Error::Io(e)) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.cut = true;
                self.watch.cut.store(true, Relaxed);
                Ok(())
            }
            result => result,
        }
    }
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        // ureq writes the head, then the body, then waits for the answer.
        if self.head.is_empty() && (1..=HEAD_HELD).contains(&amount) {
            self.head.extend_from_slice(&self.inner.buffers().output()[..amount]);
            return Ok(());
        }
        self.flush(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        if !self.head.is_empty() {
            self.flush(0, timeout)?;
        }
        let came = self.inner.await_input(timeout)?;
        if came {
            self.watch.read.store(true, Relaxed);
        }
        Ok(came)
    }

    /// Asked before a connection goes into the pool and before it comes out again.
    fn is_open(&mut self) -> bool {
        !self.cut && self.begun == self.generation.now() && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

impl<T: fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
