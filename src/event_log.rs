//! Verified events to stdout, one line each; an event counts as logged once its bytes are written.
//!
//! One task turns events into lines, collects the lines that have queued up into a batch, writes
//! the batch, and reports the outcome to each sender that waits: a write costs more than a line.
//!
//! Four rules hold whatever fails:
//! - a line that has been started is finished before another is started;
//! - a batch is whole lines of at most [`PIPE_BUF`] bytes together, or one longer line;
//! - an event whose line is not written to its last byte is never reported as logged;
//! - an event whose sender has given up before its turn is skipped: it is sent again.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admission::MAX_CONNECTIONS;
use crate::body::{MAX_LARGE_BODIES, Reservation, SMALL_BODY_BYTES};
use crate::refusal::Refusal;
use crate::report::Report;
use crate::stdout::{Stdout, Written};
use crate::verify::VerifiedEvent;

/// How long an event may wait for stdout: half of the 10 s in which the sender wants its answer
/// ("Best practices").
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes that a pipe takes as one piece, whoever else writes to it: on Linux 4,096.
pub const PIPE_BUF: usize = 4096;

/// How many small events may wait for stdout.
const MAX_QUEUED_EVENTS: usize = MAX_CONNECTIONS;

/// How many bytes of memory are kept for the next batch.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// Where verified events go.
#[derive(Debug)]
pub struct EventLog {
    small: mpsc::Sender<Entry>,
    /// Events over [`SMALL_BODY_BYTES`], which are written only when no small one waits.
    large: mpsc::Sender<Entry>,
}

/// The task that writes. It ends when its [`EventLog`] is dropped, or when no event can be written
/// any more.
#[derive(Debug)]
pub struct WriterTask {
    task: JoinHandle<io::Result<()>>,
}

#[derive(Debug)]
struct Entry {
    event: VerifiedEvent,
    outcome: Outcome,
    _reservation: Option<Reservation>,
}

type Outcome = oneshot::Sender<Result<(), ErrorKind>>;

/// What is to be written.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// The lines in `bytes`, from the first to the last.
    lines: Vec<Line>,
    /// Whether a line has been started; then its rest is the first of these.
    mid_line: bool,
}

#[derive(Debug)]
struct Line {
    /// Its end as an offset in [`Buffer::bytes`].
    end: usize,
    /// Whether it is an event's; otherwise it ends a line that another process has started.
    is_event: bool,
    /// Tells the event's sender the outcome; none once it is told.
    outcome: Option<Outcome>,
}

impl EventLog {
    /// Starts the task that writes to `out`; must be called in a tokio runtime.
    #[must_use]
    pub fn start(out: Stdout, report: Arc<Report>) -> (Self, WriterTask) {
        let (small, small_entries) = mpsc::channel(MAX_QUEUED_EVENTS);
        let (large, large_entries) = mpsc::channel(MAX_LARGE_BODIES);
        let task = tokio::spawn(write_events(out, small_entries, large_entries, report));
        (Self { small, large }, WriterTask { task })
    }

    /// Writes an event's line to stdout; returns once its last byte is written. The event keeps its
    /// `reservation` while it waits for its turn.
    ///
    /// # Errors
    /// [`Refusal::WriteFailed`] if a write failed first, [`Refusal::StdoutStalled`] if it took
    /// longer than [`WRITE_TIMEOUT`]. The line may still appear, whole.
    pub async fn append(
        &self,
        event: VerifiedEvent,
        reservation: Option<Reservation>,
    ) -> Result<(), Refusal> {
        let (outcome, written) = oneshot::channel();
        let is_small = event.body().len() <= SMALL_BODY_BYTES;
        let queue = if is_small { &self.small } else { &self.large };
        let entry = Entry {
            event,
            outcome,
            _reservation: reservation,
        };
        let write = async {
            // The task ends before the event log only if stdout has no reader any more.
            let ended = ErrorKind::BrokenPipe;
            queue.send(entry).await.map_err(|_| ended)?;
            written.await.map_err(|_| ended)?
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(result) => result.map_err(Refusal::WriteFailed),
            Err(_) => Err(Refusal::StdoutStalled),
        }
    }
}

impl WriterTask {
    /// Waits until the [`EventLog`] has been dropped and what it was given is written.
    ///
    /// # Errors
    /// Why no event can be written any more; the message is for the operator.
    pub async fn ended(&mut self) -> io::Result<()> {
        // The panic hook has logged the panic.
        (&mut self.task).await.unwrap_or_else(|_| Err(died()))
    }
}

fn died() -> io::Error {
    io::Error::other("the writer of events has died; please report it")
}

async fn write_events(
    mut out: Stdout,
    mut small: mpsc::Receiver<Entry>,
    mut large: mpsc::Receiver<Entry>,
    report: Arc<Report>,
) -> io::Result<()> {
    let mut buffer = Buffer::default();
    if out.mid_line {
        buffer.end_foreign_line();
    }
    loop {
        // The rest of a line is tried again only when there is another line to write.
        if buffer.waiting() == 0 {
            let entry = tokio::select! {
                biased;
                Some(entry) = small.recv() => entry,
                Some(entry) = large.recv() => entry,
                else => break,
            };
            buffer.push(entry);
        }
        while buffer.bytes.len() < PIPE_BUF {
            match small.try_recv() {
                Ok(entry) => buffer.push(entry),
                Err(_) => break,
            }
        }
        let result = buffer.write(&mut out, &report).await?;
        if result == Err(ErrorKind::BrokenPipe) {
            let reason = Refusal::WriteFailed(ErrorKind::BrokenPipe).reason();
            return Err(io::Error::new(ErrorKind::BrokenPipe, reason));
        }
    }
    // A last attempt to finish a line that has been started; no sender waits for it any more.
    let _ = buffer.write(&mut out, &report).await?;
    Ok(())
}

impl Buffer {
    fn end_foreign_line(&mut self) {
        self.mid_line = true;
        self.bytes.push(b'\n');
        self.lines.push(Line {
            end: self.bytes.len(),
            is_event: false,
            outcome: None,
        });
    }

    /// Adds the line of an event, if its sender still waits.
    fn push(&mut self, Entry { event, outcome, .. }: Entry) {
        if !outcome.is_closed() {
            push_line(&mut self.bytes, event.body());
            self.lines.push(Line {
                end: self.bytes.len(),
                is_event: true,
                outcome: Some(outcome),
            });
        }
    }

    /// The number of lines that a sender waits for.
    fn waiting(&self) -> usize {
        self.lines.len() - usize::from(self.mid_line)
    }

    /// Writes one batch and tells its senders the outcome, which is also returned; an error, if the
    /// thread that writes has died.
    async fn write(
        &mut self,
        out: &mut Stdout,
        report: &Report,
    ) -> io::Result<Result<(), ErrorKind>> {
        let fitting = self.lines.iter().take_while(|line| line.end <= PIPE_BUF);
        let count = fitting.count().max(1).min(self.lines.len());
        let batch = self.lines[..count].last().map_or(0, |line| line.end);
        let written = out.write(&self.bytes[..batch]).await.ok_or_else(died)?;
        let Written { count: end, result } = written;
        // What waits behind a batch that failed fails with it, rather than wait for its rest.
        let (count, batch) = match result {
            Ok(()) => (count, batch),
            Err(_) => (self.lines.len(), self.bytes.len()),
        };

        if let Some(last) = self.bytes[..end].last() {
            self.mid_line = *last != b'\n';
        }
        let mut rest = None;
        for line in self.lines.drain(..count) {
            let is_written = line.end <= end;
            if is_written && line.is_event {
                report.logged();
            }
            if let Some(outcome) = line.outcome {
                // Fails if the sender has given up.
                let _ = outcome.send(if is_written { Ok(()) } else { result });
            }
            if !is_written && self.mid_line && rest.is_none() {
                rest = Some(Line {
                    end: line.end - end,
                    is_event: line.is_event,
                    outcome: None,
                });
            }
        }
        // The rest of a started line stays, and what follows the batch.
        let kept = rest.as_ref().map_or(0, |rest| rest.end);
        self.bytes.drain(end + kept..batch);
        self.bytes.drain(..end);
        self.bytes.shrink_to(MAX_KEPT_BYTES);
        for line in &mut self.lines {
            line.end = line.end - batch + kept;
        }
        self.lines.splice(..0, rest);
        Ok(result)
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
