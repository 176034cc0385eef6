//! One connection: what is read and written, how large a head may be, what is no HTTP/1.1, and the
//! end.
//!
//! It stands between the socket and hyper 1, of which it assumes (with the test that fails if that
//! changes):
//! - after a read that completes a head it may read once more, and polls the handler within the same
//!   poll (`a_request_that_arrives_with_its_eviction_is_answered`);
//! - whenever the task is woken it polls the read, the write or the shutdown that it waits for
//!   (`a_new_connection_evicts_the_oldest`, `what_waits_for_a_head_is_closed_at_once`);
//! - what it cannot parse it answers with a 4xx (`what_is_not_http_is_named`);
//! - after an answer with `Connection: close` it shuts the connection down, though the request may
//!   not have been read whole (`every_refusal_ends_its_connection`), unless that asks for an upgrade:
//!   such a connection it closes at once, and who is still sending may not read the answer.

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::refusal::Refusal;
use crate::registry::{Phase, Registry, Slot};
use crate::report::Report;
use crate::router::MAX_BODY_BYTES;

/// The most bytes that the head of a request may have. hyper's own limit is 400 KiB.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How many bytes of a body are read at most, with its chunk sizes, which may have any length.
const MAX_ENCODED_BODY_BYTES: usize = 2 * MAX_BODY_BYTES;

/// How many bytes one read may take. hyper doubles its buffer, 8 KiB at first, whenever a read
/// fills it.
const MAX_READ_BYTES: usize = 4 * 1024;

/// An open connection. It closes when this is dropped.
#[derive(Debug)]
pub struct Connection {
    pub(crate) stream: Take<TcpStream>,
    pub(crate) slot: Slot,
    pub(crate) registry: Arc<Registry>,
    pub(crate) report: Arc<Report>,
    /// True if the last read found something, or the end: hyper may not have looked at it yet.
    pub(crate) is_unseen: bool,
}

impl Connection {
    /// Called when nothing can be read. Resolves when the connection has to close, since it is
    /// evicted, waits for its client, and nothing has arrived.
    fn poll_evicted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let is_unseen = mem::take(&mut self.is_unseen);
        if !self.slot.must_close(cx.waker()) {
            return Poll::Pending;
        }
        if is_unseen {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.has_arrived() {
            // The runtime wakes the task when it has noticed.
            return Poll::Pending;
        }
        Poll::Ready(ErrorKind::ConnectionAborted.into())
    }

    /// Asks the operating system: the runtime learns only once in a turn what has arrived.
    fn has_arrived(&self) -> bool {
        let socket = self.stream.get_ref().as_fd().try_clone_to_owned();
        let peek = |socket| std::net::TcpStream::from(socket).peek(&mut [0]);
        socket.and_then(peek).is_ok_and(|count| count > 0)
    }

    /// Something else than an HTTP/1.1 request has arrived: tells the operator, and has hyper refuse
    /// it, which no NUL can be a part of.
    fn reject(&self, refusal: Refusal, buffer: &mut ReadBuf<'_>) {
        self.report.refused(refusal, None, self.slot.client);
        self.slot.close(Instant::now());
        buffer.put_slice(b"\0\r\n\r\n");
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.registry.closed(&self.slot);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let phase = this.slot.phase();
        let limit = match phase {
            Phase::Head(MAX_HEAD_BYTES) => {
                // The head may be whole: hyper looks first.
                if mem::take(&mut this.is_unseen) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                this.reject(Refusal::HeadTooLarge, buffer);
                return Poll::Ready(Ok(()));
            }
            Phase::Body(MAX_ENCODED_BODY_BYTES) => {
                return Poll::Ready(Err(ErrorKind::InvalidData.into()));
            }
            Phase::Head(bytes) => MAX_READ_BYTES.min(MAX_HEAD_BYTES - bytes),
            Phase::Body(bytes) => MAX_READ_BYTES.min(MAX_ENCODED_BODY_BYTES - bytes),
            Phase::Working | Phase::Closing => MAX_READ_BYTES,
        };
        this.stream.set_limit(limit as u64);
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer)?;
        if read.is_pending() {
            return this.poll_evicted(cx).map(Err);
        }
        let bytes = &buffer.filled()[before..];
        this.is_unseen = true;
        this.slot.count_read(bytes.len());
        if phase == Phase::Head(0)
            && let Some(refusal) = other_protocol(bytes)
        {
            buffer.set_filled(before);
            this.reject(refusal, buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A handler's own 4xx is written in the phase Closing.
        if matches!(self.slot.phase(), Phase::Head(_))
            && let Some(status) = client_error(bytes)
        {
            let refusal = Refusal::MalformedRequest(status);
            self.report.refused(refusal, None, self.slot.client);
            self.slot.close(Instant::now());
        }
        let written = Pin::new(self.stream.get_mut()).poll_write(cx, bytes);
        if written.is_pending() && self.slot.must_close(cx.waker()) {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    /// Sends FIN, then discards what still arrives until the client closes or the connection is
    /// evicted. Closed at once it would be reset, and a client that is still sending would not read
    /// its answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.slot.close(Instant::now());
        let must_close = self.slot.must_close(cx.waker());
        let mut stream = Pin::new(self.stream.get_mut());
        ready!(stream.as_mut().poll_shutdown(cx))?;
        if must_close {
            return Poll::Ready(Ok(()));
        }
        let mut discarded = [0; MAX_READ_BYTES];
        let mut buffer = ReadBuf::new(&mut discarded);
        let read = ready!(stream.poll_read(cx, &mut buffer));
        if read.is_err() || buffer.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
        // Other connections come first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The status of an answer, if it is a 4xx.
fn client_error(answer: &[u8]) -> Option<StatusCode> {
    let status = answer.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    let status = StatusCode::from_bytes(status).ok()?;
    status.is_client_error().then_some(status)
}

/// Names the protocol that begins with these bytes, if it is another one than HTTP. hyper's first
/// read asks for 24 bytes.
fn other_protocol(bytes: &[u8]) -> Option<Refusal> {
    let is = |opening: &[u8]| bytes.starts_with(opening);
    if is(&[0x16, 3]) {
        Some(Refusal::TlsHandshake)
    } else if is(b"PRI ") {
        Some(Refusal::Http2Preface)
    } else if is(b"PROXY ") || is(b"\r\n\r\n\0\r\nQUIT\n") {
        Some(Refusal::ProxyProtocol)
    } else {
        None
    }
}
