//! Bounded connections: how many, for how long, with how much of a head.
//!
//! axum's `serve` sets no timer and lets a connection buffer some 400 KB of head. The limits here
//! hold at the socket, whatever the protocol above it does.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tracing::warn;

/// Connections that are served at once; when one more comes, the one that has kept the receiver
/// waiting longest makes room for it.
pub const MAX_CONNECTIONS: usize = 1024;

/// The most that a connection may send before a head is whole, in bytes.
pub const MAX_HEAD: usize = 16 * 1024;

/// How long a request may take to arrive whole, from its first byte. The sender gives up at 10 s
/// ("Best practices").
pub const ARRIVAL: Duration = Duration::from_secs(15);

/// How long a connection may say nothing. Longer than the 90 s after which Heroku's router closes
/// its own ("HTTP routing"): whoever closes first may cut off a request that is under way.
pub const IDLE: Duration = Duration::from_secs(120);

/// How long after an answer a connection that is being closed may still send. Closed at once it
/// would be reset, and a client that is still sending would never read its answer.
const LINGER: Duration = Duration::from_millis(500);

/// The most that one read takes, in bytes. hyper doubles its buffer, of 8 KiB at first, whenever a
/// read fills it.
const READ: usize = 4 * 1024;

/// How long to wait when the operating system has no connection to give.
const PAUSE: Duration = Duration::from_millis(100);

/// How long one line says so.
const QUIET: Duration = Duration::from_secs(10);

/// Accepts connections within the limits.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    slots: Arc<Semaphore>,
    /// The connections that wait for a head, the longest waiting first.
    waiting: Arc<Notify>,
    complained: Option<Instant>,
}

/// A connection within its limits.
#[derive(Debug)]
pub struct Connection {
    stream: Take<TcpStream>,
    /// Bytes read since the last answer.
    read: usize,
    head: Head,
    answered: Option<Instant>,
    deadline: Instant,
    /// Rings at the deadline or before it.
    alarm: Pin<Box<Sleep>>,
    /// Comes when this connection must make room.
    eviction: Pin<Box<OwnedNotified>>,
    waiting: Arc<Notify>,
    _slot: Option<OwnedSemaphorePermit>,
}

/// A connection's word on whether the head of a request has arrived; the handler gives it.
#[derive(Clone, Debug, Default)]
pub struct Head(Arc<AtomicBool>);

impl Listener {
    /// Listens on `port` of all addresses: of IPv6 and IPv4, or of IPv4 where there is no IPv6.
    ///
    /// # Errors
    /// The operating system's, as for a port that is in use.
    pub async fn bind(port: u16) -> io::Result<Self> {
        let socket = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?
            }
            bound => bound?,
        };
        Ok(Self {
            socket,
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            waiting: Arc::default(),
            complained: None,
        })
    }

    fn complain(&mut self, error: &io::Error) {
        if self
            .complained
            .is_none_or(|complained| complained.elapsed() >= QUIET)
        {
            self.complained = Some(Instant::now());
            warn!("cannot accept connections: {error}; is the limit of open files too low?");
        }
    }

    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Some(slot);
        }
        self.waiting.notify_one();
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.socket.accept().await {
                Ok((stream, address)) => {
                    // Without it an answer could wait for the client's next packet; nothing is lost.
                    let _ = stream.set_nodelay(true);
                    let slot = self.slot().await;
                    // What had to make room may have gone by itself; nobody else has to now.
                    pin!(self.waiting.notified()).enable();
                    let waiting = Arc::clone(&self.waiting);
                    return (Connection::new(stream, slot, waiting), address);
                }
                Err(error) => {
                    self.complain(&error);
                    self.waiting.notify_one();
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Head {
    /// The head of the request has arrived: what is read from now on is its body.
    pub fn arrived(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Connected<IncomingStream<'_, Listener>> for Head {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().head.clone()
    }
}

impl Connection {
    fn new(stream: TcpStream, slot: Option<OwnedSemaphorePermit>, waiting: Arc<Notify>) -> Self {
        Self {
            stream: stream.take(0),
            read: 0,
            head: Head::default(),
            answered: None,
            deadline: Instant::now() + IDLE,
            alarm: Box::pin(sleep(ARRIVAL)),
            eviction: Box::pin(Arc::clone(&waiting).notified_owned()),
            waiting,
            _slot: slot,
        }
    }

    fn answered(&mut self) {
        let now = Instant::now();
        self.read = 0;
        self.head.0.store(false, Relaxed);
        self.answered = Some(now);
        self.deadline = now + IDLE;
        self.eviction
            .set(Arc::clone(&self.waiting).notified_owned());
    }

    /// Waits for the client no longer than the limits say; never returns otherwise.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<io::ErrorKind> {
        while self.alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= self.deadline {
                return Poll::Ready(io::ErrorKind::TimedOut);
            }
            // No later than ARRIVAL from now, so that a request that begins needs no new alarm.
            self.alarm.as_mut().reset(self.deadline.min(now + ARRIVAL));
        }
        if self.head.0.load(Relaxed) {
            return Poll::Pending;
        }
        self.eviction
            .as_mut()
            .poll(cx)
            .map(|()| io::ErrorKind::ConnectionAborted)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let limit = if this.head.0.load(Relaxed) {
            READ
        } else {
            READ.min(MAX_HEAD - this.read)
        };
        if limit == 0 {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        this.stream.set_limit(limit as u64);
        let filled = buffer.filled().len();
        if Pin::new(&mut this.stream)
            .poll_read(cx, buffer)?
            .is_pending()
        {
            return this.poll_limits(cx).map(|error| Err(error.into()));
        }
        let count = buffer.filled().len() - filled;
        if this.read == 0 && count > 0 {
            this.deadline = Instant::now() + ARRIVAL;
        }
        this.read += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        match Pin::new(this.stream.get_mut()).poll_write(cx, bytes)? {
            Poll::Pending => this.poll_limits(cx).map(|error| Err(error.into())),
            Poll::Ready(count) => {
                // "100 Continue" asks for the body and answers nothing.
                if !bytes.starts_with(b"HTTP/1.1 100 ") {
                    this.answered();
                }
                Poll::Ready(Ok(count))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    /// Says goodbye, then hears the client out.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(this.stream.get_mut()).poll_shutdown(cx))?;
        let Some(until) = this.answered.map(|answered| answered + LINGER) else {
            return Poll::Ready(Ok(()));
        };
        let mut ignored = [0; READ];
        while Instant::now() < until {
            let mut buffer = ReadBuf::new(&mut ignored);
            match Pin::new(this.stream.get_mut()).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => break,
                Poll::Pending => {
                    this.alarm.as_mut().reset(until);
                    ready!(this.alarm.as_mut().poll(cx));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener as _;

    #[tokio::test]
    async fn an_eviction_that_comes_too_late_hits_no_new_connection() -> io::Result<()> {
        let mut listener = Listener::bind(0).await?;
        listener.waiting.notify_one();
        let _client = TcpStream::connect(listener.local_addr()?).await?;
        let (mut connection, _) = listener.accept().await;
        let end = tokio::time::timeout(PAUSE, connection.read_u8()).await;
        assert!(end.is_err(), "{end:?}");
        Ok(())
    }
}
