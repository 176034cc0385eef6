//! What stdout is, and the two ways to write to it.
//!
//! A pipe is written by the event log's own task, through a non-blocking file description of its
//! own. Whatever else stdout is can block its writer, so a thread writes it.

use std::error::Error;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::thread;
use std::time::Duration;

#[cfg(target_os = "linux")]
use tokio::io::AsyncWriteExt;
#[cfg(target_os = "linux")]
use tokio::net::unix::pipe;
#[cfg(target_os = "linux")]
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// The signal that a process gets for a write over a limit of its file's size.
#[cfg(target_os = "linux")]
const SIGXFSZ: i32 = 25;

/// How much of a write was done.
#[derive(Debug)]
pub struct Written {
    /// How many bytes were written.
    pub count: usize,
    /// Why not all of them were.
    pub result: Result<(), ErrorKind>,
}

/// stdout, or what stands for it in a test.
#[derive(Debug)]
pub struct Stdout {
    way: Way,
    /// Whether another process has started a line on it and not finished it.
    pub(crate) mid_line: bool,
}

#[derive(Debug)]
enum Way {
    #[cfg(target_os = "linux")]
    Pipe(pipe::Sender),
    Thread(WriterThread),
}

impl Stdout {
    /// Opens this process's stdout, without std's buffer, which keeps half lines and hides how
    /// much a failed write has written. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The operating system's, if stdout cannot be duplicated or there is no thread to write it.
    pub fn open() -> io::Result<Self> {
        #[cfg(unix)]
        use std::os::fd::AsFd as Handle;
        #[cfg(windows)]
        use std::os::windows::io::AsHandle as Handle;
        #[cfg(unix)]
        let file: File = io::stdout().as_fd().try_clone_to_owned()?.into();
        #[cfg(windows)]
        let file: File = io::stdout().as_handle().try_clone_to_owned()?.into();
        // Over a limit of its file's size a write then fails, instead of the signal SIGXFSZ ending
        // the process.
        #[cfg(target_os = "linux")]
        drop(signal(SignalKind::from_raw(SIGXFSZ))?);
        // std opens the null device where stdout is closed at the start.
        if is_null_device(&file) {
            warn!(
                "stdout is closed or the null device: accepted events are being discarded; \
                 connect stdout to a file or a pipe"
            );
        }
        Ok(Self {
            mid_line: ends_mid_line(&file),
            way: Way::open(file)?,
        })
    }

    /// Has a thread write to `out`, which should not buffer.
    ///
    /// # Errors
    /// The operating system's, if it has no thread to give.
    pub fn thread(out: impl Write + Send + 'static) -> io::Result<Self> {
        Ok(Self {
            way: Way::Thread(WriterThread::start(out)?),
            mid_line: false,
        })
    }

    /// Writes to a pipe without a thread.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn pipe(pipe: pipe::Sender) -> Self {
        Self {
            way: Way::Pipe(pipe),
            mid_line: false,
        }
    }

    /// Writes as much of some lines as can be written; `None` if the thread that writes has died.
    pub(crate) async fn write(&mut self, lines: &[u8]) -> Option<Written> {
        match &mut self.way {
            #[cfg(target_os = "linux")]
            Way::Pipe(pipe) => Some(write_pipe(pipe, lines).await),
            Way::Thread(thread) => thread.write(lines).await,
        }
    }
}

impl Way {
    fn open(file: File) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        if let Ok(pipe) = open_pipe() {
            debug!("stdout is a pipe, which is written without a thread");
            return Ok(Self::Pipe(pipe));
        }
        debug!("stdout is written by a thread");
        Ok(Self::Thread(WriterThread::start(file)?))
    }
}

/// Opens a file description of this process's own for the pipe that stdout is. It is non-blocking,
/// which nobody else who holds the pipe notices.
///
/// Only for an anonymous pipe: once a FIFO's reader has gone, tokio takes it for closed for ever,
/// even if another reader comes before the next write.
#[cfg(target_os = "linux")]
fn open_pipe() -> io::Result<pipe::Sender> {
    let path = "/proc/self/fd/1";
    if std::fs::read_link(path)?
        .to_string_lossy()
        .starts_with("pipe:")
    {
        pipe::OpenOptions::new().open_sender(path)
    } else {
        Err(ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
async fn write_pipe(pipe: &mut pipe::Sender, lines: &[u8]) -> Written {
    let mut count = 0;
    while count < lines.len() {
        match pipe.write(&lines[count..]).await {
            Ok(more) => count += more,
            Err(error) => {
                let result = Err(error.kind());
                return Written { count, result };
            }
        }
    }
    let result = Ok(());
    Written { count, result }
}

/// Prints a text on stdout, for a person.
///
/// # Errors
/// The operating system's.
pub fn print(text: &str) -> Result<(), Box<dyn Error>> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// A thread that writes one batch of lines at a time.
#[derive(Debug)]
struct WriterThread {
    batches: std::sync::mpsc::Sender<Vec<u8>>,
    written: mpsc::UnboundedReceiver<Written>,
}

impl WriterThread {
    fn start(mut out: impl Write + Send + 'static) -> io::Result<Self> {
        let (batches, to_write) = std::sync::mpsc::channel::<Vec<u8>>();
        let (done, written) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("event-log".to_owned())
            .spawn(move || {
                for lines in to_write {
                    // Fails when the process ends.
                    let _ = done.send(write(&mut out, &lines));
                }
            })
            .map_err(|error| {
                let problem = format!("cannot start a thread for events: {error}");
                io::Error::new(error.kind(), problem)
            })?;
        Ok(Self { batches, written })
    }

    async fn write(&mut self, lines: &[u8]) -> Option<Written> {
        self.batches.send(lines.to_vec()).ok()?;
        self.written.recv().await
    }
}

fn write(out: &mut impl Write, lines: &[u8]) -> Written {
    let mut count = 0;
    let mut result = Ok(());
    while count < lines.len() && result.is_ok() {
        match out.write(&lines[count..]) {
            Ok(0) => result = Err(ErrorKind::WriteZero),
            Ok(more) => count += more,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                // Another process has made a shared pipe non-blocking: wait as a blocking one does.
                ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
                kind => result = Err(kind),
            },
        }
    }
    Written { count, result }
}

/// Whether stdout is a file whose last line another process has started and not finished.
fn ends_mid_line(stdout: &File) -> bool {
    let last_byte = || {
        // What is open for writing alone can't be read.
        let mut file = File::open("/dev/stdout")?;
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last).map(|()| last[0])
    };
    let is_file = stdout.metadata().is_ok_and(|metadata| metadata.is_file());
    is_file && last_byte().is_ok_and(|last| last != b'\n')
}

/// Whether stdout takes every byte and keeps none.
#[cfg(unix)]
fn is_null_device(stdout: &File) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let device = |metadata: std::fs::Metadata| {
        let is_device = metadata.file_type().is_char_device();
        is_device.then(|| metadata.rdev())
    };
    let null = std::fs::metadata("/dev/null").ok().and_then(device);
    null.is_some() && stdout.metadata().ok().and_then(device) == null
}

#[cfg(not(unix))]
fn is_null_device(_: &File) -> bool {
    false
}
