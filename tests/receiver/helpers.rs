//! A receiver to test, and what surrounds it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, PipeReader, PipeWriter, Read, Write};
use std::iter;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

pub use crate::client::*;

/// The secret that receivers are started with. Short, as DT's own examples are.
pub const SECRET: &str = "test-secret";

/// The receiver's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_data-connector-receiver");

/// How long anything that is awaited may take before the test fails.
pub const SOON: Duration = Duration::from_secs(30);

/// How long what waits for nothing may take on a busy machine.
pub const AT_ONCE: Duration = Duration::from_secs(2);

/// A receiver that runs. It is killed when this is dropped.
pub struct Receiver {
    pub child: Child,
    pub address: SocketAddr,
    pub stdout: Output,
    pub stderr: Output,
}

/// What comes out of a process, as it comes.
#[derive(Clone, Default)]
pub struct Output(Arc<(Mutex<Vec<u8>>, Condvar)>);

/// A receiver that has stopped.
pub struct Stopped {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
}

/// A command that starts a receiver on a free port, whose lines on stderr carry no time.
pub fn receiver() -> Command {
    let mut command = command(PROGRAM);
    command.env("PORT", "0").env("JOURNAL_STREAM", "8:1");
    command
}

/// A command in whose environment nothing is set but the receivers' secret.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("DT_SIGNATURE_SECRET", SECRET);
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Receiver {
    /// Starts a receiver on a free port and waits until it listens.
    pub fn start() -> Self {
        Self::run(receiver())
    }

    /// Starts a receiver whose command is changed first.
    pub fn start_with(change: impl FnOnce(&mut Command)) -> Self {
        let mut command = receiver();
        change(&mut command);
        Self::run(command)
    }

    /// Runs a command that becomes a receiver, and waits until it listens.
    pub fn run(command: Command) -> Self {
        let mut receiver = Self::spawn(command);
        receiver.stderr.wait_for("listening on ");
        let stderr = receiver.stderr.text();
        let mut lines = stderr.lines();
        let line = lines.find(|line| line.contains("listening on ")).unwrap();
        let (_, port) = line.trim_end_matches(')').rsplit_once(':').unwrap();
        receiver.address.set_port(port.parse().unwrap());
        receiver
    }

    /// Runs a command that becomes a receiver whose stderr may say nothing, and waits until it
    /// listens.
    pub fn run_unheard(mut command: Command) -> Self {
        let port = free_port();
        command.env("PORT", port.to_string());
        let mut receiver = Self::spawn(command);
        receiver.address.set_port(port);
        wait_until("the receiver listens", || listens(port));
        receiver
    }

    /// Runs a command that becomes a receiver, or fails to.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the receiver starts");
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let stdout = child.stdout.take().map(Output::of).unwrap_or_default();
        let stderr = child.stderr.take().map(Output::of).unwrap_or_default();
        Self {
            child,
            address,
            stdout,
            stderr,
        }
    }

    pub fn client(&self) -> Client {
        Client::connect_within(self.address, SOON).expect("the receiver accepts")
    }

    /// Sends a request on a connection of its own.
    pub fn ask(&self, request: &[u8]) -> Answer {
        self.client().ask(request)
    }

    /// Posts a body as DT's cloud does.
    pub fn post(&self, body: &[u8]) -> Answer {
        self.ask(&event(body))
    }

    /// Opens connections on each of which `request` is answered with `status`.
    pub fn answered(&self, count: usize, request: &[u8], status: u16) -> Vec<Client> {
        let answered = || {
            let mut client = self.client();
            assert_eq!(client.ask(request).status, status);
            client
        };
        iter::repeat_with(answered).take(count).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the receiver runs");
    }

    /// SIGTERM, then everything that came out.
    pub fn stop(self) -> Stopped {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Stopped {
        let begun = Instant::now();
        let has_ended = |child: &mut Child| child.try_wait().unwrap().is_some();
        wait_until("the receiver ends", || has_ended(&mut self.child));
        Stopped {
            took: begun.elapsed(),
            status: self.child.wait().unwrap(),
            stdout: self.stdout.to_end(),
            stderr: String::from_utf8(self.stderr.to_end()).expect("UTF-8 on stderr"),
        }
    }

    /// The most memory that it has had, in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let (_, most) = status.split_once("VmHWM:").unwrap();
        most.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    /// Collects what comes out of a pipe.
    pub fn of(pipe: impl Read + Send + 'static) -> Self {
        let output = Self::default();
        let mut collected = output.clone();
        // As much at a time as a pipe holds.
        let mut pipe = BufReader::with_capacity(65_536, pipe);
        thread::spawn(move || io::copy(&mut pipe, &mut collected));
        output
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until `text` has come and its line has ended.
    pub fn wait_for(&self, text: &str) {
        self.wait_until(text, |bytes| {
            let all = String::from_utf8_lossy(bytes);
            all.find(text).is_some_and(|at| all[at..].contains('\n'))
        });
    }

    /// Waits until so many lines have come.
    pub fn wait_for_lines(&self, count: usize) {
        self.wait_until(&format!("{count} lines"), |bytes| {
            bytes.split(|&byte| byte == b'\n').count() > count
        });
    }

    fn wait_until(&self, what: &str, mut has_come: impl FnMut(&[u8]) -> bool) {
        let bytes = self.0.0.lock().unwrap();
        let waiting = |bytes: &mut Vec<u8>| !has_come(bytes);
        let (bytes, waited) = self.0.1.wait_timeout_while(bytes, SOON, waiting).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!waited.timed_out(), "no {what} in: {text}");
    }

    /// What has come once nothing more can: the only other holder is the thread that collects.
    pub fn to_end(&self) -> Vec<u8> {
        wait_until("the pipe is closed", || Arc::strong_count(&self.0) == 1);
        self.bytes()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.lock().unwrap().extend(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stopped {
    /// It ended with exit code 0, within `limit`.
    pub fn assert_clean(&self, limit: Duration) {
        assert_eq!(self.status.code(), Some(0), "{}", self.stderr);
        assert!(self.took < limit, "took {:?}", self.took);
    }

    /// The last line on stderr has these counts.
    pub fn assert_counts(&self, counts: &str) {
        let end = format!(" INFO stopped {counts}\n");
        assert!(self.stderr.ends_with(&end), "{}", self.stderr);
    }

    /// The lines on stdout, each of which must have ended.
    pub fn lines(&self) -> Vec<&[u8]> {
        lines(&self.stdout)
    }
}

/// Lines without their ends, all of which must be there.
pub fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let without_end = lines.map(|line| line.strip_suffix(b"\n"));
    without_end
        .map(|line| line.expect("a line's end"))
        .collect()
}

/// Says why a test is skipped, past libtest, which keeps what a test that passes prints. In CI a
/// skipped test is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped: {why}");
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// A port on which nothing listens, below those that the system gives to whoever asks for any.
pub fn free_port() -> u16 {
    // Not by listening there: a process that another test starts meanwhile would go on.
    let mut ports = iter::repeat_with(|| fastrand::u16(10_000..32_000));
    ports.find(|port| !listens(*port)).unwrap()
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Lets this process, and the receivers that it starts from now on, have as many open files as
/// tests with every connection taken need, two of them side by side.
pub fn many_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    let remedy = "as root `ulimit -n 8192`, or `docker run --ulimit nofile=8192`";
    assert!(limit.maximum.is_none_or(|most| most >= 8192), "{remedy}");
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A pipe that takes nothing more until its reader, which reads nothing by itself, is read.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    // 65,536 bytes fill a pipe.
    (&writer).write_all(&vec![b' '; 65_536]).unwrap();
    (reader, writer)
}

/// Closes the last reader of a pipe. Until its exec, a process that another test starts meanwhile
/// has a copy of it: waits for that, too.
pub fn close_reader(reader: impl AsFd, writer: &impl AsFd) {
    drop(reader);
    let mut closed = [PollFd::new(writer, PollFlags::empty())];
    poll(&mut closed, Some(&Timespec::try_from(SOON).unwrap())).unwrap();
    assert_eq!(closed[0].revents(), PollFlags::ERR);
}

/// A terminal to write to, and what is written to it.
pub fn terminal() -> (File, Output) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let slave = OpenOptions::new().write(true).open(name.to_str().unwrap());
    (slave.unwrap(), Output::of(File::from(terminal)))
}
