//! Serves until a signal, then finishes what is in flight, within a deadline.

use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, interval, timeout};
use tracing::{error, info, warn};

use crate::event_log::{EPIPE, WriterTask};
use crate::listener::Listener;
use crate::refusal::Refusal;
use crate::registry::{Registry, Slot};
use crate::report::{Report, WINDOW};

/// How long requests in flight may take once the receiver stops: less than the 30 s after which
/// Heroku kills a dyno (Heroku's page "Dyno Shutdown Behavior").
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(18);

/// How long requests in flight may take if the receiver ends since stdout has no reader; and how long
/// a write that is under way may take once every request is answered.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves `router` until a signal; returns once nothing is in flight, or after [`DRAIN_TIMEOUT`].
///
/// The exit code is a failure if stdout has no reader any more.
pub async fn serve(
    listener: Listener,
    router: Router,
    mut writer: WriterTask,
    registry: Arc<Registry>,
    report: Arc<Report>,
    mut signals: StopSignals,
) -> ExitCode {
    let (stop, stopped) = oneshot::channel::<()>();
    let service = router.into_make_service_with_connect_info::<Slot>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut server = pin!(server.into_future());
    tokio::spawn(watch_the_time(Arc::clone(&registry), Arc::clone(&report)));

    let mut is_stdout_closed = false;
    tokio::select! {
        () = signals.first() => info!("stopping"),
        _ = &mut writer => is_stdout_closed = true,
        // It never ends before `stop`.
        _ = &mut server => {}
    }
    // axum closes what is idle, but waits for what has sent half a head.
    registry.stop(Instant::now());
    let _ = stop.send(());
    let limit = if is_stdout_closed {
        LAST_TIMEOUT
    } else {
        DRAIN_TIMEOUT
    };
    let is_drained = tokio::select! {
        drained = timeout(limit, server) => drained.is_ok(),
        () = signals.second_interrupt() => false,
    };
    let limit = if is_drained {
        LAST_TIMEOUT
    } else {
        warn!("requests are still in flight; they are cut off");
        Duration::ZERO
    };
    if !is_stdout_closed && let Ok(ended) = timeout(limit, writer).await {
        is_stdout_closed = !matches!(ended, Ok(Ok(())));
    }
    report.sum_up();
    if is_stdout_closed {
        error!("{}", Refusal::WriteFailed(EPIPE).reason());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Once a second evicts what is late, and every [`WINDOW`] sums up the report.
async fn watch_the_time(registry: Arc<Registry>, report: Arc<Report>) {
    let mut seconds = interval(Duration::from_secs(1));
    let mut window_end = Instant::now() + WINDOW;
    loop {
        let now = seconds.tick().await;
        registry.evict_late(now);
        if now >= window_end {
            report.end_window();
            window_end = now + WINDOW;
        }
    }
}

/// The signals that stop the receiver, from the moment this is made.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    is_interrupted: bool,
}

impl StopSignals {
    /// Listens for SIGTERM, SIGINT and SIGHUP.
    ///
    /// # Errors
    /// The operating system's, if it does not let a process listen.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            is_interrupted: false,
        })
    }

    /// Waits for the first signal.
    async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => self.is_interrupted = true,
            _ = self.hangup.recv() => {}
        }
    }

    /// Waits for the second SIGINT.
    async fn second_interrupt(&mut self) {
        if !self.is_interrupted {
            self.interrupt.recv().await;
        }
        self.interrupt.recv().await;
    }
}
