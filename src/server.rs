//! Serves until a signal, then finishes what is in flight, within a deadline.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::oneshot;
use tokio::time::{interval, sleep, timeout};
use tracing::{info, warn};

use crate::connection::Head;
use crate::event_log::Writer;
use crate::listener::Listener;
use crate::report::Report;

/// How long requests in flight may take once the receiver stops: longer than a request may take
/// to arrive, shorter than the 30 s after which Heroku kills ("Dyno shutdown behavior").
pub const DRAIN: Duration = Duration::from_secs(18);

/// How long a write that is under way may take once every request is answered.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Serves `router` until `stop`; returns once nothing is in flight, or after [`DRAIN`].
///
/// # Errors
/// The writer of events has died, so that no event can be logged any more.
pub async fn serve(
    listener: Listener,
    router: Router,
    mut writer: Writer,
    report: Arc<Report>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, stopped) = oneshot::channel();
    let service = router.into_make_service_with_connect_info::<Head>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async move {
        stop.await;
        info!("stopping");
        let _ = stopping.send(());
    });
    let overdue = async {
        let _ = stopped.await;
        sleep(DRAIN).await;
    };
    let ticks = async {
        let mut seconds = interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            report.tick();
        }
    };
    let drained = tokio::select! {
        result = server => {
            result?;
            true
        }
        () = overdue => {
            warn!("requests are still in flight after {DRAIN:?}; they are cut off");
            false
        }
        () = writer.ended() => {
            return Err(io::Error::other("the thread that writes events has died"));
        }
        () = ticks => false,
    };
    let written = timeout(LAST_WRITE, writer.ended()).await.is_ok();
    if drained && !written {
        warn!(
            "stdout is stalled; the end of its last line may be missing, \
             whose event was not answered 200"
        );
    }
    report.sum_up();
    Ok(())
}

/// The signals that stop the receiver, from the moment this is made: the first one ends
/// [`Stop::signal`], any more change nothing.
#[derive(Debug)]
pub struct Stop {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 2],
}

#[cfg(unix)]
impl Stop {
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
    pub async fn signal(mut self) {
        let [terminate, interrupt] = &mut self.signals;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Stop {
    /// Listens for Ctrl-C.
    ///
    /// # Errors
    /// None here.
    pub fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits for Ctrl-C.
    pub async fn signal(self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
