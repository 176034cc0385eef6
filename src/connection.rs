//! One connection within its limits: how long it may take, and with how much of a head.
//!
//! axum's `serve` sets no timer and lets a connection buffer some 400 KB of head. The limits here
//! hold at the socket, whatever the protocol above it does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, Sleep, sleep};

use crate::listener::Listener;

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

/// A connection within its limits.
#[derive(Debug)]
pub struct Connection {
    stream: Take<TcpStream>,
    /// Bytes read since the last answer.
    read: usize,
    head: Head,
    last_answer: Option<Instant>,
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
    pub(crate) fn new(
        stream: TcpStream,
        slot: Option<OwnedSemaphorePermit>,
        waiting: Arc<Notify>,
    ) -> Self {
        Self {
            stream: stream.take(0),
            read: 0,
            head: Head::default(),
            last_answer: None,
            deadline: Instant::now() + IDLE,
            alarm: Box::pin(sleep(ARRIVAL)),
            eviction: Box::pin(Arc::clone(&waiting).notified_owned()),
            waiting,
            _slot: slot,
        }
    }

    fn answered(&mut self) {
        let now = Instant::now();
        self.last_answer = Some(now);
        self.deadline = now + IDLE;
        self.queue_anew();
    }

    /// Leaves the queue of those that wait; the next wait begins at its end.
    fn queue_anew(&mut self) {
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
            // An eviction that has come already goes to the next in the queue.
            self.queue_anew();
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
        // "100 Continue" asks for the body and answers nothing.
        let answer = !bytes.starts_with(b"HTTP/1.1 100 ");
        if answer {
            // Before it is written: a client that does not take it has to make room, too.
            this.read = 0;
            this.head.0.store(false, Relaxed);
        }
        match Pin::new(this.stream.get_mut()).poll_write(cx, bytes)? {
            Poll::Pending => this.poll_limits(cx).map(|error| Err(error.into())),
            Poll::Ready(count) => {
                if answer {
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
        let Some(last_answer) = this.last_answer else {
            return Poll::Ready(Ok(()));
        };
        this.deadline = last_answer + LINGER;
        let mut ignored = [0; READ];
        while Instant::now() < this.deadline {
            let mut buffer = ReadBuf::new(&mut ignored);
            match Pin::new(this.stream.get_mut()).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => break,
                Poll::Pending => {
                    this.alarm.as_mut().reset(this.deadline);
                    return this.poll_limits(cx).map(|_| Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    async fn connect(waiting: &Arc<Notify>) -> io::Result<(Connection, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        let (stream, _) = listener.accept().await?;
        Ok((Connection::new(stream, None, Arc::clone(waiting)), client))
    }

    #[tokio::test]
    async fn a_client_that_does_not_take_its_answer_makes_room() -> io::Result<()> {
        let waiting = Arc::default();
        let (mut connection, _client) = connect(&waiting).await?;
        waiting.notify_one();
        let answers = async {
            loop {
                // The head of another request had come before.
                connection.head.arrived();
                if let Err(error) = connection.write(&[b'x'; 1000]).await {
                    return error.kind();
                }
            }
        };
        let end = timeout(ARRIVAL, answers).await;
        assert_eq!(end, Ok(io::ErrorKind::ConnectionAborted));
        Ok(())
    }

    #[tokio::test]
    async fn an_eviction_passes_by_a_request_under_way_to_the_next() -> io::Result<()> {
        let waiting = Arc::default();
        let (mut busy, _client) = connect(&waiting).await?;
        let (mut idle, _client) = connect(&waiting).await?;
        for connection in [&mut busy, &mut idle] {
            let silent = timeout(Duration::ZERO, connection.read_u8()).await;
            assert!(silent.is_err(), "{silent:?}");
        }
        busy.head.arrived();
        waiting.notify_one();
        let silent = timeout(Duration::ZERO, busy.read_u8()).await;
        assert!(silent.is_err(), "{silent:?}");
        let end = timeout(Duration::ZERO, idle.read_u8()).await;
        assert!(matches!(end, Ok(Err(_))), "{end:?}");
        Ok(())
    }
}
