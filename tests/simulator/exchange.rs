//! Requests byte by byte, as no HTTP library would send all of them, and the statuses of their
//! answers.

use std::error::Error;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::io::{self, ErrorKind};

use axum::http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take, copy, sink};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::endpoint;

/// How much of an answer is read, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

type Stream = BufReader<TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>>;

/// A connection to a receiver.
pub(crate) struct Connection(Stream);

/// What is known of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether the connection can be used again.
    pub(crate) keeps: bool,
}

impl Connection {
    /// Connects to the receiver at `url`.
    pub(crate) async fn open(url: &Uri) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut connector = endpoint::connector();
        poll_fn(|context| connector.poll_ready(context)).await?;
        let stream = connector.call(url.clone()).await?;
        Ok(Self(BufReader::new(TokioIo::new(stream))))
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        // Who answers before having read everything may have closed its half: then there is
        // something to read.
        if self.0.write_all(request).await.is_ok() {
            let _ = self.0.flush().await;
        }
        let mut answer = (&mut self.0).take(MAX_ANSWER);
        loop {
            let head = head(&mut answer).await?;
            let status = status(&head)?;
            // Informational ones come before the answer.
            if status >= 200 {
                let keeps = skip_body(&mut answer, status, &head).await.is_ok();
                return Ok(Answer { status, keeps });
            }
        }
    }
}

/// A POST of a body whose length is said.
pub(crate) fn post(url: &Uri, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let length = body.len().to_string();
    let mut request = post_head(url, headers, ("Content-Length", &length));
    request.extend(body);
    request
}

/// A POST of a body in chunks of so many bytes.
pub(crate) fn chunked(url: &Uri, headers: &[(&str, &str)], body: &[u8], length: usize) -> Vec<u8> {
    let mut request = post_head(url, headers, ("Transfer-Encoding", "chunked"));
    for chunk in body.chunks(length) {
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
    for (name, value) in [("Host", host), ("Content-Type", "application/json"), length]
        .iter()
        .chain(headers)
    {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// The lines of a head, in lower case, without the empty one at its end.
async fn head(answer: &mut Take<&mut Stream>) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let line = line(answer).await?;
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line.to_ascii_lowercase());
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

fn status(head: &[String]) -> io::Result<u16> {
    let line = head.first().and_then(|line| line.strip_prefix("http/1."));
    line.and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or(ErrorKind::InvalidData.into())
}

/// Reads to the end of an answer; an error if nothing can come after it.
async fn skip_body(answer: &mut Take<&mut Stream>, status: u16, head: &[String]) -> io::Result<()> {
    let header = |name| {
        let mut headers = head.iter().filter_map(|line| line.split_once(':'));
        headers.find_map(|(found, value)| (found == name).then_some(value.trim()))
    };
    if header("connection").is_some_and(|value| value.contains("close"))
        || !head[0].starts_with("http/1.1")
    {
        return Err(ErrorKind::ConnectionAborted.into());
    }
    if status == 204 {
        return Ok(());
    }
    if header("transfer-encoding").is_some() {
        loop {
            let size = line(answer).await?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
            if size == 0 {
                break;
            }
            skip(answer, size).await?;
            line(answer).await?;
        }
        // Trailers, and the empty line.
        self::head(answer).await?;
        return Ok(());
    }
    let length = header("content-length").and_then(|length| length.parse().ok());
    skip(answer, length.ok_or(ErrorKind::UnexpectedEof)?).await
}

async fn skip(answer: &mut Take<&mut Stream>, bytes: u64) -> io::Result<()> {
    match copy(&mut answer.take(bytes), &mut sink()).await? {
        skipped if skipped == bytes => Ok(()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}
