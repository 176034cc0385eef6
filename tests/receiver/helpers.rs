//! A receiver to test, a client to talk to it, tokens to sign with.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
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
        let mut command = Command::new(PROGRAM);
        command
            .env_clear()
            .env("DT_SIGNATURE_SECRET", SECRET)
            .env("PORT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        change(&mut command);
        Self::run(command)
    }

    /// Runs a command that becomes a receiver.
    pub fn run(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the receiver starts");
        let stdout = child.stdout.take().map(Output::of).unwrap_or_default();
        let stderr = child.stderr.take().map(Output::of).unwrap_or_default();
        stderr.wait_for("listening on ");
        let stderr_now = stderr.text();
        let line = stderr_now
            .lines()
            .find(|line| line.contains("listening on "))
            .unwrap();
        let (_, address) = line.trim_end_matches(')').rsplit_once('(').unwrap();
        let address: SocketAddr = address.parse().expect("an address");
        Self {
            child,
            address: (Ipv4Addr::LOCALHOST, address.port()).into(),
            stdout,
            stderr,
        }
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
    fn to_end(&self) -> Vec<u8> {
        let begun = Instant::now();
        while Arc::strong_count(&self.0) > 1 && begun.elapsed() < SOON {
            thread::sleep(Duration::from_millis(1));
        }
        self.bytes()
    }
}

impl Stopped {
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

    /// Whether the receiver ends the connection without another byte.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
            || self
                .0
                .get_ref()
                .take_error()
                .is_ok_and(|error| error.is_some())
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

/// A port on which nothing listens.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
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
