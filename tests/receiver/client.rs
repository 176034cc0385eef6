//! A client to talk to a receiver, the requests that it sends, and tokens to sign them with.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::helpers::{AT_ONCE, SECRET};

/// A temperature event as DT's cloud sends it.
pub const EVENT: &[u8] = include_bytes!("../events/temperature.json");

/// The header of DT's tokens.
pub const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// A POST without a signature; it is answered 400.
pub const UNSIGNED: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A GET; it is answered 405.
pub const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A connection to a receiver.
pub struct Client(BufReader<TcpStream>);

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
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

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the receiver reads");
    }

    /// Sends what the receiver may refuse to read.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
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
        let (head, body) = read_message(&mut self.0)?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head, body })
    }

    /// The next answer is a refusal with this status, and the last one.
    pub fn assert_refused(&mut self, status: u16) -> Answer {
        let answer = self.answer();
        answer.assert_refused(status);
        assert_eq!(answer.header("connection"), Some("close"), "{status}");
        assert!(self.ends_within(AT_ONCE), "it stays open after {status}");
        answer
    }

    /// Returns true if the receiver ends the connection, by a reset or not, without another byte and
    /// within the limit of a read.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => ![ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()),
        }
    }

    /// The same within `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        self.stream().set_read_timeout(Some(limit)).unwrap();
        self.is_closed()
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The status and the body, exactly.
    pub fn assert(&self, status: u16, body: &str) {
        let got = (self.status, self.body.as_str());
        assert_eq!(got, (status, body), "{}", self.head);
        let plain_text = Some("text/plain; charset=utf-8");
        assert_eq!(self.header("content-type"), plain_text, "{}", self.head);
    }

    pub fn assert_ok(&self) {
        self.assert(200, "OK");
    }

    /// The answer says no more than its status does.
    pub fn assert_refused(&self, status: u16) {
        let text = match status {
            404 => "Not found.",
            405 => "Method not allowed.",
            413 => "Body too large.",
            503 => "Could not log the event.",
            _ => "Could not verify request.",
        };
        self.assert(status, text);
    }
}

/// Reads a request or an answer: its head, and its body, which is announced or in chunks.
pub fn read_message(stream: &mut impl BufRead) -> Option<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let mut size = usize::from(header(&head, "transfer-encoding").is_some());
    while size > 0 {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        size = usize::from_str_radix(line.trim_end(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).ok()?;
        body.extend(&chunk[..size]);
    }
    Some((head, String::from_utf8(body).ok()?))
}

/// The value of the first header with this name, whatever its case.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    headers(head, name).next()
}

pub fn headers<'a>(head: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let headers = headers.filter(move |(found, _)| found.eq_ignore_ascii_case(name));
    headers.map(|(_, value)| value)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    UNIX_EPOCH.elapsed().unwrap().as_secs()
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

/// The token of `EVENT`, but with this claim.
pub fn token_with(claim: &str, value: impl Into<Value>) -> String {
    let mut claims = claims(EVENT);
    claims[claim] = value.into();
    sign(HEADER, claims.to_string(), SECRET)
}

/// The claims in a token.
pub fn claims_in(token: &str) -> Value {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap());
    serde_json::from_slice(&claims.unwrap()).unwrap()
}

/// A token of any header and claims, signed with HS256 whatever the header says.
pub fn sign(header: &str, claims: impl AsRef<[u8]>, secret: &str) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

pub fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// The token that DT's cloud sends with a body.
pub fn token(body: &[u8]) -> String {
    sign(HEADER, claims(body).to_string(), SECRET)
}

/// `EVENT` as a Data Connector with this secret sends it.
pub fn event_of(secret: &str) -> Vec<u8> {
    with_token(&sign(HEADER, claims(EVENT).to_string(), secret))
}

/// `EVENT` with any token.
pub fn with_token(token: &str) -> Vec<u8> {
    post(&[("X-Dt-Signature", token)], EVENT)
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

/// The request with which DT's cloud sends an event.
pub fn event(body: &[u8]) -> Vec<u8> {
    let token = token(body);
    let content_type = ("Content-Type", "application/json");
    post(&[("X-Dt-Signature", &token), content_type], body)
}

/// The request of an event in chunks, and what else its body has after them.
pub fn chunked(body: &[u8], length: usize, trailers: &str) -> Vec<u8> {
    let mut request = signed_head(body, "Transfer-Encoding: chunked");
    for chunk in body.chunks(length) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(format!("0\r\n{trailers}\r\n").bytes());
    request
}

/// The head of a POST with the token of `EVENT`, as somebody may have captured it, for another body.
pub fn captured(body: &str) -> Vec<u8> {
    signed_head(EVENT, body)
}

/// The head of a POST with the token of a body, and with this header.
fn signed_head(body: &[u8], header: &str) -> Vec<u8> {
    let line = "POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: ";
    format!("{line}{}\r\n{header}\r\n\r\n", token(body)).into_bytes()
}

/// An event of `length` bytes, unlike any other number's.
pub fn numbered(number: usize, length: usize) -> Vec<u8> {
    let begin = format!(r#"{{"number":{number},"fill":""#);
    let fill = "x".repeat(length.saturating_sub(begin.len() + 2));
    format!("{begin}{fill}\"}}").into_bytes()
}
