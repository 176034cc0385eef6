//! Verified events to stdout, one line each. An event is logged once its line's last byte is
//! written.
//!
//! One task makes lines of what has queued up, writes them as one batch, and tells each sender the
//! outcome: a write costs more than a line. Whatever fails,
//! - a line that has been started is finished before anything else is written;
//! - a batch is whole lines of at most [`PIPE_BUF`] bytes together, or one longer line;
//! - what waits behind a failed write fails with it, at once;
//! - an event whose sender has given up before its turn is skipped: it is sent again.

use std::borrow::Cow;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::refusal::Refusal;
use crate::registry::{MAX_CONNECTIONS, MAX_EVICTED};
use crate::report::Report;
use crate::stdout::Stdout;
use crate::verify::VerifiedEvent;

/// How long an event may wait for stdout: half of the 10 s in which a Data Connector wants its
/// answer (DT's page "Best Practices").
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes that a pipe takes as one piece, whoever else writes to it: on Linux 4,096.
pub const PIPE_BUF: usize = 4096;

/// The operating system's error code for a pipe without a reader.
pub(crate) const EPIPE: i32 = 32;

/// Where verified events go.
#[derive(Debug)]
pub struct EventLog {
    queue: mpsc::Sender<Entry>,
}

/// The task that writes. It ends once its [`EventLog`] is dropped and everything is written, or
/// with the operating system's error code once stdout has no reader.
pub type WriterTask = JoinHandle<Result<(), i32>>;

#[derive(Debug)]
struct Entry {
    /// Gone once its sender has given up, so that it needs no memory until its turn.
    event: Weak<VerifiedEvent>,
    outcome: Outcome,
}

/// Tells an event's sender what came of it: an error code of the operating system is a failure.
type Outcome = oneshot::Sender<Result<(), i32>>;

#[derive(Debug, Default)]
struct Batch {
    /// Whole lines.
    bytes: Vec<u8>,
    /// Where each of them ends, and who waits for it.
    lines: Vec<(usize, Outcome)>,
}

impl EventLog {
    /// Starts the task that writes to `stdout`; must be called in a tokio runtime.
    pub fn start(stdout: Stdout, report: Arc<Report>) -> (Self, WriterTask) {
        // One event of each connection; while stdout is stalled, those that gave up fill it, too.
        let (queue, entries) = mpsc::channel(MAX_CONNECTIONS + MAX_EVICTED);
        let task = tokio::spawn(write_events(stdout, entries, report));
        (Self { queue }, task)
    }

    /// Writes an event's line to stdout; returns once its last byte is written.
    ///
    /// # Errors
    /// [`Refusal::WriteFailed`] if a write failed first, [`Refusal::StdoutStalled`] after
    /// [`WRITE_TIMEOUT`]. The line may still appear, whole.
    pub async fn append(&self, event: VerifiedEvent) -> Result<(), Refusal> {
        let (outcome, told) = oneshot::channel();
        let event = Arc::new(event);
        let entry = Entry {
            event: Arc::downgrade(&event),
            outcome,
        };
        let write = async {
            self.queue.send(entry).await.ok()?;
            told.await.ok()
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(Some(outcome)) => outcome.map_err(Refusal::WriteFailed),
            // The task has ended before the event log.
            Ok(None) => Err(Refusal::WriteFailed(EPIPE)),
            Err(_) => Err(Refusal::StdoutStalled),
        }
    }
}

async fn write_events(
    mut stdout: Stdout,
    mut queue: mpsc::Receiver<Entry>,
    report: Arc<Report>,
) -> Result<(), i32> {
    let mut batch = Batch::default();
    // What did not fit into the batch before.
    let mut next = None;
    loop {
        if next.is_none() {
            next = queue.recv().await;
        }
        if next.is_none() {
            break;
        }
        let mut written = 0;
        let mut result = stdout.finish_line().await;
        if result.is_ok() {
            while let Some(entry) = next.take().or_else(|| queue.try_recv().ok()) {
                next = batch.push(entry);
                if next.is_some() || batch.bytes.len() >= PIPE_BUF {
                    break;
                }
            }
            (written, result) = stdout.write(&batch.bytes).await;
        }
        batch.tell(written, result, &report);
        if result.is_err() {
            while let Some(entry) = next.take().or_else(|| queue.try_recv().ok()) {
                let _ = entry.outcome.send(result);
            }
        }
        if result == Err(EPIPE) {
            return result;
        }
    }
    // A last attempt; its sender has been told that it failed.
    let _ = stdout.finish_line().await;
    Ok(())
}

impl Batch {
    /// Adds the line of an event, unless its sender has given up. Returns the event if its line does
    /// not fit.
    fn push(&mut self, entry: Entry) -> Option<Entry> {
        let event = entry.event.upgrade()?;
        let end = self.bytes.len();
        push_line(&mut self.bytes, event.body());
        if end > 0 && self.bytes.len() > PIPE_BUF {
            self.bytes.truncate(end);
            return Some(entry);
        }
        self.lines.push((self.bytes.len(), entry.outcome));
        None
    }

    /// Tells the sender of each line the outcome, and empties the batch.
    fn tell(&mut self, written: usize, result: Result<(), i32>, report: &Report) {
        for (end, outcome) in self.lines.drain(..) {
            let is_written = end <= written;
            if is_written {
                report.logged();
            }
            // Fails if the sender has given up.
            let _ = outcome.send(if is_written { Ok(()) } else { result });
        }
        self.bytes.clear();
    }
}

/// Appends the line of an event: JSON, whatever the body is.
///
/// A body that is JSON stays as it is, byte for byte, but for line breaks between its tokens and
/// for the control characters that JSON leaves raw and a terminal may obey. Any other body becomes
/// one JSON string: its text, or, if it is not UTF-8 or begins with `hex:`, the word `hex:` and the
/// hexadecimal digits of all its bytes.
fn push_line(lines: &mut Vec<u8>, body: &[u8]) {
    let line = match str::from_utf8(body) {
        Ok(text) if is_json(text) => Cow::Borrowed(text),
        Ok(text) if !text.starts_with("hex:") => Cow::Owned(Value::from(text).to_string()),
        _ => Cow::Owned(Value::from(format!("hex:{}", hex::encode(body))).to_string()),
    };
    // Looked for without an early end, which is faster by far; 0xc2 begins U+0080 to U+00BF.
    let odd = |found, byte| found | matches!(byte, b'\n' | b'\r' | 0xc2);
    if line.bytes().fold(false, odd) {
        for c in line.chars() {
            match c {
                '\n' | '\r' => lines.push(b' '),
                // It stands inside a string, where JSON can escape it.
                '\u{80}'..='\u{9f}' => lines.extend(format!("\\u{:04x}", u32::from(c)).bytes()),
                _ => lines.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
    } else {
        lines.extend_from_slice(line.as_bytes());
    }
    lines.push(b'\n');
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}
