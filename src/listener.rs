//! The socket that listens: bind, accept, and what the operating system refuses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::connection::Connection;
use crate::registry::{Registry, Slot};
use crate::report::Report;

/// How many connections the operating system may hold before they are accepted.
const BACKLOG: u32 = 1024;

/// How many bytes of answers the operating system may hold for a client that reads none. Linux
/// doubles it; by default it holds up to 4 MiB for each.
const SEND_BUFFER_BYTES: u32 = 16 * 1024;

/// How long to wait before the next attempt to accept or to admit a connection. Meanwhile evicted
/// ones close.
const RETRY_DELAY: Duration = Duration::from_millis(1);

/// The errors for too many open files in this process, and in the whole system.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// Accepts connections as the registry admits them.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    registry: Arc<Registry>,
    report: Arc<Report>,
}

impl Listener {
    /// Listens on `port` of `address`; if there is none, of all IPv6 and IPv4 addresses, or of all
    /// IPv4 addresses where there is no IPv6.
    ///
    /// # Errors
    /// The operating system's, as for a port that is in use; the message is for the operator.
    pub fn bind(
        address: Option<IpAddr>,
        port: u16,
        registry: Arc<Registry>,
        report: Arc<Report>,
    ) -> io::Result<Self> {
        let bound = match address {
            Some(address) => listen((address, port).into()),
            None => match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    listen((Ipv4Addr::UNSPECIFIED, port).into())
                }
                bound => bound,
            },
        };
        let socket = bound.map_err(|error| {
            let problem = match (error.kind(), address) {
                (io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied, _) | (_, None) => {
                    format!(
                        "PORT {port} cannot be listened on: {error}; \
                         set it to a free one from 1024 on"
                    )
                }
                (_, Some(address)) => format!(
                    "BIND_ADDRESS {address} cannot be listened on: {error}; \
                     set it to an address of this host, or unset it for all"
                ),
            };
            io::Error::new(error.kind(), problem)
        })?;
        let local = socket.local_addr()?;
        let host = match local.ip() {
            ip if ip.is_unspecified() || ip.is_loopback() => format!("localhost:{}", local.port()),
            _ => local.to_string(),
        };
        info!("listening on http://{host} ({local})");
        Ok(Self {
            socket,
            registry,
            report,
        })
    }

    /// Waits until the registry admits a connection.
    async fn admit(&self, client: SocketAddr) -> Slot {
        if self.registry.is_full() {
            self.report.too_many_connections();
        }
        loop {
            if let Some(slot) = self.registry.admit(client, Instant::now()) {
                return slot;
            }
            sleep(RETRY_DELAY).await;
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // `TcpListener::bind` does the same, but takes no backlog.
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
                    let client = SocketAddr::new(address.ip().to_canonical(), address.port());
                    let connection = Connection {
                        stream: stream.take(0),
                        slot: self.admit(client).await,
                        registry: Arc::clone(&self.registry),
                        report: Arc::clone(&self.report),
                        is_unseen: false,
                    };
                    return (connection, client);
                }
                Err(error) => {
                    self.report.cannot_accept(&error);
                    if let Some(EMFILE | ENFILE) = error.raw_os_error() {
                        self.registry.evict_first(Instant::now());
                    }
                    sleep(RETRY_DELAY).await;
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
        stream.io().slot.clone()
    }
}
