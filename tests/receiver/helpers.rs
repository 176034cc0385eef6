//! A receiver to test, a client to talk to it, tokens to sign with.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use data_connector_receiver::refusal::Refusal;
use hmac::{Hmac, KeyInit, Mac};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;

/// The secret that receivers are started with. Short, as DT's own examples are.
pub const SECRET: &str = "test-secret";

/// The receiver's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_data-connector-receiver");

/// How long anything that is awaited may take before the test fails.
pub const SOON: Duration = Duration::from_secs(20);

/// How long an answer may take that waits for nothing, on a busy machine.
pub const AT_ONCE: Duration = Duration::from_secs(2);

/// A temperature event as DT's cloud sends it.
pub const EVENT: &[u8] = include_bytes!("../events/temperature.json");

/// A receiver that runs.
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

/// A connection to a receiver.
pub struct Client(BufReader<TcpStream>);

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Receiver {
    /// Starts a receiver on a free port and waits until it listens.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a receiver whose command is changed first.
    pub fn start_with(change: impl FnOnce(&mut Command)) -> Self {
        let mut command = receiver();
        change(&mut command);
        Self::run(command)
    }

    /// Runs a command that becomes a receiver.
    pub fn run(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the receiver starts");
        let stdout = child.stdout.take().map(Output::of).unwrap_or_default();
        let stderr = child.stderr.take().map(Output::of).unwrap_or_default();
        let mut receiver = Self {
            child,
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            stdout,
            stderr,
        };
        receiver.stderr.wait_for("listening on ");
        let stderr = receiver.stderr.text();
        let line = stderr
            .lines()
            .find(|line| line.contains("listening on "))
            .unwrap();
        let (_, address) = line.trim_end_matches(')').rsplit_once('(').unwrap();
        let address: SocketAddr = address.parse().expect("an address");
        receiver.address.set_port(address.port());
        receiver
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Posts a body as DT's cloud does.
    pub fn post(&self, body: &[u8]) -> Answer {
        self.client().ask(&event(body))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("the receiver runs");
    }

    /// SIGTERM, then everything that came out.
    pub fn stop(self) -> Stopped {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Stopped {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(25),
                "the receiver does not end"
            );
            thread::sleep(Duration::from_millis(2));
        };
        let took = begun.elapsed();
        Stopped {
            status,
            stdout: self.stdout.to_end(),
            stderr: String::from_utf8(self.stderr.to_end()).expect("UTF-8 on stderr"),
            took,
        }
    }

    /// The user and system time that it has taken.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory, in KiB: what it is now and what it was at most.
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let field = |name| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (field("VmRSS:"), field("VmHWM:"))
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
    pub fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let output = Self::default();
        let collected = output.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut bytes = collected.0.0.lock().unwrap();
                bytes.extend_from_slice(&buffer[..count]);
                collected.0.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
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

    fn wait_until(&self, what: &str, mut come: impl FnMut(&[u8]) -> bool) {
        let bytes = self.0.0.lock().unwrap();
        let (bytes, waited) = self
            .0
            .1
            .wait_timeout_while(bytes, SOON, |bytes| !come(bytes))
            .unwrap();
        assert!(
            !waited.timed_out(),
            "no {what} in: {}",
            String::from_utf8_lossy(&bytes)
        );
    }

    /// What has come once nothing more can: the only other holder is the thread that collects.
    pub fn to_end(&self) -> Vec<u8> {
        let begun = Instant::now();
        while Arc::strong_count(&self.0) > 1 {
            assert!(begun.elapsed() < SOON, "the pipe is still open");
            thread::sleep(Duration::from_millis(1));
        }
        self.bytes()
    }
}

impl Stopped {
    /// It ended with exit code 0, within `limit`, and without a panic.
    pub fn assert_clean(&self, limit: Duration) {
        assert_eq!(self.status.code(), Some(0), "{}", self.stderr);
        assert!(self.took < limit, "took {:?}", self.took);
        assert!(!self.stderr.contains("panic"), "{}", self.stderr);
    }

    /// The lines on stdout, each of which must have ended.
    pub fn lines(&self) -> Vec<&[u8]> {
        lines(&self.stdout)
    }
}

/// Lines without their ends, all of which must be there.
pub fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let lines = bytes.strip_suffix(b"\n");
    let lines = lines.unwrap_or_else(|| panic!("no end: {}", String::from_utf8_lossy(bytes)));
    lines.split(|&byte| byte == b'\n').collect()
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the receiver accepts");
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0
            .get_mut()
            .write_all(bytes)
            .expect("the receiver reads");
    }

    /// Sends what the receiver may refuse to read.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    pub fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    pub fn ask(&mut self, request: &[u8]) -> Answer {
        self.send(request);
        self.answer()
    }

    pub fn answer(&mut self) -> Answer {
        self.try_answer().expect("an answer")
    }

    /// The next answer, or `None` if the connection ends without one.
    pub fn try_answer(&mut self) -> Option<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        Some(Answer {
            status,
            head,
            body: String::from_utf8(body).ok()?,
        })
    }

    /// Whether the receiver ends the connection, by a reset or not, without another byte and within
    /// the limit of a read.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => ![ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()),
        }
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The status and the body, exactly.
    pub fn assert(&self, status: u16, body: &str) {
        assert_eq!(
            (self.status, self.body.as_str()),
            (status, body),
            "{}",
            self.head
        );
        assert_eq!(
            self.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
    }

    pub fn assert_ok(&self) {
        self.assert(200, "OK");
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// A command that starts a receiver on a free port.
pub fn receiver() -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .env_clear()
        .env("DT_SIGNATURE_SECRET", SECRET)
        .env("PORT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Says why a test is skipped, past libtest, which keeps what a test that passes prints. In CI a
/// skipped test is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped: {why}");
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// A port on which nothing listens, below those that the system gives to whoever asks for any.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        // Not by listening there: a process that another test starts meanwhile would go on.
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            return port;
        }
    }
}

/// A Data Connector, simulated, with the receivers' secret.
pub fn simulator() -> Command {
    static SIMULATOR: LazyLock<PathBuf> = LazyLock::new(build_simulator);
    let mut command = Command::new(&*SIMULATOR);
    command
        .env_clear()
        .env("DT_SIGNATURE_SECRET", SECRET)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Builds the simulator: cargo does for some ways of `cargo test`, and not for others.
fn build_simulator() -> PathBuf {
    let folder = Path::new(PROGRAM).parent().unwrap();
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--example", "data-connector"])
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success());
    folder.join("examples/data-connector")
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// The claims that DT's cloud signs for a body.
pub fn claims(body: &[u8]) -> Value {
    json!({
        "checksum": hex::encode(Sha1::digest(body)),
        "checksum_sha256": hex::encode(Sha256::digest(body)),
        "exp": now() + 3600,
        "iat": now(),
        "jti": "cpbg96t1isjlr2vdorc0",
    })
}

/// The claims of a body with one of them changed; null takes it away.
pub fn claims_with(body: &[u8], name: &str, value: Value) -> Value {
    let mut claims = claims(body);
    claims[name] = value;
    claims
}

/// A token of any header and claims, signed with HS256 whatever the header says.
pub fn sign(header: &str, claims: &str, secret: &str) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let mut hmac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    hmac.update(message.as_bytes());
    format!("{message}.{}", encode(hmac.finalize().into_bytes()))
}

pub fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// The header of DT's tokens.
pub const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// The token that DT's cloud sends with a body.
pub fn token(body: &[u8]) -> String {
    sign(HEADER, &claims(body).to_string(), SECRET)
}

/// The line on stderr about a refused request.
pub fn refusal_line(refusal: Refusal) -> String {
    let status = refusal.status().as_u16();
    format!(" WARN refused with {status}: {}", refusal.reason())
}

/// A POST on `/` with these headers.
pub fn post(headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = b"POST / HTTP/1.1\r\nHost: localhost\r\n".to_vec();
    for (name, value) in headers {
        request.extend(format!("{name}: {value}\r\n").bytes());
    }
    request.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
    request.extend(body);
    request
}

/// The request of an event in chunks, and what else its body has after them.
pub fn chunked(body: &[u8], length: usize, trailers: &str) -> Vec<u8> {
    let mut request = chunked_head(body);
    for chunk in body.chunks(length) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(format!("0\r\n{trailers}\r\n").bytes());
    request
}

/// The head of an event that comes in chunks.
pub fn chunked_head(body: &[u8]) -> Vec<u8> {
    let token = token(body);
    format!(
        "POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: {token}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes()
}

/// The request with which DT's cloud sends an event.
pub fn event(body: &[u8]) -> Vec<u8> {
    post(
        &[
            ("X-Dt-Signature", &token(body)),
            ("Content-Type", "application/json"),
        ],
        body,
    )
}

/// How many connections the receiver serves at once.
pub const PLACES: usize = 1024;

/// A POST without a signature; it is answered 400.
pub const UNSIGNED: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";

/// What a stranger asks; it is answered 405.
pub const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Lets this process, and the receivers that it starts from now on, have as many open files as
/// tests with every connection taken need, two of them side by side.
pub fn many_descriptors() {
    const ENOUGH: u64 = 8192;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(
        most >= ENOUGH,
        "this takes a limit of {ENOUGH} open files, and here it is {most}: as root `ulimit -n \
         {ENOUGH}`, or `docker run --ulimit nofile={ENOUGH}`"
    );
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// An event of `length` bytes, unlike any other number's.
pub fn numbered(number: usize, length: usize) -> Vec<u8> {
    let begin = format!(r#"{{"number":{number},"fill":""#);
    let fill = "x".repeat(length.saturating_sub(begin.len() + 2));
    format!("{begin}{fill}\"}}").into_bytes()
}

/// The head of a POST with the token of `EVENT`, as somebody may have captured it, for another body.
pub fn captured(body: &str) -> Vec<u8> {
    let token = token(EVENT);
    format!("POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: {token}\r\n{body}\r\n\r\n").into_bytes()
}

impl Client {
    /// Connects within `limit`, which is the limit of any later read and write, too.
    pub fn connect_within(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and has its answer within `limit`; or says what happened instead.
    pub fn attempt(&mut self, request: &[u8], limit: Duration) -> Result<Answer, String> {
        let begun = Instant::now();
        self.stream().set_read_timeout(Some(limit)).unwrap();
        self.try_send(request)
            .map_err(|error| format!("cannot send after {:?}: {error}", begun.elapsed()))?;
        let answer = self.try_answer();
        let took = begun.elapsed();
        match answer {
            Some(answer) if took < limit => Ok(answer),
            Some(answer) => Err(format!("{} only after {took:?}", answer.status)),
            None if took < limit => Err(format!("closed without an answer after {took:?}")),
            None => Err(format!("no answer within {took:?}")),
        }
    }

    /// The same within `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        self.stream().set_read_timeout(Some(limit)).unwrap();
        self.is_closed()
    }
}

/// A sender's first attempt, on a connection of its own.
pub fn attempt(address: SocketAddr, request: &[u8], limit: Duration) -> Result<Answer, String> {
    let begun = Instant::now();
    let mut client = Client::connect_within(address, limit)
        .map_err(|error| format!("cannot connect: {error}"))?;
    client.attempt(request, limit.saturating_sub(begun.elapsed()))
}

impl Receiver {
    /// Opens connections on each of which `request` is answered with `status`, and which idle.
    pub fn answered(&self, count: usize, request: &[u8], status: u16) -> Vec<Client> {
        (0..count)
            .map(|number| {
                let limit = Duration::from_secs(5);
                let client = Client::connect_within(self.address, limit);
                let mut client = client.unwrap_or_else(|error| panic!("number {number}: {error}"));
                let answer = client.attempt(request, limit);
                let answer = answer.unwrap_or_else(|error| panic!("number {number}: {error}"));
                assert_eq!(answer.status, status, "number {number}: {answer:?}");
                client
            })
            .collect()
    }

    /// Runs a command that becomes a receiver whose stderr is not heard, and waits until it listens.
    pub fn run_unheard(mut command: Command) -> Self {
        let port = free_port();
        command
            .env_clear()
            .env("DT_SIGNATURE_SECRET", SECRET)
            .env("PORT", port.to_string())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        let mut child = command.spawn().expect("the receiver starts");
        let stdout = child.stdout.take().map(Output::of).unwrap_or_default();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        wait_until("the receiver listens", || {
            TcpStream::connect(address).is_ok()
        });
        Self {
            child,
            address,
            stdout,
            stderr: Output::default(),
        }
    }
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A process that is killed once this is dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A flood of strangers' connections.
#[derive(Clone, Copy)]
pub struct Flood<'a> {
    pub address: SocketAddr,
    /// New connections a second.
    pub rate: u32,
    /// What is sent on each, whose answer is not read.
    pub first: &'a [u8],
}

impl Flood<'_> {
    /// Does something while the flood lasts.
    pub fn during<T>(self, something: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let flood = scope.spawn(|| self.pour(&over));
            let ends = Ends(&over);
            let outcome = something();
            drop(ends);
            let (opened, took) = flood.join().unwrap();
            eprintln!("{opened} connections of strangers in {took:?}");
            outcome
        })
    }

    /// Each connection stays open until there are half as many again as the receiver has places.
    fn pour(self, over: &AtomicBool) -> (u64, Duration) {
        let begun = Instant::now();
        let mut open = VecDeque::new();
        let (mut tried, mut opened) = (0, 0);
        while !over.load(Relaxed) && begun.elapsed() < SOON {
            if Duration::from_secs(1) * tried / self.rate > begun.elapsed() {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            tried += 1;
            let stream = TcpStream::connect_timeout(&self.address, Duration::from_millis(500));
            let Ok(mut stream) = stream else { continue };
            opened += 1;
            let _ = stream.write_all(self.first);
            open.push_back(stream);
            if open.len() > PLACES * 3 / 2 {
                open.pop_front();
            }
        }
        (opened, begun.elapsed())
    }
}

/// Says when it is dropped, as by a panic, that something is over.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Reads no faster than so many bytes a second, until it is hurried.
pub struct Slow {
    pipe: PipeReader,
    rate: u32,
    hurried: Arc<AtomicBool>,
    read: u32,
    begun: Instant,
}

impl Slow {
    /// What comes out of a pipe at `rate`, and what hurries it.
    pub fn output(pipe: PipeReader, rate: u32) -> (Output, Hurry) {
        let hurried = Arc::new(AtomicBool::new(false));
        let hurry = Hurry(Arc::clone(&hurried));
        let begun = Instant::now();
        let slow = Self {
            pipe,
            rate,
            hurried,
            read: 0,
            begun,
        };
        (Output::of(slow), hurry)
    }
}

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The whole page at once, as a pipe has room for another line only when a page is free.
        let most = buffer.len().min(4096);
        let count = self.pipe.read(&mut buffer[..most])?;
        self.read += u32::try_from(count).unwrap();
        while !self.hurried.load(Relaxed) {
            let due = Duration::from_secs(1) * self.read / self.rate;
            let Some(early) = due.checked_sub(self.begun.elapsed()) else {
                break;
            };
            thread::sleep(early.min(Duration::from_millis(20)));
        }
        Ok(count)
    }
}

/// Makes a [`Slow`] reader as fast as it can be once this is dropped.
pub struct Hurry(Arc<AtomicBool>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
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
    let mut closed = [PollFd::new(writer.as_fd(), PollFlags::empty())];
    poll(&mut closed, PollTimeout::try_from(SOON).unwrap()).unwrap();
    assert_eq!(closed[0].revents(), Some(PollFlags::POLLERR));
}
