//! What stdout is, and the two ways to write to it.
//!
//! A pipe is written by the event log's own task, through a non-blocking file description of its
//! own. Whatever else stdout is can block its writer, so a thread writes it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::warn;

/// How long to wait for a stdout that another process has made non-blocking.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// The operating system's error code for a failed write that comes with none.
const EIO: i32 = 5;

/// Bytes for the thread to write, and how it tells the outcome.
type Job = (Vec<u8>, oneshot::Sender<io::Result<usize>>);

/// stdout, or what stands for it in a test.
#[derive(Debug)]
pub struct Stdout {
    way: Way,
    /// The rest of a line that has been started: it is written before anything else.
    rest: Vec<u8>,
}

#[derive(Debug)]
enum Way {
    Pipe(pipe::Sender),
    /// Does one write at a time.
    Thread(mpsc::UnboundedSender<Job>),
}

impl Stdout {
    /// Opens this process's stdout, without std's buffer, which keeps half lines and hides how
    /// much a failed write has written. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The operating system's, if stdout cannot be duplicated or there is no thread to write it.
    pub fn open() -> io::Result<Self> {
        let file: File = io::stdout().as_fd().try_clone_to_owned()?.into();
        // std opens the null device where stdout is closed at the start.
        if is_null_device(&file) {
            warn!(
                "stdout is closed or the null device: accepted events are being discarded; \
                 connect stdout to a file or a pipe"
            );
        }
        let ends_in_line = ends_in_line(&file);
        let mut stdout = match open_pipe() {
            Ok(pipe) => Self::pipe(pipe),
            Err(_) => Self::thread(file)?,
        };
        if ends_in_line {
            stdout.rest.push(b'\n');
        }
        Ok(stdout)
    }

    /// Writes to a pipe without a thread.
    pub fn pipe(pipe: pipe::Sender) -> Self {
        Self {
            way: Way::Pipe(pipe),
            rest: Vec::new(),
        }
    }

    /// Has a thread write to `out`, which should not buffer.
    ///
    /// # Errors
    /// The operating system's, if it has no thread to give.
    pub fn thread(mut out: impl io::Write + Send + 'static) -> io::Result<Self> {
        let (writes, mut queue) = mpsc::unbounded_channel::<Job>();
        let name = "event-log".to_owned();
        thread::Builder::new().name(name).spawn(move || {
            while let Some((bytes, outcome)) = queue.blocking_recv() {
                // Fails when the process ends.
                let _ = outcome.send(out.write(&bytes));
            }
        })?;
        Ok(Self {
            way: Way::Thread(writes),
            rest: Vec::new(),
        })
    }

    /// Writes the rest of a line that has been started, if there is one.
    ///
    /// # Errors
    /// The error code of the operating system.
    pub(crate) async fn finish_line(&mut self) -> Result<(), i32> {
        let (count, result) = self.way.write_all(&self.rest).await;
        self.rest.drain(..count);
        result
    }

    /// Writes whole lines; returns how many bytes were written, and why not all of them. If that is
    /// within a line, its rest is kept. Call [`Stdout::finish_line`] first.
    pub(crate) async fn write(&mut self, lines: &[u8]) -> (usize, Result<(), i32>) {
        let (count, result) = self.way.write_all(lines).await;
        if lines[..count].last().is_some_and(|last| *last != b'\n') {
            let rest = lines[count..].split_inclusive(|byte| *byte == b'\n').next();
            self.rest.extend_from_slice(rest.unwrap_or_default());
        }
        (count, result)
    }
}

impl Way {
    /// Writes until everything is written or a write fails.
    async fn write_all(&mut self, bytes: &[u8]) -> (usize, Result<(), i32>) {
        let mut count = 0;
        while count < bytes.len() {
            match self.write(&bytes[count..]).await {
                Ok(0) => return (count, Err(EIO)),
                Ok(more) => count += more,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    // Waits, as a blocking write would.
                    ErrorKind::WouldBlock => sleep(RETRY_DELAY).await,
                    _ => return (count, Err(error.raw_os_error().unwrap_or(EIO))),
                },
            }
        }
        (count, Ok(()))
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.write(bytes).await,
            Self::Thread(writes) => {
                let (outcome, written) = oneshot::channel();
                let _ = writes.send((bytes.to_vec(), outcome));
                // Fails if the thread has panicked, which is logged.
                written.await.map_err(io::Error::other)?
            }
        }
    }
}

/// Opens a file description of this process's own for the pipe that stdout is. It is non-blocking,
/// which nobody else who holds the pipe notices.
///
/// Only for an anonymous pipe: once a FIFO's reader has gone, tokio takes it for closed for ever,
/// even if another reader comes before the next write.
fn open_pipe() -> io::Result<pipe::Sender> {
    let path = "/proc/self/fd/1";
    if fs::read_link(path)?.to_string_lossy().starts_with("pipe:") {
        pipe::OpenOptions::new().open_sender(path)
    } else {
        Err(ErrorKind::Unsupported.into())
    }
}

/// Returns true if stdout is a file whose last line another process has started and not finished. A
/// file that cannot be read, as another user's, is taken to be one.
fn ends_in_line(stdout: &File) -> bool {
    let last_byte = || {
        let mut last = [0];
        // stdout itself is usually open for writing alone.
        let mut file = File::open("/dev/stdout")?;
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        io::Result::Ok(last[0])
    };
    let found = stdout.metadata();
    let has_content = found.is_ok_and(|found| found.is_file() && found.len() > 0);
    has_content && !last_byte().is_ok_and(|last| last == b'\n')
}

/// Returns true if stdout takes every byte and keeps none.
fn is_null_device(stdout: &File) -> bool {
    // What is no device has the number 0.
    let device = |metadata: io::Result<fs::Metadata>| metadata.map_or(0, |found| found.rdev());
    let null = device(fs::metadata("/dev/null"));
    null != 0 && device(stdout.metadata()) == null
}
