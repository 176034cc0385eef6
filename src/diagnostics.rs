//! Diagnostics to stderr that never block, fail or panic: what stderr can't take is dropped.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use tracing::error;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait for stderr.
const MAX_QUEUED_LINES: usize = 256;

/// How long stderr is waited for before the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

/// Writes lines to stderr, from a thread of its own.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    queue: SyncSender<Vec<u8>>,
    /// How many lines have been queued and not written.
    unwritten: Arc<AtomicUsize>,
}

impl Diagnostics {
    /// Sends this process's tracing events that pass `filter`, and its panics, to stderr. Each line
    /// begins with the time unless `platform_adds_time`.
    ///
    /// # Errors
    /// The operating system's, if it has no thread to give.
    pub fn start(filter: Targets, platform_adds_time: bool) -> io::Result<Self> {
        let (queue, lines) = mpsc::sync_channel::<Vec<u8>>(MAX_QUEUED_LINES);
        let unwritten = Arc::new(AtomicUsize::new(0));
        let written = Arc::clone(&unwritten);
        let name = "diagnostics".to_owned();
        thread::Builder::new().name(name).spawn(move || {
            for line in lines {
                let _ = io::stderr().write_all(&line);
                written.fetch_sub(1, Relaxed);
            }
        })?;
        let diagnostics = Self { queue, unwritten };
        let writer = diagnostics.clone();
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let layer = tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(io::stderr().is_terminal() && !no_color)
            .with_writer(move || writer.clone());
        let layer = if platform_adds_time {
            layer.without_time().boxed()
        } else {
            layer.boxed()
        };
        tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .init();
        std::panic::set_hook(Box::new(|panic| {
            let panic = panic.to_string();
            error!(panic, "a defect of the receiver; please report it");
        }));
        Ok(diagnostics)
    }

    /// Waits until stderr has what was sent so far, for up to 300 ms.
    pub fn wait_until_written(&self) {
        let begun = Instant::now();
        while self.unwritten.load(Relaxed) > 0 && begun.elapsed() < FLUSH_TIMEOUT {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Write for Diagnostics {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.unwritten.fetch_add(1, Relaxed);
        if self.queue.try_send(line.to_vec()).is_err() {
            self.unwritten.fetch_sub(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
