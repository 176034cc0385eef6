//! One connection to a receiver, over TCP or TLS, and the requests on it, byte by byte: the check
//! sends what no HTTP library would.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::sync::{Arc, LazyLock};

use axum::http::Uri;
use axum::http::uri::Scheme;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::io::{BufReader, Take};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How much of an answer is read, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// How much of an answer is shown, in characters.
const MAX_TEXT: usize = 100;

const NOT_LISTENING: &str =
    "Nothing listens there: is the receiver running, and is the port right?";
const UNREACHABLE: &str = "The host cannot be reached: is its name right, and is there a network?";
const NO_TLS: &str =
    "No TLS with that host: does it speak https, with a certificate that browsers trust?";
pub(crate) const NO_ANSWER: &str =
    "The connection ended without an answer: has the receiver stopped, or does it speak https?";

pub(crate) const LATE: &str =
    "No answer in time: is that the receiver's address? Does it, or what reads its stdout, hang?";

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

type Stream = BufReader<Box<dyn Transport>>;

/// The way to a receiver: a connection, which is used again for as long as the receiver keeps it.
pub(crate) struct Link {
    url: Uri,
    kept: Option<Stream>,
}

/// What a receiver answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The body's first line, or else the words beside the status, fit for a terminal.
    pub(crate) text: String,
}

/// An attempt that was not answered 2xx, and what to do about it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The answer's status, if there was an answer.
    pub(crate) status: Option<u16>,
    /// The answer's first line, or what went wrong without one.
    pub(crate) text: String,
    pub(crate) advice: &'static str,
}

impl Link {
    /// To the receiver at `url`, without a connection yet.
    pub(crate) fn new(url: Uri) -> Self {
        Self { url, kept: None }
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Result<Answer, Failure> {
        // A receiver may close a connection between two requests; then another one serves.
        if let Some(stream) = self.kept.take()
            && let Ok(answer) = self.ask_on(stream, request).await
        {
            return Ok(answer);
        }
        let stream = open(&self.url).await?;
        self.ask_on(stream, request).await.map_err(|error| Failure {
            status: None,
            text: error.to_string(),
            advice: NO_ANSWER,
        })
    }

    async fn ask_on(&mut self, mut stream: Stream, request: &[u8]) -> io::Result<Answer> {
        // Who answers before having read everything may have closed its half: then there is
        // something to read.
        if stream.write_all(request).await.is_ok() {
            let _ = stream.flush().await;
        }
        let mut answer = (&mut stream).take(MAX_ANSWER);
        loop {
            let head = head(&mut answer).await?;
            let (status, reason) = status(&head)?;
            // Informational ones come before the answer.
            if status >= 200 {
                let mut body = Vec::new();
                if let Ok(true) = read_body(&mut answer, status, &head, &mut body).await {
                    self.kept = Some(stream);
                }
                let body = String::from_utf8_lossy(&body);
                let line = body.trim().lines().next().unwrap_or(reason);
                let printable = |c: char| if c.is_control() { ' ' } else { c };
                let text = line.chars().map(printable).take(MAX_TEXT).collect();
                return Ok(Answer { status, text });
            }
        }
    }
}

async fn open(url: &Uri) -> Result<Stream, Failure> {
    let failure = |error: io::Error, advice| Failure {
        status: None,
        text: error.to_string(),
        advice,
    };
    let https = url.scheme() == Some(&Scheme::HTTPS);
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port)).await;
    let tcp = tcp.map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => failure(error, NOT_LISTENING),
        _ => failure(error, UNREACHABLE),
    })?;
    // Without it the answer could wait, but nothing would be wrong.
    let _ = tcp.set_nodelay(true);
    if !https {
        return Ok(BufReader::new(Box::new(tcp)));
    }
    let tls = tls(host, tcp).await.map_err(|error| failure(error, NO_TLS));
    Ok(BufReader::new(Box::new(tls?)))
}

async fn tls(host: &str, tcp: TcpStream) -> io::Result<impl Transport + use<>> {
    static CONNECTOR: LazyLock<TlsConnector> = LazyLock::new(|| {
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        // As curl and openssl do, for a certificate of one's own.
        if let Some(file) = std::env::var_os("SSL_CERT_FILE")
            && let Ok(certificates) = CertificateDer::pem_file_iter(file)
        {
            roots.add_parsable_certificates(certificates.flatten());
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        TlsConnector::from(Arc::new(config.with_no_client_auth()))
    });
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    CONNECTOR.connect(name, tcp).await
}

/// A POST of a body whose length is said.
pub(crate) fn post(url: &Uri, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let length = body.len().to_string();
    let mut request = post_head(url, headers, ("Content-Length", &length));
    request.extend(body.bytes());
    request
}

/// A POST of a body in chunks of so many bytes.
pub(crate) fn chunked(url: &Uri, headers: &[(&str, &str)], body: &str, length: usize) -> Vec<u8> {
    let mut request = post_head(url, headers, ("Transfer-Encoding", "chunked"));
    for chunk in body.as_bytes().chunks(length) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

fn post_head(url: &Uri, headers: &[(&str, &str)], length: (&str, &str)) -> Vec<u8> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let host = url.authority().map_or("", |host| host.as_str());
    let mut head = format!("POST {path} HTTP/1.1\r\n");
    let first = [("Host", host), ("Content-Type", "application/json"), length];
    for (name, value) in first.iter().chain(headers) {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// The lines of a head without the empty one at its end.
async fn head(answer: &mut Take<&mut Stream>) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let line = line(answer).await?;
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line);
    }
}

async fn line(answer: &mut Take<&mut Stream>) -> io::Result<String> {
    let mut line = Vec::new();
    answer.read_until(b'\n', &mut line).await?;
    if line.pop() != Some(b'\n') {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// The number and the words of a status line.
fn status(head: &[String]) -> io::Result<(u16, &str)> {
    let line = head.first().and_then(|line| line.strip_prefix("HTTP/1."));
    let mut parts = line.unwrap_or_default().splitn(3, ' ').skip(1);
    let status = parts.next().and_then(|status| status.parse().ok());
    let status = status.ok_or(io::Error::new(ErrorKind::InvalidData, "not HTTP/1.1"))?;
    Ok((status, parts.next().unwrap_or_default()))
}

/// Reads an answer to its end; whether another one can come after it.
async fn read_body(
    answer: &mut Take<&mut Stream>,
    status: u16,
    head: &[String],
    body: &mut Vec<u8>,
) -> io::Result<bool> {
    let header = |name: &str| {
        let mut headers = head.iter().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_ascii_lowercase())
    };
    let closes = header("connection").is_some_and(|value| value.contains("close"));
    let keeps = !closes && head[0].starts_with("HTTP/1.1");
    if status == 204 {
        return Ok(keeps);
    }
    if header("transfer-encoding").is_some() {
        loop {
            let size = line(answer).await?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
            if size == 0 {
                break;
            }
            answer.take(size).read_to_end(body).await?;
            line(answer).await?;
        }
        // Trailers, and the empty line.
        self::head(answer).await?;
        return Ok(keeps);
    }
    let length = header("content-length").and_then(|length| length.parse().ok());
    let read = answer
        .take(length.unwrap_or(MAX_ANSWER))
        .read_to_end(body)
        .await?;
    Ok(keeps && Some(read as u64) == length)
}
