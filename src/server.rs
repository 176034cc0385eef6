//! Serves until a signal, then finishes what is in flight, within a deadline.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::oneshot;
use tokio::time::{interval, sleep, timeout};
use tracing::{info, warn};

use crate::admission::Slot;
use crate::event_log::WriterTask;
use crate::listener::Listener;
use crate::report::Report;

/// How long requests in flight may take once the receiver stops: longer than a request may take
/// to arrive, shorter than the 30 s after which Heroku kills ("Dyno shutdown behavior").
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(18);

/// How long the head of a connection's first request may still take once it has begun to arrive: a
/// few round trips. After an answer, hyper closes a connection without a whole head at once.
const HEAD_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long requests in flight may take once no event can be written: each of them is answered 503.
const FAILED_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a write that is under way may take once every request is answered.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves `router` until `shutdown`; returns once nothing is in flight, or after
/// [`DRAIN_TIMEOUT`].
///
/// # Errors
/// Why no event can be written any more; the message is for the operator.
pub async fn serve(
    listener: Listener,
    router: Router,
    mut writer: WriterTask,
    report: Arc<Report>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (stop, stopped) = oneshot::channel::<()>();
    let admission = listener.admission();
    let service = router.into_make_service_with_connect_info::<Slot>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut server = tokio::spawn(server.into_future());
    let ticks = Arc::clone(&report);
    tokio::spawn(async move {
        let mut seconds = interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            ticks.tick();
        }
    });

    let mut failure = None;
    let drain_timeout = tokio::select! {
        () = shutdown => {
            info!("stopping");
            DRAIN_TIMEOUT
        }
        ended = writer.ended() => {
            failure = Some(ended);
            FAILED_DRAIN_TIMEOUT
        }
        // By a panic alone.
        _ = &mut server => {
            report.sum_up();
            return Err(io::Error::other("the listener has died; please report it"));
        }
    };
    let _ = stop.send(());
    tokio::spawn(async move {
        sleep(HEAD_DRAIN_TIMEOUT).await;
        admission.stop();
    });
    let drained = timeout(drain_timeout, server).await.is_ok();
    let result = if let Some(failure) = failure {
        failure
    } else {
        if !drained {
            warn!("requests are still in flight after {drain_timeout:?}; they are cut off");
        }
        let ended = timeout(FLUSH_TIMEOUT, writer.ended()).await;
        if drained && ended.is_err() {
            warn!(
                "stdout is stalled; the end of its last line may be missing, \
                 whose event was not answered 200"
            );
        }
        ended.unwrap_or(Ok(()))
    };
    report.sum_up();
    result
}

/// The signals that stop the receiver, from the moment this is made: the first one resolves
/// [`ShutdownSignal::recv`], any more change nothing.
#[derive(Debug)]
pub struct ShutdownSignal {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 2],
}

#[cfg(unix)]
impl ShutdownSignal {
    /// Listens for SIGTERM and SIGINT.
    ///
    /// # Errors
    /// The operating system's, if it does not let a process listen.
    pub fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            signals: [
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
            ],
        })
    }

    /// Waits for the first signal.
    pub async fn recv(mut self) {
        let [terminate, interrupt] = &mut self.signals;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl ShutdownSignal {
    /// Listens for Ctrl-C.
    ///
    /// # Errors
    /// None here.
    pub fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits for Ctrl-C.
    pub async fn recv(self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
