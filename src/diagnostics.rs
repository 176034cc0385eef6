//! Diagnostics to stderr that never block, fail or panic: what stderr can't take is dropped.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::Duration;

use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait for stderr.
const MAX_QUEUED_LINES: usize = 256;

/// How long stderr is waited for before the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

/// Writes lines to stderr, from a thread of its own.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    queue: SyncSender<Message>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Diagnostics {
    /// Sends this process's tracing events that pass `filter`, and its panics, to stderr.
    ///
    /// # Errors
    /// The operating system's, if it has no thread to give.
    pub fn start(filter: LevelFilter) -> io::Result<Self> {
        let (queue, messages) = mpsc::sync_channel(MAX_QUEUED_LINES);
        thread::Builder::new()
            .name("diagnostics".to_owned())
            .spawn(move || {
                for message in messages {
                    match message {
                        Message::Line(line) => {
                            let _ = io::stderr().write_all(&line);
                        }
                        Message::Flush(flushed) => {
                            let _ = flushed.send(());
                        }
                    }
                }
            })
            .map_err(|error| {
                let problem = format!("cannot start a thread for diagnostics: {error}");
                io::Error::new(error.kind(), problem)
            })?;
        let diagnostics = Self { queue };
        let layer = tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .with_writer({
                let diagnostics = diagnostics.clone();
                move || diagnostics.clone()
            });
        // Whatever collects lines adds the time itself, as Heroku does.
        let layer = if io::stderr().is_terminal() {
            layer.boxed()
        } else {
            layer.without_time().boxed()
        };
        tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .init();
        std::panic::set_hook(Box::new(|panic| {
            error!(
                panic = panic.to_string(),
                "a defect of the receiver; please report it"
            );
        }));
        Ok(diagnostics)
    }

    /// Waits until stderr has what was sent so far, for up to 300 ms.
    pub fn flush(&self) {
        let (flushed, done) = mpsc::sync_channel(1);
        let queue = self.queue.clone();
        // The queue may be full, and only a blocking send waits for a place in it.
        let sent = thread::Builder::new().spawn(move || queue.send(Message::Flush(flushed)));
        if sent.is_ok() {
            let _ = done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Prints an error that ends the process, whatever `RUST_LOG` says; if stderr does not take it in
/// time, the exit code has to do.
pub fn print_error(problem: &str) {
    let line = format!("ERROR {problem}\n");
    let (printed, done) = mpsc::sync_channel(1);
    let print = {
        let line = line.clone();
        move || {
            let _ = io::stderr().write_all(line.as_bytes());
            let _ = printed.send(());
        }
    };
    if thread::Builder::new().spawn(print).is_ok() {
        let _ = done.recv_timeout(FLUSH_TIMEOUT);
    } else {
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

impl Write for Diagnostics {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.queue.try_send(Message::Line(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
