//! Verified events to stdout, one line each; an event counts as logged once its bytes are written.
//!
//! A thread of its own does nothing but write, so that a reader of stdout that stalls stalls nothing
//! else. A task hands it what has queued up meanwhile as one batch, and then answers all of it: to
//! wake the thread, and to be woken by it, costs more than a line, so it is done once a batch.
//!
//! Three rules keep the stream whole whatever fails:
//! - a line that has been begun is finished before another is begun;
//! - an event whose bytes were not all written is never reported as logged;
//! - an event whose sender no longer waits is not begun: it comes again.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::refusal::Refusal;
use crate::verify::VerifiedEvent;

/// How long an event may wait for stdout: half of the 10 s in which the sender wants its answer
/// ("Best practices").
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of bodies that may be in memory at once, on their way from a socket to stdout.
pub const ROOM: usize = 32 * 1024 * 1024;

/// What an event costs in room beside its body.
const OVERHEAD: usize = 1024;

/// No line is added to a batch that has reached this many bytes: some 16 events. While a batch is
/// written, the senders of the one before it get their answers.
const BATCH: usize = 8 * 1024;

/// Bytes of memory that are kept for the next batch.
const KEPT: usize = 64 * 1024;

/// Where verified events go.
#[derive(Debug)]
pub struct EventLog {
    queue: mpsc::UnboundedSender<Entry>,
    room: Arc<Semaphore>,
}

/// Room for one event, to be had before its body is read.
#[derive(Debug)]
pub struct Room {
    permit: OwnedSemaphorePermit,
    patience: Duration,
}

/// What writes. It ends when its [`EventLog`] is dropped.
#[derive(Debug)]
pub struct Writer {
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Entry {
    event: VerifiedEvent,
    outcome: oneshot::Sender<Result<(), ErrorKind>>,
    _room: OwnedSemaphorePermit,
}

/// The thread, at work on one batch at a time.
#[derive(Debug)]
struct Pen {
    batches: std::sync::mpsc::Sender<Vec<u8>>,
    written: mpsc::UnboundedReceiver<Written>,
}

/// A batch, how many bytes of it were written, and why not all.
#[derive(Debug)]
struct Written {
    lines: Vec<u8>,
    count: usize,
    result: Result<(), ErrorKind>,
}

impl EventLog {
    /// Starts what writes to `out`, which should not buffer; must be called in a tokio runtime.
    ///
    /// A line that somebody else has `begun` in `out` and not finished is ended before another is
    /// begun.
    ///
    /// # Errors
    /// The operating system's, if it has no thread to give.
    pub fn start(out: impl Write + Send + 'static, begun: bool) -> io::Result<(Self, Writer)> {
        let (queue, entries) = mpsc::unbounded_channel();
        let rest = if begun { vec![b'\n'] } else { Vec::new() };
        let task = tokio::spawn(write_events(rest, entries, Pen::start(out)?));
        let room = Arc::new(Semaphore::new(ROOM));
        Ok((Self { queue, room }, Writer { task }))
    }

    /// Waits for room for a body of at most `length` bytes.
    ///
    /// # Errors
    /// [`Refusal::StalledStdout`] if there is none within [`PATIENCE`].
    pub async fn room(&self, length: usize) -> Result<Room, Refusal> {
        let permits = u32::try_from(length + OVERHEAD).map_err(|_| Refusal::LargeBody)?;
        let waiting = Instant::now();
        let permit = timeout(PATIENCE, Arc::clone(&self.room).acquire_many_owned(permits))
            .await
            .map_err(|_| Refusal::StalledStdout)?
            .map_err(|_| Refusal::StalledStdout)?;
        Ok(Room {
            permit,
            patience: PATIENCE.saturating_sub(waiting.elapsed()),
        })
    }

    /// Writes an event's line to stdout; returns once its last byte is written.
    ///
    /// # Errors
    /// [`Refusal::Unwritten`] if a write failed first, [`Refusal::StalledStdout`] if that took
    /// longer than what the wait for room left of [`PATIENCE`]. The line may still appear, whole.
    pub async fn append(&self, room: Room, event: VerifiedEvent) -> Result<(), Refusal> {
        let (outcome, written) = oneshot::channel();
        let gone = Refusal::Unwritten(ErrorKind::Other);
        self.queue
            .send(Entry {
                event,
                outcome,
                _room: room.permit,
            })
            .map_err(|_| gone)?;
        match timeout(room.patience, written).await {
            Ok(Ok(outcome)) => outcome.map_err(Refusal::Unwritten),
            Ok(Err(_)) => Err(gone),
            Err(_) => Err(Refusal::StalledStdout),
        }
    }
}

impl Writer {
    /// Waits for its end, which comes when the [`EventLog`] is dropped, or by a panic.
    pub async fn ended(&mut self) {
        // The panic is in the diagnostics already.
        let _ = (&mut self.task).await;
    }
}

impl Pen {
    fn start(mut out: impl Write + Send + 'static) -> io::Result<Self> {
        let (batches, to_write) = std::sync::mpsc::channel::<Vec<u8>>();
        let (done, written) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("event-log".to_owned())
            .spawn(move || {
                for lines in to_write {
                    // Nobody takes it any more once the process ends.
                    let _ = done.send(write(&mut out, lines));
                }
            })?;
        Ok(Self { batches, written })
    }

    /// Writes a batch; `None` if the thread has died.
    async fn write(&mut self, lines: Vec<u8>) -> Option<Written> {
        self.batches.send(lines).ok()?;
        self.written.recv().await
    }
}

/// `lines` begins with the rest of a line that has been begun before.
async fn write_events(
    mut lines: Vec<u8>,
    mut entries: mpsc::UnboundedReceiver<Entry>,
    mut pen: Pen,
) {
    let mut waiting = Vec::new();
    while let Some(entry) = entries.recv().await {
        let begun = !lines.is_empty();
        let mut next = Some(entry);
        while let Some(Entry { event, outcome, .. }) = next {
            if !outcome.is_closed() {
                push_line(&mut lines, event.body());
                waiting.push((lines.len(), outcome));
            }
            next = if lines.len() < BATCH {
                entries.try_recv().ok()
            } else {
                None
            };
        }
        let Some(written) = pen.write(lines).await else {
            return;
        };
        for (end, outcome) in waiting.drain(..) {
            let whole = end <= written.count;
            // A sender that has given up meanwhile needs no answer.
            let _ = outcome.send(if whole { Ok(()) } else { written.result });
        }
        lines = rest_of_line(written, begun);
        lines.shrink_to(KEPT);
    }
    // The last chance of a line that has been begun; nobody waits for it any more.
    let _ = pen.write(lines).await;
}

/// The rest of the line that a batch, or one before it if `begun`, has begun and not finished.
fn rest_of_line(
    Written {
        mut lines, count, ..
    }: Written,
    begun: bool,
) -> Vec<u8> {
    let begun = lines[..count].last().map_or(begun, |&last| last != b'\n');
    lines.drain(..count);
    let end = lines.iter().position(|&byte| byte == b'\n');
    lines.truncate(end.filter(|_| begun).map_or(0, |end| end + 1));
    lines
}

/// Writes as much as can be written.
fn write(out: &mut impl Write, lines: Vec<u8>) -> Written {
    let mut count = 0;
    let mut result = Ok(());
    while count < lines.len() && result.is_ok() {
        match out.write(&lines[count..]) {
            Ok(0) => result = Err(ErrorKind::WriteZero),
            Ok(more) => count += more,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                // Somebody who shares the pipe made it non-blocking: wait as a blocking one would.
                ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
                kind => result = Err(kind),
            },
        }
    }
    Written {
        lines,
        count,
        result,
    }
}

/// Appends the line of an event: JSON, whatever the body is.
///
/// A body that is JSON stays as it is, byte for byte, but for line breaks between its tokens and
/// for the control characters that JSON leaves raw and a terminal may obey. Any other body becomes
/// one JSON string: text as it is, other bytes as `hex:` and their hexadecimal digits.
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
