//! Bounded connections: how many are served at once, and who makes room for one more.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::connection::Connection;

/// Connections that are served at once; when one more comes, the one that has kept the receiver
/// waiting longest makes room for it.
pub const MAX_CONNECTIONS: usize = 1024;

/// How long to wait when the operating system has no connection to give.
const PAUSE: Duration = Duration::from_millis(5);

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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener as _;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    #[tokio::test]
    async fn an_eviction_that_comes_too_late_hits_no_new_connection() -> io::Result<()> {
        let mut listener = Listener::bind(0).await?;
        listener.waiting.notify_one();
        let _client = TcpStream::connect(listener.local_addr()?).await?;
        let (mut connection, _) = listener.accept().await;
        let end = timeout(PAUSE, connection.read_u8()).await;
        assert!(end.is_err(), "{end:?}");
        Ok(())
    }
}
