//! One connection within its limits: how long it may take, and how large a head may be.
//!
//! axum's `serve` sets no timer and lets a connection buffer some 400 KB of head. The limits here
//! hold at the socket, whatever hyper does above it.

use std::io::{self, ErrorKind};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::admission::{Phase, Slot};
use crate::refusal::Refusal;
use crate::report::Report;

/// The largest head of a request, in bytes.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How long a request may take to arrive whole, from its first byte. The sender gives up at 10 s
/// ("Best practices").
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a connection may be idle. Longer than the 90 s after which Heroku's router closes its
/// own ("HTTP routing"): whichever side closes first may cut off a request that is on its way.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a connection that is being closed still discards input after its last answer. Closed
/// at once it would be reset, and a client that is still sending would not read that answer.
const LINGER: Duration = Duration::from_millis(500);

/// The most that one read takes, in bytes. hyper doubles its buffer, 8 KiB at first, whenever a
/// read fills it.
const MAX_READ_BYTES: usize = 4 * 1024;

/// What hyper writes to ask for a body. It is not an answer.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The first bytes of every HTTP/2 connection (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first bytes of a PROXY protocol header of version 2.
const PROXY_V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A connection within its limits.
#[derive(Debug)]
pub struct Connection {
    stream: Take<TcpStream>,
    slot: Slot,
    report: Arc<Report>,
    /// How many bytes have been read since the last answer.
    read_bytes: usize,
    /// The first of those bytes, by which other protocols are told apart.
    opening: [u8; HTTP2_PREFACE.len()],
    /// Whether the last read found nothing. Then hyper has parsed all that was read before, and
    /// keeps none of it but an unfinished head.
    drained: bool,
    /// Whether the client has shut down its sending half.
    ended: bool,
    /// Whether an answer has begun to be written, and not all of it is.
    answering: bool,
    last_answer: Option<Instant>,
    deadline: Instant,
    /// Wakes the task at the deadline, or before it.
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, slot: Slot, report: Arc<Report>) -> Self {
        Self {
            stream: stream.take(0),
            slot,
            report,
            read_bytes: 0,
            opening: [0; HTTP2_PREFACE.len()],
            drained: true,
            ended: false,
            answering: false,
            last_answer: None,
            deadline: Instant::now() + IDLE_TIMEOUT,
            timer: Box::pin(sleep(REQUEST_TIMEOUT)),
        }
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Resolves, while nothing can be read or written, when the connection has to be closed.
    ///
    /// `has_read` tells whether bytes have just been read: a head that they completed is handed to
    /// its handler before the next poll.
    fn poll_close(&mut self, cx: &mut Context<'_>, has_read: bool) -> Poll<ErrorKind> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            // Once the request is whole, it is the receiver that takes its time.
            if now >= self.deadline && self.slot.phase() != Phase::Answer {
                return Poll::Ready(ErrorKind::TimedOut);
            }
            // Within REQUEST_TIMEOUT, so that the first byte of a request need not reset the timer.
            let latest = now + REQUEST_TIMEOUT;
            let next = if now < self.deadline {
                self.deadline.min(latest)
            } else {
                latest
            };
            self.timer.as_mut().reset(next);
        }
        if !self.slot.has_to_close(cx.waker()) {
            return Poll::Pending;
        }
        if has_read {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // The place is free before hyper and the handler have finished with this connection.
        self.slot.release();
        Poll::Ready(ErrorKind::ConnectionAborted)
    }

    /// The client has sent all that it will. The answer to a request that it sent whole is still
    /// written, so hyper learns of the end only after that.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let first = !mem::replace(&mut self.ended, true);
        if self.slot.phase() == Phase::Answer {
            return self.poll_close(cx, false).map(|kind| Err(kind.into()));
        }
        if first {
            // The handler may not have seen the last bytes yet.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn note_read(&mut self, bytes: &[u8]) {
        if self.read_bytes == 0 {
            self.deadline = Instant::now() + REQUEST_TIMEOUT;
        }
        if let Some(free) = self.opening.get_mut(self.read_bytes..) {
            let count = free.len().min(bytes.len());
            free[..count].copy_from_slice(&bytes[..count]);
        }
        self.read_bytes += bytes.len();
        self.drained = false;
    }

    /// Names what hyper could not parse as HTTP/1.1.
    fn not_http_reason(&self) -> Refusal {
        let opening = &self.opening[..self.read_bytes.min(self.opening.len())];
        if opening.starts_with(&[0x16, 3]) {
            Refusal::TlsHandshake
        } else if opening.starts_with(b"PRI * HTTP/2.0\r\n") {
            Refusal::Http2Preface
        } else if opening.starts_with(b"PROXY ") || opening.starts_with(PROXY_V2_SIGNATURE) {
            Refusal::ProxyProtocol
        } else {
            Refusal::MalformedRequest
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.slot.release();
        // hyper closes such a connection without an answer.
        if self.read_bytes >= HTTP2_PREFACE.len() && self.opening == HTTP2_PREFACE {
            self.report.not_http(Refusal::Http2Preface);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut limit = MAX_READ_BYTES;
        if this.slot.phase() == Phase::Head {
            limit = limit.min(MAX_HEAD_BYTES.saturating_sub(this.read_bytes));
        }
        if limit == 0 {
            this.report.not_http(Refusal::HeadTooLarge);
            return Poll::Ready(Err(ErrorKind::InvalidData.into()));
        }
        this.stream.set_limit(limit as u64);
        let filled = buffer.filled().len();
        if Pin::new(&mut this.stream)
            .poll_read(cx, buffer)?
            .is_pending()
        {
            let has_read = !mem::replace(&mut this.drained, true);
            return this.poll_close(cx, has_read).map(|kind| Err(kind.into()));
        }
        match &buffer.filled()[filled..] {
            [] => this.poll_end(cx),
            bytes => {
                this.note_read(bytes);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if !this.slot.is_open() {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        let is_answer = !CONTINUE.ends_with(bytes);
        if is_answer && !mem::replace(&mut this.answering, true) {
            // Before it is written: a client that does not take it makes room, too.
            let by_handler = this.slot.begin_answer();
            let is_client_error = bytes.get(..10).is_some_and(|start| start.ends_with(b" 4"));
            if !by_handler && is_client_error {
                // hyper itself answers what it cannot parse.
                this.report.not_http(this.not_http_reason());
            }
            // What hyper has not parsed is at least the first byte of the next request.
            this.read_bytes = usize::from(!this.drained);
        }
        let Poll::Ready(count) = Pin::new(this.stream.get_mut()).poll_write(cx, bytes)? else {
            return this.poll_close(cx, false).map(|kind| Err(kind.into()));
        };
        if is_answer {
            let now = Instant::now();
            this.last_answer = Some(now);
            this.deadline = now
                + if this.drained {
                    IDLE_TIMEOUT
                } else {
                    REQUEST_TIMEOUT
                };
            if this.ended {
                // hyper then reads the end again.
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once it has written everything.
        self.answering = false;
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    /// Sends FIN, then discards input for up to 500 ms, so that the client can read its answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(this.stream.get_mut()).poll_shutdown(cx))?;
        let Some(last_answer) = this.last_answer else {
            return Poll::Ready(Ok(()));
        };
        this.deadline = last_answer + LINGER;
        let mut discarded = [0; MAX_READ_BYTES];
        while Instant::now() < this.deadline {
            let mut buffer = ReadBuf::new(&mut discarded);
            match Pin::new(this.stream.get_mut()).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => break,
                Poll::Pending => {
                    this.timer.as_mut().reset(this.deadline);
                    return this.poll_close(cx, false).map(|_| Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
