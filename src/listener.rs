//! The listening socket, whose connections are admitted within the limits.

use std::future::poll_fn;
use std::io::{
    self,
    ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset},
};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::admission::{Admission, Slot};
use crate::connection::Connection;
use crate::report::Report;

/// How many connections the operating system may hold before they are accepted.
const BACKLOG: u32 = 1024;

/// How many bytes of answers the operating system may hold for a client that reads none. Linux
/// doubles it; by default it holds up to 4 MiB for each.
const SEND_BUFFER_BYTES: u32 = 16 * 1024;

/// How long to wait after the operating system failed to accept a connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(5);

/// The least time between two warnings of the same kind.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Accepts connections within the limits.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    admission: Arc<Admission>,
    report: Arc<Report>,
    last_warning: Option<Instant>,
    last_full_warning: Option<Instant>,
}

impl Listener {
    /// Listens on `port` of all addresses: of IPv6 and IPv4, or of IPv4 where there is no IPv6.
    /// `report` gets what arrives and is not HTTP/1.1.
    ///
    /// # Errors
    /// The operating system's, as for a port that is in use; the message is for the operator.
    pub fn bind(port: u16, report: Arc<Report>) -> io::Result<Self> {
        let socket = match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                listen((Ipv4Addr::UNSPECIFIED, port).into())
            }
            bound => bound,
        }
        .map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => "; set PORT to a free one",
                io::ErrorKind::PermissionDenied => "; set PORT to one from 1024 on",
                _ => "",
            };
            let problem = format!("PORT {port} cannot be listened on: {error}{remedy}");
            io::Error::new(error.kind(), problem)
        })?;
        let address = socket.local_addr()?;
        info!(
            "listening on http://localhost:{} ({address})",
            address.port()
        );
        Ok(Self {
            socket,
            admission: Arc::default(),
            report,
            last_warning: None,
            last_full_warning: None,
        })
    }

    /// The registry of the connections that it accepts.
    pub(crate) fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.admission)
    }

    async fn admit(&mut self) -> Slot {
        if self.admission.is_full() {
            warn_throttled(
                &mut self.last_full_warning,
                "too many connections; those that have waited longest for their clients are closed",
            );
            // Lets the runtime learn what has arrived on the other connections.
            yield_now().await;
        }
        poll_fn(|cx| self.admission.poll_admit(cx)).await
    }
}

fn warn_throttled(last: &mut Option<Instant>, warning: &str) {
    if last.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
        *last = Some(Instant::now());
        warn!("{warning}");
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // `TcpListener::bind` does the same, but takes no backlog.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    // Accepted connections have it from here.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.socket.accept().await {
                Ok((stream, address)) => {
                    // Without it an answer may wait for the client's next packet; failing is harmless.
                    let _ = stream.set_nodelay(true);
                    let slot = self.admit().await;
                    let connection = Connection::new(stream, slot, Arc::clone(&self.report));
                    return (connection, address);
                }
                // Of one connection, not of the socket.
                Err(error)
                    if [ConnectionAborted, ConnectionReset, ConnectionRefused]
                        .contains(&error.kind()) => {}
                Err(error) => {
                    warn_throttled(
                        &mut self.last_warning,
                        &format!(
                            "cannot accept connections: {error}; is the limit of open files too low?"
                        ),
                    );
                    if self.admission.make_room() {
                        // Lets that connection close.
                        yield_now().await;
                    } else {
                        sleep(ACCEPT_BACKOFF).await;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Gives handlers the slot of their connection.
impl Connected<IncomingStream<'_, Listener>> for Slot {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().slot().clone()
    }
}
